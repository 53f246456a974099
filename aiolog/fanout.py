"""From connections to sinks: a lane for each sink, and what a sink is.

A delivery is one batch on its way. The fan-out offers it to every lane; it is delivered when each ``block`` lane has
committed it, and only then does its connection read on and ack. A lane gathers what all connections delivered while
its last write was under way, and for some milliseconds more, and writes that in one call: group commit. One slow
sink delays nobody's lane but its own, and the acks only when it is a ``block`` sink.

Knows asyncio; knows no socket and no file.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from aiolog.errors import ConfigError, reason
from aiolog.record import Source, WireRecord
from aiolog.report import Report

# A write costs nearly the same for one batch as for a hundred. So a batch waits a moment for company, as clients that
# were acked together send together; and from one write to the next there is some time, as many clients never align.
COMPANY_SECONDS = 0.001
GATHER_SECONDS = 0.003
GATHER_BYTES = 64 << 10  # with so much waiting, more saves nothing: a batch of a client in a hurry
RETRY_SECONDS = 0.1  # the first pause after a write that failed: a full disk is often cleared by hand
MAX_RETRY_SECONDS = 1.0  # the longest: within it everything goes on when there is room again


class Delivery:
    """One batch on its way to the sinks.

    ``records`` are those of ``session`` from ``first_seq`` on, without gaps. ``dropped`` is how many are missing just
    before them. ``notices`` are the server's own records about this delivery; they stand before its records, in the
    place of some that were dropped, and come from ``notice_source``. ``on_delivered`` is called once, when every
    ``block`` lane has committed it.
    """

    __slots__ = (
        "dropped",
        "first_seq",
        "notice_source",
        "notices",
        "on_delivered",
        "records",
        "session",
        "size_bytes",
        "source",
        "waits_for",
    )

    def __init__(
        self,
        source: Source,
        records: Sequence[WireRecord],
        *,
        session: bytes = b"",
        first_seq: int = 0,
        dropped: int = 0,
        notices: Sequence[WireRecord] = (),
        notice_source: Source | None = None,
        size_bytes: int = 0,
        on_delivered: Callable[[], None] | None = None,
    ) -> None:
        self.source = source
        self.records = records
        self.session = session
        self.first_seq = first_seq
        self.dropped = dropped
        self.notices = notices
        self.notice_source = notice_source or source
        self.size_bytes = size_bytes
        self.on_delivered = on_delivered
        self.waits_for = 0  # block lanes that have not committed it yet

    def committed(self) -> None:
        """Note that one ``block`` lane is done with it."""
        self.waits_for -= 1
        if self.waits_for == 0 and self.on_delivered is not None:
            on_delivered, self.on_delivered = self.on_delivered, None
            on_delivered()


class Sink(Protocol):
    """Where records end up. One lane calls it, one call at a time."""

    name: str

    async def open(self) -> None:
        """Make ready to write. Raises ConfigError, with a sentence for people, when that cannot be."""

    async def write(self, group: Sequence[Delivery]) -> None:
        """Commit all records of the group, in order, at the sink's durability.

        Raises OSError when that failed: the lane comes again with the same group, and the sink sees to it that
        nothing of it stands twice.
        """

    def mark(self, session: bytes) -> int | None:
        """Return the last seq of the session that is dealt with here, across restarts; None: nothing is remembered."""

    @property
    def is_new(self) -> bool:
        """Whether it began with this server, so that a session it does not know is no sign of a loss."""

    def forget(self, session: bytes) -> None:
        """Forget a session that is complete."""

    async def close(self) -> None:
        """Finish and let go. Never raises for what it could not finish; it says so."""


@runtime_checkable
class Rotates(Protocol):
    """What a sink of files can do besides."""

    async def rotate(self) -> list[str]:
        """Begin new files now; returns the names of the backups. Raises OSError, ConfigError or ValueError."""

    async def look(self) -> None:
        """Do what is due although nobody writes, and follow live files that somebody else renamed."""


class Missed:
    """How many records of one process a lane dropped, and the first and the last of them."""

    __slots__ = ("records", "since", "until")

    def __init__(self, since: WireRecord) -> None:
        self.records = 0
        self.since = self.until = since


class Lane:
    """One sink, what waits for it, and the task that feeds it.

    ``when_full="block"``: deliveries wait here until they are committed; they are bounded by one batch a connection.
    ``"drop_newest"``: at most ``buffer_bytes`` wait; what does not fit is dropped, counted in ``dropped_records``,
    and waits in ``untold`` until the server says it.

    A write begins ``company_seconds`` after the first delivery for it, and ``gather_seconds`` after the last began.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        when_full: str,
        buffer_bytes: int,
        report: Report,
        company_seconds: float = COMPANY_SECONDS,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self.sink = sink
        self.blocks = when_full == "block"
        self.failing = False
        self.written_records = 0
        self.dropped_records = 0
        self.untold: dict[Source, Missed] = {}  # what was dropped and not yet said
        self.failures = 0
        self._buffer_bytes = buffer_bytes
        self._report = report
        self._queue: list[Delivery] = []
        self._queued_bytes = 0
        self._company_seconds = company_seconds
        self._gather_seconds = gather_seconds
        self._loop: asyncio.AbstractEventLoop
        self._due = 0.0  # the moment, on the loop's clock, when little may be written again
        self._timer: asyncio.TimerHandle | None = None  # for what waits until then
        self._writing: list[Delivery] = []
        self._work = asyncio.Event()
        self._rest = asyncio.Event()  # nothing waits and nothing is being written
        self._rest.set()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the sink and start the task. Raises ConfigError as the sink does."""
        await self.sink.open()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name=f"lane {self.sink.name}")

    def offer(self, delivery: Delivery) -> None:
        """Take a delivery, or drop it when this lane may and is full. Never waits."""
        # The server's own few records have no size: what tells of drops must not be one.
        size = delivery.size_bytes
        if not self.blocks and size and self._queued_bytes + size > self._buffer_bytes and self._queue:
            self._miss(delivery)
            return
        self._queued_bytes += size
        self._queue.append(delivery)
        self._rest.clear()
        self._call()

    def _call(self) -> None:
        """Set the task to work on the queue: now, or when it is due."""
        if self._queued_bytes >= GATHER_BYTES or self._task is None:
            self._work.set()
        elif self._timer is None:
            self._timer = self._loop.call_at(max(self._due, self._loop.time() + self._company_seconds), self._work.set)

    def _miss(self, delivery: Delivery) -> None:
        """Count a delivery that is dropped."""
        if not delivery.records:
            return
        self.dropped_records += len(delivery.records)
        missed = self.untold.setdefault(delivery.source, Missed(delivery.records[0]))
        missed.records += len(delivery.records)
        missed.until = delivery.records[-1]

    def hurry(self) -> None:
        """Hold nothing back any more: the end has come."""

    async def drain(self) -> None:
        """Wait until everything taken is committed. Never ends while the sink is stuck; cancel it then."""
        await self._rest.wait()

    async def close(self) -> list[Delivery]:
        """Stop the task and close the sink; returns what was taken and not committed."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            await self.sink.close()
        return self._writing + self._queue

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._begin()
            group, self._queue, self._queued_bytes = self._queue, [], 0
            self._writing = group
            await self._commit(group)
            self._writing = []
            self._finish(group)
            if not self._queue:
                self._rest.set()

    def _begin(self) -> None:
        """Take the call to work, and say when the next one may come."""
        self._work.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = self._loop.time() + self._gather_seconds

    def _finish(self, group: Sequence[Delivery]) -> None:
        """Count deliveries as committed."""
        for delivery in group:
            self.written_records += len(delivery.records)
            if self.blocks:
                delivery.committed()

    async def _commit(self, group: list[Delivery]) -> None:
        """Write the group, again and again until the sink takes it: it is acked then and not before."""
        pause = RETRY_SECONDS
        while True:
            try:
                await self.sink.write(group)
            except Exception as error:  # noqa: BLE001 - whatever it is, the group is not written, and must not be lost
                self.failing = True
                self.failures += 1
                self._report(f"write {self.sink.name}", f"sink {self.sink.name} cannot write: {_trouble(error)}")
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_RETRY_SECONDS)
            else:
                if self.failing:
                    self.failing = False
                    self._report(f"recovered {self.sink.name}", f"sink {self.sink.name} writes again")
                return


def _trouble(error: Exception) -> str:
    """Say what is wrong and what to do; clients keep their records meanwhile."""
    if isinstance(error, OSError):
        what, todo = reason(error), "Make room, or mend the permissions"
    else:
        what, todo = repr(error), "This is a fault of aiolog: please report it"
    return f"{what}. Nothing is acked until it can, and clients keep their records. {todo}"


class Fanout:
    """All lanes of a server, by the names of their sinks."""

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}
        self._held: list[Delivery] | None = None  # what comes while lanes are being replaced

    async def open(self, lanes: Mapping[str, Lane]) -> None:
        """Open lanes and add them. Raises ConfigError when a sink cannot be opened; then none of these stays open."""
        opened: list[str] = []
        try:
            for name, lane in lanes.items():
                await lane.open()
                self.lanes[name] = lane
                opened.append(name)
        except BaseException:
            for name in opened:
                await self.lanes.pop(name).close()
            raise

    def deliver(self, delivery: Delivery) -> None:
        """Offer the delivery to every lane; ``on_delivered`` may be called before this returns."""
        if self._held is not None:
            self._held.append(delivery)
            return
        lanes = self.lanes.values()
        delivery.waits_for = 1 + sum(lane.blocks for lane in lanes)
        for lane in lanes:
            lane.offer(delivery)
        delivery.committed()  # the 1 above: so that it is not done before it was offered to all

    def marks(self, session: bytes) -> dict[str, int | None]:
        """Return what the sink of each ``block`` lane remembers of a session: its last seq, or None without one."""
        return {name: lane.sink.mark(session) for name, lane in self.lanes.items() if lane.blocks}

    def forget(self, session: bytes) -> None:
        """Tell every sink that a session is complete."""
        for lane in self.lanes.values():
            lane.sink.forget(session)

    async def replace(
        self, fresh: Mapping[str, Lane], fallback: Mapping[str, Lane], kept: Collection[str], timeout_seconds: float
    ) -> None:
        """Put ``fresh`` lanes in the place of all but the ``kept`` ones; deliveries wait meanwhile.

        The old lanes have ``timeout_seconds`` each to finish; what one of them could not write goes to the new lane
        of its name. Raises ConfigError when a fresh sink cannot be opened; the ``fallback`` lanes stand there then.
        """
        self._held = []
        left: dict[str, tuple[bool, list[Delivery]]] = {}
        for name in [name for name in self.lanes if name not in kept]:
            old = self.lanes.pop(name)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(old.drain(), timeout_seconds)
            left[name] = old.blocks, await old.close()
        try:
            await self.open(fresh)
        except ConfigError:
            await self.open(fallback)  # should this fail too, what waits stays unacked, and with the clients
            self._resume(left)
            raise
        self._resume(left)

    def _resume(self, left: Mapping[str, tuple[bool, list[Delivery]]]) -> None:
        """Let deliveries go on, first those that old lanes left."""
        for name, (blocked, deliveries) in left.items():
            for delivery in deliveries:
                self._hand_over(delivery, self.lanes.get(name), was_awaited=blocked)
        held, self._held = self._held or [], None
        for delivery in held:
            self.deliver(delivery)

    @staticmethod
    def _hand_over(delivery: Delivery, lane: Lane | None, *, was_awaited: bool) -> None:
        """Give what an old lane left to the new lane of its name; where there is none, nobody waits for it."""
        if lane is not None:
            delivery.waits_for += lane.blocks
            lane.offer(delivery)
        if was_awaited:
            delivery.committed()

    def hurry(self) -> None:
        """Have every lane hold nothing back any more: the acks of what it holds are waited for."""
        for lane in self.lanes.values():
            lane.hurry()

    async def drain(self) -> None:
        """Wait until every ``block`` lane has committed what it took. Never ends while a sink is stuck."""
        await asyncio.gather(*(lane.drain() for lane in self.lanes.values() if lane.blocks))

    async def close(self) -> None:
        """Close all lanes, at once: each may take seconds."""
        lanes, self.lanes = self.lanes, {}
        await asyncio.gather(*(lane.close() for lane in lanes.values()))
