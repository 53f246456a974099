"""The server: listen, keep sessions, sweep, drain.

Knows asyncio and its connections; knows no sink, only the fan-out, and of records only how to make a notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import socket
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from aiolog.connection import Connection, Counts, Intake, Limits, Session, created
from aiolog.errors import ConfigError, listening_advice, reason
from aiolog.fanout import Delivery, Fanout
from aiolog.protocol import ACK_HOLD_SECONDS, SESSION_BYTES, Hello
from aiolog.reading import READS_TOGETHER, Reader
from aiolog.record import WireRecord
from aiolog.report import Report
from aiolog.source import Room, Site, Source, Thread

SWEEP_SECONDS = 0.5  # between two looks for connections that are silent, stuck, or want a BUSY
SWEPT_TOGETHER = 4096  # sessions: a millisecond of the event loop, and all that are kept by default in 8 s
TELL_SECONDS = 5.0  # between two records of what a slow sink missed
ENDED_SECONDS = 60.0  # in which bytes of an older connection may come after BYE, and must not be taken for new ones
MISSED_SECONDS = 5.0  # a living handler is back within its retryMax of half a second
FORGOTTEN_TOGETHER = 64  # of all sessions one in so many goes at once, where there is no room for another
WARNING = 30  # logging's number, for the server's own records


class Server:
    """All connections, the sessions they continue, and the fan-out they deliver to.

    ``durability`` is the weakest of the ``block`` sinks', and is what an ack means. ``wall_clock`` stamps notices.
    """

    def __init__(
        self,
        fanout: Fanout,
        limits: Limits,
        report: Report,
        *,
        durability: str,
        token: str = "",
        wall_clock: Callable[[], float],
        ack_hold_seconds: float = ACK_HOLD_SECONDS,
    ) -> None:
        self.fanout = fanout
        self.limits = limits
        self.ack_hold_seconds = ack_hold_seconds
        self.report = report
        self.durability = durability
        self.store = secrets.token_hex(16)
        self.sessions: dict[bytes, Session] = {}
        self.connections: set[Connection] = set()
        self.counts = Counts()
        self.held_bytes = 0  # received and not yet delivered, over all connections
        self.delivering_bytes = 0  # of those, what the sinks have
        self.room = Room(limits.max_dictionary_bytes)
        self.draining = False
        self._token = token
        self._wall_clock = wall_clock
        self._own = Source(app="aiolog", host=socket.gethostname(), pid=os.getpid(), process_name="aiolog")
        self._own.define(Site("aiolog", WARNING, "WARNING", __file__, "server.py", "server", 0, "notice"))
        self._own.define(Thread(None, "aiolog"))
        self._own_session = secrets.token_bytes(SESSION_BYTES)
        self._own_seq = 0
        self._listeners: list[asyncio.Server] = []
        self._unix_file: _UnixFile | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._quiet = asyncio.Event()  # no connection is left
        self._reader: Reader | None = None

    # -- start and end

    async def listen(self, host: str, port: int, unix_socket: str = "") -> tuple[str, int]:
        """Accept connections; returns the host and port that were bound.

        Raises ConfigError when an address cannot be used.
        """
        loop = asyncio.get_running_loop()
        self._reader = Reader(loop, self.fanout.settle) if READS_TOGETHER else None
        try:
            listener = await loop.create_server(lambda: Connection(self, loop), host, port, backlog=1024)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({reason(error)}). "
                f"{listening_advice(error, 'choose another with --port')}"
            ) from error
        self._listeners.append(listener)
        if unix_socket:
            self._listeners.append(await self._listen_unix(loop, unix_socket))
        self._sweeper = asyncio.create_task(self._sweep(loop), name="sweep")
        address = listener.sockets[0].getsockname()
        return address[0], address[1]

    async def _listen_unix(self, loop: asyncio.AbstractEventLoop, path: str) -> asyncio.Server:
        try:
            listener, self._unix_file = _bind_unix(path)
            return await loop.create_unix_server(lambda: Connection(self, loop), sock=listener)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on the Unix socket {path} ({reason(error)}). "
                "Remove it if no server runs, or choose another with server.socket"
            ) from error

    def _stop_listening(self) -> None:
        # The file first: as long as the socket is open, no other file gets its inode.
        if self._unix_file is not None:
            self._unix_file.remove()
            self._unix_file = None
        for listener in self._listeners:
            listener.close()

    async def drain(self) -> None:
        """Stop accepting, let what is under way be committed and acked, and part from every client.

        Never ends while a ``block`` sink is stuck; cancel it then. What was not acked stays with the clients.
        """
        self.draining = True
        self._stop_listening()
        for connection in list(self.connections):
            connection.part()
        if self.connections:
            await self._quiet.wait()
        self._tell()
        self.fanout.forget(self._own_session)

    async def close(self) -> None:
        """Drop whatever is left."""
        self._stop_listening()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        for connection in list(self.connections):
            connection.abort()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    async def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        told_at = loop.time()
        unseen: list[bytes] = []  # sessions that are still to be looked at in this round
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = loop.time()
            if now - told_at >= TELL_SECONDS:
                told_at = now
                self._tell()
            for connection in list(self.connections):
                connection.look(now)
            limit_bytes = self.limits.max_inflight_bytes
            for connection in list(self.connections):
                if self.held_bytes <= limit_bytes or (connection.waits and self.delivering_bytes <= limit_bytes):
                    connection.read_on()
            unseen = unseen or list(self.sessions)
            for key in unseen[-SWEPT_TOGETHER:]:
                self._look(key, now)
            del unseen[-SWEPT_TOGETHER:]

    def _look(self, key: bytes, now: float) -> None:
        """Forget a session that has been away for too long; say it once if it went without a BYE."""
        session = self.sessions.get(key)
        if session is None or session.connection is not None:
            return
        away_seconds = now - session.seen_at
        if not session.is_ended and away_seconds > MISSED_SECONDS and session.last_seq and not session.is_missed:
            self._miss(session)
        if away_seconds > (ENDED_SECONDS if session.is_ended else self.limits.session_ttl_seconds):
            del self.sessions[key]

    # -- what connections ask

    def joined(self, connection: Connection) -> bool:
        """Take a new connection; False when there are enough."""
        self.counts.connections += 1
        self.connections.add(connection)
        self._quiet.clear()
        return len(self.connections) <= self.limits.max_connections

    def left(self, connection: Connection) -> None:
        """Forget a connection that has closed."""
        self.connections.discard(connection)
        if not self.connections:
            self._quiet.set()

    def make_room(self) -> None:
        """Part from whoever says the most of itself, if that is more than its share of the room that there is.

        From one at a time: it may be known to a delivery for a while yet. Who says less than its share is left alone,
        also where all of the room is taken by what waits for a stuck sink.
        """
        self.room.is_short = False
        largest = max(self.connections, key=attrgetter("described_bytes"))
        if largest.described_bytes * len(self.connections) > self.room.limit_bytes:
            largest.give_way()
        else:
            self.report(
                "room",
                f"the log statements of all processes take {self.room.used_bytes >> 20} MiB, and there is no room to "
                "prepare for them, which takes CPU. Raise server.max_dictionary_bytes, or log from fewer processes",
            )

    def may_enter(self, token: str) -> bool:
        """Whether the token is the right one, in the same time for any wrong one."""
        return not self._token or hmac.compare_digest(self._token.encode(), token.encode(errors="surrogatepass"))

    def session(self, hello: Hello) -> Session | None:
        """Return the session that a HELLO continues or begins; None when there is no room for another.

        A client knows better than a server without memory: its ``acked`` counts where the session is unknown. What
        was acked to it counts in any case.
        """
        found = self.sessions.get(hello.session)
        if found is None:
            if len(self.sessions) >= self.limits.max_sessions and not self._forget_oldest():
                return None
            found = self.sessions[hello.session] = Session(self._recall(hello))
        elif found.last_seq < hello.acked:
            found.last_seq = hello.acked
        return found

    def _recall(self, hello: Hello) -> int:
        """Return up to where every sink has dealt with a session that began before this server did.

        What was acked and a sink does not know of is said; but not of a sink that is new and knows nothing of the
        session at all, as long as another does.
        """
        sinks = [lane.sink for lane in self.fanout.blocking()]
        marks = [sink.mark(hello.session) for sink in sinks]
        for sink, mark in zip(sinks, marks, strict=True):
            if mark is not None and mark < hello.acked and (mark or not sink.is_new or not any(marks)):
                self._say_gap(sink.name, _source_name(hello.process_name, hello.pid), mark + 1, hello.acked)
        # Without a memory, or as long as there is none, all that is not acked is needed.
        return max(hello.acked, min((mark or 0 for mark in marks), default=0))

    def _say_gap(self, sink: str, process: str, first_seq: int, last_seq: int) -> None:
        count = last_seq - first_seq + 1
        text = (
            f"{count} records of process {process} were acked, and the ledger of sink {sink} does not know them: they "
            "went to another server, a power cut took them, or the ledger is not the one that knew them"
        )
        self.report(f"gap {sink}", text)
        self._say(
            text,
            ["lost", count, "sink", sink, "from_process", process, "first_seq", first_seq, "last_seq", last_seq],
        )

    def _miss(self, session: Session) -> None:
        """Say that a process went without a BYE, and after which record."""
        session.is_missed = True
        source = session.source
        if source is None:
            return
        process = _source_name(source.process_name, source.pid)
        self._say(
            f"process {process} went without saying goodbye after its record {session.last_seq}: it was killed, or "
            "it is cut off. What it has not sent is lost, unless it comes back or had a spool",
            [
                "last_seq", session.last_seq, "from_process", source.process_name, "from_pid", source.pid,
                "from_host", source.host, "from_app", source.app, "since", _stamp(session.last_created),
            ],
        )  # fmt: skip

    def _say(self, text: str, extra: list[Any]) -> None:
        """Put a record of our own into all sinks."""
        self._own_seq += 1
        self.fanout.deliver(
            Delivery(self._own, [self._notice(text, extra)], session=self._own_session, first_seq=self._own_seq)
        )

    def _forget_oldest(self) -> bool:
        """Make room for a session, and for some more: who invents them would have all looked at for each."""
        idle = [(session.seen_at, key) for key, session in self.sessions.items() if session.connection is None]
        oldest = sorted(idle)[: max(1, self.limits.max_sessions // FORGOTTEN_TOGETHER)]
        for _, key in oldest:
            del self.sessions[key]
        return bool(oldest)

    def take(self, transport: asyncio.Transport, connection: Connection) -> Intake:
        """Return what reads for a connection from now on: its transport, or what reads for all of them."""
        if self._reader is None or transport.get_extra_info("socket") is None:
            return transport
        return self._reader.take(transport, connection)

    def drop_notice(self, source: Source, dropped: int, since: Any, until: Any) -> WireRecord:
        """Make the record that says what a client had to drop between two moments (``created`` of records).

        None stands for now, or for a beginning that nobody knows.
        """
        if until is None:
            until = self._wall_clock()
        extra = [
            "dropped", dropped, "from_process", source.process_name, "from_pid", source.pid,
            "from_host", source.host, "from_app", source.app, "since", _stamp(since), "until", _stamp(until),
        ]  # fmt: skip
        return self._notice(
            f"{dropped} records of process {_source_name(source.process_name, source.pid)} were dropped between "
            f"{_stamp(since)} and {_stamp(until)}: its buffer was full",
            extra,
        )

    def _tell(self) -> None:
        """Put into all sinks what lanes had to drop since the last time, a record a process."""
        for name, lane in self.fanout.lanes.items():
            untold, lane.untold = lane.untold, {}
            for missed in untold.values():
                source = missed.source
                since, until = _stamp(created(missed.since)), _stamp(created(missed.until))
                self._say(
                    f"{missed.records} records of process {_source_name(source.process_name, source.pid)} between "
                    f"{since} and {until} were dropped before sink {name}: it was too slow for them",
                    [
                        "dropped", missed.records, "sink", name, "from_process", source.process_name,
                        "from_pid", source.pid, "from_host", source.host, "from_app", source.app,
                        "since", since, "until", until,
                    ],
                )  # fmt: skip

    def _notice(self, text: str, extra: list[Any]) -> WireRecord:
        return (self._wall_clock(), 0, 1, text, {"extra": extra})

    @property
    def own_source(self) -> Source:
        """The process that notices come from: this one."""
        return self._own


class _UnixFile(NamedTuple):
    """The file of a Unix socket that this server made: the path, and what stood there then."""

    path: Path
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the file, unless it is another's by now."""
        with contextlib.suppress(OSError):  # gone, or not ours to remove: the next server finds nobody there
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                self.path.unlink()


def _bind_unix(name: str) -> tuple[socket.socket, _UnixFile]:
    """Return a socket that listens on the path, and its file; replace the one that a killed server left.

    An event loop would replace that of a running server as well. Nothing but a lock file would keep two apart that
    look at the same path within the same microseconds, before either listens; it would stay for ever, and two servers
    with the same settings part before, over the port.

    Raises ConfigError where another server listens or what is there is no socket, OSError for the rest.
    """
    path = Path(name)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ConfigError(
                f"cannot listen on the Unix socket {path}: what is there is no socket. "
                "Choose another with server.socket"
            )
        if _is_listened_on(name):
            raise ConfigError(
                f"the Unix socket {path} is being listened on by another server. "
                "Stop that one, or choose another with server.socket"
            )
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o117)  # 0660: whoever is in the group may log
    try:
        listener.bind(name)
        listener.listen()  # from now on the path can be seen to be taken
        made = path.lstat()
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener, _UnixFile(path, made.st_dev, made.st_ino)


def _is_listened_on(path: str) -> bool:
    """Whether somebody accepts connections on a Unix socket, however busy it is."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)  # a full backlog is an answer too: EAGAIN
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # busy, of another kind, or not for us: in any case somebody may be there
    return True


def _source_name(process_name: str | None, pid: int | None) -> str:
    return f"{process_name}[{pid}]"


def _stamp(created: Any) -> str:
    """Return a record's ``created`` (float seconds or int nanoseconds) as RFC 3339, UTC, milliseconds."""
    try:
        seconds = created / 1e9 if type(created) is int else float(created)
        moment = datetime.fromtimestamp(seconds, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return "unknown"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
