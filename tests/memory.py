"""A server without sockets and without waiting: a loop whose clock stands still, and peers and sinks in memory.

    world = World(sinks=[MemorySink()])
    client = world.client()
    client.hello()
    client.send(batch(1, "a", "b"))
    world.run()                                  # until nothing is left to do at this moment
    assert client.said() == [Welcome(…), Ack(2)]
    world.run(seconds=5)                         # as above, and timers of the next five seconds

Connection, Server, Fanout and Lane are the real ones.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Iterable
from typing import Any

from aiolog.connection import Connection, Limits
from aiolog.fanout import Fanout, Lane
from aiolog.livefile import Keeping
from aiolog.protocol import FROM_SERVER, VERSION, Decoder, Define, Hello, batch_frame, encode, pack_record
from aiolog.record import attributes
from aiolog.report import Report
from aiolog.rotation import Retention, Rotation
from aiolog.server import Server

KIB, MIB = 1 << 10, 1 << 20
LIMITS = Limits(
    max_frame_bytes=MIB,
    window_bytes=MIB,
    max_connections=100,
    max_inflight_bytes=8 * MIB,
    max_dictionary_bytes=64 * MIB,
    max_sessions=100,
    handshake_timeout_seconds=10.0,
    frame_timeout_seconds=30.0,
    idle_timeout_seconds=90.0,
    heartbeat_seconds=5.0,
    session_ttl_seconds=600.0,
)
SITE = ["app", 20, "INFO", "/app.py", "app.py", "app", 1, "main"]
DEFINE = encode(Define([SITE, [1, "MainThread"]]))


def kept(compress: Any = "", durability: Any = "written", **bounds: Any) -> Keeping:
    """Return how a file sink keeps its files: rotation and retention by the names of their bounds."""
    rotation = {name: bounds.pop(name) for name in Rotation._fields if name in bounds}
    return Keeping(Rotation(**rotation), Retention(**bounds), compress, durability)


def batch(first_seq: int, *messages: str, dropped: int = 0, created: float = 1.5) -> bytes:
    """Return the BATCH frame of records with these messages."""
    return batch_frame(first_seq, dropped, [pack_record([created, 0, 1, message]) for message in messages])


class _Selector(selectors.SelectSelector):
    """Where a loop would wait, move its clock to the next timer instead; stop it when that is too far."""

    loop: Loop

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events and timeout != 0:
            if timeout is None or self.loop.now + timeout > self.loop.until + 1e-6:
                self.loop.now = self.loop.until
                self.loop.stop()
            else:
                self.loop.now += timeout
        return events


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time passes only in :meth:`run`, and then at once."""

    def __init__(self) -> None:
        self.now = self.until = 1_000.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def run(self, seconds: float = 0.0) -> None:
        self.until = self.now + seconds
        self.run_forever()


class MemorySink:
    """Keeps what is committed in ``deliveries``; a write can be held, and fail."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.deliveries: list[Any] = []
        self.tried: list[list[Any]] = []  # the group of each call of write
        self.error: Exception | None = None  # raised by writes while it is set
        self.open_error: Exception | None = None
        self.is_open = False
        self.is_new = True
        self.marks: dict[bytes, int] = {}  # what a ledger would remember of an earlier server
        self.unknown: int | None = None  # its mark of another session; None as of a sink without a ledger
        self._go = asyncio.Event()
        self._go.set()

    def hold(self) -> None:
        self._go.clear()

    def let(self) -> None:
        self._go.set()

    async def open(self) -> None:
        if self.open_error is not None:
            raise self.open_error
        self.is_open = True

    async def write(self, group: Any) -> None:
        self.tried.append(list(group))
        await self._go.wait()
        if self.error is not None:
            raise self.error
        self.deliveries += group

    def mark(self, session: bytes) -> int | None:
        return self.marks.get(session, self.unknown)

    def forget(self, session: bytes) -> None:
        self.marks.pop(session, None)

    async def close(self) -> None:
        self.is_open = False

    @property
    def records(self) -> list[dict[str, Any]]:
        """The attributes of all records, the server's own among them, in the order in which they were written."""
        return [
            attributes(source, wire)
            for delivery in self.deliveries
            for source, wires in ((delivery.notice_source, delivery.notices), (delivery.source, delivery.records))
            for wire in wires
        ]

    @property
    def messages(self) -> list[str]:
        return [record["msg"] for record in self.records]


class Transport(asyncio.Transport):
    """Between a connection and a client in memory; it calls back from the loop, as real ones do."""

    def __init__(self, world: World, connection: Connection) -> None:
        super().__init__({"peername": ("192.0.2.1", 40_000)})
        self.written = bytearray()  # by the connection, and not yet read by the client
        self.paused = False
        self.eof = False  # the connection half-closed
        self.closing = self.lost = False
        self.reads = True  # whether the client reads what is written
        self.pauses = 0  # calls of pause_reading
        self._unread_bytes = self._high = 0
        self._kernel = bytearray()  # from the client, while the connection does not read
        self._loop, self._connection = world.loop, connection
        connection.connection_made(self)

    # -- the connection's side

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or 0

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        assert not self.eof, "written after write_eof"
        if self.closing:
            return
        self.written += data
        if not self.reads:
            before, self._unread_bytes = self._unread_bytes, self._unread_bytes + len(data)
            if before <= self._high < self._unread_bytes:
                self._connection.pause_writing()

    def write_eof(self) -> None:
        self.eof = True

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True
        self.pauses += 1

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False
        self._loop.call_soon(self._feed)

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self.lose)

    abort = close

    # -- the client's side

    def receive(self, data: bytes) -> None:
        self._kernel += data
        self._feed()

    def _feed(self) -> None:
        if self._kernel and not self.paused and not self.closing:
            data, self._kernel = bytes(self._kernel), bytearray()
            self._connection.data_received(data)

    def end(self) -> None:
        """Half-close by the client."""
        if not self.closing and not self._connection.eof_received():
            self.close()

    def lose(self) -> None:
        """Be cut, now."""
        self.closing = True
        if not self.lost:
            self.lost = True
            self._connection.connection_lost(None)

    def read(self) -> None:
        """Let the client read its acks again."""
        self.reads = True
        if self._unread_bytes > self._high:
            self._connection.resume_writing()
        self._unread_bytes = 0


class Client:
    """One connection of a client: what it sends, and what it was told."""

    def __init__(self, world: World, session: bytes) -> None:
        self.session = session
        self.connection = Connection(world.server, world.loop)
        self.transport = Transport(world, self.connection)
        self._decoder = Decoder(FROM_SERVER)

    def hello(self, *frames: bytes, checked: bool = False, **other: Any) -> Client:
        """Say HELLO, and define a site and a thread; ``frames`` come in the same packet."""
        fields = {
            "version": VERSION, "session": self.session, "pid": 7, "process_name": "worker", "host": "h", "app": "shop",
            "labels": {}, "start_time": 0.0, "token": "", "acked": 0,
        }  # fmt: skip
        define = encode(Define([SITE, [1, "MainThread"]]), checked=checked)
        return self.send(encode(Hello(**(fields | other)), checked=checked), define, *frames)

    def send(self, *frames: bytes) -> Client:
        self.transport.receive(b"".join(frames))
        return self

    def said(self) -> list[Any]:
        """Return what the server said since the last call."""
        self._decoder.feed(bytes(self.transport.written))
        self.transport.written.clear()
        return list(iter(self._decoder.next, None))


class World:
    """One server with its lanes; ``limits`` override LIMITS. Whatever goes wrong in a callback fails at the end."""

    def __init__(
        self, sinks: Iterable[MemorySink] = (), *, token: str = "", ack_hold_seconds: float = 0.0, **limits: Any
    ) -> None:
        self.loop = Loop()
        self.lines: list[str] = []  # what the server said of itself
        self.report = Report(self.loop.time, self.lines.append)
        self.fanout = Fanout()
        self.server = Server(
            self.fanout,
            LIMITS._replace(**limits),
            self.report,
            durability="written",
            token=token,
            wall_clock=lambda: 1_700_000_000.0,
            ack_hold_seconds=ack_hold_seconds,
        )
        self._faults: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self._faults.append(context))
        self._sessions = 0
        self.do(self.fanout.open({sink.name: self.lane(sink) for sink in sinks})).result()

    def lane(self, sink: MemorySink, when_full: str = "block", buffer_bytes: int = MIB) -> Lane:
        return Lane(
            sink,
            when_full=when_full,
            buffer_bytes=buffer_bytes,
            report=self.report,
        )

    def client(self, session: bytes | None = None) -> Client:
        """Connect; a session of its own when none is given."""
        self._sessions += 1
        return Client(self, session or b"session %08d" % self._sessions)

    def run(self, seconds: float = 0.0) -> None:
        """Do all there is to do, and what timers of the next ``seconds`` bring."""
        self.loop.run(seconds)

    def look(self, seconds: float = 0.0) -> None:
        """Let time pass, and look for what is silent or stuck, as the server does all the time."""
        self.run(seconds)
        for connection in list(self.server.connections):
            connection.look(self.loop.time())
        self.run()

    def do(self, coroutine: Coroutine[Any, Any, Any], seconds: float = 0.0) -> asyncio.Task[Any]:
        """Run a coroutine as far as it comes."""
        task = self.loop.create_task(coroutine)
        self.run(seconds)
        return task

    def close(self) -> None:
        self.do(self.fanout.close()).result()
        self.do(self.server.close()).result()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.run()
        self.loop.close()
        assert not self._faults
