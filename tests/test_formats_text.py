"""Text by templates: time zones, defaults, and how further lines are shown."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import (
    NOON_NS,
    Worker,
    datefmts,
    nasty_texts,
    reference_escape,
    standard,
    templates,
    workers,
)

from aiolog.errors import ConfigError
from aiolog.formatting import CONTINUATION, text, whole_records
from aiolog.source import Site

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]
defaults = st.fixed_dictionaries({}, optional={"user": nasty_texts | st.integers() | st.none(), "name": nasty_texts})
# What a struct_time of nine parts cannot say is compared with datetime below.
zoned_datefmts = datefmts.filter(lambda datefmt: "%z" not in (datefmt or ""))


@settings(max_examples=300, deadline=None)
@given(workers(), templates(), zoned_datefmts, st.sampled_from(ZONES), defaults)
def test_raw_text_is_that_of_a_formatter_with_this_zone_and_these_defaults(worker, template, datefmt, zone, given):
    """Byte for byte: the standard formatter with a converter to the zone, and with the same defaults."""
    style, template = template
    try:
        expected = standard(worker, template, style, datefmt, defaults=given, zone=ZoneInfo(zone)) + "\n"
    except (TypeError, ValueError):
        return
    try:
        layout = text(template, style=style, datefmt=datefmt, escaping="raw", time_zone=zone,
                      defaults={"user": "-"} | given)  # fmt: skip
    except ConfigError:
        assert given.get("user") is None  # it has no such field as the template wants
        return
    assert worker.lines(layout) == [expected] * 3


@settings(max_examples=200, deadline=None)
@given(workers(texts=nasty_texts), templates(), datefmts, defaults)
def test_escaped_text_is_the_same_text_in_one_line(worker, template, datefmt, given):
    """Nothing is lost but the newlines, which are two characters each."""
    style, template = template
    try:
        raw = standard(worker, template, style, datefmt, defaults=given)
    except (TypeError, ValueError):
        return
    try:
        layout = text(template, style=style, datefmt=datefmt, multiline="escape", defaults={"user": "-"} | given)
    except ConfigError:
        return
    expected = reference_escape(raw, newline="\\n") + "\n"
    for line in worker.lines(layout):
        assert line == expected
        assert line.splitlines() == [line[:-1]]
        assert whole_records(layout, line.encode()) == [len(line.encode())]


@pytest.mark.parametrize("separator", [*"\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", "\r\n"])
def test_in_one_line_no_attribute_begins_another(separator):
    """Whatever attribute a forged line comes in (CWE-117), there is one line, and it begins as the template says."""
    forged = f"ok{separator}2026-01-01 00:00:00 CRITICAL root: forged"
    site = Site(forged, 20, forged, forged, forged, forged, 1, forged)
    worker = Worker(site=site, thread=(1, forged), message=forged, exc_text=forged, stack_info=forged,
                    taskName=forged, processName=forged, extra={"user": forged})  # fmt: skip
    fields = ("levelname", "name", "pathname", "filename", "module", "funcName", "threadName", "processName",
              "taskName", "user", "message")  # fmt: skip
    layout = text("> " + " ".join(f"%({name})s" for name in fields), multiline="escape")
    for line in worker.lines(layout):
        assert len(line.splitlines()) == 1
        assert line.startswith("> ok")
        assert line.count("forged") == 13


def test_a_traceback_in_one_line():
    """Newlines are escapes; and a message that ends in the two characters of one is still apart from what follows."""
    layout = text("%(levelname)s %(message)s", multiline="escape")
    worker = Worker(message="broke\\n", exc_text="Traceback\n  boom", stack_info="Stack")
    assert worker.lines(layout) == ["INFO broke\\n\\nTraceback\\n  boom\\nStack\n"] * 3


def test_what_surrounds_the_slots_is_kept():
    """A tab between two fields is no margin, and one at the margin is escaped, in either way of showing lines."""
    for multiline in ("indent", "escape"):
        worker = Worker(message="x", thread=(1, "T"))
        assert worker.lines(text("%(threadName)s\t%(message)s", multiline=multiline)) == ["T\tx\n"] * 3
        assert worker.lines(text("%(message)s\t%(levelname)s", multiline=multiline)) == ["x\tINFO\n"] * 3
        assert worker.lines(text("\t%(message)s", multiline=multiline)) == ["\\x09x\n"] * 3
        tabbed = Worker(site=("\tn", 20, "", "p", "f", "m", 1, "fn"), message="\tx")
        for template in ("%(name)s %(message)s", "%(levelname)s%(message)s", "%(message)s %(name)s"):
            for line in tabbed.lines(text(template, multiline=multiline)):
                assert line.startswith("\\x09")
                assert not line.startswith(CONTINUATION)


# -- time zones


@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)),  # one hour forward
        ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),  # and back: an hour is there twice
        ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),  # half an hour
        ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),  # a day that never was
        ("UTC", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ],
)
def test_a_zone_is_followed_over_its_changes(zone, change):
    """Its date, offset and name are those of datetime, whichever second comes first; and not the process's."""
    datefmt = "%Y-%m-%d %H:%M:%S %z %Z"
    layout = text("%(asctime)s %(message)s", datefmt=datefmt, time_zone=zone)
    moments = [change + timedelta(seconds=step) for step in (-86_400, -3601, -1, 0, 1, 1800, 3599, 3600, 86_400)]
    worker = Worker()
    batch = [(int(moment.timestamp()) * 10**9 + 5, 0, 1, "x") for moment in [*moments, *moments[::-1]]]
    expected = [moment.astimezone(ZoneInfo(zone)).strftime(datefmt) + " x\n" for moment in [*moments, *moments[::-1]]]
    assert layout(worker.source, batch) == layout(worker.source, batch) == expected


def test_the_zone_of_the_process_does_not_matter(monkeypatch):
    """With a zone the server may stand anywhere; without one it is where the server stands."""
    layouts = [text("%(asctime)s", time_zone=zone) for zone in ("", "UTC", "Asia/Kathmandu")]
    shown = {}
    try:
        for place in ("UTC", "America/New_York"):
            monkeypatch.setenv("TZ", place)
            time.tzset()
            shown[place] = [layout(Worker().source, [(NOON_NS, 0, 1, "")])[0][11:23] for layout in layouts]
            layouts = [text("%(asctime)s", time_zone=zone) for zone in ("", "UTC", "Asia/Kathmandu")]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert shown == {
        "UTC": ["08:01:02,123", "08:01:02,123", "13:46:02,123"],
        "America/New_York": ["03:01:02,123", "08:01:02,123", "13:46:02,123"],
    }


def test_a_moment_that_the_zone_cannot_place_is_marked():
    """datetime ends with the year 9999; the record does not."""
    worker = Worker(created=1e12)
    assert worker.lines(text("%(asctime)s %(message)s", time_zone="UTC")) == ["?1000000000000.0 hello\n"] * 3


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Europe/Berln", 'Did you mean "Europe/Berlin"?'),
        ("europe/berlin", 'Did you mean "Europe/Berlin"?'),
        ("utc", 'Did you mean "UTC"?'),
        ("Europe", ""),
        ("../../etc/passwd", 'Use an IANA name such as "Europe/Berlin", "UTC", or "".'),
        ("/etc/passwd", ""),
        ("\x00\x1b[2J", ""),
        ("\ud800", ""),
        ("x" * 5000, ""),
    ],
)
def test_a_zone_that_is_none_is_refused(zone, hint):
    """With its name, and with the one that was probably meant; nothing in it drives a terminal."""
    with pytest.raises(ConfigError) as caught:
        text("%(asctime)s", time_zone=zone)
    said = str(caught.value)
    assert said.startswith(f"time_zone cannot be {json.dumps(zone)}. ")
    assert hint in said
    assert said.isprintable()


# -- defaults


def test_defaults_stand_where_a_record_lacks_an_extra():
    """As in logging: an extra wins, even None; and a default takes the place of the dash."""
    layout = text("%(user)s %(n)03d %(other)s %(message)s", defaults={"user": "nobody", "n": 7})
    source = Worker().source
    batch = [
        (NOON_NS, 0, 1, "a"),
        (NOON_NS, 0, 1, "b", {"extra": ["user", "ada"]}),
        (NOON_NS, 0, 1, "c", {"extra": ["user", None, "other", 1]}),
        (NOON_NS, 0, 1, "d"),
    ]
    expected = ["nobody 007 - a\n", "ada 007 - b\n", "None 007 1 c\n", "nobody 007 - d\n"]
    assert layout(source, batch) == layout(source, batch) == expected


def test_a_default_is_escaped_as_all_else():
    """The operator's own text forges no line either."""
    assert Worker().lines(text("%(user)s %(message)s", defaults={"user": "a\nb"})) == ["a\n\t| b hello\n"] * 3


@pytest.mark.parametrize(
    ("template", "style"),
    [
        ("%(message)99999999999s", "%"),
        ("%(message)10001s", "%"),
        ("%(process).99999999999d", "%"),
        ("%(process)0" + "9" * 5000 + "d", "%"),
        ("%(message)400s" * 30, "%"),
        ("{message:>99999999999}", "{"),
        ("{message:>" + "9" * 5000 + "}", "{"),
        ("{created:.99999f}", "{"),
        ("{message:>１００００００００}", "{"),
        ("x" * 10_001, "%"),
    ],
)
def test_a_width_that_no_line_needs_is_refused(template, style):
    """It would take gigabytes for the first record, or already for the try; nothing of that size is tried."""
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=r"has more than 10000 characters\. Use smaller widths") as caught:
            text(template, style=style)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 400
    text("%(message)-500s|%(process)0010d %(msecs)03d %(created).6f")


def test_a_refused_template_is_a_part_of_a_sentence():
    """Who refused it is said before it."""
    with pytest.raises(ConfigError, match=r"^the template '%\(message' \(style '%', datefmt None\) cannot be used: "):
        text("%(message")


def test_a_default_that_its_field_cannot_show_is_refused():
    """It would fail for every record that lacks the extra."""
    with pytest.raises(ConfigError, match=re.escape("%(count)d")):
        text("%(count)d %(message)s", defaults={"count": "many"})
