"""What the client owes: never lost, never twice, never out of order, never more than its bound, always counted."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from bisect import bisect_left
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiolog.backlog import MIN_BUFFER_BYTES, REASONS, Backlog
from aiolog.errors import ProtocolError
from aiolog.protocol import (
    BATCH_BYTES,
    FROM_CLIENT,
    MAX_BATCH_RECORDS,
    MAX_FRAME_BYTES,
    MAX_RECORD_BYTES,
    RECORD_OVERHEAD_BYTES,
    Batch,
    Decoder,
    pack_record,
    unpack_records,
)


def packed(number, size_bytes=0):
    return pack_record([number, "x" * size_bytes])


def batch_of(frame):
    """Return the message in a frame, as a server's decoder cuts it out."""
    decoder = Decoder(FROM_CLIENT)
    decoder.feed(frame)
    batch = decoder.next()
    assert isinstance(batch, Batch)
    assert decoder.buffered_bytes == 0
    assert len(frame) - 4 <= MAX_FRAME_BYTES
    return batch


class ServerSession:
    """A server's side of one session: takes frames, drops what comes twice, refuses a gap that nobody declared."""

    def __init__(self):
        self.last_seq = 0
        self.numbers = []  # of the records, in the order of their seqs
        self.seqs = []  # the same records' seqs
        self.dropped = 0

    def take(self, frame):
        """Take one frame; returns the records that were new."""
        batch = batch_of(frame)
        records = unpack_records(batch)
        assert batch.first_seq - batch.dropped - 1 <= self.last_seq, "a gap that nobody declared"
        missing = max(0, batch.first_seq - 1 - self.last_seq)
        assert missing in (0, batch.dropped), "a gap of which a part is known already"
        behind = bisect_left(self.seqs, batch.first_seq - batch.dropped)
        assert behind == len(self.seqs) or self.seqs[behind] >= batch.first_seq, "a gap where a record was"
        fresh = records[max(0, self.last_seq - batch.first_seq + 1) :]
        self.dropped += missing
        self.numbers += [number for number, _ in fresh]
        self.seqs += range(batch.first_seq + batch.count - len(fresh), batch.first_seq + batch.count)
        self.last_seq = max(self.last_seq, batch.first_seq + batch.count - 1)
        return fresh


class BacklogMachine(RuleBasedStateMachine):
    """A backlog beside what it should be: a list of what has no seq yet, a connection, and a server."""

    def __init__(self):
        super().__init__()
        self.server = ServerSession()
        self.frames = deque()  # on their way to the server
        self.acks = deque()  # on their way back
        self.sent_bytes = {}  # of the records sent on this connection and not acked, by seq
        self.number = 0
        self.uncut = deque()  # numbers of records that no frame held yet
        self.lost = []  # numbers of records dropped
        self.cut_seq = 0
        self.largest_bytes = 0

    @initialize(buffer_bytes=st.sampled_from([2_000, 16_384, MIN_BUFFER_BYTES]))
    def begin(self, buffer_bytes):
        self.backlog = Backlog(buffer_bytes)

    # -- any thread

    @rule(
        count=st.integers(1, 30),
        policy=st.sampled_from(REASONS),
        size_bytes=st.sampled_from([0, 10, 100, 1_000, 4_000, 30_000]),
    )
    def put_many(self, count, policy, size_bytes):
        for _ in range(count):
            self.put(policy, size_bytes)

    def put(self, policy, size_bytes):
        """As the handler does under each policy, once waiting is over."""
        self.number += 1
        while policy != "drop_newest" and self.backlog.is_over and self.uncut:
            self.drop(policy)
        if self.backlog.is_over:
            self.backlog.refuse()
            self.lost.append(self.number)
            return
        record = packed(self.number, size_bytes)
        self.backlog.put(record)
        self.uncut.append(self.number)
        self.largest_bytes = max(self.largest_bytes, len(record))

    @rule(reason=st.sampled_from(REASONS))
    def drop(self, reason):
        before = self.backlog.dropped[reason]
        dropped = self.backlog.drop_oldest(reason)
        assert dropped == bool(self.uncut)
        assert self.backlog.dropped[reason] == before + dropped
        if dropped:
            self.lost.append(self.uncut.popleft())

    # -- the sender

    @rule(window_bytes=st.sampled_from([0, 300, 5_000, 1 << 20]))
    def send(self, window_bytes):
        had_unsent, awaited = self.backlog.has_unsent, self.backlog.awaits_ack
        is_open = sum(self.sent_bytes.values()) < min(window_bytes, self.backlog.buffer_bytes // 4)
        frame = self.backlog.next_frame(window_bytes)
        assert (frame is not None) == (had_unsent and (is_open or not awaited))
        if frame is None:
            return
        assert self.backlog.awaits_ack
        self.frames.append(frame)
        batch = batch_of(frame)
        assert len(batch.payload) <= BATCH_BYTES + self.largest_bytes + 5
        records = unpack_records(batch)
        for seq, (number, filling) in enumerate(records, batch.first_seq):
            self.sent_bytes[seq] = len(packed(number, len(filling)))
        last_seq = batch.first_seq + batch.count - 1
        if last_seq > self.cut_seq:  # not one that is sent again
            assert batch.first_seq == self.cut_seq + batch.dropped + 1
            assert [number for number, _ in records] == [self.uncut.popleft() for _ in records]
            self.cut_seq = last_seq

    @rule()
    def heartbeat(self):
        """At any moment of a connection, behind what was sent before it."""
        self.frames.append(self.backlog.heartbeat())

    @precondition(lambda self: self.frames)
    @rule(count=st.integers(1, 3))
    def arrive(self, count):
        for _ in range(min(count, len(self.frames))):
            self.server.take(self.frames.popleft())
            self.acks.append(self.server.last_seq)

    @precondition(lambda self: self.acks)
    @rule()
    def ack(self):
        seq, before = self.acks.popleft(), self.backlog.acked_seq
        assert self.backlog.ack(seq) == (seq > before)
        self.forget_up_to(seq)

    def forget_up_to(self, seq):
        assert self.backlog.acked_seq >= seq
        self.sent_bytes = {at: size for at, size in self.sent_bytes.items() if at > seq}

    @rule()
    def refuse_impossible_acks(self):
        for seq in (self.cut_seq + 1, -1, 1 << 63):
            with pytest.raises(ProtocolError, match="acked the record"):
                self.backlog.ack(seq)

    @rule()
    def reconnect(self):
        """The connection breaks with frames and acks on their way; the client begins where the server is."""
        self.frames.clear()
        self.acks.clear()
        self.sent_bytes.clear()
        seq, before = self.server.last_seq, self.backlog.acked_seq
        assert self.backlog.rewind(seq) == (seq > before)
        assert self.backlog.acked_seq == seq
        assert not self.backlog.awaits_ack

    @precondition(lambda self: self.frames)
    @rule(kept=st.integers(0, 5))
    def server_dies_in_a_batch(self, kept):
        """Only the first records of the next batch are written: the server answers for those, in the middle of it."""
        server = self.server
        before = server.last_seq, server.dropped
        fresh = server.take(self.frames.popleft())
        lost = len(fresh) - kept
        if lost > 0:
            del server.numbers[-lost:], server.seqs[-lost:]
            server.last_seq -= lost
            if not kept:
                server.last_seq, server.dropped = before
        self.reconnect()

    # -- always

    @invariant()
    def counts_are_exact(self):
        if (backlog := getattr(self, "backlog", None)) is None:
            return
        assert backlog.accepted == self.number
        assert sum(backlog.dropped.values()) == len(self.lost)
        assert backlog.accepted == backlog.acked + len(self.lost) + backlog.records
        assert backlog.sent == self.number - len(self.lost) - len(self.uncut)
        assert backlog.acked <= len(self.server.numbers)
        assert self.server.dropped <= len(self.lost)

    @invariant()
    def memory_is_bounded(self):
        if (backlog := getattr(self, "backlog", None)) is None:
            return
        assert backlog.size_bytes <= backlog.buffer_bytes + self.largest_bytes + RECORD_OVERHEAD_BYTES
        # And it is what is really held.
        records = [*backlog._queue, *(record for batch in backlog._window for record in batch.records)]
        assert len(records) == backlog.records
        held = sum(len(record) + RECORD_OVERHEAD_BYTES for record in records)
        assert backlog.size_bytes == held
        assert backlog.is_over == (held > backlog.buffer_bytes)
        sent_bytes = sum(size + RECORD_OVERHEAD_BYTES for size in self.sent_bytes.values())
        assert backlog.unsent_bytes == held - sent_bytes
        assert len(backlog._window) <= len(records) + 1 + self.server.dropped + len(self.lost)

    @invariant()
    def order_is_kept(self):
        assert self.server.numbers == sorted(set(self.server.numbers))
        assert not set(self.server.numbers) & set(self.lost)

    @invariant()
    def is_empty_is_truthful(self):
        if (backlog := getattr(self, "backlog", None)) is None:
            return
        everything = backlog.acked == self.number - len(self.lost) and self.server.dropped == len(self.lost)
        assert backlog.is_empty == (everything and backlog.acked_seq == self.number)
        if backlog.is_empty:
            assert not any([self.uncut, backlog.has_unsent, backlog.awaits_ack, backlog.size_bytes])
            assert backlog.acked == len(self.server.numbers)

    def teardown(self):
        """Whatever happened, a last connection brings everything to its end."""
        if (backlog := getattr(self, "backlog", None)) is None:
            return
        self.reconnect()
        while (frame := backlog.next_frame(1 << 20)) is not None:
            self.server.take(frame)
            backlog.ack(self.server.last_seq)
        assert backlog.is_empty
        assert backlog.size_bytes == backlog.records == 0
        assert sorted(self.server.numbers + self.lost) == list(range(1, self.number + 1))
        assert self.server.dropped == len(self.lost)
        assert self.server.last_seq == self.number


def test_any_sequence_of_calls_keeps_every_promise():
    """Puts, drops, sends, acks, lost connections and servers that die, in any order, checked after each step."""
    run_state_machine_as_test(
        BacklogMachine, settings=settings(max_examples=200, stateful_step_count=60, deadline=None)
    )


# ---------------------------------------------------------------------------------------------------------------
# Plain cases


def sent(backlog, window_bytes=1 << 20):
    """Return all frames that may be sent now."""
    return list(iter(lambda: backlog.next_frame(window_bytes), None))


def test_seqs_begin_at_one_and_have_no_gaps():
    """Three records, a second batch of two: 1 to 3 and 4 to 5, acked one after the other."""
    backlog, server = Backlog(MIN_BUFFER_BYTES), ServerSession()
    for number in range(3):
        backlog.put(packed(number))
    server.take(*sent(backlog))
    for number in range(3, 5):
        backlog.put(packed(number))
    server.take(*sent(backlog))
    assert (server.last_seq, server.numbers) == (5, [0, 1, 2, 3, 4])
    assert backlog.ack(2)  # in the middle of a batch: as much is forgotten
    assert (backlog.records, backlog.acked_seq, backlog.awaits_ack) == (3, 2, True)
    assert backlog.ack(3)
    assert backlog.awaits_ack
    assert backlog.ack(5)
    assert not backlog.ack(5)
    assert backlog.is_empty


def test_batches_are_cut_by_bytes_and_by_number():
    """A batch ends with the record that fills it, and holds no more records than a server unpacks."""
    backlog = Backlog(16 << 20)
    for number in range(10):
        backlog.put(packed(number, BATCH_BYTES // 2))
    assert [len(ServerSession().take(frame)) for frame in sent(backlog)[:1]] == [2]
    backlog = Backlog(16 << 20)
    for number in range(2 * MAX_BATCH_RECORDS + 1):
        backlog.put(packed(number))
    server = ServerSession()
    assert [len(server.take(frame)) for frame in sent(backlog)] == [MAX_BATCH_RECORDS, MAX_BATCH_RECORDS, 1]


def test_the_largest_records_make_a_frame_that_a_server_takes():
    """The largest record behind an almost full batch still fits one frame."""
    backlog = Backlog(16 << 20)
    backlog.put(pack_record([0, "x" * (BATCH_BYTES - 100)]))
    largest = pack_record([1, "x" * (MAX_RECORD_BYTES - 7)])
    assert len(largest) == MAX_RECORD_BYTES
    backlog.put(largest)
    (frame,) = sent(backlog)
    assert len(frame) - 4 <= MAX_FRAME_BYTES
    assert len(ServerSession().take(frame)) == 2


def test_a_full_window_waits_for_an_ack():
    """Beyond the window, or a quarter of the buffer, nothing is sent; one batch always is, however small the window."""
    for buffer_bytes, window_bytes, count in ((16 << 20, 0, 1), (16 << 20, 200_000, 4), (512 << 10, 1 << 20, 2)):
        backlog = Backlog(buffer_bytes)
        for number in range(1000):
            backlog.put(packed(number, 1000))
        assert len(sent(backlog, window_bytes)) == count
        assert backlog.has_unsent
        backlog.ack(backlog._window[0].last_seq)
        assert len(sent(backlog, window_bytes)) == 1


def test_what_is_in_the_window_is_never_dropped():
    """It may be written already: when only that is left, there is nothing to drop."""
    backlog = Backlog(600)
    for number in range(3):
        backlog.put(packed(number, 250))
    assert backlog.is_over
    sent(backlog)
    held = len(backlog._queue)
    assert sum(backlog.drop_oldest("drop_oldest") for _ in range(10)) == held
    assert len(backlog._window) > 0
    assert not backlog.drop_oldest("drop_oldest")


def test_drops_are_told_even_when_no_record_follows():
    """A batch of nothing tells of drops alone; until it is acked, something is owed."""
    backlog, server = Backlog(MIN_BUFFER_BYTES), ServerSession()
    backlog.put(packed(1))
    backlog.drop_oldest("block_timeout")
    backlog.refuse()
    assert backlog.records == 0
    assert not backlog.is_empty
    assert backlog.has_unsent
    (frame,) = sent(backlog)
    assert not backlog.is_empty
    server.take(frame)
    assert (server.dropped, server.last_seq, server.numbers) == (2, 2, [])
    assert backlog.ack(server.last_seq)
    assert backlog.is_empty
    assert backlog.dropped == {"drop_oldest": 0, "drop_newest": 1, "block_timeout": 1}


def test_a_rewind_sends_again_what_is_not_acked():
    """The same bytes again, in their order; what the server has of them is acked by the rewind itself."""
    backlog = Backlog(1 << 20)
    for number in range(200):
        backlog.put(packed(number, 2_000))
    frames = sent(backlog)
    assert len(frames) > 3
    second = backlog._window[1].last_seq
    assert backlog.rewind(second)
    assert backlog.acked_seq == second
    assert sent(backlog)[: len(frames) - 2] == frames[2:]
    assert not backlog.rewind(second)
    with pytest.raises(ProtocolError):
        backlog.rewind(10**6)


def test_a_heartbeat_between_batches_declares_no_gap():
    """After a rewind with a small window, a heartbeat stands behind what was sent, not behind what was cut."""
    backlog, server = Backlog(1 << 20), ServerSession()
    for number in range(200):
        backlog.put(packed(number, 2_000))
    sent(backlog)
    backlog.rewind(0)
    server.take(backlog.heartbeat())
    server.take(backlog.next_frame(1))
    assert backlog.next_frame(1) is None
    server.take(backlog.heartbeat())  # would be refused as a gap
    assert server.last_seq == backlog.next_seq - 1 == backlog._window[0].last_seq
    backlog.ack(server.last_seq)
    server.take(backlog.heartbeat())


def test_a_path_that_lets_little_through_is_passed_in_the_end():
    """Where each connection breaks after 3,000 bytes, batches become smaller until they fit, and grow again later."""
    backlog, server = Backlog(16 << 20), ServerSession()
    for number in range(2_000):
        backlog.put(packed(number, 100))
    connections = 0
    while not backlog.is_empty:
        connections += 1
        assert connections < 400
        backlog.rewind(server.last_seq)
        left_bytes = 3_000
        while (frame := backlog.next_frame(1 << 20)) is not None and len(frame) <= left_bytes:
            left_bytes -= len(frame)
            server.take(frame)
    assert server.numbers == list(range(2_000))
    for number in range(10_000):
        backlog.put(packed(number, 100))
    largest_bytes = 0
    while (frame := backlog.next_frame(1)) is not None:
        largest_bytes = max(largest_bytes, len(frame))
        server.take(frame)
        backlog.ack(server.last_seq)
    assert largest_bytes > BATCH_BYTES


# ---------------------------------------------------------------------------------------------------------------
# Threads and signals


class Producer:
    """Puts numbered records as fast as it can, and counts what it did."""

    def __init__(self, backlog, identity):
        self.backlog = backlog
        self.identity = identity
        self.put_count = 0
        self._numbers = itertools.count(identity << 32)

    def put(self):
        self.backlog.put(packed(next(self._numbers)))
        self.put_count += 1

    def run(self, count):
        for number in range(count):
            self.put()
            if number % 3 == 0:
                self.backlog.drop_oldest("drop_oldest")
            if number % 7 == 0:
                self.backlog.refuse()


@pytest.fixture
def switching():
    """Let threads be switched as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def alarm():
    """Return a function that calls another in a signal handler, again and again; undone afterwards."""
    before = signal.getsignal(signal.SIGALRM)

    def start(call, seconds):
        signal.signal(signal.SIGALRM, lambda *_: call())
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.usefixtures("switching")
def test_threads_and_signals_lose_nothing_and_count_exactly(alarm):
    """Five threads and a signal handler put, drop and refuse while one sends, reconnects and acks: all is counted."""
    backlog, server = Backlog(16 << 20), ServerSession()
    count = 20_000
    threads = [Producer(backlog, identity) for identity in range(5)]
    interrupting = Producer(backlog, 5)
    refused_by_signal = 0

    def interrupt():
        nonlocal refused_by_signal
        interrupting.put()
        backlog.drop_oldest("block_timeout")
        backlog.refuse()
        refused_by_signal += 1

    done = threading.Event()
    failures = []

    def send():
        try:
            turns_left = (
                20_000  # after the last record: were something never to be empty, the counts below would say so
            )
            for turn in itertools.count():
                if done.is_set():
                    turns_left -= 1
                    if backlog.is_empty or not turns_left:
                        return
                frame = backlog.next_frame(256 << 10)
                if frame is not None:
                    server.take(frame)
                if turn % 50 == 0:
                    backlog.rewind(server.last_seq)
                elif turn % 3 == 0:
                    backlog.ack(server.last_seq)
                if frame is None:
                    server.take(backlog.heartbeat())
                    backlog.ack(server.last_seq)
                assert backlog.size_bytes >= 0
                assert backlog.records >= 0
        except BaseException as error:
            failures.append(error)
            raise

    sender = threading.Thread(target=send)
    sender.start()
    others = [threading.Thread(target=producer.run, args=(count,)) for producer in threads[1:]]
    for thread in others:
        thread.start()
    alarm(interrupt, 0.0005)
    threads[0].run(count)  # in the main thread, where the signals come
    for thread in others:
        thread.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    done.set()
    sender.join()

    assert not failures
    puts = sum(producer.put_count for producer in [*threads, interrupting])
    refusals = 5 * -(-count // 7) + refused_by_signal
    assert interrupting.put_count > 10
    assert backlog.accepted == puts + refusals
    assert backlog.dropped["drop_newest"] == refusals
    assert backlog.accepted == backlog.acked + sum(backlog.dropped.values())
    assert backlog.is_empty
    assert backlog.size_bytes == backlog.records == 0
    assert server.dropped == sum(backlog.dropped.values())
    assert len(server.numbers) == backlog.acked == backlog.sent == len(set(server.numbers))
    assert server.last_seq == backlog.accepted
    for producer in threads:  # each thread's own records are in order; a signal may interrupt its own handler
        own = [number for number in server.numbers if number >> 32 == producer.identity]
        assert own == sorted(own)
        assert 0 < len(own) <= producer.put_count


@pytest.mark.usefixtures("switching")
def test_threads_that_keep_the_bound_exceed_it_by_a_record_each():
    """Threads that put and drop as the handler does never hold more than the buffer and one record each."""
    backlog = Backlog(MIN_BUFFER_BYTES)
    size_bytes = len(packed(5_000, 500)) + RECORD_OVERHEAD_BYTES
    highest = [0] * 4

    def run(identity):
        for number in range(5_000):
            while backlog.is_over:
                backlog.drop_oldest("drop_oldest")
            backlog.put(packed(number, 500))
            highest[identity] = max(highest[identity], backlog.size_bytes)

    threads = [threading.Thread(target=run, args=(identity,)) for identity in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert MIN_BUFFER_BYTES < max(highest) <= MIN_BUFFER_BYTES + 4 * size_bytes
    assert backlog.accepted == 20_000
    assert backlog.records == len(backlog._queue)
    assert backlog.size_bytes == sum(len(record) + RECORD_OVERHEAD_BYTES for record in backlog._queue)
