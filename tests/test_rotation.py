"""Names, moments and retention: pure functions against the standard library and against bad clocks."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from logging.handlers import TimedRotatingFileHandler

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aiolog.errors import ConfigError
from aiolog.rotation import Aged, Backup, Retention, Schedule, aged, due, next_backup, parse_backup, stamp_text

MORNING = 1_795_420_862  # 2026-11-23T08:01:02Z
WHEN = ["S", "M", "H", "D", "midnight", *(f"W{day}" for day in range(7))]

# Zones whose clocks change by an hour of which isdst tells: what computeRollover reckons with. In Havana the day
# begins twice in autumn, in Beirut it began at one o'clock in spring.
HOUR_ZONES = ["UTC", "Asia/Kolkata", "Europe/Berlin", "America/New_York", "Australia/Sydney", "America/Havana",
              "Asia/Beirut"]  # fmt: skip
# Half an hour, winter as the exception, over midnight, a day left out, Ramadan.
ODD_ZONES = ["Australia/Lord_Howe", "Europe/Dublin", "America/St_Johns", "Pacific/Apia", "Africa/Casablanca"]

moments = st.integers(min_value=946_684_800, max_value=2_145_916_800)  # 2000 to 2037
# The fixture sets the zone once for all examples, which is what is wanted.
one_zone = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def gone(live_name, names, **bounds):
    """Return which names retention removes, all files being of one byte."""
    removed = Retention(**bounds).expired(aged(live_name, dict.fromkeys(names, 1)), now=MORNING)
    return [name for backup, _ in removed for name in backup.names]


# -- names


def test_a_backup_carries_a_utc_stamp_and_a_counter():
    """The name is that of the live file, the moment in UTC to the second, and a counter."""
    assert next_backup("app.log", MORNING + 0.9, []) == "app.log.20261123T080102Z.0000"


def test_two_rotations_within_one_second_get_two_names():
    """The counter goes on, also when the first backup is compressed by then, and the clock even when set back."""
    first = next_backup("app.log", MORNING, [])
    second = next_backup("app.log", MORNING, [first])
    third = next_backup("app.log", MORNING - 3600, [first + ".zst", second + ".gz"])
    assert (second, third) == ("app.log.20261123T080102Z.0001", "app.log.20261123T080102Z.0002")


def test_a_full_second_borrows_from_the_next():
    """Names stay unique and sorted when 10,000 rotations fall into one second."""
    assert next_backup("a", MORNING, [f"a.{stamp_text(MORNING)}.9999"]) == "a.20261123T080103Z.0000"


def test_the_end_of_the_calendar_raises():
    """After the last second of 9999 there is no name, and nobody pretends one."""
    with pytest.raises(ValueError):
        next_backup("a", MORNING, ["a.99991231T235959Z.9999"])


@given(
    st.lists(
        st.tuples(st.floats(min_value=0, max_value=4e9), st.sampled_from(["", ".gz", ".zst", "both"])), max_size=40
    )
)
def test_rotation_never_overwrites_and_names_sort(rotations):
    """Whatever the clock says, each name is new and sorts after all earlier ones, compressed or not."""
    names: list[str] = ["app.error.log", "app.log", "app.log.1", "app.log.torn-20991231T000000Z"]
    backups: list[str] = []
    for now, becomes in rotations:
        name = next_backup("app.log", now, names)
        assert not any(n == name or n.startswith(name + ".") for n in names)
        twins = [name, name + ".gz"] if becomes == "both" else [name + becomes]
        names += twins
        backups += twins
    assert backups == sorted(backups)


@given(
    st.text(min_size=1, max_size=10),
    st.integers(min_value=0, max_value=253_402_300_799),
    st.integers(min_value=0, max_value=9999),
    st.sampled_from(["", ".gz", ".zst"]),
)
def test_a_name_is_parsed_back(live_name, stamp, counter, suffix):
    """What was put into a name comes out of it, for any name of a live file."""
    name = f"{live_name}.{stamp_text(stamp)}.{counter:04d}{suffix}"
    assert parse_backup(live_name, name) == Backup(name, stamp, counter, suffix)


@pytest.mark.parametrize(
    "name",
    [
        "app.log",
        "app.log.1",
        "app.error.log.20261123T080102Z.0000",
        "app.log.error.20261123T080102Z.0000",
        "xapp.log.20261123T080102Z.0000",
        "app.log.20261123T080102Z.0000.bz2",
        "app.log.20261123T080102Z.0000.zst.tmp",
        "app.log.20261123T080102Z.0000\n",
        "app.log.20261123T080102Z.00000",
        "app.log.20261323T080102Z.0000",
        "app.log.20260230T080102Z.0000",
        "app.log.20261123T240000Z.0000",
        "app.log.20261123T080160Z.0000",
        "app.log.00000101T000000Z.0000",
        "app.log.٢٠٢٦١١٢٣T080102Z.0000",
        "app.log.torn-20261123T080102Z",
        "APP.LOG.20261123T080102Z.0000",
    ],
)
def test_a_name_that_is_not_exactly_a_backups_is_nobodys(name):
    """Only the exact form is a backup; all else is left alone by naming and by retention."""
    assert parse_backup("app.log", name) is None
    assert gone("app.log", [name, "app.log.20261123T080102Z.0000"], backup_count=1) == []


# -- retention


def test_retention_by_count_removes_the_oldest_first():
    """Of three backups with a count of one the two older go, in their order."""
    early, late = stamp_text(MORNING - 9), stamp_text(MORNING)
    names = [f"a.{late}.0001", f"a.{early}.0000.gz", f"a.{late}.0000"]
    assert gone("a", names, backup_count=1) == [names[1], names[2]]
    assert gone("a", names, backup_count=3) == []


def test_a_backup_and_its_twin_count_as_one():
    """Between the end of a compression and the removal of its source nothing is removed in excess, or left."""
    old, new = f"a.{stamp_text(MORNING)}.0000", f"a.{stamp_text(MORNING)}.0001"
    assert gone("a", [old, new, new + ".zst"], backup_count=2) == []
    assert gone("a", [old, old + ".zst", new], backup_count=1) == [old, old + ".zst"]


def test_without_bounds_everything_is_kept():
    """As with a backupCount of 0 in the standard library."""
    assert gone("a", [f"a.{stamp_text(MORNING + i)}.0000" for i in range(9)]) == []


BACKUPS = [Aged(MORNING + n, (f"a.{n}",), 10 * (n + 1)) for n in range(4)]  # 10, 20, 30 and 40 bytes


@pytest.mark.parametrize(
    ("retention", "kwargs", "expected"),
    [
        (Retention(max_age_seconds=5), {"now": MORNING + 6.5}, ["max_age", "max_age"]),
        (Retention(max_age_seconds=5), {"now": MORNING + 5}, []),  # exactly as old is not too old
        (Retention(max_age_seconds=5), {"now": MORNING - 999}, []),  # a clock that was set back
        (Retention(max_total_bytes=75), {"live_bytes": 5}, ["max_total_bytes", "max_total_bytes"]),
        (Retention(max_total_bytes=105), {"live_bytes": 5}, []),
        (Retention(max_total_bytes=1), {"live_bytes": 5}, ["max_total_bytes"] * 4),  # the live file stays all the same
        (Retention(min_free_bytes=100), {"free_bytes": 75}, ["min_free_bytes", "min_free_bytes"]),
        (Retention(min_free_bytes=100), {"free_bytes": 100}, []),
        (Retention(min_free_bytes=10**9), {"free_bytes": 0}, ["min_free_bytes"] * 4),
        (Retention(3, 5, 70, 100), {"now": MORNING + 5.5, "free_bytes": 100}, ["backup_count", "max_total_bytes"]),
    ],
)
def test_each_bound_of_retention(retention, kwargs, expected):
    """The oldest go until every bound holds, each by the first bound that asked for it, and none beyond that."""
    removed = retention.expired(BACKUPS, **{"now": MORNING, **kwargs})
    assert [backup for backup, _ in removed] == BACKUPS[: len(expected)]
    assert [bound for _, bound in removed] == expected


@given(
    sizes=st.lists(st.integers(1, 100), max_size=20),
    count=st.integers(0, 10),
    age=st.integers(0, 30),
    total=st.integers(0, 500),
    min_free=st.integers(0, 500),
    free=st.integers(0, 500),
)
def test_retention_removes_what_it_must_and_no_more(sizes, count, age, total, min_free, free):  # noqa: PLR0917
    """After it every bound holds, as far as there are backups; with the youngest one back, some would not."""
    backups = [Aged(MORNING + n, (str(n),), size) for n, size in enumerate(sizes)]
    now = MORNING + len(sizes)

    def holds(kept):
        freed = sum(sizes) - sum(backup.size_bytes for backup in kept)
        return (
            (not count or len(kept) <= count)
            and (not age or all(now - backup.stamp <= age for backup in kept))
            and (not total or 7 + sum(backup.size_bytes for backup in kept) <= total)
            and free + freed >= min_free
        )

    removed = Retention(count, age, total, min_free).expired(backups, now=now, live_bytes=7, free_bytes=free)
    assert [backup for backup, _ in removed] == backups[: len(removed)]
    assert holds(backups[len(removed) :]) or len(removed) == len(backups)
    assert not removed or not holds(backups[len(removed) - 1 :])


# -- size


@pytest.mark.parametrize(
    ("size", "incoming", "max_bytes", "now", "rotate_at", "expected"),
    [
        (90, 10, 100, 0, None, False),  # exactly full is not too full
        (90, 11, 100, 0, None, True),
        (0, 101, 100, 0, None, False),  # a record larger than the limit still goes somewhere
        (90, 10**9, 0, 0, None, False),  # 0 is off
        (1, 1, 0, 50, 50, True),
        (1, 1, 0, 49.9, 50, False),
        (0, 1, 0, 51, 50, False),  # an empty file never rotates
        (1, 0, 1, 0, None, False),
    ],
)
def test_due(size, incoming, max_bytes, now, rotate_at, expected):  # noqa: PLR0917 - the columns of the table
    """Size and time say when, and an empty file never rotates."""
    assert due(size, incoming, max_bytes, now, rotate_at) is expected


# -- time


@pytest.mark.parametrize("when", ["", "Q", "W7", "W", "W10", "mid night", "Ｓ"])
def test_another_when_is_refused_with_the_choices(when):
    """The message names what was written and what may be."""
    with pytest.raises(ConfigError, match=r"Use S, M, H, D, midnight, or W0 \(Monday\) to W6"):
        Schedule(when)


@pytest.mark.parametrize("interval", [0, -1, 10_001])
def test_an_interval_out_of_range_is_refused(interval):
    """Below one a rotation would follow itself; beyond the limit the calendar ends."""
    with pytest.raises(ConfigError, match="Use 1 to 10000"):
        Schedule("D", interval)


@pytest.mark.parametrize("when", WHEN)
def test_the_longest_interval_has_a_next_moment(when):
    """The limit of interval leaves the calendar in no unit."""
    assert Schedule(when, 10_000).next_after(MORNING) > MORNING


@pytest.mark.parametrize("zone", HOUR_ZONES, indirect=True)
@one_zone
@given(
    moment=moments,
    when=st.sampled_from(WHEN),
    interval=st.integers(min_value=1, max_value=9),
    at_time=st.none() | st.times(timezones=st.none()).map(lambda at: at.replace(microsecond=0, fold=0)),
    utc=st.booleans(),
)
def test_the_schedule_equals_timed_rotating_file_handler(zone, tmp_path, moment, when, interval, at_time, utc):  # noqa: PLR0917
    """The next moment is the one of CPython 3.13; of older ones where no change of clocks lies between."""
    older = sys.version_info < (3, 13)
    if when in {"S", "M", "H", "D"}:
        at_time = None
    elif older:
        interval = 1  # they ignored it here
    handler = TimedRotatingFileHandler(tmp_path / "log", when, interval, delay=True, utc=utc, atTime=at_time)
    ours, theirs = Schedule(when, interval, at_time, utc).next_after(moment), handler.computeRollover(moment)
    assume(not older or time.localtime(ours).tm_isdst == time.localtime(moment).tm_isdst)
    assert ours == theirs


@pytest.mark.parametrize("zone", [*HOUR_ZONES, *ODD_ZONES], indirect=True)
@one_zone
@given(
    moment=moments | st.floats(min_value=946_684_800, max_value=2_145_916_800),
    when=st.sampled_from(["midnight", "W0", "W6"]),
    interval=st.integers(min_value=1, max_value=3),
)
def test_a_day_begins_when_its_calendar_says_so(zone, moment, when, interval):
    """Everywhere the moment is strictly later, and the first of a day: a second before, it was another date."""
    moment = Schedule(when, interval).next_after(moment)
    for _ in range(3):
        before, moment = moment, Schedule(when, interval).next_after(moment)
        assert moment > before
        day, day_before = (datetime.fromtimestamp(m) for m in (moment, moment - 1))  # noqa: DTZ006 - local
        assert day.date() != day_before.date()
        assert (day.hour, day.minute, day.second) in {(0, 0, 0), (1, 0, 0)}  # 1: no midnight
        if when != "midnight":
            assert day_before.weekday() == int(when[1]) or zone == "Pacific/Apia"


@pytest.mark.parametrize(
    ("zone", "moment", "hours"),
    [
        ("Europe/Berlin", datetime.fromisoformat("2026-03-29T00:00+01:00"), 23),
        ("Europe/Berlin", datetime.fromisoformat("2026-10-25T00:00+02:00"), 25),
        ("Australia/Lord_Howe", datetime.fromisoformat("2026-04-05T00:00+11:00"), 24.5),
        ("America/St_Johns", datetime.fromisoformat("2010-11-06T23:30-03:30"), 0.5),  # after 00:01 it was 23:01
        ("Asia/Beirut", datetime.fromisoformat("2022-03-26T00:00+02:00"), 24),  # the next day began at 01:00
    ],
    indirect=["zone"],
)
def test_midnight_over_a_change_of_clocks(zone, moment, hours):
    """The day has as many hours as its calendar gives it."""
    start = moment.timestamp()
    assert Schedule("midnight").next_after(start) == start + hours * 3600


@pytest.mark.parametrize("zone", ["Europe/Berlin"], indirect=True)
def test_case_does_not_matter(zone):
    """As in the standard library, ``MIDNIGHT`` is ``midnight`` and ``h`` is ``H``."""
    assert Schedule("MIDNIGHT") == Schedule("midnight")
    assert Schedule("h", 2).next_after(MORNING) == MORNING + 7200
