"""``AiologHandler``: the standard ``SocketHandler`` with a backlog, a sender and no way to lose a record quietly.

Knows ``logging`` and the life of a process: its forks, its exits, its pickles. Records are encoded in the thread
that logs and put into the backlog; everything that can wait, fail or block is the sender's, in its own thread.

What the standard handler does and this one keeps: the order of ``host`` and ``port``, ``port=None`` for a Unix
socket, ``makeSocket`` as the place to wrap the connection (TLS), ``makePickle`` and ``send`` as the two halves of
``emit``, ``retryStart``, ``retryMax`` and ``retryFactor``, no connection before the first record, and delivery of
records that come after ``close()``.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import sys
import weakref
from collections.abc import Mapping
from logging.handlers import DEFAULT_TCP_LOGGING_PORT, SocketHandler
from typing import Any

from aiolog.backlog import MIN_BUFFER_BYTES, MIN_SPOOL_BYTES, Backlog
from aiolog.protocol import MAX_RECORD_BYTES, SESSION_BYTES, VERSION, Hello, pack_record
from aiolog.record import Encoder
from aiolog.sender import Sender

POLICIES = ("block", "drop_oldest", "drop_newest")
BUFFER_BYTES = 16 << 20  # about 100,000 records: a server restart at full speed, and a tenth of a small container
LATE_FLUSH_SECONDS = 1.0  # for a record that comes when the process is already ending
SPOOL_MAX_BYTES = 256 << 20  # about 1.5 million records: an hour of a busy service
FINALIZE_PRIORITY = -100  # after every finalizer with a priority of its own: those may log

_default_formatter = logging.Formatter()
_handlers: weakref.WeakSet[AiologHandler] = weakref.WeakSet()  # for forks and exits
_covered_pid = 0  # the process whose exit is taken care of
_exiting = False  # this process has had its last flush: what comes now is flushed record by record


class AiologHandler(SocketHandler):
    """Send records to an aiolog server; a log call never waits for the network.

    ``host``, ``port``: the server; ``port=None`` makes ``host`` the path of a Unix socket.
    ``app``, ``labels``: stand in every line of this process. ``token``: the server's, if it asks for one.
    ``buffer_bytes``: how much memory records may take while the server is slow or away.
    ``when_full``: ``"block"`` (a call waits while the server makes progress; once acks have not come for
    ``block_timeout_seconds``, calls drop the oldest records at once), ``"drop_oldest"`` or ``"drop_newest"``.
    ``flush_timeout_seconds``: how long ``flush`` and ``close``, and so the exit of the process, may take.
    ``heartbeat_seconds``: an idle connection is tried so often; one that is silent twice as long is given up.
    ``connect_timeout_seconds``: for one attempt to connect.
    ``spool_dir``: a directory for records that are not acked yet. With it, what a log call returned from survives
    the death of its process: the next handler with that directory, or ``aiolog recover``, sends it. It may have
    ``spool_max_bytes`` for each process, and ``when_full`` is about these.

    Raises ``ValueError`` for a setting that cannot be; never because a server is down.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | str | None = DEFAULT_TCP_LOGGING_PORT,
        *,
        app: str = "",
        labels: Mapping[str, str] | None = None,
        token: str = "",
        buffer_bytes: int = BUFFER_BYTES,
        when_full: str = "block",
        block_timeout_seconds: float = 0.1,
        flush_timeout_seconds: float = 5.0,
        heartbeat_seconds: float = 5.0,
        connect_timeout_seconds: float = 1.0,
        spool_dir: str | os.PathLike[str] | None = None,
        spool_max_bytes: int = SPOOL_MAX_BYTES,
    ) -> None:
        if when_full not in POLICIES:
            raise ValueError(f"when_full is {when_full!r}; it must be one of {', '.join(POLICIES)}")
        if buffer_bytes < MIN_BUFFER_BYTES:
            raise ValueError(f"buffer_bytes is {buffer_bytes}; the least that works is {MIN_BUFFER_BYTES}")
        if spool_max_bytes < MIN_SPOOL_BYTES:
            raise ValueError(f"spool_max_bytes is {spool_max_bytes}; the least that works is {MIN_SPOOL_BYTES}")
        if isinstance(port, str):  # from an environment variable or an INI file
            port = int(port)
        super().__init__(host, port)
        self.retryStart = 0.05
        self.retryMax = 0.5  # a restarted server has its clients back within half a second; a refused try costs 50 µs
        self.app = app
        self.labels = {str(name): str(value) for name, value in (labels or {}).items()}
        self.token = token
        self.buffer_bytes = buffer_bytes
        self.when_full = when_full
        self.block_timeout_seconds = block_timeout_seconds
        self.flush_timeout_seconds = flush_timeout_seconds
        self.heartbeat_seconds = heartbeat_seconds
        self.connect_timeout_seconds = connect_timeout_seconds
        # Absolute: the process may change its directory, and its children too.
        self.spool_dir = None if spool_dir is None else os.path.abspath(spool_dir)  # noqa: PTH100 - no pathlib here
        self.spool_max_bytes = spool_max_bytes
        self._begin()

    def _begin(self) -> None:
        """Set what belongs to one process, and not to the settings."""
        # By pid: setdefault lets one thread win, without a lock.
        self._lives: dict[int, tuple[Encoder, Sender]] = {}
        self._encoder: Encoder | None = None
        self._sender: Sender | None = None
        self._pid = 0  # the process that the two are for
        self._late_seconds = LATE_FLUSH_SECONDS
        if self.spool_dir is not None:  # now, as an import amid a fork leaves the child with half a module
            import aiolog.recovery  # noqa: F401, PLC0415 - only who has a spool pays for it
        _handlers.add(self)

    # -- the way of a record

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter and emit, without the handler's lock: nothing here needs it, and a flush may hold it long."""
        passed: Any = self.filter(record)  # from 3.12 a filter may return another record
        if passed:
            self.emit(record if passed is True else passed)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Encode the record and put it into the backlog. Raises nothing."""
        try:
            self.send(self.makePickle(record))
        except RecursionError:  # as StreamHandler does (bpo-36272)
            raise
        except Exception:  # noqa: BLE001 - the contract of every handler
            self.handleError(record)

    def makePickle(self, record: logging.LogRecord) -> bytes:  # noqa: N802
        """Return the record as it goes into a batch: msgpack, where the standard handler pickles."""
        try:
            is_ours = record.process == self._pid
        except Exception:  # noqa: BLE001 - a foreign object, or none
            is_ours = False
        if not is_ours or self._encoder is None:
            self._meet()
        encoder = self._encoder
        assert encoder is not None
        try:
            packed = pack_record(encoder.encode(record))
            if len(packed) <= MAX_RECORD_BYTES:
                return packed
        except (ValueError, OverflowError, TypeError):  # plain, and yet msgpack will not have it
            pass
        return pack_record(encoder.encode_small(record))

    def send(self, s: Any) -> None:
        """Put one packed record into the backlog; the sender's thread does the rest."""
        sender = self._sender
        assert sender is not None  # makePickle came first
        sender.put(s)
        if sender.stopping or _exiting:
            self._send_late(sender)

    def _send_late(self, sender: Sender) -> None:
        """Deliver a record that came after ``close()``, or after the last flush of the process."""
        if not _exiting:
            try:
                sender.revive()
            except RuntimeError:  # the interpreter starts no more threads (3.12 at exit)
                pass
            else:
                return
        if not sender.flush(self._late_seconds, insist=False):
            self._late_seconds = 0.0  # the exit of a process waits for an absent server once

    def _meet(self) -> None:
        """Make sure of an encoder and a sender that are this process's; its first record makes and starts them."""
        pid = os.getpid()
        if pid == self._pid:
            return  # the record was made in another process, or without its pid
        if self._pid:
            self.forget()  # a fork that ran no hook
        encoder = Encoder(
            pid=pid,
            process_name=logging.LogRecord("", 0, "", 0, "", None, None).processName,  # as in all of this process
            start_time=logging._startTime,  # type: ignore[attr-defined]  # noqa: SLF001 - relativeCreated's zero
            format_exception=self._format_exception,
        )
        hello = Hello(
            version=VERSION,
            session=os.urandom(SESSION_BYTES),
            pid=pid,
            process_name=encoder.process_name,
            host=socket.gethostname(),
            app=self.app,
            labels=self.labels,
            start_time=encoder.start_time,
            token=self.token,
            acked=0,
        )
        fresh = encoder, Sender(self, self._new_backlog(hello, encoder), hello, encoder.definitions)
        life = self._lives.setdefault(pid, fresh)
        self._encoder, self._sender = life
        self._pid = pid
        if life is fresh:
            _cover_exit(pid)
            try:
                life[1].start()
            except RuntimeError:
                life[1].stop(0)  # each record will be flushed as it comes
            else:
                self._recover()

    def _new_backlog(self, hello: Hello, encoder: Encoder) -> Backlog:
        """Return what the records are put into; a spool touches no file before the first."""
        if self.spool_dir is None:
            return Backlog(self.buffer_bytes)
        from aiolog.spool import Spool  # noqa: PLC0415 - loaded when this handler was made

        return Spool(
            self.spool_dir,
            hello,
            encoder.definitions,
            max_bytes=self.spool_max_bytes,
            buffer_bytes=self.buffer_bytes,
            say=Sender.say,
        )

    def _recover(self) -> None:
        """Let a thread of its own send what dead processes left in the spool directory."""
        if self.spool_dir is not None:
            from aiolog import recovery  # noqa: PLC0415 - loaded when this handler was made

            recovery.start(self.spool_dir, self, self.token, Sender.say)

    def _format_exception(self, exc_info: Any) -> str:
        return (self.formatter or _default_formatter).formatException(exc_info)

    # -- the life of the handler

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the server has acked everything; at most ``timeout`` or ``flush_timeout_seconds`` seconds.

        Safe to call with any lock of ``logging`` held.
        """
        if self._sender is not None:
            self._sender.flush(self.flush_timeout_seconds if timeout is None else timeout, insist=timeout is not None)

    def close(self) -> None:
        """Flush, end the session and the thread. A record that comes later is delivered all the same."""
        sender = self._sender
        if sender is not None and not sender.stop(self.flush_timeout_seconds):
            what = f"{sender.backlog.records} records of process {self._pid} could not be delivered yet; "
            if sender.backlog.is_durable:
                sender.say(f"{what}they are kept in {self.spool_dir}, for `aiolog recover` or the next process")
            else:
                sender.say(f"{what}they are lost if it ends before the server is back")
        logging.Handler.close(self)

    def forget(self) -> None:
        """Forget the parent's session in a forked child: the parent sends its own records itself."""
        sender = self._sender
        self._begin()
        if sender is not None:
            sender.abandon()

    def stats(self) -> dict[str, Any]:
        """Return the counts of this process, in records but for ``buffered_bytes``.

        ``accepted`` = ``acked`` + all of ``dropped`` + ``buffered``. ``sent`` counts each record once, however
        often a connection had to be made anew.
        """
        sender = self._sender
        backlog = sender.backlog if sender is not None else Backlog(self.buffer_bytes)
        # Each is read once, and accepted last: other threads go on counting, and a difference must not be negative.
        acked, dropped = backlog.acked, dict(backlog.dropped)
        accepted = backlog.accepted
        return {
            "accepted": accepted,
            "sent": backlog.sent,
            "acked": acked,
            "dropped": dropped,
            "buffered": accepted - acked - sum(dropped.values()),
            "buffered_bytes": backlog.size_bytes,
            "connected": sender is not None and sender.connected,
            "reconnects": max(0, sender.reconnects) if sender is not None else 0,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone: an unpickled handler begins its own session (spawn, forkserver)."""
        own = {"lock", "_lives", "_encoder", "_sender", "_pid", "_late_seconds"}
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.createLock()
        logging._addHandlerRef(self)  # type: ignore[attr-defined]  # noqa: SLF001 - as Handler.__init__ does
        self._begin()

    # -- what SocketHandler has and the sender does here

    @property
    def sock(self) -> socket.socket | None:
        """The connected socket, or None. It is the sender's; do not touch it."""
        sender = self.__dict__.get("_sender")
        return sender.sock if sender is not None else None

    @sock.setter
    def sock(self, value: socket.socket | None) -> None:
        """Take the None of ``SocketHandler.__init__``."""

    def makeSocket(self, timeout: float = 1) -> socket.socket:  # noqa: N802
        """Return a connected socket; called in the sender's thread. Override it to wrap the connection (TLS).

        Raises OSError.
        """
        if isinstance(self.address, str) or not self.address[0].isascii():
            return super().makeSocket(timeout)
        # A host as bytes: getaddrinfo() takes str through the idna codec, which it imports here and now, and a fork
        # amid an import in another thread leaves the child with half a module for ever.
        host, port = self.address
        return socket.create_connection((host.encode("ascii"), port), timeout)  # type: ignore[arg-type]

    def createSocket(self) -> None:  # noqa: N802
        """Do nothing: the sender connects, in its own thread and time."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Report a record that raised, as ``logging.Handler`` does; the connection has no part in it."""
        logging.Handler.handleError(self, record)


def _cover_exit(pid: int) -> None:
    """Arrange for a last flush at each kind of exit that this process may have; once per process.

    ``logging.shutdown`` does it in the main process, but not for a handler that somebody took off its logger, and
    not in a child of ``multiprocessing``, which leaves by ``os._exit``: its own finalizers run then, if they were
    registered in the child. Celery's children run neither, and uvicorn ends itself by the signal that it got.
    """
    global _covered_pid  # noqa: PLW0603 - the state of the process
    if _covered_pid == pid:
        return
    _covered_pid = pid
    with contextlib.suppress(RuntimeError):  # atexit, when it is too late for that
        atexit.register(_flush_at_exit)
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:
        multiprocessing.Finalize(None, _flush_at_exit, exitpriority=FINALIZE_PRIORITY)
    celery = sys.modules.get("celery.signals")
    if celery is not None:
        celery.worker_process_shutdown.connect(_flush_at_exit, weak=False)
    if "uvicorn.server" in sys.modules:
        logging.getLogger("uvicorn.error").addFilter(_flush_before_uvicorn_ends)


def _flush_at_exit(*_: Any, **__: Any) -> None:
    """Flush every handler for the last time, and let later records be flushed one by one."""
    global _exiting  # noqa: PLW0603
    _exiting = True
    for handler in list(_handlers):
        sender = handler._sender  # noqa: SLF001
        if sender is not None:
            sender.stop(handler.flush_timeout_seconds)


def _flush_before_uvicorn_ends(record: logging.LogRecord) -> bool:
    """Flush for the last time at uvicorn's last record, if a signal has ended it; a filter that all records pass.

    ``uvicorn.server.Server.capture_signals`` raises that signal again, with the default handler, right after it: a
    SIGTERM then ends the process, and no hook runs. The record itself, and any later one, is flushed as it comes.
    """
    if str(record.msg).startswith("Finished server process"):
        import signal  # noqa: PLC0415 - loaded by uvicorn

        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if getattr(server, "_captured_signals", None):
            _flush_at_exit()
    return True


def _forget_at_fork() -> None:
    """Begin anew in a forked child; a hook that ran before this one may have logged, and begun already."""
    global _exiting  # noqa: PLW0603
    _exiting = False
    pid = os.getpid()
    for handler in list(_handlers):
        if handler._pid != pid:  # noqa: SLF001
            handler.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_at_fork)
