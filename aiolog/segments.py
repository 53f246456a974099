"""The files of a spool: what they hold, and how they are made, read and removed.

Knows files, maps and the protocol's messages; knows no backlog, no thread and no clock.

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
"""

# ruff: noqa: PTH102, PTH103, PTH104, PTH106, PTH108, PTH116, PTH118, PTH119, PTH208
# os takes descriptors as well, and a process that only logs need not load pathlib.

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import weakref
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from aiolog import crash
from aiolog.errors import AiologError, ProtocolError
from aiolog.protocol import FROM_CLIENT, MAX_BATCH_RECORDS, MAX_RECORD_BYTES, Decoder, Define, Hello, encode

MAGIC = b"aiologsp"
FORMAT_VERSION = 1
POPULATE_BYTES = 64 << 10  # faulted in at once, under the GIL: about 20 µs
MADV_POPULATE_WRITE = 23  # Linux 5.14: fault pages in, so that emit does not; the mmap module has no name for it
MAX_READ_BYTES = 64 << 10  # at once, when records are only counted
MAX_OWNER_BYTES = 128 << 10  # HELLO has at most half of it
# A dictionary's names are 2 Mi characters of at most 4 bytes; thrice that, as threads may write the same definition.
MAX_SITES_BYTES = 32 << 20
MAX_NUMBERS = 1 << 16  # of definitions, of which a dictionary has 5,120: one number must not make a list of 4 billion
SEGMENT_BYTES = 1 << 20  # 7,000 short records; a new one costs about 100 µs, and an idle process holds no more than one

OWNER, SITES, SEGMENT_SUFFIX, DAMAGED_SUFFIX = "owner", "sites", ".seg", ".damaged"

_OWNER = struct.Struct("<8sIII4x16sQQ")  # magic, version, bytes of HELLO, its crc, session, acked, sent
_SESSION_AT, _ACKED_AT, _SENT_AT = 24, 40, 48
_HEADER = struct.Struct("<8sIIIIQIQ")
_CHECKED = struct.Struct("<IQ")  # crc and count: each is written in place, and one that is torn counts as missing
_FIRST_AT, _DROPPED_AT = 20, 32
ENTRY = struct.Struct("<II")
_GAP_BIT = 1 << 31
_COUNT = struct.Struct("<Q")
_INDEX = struct.Struct("<I")
HEADER_BYTES, ENTRY_BYTES = _HEADER.size, ENTRY.size
MAX_SEGMENT_BYTES = SEGMENT_BYTES + HEADER_BYTES + ENTRY_BYTES + MAX_RECORD_BYTES  # or a record that fits no other

# What open() says of a link, a directory, a socket and a device that is not there.
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV}

_homes: weakref.WeakSet[Home] = weakref.WeakSet()  # of this process, for its forks


class SpoolError(AiologError):
    """A directory is no spool that this version can read; it is left as it is."""


def _crc_of(number: int) -> int:
    return crc32(_COUNT.pack(number))


def _checked(number: int) -> bytes:
    return _CHECKED.pack(_crc_of(number), number)


def entry(payload: bytes) -> bytes:
    """Return a record as it stands in a segment, or a definition in ``sites``."""
    length = len(payload)
    return ENTRY.pack(length, crc32(payload, length)) + payload


def gap(count: int) -> bytes:
    """Return the entry that says that so many records are missing."""
    payload = _COUNT.pack(count)
    length = len(payload) | _GAP_BIT
    return ENTRY.pack(length, crc32(payload, length)) + payload


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
            lock = _open_found(os.path.join(path, OWNER))
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
        """Return the dictionary, up to what is damaged.

        Raises SpoolError where its file is none that a process writes, OSError as the system does.
        """
        path = os.path.join(self.path, SITES)
        try:
            descriptor = _open_found(path)
        except FileNotFoundError:
            return []
        try:
            data = os.pread(descriptor, _size_of(descriptor, path, MAX_SITES_BYTES), 0)
        finally:
            os.close(descriptor)
        found: dict[int, Any] = {}
        at = 0
        while (payload := _payload_at(data, at, len(data))) is not None:
            at += ENTRY_BYTES + len(payload[1])
            decoder = Decoder(FROM_CLIENT)
            decoder.feed(payload[1][_INDEX.size :])
            with contextlib.suppress(ProtocolError, struct.error):
                define = decoder.next()
                (number,) = _INDEX.unpack_from(payload[1])
                if isinstance(define, Define) and define.sites and number < MAX_NUMBERS:
                    found[number] = define.sites[0]
        # A hole is only where a disk lost what it had: a thread without a name, so that the server marks the record.
        return [found.get(number, (None, None)) for number in range(max(found, default=-1) + 1)]

    def define(self, definitions: Sequence[Any]) -> None:
        """Append the definitions that are new. Any thread; two may write the same one. Raises OSError."""
        count = len(definitions)
        for number in range(self.defined, count):
            _write(self._sites, entry(_INDEX.pack(number) + encode(Define([definitions[number]]))))
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


def _open_found(path: str) -> int:
    """Open what another process left; a FIFO is not waited for.

    Raises SpoolError for what is no regular file, OSError as the system does.
    """
    try:
        descriptor = _open(path, os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _not_a_file(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_a_file(path)
    return descriptor


def _not_a_file(path: str) -> SpoolError:
    return SpoolError(f"{path} is not a regular file. Put back what was there, or remove its directory")


def _size_of(descriptor: int, path: str, max_bytes: int) -> int:
    """Return the size of a file that was found, in bytes. Raises SpoolError when no process writes so much."""
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes > max_bytes:
        raise SpoolError(
            f"{path} has {size_bytes} bytes, and no process writes more than {max_bytes} there. "
            "Put back what was there, or remove its directory"
        )
    return size_bytes


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
    length, crc = ENTRY.unpack_from(source, at)
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
        """Read the header of a dead process's segment; None where nothing was ever written.

        Raises SpoolError where it is no file that a process writes, OSError as the system does.
        """
        descriptor = _open_found(path)
        try:
            size_bytes = _size_of(descriptor, path, MAX_SEGMENT_BYTES)
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
        limit, unpack = self.limit - ENTRY_BYTES, ENTRY.unpack_from
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
                descriptor = _open_found(self.path)
            except (FileNotFoundError, SpoolError):  # or somebody put something else there
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
