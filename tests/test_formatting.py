"""Formats against the standard library's own output, and against everything a peer can send."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from records import (
    NOON,
    NOON_NS,
    NOON_SECOND,
    START,
    Worker,
    datefmts,
    floats,
    nanoseconds,
    nasty_texts,
    parse_logfmt,
    reference_escape,
    standard,
    templates,
    workers,
)

from aiolog import service
from aiolog.config import parse
from aiolog.errors import ConfigError
from aiolog.formatting import CONTINUATION, ecs, json_lines, logfmt, otel, text, whole_records
from aiolog.record import STANDARD_ATTRIBUTES, Encoder
from aiolog.source import Site, Source

USUAL_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
ALL_FORMATS = [text(USUAL_TEXT), text(USUAL_TEXT, multiline="escape"), json_lines(), logfmt(), ecs(), otel(),
               json_lines(flatten_extras=True, fields=["fields", "exc", "task", "msg", "ts", "thread"])]  # fmt: skip

# -- text: equal to the standard formatter


@settings(max_examples=200, deadline=None)
@given(workers(), templates(), datefmts)
def test_raw_text_is_what_the_standard_formatter_gives(worker, template, datefmt):
    """Every attribute, style and conversion: first record, later record and record in place are the same bytes."""
    style, template = template
    try:
        expected = standard(worker, template, style, datefmt) + "\n"
    except (TypeError, ValueError):
        return  # None where a number should be: another test says what we do there
    layout = text(template, style=style, datefmt=datefmt, escaping="raw")
    assert worker.lines(layout) == [expected] * 3


@settings(max_examples=200, deadline=None)
@given(workers(texts=nasty_texts), templates(), datefmts)
def test_safe_text_is_the_same_text_escaped(worker, template, datefmt):
    """One line at the margin, nothing that a terminal obeys, always UTF-8, and nothing else is changed."""
    style, template = template
    try:
        expected = reference_escape(standard(worker, template, style, datefmt)) + "\n"
    except (TypeError, ValueError):
        return
    for line in worker.lines(text(template, style=style, datefmt=datefmt)):
        assert line == expected
        assert [piece for piece in line.splitlines() if not piece.startswith(CONTINUATION)] == line.splitlines()[:1]
        assert line.count("\n") == len(line.splitlines())
        line.encode()


@pytest.mark.parametrize("attribute", ["name", "levelname", "pathname", "filename", "module", "funcName",
                                       "threadName", "processName", "taskName", "message", "exc_text", "stack_info",
                                       "user"])  # fmt: skip
@pytest.mark.parametrize("separator", [*"\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", "\r\n"])
def test_no_attribute_forges_a_line(attribute, separator):
    """A second line in any attribute stays behind the mark of a continuation (CWE-117)."""
    forged = f"ok{separator}2026-01-01 00:00:00 CRITICAL root: forged"
    site = dict(zip(Site._fields, ("n", 20, "INFO", "p", "f", "m", 1, "fn"), strict=True))
    given = {"message": "hello"}
    if attribute in site:
        site[attribute] = forged
    elif attribute == "threadName":
        given["thread"] = (1, forged)
    elif attribute == "user":
        given["extra"] = {"user": forged}
    else:
        given[attribute] = forged
    worker = Worker(site=tuple(site.values()), **given)
    template = ("%(asctime)s %(levelname)s %(name)s %(pathname)s %(filename)s %(module)s %(funcName)s %(threadName)s "
                "%(processName)s %(taskName)s %(user)s %(message)s")  # fmt: skip
    by_template = text(template)
    for layout in (by_template, json_lines(), logfmt()):
        for line in worker.lines(layout):
            margins = [piece for piece in line.splitlines() if not piece.startswith(CONTINUATION)]
            assert len(margins) == 1
            assert not margins[0].startswith("2026-01-01")
            assert ("forged" in line) == (layout is by_template or attribute not in ("filename", "module"))


@pytest.mark.parametrize(
    "order", ["\x1b]0;pwn\x07", "\x1b]52;c;aGk=\x07", "\x1b[2J", "\x9b31m", "a\x08b", "\u202eexe", "\u061c"]
)
def test_no_terminal_takes_an_order(order):
    """Escape sequences, C1 controls, backspace and bidi overrides arrive as their escapes."""
    for layout in ALL_FORMATS:
        for line in Worker(message=order, site=(order, 20, "INFO", "p", "f", "m", 1, None)).lines(layout):
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u202e]", line)


def test_a_message_is_never_a_template():
    """Percent signs, braces and dollars in a message appear as they are."""
    message = "%s %n %(password)s {0.__class__} ${jndi:ldap://x} $name %"
    for style, template in [("%", "%(message)s"), ("{", "{message}"), ("$", "$message")]:
        assert Worker(message=message).lines(text(template, style=style)) == [message + "\n"] * 3


def test_the_constants_of_a_site_are_never_a_template():
    """Signs of all three styles in a logger's name appear as they are."""
    worker = Worker(site=("%(x)s%{0}$y", 20, "INFO", "p", "f", "m", 1, None))
    for style, template in [("%", "%(name)s %(message)s"), ("{", "{name} {message}"), ("$", "$name $message")]:
        assert worker.lines(text(template, style=style)) == ["%(x)s%{0}$y hello\n"] * 3


def test_a_first_line_does_not_look_like_a_continuation():
    """A tab at the margin is escaped, wherever it comes from."""
    assert Worker(message="\t| x").lines(text("%(message)s")) == ["\\x09| x\n"] * 3
    assert Worker(message="| x").lines(text("\t%(message)s")) == ["\\x09| x\n"] * 3
    assert Worker(message="| x", thread=(1, "\t")).lines(text("%(threadName)s%(message)s")) == ["\\x09| x\n"] * 3
    batch = [(NOON, 0, 1, "| x")] * 4  # all in a second whose text is not for the margin
    assert text("%(asctime)s%(message)s", datefmt="\t")(Worker().source, batch) == ["\\x09| x\n"] * 4
    assert Worker(message="a\tb").lines(text("%(message)s")) == ["a\tb\n"] * 3


def test_a_traceback_is_indented():
    """Continuation lines carry their mark; a text that ends in a newline is not given another one, as in logging."""
    worker = Worker(message="it broke", exc_text="Traceback:\n  boom", stack_info="Stack:\n  here")
    assert worker.lines(text("%(levelname)s %(message)s"))[1] == (
        "INFO it broke\n\t| Traceback:\n\t|   boom\n\t| Stack:\n\t|   here\n"
    )
    raw = text("%(message)s", escaping="raw")
    assert Worker(message="a\n", exc_text="b\n", stack_info="c").lines(raw) == ["a\nb\nc\n"] * 3


def test_raw_text_keeps_lone_surrogates():
    """What raw gives can be encoded with surrogatepass and is what the worker had."""
    assert Worker(message="\ud800\x1b").lines(text("%(message)s", escaping="raw")) == ["\ud800\x1b\n"] * 3


def test_a_template_of_many_lines_is_indented_too():
    """A line break in the template itself, before any field or between two, begins a continuation."""
    worker = Worker(message="x")
    template = "%(levelname)s\n%(asctime)s\n%(msecs)03d %(thread)d\n%(threadName)s\n%(message)s\n"
    expected = "INFO\n\t| NOW\n\t| 250 7\n\t| MainThread\n\t| x\n\t| \n"
    assert worker.lines(text(template, datefmt="NOW")) == [expected] * 3


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"])
def test_local_time_follows_the_zone_over_its_changes(zone, monkeypatch):
    """The time is the standard formatter's in every hour around both changes of the clocks."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        layout = text("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S %Z%z", escaping="raw")
        for change in (1_774_746_000, 1_792_890_000, 1_775_311_200, 1_790_956_800):
            for minutes in range(-150, 151, 25):
                worker = Worker(created=change + minutes * 60 + 0.5)
                assert worker.lines(layout)[1] == standard(worker, "%(asctime)s %(message)s", "%",
                                                           "%Y-%m-%d %H:%M:%S %Z%z") + "\n"  # fmt: skip
    finally:
        monkeypatch.undo()
        time.tzset()


def test_records_of_many_moments_keep_their_own():
    """Seconds, milliseconds and both kinds of clocks may come in any order within one batch."""
    template = "%(asctime)s %(message)s"
    moments = [NOON, NOON + 0.001, NOON_NS, NOON - 1, NOON_NS - 1, NOON_NS + 10**9, NOON + 0.75, 0.0, NOON, -1.5, NOON]
    lines = text(template, escaping="raw")(Worker().source, [(created, 0, 1, "hello") for created in moments])
    assert lines == [standard(Worker(created=created), template, "%", None) + "\n" for created in moments]


@pytest.mark.parametrize(
    ("style", "template"),
    [
        ("%", "%(asctime)-26s|%(message)s"),
        ("%", "%(asctime)s %(message)-8s|"),
        ("%", "%(asctime)s %(message).3s|"),
        ("{", "{asctime:>26} {message}"),
        ("{", "{asctime} {message!r}"),
        ("%", "%(asctime)s %(name)s %(msecs)03d %(message)s"),
        ("%", "%(thread)d %(name)s %(threadName)s %(message)s"),
        ("%", "%(msecs)03d %(asctime)s %(message)s"),
        ("%", "%(threadName)s %(asctime)s %(message)s"),
        ("%", "%(asctime)s %(message)s %(threadName)s"),
        ("%", "%(message)s %(message)s"),
        ("%", "%(asctime)s,%(msecs)d/%(msecs)03d %(thread)d:%(threadName)s %(message)s"),
        ("%", "%(asctime)s %(asctime)s %(message)s"),
    ],
)
def test_no_order_of_fields_mixes_sites_threads_or_moments(style, template):
    """Two of each in one batch, in a template that nearly has the usual order."""
    found = [
        Worker(created=created, site=(name, 20, "INFO", "p", "f", "m", 1, "fn"), thread=thread, message=name + "-said")
        for created in (NOON, NOON_NS, NOON + 1.5, NOON_NS + 10**9)
        for name in ("a", "bb")
        for thread in ((1, "T1"), (2, "T2"))
    ]
    source = Source(start_time=START)
    numbers = {}
    for worker in found:
        for definition in (worker.site, worker.thread):
            if definition not in numbers:
                numbers[definition] = len(numbers)
                source.define(definition)
    batch = [(worker.created, numbers[worker.site], numbers[worker.thread], worker.message) for worker in found]
    layout = text(template, style=style)
    expected = [standard(worker, template, style, None) + "\n" for worker in found]
    assert layout(source, batch) == layout(source, batch) == expected


@pytest.mark.parametrize("created", [10**9 * NOON_SECOND + late for late in (999_999_999, 999_999_900, 999_999_000)])
def test_a_moment_that_rounds_up_is_shown_as_the_worker_shows_it(created):
    """From CPython 3.13 a float of nanoseconds may be the next second, and msecs then 0: the handler says so."""
    for template in ("%(asctime)s %(message)s", "%(msecs)03d %(message)s"):
        worker = Worker(created=created)
        assert worker.lines(text(template)) == [standard(worker, template, "%", None) + "\n"] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no moment before 1970")
@pytest.mark.parametrize("created", [-0.25, -1.5, -1e6 - 0.125, -1, -1_500_000_000])
def test_a_moment_before_1970_is_shown_as_the_standard_formatter_does(created):
    """Even its negative milliseconds."""
    worker = Worker(created=created)
    expected = standard(worker, "%(asctime)s %(msecs)d %(message)s", "%", None) + "\n"
    assert worker.lines(text("%(asctime)s %(msecs)d %(message)s")) == [expected] * 3


# The templates of the standard library's documentation, Django, gunicorn, Celery, uvicorn and this project.
USUAL = [
    "%(message)s",
    "%(levelname)s:%(name)s:%(message)s",
    "%(asctime)s - %(name)s - %(levelname)s - %(message)s",
    "%(asctime)s %(levelname)s %(processName)s[%(process)d] %(name)s: %(message)s",
    "%(levelname)s %(asctime)s %(module)s %(process)d %(thread)d %(message)s",
    "%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
    "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s",
    "%(asctime)s.%(msecs)03d %(levelname)-8s [%(threadName)s:%(thread)d] (%(filename)s:%(lineno)d) %(message)s",
    "%(asctime)s %(name)-15s %(levelname)-8s %(processName)-10s %(threadName)-12s %(message)s [%(taskName)s]",
]


@pytest.mark.parametrize("template", USUAL)
def test_usual_templates_take_the_fast_way(template, monkeypatch):
    """After the first record of a site nothing is rebuilt, not with a traceback, not with extras it does not show."""
    layout = text(template)
    worker = Worker()
    (first,) = layout(worker.source, [worker.wire()])
    monkeypatch.setattr(layout, "_slowly", None)
    monkeypatch.setattr(layout, "_rebuilt", None)
    rare = [{"extra": ["user", 5]}, {"exc_text": "E"}]
    lines = layout(worker.source, [worker.wire(), *((*worker.wire(), more) for more in rare)])
    assert lines == [first, first, first + CONTINUATION + "E\n"]


def test_structured_formats_take_the_fast_way(monkeypatch):
    """They rebuild no plain record, and none with a task, extras, a traceback or a stack."""
    full = Worker(exc_text="E", stack_info="S", taskName="T", extra={"a": 1, "trace_id": "ff"}, labels={"env": "prod"})
    plain = (NOON, 0, 1, 'a "quoted" one')
    for layout in ALL_FORMATS[2:]:
        first = layout(full.source, [full.wire(), full.wire(in_place=True)])
        (other,) = layout(full.source, [plain])
        monkeypatch.setattr(layout, "_slowly", None)
        monkeypatch.setattr(layout, "_rebuilt", None)
        assert layout(full.source, [full.wire(), plain, full.wire()]) == [first[0], other, first[1]]


# -- text: where the standard formatter would raise


def test_an_attribute_that_is_not_there_is_a_dash():
    """In every style, padded as text can be; under a conversion for numbers it is just the dash."""
    worker = Worker()
    assert worker.lines(text("%(user)s|%(user)-4s|%(user)05d|%(message)s")) == ["-|-   |-|hello\n"] * 3
    assert worker.lines(text("{user}|{user:>3}|{user:d}|{user.id}|{message}", style="{")) == ["-|  -|-|-|hello\n"] * 3
    assert worker.lines(text("$user|${user}|$message", style="$")) == ["-|-|hello\n"] * 3


def test_extras_stand_in_the_template_by_name():
    """Also one whose name is no identifier, and none of them changes the records beside it."""
    layout = text("%(http.status)s %(user)s %(message)s")
    worker = Worker(extra={"http.status": 200, "user": "ada"})
    bare = (NOON, 0, 1, "bare")
    assert layout(worker.source, [worker.wire(), bare, worker.wire(), bare]) == ["200 ada hello\n", "- - bare\n"] * 2


def test_a_value_that_a_field_cannot_show_is_marked():
    """The value stands behind a question mark; the rest of the line and the other records are as ever."""
    worker = Worker(extra={"count": "many"})
    lines = text("%(count)d %(message)s")(worker.source, [worker.wire(), (NOON, 0, 1, "next")])
    assert lines == ["?many hello\n", "- next\n"]
    none = Worker(site=("n", 20, "INFO", "p", "f", "m", 1, None))
    assert none.lines(text("{funcName:>4} {message}", style="{")) == ["   - hello\n"] * 3


@pytest.mark.parametrize("created", [math.nan, math.inf, -math.inf, 1e300, 1e18, -1e18, 2**63, -(2**63), None, "x", [],
                                     {}, True])  # fmt: skip
def test_a_moment_that_is_none_raises_nothing(created):
    """Such a record keeps its message, and the one after it its time."""
    for layout in [*ALL_FORMATS, text("%(created)f %(msecs)03d %(relativeCreated)d %(message)s")]:
        worker = Worker()
        good = layout(worker.source, [worker.wire()] * 2)[1]
        for _ in range(2):
            bad, after = layout(worker.source, [(created, 0, 1, "odd"), worker.wire()])
            assert "odd" in bad
            assert after == good


def test_a_moment_without_a_date_is_marked():
    """asctime shows the number that it cannot place; ts is null."""
    source = Worker().source
    batch = [(1e18, 0, 1, "x")] * 3
    assert text("%(asctime)s %(message)s")(source, batch) == ["?1e+18 x\n"] * 3
    batch = [(1e12, 0, 1, "x")] * 3  # the year 33,658
    assert [json.loads(line)["ts"] for line in json_lines()(source, batch)] == [None] * 3
    assert all(line.startswith("ts=null level=INFO") for line in logfmt()(source, batch))


@pytest.mark.parametrize(
    ("template", "style"),
    [
        ("no field", "%"),
        ("%(message)s 100%", "%"),
        ("%(message)s %s", "%"),
        ("%(message)*d", "%"),
        ("%(name)d %(message)s", "%"),
        ("%(message)s", "#"),
        ("no field", "{"),
        ("{message", "{"),
        ("{} {message}", "{"),
        ("{0} {message}", "{"),
        ("{message!z}", "{"),
        ("{name:d} {message}", "{"),
        ("{message:{lineno}}", "{"),
        ("no field", "$"),
        ("$message $", "$"),
        ("$message ${", "$"),
    ],
)
def test_a_template_that_fits_no_record_is_refused(template, style):
    """The operator hears of it when the server starts, with the template in the sentence."""
    with pytest.raises(ConfigError, match=re.escape(repr(template))):
        text(template, style=style)


@pytest.mark.parametrize("datefmt", ["\x00", "\ud800"])
def test_a_datefmt_that_strftime_refuses_is_refused(datefmt):
    """At the start, not at the first record."""
    try:
        time.strftime(datefmt)
    except ValueError:
        with pytest.raises(ConfigError):
            text("%(asctime)s %(message)s", datefmt=datefmt)


def test_an_empty_template_is_the_message():
    """As in logging."""
    for style in "%{$":
        assert Worker().lines(text("", style=style)) == ["hello\n"] * 3


# -- what is common to all formats


def test_texts_are_aligned_with_records_and_filtered_ones_are_empty():
    """Index by index; the filter is asked once for each site, by number, and for each record in place."""
    asked = []

    def accepts(site):
        asked.append(site.name)
        return site.name != "noise"

    straight, twice = partial(text, "%(message)s"), partial(text, "%(message)s%(message)s")
    for make in (straight, twice, json_lines, logfmt):
        source = Source(start_time=START)
        for name in ("app", "noise"):
            source.define((name, 20, "INFO", "p", "f", "m", 1, "fn"))
        source.define((7, "T"))
        layout = make(accepts=accepts)
        asked.clear()
        batch = [(NOON, site, 2, f"m{index}") for index, site in enumerate([0, 1, 0, 1, 1, 0])]
        batch[4] += ({"exc_text": "E"},)
        for _ in range(2):
            lines = layout(source, batch)
            assert [bool(line) for line in lines] == [True, False, True, False, False, True]
            assert all(f"m{index}" in line for index, line in enumerate(lines) if line)
        assert asked == ["app", "noise"]
        assert layout(source, [(NOON, ("noise", 20, "INFO", "p", "f", "m", 1, "fn"), 2, "x")]) == [""]


def test_two_formats_and_two_sources_do_not_mix():
    """Each keeps its plans with the source, under itself."""
    one, two = Worker(), Worker(site=("other", 30, "WARNING", "p", "f", "m", 1, "fn"))
    first, second = text("%(name)s %(message)s"), text("%(levelname)s %(message)s")
    for _ in range(2):
        assert first(one.source, [one.wire()]) == ["app.db hello\n"]
        assert second(one.source, [one.wire()]) == ["INFO hello\n"]
        assert first(two.source, [two.wire()]) == ["other hello\n"]


def test_records_in_place_leave_nothing_behind():
    """Only numbers of the dictionary, which is bounded, become plans."""
    for layout in ALL_FORMATS:
        worker = Worker()
        for index in range(50):
            site = (f"n{index}", 20, "INFO", "p", "f", "m", 1, "fn")
            assert layout(worker.source, [(NOON, site, (index, "T"), "x"), (NOON, index + 2, 1, "x")])
        assert not worker.source.plans.get(layout)


garbage = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | nasty_texts | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(nasty_texts, inner, max_size=3),
    max_leaves=8,
)
parts = [
    garbage | floats | nanoseconds,
    garbage | st.sampled_from([0, 1, 2, 3]) | st.tuples(*[garbage] * 8),
    garbage | st.sampled_from([0, 1, 2, 3]) | st.tuples(garbage, garbage),
    garbage | nasty_texts,
    garbage
    | st.dictionaries(st.sampled_from([*sorted(STANDARD_ATTRIBUTES), "extra"]) | nasty_texts, garbage, max_size=4)
    | st.lists(garbage, max_size=6).map(lambda flat: {"extra": tuple(flat)}),
]
anything = garbage | st.tuples(*parts[:4]) | st.tuples(*parts)
HOSTILE = [
    text("%(asctime)s %(levelname)s %(name)s: %(message)s"),
    text("%(asctime)s %(levelno)03d %(threadName)s %(message)s", datefmt="%H:%M"),
    text("%(thread)c%(levelno)c%(lineno)c%(message)s"),
    text("{message!r:>10}{created:.3f}{process:d}{extra}{user.x}{user[0]}", style="{"),
    text("%(asctime)s %(levelname)s %(user)s %(message)s", multiline="escape", defaults={"user": "\n"}),
    text("%(asctime)s %(threadName)s %(message)s", time_zone="Australia/Lord_Howe", datefmt="%H:%M:%S %Z"),
    json_lines(),
    logfmt(),
    ecs(flatten_extras=True),
    otel(),
    json_lines(fields=["fields", "exc", "task", "thread", "msg", "ts"], flatten_extras=True),
]


@settings(max_examples=200, deadline=None)
@given(st.lists(anything, min_size=1, max_size=5))
@example([(1.0, 0, 1, "\ud800", {"taskName": 5})])
@example([(1.0, 1, 1, "a site that is a thread")])
def test_whatever_a_peer_sends_becomes_one_record(batch):
    """No value in any place raises, forges a line or breaks the records beside it."""
    good = (NOON, 0, 1, "good")
    for layout in HOSTILE:
        worker = Worker(thread=(7, "\n"))
        (expected,) = layout(worker.source, [good])
        lines = layout(worker.source, [part for record in batch for part in (record, good)])
        assert lines[1::2] == [expected] * len(batch)
        for line in lines[::2]:
            assert line.endswith("\n")
            assert sum(not piece.startswith(CONTINUATION) for piece in line.splitlines()) == 1
            line.encode()


@settings(deadline=None)
@given(st.lists(anything, min_size=1, max_size=5))
def test_whatever_a_peer_sends_is_one_line_of_valid_json(batch):
    """Strict JSON in ASCII: no NaN, no raw control, an object with the keys in their order."""

    def refuse(constant):
        raise AssertionError(constant)

    for line in json_lines()(Worker().source, batch):
        assert line.isascii()
        assert len(line.splitlines()) == 1
        assert is_ordered(json.loads(line, parse_constant=refuse))
    for layout in (ecs(), otel(), ecs(flatten_extras=True), json_lines(flatten_extras=True, fields=["exc", "fields"])):
        for line in layout(Worker().source, batch):
            assert line.isascii()
            assert len(line.splitlines()) == 1
            assert isinstance(json.loads(line, parse_constant=refuse), dict)


# -- JSON

KEYS = ["ts", "level", "logger", "msg", "app", "host", "pid", "process", "thread", "task", "file", "line", "func",
        "exc", "stack", "trace_id", "span_id", "fields"]  # fmt: skip


def is_ordered(record):
    return [key for key in KEYS if key in record] == list(record)


def test_a_plain_record_as_json():
    """The keys in their order, without those that have nothing to say."""
    line = (
        '{"ts":"2026-11-23T08:01:02.250000Z","level":"INFO","logger":"app.db","msg":"hello","app":"shop","host":"web1",'
        '"pid":123,"process":"MainProcess","thread":"MainThread","file":"/srv/app/db.py","line":42,"func":"query"}\n'
    )
    assert Worker().lines(json_lines()) == [line] * 3


def test_a_full_record_as_json():
    """All keys in their order; labels and extras are the fields, and the extras win."""
    worker = Worker(
        labels={"env": "prod", "user": "label"},
        taskName="Task-1",
        exc_text="Traceback\n  boom",
        stack_info="Stack",
        extra={"user": "ada", "trace_id": "ff", "otelSpanID": "ee", "n": [1, {"x": None}]},
    )
    for line in worker.lines(json_lines()):
        record = json.loads(line)
        assert list(record) == KEYS
        assert record["task"] == "Task-1"
        assert record["exc"] == "Traceback\n  boom"
        assert (record["trace_id"], record["span_id"]) == ("ff", "ee")
        assert record["fields"] == {"env": "prod", "user": "ada", "n": [1, {"x": None}]}


def test_json_shows_what_differs_from_the_source():
    """A record of another process, and an extra with the name of a standard attribute, which is none."""
    source = Worker().source
    batch = [
        (NOON, 0, 1, "x", {"process": 5, "processName": "Fork"}),
        (NOON, 0, 1, "x", {"extra": ["levelno", 9, "a", 1]}),
    ]
    layout = json_lines()
    for _ in range(2):
        forked, odd = map(json.loads, layout(source, batch))
        assert (forked["pid"], forked["process"]) == (5, "Fork")
        assert odd["fields"] == {"a": 1}


def test_nothing_is_said_outside_a_span_or_an_app():
    """OpenTelemetry's "0" is dropped, and so is an empty app; a lifted name does not hide the other one."""
    record = json.loads(Worker(app="", extra={"otelTraceID": "0", "otelSpanID": "0"}).lines(json_lines())[1])
    assert not {"app", "trace_id", "span_id", "fields"} & record.keys()
    record = json.loads(Worker(extra={"trace_id": "a", "otelTraceID": "b"}).lines(json_lines())[1])
    assert (record["trace_id"], record["fields"]) == ("a", {"otelTraceID": "b"})


@settings(max_examples=100, deadline=None)
@given(workers(texts=nasty_texts))
def test_json_holds_what_the_record_held(worker):
    """Parsed, it has the worker's values, whichever way it was made."""
    first, later, in_place = worker.lines(json_lines())
    assert first == later == in_place
    record, fields = worker.record(), {}
    found = json.loads(first)
    assert is_ordered(found)

    def same(value):  # surrogates that make a pair become one character in any JSON
        return json.loads(json.dumps(value))

    assert found["msg"] == same(record.msg)
    assert (found["level"], found["logger"], found["func"]) == (
        same(record.levelname), same(record.name), same(record.funcName),
    )  # fmt: skip
    assert (found["pid"], found["process"], found["thread"]) == (
        record.process, same(record.processName), same(record.threadName),
    )  # fmt: skip
    assert (found["file"], found["line"]) == (same(record.pathname), record.lineno)
    assert found.get("task") == same(record.taskName or None)
    assert found.get("exc") == same(record.exc_text or None)
    assert found.get("stack") == same(record.stack_info or None)
    for name, value in worker.extra.items():
        odd = isinstance(value, float) and not math.isfinite(value)
        fields[name] = json.dumps(value) if odd else same(value)
    assert found.get("fields", {}) == {same(name): value for name, value in fields.items()}


@settings(max_examples=100, deadline=None)
@given(floats)
@example(NOON + 0.99999999)
@example(1.9999999)
@example(1 / 128)
def test_json_rounds_float_seconds_as_datetime_does(created):
    """ts is datetime.fromtimestamp of the worker's created, to the microsecond."""
    expected = datetime.fromtimestamp(created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    for line in Worker(created=created).lines(json_lines()):
        assert json.loads(line)["ts"] == expected


@settings(max_examples=100, deadline=None)
@given(nanoseconds | st.integers(-(10**15), -1))
def test_json_cuts_nanoseconds_exactly(created):
    """ts has the whole microseconds of an int moment, without a float in between."""
    expected = datetime.fromtimestamp(created // 10**9, UTC).isoformat()[:19] + f".{created % 10**9 // 1000:06d}Z"
    for line in Worker(created=created).lines(json_lines()):
        assert json.loads(line)["ts"] == expected


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        ([-math.inf], ["-Infinity"]),
        (b"\x00", "b'\\x00'"),
        ({1: {None: 2}}, {"1": {"None": 2}}),
        (2**64 - 1, 2**64 - 1),
        (-0.0, -0.0),
        (True, True),
        ("\ud800", "\ud800"),
        (1 << 20_000, "?"),
    ],
    ids=range(10),
)
def test_odd_values_become_json(value, shown):
    """NaN and infinity are text, keys are text, and what has no form at all is a question mark."""
    for line in Worker(extra={"value": value}).lines(json_lines()):
        assert json.loads(line)["fields"]["value"] == shown


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": inner}])
def test_depth_is_bounded(wrap):
    """Eight levels are kept as the handler sends them; a hundred thousand cost neither the record nor the stack."""
    deep = "core"
    for _ in range(8):
        deep = wrap(deep)
    assert '"core"' in Worker(extra={"deep": deep}).lines(json_lines())[1]
    assert '"[aiolog: cut, a ' in Worker(extra={"deep": [deep]}).lines(json_lines())[1]
    for _ in range(100_000):
        deep = wrap(deep)
    worker = Worker(extra={"deep": deep})
    for layout in (json_lines(), logfmt(), text("%(deep)s %(message)s"), text("{deep} {message}", style="{")):
        for line in worker.lines(layout):
            assert "hello" in line
            assert len(line) < 1000
    while isinstance(deep, (list, tuple, dict)):  # taken apart by hand: its destruction would nest as deep
        (deep,) = deep.values() if isinstance(deep, dict) else deep


# -- logfmt


def test_a_plain_record_as_logfmt():
    """The same keys as JSON has; quotes only where they have to be, but always around the message."""
    line = (
        'ts=2026-11-23T08:01:02.250000Z level=INFO logger=app.db msg="hello" app=shop host=web1 pid=123 '
        "process=MainProcess thread=MainThread file=/srv/app/db.py line=42 func=query\n"
    )
    assert Worker().lines(logfmt()) == [line] * 3


def test_the_fields_of_logfmt():
    """A field takes no other key's name, a key no sign of the grammar; nested values are JSON in quotes."""
    worker = Worker(extra={"level": "forged", "a b=": 1, "": None, "n": {"x": [True]}, "é\x1b": math.nan, "q": 'a"b'})
    for line in worker.lines(logfmt()):
        assert line.endswith(r' fields.level=forged a_b_=1 _=null n="{\"x\":[true]}" é_=NaN q="a\"b"' + "\n")


@settings(max_examples=200, deadline=None)
@given(workers(texts=nasty_texts))
def test_logfmt_parses_back(worker):
    """Whatever stands in a record: one line, its keys first, its text whole."""
    first, later, in_place = worker.lines(logfmt())
    assert first == later == in_place
    assert len(first.splitlines()) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", first)
    found = parse_logfmt(first)
    assert [key for key, _ in found[:4]] == ["ts", "level", "logger", "msg"]
    assert found[3][1] == json.loads(json.dumps(worker.message))
    assert found[2][1] == json.loads(json.dumps(worker.site.name))


# -- which records of a torn group are whole


@settings(max_examples=150, deadline=None)
@given(st.lists(workers(texts=nasty_texts), min_size=1, max_size=4), st.data())
def test_whole_records_are_those_before_the_cut(group, data):
    """Wherever a write was cut: no end that is none, and of those before the cut all that can be told."""
    for layout in [*ALL_FORMATS, text("%(message)s"), text("%(message)s", multiline="escape")]:
        records = [worker.lines(layout)[1].encode() for worker in group]
        written = b"".join(records)
        ends = [len(b"".join(records[:count])) for count in range(1, len(records) + 1)]
        cut = data.draw(st.integers(0, len(written)))
        told = whole_records(layout, written[:cut])
        before = [end for end in ends if end <= cut]
        assert told == before if layout.continuation == "" else before[:-1] <= told <= before
    assert whole_records(text("%(message)s", escaping="raw"), b"one\ntwo\n") == []


# -- with the handler's own encoder


@pytest.mark.parametrize(
    ("style", "template"),
    [
        ("%", "%(asctime)s %(msecs)03d %(created)f %(relativeCreated)d %(threadName)s %(thread)d %(user)s %(message)s"),
        ("%", "%(levelname)-8s %(processName)s %(process)d %(pathname)s %(funcName)s %(lineno)d %(message)s"),
        ("{", "{asctime} {levelname:<8} {message!r:>10} {name}"),
        ("$", "$asctime ${levelname} $$ $message"),
    ],
)
def test_a_real_logger_and_its_formatter_agree(style, template):
    """From a log call through the encoder to the line: what a FileHandler in the worker would have written."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.Logger("shop.orders")  # noqa: LOG001 - one that no other test sees
    logger.addHandler(handler)
    logging.addLevelName(25, "NOTICE")
    for _ in range(3):
        logger.log(25, "order %d for %s", 7, "ada", extra={"user": "ada"})
        try:
            {}["no\nsuch"]
        except LookupError:
            logger.exception("it broke", extra={"user": None}, stack_info=True)
    formatter = logging.Formatter(template, style=style)
    expected = [formatter.format(record) + "\n" for record in records]
    for record in records:
        for name in ("message", "asctime"):
            vars(record).pop(name, None)
    start_time = logging._startTime
    encoder = Encoder(
        pid=records[0].process,
        process_name=records[0].processName,
        start_time=start_time,
        format_exception=formatter.formatException,
    )
    wire = [encoder.encode(record) for record in records]
    source = Source(pid=records[0].process, process_name=records[0].processName, start_time=start_time)
    for definition in encoder.definitions:
        source.define(definition)
    assert text(template, style=style, escaping="raw")(source, wire) == expected


# -- the examples of the documentation

EXAMPLES = re.findall(
    r"```toml\n(.*?)```\n```\n(.*?)```\n",
    (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8"),
    re.DOTALL,
)


@pytest.mark.parametrize(("keys", "line"), EXAMPLES, ids=[keys.split("\n")[0] for keys, _ in EXAMPLES])
def test_the_examples_of_the_documentation(keys, line):
    """docs/formats.md shows what a server with these keys writes."""
    sink = parse(f"[sinks.app]\npath = 'x'\n{keys}").sinks["app"]
    worker = Worker(
        site=("shop.orders", 40, "ERROR", "/srv/shop/orders.py", "orders.py", "orders", 42, "pay"),
        message="order 7 failed",
        process=4711,
        processName="checkout-1",
        labels={"env": "prod"},
        exc_text='Traceback (most recent call last):\n  File "/srv/shop/orders.py", line 42, in pay\nValueError: card',
        extra={"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "user": "ada"},
    )
    assert worker.lines(service.format_of(sink)) == [line] * 3
    assert len(EXAMPLES) == 7
