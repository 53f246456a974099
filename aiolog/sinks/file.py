"""The sink that writes a file: group commit, rotation, compression, retention.

It knows the file system. It must never know a socket, a session's ack or the configuration. What is due and what a
backup is called it asks :mod:`aiolog.rotation`; what a record looks like, its format.

Three things with a thread each::

    FileSink    event loop         formats a group, waits for
    _LiveFile   the sink's thread  the live file: write, repair, rotate; one hop a group
    _Backups    a second thread    what was rotated away: remove the oldest, compress the rest; never in the way

A group that cannot be written leaves nothing behind: the file is cut back to where the group began, and the same
group comes again. What is written already, of a group that went over a rotation or of one that comes again after a
crash, its :mod:`aiolog.ledger` knows, and it is not written twice.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from aiofiles.os import wrap

from aiolog import crash
from aiolog.errors import ConfigError, reason
from aiolog.fanout import Delivery
from aiolog.formatting import Format, whole_records
from aiolog.ledger import Entry, Ledger, Run, sync_directory
from aiolog.rotation import SUFFIXES, Schedule, due, expired, next_backup, parse_backup, stamp_text
from aiolog.sinks import SinkThread

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FILE_MODE = 0o640  # the group may read: that is how log shippers and adm are let in
DIRECTORY_MODE = 0o750
ROTATION_RETRY_SECONDS = 10.0  # a directory that refuses a rotation is asked again, but not for every group
TAIL_BLOCK_BYTES = 64 << 10  # read at a time when looking for the last whole line, and when moving a torn one
COMPRESS_BLOCK_BYTES = 1 << 20  # about 10 ms of work: how soon a compression notices that it must stop
COMPRESS_CLOSE_SECONDS = 2.0  # what close() waits for compression; an unfinished one is redone at the next start
CLOSE_SECONDS = 2.0  # what close() waits for a stuck disk: with the above it stays below a drain of 5 s
PARTIAL = ".tmp"  # ends the name of a compressed backup that is not whole yet
VERIFY_BYTES = 8 << 20  # of what a power cut may have kept from the disk: 30 s of writing, read in 20 ms at a start
SESSION_TTL_SECONDS = 7 * 86_400.0
MAX_SESSIONS = 65_536

# What a lone surrogate becomes, which a raw template lets through: a record is degraded, never refused.
_ERRORS = "backslashreplace"
_OPEN_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class FileSink:
    """Write deliveries to one file, as the protocol :class:`aiolog.fanout.Sink` asks.

    ``max_bytes`` (0: off) and ``schedule`` say when to rotate, ``backup_count`` (0: all) what to keep. The file
    never gets larger than ``max_bytes``, except by a single record that is. ``durability`` is what a return of
    :meth:`write` means: ``written``, it survives this process; ``fsynced``, it survives a power cut. Of sessions
    that do not come back the ledger keeps at most ``max_sessions``, for ``session_ttl_seconds``. ``clock`` gives
    seconds since the epoch. ``warn`` takes one sentence for the operator; any thread may call it.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        format: Format,  # noqa: A002 - the word of the configuration
        *,
        max_bytes: int = 0,
        schedule: Schedule | None = None,
        backup_count: int = 0,
        compress: Literal["", "gzip", "zstd"] = "",
        durability: Literal["written", "fsynced"] = "written",
        session_ttl_seconds: float = SESSION_TTL_SECONDS,
        max_sessions: int = MAX_SESSIONS,
        clock: Callable[[], float],
        warn: Callable[[str], None],
    ) -> None:
        def say(text: str) -> None:
            warn(f"sink {name}: {text}")

        path = path.absolute()
        fsynced = durability == "fsynced"
        self.name = name
        self.write_errors = 0
        self._format = format
        self._warn = say
        self._ledger = Ledger(
            path.with_name(f".{path.name}.ledger"),
            synced=fsynced,
            ttl_seconds=session_ttl_seconds,
            max_sessions=max_sessions,
            clock=clock,
            warn=say,
        )
        self._backups = _Backups(path, backup_count, compress, say)
        self._live = _LiveFile(
            path,
            max_bytes,
            schedule,
            self._backups,
            self._ledger,
            whole_records=lambda data: whole_records(format, data),
            fsynced=fsynced,
            clock=clock,
            warn=say,
        )
        # Everything that touches the file runs here, so a write never meets another, nor a close.
        self._thread = SinkThread(f"aiolog-{name}")
        self._append = wrap(self._live.append)

    @property
    def records_written(self) -> int:
        """How many records were committed."""
        return self._live.records_written

    @property
    def bytes_written(self) -> int:
        """How many bytes were committed, before compression."""
        return self._live.bytes_written

    @property
    def rotations(self) -> int:
        """How many backups were made."""
        return self._live.rotations

    async def open(self) -> None:
        """Open the file, with its directories, and repair what a crash left; called by the lane before all else.

        Raises ``ConfigError`` when the path cannot be used.
        """
        try:
            await wrap(self._live.open)(executor=self._thread)
        except ConfigError as error:
            self._thread.shutdown()
            raise ConfigError(f"sink {self.name}: {error}") from error

    async def write(self, group: Sequence[Delivery]) -> None:
        """Commit a group; called by the lane, one group at a time.

        Raises ``OSError`` when it could not all be committed. The lane then calls again with the same deliveries,
        or these and more: what is already in a file of it, before a rotation, is not written again. A
        cancellation does not stop the thread: the group may be committed or not, and if it is given once more,
        it will be exactly once.
        """
        parts = []
        for delivery in group:
            texts = self._format(delivery.source, delivery.records)
            if delivery.notices:
                texts = [*self._format(delivery.notice_source, delivery.notices), *texts]
            parts.append(_Part(delivery.session, delivery.first_seq - len(delivery.notices), texts))
        try:
            await self._append(parts, executor=self._thread)
        except OSError:
            self.write_errors += 1
            raise

    def mark(self, session: bytes) -> int | None:
        """Return the last record of the session that is dealt with here, across restarts; 0 if it is unknown.

        None as long as it could not be found out what a crash left.
        """
        return (self._ledger.mark(session) or 0) if self._live.is_recovered else None

    def forget(self, session: bytes) -> None:
        """Forget a session that has said BYE."""
        self._ledger.forget(session)

    async def close(self) -> None:
        """Close the file, in bounded time whatever the disk does; called by the lane after the last write."""
        if self._thread.ended:
            return
        await self._backups.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await wrap(self._live.close)(executor=self._thread)
        except TimeoutError:
            self._warn(f"the disk did not answer for {CLOSE_SECONDS:g} s at the end. The file was left open.")
        self._thread.shutdown()


class _Part(NamedTuple):
    """A delivery, formatted: ``texts[n]`` is the record ``first_seq + n`` of the session, "" if it is not taken."""

    session: bytes
    first_seq: int
    texts: Sequence[str]

    def between(self, begin: int, end: int) -> _Part:
        """Return the part of it from the ``begin``-th text to before the ``end``-th."""
        return _Part(self.session, self.first_seq + begin, self.texts[begin:end])


class _LiveFile:
    """The live file; all methods run in the sink's thread.

    ``_size`` is what the system said last, never a sum of our own: a write that claims too much is found out.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        schedule: Schedule | None,
        backups: _Backups,
        ledger: Ledger,
        *,
        whole_records: Callable[[bytes], list[int]],
        fsynced: bool,
        clock: Callable[[], float],
        warn: Callable[[str], None],
    ) -> None:
        self.records_written = self.bytes_written = self.rotations = 0
        self._path = path
        self._max_bytes = max_bytes
        self._schedule = schedule
        self._backups = backups
        self._ledger = ledger
        self._whole_records = whole_records
        self._fsynced = fsynced
        self._clock = clock
        self._warn = warn
        self._descriptor = -1
        self._inode = 0
        self._size = 0
        self.is_recovered = False  # whether it is known what a crash left
        self._settled = False  # whether the ledger knows that this is the live file, and how large it is
        self._cut_at: int | None = None  # where a group began that failed, until what it left is cut off
        self._mended = False  # whether the last line is known to be whole
        self._suspicious = False  # after a failed fsync nobody knows what of this file is on the disk
        self._directory_dirty = False  # whether a name is not on the disk yet
        self._rotate_at: float | None = None
        self._scheduled_at = 0.0  # the moment from which _rotate_at was computed
        self._held_at: float | None = None  # when a rotation failed

    # -- called through the sink

    def open(self) -> None:
        """Open and repair. Raises ``ConfigError``."""
        now = self._clock()
        self._adopt(self._open_path(), now)
        try:
            self._settle(now)
        except OSError as error:  # most likely a full disk, which also tore the line; append() tries again
            self._warn(f"cannot repair the end of {self._path} yet: {reason(error)}.")
        self._backups.tend()

    def append(self, parts: Sequence[_Part]) -> None:
        """Commit all that the ledger does not count as written.

        Raises ``OSError`` when the system refuses; the ledger then counts what was committed before.
        """
        now = self._clock()
        self._prepare(now)
        fresh = [part for part in map(self._fresh, parts) if part.texts]
        data = "".join([text for part in fresh for text in part.texts]).encode(errors=_ERRORS)
        # An empty file counts as one byte here: if it cannot take all, look at each record below.
        if not data or self._held(now) or not due(self._size or 1, len(data), self._max_bytes, now, self._rotate_at):
            self._commit(data, fresh, now)
            return
        chunk: bytearray = bytearray()
        taken: list[_Part] = []
        for part in fresh:
            begin = 0
            for n, text in enumerate(part.texts):
                record = text.encode(errors=_ERRORS)
                size = self._size + len(chunk)
                if text and due(size, len(record), self._max_bytes, now, self._rotate_at) and not self._held(now):
                    self._commit(chunk, [*taken, part.between(begin, n)], now)
                    chunk, taken, begin = bytearray(), [], n
                    self._rotate(now)
                chunk += record
            taken.append(part.between(begin, len(part.texts)))
        self._commit(chunk, taken, now)

    def _fresh(self, part: _Part) -> _Part:
        """Return what of a part is not written yet."""
        mark = self._ledger.mark(part.session)
        if mark is None or mark < part.first_seq:
            return part
        return part.between(min(mark + 1 - part.first_seq, len(part.texts)), len(part.texts))

    def close(self) -> None:
        """Close; what a failed write left is cut off first, if the disk lets us."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._cut_back()
                if self.is_recovered:
                    self._ledger.settle(self._inode, self._size)
            self._ledger.close()
            self._close_descriptor()

    # -- writing

    def _commit(self, data: bytes | bytearray, parts: Sequence[_Part], now: float) -> None:
        """Make the texts of all parts, which ``data`` joins, part of the file: the one place where bytes become so.

        Raises ``OSError`` after taking back what it wrote.
        """
        runs = [Run.of(*part) for part in parts if part.texts]
        if not runs:
            return
        self._settle(now)
        offset = self._size
        try:
            self._ledger.announce(self._inode, offset, data, [run for run in runs if run.session])
            size = self._write(data) if data else offset
            crash.point("after_write")
            if self._fsynced and data:
                self._sync()
                crash.point("after_sync")
        except OSError:
            self._settled = False
            self._cut_at = offset
            with suppress(OSError):
                self._cut_back()
            raise
        self._ledger.committed()
        self._settled = not self._ledger.is_long
        self._size = size
        self.records_written += sum(run.texts for run in runs)
        self.bytes_written += len(data)

    def _write(self, data: bytes | bytearray) -> int:
        """Append all of ``data`` and return the size of the file after it."""
        rest = memoryview(data)
        if crash.is_due("mid_write"):
            os.write(self._descriptor, rest[: len(rest) // 2])
            crash.die()
        while rest:
            taken = os.write(self._descriptor, rest)
            if not taken:
                raise OSError(errno.ENOSPC, "the system takes no more bytes")
            rest = rest[taken:]
        size = os.fstat(self._descriptor).st_size
        if size < self._size + len(data):
            raise OSError(errno.EIO, "the system took bytes that are not in the file")
        return size

    def _sync(self) -> None:
        """Put the file, and its name if that is new, on the disk.

        After a failure the kernel may have dropped the pages and will say yes the next time, so that asking it
        again proves nothing (PostgreSQL's "fsyncgate", 2018): the file is given up, see :meth:`_replace`.
        """
        try:
            os.fdatasync(self._descriptor)
            if self._directory_dirty:
                sync_directory(self._path.parent)
                self._directory_dirty = False
        except OSError as error:
            self._give_up(error)
            raise

    def _cut_back(self) -> None:
        if self._cut_at is not None:
            if os.fstat(self._descriptor).st_size > self._cut_at:  # or it would be filled up with zeros
                os.ftruncate(self._descriptor, self._cut_at)
            self._size, self._cut_at = self._cut_at, None

    def _prepare(self, now: float) -> None:
        """See that the descriptor is the live file, whole, and fit to be written to. Raises ``OSError``."""
        self._cut_back()
        status = os.fstat(self._descriptor)
        if status.st_size < self._size:
            self._settled = False
            self._warn(
                f"{self._path} was cut from {self._size} to {status.st_size} bytes by somebody else. Records may "
                "be lost: have logrotate rename the file (no copytruncate), or let aiolog rotate it."
            )
        self._size = status.st_size
        if not self._is_live(status):
            self._reopen(status, now)
        if self._suspicious:
            self._replace(now)
        self._settle(now)
        if not self._size or now < self._scheduled_at:  # the clock was set back: do not wait for its old future
            self._schedule_from(now)

    # -- opening

    def _open_path(self) -> int:
        """Return a descriptor of the live file, made if need be. Raises ``ConfigError``.

        Neither a link in its place nor a device may redirect what is logged; O_NONBLOCK keeps a FIFO from
        hanging the start.
        """
        path = self._path
        try:
            _make_directories(path.parent)
            descriptor = os.open(path, _OPEN_FLAGS, FILE_MODE)
        except OSError as error:
            why = "it is a symbolic link" if error.errno == errno.ELOOP else reason(error)
            raise ConfigError(
                f"cannot open {path}: {why}. Choose a path that the server's user may create and write."
            ) from error
        try:
            self._check(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check(self, descriptor: int) -> None:
        """Raise ``ConfigError`` for a file that is not a plain one of ours alone; else lock it."""
        path, status, user = self._path, os.fstat(descriptor), os.geteuid()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a regular file. Remove it, or choose another path.")
        if status.st_nlink != 1:
            raise ConfigError(
                f"{path} is one of {status.st_nlink} hard links to a file. Remove it, or choose another path."
            )
        if status.st_uid != user:
            raise ConfigError(
                f"{path} belongs to user {status.st_uid}, and the server runs as user {user}. "
                "Give it to the server's user, or choose another path."
            )
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ConfigError(f"rotation cannot write to {path.parent}. Change the directory's mode or its owner.")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path} is being written by another server or sink. Stop that one, or choose another path."
            ) from None
        except OSError:
            pass  # a file system without locks

    def _adopt(self, descriptor: int, now: float) -> None:
        """Go over to the file of ``descriptor``, and close the one before."""
        status = os.fstat(descriptor)
        self._close_descriptor()
        self._descriptor = descriptor
        self._inode = status.st_ino
        self._backups.live = (status.st_dev, status.st_ino)
        self._size = status.st_size
        self._cut_at = self._held_at = None
        self._mended = self._suspicious = self._settled = False
        self._directory_dirty = True
        # After a restart the due moment follows from the last write, as in TimedRotatingFileHandler.
        self._schedule_from(min(status.st_mtime, now) if status.st_size else now)

    def _close_descriptor(self) -> None:
        if self._descriptor >= 0:
            try:
                os.close(self._descriptor)
            except OSError as error:
                self._warn(f"closing {self._path} failed: {reason(error)}.")
            self._descriptor = -1

    def _is_live(self, status: os.stat_result) -> bool:
        try:
            there = os.lstat(self._path)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # no answer is no reason to leave a file that can be written
        return (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)

    def _reopen(self, status: os.stat_result, now: float) -> None:
        """Begin a new live file after somebody moved ours away, as logrotate does.

        Raises ``OSError`` when that cannot be, and ours was not moved but removed.
        """
        if status.st_nlink and self._held(now):
            return
        try:
            descriptor = self._open_path()
        except ConfigError as error:
            if not status.st_nlink:
                raise OSError(errno.EIO, str(error)) from error
            self._hold(now, f"{self._path} was moved away, and {reason(error)}.")
            return
        self._adopt(descriptor, now)
        self._backups.tend()

    def _mend_tail(self, now: float) -> None:
        """Move an unfinished last line, of a server that died writing it, into a file of its own.

        Raises ``OSError`` when that file cannot be written; nothing is cut off then.
        """
        if self._mended:
            return
        end = start = self._size
        while start:
            block_start = max(0, start - TAIL_BLOCK_BYTES)
            newline = os.pread(self._descriptor, start - block_start, block_start).rfind(b"\n")
            if newline >= 0:
                start = block_start + newline + 1
                break
            start = block_start
        if start < end:
            torn = self._cut_off(start, now)
            self._warn(f"the last line of {self._path} was torn. Its {end - start} bytes are in {torn}.")
        self._mended = True

    def _settle(self, now: float) -> None:
        """See that the file ends with a whole record, and that the ledger knows where. Raises ``OSError``."""
        if not self._settled:
            if not self.is_recovered:
                self._recover(now)
                self.is_recovered = True
            self._mend_tail(now)
            self._ledger.settle(self._inode, self._size)
            self._settled = True

    def _cut_off(self, start: int, now: float) -> Path:
        """Move the end of the file into one of its own; returns that. Raises ``OSError``."""
        torn = self._move_torn(start, self._size, now)
        crash.point("repair_moved")
        os.ftruncate(self._descriptor, start)
        crash.point("repair_cut")
        self._size = start
        if self._fsynced:  # or a power cut would bring back what comes again
            os.fdatasync(self._descriptor)
        return torn

    # -- after a crash

    def _recover(self, now: float) -> None:
        """Find out what became of the groups that the ledger announces, by what the file holds.

        A group that stands there is counted as written. One that does not: its whole records are counted, the rest
        is moved aside, and comes again if somebody still has it. Raises ``OSError`` when it cannot be moved.
        """
        ledger = self._ledger
        if not ledger.read():
            if self._size:
                self._warn(f"{self._path} has no ledger. What clients send again now may stand in it twice.")
            return
        if ledger.is_damaged:
            self._warn(
                f"the ledger of {self._path} is damaged. What it still tells is used; what clients send again now may "
                "stand in the file twice."
            )
        doubtful, settled = ledger.doubtful, ledger.settled
        if not doubtful:
            if settled and settled.inode == self._inode:
                if self._size < settled.end:
                    self._warn(
                        f"{settled.end - self._size} bytes that stood in {self._path} are gone: somebody cut the file, "
                        "or a power cut took them."
                    )
                self._cut_behind(settled.end, now)
            return
        descriptor = self._descriptor if doubtful[-1].inode == self._inode else self._find(doubtful[-1].inode)
        if descriptor < 0:
            count = sum(run.records for entry in doubtful for run in entry.runs)
            self._warn(
                f"the file that was written last is gone, and with it up to {count} records. Those that clients still "
                "have are written again."
            )
            return
        try:
            self._check_groups(doubtful, descriptor, now)
        finally:
            if descriptor != self._descriptor:
                os.close(descriptor)

    def _check_groups(self, doubtful: Sequence[Entry], descriptor: int, now: float) -> None:
        size = os.fstat(descriptor).st_size
        there = [entry for entry in doubtful if entry.end <= size]
        # Groups are written one after the other, so the last one that is sound proves those before it; one without
        # a text proves nothing. Before what is checked all that fits into the file is taken for sound.
        unchecked = sum(entry.offset < there[-1].end - VERIFY_BYTES for entry in there[:-1])
        proven, suspects, damaged = unchecked, 0, 0
        for n, entry in enumerate(there[unchecked:], start=unchecked + 1):
            if zlib.crc32(os.pread(descriptor, entry.size, entry.offset)) != entry.crc:
                suspects += 1
            elif entry.size or not suspects:
                proven, damaged = n, suspects
        if self._fsynced and proven:
            self._sync_group(descriptor, doubtful[proven - 1])
        for entry in doubtful[:proven]:
            self._ledger.apply(entry)
        if damaged:
            self._warn(
                f"{damaged} groups of records in {self._path} are not as they were written: the disk changed them, or "
                "a power cut. They are left as they are. Check the disk."
            )
        if proven == len(doubtful):
            if descriptor == self._descriptor:
                self._cut_behind(doubtful[-1].end, now)
            return
        entry = doubtful[proven]
        data = os.pread(descriptor, max(0, min(size, entry.end) - entry.offset), entry.offset)
        ends = self._whole_records(data.partition(b"\0")[0])  # a block that never reached the disk reads as NULs
        left = self._ledger.apply(entry, len(ends))
        left += sum(run.records for later in doubtful[proven + 1 :] for run in later.runs)
        start = entry.offset + (ends[-1] if ends else 0)
        bytes_left = self._size - start if descriptor == self._descriptor else 0
        aside = f" {bytes_left} bytes of them are in {self._cut_off(start, now)}." if bytes_left > 0 else ""
        self._warn(
            f"{left} records were not yet whole in {self._path} when the server ended. Clients that have them "
            f"send them again.{aside}"
        )

    def _sync_group(self, descriptor: int, entry: Entry) -> None:
        """Put the last group that a killed server wrote on the disk: it is acked as soon as it counts.

        Those before it were, or it would not have been announced. It is written once more, in place: after a sync
        that failed only that makes the next one prove anything. Raises ``OSError``.
        """
        # Ours is opened to append, and then pwrite() would.
        writable = descriptor if descriptor != self._descriptor else os.open(self._path, os.O_RDWR | _READ_FLAGS)
        try:
            if os.pwrite(writable, os.pread(descriptor, entry.size, entry.offset), entry.offset) != entry.size:
                raise OSError(errno.EIO, "the system took only a part of a group")
            os.fdatasync(writable)
        finally:
            if writable != descriptor:
                os.close(writable)

    def _give_up(self, error: OSError) -> None:
        """Trust the live file no more, as nobody knows what of it is on the disk."""
        self._suspicious = True
        self._warn(
            f"ALERT: the disk failed to keep {self._path}: {reason(error)}. What it failed to keep is not "
            "acknowledged, and will be written to a new file. Check the disk."
        )

    def _cut_behind(self, start: int, now: float) -> None:
        """Move aside what stands behind the last group and nobody announced, after a power cut.

        With ``fsynced`` that is all of it: what was cut back, and came back. With ``written`` the ledger may be
        behind the file, and only what begins with NUL bytes is not ours: blocks that were left without data.
        """
        if start >= self._size:
            return
        if not self._fsynced or self._ledger.is_damaged:
            data = os.pread(self._descriptor, VERIFY_BYTES, start)
            blank = data.find(b"\0")
            if blank < 0:
                return
            start += data.rfind(b"\n", 0, blank) + 1
        torn = self._cut_off(start, now)
        self._warn(f"behind the last record of {self._path} stood bytes that are none. They are in {torn}.")

    def _find(self, inode: int) -> int:
        """Return a descriptor of the file in our directory that has this inode, or -1."""
        with os.scandir(self._path.parent) as directory:
            for there in directory:
                if there.inode() == inode and there.is_file(follow_symlinks=False):
                    return os.open(there.path, os.O_RDWR | _READ_FLAGS)
        return -1

    def _move_torn(self, start: int, end: int, now: float) -> Path:
        stem = f"{self._path.name}.torn-{stamp_text(int(now))}"
        names = {*os.listdir(self._path.parent)}  # noqa: PTH208 - names, not paths
        name = next(n for i in range(len(names) + 1) if (n := f"{stem}.{i}" if i else stem) not in names)
        torn = self._path.with_name(name)
        descriptor = os.open(torn, _CREATE_FLAGS, FILE_MODE)
        try:
            with open(descriptor, "wb") as out:  # noqa: PTH123 - a descriptor
                out.writelines(
                    os.pread(self._descriptor, min(TAIL_BLOCK_BYTES, end - offset), offset)
                    for offset in range(start, end, TAIL_BLOCK_BYTES)
                )
                out.flush()
                os.fsync(descriptor)
            sync_directory(torn.parent)
        except BaseException:
            torn.unlink()
            raise
        return torn

    # -- rotation

    def _schedule_from(self, moment: float) -> None:
        self._scheduled_at = moment
        self._rotate_at = self._schedule.next_after(moment) if self._schedule else None

    def _held(self, now: float) -> bool:
        """Whether a rotation failed a moment ago; a clock that was set back does not prolong that."""
        return self._held_at is not None and 0 <= now - self._held_at < ROTATION_RETRY_SECONDS

    def _hold(self, now: float, why: str) -> None:
        self._held_at = now
        self._warn(f"{why} Writing goes on in the same file; the next try is in {ROTATION_RETRY_SECONDS:g} s.")

    def _rotate(self, now: float) -> None:
        """Make the live file a backup, or say why not: that never stops the writing."""
        try:
            self._make_backup(now)
        except (OSError, ConfigError, ValueError) as error:
            self._hold(now, f"cannot rotate {self._path}: {reason(error)}.")

    def _make_backup(self, now: float) -> None:
        """Rename the live file and begin a new one, or leave all as it was.

        Raises ``OSError`` or ``ConfigError`` when it cannot be, ``ValueError`` at the end of the calendar.
        """
        path = self._path
        with self._backups.names:
            # Rename would replace an existing file, so the name must be new. The check holds: nobody else makes
            # names of this form, as long as the live file is locked.
            existing = os.listdir(path.parent)  # noqa: PTH208
            backup = path.with_name(next_backup(path.name, now, existing))
            self._ledger.settle(self._inode, self._size)
            crash.point("rotate_settled")
            path.rename(backup)
            crash.point("rotate_renamed")
            try:
                descriptor = self._open_path()
                crash.point("rotate_created")
            except BaseException:
                if not os.path.lexists(path):
                    backup.rename(path)
                raise
            self._adopt(descriptor, now)
        self.rotations += 1
        self._backups.tend()

    def _replace(self, now: float) -> None:
        """Give up a file that the disk did not keep. Raises ``OSError``: it must not be written to again."""
        with suppress(OSError):  # that it was cut back should last, or a power cut would bring back what comes again
            os.fdatasync(self._descriptor)
        try:
            if self._size:
                self._make_backup(now)
            else:
                self._path.unlink()
                self._adopt(self._open_path(), now)
        except (ConfigError, ValueError) as error:
            raise OSError(errno.EIO, str(error)) from error


class _Backups:
    """What was rotated away: remove what is too old, compress the rest; one job at a time, in a thread of its own.

    ``names`` is held while a backup gets its name, here or in a rotation, so that both see a directory at rest.
    """

    def __init__(self, path: Path, backup_count: int, compress: str, warn: Callable[[str], None]) -> None:
        self.names = threading.Lock()
        self.live: tuple[int, int] | None = None  # device and inode of what is still written to, whatever its name
        self._path = path
        self._backup_count = backup_count
        self._compress = compress
        self._warn = warn
        self._thread = SinkThread(f"aiolog-backups-{path.name}")
        self._queued = False
        self._last: Future[None] | None = None
        self._stopping = threading.Event()

    def tend(self) -> None:
        """Ask for the work to be done, soon; called in the sink's thread."""
        # One under way and one that sees all that came after it: that is the bound of the queue.
        if not self._queued and not self._stopping.is_set():
            self._queued = True
            self._last = self._thread.submit(self._tend)

    async def close(self) -> None:
        """Wait for the work, but not long: what is interrupted is done again at the next start."""
        if self._last:
            last = asyncio.wrap_future(self._last)
            await asyncio.wait([last], timeout=COMPRESS_CLOSE_SECONDS)
            self._stopping.set()
            await asyncio.wait([last], timeout=COMPRESS_CLOSE_SECONDS)
        self._stopping.set()
        self._thread.shutdown()

    def _tend(self) -> None:
        self._queued = False
        live_name, suffix = self._path.name, SUFFIXES[self._compress]
        with self.names:
            names = os.listdir(self._path.parent)  # noqa: PTH208
        gone = {*expired(live_name, names, self._backup_count)}
        # What is to be removed makes room first, then the oldest come first.
        for name in sorted(names, key=lambda name: (name not in gone and not name.endswith(PARTIAL), name)):
            if self._stopping.is_set():
                return
            backup = parse_backup(live_name, name.removesuffix(PARTIAL))
            if not backup:
                continue
            try:
                # Only this thread makes partial ones, so one that is there now was interrupted.
                if name in gone or name.endswith(PARTIAL):
                    self._path.with_name(name).unlink(missing_ok=True)
                    crash.point("expire_unlinked")
                elif suffix and not backup.suffix:
                    self._compress_backup(name, name + suffix)
            except Exception as error:  # noqa: BLE001 - nobody waits for this thread, so it says what it met
                self._warn(f"cannot {'remove' if name in gone else 'compress'} the backup {name}: {reason(error)}.")

    def _compress_backup(self, name: str, compressed_name: str) -> None:
        """Put a compressed twin in the place of a backup, which goes when the twin is whole and on the disk.

        A twin that is there already came from a run that was interrupted between the two, and is made again.
        """
        path = self._path.with_name(name)
        partial = self._path.with_name(compressed_name + PARTIAL)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as source:  # noqa: PTH123 - a descriptor
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) == self.live:
                return
            target = os.open(partial, _CREATE_FLAGS, FILE_MODE)
            try:
                with open(target, "wb") as out:  # noqa: PTH123 - a descriptor
                    compressor = _compressor(self._compress)
                    while block := source.read(COMPRESS_BLOCK_BYTES):
                        if self._stopping.is_set():
                            partial.unlink()
                            return
                        out.write(compressor.compress(block))
                    out.write(compressor.flush())
                    out.flush()
                    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
                    os.fsync(target)
                crash.point("compress_tmp")
                with self.names:
                    partial.replace(path.with_name(compressed_name))
                    crash.point("compress_renamed")
                    sync_directory(path.parent)
                    path.unlink(missing_ok=True)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compressor(compress: str) -> _Compressor:
    if compress == "zstd":
        return zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
    return zlib.compressobj(wbits=16 + zlib.MAX_WBITS)  # 16 asks for gzip's header and checksum


def _make_directories(directory: Path) -> None:
    """Make what is missing, each with :data:`DIRECTORY_MODE`, which ``Path.mkdir`` gives to the last one only."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir(DIRECTORY_MODE, exist_ok=True)
        sync_directory(path.parent)
