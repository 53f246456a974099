"""What the server says about itself: one line on stderr, seldom.

The server's own trouble has an exit of its own: never through ``logging``, never into the sinks that may be the
trouble. Knows a clock and a place to write, both passed in; no socket, no file, no asyncio.
"""

from __future__ import annotations

from collections.abc import Callable

INTERVAL_SECONDS = 1.0  # at most one line of a kind in so long: a flood of bad frames must not become one of lines
MAX_TEXT_CHARS = 500  # of one line; a peer may have put its own text into it


CODEC = "unicode_escape"
"".encode(CODEC)  # imports it now: there may be no descriptor left for that when it is needed


class Report:
    """Write lines, each of a ``kind``; of one kind at most one a second, and then how many were left out."""

    def __init__(self, clock: Callable[[], float], write: Callable[[str], None]) -> None:
        self._clock = clock
        self._write = write
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}
        self.lines = 0

    def __call__(self, kind: str, text: str) -> None:
        """Say ``text``, unless something of this kind was said within the last second."""
        now = self._clock()
        if now - self._last.get(kind, -INTERVAL_SECONDS) < INTERVAL_SECONDS:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._last[kind] = now
        left_out = self._left_out.pop(kind, 0)
        more = f" ({left_out} more like it were not shown)" if left_out else ""
        self.lines += 1
        clipped = text[:MAX_TEXT_CHARS].encode(CODEC).decode("ascii")
        self._write(f"aiolog: {clipped}{more}\n")
