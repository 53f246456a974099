"""What stands in all files of a sink, against the books of the workers that logged.

Reads the live file, every backup, compressed or not, and what a repair moved aside (``*.torn-*``); knows no server.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from booked import ERROR_EVERY
from worker import check

from aiolog.rotation import parse_backup

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEMPLATE = "%(levelname)s %(name)s %(process)d %(message)s"  # of the sinks in text that a judge can read
HEAD = re.compile(r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (?P<logger>\S+) \d+ ")
CONTINUED = "\t| "
ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})")
LOST = re.compile(r"(\d+) records of process .* were acked, and the ledger of sink (\S+) does not know them")
DROPPED = re.compile(r"(\d+) records of process \S+ were dropped")


class Book(NamedTuple):
    """What one worker wrote down."""

    emitted: int  # log calls that returned
    acked: int
    acks: list[tuple[float, int]]  # moment (monotonic seconds) and how many were acked then


def read_book(path: Path) -> Book:
    """Read a book; it is whole up to its last line, however the worker ended, and while it writes on."""
    emitted, acks = 0, []
    written = path.read_bytes() if path.exists() else b""
    for line in written[: written.rfind(b"\n") + 1].splitlines():  # a line may be seen half, across two pages
        if line[:1] == b"a":
            _, count, moment = line.split()
            acks.append((float(moment), int(count)))
        else:
            assert int(line) == emitted, f"{path} does not count: {line!r} after {emitted}"
            emitted += 1
    return Book(emitted, acks[-1][1] if acks else 0, acks)


def backups(live: Path, *more: Path) -> list[Path]:
    """Return the backups of a live file and the file itself, the oldest first; also from other directories."""
    found: dict[tuple[int, int], Path] = {}
    for directory in (*more, live.parent):
        # In reverse, so that of a backup and its compressed twin the plain one stays: it goes when the twin is whole.
        for name in sorted((path.name for path in directory.iterdir()), reverse=True) if directory.exists() else ():
            backup = parse_backup(live.name, name)
            if backup and ((backup.stamp, backup.counter) not in found or not backup.suffix):
                found[backup.stamp, backup.counter] = directory / name
    return [found[key] for key in sorted(found)] + [live] * live.exists()


def content(path: Path) -> bytes:
    """Return the bytes that were logged to a file."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    return zstd.decompress(data) if path.suffix == ".zst" else data


class Found:
    """What stands in the files of one sink. ``archive`` holds links to backups that retention has removed.

    ``also`` are older files of it under other names.
    """

    def __init__(
        self, live: Path, *, text: bool = False, archive: Path | None = None, also: Sequence[Path] = ()
    ) -> None:
        self.seen: dict[str, list[int]] = {}
        self.said_dropped = 0
        self.said_lost = 0  # acked and gone, as the server said when their session came back
        self.altered = 0  # records of a worker whose checksum is wrong
        self.torn = 0  # lines that no parser takes
        self.foreign = 0  # lines of others: notices without a count
        self.aside_bytes = 0  # what repairs moved aside
        self.files = 0
        self._text = text
        self._sink = live.stem  # the sinks here are called as their files
        for path in [*also, *backups(live, *([archive] if archive else []))]:
            self.files += 1
            for logger, message in self._records(content(path)):
                self._take(logger, message)
        for path in sorted(live.parent.glob(f"{live.name}.torn-*")):
            self.aside_bytes += path.stat().st_size
        self.partial = len(list(live.parent.glob(f"{live.name}.*.tmp")))

    def _records(self, data: bytes) -> Iterator[tuple[str, str]]:
        lines = data.split(b"\n")
        if lines.pop():
            self.torn += 1  # an end without its newline
        if self._text:
            yield from self._texts(lines)
            return
        for line in lines:
            try:
                record = json.loads(line)
                yield record["logger"], record["msg"]
            except (ValueError, KeyError, TypeError, AttributeError):
                self.torn += 1

    def _texts(self, lines: list[bytes]) -> Iterator[tuple[str, str]]:
        records: list[list[str]] = []
        for raw in lines:
            line = raw.decode(errors="replace")
            if line.startswith(CONTINUED) and records:
                records[-1].append(line.removeprefix(CONTINUED))
            elif HEAD.match(line):
                records.append([line])
            else:
                self.torn += 1
        for record in records:
            whole = "\n".join(record)
            head = HEAD.match(whole)
            assert head
            message = ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), whole[head.end() :])
            yield head["logger"], message

    def _take(self, logger: str, message: str) -> None:
        if logger == "worker":
            try:
                worker, number = check(message)
            except ValueError:
                self.altered += 1
            else:
                self.seen.setdefault(worker, []).append(number)
        elif logger == "aiolog" and (said := DROPPED.match(message)):
            self.said_dropped += int(said[1])
        elif logger == "aiolog" and (said := LOST.match(message)):
            self.said_lost += int(said[1]) * (said[2] == self._sink)
        else:
            self.foreign += 1

    @property
    def received(self) -> int:
        """How many different records are there."""
        return sum(len(set(numbers)) for numbers in self.seen.values())

    @property
    def twice(self) -> int:
        return sum(n - 1 for numbers in self.seen.values() for n in Counter(numbers).values())

    @property
    def disorder(self) -> int:
        """Records that stand right before one of the same worker with a smaller number."""
        return sum(a > b for numbers in self.seen.values() for a, b in pairwise(numbers))


class Verdict:
    """One sink against the books. With ``errors`` the sink takes ERROR alone."""

    def __init__(self, found: Found, books: Mapping[str, Book], *, errors: bool = False) -> None:
        step = ERROR_EVERY if errors else 1
        self.found = found
        self.emitted = sum(len(range(0, book.emitted, step)) for book in books.values())
        self.lost_emitted = self.lost_acked = self.unknown = 0
        for worker, book in books.items():
            seen = set(found.seen.get(worker, ()))
            expected = set(range(0, book.emitted, step))
            self.lost_emitted += len(expected - seen)
            self.lost_acked += len(set(range(0, book.acked, step)) - seen)  # exact while the worker dropped nothing
            # A worker that was killed may have returned from one call more than it had time to write down.
            self.unknown += len(seen - expected - {book.emitted})
        self.unknown += len(found.seen.keys() - books.keys())

    def faults(self) -> dict[str, int]:
        """Return what is wrong by any measure, drops aside."""
        found = self.found
        return {
            "twice": found.twice,
            "altered": found.altered,
            "torn": found.torn,
            "disorder": found.disorder,
            "unknown": self.unknown,
            "partial": found.partial,
        }

    def figures(self) -> str:
        """Return all in one line."""
        figures = {
            "emitted": self.emitted, "received": self.found.received, "lost": self.lost_emitted,
            "lost_acked": self.lost_acked, "said_dropped": self.found.said_dropped, "said_lost": self.found.said_lost,
            **self.faults(),
            "aside_bytes": self.found.aside_bytes, "files": self.found.files,
        }  # fmt: skip
        return " ".join(f"{name}={value}" for name, value in figures.items())

    def assert_clean(self) -> None:
        """Fail when anything is twice, altered, torn, out of order or unknown."""
        wrong = {name: value for name, value in self.faults().items() if value}
        assert not wrong, f"{wrong} in {self.figures()}"

    def assert_exact(self) -> None:
        """Fail unless everything that was logged is there once, and nothing was dropped."""
        self.assert_clean()
        lost = self.lost_emitted + self.lost_acked
        assert (lost, self.found.said_dropped, self.found.said_lost) == (0, 0, 0), self.figures()

    def assert_counted(self, dropped: int) -> None:
        """Fail unless received and said drops are together what was logged, and workers dropped as many."""
        self.assert_clean()
        assert self.found.said_dropped == dropped == self.lost_emitted, f"workers dropped {dropped}; {self.figures()}"
