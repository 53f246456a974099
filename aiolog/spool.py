"""The backlog in files: what a log call returned from survives the death of its process, without a system call.

Knows files, maps and the protocol's frames; knows no socket, no thread, no clock and no ``logging``. A live process
has a :class:`Spool`; whoever finds the spool of a dead one opens it as an :class:`Orphan`, and sends it on.

Below ``spool_dir`` each session has a directory of its own (0700, its files 0600)::

    1f0c…/owner               who wrote it, as a HELLO without its token; which session; up to which seq it is acked
                              flocked by the living process, so that it is free when that process is dead
    1f0c…/sites               the dictionary of definitions, each before the first record that refers to it
    1f0c…/00000001-9a3e.seg   segments: records in their order; the number that counts is in the header

A segment is a header and entries, little-endian, and zeros to its end::

    header   magic 8 | version u32 | number u32 | crc u32 of number
             crc u32 | first_seq u64 | crc u32 | dropped u64      (how many were, between the segment before and this)
    entry    length u32 | crc u32 | the packed record        length 0: nothing was written from here on
    gap      length u32 with its highest bit set | crc u32 | u64: so many records are missing here

Records are appended with ``mmap.write``. That is one C function: it checks the room, copies, advances the position, and
releases the GIL nowhere in between (``mmap_write_method`` in CPython's Modules/mmapmodule.c). So no other
thread, no signal handler and no fork comes between, and what does not fit raises ValueError with nothing written. That
a segment is full is said by its position alone: ``seek`` to the end, one C function too, and nobody writes there
again. The position is in the map object and dies with the process: a reader goes from entry to entry until there is
none. The kernel keeps the pages of a file that a dead process had mapped, so ``kill -9`` takes nothing that was copied.

Numbers: the seq of an entry is the segment's ``first_seq`` and its place, gaps counted. ``first_seq`` is written
when the sender comes to a segment from the one before, which is sealed by then; where it is missing, nothing of the
segment was sent, and it goes on where the one before ended, or after ``dropped``. A segment in memory leaves no trace
when the process dies, though some of it may have been sent: ``sent`` in the owner's file says up to which seq.
"""

# ruff: noqa: PTH102, PTH103, PTH104, PTH106, PTH108, PTH116, PTH118, PTH119, PTH123, PTH208
# os takes descriptors as well, and a process that only logs need not load pathlib.

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Any
from zlib import crc32

from aiolog import crash
from aiolog.backlog import RECORD_OVERHEAD_BYTES, Backlog, Mark
from aiolog.errors import AiologError, ProtocolError
from aiolog.errors import reason as reason_of
from aiolog.protocol import (
    FROM_CLIENT,
    MAX_BATCH_RECORDS,
    MAX_RECORD_BYTES,
    Decoder,
    Define,
    Hello,
    encode,
)

MAGIC = b"aiologsp"
FORMAT_VERSION = 1
SEGMENT_BYTES = 1 << 20  # 7,000 short records; a new one costs about 100 µs, and an idle process holds no more than one
SEGMENTS = 8  # at least so many make a full spool, so that dropping the oldest leaves most of it
PREPARE_AT = 4  # the next segment is made when a quarter of the last is full: idle processes need no second one
POPULATE_BYTES = 64 << 10  # faulted in at once, under the GIL: about 20 µs
MADV_POPULATE_WRITE = 23  # Linux 5.14: fault pages in, so that emit does not; the mmap module has no name for it
MAX_READ_BYTES = 64 << 10  # at once, when records are only counted
MAX_OWNER_BYTES = 128 << 10  # HELLO has at most half of it

OWNER, SITES, SEGMENT_SUFFIX, DAMAGED_SUFFIX = "owner", "sites", ".seg", ".damaged"

_OWNER = struct.Struct("<8sIII4x16sQQ")  # magic, version, bytes of HELLO, its crc, session, acked, sent
_SESSION_AT, _ACKED_AT, _SENT_AT = 24, 40, 48
_HEADER = struct.Struct("<8sIIIIQIQ")
_CHECKED = struct.Struct("<IQ")  # crc and count: each is written in place, and one that is torn counts as missing
_FIRST_AT, _DROPPED_AT = 20, 32
_ENTRY = struct.Struct("<II")
_GAP_BIT = 1 << 31
_COUNT = struct.Struct("<Q")
_INDEX = struct.Struct("<I")
HEADER_BYTES, ENTRY_BYTES = _HEADER.size, _ENTRY.size

_is_armed = crash.is_due is not crash._never  # noqa: SLF001 - no call for a record where nobody wants to crash

_homes: weakref.WeakSet[Home] = weakref.WeakSet()  # of this process, for its forks


class SpoolError(AiologError):
    """A directory is no spool that this version can read; it is left as it is."""


def _crc_of(number: int) -> int:
    return crc32(_COUNT.pack(number))


def _checked(number: int) -> bytes:
    return _CHECKED.pack(_crc_of(number), number)


def _entry(payload: bytes) -> bytes:
    length = len(payload)
    return _ENTRY.pack(length, crc32(payload, length)) + payload


def _gap(count: int) -> bytes:
    payload = _COUNT.pack(count)
    length = len(payload) | _GAP_BIT
    return _ENTRY.pack(length, crc32(payload, length)) + payload


class Home:
    """The directory of one session: its lock, and what it says of its owner."""

    def __init__(self, path: str, lock: int, sites: int, hello: Hello) -> None:
        self.path = path
        self.hello = hello
        self.defined = 0  # how many definitions `sites` holds
        self.acked = self.sent = 0
        self.users: set[object] = set()  # segments, and who is about to make one
        self.retired = False  # no segment will be made here any more
        self.pid = os.getpid()
        self._lock = lock
        self._sites = sites
        _homes.add(self)

    @classmethod
    def create(cls, directory: str, hello: Hello, acked: int, sent: int) -> Home:
        """Make the directory of a session that this process owns. Raises OSError."""
        os.makedirs(directory, mode=0o700, exist_ok=True)
        name = os.urandom(8).hex()
        # Hidden until it is locked: nobody must take it for a dead process's.
        hidden, path = os.path.join(directory, f".{name}"), os.path.join(directory, name)
        lock = sites = -1
        os.mkdir(hidden, 0o700)
        try:
            lock = _open(os.path.join(hidden, OWNER), os.O_CREAT | os.O_EXCL)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            frame = encode(hello._replace(token="", acked=0))
            head = _OWNER.pack(MAGIC, FORMAT_VERSION, len(frame), crc32(frame), hello.session, acked, sent)
            _write(lock, head + frame)
            sites = _open(os.path.join(hidden, SITES), os.O_CREAT | os.O_EXCL | os.O_APPEND)
            os.rename(hidden, path)
        except BaseException:
            for descriptor in (lock, sites):
                if descriptor >= 0:
                    os.close(descriptor)
            for one in (SITES, OWNER):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(hidden, one))
            with contextlib.suppress(OSError):
                os.rmdir(hidden)
            raise
        home = cls(path, lock, sites, hello)
        home.acked = acked
        return home

    @classmethod
    def adopt(cls, path: str) -> Home | None:
        """Take the directory of a dead process; None when its owner lives, or another finder was faster.

        Raises SpoolError when it is not a spool that can be read, OSError as the system does.
        """
        try:
            lock = _open(os.path.join(path, OWNER))
        except FileNotFoundError:
            try:
                os.rmdir(path)  # what is left when somebody died while removing it
            except FileNotFoundError:
                return None
            except OSError:
                raise SpoolError(f"{path} has no owner, so it is no spool") from None
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here, there = os.fstat(lock), os.stat(os.path.join(path, OWNER))
            if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
                raise FileNotFoundError  # noqa: TRY301 - as if it had not been there
            hello, acked, sent = _owner_of(path, os.pread(lock, MAX_OWNER_BYTES, 0))
            home = cls(path, lock, -1, hello)
            home.acked, home.sent = acked, sent
        except (BlockingIOError, FileNotFoundError):  # alive; or sent and removed by another finder
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return home

    def definitions(self) -> list[Any]:
        """Return the dictionary, up to what is damaged."""
        try:
            with open(os.path.join(self.path, SITES), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return []
        found: dict[int, Any] = {}
        at = 0
        while (payload := _payload_at(data, at, len(data))) is not None:
            at += ENTRY_BYTES + len(payload[1])
            decoder = Decoder(FROM_CLIENT)
            decoder.feed(payload[1][_INDEX.size :])
            with contextlib.suppress(ProtocolError, struct.error):
                define = decoder.next()
                found[_INDEX.unpack_from(payload[1])[0]] = define.sites[0]
        # A hole is only where a disk lost what it had: a thread without a name, so that the server marks the record.
        return [found.get(number, (None, None)) for number in range(max(found, default=-1) + 1)]

    def define(self, definitions: Sequence[Any]) -> None:
        """Append the definitions that are new. Any thread; two may write the same one. Raises OSError."""
        count = len(definitions)
        for number in range(self.defined, count):
            _write(self._sites, _entry(_INDEX.pack(number) + encode(Define([definitions[number]]))))
        self.defined = count

    def set_session(self, session: bytes) -> None:
        """Say under which session the records are to be sent. Raises OSError."""
        os.pwrite(self._lock, session, _SESSION_AT)
        self.hello = self.hello._replace(session=session)

    def set_acked(self, seq: int) -> None:
        """Say up to which seq they are acked. Raises OSError."""
        if seq > self.acked:
            os.pwrite(self._lock, _COUNT.pack(seq), _ACKED_AT)
            self.acked = seq

    def set_sent(self, seq: int) -> None:
        """Say up to which seq records were sent that are not here. Raises OSError."""
        if seq > self.sent:
            os.pwrite(self._lock, _COUNT.pack(seq), _SENT_AT)
            self.sent = seq

    def discard(self, user: object) -> None:
        """Let go of a segment; the last one of a retired home takes the directory with it."""
        self.users.discard(user)
        if self.retired and not self.users:
            self.remove()

    @property
    def is_gone(self) -> bool:
        """Whether it was let go of."""
        return self._lock < 0

    def remove(self) -> None:
        """Remove the directory, the owner last: a finder sees a spool or none."""
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):
            names = [name for name in os.listdir(self.path) if name.endswith(SEGMENT_SUFFIX)]
            for name in (*names, SITES, OWNER):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.path, name))
            os.rmdir(self.path)
        self.release()

    def put_aside(self) -> str:
        """Give the directory a name that no finder looks at; returns it. Raises OSError."""
        aside = self.path + DAMAGED_SUFFIX
        os.rename(self.path, aside)
        self.path = aside
        return aside

    def release(self) -> None:
        """Close the descriptors, and with the last one of them the lock.

        Without LOCK_UN: in a forked child that would unlock the parent's.
        """
        lock, sites = self._lock, self._sites
        self._lock = self._sites = -1
        for descriptor in (lock, sites):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)


def _open(path: str, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)


def _write(descriptor: int, data: bytes) -> None:
    """Write in one call. Raises OSError when not all of it was."""
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # why else would a file take a part


def _owner_of(path: str, data: bytes) -> tuple[Hello, int, int]:
    """Read an owner file: who, acked, sent. Raises SpoolError."""
    if len(data) < _OWNER.size or not data.startswith(MAGIC):
        raise SpoolError(f"{path} is no spool: its owner file is of another kind")
    _, version, length, crc, session, acked, sent = _OWNER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise SpoolError(
            f"{path} is a spool of format {version}, and this aiolog reads {FORMAT_VERSION}; "
            "send it with the version that wrote it"
        )
    frame = data[_OWNER.size : _OWNER.size + length]
    decoder = Decoder(FROM_CLIENT)
    decoder.feed(frame)
    try:
        hello = decoder.next() if crc32(frame) == crc else None
    except ProtocolError:
        hello = None
    if not isinstance(hello, Hello):
        raise SpoolError(f"{path} is a damaged spool: its owner cannot be read")
    return hello._replace(session=session), acked, sent


def _payload_at(source: Any, at: int, limit: int) -> tuple[int, bytes] | None:
    """Return the entry at ``at``: how many records it says are missing (0 for a record), and its bytes.

    None where nothing was written, or something that is not whole.
    """
    if at + ENTRY_BYTES > limit:
        return None
    length, crc = _ENTRY.unpack_from(source, at)
    size = length & ~_GAP_BIT
    if not length or at + ENTRY_BYTES + size > limit:
        return None
    payload = source[at + ENTRY_BYTES : at + ENTRY_BYTES + size]
    if crc32(payload, length) != crc:
        return None
    if length == size:
        return 0, payload
    return (_COUNT.unpack(payload)[0], payload) if size == _COUNT.size else None


def abandon_inherited() -> None:
    """In a forked child: close the descriptors that keep other processes' spools locked."""
    pid = os.getpid()
    for home in list(_homes):
        if home.pid != pid:  # a hook that ran before this one may have logged
            home.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=abandon_inherited)


class Segment:
    """A map of records, in a file or, when there can be none, in memory."""

    __slots__ = (
        "_source",
        "_tally",
        "claims",
        "dropped",
        "end_seq",
        "first_seq",
        "home",
        "is_lost",
        "is_readable",
        "limit",
        "map",
        "next",
        "number",
        "path",
        "size_bytes",
        "write",
    )

    def __init__(self, home: Home | None, path: str, number: int, size_bytes: int, chart: mmap.mmap | None) -> None:
        self.home = home
        self.path = path  # "" in memory
        self.number = number
        self.size_bytes = self.limit = size_bytes  # nothing is to be read from the limit on
        self.map = chart
        self._source = chart
        self.write = _refuse if chart is None else chart.write
        self.first_seq = 0  # 0: not known yet
        self.dropped = 0  # what a dead process dropped before it
        self.end_seq = 0  # when it has been read
        self.is_readable = True
        self.is_lost = False  # somebody removed its file
        self.claims: dict[int, str] = {}  # setdefault: who is first has it, the sender or who drops
        # What comes after it, and how many seqs were dropped in between; setdefault as well.
        self.next: dict[int, tuple[Segment, int]] = {}
        self._tally: tuple[int, int, int] | None = None

    @classmethod
    def create(cls, home: Home, number: int, size_bytes: int) -> Segment:
        """Make a file of zeros, all of it allocated: a full disk would else be a SIGBUS later. Raises OSError."""
        path = os.path.join(home.path, f"{number:08d}-{os.urandom(4).hex()}{SEGMENT_SUFFIX}")
        descriptor = _open(path, os.O_CREAT | os.O_EXCL)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size_bytes)
            else:
                _write(descriptor, bytes(size_bytes))
            chart = mmap.mmap(descriptor, size_bytes)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        crash.point("spool_created")
        return cls(home, path, number, size_bytes, chart)

    @classmethod
    def in_memory(cls, number: int, size_bytes: int) -> Segment:
        """Make one without a file. Raises OSError when there is no memory."""
        # Private: a forked child has a copy, not a share.
        chart = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return cls(None, "", number, size_bytes, chart)

    @classmethod
    def end(cls) -> Segment:
        """Make one that is full from the beginning, with nothing in it: what stands before the first."""
        segment = cls(None, "", 0, 0, None)
        segment.claims[0] = "send"
        return segment

    @classmethod
    def found(cls, home: Home, path: str) -> Segment | None:
        """Read the header of a dead process's segment; None where nothing was ever written. Raises OSError."""
        descriptor = _open(path)
        try:
            size_bytes = os.fstat(descriptor).st_size
            head = os.pread(descriptor, HEADER_BYTES, 0)
            if not any(head) and not os.pread(descriptor, size_bytes, 0).strip(b"\0"):
                return None
        finally:
            os.close(descriptor)
        name = os.path.basename(path).partition("-")[0]
        segment = cls(home, path, int(name) if name.isdecimal() else 0, size_bytes, None)
        magic, version, number, number_crc, first_crc, first_seq, dropped_crc, dropped = _HEADER.unpack(
            head.ljust(HEADER_BYTES, b"\0")
        )
        if (magic, version, number_crc) == (MAGIC, FORMAT_VERSION, _crc_of(number)):
            segment.number = number
            segment.first_seq = first_seq if first_crc == _crc_of(first_seq) else 0
            segment.dropped = dropped if dropped_crc == _crc_of(dropped) else 0
        else:
            segment.is_readable = False
        return segment

    def begin(self, number: int) -> None:
        """Write the header, and make ready for the first record."""
        self.number = number
        assert self.map is not None
        self.map[:HEADER_BYTES] = _HEADER.pack(MAGIC, FORMAT_VERSION, number, _crc_of(number), 0, 0, 0, 0)
        self.map.seek(HEADER_BYTES)

    def populate(self) -> None:
        """Fault the pages in, where the kernel does that without being touched."""
        assert self.map is not None
        with contextlib.suppress(OSError, ValueError):
            for start in range(0, self.size_bytes, POPULATE_BYTES):
                self.map.madvise(MADV_POPULATE_WRITE, start, min(POPULATE_BYTES, self.size_bytes - start))

    def seal(self) -> None:
        """Let nobody write here any more."""
        if self.map is not None:
            with contextlib.suppress(ValueError):  # closed, so sealed before
                self.map.seek(0, os.SEEK_END)

    def number_from(self, first_seq: int) -> None:
        """Say which seq the first entry has."""
        if self.first_seq != first_seq:  # or a spool would be young again with each finder
            self.first_seq = first_seq
            self._note(_FIRST_AT, first_seq)

    def note_dropped(self, count: int) -> None:
        """Say how many seqs before it were dropped, for who reads it when this process is dead."""
        self._note(_DROPPED_AT, count)

    def _note(self, at: int, count: int) -> None:
        if self.path:
            with contextlib.suppress(OSError, ValueError):
                self._opened()[at : at + _CHECKED.size] = _checked(count)

    def payload_at(self, at: int) -> tuple[int, bytes] | None:
        """Return an entry: how many records it says are missing (0 for a record), and its bytes.

        None where nothing was written, or something that is not whole.
        """
        if at + ENTRY_BYTES > self.limit:
            return None
        for _ in range(2):
            with contextlib.suppress(ValueError):  # who sealed it has closed the map just now
                return _payload_at(self._opened(), at, self.limit)
        return None

    def read(self, at: int, max_bytes: int, max_records: int) -> tuple[list[bytes], int, int]:
        """Return the records from ``at`` on, their bytes, and where the next entry is; stop at what is no record."""
        records: list[bytes] = []
        size_bytes = 0
        limit, unpack = self.limit - ENTRY_BYTES, _ENTRY.unpack_from
        with contextlib.suppress(ValueError):  # closed just now; the next call opens it
            source = self._opened()
            while size_bytes < max_bytes and len(records) < max_records and at <= limit:
                length, crc = unpack(source, at)
                start = at + ENTRY_BYTES
                end = start + length
                if not length or end > limit + ENTRY_BYTES:
                    break
                payload = source[start:end]
                if crc32(payload, length) != crc:
                    break
                records.append(payload)
                size_bytes += length
                at = end
        return records, size_bytes, at

    def tally(self) -> tuple[int, int, int]:
        """Count a sealed segment: how many seqs it stands for, how many of them are records, and their bytes."""
        if self._tally is None:
            seqs = count = total_bytes = 0
            at = HEADER_BYTES
            while True:
                records, size_bytes, at = self.read(at, MAX_READ_BYTES, MAX_BATCH_RECORDS)
                seqs += len(records)
                count += len(records)
                total_bytes += size_bytes
                if records:
                    continue
                entry = self.payload_at(at)
                if entry is None:
                    break
                if entry[0]:
                    seqs += entry[0]
                    at += ENTRY_BYTES + len(entry[1])
            self._tally = seqs, count, total_bytes
        return self._tally

    def is_clean_after(self, at: int, *, may_be_torn: bool) -> bool:
        """Whether nothing was written from ``at`` on but, perhaps, one record whose writer died in the act."""
        if at >= self.limit:
            return True
        rest = self._opened()[at : self.limit].rstrip(b"\0")
        size_bytes = ENTRY_BYTES + (int.from_bytes(rest[:4], "little") & ~_GAP_BIT)
        return not rest or (
            may_be_torn and len(rest) <= size_bytes <= min(self.limit - at, ENTRY_BYTES + MAX_RECORD_BYTES)
        )

    def _opened(self) -> mmap.mmap:
        source = self._source
        if source is None or (source.closed and self.path):
            try:
                descriptor = _open(self.path)
            except FileNotFoundError:
                self.is_lost = True
                self.limit = 0
                raise ValueError from None
            try:
                self._source = source = mmap.mmap(descriptor, self.size_bytes)
            finally:
                os.close(descriptor)
        return source

    def close(self) -> None:
        """Unmap it."""
        for chart in (self.map, self._source):
            if chart is not None:
                chart.close()

    def close_writer(self) -> None:
        """Unmap what the writers had, now that it is sealed: descriptors are few, and each map holds one."""
        if self.map is not None and self.path:
            self.map.close()

    def remove(self) -> None:
        """Unmap it and remove its file."""
        self.limit = 0
        self.close()
        home, self.home = self.home, None
        if home is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            crash.point("spool_unlinked")
            home.discard(self)


def _refuse(_entry: bytes) -> int:
    raise ValueError


class Spool(Backlog):
    """A backlog whose queue is segments in files: ``max_bytes`` of them, and two segments more for a moment.

    Where there can be no file, the segments are memory, and bounded by ``buffer_bytes``, as is what is under way.
    """

    def __init__(
        self,
        directory: str,
        hello: Hello,
        definitions: Sequence[Any],
        *,
        max_bytes: int,
        buffer_bytes: int,
        say: Callable[[str], object],
    ) -> None:
        super().__init__(buffer_bytes)
        self.directory = directory
        self.max_bytes = max_bytes
        self._hello = hello
        self._definitions = definitions
        self._say = say
        self._segment_bytes = min(SEGMENT_BYTES, max_bytes // SEGMENTS)
        self._memory_segment_bytes = min(SEGMENT_BYTES, buffer_bytes // SEGMENTS)
        self._file_bytes = 0  # of the segments in the chain, by kind
        self._memory_bytes = 0
        self._homes: dict[int, Home] = {}  # by generation; one, but for a moment
        self._generation = 0
        self._spares: list[Segment] = []  # at most one, but for a race
        self._abandoned = False
        self._has_complained = False
        self._dropping = threading.Lock()  # never waited for
        self._tail = self._at = Segment.end()  # where records are put; where they are read
        self._at_offset = 0
        self._read_seq = 0  # the seq of the last entry read
        self._gap = 0  # seqs missing up to there that no batch has told of
        self._has_lost_files = False
        self._refused = 0  # records dropped before they were in a segment
        self._told = 0  # how many of these stand in one
        self._passed: deque[Segment] = deque()  # read to their end, and not wholly acked

    # -- any thread

    @property
    def limit_bytes(self) -> int:
        """How much may be held, in bytes."""
        return self.max_bytes

    @property
    def is_durable(self) -> bool:  # type: ignore[override]
        """Whether what is held survives the process."""
        return self._memory_bytes == 0

    @property
    def is_over(self) -> bool:
        """Whether more is held than may be; not while somebody is dropping, whom nobody waits for."""
        return (
            self._file_bytes > self.max_bytes or self._memory_bytes > self.buffer_bytes
        ) and not self._dropping.locked()

    def offer(self, packed: bytes) -> bool:
        """Add one packed record if there is room; whether it was."""
        if self.is_over:
            return False
        self.put(packed)
        return True

    def put(self, packed: bytes) -> None:
        """Add one packed record."""
        length = len(packed)
        size_bytes = length + RECORD_OVERHEAD_BYTES
        self.size_bytes += size_bytes
        self.accepted += 1
        tail = self._tail
        entry = _ENTRY.pack(length, crc32(packed, length)) + packed
        try:
            # Definitions first, and into the very home that the record goes to.
            if tail.home is None or tail.home.defined == len(self._definitions):
                tail.write(entry)
            else:
                self._append_or_drop(entry)
        except ValueError:
            self._append_or_drop(entry)
        if _is_armed:
            crash.point("spool_written")

    def refuse(self) -> None:
        """Count one record that is dropped before it was put."""
        super().refuse()
        self._refused += 1

    def _append_or_drop(self, entry: bytes) -> None:
        try:
            self._append(entry)
        except BaseException:
            size_bytes = len(entry) - ENTRY_BYTES + RECORD_OVERHEAD_BYTES
            self.size_bytes -= size_bytes
            self._count("drop_newest")
            self._refused += 1
            raise

    def _append(self, entry: bytes) -> None:
        """Write an entry to the last segment, or to a new one. Raises OSError when there is neither disk nor memory."""
        segment = self._tail
        while not self._abandoned:
            home = segment.home
            if home is not None and home.defined != len(self._definitions):
                try:
                    home.define(self._definitions)
                except OSError as error:  # a record whose site is not on the disk does not belong there either
                    self._complain(error)
                    home.retired = True
                    segment.seal()
            try:
                segment.write(entry)
            except ValueError:
                segment = self._follow(segment, len(entry))
            else:
                return

    def _follow(self, segment: Segment, need_bytes: int) -> Segment:
        """Seal a segment that is full, and return the one after it; who comes first makes that."""
        segment.seal()
        crash.point("spool_sealed")
        link = segment.next.get(0)
        if link is None:
            made = self._make(segment.number + 1, need_bytes)
            link = segment.next.setdefault(0, (made, 0))
            if link[0] is made:
                if made.path:
                    self._file_bytes += made.size_bytes
                else:
                    self._memory_bytes += made.size_bytes
            elif made.path:  # another thread was faster
                self._spares.append(made)
            else:
                made.close()
            if segment is not self._at:
                segment.close_writer()
        self._tail = link[0]
        return link[0]

    def _make(self, number: int, need_bytes: int) -> Segment:
        """Return a segment with room for an entry; in memory when the disk has none. Raises OSError without either."""
        need_bytes += HEADER_BYTES
        segment = None
        with contextlib.suppress(IndexError):
            segment = self._spares.pop()
            if segment.size_bytes < need_bytes or segment.home is None or segment.home.retired:
                segment.remove()
                segment = None
        if segment is None:
            try:
                segment = self._create(number, max(self._segment_bytes, need_bytes))
            except OSError as error:
                self._complain(error)
                segment = Segment.in_memory(number, max(self._memory_segment_bytes, need_bytes))
        segment.begin(number)
        return segment

    def _create(self, number: int, size_bytes: int) -> Segment:
        """Make a file. Raises OSError."""
        home = self._home()
        maker = object()
        home.users.add(maker)  # before the next look: whoever retires it may have seen no user
        try:
            if home.retired:
                raise OSError(errno.EBUSY, "the spool is just being removed")
            segment = Segment.create(home, number, size_bytes)
            home.users.add(segment)
            return segment
        except FileNotFoundError:  # somebody has removed the directory; another is made when this one has no users
            home.retired = True
            raise
        finally:
            home.discard(maker)

    def _home(self) -> Home:
        """Return the directory where segments are made now. Raises OSError."""
        generation = self._generation
        home = self._homes.get(generation)
        if home is None:
            made = Home.create(self.directory, self._hello, self.acked_seq, self._cut_seq)
            try:
                made.define(self._definitions)
            except OSError:
                made.remove()
                raise
            home = self._homes.setdefault(generation, made)
            if home is not made:  # another thread was faster
                made.remove()
            elif self._cut_seq > made.sent:  # the sender may not have seen it
                made.set_sent(self._cut_seq)
        return home

    def _complain(self, error: OSError) -> None:
        if not self._has_complained and not self._abandoned and error.errno != errno.EBUSY:
            self._has_complained = True
            self._say(
                f"no spool in {self.directory} ({reason_of(error)}); records are kept in memory, "
                f"up to {self.buffer_bytes / (1 << 20):.3g} MiB, and lost if the process is killed"
            )

    def drop_oldest(self, reason: str) -> bool:
        """Drop the oldest segment of which nothing was sent; False when there is none."""
        if not self._dropping.acquire(blocking=False):
            return True  # somebody does
        try:
            return self._drop(reason, in_memory=self._memory_bytes > self.buffer_bytes)
        finally:
            self._dropping.release()

    def _drop(self, reason: str, *, in_memory: bool) -> bool:
        before = self._at
        while (link := before.next.get(0)) is not None:
            segment, gap = link
            following = segment.next.get(0)
            if following is None:
                return False  # the last one is being written
            if not segment.claims and (not segment.path) == in_memory:
                seqs, records, size_bytes = segment.tally()  # before the claim: the sender counts on it
                if segment.claims.setdefault(0, "drop") == "drop":
                    gap += seqs + following[1]
                    before.next[0] = following[0], gap
                    size_bytes += records * RECORD_OVERHEAD_BYTES
                    self.size_bytes -= size_bytes
                    self.dropped[reason] += records
                    self._dropped += records
                    self._has_lost_files |= segment.is_lost
                    self._unlink(segment)
                    following[0].note_dropped(gap)
                    return True
            before = segment
        return False

    def _unlink(self, segment: Segment) -> None:
        if segment.path:
            self._file_bytes -= segment.size_bytes
        else:
            self._memory_bytes -= segment.size_bytes
        segment.remove()

    def abandon(self) -> None:
        """Let go of what a forked child inherited: unmap it, close it, and change nothing of it."""
        self._abandoned = True
        segment: Segment | None = self._passed[0] if self._passed else self._at
        while segment is not None:
            segment.close()
            link = segment.next.get(0)
            segment = link[0] if link else None
        for segment in self._spares:
            segment.close()
        for home in list(self._homes.values()):
            home.release()

    # -- the sender

    def prepare(self) -> None:
        """Make the next segment ahead, so that who logs need not."""
        tail = self._tail
        if self._spares or tail.home is None or tail.home.retired or tail.map is None:
            return
        # It may be closed at any moment, and the disk full: who needs a segment finds out.
        with contextlib.suppress(OSError, ValueError):
            if tail.map.tell() >= tail.size_bytes // PREPARE_AT:
                spare = self._create(tail.number + 1, self._segment_bytes)
                spare.populate()
                self._spares.append(spare)

    @property
    def has_unsent(self) -> bool:
        """Whether :meth:`next_frame` has something to give, were the window large enough."""
        return (
            self._in_flight < len(self._window)
            or self._told != self._refused
            or self._peek() is not None
            or self._gap > 0
        )

    def _peek(self) -> tuple[int, bytes] | None:
        """Return the next entry, and be in the segment where it is; None when all are read."""
        while True:
            at, offset = self._at, self._at_offset
            entry = at.payload_at(offset)
            if entry is not None:
                return entry
            link = at.next.get(0)
            if link is None:
                return None
            self._has_lost_files |= at.is_lost
            # Sealed before the next one was linked; but something may have come between our look and that.
            if at.payload_at(offset) is None:
                if not self._may_pass(at, offset):
                    return None
                self._pass(at, *link)

    def _may_pass(self, _at: Segment, _offset: int) -> bool:
        return True

    def _pass(self, at: Segment, following: Segment, gap: int) -> None:
        """Go on to the next segment that was not dropped; from now on it is not to be."""
        while following.claims.setdefault(0, "send") != "send":
            gap += following.tally()[0]
            following, more = following.next[0]
            gap += more
        at.end_seq = self._read_seq
        self._read_seq += gap
        self._gap += gap
        following.number_from(self._read_seq + 1)
        self._passed.append(at)
        self._at, self._at_offset = following, HEADER_BYTES
        self._forget_passed()

    def _cut(self) -> bool:
        """Move records from the segments to the window, as one batch; False when nothing is owed there."""
        refused = self._refused - self._told
        if refused:
            self._append(_gap(refused))
            self._told += refused
        records: list[bytes] = []
        payload_bytes = dropped = 0
        in_memory = False
        while payload_bytes < self._batch_bytes and len(records) < MAX_BATCH_RECORDS:
            entry = self._peek()
            if self._gap:
                if records:
                    break  # the next batch tells of it
                dropped += self._gap
                self._gap = 0
            if entry is None:
                if self._has_lost_files and not records:
                    dropped += self._count_lost()
                break
            at = self._at
            if entry[0]:
                self._at_offset += ENTRY_BYTES + len(entry[1])
                self._read_seq += entry[0]
                self._gap += entry[0]
                continue
            more, size_bytes, self._at_offset = at.read(
                self._at_offset, self._batch_bytes - payload_bytes, MAX_BATCH_RECORDS - len(records)
            )
            in_memory |= not at.path
            records += more
            payload_bytes += size_bytes
            self._read_seq += len(more)
        if not self._enter(records, dropped):
            return False
        if in_memory:  # should these be lost, no others must get their numbers
            for home in list(self._homes.values()):
                with contextlib.suppress(OSError):
                    home.set_sent(self._cut_seq)
        self.prepare()
        return True

    def _count_lost(self) -> int:
        """Count as dropped what was in files that somebody has removed, now that all others are read."""
        self._has_lost_files = False
        lost = max(0, self.accepted - self.sent - self._dropped)
        self.dropped["drop_oldest"] += lost
        self._dropped += lost
        self._read_seq += lost
        self._say(f"somebody removed files from {self.directory}; {lost} records in them are lost")
        return lost

    def ack(self, seq: int) -> bool:
        """Forget the batches up to ``seq``, and the segments that were wholly in them; whether there were any.

        Raises ProtocolError when ``seq`` was never sent.
        """
        advanced = super().ack(seq)
        if advanced:
            for home in list(self._homes.values()):
                with contextlib.suppress(OSError):
                    home.set_acked(self.acked_seq)
            self._forget_passed()
        return advanced

    def _forget_passed(self) -> None:
        while self._passed and self._passed[0].end_seq <= self.acked_seq:
            self._unlink(self._passed.popleft())
        home = self._homes.get(self._generation)
        if home is not None and home.is_gone:
            del self._homes[self._generation]
            self._generation += 1

    def renew(self, session: bytes) -> None:
        """Go on under another session.

        With nothing owed, the directory goes, and a later record makes another, where numbers begin anew.
        """
        self._hello = self._hello._replace(session=session)
        for home in list(self._homes.values()):
            with contextlib.suppress(OSError):
                home.set_session(session)
        if not self._homes or not self.is_empty or self._peek() is not None:
            return
        home = self._homes[self._generation]
        home.retired = True
        at, end = self._at, Segment.end()
        at.seal()
        if self._peek() is None and at.next.setdefault(0, (end, 0))[0] is end:
            self._tail = end
            self._peek()
            while self._spares:
                self._spares.pop().remove()
        if home.users:
            home.retired = False  # a record came in this moment, and goes under the new session
        else:
            home.remove()
            self._forget_passed()
            super().renew(session)
            self._read_seq = self._cut_seq


class Orphan(Spool):
    """The spool of a dead process: nothing is put there any more, and its numbers are given."""

    def __init__(self, home: Home, *, buffer_bytes: int) -> None:
        """Open what is there. Raises SpoolError when two files claim one place, OSError as the system does."""
        super().__init__(
            home.path, home.hello, home.definitions(), max_bytes=1 << 62, buffer_bytes=buffer_bytes, say=str
        )
        self.home = home
        self.definitions = self._definitions
        self._homes[0] = home
        found = [
            segment
            for name in os.listdir(home.path)
            if name.endswith(SEGMENT_SUFFIX)
            and (segment := Segment.found(home, os.path.join(home.path, name))) is not None
        ]
        found.sort(key=lambda segment: (segment.number, segment.is_readable))
        # Whoever lost a race for the next place left a header and nothing behind it.
        empty = [one for one in found if one.is_readable and one.payload_at(HEADER_BYTES) is None]
        segments = [one for one in found if one not in empty or not one.is_clean_after(HEADER_BYTES, may_be_torn=False)]
        for one in found:
            one.close()
        if any(a.number == b.number for a, b in pairwise(segments)):
            raise SpoolError(f"{home.path} is a damaged spool: two of its files have one number")
        readable = list(takewhile(lambda one: one.is_readable, segments))
        self._is_cut_short = len(readable) < len(segments)
        before = self._at
        for segment in readable:
            before.next[0] = segment, segment.dropped
            before = segment
        first = readable[0] if readable else None
        base = home.acked if first is None or not first.first_seq else min(home.acked, first.first_seq - 1)
        self._read_seq = self._cut_seq = self.acked_seq = base
        self._read_on_to(home.acked)
        self.skipped = self.acked  # records that need no sending

    @property
    def is_damaged(self) -> bool:
        """Whether there is something that cannot be read, where reading has come to its end."""
        return self._is_cut_short or not self._at.is_clean_after(self._at_offset, may_be_torn=not self._at.next)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is owed that can be read."""
        return not self._window and not self.has_unsent

    @property
    def unsent_bytes(self) -> int:
        """Much: there is always more to send than would be worth waiting for."""
        return 1 << 62

    def is_settled(self, mark: Mark) -> bool:  # noqa: ARG002 - nothing is put after any mark
        """Whether nothing is owed."""
        return self.is_empty

    def prepare(self) -> None:
        """Make nothing."""

    def renew(self, session: bytes) -> None:
        """Go on under another session."""
        self.home.set_session(session)

    def rewind(self, last_seq: int) -> bool:
        """Begin a connection where the server is: it may have more than the dead process knew of, or than is here."""
        self._in_flight = self._in_flight_bytes = 0
        advanced = self._read_on_to(last_seq)
        advanced |= super().rewind(min(last_seq, self._cut_seq))
        if self._window:  # the dead process may have told of a part of a gap, where we have it whole
            batch = self._window[0]
            batch.dropped = min(batch.dropped, max(0, batch.first_seq - 1 - last_seq))
        return advanced

    def _read_on_to(self, seq: int) -> bool:
        before = self.acked_seq
        while self._cut_seq < seq and self._cut():
            self.ack(min(seq, self._cut_seq))
        return self.acked_seq > before

    def _may_pass(self, at: Segment, offset: int) -> bool:
        return at.is_clean_after(offset, may_be_torn=False)  # who died in the act sealed nothing

    def _pass(self, at: Segment, following: Segment, gap: int) -> None:
        if following.first_seq:
            gap = max(0, following.first_seq - 1 - self._read_seq)
        else:  # nothing of it was sent; but perhaps of what was in memory before it
            gap = max(gap, self.home.sent - self._read_seq)
        super()._pass(at, following, gap)

    def _cut(self) -> bool:
        cut = super()._cut()
        self._dropped = self._declared
        self.accepted = self.sent + self._declared
        return cut

    def count_unsent(self) -> int:
        """Return how many records are left that can be read; for the last words on them, nothing more is sent."""
        count = sum(len(batch.records) for batch in self._window)
        before = self.sent
        while self._cut():
            self.ack(self._cut_seq)
        return count + self.sent - before

    def close(self, *, remove: bool) -> None:
        """Let go of the files; remove them when they are no longer needed. Raises OSError."""
        segment: Segment | None = self._passed[0] if self._passed else self._at
        while segment is not None:
            segment.close()
            link = segment.next.get(0)
            segment = link[0] if link else None
        if remove:
            self.home.remove()
        else:
            self.home.release()
