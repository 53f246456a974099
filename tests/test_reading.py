"""Reading from all connections together: as a transport would for each, and in one go for all."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from contextlib import asynccontextmanager

import pytest
import uvloop

from aiolog import reading
from aiolog.protocol import BEAT_SECONDS
from aiolog.reading import (
    COMPANY_SECONDS,
    IDLE_TIMES,
    LATE_SECONDS,
    LITTLE_BYTES,
    MAX_IDLE_SECONDS,
    MUCH_BYTES,
    Reader,
)

pytestmark = pytest.mark.skipif(not reading.READS_TOGETHER, reason="there is no epoll here")

WAIT_SECONDS = 10.0


class Peer(asyncio.Protocol):
    """One connection on the server's side; ``reader`` reads for it. What happens to it stands in ``seen``."""

    def __init__(self, world):
        self.world = world
        self.seen = []
        self.keeps_open = False
        self.fault = None

    def connection_made(self, transport):
        self.transport = transport
        # As in a server, where the HELLO has come by the transport: that begins to read after this call.
        asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self):
        self.tap = self.world.reader.take(self.transport, self)
        self.world.peers.append(self)

    def data_received(self, data):
        self.seen.append(data)
        if self.fault is not None:
            raise self.fault

    def eof_received(self):
        self.seen.append("end")
        return self.keeps_open

    def connection_lost(self, exc):
        self.tap.pause_reading()
        self.seen.append("lost")

    @property
    def data(self):
        return b"".join(one for one in self.seen if isinstance(one, bytes))


class World:
    """A listener, its reader, and clients, which are blocking sockets."""

    def __init__(self, loop):
        self.loop = loop
        self.settled = []  # what had been seen by then
        self.may_rest = True
        self.reader = Reader(loop, self.settle)
        self.peers = []
        self.faults = []
        loop.set_exception_handler(lambda _, context: self.faults.append(context["exception"]))

    def settle(self):
        self.settled.append([len(peer.seen) for peer in self.peers])
        return self.may_rest

    async def connect(self):
        """Return a client and its peer."""
        count = len(self.peers)
        client = socket.create_connection(self.listener.sockets[0].getsockname())
        await until(lambda: len(self.peers) > count)
        return client, self.peers[-1]


async def until(condition):
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


@asynccontextmanager
async def world():
    made = World(asyncio.get_running_loop())
    made.listener = await made.loop.create_server(lambda: Peer(made), "127.0.0.1", 0)
    try:
        yield made
    finally:
        for peer in made.peers:
            peer.transport.abort()
        made.listener.close()
        await asyncio.sleep(0)
        if not made.reader._ready.closed:
            made.reader.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    def run(play):
        async def main():
            async with world() as made:
                await play(made)

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())

    return run


def test_all_bytes_come_to_their_own_protocol(run):
    """Fifty clients at once, each in three parts."""

    async def play(world):
        pairs = [await world.connect() for _ in range(50)]
        for part in range(3):
            for n, (client, _) in enumerate(pairs):
                client.sendall(b"%d.%d " % (n, part))
        for n, (client, peer) in enumerate(pairs):
            expected = b"".join(b"%d.%d " % (n, part) for part in range(3))
            await until(lambda peer=peer, expected=expected: peer.data == expected)
            client.close()

    run(play)


@pytest.fixture
def beats(run, monkeypatch):
    """Play on a clock that only moves when it is told to, with a reader that only reads when it is told to."""

    def play_on(play):
        async def on_clock(world):
            world.loop.remove_reader(world.reader._ready.fileno())
            world.now, world.naps = 0.0, []
            monkeypatch.setattr(reading, "monotonic", lambda: world.now)
            monkeypatch.setattr(reading, "nap", world.naps.append)
            world.pairs = [await world.connect() for _ in range(4)]

            async def at(beat, *data):
                """Send these at the beat from the first clients, read, and return how long the loop slept then."""
                world.now = (beat + 0.1) * BEAT_SECONDS
                world.naps.clear()
                for (client, _), one in zip(world.pairs, data, strict=False):
                    client.sendall(one)
                world.reader._read()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                return list(world.naps)

            world.at = at
            await play(world)
            world.loop.add_reader(world.reader._ready.fileno(), world.reader._read)
            for client, _ in world.pairs:
                client.close()

        run(on_clock)

    return play_on


A_REST = pytest.approx(0.9 * BEAT_SECONDS + COMPANY_SECONDS)


def test_when_all_have_come_the_loop_rests_until_after_the_next_beat(beats):
    """From the second beat on, when it is known who comes."""

    async def play(world):
        assert await world.at(10, b"a", b"a", b"a") == []
        assert await world.at(11, b"b", b"b", b"b") == [A_REST]
        assert await world.at(12, b"c", b"c", b"c") == [A_REST]
        assert [peer.data for _, peer in world.pairs] == [b"abc", b"abc", b"abc", b""]
        assert world.settled == [[0] * 4, [1, 1, 1, 0], [2, 2, 2, 0], [2, 2, 2, 0], [3, 3, 3, 0]]

    beats(play)


def test_one_that_is_late_is_waited_for(beats):
    """It need not wait for the next beat; the others are read meanwhile. At the next beat it is not expected."""

    async def play(world):
        await world.at(10, b"a", b"a", b"a")
        assert await world.at(11, b"b", b"b") == []
        assert [peer.data for _, peer in world.pairs[:3]] == [b"ab", b"ab", b"a"]
        assert await world.at(11.2, b"", b"", b"b") == [
            LATE_SECONDS,
            pytest.approx(0.7 * BEAT_SECONDS + COMPANY_SECONDS),
        ]
        assert await world.at(12, b"c", b"c") == []
        assert await world.at(13, b"d", b"d") == [LATE_SECONDS, A_REST]

    beats(play)


def test_after_a_pause_nobody_is_expected(beats):
    """A process that logs now and then is read at once, always."""

    async def play(world):
        for beat in (10, 13, 16):
            assert await world.at(beat, b"a") == []

    beats(play)


def test_one_alone_waits_for_nobody(beats):
    """There is no company to come: its flush, say, is answered at once."""

    async def play(world):
        for beat in (10, 11, 12, 13):
            assert await world.at(beat, b"a") == []

    beats(play)


def test_a_write_that_needs_the_loop_keeps_it_awake(beats):
    """That of a sink without a thread for it."""

    async def play(world):
        await world.at(10, b"a", b"a")
        world.may_rest = False
        assert await world.at(11, b"b", b"b") == []
        world.may_rest = True
        assert await world.at(12, b"c", b"c") == [A_REST]

    beats(play)


def test_after_work_that_went_past_the_next_beat_there_is_no_rest(beats):
    """What came meanwhile has waited already."""

    async def play(world):
        await world.at(10, b"a", b"a")
        taken = world.pairs[0][1].data_received

        def take_long(data):
            taken(data)
            world.now += 2 * BEAT_SECONDS

        world.pairs[0][1].data_received = take_long
        assert await world.at(11, b"b", b"b") == []

    beats(play)


def test_who_sends_in_pieces_is_one(beats):
    """What is expected are connections, not pieces."""

    async def play(world):
        await world.at(10, b"a", b"a")
        for part in range(1, 6):
            await world.at(10 + part / 100, b"a")
        assert await world.at(11, b"b", b"b") == [A_REST]

    beats(play)


def test_where_there_is_much_nobody_rests(beats):
    """A batch of a client in a hurry: the next is there soon."""

    async def play(world):
        await world.at(10, b"a", b"a")
        assert await world.at(11, bytes(MUCH_BYTES), b"b") == []
        assert await world.at(12, b"c", b"c") == [A_REST]

    beats(play)


@pytest.fixture
def work(monkeypatch):
    """Return how to say what each turn of reading shall cost from now on, in seconds of the processor."""

    def costs(seconds):
        moments = itertools.count(0.0, seconds)
        monkeypatch.setattr(reading, "thread_time", lambda: next(moments))

    costs(0.0)
    monkeypatch.setattr(reading, "MANY", 2)
    return costs


async def both_read(world, data):
    """Send these from the first two clients, in one turn of the loop, and wait until both have come."""
    lengths = [len(peer.data) + len(data) for _, peer in world.pairs]
    for client, _ in world.pairs:
        client.sendall(data)
    await until(lambda: [len(peer.data) for _, peer in world.pairs] == lengths)
    await asyncio.sleep(0)


@pytest.mark.parametrize("seconds", [0.01, 10.0])
def test_little_that_takes_long_is_left_for_a_while(run, work, seconds):
    """As long as it took three times over, and 50 ms at most; then all is read together."""

    async def play(world):
        world.pairs = [await world.connect() for _ in range(2)]
        work(seconds)
        await both_read(world, b"a")
        left = world.reader._idle.when() - world.loop.time()
        assert min(IDLE_TIMES * seconds, MAX_IDLE_SECONDS) / 2 < left <= MAX_IDLE_SECONDS
        reads = len(world.settled)
        for n in range(5):
            for client, _ in world.pairs:
                client.sendall(b"%d" % n)
            await asyncio.sleep(0)
        assert len(world.settled) == reads
        await until(lambda: all(peer.data == b"a01234" for _, peer in world.pairs))
        assert len(world.settled) == reads + 1
        assert all(peer.seen == [b"a", b"01234"] for _, peer in world.pairs)
        for client, _ in world.pairs:
            client.close()

    run(play)


@pytest.mark.parametrize(
    ("seconds", "many"), [pytest.param(0.0, 2, id="quickly done"), pytest.param(10.0, 3, id="of few, however long")]
)
def test_little_is_followed_at_once(run, work, monkeypatch, seconds, many):
    """Many connections alone are no reason to wait; and few are none, or two bad peers could keep all waiting."""

    async def play(world):
        monkeypatch.setattr(reading, "MANY", many)
        world.pairs = [await world.connect() for _ in range(2)]
        work(seconds)
        for _ in range(3):
            await both_read(world, b"a")
            assert world.reader._idle is None
        for client, _ in world.pairs:
            client.close()

    run(play)


def test_one_in_a_hurry_is_waited_for_by_nobody(run, work):
    """However many are quiet beside it, and whatever they cost: its buffer may be full."""

    async def play(world):
        world.pairs = [await world.connect() for _ in range(3)]
        hurried, peer = world.pairs.pop()
        work(0.01)
        for n in range(1, 4):
            hurried.sendall(bytes(LITTLE_BYTES))
            await both_read(world, b"a")
            await until(lambda n=n: len(peer.data) == n * LITTLE_BYTES)
            assert world.reader._idle is None
        for client, _ in [*world.pairs, (hurried, peer)]:
            client.close()

    run(play)


def test_a_reader_may_close_while_nothing_is_read(run, work):
    """No timer comes back to a closed set."""

    async def play(world):
        world.pairs = [await world.connect() for _ in range(2)]
        work(0.01)
        await both_read(world, b"a")
        assert world.reader._idle is not None
        world.reader.close()
        await asyncio.sleep(2 * MAX_IDLE_SECONDS)
        assert world.faults == []
        for client, _ in world.pairs:
            client.close()

    run(play)


def test_who_is_paused_is_not_read(run):
    """Until it is resumed; nothing is lost, and the loop does not spin meanwhile."""

    async def play(world):
        client, peer = await world.connect()
        peer.tap.pause_reading()
        client.sendall(b"later")
        other, other_peer = await world.connect()
        other.sendall(b"now")
        await until(lambda: other_peer.data == b"now")
        assert peer.seen == []
        peer.tap.resume_reading()
        await until(lambda: peer.data == b"later")
        client.close()
        other.close()

    run(play)


@pytest.mark.parametrize("keeps_open", [True, False])
def test_an_end_is_told_once(run, keeps_open):
    """The protocol says whether its side stays open, as with any transport."""

    async def play(world):
        client, peer = await world.connect()
        peer.keeps_open = keeps_open
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)
        await until(lambda: "end" in peer.seen)
        if keeps_open:
            peer.transport.write(b"answer")
            client.settimeout(WAIT_SECONDS)
            assert await asyncio.to_thread(client.recv, 10) == b"answer"
            assert peer.seen == [b"last", "end"]
        else:
            await until(lambda: "lost" in peer.seen)
            assert peer.seen == [b"last", "end", "lost"]
        client.close()

    run(play)


def test_a_reset_loses_the_connection(run):
    """As it does when a transport reads."""

    async def play(world):
        client, peer = await world.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await until(lambda: "lost" in peer.seen)
        assert peer.seen == ["lost"]
        assert world.faults == []

    run(play)


def test_a_protocol_that_fails_costs_nobody_else_anything(run):
    """Its connection ends, the loop is told, and the others of the same turn are read."""

    async def play(world):
        pairs = [await world.connect() for _ in range(3)]
        fault = RuntimeError("a fault of ours")
        pairs[1][1].fault = fault
        for client, _ in pairs:
            client.sendall(b"x")
        await until(lambda: pairs[0][1].data == pairs[2][1].data == b"x" and "lost" in pairs[1][1].seen)
        assert world.faults == [fault]
        pairs[0][0].sendall(b"y")
        await until(lambda: pairs[0][1].data == b"xy")
        for client, _ in pairs:
            client.close()

    run(play)


def test_a_descriptor_that_comes_again_belongs_to_its_new_connection(run):
    """What an old connection leaves behind does not stop a new one of the same number from being read."""

    async def play(world):
        numbers = set()
        for turn in range(20):
            client, peer = await world.connect()
            numbers.add(peer.transport.get_extra_info("socket").fileno())
            client.sendall(b"%d" % turn)
            await until(lambda peer=peer, turn=turn: peer.data == b"%d" % turn)
            client.close()
            await until(lambda peer=peer: "lost" in peer.seen)
        assert len(numbers) < 20
        assert world.reader._taps == {}

    run(play)
