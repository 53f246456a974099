"""The same promises at full size: `make long`, some minutes; the everyday suite has each of them smaller."""

from __future__ import annotations

import signal
import time

import pytest
from oracle import Verdict
from programs import flood
from running import serve
from test_outages import free_port

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

BUFFER = ("--buffer-bytes", 1 << 20)
SIX_GIGABYTES = """
    [sinks.app]
    path = "logs/app.log"
    backup_count = 0
"""


def say(**figures):
    """Print the figures of a run, for `pytest -rP` and a closing note."""
    print(" ".join(f"{name}={value}" for name, value in figures.items()))


def test_a_sustained_flood_loses_nothing_by_backpressure_alone(tmp_path):
    """2 processes × 2,000,000 records, 1 MiB of buffer each: none lost, none dropped, memory bounded."""
    with serve(tmp_path, SIX_GIGABYTES, "--no-stdout") as server:
        small = flood(server.port, "small", 1_000, *BUFFER).result()
        began = time.monotonic()
        workers = {f"w{n}": flood(server.port, f"w{n}", 2_000_000, *BUFFER) for n in range(2)}
        results = {name: worker.result(timeout=600) for name, worker in workers.items()}
        took = time.monotonic() - began
        assert server.stop() == 0
        verdict = Verdict(server.records())
    verdict.assert_exact({"small": 1_000, "w0": 2_000_000, "w1": 2_000_000})
    growth = {name: result["max_rss_kib"] - small["max_rss_kib"] for name, result in results.items()}
    slowest = max(result["slowest_seconds"] for result in results.values())
    say(received=verdict.received, seconds=round(took, 1), growth_kib=growth, slowest_ms=round(slowest * 1e3, 1))
    assert all(sum(result["stats"]["dropped"].values()) == 0 for result in results.values())
    assert max(growth.values()) < 4 << 10


def test_a_flood_over_a_stop_of_ten_seconds(tmp_path):
    """The same flood, the server stopped for 10 s in its midst: no call over 0.2 s, every drop counted in the log."""
    with serve(tmp_path, SIX_GIGABYTES, "--no-stdout") as server:
        workers = {f"w{n}": flood(server.port, f"w{n}", 2_000_000, *BUFFER) for n in range(2)}
        time.sleep(8)  # into the midst
        server.send(signal.SIGSTOP)
        time.sleep(10)
        server.send(signal.SIGCONT)
        results = {name: worker.result(timeout=600) for name, worker in workers.items()}
        assert server.stop() == 0
        verdict = Verdict(server.records())
    dropped = sum(sum(result["stats"]["dropped"].values()) for result in results.values())
    slowest = max(result["slowest_seconds"] for result in results.values())
    say(received=verdict.received, dropped=dropped, said=verdict.dropped, slowest_ms=round(slowest * 1e3, 1))
    assert slowest < 0.2
    assert dropped > 0
    assert verdict.dropped == dropped
    assert verdict.received + dropped == 4_000_000
    assert verdict.twice == verdict.disorder == 0


def test_a_server_that_comes_five_seconds_late(tmp_path):
    """Everything logged before there was a server arrives."""
    with free_port() as port:
        early = flood(port, "early", 50_000)
        paced = flood(port, "paced", 0, "--per-second", 200, "--seconds", 8)
        time.sleep(5)  # how late the server is
    with serve(tmp_path, None, "--no-stdout", port=port) as server:
        emitted = {"early": early.result()["emitted"], "paced": paced.result()["emitted"]}
        assert server.stop() == 0
        Verdict(server.records()).assert_exact(emitted)
    say(**emitted)


def test_thirty_restarts_under_load(tmp_path):
    """SIGTERM and start, 30 times, under 4 processes × 500 records a second: none lost, none twice."""
    port = 0
    for turn in range(31):
        with serve(tmp_path, SIX_GIGABYTES, "--no-stdout", port=port) as server:
            port = server.port
            if not turn:
                pace = ("--per-second", 500, "--seconds", 50)
                workers = {f"w{n}": flood(port, f"w{n}", 0, *pace) for n in range(4)}
            if turn == 30:
                results = {name: worker.result(timeout=200) for name, worker in workers.items()}
            else:
                time.sleep(0.7)  # the load runs meanwhile
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 5
    emitted = {name: result["emitted"] for name, result in results.items()}
    Verdict(server.records()).assert_exact(emitted)
    say(emitted=sum(emitted.values()), reconnects=[result["stats"]["reconnects"] for result in results.values()])
