"""The sink that writes to standard output: for a person at a terminal, or for what collects a container's output.

It knows one descriptor and the colors of levels. It must never delay anything else: a reader that stops holds up
its own thread and lane, which drops (``when_full = "drop_newest"``), and not the exit of the process either.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiolog.errors import reason
from aiolog.fanout import Commit, Delivery
from aiolog.formatting import Format
from aiolog.record import WireRecord
from aiolog.sinks import SinkThread, runs
from aiolog.source import Source

# The colors of level names, from the highest level down; SGR codes of ECMA-48, 8.3.117.
_COLORS = (
    (50, "\x1b[1;37;41m"),  # CRITICAL: bold white on red
    (40, "\x1b[1;31m"),  # ERROR: bold red
    (30, "\x1b[33m"),  # WARNING: yellow
    (20, "\x1b[32m"),  # INFO: green
    (-(1 << 63), "\x1b[36m"),  # DEBUG and below: cyan
)
_RESET = "\x1b[0m"

# The reader is gone for good: a closed pipe, a closed descriptor, a terminal that hung up.
_GONE = (errno.EPIPE, errno.EBADF, errno.EIO)


def wants_color(isatty: bool, environ: Mapping[str, str]) -> bool:
    """Whether to color by default: on a terminal that can, unless ``NO_COLOR`` is set (https://no-color.org)."""
    return isatty and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def colored(text: str, source: Source, wire: WireRecord) -> str:
    """Return a record's text with the name of its level in color; as it is, where the name does not stand in it.

    Nothing that a peer sent can become an escape sequence here: the color goes around what the format let through.
    """
    try:
        site: Any = source.definitions[wire[1]] if isinstance(wire[1], int) else wire[1]
        _, level, level_name, *_ = site
        before, found, after = text.partition(level_name)
        color = next(color for lowest, color in _COLORS if level >= lowest)
    except Exception:  # noqa: BLE001 - a peer's record has any form; without a color it can still be read
        return text
    return f"{before}{color}{found}{_RESET}{after}" if found else text


class StdoutSink:
    """Write deliveries to a descriptor, as the protocol :class:`aiolog.fanout.Sink` asks, and never fail.

    Output cannot be taken back, so a group that the system refuses is not tried again: it is counted in
    ``records_dropped``. When the reader is gone, so is every later one; ``disabled`` is true then. ``warn`` takes one
    sentence for the operator, from the sink's thread.
    """

    def __init__(
        self,
        name: str,
        format: Format,  # noqa: A002 - the word of the configuration
        *,
        descriptor: int = 1,
        color: bool = False,
        warn: Callable[[str], None],
    ) -> None:
        self.name = name
        self.records_written = self.bytes_written = self.records_dropped = self.write_errors = 0
        self.disabled = False
        self._format = format
        self._descriptor = descriptor
        self._color = color
        self._warn = warn
        self._thread = SinkThread(f"aiolog-{name}")

    async def open(self) -> None:
        """Do nothing: the stream is there, or the first write finds out."""

    def write(self, group: Sequence[Delivery]) -> Commit:
        """Write a group; called by the lane. It ends when the reader took it, however long that takes.

        Who waits no longer leaves the thread writing; what is handed over comes out in order all the same.
        """
        texts: list[str] = []
        for source, records in runs(group):
            formatted = self._format(source, records)
            if self._color:
                pairs = zip(formatted, records, strict=True)
                formatted = [colored(text, source, wire) for text, wire in pairs]
            texts += filter(None, formatted)
        return self._thread.commit(self._write, texts)

    def mark(self, session: bytes) -> None:
        """Return None: what a stream took it cannot tell later."""

    @property
    def is_new(self) -> bool:
        """Whether it cannot miss what was acked before: nobody asks it."""
        return True

    def forget(self, session: bytes) -> None:
        """Do nothing: no session is remembered here."""

    async def close(self) -> None:
        """Let the thread go, without waiting for a reader that may never read again."""
        self._thread.shutdown()

    def _write(self, texts: Sequence[str]) -> None:
        """Write in the sink's thread, which alone changes the counters."""
        count = len(texts)
        if self.disabled:
            self.records_dropped += count
            return
        data = "".join(texts).encode(errors="backslashreplace")
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # another process set the shared terminal or pipe to non-blocking
                    select.select([], [self._descriptor], [])
        except OSError as error:
            self.disabled = error.errno in _GONE
            self.write_errors += 1
            self.records_dropped += count
            ends = "Nothing more is written there" if self.disabled else "What it refuses does not come again"
            self._warn(f"sink {self.name} lost its output: {reason(error)}. {ends}: see to its reader, and restart.")
        else:
            self.records_written += count
            self.bytes_written += len(data)
