"""A collector for tests: a real server in a thread of the test's own process, which keeps what it is sent.

    with Collector() as collector:
        aiolog.setup(host=collector.host, port=collector.port)
        logging.getLogger("shop").info("sold %d", 3)
        (record,) = collector.wait_for(1)
        assert (record["name"], record["msg"]) == ("shop", "sold 3")

It speaks the protocol as the server does: welcomes, takes each record once, acks it. Needs the base install alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from aiolog.errors import ProtocolError
from aiolog.protocol import (
    FROM_CLIENT,
    VERSION,
    Ack,
    Batch,
    Bye,
    Decoder,
    Define,
    Hello,
    Message,
    Refusal,
    Refuse,
    Welcome,
    encode,
    unpack_records,
)
from aiolog.record import attributes
from aiolog.source import Source

WAIT_SECONDS = 10.0  # a test that is to fail need not hang; what works takes milliseconds
WINDOW_BYTES = 1 << 20
RECEIVE_BYTES = 64 << 10


class Collector:
    """Receive records on a port of loopback from when it is made until :meth:`close`, or the end of ``with``.

    ``path`` makes it listen on a Unix socket instead; ``token`` is what clients must show, if it is given.
    """

    def __init__(self, *, path: str | os.PathLike[str] | None = None, token: str = "") -> None:
        self._token = token
        self._changed = threading.Condition()
        self._records: list[dict[str, Any]] = []
        self._last_seqs: dict[bytes, int] = {}
        self._dropped = 0
        self._socks: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self._path = None if path is None else os.fspath(path)
        if self._path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.host: str = self._listener.getsockname()[0]
            self.port: int | None = self._listener.getsockname()[1]
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self._path)
            self._listener.listen()
            self.host, self.port = self._path, None
        self._start(self._accept)

    @property
    def url(self) -> str:
        """The address as ``aiolog.setup(url=…)`` and ``AIOLOG_URL`` take it."""
        return f"unix://{self.host}" if self.port is None else f"tcp://{self.host}:{self.port}"

    @property
    def records(self) -> list[dict[str, Any]]:
        """The attributes of all records so far, extras among them, fit for ``logging.makeLogRecord``.

        In the order of arrival; that of one process is the order of its log calls. ``app``, ``host`` and ``labels``
        of the process that logged stand under these names, where no extra has them.
        """
        with self._changed:
            return list(self._records)

    @property
    def messages(self) -> list[str]:
        """Their messages."""
        return [record["msg"] for record in self.records]

    @property
    def dropped(self) -> int:
        """How many records clients told that they had dropped."""
        with self._changed:
            return self._dropped

    def wait_for(self, count: int, timeout: float = WAIT_SECONDS) -> list[dict[str, Any]]:
        """Return all records once there are ``count`` or more; wait at most ``timeout`` seconds for that.

        Raises ``AssertionError``, which shows the messages that came.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._records) >= count, timeout):
                messages = [record["msg"] for record in self._records]
                raise AssertionError(f"{len(messages)} of {count} records came in {timeout} s: {messages!r}")
            return list(self._records)

    def clear(self) -> None:
        """Forget the records so far."""
        with self._changed:
            self._records.clear()
            self._dropped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the port and all connections; the records stay."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            socks = [self._listener, *self._socks]
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
        self._listener.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # noqa: PTH108 - no pathlib in a worker

    # -- threads

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="aiolog-collector", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                sock, _ = self._listener.accept()
                with self._changed:
                    if self._is_closed:
                        sock.close()
                        return
                    self._socks.add(sock)
                self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        decoder = Decoder(FROM_CLIENT)

        def answer(message: Message) -> None:
            sock.sendall(encode(message, checked=decoder.is_checked))

        try:
            with contextlib.suppress(OSError):  # the client is gone
                try:
                    self._converse(sock, decoder, answer)
                except ProtocolError as error:
                    answer(Refuse(error.code or Refusal.PROTOCOL, str(error)))
        finally:
            with self._changed:
                self._socks.discard(sock)
            sock.close()

    def _converse(self, sock: socket.socket, decoder: Decoder, answer: Callable[[Message], None]) -> None:
        """Take one client's messages. Raises OSError, ProtocolError."""
        hello: Hello | None = None
        source = Source()
        while data := sock.recv(RECEIVE_BYTES):
            decoder.feed(data)
            while (message := decoder.next()) is not None:
                if isinstance(message, Hello):
                    hello, source = message, Source.of(message)
                    answer(Welcome(VERSION, "collector", self._enter(message), WINDOW_BYTES, "written"))
                elif hello is None:
                    raise ProtocolError("HELLO must come first", Refusal.PROTOCOL)
                elif isinstance(message, Define):
                    for fields in message.sites:
                        source.define(fields)
                elif isinstance(message, Batch):
                    records = unpack_records(message, checked=decoder.is_checked)
                    answer(Ack(self._keep(hello.session, source, message, records)))
                elif isinstance(message, Bye):
                    return

    def _enter(self, hello: Hello) -> int:
        """Return the last seq that is kept of a session. Raises ProtocolError for a wrong token."""
        if self._token and hello.token != self._token:
            raise ProtocolError("the token is wrong", Refusal.TOKEN)
        with self._changed:
            return self._last_seqs.setdefault(hello.session, hello.acked)

    def _keep(self, session: bytes, source: Source, batch: Batch, wires: Sequence[Any]) -> int:
        """Keep what is new of a batch; return up to where all is kept. Raises ProtocolError."""
        shared = {"app": source.app, "host": source.host, "labels": source.labels}
        records = [{**shared, **attributes(source, wire)} for wire in wires]
        with self._changed:
            last_seq = self._last_seqs[session]
            missing = batch.first_seq - 1 - last_seq
            if missing > batch.dropped:
                raise ProtocolError(f"{missing} records are missing, and {batch.dropped} declared", Refusal.PROTOCOL)
            self._dropped += max(0, missing)
            self._records += records[max(0, -missing) :]
            last_seq = max(last_seq, batch.first_seq + batch.count - 1)
            self._last_seqs[session] = last_seq
            self._changed.notify_all()
        return last_seq


def as_log_record(record: Mapping[str, Any]) -> logging.LogRecord:
    """Return one of :attr:`Collector.records` as ``logging`` has it, for a formatter or a filter under test."""
    return logging.makeLogRecord(dict(record))
