"""F25, F26, F27: somebody else rotates, nobody reads stdout, the clock jumps."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from load import PLAIN, Stage, say, seeded, until
from test_disk import Lag

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


@pytest.mark.parametrize("how", ["inode alone", "SIGHUP"])
def test_an_external_logrotate_that_renames(tmp_path, how):
    """F25: a file that was renamed under load keeps what it got; the rest goes to a new one; nothing is twice."""
    rng = seeded("F25")
    live = tmp_path / "logs/all.log"
    with Stage(tmp_path, PLAIN, seed=rng.randrange(1 << 30)) as stage:
        stage.work(4, per_second=500)
        for n in range(8):
            until(lambda: live.exists() and live.stat().st_size > 50_000, 20, "it grows")
            moved = live.with_name(f"all.log.moved{n}")
            live.rename(moved)
            stage.moved.append(moved)
            if how == "SIGHUP":
                stage.server.send(signal.SIGHUP)
        time.sleep(0.3)
        stage.finish()
        stage.assert_exact("F25", how=how.replace(" ", "_"), renames=len(stage.moved))


def test_a_logrotate_while_the_server_is_dead(tmp_path):
    """F25: killed, renamed, started: nothing is lost, and nothing in the old file comes again in the new one."""
    rng = seeded("F25-dead")
    live = tmp_path / "logs/all.log"
    with Stage(tmp_path, PLAIN, seed=rng.randrange(1 << 30)) as stage:
        stage.work(4, per_second=500)
        for n in range(5):
            until(lambda: live.exists() and live.stat().st_size > 50_000, 20, "it grows")
            stage.kill()
            moved = live.with_name(f"all.log.moved{n}")
            live.rename(moved)
            stage.moved.append(moved)
            stage.restart_until_acked()
        stage.finish()
        stage.assert_exact("F25-dead", renames=len(stage.moved))


def test_a_logrotate_that_copies_and_truncates(tmp_path):
    """F25: copytruncate cannot be made safe; it is found out and said, and nothing that is there is torn."""
    rng = seeded("F25-copy")
    live = tmp_path / "logs/all.log"
    with Stage(tmp_path, PLAIN, seed=rng.randrange(1 << 30)) as stage:
        stage.work(2, per_second=500)
        until(lambda: live.exists() and live.stat().st_size > 200_000, 20, "it grows")
        copy = live.with_name("all.log.copy")
        shutil.copyfile(live, copy)
        os.truncate(live, 0)
        stage.server.expect("by somebody else")
        stage.kill()  # its ledger tells of a file that was longer
        stage.restart_until_acked()
        stage.finish()
        verdict = stage.figures("F25-copy")["all"]
        assert verdict.found.twice == verdict.found.altered == verdict.found.torn == verdict.unknown == 0


def test_a_directory_that_is_moved_away(tmp_path):
    """Logs moved elsewhere, directory and all: writing goes on in a new one, and nothing is lost between the two."""
    rng = seeded("moved")
    logs = tmp_path / "logs"
    with Stage(tmp_path, PLAIN, seed=rng.randrange(1 << 30)) as stage:
        stage.work(2, per_second=500)
        for n in range(3):
            until(lambda: (logs / "all.log").exists() and (logs / "all.log").stat().st_size > 50_000, 20, "it grows")
            away = tmp_path / f"away{n}"
            logs.rename(away)
            stage.moved.append(away / "all.log")
        until((logs / "all.log").exists, 20, "a new directory")
        stage.kill()  # the new place must be as exact as the old one
        stage.restart_until_acked()
        stage.finish()
        stage.assert_exact("moved-directory", moves=3)


STDOUT = """
[sinks.all]
path = "logs/all.log"
max_bytes = 0

[sinks.console]
type = "stdout"
format = "json"
buffer_bytes = "64 KiB"
"""


def metric(url, name):
    text = urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def test_a_reader_of_stdout_that_stops_and_one_that_goes(tmp_path):
    """F26: the file and the acks do not notice; what stdout misses is counted; the loop goes on."""
    rng = seeded("F26")
    reading, writing = os.pipe()
    try:
        with Stage(tmp_path, STDOUT, args=(), stdout=writing, seed=rng.randrange(1 << 30)) as stage:
            os.close(writing)
            writing = -1
            workers = stage.work(4, per_second=500)
            with Lag(stage.server.url) as lag:
                until(lambda: metric(stage.server.url, "aiolog_sink_records_dropped_total"), 30, "stdout is full")
                dropped = metric(stage.server.url, "aiolog_sink_records_dropped_total")
                acked = sum(worker.book.acked for worker in workers)
                time.sleep(1)
                assert sum(worker.book.acked for worker in workers) > acked
                os.close(reading)
                reading = -1
                time.sleep(1)
            stage.rest()
            took = stage.stop()
            stage.assert_exact(
                "F26", stdout_dropped=int(dropped), lag_p95_ms=f"{lag.p95 * 1e3:.0f}", end_s=f"{took:.2f}"
            )
            assert lag.p95 < 0.05
            assert took < 5
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)


def libfaketime():
    """Return the library's path, or skip."""
    for place in ("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime"):
        if (library := Path(place) / "libfaketimeMT.so.1").exists():
            return library
    found = ctypes.util.find_library("faketimeMT")
    if not found:
        pytest.skip("libfaketime is not installed (Debian: apt-get install faketime)")
    return found


TIMED = """
[http]
enabled = false

[sinks.all]
path = "logs/all.log"
when = "S"
interval = 1
backup_count = 0
"""
JUMPS = {
    "an hour back": ("+0", "-3600"),
    "a year ahead": ("+0", "+365d"),
    "ahead and back": ("+0", "+2h", "+0"),
    "a switch to winter time": ("@2026-10-25 02:59:58", "@2026-10-25 03:59:58"),
}


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_jumps(tmp_path, jump):
    """F27: no backup is overwritten, no storm of rotations comes, nothing depends on the wall's clock."""
    rng = seeded("F27")
    stamp = tmp_path / "now"
    stamp.write_text(JUMPS[jump][0])
    env = {
        "LD_PRELOAD": str(libfaketime()), "FAKETIME_TIMESTAMP_FILE": str(stamp), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "TZ": "Europe/Berlin",
    }  # fmt: skip
    with Stage(tmp_path, TIMED, seed=rng.randrange(1 << 30), env=env) as stage:
        workers = stage.work(2, per_second=200)
        began = time.monotonic()
        for now in JUMPS[jump]:
            fresh = tmp_path / "fresh"
            fresh.write_text(now)
            fresh.replace(stamp)
            acked = sum(worker.book.acked for worker in workers)
            time.sleep(2.5)
            assert sum(worker.book.acked for worker in workers) > acked + 200
        stage.kill()  # the last moment of the file lies in the past or the future of the next start
        stage.restart_until_acked()
        stage.finish()
        seconds = time.monotonic() - began
        stage.assert_exact("F27", jump=jump.replace(" ", "_"), seconds=f"{seconds:.1f}")
        files = stage.verdicts()["all"].found.files
        say("F27", files=files)
        assert 2 <= files <= seconds + 4
