"""The server around its connections: listeners, limits, sessions that are kept and forgotten, the sweep, the drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import stat
import time
import tracemalloc
import weakref

import pytest
import uvloop
from memory import DEFINE, KIB, LIMITS, MemorySink, World, batch

from aiolog.coerce import MAX_NAME_CHARS
from aiolog.connection import LINGER_SECONDS, Connection
from aiolog.errors import ConfigError
from aiolog.fanout import Fanout, Lane
from aiolog.protocol import (
    VERSION,
    Ack,
    Busy,
    Bye,
    Hello,
    Refusal,
    Refuse,
    Welcome,
    define_frames,
    encode,
)
from aiolog.record import attributes
from aiolog.report import Report
from aiolog.server import FORGOTTEN_TOGETHER, MISSED_SECONDS, SWEEP_SECONDS, TELL_SECONDS, Server
from aiolog.source import Source


@pytest.fixture
def sink():
    return MemorySink()


@pytest.fixture
def make_world(sink):
    """Return a function that makes a world with these limits; its server listens, and so sweeps."""
    worlds = []

    def make(**limits):
        worlds.append(World([sink], **limits))
        worlds[-1].do(worlds[-1].server.listen("127.0.0.1", 0)).result()
        return worlds[-1]

    yield make
    for world in worlds:
        for listener in world.server._listeners:
            listener.close()
        world.run()
        world.close()


def refusal(client):
    (message,) = client.said()
    assert isinstance(message, Refuse)
    return message.code


# -- listeners, with real sockets


@pytest.fixture
async def server():
    """Yield a server on a real loop, which does not listen yet."""
    server = Server(
        Fanout(), LIMITS, Report(time.monotonic, lambda line: None), durability="written", wall_clock=time.time
    )
    yield server
    for listener in server._listeners:
        listener.close()
    await server.close()


async def test_listen_returns_what_was_bound(server):
    """Port 0 becomes a free one, and a client is answered there."""
    host, port = await server.listen("127.0.0.1", 0)
    assert host == "127.0.0.1"
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET / HTTP/1.1\r\n")
    assert b"HTTP request" in await reader.read(1_000)
    assert len(server.connections) == 1
    writer.close()
    await server.drain()
    assert not server.connections


async def test_a_port_in_use_is_the_operators_to_solve(server):
    """The error names the address, the reason and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port} \(Address already in use\)\. Stop"):
            await server.listen("127.0.0.1", port)


async def test_an_address_that_is_not_here_is_no_matter_of_the_port(server):
    """Of TEST-NET-1 (RFC 5737) no machine has an address."""
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0 .*address of this machine"):
        await server.listen("192.0.2.1", 0)


async def test_a_unix_socket_is_for_its_group(server, tmp_path):
    """It stands beside the port, with mode 0660, and the process's umask is as before."""
    path = tmp_path / "aiolog.sock"
    umask = os.umask(0o022)
    try:
        await server.listen("127.0.0.1", 0, str(path))
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"SSH-2.0-OpenSSH\r\n")
    assert b"SSH client" in await reader.read(1_000)
    writer.close()
    await server.drain()


async def test_a_unix_socket_that_cannot_be_made_is_the_operators_to_solve(server, tmp_path):
    """The error names the path."""
    with pytest.raises(ConfigError, match=r"cannot listen on the Unix socket .*missing"):
        await server.listen("127.0.0.1", 0, str(tmp_path / "missing" / "aiolog.sock"))


def listening(path, backlog=8):
    """Return a socket of somebody else that listens there."""
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(path))
    other.listen(backlog)
    other.settimeout(5)
    return other


@pytest.mark.parametrize("waiting", [0, 3])
async def test_a_unix_socket_of_a_running_server_is_left_to_it(server, tmp_path, waiting):
    """Also of one that is so busy that nobody more may wait: the error says what to do, the first is as before."""
    path = tmp_path / "aiolog.sock"
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(listening(path, 1 if waiting else 8))
        for _ in range(waiting):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        inode = path.stat().st_ino
        with pytest.raises(
            ConfigError, match=r"aiolog\.sock .*listened on by another server\. Stop that one, or choose"
        ):
            await server.listen("127.0.0.1", 0, str(path))
        await server.drain()
        await server.close()
        assert path.stat().st_ino == inode
        other.accept()[0].close()


async def test_a_unix_socket_that_nobody_listens_on_is_replaced(server, tmp_path):
    """A server that was killed leaves one."""
    path = tmp_path / "aiolog.sock"
    listening(path).close()
    await server.listen("127.0.0.1", 0, str(path))
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"SSH-2.0-OpenSSH\r\n")
    assert b"SSH client" in await reader.read(1_000)
    writer.close()
    await server.drain()


async def test_what_is_no_socket_is_never_replaced(server, tmp_path):
    """A wrong path must not cost anybody a file, and the advice must not be to remove it."""
    path = tmp_path / "aiolog.sock"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"aiolog\.sock: what is there is no socket\. Choose another") as caught:
        await server.listen("127.0.0.1", 0, str(path))
    assert "Remove" not in str(caught.value)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("is_drained", [True, False])  # a start that fails later on only closes
def test_a_server_removes_its_own_unix_socket(tmp_path, new_loop, is_drained):
    """At the end, also of a start that fails: nobody shall connect to what is no more. Not that of a successor."""
    path = tmp_path / "aiolog.sock"

    async def live(after):
        server = Server(
            Fanout(), LIMITS, Report(time.monotonic, lambda line: None), durability="written", wall_clock=time.time
        )
        await server.listen("127.0.0.1", 0, str(path))
        after()
        if is_drained:
            await server.drain()
        await server.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(live(lambda: None))
        assert not path.exists()
        runner.run(live(path.unlink))
        assert not path.exists()
        with contextlib.ExitStack() as stack:

            def succeed():
                path.unlink()
                stack.enter_context(listening(path))

            runner.run(live(succeed))
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))


# -- limits


def test_no_more_connections_than_allowed(make_world):
    """One more is refused with advice, and there is room again when another has closed."""
    world = make_world(max_connections=2)
    clients = [world.client().hello() for _ in range(2)]
    third = world.client()
    assert refusal(third) == Refusal.FULL
    third.transport.end()
    clients[0].transport.end()
    world.run()
    assert isinstance(world.client().hello().said()[0], Welcome)
    assert world.server.counts.connections == 4
    assert world.server.counts.refused == 1


def test_the_session_that_is_idle_longest_makes_room(make_world):
    """One that a connection continues is never forgotten for another's sake."""
    world = make_world(max_sessions=3)
    alive = world.client().hello()
    older, newer = world.client().hello(), world.client().hello()
    for client in (newer, older):  # in another order than they came: what counts is when they were last seen
        world.run(1)
        client.transport.lose()
    world.client().hello()
    assert newer.session not in world.server.sessions
    assert {alive.session, older.session} < set(world.server.sessions)
    world.client().hello()
    assert older.session not in world.server.sessions
    assert refusal(world.client().hello()) == Refusal.FULL
    assert alive.session in world.server.sessions


def test_room_is_made_for_many_sessions_at_once(make_world):
    """Who invents them would else have all looked at for each: 6 ms of the event loop at 65,536 (S28)."""
    world = make_world(max_sessions=2 * FORGOTTEN_TOGETHER)
    alive = world.client().hello()
    idle = []
    for _ in range(2 * FORGOTTEN_TOGETHER - 1):
        idle.append(world.client().hello())
        world.run(1)
        idle[-1].transport.lose()
    world.client().hello()
    assert [client.session in world.server.sessions for client in idle[:4]] == [False, False, True, True]
    assert alive.session in world.server.sessions
    world.client().hello()
    assert len(world.server.sessions) == 2 * FORGOTTEN_TOGETHER
    assert idle[2].session in world.server.sessions


def test_a_session_with_a_batch_under_way_is_not_idle(make_world, sink):
    """Its connection is lost, but what it sent is still to be written, and must be known then."""
    world = make_world(max_sessions=1)
    sink.hold()
    lost = world.client().hello().send(batch(1, "a"))
    lost.transport.lose()
    assert refusal(world.client().hello()) == Refusal.FULL
    sink.let()
    world.run()
    assert world.client(lost.session).hello().said()[0].last_seq == 1


def test_sessions_are_forgotten_after_their_time(make_world):
    """Only those that nobody continues; who comes back in time goes on where it was."""
    world = make_world(session_ttl_seconds=50.0)
    alive, idle = world.client().hello(), world.client().hello()
    idle.send(batch(1, "a"))
    world.run()
    idle.transport.lose()
    world.run(49)
    again = world.client(idle.session).hello()
    assert again.said()[0].last_seq == 1
    again.transport.lose()
    world.run(49)
    assert idle.session in world.server.sessions
    world.run(2)
    assert set(world.server.sessions) == {alive.session}


def test_of_a_killed_process_little_is_remembered(make_world, sink):
    """Its session is kept for days, but not what it defined: a service whose workers are killed would fill the memory.

    Nor labels and long names, which a stranger may send with each of a hundred thousand sessions (S28).
    """
    world = make_world()
    sites = [["n" * MAX_NAME_CHARS, 20, "INFO", f"/app/{number}.py", "x.py", "x", 1, "f"] for number in range(100)]

    labels = {f"label {number}": "x" * 500 for number in range(64)}

    def be_killed():
        client = world.client().hello(labels=labels, app="a" * MAX_NAME_CHARS, process_name="p" * MAX_NAME_CHARS)
        client.send(*define_frames(sites), batch(1, "a"))
        world.run()
        assert client.said()[-1] == Ack(1)
        client.transport.lose()
        world.run()
        sink.deliveries.clear()  # which no real sink keeps
        sink.tried.clear()

    be_killed()
    gc.collect()
    tracemalloc.start()
    for _ in range(20):
        be_killed()
    gc.collect()
    kept_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(world.server.sessions) == 21
    assert kept_bytes < 20 * 4 * KIB


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "last_words", [None, encode(Bye()), b"\xff" * 8], ids=["is lost", "says goodbye", "is refused"]
)
def test_a_connection_that_is_gone_is_no_garbage(monkeypatch, sink, new_loop, last_words):
    """It goes with its last reference: a server looks for garbage so seldom that megabytes of names would stay."""
    alive = weakref.WeakSet()
    begin = Connection.__init__

    def begin_and_count(connection, *args):
        begin(connection, *args)
        alive.add(connection)

    monkeypatch.setattr(Connection, "__init__", begin_and_count)

    async def come_and_go():
        fanout = Fanout()
        await fanout.open({"app": Lane(sink, when_full="block", buffer_bytes=KIB, report=lambda *_: None)})
        report = Report(time.monotonic, lambda _: None)
        server = Server(fanout, LIMITS, report, durability="written", token="", wall_clock=time.time)
        await server.listen("127.0.0.1", 0)
        port = server._listeners[0].sockets[0].getsockname()[1]
        gc.collect()
        gc.disable()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(encode(Hello(VERSION, b"s" * 16, 1, "w", "h", "a", {}, 0.0, "", 0)) + DEFINE + batch(1, "a"))
        assert await reader.readuntil(encode(Ack(1)))
        assert len(alive) == 1
        if last_words is None:
            writer.transport.abort()
        else:
            writer.write(last_words)
            await reader.read()
            writer.close()
        await server._quiet.wait()
        sink.deliveries.clear()
        sink.tried.clear()
        await asyncio.sleep(0.01)  # what a loop has still to say of a connection is said in its next turn
        assert not alive
        await server.drain()
        await fanout.close()
        await server.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            runner.run(asyncio.wait_for(come_and_go(), 10))
        finally:
            gc.enable()


def test_a_client_knows_better_than_a_server_without_memory(make_world, sink):
    """What it has seen acked is not asked for again; what the server knows to be written is not taken back."""
    world = make_world()
    client = world.client().hello(acked=10)
    client.send(batch(11, "k"))
    world.run()
    (welcome, ack) = client.said()
    assert (welcome.last_seq, ack) == (10, Ack(11))
    assert world.client(client.session).hello(acked=10).said()[0].last_seq == 11
    assert world.client(client.session).hello(acked=12).said()[0].last_seq == 12
    assert sink.messages == ["k"]


def test_what_every_sink_remembers_of_an_earlier_server_counts(make_world, sink):
    """The client sends again from the least mark on; a sink that knows nothing of the session needs all of it."""
    other = MemorySink("other")
    world = make_world()
    world.do(world.fanout.open({"other": world.lane(other)})).result()
    session = world.client().session
    sink.marks[session] = 9
    other.unknown = 0
    assert world.client(session).hello(acked=3).said()[0].last_seq == 3
    world.server.sessions.clear()
    other.marks[session] = 7
    assert world.client(session).hello(acked=3).said()[0].last_seq == 7
    assert sink.messages == []


def test_a_goodbye_reaches_every_sink(make_world, sink):
    """What is complete need not be remembered."""
    world = make_world()
    client = world.client().hello()
    sink.marks[client.session] = 5
    client.send(encode(Bye()))
    world.run()
    assert sink.marks == {}


@pytest.mark.parametrize(
    ("marks", "told", "is_new"),
    [
        ({"memory": 5, "other": 9}, {"memory": 4}, True),
        ({"memory": 5, "other": 0}, {"memory": 4}, True),
        ({"memory": 5, "other": 0}, {"memory": 4, "other": 9}, False),  # it should have known, and a disk has lied
        ({"memory": 0, "other": 0}, {"memory": 9, "other": 9}, True),
        ({"memory": 0, "other": None}, {"memory": 9}, True),
        ({"memory": None, "other": None}, {}, False),  # none has a memory
        ({"memory": 12, "other": 9}, {}, False),
    ],
)
def test_what_was_acked_and_no_ledger_knows_is_said(make_world, sink, marks, told, is_new):
    """After a power cut a sink remembers less than the client: a record and a line say how much (F4, F5)."""
    other = MemorySink("other")
    other.is_new = is_new
    world = make_world()
    world.do(world.fanout.open({"other": world.lane(other)})).result()
    session = world.client().session
    for one in (sink, other):
        one.unknown = 0 if marks[one.name] is not None else None
        if marks[one.name]:
            one.marks[session] = marks[one.name]
    client = world.client(session).hello(acked=9)
    assert client.said()[0].last_seq == 9
    world.run()
    assert {record["sink"]: record["lost"] for record in sink.records} == told
    assert all(record["name"] == "aiolog" and record["last_seq"] == 9 for record in sink.records)
    assert len([line for line in world.lines if "process worker[7] were acked" in line]) == len(told)
    client.send(batch(10, "x"))
    world.run()
    assert sink.messages[-1] == "x"


# -- the missing


def test_a_process_that_goes_without_a_goodbye_is_missed_once(make_world, sink):
    """A record says after which of its records, when it has been away longer than any living handler is."""
    world = make_world()
    killed, orderly, silent = world.client().hello(), world.client().hello(), world.client().hello()
    killed.send(batch(1, "a", "b"))
    orderly.send(batch(1, "c"))
    world.run()
    orderly.send(encode(Bye()))
    world.run()
    for client in (killed, orderly, silent):
        client.transport.lose()
    world.run(MISSED_SECONDS - 1)
    assert sink.messages == ["a", "b", "c"]
    world.run(30)
    (record,) = sink.records[3:]
    assert record["msg"].startswith("process worker[7] went without saying goodbye after its record 2")
    assert (record["last_seq"], record["from_pid"], record["from_app"]) == (2, 7, "shop")
    again = world.client(killed.session).hello()
    again.send(batch(3, "d"))
    world.run()
    again.transport.lose()
    world.run(MISSED_SECONDS + 1)
    assert [record.get("last_seq") for record in sink.records] == [None, None, None, 2, None, 3]


def test_each_start_of_a_server_is_another_store(make_world):
    """A client sees by it that the server's memory is new."""
    assert make_world().server.store != make_world().server.store


# -- the sweep


def test_the_sweep_looks_at_every_connection(make_world, sink):
    """Who waits hears BUSY, who is silent is refused and then cut, without anybody asking."""
    world = make_world()
    waiting, silent = world.client().hello(), world.client()
    sink.hold()
    waiting.send(batch(1, "a"))
    world.run(5 + SWEEP_SECONDS)
    assert waiting.said()[1:] == [Busy()]
    world.run(5 + SWEEP_SECONDS)
    assert refusal(silent) == Refusal.PROTOCOL
    assert silent.transport.eof
    world.run(LINGER_SECONDS + SWEEP_SECONDS)
    assert silent.transport.lost
    assert world.server.connections == {waiting.connection}


def test_all_of_many_sessions_are_looked_at(make_world, sink, monkeypatch):
    """A few a sweep: each process that went is missed once, in one round, and those who join and go meanwhile too."""
    monkeypatch.setattr("aiolog.server.SWEPT_TOGETHER", 3)
    world = make_world()

    def come_and_go(count):
        for _ in range(count):
            client = world.client().hello().send(batch(1, "x"))
            world.run()
            client.transport.lose()

    come_and_go(10)
    world.run(MISSED_SECONDS + 1)
    come_and_go(10)
    world.run(MISSED_SECONDS + 20 / 3 * SWEEP_SECONDS + 1)
    assert sum("went without" in message for message in sink.messages) == 20
    assert world.server.sessions
    world.run(world.server.limits.session_ttl_seconds + 20 / 3 * SWEEP_SECONDS + 1)
    assert not world.server.sessions


def test_a_process_is_missed_before_its_session_is_forgotten(make_world, sink, monkeypatch):
    """Though its time has run out when the sweep comes by at last."""
    monkeypatch.setattr("aiolog.server.SWEPT_TOGETHER", 1)
    world = make_world(session_ttl_seconds=MISSED_SECONDS + 1)
    for _ in range(16):
        client = world.client().hello().send(batch(1, "x"))
        world.run()
        client.transport.lose()
    world.run(30)
    assert sum("went without" in message for message in sink.messages) == 16
    assert not world.server.sessions


def test_the_sweep_reads_on_when_there_is_room(make_world, sink):
    """A connection that was stopped by the sum of all goes on, though nothing happens on itself."""
    world = make_world(max_inflight_bytes=100 * KIB)
    large, small = world.client().hello(), world.client().hello()
    sink.hold()
    large.send(batch(1, "x" * 100 * KIB))
    frame = batch(1, "small")
    small.send(frame[:10])
    small.send(frame[10:])
    world.run(20)
    assert small.transport.paused
    sink.let()
    world.run(SWEEP_SECONDS)
    assert not small.transport.paused
    assert small.said()[-1] == Ack(1)


# -- the drain


def test_a_drain_acks_what_is_under_way_and_refuses_what_comes(make_world, sink):
    """It ends when the last client has closed; the sessions' other frames stay with their clients."""
    world = make_world()
    idle, busy, lost = (world.client().hello() for _ in range(3))
    sink.hold()
    busy.send(batch(1, "a"))
    busy.send(batch(2, "b"))
    lost.send(batch(1, "of one that is lost"))
    lost.transport.lose()
    drained = world.do(world.server.drain())
    assert idle.transport.eof
    assert not busy.transport.eof
    assert refusal(world.client()) == Refusal.STOPPING
    idle.transport.end()
    world.run(0.1)
    assert not drained.done()
    sink.let()
    world.run()
    assert busy.said()[1:] == [Ack(1)]
    assert busy.transport.eof
    assert not drained.done()
    busy.transport.end()
    world.run(LINGER_SECONDS + SWEEP_SECONDS)  # for the one that was refused
    drained.result()
    assert sink.messages == ["a", "of one that is lost"]
    assert world.do(world.fanout.drain()).done()


def test_a_drain_does_not_wait_for_peers_that_hang(make_world):
    """Who does not close is cut after a moment."""
    world = make_world()
    world.client().hello()
    world.client()
    drained = world.do(world.server.drain())
    world.run(LINGER_SECONDS + SWEEP_SECONDS)
    drained.result()


def test_a_drain_without_connections_ends_at_once(make_world):
    """There is nobody to wait for, whether somebody was there before or not."""
    world = make_world()
    assert world.do(world.server.drain()).done()
    other = make_world()
    other.client().hello().send(encode(Bye())).transport.end()
    other.run()
    assert other.do(other.server.drain()).done()


def test_close_drops_whatever_is_left(make_world, sink):
    """A sink that is stuck for ever holds nobody."""
    world = make_world()
    sink.hold()
    client = world.client().hello().send(batch(1, "a"))
    drained = world.do(world.server.drain())
    world.do(world.server.close()).result()
    world.run()
    assert client.transport.lost
    assert drained.done()
    assert Ack(1) not in client.said()


# -- the server's own records


@pytest.mark.parametrize(
    ("since", "until", "says"),
    [
        (0.5, 60.0, ("1970-01-01T00:00:00.500Z", "1970-01-01T00:01:00.000Z")),
        (5 * 10**8, 60 * 10**9, ("1970-01-01T00:00:00.500Z", "1970-01-01T00:01:00.000Z")),
        (None, None, ("unknown", "2023-11-14T22:13:20.000Z")),
        ("x", [], ("unknown", "unknown")),
        (float("nan"), float("inf"), ("unknown", "unknown")),
        (1 << 62, -1e300, ("2116-02-20T23:53:38.427Z", "unknown")),
    ],
)
def test_a_notice_of_drops_names_the_span_that_it_knows(make_world, since, until, says):
    """Both kinds of clocks, moments that nobody knows, and whatever else a peer may send as one."""
    server = make_world().server
    source = Source(app="shop", host="h", pid=7, process_name="worker")
    record = attributes(server.own_source, server.drop_notice(source, 3, since, until))
    assert (record["since"], record["until"]) == says
    assert record["msg"] == (
        f"3 records of process worker[7] were dropped between {says[0]} and {says[1]}: its buffer was full"
    )
    assert (record["name"], record["levelname"], record["process"]) == ("aiolog", "WARNING", os.getpid())
    assert (record["dropped"], record["from_host"], record["from_app"]) == (3, "h", "shop")


def test_what_a_slow_sink_missed_stands_in_all_of_them(make_world, sink):
    """Now and then, and at the end, a record a process says how many it were, and when (rule 4 of the ledger)."""
    console = MemorySink("console")
    world = make_world()
    world.do(world.fanout.open({"console": world.lane(console, when_full="drop_newest", buffer_bytes=10)})).result()
    client = world.client().hello()
    console.hold()
    for seq in range(1, 6):
        client.send(batch(seq, f"message {seq}"))
        world.run()
    assert sink.messages == [f"message {seq}" for seq in range(1, 6)]
    world.run(TELL_SECONDS + SWEEP_SECONDS)
    (notice,) = sink.records[5:]
    assert notice["msg"].startswith("3 records of process worker[7] between")
    assert notice["msg"].endswith("were dropped before sink console: it was too slow for them")
    assert (notice["dropped"], notice["sink"], notice["name"]) == (3, "console", "aiolog")
    world.run(3 * TELL_SECONDS)
    assert len(sink.records) == 6
    client.send(batch(6, "message 6"))
    world.run()
    client.send(encode(Bye())).transport.end()
    drain = world.do(world.server.drain())
    assert drain.done()
    assert sink.records[-1]["msg"].startswith("1 records of process worker[7]")
    console.let()
    world.run()
    assert [message for message in console.messages if "message" in message] == ["message 1", "message 2"]
    assert sum(record.get("dropped", 0) for record in console.records) == 4
