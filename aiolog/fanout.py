"""From connections to sinks: a lane for each sink, and what a sink is.

A delivery is a batch on its way, or small ones that came together. The fan-out offers it to every lane; it is
delivered when each ``block`` lane has committed it, and only then does its connection read on and ack. A lane gathers
what all connections delivered while its last write was under way, and writes that in one call: group commit. One slow
sink delays nobody's lane but its own, and the acks only when it is a ``block`` sink.

Knows asyncio; knows no socket and no file.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from aiolog.errors import ConfigError, reason
from aiolog.record import WireRecord
from aiolog.report import Report
from aiolog.source import Source

RETRY_SECONDS = 0.1  # the first pause after a write that failed: a full disk is often cleared by hand
STUCK_SECONDS = 10.0  # a write that takes longer is one that fails; a slow disk syncs in less
MAX_RETRY_SECONDS = 1.0  # the longest: within it everything goes on when there is room again


class Delivery:
    """A batch on its way to the sinks, or small ones that came together.

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


class Commit:
    """A write under way in another thread: what :meth:`Sink.write` may return, so that nobody need wake up for its end.

    Who writes calls :meth:`end` in that thread. What is to come ``then`` is called on the event loop: by
    :meth:`settle`, which the loop calls itself as soon as it is awake, and anybody before.
    """

    __slots__ = ("_error", "_is_done", "_loop", "then")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_done = False
        self._error: BaseException | None = None
        self.then: Callable[[BaseException | None], None] | None = None

    def end(self, error: BaseException | None) -> None:
        """Note the end, with what was raised; called in the other thread, last of all."""
        self._error = error
        self._is_done = True
        try:  # noqa: SIM105 - three calls less, in each commit
            self._loop.call_soon_threadsafe(self.settle)
        except RuntimeError:  # the loop is closed: nobody waits
            pass

    def settle(self) -> None:
        """Go on with what comes then, if the end has come and nobody has yet."""
        if self._is_done and self.then is not None:
            then, self.then = self.then, None
            then(self._error)

    def __await__(self) -> Generator[Any, None, None]:
        """Wait for the end. Raises what the write raised."""
        ended = self._loop.create_future()
        self.then = lambda error: None if ended.done() else ended.set_result(error)
        self.settle()
        error = yield from ended
        if error is not None:
            raise error


class Sink(Protocol):
    """Where records end up. One lane calls it, one call at a time."""

    name: str

    async def open(self) -> None:
        """Make ready to write. Raises ConfigError, with a sentence for people, when that cannot be."""

    def write(self, group: Sequence[Delivery]) -> Awaitable[None]:
        """Commit all records of the group, in order, at the sink's durability.

        What it returns raises OSError when that failed: the lane comes again with the same group, and the sink sees
        to it that nothing of it stands twice.
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

    __slots__ = ("records", "since", "source", "until")

    def __init__(self, source: Source, since: WireRecord) -> None:
        self.source = source.in_short()
        self.records = 0
        self.since = self.until = since


class Lane:
    """One sink, what waits for it, and what is being written.

    ``when_full="block"``: deliveries wait here until they are committed; they are bounded by a full batch a connection.
    ``"drop_newest"``: at most ``buffer_bytes`` wait; what does not fit is dropped, counted in ``dropped_records``,
    and waits in ``untold`` until the server says it.

    Whatever is offered in one turn of the event loop, or while a write is under way, is written together.
    """

    def __init__(self, sink: Sink, *, when_full: str, buffer_bytes: int, report: Report) -> None:
        self.sink = sink
        self.blocks = when_full == "block"
        self._fails = False
        self.dropped_records = 0
        self.untold: dict[bytes, Missed] = {}  # what was dropped and not yet said, by session
        self._buffer_bytes = buffer_bytes
        self._report = report
        self._queue: list[Delivery] = []
        self._queued_bytes = 0
        self._queued_sources: set[Source] = set()  # of a lane that may drop
        self._loop: asyncio.AbstractEventLoop | None = None  # once it is open
        self._call: asyncio.Handle | None = None  # of the next step, when it is due
        self._group: Sequence[Delivery] = ()  # what is being written
        self._writing: Sequence[Delivery] = ()  # what is committed when that is written
        self._write: Commit | asyncio.Future[None] | None = None
        self._began_at = 0.0  # when that began
        self._pause_seconds = RETRY_SECONDS
        self._rest = asyncio.Event()  # nothing waits and nothing is being written
        self._rest.set()

    async def open(self) -> None:
        """Open the sink and begin to write. Raises ConfigError as the sink does."""
        await self.sink.open()
        self._loop = asyncio.get_running_loop()
        self._go_on()

    def offer(self, delivery: Delivery) -> None:
        """Take a delivery, or drop it when this lane may and is full. Never waits."""
        # The server's own few records have no size: what tells of drops must not be one.
        size = delivery.size_bytes
        if not self.blocks and size:
            if delivery.source not in self._queued_sources:  # its connection may go, and it must stay
                size += delivery.source.size_bytes
            if self._queued_bytes + size > self._buffer_bytes and self._queue:
                self._miss(delivery)
                return
            self._queued_sources.add(delivery.source)
        if not self._queue and not self._group:
            self._rest.clear()
            self._call_soon()
        self._queued_bytes += size
        self._queue.append(delivery)

    def _call_soon(self) -> None:
        """See that the next group begins when all that comes in this turn of the loop is here."""
        if self._call is None and self._loop is not None:
            self._call = self._loop.call_soon(self._begin)

    def _miss(self, delivery: Delivery) -> None:
        """Count a delivery that is dropped."""
        if not delivery.records:
            return
        self.dropped_records += len(delivery.records)
        missed = self.untold.get(delivery.session)
        if missed is None:
            missed = self.untold[delivery.session] = Missed(delivery.source, delivery.records[0])
        missed.records += len(delivery.records)
        missed.until = delivery.records[-1]

    @property
    def failing(self) -> bool:
        """Whether writes fail, or one does not end."""
        if self._fails or self._write is None or self._loop is None:
            return self._fails
        return self._loop.time() - self._began_at > STUCK_SECONDS

    def hurry(self) -> None:
        """Hold nothing back any more: the end has come."""

    async def drain(self) -> None:
        """Wait until everything taken is committed. Never ends while the sink is stuck; cancel it then."""
        await self._rest.wait()

    async def close(self) -> list[Delivery]:
        """Write no more and close the sink; returns what was taken and not committed."""
        was_open, self._loop = self._loop is not None, None
        if self._call is not None:
            self._call.cancel()
        if isinstance(self._write, Commit):
            self._write.then = None
        elif self._write is not None:
            self._write.cancel()
            await asyncio.wait([self._write])
        if was_open:
            await self.sink.close()
        return [*self._writing, *self._queue]

    def _begin(self) -> None:
        """Take what waits, and write it."""
        self._call = None
        group = self._take_queue()
        self._commit(group, group)

    def _take_queue(self) -> list[Delivery]:
        """Return what waits; nothing does then."""
        queue, self._queue, self._queued_bytes = self._queue, [], 0
        self._queued_sources.clear()
        return queue

    def _commit(self, group: Sequence[Delivery], writing: Sequence[Delivery]) -> None:
        """Write a group, again and again until the sink takes it: ``writing`` is committed then and not before."""
        self._group, self._writing = group, writing
        self._try()

    def _try(self) -> None:
        self._call = None
        if self._loop is not None:
            self._began_at = self._loop.time()
        try:
            write = self.sink.write(self._group)
        except Exception as error:  # noqa: BLE001 - as for what it returns
            self._written(error)
            return
        if isinstance(write, Commit):
            self._write = write
            write.then = self._written
        else:
            self._write = asyncio.ensure_future(write)
            self._write.add_done_callback(self._ended)

    def _ended(self, write: asyncio.Future[None]) -> None:
        self._written(asyncio.CancelledError() if write.cancelled() else write.exception())

    def settle(self) -> bool:
        """Go on at once where a write has ended; whether the loop has nothing to do with the write under way."""
        if isinstance(self._write, Commit):
            self._write.settle()
        return self._write is None or isinstance(self._write, Commit)

    def _written(self, error: BaseException | None) -> None:
        if self._loop is None:
            return  # it was closed
        self._write = None
        if error is not None:  # whatever it is, the group is not written, and must not be lost
            self._fails = True
            self._report(f"write {self.sink.name}", f"sink {self.sink.name} cannot write: {_trouble(error)}")
            self._call = self._loop.call_later(self._pause_seconds, self._try)
            self._pause_seconds = min(self._pause_seconds * 2, MAX_RETRY_SECONDS)
            return
        self._pause_seconds = RETRY_SECONDS
        if self._fails:
            self._fails = False
            self._report(f"recovered {self.sink.name}", f"sink {self.sink.name} writes again")
        writing, self._group, self._writing = self._writing, (), ()
        for delivery in writing:
            if self.blocks:
                self._tell(delivery)
        self._go_on()

    def _tell(self, delivery: Delivery) -> None:
        """Say that a delivery is committed; what goes wrong with one must not keep the others waiting."""
        try:
            delivery.committed()
        except Exception as error:  # noqa: BLE001 - it is told to the loop, as of any callback
            context = {"message": f"after a commit of sink {self.sink.name}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    def _go_on(self) -> None:
        """Write what has come meanwhile, or rest."""
        if self._queue:
            self._call_soon()
        else:
            self._rest.set()


def _trouble(error: BaseException) -> str:
    """Say what is wrong and what to do; clients keep their records meanwhile."""
    if isinstance(error, (OSError, ConfigError)):
        what, todo = reason(error), "Make room, or mend the permissions"
    else:
        what, todo = repr(error), "This is a fault of aiolog: please report it"
    return f"{what}. Nothing is acked until it can, and clients keep their records. {todo}"


class Fanout:
    """All lanes of a server, by the names of their sinks."""

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}
        self._held: list[Delivery] | None = None  # what comes while lanes are being replaced
        self._replaced: dict[str, Lane] = {}  # these, meanwhile

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
        delivery.waits_for = 1  # so that it is not done before it was offered to all
        for lane in self.lanes.values():
            delivery.waits_for += lane.blocks
            lane.offer(delivery)
        delivery.committed()

    def settle(self) -> bool:
        """Go on at once where a write has ended; whether all that are under way are in threads of their own."""
        are_in_threads = True
        for lane in list(self.lanes.values()):
            are_in_threads &= lane.settle()
        return are_in_threads

    def blocking(self) -> list[Lane]:
        """Return all ``block`` lanes, also those that are being replaced: what these lack is not delivered."""
        return [lane for lane in (*self._replaced.values(), *self.lanes.values()) if lane.blocks]

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
            old = self._replaced[name] = self.lanes.pop(name)
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
        self._replaced.clear()
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
