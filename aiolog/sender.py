"""The thread between a backlog and a server: connect, send, read acks, back off.

Knows sockets, the protocol and the backlog; knows nothing of ``LogRecord``, and never calls into ``logging``:
``logging.config.dictConfig`` holds that module's lock while it closes handlers and waits for this thread.

What application threads touch here stands under "any thread". It takes no lock: waiting is polling with short sleeps,
because a lock could be held by the very thread that a signal handler interrupts, or by a thread that does not exist
after a fork.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from time import monotonic, time
from typing import Any, Protocol

from aiolog import crash
from aiolog.backlog import Backlog
from aiolog.errors import ProtocolError
from aiolog.protocol import (
    ACK_BATCHES,
    ACK_HOLD_SECONDS,
    BEAT_SECONDS,
    FROM_SERVER,
    MAX_ANSWER_BYTES,
    SESSION_BYTES,
    Ack,
    Busy,
    Bye,
    Decoder,
    Hello,
    Refusal,
    Refuse,
    Welcome,
    define_frames,
    encode,
)

POLL_SECONDS = 0.001  # between two looks of a caller that waits: far below what block_timeout_seconds may be
IDLE_POLL_SECONDS = 0.05  # the same for a flush that has waited long already
RECEIVE_BYTES = 16 << 10  # an ack is 16 bytes
HANDSHAKE_TIMEOUT_SECONDS = 5.0  # from HELLO to WELCOME; a stopped server accepts connections and never answers
COMPLAIN_SECONDS = 30.0  # at most one line on stderr in so long, for all handlers of a process to one server
COMPLAIN_AFTER_SECONDS = 1.0  # a server that restarts is not worth a line
REFUSED_PAUSE_SECONDS = 10.0  # after a refusal that trying again soon will not change
LASTING_REFUSALS = (Refusal.VERSION, Refusal.TOKEN)
PATH_FAULTS = 5  # a path that changes bytes breaks the protocol a few times; a client that is wrong always does
FAREWELL_SECONDS = 0.5  # for the server to read BYE and close
BUSY_SECONDS = 4 * BEAT_SECONDS  # between two frames of a process that need not wake the thread for the next one
COALESCE_BYTES = 64 << 10  # so much waits for no beat
LULL_SECONDS = 0.2  # after a frame the thread is deaf for so long, or twice; a server waits 1 s for its clients to part
LONG_SECONDS = 3_600.0  # a selector takes at most 24 days, and a heartbeat may be meant to never come
ASK_SECONDS = 0.004  # a server that does not hold its ack is faster
UNDER_WAY_BATCHES = 2 * ACK_BATCHES  # a server that is slower than the beat gets larger batches, not more
LATE_LINGER_SECONDS = 1.0  # a handler that is used after close() need not connect anew for every record


_complaints: dict[str, float] = {}  # when somebody last complained, by server


class Endpoint(Protocol):
    """What a sender needs of its handler; the names are those of ``logging.handlers.SocketHandler``."""

    address: Any
    retryStart: float  # noqa: N815
    retryMax: float  # noqa: N815
    retryFactor: float  # noqa: N815
    retryTime: float | None  # noqa: N815
    when_full: str
    block_timeout_seconds: float
    heartbeat_seconds: float
    connect_timeout_seconds: float

    def makeSocket(self, timeout: float = 1) -> socket.socket:  # noqa: N802
        """Return a connected socket. Raises OSError."""


class _RefusedError(Exception):
    """The server sent REFUSE."""

    def __init__(self, refuse: Refuse) -> None:
        super().__init__(refuse.text)
        self.code = refuse.code


def backoff(start: float, factor: float, maximum: float) -> Iterator[float]:
    """Yield pauses in seconds: full jitter under an exponential cap.

    Full jitter keeps a thousand workers from coming back in step (M. Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015).
    """
    cap = start
    jitter = random.Random()  # noqa: S311 - no secret, and not the application's own sequence either
    while True:
        yield jitter.uniform(0, min(cap, maximum))
        cap = min(cap * factor, maximum)


def sleep(seconds: float) -> None:
    """Sleep by what ``time.sleep`` is now: gevent's workers replace it after this module was loaded.

    With the one of before a greenlet that waits would keep the sender, a greenlet too, from its work.
    """
    sys.modules["time"].sleep(seconds)


def _left(deadline: float | None, seconds: float) -> float:
    """Return ``seconds``, or what is left until ``deadline`` if that is less; never 0, which means non-blocking."""
    return seconds if deadline is None else max(POLL_SECONDS, min(seconds, deadline - monotonic()))


def _is_not_ready(error: OSError) -> bool:
    """Whether a socket merely has to be waited for.

    A TLS socket, which only a ``makeSocket()`` of somebody else's returns, has errors of its own for that.
    """
    ssl = sys.modules.get("ssl")
    return isinstance(error, BlockingIOError) or (
        ssl is not None and isinstance(error, (ssl.SSLWantReadError, ssl.SSLWantWriteError))
    )


class Sender:
    """One session: a backlog, the connection that empties it, and the daemon thread that drives both.

    ``definitions`` is the encoder's growing list; it is sent anew on every connection.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        backlog: Backlog,
        hello: Hello,
        definitions: Sequence[Any],
    ) -> None:
        self.backlog = backlog
        self.connected = False
        self.reconnects = -1  # the first connection is none
        self.sock: socket.socket | None = None
        self.stopping = False  # stop() was called, and start() not again
        self._endpoint = endpoint
        self._hello = hello
        self._definitions = definitions
        self._thread: threading.Thread | None = None
        self._serving: threading.Thread | None = None  # the last of them that came to serve
        self._beat: Any = None  # a lock that protects nothing: the thread waits on it for its time, and for records
        self._selector: selectors.BaseSelector | None = None  # where it waits for the server
        self._wakers: tuple[socket.socket, socket.socket] | None = None  # and who ends that
        self._is_at_socket = False  # which of the two it waits at
        self._running = threading.Lock()  # held by whoever runs the session: the thread, or a flush without one
        self.asleep = False
        self._hurried = False  # somebody waits for an ack: no beat, and the server is asked for it
        self._stalled = False  # acks have not come for block_timeout_seconds: callers no longer wait
        self._progress_at = monotonic()  # when an ack last came, or the backlog last ceased to be empty
        self._linger_seconds = 0.0  # how long a stopped sender waits for another late record
        self._gave_up_at = 0.0  # the _progress_at at which a flush gave up
        self._refusals = 0  # since acks last advanced
        self._refused_at = 0.0  # the _progress_at of the last refusal
        self._idle = True
        self._says_check = True  # whether the next HELLO has one
        self._hears_check = False  # whether a server has ever answered in kind
        self._lost_at: float | None = None  # since when there has been no connection
        self._complained_at: float | None = None

    # -- any thread

    def put(self, packed: bytes) -> None:
        """Take one packed record; under ``block``, wait for room while acks advance."""
        backlog = self.backlog
        if not backlog.offer(packed):
            if self._make_room():
                backlog.put(packed)
            else:
                backlog.refuse()
        if self.asleep:
            self.wake()

    def _make_room(self) -> bool:
        """Make room by the endpoint's policy; False when it is the new record that must go."""
        backlog, policy = self.backlog, self._endpoint.when_full
        if policy == "drop_newest":
            return False
        reason = "drop_oldest"
        if policy == "block":
            reason = "block_timeout"
            self._wait_for_room()
        while backlog.is_over:
            if not backlog.drop_oldest(reason):
                return False  # all that is left is in the window, and may be written already
        return True

    def _wait_for_room(self) -> None:
        """Sleep while the backlog is full and acks advance; return at once when they have ceased to."""
        if self._thread is None or self._is_current():
            return  # nobody else could make room
        began = monotonic()
        self._hurry()
        while self.backlog.is_over and not self._stalled:
            # Since we ask, no ack is held; but one that is long overdue was not held before either.
            held_until = min(began, self._progress_at + ACK_HOLD_SECONDS)
            since = began if self._idle else max(self._progress_at, held_until)
            if monotonic() - since > self._endpoint.block_timeout_seconds:
                self._stalled = True
                return
            if self.asleep:
                self.wake()
            sleep(POLL_SECONDS)

    def start(self) -> None:
        """Start a thread; one that still runs ends, and leaves its work to the new one.

        Raises RuntimeError when the interpreter is too near its end for threads.
        """
        before = self._thread
        self._thread = thread = threading.Thread(target=lambda: self._run(thread), name="aiolog-sender", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._thread = before
            raise

    def revive(self) -> None:
        """See that somebody delivers a record which came after :meth:`stop`; the thread ends when no more come.

        Raises RuntimeError as :meth:`start` does.
        """
        self._linger_seconds = LATE_LINGER_SECONDS
        if self._running.acquire(blocking=False):  # else somebody serves, and looks once more when it has ended
            self._running.release()
            self.start()

    def resume(self) -> None:
        """Take up a session that :meth:`stop` was to end. Raises RuntimeError as :meth:`start` does."""
        self.stopping = False
        self.revive()

    def authorize(self, token: str) -> None:
        """Use another token from the next connection on."""
        self._hello = self._hello._replace(token=token)

    def flush(self, timeout: float, *, insist: bool = True) -> bool:
        """Wait until all that was put before is settled, at most ``timeout`` seconds; whether it is.

        Where no thread runs, sends in the caller's own. Who does not ``insist`` waits no second time for a server
        that a stopped sender has already waited for: several hooks flush at one exit. Nor does it wait for a server
        that cannot be reached when all is in files: somebody will send it.
        """
        deadline = monotonic() + timeout
        if self._is_current():
            return False
        pause = POLL_SECONDS
        mark = self.backlog.mark()
        self._hurry()
        while not self.backlog.is_settled(mark):
            now = monotonic()
            if not insist and self.stopping and self._gave_up_at == self._progress_at:
                return False
            if not insist and self.backlog.is_durable and self._lost_at is not None:
                return False
            if now > deadline:
                if timeout > 0:
                    self._gave_up_at = self._progress_at
                return False
            if (self._thread is None or not self._thread.is_alive()) and self._running.acquire(blocking=False):
                self._serve(deadline)
                continue
            if self.asleep:
                self.wake()
            sleep(pause)
            pause = min(pause * 1.1, IDLE_POLL_SECONDS)
        return True

    def stop(self, timeout: float) -> bool:
        """Let the thread say BYE and end once nothing is owed; wait for that, at most ``timeout`` seconds.

        Whether all that was put before is settled.
        A thread that still owes something then goes on by itself: the process may live, and the server come back.
        """
        thread = self._thread
        deadline = monotonic() + timeout
        settled = self.flush(timeout, insist=False)
        self.stopping = True
        self._linger_seconds = 0.0
        self._hurry()
        if thread is not None and not self._is_current() and settled:
            # Other threads may go on logging here, while dictConfig closes this handler, say: that keeps the thread.
            while thread.is_alive() and not self._linger_seconds and monotonic() < deadline:
                thread.join(POLL_SECONDS)
        return settled

    def abandon(self) -> None:
        """Close what a forked child inherited, and nothing else: the parent goes on using the connection."""
        self._thread = None  # a greenlet lives on in a child, where a thread does not, and must not send for its parent
        for inherited in (self.sock, self._selector, *(self._wakers or ())):
            if inherited is not None:
                with contextlib.suppress(OSError):
                    inherited.close()  # close() alone: shutdown() would end the parent's connection
        self.backlog.abandon()

    def _hurry(self) -> None:
        self._hurried = True
        self.wake()
        self._ring()  # wherever it waits by now

    def wake(self) -> None:
        """Have the thread look for records, where it is :attr:`asleep`."""
        self.asleep = False
        if self._is_at_socket:
            self._ring()
            return
        # Not by the socket: who sends a byte lets go of the GIL, and gets it back behind the thread that it has woken.
        beat = self._beat
        if beat is not None:
            with contextlib.suppress(RuntimeError):  # it is awake already
                beat.release()

    def _ring(self) -> None:
        wakers = self._wakers
        if wakers is not None:
            with contextlib.suppress(OSError):  # full: it is awake already; closed: it has ended
                wakers[1].send(b"\0")

    # -- the thread

    def _run(self, thread: threading.Thread) -> None:
        # Told who it is: current_thread() is another once gevent has replaced the threads of a running process.
        self._running.acquire()
        self._serving = thread
        self._serve(deadline=None)
        # What was put after the last look, by somebody who saw this thread still serving, is served by it.
        while not self.backlog.is_empty and self._thread is thread and self._running.acquire(blocking=False):
            self._serving = thread
            self._serve(deadline=None)
        # And known by it, or its end is a KeyError on stderr (CPython's Thread._delete).
        threading._active.setdefault(threading.get_ident(), thread)  # type: ignore[attr-defined]  # noqa: SLF001

    def _is_current(self) -> bool:
        return self._thread is threading.current_thread()

    def _serve(self, deadline: float | None) -> None:
        """Deliver what the backlog holds: until stopped, or in a flush without a thread until ``deadline``.

        Releases ``_running``, which the caller holds.
        """
        pauses = self._pauses()
        if deadline is None:
            self._owe()
        else:
            self._hurried = True
        try:
            while not self._is_done(deadline):
                try:
                    self._work(deadline)
                except OSError as error:  # not even a descriptor for what a thread sleeps on
                    self._complain(f"{self._where()} cannot be reached ({error})", COMPLAIN_AFTER_SECONDS)
                    sleep(_left(deadline, next(pauses)))
        finally:
            self._running.release()

    def _work(self, deadline: float | None) -> None:
        """Connect again and again until the run is done. Raises OSError when there is no descriptor for a selector."""
        pauses = self._pauses()
        beat = threading.Lock()
        beat.acquire()
        self._beat = beat
        # Whoever logs first has started this thread, and has still to encode the record: let it be done before.
        while self.backlog.is_empty and not self._is_done(deadline):
            self._sleep(seconds=None)
        wakers = socket.socketpair()
        try:
            for waker in wakers:
                waker.settimeout(0)
            self._wakers = wakers
            with selectors.DefaultSelector() as selector:
                self._selector = selector
                selector.register(self._wakers[0], selectors.EVENT_READ)
                while not self._is_done(deadline):
                    if self.backlog.is_empty:
                        self._sleep(seconds=None)
                        continue
                    try:
                        self._converse(selector, deadline)
                    except _RefusedError as refusal:
                        self._refusals = self._refusals + 1 if self._refused_at == self._progress_at else 1
                        self._refused_at = self._progress_at
                        lasting = refusal.code in LASTING_REFUSALS or (
                            refusal.code == Refusal.PROTOCOL and self._refusals > PATH_FAULTS
                        )
                        self._complain(
                            f"{self._where()} refuses this process: {refusal}", 0 if lasting else COMPLAIN_AFTER_SECONDS
                        )
                        self._pause(REFUSED_PAUSE_SECONDS if lasting else next(pauses), deadline)
                    except Exception as error:  # noqa: BLE001 - OSError, ProtocolError, or what a makeSocket() raises
                        if self._lost_at is None:  # it had been connected
                            self._lost_at, pauses = monotonic(), self._pauses()
                        self._complain(
                            f"no server at {self._where()} ({error})",
                            COMPLAIN_AFTER_SECONDS,
                            ". Start `aiolog serve`, or mend host and port",
                        )
                        self._pause(next(pauses), deadline)
        finally:
            self._wakers = self._selector = None
            for waker in wakers:
                waker.close()

    def _is_done(self, deadline: float | None) -> bool:
        """Whether this run may end: nothing is owed and nothing more will be, or its time is over."""
        if deadline is None and self._serving is not self._thread:
            return True  # another has been started
        if self.backlog.is_empty:
            rested = monotonic() - self._progress_at >= self._linger_seconds
            return deadline is not None or (self.stopping and rested)
        return deadline is not None and monotonic() > deadline

    def _owe(self) -> None:
        """Start the clock by which callers see whether acks advance."""
        self._progress_at = monotonic()
        self._idle = False

    def _pauses(self) -> Iterator[float]:
        endpoint = self._endpoint
        return backoff(endpoint.retryStart, endpoint.retryFactor, endpoint.retryMax)

    def _pause(self, seconds: float, deadline: float | None) -> None:
        self.backlog.prepare()
        seconds = _left(deadline, seconds)
        self._endpoint.retryTime = time() + seconds
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            self._beat.acquire(timeout=left)

    def _sleep(self, seconds: float | None, selector: selectors.BaseSelector | None = None) -> None:
        """Wait for a record, or with ``selector`` for what comes first, a record or the server."""
        if self.stopping and self.backlog.is_empty:
            seconds = min(self._linger_seconds, seconds or self._linger_seconds)
        self._idle = self.backlog.is_empty
        self._is_at_socket = selector is not None
        self.asleep = True
        # A record put before the flag was up woke nobody; one put after it will. So look once more.
        if self.backlog.has_unsent:
            seconds = 0
        if selector is not None:
            self._wait(selector, seconds)
        else:
            self._beat.acquire(timeout=-1 if seconds is None else seconds)
        self.asleep = self._is_at_socket = False
        if self._idle and not self.backlog.is_empty:
            self._owe()

    def _wait(self, selector: selectors.BaseSelector, seconds: float | None) -> None:
        """Wait for the server, or for somebody in a hurry."""
        for key, _ in selector.select(seconds):
            if self._wakers is not None and key.fileobj is self._wakers[0]:
                with contextlib.suppress(BlockingIOError):
                    self._wakers[0].recv(RECEIVE_BYTES)

    def _converse(self, selector: selectors.BaseSelector, deadline: float | None) -> None:
        """Live through one connection; returns when nothing is owed and the run is done.

        Raises OSError when the connection ends, ProtocolError when the server breaks the protocol.
        """
        sock = self._endpoint.makeSocket(_left(deadline, self._endpoint.connect_timeout_seconds))
        self.sock = sock
        try:
            decoder = Decoder(FROM_SERVER, MAX_ANSWER_BYTES)
            try:
                welcome = self._shake_hands(sock, decoder, deadline)
            except Exception:  # perhaps it takes no HELLO that has a check; one that did once is asked no other way
                self._says_check = self._hears_check or not self._says_check
                raise
            self._says_check = True
            self._hears_check |= decoder.is_checked
            try:
                self._progress(self.backlog.rewind(welcome.last_seq, checked=decoder.is_checked))
            except ProtocolError:  # it would be so for ever: the server knows this session from elsewhere
                self.say(
                    f"{self._where()} has records of this session that were never sent; what is not acked goes on "
                    "under a new session"
                )
                self._begin_session()
                raise
            self._connected()
            sock.settimeout(0)
            with contextlib.suppress(OSError):  # a Unix socket has no such option
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ)
            try:
                self._deliver(_Connection(sock, decoder, welcome.window_bytes), selector, deadline)
            finally:
                selector.unregister(sock)
            if self.backlog.is_empty and (self.stopping or deadline is not None):
                self._say_bye(sock, decoder, deadline)
        finally:
            self.connected = False
            self.sock = None
            sock.close()

    def _shake_hands(self, sock: socket.socket, decoder: Decoder, deadline: float | None) -> Welcome:
        timeout = _left(deadline, HANDSHAKE_TIMEOUT_SECONDS)
        until = monotonic() + timeout
        sock.settimeout(timeout)
        sock.sendall(encode(self._hello._replace(acked=self.backlog.acked_seq), checked=self._says_check))
        while (message := decoder.next()) is None or isinstance(message, Busy):
            if message is not None:  # our last connection still has a batch under way
                until = monotonic() + _left(deadline, HANDSHAKE_TIMEOUT_SECONDS)
            sock.settimeout(max(POLL_SECONDS, until - monotonic()))
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("the connection was closed before WELCOME")
            decoder.feed(data)
        if isinstance(message, Refuse):
            raise _RefusedError(message)
        if not isinstance(message, Welcome):
            raise ProtocolError(f"{type(message).__name__.upper()} came where WELCOME belongs")
        return message

    def _deliver(self, link: _Connection, selector: selectors.BaseSelector, deadline: float | None) -> None:
        """Send what is owed and read acks, until the run is done."""
        wanted = selectors.EVENT_READ
        heartbeat_seconds = self._endpoint.heartbeat_seconds
        backlog = self.backlog
        while not self._is_done(deadline):
            blocked = self._send(link)
            now = monotonic()
            silent_seconds = 0.0 if link.waits_since is None else now - link.waits_since
            if silent_seconds > 2 * heartbeat_seconds:
                raise TimeoutError(f"no sign of life for {silent_seconds:.1f} s")
            asks_in = self._asks_in(link, now)
            if asks_in <= 0 and not link.outgoing:
                self._hurry_no_more(link)
                link.asked_at = now
                link.awaits, link.awaited_seq = True, backlog.next_seq - 1
                link.outgoing = memoryview(backlog.heartbeat())
                continue
            needed = selectors.EVENT_READ | (selectors.EVENT_WRITE if blocked else 0)
            if needed != wanted:
                selector.modify(link.sock, needed)
                wanted = needed
            # A full socket takes no heartbeat: there only the server's silence can end.
            due = 2 * heartbeat_seconds - silent_seconds if blocked else asks_in
            seconds = _left(deadline, min(max(0.0, due), LONG_SECONDS))
            # The beat or an ack wakes this thread, so those who put records need not: no system call for them.
            if blocked or not backlog.reserve(link.window_bytes) or backlog.under_way >= UNDER_WAY_BATCHES:
                if self._idle:
                    self._owe()
                self._wait(selector, min(seconds, heartbeat_seconds))
            elif now < link.due and not self._hurried and (link.is_busy or backlog.has_unsent):
                if self._idle:
                    self._owe()
                # To the microsecond, which a selector does not: all processes of the machine send together.
                self._beat.acquire(timeout=min(seconds, link.due - now))
                if not self._looks(link):
                    continue
            elif self._hurried or link.awaits or deadline is not None or now - link.cut_at >= LULL_SECONDS:
                self._sleep(seconds, selector)
            else:  # another record will come soon
                self._sleep(min(seconds, LULL_SECONDS))
                if not self._looks(link):
                    continue
            self._receive(link)

    def _looks(self, link: _Connection) -> bool:
        """Whether it is time to see what the server says; nobody waits for it."""
        backlog = self.backlog
        return (
            link.awaits
            or backlog.under_way >= ACK_BATCHES
            or backlog.is_filling
            or monotonic() - link.looked_at >= LULL_SECONDS
        )

    def _send(self, link: _Connection) -> bool:
        """Send until the socket is full (True), or nothing is to be sent now (False)."""
        backlog = self.backlog
        while True:
            if not link.outgoing:
                if not backlog.has_unsent or (self._gathers(link) and backlog.unsent_bytes < COALESCE_BYTES):
                    return False
                frame = backlog.next_frame(link.window_bytes)
                if frame is None:
                    return False
                now = monotonic()
                link.is_busy, link.cut_at = now - link.cut_at < BUSY_SECONDS, now
                link.due = (now // BEAT_SECONDS + 1) * BEAT_SECONDS
                # Definitions first: whatever the frame's records refer to stands in the list by now.
                fresh = self._definitions[link.defined :]
                if fresh:
                    link.defined += len(fresh)
                    frame = b"".join((*define_frames(fresh, checked=link.decoder.is_checked), frame))
                link.outgoing = memoryview(frame)
            if link.waits_since is None:
                link.waits_since = monotonic()
            try:
                sent = link.sock.send(link.outgoing)
            except OSError as error:
                if not _is_not_ready(error):
                    raise
                return True
            link.outgoing = link.outgoing[sent:]
            link.sent_at = monotonic()
            if not link.outgoing:
                crash.point("batch_sent")

    def _asks_in(self, link: _Connection, now: float) -> float:
        """Return after how many seconds a heartbeat is to ask for an ack: few, when somebody waits for it."""
        heartbeat_seconds = self._endpoint.heartbeat_seconds
        asks_at = link.sent_at + heartbeat_seconds
        if link.waits_since is not None:
            asks_at = min(asks_at, max(link.waits_since, link.asked_at) + heartbeat_seconds)
        if self._hurried and not self.backlog.has_unsent:
            if not self.backlog.awaits_ack:
                self._hurry_no_more(link)
            else:
                if link.hurried_at is None:
                    link.hurried_at = now
                asks_at = min(asks_at, link.hurried_at + ASK_SECONDS)
        return asks_at - now

    def _hurry_no_more(self, link: _Connection) -> None:
        """End the hurry: all that was put before it is acked or asked for."""
        self._hurried, link.hurried_at = False, None
        if self.backlog.has_unsent:  # put meanwhile, perhaps by somebody who is in a hurry too
            self._hurried = True

    def _gathers(self, link: _Connection) -> bool:
        """Whether a few records may wait for more."""
        return not self._hurried and (monotonic() < link.due or self.backlog.under_way >= UNDER_WAY_BATCHES)

    def _receive(self, link: _Connection) -> None:
        """Read what there is. Raises OSError when the connection has ended."""
        link.looked_at = monotonic()
        try:
            data = link.sock.recv(RECEIVE_BYTES)
        except OSError as error:
            if not _is_not_ready(error):
                raise
            return
        if not data:
            raise ConnectionResetError("the server closed the connection")
        link.decoder.feed(data)
        advanced = heard = False
        try:
            while (message := link.decoder.next()) is not None:
                heard = True
                if isinstance(message, Ack):
                    crash.point("ack_received")
                    advanced |= self.backlog.ack(message.seq)
                    link.awaits = link.awaits and message.seq < link.awaited_seq
                elif isinstance(message, Refuse):
                    raise _RefusedError(message)
                elif not isinstance(message, Busy):
                    raise ProtocolError(f"{type(message).__name__.upper()} came in the middle of a connection")
        finally:  # what was acked is progress, whatever came behind it in the same read
            self._progress(advanced)
        if heard:  # bytes alone are no answer: a damaged length could swallow acks for ever
            link.waits_since = monotonic() if self.backlog.awaits_ack else None

    def _say_bye(self, sock: socket.socket, decoder: Decoder, deadline: float | None) -> None:
        """End the session; wait for the server to close, or an unread byte here would reset the BYE away."""
        with contextlib.suppress(OSError):
            timeout = _left(deadline, FAREWELL_SECONDS)
            until = monotonic() + timeout
            sock.settimeout(timeout)
            sock.sendall(encode(Bye(), checked=decoder.is_checked))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(RECEIVE_BYTES):
                sock.settimeout(max(POLL_SECONDS, until - monotonic()))
        self._begin_session()

    def _begin_session(self) -> None:
        """Let whatever is still to come begin a session of its own."""
        self._hello = self._hello._replace(session=os.urandom(SESSION_BYTES))
        self.backlog.renew(self._hello.session)

    def _progress(self, advanced: bool) -> None:
        if advanced:
            self._progress_at = monotonic()
            self._stalled = False

    def _connected(self) -> None:
        self.connected = True
        self.reconnects += 1
        self._endpoint.retryTime = None
        if self._complained_at is not None and self._lost_at is not None:
            dropped = sum(self.backlog.dropped.values())
            seconds = monotonic() - self._lost_at
            self.say(f"{self._where()} answers again after {seconds:.0f} s; {dropped} records were dropped so far")
        self._lost_at = self._complained_at = None

    def _complain(self, what: str, after_seconds: float, advice: str = "") -> None:
        """Say on stderr, seldom, that records pile up."""
        now = monotonic()
        if self._lost_at is None:
            self._lost_at = now
        where = self._where()
        if now - _complaints.get(where, -COMPLAIN_SECONDS) >= COMPLAIN_SECONDS and now - self._lost_at >= after_seconds:
            self._complained_at = _complaints[where] = now
            limit = self.backlog.limit_bytes / (1 << 20)
            self.say(f"{what}; records are kept, up to {limit:.3g} MiB{advice}")

    def _where(self) -> str:
        address = self._endpoint.address
        return address if isinstance(address, str) else f"{address[0]}:{address[1]}"

    @staticmethod
    def say(text: str) -> None:
        """Write one line to descriptor 2: ``sys.stderr`` may be a capture that closes long before this thread."""
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                os.write(2, f"aiolog: {text}\n".encode(errors="backslashreplace"))


class _Connection:
    """What one connection needs to remember."""

    __slots__ = (
        "asked_at",
        "awaited_seq",
        "awaits",
        "cut_at",
        "decoder",
        "defined",
        "due",
        "hurried_at",
        "is_busy",
        "looked_at",
        "outgoing",
        "sent_at",
        "sock",
        "waits_since",
        "window_bytes",
    )

    def __init__(self, sock: socket.socket, decoder: Decoder, window_bytes: int) -> None:
        self.sock = sock
        self.decoder = decoder
        self.window_bytes = window_bytes
        self.defined = 0  # how many definitions this connection has carried
        self.outgoing = memoryview(b"")  # what of the last frame is not sent yet
        self.sent_at = monotonic()
        self.asked_at = 0.0  # when an ack was last asked for, by a heartbeat
        self.awaits = True  # that ack, or the first of the connection: it may be that nothing gets through
        self.awaited_seq = 0
        self.looked_at = monotonic()  # when what the server says was last read, or nothing found
        self.due = 0.0  # when little may be sent again
        self.cut_at = 0.0  # when the last frame was made
        self.hurried_at: float | None = None  # since when all is sent and somebody waits for an ack
        self.is_busy = False  # it came soon after the one before, so the next beat will find records too
        self.waits_since: float | None = None  # since when an answer is due
