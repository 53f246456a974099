"""Fields of the context: what is true of every record until further notice, such as the request or the user.

They live in a context variable, so each thread and each asyncio task has its own. A handler reads them in the thread
that logs, and sends them as extras; an ``extra`` of the log call itself wins. Where OpenTelemetry is loaded, and only
there, the current span's ids are among them; this module never imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

_TRACING: Final = "opentelemetry.trace"

# Never changed in place: who has read it keeps what was true then. None where nothing is bound.
_fields: ContextVar[Mapping[str, Any] | None] = ContextVar("aiolog.fields", default=None)

bound = _fields.get
"""Return the fields that :class:`bind` has set here, or None; not to be changed."""


class bind:  # noqa: N801 - used as a function, and as what a with statement takes
    """Add fields to every record that this thread or task logs from now on.

    ``aiolog.bind(user=5)`` holds until :func:`unbind` or :func:`clear`, or until the task or thread ends. In
    ``with aiolog.bind(user=5):`` what was bound before is bound again afterwards.
    """

    __slots__ = ("_before",)

    def __init__(self, **fields: Any) -> None:
        self._before = bound()
        _fields.set({**(self._before or {}), **fields})

    def __enter__(self) -> Mapping[str, Any]:
        return bound() or {}

    def __exit__(self, *_: object) -> None:
        # Not by a token: that raises where a generator is finished in another context than it began in.
        _fields.set(self._before)


def unbind(*names: str) -> None:
    """Take fields away again; a name that is not bound does no harm."""
    fields = bound()
    if fields:
        _fields.set({name: value for name, value in fields.items() if name not in names} or None)


def clear() -> None:
    """Take all fields away: at the begin of a request in a thread that served another one."""
    _fields.set(None)


def is_traced() -> bool:
    """Whether OpenTelemetry is loaded, so that :func:`trace_fields` may have something."""
    return _TRACING in sys.modules


def with_trace(fields: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return fields with ``trace_id`` and ``span_id`` of the current span, in the W3C's hexadecimal; bound ones win."""
    try:
        span = sys.modules[_TRACING].get_current_span().get_span_context()
        if not span.trace_id:
            return fields
        ids = {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
    except Exception:  # noqa: BLE001 - not loaded, half imported, or of another version
        return fields
    return ids if fields is None else {**ids, **fields}
