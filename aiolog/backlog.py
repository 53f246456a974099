"""What the client still owes the server: records in order, bounded in bytes, until they are acked.

Knows the protocol's batches and nothing else: no socket, no clock, no thread of its own. The queue holds what is
not yet sent; the window holds whole batches that are sent and not acked. Numbers (``seq``) are given when a batch
is cut, so that putting a record needs no lock::

    put ─► queue ──cut──► window ──ack──► gone
             │              ▲ │
        drop_oldest         └─┘ rewind, after a reconnect: send again

Who may call what: any number of threads, signal handlers too, ``offer``, ``put``, ``refuse`` and ``drop_oldest``; only
the sender everything else. No lock is taken. That is sound on CPython with its GIL: ``deque.append`` and
``deque.popleft`` are atomic, and so is ``self.x += n`` for an ``n`` already computed, whoever else changes ``x``:
the interpreter changes threads and runs signal handlers only at calls and at the ends of loops (Python/ceval.c: since
3.10 the eval breaker is checked there alone). A test hammers this with a switch interval of a microsecond.
"""

from __future__ import annotations

from collections import deque
from itertools import accumulate, islice

from aiolog.errors import ProtocolError
from aiolog.protocol import BATCH_BYTES, MAX_BATCH_RECORDS, RECORD_OVERHEAD_BYTES, SEQ_MAX, batch_frame

MIN_BUFFER_BYTES = 64 << 10  # below this a window holds no useful batch
MIN_SPOOL_BYTES = 1 << 20  # eight segments of 128 KiB: below that, one large record is most of it
MIN_BATCH_BYTES = 1 << 10  # smaller than a packet is no use on any path

REASONS = ("drop_oldest", "drop_newest", "block_timeout")
"""Why a record was dropped: by the policy of that name, or under ``block``, because acks no longer came."""


class _Batch:
    """Records in the window: their seqs are given, and never change."""

    __slots__ = ("dropped", "first_seq", "payload_bytes", "records")

    def __init__(self, first_seq: int, dropped: int, records: list[bytes]) -> None:
        self.first_seq = first_seq
        self.dropped = dropped  # how many records are missing before first_seq
        self.records = records
        self.payload_bytes = sum(map(len, records))

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.records) - 1

    @property
    def size_bytes(self) -> int:
        return self.payload_bytes + len(self.records) * RECORD_OVERHEAD_BYTES

    def split(self, count: int) -> _Batch:
        """Keep the first ``count`` records; return the others."""
        rest = _Batch(self.first_seq + count, 0, self.records[count:])
        self.records = self.records[:count]
        self.payload_bytes -= rest.payload_bytes
        return rest

    def count_within(self, limit_bytes: int) -> int:
        """Return how many records make about ``limit_bytes``; at least one, as one cannot be split."""
        ends = accumulate(map(len, self.records))
        return next((n for n, end in enumerate(ends, 1) if end >= limit_bytes), len(self.records))


class Mark:
    """A point in the stream of records, for :meth:`Backlog.is_settled`."""

    __slots__ = ("dropped", "seq", "taken")

    def __init__(self, taken: int, dropped: int) -> None:
        self.taken = taken  # how many records have left the queue when those before the point have
        self.dropped = dropped  # how many drops came before the point
        # The session, counted, and the last seq of a batch before the point, when that is known.
        self.seq: tuple[int, int] | None = None


class Backlog:
    """A bounded queue and a window of sent batches: ``buffer_bytes``, and at most one record a thread more."""

    is_durable = False  # whether what is held survives the process

    def __init__(self, buffer_bytes: int) -> None:
        self.buffer_bytes = buffer_bytes
        self.accepted = 0  # records put or refused: accepted = acked + dropped + still here
        self.sent = 0  # records given to the sender at least once
        self.acked = 0  # records
        self.dropped = dict.fromkeys(REASONS, 0)  # records, by reason
        self._dropped = 0  # their sum
        self._declared = 0  # how many of those a batch has told the server of
        self._queue: deque[bytes] = deque()
        self._window: deque[_Batch] = deque()
        self._in_flight = 0  # how many batches of the window are sent on this connection
        self._in_flight_bytes = 0  # their payload
        self._batch_bytes = self._max_batch_bytes = min(BATCH_BYTES, buffer_bytes // 8)
        self._cut_seq = 0  # the last seq given
        self._renewals = 0  # how often the numbers began anew
        self._checked = False  # whether the frames of this connection have checks
        self.acked_seq = 0  # the last seq that the server answers for
        self.size_bytes = 0  # the memory held, in bytes: queue and window

    # -- any thread

    @property
    def limit_bytes(self) -> int:
        """How much may be held, in bytes."""
        return self.buffer_bytes

    @property
    def is_over(self) -> bool:
        """Whether more than :attr:`limit_bytes` is held."""
        return self.size_bytes > self.buffer_bytes

    @property
    def is_filling(self) -> bool:
        """Whether so much is held that acks should be looked for: with small records before many batches are sent."""
        return self.size_bytes > self.limit_bytes // 4

    @property
    def is_empty(self) -> bool:
        """Whether nothing is owed: no record, and no drop untold."""
        return self.records == 0 and self._declared == self._dropped and not self._window

    @property
    def records(self) -> int:
        """The number of records held."""
        return self.accepted - self.acked - self._dropped

    def mark(self) -> Mark:
        """Return the point after all records put so far."""
        return Mark(self.accepted - self.dropped["drop_newest"], self._dropped)

    def is_settled(self, mark: Mark) -> bool:
        """Whether all records before the point are acked or dropped, and the server knows of each drop."""
        if self.is_empty:
            return True
        if mark.seq is None:
            left_queue = self.sent + self._dropped - self.dropped["drop_newest"]
            if left_queue < mark.taken or self._declared < mark.dropped:
                return False
            mark.seq = self._renewals, self._cut_seq
        return (self._renewals, self.acked_seq) >= mark.seq

    def offer(self, packed: bytes) -> bool:
        """Add one packed record if there is room, as :attr:`is_over` and :meth:`put` do in one call; whether it was."""
        if self.size_bytes > self.buffer_bytes:
            return False
        size_bytes = len(packed) + RECORD_OVERHEAD_BYTES
        self.size_bytes += size_bytes
        self.accepted += 1
        self._queue.append(packed)
        return True

    def put(self, packed: bytes) -> None:
        """Add one packed record."""
        size_bytes = len(packed) + RECORD_OVERHEAD_BYTES
        self.size_bytes += size_bytes
        self.accepted += 1
        self._queue.append(packed)

    def refuse(self) -> None:
        """Count one record that is dropped before it was put."""
        self.accepted += 1
        self._count("drop_newest")

    def drop_oldest(self, reason: str) -> bool:
        """Drop the oldest record that was never sent; False when there is none."""
        try:
            packed = self._queue.popleft()
        except IndexError:
            return False
        size_bytes = len(packed) + RECORD_OVERHEAD_BYTES
        self.size_bytes -= size_bytes
        self._count(reason)
        return True

    def _count(self, reason: str) -> None:
        self.dropped[reason] += 1
        self._dropped += 1

    def abandon(self) -> None:
        """Let go of what a forked child inherited; memory is its own."""

    # -- the sender

    def prepare(self) -> None:
        """Do ahead what a later :meth:`put` would have to do."""

    def renew(self, session: bytes) -> None:  # noqa: ARG002 - the spool writes it down
        """Go on under another session; its numbers begin anew, unless something is owed that has numbers."""
        if not self._window:
            self._renewals += 1
            self._cut_seq = self.acked_seq = 0

    @property
    def next_seq(self) -> int:
        """The seq after the last one sent on this connection; what a heartbeat carries.

        Not the next to be cut: after a rewind there may be batches in between, and the server would see a gap.
        """
        return (self._window[self._in_flight - 1].last_seq if self._in_flight else self.acked_seq) + 1

    @property
    def under_way(self) -> int:
        """How many batches were sent on this connection and are not acked."""
        return self._in_flight

    def reserve(self, window_bytes: int) -> bool:
        """Whether another batch may be sent now, if there is one.

        At most ``window_bytes`` of payload are in flight, and a quarter of what may be held in memory or at all, so
        that there is always something left that may be dropped; but one batch always is.
        """
        return not self._in_flight or self._in_flight_bytes < min(
            window_bytes, self.buffer_bytes // 4, self.limit_bytes // 4
        )

    @property
    def awaits_ack(self) -> bool:
        """Whether anything sent on this connection is not acked."""
        return self._in_flight > 0

    @property
    def unsent_bytes(self) -> int:
        """The memory that the records take which were not sent on this connection, in bytes."""
        in_flight = islice(self._window, self._in_flight)
        return self.size_bytes - sum(batch.size_bytes for batch in in_flight)

    @property
    def has_unsent(self) -> bool:
        """Whether :meth:`next_frame` has something to give, were the window large enough."""
        return bool(self._queue) or self._declared != self._dropped or self._in_flight < len(self._window)

    def next_frame(self, window_bytes: int) -> bytes | None:
        """Return the next BATCH frame to send, or None when nothing is owed or the window has no room."""
        if not self.reserve(window_bytes):
            return None
        if self._in_flight == len(self._window) and not self._cut():
            return None
        batch = self._window[self._in_flight]
        self._in_flight += 1
        # A batch is cut behind the record that makes it full: what is too large is so without its last one.
        if batch.records and batch.payload_bytes - len(batch.records[-1]) >= self._batch_bytes:
            self._window.insert(self._in_flight, batch.split(batch.count_within(self._batch_bytes)))
        self._in_flight_bytes += batch.payload_bytes
        return batch_frame(batch.first_seq, batch.dropped, batch.records, checked=self._checked)

    def _cut(self) -> bool:
        """Move records from the queue to the window, as one batch; False when nothing is owed there."""
        # Read once, and before the queue: a drop that comes later is told with the next batch. Where in the order
        # a gap stands may so be off by what is dropped meanwhile; how many records it stands for never is.
        dropped = self._dropped - self._declared
        queue = self._queue
        records: list[bytes] = []
        payload_bytes = 0
        try:
            while payload_bytes < self._batch_bytes and len(records) < MAX_BATCH_RECORDS:
                packed = queue.popleft()
                records.append(packed)
                payload_bytes += len(packed)
        except IndexError:
            pass
        return self._enter(records, dropped)

    def _enter(self, records: list[bytes], dropped: int) -> bool:
        """Give the next seqs to records, behind so many that are missing; False when there are neither."""
        if not records and not dropped:
            return False
        first_seq = self._cut_seq + dropped + 1
        self._cut_seq = first_seq + len(records) - 1
        self._window.append(_Batch(first_seq, dropped, records))
        self._declared += dropped  # after the append: is_empty must not be true in between
        self.sent += len(records)
        return True

    def heartbeat(self) -> bytes:
        """Return a BATCH of nothing, which the server acks at once."""
        return batch_frame(self.next_seq, 0, (), checked=self._checked)

    def ack(self, seq: int) -> bool:
        """Forget the batches up to ``seq``; whether there were any.

        Raises ProtocolError when ``seq`` was never sent.
        """
        if not 0 <= seq <= min(self._cut_seq, SEQ_MAX):
            raise ProtocolError(f"the server acked the record {seq}; the last one sent is {self._cut_seq}")
        if seq <= self.acked_seq:
            return False
        while self._window and self._window[0].last_seq <= seq:
            self._forget(self._window.popleft())
            self._in_flight = max(0, self._in_flight - 1)
        if self._window and self._window[0].first_seq <= seq:  # a server died when it had written a part of it
            batch = self._window[0]
            self._window[0] = batch.split(seq - batch.first_seq + 1)
            self._forget(batch)
        self._batch_bytes = min(self._batch_bytes * 2, self._max_batch_bytes)
        return True

    def _forget(self, batch: _Batch) -> None:
        if self._in_flight:
            self._in_flight_bytes -= batch.payload_bytes
        self.acked_seq = batch.last_seq
        size_bytes = batch.size_bytes
        self.size_bytes -= size_bytes
        self.acked += len(batch.records)

    def rewind(self, last_seq: int, *, checked: bool = False) -> bool:
        """Begin a connection: what the server has up to ``last_seq`` is acked, all the rest is to be sent again.

        Whether anything was acked by it. Raises ProtocolError when ``last_seq`` was never sent.
        """
        self._checked = checked
        in_vain = self._in_flight > 0
        self._in_flight = 0
        self._in_flight_bytes = 0
        if self.ack(last_seq):
            return True
        if in_vain:  # a path that breaks after some thousand bytes lets smaller batches through
            self._batch_bytes = max(self._batch_bytes // 2, MIN_BATCH_BYTES)
        return False
