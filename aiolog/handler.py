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
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging.handlers import DEFAULT_TCP_LOGGING_PORT, SocketHandler
from time import monotonic
from typing import Any, TypeAlias

from aiolog import context
from aiolog.backlog import MIN_BUFFER_BYTES, MIN_SPOOL_BYTES, Backlog
from aiolog.labels import process_labels
from aiolog.protocol import MAX_RECORD_BYTES, SESSION_BYTES, VERSION, Hello, pack_everyday, pack_record
from aiolog.record import MARK, Encoder
from aiolog.sender import Sender

# A handler in one process: its pid, and the three that a record goes through.
_Life: TypeAlias = tuple[int, Encoder, Backlog, Sender]

POLICIES = ("block", "drop_oldest", "drop_newest")
BUFFER_BYTES = 16 << 20  # about 100,000 records: a server restart at full speed, and a tenth of a small container
LATE_FLUSH_SECONDS = 1.0  # for a record that comes when the process is already ending
SPOOL_MAX_BYTES = 256 << 20  # about 1.5 million records: an hour of a busy service
FINALIZE_PRIORITY = -100  # after every finalizer with a priority of its own: those may log

_UNBORN: Any = (0, None, None, None)  # before the first record: no process has the pid 0

_default_formatter = logging.Formatter()
_context = context.bound
_modules = sys.modules
_handlers: weakref.WeakSet[AiologHandler] = weakref.WeakSet()  # for forks and exits
_covered_pid = 0  # the process whose exit is taken care of
_exiting = False  # this process has had its last flush: what comes now is flushed record by record


SETTINGS = (
    "host", "port", "app", "labels", "token", "buffer_bytes", "when_full", "block_timeout_seconds",
    "flush_timeout_seconds", "heartbeat_seconds", "connect_timeout_seconds", "spool_dir", "spool_max_bytes", "redact",
)  # fmt: skip
"""The names of what the constructor takes."""

_LEAST = {
    "buffer_bytes": MIN_BUFFER_BYTES,
    "block_timeout_seconds": 0,
    "flush_timeout_seconds": 0,
    "heartbeat_seconds": 0.001,
    "connect_timeout_seconds": 0.001,
    "spool_max_bytes": MIN_SPOOL_BYTES,
}
_OF_ONE_PROCESS = {"lock", "_lives", "_generation", "_life", "_late_seconds", "_is_special", "_mark"}
_STEPS = ("filter", "emit", "makePickle", "send")


def _checked(**settings: Any) -> dict[str, Any]:
    """Return settings as a handler keeps them. Raises ``ValueError`` in a sentence that says what can be."""
    port, when_full, labels = settings["port"], settings["when_full"], settings["labels"]
    if when_full not in POLICIES:
        raise ValueError(f"when_full is {when_full!r}; it must be one of {', '.join(POLICIES)}")
    for name, least in _LEAST.items():
        value = settings[name]
        if type(value) not in (int, float) or not value >= least:
            raise ValueError(f"{name} is {value!r}; the least that works is {least}")
    if isinstance(port, str) and port.isdecimal():  # from an environment variable or an INI file
        port = int(port)
    if port is not None and (type(port) is not int or not 0 <= port < 1 << 16):
        raise ValueError(f"port is {port!r}; it must be a number below 65536, or None for a Unix socket")
    for name in ("host", "app", "token"):
        if not isinstance(settings[name], str):
            raise ValueError(f"{name} is {settings[name]!r}; it must be text")  # noqa: TRY004 - the one promise
    if labels is not None and not isinstance(labels, Mapping):
        raise ValueError(f"labels is {labels!r}; it must be a mapping of names to values")
    settings["port"] = port
    settings["labels"] = {str(name): str(value) for name, value in (labels or {}).items()}
    if settings["spool_dir"] is not None:
        # Absolute: the process may change its directory, and its children too.
        settings["spool_dir"] = os.path.abspath(settings["spool_dir"])  # noqa: PTH100 - no pathlib here
    if settings["redact"] is not None:
        from aiolog.redaction import compiled  # noqa: PLC0415 - only who redacts pays for it

        if isinstance(settings["redact"], Iterator):  # it gives its patterns once, and each process asks
            settings["redact"] = tuple(settings["redact"])
        compiled(settings["redact"])
    return settings


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
    ``redact``: what is taken out of messages, tracebacks, stacks and extras before they are kept anywhere: a function
    from text to text, ``"default"`` (headers, passwords, keys: :mod:`aiolog.redaction`), or a list of patterns.

    A record that reaches two handlers for one server, or one handler by two loggers, is sent once.

    Raises ``ValueError`` for a setting that cannot be; never because a server is down.
    """

    app: str
    labels: dict[str, str]
    token: str
    buffer_bytes: int
    when_full: str
    block_timeout_seconds: float
    flush_timeout_seconds: float
    heartbeat_seconds: float
    connect_timeout_seconds: float
    spool_dir: str | None
    spool_max_bytes: int
    redact: Any
    _life: _Life  # at first _UNBORN

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
        redact: Callable[[str], str] | Iterable[Any] | None = None,
    ) -> None:
        settings = _checked(
            host=host,
            port=port,
            app=app,
            labels=labels,
            token=token,
            buffer_bytes=buffer_bytes,
            when_full=when_full,
            block_timeout_seconds=block_timeout_seconds,
            flush_timeout_seconds=flush_timeout_seconds,
            heartbeat_seconds=heartbeat_seconds,
            connect_timeout_seconds=connect_timeout_seconds,
            spool_dir=spool_dir,
            spool_max_bytes=spool_max_bytes,
            redact=redact,
        )
        super().__init__(settings["host"], settings["port"])
        self.__dict__.update(settings)
        self.retryStart = 0.05
        self.retryMax = 0.5  # a restarted server has its clients back within half a second; a refused try costs 50 µs
        self._begin()
        self._rehearse()

    def settings(self) -> dict[str, Any]:
        """Return what the constructor takes, as it stands now."""
        return {name: self.__dict__[name] for name in SETTINGS}

    def reconfigure(self, **settings: Any) -> None:
        """Go on with other settings, and once more after ``close()``; those that are not named stay.

        What is held already is sent on meanwhile, under its old session, to the server that is named now. Raises
        ``TypeError`` and ``ValueError`` as the constructor does, and then nothing has changed.
        """
        before = self.settings()
        checked = _checked(**{**before, **settings})
        if checked != before:
            self.__dict__.update(checked)
            self.address = self.host if self.port is None else (self.host, self.port)
            self._prepare()
            # Whoever is about to put a record may still do so by the life that ends here: its sender goes on, and its
            # encoder is everybody's.
            self._generation += 1
            self._life = _UNBORN
            for encoder, sender in list(self._lives.values()):
                encoder.redact_by(*self._redaction())
                sender.authorize(self.token)
                sender.stop(0)
        elif (last := self._sender) is not None and last.stopping:
            with contextlib.suppress(RuntimeError):  # no more threads: each record is flushed as it comes
                last.resume()
        logging._addHandlerRef(self)  # type: ignore[attr-defined]  # noqa: SLF001 - dictConfig() has forgotten it

    def _begin(self) -> None:
        """Set what belongs to one process, and not to the settings."""
        # By pid and generation: setdefault lets one thread win, without a lock.
        self._lives: dict[tuple[int, int], tuple[Encoder, Sender]] = {}
        self._generation = 0  # counts the settings that there have been
        self._life = _UNBORN
        self._late_seconds = LATE_FLUSH_SECONDS
        # Whether a subclass has its own idea of one of the steps between handle() and the backlog. The instance's own,
        # as CPython 3.11 finds a class's attribute last, and each log call asks.
        self._is_special = any(getattr(type(self), name) is not getattr(AiologHandler, name) for name in _STEPS)
        self._prepare()
        _handlers.add(self)

    def _prepare(self) -> None:
        """Do ahead what depends on the settings; import now, as that amid a fork leaves the child half a module."""
        self._mark = f"{MARK}{self.address}"  # the attribute of a record that went there
        if self.redact is not None:
            import aiolog.redaction  # noqa: PLC0415 - only who redacts pays for it
        if self.spool_dir is not None:
            import aiolog.recovery  # noqa: F401, PLC0415 - only who has a spool pays for it

    @property
    def _sender(self) -> Sender | None:
        return self._life[3]

    # -- the way of a record

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter and emit, without the handler's lock: nothing here needs it, and a flush may hold it long."""
        # This is what a log call costs, so all that an everyday record needs stands here in line: whatever is not
        # everyday, and whatever goes wrong before the record is in the backlog, takes the long way.
        try:
            pid, encoder, backlog, sender = self._life
            if record.process != pid or self.filters or self._is_special:
                return self._handle_fully(record)
            fields = _context()
            if fields is not None or "opentelemetry.trace" in _modules:
                fields = context.with_trace(fields)
            packed = pack_everyday(encoder.encode(record, fields))
            # The dictionary last: see Encoder.encode().
            attributes, mark = record.__dict__, self._mark
            was_put = mark not in attributes and len(packed) <= MAX_RECORD_BYTES and backlog.offer(packed)
        except Exception:  # noqa: BLE001 - the long way tells what it was
            was_put = False
        if not was_put:  # and not in the clause above: sys.exc_info() is to be the application's own
            return self._handle_fully(record)
        attributes[mark] = id(record)
        if sender.asleep:
            sender.wake()
        if sender.stopping or _exiting:
            self._send_late(sender)
        return True

    def _handle_fully(self, record: logging.LogRecord) -> bool:
        with contextlib.suppress(Exception):  # no dictionary: no attributes, and no duplicates to be known
            if record.__dict__.get(self._mark) == id(record):
                return True  # it has come by another logger, or by another handler for this server
        passed: Any = self.filter(record)  # from 3.12 a filter may return another record
        if passed:
            self.emit(record if passed is True else passed)
            with contextlib.suppress(Exception):
                record.__dict__[self._mark] = id(record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Encode the record and put it into the backlog. Raises nothing."""
        try:
            if self._is_special:
                self.send(self.makePickle(record))
            else:
                life = self._living(record)
                self._put(life, _packed(life, record))
        except RecursionError:  # as StreamHandler does (bpo-36272)
            raise
        except Exception:  # noqa: BLE001 - the contract of every handler
            self.handleError(record)

    def makePickle(self, record: logging.LogRecord) -> bytes:  # noqa: N802
        """Return the record as it goes into a batch: msgpack, where the standard handler pickles."""
        return _packed(self._living(record), record)

    def send(self, s: Any) -> None:
        """Put one packed record into the backlog; the sender's thread does the rest."""
        self._put(self._meet(), s)  # makePickle came first, with the same encoder

    def _living(self, record: logging.LogRecord) -> _Life:
        """Return this process's life, and begin it if need be."""
        life = self._life
        try:
            is_ours = bool(record.process == life[0])
        except Exception:  # noqa: BLE001 - a foreign object, or none
            is_ours = False
        return life if is_ours else self._meet()

    def _put(self, life: _Life, packed: bytes) -> None:
        sender = life[3]
        sender.put(packed)
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

    def _meet(self) -> _Life:
        """Return this process's life under the settings of now; its first record makes it, and starts the sender."""
        pid = os.getpid()
        life = self._life
        if pid == life[0]:
            return life  # the record was made in another process, or without its pid
        if life[0]:
            self.forget()  # a fork that ran no hook
        generation = self._generation
        encoder = next((one for one, _ in list(self._lives.values())), None)
        if encoder is None:
            encoder = self._new_encoder(pid)
            encoder.redact_by(*self._redaction())
        fresh = self._new_life(encoder, socket.gethostname())
        won = self._lives.setdefault((pid, generation), fresh)
        encoder, sender = won
        life = pid, encoder, sender.backlog, sender
        self._life = life
        if won is fresh:
            _cover_exit(pid)
            try:
                sender.start()
            except RuntimeError:
                sender.stop(0)  # each record will be flushed as it comes
            else:
                self._recover()
        if generation != self._generation:  # other settings have come meanwhile
            if self._life is life:
                self._life = _UNBORN
            sender.stop(0)
        return life

    def _new_life(self, encoder: Encoder, host: str) -> tuple[Encoder, Sender]:
        hello = Hello(
            version=VERSION,
            session=os.urandom(SESSION_BYTES),
            pid=encoder.pid,
            process_name=encoder.process_name,
            host=host,
            app=self.app,
            labels={**process_labels(os.environ, os.getppid()), **self.labels},
            start_time=encoder.start_time,
            token=self.token,
            acked=0,
        )
        return encoder, Sender(self, self._new_backlog(hello, encoder), hello, encoder.definitions)

    def _rehearse(self) -> None:
        """Take a record as far as it goes without the backlog, and forget all of it.

        What a process does for the first time finds its pages and its caches cold: a first log call took 1.2 ms in a
        fresh fork, and takes 0.7 where this has been done. The life itself cannot be made ahead: what it is made of,
        settings, labels, the process's name, may change until there is a record.
        """
        with contextlib.suppress(Exception):  # the first record will tell
            encoder = self._new_encoder(os.getpid())
            self._new_life(encoder, host="")
            record = logging.LogRecord(__name__, logging.INFO, __file__, 0, "%s", ("rehearsal",), None)
            for _ in ("its definitions are new", "they are known"):
                pack_record(encoder.encode(record))

    def _new_encoder(self, pid: int) -> Encoder:
        return Encoder(
            pid=pid,
            process_name=logging.LogRecord("", 0, "", 0, "", None, None).processName,  # as in all of this process
            start_time=logging._startTime,  # type: ignore[attr-defined]  # noqa: SLF001 - relativeCreated's zero
            format_exception=self._format_exception,
        )

    def _redaction(self) -> tuple[Callable[[str], str] | None, Callable[[str], bool] | None]:
        if self.redact is None:
            return None, None
        from aiolog.redaction import compiled  # noqa: PLC0415 - loaded when this handler was made

        return compiled(self.redact) or (None, None)

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
        self.flushed(timeout)

    def flushed(self, timeout: float | None = None) -> bool:
        """Do as :meth:`flush` does; whether everything was acked, or dropped and told."""
        seconds = self.flush_timeout_seconds if timeout is None else timeout
        until = monotonic() + seconds
        settled = True
        for sender in self._senders():
            settled &= sender.flush(seconds, insist=timeout is not None)
            seconds = max(0.0, until - monotonic())
        return settled

    def _senders(self) -> list[Sender]:
        """Return all of this process: one, and those of settings that it had before."""
        return [sender for _, sender in list(self._lives.values())]

    def close(self) -> None:
        """Flush, end the session and the thread. A record that comes later is delivered all the same."""
        for sender in self._senders():
            if sender.stop(self.flush_timeout_seconds):
                continue
            what = f"{sender.backlog.records} records of process {os.getpid()} could not be delivered yet; "
            if sender.backlog.is_durable:
                sender.say(f"{what}they are kept in {self.spool_dir}, for `aiolog recover` or the next process")
            else:
                sender.say(f"{what}they are lost if it ends before the server is back")
        logging.Handler.close(self)

    def forget(self) -> None:
        """Forget the parent's session in a forked child: the parent sends its own records itself."""
        senders = self._senders()
        self._begin()
        for sender in senders:
            sender.abandon()

    def stats(self) -> dict[str, Any]:
        """Return the counts of this process, in records but for ``buffered_bytes``.

        ``accepted`` = ``acked`` + all of ``dropped`` + ``buffered``. ``sent`` counts each record once, however
        often a connection had to be made anew.
        """
        senders = self._senders()
        backlogs = [sender.backlog for sender in senders] or [Backlog(self.buffer_bytes)]
        # Each is read once, and accepted last: other threads go on counting, and a difference must not be negative.
        acked = sum(backlog.acked for backlog in backlogs)
        dropped = dict(backlogs[0].dropped)
        for backlog in backlogs[1:]:
            dropped = {reason: count + backlog.dropped[reason] for reason, count in dropped.items()}
        accepted = sum(backlog.accepted for backlog in backlogs)
        return {
            "accepted": accepted,
            "sent": sum(backlog.sent for backlog in backlogs),
            "acked": acked,
            "dropped": dropped,
            "buffered": accepted - acked - sum(dropped.values()),
            "buffered_bytes": sum(backlog.size_bytes for backlog in backlogs),
            "connected": any(sender.connected for sender in senders),
            "reconnects": sum(max(0, sender.reconnects) for sender in senders),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone: an unpickled handler begins its own session (spawn, forkserver)."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_ONE_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.createLock()
        logging._addHandlerRef(self)  # type: ignore[attr-defined]  # noqa: SLF001 - as Handler.__init__ does
        self._begin()

    # -- what SocketHandler has and the sender does here

    @property
    def sock(self) -> socket.socket | None:
        """The connected socket, or None. It is the sender's; do not touch it."""
        sender = self.__dict__.get("_life", _UNBORN)[3]
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
        host, port = self.address
        family = _family(host)
        if family is not None:  # nothing to look up; gevent would do even that in threads, and has none at an exit
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout)
                sock.connect((host, port))
            except BaseException:
                sock.close()
                raise
            return sock
        # A host as bytes: getaddrinfo() takes str through the idna codec, which it imports here and now, and a fork
        # amid an import in another thread leaves the child with half a module for ever.
        return socket.create_connection((host.encode("ascii"), port), timeout)  # type: ignore[arg-type]

    def createSocket(self) -> None:  # noqa: N802
        """Do nothing: the sender connects, in its own thread and time."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Report a record that raised, as ``logging.Handler`` does; the connection has no part in it."""
        logging.Handler.handleError(self, record)


def _family(host: str) -> socket.AddressFamily | None:
    """Return the family of an address in digits, or None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return family
    return None


def _cover_exit(pid: int) -> None:
    """Arrange for a last flush at each kind of exit that this process may have; once per process.

    ``logging.shutdown`` does it in the main process, but not for a handler that somebody took off its logger, and
    not in a child of ``multiprocessing``, which leaves by ``os._exit``: its own finalizers run then, if they were
    registered in the child. Celery's children run neither, and uvicorn ends itself by the signal that it got.
    """
    global _covered_pid, _exiting  # noqa: PLW0603 - the state of the process
    if _covered_pid == pid:
        return
    _covered_pid = pid
    main = threading.main_thread()
    if main is threading.current_thread() and not main.is_alive():
        _exiting = True  # an exit hook logs, and of ours the first would come too late
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
        for sender in handler._senders():  # noqa: SLF001
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


def flush(timeout: float | None = None) -> bool:
    """Wait until the server has acked what every handler of this process holds; whether it has.

    At most ``timeout`` seconds in all; without one, each handler takes its ``flush_timeout_seconds``. What was dropped
    and told counts as settled.
    """
    until = None if timeout is None else monotonic() + timeout
    settled = True
    for handler in list(_handlers):
        settled &= handler.flushed(None if until is None else max(0.0, until - monotonic()))
    return settled


def _packed(life: _Life, record: logging.LogRecord) -> bytes:
    """Return the bytes of a record, made small if it does not fit a frame otherwise."""
    encoder = life[1]
    fields = _context()
    if fields is not None or context.is_traced():
        fields = context.with_trace(fields)
    try:
        packed = pack_record(encoder.encode(record, fields))
        if len(packed) <= MAX_RECORD_BYTES:
            return packed
    except (ValueError, OverflowError, TypeError):  # plain, and yet msgpack will not have it
        pass
    return pack_record(encoder.encode_small(record, fields))


def _forget_at_fork() -> None:
    """Begin anew in a forked child; a hook that ran before this one may have logged, and begun already."""
    global _exiting  # noqa: PLW0603
    _exiting = False
    pid = os.getpid()
    for handler in list(_handlers):
        if handler._life[0] != pid:  # noqa: SLF001
            handler.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_at_fork)
