"""The sink that writes one file: it formats a group on the event loop, and commits it in a thread of its own.

It knows a format and its file. It must never know a socket, a session's ack or the configuration. Two threads help::

    FileSink   event loop         formats a group, waits for
    LiveFile   the sink's thread  the live file: write, repair, rotate; one hop a group
    Backups    a second thread    what was rotated away: compress it, remove the oldest; never in the way
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from aiofiles.os import wrap

from aiolog.errors import ConfigError
from aiolog.fanout import Commit, Delivery
from aiolog.formatting import Format, Lines, whole_records
from aiolog.livefile import KEEPING, Keeping, LiveFile, Part
from aiolog.sinks import SinkThread

CLOSE_SECONDS = 2.0  # what close() waits for a stuck disk: with that of the backups it stays below a drain of 5 s
LOOK_SECONDS = 5.0  # between two looks at what is due although nobody writes; `date` rolls, disks fill up


class FileSink:
    """Write deliveries to one file, as the protocol :class:`aiolog.fanout.Sink` asks.

    ``clock`` gives seconds since the epoch. ``warn`` takes one sentence for the operator; any thread may call it.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        format: Format,  # noqa: A002 - the word of the configuration
        keeping: Keeping = KEEPING,
        *,
        clock: Callable[[], float],
        warn: Callable[[str], None],
    ) -> None:
        def say(text: str) -> None:
            warn(f"sink {name}: {text}")

        self.name = name
        self.write_errors = 0
        self._format = format
        self._warn = say
        # Everything that touches the file runs here, so a write never meets another, nor a close.
        self._thread = SinkThread(f"aiolog-{name}")
        self._backups_thread = SinkThread(f"aiolog-backups-{name}")
        self._live = LiveFile(
            path.absolute(),
            keeping,
            whole_records=lambda data: whole_records(format, data),
            backups_thread=self._backups_thread,
            clock=clock,
            warn=say,
        )
        self._looking: asyncio.Task[None] | None = None

    @property
    def records_written(self) -> int:
        """How many records were committed."""
        return self._live.records_written

    @property
    def bytes_written(self) -> int:
        """How many bytes were committed, before compression."""
        return self._live.bytes_written

    @property
    def rotations(self) -> int:
        """How many backups were made."""
        return self._live.rotations

    @property
    def backups_removed(self) -> int:
        """How many backups retention removed."""
        return self._live.backups.removed

    async def open(self) -> None:
        """Open the file, with its directories, and repair what a crash left; called by the lane before all else.

        Raises ``ConfigError`` when the path cannot be used.
        """
        try:
            await wrap(self._live.open)(executor=self._thread)
        except ConfigError as error:
            self._thread.shutdown()
            self._backups_thread.shutdown()
            raise ConfigError(f"sink {self.name}: {error}") from error
        self._looking = asyncio.create_task(self._look(), name=f"look {self.name}")

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Do what is due although nobody writes, and follow a live file that somebody else renamed."""
        await wrap(self._live.look)(executor=self._thread)

    async def rotate(self) -> list[str]:
        """Rotate now; returns the names of the backups that this made.

        Raises ``OSError``, ``ConfigError`` or ``ValueError`` when it cannot be.
        """
        name = await wrap(self._live.rotate)(executor=self._thread)
        return [name] if name else []

    def write(self, group: Sequence[Delivery]) -> Commit:
        """Commit a group; called by the lane, one group at a time.

        What it returns raises ``OSError`` when it could not all be committed. The lane then calls again with the same
        deliveries, or these and more: what is already in a file of it, before a rotation, is not written again. A
        cancellation does not stop the thread: the group may be committed or not, and if it is given once more, it
        will be exactly once.
        """
        parts = []
        for delivery in group:
            texts = self._format(delivery.source, delivery.records)
            if delivery.notices:
                texts = [*self._format(delivery.notice_source, delivery.notices), *texts]
            joined = texts.joined if type(texts) is Lines else ""  # isinstance() of an abstract class is a search
            parts.append(Part(delivery.session, delivery.first_seq - len(delivery.notices), texts, joined))
        return self._thread.commit(self._append, parts)

    def _append(self, parts: Sequence[Part]) -> None:
        try:
            self._live.append(parts)
        except OSError:
            self.write_errors += 1
            raise

    def mark(self, session: bytes) -> int | None:
        """Return the last record of the session that is dealt with here, across restarts; 0 if it is unknown.

        None as long as it could not be found out what a crash left.
        """
        return (self._live.ledger.mark(session) or 0) if self._live.is_recovered else None

    @property
    def is_new(self) -> bool:
        """Whether it began with this server, and so cannot miss what was acked before."""
        return self._live.is_new

    def forget(self, session: bytes) -> None:
        """Forget a session that has said BYE."""
        self._live.ledger.forget(session)

    async def close(self) -> None:
        """Close the file, in bounded time whatever the disk does; called by the lane after the last write."""
        if self._thread.ended:
            return
        if self._looking is not None:
            self._looking.cancel()
        await self._live.backups.close()
        self._backups_thread.shutdown()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await wrap(self._live.close)(executor=self._thread)
        except TimeoutError:
            self._warn(f"the disk did not answer for {CLOSE_SECONDS:g} s at the end. The file was left open.")
        self._thread.shutdown()
