"""Peers that send what they should not, to a real server beside a client that is well."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import pickle
import re
import socket
import struct
import time
import zlib
from pathlib import Path

import pytest
from oracle import Verdict
from programs import flood
from running import serve

from aiolog import protocol
from aiolog.protocol import Ack, Batch, Decoder, Define, Hello, Refuse, Welcome, batch_frame, encode, pack_record

MAX_GROWTH_KIB = 16 << 10  # of the server's memory, by one bad peer
SITE = ["app", 20, "INFO", "/app.py", "app.py", "app", 1, "main"]


def hello(**other):
    """Return a HELLO as a handler would send it, but for ``other``."""
    fields = {
        "version": 1, "session": os.urandom(16), "pid": 1, "process_name": "p", "host": "h", "app": "a", "labels": {},
        "start_time": 0.0, "token": "", "acked": 0,
    }  # fmt: skip
    return encode(Hello(**(fields | other)))


def framed(body):
    return struct.pack(">L", len(body)) + body


def standard_pickle():
    record = logging.makeLogRecord({"msg": "from a SocketHandler"})
    return logging.handlers.SocketHandler("127.0.0.1", 1).makePickle(record)


def batch(first_seq, count, dropped, payload, crc=None):
    return encode(Batch(first_seq, count, dropped, zlib.crc32(payload) if crc is None else crc, payload))


RECORD = pack_record([1.0, 0, 1, "x"])
FIRST = hello() + encode(Define([SITE, [1, "MainThread"]]))

BAD = {
    "a length of 4 GiB": (b"\xff\xff\xff\xff", "frame of 4294967295 bytes"),
    "a length one above the limit, after HELLO": (FIRST + struct.pack(">L", (1 << 20) + 1), "limit is 1048576"),
    "more than a HELLO may have": (struct.pack(">L", 65_537), "limit is 65536"),
    "nested arrays that claim 100 million each": (framed(b"\xdd\x06\x40\x00\x00" * 6), "not valid msgpack"),
    "nested arrays of 65535": (framed(b"\xdc\xff\xff" * 1_000), "not valid msgpack"),
    "a million empty arrays": (FIRST + framed(b"\xdd\x00\x0f\xff\xf0" + b"\x80" * 0xFFFF0), "not valid msgpack"),
    "arrays in arrays, 60,000 deep": (framed(b"\x91" * 60_000 + b"\xc0"), "not valid msgpack"),
    "a map": (framed(b"\x81\x01\x02"), "not"),
    "an unknown type": (framed(b"\x91\x63"), "unknown type 99"),
    "a message of the other direction": (framed(b"\x92\x11\x05"), "unknown type 17"),
    "a BATCH before HELLO": (batch(1, 0, 0, b"\x90"), "before HELLO"),
    "two HELLOs": (FIRST + hello(), "second HELLO"),
    "another version": (hello(version=2), "version 2"),
    "a short session": (hello(session=b"short"), "session"),
    "too few fields": (framed(b"\x92\x01\x01"), "fields instead of"),
    "a wrong type of field": (framed(protocol._pack([4 - 1, "1", 1, 0, 0, b""])), "wrong type"),
    "a damaged batch": (FIRST + batch(1, 1, 0, b"\x91" + RECORD, crc=1), "CRC"),
    "fewer records than said": (FIRST + batch(1, 2, 0, b"\x91" + RECORD), "does not hold"),
    "a gap that is not declared": (FIRST + batch(5, 1, 0, b"\x91" + RECORD), "the last was 0"),
    "a seq of 0": (FIRST + batch(0, 1, 0, b"\x91" + RECORD), "impossible numbers"),
    "a negative count": (FIRST + batch(1, -1, 0, b"\x90"), "impossible numbers"),
    "a definition of 3 fields": (FIRST + encode(Define([[1, 2, 3]])), "neither a site"),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
    "the standard handler's pickle": (standard_pickle, "use aiolog.AiologHandler"),
    "a newer pickle": (framed(pickle.dumps({"msg": "x"}, 4)), "use aiolog.AiologHandler"),
}


def rss_kib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def talk(port, data, timeout=5):
    """Send bytes; return all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
        return answer


def messages(data):
    decoder = Decoder(protocol.FROM_SERVER)
    decoder.feed(data)
    return list(iter(decoder.next, None))


@pytest.fixture(scope="module")
def beside_a_client(tmp_path_factory):
    """Yield a server; a client logs to it all the time, and must not have noticed anything at the end."""
    with serve(tmp_path_factory.mktemp("bad"), None, "--no-stdout") as server:
        client = flood(server.port, "well", 0, "--per-second", 300, "--seconds", 6)
        yield server
        result = client.result()
        assert result["stats"]["reconnects"] == 0
        assert result["slowest_seconds"] < 0.2
        assert server.stop() == 0
        verdict = Verdict(r for r in server.records() if r["logger"] in ("worker", "aiolog"))
        assert verdict.lost({"well": result["emitted"]}) == verdict.twice == verdict.dropped == 0


@pytest.mark.parametrize("what", BAD)
def test_a_bad_frame_costs_only_its_own_connection(beside_a_client, what):
    """It is refused with a sentence, or closed; the server's memory stays, and one line says what came."""
    server = beside_a_client
    data, sentence = BAD[what]
    before = rss_kib(server.pid)
    answer = messages(talk(server.port, data() if callable(data) else data))
    assert isinstance(answer[-1], Refuse)
    assert sentence in answer[-1].text
    assert rss_kib(server.pid) - before < MAX_GROWTH_KIB


def test_the_servers_own_log_says_what_came_and_not_too_often(beside_a_client):
    """Lines of one kind come at most once a second, and then say how many were left out."""
    server = beside_a_client
    before = server.stderr.count("\n")
    began = time.monotonic()
    sent = 0
    while time.monotonic() - began < 2.5:
        talk(server.port, b"GET / HTTP/1.1\r\n\r\n")
        sent += 1
    assert sent > 20
    assert server.stderr.count("\n") - before <= 4
    assert server.expect(r"aiolog: 127.0.0.1:\d+ was refused: an HTTP request.*\(\d+ more like it were not shown\)\n")


def test_records_of_every_wrong_form_are_kept_and_marked(tmp_path):
    """A record whose parts are of the wrong type is written with a mark; its neighbours are as they should be."""
    odd = [
        [], [1.0], 5, None, "text", {"a": 1}, [None, 0, 1, "m"], [float("nan"), 0, 1, "m"], [1e300, 0, 1, "m"],
        [-5, 0, 1, "m"], [1.0, 99, 1, "m"], [1.0, 1, 0, "m"], [1.0, "x", [], "m"], [1.0, [1] * 8, [1, 2], "m"],
        [1.0, 0, 1, {"a": [1]}], [1.0, 0, 1, b"\xff"], [1.0, 0, 1, "m", 5], [1.0, 0, 1, "m", {"extra": 7}],
        [1.0, 0, 1, "m", {"msecs": "x", "created": [], "process": {}, "nonsense": 1}], [1.0, 0, 1, "m", {}, 6],
        [1.0, 0, 1, "m", {"extra": ["odd"]}], [1.0, 0, 1, "m", {"exc_text": 5, "stack_info": [1]}],
    ]  # fmt: skip
    good = [1.0, 0, 1, "a good neighbour"]
    records = [pack_record(wire) for bad in odd for wire in (bad, good)]
    config = """
        [sinks.app]
        path = "logs/app.log"

        [sinks.text]
        path = "logs/text.log"
        format = "text"
        template = "%(asctime)s %(msecs)03d %(levelno)d %(lineno)d %(process)d %(thread)d %(message)s"
    """
    with serve(tmp_path, config) as server:
        site = ["app", "high", None, 5, b"app.py", "app", "one", "main"]
        answer = talk(server.port, hello() + encode(Define([site, [1, "t"]])) + batch_frame(1, 0, records))
        assert [type(message).__name__ for message in messages(answer)] == ["Welcome", "Ack"]
        assert server.stop() == 0
        written = server.records()
        text = (tmp_path / "logs/text.log").read_text().splitlines()
    assert len(written) == len(records) == sum(not line.startswith("\t| ") for line in text)
    assert [record["msg"] for record in written[1::2]] == ["a good neighbour"] * len(odd)
    marked = [record for record in written[::2] if "aiolog_malformed" in record.get("fields", {})]
    assert len(marked) > len(odd) / 2


def test_slow_frames_and_silence_are_closed(tmp_path):
    """Who sends no HELLO, half a frame or nothing at all is closed in time, and not before."""
    config = """
        [server]
        handshake_timeout_seconds = 1
        frame_timeout_seconds = 1
        idle_timeout_seconds = 2
    """
    with serve(tmp_path, config, "--no-stdout") as server:
        for data, least in ((b"\0\0", 0.9), (b"", 0.9), (FIRST + b"\0", 0.9), (FIRST, 1.9)):
            began = time.monotonic()
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
                sock.sendall(data)
                answer = b""
                while chunk := sock.recv(65536):
                    answer += chunk
            assert least < time.monotonic() - began < 4
            assert isinstance(messages(answer)[-1], Refuse)


def test_many_dictionaries_cost_no_more_than_their_bound(tmp_path):
    """Peers that each define as much as one may, of what takes most, with a record of each; a small one is well."""
    config = '[server]\nmax_dictionary_bytes = "64 MiB"\n[sinks.app]\npath = "logs/app.log"\n'
    sites = [
        [f"{number}" + "\U0001f600" * 4_000, 20, "INFO", "/a.py", "a.py", "a", number, "f"] for number in range(250)
    ]
    records = batch_frame(1, 0, [pack_record([1.0, number, 250, "x"]) for number in range(250)])
    bad = b"".join(protocol.define_frames([*sites, [1, "MainThread"]])) + records
    with serve(tmp_path, config, "--no-stdout") as server, contextlib.ExitStack() as stack:
        before = rss_kib(server.pid)
        answers = []
        for _ in range(12):  # each 16 MiB here, and their records written
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            sock.sendall(hello() + bad)
            decoder = Decoder(protocol.FROM_SERVER)
            got = []
            while not (got and isinstance(got[-1], (Ack, Refuse))):
                decoder.feed(sock.recv(65536))
                got += iter(decoder.next, None)
            answers.append(got[-1])
        growth_kib = rss_kib(server.pid) - before
        small = messages(talk(server.port, FIRST + batch_frame(1, 0, [RECORD])))
        assert growth_kib < (64 << 10) + 3 * MAX_GROWTH_KIB  # the lines of one batch take 12 MiB, three times
        assert Ack(1) in small
        assert Ack(250) in answers  # as long as there was room
        assert server.expect(r"aiolog: 127.0.0.1:\d+ was refused: the log statements of all processes take more")
        assert server.stop() == 0


def test_a_session_is_continued_only_by_who_knows_it(tmp_path):
    """The same session on a second connection takes it over, and nothing is written twice."""
    session = os.urandom(16)
    frames = [batch_frame(n, 0, [pack_record([1.0, 0, 1, f"record {n}"])]) for n in (1, 2, 3)]
    define = encode(Define([SITE, [1, "t"]]))
    with serve(tmp_path, None, "--no-stdout") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as first:
            first.sendall(hello(session=session) + define + frames[0] + frames[1])
            decoder = Decoder(protocol.FROM_SERVER)
            got = []
            while not got or got[-1] != Ack(2):
                decoder.feed(first.recv(65536))
                got += iter(decoder.next, None)
            second = messages(talk(server.port, hello(session=session, acked=0) + define + b"".join(frames)))
            assert isinstance(second[0], Welcome)
            assert second[0].last_seq == 2
            assert second[-1].seq == 3
            assert isinstance(messages(first.recv(65536))[-1], Refuse)
        stranger = messages(talk(server.port, hello() + define + frames[1]))
        assert isinstance(stranger[-1], Refuse)
        assert server.stop() == 0
        assert [record["msg"] for record in server.records()] == ["record 1", "record 2", "record 3"]
