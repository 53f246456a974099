"""The handler where gevent has replaced threads and sockets: its sender is a greenlet then, or still a thread."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle import Verdict
from programs import Program
from running import serve

pytest.importorskip("gevent", reason="gevent is not installed here")

WORKER = Path(__file__).parent / "gevent_worker.py"


@pytest.mark.parametrize("when", ["early", "late"])
def test_two_hundred_forks_amid_greenlets(tmp_path, when):
    """Eight greenlets log while 200 children are forked, and eight in each: no deadlock, nothing lost or twice."""
    with serve(tmp_path, None, "--no-stdout") as server:
        result = Program(when, "storm", server.port, 200, 8, file=WORKER).result(timeout=110)
        assert server.stop() == 0
        verdict = Verdict(server.records())
    assert result["codes"] == [0] * 200
    children = {f"child{n}.{thread}": 5 for n in range(200) for thread in range(8)}
    late = {"late": 1} if when == "late" else {}
    verdict.assert_exact(children | result["emitted"] | late)


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize(("how", "more"), [("normal", 0), ("exception", 0), ("fork", 0), ("thread", 1)])
def test_no_record_is_lost_at_an_exit(tmp_path, when, how, more):
    """The last flush of a process runs its greenlets."""
    with serve(tmp_path, None, "--no-stdout") as server:
        program = Program(when, "exits", server.port, how, 200, file=WORKER)
        program.result(code=1 if how == "exception" else 0)
        assert server.stop() == 0
        verdict = Verdict(server.records())
    assert len(verdict.seen["main"]) == 200 + more
    assert verdict.lost({"main": 200 + more}) == verdict.twice == verdict.dropped == 0
    assert how != "fork" or verdict.seen["child"] == [0]
    assert "KeyError" not in program.stderr


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_flood_waits_for_room(tmp_path, when):
    """A greenlet that logs without a pause lets the sender work when the buffer is full: nothing is dropped."""
    with serve(tmp_path, None, "--no-stdout") as server:
        options = ("--buffer-bytes", 1 << 18)
        result = Program(when, "flood", server.port, "w", 20_000, *options, file=WORKER).result()
        assert server.stop() == 0
        verdict = Verdict(server.records())
    assert sum(result["stats"]["dropped"].values()) == 0
    assert len(verdict.seen["w"]) == 20_000
