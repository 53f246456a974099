"""Logging from where one should not: no deadlock, and every record delivered, under every interpreter found."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from interpreters import every_interpreter
from oracle import Verdict
from running import serve

PLACES = Path(__file__).parent / "places.py"


@every_interpreter
@pytest.mark.parametrize(
    ("place", "spool"),
    [
        pytest.param(place, spool, id=f"{place}-spool" if spool else place, marks=pytest.mark.long if is_long else ())
        for place in ("signals", "collector", "forks", "atexit", "others")
        for spool in (False, True)
        for is_long in [spool and place != "forks"]
    ],
)
def test_every_record_arrives(tmp_path, python, place, spool):
    """From signal handlers, __del__, weakref callbacks, at-fork hooks, atexit, emits, filters and __str__."""
    with serve(tmp_path, None, "--no-stdout") as server:
        done = subprocess.run(
            [python, "-W", "ignore::DeprecationWarning", PLACES, str(server.port), place],
            env={**os.environ, **({"AIOLOG_TEST_SPOOL": str(tmp_path / "spool")} if spool else {})},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        emitted = json.loads(done.stdout)
        assert server.stop() == 0
        verdict = Verdict(r for r in server.records() if r["logger"] != "worker.inner")
    assert verdict.lost(emitted) == verdict.twice == verdict.dropped == 0
    assert {voice: len(numbers) for voice, numbers in verdict.seen.items()} == emitted
    assert done.stderr == ""
    # A child that leaves by os._exit has flushed, and yet not cleaned up.
    assert not spool or place == "forks" or list((tmp_path / "spool").iterdir()) == []
    assert all(count > 1 for count in emitted.values()) or place in ("forks", "atexit")
