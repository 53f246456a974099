"""Rotation, compression, routing and the order of time, with a server that is killed amid them."""

from __future__ import annotations

import time

import pytest
from judge import Found, Verdict
from load import HEAD, Stage, say, seeded, times

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

STORM = (
    HEAD
    + """
[sinks.all]
path = "logs/all.log"
max_bytes = "32 KiB"
backup_count = 0
compress = "zstd"
"""
)
ORDERED = (
    HEAD
    + """
[sinks.all]
path = "logs/all.log"
backup_count = 0
max_bytes = "256 KiB"
reorder_window = "100 ms"
"""
)
ROUTED = (
    HEAD
    + """
[sinks.by]
path = "logs/by/{app}.log"
max_bytes = "64 KiB"
backup_count = 0
compress = "gzip"
max_open_files = 3

[sinks.few]
path = "logs/few/{app}.log"
backup_count = 0
max_bytes = 0
max_routes = 2
"""
)


def kill_amid(stage, rng, kills):
    for _ in range(kills):
        time.sleep(rng.uniform(0.05, 0.5))  # any moment
        stage.kill()
        stage.restart_until_acked()
    stage.finish()


def test_kill_9_amid_a_storm_of_rotations(tmp_path):
    """F1: a rotation every 32 KiB, compression always under way: everything once, over a thousand files."""
    kills = times("AIOLOG_KILLS", 50)
    rng = seeded("F1-storm")
    with Stage(tmp_path, STORM, seed=rng.randrange(1 << 30)) as stage:
        stage.work(8, per_second=1_000)
        kill_amid(stage, rng, kills)
        assert not list((tmp_path / "logs").glob("*.tmp"))
        stage.assert_exact("F1-storm", kills=kills)


def test_kill_9_amid_the_order_of_time(tmp_path):
    """F1: records that wait to be sorted are not acked, and come again."""
    kills = times("AIOLOG_KILLS", 50) // 5
    rng = seeded("F1-ordered")
    with Stage(tmp_path, ORDERED, seed=rng.randrange(1 << 30)) as stage:
        stage.work(6, per_second=400)
        kill_amid(stage, rng, kills)
        stage.assert_exact("F1-ordered", kills=kills)


def test_kill_9_amid_many_files(tmp_path):
    """F1: each process has a file, of which few are open; and where names are bounded, the fallback is exact too."""
    kills = times("AIOLOG_KILLS", 50) // 2
    rng = seeded("F1-routed")
    with Stage(tmp_path, ROUTED, seed=rng.randrange(1 << 30)) as stage:
        for n in range(6):
            stage.work(1, per_second=400, handler={"app": f"app{n}"})
        kill_amid(stage, rng, kills)
        books = stage.books
        for n, (worker, book) in enumerate(books.items()):
            verdict = Verdict(Found(tmp_path / f"logs/by/app{n}.log"), {worker: book})
            say("F1-routed", verdict.figures(), sink="by", kills=kills)
            verdict.assert_exact()
        found = [Found(live) for live in sorted((tmp_path / "logs/few").glob("*.log"))]
        assert len(found) == 3
        everything = found[0]
        for other in found[1:]:
            assert not everything.seen.keys() & other.seen.keys()
            everything.seen.update(other.seen)
            everything.said_dropped += other.said_dropped
        verdict = Verdict(everything, books)
        say("F1-routed", verdict.figures(), sink="few", kills=kills)
        verdict.assert_exact()
