"""Records of loggers that are not those of ``logging``: made as it makes its own, and handed to a handler."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from aiolog.configure import setup

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_NANOSECONDS = sys.version_info >= (3, 13)  # LogRecord counts in them, see aiolog/record.py


def make_record(
    name: str,
    level: int,
    message: str,
    *,
    path: str,
    line: int,
    function: str | None,
    fields: Mapping[str, Any],
    exc_info: Any = None,
    **attributes: Any,
) -> logging.LogRecord:
    """Return a record with a rendered message; ``fields`` are its extras, ``attributes`` any that differ from now's.

    A field with the name of a standard attribute gets an underscore behind it: the attribute is not its.
    """
    record = logging.LogRecord(name, level, path, line, message, None, exc_info, function)
    record.__dict__.update(attributes)
    record.__dict__.update((f"{key}_" if key in _STANDARD else key, value) for key, value in fields.items())
    return record


def moment(created: float) -> dict[str, float]:
    """Return the attributes of time for a moment in seconds since the epoch, as ``LogRecord.__init__`` has them."""
    start: float = logging._startTime  # type: ignore[attr-defined]  # noqa: SLF001 - relativeCreated's zero
    if _NANOSECONDS:
        nanoseconds = round(created * 1e6) * 1000
        return {
            "created": nanoseconds / 1e9,
            "msecs": nanoseconds % 10**9 // 10**6 + 0.0,
            "relativeCreated": (nanoseconds - start) / 1e6,
        }
    return {
        "created": created,
        "msecs": int((created - int(created)) * 1000) + 0.0,
        "relativeCreated": (created - start) * 1000,
    }


class Outlet:
    """Where such records go: the given handler, or the one of :func:`aiolog.setup`, made at the first record."""

    def __init__(self, handler: logging.Handler | None) -> None:
        self._handler = handler

    def handle(self, record: logging.LogRecord) -> None:
        """Hand a record over, past all loggers of ``logging``; the handler's level and filters count."""
        handler = self._handler
        if handler is None:
            handler = self._handler = setup()
        if record.levelno >= handler.level:
            handler.handle(record)
