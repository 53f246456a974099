"""The commands, as processes of their own: what they say, what they leave behind, and the code they end with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ServerProcess, aiolog, files, lines, run, serve

from aiolog import AiologHandler, protocol, service
from aiolog.config import Config, FileSinkConfig
from aiolog.probe import Address, UnreachableError, greet
from aiolog.report import Report

NO_SUCH_SERVER = "127.0.0.1:1"  # a reserved port (tcpmux): nobody listens there


@contextlib.contextmanager
def logger_to(port: int, **options) -> Iterator[logging.Logger]:
    """A logger of its own with a handler to the port."""
    handler = AiologHandler("127.0.0.1", port, **options)
    logger = logging.getLogger(uuid.uuid4().hex)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        handler.close()
    assert handler.stats()["buffered"] == 0, "the sender would go on trying, in all other tests"


def flush(logger: logging.Logger, timeout: float = 20.0) -> int:
    """Wait until everything logged is acked; return how many records were."""
    handler = logger.handlers[0]
    deadline = time.monotonic() + timeout
    while handler.stats()["buffered"] and time.monotonic() < deadline:  # a flush gives up early without a server
        handler.flush(timeout)
    return handler.stats()["acked"]


@contextlib.contextmanager
def nobody_reads() -> Iterator[int]:
    """A pipe that is full, and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 4096)
    os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


def wait_for_server(port: int) -> None:
    """Wait for a server whose stderr nobody reads."""
    deadline = time.monotonic() + 20
    while True:
        try:
            greet(Address("127.0.0.1", port))
        except UnreachableError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


STUCK = """
    [server]
    drain_timeout_seconds = {seconds}

    [sinks.console]
    type = "stdout"
    when_full = "block"
"""


# -- serve


def test_no_file_is_needed(tmp_path):
    """Without any configuration records go to logs/app.log and to stdout, and stderr says so in one line."""
    with serve(tmp_path) as server, logger_to(server.port) as logger:
        logger.warning("hello")
        assert flush(logger) == 1
        assert server.stop() == 0
        assert [record["msg"] for record in server.records()] == ["hello"]
        assert re.fullmatch(r"\S+ \S+ WARNING MainProcess\[\d+\] \w+: hello\n", server.stdout)
        first, _, last = server.stderr.splitlines()
        assert first == (
            f"aiolog: listening on 127.0.0.1:{server.port}, metrics on {server.url}/metrics, "
            f"writing {tmp_path}/logs/app.log, stdout"
        )
        assert last.startswith("aiolog: drained. Records: 1 delivered, 0 dropped by their processes, 0 came twice")


def test_the_directory_is_where_relative_paths_begin(tmp_path):
    """--dir moves relative paths of sinks, and --no-stdout keeps stdout empty."""
    with (
        serve(tmp_path, None, "--dir", "elsewhere", "--no-stdout") as server,
        logger_to(server.port) as logger,
    ):
        logger.error("there")
        flush(logger)
        assert server.stop() == 0
        assert [record["msg"] for record in server.records("elsewhere/logs/app.log")] == ["there"]
        assert server.stdout == ""


def test_stdout_can_be_added(tmp_path):
    """--stdout prints records beside the sinks of a file."""
    config = '[sinks.app]\npath = "app.log"\n'
    with serve(tmp_path, config, "--stdout") as server, logger_to(server.port) as logger:
        logger.info("both")
        flush(logger)
        assert server.stop() == 0
        assert len(server.records("app.log")) == 1
        assert "both" in server.stdout


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(tmp_path, signum):
    """What was received when the signal came is written and acked; the rest goes to the next server, and none twice."""
    with serve(tmp_path, None, "--no-stdout") as server, logger_to(server.port) as logger:
        for number in range(5000):
            logger.info("%d", number)
        until = time.monotonic() + 20
        while not logger.handlers[0].stats()["acked"] and time.monotonic() < until:
            time.sleep(0.001)
        assert server.stop(signum) == 0
        assert server.records()
        with serve(tmp_path, None, "--no-stdout", port=server.port) as second:
            assert flush(logger) == 5000
            assert second.stop() == 0
            assert [int(record["msg"]) for record in second.records()] == list(range(5000))


def test_the_end_waits_for_no_window(tmp_path):
    """What waits to be sorted by time is written and acked when the signal comes, however long it would have waited."""
    config = '[sinks.now]\npath = "now.log"\n[sinks.later]\npath = "later.log"\nreorder_window = "60 s"\n'
    with serve(tmp_path, config) as server, logger_to(server.port) as logger:
        logger.info("waits")
        until = time.monotonic() + 20
        while not server.records("now.log") and time.monotonic() < until:
            time.sleep(0.001)
        assert server.records("later.log") == []
        assert server.stop() == 0
        assert [record["msg"] for record in server.records("later.log")] == ["waits"]
        assert logger.handlers[0].stats()["acked"] == 1


def test_restarts_under_load_lose_nothing(tmp_path):
    """A server that is restarted again and again while a process logs: every record is there once."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(tmp_path, None, "--no-stdout"))
        logger = stack.enter_context(logger_to(server.port))
        logged, over = 0, threading.Event()

        def flood() -> None:
            nonlocal logged
            while not over.wait(0.001):
                logger.info("%d", logged)
                logged += 1

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for _ in range(8):
                assert server.stop() == 0
                server = stack.enter_context(serve(tmp_path, None, "--no-stdout", port=server.port))
        finally:
            over.set()
            thread.join()
        assert flush(logger) == logged
        assert server.stop() == 0
        assert [int(record["msg"]) for record in server.records()] == list(range(logged))


@contextlib.contextmanager
def stuck(tmp_path, seconds: float) -> Iterator[ServerProcess]:
    """A server whose sink is stuck with a record; at the end, the next server gets that record."""
    with contextlib.ExitStack() as stack:
        pipe = stack.enter_context(nobody_reads())
        server = stack.enter_context(serve(tmp_path, STUCK.format(seconds=seconds), stdout=pipe))
        logger = stack.enter_context(logger_to(server.port))
        logger.info("at last")
        assert flush(logger, 0.1) == 0
        yield server
        second = stack.enter_context(serve(tmp_path, port=server.port))
        assert flush(logger) == 1
        assert second.stop() == 0
        assert [record["msg"] for record in second.records()] == ["at last"]


def test_a_stuck_sink_cannot_hold_up_the_end(tmp_path):
    """After drain_timeout_seconds the server gives up, says so, and ends with 1; nothing is lost by that."""
    with stuck(tmp_path, seconds=0.5) as server:
        began = time.monotonic()
        assert server.stop() == 1
        assert time.monotonic() - began < 3
        assert "the drain was not done in 0.5 s" in server.stderr
        assert "They were not acked, and stay with their processes" in server.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_what_stdout_refuses_is_said(tmp_path):
    """At once, and in the last line; the files have it all the same."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with serve(tmp_path, stdout=descriptor) as server, logger_to(server.port) as logger:
            logger.warning("hello")
            assert flush(logger) == 1
            server.expect("sink console lost its output: No space left on device")
            assert server.stop() == 0
            assert "1 refused by the output of sink console" in server.stderr
            assert len(server.records()) == 1
    finally:
        os.close(descriptor)


def test_a_drain_without_time_is_a_drain_where_nothing_is_held(tmp_path):
    """``drain_timeout_seconds = 0`` is an orderly end of a server that has nothing to write."""
    with serve(tmp_path, "[server]\ndrain_timeout_seconds = 0\n") as server, logger_to(server.port) as logger:
        logger.warning("hello")
        assert flush(logger) == 1
        assert server.stop() == 0
        assert "drained. Records: 1 delivered" in server.stderr


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(tmp_path, signum, code):
    """Who asks twice does not wait for the drain, and nothing is lost by it."""
    with stuck(tmp_path, seconds=60) as server:
        server.send(signum)
        server.expect("draining, for 60 s at most")
        assert server.stop(signum) == code
        assert "stopped at once" in server.stderr


def test_a_reader_that_stops_delays_nobody(tmp_path):
    """With stdout and stderr in one full pipe, records are written, acked and drained as ever."""
    with nobody_reads() as pipe:
        port = free_port()
        with subprocess.Popen(
            [sys.executable, "-m", "aiolog.cli", "serve", "--port", str(port)],
            cwd=tmp_path,
            env={**os.environ, "AIOLOG_HTTP__PORT": "0"},
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        ) as process:
            try:
                wait_for_server(port)
                with logger_to(port) as logger:
                    for number in range(2000):
                        logger.info("%d", number)
                    assert flush(logger) == 2000
                process.terminate()
                assert process.wait(10) == 0
            finally:
                process.kill()
        assert len(list(lines(tmp_path / "logs/app.log"))) == 2000


def test_what_a_slow_sink_missed_is_said(tmp_path):
    """The last line names a sink that was too slow, and how many records it missed; the others have them."""
    small = {"AIOLOG_SINKS__CONSOLE__BUFFER_BYTES": "4 KiB"}
    with (
        nobody_reads() as pipe,
        serve(tmp_path, env=small, stdout=pipe) as server,
        logger_to(server.port) as logger,
    ):
        for number in range(2000):
            logger.info("%d", number)
            if number % 100 == 99:  # a batch, or more
                flush(logger)
        assert flush(logger) == 2000
        assert server.stop() == 0
        found = re.search(r"Records: 2000 delivered, .*, (\d+) missed by the slow sink console\.", server.stderr)
        assert found
        records = server.records()
        told = [record["fields"]["dropped"] for record in records if record["logger"] == "aiolog"]
        assert sum(told) == int(found[1])
        assert len(records) == 2000 + len(told)


def test_a_reader_that_goes_ends_nothing(tmp_path):
    """A closed stdout (EPIPE) costs its own lines alone."""
    reader, writer = os.pipe()
    with serve(tmp_path, stdout=writer) as server, logger_to(server.port) as logger:
        os.close(writer)
        os.close(reader)
        for number in range(100):
            logger.info("%d", number)
            if number % 10 == 0:
                flush(logger)
        assert flush(logger) == 100
        assert server.stop() == 0
        assert len(server.records()) == 100


def test_closed_descriptors_stay_apart(tmp_path):
    """With stdin, stdout and stderr closed by the shell, nothing but records gets into the file."""
    port = free_port()
    command = f"exec {sys.executable} -m aiolog.cli serve --port {port} --host 0.0.0.0 <&- >&- 2>&-"
    with subprocess.Popen(["sh", "-c", command], cwd=tmp_path, env={**os.environ, "AIOLOG_HTTP__PORT": "0"}) as server:
        try:
            wait_for_server(port)
            with logger_to(port) as logger:
                for number in range(100):
                    logger.info("%d", number)
                assert flush(logger) == 100
            server.terminate()
            assert server.wait(10) == 0
        finally:
            server.kill()
    assert [int(json.loads(line)["msg"]) for line in lines(tmp_path / "logs/app.log")] == list(range(100))


def test_what_was_lost_passes_every_filter(tmp_path):
    """The server's record of what a process dropped stands in a file that takes neither its logger nor its level."""
    config = '[sinks.app]\npath = "app.log"\nloggers = ["orders"]\nlevel = "CRITICAL"\n'
    port = free_port()
    with logger_to(port, buffer_bytes=64 << 10, when_full="drop_newest") as logger:
        for number in range(5000):
            logger.info("%d", number)
        with serve(tmp_path, config, port=port) as server:
            flush(logger)
            assert server.stop() == 0
            (notice,) = server.records("app.log")
        assert notice["logger"] == "aiolog"
        assert notice["fields"]["dropped"] == sum(logger.handlers[0].stats()["dropped"].values()) > 0


def test_libraries_speak_seldom():
    """What a library logs in the server becomes a line on stderr, at most one a second, and never a record."""
    said: list[str] = []
    handler = service._OwnLog(Report(lambda: 0.0, said.append))
    trouble = OSError(24, "Too many open files")
    record = {"name": "asyncio", "msg": "%s failed", "args": ("accept",), "exc_info": (OSError, trouble, None)}
    for _ in range(500):
        handler.handle(logging.makeLogRecord(record))
    assert said == ["aiolog: asyncio: accept failed (OSError(24, 'Too many open files'))\n"]


def test_every_address_is_named(tmp_path):
    """The first line has IPv6 in brackets, and the Unix socket; both take records."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    path = tmp_path / "sock"
    with serve(tmp_path, None, "--host", "::1", env={"AIOLOG_SERVER__SOCKET": str(path)}) as server:
        assert server.stderr.startswith(f"aiolog: listening on [::1]:{server.port} and {path}, metrics on http://127")
        assert aiolog(tmp_path, "send", "--host", "::1", "--port", str(server.port), "six").returncode == 0
        handler = AiologHandler(str(path), None)
        handler.handle(logging.makeLogRecord({"msg": "unix"}))
        handler.close()
        assert server.stop() == 0
        assert [record["msg"] for record in server.records()] == ["six", "unix"]


def test_it_runs_without_uvloop(tmp_path):
    """Where uvloop is not installed, asyncio's own loop does it."""
    program = "import sys; sys.modules['uvloop'] = None; from aiolog.cli import main; main()"
    with run(tmp_path, "serve", "--port", "0", program=("-c", program), env={"AIOLOG_HTTP__PORT": "0"}) as server:
        port = int(server.expect(r"listening on \S+:(\d+)")[1])
        assert aiolog(tmp_path, "send", "--port", str(port), "hello").returncode == 0
        assert server.stop() == 0


def test_systemd_is_told(tmp_path):
    """READY=1 when records are taken, RELOADING=1 while settings are read, STOPPING=1 when the drain begins."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        with serve(tmp_path, env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as server:
            assert systemd.recv(100) == b"READY=1"
            server.send(signal.SIGHUP)
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", systemd.recv(100))
            assert systemd.recv(100) == b"READY=1"
            server.stop()
            assert systemd.recv(100) == b"STOPPING=1"


def test_an_open_door_is_said(tmp_path):
    """Listening for everybody without a token is done, with a warning; with a token without."""
    with serve(tmp_path, None, "--host", "0.0.0.0") as server:
        server.expect(r"warning: whoever reaches 0\.0\.0\.0:\d+ may log here")
        assert server.stop() == 0
    with serve(tmp_path, None, "--host", "0.0.0.0", env={"AIOLOG_SERVER__TOKEN": "s3cret"}) as server:
        assert aiolog(tmp_path, "healthcheck", "--port", str(server.port)).returncode == 69
        assert server.stop() == 0
        assert "warning" not in server.stderr
        assert "s3cret" not in server.stderr


# -- reload


def test_wrong_settings_are_not_taken(tmp_path):
    """After SIGHUP with a mistake in the file, one sentence says so, and everything stays as it was."""
    with serve(tmp_path, '[sinks.app]\npath = "app.log"\n') as server, logger_to(server.port) as logger:
        logger.info("before")
        (tmp_path / "aiolog.toml").write_text('[sinks.app]\npath = "app.log"\nlevle = "INFO"\n')
        server.send(signal.SIGHUP)
        server.expect(r"aiolog: not reloaded, everything stays as it was\. .*levle.*level")
        logger.info("after")
        assert flush(logger) == 2
        assert server.stop() == 0
        assert [record["msg"] for record in server.records("app.log")] == ["before", "after"]


@pytest.mark.parametrize("template", ["%(message)99999999999s", "%(process).99999999999d", "x" * 20_000])
def test_a_template_of_gigabytes_changes_nothing(tmp_path, template):
    """A server that takes records is not ended by a width that somebody mistyped."""
    text = '[sinks.app]\npath = "app.log"\nformat = "text"\ntemplate = "{}"\n'
    with serve(tmp_path, text.format("%(message)s")) as server, logger_to(server.port) as logger:
        (tmp_path / "aiolog.toml").write_text(text.format(template))
        server.send(signal.SIGHUP)
        server.expect(
            r"not reloaded, everything stays as it was\. \S+/aiolog\.toml: \[sinks\.app\] the template .* Use smaller"
        )
        logger.info("after")
        assert flush(logger) == 1
        assert server.stop() == 0
        assert "Traceback" not in server.stderr
        assert (tmp_path / "app.log").read_text() == "after\n"


def test_a_configuration_that_became_a_pipe_is_not_waited_for(tmp_path):
    """It would stop the whole server until somebody writes into it."""
    path = tmp_path / "aiolog.toml"
    with serve(tmp_path, '[sinks.app]\npath = "app.log"\n') as server, logger_to(server.port) as logger:
        path.unlink()
        os.mkfifo(path)
        server.send(signal.SIGHUP)
        server.expect(
            r"not reloaded, everything stays as it was\. \S+: it is a pipe.*\. Put its content into a file.*\n"
        )
        logger.info("after")
        assert flush(logger) == 1
        assert server.stop() == 0
        assert [record["msg"] for record in server.records("app.log")] == ["after"]


def listening(server: ServerProcess) -> int:
    """Return the port of a server, when it listens."""
    server.ready()
    return server.port


def test_a_configuration_from_a_pipe_is_kept(tmp_path):
    """`-c <(…)` is empty when it is read again, and an empty file is the defaults: records would go elsewhere."""
    reader, writer = os.pipe()
    os.write(writer, b'[sinks.app]\npath = "mine.log"\n')
    os.close(writer)
    try:
        argv = ["-m", "aiolog.cli", "serve", "-c", "/dev/stdin", "--port", "0"]
        server = ServerProcess(argv, directory=tmp_path, env={"AIOLOG_HTTP__PORT": "0"}, stdin=reader)
        with contextlib.closing(server), logger_to(listening(server)) as logger:
            server.send(signal.SIGHUP)
            server.expect(r"not reloaded, everything stays as it was\. /dev/stdin: it is a pipe")
            logger.info("after")
            assert flush(logger) == 1
            assert server.stop() == 0
            assert [record["msg"] for record in server.records("mine.log")] == ["after"]
            assert not (tmp_path / "logs").exists()
    finally:
        os.close(reader)


def test_what_nobody_foresaw_in_a_reload_changes_nothing(tmp_path, monkeypatch):
    """Whatever comes out of the reading of settings, the server goes on, and says so in one line."""
    said = []
    monkeypatch.setattr(service, "say", said.append)
    config = Config(sinks={"app": FileSinkConfig(path="app.log")})
    answers = [config, MemoryError("a\nb"), RecursionError("c" * 9000), config]

    def load():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def reload_twice():
        running = service.Service(load, tmp_path)
        await running._fanout.open(running._lanes(config.sinks))
        try:
            for _ in range(3):
                await running._reload()
        finally:
            await running._fanout.close()

    asyncio.run(reload_twice())
    first, second, last = said
    assert first == (
        "aiolog: not reloaded, everything stays as it was. The settings could not be read (MemoryError: a b). "
        "Take the last change back, and check it with `aiolog validate`\n"
    )
    assert "RecursionError: ccc" in second
    assert len(second) < 500
    assert "reloaded, sinks changed: none" in last


def test_only_changed_sinks_are_replaced(tmp_path):
    """SIGHUP exchanges, adds and removes sinks as the file says; what did not change goes on as it is."""
    before = """
        [server]
        max_sessions = 100
        [sinks.same]
        path = "same.log"
        [sinks.changed]
        path = "changed.log"
        [sinks.gone]
        path = "gone.log"
    """
    after = """
        [server]
        max_sessions = 200
        [sinks.same]
        path = "same.log"
        [sinks.changed]
        path = "changed.log"
        level = "ERROR"
        [sinks.fresh]
        path = "fresh.log"
    """
    with serve(tmp_path, before) as server, logger_to(server.port) as logger:
        inode = (tmp_path / "same.log").stat().st_ino
        logger.info("1")
        flush(logger)
        (tmp_path / "aiolog.toml").write_text(after)
        server.send(signal.SIGHUP)
        server.expect(r"aiolog: reloaded, sinks changed: changed, gone, fresh; writing .*fresh\.log")
        server.expect(r"aiolog: \[server\] max_sessions changed too, and need a restart")
        logger.info("2")
        assert flush(logger) == 2
        assert server.stop() == 0
        messages = {
            name: [record["msg"] for record in server.records(f"{name}.log")]
            for name in ("same", "changed", "gone", "fresh")
        }
    assert messages == {"same": ["1", "2"], "changed": ["1"], "gone": ["1"], "fresh": ["2"]}
    assert (tmp_path / "same.log").stat().st_ino == inode


def test_a_reload_under_load_loses_nothing(tmp_path):
    """Records that come while sinks are exchanged are written once, by the old sink or the new one."""
    config = '[sinks.app]\npath = "app.log"\nbackup_count = {}\n'
    with serve(tmp_path, config.format(0)) as server, logger_to(server.port) as logger:
        logged, over = 0, threading.Event()

        def flood() -> None:
            nonlocal logged
            while not over.is_set():
                logger.info("%d", logged)
                logged += 1

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for number in range(1, 6):
                (tmp_path / "aiolog.toml").write_text(config.format(number))
                server.send(signal.SIGHUP)
                server.expect(rf"(?s)(sinks changed: app.*){{{number}}}")
        finally:
            over.set()
            thread.join()
        assert flush(logger) == logged
        assert server.stop() == 0
        assert [int(record["msg"]) for record in server.records("app.log")] == list(range(logged))


def test_a_reload_with_no_way_back_ends_the_server(tmp_path):
    """When neither the new nor the old sinks can be opened, the server ends, and its clients keep their records."""
    config = '[sinks.app]\npath = "logs/app.log"\nbackup_count = {}\n'
    with serve(tmp_path, config.format(1)) as server:
        (tmp_path / "logs").rename(tmp_path / "moved")
        (tmp_path / "logs").write_text("in the way")
        (tmp_path / "aiolog.toml").write_text(config.format(2))
        server.send(signal.SIGHUP)
        assert server.wait() == 78
        assert "cannot open" in server.stderr
        assert "Traceback" not in server.stderr


# -- what cannot be


def assert_one_sentence(result: subprocess.CompletedProcess[str], code: int) -> str:
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("aiolog: ")
    return result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 1\n", ["wrong.toml", "[server]", "prot", "port"]),
        ("[server]\nmax_sessions = 0\n", ["wrong.toml", "[server]", "max_sessions", "0"]),
        ("[sinsk.app]\n", ["wrong.toml", "[sinsk]", "[sinks]"]),
        ('[sinks.app]\npath = "a.log"\nformat = "text"\ntemplate = "%(message"\n', ["[sinks.app]", "%(message"]),
        (
            '[sinks.app]\npath = "a.log"\nformat = "text"\ntime_zone = "Europe/Berln"\n',
            ['[sinks.app] time_zone cannot be "Europe/Berln". Did you mean "Europe/Berlin"?'],
        ),
        (
            '[sinks.app]\npath = "a.log"\nfields = ["ts", "lvl"]\n',
            ['[sinks.app] fields cannot have "lvl". Did you mean "level"?'],
        ),
        (
            '[sinks.app]\npath = "a.log"\nformat = "otel"\nrename = { body = "message" }\n',
            ['[sinks.app] rename cannot have "body". Did you mean "Body"?'],
        ),
        ("[server\n", ["wrong.toml", "line 1"]),
        (
            '[sinks.app]\npath = "a.log"\nformat = "text"\ntemplate = "%(message)99999999999s"\n',
            ["wrong.toml: [sinks.app] the template '%(message)99999999999s'", "Use smaller widths"],
        ),
        (
            '[sinks.app]\npath = "a.log"\nformat = "text"\nstyle = "{"\ntemplate = "{message:>99999999999}"\n',
            ["wrong.toml: [sinks.app] the template '{message:>99999999999}'", "Use smaller widths"],
        ),
        ('[sinks.app]\npath = "a.log"\nfilter = "level =="\n', ["wrong.toml: [sinks.app] the filter 'level =='"]),
        ('[sinks.a]\npath = "a.log"\n[sinks.b]\npath = ".a.log.ledger"\n', ["wrong.toml: [sinks.b] path", "[sinks.a]"]),
        ('[sinks.a]\npath = "a.log"\n[sinks.b]\npath = "x/../a.log.20200101T000000Z.0000"\n', ["a backup"]),
        (f'[sinks.app]\npath = "{"a" * 245}.log"\n', ["wrong.toml: [sinks.app] the path", "has 249 bytes"]),
        ('[server]\nhost = ".."\n', ["wrong.toml: [server] host cannot be"]),
        ('[http]\nhost = "a..b"\n', ["wrong.toml: [http] host cannot be"]),
    ],
)
def test_wrong_settings_are_named(tmp_path, text, said):
    """`validate` and `serve` end with 78 and one sentence with file, section, key and value, and no traceback."""
    (tmp_path / "wrong.toml").write_text(text)
    for argv in (["validate", "wrong.toml"], ["serve", "--port", "0", "-c", "wrong.toml"]):
        sentence = assert_one_sentence(aiolog(tmp_path, *argv), 78)
        assert all(word in sentence for word in said), sentence


@pytest.mark.parametrize("what", ["-c", "token_file"])
def test_what_never_ends_is_no_configuration(tmp_path, what):
    """/dev/zero is refused after a mebibyte, by `validate`, `serve` and those who ask a server."""
    env = {"AIOLOG_SERVER__TOKEN_FILE": "/dev/zero"} if what == "token_file" else {}
    path = [] if env else ["/dev/zero"]
    for argv in (
        ["validate", *path],
        ["serve", *(["-c", *path] if path else [])],
        ["healthcheck", *(["-c", *path] if path else [])],
    ):
        assert "/dev/zero: it is larger than 1 MiB. " in assert_one_sentence(aiolog(tmp_path, *argv, env=env), 78)


@pytest.mark.parametrize("host", ["..", "a" * 300, "ü" * 100])
def test_a_host_that_is_no_name_is_said_by_all(tmp_path, host):
    """Whoever is given it says so in one sentence, and which flag or variable it came from."""
    for argv in (["serve"], ["healthcheck"], ["send", "hello"], ["recover", "."], ["demo"]):
        sentence = assert_one_sentence(aiolog(tmp_path, *argv, "--host", host), 78)
        assert sentence.startswith("aiolog: --host: [server] host cannot be ")
    sentence = assert_one_sentence(aiolog(tmp_path, "validate", env={"AIOLOG_HTTP__HOST": host}), 78)
    assert sentence.startswith("aiolog: environment variable AIOLOG_HTTP__HOST: [http] host cannot be ")


def test_a_host_of_bytes_that_are_no_text(tmp_path):
    """The environment may hold any byte, and the sentence shows it without being one that nobody can print."""
    for argv in (["validate"], ["healthcheck"]):
        sentence = assert_one_sentence(aiolog(tmp_path, *argv, env={"AIOLOG_SERVER__HOST": "a\udcff"}), 78)
        assert "AIOLOG_SERVER__HOST: [server] host cannot be 'a\\udcff'" in sentence


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e300", "0"])
@pytest.mark.parametrize("argv", [["healthcheck"], ["recover", "."], ["doctor"]])
def test_a_timeout_is_a_number_of_seconds(tmp_path, argv, seconds):
    """NaN passes every comparison, and a socket takes no more than some years."""
    result = aiolog(tmp_path, *argv, f"--timeout={seconds}")
    assert result.returncode == 2
    assert "Invalid value for '--timeout'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("rate", ["nan", "inf"])
def test_a_rate_is_a_number(tmp_path, rate):
    """So much and no other is asked of a demonstration."""
    assert aiolog(tmp_path, "demo", "--count", "1", f"--rate={rate}").returncode == 2


def test_right_settings_are_right(tmp_path):
    """`validate` says so and ends with 0, with a file and without, and creates nothing."""
    (tmp_path / "right.toml").write_text('[sinks.app]\npath = "logs/app.log"\nwhen = "midnight"\n')
    assert aiolog(tmp_path, "validate", "right.toml").stdout == "right.toml is right: sinks app\n"
    assert aiolog(tmp_path, "validate").stdout == "the default configuration is right: sinks app, console\n"
    assert [path.name for path in tmp_path.iterdir()] == ["right.toml"]


@pytest.mark.parametrize("section", ["SERVER", "HTTP"])
def test_a_busy_port_is_named(tmp_path, section):
    """A port in use is an error of the configuration: one sentence with the port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        env = {"AIOLOG_SERVER__PORT": "0", "AIOLOG_HTTP__PORT": "0", f"AIOLOG_{section}__PORT": str(port)}
        sentence = assert_one_sentence(aiolog(tmp_path, "serve", env=env), 78)
    assert f"127.0.0.1:{port}" in sentence
    assert "Stop what uses the port" in sentence


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    """A path below a file can be no directory: one sentence with the sink and the path."""
    (tmp_path / "logs").write_text("in the way")
    sentence = assert_one_sentence(aiolog(tmp_path, "serve", "--port", "0"), 78)
    assert "sink app" in sentence
    assert f"{tmp_path}/logs/app.log" in sentence


def test_the_last_sink_cannot_go(tmp_path):
    """--no-stdout with nothing but stdout configured is refused."""
    (tmp_path / "a.toml").write_text('[sinks.console]\ntype = "stdout"\n')
    assert "no sink" in assert_one_sentence(aiolog(tmp_path, "serve", "--no-stdout", "-c", "a.toml"), 78)


def test_help_loads_no_server():
    """The command line itself needs click and nothing of a server."""
    program = (
        "import sys; from aiolog.cli import commands; commands(['--help'], standalone_mode=False); "
        "print([m for m in ('asyncio', 'uvloop', 'aiohttp', 'msgspec', 'aiofiles', 'rich') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_base_package_says_what_is_missing():
    """Without click, which the base package does not bring, the script says what to install."""
    program = "import sys; sys.modules['click'] = None; import aiolog.cli"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install 'aiolog[server]'" in assert_one_sentence(result, 1)


# -- healthcheck


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_a_server_that_takes_records_is_healthy(tmp_path):
    """`healthcheck` greets over the record port, finds it by flag or environment, and writes no record."""
    with serve(tmp_path) as server:
        port = str(server.port)
        told = aiolog(tmp_path, "healthcheck", "--port", port)
        found = aiolog(tmp_path, "healthcheck", env={"AIOLOG_SERVER__HOST": "0.0.0.0", "AIOLOG_SERVER__PORT": port})
        assert told.returncode == found.returncode == 0
        assert told.stdout == found.stdout == f"127.0.0.1:{port} takes records; acked means written\n"
        assert server.stop() == 0
        assert server.records() == []


@contextlib.contextmanager
def stranger(answer: bytes, *, close: bool) -> Iterator[str]:
    """The port of a server that is none of ours: it says ``answer`` to the first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            with contextlib.suppress(OSError):
                peer = listener.accept()[0]
                with peer:
                    peer.recv(1000)
                    peer.sendall(answer)
                    if not close:
                        peer.recv(1000)

        thread = threading.Thread(target=speak)
        thread.start()
        yield str(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("answer", "close", "said"),
    [
        (b"", False, "nobody answered"),
        (b"", True, "closed the connection without a word"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", True, "is no aiolog server"),
        (protocol.encode(protocol.Ack(1)), True, "is no aiolog server"),
        (protocol.encode(protocol.Refuse(6, "the server is stopping")), True, "refuses: the server is stopping"),
    ],
)
def test_strangers_are_not_healthy(tmp_path, answer, close, said):
    """`healthcheck` ends with 69 and one sentence for whatever else answers, or does not."""
    with stranger(answer, close=close) as port:
        result = aiolog(tmp_path, "healthcheck", "--port", port, "--timeout", "1")
    assert said in assert_one_sentence(result, 69)


def test_no_server_is_not_healthy(tmp_path):
    """`healthcheck` ends with 69 and names the address where nobody listens."""
    sentence = assert_one_sentence(aiolog(tmp_path, "healthcheck", "--port", "1"), 69)
    assert NO_SUCH_SERVER in sentence


# -- send


def test_a_message_is_sent(tmp_path):
    """`send` ends with 0 when the record is acked, and so in the file, with level, logger and application."""
    with serve(tmp_path) as server:
        result = aiolog(
            tmp_path,
            "send",
            "--port",
            str(server.port),
            "--level",
            "error",
            "--logger",
            "cron",
            "--app",
            "backup",
            "100 %s",
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert server.stop() == 0
        (record,) = server.records()
    wanted = {"msg": "100 %s", "level": "ERROR", "logger": "cron", "app": "backup"}
    assert wanted.items() <= record.items()


def test_lines_of_stdin_are_sent(tmp_path):
    """`send -` makes a record of each line, in order, and shows bytes that are no UTF-8."""
    with serve(tmp_path) as server:
        subprocess.run(
            [sys.executable, "-m", "aiolog.cli", "send", "--port", str(server.port), "-"],
            input=b"first\n\xff second\n\nlast",
            check=True,
            timeout=30,
        )
        assert server.stop() == 0
        assert [record["msg"] for record in server.records()] == ["first", "\\xff second", "", "last"]


def test_send_says_when_nobody_is_there(tmp_path):
    """`send` ends with 69 and one sentence, soon, when no server answers or it asks for a token."""
    began = time.monotonic()
    assert NO_SUCH_SERVER in assert_one_sentence(aiolog(tmp_path, "send", "--port", "1", "hello"), 69)
    assert time.monotonic() - began < 5
    with serve(tmp_path, env={"AIOLOG_SERVER__TOKEN": "s3cret"}) as server:
        refused = aiolog(tmp_path, "send", "--port", str(server.port), "hello")
        assert "token" in assert_one_sentence(refused, 69)
        accepted = aiolog(tmp_path, "send", "--port", str(server.port), "hello", env={"AIOLOG_SERVER__TOKEN": "s3cret"})
        assert accepted.returncode == 0


def test_send_says_what_was_not_acked(tmp_path):
    """A server that takes records and cannot write them is not a success."""
    with nobody_reads() as pipe, serve(tmp_path, STUCK.format(seconds=0.1), stdout=pipe) as server:
        result = aiolog(tmp_path, "send", "--port", str(server.port), "hello")
        server.stop()
    assert result.returncode == 69
    assert f"1 of 1 records were not acked by 127.0.0.1:{server.port}" in result.stderr


# -- demo


def counted(stdout: str) -> dict[str, list[int]]:
    """Read the rows of the table: the numbers of each process, and of all."""
    rows = (re.findall(r"[^\s│]+", line) for line in stdout.splitlines() if line.startswith("│"))
    return {name: list(map(int, numbers)) for name, *numbers in rows if len(numbers) == 5}


def test_the_demo_counts_what_was_acked(tmp_path):
    """Without a server of its own, `demo` counts acks, and ends with 0 when nothing is lost."""
    with serve(tmp_path) as server:
        result = aiolog(tmp_path, "demo", "--port", str(server.port), "--workers", "2", "--count", "150", "--rate", "0")
        assert result.returncode == 0, result.stderr
        assert server.stop() == 0
        records = server.records()
    rows = counted(result.stdout)
    assert rows.pop("all") == [300, 300, 0, 0, 0]
    assert list(rows.values()) == [[150, 150, 0, 0, 0]] * 2
    assert set(rows) == {f"{record['process']}[{record['pid']}]" for record in records}
    assert {record["app"] for record in records} == {"shop"}
    assert len({record["level"] for record in records}) == 4
    assert any("ConnectionError: the bank" in record.get("exc", "") for record in records)


def test_the_demo_serves_and_counts_what_is_in_the_files(tmp_path):
    """With --serve a server of its own writes, rotates and drains; the count is read from all the files."""
    env = {"AIOLOG_HTTP__PORT": "0"}
    argv = ["demo", "--serve", "--port", "0", "--workers", "2", "--count", "400", "--rate", "1000", "--dir", "out"]
    result = aiolog(tmp_path, *argv, env=env)
    assert result.returncode == 0, result.stderr
    assert counted(result.stdout)["all"] == [800, 800, 0, 0, 0]
    assert re.search(r"app\.log +│ +\d+ │", result.stdout)
    assert "drained. Records: 800 delivered" in result.stderr
    assert len(list(lines(tmp_path / "out/app.log"))) == 800


def test_ctrl_c_ends_the_demo_in_order(tmp_path):
    """The terminal's Ctrl-C reaches parent, workers and server; nothing is lost, rotated files are counted."""
    live = tmp_path / "logs/app.log"
    argv = ["-m", "aiolog.cli", "demo", "--serve", "--port", "0", "--workers", "3", "--rate", "100"]
    with (
        (tmp_path / "out").open("wb") as out,
        subprocess.Popen(
            [sys.executable, *argv],
            cwd=tmp_path,
            env={**os.environ, "AIOLOG_HTTP__PORT": "0", "AIOLOG_SINKS__APP__MAX_BYTES": "16 KiB"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stderr is not None
            while "processes log" not in process.stderr.readline():
                pass
            deadline = time.monotonic() + 20
            while len(files(live)) < 3:  # two rotations in
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            _, stderr = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    logged, written, dropped, twice, lost = counted((tmp_path / "out").read_text())["all"]
    assert (logged, dropped, twice, lost) == (written, 0, 0, 0)
    assert len(list(lines(live))) == written > 50


def test_the_demo_admits_a_loss(tmp_path):
    """When the server dies and does not come back, `demo` counts what is lost, and ends with 1."""
    with (
        serve(tmp_path) as server,
        run(tmp_path, "demo", "--port", str(server.port), "--workers", "1", "--rate", "200", "--count", "300") as demo,
    ):
        while not server.records():
            time.sleep(0.01)
        server.kill()
        assert demo.wait(30) == 1
        logged, acked, dropped, twice, lost = counted(demo.stdout)["all"]
    assert logged == 300
    assert lost == 300 - acked - dropped > 0
    assert twice == 0


def test_the_demo_needs_a_server(tmp_path):
    """Without --serve and without a server, `demo` says so at once."""
    assert NO_SUCH_SERVER in assert_one_sentence(aiolog(tmp_path, "demo", "--port", "1"), 69)


def test_the_demo_shows_why_its_server_did_not_start(tmp_path):
    """What the server says of its trouble comes through."""
    (tmp_path / "logs/app.log").mkdir(parents=True)
    result = aiolog(tmp_path, "demo", "--serve", "--port", "0", env={"AIOLOG_HTTP__PORT": "0"})
    assert result.returncode != 0
    assert "cannot open" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_reader_of_the_summary_may_go(tmp_path):
    """`aiolog validate | true` ends without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.closing(os.fdopen(writer, "wb")) as out:
        result = subprocess.run(
            [sys.executable, "-m", "aiolog.cli", "validate"], stdout=out, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (result.returncode, result.stderr) == (1, "")
