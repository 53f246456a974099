"""F21, F22, F23: writes that are short or a lie, syncs that fail or are slow; by a shim before the system calls."""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.error
import urllib.request

import pytest
from judge import TEMPLATE
from load import Stage, say, seeded, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

CONFIG = f"""
[sinks.all]
path = "logs/all.log"
max_bytes = 0
durability = "fsynced"

[sinks.errors]
path = "logs/errors.log"
format = "text"
template = "{TEMPLATE}"
level = "ERROR"
"""


class Lag(threading.Thread):
    """Ask for the server's health again and again, and note how long each answer took."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.took, self.stopped = url, [], threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.join()

    def run(self):
        while not self.stopped.wait(0.02):
            began = time.monotonic()
            with contextlib.suppress(urllib.error.HTTPError):  # 503: it answers all the same
                urllib.request.urlopen(f"{self.url}/health", timeout=10).read()
            self.took.append(time.monotonic() - began)

    @property
    def p95(self):
        return sorted(self.took)[int(len(self.took) * 0.95)]


def with_fault(tmp_path, row, shim, fault):
    """Run a load over a disk with this fault; all must be exact. Returns what the server said."""
    rng = seeded(row)
    mark = tmp_path / "mark"
    with Stage(tmp_path, CONFIG, seed=rng.randrange(1 << 30), env=shim | fault | {"FAULT_MARK": str(mark)}) as stage:
        stage.work(2, per_second=300)
        with Lag(stage.server.url) as lag:
            time.sleep(3)  # the load runs meanwhile
        stage.rest()
        said = stage.server.stderr
        stage.stop()
        assert mark.exists(), "it never happened"
        figures = {name.removeprefix("FAULT_").lower(): value for name, value in fault.items()}
        stage.assert_exact(row, **figures, lag_p95_ms=f"{lag.p95 * 1e3:.0f}", lag_max_ms=f"{max(lag.took) * 1e3:.0f}")
    return said, lag


@pytest.mark.parametrize("path", ["/all.log", "/.all.log.ledger", "/errors.log", "/.errors.log.ledger"])
@pytest.mark.parametrize("how", ["short", "lie", "eio", "enospc"])
def test_writes_that_do_not_write(tmp_path, shim, how, path):
    """F21: a write that takes a part, claims a part to be all, or fails, costs time and no record."""
    fault = {"FAULT_CALL": "write", "FAULT_PATH": path, "FAULT_HOW": how, "FAULT_FIRST": "5", "FAULT_EVERY": "7"}
    with_fault(tmp_path, "F21", shim, fault)


@pytest.mark.parametrize("times", ["1", "3"])
def test_a_sync_that_fails(tmp_path, shim, times):
    """F22: what the disk did not keep is written again, elsewhere, before it is acked; and a person is told."""
    fault = {
        "FAULT_CALL": "fdatasync", "FAULT_PATH": "/all.log", "FAULT_HOW": "eio", "FAULT_FIRST": "8",
        "FAULT_EVERY": "20", "FAULT_TIMES": times,
    }  # fmt: skip
    said, _ = with_fault(tmp_path, "F22", shim, fault)
    assert "ALERT" in said


@pytest.mark.parametrize("ms", ["300", "1500"])
def test_a_sync_that_is_slow(tmp_path, shim, ms):
    """F23: groups grow, the loop goes on, and the other sink is not delayed by more than the acks are."""
    fault = {"FAULT_CALL": "fdatasync", "FAULT_PATH": "/all.log", "FAULT_HOW": "delay", "FAULT_MS": ms}
    _, lag = with_fault(tmp_path, "F23", shim, fault)
    assert lag.p95 < 0.05


def test_a_sync_that_fails_for_ever(tmp_path, shim):
    """F22: a disk that keeps nothing gets no ack, and the server lives; a later start on a good disk has all."""
    rng = seeded("F22-ever")
    fault = {"FAULT_CALL": "fdatasync", "FAULT_PATH": "/all.log", "FAULT_HOW": "eio", "FAULT_FIRST": "8"}
    with Stage(tmp_path, CONFIG, seed=rng.randrange(1 << 30)) as stage:
        stage.kill()
        stage.start(env=shim | fault)
        (worker,) = stage.work(1, per_second=300)
        stage.server.expect("ALERT")
        time.sleep(1)
        acked = worker.book.acked
        time.sleep(1)
        assert worker.book.acked == acked
        stage.kill()
        stage.restart_until_acked()
        until(lambda: worker.book.acked > acked, 20, "acks go on")
        stage.finish()
        verdicts = stage.figures("F22-ever")
        # What a disk failed to keep may be there all the same; then it is there twice, in two files.
        assert all(v.lost_emitted == v.found.torn == v.found.altered == v.unknown == 0 for v in verdicts.values())
        say("F22-ever", twice=verdicts["all"].found.twice)
