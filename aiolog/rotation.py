"""When a log file is rotated, what its backup is called, and which backups may go.

It knows names, sizes in bytes and moments in seconds since the epoch, all handed in. It must never know a
directory, a descriptor or a clock: what it says is done by :mod:`aiolog.livefile` and :mod:`aiolog.backups`.

The configured path is always the live file. A backup is named after it::

    app.log.20261123T080102Z.0000.zst
    ─────── ──────────────── ──── ───
    live    UTC, to the      │    what it was compressed with, if it was
    name    second           which one of that second

Names of one live file sort in the order of rotation, whatever the clock did, and no name comes twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import groupby
from typing import NamedTuple

from aiolog.errors import ConfigError

SUFFIXES = {"": "", "gzip": ".gz", "zstd": ".zst"}
"""What compression, by its name in the configuration, adds to the name of a backup."""

MAX_COUNTER = 9_999  # four digits keep the names sorting; a fuller second borrows from the next one
MAX_INTERVAL = 10_000  # weeks of it are 191 years: every next rotation is a date that Python can tell

_UNIT_SECONDS = {"S": 1, "M": 60, "H": 3_600, "D": 86_400}
_DAYS = {"MIDNIGHT": 1} | {f"W{day}": 7 for day in range(7)}
_TAIL = re.compile(r"\.(\d{8}T\d{6}Z)\.(\d{4})(\.gz|\.zst)?", re.ASCII)


class Backup(NamedTuple):
    """A name taken apart: ``stamp`` in seconds since the epoch, ``suffix`` one of :data:`SUFFIXES`."""

    name: str
    stamp: int
    counter: int
    suffix: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """The moments of rotation, as ``logging.handlers.TimedRotatingFileHandler`` has them.

    ``when`` is ``S``, ``M``, ``H`` or ``D``: ``interval`` of these after the last moment; ``midnight``: at the end
    of every ``interval``-th day; ``W0`` (Monday) to ``W6``: at the end of that day in every ``interval``-th week.
    ``at_time``, for these two, is the moment of the day in place of its end. Case does not matter. Days are those of
    the local time zone, or with ``utc`` of UTC, and begin when its calendar says so, also where the clocks change.

    Raises ``ConfigError`` for another ``when``, an ``interval`` outside 1 to 10,000, or an ``at_time`` without a day.
    """

    when: str
    interval: int = 1
    at_time: time | None = None
    utc: bool = False

    def __post_init__(self) -> None:
        when = self.when.upper()
        if when not in _UNIT_SECONDS and when not in _DAYS:
            raise ConfigError(
                f"when = {self.when!r} is no moment to rotate at. Use S, M, H, D, midnight, or W0 (Monday) to W6."
            )
        if not 1 <= self.interval <= MAX_INTERVAL:
            raise ConfigError(f"interval = {self.interval} cannot be kept. Use 1 to {MAX_INTERVAL}.")
        if self.at_time is not None and when not in _DAYS:
            raise ConfigError(
                f"at_time is a moment of a day, and when = {self.when!r} is none. Use midnight, W0 to W6."
            )
        object.__setattr__(self, "when", when)

    def next_after(self, seconds: float) -> float:
        """Return the first moment of rotation after one moment, both in seconds since the epoch.

        The source of the rules is ``computeRollover`` in CPython 3.13, ``Lib/logging/handlers.py``; older ones
        are an hour off over a change of clocks.
        """
        if unit_seconds := _UNIT_SECONDS.get(self.when):
            return seconds + self.interval * unit_seconds
        # Naive on purpose where days are local: the arithmetic of the wall clock, whose changes timestamp() knows.
        now = datetime.fromtimestamp(math.floor(seconds), UTC if self.utc else None)
        at = now.replace(hour=0, minute=0, second=0, fold=0)
        if self.at_time is not None:
            at = at.replace(hour=self.at_time.hour, minute=self.at_time.minute, second=self.at_time.second)
        days = self.interval * _DAYS[self.when] - _DAYS[self.when]
        weekday = now.weekday()
        if self.at_time is None:
            days += 1  # at the end of the day, and that is its own
        elif now.time() >= at.time():
            days, weekday = days + 1, (weekday + 1) % 7
        if self.when != "MIDNIGHT":
            days += (int(self.when[1]) - weekday) % 7
        at += timedelta(days=days)
        moment = at.timestamp()
        # Where clocks went back over it (over midnight in St. John's until 2011), it comes twice, and once may be past.
        return moment if moment > seconds else at.replace(fold=1).timestamp()


class Rotation(NamedTuple):
    """When a live file is rotated: beyond ``max_bytes`` (0: never by size), by ``schedule``, ``at_start``."""

    max_bytes: int = 0
    schedule: Schedule | None = None
    at_start: bool = False


def due(size_bytes: int, incoming_bytes: int, max_bytes: int, now: float, rotate_at: float | None) -> bool:
    """Whether to rotate a file of ``size_bytes`` before ``incoming_bytes`` go into it.

    ``max_bytes`` 0 and ``rotate_at`` None (else seconds since the epoch) are off. An empty file never rotates.
    """
    if not size_bytes:
        return False
    full = 0 < max_bytes < size_bytes + incoming_bytes
    return full or (rotate_at is not None and now >= rotate_at)


def parse_backup(live_name: str, name: str) -> Backup | None:
    """Take the name of a backup apart; None for what is not exactly one of this live file's."""
    if not name.startswith(live_name) or not (match := _TAIL.fullmatch(name, len(live_name))):
        return None
    text, counter, suffix = match.groups()
    try:
        stamp = int(datetime.fromisoformat(text).timestamp())
        if stamp_text(stamp) != text:  # an hour 24 is the next day's 00 to newer Pythons
            return None
    except (ValueError, OverflowError):  # the digits are no date
        return None
    return Backup(name, stamp, int(counter), suffix or "")


def split_backup(name: str) -> tuple[str, Backup] | None:
    """Take a name apart whose live file is not known: that file's name and the backup; None for what is no backup."""
    match = _TAIL.search(name)
    while match is not None:
        if match.end() == len(name) and match.start() and (backup := parse_backup(name[: match.start()], name)):
            return name[: match.start()], backup
        match = _TAIL.search(name, match.start() + 1)
    return None


def next_backup(live_name: str, now: float, existing: Iterable[str]) -> str:
    """Return the name for the next backup: later in order than all ``existing`` names, and none of them.

    ``now`` is in seconds since the epoch. When it is not after the newest backup (a second rotation within the
    second, or a clock that was set back) the name continues that one's.

    Raises ``ValueError`` when the calendar ends (year 9999).
    """
    newest = max((backup[1:3] for backup in _parsed(live_name, existing)), default=(-1, 0))
    stamp, counter = max((int(now), 0), (newest[0], newest[1] + 1))
    if counter > MAX_COUNTER:
        stamp, counter = stamp + 1, 0
    return f"{live_name}.{stamp_text(stamp)}.{counter:04d}"


class Aged(NamedTuple):
    """One rotation's worth of records on the disk: a backup, with its compressed twin where both are there."""

    stamp: int  # of the rotation, seconds since the epoch
    names: tuple[str, ...]
    size_bytes: int


def aged(live_name: str, sizes: Mapping[str, int]) -> list[Aged]:
    """Return the backups among files, the oldest first; ``sizes`` are theirs in bytes, by name."""
    backups = sorted(_parsed(live_name, sizes), key=lambda backup: backup[1:])
    return [
        Aged(stamp, names := tuple(backup.name for backup in twins), sum(sizes[name] for name in names))
        for (stamp, _), twins in groupby(backups, key=lambda backup: backup[1:3])
    ]


class Retention(NamedTuple):
    """Which backups are kept; 0 is no bound. What is still written to is never removed.

    ``backup_count``: at most so many. ``max_age_seconds``: since their rotation. ``max_total_bytes``: of all of them
    and the live file. ``min_free_bytes``: left on the disk.
    """

    backup_count: int = 0
    max_age_seconds: float = 0
    max_total_bytes: int = 0
    min_free_bytes: int = 0

    def expired(
        self, backups: Sequence[Aged], *, now: float, live_bytes: int = 0, free_bytes: int = 0
    ) -> list[tuple[Aged, str]]:
        """Return which of ``backups`` (the oldest first) are to be removed, the oldest first, and by which bound."""
        removed: list[tuple[Aged, str]] = []
        total_bytes = live_bytes + sum(backup.size_bytes for backup in backups)
        for left, backup in zip(range(len(backups), 0, -1), backups, strict=True):
            bounds = {
                "backup_count": 0 < self.backup_count < left,
                "max_age": 0 < self.max_age_seconds < now - backup.stamp,
                "max_total_bytes": 0 < self.max_total_bytes < total_bytes,
                "min_free_bytes": free_bytes < self.min_free_bytes,
            }
            bound = next((name for name, is_passed in bounds.items() if is_passed), "")
            if not bound:
                break  # those after it are younger, and in fewer company
            removed.append((backup, bound))
            total_bytes -= backup.size_bytes
            free_bytes += backup.size_bytes
        return removed


def stamp_text(stamp: int) -> str:
    """Return a moment in seconds since the epoch as names carry it: ``20261123T080102Z``."""
    return f"{datetime.fromtimestamp(stamp, UTC):%Y%m%dT%H%M%SZ}"


def _parsed(live_name: str, names: Iterable[str]) -> list[Backup]:
    return [backup for name in names if (backup := parse_backup(live_name, name))]
