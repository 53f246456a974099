"""Real workers, really killed: what their log calls returned from is in the log, once and in order."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from fake_server import FakeServer
from interpreters import every_interpreter
from oracle import Verdict
from programs import flood
from running import aiolog, serve

from aiolog import AiologHandler

CLIENT_POINTS = ("spool_written:1", "spool_written:777", "spool_created:1", "spool_created:3", "spool_sealed:1",
                 "spool_sealed:4", "spool_unlinked:1", "spool_unlinked:3", "batch_sent:1", "batch_sent:9",
                 "ack_received:1", "ack_received:7")  # fmt: skip


def booked(book):
    """How many log calls had returned: the numbers begin at 0 and have no holes."""
    whole, _, _ = book.read_text().rpartition("\n") if book.exists() else ("", "", "")  # a kill parts a write at a page
    lines = whole.split()
    assert lines == [str(n) for n in range(len(lines))]
    return len(lines)


def assert_kept(records, books):
    """Each worker's records are there once and in order: all that the book has, and at most one that was under way."""
    verdict = Verdict(records)
    assert (verdict.twice, verdict.disorder, verdict.dropped) == (0, 0, 0)
    for worker, count in books.items():
        numbers = verdict.seen.get(worker, [])
        assert numbers == list(range(len(numbers))), worker
        assert count <= len(numbers) <= count + 1, worker
    assert set(verdict.seen) <= set(books)


def wait_until(condition, timeout=60):
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def wait_for(count, *workers):
    """Wait until so many log calls of each have returned; fail at once, with its last words, if one has ended."""
    book_bytes = len("".join(f"{number}\n" for number in range(count)))

    def are_booked():
        for one in workers:
            assert one.process.poll() is None, one.process.communicate()
        # By the size: reading books again and again would take from the workers what they need.
        return all(one.book.exists() and one.book.stat().st_size >= book_bytes for one in workers)

    wait_until(are_booked)


def spooled(spool):
    return [path for path in Path(spool).iterdir() if not path.name.startswith(".")] if Path(spool).exists() else []


def worker(tmp_path, port, name, *options, spool="spool", **how):
    book = tmp_path / f"{name}.book"
    one = flood(port, name, 1_000_000, "--spool", tmp_path / spool, "--book", book, *options, **how)
    one.book = book
    return one


@every_interpreter
def test_killed_at_random_moments(tmp_path, python):
    """Workers at full speed are killed amid it; the next handlers and `aiolog recover` send the rest."""
    spool = tmp_path / "spool"
    with serve(tmp_path, None, "--no-stdout") as server:
        for turn in range(2):
            started = [worker(tmp_path, server.port, f"w{turn}.{n}", python=python) for n in range(4)]
            for n, one in enumerate(started):
                wait_for(300 * n + 1, one)
                one.process.kill()
                one.process.communicate()
        result = aiolog(tmp_path, "recover", str(spool), "--port", str(server.port))
        assert result.returncode == 0, result.stderr
        assert spooled(spool) == []
        assert server.stop() == 0
        records = server.records()
    assert_kept(records, {path.stem: booked(path) for path in tmp_path.glob("*.book")})


@pytest.mark.parametrize("point", CLIENT_POINTS)
def test_killed_at_each_point(tmp_path, point):
    """Between any two steps of the spool and of the sender; the next handler with that directory sends the rest."""
    spool, book = tmp_path / "spool", tmp_path / "w.book"
    with serve(tmp_path, None, "--no-stdout") as server:
        small = ("--spool-max-bytes", 1 << 20)
        one = worker(tmp_path, server.port, "w", *small, env={"AIOLOG_CRASH": point})
        one.process.communicate(timeout=60)
        assert one.process.returncode == -signal.SIGKILL
        one = worker(tmp_path, server.port, "next", "--seconds", 0.1)
        wait_for(10, one)
        wait_until(lambda: len(spooled(spool)) == 1)
        one.process.kill()
        one.process.communicate()
        assert aiolog(tmp_path, "recover", str(spool), "--port", str(server.port)).returncode == 0
        assert spooled(spool) == []
        assert server.stop() == 0
        records = server.records()
    assert_kept(records, {"w": booked(book), "next": booked(tmp_path / "next.book")})


def test_the_finder_dies_too(tmp_path):
    """`aiolog recover` is killed when it has adopted, and when it has sent something; the second one ends it."""
    spool, book = tmp_path / "spool", tmp_path / "w.book"
    one = worker(tmp_path, 1, "w")
    wait_for(5_000, one)
    one.process.kill()
    one.process.communicate()
    with serve(tmp_path, None, "--no-stdout") as server:
        argv = ("recover", str(spool), "--port", str(server.port))
        for point in ("spool_adopted", "batch_sent", "ack_received", "ack_received:3", "spool_unlinked"):
            result = aiolog(tmp_path, *argv, env={"AIOLOG_CRASH": point})
            assert result.returncode in (-signal.SIGKILL, 0), result.stderr
        result = aiolog(tmp_path, *argv)
        assert result.returncode == 0, result.stderr
        assert server.stop() == 0
        records = server.records()
    assert_kept(records, {"w": booked(book)})


def test_twenty_finders_and_one_spool(tmp_path):
    """Who has the lock sends; the others pass by; nothing comes twice."""
    spool, book = tmp_path / "spool", tmp_path / "w.book"
    one = worker(tmp_path, 1, "w")
    wait_for(3_000, one)
    one.process.kill()
    one.process.communicate()
    from concurrent.futures import ThreadPoolExecutor

    from aiolog.recovery import recover

    with serve(tmp_path, None, "--no-stdout") as server:
        with ThreadPoolExecutor(20) as pool:
            found = list(pool.map(lambda _: list(recover(str(spool), "127.0.0.1", server.port)), range(20)))
        assert sum(map(len, found)) == 1
        assert spooled(spool) == []
        assert server.stop() == 0
        records = server.records()
    assert_kept(records, {"w": booked(book)})


@every_interpreter
def test_a_normal_life_leaves_nothing_behind(tmp_path, python):
    """A worker that ends by itself with a server there removes its directory."""
    with serve(tmp_path, None, "--no-stdout") as server:
        result = flood(server.port, "w", 20_000, "--spool", tmp_path / "spool", python=python).result()
        assert server.stop() == 0
        verdict = Verdict(server.records())
    verdict.assert_exact({"w": 20_000})
    assert result["stats"]["acked"] == 20_000
    assert list((tmp_path / "spool").iterdir()) == []


def test_an_exit_does_not_wait_for_an_absent_server(tmp_path):
    """What is in files is safe: the process ends at once, and `aiolog recover` delivers all of it."""
    began = time.monotonic()
    flood(1, "w", 5_000, "--spool", tmp_path / "spool", "--flush", 0).result()
    assert time.monotonic() - began < 4
    result = aiolog(tmp_path, "recover", str(tmp_path / "spool"), "--port", "1")
    assert result.returncode == 69
    with serve(tmp_path, None, "--no-stdout") as server:
        result = aiolog(tmp_path, "recover", str(tmp_path / "spool"), "--port", str(server.port))
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("5000 records of test[")
        assert server.stop() == 0
        Verdict(server.records()).assert_exact({"w": 5_000})


def test_a_server_that_dies_too(tmp_path):
    """Worker and server are killed while records are under way: the ledger tells what the next server has."""
    with serve(tmp_path, None, "--no-stdout") as server:
        port = server.port
        one = worker(tmp_path, port, "w")
        wait_for(3_000, one)
        server.kill()
        wait_for(6_000, one)
        one.process.kill()
        one.process.communicate()
    with serve(tmp_path, None, "--no-stdout") as server:
        result = aiolog(tmp_path, "recover", str(tmp_path / "spool"), "--port", str(server.port))
        assert result.returncode == 0, result.stderr
        assert server.stop() == 0
        records = server.records()
    assert_kept(records, {"w": booked(tmp_path / "w.book")})


@pytest.mark.parametrize("obstacle", ["a file", "read-only"])
def test_an_application_outlives_its_spool(tmp_path, obstacle):
    """Where there can be no directory, records go through memory, and one line says so."""
    spool = tmp_path / "spool"
    if obstacle == "a file":
        spool.write_text("not a directory")
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        spool.mkdir(0o500)
    with serve(tmp_path, None, "--no-stdout") as server:
        one = flood(server.port, "w", 20_000, "--spool", spool)
        one.result()
        assert server.stop() == 0
        Verdict(server.records()).assert_exact({"w": 20_000})
    assert one.stderr.count("no spool in") == 1


def test_a_disk_that_fills_up(tmp_path):
    """The first files fit, later ones do not: what does not fit goes through memory, in order all the same."""
    import resource

    with serve(tmp_path, None, "--no-stdout") as server:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, limit[1]))  # below a segment: only owner and sites
        try:
            one = flood(server.port, "w", 20_000, "--spool", tmp_path / "spool")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        one.result()
        assert server.stop() == 0
        Verdict(server.records()).assert_exact({"w": 20_000})
    assert one.stderr.count("no spool in") == 1


def test_a_fork_has_a_directory_of_its_own(tmp_path):
    """A child logs, its parent dies: the child keeps no lock of its parent's, and each is sent as its own."""
    program = """
import logging, os, sys, time
sys.path.insert(0, %r)
from worker import body, logger_to
logger, handler = logger_to(1, spool_dir=%r)
for n in range(100): logger.info(body("parent", n))
if os.fork() == 0:
    for n in range(50): logger.info(body("child", n))
    print("ready", flush=True)
    time.sleep(60)
time.sleep(60)
"""
    import subprocess
    import sys

    here, spool = str(Path(__file__).parent), str(tmp_path / "spool")
    parent = subprocess.Popen([sys.executable, "-c", program % (here, spool)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    with serve(tmp_path, None, "--no-stdout") as server:
        argv = ("recover", spool, "--port", str(server.port))
        assert len(spooled(spool)) == 2
        assert aiolog(tmp_path, *argv).stdout == ""
        parent.kill()
        parent.wait()
        result = aiolog(tmp_path, *argv)
        assert result.stdout.startswith("100 records of test["), result
        assert len(spooled(spool)) == 1
        os.kill(int(children[0]), signal.SIGKILL)
        wait_until(
            lambda: not Path(f"/proc/{children[0]}").exists() or "Z" in Path(f"/proc/{children[0]}/stat").read_text()
        )
        assert aiolog(tmp_path, *argv).stdout.startswith("50 records of test[")
        assert spooled(spool) == []
        parent.stdout.close()
        assert server.stop() == 0
        Verdict(server.records()).assert_exact({"parent": 100, "child": 50})


@every_interpreter
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_start_method(tmp_path, python, method):
    """A handler with a spool that is inherited or pickled begins a directory of its own in each child."""
    from programs import Program

    with serve(tmp_path, None, "--no-stdout") as server:
        env = {"AIOLOG_TEST_SPOOL": str(tmp_path / "spool")}
        Program("process", server.port, method, 3, python=python, env=env).result()
        assert server.stop() == 0
        Verdict(server.records()).assert_exact({"parent": 2} | {f"task{n}": 3 for n in range(3)})
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_server_that_knows_too_much(tmp_path, capfd):
    """A WELCOME with a last_seq that was never sent: what is not acked goes on under a new session, said once."""
    with FakeServer() as server:
        first = []

        def greet(peer, hello):
            first.append(hello.session)
            peer.welcome(999 if hello.session == first[0] else None)

        server.on_hello = greet
        handler = AiologHandler(*server.address, spool_dir=tmp_path)
        import logging

        for number in range(3):
            handler.handle(logging.makeLogRecord({"msg": str(number), "process": os.getpid()}))
        handler.flush(15)
        assert server.texts == ["0", "1", "2"]
        handler.close()
        assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err.count("under a new session") == 1
