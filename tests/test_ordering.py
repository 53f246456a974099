"""The order of time: records of all processes merged within a window, and nothing lost, doubled or acked too early."""

from __future__ import annotations

import math
import secrets
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import MIB, MemorySink, World

from aiolog.fanout import Delivery
from aiolog.ordering import OrderedLane, TimeOrder, moment
from aiolog.source import Room, Source

WINDOW = 10.0
SOURCE = Source()


class Process:
    """One session whose deliveries have the next numbers."""

    def __init__(self):
        self.session = secrets.token_bytes(16)
        self.seq = 0

    def __call__(self, *stamps, on_delivered=None, notices=()):
        self.seq += len(notices)
        first_seq = self.seq + 1
        self.seq += len(stamps)
        return Delivery(
            SOURCE,
            [(stamp, 0, 1, f"{stamp}") for stamp in stamps],
            session=self.session,
            first_seq=first_seq,
            dropped=len(notices),
            notices=[(1.0, 0, 1, text) for text in notices],
            on_delivered=on_delivered,
        )


def stamps(slices):
    return [wire[0] for one in slices for wire in one.records]


def test_records_of_two_processes_are_merged():
    """Those that are old enough leave in the order of their stamps; the others wait."""
    order, a, b = TimeOrder(WINDOW), Process(), Process()
    order.add(a(1.0, 4.0, 9.0), 9.0)
    order.add(b(2.0, 3.0, 8.0), 9.0)
    assert order.take(10.9)[0] == []
    assert order.next_at() == 11.0
    slices, done = order.take(14.0)
    assert stamps(slices) == [1.0, 2.0, 3.0, 4.0]
    assert done == []
    assert [one.first_seq for one in slices] == [1, 1, 2]
    slices, done = order.take(19.0)
    assert stamps(slices) == [8.0, 9.0]
    assert len(done) == 2
    assert order.next_at() == float("inf")


def test_a_process_never_changes_its_own_order():
    """A clock that was set back, or a thread that was late, does not bring its records before earlier ones."""
    order, a, b = TimeOrder(WINDOW), Process(), Process()
    order.add(a(5.0, 2.0, 6.0), 7.0)
    order.add(b(4.0, 5.5), 7.0)
    slices, _ = order.take(99.0)
    assert stamps(slices) == [4.0, 5.0, 2.0, 5.5, 6.0]


def test_a_stamp_of_the_future_counts_as_its_arrival():
    """A process whose clock is wrong waits as long as all others, and holds up nobody."""
    order, a, b = TimeOrder(WINDOW), Process(), Process()
    order.add(a(1e12, 2.0), 100.0)
    order.add(b(101.0, "no moment", float("nan")), 102.0)
    assert stamps(order.take(110.0)[0]) == [1e12, 2.0]
    slices, done = order.take(112.0)
    assert len(stamps(slices)) == 3
    assert len(done) == 1


def test_a_clock_that_is_set_back_ends_the_waiting():
    """Nobody waits an hour because the clock went back by one; afterwards all is as before."""
    order, a = TimeOrder(WINDOW), Process()
    order.add(a(7_200.0, 7_201.0), 7_201.0)
    assert order.take(7_200.0) == ([], [])
    slices, done = order.take(3_600.0)
    assert stamps(slices) == [7_200.0, 7_201.0]
    assert len(done) == 1
    order.add(a(3_601.0), 3_602.0)
    assert order.take(3_605.0) == ([], [])
    assert stamps(order.take(3_611.0)[0]) == [3_601.0]


def test_what_comes_late_leaves_at_once():
    """After an outage nobody waits for what is older than the window anyway."""
    order, a = TimeOrder(WINDOW), Process()
    order.add(a(1.0, 2.0), 500.0)
    slices, done = order.take(500.0)
    assert stamps(slices) == [1.0, 2.0]
    assert len(done) == 1


def test_notices_leave_with_the_first_record():
    """What says that records are missing stands where they are, once, and keeps its place in the numbers."""
    order, a = TimeOrder(WINDOW), Process()
    order.add(a(1.0, 9.0, notices=["2 were dropped", "really"]), 9.0)
    first, _ = order.take(11.0)
    rest, _ = order.take(99.0)
    assert [len(one.notices) for one in first + rest] == [2, 0]
    assert [(one.first_seq, one.dropped) for one in first + rest] == [(3, 2), (4, 0)]
    order.add(a(notices=["alone"]), 100.0)
    slices, done = order.take(110.0)
    assert [len(one.notices) for one in slices] == [1]
    assert len(done) == 1


@pytest.mark.parametrize(
    ("created", "expected"), [(10**9, 1.0), (2.5, 2.5), (None, -1.0), (float("nan"), -1.0), ("1", -1.0)]
)
def test_moment(created, expected):
    """Seconds or nanoseconds, or what stands in for neither."""
    assert moment(created, -1.0) == expected


@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.lists(st.floats(0, 100) | st.integers(0, 10**11), min_size=1, max_size=6),
            st.floats(0, 20),
        ),
        max_size=20,
    ),
    window=st.floats(0.001, 50),
)
def test_everything_leaves_once_and_in_its_order(arrivals, window):
    """Each record in one slice, each process in its order, each delivery done when its last record has left."""
    order, processes, now = TimeOrder(window), [Process() for _ in range(4)], 0.0
    given_in, out, done = [], [], []
    for who, created, later in arrivals:
        now += later
        delivery = processes[who](*created)
        given_in.append(delivery)
        order.add(delivery, now)
        slices, finished = order.take(now)
        out += slices
        done += finished
        assert set(map(id, order.left)) == set(map(id, given_in)) - set(map(id, done))
    slices, finished = order.take(now, everything=True)
    out += slices
    done += finished
    assert Counter(map(id, done)) == Counter(map(id, given_in))
    assert order.left == []
    for process in processes:
        numbers = [one.first_seq + n for one in out if one.session == process.session for n in range(len(one.records))]
        assert numbers == list(range(1, process.seq + 1))


@given(
    stamps_of=st.lists(st.lists(st.floats(0, 50), min_size=1, max_size=8).map(sorted), min_size=1, max_size=4),
    splits=st.randoms(use_true_random=False),
)
def test_within_the_window_the_order_is_that_of_time(stamps_of, splits):
    """Where clocks agree and nothing is late, the merged whole is sorted, however it was cut into deliveries."""
    order, out = TimeOrder(WINDOW), []
    parts = []
    for stamps_of_one in stamps_of:
        process, begin = Process(), 0
        while begin < len(stamps_of_one):
            end = splits.randint(begin + 1, len(stamps_of_one))
            # It comes when its last record is made, and so within the window for the first only if cut often enough.
            while stamps_of_one[end - 1] - stamps_of_one[begin] >= WINDOW:
                end -= 1
            parts.append((stamps_of_one[end - 1], process(*stamps_of_one[begin:end])))
            begin = end
    for now, delivery in sorted(parts, key=lambda part: (part[0], part[1].first_seq)):
        order.add(delivery, now)
        out += order.take(now)[0]
    out += order.take(1e9)[0]
    assert stamps(out) == sorted(stamps(out))


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()


def ordered(world, sink, when_full="block", buffer_bytes=MIB):
    lane = OrderedLane(
        sink,
        when_full=when_full,
        buffer_bytes=buffer_bytes,
        report=world.report,
        window_seconds=WINDOW,
        clock=lambda: world.loop.time() + 1_000.0,
    )
    world.do(world.fanout.open({sink.name: lane})).result()
    return lane


def test_a_lane_that_may_drop_lets_go_of_processes_that_are_gone(world):
    """Once what they sent is written, nothing of what they said of themselves stays."""
    sink, room = MemorySink(), Room(math.inf)
    ordered(world, sink, when_full="drop_newest")
    for number in range(5):
        delivery = Delivery(
            Source(pid=number, room=room), [(1.0, 0, 1, "x")], session=b"%d" % number, first_seq=1, size_bytes=10
        )
        world.fanout.deliver(delivery)
        del delivery
        world.run(2 * WINDOW)
    assert messages(sink) == ["x"] * 5
    sink.deliveries.clear()
    sink.tried.clear()
    assert room.used_bytes == 0


def messages(sink):
    return [wire[3] for delivery in sink.deliveries for wire in delivery.records]


def test_an_ack_waits_for_the_last_record(world):
    """A delivery counts as written when all of it is, and not before."""
    sink, acked = MemorySink(), []
    ordered(world, sink)
    now = world.loop.time() + 1_000.0
    process = Process()
    world.fanout.deliver(process(now - 12.0, now - 5.0, on_delivered=lambda: acked.append("a")))
    world.run()
    assert messages(sink) == [f"{now - 12.0}"]
    assert acked == []
    world.run(seconds=5.1)
    assert messages(sink) == [f"{now - 12.0}", f"{now - 5.0}"]
    assert acked == ["a"]


def test_a_drain_waits_for_no_window(world):
    """What waits is written at once, in order, when the server is to end."""
    sink, acked = MemorySink(), []
    lane = ordered(world, sink)
    now = world.loop.time() + 1_000.0
    world.fanout.deliver(Process()(now - 1.0, on_delivered=lambda: acked.append("a")))
    world.fanout.deliver(Process()(now - 2.0, on_delivered=lambda: acked.append("b")))
    world.run()
    assert acked == []
    world.do(lane.drain()).result()
    assert messages(sink) == [f"{now - 2.0}", f"{now - 1.0}"]
    assert sorted(acked) == ["a", "b"]


def test_what_no_ack_waits_for_is_bounded(world):
    """A lane that may drop holds no more than its buffer, however long the window; what is too much leaves early."""
    sink = MemorySink()
    lane = ordered(world, sink, when_full="drop_newest", buffer_bytes=1_000)
    process = Process()
    for _ in range(20):
        delivery = process(world.loop.time() + 1_000.0)
        delivery.size_bytes = 300
        world.fanout.deliver(delivery)
        world.run(seconds=0.01)
        assert sum(one.size_bytes for one in lane._order.left) <= 1_000
    assert lane.dropped_records == 0
    assert len(messages(sink)) == 20


def test_what_was_not_committed_is_handed_back(world):
    """A lane that is replaced gives back every delivery of which something was not written."""
    sink = MemorySink()
    lane = ordered(world, sink)
    now = world.loop.time() + 1_000.0
    waiting = Process()(now - 20.0, now)
    world.fanout.deliver(waiting)
    world.run()
    assert world.do(lane.close()).result() == [waiting]
