"""The judge itself: it must see each kind of harm, or a suite that is green says nothing."""

from __future__ import annotations

import gzip

import pytest
from judge import Book, Found, Verdict
from load import TWO_SINKS, Stage

LINES = 40


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Yield the live files of a run that went well, and its books."""
    directory = tmp_path_factory.mktemp("judge")
    with Stage(directory, TWO_SINKS) as stage:
        for worker in stage.work(2, count=LINES):
            assert worker.wait() == 0, worker.stderr
        stage.stop()
        stage.assert_exact("judge")
        books = stage.books
    return directory / "logs", books


def swap(lines):
    same = [n for n, line in enumerate(lines) if b" w0 " in line or b'"w0 ' in line]
    a, b = same[3], same[7]
    lines[a], lines[b] = lines[b], lines[a]


HARMS = {
    "lost_emitted": lambda lines: lines.pop(5),
    "twice": lambda lines: lines.append(lines[-1]),
    "disorder": swap,
    "altered": lambda lines: lines.__setitem__(4, lines[4].replace(b"x", b"y")),
    "torn": lambda lines: lines.__setitem__(4, lines[4][9:]),
}


@pytest.mark.parametrize("sink", ["all", "errors"])
@pytest.mark.parametrize("harm", HARMS)
def test_the_judge_sees_each_harm(tmp_path, written, sink, harm):
    """A file with one harm done to it is found guilty of that harm."""
    logs, books = written
    lines = (logs / f"{sink}.log").read_bytes().splitlines(keepends=True)
    if sink == "errors":  # a record is a line with its continuations
        records = []
        for line in lines:
            if line.startswith(b"\t| "):
                records[-1] += line
            else:
                records.append(line)
        lines = records
    HARMS[harm](lines)
    (tmp_path / f"{sink}.log.20260101T000000Z.0000.gz").write_bytes(gzip.compress(b"".join(lines[:5])))
    (tmp_path / f"{sink}.log").write_bytes(b"".join(lines[5:]))
    verdict = Verdict(Found(tmp_path / f"{sink}.log", text=sink == "errors"), books, errors=sink == "errors")
    assert verdict.faults().get(harm, verdict.lost_emitted) > 0, verdict.figures()
    with pytest.raises(AssertionError):
        verdict.assert_exact()


def test_the_judge_sees_a_lost_ack_and_a_record_that_nobody_logged(written):
    """Books that claim more, or less, than is there."""
    logs, books = written
    found = Found(logs / "all.log")
    assert Verdict(found, books | {"w0": Book(LINES + 1, LINES + 1, [])}).lost_acked == 1
    assert (
        Verdict(found, books | {"w0": Book(LINES - 3, 0, [])}).unknown == 2
    )  # one more than a kill may leave unwritten
    assert Verdict(found, {"w0": books["w0"]}).unknown == 1
