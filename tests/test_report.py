"""The server's own lines: one of a kind a second, bounded, in ASCII, and none forgotten in the count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolog.report import INTERVAL_SECONDS, MAX_TEXT_CHARS, Report


class World:
    """A clock that stands still until it is moved, and the lines written."""

    def __init__(self):
        self.now = 0.0
        self.lines = []
        self.report = Report(lambda: self.now, self.lines.append)


@pytest.fixture
def world():
    return World()


def test_a_line_names_the_program(world):
    """Each line begins with the program's name and ends with one newline."""
    world.report("start", "listening on 127.0.0.1:9020")
    assert world.lines == ["aiolog: listening on 127.0.0.1:9020\n"]
    assert world.report.lines == 1


def test_the_first_line_of_a_kind_is_never_held_back(world):
    """Neither at the clock's zero, where a machine has just started, nor because of other kinds."""
    for number in range(10):
        world.report(f"kind {number}", str(number))
    assert len(world.lines) == 10


def test_a_flood_becomes_a_line_a_second_and_a_count(world):
    """A thousand bad frames in a second are one line, and the next line says how many it stands for."""
    for number in range(1000):
        world.report("frame", f"bad frame {number}")
    assert world.lines == ["aiolog: bad frame 0\n"]
    world.now += INTERVAL_SECONDS
    world.report("frame", "another")
    assert world.lines[1:] == ["aiolog: another (999 more like it were not shown)\n"]
    world.now += INTERVAL_SECONDS
    world.report("frame", "a last one")
    assert world.lines[2:] == ["aiolog: a last one\n"]


def test_kinds_do_not_silence_each_other(world):
    """A flood of one kind leaves the others alone."""
    for _ in range(5):
        world.report("frame", "bad frame")
    world.report("disk", "the disk is full")
    assert world.lines == ["aiolog: bad frame\n", "aiolog: the disk is full\n"]


@given(st.text(st.characters(), max_size=MAX_TEXT_CHARS * 2))
def test_whatever_a_peer_sent_is_one_line_of_printable_ascii(text):
    """A peer's text in a line can neither forge another line nor drive a terminal (S13, S34)."""
    world = World()
    world.report("peer", text)
    (line,) = world.lines
    assert line.endswith("\n")
    assert line[:-1].isascii()
    assert line[:-1].isprintable()
    assert len(line) <= MAX_TEXT_CHARS * len("\\U0001f600") + len("aiolog: \n")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=50))
def test_every_call_is_shown_or_counted(calls):
    """Lines shown and numbers told, and what is still to be told, add up to the calls, at any pace."""
    world = World()
    last = {}
    for kind, seconds in calls:
        world.now += seconds
        shown = len(world.lines)
        world.report(kind, kind)
        due = kind not in last or world.now - last[kind] >= INTERVAL_SECONDS
        assert (len(world.lines) > shown) == due
        if due:
            last[kind] = world.now
    told = sum(int(line.split("(")[1].split()[0]) for line in world.lines if "(" in line)
    assert len(world.lines) + told + sum(world.report._left_out.values()) == len(calls)
    assert world.report.lines == len(world.lines)
