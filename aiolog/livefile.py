"""The file that is written to: group commit, repair after a crash, rotation.

It knows the file system. It must never know a socket, a session's ack or the configuration. What is due and what a
backup is called it asks :mod:`aiolog.rotation`; what is written already, its :mod:`aiolog.ledger`. All of it happens
in one thread, that of its sink.

A group that cannot be written leaves nothing behind: the file is cut back to where the group began, and the same
group comes again. What is written already, of a group that went over a rotation or of one that comes again after a
crash, the ledger knows, and it is not written twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from aiolog import crash
from aiolog.backups import CREATE_FLAGS, FILE_MODE, Backups
from aiolog.checksum import crc32
from aiolog.errors import ConfigError, reason
from aiolog.ledger import Entry, Ledger, Mark, Run, sync_directory
from aiolog.rotation import Retention, Rotation, due, next_backup, stamp_text

DIRECTORY_MODE = 0o750
ROOT = 0
ROTATION_RETRY_SECONDS = 10.0  # a directory that refuses a rotation is asked again, but not for every group
TAIL_BLOCK_BYTES = 64 << 10  # read at a time when looking for the last whole line, and when moving a torn one
SESSION_TTL_SECONDS = 7 * 86_400.0
MAX_SESSIONS = 65_536
VERIFY_BYTES = 8 << 20  # of what a power cut may have kept from the disk: 30 s of writing, read in 20 ms at a start

# What a lone surrogate becomes, which a raw template lets through: a record is degraded, never refused.
_ERRORS = "backslashreplace"
_OPEN_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Keeping(NamedTuple):
    """How a sink keeps its files.

    ``durability`` is what a commit means: ``written``, it survives this process; ``fsynced``, it survives a power
    cut. Of sessions that do not come back the ledger keeps at most ``max_sessions``, for ``session_ttl_seconds``.
    """

    rotation: Rotation = Rotation()
    retention: Retention = Retention()
    compress: Literal["", "gzip", "zstd"] = ""
    durability: Literal["written", "fsynced"] = "written"
    session_ttl_seconds: float = SESSION_TTL_SECONDS
    max_sessions: int = MAX_SESSIONS
    is_one_of_many: bool = False  # its sink sees to all backups, and nobody asks it what a power cut took


class Part(NamedTuple):
    """A delivery, formatted: ``texts[n]`` is the record ``first_seq + n`` of the session, "" if it is not taken.

    ``joined`` is all of them in one, where they were made so; then none is "".
    """

    session: bytes
    first_seq: int
    texts: Sequence[str]
    joined: str = ""

    @property
    def run(self) -> Run:
        """What the ledger keeps of it."""
        if self.joined:
            return Run(self.session, self.first_seq, len(self.texts))
        return Run.of(self.session, self.first_seq, self.texts)

    def between(self, begin: int, end: int) -> Part:
        """Return the part of it from the ``begin``-th text to before the ``end``-th."""
        return Part(self.session, self.first_seq + begin, self.texts[begin:end])


KEEPING = Keeping()  # one file without rotation, for ever


class LiveFile:
    """The live file, its ledger and its backups; all methods run in the sink's thread, backups in another.

    The file never gets larger than ``keeping.rotation.max_bytes``, except by a single record that is. ``whole_records``
    says where the records end that are whole, in bytes of the sink's format. ``clock`` gives seconds since the epoch.
    ``warn`` takes one sentence for the operator.

    ``_size`` is what the system said last, never a sum of our own: a write that claims too much is found out.
    """

    def __init__(
        self,
        path: Path,
        keeping: Keeping,
        *,
        whole_records: Callable[[bytes], list[int]],
        backups_thread: Executor,
        clock: Callable[[], float],
        warn: Callable[[str], None],
    ) -> None:
        fsynced = keeping.durability == "fsynced"
        self.records_written = self.bytes_written = self.rotations = 0
        self.ledger = Ledger(
            path.with_name(f".{path.name}.ledger"),
            synced=fsynced,
            ttl_seconds=keeping.session_ttl_seconds,
            max_sessions=keeping.max_sessions,
            clock=clock,
            warn=warn,
            syncs_first=not keeping.is_one_of_many,
        )
        self.backups = Backups(path, keeping.retention, keeping.compress, backups_thread, clock=clock, warn=warn)
        self.path = path
        self._name = str(path)  # for what is asked before every group: a Path makes its text anew
        self._rotation = keeping.rotation
        self._is_one_of_many = keeping.is_one_of_many
        self._whole_records = whole_records
        self._fsynced = fsynced
        self._clock = clock
        self._warn = warn
        self._descriptor = -1
        self._inode = 0
        self._size = 0
        self.is_recovered = False  # whether it is known what a crash left
        self.is_new = False  # whether there was no ledger before this start
        self._settled = False  # whether the ledger knows that this is the live file, and how large it is
        self._cut_at: int | None = None  # where a group began that failed, until what it left is cut off
        self._mended = False  # whether the last line is known to be whole
        self._suspicious = False  # after a failed fsync nobody knows what of this file is on the disk
        self._directory_dirty = False  # whether a name is not on the disk yet
        self._rotate_at: float | None = None
        self._scheduled_at = 0.0  # the moment from which _rotate_at was computed
        self._inherited: Mapping[bytes, Mark] = {}
        self._held_at: float | None = None  # when a rotation failed
        self._has_warned = False  # of a directory that others may write to

    # -- called through the sink

    def open(self, inherited: Mapping[bytes, Mark] | None = None) -> None:
        """Open and repair; ``inherited`` are the marks of a file that this one continues. Raises ``ConfigError``."""
        now = self._clock()
        before = (self._inode, self._size) if self.is_recovered else None
        suspicious_inode = self._inode if self._suspicious else None
        self._adopt(self._open_path(), now)
        self._suspicious = self._inode == suspicious_inode
        self._inherited = inherited or {}
        if before is not None:
            self.ledger.wake()
            self._mended = before == (self._inode, self._size)  # nobody else has written meanwhile
        try:
            self._settle(now)
        except ConfigError:  # of the ledger
            self._close_descriptor()
            raise
        except OSError as error:  # most likely a full disk, which also tore the line; append() tries again
            self._warn(f"cannot repair the end of {self.path} yet: {reason(error)}.")
        else:
            if before is None and self._rotation.at_start and self._size:
                self._rotate(now)
        if not self._is_one_of_many:
            self.backups.tend()

    def look(self) -> None:
        """Do what is due although nobody writes: follow a file that was moved away, rotate by time, keep retention."""
        if self._descriptor < 0:
            return
        now = self._clock()
        with suppress(OSError):  # the next write meets it too, and says so
            self._prepare(now)
            if due(self._size, 0, 0, now, self._rotate_at) and not self._held(now):
                self._rotate(now)
        if not self._is_one_of_many:
            self.backups.tend()

    def rotate(self) -> str:
        """Make the live file a backup now; returns its name, "" where there was nothing in it.

        Raises ``OSError``, ``ConfigError`` or ``ValueError`` when it cannot be; all is as it was then.
        """
        now = self._clock()
        self._prepare(now)
        return self._make_backup(now) if self._size else ""

    @property
    def is_open(self) -> bool:
        """Whether it holds descriptors."""
        return self._descriptor >= 0

    @property
    def is_settled(self) -> bool:
        """Whether its ledger knows all that is known of it, on the disk too."""
        return self._settled

    def rest(self) -> None:
        """Let go of the descriptors, of which there are few, and keep what is known: :meth:`open` goes on with it."""
        self._finish(self.ledger.rest)

    def retire(self) -> None:
        """Make a backup of it, with no new live file in its place: no more will come. The ledger stays.

        Raises ``OSError`` or ``ValueError``.
        """
        now = self._clock()
        self._prepare(now)
        if self._size:
            self._name_backup(now)
        else:
            self.path.unlink()
        self._finish(self.ledger.close)
        self.backups.live = None
        self.backups.tend()

    def append(self, parts: Sequence[Part]) -> None:
        """Commit all that the ledger does not count as written.

        Raises ``OSError`` when the system refuses; the ledger then counts what was committed before.
        """
        now = self._clock()
        self._prepare(now)
        fresh = [part for part in map(self._fresh, parts) if part.texts]
        pieces: list[str] = []
        for part in fresh:
            pieces += (part.joined,) if part.joined else part.texts
        data = "".join(pieces).encode(errors=_ERRORS)
        # An empty file counts as one byte here: if it cannot take all, look at each record below.
        if (
            not data
            or self._held(now)
            or not due(self._size or 1, len(data), self._rotation.max_bytes, now, self._rotate_at)
        ):
            self._commit(data, fresh, now)
            return
        chunk: bytearray = bytearray()
        taken: list[Part] = []
        for part in fresh:
            begin = 0
            for n, text in enumerate(part.texts):
                record = text.encode(errors=_ERRORS)
                size = self._size + len(chunk)
                if (
                    text
                    and due(size, len(record), self._rotation.max_bytes, now, self._rotate_at)
                    and not self._held(now)
                ):
                    self._commit(chunk, [*taken, part.between(begin, n)], now)
                    chunk, taken, begin = bytearray(), [], n
                    self._rotate(now)
                chunk += record
            taken.append(part.between(begin, len(part.texts)))
        self._commit(chunk, taken, now)

    def _fresh(self, part: Part) -> Part:
        """Return what of a part is not written yet."""
        mark = self.ledger.mark(part.session)
        if mark is None or mark < part.first_seq:
            return part
        return part.between(min(mark + 1 - part.first_seq, len(part.texts)), len(part.texts))

    def close(self) -> None:
        """Close; what a failed write left is cut off first, if the disk lets us."""
        self._finish(self.ledger.close)

    def _finish(self, let_go: Callable[[], None]) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):
                self._cut_back()
                if self.is_recovered:
                    self.ledger.settle(self._inode, self._size)
            let_go()
            self._close_descriptor()

    # -- writing

    def _commit(self, data: bytes | bytearray, parts: Sequence[Part], now: float) -> None:
        """Make the texts of all parts, which ``data`` joins, part of the file: the one place where bytes become so.

        Raises ``OSError`` after taking back what it wrote.
        """
        runs = [part.run for part in parts if part.texts]
        if not runs:
            return
        self._settle(now)
        offset = self._size
        try:
            self.ledger.announce(self._inode, offset, data, [run for run in runs if run.session])
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
        self.ledger.committed()
        self._settled = not self.ledger.is_long
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
                sync_directory(self.path.parent)
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
        status, is_live = self._look_up()
        if status.st_size < self._size:
            self._settled = False
            self._warn(
                f"{self.path} was cut from {self._size} to {status.st_size} bytes by somebody else. Records may "
                "be lost: have logrotate rename the file (no copytruncate), or let aiolog rotate it."
            )
        self._size = status.st_size
        if not is_live:
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
        path = self.path
        try:
            make_directories(path.parent)
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
        path, status, user = self.path, os.fstat(descriptor), os.geteuid()
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
        self._check_directory(path.parent.stat(), user)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path} is being written by another server or sink. Stop that one, or choose another path."
            ) from None
        except OSError:
            pass  # a file system without locks

    def _check_directory(self, status: os.stat_result, user: int) -> None:
        """Refuse for root a directory in which somebody else may put a link in the place of a name (CVE-2016-1247)."""
        others_may = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if status.st_uid in (user, ROOT) and not others_may:
            return
        who = "everybody" if others_may else f"user {status.st_uid}"
        text = f"{who} may rename files in {self.path.parent}. Give it to the server's user alone (mode 0750)."
        if user == ROOT:
            raise ConfigError(f"{text} A server that runs as root does not write there")
        if not self._has_warned:
            self._has_warned = True
            self._warn(text)

    def _adopt(self, descriptor: int, now: float) -> None:
        """Go over to the file of ``descriptor``, and close the one before."""
        status = os.fstat(descriptor)
        self._close_descriptor()
        self._descriptor = descriptor
        self._inode = status.st_ino
        self.backups.live = (status.st_dev, status.st_ino)
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
                self._warn(f"closing {self.path} failed: {reason(error)}.")
            self._descriptor = -1

    def _look_up(self) -> tuple[os.stat_result, bool]:
        """Return the status of the file that we write to, and whether that is the one at our path."""
        try:
            there = os.lstat(self._name)
        except FileNotFoundError:
            return os.fstat(self._descriptor), False
        except OSError:  # no answer is no reason to leave a file that can be written, and be read
            status = os.fstat(self._descriptor)
            return status, status.st_nlink > 0
        if (there.st_dev, there.st_ino) == self.backups.live:
            return there, True
        return os.fstat(self._descriptor), False

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
                raise OSError(reason(error)) from error  # without a number, which would speak for itself
            self._hold(now, f"{self.path} was moved away, and {reason(error)}.")
            return
        if not status.st_nlink and status.st_size:
            self._warn(
                f"{self.path} was removed by somebody else, and {status.st_size} bytes with it. Have aiolog rotate and "
                "remove files, or logrotate rename them."
            )
        self._adopt(descriptor, now)
        if not self._is_one_of_many:
            self.backups.tend()

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
            self._warn(f"the last line of {self.path} was torn. Its {end - start} bytes are in {torn}.")
        self._mended = True

    def _settle(self, now: float) -> None:
        """See that the file ends with a whole record, and that the ledger knows where. Raises ``OSError``."""
        if not self._settled:
            if not self.is_recovered:
                self._recover(now)
                self.ledger.inherit(self._inherited)
                self.is_recovered = True
            self._mend_tail(now)
            self.ledger.settle(self._inode, self._size)
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
        ledger = self.ledger
        if not ledger.read():
            self.is_new = True
            if self._size:
                self._warn(f"{self.path} has no ledger. What clients send again now may stand in it twice.")
            return
        if ledger.is_damaged:
            self._warn(
                f"the ledger of {self.path} is damaged. What it still tells is used; what clients send again now may "
                "stand in the file twice."
            )
        doubtful, settled = ledger.doubtful, ledger.settled
        if not doubtful:
            if settled and settled.inode == self._inode:
                if self._size < settled.end:
                    self._warn(
                        f"{settled.end - self._size} bytes that stood in {self.path} are gone: somebody cut the file, "
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
            if crc32(os.pread(descriptor, entry.size, entry.offset)) != entry.crc:
                suspects += 1
            elif entry.size or not suspects:
                proven, damaged = n, suspects
        if self._fsynced and proven:
            self._sync_group(descriptor, doubtful[proven - 1])
        for entry in doubtful[:proven]:
            self.ledger.apply(entry)
        if damaged:
            self._warn(
                f"{damaged} groups of records in {self.path} are not as they were written: the disk changed them, or "
                "a power cut. They are left as they are. Check the disk."
            )
        if proven == len(doubtful):
            if descriptor == self._descriptor:
                self._cut_behind(doubtful[-1].end, now)
            return
        entry = doubtful[proven]
        data = os.pread(descriptor, max(0, min(size, entry.end) - entry.offset), entry.offset)
        ends = self._whole_records(data.partition(b"\0")[0])  # a block that never reached the disk reads as NULs
        left = self.ledger.apply(entry, len(ends))
        left += sum(run.records for later in doubtful[proven + 1 :] for run in later.runs)
        start = entry.offset + (ends[-1] if ends else 0)
        bytes_left = self._size - start if descriptor == self._descriptor else 0
        aside = f" {bytes_left} bytes of them are in {self._cut_off(start, now)}." if bytes_left > 0 else ""
        self._warn(
            f"{left} records were not yet whole in {self.path} when the server ended. Clients that have them "
            f"send them again.{aside}"
        )

    def _sync_group(self, descriptor: int, entry: Entry) -> None:
        """Put the last group that a killed server wrote on the disk: it is acked as soon as it counts.

        Those before it were, or it would not have been announced. It is written once more, in place: after a sync
        that failed only that makes the next one prove anything. Raises ``OSError``.
        """
        # Ours is opened to append, and then pwrite() would.
        writable = descriptor if descriptor != self._descriptor else os.open(self.path, os.O_RDWR | _READ_FLAGS)
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
            f"ALERT: the disk failed to keep {self.path}: {reason(error)}. What it failed to keep is not "
            "acknowledged, and will be written to a new file. Check the disk."
        )

    def _cut_behind(self, start: int, now: float) -> None:
        """Move aside what stands behind the last group and nobody announced, after a power cut.

        With ``fsynced`` that is all of it: what was cut back, and came back. With ``written`` the ledger may be
        behind the file, and only what begins with NUL bytes is not ours: blocks that were left without data.
        """
        if start >= self._size:
            return
        if not self._fsynced or self.ledger.is_damaged:
            data = os.pread(self._descriptor, VERIFY_BYTES, start)
            blank = data.find(b"\0")
            if blank < 0:
                return
            start += data.rfind(b"\n", 0, blank) + 1
        torn = self._cut_off(start, now)
        self._warn(f"behind the last record of {self.path} stood bytes that are none. They are in {torn}.")

    def _find(self, inode: int) -> int:
        """Return a descriptor of the file in our directory that has this inode, or -1."""
        with os.scandir(self.path.parent) as directory:
            for there in directory:
                if there.inode() == inode and there.is_file(follow_symlinks=False):
                    return os.open(there.path, os.O_RDWR | _READ_FLAGS)
        return -1

    def _move_torn(self, start: int, end: int, now: float) -> Path:
        stem = f"{self.path.name}.torn-{stamp_text(int(now))}"
        names = {*os.listdir(self.path.parent)}  # noqa: PTH208 - names, not paths
        name = next(n for i in range(len(names) + 1) if (n := f"{stem}.{i}" if i else stem) not in names)
        torn = self.path.with_name(name)
        descriptor = os.open(torn, CREATE_FLAGS, FILE_MODE)
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
        self._rotate_at = self._rotation.schedule.next_after(moment) if self._rotation.schedule else None

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
            self._hold(now, f"cannot rotate {self.path}: {reason(error)}.")

    def _make_backup(self, now: float) -> str:
        """Rename the live file and begin a new one, or leave all as it was; returns the name of the backup.

        Raises ``OSError`` or ``ConfigError`` when it cannot be, ``ValueError`` at the end of the calendar.
        """
        path = self.path
        with self.backups.names:
            backup = self._name_backup(now)
            try:
                descriptor = self._open_path()
                crash.point("rotate_created")
            except BaseException:
                if not os.path.lexists(path):
                    backup.rename(path)
                raise
            self._adopt(descriptor, now)
        self.backups.tend()
        return backup.name

    def _name_backup(self, now: float) -> Path:
        """Give the live file the name of its next backup; returns that. Raises ``OSError`` or ``ValueError``."""
        # Rename would replace an existing file, so the name must be new. The check holds: nobody else makes names of
        # this form, as long as the live file is locked.
        existing = os.listdir(self.path.parent)  # noqa: PTH208
        backup = self.path.with_name(next_backup(self.path.name, now, existing))
        self.ledger.settle(self._inode, self._size)
        crash.point("rotate_settled")
        self.path.rename(backup)
        crash.point("rotate_renamed")
        self.rotations += 1
        return backup

    def _replace(self, now: float) -> None:
        """Give up a file that the disk did not keep. Raises ``OSError``: it must not be written to again."""
        with suppress(OSError):  # that it was cut back should last, or a power cut would bring back what comes again
            os.fdatasync(self._descriptor)
        try:
            if self._size:
                self._make_backup(now)
            else:
                self.ledger.settle(self._inode, self._size)  # it announces a group there, and would miss the file
                self.path.unlink()
                self._adopt(self._open_path(), now)
        except (ConfigError, ValueError) as error:
            raise OSError(reason(error)) from error


def make_directories(directory: Path) -> None:
    """Make what is missing, each with :data:`DIRECTORY_MODE`, which ``Path.mkdir`` gives to the last one only."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir(DIRECTORY_MODE, exist_ok=True)
        sync_directory(path.parent)
