r"""The ledger: what one file sink has written, kept beside its file across crashes.

Before a group of records is written, one entry says what is about to be written: which file, from where, how many
bytes, their checksum, and which records of which sessions. After a crash the entry and the file together tell what
became of the group, so that records which come again are recognised::

    .app.log.ledger := "aiolog ledger 1\\n" entry*
    entry           := u32 length | u32 crc32 of what follows | body       all little-endian

    body            := u8 kind | f64 time | u64 inode | u64 offset | u64 size | u32 crc32 of the data
                       | u32 runs | u32 forgotten | run* | session*
    run             := session (16 bytes) | u64 first_seq | u32 records | u8 form | as many bytes, if form is SOME

A run covers ``records`` records of a session from ``first_seq`` on. ALL of them have a text in the file, or NONE (the
sink's filter took none), or SOME, and then one byte for each tells. ``forgotten`` sessions have said BYE.

Of kind GROUP is an entry that announces a write. The next entry proves that it was completed; so only the last
GROUP is ever in doubt, or after a power cut several. SETTLED ends all doubt about those before it: it is written
before each rotation and where a new live file begins. MARKS says all that there is to know, and begins every ledger
that was compacted; its runs mean that a session has been written up to ``first_seq``, and ``records`` is when it
was last seen, in whole seconds.

A *mark* is the last seq of a session that the sink has dealt with: every record up to it is written, or was none of
the sink's. Knows the file system; must never know a record's content, a socket or a lane.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import SEEK_END, BytesIO
from pathlib import Path
from time import monotonic
from typing import BinaryIO, NamedTuple, TypeAlias

from aiolog import crash
from aiolog.checksum import crc32
from aiolog.errors import ConfigError, reason

MAGIC = b"aiolog ledger 1\n"
SESSION_BYTES = 16
COMPACT_BYTES = 1 << 20  # about 10,000 groups: two seconds under full load, and read in 50 ms at a start
COMPACT_RATIO = 4  # times its marks, if that is more
OVERGROWN = 16  # times as long as that: a compaction that fails is tried again at the double, so four have failed
COUNT_MAX = (1 << 32) - 1
FILE_MODE = 0o600  # it holds the names of sessions, and who knows a session's name may continue it
GROUP, SETTLED, MARKS = 1, 2, 3
ALL, NONE, SOME = 0, 1, 2

_FRAME = struct.Struct("<II")
_BODY = struct.Struct("<BdQQQIII")
_RUN = struct.Struct("<16sQIB")
_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_FOUND_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO is not waited for
_NO_FILE = {errno.ELOOP, errno.ENXIO, errno.ENODEV}  # open() of a link, a socket, a device that is not there


Mark: TypeAlias = tuple[int, float]
"""A seq, and when it was dealt with, in seconds since the epoch."""


class Run(NamedTuple):
    """``records`` records of a session from ``first_seq`` on; ``has_text`` is a byte for each, or ALL or NONE."""

    session: bytes
    first_seq: int
    records: int
    has_text: bytes | int = ALL

    @property
    def last_seq(self) -> int:
        """The last record that it covers."""
        return self.first_seq + self.records - 1

    @classmethod
    def of(cls, session: bytes, first_seq: int, texts: Sequence[str]) -> Run:
        """Return the run of texts, of which the empty ones stand for records that the sink did not take."""
        if all(texts):
            return cls(session, first_seq, len(texts))
        return cls(session, first_seq, len(texts), bytes(map(bool, texts)) if any(texts) else NONE)

    def seq_of(self, texts: int) -> int:
        """Return the seq up to which it is written, when so many of its texts are; ``first_seq - 1`` for none."""
        if self.has_text == ALL:
            return self.first_seq + min(texts, self.records) - 1
        if self.has_text == NONE:
            return self.last_seq
        assert isinstance(self.has_text, bytes)
        positions = [n for n, has in enumerate(self.has_text) if has]
        return self.last_seq if texts >= len(positions) else self.first_seq + positions[texts] - 1

    @property
    def texts(self) -> int:
        """How many of its records have a text."""
        if isinstance(self.has_text, bytes):
            return sum(self.has_text)
        return self.records if self.has_text == ALL else 0


class Entry(NamedTuple):
    """One entry: what was about to be written, or where all doubt ended."""

    kind: int
    time: float
    inode: int
    offset: int
    size: int
    crc: int
    runs: tuple[Run, ...] = ()
    forgotten: tuple[bytes, ...] = ()

    @property
    def end(self) -> int:
        """Where the file ends when it is written."""
        return self.offset + self.size


def encode(entry: Entry) -> bytes:
    r"""Return an entry as it stands in the ledger.

    >>> entry = Entry(GROUP, 1.5, 2, 3, 4, 5, (Run(b"s" * 16, 7, 3, b"\1\0\1"),), (b"t" * 16,))
    >>> [found for found, _ in decode(MAGIC + encode(entry))] == [entry]
    True
    """
    parts = [_BODY.pack(*entry[:6], len(entry.runs), len(entry.forgotten))]
    for session, first_seq, records, has_text in entry.runs:
        if isinstance(has_text, bytes):
            parts += (_RUN.pack(session, first_seq, records, SOME), has_text)
        else:
            parts.append(_RUN.pack(session, first_seq, records, has_text))
    body = b"".join((*parts, *entry.forgotten))
    return _FRAME.pack(len(body), crc32(body)) + body


def decode(data: bytes) -> Iterator[tuple[Entry, int]]:
    """Yield the entries of a ledger with where each ends, up to the first that is not whole; raises nothing."""
    return _decode(BytesIO(data), len(data))


def _decode(file: BinaryIO, max_bytes: int) -> Iterator[tuple[Entry, int]]:
    """Do as :func:`decode` does, with one entry in memory at a time, and up to ``max_bytes``. Raises OSError."""
    if file.read(len(MAGIC)) != MAGIC:
        return
    position = len(MAGIC)
    while len(frame := file.read(_FRAME.size)) == _FRAME.size:
        length, crc = _FRAME.unpack(frame)
        position += _FRAME.size + length
        if position > max_bytes:  # before there is memory for it
            return
        body = file.read(length)
        if len(body) != length or crc32(body) != crc:
            return
        try:
            entry = _entry(body)
        except (struct.error, ValueError):
            return
        yield entry, position


def _entry(body: bytes) -> Entry:
    """Raises struct.error or ValueError for what is none."""
    kind, time, inode, offset, size, crc, run_count, forgotten_count = _BODY.unpack_from(body)
    position = _BODY.size
    runs = []
    for _ in range(run_count):
        session, first_seq, records, form = _RUN.unpack_from(body, position)
        position += _RUN.size
        has_text: bytes | int = form
        if form == SOME:
            has_text = body[position : position + records]
            position += records
        runs.append(Run(session, first_seq, records, has_text))
    end = position + forgotten_count * SESSION_BYTES
    if end != len(body):
        raise ValueError("an entry of another length than its parts")
    forgotten = tuple(body[at : at + SESSION_BYTES] for at in range(position, end, SESSION_BYTES))
    return Entry(kind, time, inode, offset, size, crc, tuple(runs), forgotten)


class Ledger:
    """The marks of one file sink, and the file that keeps them.

    ``synced``: each entry is on the disk before :meth:`announce` returns. ``clock``: seconds since the epoch. Marks
    older than ``ttl_seconds`` go at a compaction, and the oldest beyond ``max_sessions``. ``warn`` takes a sentence.
    ``syncs_first`` is for who asks after a power cut what it took; of many small ledgers nobody does. ``monotonic``:
    seconds that only pass, and never jump. All methods but :meth:`mark` and :meth:`forget` are the sink's thread's.

    A mark gets older only while there is a server that its session could come back to. Its moment is one of the
    clock's; when the clock says that more has passed than this process has lived through, the moments move along.
    """

    def __init__(
        self,
        path: Path,
        *,
        synced: bool,
        ttl_seconds: float,
        max_sessions: int,
        clock: Callable[[], float],
        warn: Callable[[str], None],
        syncs_first: bool = True,
        monotonic: Callable[[], float] = monotonic,
    ) -> None:
        self.doubtful: list[Entry] = []  # what read() found announced, and nothing that proves it completed
        self.settled: Entry | None = None  # the last entry that ended all doubt
        self.is_damaged = False  # it was there, and could not all be read
        self.path = path
        self._synced = synced
        self._syncs_first = syncs_first
        self._ttl_seconds = ttl_seconds
        self._max_sessions = max_sessions
        self._clock = clock
        self._warn = warn
        self._marks: dict[bytes, int] = {}
        self._seen_at: dict[bytes, float] = {}
        self._monotonic = monotonic
        self._looked_at, self._ticked_at = clock(), monotonic()  # the same moment, when moments were right
        self._leaving: deque[bytes] = deque()  # sessions that have said BYE, not yet in an entry
        self._descriptor = -1
        self._end = 0  # of what is proven; an announced entry stands behind it until the next comes
        self._announced: tuple[Entry, int] | None = None
        self._is_void = False  # whether what stands behind the end is nothing that counts
        self._compact_at = COMPACT_BYTES
        self._resting_inode: int | None = None

    # -- any thread

    def mark(self, session: bytes) -> int | None:
        """Return the last seq of the session that was dealt with, or None where nothing is known of it."""
        return self._marks.get(session)

    def forget(self, session: bytes) -> None:
        """Forget a session that is complete; the next entry says so."""
        self._leaving.append(session)

    # -- at a start

    def read(self) -> bool:
        """Take what is there into the marks and :attr:`doubtful`; whether there was anything.

        May be called again. Nothing is written before :meth:`settle`. Raises ConfigError for what is no regular file.
        """
        self._marks, self._seen_at, self.doubtful, self.settled, self.is_damaged = {}, {}, [], None, False
        self._looked_at, self._ticked_at = self._clock(), self._monotonic()
        try:
            descriptor = self._open_found()
        except FileNotFoundError:
            return False
        except OSError as error:
            self._warn(f"cannot read {self.path}: {reason(error)}.")
            self.is_damaged = True
            return True
        try:
            with open(descriptor, "rb", closefd=False) as file:
                self._take(file)
        except OSError as error:
            self._warn(f"cannot read all of {self.path}: {reason(error)}.")
            self.is_damaged = True
        finally:
            os.close(descriptor)
        return True

    def _open_found(self) -> int:
        """Open what stands in the place of the ledger. Raises ConfigError for what is no regular file, OSError."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | _FOUND_FLAGS)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise self._no_file() from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._no_file()
        return descriptor

    def _no_file(self) -> ConfigError:
        return ConfigError(f"{self.path} is not a regular file. Remove it, and a ledger is made in its place.")

    def _take(self, file: BinaryIO) -> None:
        """Take all entries, their moments moved to the present. Raises OSError; what came before it is taken."""
        longest = _entry_bytes(self._max_sessions) + len(MAGIC)
        limit = OVERGROWN * max(COMPACT_BYTES, COMPACT_RATIO * longest)
        end, lived, before = len(MAGIC), 0.0, None
        try:
            for entry, end in _decode(file, limit):  # noqa: B007 - where the last one ends is looked at below
                if before is not None:  # what looks longer is more likely a clock that was set than silence
                    lived += min(max(0.0, entry.time - before), self._ttl_seconds / 2)
                before = entry.time
                if entry.kind == GROUP:
                    self.doubtful.append(entry._replace(time=lived))
                    continue
                if entry.kind == SETTLED:
                    for announced in self.doubtful:
                        self.apply(announced)
                    self._drop(entry.forgotten)
                else:
                    self._marks = {run.session: run.first_seq for run in entry.runs}
                    self._seen_at = {run.session: lived - max(0.0, entry.time - run.records) for run in entry.runs}
                self.doubtful.clear()
                self.settled = entry
        finally:
            # The time since the last entry does not count: who knows how much of it there was a server.
            missed = self._looked_at - lived
            self._seen_at = {session: seen_at + missed for session, seen_at in self._seen_at.items()}
            self.doubtful = [entry._replace(time=entry.time + missed) for entry in self.doubtful]
        # A kill amid the last entry leaves less than it says; anything else is damage.
        rest = file.seek(0, SEEK_END) - end
        file.seek(end)
        frame = file.read(_FRAME.size)
        is_torn = len(frame) < _FRAME.size or rest < _FRAME.size + _FRAME.unpack(frame)[0]
        file.seek(0)
        self.is_damaged = file.read(len(MAGIC)) != MAGIC or not is_torn

    def apply(self, entry: Entry, texts: int | None = None) -> int:
        """Count an entry as written, or only its first ``texts`` texts; returns how many records that leaves out."""
        if texts is None:
            for session, first_seq, records, _ in entry.runs:
                if records:
                    self._advance(session, first_seq + records - 1, entry.time)
            self._drop(entry.forgotten)
            return 0
        left = 0
        for run in entry.runs:
            # What comes after a run that is not whole was not written either, even if it has no texts.
            last_seq = run.first_seq - 1 if left else run.seq_of(texts)
            texts -= min(texts, run.texts)
            left += run.last_seq - last_seq
            if last_seq >= run.first_seq:
                self._advance(run.session, last_seq, entry.time)
        if not left:
            self._drop(entry.forgotten)
        return left

    # -- in service

    def announce(self, inode: int, offset: int, data: bytes | bytearray, runs: Iterable[Run]) -> None:
        """Write the entry of a group that is about to be written. Raises OSError; then nothing must be written."""
        forgotten = tuple(self._leaving)
        crash.point("before_ledger")
        self._put(Entry(GROUP, self._clock(), inode, offset, len(data), crc32(data), tuple(runs), forgotten))
        crash.point("after_ledger")

    def committed(self) -> None:
        """Count what was announced as true."""
        assert self._announced is not None
        entry, self._end = self._announced
        self._announced, self._is_void = None, False
        self.apply(entry)
        for _ in entry.forgotten:
            self._leaving.popleft()

    def settle(self, inode: int, size: int) -> None:
        """End all doubt: the live file has this inode and size, and the marks are true.

        What was announced and not committed is void. Raises OSError.
        """
        if self._descriptor < 0 or not self._is_in_place():
            self._compact(inode, size)
        elif self.is_long:
            try:
                self._compact(inode, size)
            except OSError as error:  # no inode for a second file, say, where the first can still grow
                self._compact_at = 2 * self._end
                self._warn(f"cannot shorten {self.path} now: {reason(error)}. It grows on meanwhile.")
                self._settle(inode, size)
        else:
            self._settle(inode, size)

    def _is_in_place(self) -> bool:
        """Whether what we write to is what a restart would read."""
        try:
            return self.path.lstat().st_ino == os.fstat(self._descriptor).st_ino
        except OSError:
            return False

    @property
    def is_long(self) -> bool:
        """Whether it is time for a :meth:`settle`, which makes it short again."""
        return self._end >= self._compact_at

    def inherit(self, marks: Mapping[bytes, Mark]) -> None:
        """Take over what another ledger knew, of a file that this one's continues. Before :meth:`settle`."""
        for session, (seq, seen_at) in marks.items():
            self._advance(session, seq, max(seen_at, self._seen_at.get(session, 0.0)))

    @property
    def marks(self) -> dict[bytes, Mark]:
        """The last seq that was dealt with, and when, of each session that is known."""
        return {session: (seq, self._seen_at[session]) for session, seq in self._marks.items()}

    def rest(self) -> None:
        """Let go of the file, and remember it: :meth:`wake` goes on with it, if it is still the same."""
        if self._descriptor >= 0 and self._is_in_place():
            self._resting_inode = os.fstat(self._descriptor).st_ino
        self.close()

    def wake(self) -> None:
        """Open the file again; where it is another by now, the next :meth:`settle` begins a new one."""
        inode, self._resting_inode = self._resting_inode, None
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_RDWR | _FOUND_FLAGS)
            status = os.fstat(descriptor)
            if status.st_ino == inode and status.st_size >= self._end:
                self._descriptor = descriptor
            else:
                os.close(descriptor)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1

    # -- its own

    def _put(self, entry: Entry) -> None:
        """Write an entry behind what is proven, over one that was announced in vain."""
        data = encode(entry)
        if crash.is_due("mid_ledger"):
            os.pwrite(self._descriptor, data[: len(data) // 2], self._end)
            crash.die()
        if self._is_void:  # of an old one that was longer nothing may be left behind the new one
            os.ftruncate(self._descriptor, self._end)
        self._announced, self._is_void = None, True
        if os.pwrite(self._descriptor, data, self._end) != len(data):
            raise OSError(errno.ENOSPC, "the system took only a part of an entry")
        if self._synced:
            try:
                os.fdatasync(self._descriptor)
            except OSError:
                self.close()  # nobody knows what of it is on the disk, so that the next settle() begins a new one
                raise
        self._announced = entry, self._end + len(data)

    def _settle(self, inode: int, size: int) -> None:
        self._put(Entry(SETTLED, self._clock(), inode, size, 0, 0, forgotten=tuple(self._leaving)))
        self.committed()

    def _compact(self, inode: int, size: int) -> None:
        """Write the marks into a new ledger, and put it in the place of the old one.

        With ``syncs_first`` the first one of a process is put on the disk in any case: whoever was acked something
        before a power cut is then known to have been there.
        """
        now, is_synced = self._clock(), self._synced or (self._syncs_first and self._descriptor < 0)
        leaving = tuple(self._leaving)
        self._drop(leaving)
        self._expire(now)
        marks = tuple(
            Run(session, seq, max(0, min(int(self._seen_at[session]), COUNT_MAX)))
            for session, seq in self._marks.items()
        )
        data = MAGIC + encode(Entry(MARKS, now, inode, size, 0, 0, marks))
        new = self.path.with_name(self.path.name + ".new")
        try:
            with suppress(FileNotFoundError):
                new.unlink()
        except IsADirectoryError as error:
            raise _in_the_way(new) from error
        descriptor = os.open(new, _OPEN_FLAGS | os.O_EXCL, FILE_MODE)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if is_synced:
                os.fdatasync(descriptor)
            crash.point("compact_tmp")
            new.replace(self.path)
            crash.point("compact_renamed")
            if is_synced:
                sync_directory(self.path.parent)
        except BaseException as error:
            os.close(descriptor)
            new.unlink(missing_ok=True)
            if isinstance(error, IsADirectoryError):
                raise _in_the_way(self.path) from error
            raise
        self.close()
        self._descriptor, self._end = descriptor, len(data)
        self._announced, self._is_void = None, False
        self._compact_at = max(COMPACT_BYTES, COMPACT_RATIO * len(data))
        for _ in leaving:
            self._leaving.popleft()

    def _expire(self, now: float) -> None:
        """Drop marks that are too old or too many."""
        ticks = self._monotonic()
        jump = max(0.0, (now - self._looked_at) - (ticks - self._ticked_at))
        self._looked_at, self._ticked_at = now, ticks
        self._seen_at = {session: min(seen_at + jump, now) for session, seen_at in self._seen_at.items()}
        self._drop([session for session, seen_at in self._seen_at.items() if now - seen_at > self._ttl_seconds])
        surplus = len(self._marks) - self._max_sessions
        if surplus > 0:
            self._drop(sorted(self._marks, key=lambda session: self._seen_at[session])[:surplus])
            self._warn(
                f"{surplus} sessions were forgotten, for there are more than {self._max_sessions}. If they come back, "
                "what they send again may stand twice. Raise server.max_sessions."
            )

    def _advance(self, session: bytes, last_seq: int, seen_at: float) -> None:
        if last_seq > self._marks.get(session, -1):
            self._marks[session] = last_seq
        self._seen_at[session] = seen_at

    def _drop(self, sessions: Iterable[bytes]) -> None:
        for session in sessions:
            self._marks.pop(session, None)
            self._seen_at.pop(session, None)


def _entry_bytes(marks: int) -> int:
    return _FRAME.size + _BODY.size + marks * _RUN.size


def _in_the_way(path: Path) -> OSError:
    """Return an error without a number, so that its own text is what is said of it."""
    return OSError(f"{path} is a directory. Remove it")


def sync_directory(directory: Path) -> None:
    """Put the names in a directory on the disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
