"""F8, F9, F10, F13, F14, F41 and damaged bytes: bad networks, by a proxy in between."""

from __future__ import annotations

import time

import pytest
from load import PLAIN, TWO_SINKS, Stage, say, seeded, until
from proxy import Proxy

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

LOADS = {"L1": (4, 500), "L4": (1, 20)}
QUICK = {"heartbeat_seconds": 0.5}
DAMAGED = TWO_SINKS + "\n[server]\nheartbeat_seconds = 0.5\nframe_timeout_seconds = 2\nidle_timeout_seconds = 3\n"


def through(tmp_path, row, load, seconds, *, config=TWO_SINKS, handler=None, during=None, **settings):
    """Run a load through a proxy with these settings, then without them; all must be exact. Returns the stage's end."""
    rng = seeded(row)
    count, per_second = LOADS[load]
    with Stage(tmp_path, config, seed=rng.randrange(1 << 30)) as stage, Proxy(stage.port, seed=rng.random()) as proxy:
        for name, value in settings.items():
            assert hasattr(proxy, name)
            setattr(proxy, name, value)
        stage.work(count, port=proxy.port, per_second=per_second, handler=handler)
        until_then = time.monotonic() + seconds
        while time.monotonic() < until_then:
            time.sleep(0.2)
            if during:
                during(proxy)
        for name, value in settings.items():
            setattr(proxy, name, type(value)() if not isinstance(value, tuple) else None)
        healed = time.monotonic()
        before = {worker: len(worker.book.acks) for worker in stage.workers}
        stage.recoveries.append(stage.first_ack(healed, before) - healed)
        stage.rest()
        stage.stop()
        stage.assert_exact(row, load=load, connections=proxy.connections, cuts=proxy.cuts, damaged=proxy.damaged)
        return stage, proxy


@pytest.mark.parametrize("load", LOADS)
def test_a_connection_that_is_reset_amid_frames(tmp_path, load):
    """F8: reset after any number of bytes, again and again: exact, and acks come within 1 s of the last one."""
    stage, proxy = through(tmp_path, "F8", load, 5, cut_after_bytes=5_000, cut_is_random=True)
    assert proxy.cuts > 5
    assert max(stage.recoveries) < 1


@pytest.mark.parametrize("load", LOADS)
def test_connections_that_are_reset_every_200_ms(tmp_path, load):
    """F8: reset by the clock, wherever that meets a frame or an ack."""
    _, proxy = through(tmp_path, "F8-clock", load, 5, during=Proxy.reset_all)
    assert proxy.connections > 10


@pytest.mark.parametrize("load", LOADS)
def test_a_half_closed_connection(tmp_path, load):
    """F9: the end of a stream without an ack is no delivery."""
    _, proxy = through(tmp_path, "F9", load, 5, half_close_after_bytes=4_000)
    assert proxy.cuts > 1


def test_acks_that_are_swallowed(tmp_path):
    """F9: records that were written and whose acks never came are not written again."""
    stage, _ = through(tmp_path, "F9-acks", "L1", 4, handler=QUICK, config=DAMAGED, swallow_acks=True)
    assert max(stage.recoveries) < 7  # who had just said HELLO waits 5 s for its WELCOME


@pytest.mark.parametrize("damage", ["flip", "cut out", "repeat"])
@pytest.mark.parametrize(
    "where",
    [
        pytest.param({"corrupt_every_bytes": 60_000}, id="seldom"),
        pytest.param({"corrupt_every_bytes": 4_000}, id="often, so that many are in a HELLO or in definitions"),
        pytest.param({"corrupt_acks_every_bytes": 400}, id="in what the server says"),
    ],
)
def test_bytes_that_change_on_the_way(tmp_path, where, damage):
    """A damaged byte, or a part that is lost or comes twice, costs a connection, and no record."""
    stage, proxy = through(tmp_path, f"F8-{damage}", "L1", 6, handler=QUICK, config=DAMAGED, damage=damage, **where)
    assert proxy.connections > 4 + 3
    assert proxy.damaged >= proxy.connections - 4 - 1
    assert max(stage.recoveries) < 2


def test_200_ms_each_way(tmp_path):
    """F13: over a long path a flood reaches at least half a window a round trip; memory stays within the buffer."""
    rng = seeded("F13")
    with Stage(tmp_path, PLAIN, seed=rng.randrange(1 << 30)) as stage, Proxy(stage.port) as proxy:
        proxy.delay_seconds, proxy.jitter_seconds = 0.1, 0.02
        (worker,) = stage.work(1, port=proxy.port, handler={"buffer_bytes": 8 << 20})
        time.sleep(2)
        before, began = proxy.up_bytes, time.monotonic()
        time.sleep(4)
        per_second = (proxy.up_bytes - before) / (time.monotonic() - began)
        stage.rest()
        stage.stop()
        rss = worker.result["max_rss_kib"]
        stage.assert_counted("F13", mbytes_per_s=f"{per_second / 1e6:.2f}", client_max_rss_mib=rss >> 10)
    assert per_second > (1 << 20) / 0.24 / 2
    assert rss < 64 << 10


def test_bytes_that_drip(tmp_path):
    """F14: seven bytes a millisecond are put together again."""
    rng = seeded("F14")
    with Stage(tmp_path, seed=rng.randrange(1 << 30)) as stage, Proxy(stage.port) as proxy:
        proxy.drip = (7, 0.001)
        stage.work(1, port=proxy.port, per_second=10)
        time.sleep(6)
        stage.rest()
        stage.stop()
        stage.assert_exact("F14", up_bytes=proxy.up_bytes)
        assert proxy.up_bytes > 5_000


@pytest.mark.parametrize("seconds", [1, 8])
def test_a_black_hole(tmp_path, seconds):
    """F10: nothing passes for a while: no call waits long, and all is there when the path is back."""
    rng = seeded("F10")
    with Stage(tmp_path, seed=rng.randrange(1 << 30)) as stage, Proxy(stage.port) as proxy:
        workers = stage.work(4, port=proxy.port, per_second=500, handler=QUICK)
        time.sleep(1)
        proxy.black_hole = True
        time.sleep(seconds)
        proxy.black_hole = False
        healed = time.monotonic()
        before = {worker: len(worker.book.acks) for worker in workers}
        stage.recoveries.append(stage.first_ack(healed, before) - healed)
        stage.rest()
        stage.stop()
        slowest = max(worker.result["slowest_seconds"] for worker in workers)
        stage.assert_exact("F10", seconds=seconds, slowest_call_ms=f"{slowest * 1e3:.1f}")
    assert slowest < 0.3
    assert stage.recoveries[0] < QUICK["heartbeat_seconds"] + 2


def test_a_black_hole_that_is_longer_than_the_buffer(tmp_path):
    """F10: what does not fit is dropped; received and said drops are together what was logged."""
    rng = seeded("F10-drops")
    handler = QUICK | {"buffer_bytes": 256 << 10}
    with Stage(tmp_path, seed=rng.randrange(1 << 30)) as stage, Proxy(stage.port) as proxy:
        workers = stage.work(2, port=proxy.port, per_second=1_000, handler=handler)
        time.sleep(1)
        proxy.black_hole = True
        time.sleep(4)
        proxy.black_hole = False
        stage.rest()
        stage.stop()
        slowest = max(worker.result["slowest_seconds"] for worker in workers)
        assert stage.dropped > 1_000
        stage.assert_counted("F10-drops", slowest_call_ms=f"{slowest * 1e3:.1f}")
    assert slowest < 0.3


def test_a_connection_that_a_nat_forgot(tmp_path):
    """F41: only what is connected now leads nowhere: within two heartbeats the worker has a new connection."""
    rng = seeded("F41")
    with Stage(tmp_path, seed=rng.randrange(1 << 30)) as stage, Proxy(stage.port) as proxy:
        workers = stage.work(2, port=proxy.port, per_second=20, handler=QUICK)
        for _ in range(3):
            time.sleep(1)
            before = {worker: len(worker.book.acks) for worker in workers}
            proxy.freeze()
            frozen = time.monotonic()
            stage.recoveries.append(stage.first_ack(frozen + 0.05, before) - frozen)
            until(
                lambda before=before: all(len(w.book.acks) > n + 2 for w, n in before.items()), 5, "all are connected"
            )
        stage.rest()
        stage.stop()
        stage.assert_exact("F41", freezes=3)
    assert max(stage.recoveries) < 2 * QUICK["heartbeat_seconds"] + 1


def test_an_idle_session_and_one_that_was_forgotten(tmp_path):
    """F40: a session that the server forgot goes on; at worst something is twice, and no producer is dead."""
    config = TWO_SINKS + "\n[server]\nsession_ttl_seconds = 1\nidle_timeout_seconds = 1\nmax_sessions = 4\n"
    rng = seeded("F40")
    with Stage(tmp_path, config, seed=rng.randrange(1 << 30)) as stage, Proxy(stage.port) as proxy:
        (slow,) = stage.work(1, port=proxy.port, per_second=0.2)  # silent longer than anything is remembered
        time.sleep(2)
        proxy.reset_all()
        time.sleep(3)
        stage.work(8, count=20)  # more sessions than are remembered
        time.sleep(4)
        proxy.reset_all()
        until(lambda: slow.book.emitted >= 4, 30, "it goes on")
        stage.rest()
        stage.stop()
        verdicts = stage.figures("F40")
        for verdict in verdicts.values():
            assert verdict.lost_emitted == verdict.found.altered == verdict.found.torn == verdict.unknown == 0
        say("F40", twice=verdicts["all"].found.twice)
