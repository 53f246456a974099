r"""What a peer may not put into a line, and how it is shown instead.

A line begins at the margin only where a record begins, and no terminal takes an order from one::

    2026-11-23 08:00:00,123 ERROR app: it\x1b[2J broke
    \t| Traceback (most recent call last):
    \t|   File "app.py", line 3, in run
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

CONTINUATION = "\t| "  # what every line of a record but the first begins with, and the first never does

# C0 but tab and newline, DEL, C1; the Unicode line ends; marks, embeddings, overrides and isolates of direction
# (CVE-2021-42574); lone surrogates, which UTF-8 cannot carry. All that str.splitlines splits at is here.
UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def escape_indenting(raw: str) -> str:
    """Escape what is unsafe and mark the lines after the first. Piece by piece gives the same as all at once."""
    if raw.isprintable():
        return raw
    return _escaped_but_lines(raw).replace("\n", "\n" + CONTINUATION)


def escape_to_one_line(raw: str) -> str:
    r"""Escape what is unsafe, and newlines as ``\n``. Piece by piece gives the same as all at once."""
    if raw.isprintable():
        return raw
    return _escaped_but_lines(raw).replace("\n", "\\n")


def _escaped_but_lines(raw: str) -> str:
    return raw if _are_plain_lines((raw,)) else UNSAFE.sub(_escaped, raw)  # of a traceback, a quarter of the time


def escape_in_json(quoted: str) -> str:
    r"""Escape what is unsafe in a JSON string that is escaped as far as JSON wants it."""
    return quoted if quoted.isprintable() else UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)


def at_margin(line: str) -> str:
    """Return the text of a record such that its first line does not look like the continuation of another."""
    return "\\x09" + line[1:] if line.startswith("\t") else line


# ---------------------------------------------------------------------------------------------------------------
# Asking for many messages at once is 4 times as fast as str.isprintable for each (55 characters, CPython 3.11 and
# 3.13, 2026-11): bytes.translate looks each byte up and returns the same object if it changed none.


def _marking(suspects: Iterable[int]) -> bytes:
    """Return a table for ``bytes.translate`` that changes these bytes, and no others."""
    marked = frozenset(suspects)
    return bytes(byte ^ 1 if byte in marked else byte for byte in range(256))


_CONTROLS = {*range(0x20), 0x7F}
# With which bytes the others of UNSAFE begin in UTF-8: U+0080-00BF, U+0600-063F, U+2000-2FFF. Most letters do not.
_LEADS = {0xC2, 0xD8, 0xE2}
_QUOTE = frozenset(b'"\\')

PLAIN_TEXT = _marking(_CONTROLS - {0x09} | _LEADS)
PLAIN_QUOTED = _marking(_CONTROLS | _LEADS | _QUOTE)
PLAIN_ASCII = _marking(_CONTROLS | _QUOTE | {*range(0x80, 0x100)})


def all_plain(table: bytes) -> Callable[[Sequence[str]], bool]:
    """Return a function that says whether none of some messages needs escaping; False if it cannot tell."""

    def are_plain(messages: Sequence[str]) -> bool:
        try:
            joined = "".join(messages).encode()
        except Exception:  # noqa: BLE001 - a lone surrogate, or no text
            return False
        return joined.translate(table) is joined

    return are_plain


_are_plain_lines = all_plain(_marking(_CONTROLS - {0x09, 0x0A} | _LEADS))
