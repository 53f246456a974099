"""A lane whose records leave in the order of their time stamps, whichever process they came from.

A record waits until its time stamp is ``window_seconds`` old, and those of all processes that wait are merged. What
comes later than that is late, and stands where it can; records of one process never change their order, whatever their
stamps say. A stamp of the future counts as the moment of arrival: a wrong clock must not hold up its process for ever.

The guarantees are those of every lane: a delivery is acked when the last of its records is committed. Knows asyncio and
lanes; knows no sink and no format.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

from aiolog.fanout import Delivery, Lane, Sink
from aiolog.record import SECOND_NS
from aiolog.report import Report

_NEVER = float("inf")


def moment(created: Any, otherwise: float) -> float:
    """Return a record's ``created`` in seconds since the epoch, or ``otherwise`` for what is no moment.

    >>> moment(1_500_000_000, 0.0), moment(1.5, 0.0), moment("x", 0.0)
    (1.5, 1.5, 0.0)
    """
    if type(created) is int:
        return created / SECOND_NS
    return created if type(created) is float and created == created else otherwise  # noqa: PLR0124 - nan does not


class _Waiting(NamedTuple):
    """A delivery that waits, and the moments at which its records may leave; those before ``begin`` have left."""

    delivery: Delivery
    keys: Sequence[float]
    begin: int = 0


class TimeOrder:
    """Merge deliveries by time; ``window_seconds`` is how long a record waits for older ones.

    Holds what it was given and has not yet given out, and of each session that waits one moment.
    """

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._waiting: dict[bytes, deque[_Waiting]] = {}
        self._heads: list[tuple[float, int, bytes]] = []  # of each session that waits: its next key, and when it came
        self._came = 0
        self._latest = -_NEVER  # the latest moment that we were told
        self.size_bytes = 0  # of what waits

    def add(self, delivery: Delivery, now: float) -> None:
        """Take a delivery that came at ``now``, in seconds since the epoch."""
        self._latest = max(self._latest, now)
        self.size_bytes += delivery.size_bytes
        queue = self._waiting.get(delivery.session)
        key = queue[-1].keys[-1] if queue else -_NEVER
        keys = []
        for wire in delivery.records or [()]:  # notices alone wait as one record does
            created = wire[0] if isinstance(wire, (tuple, list)) and wire else None
            key = max(key, min(moment(created, now), now))
            keys.append(key)
        if queue is None:
            queue = self._waiting[delivery.session] = deque()
            self._push(delivery.session, keys[0])
        queue.append(_Waiting(delivery, keys))

    def _push(self, session: bytes, key: float) -> None:
        self._came += 1
        heappush(self._heads, (key, self._came, session))

    def next_at(self) -> float:
        """Return when :meth:`take` will have something to give; infinity when nothing waits."""
        return self._heads[0][0] + self._window_seconds if self._heads else _NEVER

    def take(self, now: float, *, everything: bool = False) -> tuple[list[Delivery], list[Delivery]]:
        """Return the slices of deliveries that may leave, in order, and the deliveries that have left with them."""
        # Where the clock was set back, what waits has moments of a future that may be far.
        everything |= now < self._latest - self._window_seconds
        self._latest = now if everything else max(self._latest, now)
        limit = _NEVER if everything else now - self._window_seconds
        slices: list[Delivery] = []
        done: list[Delivery] = []
        while self._heads and self._heads[0][0] <= limit:
            _, _, session = heappop(self._heads)
            queue = self._waiting[session]
            # As long as no other session has an older one, or this would be a slice for each record.
            until = min(limit, self._heads[0][0]) if self._heads else limit
            while queue and queue[0].keys[queue[0].begin] <= until:
                delivery, keys, begin = queue.popleft()
                end = begin + 1
                while end < len(keys) and keys[end] <= until:
                    end += 1
                slices.append(_slice(delivery, begin, end))
                if end < len(keys):
                    queue.appendleft(_Waiting(delivery, keys, end))
                    break
                done.append(delivery)
                self.size_bytes -= delivery.size_bytes
            if queue:
                self._push(session, queue[0].keys[queue[0].begin])
            else:
                del self._waiting[session]
        return slices, done

    @property
    def left(self) -> list[Delivery]:
        """The deliveries of which something waits."""
        return [one.delivery for queue in self._waiting.values() for one in queue]


def _slice(delivery: Delivery, begin: int, end: int) -> Delivery:
    """Return the records from ``begin`` to before ``end`` as a delivery; the notices go with the first."""
    return Delivery(
        delivery.source,
        delivery.records[begin:end],
        session=delivery.session,
        first_seq=delivery.first_seq + begin,
        dropped=0 if begin else delivery.dropped,
        notices=() if begin else delivery.notices,
        notice_source=delivery.notice_source,
    )


class OrderedLane(Lane):
    """A lane that merges what waits by time; ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        sink: Sink,
        *,
        when_full: str,
        buffer_bytes: int,
        report: Report,
        window_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(sink, when_full=when_full, buffer_bytes=buffer_bytes, report=report)
        self._order = TimeOrder(window_seconds)
        self._window_seconds = window_seconds
        self._clock = clock
        self._draining = False

    def hurry(self) -> None:
        """Let nothing wait for its time any more."""
        self._draining = True
        if not self._group and (self._queue or self._order.left):
            self._wait(0.0)

    async def drain(self) -> None:
        """Wait until everything taken is committed; nothing waits for its time any more."""
        self.hurry()
        await super().drain()

    async def close(self) -> list[Delivery]:
        """Stop the task and close the sink; returns what was taken and not wholly committed."""
        await super().close()
        return [*self._writing, *self._order.left, *self._queue]

    def _begin(self) -> None:
        self._call = None
        now = self._clock()
        for delivery in self._take_queue():
            self._order.add(delivery, now)
        # Nothing else bounds what a lane holds that no ack waits for; rather out of order than dropped.
        is_full = not self.blocks and self._order.size_bytes > self._buffer_bytes
        slices, done = self._order.take(now, everything=self._draining or is_full)
        if slices:
            self._commit(slices, done)
        else:
            self._go_on()

    def _go_on(self) -> None:
        if not self._queue and self._order.left:
            # The clock may be set meanwhile: nobody waits longer than the window for that.
            seconds = min(max(0.0, self._order.next_at() - self._clock()), self._window_seconds)
            self._wait(0.0 if self._draining else seconds)
        else:
            super()._go_on()

    def _call_soon(self) -> None:
        if self._call is not None:  # for what waits for its time
            self._call.cancel()
            self._call = None
        super()._call_soon()

    def _wait(self, seconds: float) -> None:
        if self._call is not None:
            self._call.cancel()
        if self._loop is not None:
            self._call = self._loop.call_later(seconds, self._begin)
