"""Reading from all connections together, so that little data of many clients is one piece of work.

A server that wakes up for each client's frame pays for each with cold caches, and with a commit. So all connections are
in one set of the kernel's (epoll), and the event loop waits for that set. Processes of one machine send at one beat;
when those have come that came at the last one, the loop sleeps until a moment after the next, and then reads all that
is there. Where there is much, or the beat is only beginning, it reads as soon as something comes.

A thousand clients with a line each now and then come at no beat together. Where they take too much of a core, and
none of them is in a hurry, nothing is read for a while: what one of them sends meanwhile is again one piece of work.

Linux only, where READS_TOGETHER. Elsewhere connections are read by their transports, one by one. Knows asyncio, the
beat and descriptors; knows no frame, no session and no sink.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from time import monotonic, thread_time

from aiolog.protocol import BEAT_SECONDS

READS_TOGETHER = hasattr(select, "epoll")
READ_BYTES = 128 << 10  # a frame of a client is 64 KiB and a little; larger ones are for few, and take more reads
MUCH_BYTES = 64 << 10  # so much at a time gains nothing by more: a batch of a client in a hurry
COMPANY_SECONDS = 0.0003  # after a beat: most of four processes on two cores have sent by then
LATE_SECONDS = 0.0003  # for the company of the others
ENOUGH = 7 / 8  # of those that came at the last beat: not all of many come at each
MANY = 64  # connections: few that are expensive may be bad ones, and the others are not to wait for them
LITTLE_BYTES = 4 << 10  # a connection that brought more is in a hurry, and its buffer may be full
IDLE_TIMES = 3  # as long as the work for little took, or longer, nothing is read: a quarter of a core is enough for it
MAX_IDLE_SECONDS = 0.05  # half of what a log call waits for room by default; who looks at a file does not see it


class Reader:
    """All connections that have said HELLO, and the descriptor by which the event loop waits for any of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settle: Callable[[], bool]) -> None:
        self._loop = loop
        self._settle = settle  # tells of batches that are delivered, and whether the loop may sleep meanwhile
        self._ready = select.epoll()
        self._taps: dict[int, Tap] = {}  # by descriptor
        self._beat = 0  # the one that came last, counted
        self._came = self._expected = 0  # connections at this beat, and at the one before
        self._is_late = False
        self._idle: asyncio.TimerHandle | None = None  # while nothing is read
        loop.add_reader(self._ready.fileno(), self._read)

    def take(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> Tap:
        """Read for a transport from now on, and call its protocol as it would."""
        transport.pause_reading()
        return Tap(self, transport.get_extra_info("socket").fileno(), transport, protocol)

    def add(self, tap: Tap) -> None:
        """Read by it, unless it is the end."""
        if self._ready.closed:
            return
        self._taps[tap.descriptor] = tap
        self._ready.register(tap.descriptor, select.EPOLLIN)

    def remove(self, tap: Tap) -> None:
        """Read by it no more, if it was read by."""
        if self._taps.get(tap.descriptor) is tap:
            del self._taps[tap.descriptor]
            self._ready.unregister(tap.descriptor)

    def close(self) -> None:
        """Read no more."""
        if self._idle is not None:
            self._idle.cancel()
        self._loop.remove_reader(self._ready.fileno())
        self._ready.close()
        self._taps.clear()

    def say(self, error: Exception, transport: asyncio.Transport) -> None:
        """Tell the loop of a protocol that failed."""
        context = {"message": "a protocol failed", "exception": error, "transport": transport}
        self._loop.call_exception_handler(context)

    def _read(self) -> None:
        """Read whatever has come; rest, when all has that is to be expected at this beat."""
        began = thread_time()
        if self._is_late:
            nap(LATE_SECONDS)
        self._settle()
        beat = int(monotonic() / BEAT_SECONDS)
        if beat != self._beat:
            self._expected = self._came if beat - self._beat <= 2 else 0
            self._beat, self._came = beat, 0
        taken = []  # bytes, of each connection that came
        for descriptor, _ in self._ready.poll(0):
            tap = self._taps.get(descriptor)
            if tap is not None:  # or one that was read before has closed it
                self._came += tap.beat != beat
                tap.beat = beat
                taken.append(tap.read())
        # One alone has no company to be waited for.
        is_little = self._expected > 1 and sum(taken) < MUCH_BYTES
        self._is_late = is_little and self._came < ENOUGH * self._expected
        # Once what was read is on its way.
        if len(taken) >= MANY and max(taken) < LITTLE_BYTES:
            self._loop.call_soon(self._idle_or_rest, began, is_little and not self._is_late)
        elif is_little and not self._is_late:
            self._loop.call_soon(self._rest)

    def _idle_or_rest(self, began: float, may_rest: bool) -> None:
        """Read nothing for a while, if the little that came took more than its share of a core; or rest."""
        seconds = IDLE_TIMES * (thread_time() - began)
        if seconds > BEAT_SECONDS and self._idle is None and not self._ready.closed:
            self._loop.remove_reader(self._ready.fileno())
            self._idle = self._loop.call_later(min(seconds, MAX_IDLE_SECONDS), self._read_on)
        elif may_rest:
            self._rest()

    def _read_on(self) -> None:
        self._idle = None
        self._loop.add_reader(self._ready.fileno(), self._read)

    def _rest(self) -> None:
        """Sleep until the processes of the machine have sent what they log before the next beat.

        Not by a timer: the loop has nothing else to do than to wait for them, and to wake it up costs as much as a
        batch. Whatever comes meanwhile, the end of a write in a thread included, is found afterwards.
        """
        seconds = (self._beat + 1) * BEAT_SECONDS + COMPANY_SECONDS - monotonic()
        if seconds > 0 and self._settle():
            nap(seconds)


def nap(seconds: float) -> None:
    """Sleep; ``time.sleep`` fails under libfaketime, by which people test services (EINVAL, CPython 3.11 to 3.13)."""
    select.select((), (), (), seconds)


class Tap:
    """The reading half of one connection, with the names that transports have for it."""

    __slots__ = ("_protocol", "_reader", "_transport", "beat", "descriptor")

    def __init__(
        self, reader: Reader, descriptor: int, transport: asyncio.Transport, protocol: asyncio.Protocol
    ) -> None:
        self._reader = reader
        self.beat = 0  # at which it was read last
        self.descriptor = descriptor
        self._transport = transport
        self._protocol = protocol
        self.resume_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._reader.add(self)

    def pause_reading(self) -> None:
        """Read nothing until :meth:`resume_reading`; before its transport closes, for descriptors come again."""
        self._reader.remove(self)

    def read(self) -> int:
        """Read once, and hand it over; returns how many bytes that were."""
        try:
            data = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:  # reset by the peer
            self._give_up()
            return 0
        try:
            if data:
                self._protocol.data_received(data)
            else:
                self.pause_reading()
                if not self._protocol.eof_received():
                    self._transport.close()
        except Exception as error:  # noqa: BLE001 - a transport would say it too, and end this connection alone
            self._reader.say(error, self._transport)
            self._give_up()
        return len(data)

    def _give_up(self) -> None:
        self.pause_reading()
        self._transport.abort()
