"""The backlog in files: what a log call returned from survives the death of its process, without a system call.

Knows its files by :mod:`aiolog.segments`; knows no socket, no clock and no ``logging``. A live process
has a :class:`Spool`; whoever finds the spool of a dead one opens it as an :class:`Orphan`, and sends it on.

Numbers: the seq of an entry is the segment's ``first_seq`` and its place, gaps counted. ``first_seq`` is written
when the sender comes to a segment from the one before, which is sealed by then; where it is missing, nothing of the
segment was sent, and it goes on where the one before ended, or after ``dropped``. A segment in memory leaves no trace
when the process dies, though some of it may have been sent: ``sent`` in the owner's file says up to which seq.
"""

# ruff: noqa: PTH118, PTH208
# os, as in aiolog.segments: a process that only logs need not load pathlib.

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Any
from zlib import crc32

from aiolog import crash
from aiolog.backlog import Backlog, Mark
from aiolog.errors import reason as reason_of
from aiolog.protocol import MAX_BATCH_RECORDS, RECORD_OVERHEAD_BYTES, Hello
from aiolog.segments import (
    ENTRY,
    ENTRY_BYTES,
    HEADER_BYTES,
    SEGMENT_BYTES,
    SEGMENT_SUFFIX,
    Home,
    Segment,
    SpoolError,
    gap,
)

SEGMENTS = 8  # at least so many make a full spool, so that dropping the oldest leaves most of it
PREPARE_AT = 4  # the next segment is made when a quarter of the last is full: idle processes need no second one

_is_armed = crash.is_due is not crash._never  # noqa: SLF001 - no call for a record where nobody wants to crash


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
        entry = ENTRY.pack(length, crc32(packed, length)) + packed
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
            self._append(gap(refused))
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
        """Open what is there.

        Raises SpoolError when two files claim one place, or one is none that a process writes, OSError as the system
        does.
        """
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

    def rewind(self, last_seq: int, *, checked: bool = False) -> bool:
        """Begin a connection where the server is: it may have more than the dead process knew of, or than is here."""
        self._in_flight = self._in_flight_bytes = 0
        advanced = self._read_on_to(last_seq)
        advanced |= super().rewind(min(last_seq, self._cut_seq), checked=checked)
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
