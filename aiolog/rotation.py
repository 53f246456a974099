"""When a log file is rotated, what its backup is called, and which backups may go.

It knows names, sizes in bytes and moments in seconds since the epoch, all handed in. It must never know a
directory, a descriptor or a clock: what it says is done by :mod:`aiolog.sinks.file`.

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
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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
    Case does not matter. Days are those of the local time zone and begin when its calendar says so, also where
    the clocks change.

    Raises ``ConfigError`` for another ``when``, or an ``interval`` outside 1 to 10,000.
    """

    when: str
    interval: int = 1

    def __post_init__(self) -> None:
        when = self.when.upper()
        if when not in _UNIT_SECONDS and when not in _DAYS:
            raise ConfigError(
                f"when = {self.when!r} is no moment to rotate at. Use S, M, H, D, midnight, or W0 (Monday) to W6."
            )
        if not 1 <= self.interval <= MAX_INTERVAL:
            raise ConfigError(f"interval = {self.interval} cannot be kept. Use 1 to {MAX_INTERVAL}.")
        object.__setattr__(self, "when", when)

    def next_after(self, seconds: float) -> float:
        """Return the first moment of rotation after one moment, both in seconds since the epoch.

        The source of the rules is ``computeRollover`` in CPython 3.13, ``Lib/logging/handlers.py``; older ones
        are an hour off over a change of clocks.
        """
        if unit_seconds := _UNIT_SECONDS.get(self.when):
            return seconds + self.interval * unit_seconds
        # Naive on purpose: the arithmetic of the wall clock, whose changes timestamp() knows.
        now = datetime.fromtimestamp(math.floor(seconds))  # noqa: DTZ006
        today = now.replace(hour=0, minute=0, second=0, fold=0)
        days = self.interval * _DAYS[self.when]
        if self.when != "MIDNIGHT":
            days += (int(self.when[1]) - today.weekday()) % 7 - 6
        midnight = today + timedelta(days=days)
        moment = midnight.timestamp()
        # Where clocks went back over midnight (St. John's until 2011), it comes twice, and once may be past.
        return moment if moment > seconds else midnight.replace(fold=1).timestamp()


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


def expired(live_name: str, names: Iterable[str], backup_count: int) -> list[str]:
    """Return which of ``names`` retention removes to keep ``backup_count`` backups, the oldest first.

    A backup and its compressed twin count as one. A ``backup_count`` of 0 keeps all, as in the standard library.
    """
    backups = sorted(_parsed(live_name, names), key=lambda backup: backup[1:])
    kept = sorted({backup[1:3] for backup in backups})[-backup_count:] if backup_count else []
    return [backup.name for backup in backups if kept and backup[1:3] < kept[0]]


def stamp_text(stamp: int) -> str:
    """Return a moment in seconds since the epoch as names carry it: ``20261123T080102Z``."""
    return f"{datetime.fromtimestamp(stamp, UTC):%Y%m%dT%H%M%SZ}"


def _parsed(live_name: str, names: Iterable[str]) -> list[Backup]:
    return [backup for name in names if (backup := parse_backup(live_name, name))]
