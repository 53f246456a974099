"""Die at a named point: how tests place a ``kill -9`` where they want it, and nothing else.

``AIOLOG_CRASH=mid_write:7`` kills the process the seventh time it comes by the point ``mid_write``. Several points
are separated by commas. Without the variable a point costs a call of an empty function. Where the points are,
``grep -rn crash. aiolog`` tells; each name is the moment just after what it says.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def _parse(text: str) -> dict[str, int]:
    """Return how often each point is passed before it kills."""
    counts = {}
    for one in filter(None, text.split(",")):
        name, _, count = one.partition(":")
        counts[name] = int(count or 1)
    return counts


_left = _parse(os.environ.get("AIOLOG_CRASH", ""))


def _is_due(name: str) -> bool:
    if name not in _left:
        return False
    _left[name] -= 1
    return _left[name] == 0


def _never(_name: str) -> bool:
    return False


is_due: Callable[[str], bool] = _is_due if _left else _never  # for a point that has something to do before it dies


def die() -> None:
    """Be gone at once, as after ``kill -9``: no flush, no finalizer, no handler."""
    os.kill(os.getpid(), signal.SIGKILL)


def _point(name: str) -> None:
    if is_due(name):
        die()


point: Callable[[str], object] = _point if _left else _never
"""Die here, if this is the moment that the environment names."""
