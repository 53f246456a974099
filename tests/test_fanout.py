"""Lanes and the fan-out: group commit, retry, drops that are said, and lanes that are replaced under load."""

from __future__ import annotations

import asyncio
import errno
import math

import pytest
from memory import MIB, MemorySink, World

from aiolog.errors import ConfigError
from aiolog.fanout import MAX_RETRY_SECONDS, RETRY_SECONDS, STUCK_SECONDS, Delivery
from aiolog.source import Room, Site, Source, Thread

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def sink():
    return MemorySink()


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()


class Deliveries:
    """Makes deliveries of one record each, and notes which are delivered."""

    def __init__(self):
        self.done = []
        self._source = Source(app="shop")
        self._source.define(Site("app", 20, "INFO", "/app.py", "app.py", "app", 1, "main"))
        self._source.define(Thread(1, "MainThread"))

    def __call__(self, message, size_bytes=100):
        return Delivery(
            self._source,
            [(1.5, 0, 1, message)],
            size_bytes=size_bytes,
            on_delivered=lambda: self.done.append(message),
        )


@pytest.fixture
def delivery():
    return Deliveries()


def opened(world, *sinks, **settings):
    """Add a lane for each sink; return the lanes."""
    lanes = {sink.name: world.lane(sink, **settings) for sink in sinks}
    world.do(world.fanout.open(lanes)).result()
    return list(lanes.values())


def messages(group):
    return [wire[3] for delivery in group for wire in delivery.records]


# -- one lane


def test_what_comes_during_a_write_is_written_in_one_group(world, sink, delivery):
    """A lane takes all that waits at once, in the order in which it came."""
    opened(world, sink)
    sink.hold()
    for message in "abcd":
        world.fanout.deliver(delivery(message))
        world.run()
    assert delivery.done == []
    sink.let()
    world.run()
    assert [messages(group) for group in sink.tried] == [["a"], ["b", "c", "d"]]
    assert delivery.done == list("abcd")


def test_a_group_that_failed_is_written_again_as_it_was(world, sink, delivery):
    """Nothing of it counts as delivered until the sink has taken it, and what came meanwhile stands behind it."""
    (lane,) = opened(world, sink)
    sink.error = FULL
    world.fanout.deliver(delivery("a"))
    world.fanout.deliver(delivery("b"))
    world.run()
    world.fanout.deliver(delivery("c"))
    world.run(RETRY_SECONDS)
    assert [messages(group) for group in sink.tried] == [["a", "b"], ["a", "b"]]
    assert (lane.failing, delivery.done) == (True, [])
    sink.error = None
    world.run(10)
    assert sink.messages == delivery.done == ["a", "b", "c"]
    assert not lane.failing


def test_a_write_that_does_not_end_fails(world, sink, delivery):
    """Who asks for the server's health hears it, as of an error, until it ends."""
    (lane,) = opened(world, sink)
    sink.hold()
    world.fanout.deliver(delivery("a"))
    world.run(STUCK_SECONDS - 1)
    assert not lane.failing
    world.run(2)
    assert lane.failing
    sink.let()
    world.run()
    assert (lane.failing, delivery.done) == (False, ["a"])


def test_a_sink_that_fails_is_tried_less_and_less_often(world, sink, delivery):
    """The pause doubles, up to a second, so that all goes on soon after somebody made room."""
    opened(world, sink)
    sink.error = FULL
    world.fanout.deliver(delivery("a"))
    world.run(0.1 + 0.2 + 0.4 + 0.8)
    assert len(sink.tried) == 5
    world.run(10 * MAX_RETRY_SECONDS)
    assert len(sink.tried) == 15


def test_trouble_and_its_end_are_said(world, sink, delivery):
    """One line names the sink, the reason and what to do; another says that it is over."""
    opened(world, sink)
    sink.error = FULL
    world.fanout.deliver(delivery("a"))
    world.run()
    sink.error = None
    world.run(1)
    assert len(world.lines) == 2
    assert "sink memory cannot write: No space left on device. Nothing is acked" in world.lines[0]
    assert "sink memory writes again" in world.lines[1]


def test_a_fault_of_a_sink_loses_nothing(world, sink, delivery):
    """An exception that no sink should raise is said as a fault of aiolog, and the group is tried again."""
    opened(world, sink)
    sink.error = ZeroDivisionError("x")
    world.fanout.deliver(delivery("a"))
    world.run()
    assert "ZeroDivisionError" in world.lines[0]
    assert "please report it" in world.lines[0]
    sink.error = None
    world.run(1)
    assert sink.messages == delivery.done == ["a"]


def test_drain_waits_for_what_was_taken(world, sink, delivery):
    """It ends when nothing waits and nothing is being written; at once when nothing ever came."""
    (lane,) = opened(world, sink)
    assert world.do(lane.drain()).done()
    sink.hold()
    world.fanout.deliver(delivery("a"))
    world.run()
    world.fanout.deliver(delivery("b"))
    drained = world.do(lane.drain(), seconds=100)
    assert not drained.done()
    sink.let()
    world.run()
    assert drained.done()
    assert sink.messages == ["a", "b"]


def test_close_returns_what_is_not_committed(world, sink, delivery):
    """What is being written comes first, then what waits; the sink is closed, and nobody is told of a delivery."""
    (lane,) = opened(world, sink)
    sink.hold()
    world.fanout.deliver(delivery("a"))
    world.run()
    world.fanout.deliver(delivery("b"))
    left = world.do(lane.close()).result()
    assert messages(left) == ["a", "b"]
    assert (sink.is_open, sink.deliveries, delivery.done) == (False, [], [])


# -- lanes that may drop


def test_a_slow_lane_that_may_drop_drops_the_newest(world, sink, delivery):
    """What does not fit is counted, by process."""
    dictionary_bytes = delivery("a").source.size_bytes  # is held as well, as long as a delivery waits
    (lane,) = opened(world, sink, when_full="drop_newest", buffer_bytes=dictionary_bytes + 250)
    sink.hold()
    world.fanout.deliver(delivery("a"))
    world.run()
    for message in "bcdef":
        world.fanout.deliver(delivery(message))
    sink.let()
    world.run()
    assert sink.messages[:3] == ["a", "b", "c"]
    assert lane.dropped_records == 3
    (missed,) = lane.untold.values()
    assert (missed.records, missed.since[3], missed.until[3]) == (3, "d", "f")
    world.fanout.deliver(delivery("g"))
    world.run()
    assert sink.messages[3:] == ["g"]


def test_a_lane_that_may_drop_holds_few_dictionaries(world, sink):
    """Each belongs to a process that may be gone: behind a stuck sink they count as what they hold."""
    room = Room(math.inf)
    (lane,) = opened(world, sink, when_full="drop_newest", buffer_bytes=20_000)
    sink.hold()
    for number in range(100):
        source = Source(pid=number, room=room)
        source.define(Site("n" * 1_000, 20, "INFO", "/app.py", "app.py", "app", 1, "main"))
        for seq in (1, 2):
            world.fanout.deliver(
                Delivery(source, [(1.5, 0, None, "x")], session=b"%d" % number, first_seq=seq, size_bytes=20)
            )
        del source
        world.run()
    sink.tried.clear()
    assert 10_000 < room.used_bytes < 25_000
    assert lane.dropped_records + sum(delivery.size_bytes // 20 for delivery in [*lane._queue, *lane._writing]) == 200
    missed = lane.untold[b"99"]
    assert (missed.source.pid, missed.records) == (99, 2)
    sink.let()
    world.run()
    sink.deliveries.clear()
    sink.tried.clear()
    assert room.used_bytes == 0


def test_a_lane_that_may_drop_delays_nobody(world, sink, delivery):
    """An ack does not wait for it, whether it is slow or fails."""
    slow = MemorySink("slow")
    opened(world, sink)
    opened(world, slow, when_full="drop_newest")
    slow.hold()
    slow.error = FULL
    world.fanout.deliver(delivery("a"))
    world.run()
    assert delivery.done == ["a"]
    assert world.do(world.fanout.drain()).done()


def test_an_oversized_delivery_is_admitted_when_nothing_waits(world, sink, delivery):
    """Otherwise it could never be written, however fast the sink; behind others it is dropped."""
    (lane,) = opened(world, sink, when_full="drop_newest", buffer_bytes=250)
    world.fanout.deliver(delivery("large", size_bytes=MIB))
    world.run()
    world.fanout.deliver(delivery("small"))
    world.fanout.deliver(delivery("large too", size_bytes=MIB))
    world.run()
    assert sink.messages[:2] == ["large", "small"]
    assert lane.dropped_records == 1


def test_the_room_of_a_lane_is_free_again_after_each_write(world, sink, delivery):
    """The bytes that wait are counted anew for each group."""
    (lane,) = opened(world, sink, when_full="drop_newest", buffer_bytes=250)
    for message in "abcdefgh":
        world.fanout.deliver(delivery(message, size_bytes=200))
        world.run()
    assert sink.messages == list("abcdefgh")
    assert lane.dropped_records == 0


# -- many lanes


def test_delivered_means_committed_by_every_block_lane(world, delivery):
    """The last of them decides, in whatever order they end."""
    first, second = MemorySink("first"), MemorySink("second")
    opened(world, first, second)
    for slow, fast in ((first, second), (second, first)):
        delivery.done.clear()
        slow.hold()
        world.fanout.deliver(delivery("a"))
        world.run(100)
        assert fast.messages[-1] == "a"
        assert delivery.done == []
        slow.let()
        world.run()
        assert delivery.done == ["a"]


def test_without_a_block_lane_a_delivery_is_delivered_at_once(world, sink, delivery):
    """Nobody waits for lanes that may drop, nor where there is no lane at all."""
    world.fanout.deliver(delivery("nowhere"))
    assert delivery.done == ["nowhere"]
    opened(world, sink, when_full="drop_newest")
    world.fanout.deliver(delivery("a"))
    assert delivery.done == ["nowhere", "a"]
    world.run()
    assert sink.messages == ["a"]
    assert delivery.done == ["nowhere", "a"]


def test_a_sink_that_cannot_be_opened_leaves_none_open(world, sink):
    """A start that fails halfway closes what it had opened."""
    bad = MemorySink("bad")
    bad.open_error = ConfigError("no such directory")
    with pytest.raises(ConfigError):
        opened(world, sink, bad)
    assert not sink.is_open
    assert world.fanout.lanes == {}


def test_close_closes_all(world):
    """Every sink is closed, and delivering goes on without them."""
    sinks = [MemorySink("first"), MemorySink("second")]
    opened(world, *sinks)
    world.do(world.fanout.close()).result()
    assert not any(sink.is_open for sink in sinks)
    assert world.fanout.lanes == {}


# -- lanes that are replaced


def replace(world, fresh, fallback=(), kept=(), seconds=0.0):
    return world.do(
        world.fanout.replace(
            {sink.name: world.lane(sink) for sink in fresh},
            {sink.name: world.lane(sink) for sink in fallback},
            kept,
            timeout_seconds=5.0,
        ),
        seconds,
    )


def test_replace_keeps_what_it_is_told_to(world, delivery):
    """A kept lane stays as it is, the old one is closed, and the fresh one gets what comes from then on."""
    kept, old, fresh = MemorySink("kept"), MemorySink("app"), MemorySink("app")
    lane, _ = opened(world, kept, old)
    world.fanout.deliver(delivery("a"))
    world.run()
    replace(world, [fresh], kept={"kept"}).result()
    assert world.fanout.lanes["kept"] is lane
    assert (kept.is_open, old.is_open, fresh.is_open) == (True, False, True)
    world.fanout.deliver(delivery("b"))
    world.run()
    assert (kept.messages, old.messages, fresh.messages) == (["a", "b"], ["a"], ["b"])
    assert delivery.done == ["a", "b"]


def test_replace_lets_old_lanes_finish_and_holds_what_comes(world, delivery):
    """What comes meanwhile waits for the fresh lanes, and reaches each sink once, in order."""
    kept, old, fresh = MemorySink("kept"), MemorySink("app"), MemorySink("app")
    opened(world, kept, old)
    old.hold()
    world.fanout.deliver(delivery("a"))
    world.run()
    done = replace(world, [fresh], kept={"kept"})
    world.fanout.deliver(delivery("b"))
    world.run()
    assert not done.done()
    assert kept.messages == ["a"]
    old.let()
    world.run()
    done.result()
    assert (kept.messages, old.messages, fresh.messages) == (["a", "b"], ["a"], ["b"])
    assert delivery.done == ["a", "b"]


def test_a_lane_that_is_being_replaced_blocks_still(world, delivery):
    """A session that comes meanwhile is told what that sink has, too: what it lacks must come again."""
    kept, old, fresh = MemorySink("kept"), MemorySink("app"), MemorySink("app")
    opened(world, kept, old)
    old.hold()
    world.fanout.deliver(delivery("a"))
    done = replace(world, [fresh], kept={"kept"})
    assert {lane.sink for lane in world.fanout.blocking()} == {kept, old}
    old.let()
    world.run()
    done.result()
    assert {lane.sink for lane in world.fanout.blocking()} == {kept, fresh}


@pytest.mark.parametrize("failing", [False, True])
def test_what_a_stuck_lane_leaves_goes_to_the_new_one_of_its_name(world, delivery, failing):
    """After the deadline the new lane writes it, before what was held, and only then is it delivered."""
    old, fresh = MemorySink("app"), MemorySink("app")
    opened(world, old)
    if failing:
        old.error = FULL
    else:
        old.hold()
    world.fanout.deliver(delivery("a"))
    world.run()
    world.fanout.deliver(delivery("b"))
    fresh.hold()
    done = replace(world, [fresh])
    world.fanout.deliver(delivery("c"))
    world.run(4.9)
    assert not done.done()
    world.run(0.2)
    done.result()
    assert delivery.done == []
    fresh.let()
    world.run()
    assert (old.messages, fresh.messages) == ([], ["a", "b", "c"])
    assert delivery.done == ["a", "b", "c"]


def test_leftovers_still_wait_for_the_other_lanes(world, delivery):
    """A delivery that a kept lane owes too is delivered when both have committed it."""
    kept, old, fresh = MemorySink("kept"), MemorySink("app"), MemorySink("app")
    opened(world, kept, old)
    kept.hold()
    old.hold()
    world.fanout.deliver(delivery("a"))
    replace(world, [fresh], kept={"kept"}, seconds=6).result()
    assert fresh.messages == ["a"]
    assert delivery.done == []
    kept.let()
    world.run()
    assert kept.messages == delivery.done == ["a"]


def test_leftovers_of_a_sink_that_is_gone_delay_nobody(world, delivery):
    """Where no lane has the old one's name, its part of the delivery is given up."""
    old, other = MemorySink("app"), MemorySink("other")
    opened(world, old)
    old.hold()
    world.fanout.deliver(delivery("a"))
    replace(world, [other], seconds=6).result()
    assert delivery.done == ["a"]
    assert other.messages == []


@pytest.mark.parametrize(("before", "after"), [("block", "drop_newest"), ("drop_newest", "block")])
def test_leftovers_go_over_to_a_lane_of_the_other_kind(world, delivery, before, after):
    """Each is written once and delivered once, whether anybody waited for it before or does now."""
    old, fresh = MemorySink("app"), MemorySink("app")
    opened(world, old, when_full=before)
    old.hold()
    world.fanout.deliver(delivery("a"))
    world.run()
    world.do(world.fanout.replace({"app": world.lane(fresh, after)}, {}, (), timeout_seconds=1.0), seconds=2).result()
    assert fresh.messages == delivery.done == ["a"]


def test_when_a_fresh_sink_cannot_be_opened_the_fallback_stands(world, delivery):
    """The error comes out, nothing that waited is lost, and no fresh sink stays open."""
    old, good, bad, fallback = MemorySink("app"), MemorySink("good"), MemorySink("bad"), MemorySink("app")
    bad.open_error = ConfigError("no such directory")
    opened(world, old)
    old.hold()
    world.fanout.deliver(delivery("a"))
    done = replace(world, [good, bad], [fallback])
    world.fanout.deliver(delivery("b"))
    world.run(6)
    assert isinstance(done.exception(), ConfigError)
    assert (good.is_open, fallback.is_open) == (False, True)
    assert fallback.messages == delivery.done == ["a", "b"]


def test_when_not_even_the_fallback_opens_nothing_is_acked(world, delivery):
    """What waits stays with the clients: nobody is told that it is delivered."""
    old, fresh, fallback = MemorySink("app"), MemorySink("app"), MemorySink("app")
    fresh.open_error = fallback.open_error = ConfigError("no such directory")
    opened(world, old)
    old.hold()
    world.fanout.deliver(delivery("a"))
    done = replace(world, [fresh], [fallback])
    world.fanout.deliver(delivery("b"))
    world.run(6)
    assert isinstance(done.exception(), ConfigError)
    assert delivery.done == []


def test_what_comes_together_is_one_group(world, sink, delivery):
    """All that is offered in one turn of the loop is one write; so is what comes while that is under way."""
    opened(world, sink)
    world.fanout.deliver(delivery("a"))
    world.fanout.deliver(delivery("b"))
    assert not sink.tried
    sink.hold()
    world.run()
    world.fanout.deliver(delivery("c"))
    world.fanout.deliver(delivery("d"))
    world.run()
    sink.let()
    world.run()
    assert [len(group) for group in sink.tried] == [2, 2]


def test_one_that_fails_when_it_is_told_keeps_nobody_waiting(world, sink, delivery):
    """The others of its group are told, the lane goes on, and the loop hears of the fault."""

    def fail():
        raise OSError("a fault of somebody else")

    opened(world, sink)
    failing = delivery("a")
    failing.on_delivered = fail
    world.fanout.deliver(failing)
    world.fanout.deliver(delivery("b"))
    world.run()
    world.fanout.deliver(delivery("c"))
    world.run()
    assert delivery.done == ["b", "c"]
    assert [str(fault["exception"]) for fault in world._faults] == ["a fault of somebody else"]
    world._faults.clear()
    assert world.do(world.fanout.drain()).done()


def test_a_write_that_is_cancelled_is_none(world, sink, delivery):
    """Whoever cancels it, the group comes again and is told of when it is written."""
    opened(world, sink)
    sink.hold()
    world.fanout.deliver(delivery("a"))
    world.run()
    for task in asyncio.all_tasks(world.loop):
        task.cancel()
    world.run()
    assert delivery.done == []
    sink.let()
    world.run(RETRY_SECONDS)
    assert delivery.done == sink.messages == ["a"]
