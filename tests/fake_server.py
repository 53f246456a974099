"""A server for tests that does what a test tells it to, in threads of this process.

    with FakeServer() as server:
        server.on_batch = lambda peer, batch: None      # withholds every ack
        handler = AiologHandler(*server.address)
        ...
        server.wait_for(lambda: server.peers[0].batches)
        server.peers[0].reset()
        server.on_batch = FakeServer.take               # is well again
        handler.flush()
        assert server.texts == ["first", "second"]

Where a test says nothing it behaves: welcomes, takes each record once, acks at once. It keeps an eye on what a sender
must never do, and :meth:`FakeServer.close` fails when it did: use a definition before it came, leave a gap undeclared.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from aiolog.protocol import (
    FROM_CLIENT,
    VERSION,
    Ack,
    Batch,
    Busy,
    Bye,
    Decoder,
    Define,
    Hello,
    Refuse,
    Welcome,
    encode,
    unpack_records,
)
from aiolog.record import attributes
from aiolog.source import Source

WAIT_SECONDS = 15.0  # for anything to happen; what does not is a failure


class Session:
    """What the server has of one session."""

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self.records: list[dict[str, Any]] = []
        self.dropped = 0
        self.ended = False


class Peer:
    """One connection, as the server sees it."""

    def __init__(self, server: FakeServer, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.hello: Hello | None = None
        self.batches: list[Batch] = []  # all that came, heartbeats too
        self.messages: list[Any] = []
        self.source = Source()
        self.decoder = Decoder(FROM_CLIENT)
        self.closed = False  # by the client, or by us
        self.may_read = threading.Event()
        self.may_read.set()
        self.thread = threading.Thread(target=self._run, name="fake-peer", daemon=True)

    @property
    def session(self) -> Session:
        """The session of this connection."""
        assert self.hello is not None
        return self.server.sessions.setdefault(self.hello.session, Session(self.hello.acked))

    @property
    def seqs(self) -> list[int]:
        """The numbers of all records that came on this connection."""
        return [seq for batch in self.batches for seq in range(batch.first_seq, batch.first_seq + batch.count)]

    @property
    def heartbeats(self) -> list[Batch]:
        """The batches of nothing."""
        return [batch for batch in self.batches if batch.count == batch.dropped == 0]

    # -- what a test makes it do

    def send(self, *messages: Any, piece_bytes: int = 0) -> None:
        """Send messages, in pieces of so many bytes if that is given; a client that is gone does not matter."""
        data = b"".join(encode(message, checked=self.decoder.is_checked) for message in messages)
        with contextlib.suppress(OSError):
            for start in range(0, len(data), piece_bytes or len(data)):
                self.sock.sendall(data[start : start + (piece_bytes or len(data))])
                if piece_bytes:
                    threading.Event().wait(0.001)  # a packet of its own

    def welcome(self, last_seq: int | None = None, piece_bytes: int = 0) -> None:
        """Send WELCOME."""
        seq = self.session.last_seq if last_seq is None else last_seq
        self.send(Welcome(VERSION, "store", seq, self.server.window_bytes, "written"), piece_bytes=piece_bytes)

    def ack(self, seq: int | None = None) -> None:
        """Send ACK, of all that was taken if nothing is said."""
        self.send(Ack(self.session.last_seq if seq is None else seq))

    def busy(self) -> None:
        """Send BUSY."""
        self.send(Busy())

    def refuse(self, code: int, text: str = "for a reason") -> None:
        """Send REFUSE and close."""
        self.send(Refuse(code, text))
        self.close()

    def half_close(self) -> None:
        """Send nothing more, but go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close in an orderly way: what was sent arrives."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.may_read.set()

    def reset(self) -> None:
        """Cut the connection as a crash of the machine in between would: with RST."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self.sock.family == socket.AF_INET:  # a disconnect, so that RST goes although recv() still waits here
                disconnect(self.sock)
        self.close()

    # -- its thread

    def _run(self) -> None:
        try:
            self.sock = self.server.wrap(self.sock)
            self._read()
        except OSError:
            pass
        except Exception as error:
            self.server.failures.append(f"{type(error).__name__}: {error}")
        finally:
            with self.server.changed:
                self.closed = True
                self.server.changed.notify_all()
            self.sock.close()

    def _read(self) -> None:
        while self.may_read.wait() and (data := self.sock.recv(65536)):
            self.decoder.feed(data)
            while (message := self.decoder.next()) is not None:
                self._act(message)
                with self.server.changed:
                    self.messages.append(message)
                    self.server.changed.notify_all()

    def _act(self, message: Any) -> None:
        server = self.server
        if isinstance(message, Hello):
            self.hello = message
            self.decoder.is_checked &= server.checks
            self.source = Source.of(message)
            server.on_hello(self, message)
        elif isinstance(message, Define):
            for fields in message.sites:
                self.source.define(fields)
        elif isinstance(message, Batch):
            for wire in unpack_records(message, checked=self.decoder.is_checked):
                for number in wire[1:3]:
                    assert not isinstance(number, int) or number in self.source.definitions, "a use before its DEFINE"
            self.batches.append(message)
            server.on_batch(self, message)
        elif isinstance(message, Bye):
            self.session.ended = True
            self.close()


def disconnect(sock: socket.socket) -> None:
    """Disconnect a TCP socket: connect() to AF_UNSPEC, which Python's socket cannot say."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16)


class FakeServer:
    """Listen on a port of loopback, or on a Unix socket; ready when the constructor returns."""

    def __init__(self, path: str | None = None) -> None:
        self.changed = threading.Condition()
        self.sessions: dict[bytes, Session] = {}
        self.peers: list[Peer] = []
        self.failures: list[str] = []
        self.window_bytes = 1 << 20
        self.checks = True  # whether it answers a HELLO that has a check in kind
        self.on_hello: Callable[[Peer, Hello], None] = FakeServer.greet
        self.on_batch: Callable[[Peer, Batch], None] = FakeServer.take
        self.wrap: Callable[[socket.socket], socket.socket] = lambda sock: sock  # for TLS
        self.address: tuple[str, int | None] = ("127.0.0.1", 0) if path is None else (path, None)
        self._listener: socket.socket | None = None
        self.start()

    def start(self) -> None:
        """Listen; after :meth:`stop` at the same address as before."""
        host, port = self.address
        if port is None:
            self._listener = socket.socket(socket.AF_UNIX)
            Path(host).unlink(missing_ok=True)
            self._listener.bind(host)
            self._listener.listen()
        else:
            self._listener = socket.create_server((host, port))
            self.address = self._listener.getsockname()
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), name="fake-server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more, and reset all connections."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join(WAIT_SECONDS)
            self._listener.close()
            self._listener = None
        for peer in self.peers:
            peer.reset()
            peer.thread.join(WAIT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; fails when a client broke the protocol."""
        self.stop()
        assert not self.failures, self.failures

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                peer = Peer(self, sock)
                with self.changed:
                    self.peers.append(peer)
                    self.changed.notify_all()
                peer.thread.start()

    # -- what it does unless told otherwise

    @staticmethod
    def greet(peer: Peer, hello: Hello) -> None:
        """Welcome the client to its session."""
        peer.welcome()

    @staticmethod
    def take(peer: Peer, batch: Batch) -> None:
        """Keep the records and ack them."""
        FakeServer.keep(peer, batch)
        peer.ack()

    @staticmethod
    def keep(peer: Peer, batch: Batch) -> None:
        """Keep the records that are new, and ack nothing: what a server does that dies a moment too early."""
        session = peer.session
        missing = batch.first_seq - 1 - session.last_seq
        assert missing <= batch.dropped, f"{missing} records are missing, and {batch.dropped} are declared"
        records = unpack_records(batch, checked=peer.decoder.is_checked)[max(0, -missing) :]
        session.dropped += max(0, missing)
        session.records += [attributes(peer.source, wire) for wire in records]
        session.last_seq = max(session.last_seq, batch.first_seq + batch.count - 1)

    # -- what a test asks

    def wait_for(self, condition: Callable[[], Any], timeout: float = WAIT_SECONDS) -> Any:
        """Wait until ``condition`` holds, looked at after every message and every end of a connection."""
        with self.changed:
            value = self.changed.wait_for(condition, timeout)
        assert value, [peer.messages[-5:] for peer in self.peers[-5:]]
        return value

    @property
    def records(self) -> list[dict[str, Any]]:
        """The attributes of all records kept, session by session."""
        return [record for session in list(self.sessions.values()) for record in list(session.records)]

    @property
    def texts(self) -> list[str]:
        """Their messages."""
        return [record["msg"] for record in self.records]

    @property
    def dropped(self) -> int:
        """How many records clients declared as dropped."""
        return sum(session.dropped for session in list(self.sessions.values()))
