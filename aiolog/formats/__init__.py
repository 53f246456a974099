"""How a record looks in a line: one file a family of formats, and what they share.

A format is a function from the wire records of one source to their texts. It is compiled once, from settings; what
never changes at one call site is rendered when its first record comes, and a plain record then costs the joining of
a few strings around its message.

===========  =================================================================================================
escaping     what a peer may not put into a line
layout       what is compiled: the loop over a batch, and what it keeps of each site and thread
templates    templates of ``logging.Formatter``, split into literals and fields
text         lines by a template
schemas      which keys a structured line has: our own, Elastic's, OpenTelemetry's
structured   lines of keys and values, in JSON or logfmt
===========  =================================================================================================

Nothing here knows files, sockets, bytes or clocks, and nothing raises for what a record holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias, overload

from aiolog.record import WireRecord
from aiolog.source import Site, Source


class Lines(Sequence[str]):
    """Texts of one line each that were made together, and are taken apart for who wants one of them.

    ``joined`` is all of them; nothing but the newline at the end of each is a line end of :meth:`str.splitlines`.
    """

    __slots__ = ("_count", "joined")

    def __init__(self, joined: str, count: int) -> None:
        self.joined = joined
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self[:])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.joined.splitlines(keepends=True)[index]


Format: TypeAlias = Callable[[Source, Sequence[WireRecord]], Sequence[str]]
"""One text a record, in order and aligned: "" for a record not taken, else all its lines with the last newline."""

Accepts: TypeAlias = Callable[[Site], bool]
Style: TypeAlias = Literal["%", "{", "$"]
Escaping: TypeAlias = Literal["safe", "raw"]
Multiline: TypeAlias = Literal["indent", "escape"]
