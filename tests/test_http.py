"""Health and metrics: of a real server, and of one whose sink fails or which drains."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from running import aiolog, serve

from aiolog import __version__
from aiolog.connection import Limits
from aiolog.control import ASKED_HEADER
from aiolog.errors import ConfigError
from aiolog.fanout import Delivery, Fanout, Lane
from aiolog.http import MAX_CONNECTIONS, HttpServer
from aiolog.report import Report
from aiolog.server import Server
from aiolog.source import Source


def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Return status, content type and text."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def samples(text: str) -> dict[str, float]:
    """Return the samples of the text format, named with their label values as name{a,b}."""
    return {
        sample.name + (f"{{{','.join(sample.labels.values())}}}" if sample.labels else ""): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def test_a_server_shows_what_it_counts(tmp_path):
    """After three records, the counters of server and sinks say three; every metric has a help text."""
    with serve(tmp_path) as server:
        sent = aiolog(tmp_path, "send", "--port", str(server.port), "-", stdin="one\ntwo\nthree\n")
        assert sent.returncode == 0
        status, content_type, text = get(f"{server.url}/metrics")
        # stdout may be behind: it delays no ack
        deadline = time.monotonic() + 5
        while samples(text)["aiolog_sink_records_written_total{console}"] != 3:
            assert time.monotonic() < deadline
            text = get(f"{server.url}/metrics")[2]
        size_bytes = (tmp_path / "logs/app.log").stat().st_size
        assert server.stop() == 0
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    found = samples(text)
    wanted = {
        "aiolog_records_received_total": 3,
        "aiolog_records_dropped_total": 0,
        "aiolog_records_duplicate_total": 0,
        "aiolog_connections_accepted_total": 2,  # a greeting, and the handler
        "aiolog_held_bytes": 0,
        "aiolog_draining": 0,
        "aiolog_sink_failing{app}": 0,
        "aiolog_sink_failing{console}": 0,
        "aiolog_sink_records_written_total{app}": 3,
        "aiolog_sink_written_bytes_total{app}": size_bytes,
        "aiolog_sink_rotations_total{app}": 0,
        "aiolog_sink_write_errors_total{app}": 0,
        "aiolog_sink_records_dropped_total{console}": 0,
        "aiolog_sink_records_refused_total{console}": 0,
    }
    assert wanted == {name: found[name] for name in wanted}
    assert found["process_resident_memory_bytes"] > 0
    assert found[f"aiolog_info{{written,{__version__}}}"] == 1
    for family in parse(text):
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge")


def test_openmetrics_is_spoken_where_it_is_accepted(tmp_path):
    """A scraper that asks for OpenMetrics gets it, with units."""
    with serve(tmp_path) as server:
        accept = "application/openmetrics-text; version=1.0.0"
        _, content_type, text = get(f"{server.url}/metrics", Accept=accept)
        assert server.stop() == 0
    assert content_type.startswith("application/openmetrics-text")
    units = {family.name: family.unit for family in parse_openmetrics(text)}
    assert units["aiolog_received_bytes"] == "bytes"
    assert units["aiolog_records_received"] == ""


@pytest.mark.parametrize("version", ["abc", "1.0.abc", "", "9" * 5_000])
async def test_a_version_that_is_none_gets_the_plain_format(version):
    """Whatever a scraper asks for, it hears the counters."""
    async with answering(FullDisk(), "block") as (_, _, url):
        accept = f"application/openmetrics-text;version={version}"
        status, content_type, text = await asyncio.to_thread(get, f"{url}/metrics", Accept=accept)
    assert status == 200
    assert "aiolog_records_received_total 0" in text
    if version:
        assert content_type.startswith("text/plain; version=")


def test_a_healthy_server_says_ok(tmp_path):
    """/health is 200 with a status; / names what there is; nothing else is there."""
    with serve(tmp_path) as server:
        status, content_type, text = get(f"{server.url}/health")
        assert (status, content_type) == (200, "application/json; charset=utf-8")
        assert json.loads(text) == {"status": "ok", "version": __version__, "connections": 0, "records": 0}
        assert "/metrics" in get(server.url)[2]
        assert get(f"{server.url}/logs")[0] == 404
        assert server.stop() == 0


def test_http_can_be_off(tmp_path):
    """With [http] enabled = false nothing listens, and the first line names no metrics."""
    with serve(tmp_path, env={"AIOLOG_HTTP__ENABLED": "false"}) as server:
        assert server.url == ""
        assert server.stop() == 0
        assert "metrics" not in server.stderr


class FullDisk:
    """A sink that cannot write until it may."""

    name = "app"

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.refused = asyncio.Event()

    async def open(self) -> None:
        """Nothing to open."""

    async def write(self, group: list[Delivery]) -> None:
        if not self.room.is_set():
            self.refused.set()
            raise OSError(28, "No space left on device")

    def mark(self, session: bytes) -> None:
        """Nothing is remembered."""

    def forget(self, session: bytes) -> None:
        """Nothing to forget."""

    async def close(self) -> None:
        """Nothing to close."""


@contextlib.asynccontextmanager
async def answering(sink: FullDisk, when_full: str) -> AsyncIterator[tuple[Server, Lane, str]]:
    """A server without connections, a lane to the sink, and the URL of its HTTP."""
    report = Report(time.monotonic, lambda _line: None)
    fanout = Fanout()
    limits = Limits(1 << 20, 1 << 20, 10, 1 << 28, 1 << 28, 10, 10, 30, 90, 5, 60)
    server = Server(fanout, limits, report, durability="written", wall_clock=time.time)
    lane = Lane(sink, when_full=when_full, buffer_bytes=1 << 20, report=report)
    await fanout.open({"app": lane})
    http = HttpServer(server)
    host, port = await http.listen("127.0.0.1", 0)
    try:
        yield server, lane, f"http://{host}:{port}"
    finally:
        await http.close()
        await fanout.close()


@pytest.mark.parametrize(("when_full", "status"), [("block", 503), ("drop_newest", 200)])
async def test_a_sink_that_fails_is_named(when_full, status):
    """While a sink that acks wait for cannot write, health is 503 and names it; one that may drop does no harm."""
    sink = FullDisk()
    async with answering(sink, when_full) as (server, lane, url):
        server.fanout.deliver(Delivery(Source(), [(1.0, 0, 0, "hello")]))
        await sink.refused.wait()
        found, _, text = await asyncio.to_thread(get, f"{url}/health")
        assert found == status
        if status == 503:
            assert json.loads(text) == {"status": "failing", "sinks": ["app"]}
        assert samples((await asyncio.to_thread(get, f"{url}/metrics"))[2])["aiolog_sink_failing{app}"] == 1
        sink.room.set()
        await lane.drain()
        assert (await asyncio.to_thread(get, f"{url}/health"))[0] == 200


async def test_a_server_that_drains_is_not_healthy():
    """From the beginning of a drain health is 503, so that nobody sends new clients."""
    async with answering(FullDisk(), "block") as (server, _, url):
        await server.drain()
        status, _, text = await asyncio.to_thread(get, f"{url}/health")
        assert (status, json.loads(text)) == (503, {"status": "draining"})


async def test_a_busy_port_is_a_sentence():
    """A port in use is the operator's matter: ConfigError with the address and what to do."""
    async with answering(FullDisk(), "block") as (server, _, url):
        port = int(url.rpartition(":")[2])
        second = HttpServer(server)
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} for HTTP \(Address already in use\)\. Stop what"):
            await second.listen("127.0.0.1", port)
        await second.close()


# -- connections: few, and none for ever

ASK = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.asynccontextmanager
async def visiting(url: str) -> AsyncIterator[Callable[[], Awaitable[Visitor]]]:
    """A function that opens a connection; all are closed at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def visit() -> Visitor:
            host, port = url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
            return Visitor(reader, writer)

        yield visit


class Visitor:
    """One connection to the HTTP port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self) -> str:
        """Return the first line of the answer to one request; the connection is kept alive."""
        self.writer.write(ASK)
        async with asyncio.timeout(5):
            head = await self.reader.readuntil(b"\r\n\r\n")
            await self.reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))
        return head.decode().splitlines()[0]

    async def is_cut(self, timeout_seconds: float = 5.0) -> bool:
        """Whether it is closed, now or soon, without a word."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


async def test_the_connection_that_is_idle_longest_makes_room(monkeypatch):
    """Who has asked before is kept, who comes is answered, and one line says it."""
    monkeypatch.setattr("aiolog.http.MAX_CONNECTIONS", 3)
    lines = []
    async with answering(FullDisk(), "block") as (server, _, url), visiting(url) as visit:
        server.report = Report(time.monotonic, lines.append)
        scraper = await visit()
        assert await scraper.ask() == "HTTP/1.1 200 OK"
        first, second = await visit(), await visit()
        assert not await second.is_cut(0.05)
        assert not lines
        third = await visit()
        assert await first.is_cut()
        assert await third.ask() == "HTTP/1.1 200 OK"
        assert (await asyncio.to_thread(get, f"{url}/health"))[0] == 200
        assert await second.is_cut()
        assert await scraper.ask() == "HTTP/1.1 200 OK"
        assert len(lines) == 1
        assert "HTTP has 3 connections, and the one idle longest was cut" in lines[0]


async def test_of_those_that_asked_the_oldest_request_goes_first(monkeypatch):
    """Where all others have been answered before, it counts when that was; half a head is no request."""
    monkeypatch.setattr("aiolog.http.MAX_CONNECTIONS", 2)
    async with answering(FullDisk(), "block") as (_, _, url), visiting(url) as visit:
        newer, older = await visit(), await visit()
        for one in (newer, older, newer):
            assert await one.ask() == "HTTP/1.1 200 OK"
        older.writer.write(ASK[:10])
        third = await visit()
        assert await older.is_cut()
        assert await third.ask() == "HTTP/1.1 200 OK"
        assert await newer.ask() == "HTTP/1.1 200 OK"


async def test_a_connection_without_a_request_does_not_last(monkeypatch):
    """Neither a silent one nor one whose head comes byte by byte; one that has asked stays."""
    monkeypatch.setattr("aiolog.http.FIRST_REQUEST_SECONDS", 0.3)
    async with answering(FullDisk(), "block") as (_, _, url), visiting(url) as visit:
        kept, silent, slow = await visit(), await visit(), await visit()
        assert await kept.ask() == "HTTP/1.1 200 OK"
        begun = time.monotonic()
        slow.writer.write(ASK[:-2] + b"X: ")
        while not await slow.is_cut(0.05):
            slow.writer.write(b"x")
            assert time.monotonic() - begun < 5
        assert await silent.is_cut()
        assert await kept.ask() == "HTTP/1.1 200 OK"


class SlowRotation(FullDisk):
    """A file sink whose rotation takes until it may end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.done = asyncio.Event()

    async def look(self) -> None:
        """Nothing to look for."""

    async def rotate(self) -> list[str]:
        self.begun.set()
        await self.done.wait()
        return []


async def test_a_request_under_way_is_not_cut(monkeypatch):
    """Where all wait for their answers, the new one has to go."""
    monkeypatch.setattr("aiolog.http.MAX_CONNECTIONS", 1)
    monkeypatch.setattr("aiolog.http.FIRST_REQUEST_SECONDS", 0.3)
    sink = SlowRotation()
    async with answering(sink, "block") as (_, _, url), visiting(url) as visit:
        rotating = await visit()
        rotating.writer.write(f"POST /rotate HTTP/1.1\r\nHost: localhost\r\n{ASKED_HEADER}: 1\r\n\r\n".encode())
        await sink.begun.wait()
        assert await (await visit()).is_cut()
        assert not await rotating.is_cut(0.5)
        sink.done.set()
        assert await rotating.reader.readline() == b"HTTP/1.1 200 OK\r\n"


def test_silent_connections_leave_the_descriptors(tmp_path):
    """Hundreds of them, and the server has a few: it answers probes, takes records, says so, and ends at once."""
    with serve(tmp_path) as server, contextlib.ExitStack() as stack:
        port = int(server.url.rpartition(":")[2])
        before = samples(get(f"{server.url}/metrics")[2])["process_open_fds"]
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        assert samples(get(f"{server.url}/metrics")[2])["process_open_fds"] - before <= MAX_CONNECTIONS
        sent = aiolog(tmp_path, "send", "--port", str(server.port), "-", stdin="one\n")
        assert sent.returncode == 0
        server.expect(r"HTTP has 64 connections")
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 5
