"""The sink that writes many files: each record to the one that a path template names for it.

It knows a format, a template and its files, each with a ledger of its own. It must never know a socket, a session's ack
or the configuration. A record that comes again after a crash goes where it went before, and the ledger there knows it.

Files are bounded twice: ``max_open_files`` hold descriptors, and the one written longest ago lets go of
them; ``max_routes`` have a name, and what would need another goes to the fallback, every field of which is ``_other``.
So does what cannot have its own file, for a link stands in its place, say.

With a date in the template the day ends for all files at once: they become backups, under their old names, and the
next day's begin with what their ledgers knew, so that a record of midnight is not in both.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from operator import add
from pathlib import Path
from time import gmtime, localtime, strftime
from typing import Any, TypeAlias

from aiofiles.os import wrap

from aiolog.backups import PARTIAL, free_on, remove
from aiolog.errors import ConfigError, reason
from aiolog.fanout import Delivery
from aiolog.formatting import Format, whole_records
from aiolog.ledger import Mark
from aiolog.livefile import KEEPING, Keeping, LiveFile, Part, make_directories
from aiolog.record import WireRecord, attributes
from aiolog.rotation import Aged, split_backup
from aiolog.routing import PathTemplate
from aiolog.sinks import SinkThread
from aiolog.sinks.file import CLOSE_SECONDS, LOOK_SECONDS
from aiolog.source import Source

MAX_OPEN_FILES = 256  # two descriptors each: half of the 1,024 that a process may have by default
MAX_ROUTES = 1_024  # names in one directory tree: an operator can still look through them
SWEEP_SECONDS = 60.0  # between two looks at all backups of the tree together, as long as there are no new ones
# What another file would meet as well; anything else is the matter of one name.
_COMMON = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS, errno.ENOMEM}

NOT_SEEN = 0, 0.0  # the mark of a session that nobody knows
_MAX_GAP = 16  # records of other files between two of one file, before these are two parts: a byte each in the ledger

Parts: TypeAlias = dict[str, list[Part]]
"""What goes to each file, by its path below the root."""


class RoutedFileSink:
    """Write deliveries to the files that a template names, as the protocol :class:`aiolog.fanout.Sink` asks.

    ``directory`` is where a relative template begins. Bounds of retention by bytes are those of all files together.
    ``utc`` says whose days the date of the template counts. ``clock`` gives seconds since the epoch. ``warn`` takes one
    sentence for the operator; any thread may call it.
    """

    def __init__(
        self,
        name: str,
        template: PathTemplate,
        directory: Path,
        format: Format,  # noqa: A002 - the word of the configuration
        keeping: Keeping = KEEPING,
        *,
        max_open_files: int = MAX_OPEN_FILES,
        max_routes: int = MAX_ROUTES,
        utc: bool = False,
        clock: Callable[[], float],
        warn: Callable[[str], None],
    ) -> None:
        self.name = name
        self.write_errors = self.backups_removed = 0
        self._format = format
        self._template = template
        self._root = (directory / template.root).absolute()
        self._keeping = keeping._replace(is_one_of_many=True)
        self._max_open_files = max_open_files
        self._max_routes = max_routes
        self._broken_down = gmtime if utc else localtime
        self._clock = clock
        self._warn: Callable[[str], None] = lambda text: warn(f"sink {name}: {text}")
        self._thread = SinkThread(f"aiolog-{name}")
        self._backups_thread = SinkThread(f"aiolog-backups-{name}")
        self._lock = -1
        self._date = ""
        self._files: dict[str, LiveFile] = {}  # by path below the root
        self._opened: dict[str, LiveFile] = {}  # those of them with descriptors, the one written longest ago first
        self._families: set[str] = set()  # paths without their dates that have a file
        self._barred: set[str] = set()  # those that cannot have one
        self._inherited: dict[str, dict[bytes, Mark]] = {}  # by family: what the ledgers of other dates know
        self._old_ledgers: dict[str, list[Path]] = {}
        self._late: dict[str, str] = {}  # paths and families of files whose day is over, and that could not be ended
        self._is_full = False  # whether it was said that no more names are taken
        self._retired: tuple[int, ...] = 0, 0, 0  # records, bytes and rotations of files whose day is over
        self._looking: asyncio.Task[None] | None = None
        self._last_sweep: Future[None] = Future()
        self._swept_at, self._swept_rotations = 0.0, 0

    # -- what it counted

    @property
    def records_written(self) -> int:
        """How many records were committed."""
        return sum(live.records_written for live in list(self._files.values())) + self._retired[0]

    @property
    def bytes_written(self) -> int:
        """How many bytes were committed, before compression."""
        return sum(live.bytes_written for live in list(self._files.values())) + self._retired[1]

    @property
    def rotations(self) -> int:
        """How many backups were made."""
        return sum(live.rotations for live in list(self._files.values())) + self._retired[2]

    # -- as every sink

    async def open(self) -> None:
        """Open the directory, and end the days of files that are older than today; called by the lane before all else.

        Raises ``ConfigError`` when the directory cannot be used.
        """
        try:
            await wrap(self._open)(executor=self._thread)
        except ConfigError as error:
            self._thread.shutdown()
            self._backups_thread.shutdown()
            raise ConfigError(f"sink {self.name}: {error}") from error
        self._looking = asyncio.create_task(self._look_on(), name=f"look {self.name}")

    async def write(self, group: Sequence[Delivery]) -> None:
        """Commit a group; called by the lane, one group at a time.

        Raises ``OSError`` when it could not all be committed. The lane then calls again with the same deliveries, or
        these and more: what is already in its file is not written again.
        """
        formatted = [
            (source, records, self._format(source, records), session, first_seq)
            for delivery in group
            for source, records, session, first_seq in _runs(delivery)
        ]
        try:
            while True:
                parts: Parts = {}
                for source, records, texts, session, first_seq in formatted:
                    self._sort(parts, source, records, texts, session, first_seq)
                # Where a name turns out to be nobody's, nothing was written, and all of it is sorted again.
                if await wrap(self._commit)(parts, executor=self._thread):
                    return
        except OSError:
            self.write_errors += 1
            raise

    def mark(self, session: bytes) -> None:
        """Return None: each file knows only what is its own, and skips what comes again."""

    @property
    def is_new(self) -> bool:
        """Whether it cannot miss what was acked before: nobody asks it."""
        return True

    def forget(self, session: bytes) -> None:
        """Forget a session that has said BYE, wherever it was written."""
        for live in list(self._files.values()):
            if live.ledger.mark(session) is not None:
                live.ledger.forget(session)
        for marks in list(self._inherited.values()):
            marks.pop(session, None)

    async def look(self) -> None:
        """Do what is due although nobody writes, and follow live files that somebody else renamed."""
        await wrap(self._look)(executor=self._thread)

    async def rotate(self) -> list[str]:
        """Rotate all files in which something stands; returns the names of the backups, below the root.

        Raises ``OSError``, ``ConfigError`` or ``ValueError`` when one cannot be.
        """
        return await wrap(self._rotate)(executor=self._thread)

    async def close(self) -> None:
        """Close all files, in bounded time whatever the disk does; called by the lane after the last write."""
        if self._thread.ended:
            return
        if self._looking is not None:
            self._looking.cancel()
        last = asyncio.wrap_future(self._backups_thread.submit(lambda: None))
        await asyncio.wait([last], timeout=CLOSE_SECONDS)
        for live in list(self._files.values()):
            live.backups.stop()
        await asyncio.wait([last], timeout=CLOSE_SECONDS)
        self._backups_thread.shutdown()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await wrap(self._close)(executor=self._thread)
        except TimeoutError:
            self._warn(f"the disk did not answer for {CLOSE_SECONDS:g} s at the end. The files were left open.")
        self._thread.shutdown()

    # -- which file: on the event loop

    def _today(self) -> str:
        return strftime(self._template.date_format, self._broken_down(self._clock())) if self._template.has_date else ""

    def _sort(  # noqa: PLR0917 - a run, taken apart
        self,
        parts: Parts,
        source: Source,
        records: Sequence[WireRecord],
        texts: Sequence[str],
        session: bytes,
        first_seq: int,
    ) -> None:
        """Add the texts of a run to the parts of their files; each part begins and ends with a text."""
        families: dict[Any, str] = source.plans.setdefault(self, {})
        found: dict[str, tuple[int, list[str]]] = {}
        for n, (wire, text) in enumerate(zip(records, texts, strict=True)):
            if not text:
                continue
            own = self._family(source, wire, families)
            family = self._allowed(own)
            if family != own and self._inherited.get(own, {}).get(session, NOT_SEEN)[0] >= first_seq + n:
                continue  # it stands in a file of its own, of a day that is over
            begun = found.get(family)
            if begun is not None and n - begun[0] - len(begun[1]) <= _MAX_GAP:
                begun[1].extend([""] * (n - begun[0] - len(begun[1])))
                begun[1].append(text)
            else:
                found[family] = begun = n, [text]
                parts.setdefault(family, []).append(Part(session, first_seq + n, begun[1]))

    @property
    def _fallback_path(self) -> Path:
        return self._root / self._template.dated(self._template.fallback, self._date)

    def _family(self, source: Source, wire: WireRecord, families: dict[Any, str]) -> str:
        """Return the path of a record without its date; what a call site gives is remembered."""
        number = wire[1] if isinstance(wire, (tuple, list)) and len(wire) > 1 and type(wire[1]) is int else None
        is_plain = number in source.definitions and (
            len(wire) <= 4 or not isinstance(wire[4], dict) or "processName" not in wire[4]
        )
        if is_plain and number in families:
            return families[number]
        found = attributes(source, wire)
        family = self._template.resolve(
            {
                "app": source.app,
                "host": source.host,
                "logger": found["name"],
                "process": found["processName"] or "",
                "level": found["levelname"],
            }
        )
        if is_plain and source.reserve((family,)):
            families[number] = family
        return family

    def _allowed(self, family: str) -> str:
        """Return the family itself, or the fallback where it has no file and may not have one."""
        if family in self._barred:
            return self._template.fallback
        if family not in self._families:
            if len(self._families) >= self._max_routes:
                if not self._is_full:
                    self._is_full = True
                    self._warn(
                        f"{self._max_routes} files have a name by now; what would need another goes to "
                        f"{self._fallback_path}. Choose a template of fewer names, or raise max_routes."
                    )
                return self._template.fallback
            self._families.add(family)
        return family

    # -- all that follows runs in the sink's thread

    def _open(self) -> None:
        try:
            make_directories(self._root)
            self._lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{self._root} is being written by another server or sink with a template. Stop that one, or choose "
                "another directory."
            ) from None
        except OSError as error:
            raise ConfigError(
                f"cannot open {self._root}: {reason(error)}. Choose a directory that the server's user may write to."
            ) from error
        self._date = self._today()
        for path, family in list(self._own(self._root)):
            live = self._make(path)
            if self._template.dated(family, self._date) != path:
                self._end_day(live, path, family)
            elif live.path.is_file():  # it is opened when it is needed
                self._families.add(family)
                self._files[path] = live
        self._forget_days()
        self._backups_thread.submit(self._sweep)

    def _own(self, directory: Path) -> Iterator[tuple[str, str]]:
        """Yield what this template has made: the paths of live files, which may be gone, and their families.

        A ledger stands beside each; what has none is somebody else's, whatever it is called.
        """
        for found, _, names in os.walk(directory):
            below = Path(found).relative_to(self._root)
            for name in names:
                if name.startswith(".") and name.endswith(".ledger"):
                    path = (below / name[1:].removesuffix(".ledger")).as_posix()
                    family = self._template.family(path)
                    if family is not None:
                        yield path, family

    def _make(self, path: str) -> LiveFile:
        return LiveFile(
            self._root / path,
            # What is bounded by bytes is all files together: _sweep() sees to that.
            self._keeping._replace(retention=self._keeping.retention._replace(max_total_bytes=0, min_free_bytes=0)),
            whole_records=lambda data: whole_records(self._format, data),
            backups_thread=self._backups_thread,
            clock=self._clock,
            warn=self._warn,
        )

    def _end_day(self, live: LiveFile, path: str, family: str) -> None:
        """Make a backup of a file whose date is over, and remember what its ledger knows for the next one."""
        try:
            if live.path.exists():
                if not live.is_open:
                    live.open()
                live.retire()
            else:
                live.ledger.read()  # of a file that ended before, and had no successor yet
        except (OSError, ConfigError, ValueError) as error:
            self._warn(f"{live.path} could not be ended: {reason(error)}. It stays as it is until it can be.")
            self._late[path] = family
            if not live.is_recovered:
                with suppress(ConfigError):  # what stands there is no ledger, and knows nobody
                    live.ledger.read()
        else:
            self._old_ledgers.setdefault(family, []).append(live.ledger.path)
        self._inherited[family] = _merged(self._inherited.get(family, {}), live.ledger.marks)
        self._retired = tuple(map(add, self._retired, (live.records_written, live.bytes_written, live.rotations)))
        live.close()
        self._files.pop(path, None)
        self._opened.pop(path, None)

    def _commit(self, parts: Parts) -> bool:
        """Write all parts, or nothing where a file turns out to be none of ours; False then.

        Raises ``OSError`` when the system refuses.
        """
        self._keep_date()
        fallback = self._template.fallback
        paths = {family: self._template.dated(family, self._date) for family in parts}
        for family, path in paths.items():
            try:
                self._wake(path, family)
            except ConfigError as error:
                cause = error.__cause__
                if family == fallback or (isinstance(cause, OSError) and cause.errno in _COMMON):
                    raise OSError(getattr(cause, "errno", None) or errno.EIO, str(error)) from error
                self._barred.add(family)
                self._families.discard(family)
                self._warn(f"{error} Its records go to {self._fallback_path}.")
                return False
        # The fallback last: what it has of a session proves then that all other files have their part, so that a name
        # which comes to it later has nothing to catch up on.
        for family in sorted(parts, key=lambda family: family == fallback):
            try:
                live = self._wake(paths[family], family)
            except ConfigError as error:  # it was open a moment ago, and had to let go for others
                raise OSError(errno.EIO, str(error)) from error
            live.append(parts[family])
        return True

    def _keep_date(self) -> None:
        if (date := self._today()) != self._date:
            self._end_days(date)

    def _end_days(self, date: str) -> None:
        for path, live in list(self._files.items()):
            family = self._template.family(path)
            if family is not None and self._template.dated(family, date) != path:
                self._end_day(live, path, family)
                self._families.discard(family)
        self._date, self._is_full = date, False
        self._barred.clear()
        self._forget_days()

    def _forget_days(self) -> None:
        """Let go of what ended days know of nobody who may come back: names that never do would be ever more."""
        oldest = self._clock() - self._keeping.session_ttl_seconds
        for family, marks in list(self._inherited.items()):
            if all(seen_at < oldest for _, seen_at in list(marks.values())):
                del self._inherited[family]
                for ledger in self._old_ledgers.pop(family, ()):
                    ledger.unlink(missing_ok=True)

    def _wake(self, path: str, family: str) -> LiveFile:
        """Return a file, open, and now the last that will have to let go. Raises ``ConfigError`` as opening does."""
        live = self._opened.pop(path, None)
        if live is None:
            live = self._files.get(path) or self._make(path)
            known = self._known(path, family)
            self._make_room()
            self._confine(path)
            live.open(known)
            self._families.add(family)
            self._inherited.pop(family, None)
            self._files[path] = live
        # Not before the new ledger is on the disk, which a full one puts off: a crash would have nothing to go by.
        if family in self._old_ledgers and live.is_settled:
            for ledger in self._old_ledgers.pop(family):
                if ledger != live.ledger.path:
                    ledger.unlink(missing_ok=True)
        self._opened[path] = live
        return live

    def _known(self, path: str, family: str) -> dict[bytes, Mark]:
        """Return what a file that is opened now continues: the last day of its name, and the fallback.

        For a name that has no file yet may have been one too many before, a day or a restart ago, and its records went
        to the fallback. As that is written last, all up to its marks stands somewhere.
        """
        known, fallback = dict(self._inherited.get(family, {})), self._template.fallback  # a copy: forget() is about
        if path in self._files or family == fallback:
            return known
        other = self._template.dated(fallback, self._date)
        elsewhere = self._inherited.get(fallback, {})
        if other in self._files:
            elsewhere = self._wake(other, fallback).ledger.marks
        return _merged(known, elsewhere)

    def _make_room(self) -> None:
        """Let the files go that were written longest ago, until one more may be open."""
        while len(self._opened) >= self._max_open_files:
            self._opened.pop(next(iter(self._opened))).rest()

    def _confine(self, path: str) -> None:
        """Refuse a path that a link in it would lead elsewhere. Raises ``ConfigError``."""
        below = self._root
        for part in Path(path).parts[:-1]:
            below /= part
            if below.is_symlink():
                raise ConfigError(f"cannot open {self._root / path}: {below} is a symbolic link.")

    def _rotate(self) -> list[str]:
        made = []
        for path, live in list(self._files.items()):
            if live.path.exists():
                name = self._wake(path, self._template.family(path) or path).rotate()
                made += [str(Path(path).with_name(name))] * bool(name)
        return made

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    def _look(self) -> None:
        late, self._late = self._late, {}
        for path, family in late.items():
            if self._template.dated(family, self._date) != path:  # or the clock was set back, and it is in use again
                self._end_day(self._make(path), path, family)
        self._keep_date()
        for live in list(self._opened.values()):
            live.look()
        now, rotations = self._clock(), self.rotations
        if rotations != self._swept_rotations or not 0 <= now - self._swept_at < SWEEP_SECONDS:
            self._swept_at, self._swept_rotations = now, rotations
            self._last_sweep.cancel()  # if it has not begun yet, this one sees all that it would have
            self._last_sweep = self._backups_thread.submit(self._sweep)

    def _close(self) -> None:
        for live in self._opened.values():
            live.close()
        if self._lock >= 0:
            os.close(self._lock)

    # -- in the thread of the backups

    def _sweep(self) -> None:
        try:
            self._keep_bounds()
        except Exception as error:  # noqa: BLE001 - nobody waits for this thread, so it says what it met
            self._warn(f"retention in {self._root} failed: {reason(error)}. It is tried again.")

    def _keep_bounds(self) -> None:
        """Keep the bounds of retention over all files of the template, of whatever day; compress what was left over."""
        families: dict[str, dict[tuple[int, int, str], Aged]] = {}
        live_bytes = 0
        for found, _, names in os.walk(self._root):
            below = Path(found).relative_to(self._root)
            self._tend_left_over(below, names)
            for name in os.listdir(found):  # noqa: PTH208 - names, not paths
                split = split_backup(name)
                path = (below / (split[0] if split else name)).as_posix()
                family = self._template.family(path)
                if family is None:
                    continue
                size_bytes = 0
                with suppress(OSError):
                    size_bytes = Path(found, name).lstat().st_size
                if split is None:
                    live_bytes += size_bytes
                    continue
                backup = split[1]
                own = families.setdefault(family, {})
                # With the path: those of two days of one name are no twins, though both ended in one second.
                twin = own.get(key := (backup.stamp, backup.counter, path), Aged(backup.stamp, (), 0))
                own[key] = Aged(backup.stamp, (*twin.names, (below / name).as_posix()), twin.size_bytes + size_bytes)
        retention, now = self._keeping.retention, self._clock()
        live = {file.backups.live for file in list(self._files.values())}  # after the look: no name of it is younger
        left: list[Aged] = []
        for own in families.values():
            backups = [own[key] for key in sorted(own)]
            expired = retention._replace(max_total_bytes=0, min_free_bytes=0).expired(backups, now=now)
            self.backups_removed += remove(self._root, expired, live, self._warn)
            left += backups[len(expired) :]
        left.sort(key=lambda backup: backup.stamp)
        expired = retention._replace(backup_count=0, max_age_seconds=0).expired(
            left, now=now, live_bytes=live_bytes, free_bytes=free_on(self._root)
        )
        self.backups_removed += remove(self._root, expired, live, self._warn)

    def _tend_left_over(self, below: Path, names: Sequence[str]) -> None:
        """See to backups that an earlier server did not come to compress, or of which it left a half."""
        left_over = set()
        for name in names:
            split = split_backup(name.removesuffix(PARTIAL))
            if split and (name.endswith(PARTIAL) or (self._keeping.compress and not split[1].suffix)):
                left_over.add((below / split[0]).as_posix())
        for path in left_over:
            if self._template.family(path) is not None:
                (self._files.get(path) or self._make(path)).backups.tend_now()


def _merged(one: Mapping[bytes, Mark], other: Mapping[bytes, Mark]) -> dict[bytes, Mark]:
    return {session: max(one.get(session, NOT_SEEN), other.get(session, NOT_SEEN)) for session in {**one, **other}}


def _runs(delivery: Delivery) -> Iterator[tuple[Source, Sequence[WireRecord], bytes, int]]:
    """Yield what a format takes, with the session and the first seq: the notices, then the records."""
    if delivery.notices:
        yield delivery.notice_source, delivery.notices, delivery.session, delivery.first_seq - len(delivery.notices)
    yield delivery.source, delivery.records, delivery.session, delivery.first_seq
