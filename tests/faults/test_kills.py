"""F1, F2, F39: the server killed at any moment, killed at named points, and restarted, under load."""

from __future__ import annotations

import signal
import time

import pytest
from judge import TEMPLATE
from load import END_SECONDS, HEAD, TWO_SINKS, Stage, archiving, say, seeded, times, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

L1 = {"per_second": 500}
RECOVERY_SECONDS = 2.0
CRASHES_EACH = 3

LOAD_POINTS = {  # where a server under load passes, and the highest count that a test waits for
    "before_ledger": 200,
    "mid_ledger": 200,
    "after_ledger": 200,
    "mid_write": 200,
    "after_write": 200,
    "before_ack": 400,
    "after_ack": 400,
}
SYNC_POINTS = {"after_sync": 100}
ROTATE_POINTS = {
    "rotate_settled": 6,
    "rotate_renamed": 6,
    "rotate_created": 6,
    "compact_tmp": 2,  # one for each sink, at the start; the next one would come after 1 MiB of entries
    "compact_renamed": 2,
    "compress_tmp": 4,
    "compress_renamed": 4,
    "expire_unlinked": 4,
}
START_POINTS = {"repair_moved": 1, "repair_cut": 1}  # in a start that finds a torn end
POINTS = LOAD_POINTS | SYNC_POINTS | ROTATE_POINTS | START_POINTS

ROTATING = (
    HEAD
    + f"""
[sinks.all]
path = "logs/all.log"
max_bytes = "256 KiB"
backup_count = 3
compress = "gzip"

[sinks.errors]
path = "logs/errors.log"
format = "text"
template = "{TEMPLATE}"
level = "ERROR"
max_bytes = "128 KiB"
backup_count = 3
"""
)
SYNCED = TWO_SINKS.replace('max_bytes = "2 MiB"', 'max_bytes = "2 MiB"\ndurability = "fsynced"')


def kill_at_random(tmp_path, row, kills, workers=8, config=TWO_SINKS):
    """Kill and restart under load; judge all files, and how soon records were acked again."""
    rng = seeded(row)
    with Stage(tmp_path, config, seed=rng.randrange(1 << 30)) as stage:
        stage.work(workers, **L1)
        for _ in range(kills):
            time.sleep(rng.uniform(0.05, 0.6))  # any moment
            stage.kill()
            stage.restart_until_acked()
        stage.finish()
        stage.assert_exact(row, kills=kills)
        assert max(stage.recoveries) < RECOVERY_SECONDS


def test_kill_9_at_random_moments(tmp_path):
    """F1: nothing lost, twice or torn in two sinks with filters of their own, over rotation and compression."""
    kill_at_random(tmp_path, "F1", times("AIOLOG_KILLS", 50))


def test_kill_9_at_random_moments_when_every_group_is_synced(tmp_path):
    """F1: the same with one sink fsynced and the other not."""
    kill_at_random(tmp_path, "F1-fsynced", times("AIOLOG_KILLS", 50) // 5, workers=4, config=SYNCED)


def crash_at(stage, rng, point, count):
    """Let the server die at the ``count``-th passing of a point, and start it again."""
    stage.kill()
    if point in START_POINTS:
        with (stage.directory / "logs/all.log").open("ab") as live:
            live.write(b'{"ts":"torn by a test' + b"x" * rng.randrange(1, 9_000))
    stage.start(env={"AIOLOG_CRASH": f"{point}:{count}"}, wait=False)
    try:
        code = stage.server.wait(timeout=25)
    except Exception as error:
        raise AssertionError(f"the server never came by {point} {count} times") from error
    assert code == -signal.SIGKILL, f"{point}: the server ended with {code}: {stage.server.stderr}"
    stage.said += stage.server.stderr
    stage.restart_until_acked()


def crash_often(tmp_path, row, point, crashes, workers=4):
    """Crash at one point some times, under load; judge."""
    rng = seeded(f"{row}-{point}")
    config = ROTATING if point in ROTATE_POINTS else SYNCED if point in SYNC_POINTS else TWO_SINKS
    archive = tmp_path / "archive"
    with Stage(tmp_path, config, seed=rng.randrange(1 << 30), archive=archive) as stage:
        with archiving(tmp_path / "logs", archive):
            stage.work(workers, **L1)
            most = POINTS[point]
            counts = [1, *(rng.randint(1, most) for _ in range(crashes - 1))]
            for count in counts:
                crash_at(stage, rng, point, count)
            stage.finish()
        stage.assert_exact(f"{row}:{point}", counts=",".join(map(str, counts)))


@pytest.mark.parametrize("point", POINTS)
def test_kill_9_at_each_point(tmp_path, point):
    """F2: wherever between ledger, write, sync, ack, rotation and repair the server dies, both sinks end exact."""
    crash_often(tmp_path, "F2", point, times("AIOLOG_CRASHES", CRASHES_EACH))


def test_thirty_restarts_under_load(tmp_path):
    """F39: SIGTERM and start again, 30 times: exact, and each end takes less than 5 s."""
    restarts = times("AIOLOG_RESTARTS", 30)
    rng = seeded("F39")
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        stage.work(8, **L1)
        slowest = 0.0
        for _ in range(restarts):
            time.sleep(rng.uniform(0.05, 0.5))  # any moment
            slowest = max(slowest, stage.stop())
            stage.restart_until_acked()
        stage.finish()
        stage.assert_exact("F39", restarts=restarts, slowest_end_s=f"{slowest:.2f}")
        assert slowest < 5


def test_a_stop_does_not_wait_for_a_stuck_sink(tmp_path):
    """F39: a sink whose reader stands still delays the end by 5 s at most; the other keeps what was acked."""
    import os

    pipe = tmp_path / "logs" / "pipe"
    pipe.parent.mkdir()
    config = TWO_SINKS + '\n[sinks.out]\ntype = "stdout"\nwhen_full = "block"\nformat = "json"\n'
    reading, writing = os.pipe()
    try:
        with Stage(tmp_path, config) as stage:
            stage.kill()
            from running import serve

            with serve(tmp_path, config, port=stage.port, stdout=writing) as server:
                stage.work(1, per_second=2_000, handler={"flush_timeout_seconds": 1})
                until(lambda: (tmp_path / "logs/all.log").stat().st_size > 32 << 10, 30, "the pipe is full")
                time.sleep(1)
                began = time.monotonic()
                server.send(signal.SIGTERM)
                server.wait(timeout=END_SECONDS)
                took = time.monotonic() - began
            stage.start()
            stage.rest()
            stage.stop()
            say("F39-stuck", end_s=f"{took:.2f}")
            assert took < 6
            for verdict in stage.figures("F39-stuck").values():
                verdict.assert_exact()
    finally:
        os.close(reading)
        os.close(writing)
