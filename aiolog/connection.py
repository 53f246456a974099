"""One client on the server's side of the wire: its frames in, its acks out.

A connection takes its next batch only when the last one is delivered; small batches that came together, and make no
more than a full one, are one delivery. That one rule is the backpressure (TCP closes, the client's backlog grows, its
policy decides), the bound on memory (a full batch a connection) and the fairness (a group commit takes no more than
that from each process).

Connections are ``asyncio.Protocol``s, not streams: docs/design.md has the figures. Knows asyncio and the protocol;
of the server only the :class:`Hub` that it describes; of records only what a notice needs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

from aiolog import crash
from aiolog.checksum import crc32
from aiolog.coerce import MAX_NAME_CHARS
from aiolog.errors import ProtocolError
from aiolog.fanout import Delivery, Fanout
from aiolog.protocol import (
    ACK_BATCHES,
    BATCH_BYTES,
    FROM_CLIENT,
    MAX_BATCH_RECORDS,
    MAX_HELLO_BYTES,
    RECORD_OVERHEAD_BYTES,
    SEQ_MAX,
    SESSION_BYTES,
    VERSION,
    Ack,
    Batch,
    Busy,
    Bye,
    Decoder,
    Define,
    Hello,
    Refusal,
    Refuse,
    Welcome,
    encode,
    unpack_records,
)
from aiolog.record import WireRecord
from aiolog.report import Report
from aiolog.source import MAX_DEFINITION_CHARS, MAX_SITES, MAX_THREADS, Room, Source

LINGER_SECONDS = 1.0  # for a peer to read our last words: closing at once could reset them away
MAX_UNREAD_ACK_BYTES = 64 << 10  # 4,000 acks: a client that reads none of them is not one
# So much is acked at once, as a client counts it, and the first batch after a pause; less is held, see ACK. It is a
# quarter of the smallest buffer, after which that client would wait.
ACK_BYTES = 16 << 10


class Limits(NamedTuple):
    """What one server grants; the configuration's section ``[server]`` documents each."""

    max_frame_bytes: int
    window_bytes: int
    max_connections: int
    max_inflight_bytes: int
    max_dictionary_bytes: int
    max_sessions: int
    handshake_timeout_seconds: float
    frame_timeout_seconds: float
    idle_timeout_seconds: float
    heartbeat_seconds: float
    session_ttl_seconds: float


class Session:
    """What the server knows of one session: the last seq delivered, and who continues it now."""

    __slots__ = ("connection", "is_ended", "is_missed", "last_created", "last_seq", "seen_at", "source")

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self.source: Source | None = None  # the process at its last connection, in short
        self.is_ended = False  # it has said BYE
        self.is_missed = False  # it has been away for so long that this was said
        self.connection: Connection | None = None
        self.seen_at = 0.0
        self.last_created: Any = None  # of its last record, for the span of a notice


class Counts:
    """What happened since the start, for metrics and the closing line."""

    def __init__(self) -> None:
        self.connections = 0
        self.refused = 0  # connections
        self.batches = 0
        self.records = 0  # new ones
        self.received_bytes = 0  # of their batches
        self.duplicates = 0  # records that came again, and were acked without being written again
        self.dropped = 0  # records that clients declared dropped


class Intake(Protocol):
    """What reads for a connection, and can be told not to."""

    def pause_reading(self) -> None:
        """Read nothing more."""

    def resume_reading(self) -> None:
        """Read on."""


class Hub(Protocol):
    """What a connection needs of the server that it belongs to."""

    fanout: Fanout
    limits: Limits
    ack_hold_seconds: float
    report: Report
    counts: Counts
    sessions: dict[bytes, Session]
    store: str
    durability: str
    draining: bool
    held_bytes: int  # received and not yet delivered, over all connections
    delivering_bytes: int  # of those, what the sinks have
    room: Room  # for what all processes say of themselves

    def joined(self, connection: Connection) -> bool:
        """Take a new connection; False when there are enough."""

    def left(self, connection: Connection) -> None:
        """Forget a connection that has closed."""

    def make_room(self) -> None:
        """Part from whoever says the most of itself: all together say more than there is room for."""

    def may_enter(self, token: str) -> bool:
        """Whether the token is the right one."""

    def session(self, hello: Hello) -> Session | None:
        """Return the session that a HELLO continues or begins; None when there is no room for another."""

    def take(self, transport: asyncio.Transport, connection: Connection) -> Intake:
        """Return what reads for a connection from now on: its transport, or what reads for all of them."""

    def drop_notice(self, source: Source, dropped: int, since: Any, until: Any) -> WireRecord:
        """Make the record that says what a client had to drop between two moments."""

    @property
    def own_source(self) -> Source:
        """The process that notices come from."""


class Connection(asyncio.Protocol):
    """One client: its frames in, its acks out.

    States: before HELLO (``_session`` is None), reading, delivering (``_delivering``), parting (``_parting_since``).
    All methods run on the event loop.
    """

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop
        self._decoder = Decoder(FROM_CLIENT, MAX_HELLO_BYTES, crc32)
        self._source = Source()
        self._key = b""  # of the session
        self._definition_chars = 0
        self._session: Session | None = None
        self._transport: asyncio.Transport | None = None
        self._intake: Intake | None = None
        self._peer = "?"
        self._delivering = 0  # the bytes of what is under way
        self._delivering_batches = 0
        self._delivering_since = 0.0  # or waiting
        self.waits = False  # with a frame, while the sinks have too much of others
        self._paused = False
        self._held_bytes = 0
        self._heard_at = self._frame_since = loop.time()
        self._unread_since: float | None = None  # since when the client reads none of our acks
        self._parting_since: float | None = None
        self._acked_at = 0.0
        self._unacked_bytes = self._unacked_batches = 0  # delivered since then
        self._ack_timer: asyncio.TimerHandle | None = None  # for an ack that is held
        self._successor: Connection | None = None
        self._ended = False  # the client sends nothing more
        self._lost = False

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; refuse at once when the server is full."""
        transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._transport = self._intake = transport
        transport.set_write_buffer_limits(high=MAX_UNREAD_ACK_BYTES)
        peer = transport.get_extra_info("peername")
        self._peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a Unix socket"
        if not self._hub.joined(self):
            limit = self._hub.limits.max_connections
            self._refuse(
                Refusal.FULL,
                f"{limit} connections are open. Raise server.max_connections, or log from fewer processes",
            )
        elif self._hub.draining:
            self._refuse(Refusal.STOPPING, "the server is stopping")

    def data_received(self, data: bytes) -> None:
        """Take bytes; act on as many frames as may be acted on now."""
        if self._parting_since is not None:
            return  # read and forgotten, so that our last words are not reset away
        self._heard_at = self._loop.time()
        if not self._decoder.buffered_bytes:
            self._frame_since = self._heard_at
        self._decoder.feed(data)
        self._advance()

    def eof_received(self) -> bool:
        """Close, unless frames are left: a client that half-closed may still read their acks."""
        self._ended = True
        self._settle_ack()
        return bool(self._delivering) or (self._parting_since is None and self._decoder.has_frame())

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read its acks, or they would pile up here."""
        self._unread_since = self._loop.time()
        self._pace()

    def resume_writing(self) -> None:
        """Go on: it reads them."""
        self._unread_since = None
        self.read_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        """Let go; a batch under way is committed all the same."""
        self._lost = True
        if self._intake is not None and not self._paused:
            self._intake.pause_reading()  # its descriptor is about to be somebody else's
        self._intake = None  # it knows us: what we hold would stay until the garbage collector comes by
        self._settle_ack()
        self._hold(self._delivering)
        if self._delivering and self._delivering_batches:
            # The batch knows its source: who comes, says much, sends a little and goes must not fill the memory.
            self._hold(self._delivering + self._source.size_bytes)
        self._source = self._source.in_short()  # an older connection may know us too, until its batch is committed
        if self._session is not None:
            self._session.seen_at = self._loop.time()
            if not self._delivering:
                self._release()
        self._hub.left(self)

    # -- called by the server

    def look(self, now: float) -> None:
        """Close what is silent or stuck; tell a client that waits that we live."""
        limits = self._hub.limits
        if self._unread_since is not None and self._parting_since is None:
            if now - self._unread_since > limits.frame_timeout_seconds:
                self._complain("reads none of its acks")
                self.abort()
        elif self._delivering or self.waits:
            if now - self._delivering_since > limits.heartbeat_seconds:
                self._delivering_since = now
                self._send(Busy())
        elif self._parting_since is not None:
            if now - self._parting_since > LINGER_SECONDS:
                self.abort()
        elif self._session is None:
            if now - self._heard_at > limits.handshake_timeout_seconds or (
                self._decoder.buffered_bytes and now - self._frame_since > limits.handshake_timeout_seconds
            ):
                self._refuse(Refusal.PROTOCOL, "no HELLO came in time; this port is for aiolog.AiologHandler")
        elif self._decoder.buffered_bytes and now - self._frame_since > limits.frame_timeout_seconds:
            self._refuse(Refusal.PROTOCOL, "a frame was begun and not finished in time")
        elif now - self._heard_at > limits.idle_timeout_seconds:
            self._refuse(Refusal.PROTOCOL, "no heartbeat came in time")

    def read_on(self) -> None:
        """Read again, if nothing speaks against it any more."""
        if (self._paused or self.waits) and not self._delivering:
            self._frame_since = self._heard_at = self._loop.time()  # the silence was ours
            if self.waits:
                self._advance()
            else:
                self._pace()

    def part(self) -> None:
        """Finish the batch under way, ack it, and close when the client has."""
        if self._parting_since is None:
            self._parting_since = self._loop.time()
            if not self._delivering:
                self._farewell()

    @property
    def described_bytes(self) -> int:
        """How much this process says of itself; 0 once that is forgotten."""
        return self._source.size_bytes if self._parting_since is None else 0

    def give_way(self) -> None:
        """Part: this process says the most of itself, and there is no room for all."""
        limit_mib = self._hub.room.limit_bytes / (1 << 20)
        self._refuse(
            Refusal.FULL,
            f"the log statements of all processes take more than {limit_mib:g} MiB, and this one has the most. "
            "Raise server.max_dictionary_bytes, or log from fewer processes",
        )

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- frames

    def _advance(self) -> None:
        """Act on the frames that have come, until one is being delivered, or has to wait for others."""
        waited, self.waits = self.waits, False
        try:
            # Never for a connection that is lost: its session may be continued already, from what was acked.
            while not (self._delivering or self._lost or self._successor) and self._parting_since is None:
                # Or processes that come, send and go would fill the memory behind a stuck sink, a batch each.
                if self._hub.delivering_bytes > self._hub.limits.max_inflight_bytes and self._may_wait():
                    self.waits = True
                    if not waited:
                        self._delivering_since = self._loop.time()
                    break
                message = self._decoder.next()
                if message is None:
                    break
                self._frame_since = self._heard_at
                self._act(message)
        except ProtocolError as error:
            self._refuse(error.code or Refusal.PROTOCOL, str(error))
        if self._ended and not (self._delivering or self.waits):
            self.part()
        buffered_bytes = 0 if self._lost else self._decoder.buffered_bytes
        self._hold(self._delivering + buffered_bytes)
        if buffered_bytes or self._paused or self._hub.held_bytes > self._hub.limits.max_inflight_bytes:
            self._pace()

    def _may_wait(self) -> bool:
        return self._session is not None and self._decoder.has_frame()

    def _hold(self, held_bytes: int) -> None:
        self._hub.held_bytes += held_bytes - self._held_bytes
        self._held_bytes = held_bytes

    def _pace(self) -> None:
        """Stop reading while a frame waits, too much is held by all together, or acks are not read; go on else."""
        if self._intake is None or self._lost:
            return
        stop = self._parting_since is None and (
            self._unread_since is not None
            or self._hub.held_bytes > self._hub.limits.max_inflight_bytes
            or (self._delivering > 0 and self._decoder.has_frame())
        )
        if stop and not self._paused:
            self._intake.pause_reading()
        elif self._paused and not stop:
            self._intake.resume_reading()
        self._paused = stop

    def _act(self, message: Any) -> None:
        session = self._session
        if session is None:
            if not isinstance(message, Hello):
                raise ProtocolError(f"{type(message).__name__.upper()} came before HELLO")
            self._greet(message)
        elif isinstance(message, Batch):
            self._take(session, message)
        elif isinstance(message, Define):
            self._define(message)
        elif isinstance(message, Bye):
            self._end_session()
        else:
            raise ProtocolError("a second HELLO came")

    def _greet(self, hello: Hello) -> None:
        """Check a HELLO and answer it, at once or when an older connection of the session has let go."""
        if hello.version != VERSION:
            self._refuse(
                Refusal.VERSION,
                f"the client speaks version {hello.version} and this server version {VERSION}. "
                "Install the same aiolog on both sides",
            )
            return
        if not self._hub.may_enter(hello.token):
            self._refuse(
                Refusal.TOKEN,
                "the token is wrong. Give the handler the server's token, or a command AIOLOG_SERVER__TOKEN",
            )
            return
        if len(hello.session) != SESSION_BYTES or not 0 <= hello.acked <= SEQ_MAX:
            raise ProtocolError("a HELLO carries an impossible session or acked")
        session = self._hub.session(hello)
        if session is None:
            self._refuse(Refusal.FULL, "too many sessions are open. Raise server.max_sessions, or try again later")
            return
        self._source = Source.of(hello, self._hub.room)
        session.source = self._source.in_short()
        session.is_missed = False
        self._key = hello.session
        before, session.connection = session.connection, self
        self._session = session
        self._decoder.max_frame_bytes = self._hub.limits.max_frame_bytes
        if before is None:
            self._welcome(session)
        else:
            self._delivering = 1  # nothing more is read from here until the older connection has let go
            self._delivering_since = self._loop.time()
            before.yield_to(self)
        if self._hub.room.is_short:
            self._hub.make_room()

    def _welcome(self, session: Session) -> None:
        if self._transport is not None and not (self._ended or self._lost):
            self._intake = self._hub.take(self._transport, self)
            if self._paused and self._intake is not self._transport:
                self._intake.pause_reading()  # as the transport is, while a frame waits for an older connection
        limits = self._hub.limits
        self._send(Welcome(VERSION, self._hub.store, session.last_seq, limits.window_bytes, self._hub.durability))

    def yield_to(self, successor: Connection) -> None:
        """Hand the session to a newer connection, once the batch under way is committed."""
        self._successor = successor
        if not self._delivering:
            self._release()

    def _release(self) -> None:
        """Let go of the session: for a successor, if there is one."""
        successor, session = self._successor, self._session
        if self._lost:
            self._hold(0)
        if session is None:
            return
        if successor is None:
            if session.connection is self:
                session.connection = None
            return
        self._session = None
        self._successor = None
        if self._parting_since is None and not self._lost:
            self._refuse(Refusal.SUPERSEDED, "this session has a newer connection")
        else:
            self._farewell()
        successor.take_over(session)

    def take_over(self, session: Session) -> None:
        """Go on where the older connection ended; or pass the session on, when there is a newer one still."""
        self._delivering = 0
        if self._lost or self._successor is not None:
            self._release()
            return
        self._welcome(session)
        if self._parting_since is not None:
            self._farewell()
        self._advance()

    def _define(self, message: Define) -> None:
        for fields in message.sites:
            try:
                self._source.define(fields)
            except (ValueError, TypeError) as error:
                raise ProtocolError("a definition is neither a site of 8 fields nor a thread of 2") from error
            made = self._source.definitions[len(self._source.definitions) - 1]
            self._definition_chars += sum(len(field) for field in made if isinstance(field, str))
        if (
            len(self._source.definitions) > MAX_SITES + MAX_THREADS
            or self._definition_chars > MAX_DEFINITION_CHARS + MAX_NAME_CHARS
        ):
            raise ProtocolError("the dictionary of definitions is larger than the protocol allows")
        if self._hub.room.is_short:
            self._hub.make_room()

    def _take(self, session: Session, batch: Batch) -> None:
        """Deliver what is new in a batch; ack what is not."""
        first_seq, count, declared, _, payload = batch
        if not (0 < first_seq <= SEQ_MAX and count >= 0 and 0 <= declared < first_seq):
            raise ProtocolError("a BATCH carries impossible numbers")
        gap = first_seq - 1 - session.last_seq  # below 0 where records came before
        if gap > declared:
            raise ProtocolError(
                f"a BATCH begins at {first_seq} after {declared} dropped; the last was {session.last_seq}"
            )
        records: Sequence[WireRecord] = unpack_records(batch, crc32, checked=self._decoder.is_checked)
        counts = self._hub.counts
        counts.batches += 1
        if gap < 0:
            counts.duplicates += min(-gap, count)
            records = records[-gap:]
        dropped = max(0, gap)
        if not records and not dropped:
            self._ack(session)
            return
        last_seq, size_bytes = first_seq + count - 1, len(payload)
        self._delivering_batches = 1
        if self._decoder.buffered_bytes:
            records, last_seq, size_bytes = self._with_more(records, last_seq, size_bytes)
        notices: tuple[WireRecord, ...] = ()
        notice_source = None
        if dropped:
            counts.dropped += dropped
            until = created(records[0]) if records else None
            notices = (self._hub.drop_notice(self._source, dropped, session.last_created, until),)
            notice_source = self._hub.own_source
        if records:
            session.last_created = created(records[-1])
        counts.records += len(records)
        counts.received_bytes += size_bytes
        self._delivering = size_bytes
        self._hub.delivering_bytes += size_bytes
        self._delivering_since = self._heard_at
        self._hub.fanout.deliver(
            Delivery(
                self._source,
                records,
                session=self._key,
                first_seq=last_seq - len(records) + 1,
                dropped=dropped,
                notices=notices,
                notice_source=notice_source,
                size_bytes=size_bytes,
                on_delivered=lambda: self._delivered(session, last_seq),
            )
        )

    def _with_more(
        self, records: Sequence[WireRecord], last_seq: int, size_bytes: int
    ) -> tuple[Sequence[WireRecord], int, int]:
        """Return what was given and what continues it in the frames that have come too: for all of it costs as one.

        Together no more than a client puts into one batch, so that no connection holds or writes more than it would.
        """
        joined = [*records]
        while last_seq < SEQ_MAX:
            more = self._decoder.next_part(last_seq + 1, BATCH_BYTES - size_bytes, MAX_BATCH_RECORDS - len(joined))
            if more is None:
                break
            batch, its_records = more
            joined += its_records
            last_seq += batch.count
            size_bytes += len(batch.payload)
            self._delivering_batches += 1
            self._hub.counts.batches += 1
        return joined, last_seq, size_bytes

    def _delivered(self, session: Session, last_seq: int) -> None:
        """Ack a batch that every ``block`` sink has committed, and go on."""
        self._unacked_bytes += self._delivering + RECORD_OVERHEAD_BYTES * (last_seq - session.last_seq)
        self._unacked_batches += self._delivering_batches
        self._hub.delivering_bytes -= self._delivering
        self._delivering = 0
        session.last_seq = last_seq
        crash.point("before_ack")
        if self._lost or self._successor is not None:
            self._release()
            return
        now = self._frame_since = self._heard_at = self._loop.time()  # it was we who did not read
        ack_at = self._acked_at + self._hub.ack_hold_seconds
        if (
            now >= ack_at
            or self._unacked_batches >= ACK_BATCHES
            or self._unacked_bytes >= min(ACK_BYTES, self._hub.limits.window_bytes // 4)
        ):
            self._ack(session)
        elif self._ack_timer is None:
            self._ack_timer = self._loop.call_at(ack_at, self._ack, session)
        if self._parting_since is not None:
            self._farewell()
        else:
            self._hold(self._decoder.buffered_bytes)
            if self._paused or self._ended or self._decoder.buffered_bytes:
                # Not from here: the lane that called has other deliveries to tell of first.
                self._loop.call_soon(self._advance)
        if self._hub.room.is_short:  # formats would have kept more; perhaps it is we who part
            self._hub.make_room()

    def _settle_ack(self) -> None:
        """Send an ack that waits, while the session is ours."""
        timer, self._ack_timer = self._ack_timer, None
        if timer is not None:
            timer.cancel()
            if self._session is not None:
                self._ack(self._session)

    def _ack(self, session: Session) -> None:
        """Ack all that is delivered."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._acked_at = self._loop.time()
        self._unacked_bytes = self._unacked_batches = 0
        self._send(Ack(session.last_seq))
        crash.point("after_ack")

    def _end_session(self) -> None:
        """End a session that is complete. The server knows it for a while: bytes of an older connection may come."""
        session = self._session
        self._settle_ack()
        if session is not None:
            session.is_ended, session.connection, session.seen_at = True, None, self._loop.time()
        self._hub.fanout.forget(self._key)
        self._session = None
        self.part()

    # -- last words

    def _refuse(self, code: int, text: str) -> None:
        """Say REFUSE and part; one line in the server's own log."""
        if self._parting_since is not None:
            return
        self._hub.counts.refused += 1
        if code not in (Refusal.SUPERSEDED, Refusal.STOPPING):
            self._complain(f"was refused: {text}")
        self._settle_ack()  # a client hears nothing that comes after this
        self._send(Refuse(code, text))
        self._source = self._source.in_short()  # nothing more comes: what deliveries still need they have
        self.part()

    def _complain(self, text: str) -> None:
        self._hub.report("connection", f"{self._peer} {text}")

    def _send(self, message: Welcome | Ack | Busy | Refuse) -> None:
        if self._transport is not None and not self._lost:
            self._transport.write(encode(message, checked=self._decoder.is_checked))

    def _farewell(self) -> None:
        """Half-close, then read and forget until the client closes: a close with unread bytes would be a reset."""
        self._settle_ack()
        self._parting_since = self._loop.time()  # it has from now on to read them
        if self._transport is None or self._lost:
            return
        if self._paused and self._intake is not None:
            self._paused = False
            self._intake.resume_reading()
        if self._ended:
            self._transport.close()  # when all is written
        elif self._transport.can_write_eof():
            with contextlib.suppress(OSError):
                self._transport.write_eof()


def created(wire: Any) -> Any:
    """Return the moment of a record of whatever form."""
    return wire[0] if isinstance(wire, tuple) and wire else None
