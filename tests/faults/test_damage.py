"""F6, F7: what stands on the disk is torn, zeroed, flipped, older or newer than it should be, or gone."""

from __future__ import annotations

import os
import shutil

import pytest
from judge import Found
from load import TWO_SINKS, Stage, say, seeded, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

START_SECONDS = 2.0
SINKS = {"all": "all.log", "errors": "errors.log"}


def cut_short(path, rng):
    """Lose the last 37 bytes."""
    os.truncate(path, path.stat().st_size - 37)


def append_zeros(path, rng):
    """Grow by 4 KiB of zeros, as a file whose size reached the disk before its data."""
    with path.open("ab") as file:
        file.write(bytes(4096))


def zero_the_end(path, rng):
    """Replace the last 1,000 bytes by zeros."""
    size = path.stat().st_size
    os.truncate(path, size - 1_000)
    os.truncate(path, size)


def append_garbage(path, rng):
    """Grow by bytes that are no text."""
    with path.open("ab") as file:
        file.write(b"\xff" * 100)


def flip_a_bit(path, rng):
    """Change one bit in the middle, but not a line's end."""
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    while data[at] == 10 or data[at] ^ 1 == 10:
        at += 1
    data[at] ^= 1
    with path.open("r+b") as file:  # in place: another inode would be another file
        file.write(data)


DAMAGES = {  # what is done, and how many records of a sink it destroys at most
    "cut short": (cut_short, 1),
    "zeros appended": (append_zeros, 0),
    "end zeroed": (zero_the_end, 6),  # the shortest line here has more than 200 bytes
    "garbage appended": (append_garbage, 0),
    "a bit flipped": (flip_a_bit, 2),  # in a record's head: who parses takes it for a line of the record before
}


@pytest.mark.parametrize("sinks", [("all",), ("errors",), ("all", "errors")], ids="+".join)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_costs_what_is_damaged(tmp_path, damage, sinks):
    """F6: it starts in time, keeps every whole line, moves what is torn aside, and writes nothing twice."""
    do, destroyed = DAMAGES[damage]
    rng = seeded(f"F6-{damage}-{sinks}")
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        stage.work(2, per_second=300)
        live = {sink: tmp_path / "logs" / SINKS[sink] for sink in sinks}
        for path in live.values():
            until(lambda path=path: path.exists() and path.stat().st_size > 20_000, 20, "there is something to damage")
        stage.kill()
        for path in live.values():
            do(path, rng)
        stage.restart_until_acked()
        stage.finish()
        for sink, verdict in stage.figures("F6", damage=damage.replace(" ", "_"), damaged="+".join(sinks)).items():
            found, hurt = verdict.found, sink in sinks
            assert found.twice == found.disorder == found.said_dropped == verdict.unknown == 0
            assert verdict.lost_emitted <= (destroyed if hurt else 0)
            # A flipped bit may make a record's first line one that no parser takes, and its message another one.
            assert max(found.torn, found.altered, found.foreign) <= (hurt and damage == "a bit flipped")
            torn = list((tmp_path / "logs").glob(f"{SINKS[sink]}.torn-*"))
            assert len(torn) == (hurt and damage != "a bit flipped")
        assert max(stage.recoveries) < START_SECONDS


def ledgers(logs):
    """Return the ledgers by the live files that they belong to."""
    found = {name: [p for p in logs.iterdir() if p.name.startswith(f".{name}.ledger")] for name in SINKS.values()}
    assert all(found.values()), f"no ledger beside each file: {sorted(p.name for p in logs.iterdir())}"
    return [path for paths in found.values() for path in paths]


def remove(path, old):
    path.unlink()


def empty(path, old):
    os.truncate(path, 0)


def zero(path, old):
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


def garble(path, old):
    path.write_bytes(os.urandom(max(100, path.stat().st_size)))


def cut_in_half(path, old):
    os.truncate(path, path.stat().st_size // 2)


def flip(path, old):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def put_back_older(path, old):
    shutil.copy(old / path.name, path)


HARMS = {
    "removed": remove,
    "empty": empty,
    "zeroed": zero,
    "garbled": garble,
    "cut in half": cut_in_half,
    "a bit flipped": flip,
    "of an earlier moment": put_back_older,
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_ledger_costs_duplicates_at_most(tmp_path, harm):
    """F7: it starts in time, loses nothing, writes at most twice what was not acked, and says so once a sink."""
    rng = seeded(f"F7-{harm}")
    logs, old = tmp_path / "logs", tmp_path / "old"
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        workers = stage.work(2, per_second=300)
        until(lambda: sum(w.book.acked for w in workers) > 200, 20, "something is acked")
        shutil.copytree(logs, old)
        more = sum(w.book.acked for w in workers) + 300
        until(lambda: sum(w.book.acked for w in workers) > more, 20, "more is acked")
        stage.kill()
        acked = sum(w.book.acked for w in workers)
        for path in ledgers(logs):
            if (old / path.name).exists() or harm != "of an earlier moment":
                HARMS[harm](path, old)
        owed = sum(w.book.emitted for w in workers) - acked
        stage.restart_until_acked()
        said = stage.server.stderr
        stage.finish()
        lines = sum(": sink " in line and "ledger" in line for line in said.splitlines())
        say("F7", harm=harm.replace(" ", "_"), owed=owed, said_lines=lines)
        for verdict in stage.figures("F7", harm=harm.replace(" ", "_")).values():
            found = verdict.found
            assert verdict.lost_emitted == found.altered == found.torn == verdict.unknown == found.said_dropped == 0
            assert found.twice <= owed + 64  # what was logged between the two looks
        if harm in ("garbled", "zeroed"):
            assert lines == len(SINKS)
        assert max(stage.recoveries) < START_SECONDS


def test_a_ledger_that_is_newer_than_the_data(tmp_path):
    """F7: data of an earlier moment under a ledger of a later one: new records are taken, nothing comes twice."""
    rng = seeded("F7-newer")
    logs, old = tmp_path / "logs", tmp_path / "old"
    with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
        workers = stage.work(2, per_second=300)
        until(lambda: sum(w.book.acked for w in workers) > 200, 20, "something is acked")
        shutil.copytree(logs, old)
        more = sum(w.book.acked for w in workers) + 300
        until(lambda: sum(w.book.acked for w in workers) > more, 20, "more is acked")
        stage.kill()
        gone_from = {w.name: w.book.acked for w in workers}
        assert ledgers(logs)
        for name in SINKS.values():
            os.truncate(logs / name, (old / name).stat().st_size)  # in place, as after a power cut
        stage.restart_until_acked()
        stage.finish()
        for verdict in stage.figures("F7-newer").values():
            assert verdict.found.twice == verdict.found.altered == verdict.found.torn == verdict.unknown == 0
        found = Found(logs / "all.log")
        for worker in workers:  # what was destroyed is gone; what was not acked before, and all after, is there
            there = set(found.seen[worker.name])
            assert set(range(gone_from[worker.name], worker.book.emitted)) <= there
