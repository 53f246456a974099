"""Whatever an application or a peer gives, as text, a name or a number; nothing here raises an ``Exception``."""

from __future__ import annotations

from typing import Any

MAX_NAME_CHARS = 4_096  # of one name: PATH_MAX on Linux; a logger's or thread's name is far below
INT_MIN, INT_MAX = -(1 << 63), (1 << 64) - 1  # what msgpack can carry as an int
MAX_BYTES = 64 << 10  # of bytes that become text: the text of a gigabyte would be made before it is cut


def as_text(value: Any) -> str:
    """Return ``str(value)`` as a real ``str``, whatever the object does."""
    try:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return repr(bytes(value[:MAX_BYTES]))
        text = str(value)
        return text if type(text) is str else str.__str__(text)
    except Exception:  # noqa: BLE001 - str() runs foreign code
        return as_repr(value)


def as_repr(value: Any) -> str:
    """Return ``repr(value)`` as a real ``str``, or which type it was that has none."""
    try:
        text = repr(value)
        return text if type(text) is str else str.__str__(text)
    except Exception as error:  # noqa: BLE001
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def as_name(value: Any) -> str:
    """Return a text of at most ``MAX_NAME_CHARS``."""
    return (value if type(value) is str else as_text(value))[:MAX_NAME_CHARS]


def as_number(value: Any) -> int:
    """Return an integer that msgpack can carry; 0 for what is no number."""
    try:
        return max(INT_MIN, min(INT_MAX, int(value)))
    except Exception:  # noqa: BLE001
        return 0
