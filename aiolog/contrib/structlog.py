"""structlog: a last processor that sends events to aiolog, without a detour over ``logging``.

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, aiolog.contrib.structlog.Processor()])

Values keep their types on the way: a number stays one in the log. Imports structlog when a processor is made.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from types import FrameType
from typing import Any, NoReturn

from aiolog.contrib.foreign import Outlet, make_record

DEFAULT_NAME = "structlog"
_INSIDE = ("structlog.", "aiolog.")  # modules that no log statement is in
_LEVELS = {"notset": 0, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "exception": 40,
           "critical": 50, "fatal": 50}  # fmt: skip
# What processors of structlog say of the caller and the moment, and the record says itself.
_SAID_BY_RECORD = ("level", "logger", "timestamp", "pathname", "filename", "module", "func_name", "lineno", "thread",
                   "thread_name", "process", "process_name")  # fmt: skip


class Processor:
    """Send each event, then drop it; or pass it on to the next processor with ``terminal=False``.

    ``handler``: the one of :func:`aiolog.setup`, unless you give another. The event is the message; level, logger
    (from ``structlog.stdlib.add_logger_name``, or the name of the logger), exception and stack stand where those of
    ``logging`` do; everything else is a field.
    """

    def __init__(self, handler: logging.Handler | None = None, *, terminal: bool = True) -> None:
        from structlog import DropEvent  # noqa: PLC0415 - only who makes a processor has structlog

        self._outlet = Outlet(handler)
        self._drop: type[BaseException] = DropEvent
        self._terminal = terminal

    def __call__(self, logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> Any:
        """Do it. Raises structlog's ``DropEvent``, which ends the event's way and is no error."""
        fields = dict(event_dict)
        message = fields.pop("event", "")
        level = _LEVELS.get(str(fields.get("level", method_name)).lower(), logging.INFO)
        name = fields.get("logger") or getattr(logger, "name", None) or DEFAULT_NAME
        exc_info = _exc_info(fields.pop("exc_info", None))
        exc_text, stack = fields.pop("exception", None), fields.pop("stack", None)
        stack_info = fields.pop("stack_info", None)
        frame = _caller(sys._getframe())  # noqa: SLF001 - as logging does
        path, line, function = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        if "pathname" in fields and "lineno" in fields:
            path, line, function = str(fields["pathname"]), fields["lineno"], fields.get("func_name", function)
        for key in _SAID_BY_RECORD:
            fields.pop(key, None)
        record = make_record(
            str(name),
            level,
            message if isinstance(message, str) else str(message),
            path=path,
            line=line,
            function=function,
            exc_info=exc_info,
            fields={key: value for key, value in fields.items() if not key.startswith("_")},
            exc_text=None if exc_text is None else str(exc_text),
            stack_info=str(stack) if stack else _stack(frame) if stack_info is True else stack_info or None,
        )
        self._outlet.handle(record)
        if self._terminal:
            self._end()
        return event_dict

    def _end(self) -> NoReturn:
        raise self._drop


def _exc_info(given: Any) -> Any:
    """Return what ``logging`` takes: structlog takes True, an exception, or a tuple."""
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    if isinstance(given, tuple):
        return given
    found = sys.exc_info() if given else None
    return found if found and found[0] else None


def _caller(frame: FrameType) -> FrameType:
    """Return the frame of the log statement: the first that is neither ours nor structlog's."""
    found: FrameType | None = frame
    while found is not None:
        name = found.f_globals.get("__name__", "")
        if not f"{name}.".startswith(_INSIDE):
            return found
        found = found.f_back
    return frame


def _stack(frame: FrameType) -> str:
    import traceback  # noqa: PLC0415 - seldom needed

    return "Stack (most recent call last):\n" + "".join(traceback.format_stack(frame)).rstrip("\n")
