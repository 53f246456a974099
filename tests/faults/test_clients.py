"""F2, F30, F31, F33, F35: what becomes of the records of workers that end in any way, with and without a spool."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from load import TWO_SINKS, Stage, say, seeded, times, until
from running import aiolog

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

CLIENT_POINTS = {
    "spool_written": 2_000,
    "spool_sealed": 3,
    "spool_created": 3,
    "spool_unlinked": 3,
    "batch_sent": 60,
    "ack_received": 60,
}


def spool_of(tmp_path):
    return tmp_path / "spool"


def recovered(tmp_path, stage):
    """Deliver what dead workers left; the spool directory is empty then."""
    done = aiolog(tmp_path, "recover", str(spool_of(tmp_path)), "--port", str(stage.port), timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    left = list(spool_of(tmp_path).iterdir()) if spool_of(tmp_path).exists() else []
    assert not left, left
    return done.stdout


def test_workers_that_are_killed_without_a_spool(tmp_path):
    """F30: what was acked is there, nothing is twice or torn; lost is at most what was not acked."""
    kills = times("AIOLOG_WORKER_KILLS", 20)
    rng = seeded("F30")
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        for _ in range(kills):
            (worker,) = stage.work(1, per_second=rng.choice([200, 2_000]))
            time.sleep(rng.uniform(0.02, 0.3))  # any moment
            worker.process.kill()
            worker.process.wait()
        stage.finish()
        for verdict in stage.figures("F30", kills=kills).values():
            verdict.assert_clean()
            assert verdict.lost_acked == verdict.found.said_dropped == 0


@pytest.mark.parametrize("kill_the_server_too", [False, True], ids=["server well", "server killed too"])
def test_workers_that_are_killed_with_a_spool(tmp_path, kill_the_server_too):
    """F30: every record whose log call returned is there once, in order, whoever delivers it."""
    kills = times("AIOLOG_WORKER_KILLS", 20)
    rng = seeded("F30-spool")
    handler = {"spool_dir": str(spool_of(tmp_path))}
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        for n in range(kills):
            (worker,) = stage.work(1, per_second=rng.choice([200, 2_000, 0]), handler=handler)
            time.sleep(rng.uniform(0.02, 0.3))  # any moment
            if kill_the_server_too and n % 3 == 1:
                stage.kill()
                time.sleep(rng.uniform(0, 0.1))
            worker.process.kill()
            worker.process.wait()
            if kill_the_server_too and n % 3 == 1:
                stage.start()
        recovered(tmp_path, stage)
        stage.finish()
        stage.assert_exact("F30-spool", kills=kills, server_too=kill_the_server_too)


@pytest.mark.parametrize("point", CLIENT_POINTS)
def test_kill_9_at_each_point_of_a_worker(tmp_path, point):
    """F2: wherever the worker dies between spool, send and ack, its records are there once."""
    crashes = times("AIOLOG_CRASHES", 3)
    rng = seeded(f"F2-{point}")
    handler = {"spool_dir": str(spool_of(tmp_path))}
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        counts = [1, *(rng.randint(1, CLIENT_POINTS[point]) for _ in range(crashes - 1))]
        for count in counts:
            (worker,) = stage.work(
                1, env={"AIOLOG_CRASH": f"{point}:{count}"}, per_second=5_000, seconds=30, handler=handler
            )
            code = worker.wait()
            assert code == -signal.SIGKILL, f"{point} was never reached {count} times: {code} {worker.stderr}"
        recovered(tmp_path, stage)
        stage.finish()
        stage.assert_exact(f"F2:{point}", counts=",".join(map(str, counts)))


def test_kill_9_of_who_adopts(tmp_path):
    """F2: an adopter that dies before its first batch leaves the spool to the next one."""
    crashes = times("AIOLOG_CRASHES", 3)
    rng = seeded("F2-spool_adopted")
    spool = spool_of(tmp_path)
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        stage.kill()
        for _ in range(crashes):
            stage.work(1, count=200, end="kill", handler={"spool_dir": str(spool)})[0].wait()
        stage.start()
        for count in range(1, crashes + 1):
            done = aiolog(
                tmp_path,
                "recover",
                str(spool),
                "--port",
                str(stage.port),
                env={"AIOLOG_CRASH": f"spool_adopted:{count}"},
            )
            if done.returncode == 0:
                break  # fewer were left
            assert done.returncode == -signal.SIGKILL, done.stderr
        assert count > 1
        recovered(tmp_path, stage)
        stage.finish()
        stage.assert_exact("F2:spool_adopted", crashes=count)


@pytest.mark.parametrize("spooled", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("end", ["return", "exception", "_exit", "term", "kill", "exec"])
def test_short_workers_of_each_end(tmp_path, end, spooled):
    """F31, F33: a normal end and an exception lose nothing; others what was not acked, and with a spool nothing."""
    workers = times("AIOLOG_SHORT", 12)
    rng = seeded(f"F31-{end}")
    handler = {"spool_dir": str(spool_of(tmp_path))} if spooled else {}
    codes = {"return": 0, "exception": 1, "_exit": 0, "term": -signal.SIGTERM, "kill": -signal.SIGKILL, "exec": 0}
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        for _ in range(workers // 4):
            for worker in stage.work(4, count=50, end=end, handler=handler):
                assert worker.wait() == codes[end], worker.stderr
        if spooled:
            recovered(tmp_path, stage)
        stage.finish()
        for verdict in stage.figures("F31", end=end, spool=spooled, workers=workers).values():
            verdict.assert_clean()
            assert verdict.lost_acked == 0
            if spooled or end in ("return", "exception"):
                verdict.assert_exact()


def test_exec_with_a_full_buffer_and_no_server(tmp_path):
    """F33: what a process had logged before it became another program is delivered when the server is back."""
    rng = seeded("F33")
    handler = {"spool_dir": str(spool_of(tmp_path))}
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        stage.kill()
        for worker in stage.work(3, count=100, end="exec", handler=handler):
            assert worker.wait() == 0, worker.stderr
        stage.start()
        recovered(tmp_path, stage)
        stage.finish()
        stage.assert_exact("F33")


def orphan(tmp_path, stage, count=400):
    """Leave the spool of a worker that died while there was no server."""
    stage.kill()
    (worker,) = stage.work(1, count=count, end="kill", handler={"spool_dir": str(spool_of(tmp_path))})
    assert worker.wait() == -signal.SIGKILL
    stage.start()
    directories = list(spool_of(tmp_path).iterdir())
    assert len(directories) == 1, directories
    return directories[0]


def test_many_who_find_one_spool(tmp_path):
    """F35: of many that start at once exactly one adopts it."""
    races = times("AIOLOG_RACES", 8)
    rng = seeded("F35-race")
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        for _ in range(races):
            orphan(tmp_path, stage)
            argv = [sys.executable, "-m", "aiolog.cli", "recover", str(spool_of(tmp_path)), "--port", str(stage.port)]
            finders = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(5)]
            said = [finder.communicate(timeout=60)[0] for finder in finders]
            assert sum("400" in text for text in said) == 1, said
        recovered(tmp_path, stage)
        stage.finish()
        stage.assert_exact("F35-race", races=races)


def test_a_spool_that_is_torn(tmp_path):
    """F35: cut or garbled anywhere, a spool gives true records, the first ones, and is not an obstacle."""
    rng = seeded("F35-torn")
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        delivered = []
        for n in range(6):
            directory = orphan(tmp_path, stage)
            worker = stage.workers[-1]
            segment = max(directory.glob("*.seg"), key=lambda path: path.stat().st_size)
            used = len(segment.read_bytes().rstrip(b"\0"))
            at = rng.randrange(200, used)
            if n % 3 == 0:
                os.truncate(segment, at)
            elif n % 3 == 1:
                with segment.open("r+b") as file:
                    file.seek(at)
                    file.write(random.Random(n).randbytes(min(64, used - at)))
            else:
                with segment.open("r+b") as file:
                    file.seek(at)
                    file.write(bytes(used - at))
            aiolog(tmp_path, "recover", str(spool_of(tmp_path)), "--port", str(stage.port))
            delivered.append(worker.name)
            for left in spool_of(tmp_path).iterdir():  # what was damaged is kept aside
                shutil.rmtree(left)
        stage.finish()
        verdict = stage.figures("F35-torn")["all"]
        assert verdict.found.twice == verdict.found.altered == verdict.found.torn == verdict.unknown == 0
        for name in delivered:  # a prefix, and some
            numbers = verdict.found.seen.get(name, [])
            assert numbers == list(range(len(numbers)))
        say("F35-torn", delivered=[len(verdict.found.seen.get(name, [])) for name in delivered])
        assert any(verdict.found.seen.get(name) for name in delivered)


def test_a_spool_of_an_unknown_version(tmp_path):
    """F35: it is kept, and said; the others beside it are delivered."""
    rng = seeded("F35-version")
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        foreign = orphan(tmp_path, stage)
        for path in foreign.iterdir():
            path.write_bytes(b"from another time\n" + path.read_bytes()[18:])
        before = sorted(path.name for path in foreign.iterdir())
        stage.kill()
        stage.work(1, count=50, end="kill", handler={"spool_dir": str(spool_of(tmp_path))})[0].wait()
        stage.start()
        done = aiolog(tmp_path, "recover", str(spool_of(tmp_path)), "--port", str(stage.port))
        stage.finish()
        assert sorted(path.name for path in foreign.iterdir()) == before
        assert foreign.name in done.stderr + done.stdout
        found = stage.figures("F35-version", code=done.returncode)["all"].found
        assert found.seen[stage.workers[-1].name] == list(range(50))


def test_the_next_worker_delivers_what_the_last_one_left(tmp_path):
    """F30: no command is needed: a handler that starts with the same directory sends it."""
    rng = seeded("F30-next")
    handler = {"spool_dir": str(spool_of(tmp_path))}
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        left = orphan(tmp_path, stage)
        stage.work(1, per_second=50, handler=handler)
        until(lambda: not left.exists(), 20, "the orphan is gone")
        stage.finish()
        stage.assert_exact("F30-next")
