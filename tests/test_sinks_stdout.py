"""The stdout sink on real pipes: it colors, it drops, and it never holds up anything."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from aiolog import formatting
from aiolog.fanout import Delivery
from aiolog.sinks import SinkThread
from aiolog.sinks.stdout import StdoutSink, colored, wants_color
from aiolog.source import Site, Source

MESSAGE = formatting.text("%(message)s")
LEVEL = formatting.text("%(levelname)s %(message)s")


def make_source(level: int = 20, name: str = "INFO") -> Source:
    source = Source()
    source.define(("app", level, name, "/app.py", "app.py", "app", 1, "f"))
    source.define((1, "MainThread"))
    return source


SOURCE = make_source()


def deliver(*messages: str, source: Source = SOURCE, notices=()) -> Delivery:
    return Delivery(source, [(1.0, 0, 1, m) for m in messages], notices=[(1.0, 0, 1, m) for m in notices])


@pytest.fixture
def pipe():
    """Give both ends of a pipe, and close what a test left open."""
    reader, writer = os.pipe()
    ends = {"reader": reader, "writer": writer}
    yield ends
    for descriptor in ends.values():
        os.close(descriptor)


def drain(reader: int, count: int) -> bytes:
    data = b""
    while len(data) < count and select.select([reader], [], [], 5)[0]:  # nothing more comes, when a test fails
        data += os.read(reader, 65536)
    return data


# -- writing


async def test_a_group_comes_out_in_order(pipe):
    """Notices stand before the records of their delivery; records and bytes are counted."""
    sink = StdoutSink("console", MESSAGE, descriptor=pipe["writer"], warn=str)
    await sink.open()
    await sink.write([deliver("a", "b", notices=["n"]), deliver("ä")])
    await sink.close()
    assert os.read(pipe["reader"], 100).decode() == "n\na\nb\nä\n"
    assert (sink.records_written, sink.bytes_written, sink.records_dropped) == (4, 9, 0)


async def test_what_a_sink_does_not_take_is_not_written(pipe):
    """A group of records of other sinks costs no call."""
    sink = StdoutSink("console", formatting.text("%(message)s", accepts=lambda _site: False), descriptor=-1, warn=str)
    await sink.write([deliver("a")])
    assert (sink.records_written, sink.records_dropped, sink.write_errors) == (0, 0, 0)


# -- a reader that stops


async def test_a_reader_that_stops_holds_up_only_the_lane(pipe):
    """The loop runs on, the lane waits, and what was handed over comes out when the reader goes on (fault F26)."""
    sink = StdoutSink("console", MESSAGE, descriptor=pipe["writer"], warn=str)
    line = "x" * 1000
    writing = asyncio.ensure_future(sink.write([deliver(*[line] * 1000)]))
    for _ in range(3):  # the loop turns, and would time out here if it were held up
        await asyncio.wait_for(asyncio.to_thread(os.getpid), 5)
    assert not writing.done()
    data = await asyncio.to_thread(drain, pipe["reader"], 1_001_000)
    await writing
    assert data == f"{line}\n".encode() * 1000


async def test_a_cancelled_write_still_comes_out_in_order(pipe):
    """What the thread has it writes, and what is written later stands behind it."""
    sink = StdoutSink("console", MESSAGE, descriptor=pipe["writer"], warn=str)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sink.write([deliver("x" * 100_000)]), 0.01)
    later = asyncio.ensure_future(sink.write([deliver("later")]))
    assert await asyncio.to_thread(drain, pipe["reader"], 100_007) == b"x" * 100_000 + b"\nlater\n"
    await later


async def test_a_reader_that_is_gone_disables_the_sink(pipe):
    """A closed pipe raises nothing: that is said once, and this group and all later ones are counted as dropped."""
    warned = []
    sink = StdoutSink("console", MESSAGE, descriptor=pipe["writer"], warn=warned.append)
    os.close(pipe.pop("reader"))
    await sink.write([deliver("a", "b")])
    await sink.write([deliver("c")])
    assert (sink.disabled, sink.records_dropped, sink.records_written, sink.write_errors) == (True, 3, 0, 1)
    (text,) = warned
    assert text.startswith("sink console lost its output: Broken pipe. Nothing more is written there")


async def test_output_that_is_closed_from_the_start_disables_the_sink():
    """``aiolog serve >&-`` serves all the same."""
    sink = StdoutSink("console", MESSAGE, descriptor=-1, warn=str)
    await sink.open()
    await sink.write([deliver("a")])
    assert (sink.disabled, sink.records_dropped) == (True, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
async def test_a_full_disk_costs_the_group_and_not_the_sink():
    """Output cannot be taken back, so it is not tried again; there may be room later."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    warned = []
    sink = StdoutSink("console", MESSAGE, descriptor=descriptor, warn=warned.append)
    await sink.write([deliver("a")])
    os.close(descriptor)
    assert ["No space left on device. What it refuses does not come again" in text for text in warned] == [True]
    assert (sink.disabled, sink.records_dropped, sink.write_errors) == (False, 1, 1)


async def test_a_stream_that_somebody_made_non_blocking_is_waited_for(pipe):
    """Another process on the same terminal may do that; nothing is lost by it."""
    os.set_blocking(pipe["writer"], False)
    sink = StdoutSink("console", MESSAGE, descriptor=pipe["writer"], warn=str)
    writing = asyncio.ensure_future(sink.write([deliver("x" * 300_000)]))
    assert len(await asyncio.to_thread(drain, pipe["reader"], 300_001)) == 300_001
    await writing
    assert sink.records_written == 1


@pytest.mark.timeout(30)
def test_the_exit_does_not_hang_on_a_stuck_reader():
    """A process whose stdout nobody reads ends at once, with the write still under way."""
    program = """
import asyncio
from aiolog import formatting
from aiolog.fanout import Delivery
from aiolog.source import Source
from aiolog.sinks.stdout import StdoutSink

async def main():
    sink = StdoutSink("console", formatting.text("%(message)s"), warn=print)
    try:
        site = ("app", 20, "INFO", "/app.py", "app.py", "app", 1, "f")
        await asyncio.wait_for(sink.write([Delivery(Source(), [(1.0, site, (1, "t"), "x" * 1_000_000)])]), 0.1)
    except TimeoutError:
        await sink.close()
        raise SystemExit(3)

asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.wait(20) == 3
    finally:
        process.kill()
        process.communicate()


# -- the thread


async def test_a_sink_thread_keeps_the_order_and_hands_on_errors():
    """Calls run one after another; an exception belongs to who waits; after the end nothing is taken."""
    thread, seen = SinkThread("test"), []
    calls = [thread.submit(seen.append, i) for i in range(100)]
    failed = thread.submit(int, "x")
    thread.shutdown(wait=True)
    assert seen == list(range(100))
    assert all(call.done() for call in calls)
    with pytest.raises(ValueError):
        failed.result()
    with pytest.raises(RuntimeError):
        thread.submit(print)


# -- color


@pytest.mark.parametrize(
    ("isatty", "environ", "expected"),
    [
        (True, {}, True),
        (True, {"TERM": "xterm-256color"}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),  # only a value counts, says no-color.org
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_color_is_for_terminals_that_want_it(isatty, environ, expected):
    """A terminal, and no NO_COLOR."""
    assert wants_color(isatty, environ) is expected


@pytest.mark.parametrize(
    ("level", "name", "code"),
    [
        (5, "TRACE", "36"),
        (10, "DEBUG", "36"),
        (20, "INFO", "32"),
        (25, "NOTICE", "32"),
        (30, "WARNING", "33"),
        (40, "ERROR", "1;31"),
        (50, "CRITICAL", "1;37;41"),
        (10**9, "DOOM", "1;37;41"),
    ],
)
async def test_the_level_is_colored(pipe, level, name, code):
    """The level's name and nothing else, in a color that the level decides."""
    sink = StdoutSink("console", LEVEL, descriptor=pipe["writer"], color=True, warn=str)
    await sink.write([deliver(f"{name} happens", source=make_source(level, name))])
    assert os.read(pipe["reader"], 100).decode() == f"\x1b[{code}m{name}\x1b[0m {name} happens\n"


async def test_without_color_there_is_no_escape_sequence(pipe):
    """The default is plain."""
    sink = StdoutSink("console", LEVEL, descriptor=pipe["writer"], warn=str)
    await sink.write([deliver("m")])
    assert os.read(pipe["reader"], 100) == b"INFO m\n"


def test_a_site_in_place_is_colored_too():
    """Records beyond the dictionary bring their site along, as a list or a tuple."""
    fields = ("app", 40, "ERROR", "/app.py", "app.py", "app", 1, "f")
    for site in (fields, list(fields), Site(*fields)):
        assert colored("ERROR m\n", SOURCE, (1.0, site, 1, "m")) == "\x1b[1;31mERROR\x1b[0m m\n"


@pytest.mark.parametrize(
    "wire",
    [
        (),
        (1.0, 99, 1, "m"),
        (1.0, None, 1, "m"),
        (1.0, 1, 1, "m"),
        (1.0, (), 1, "m"),
        (1.0, ("app", "high", "INFO", 0, 0, 0, 0, 0), 1, "m"),
        (1.0, ("app", 20, None, 0, 0, 0, 0, 0), 1, "m"),
        (1.0, ("app", 20, "", 0, 0, 0, 0, 0), 1, "m"),
        (1.0, ("app", 20, "NOWHERE", 0, 0, 0, 0, 0), 1, "m"),
        (1.0, ("app", 20, "\x1b[2J", 0, 0, 0, 0, 0), 1, "m"),
        (1.0, {"a": 1}, 1, "m"),
    ],
)
def test_a_record_of_any_form_can_be_colored(wire):
    """Whatever a peer sends, the text comes out as the format made it."""
    assert colored("INFO m\n", SOURCE, wire) == "INFO m\n"
