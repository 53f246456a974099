"""Who logs: a process as a server knows it, its call sites and threads, and the memory that all of this may take.

Knows no record and no connection. The worker's encoder makes the same definitions that a server takes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple, TypeAlias

from aiolog.coerce import MAX_NAME_CHARS, as_name, as_number

MAX_SITES = 4_096  # call sites in the dictionary; more travel in place. Large services have about 2,000
MAX_THREADS = 1_024  # a thread per request would otherwise fill the dictionary with the dead
MAX_DEFINITIONS = MAX_SITES + MAX_THREADS  # a server takes so many, and not one more
MAX_DEFINITION_CHARS = 2 << 20  # of all names in one dictionary, so that nobody's server holds more than this
MAX_SHORT_CHARS = 256  # of the names of a process that is gone: more than any has
KEPT_BYTES = 200  # of a definition, or what is kept for one, besides its texts: a tuple, and its place in a dictionary
MAX_LABELS = 64  # of one process: a dozen of the orchestrator's, and the service's own
MAX_LABEL_CHARS = 1_024  # of a label's name or value


class Site(NamedTuple):
    """What never changes at one log statement; it travels once per connection."""

    name: str
    levelno: int
    levelname: str
    pathname: str
    filename: str
    module: str
    lineno: int
    funcName: str | None  # noqa: N815 - the name that LogRecord gives it

    @classmethod
    def of(cls, fields: Sequence[Any]) -> Site:
        """Make a site of eight fields of any type; what is wrong becomes text, or 0 for a number."""
        name, levelno, levelname, pathname, filename, module, lineno, function = fields
        return cls(
            as_name(name),
            as_number(levelno),
            as_name(levelname),
            as_name(pathname),
            as_name(filename),
            as_name(module),
            as_number(lineno),
            None if function is None else as_name(function),
        )


class Thread(NamedTuple):
    """The thread of a record: its ident and its name, either of which ``logging`` may have been told to omit."""

    ident: int | None
    name: str | None

    @classmethod
    def of(cls, fields: Sequence[Any]) -> Thread:
        """Make a thread of two fields of any type."""
        ident, name = fields
        return cls(
            None if ident is None else as_number(ident),
            None if name is None else as_name(name),
        )


Definition: TypeAlias = Site | Thread


def definition(fields: Sequence[Any]) -> Definition:
    """Make a site of eight fields, or a thread of two.

    Raises ``ValueError`` when there is another number of them.
    """
    if len(fields) == len(Thread._fields):
        return Thread.of(fields)
    return Site.of(fields)


class Room:
    """The memory that all sources of a server share, for what processes say of themselves and formats keep of it.

    ``used_bytes`` counts what any source holds that somebody still knows. ``is_short``: more was asked for than there
    is, since somebody last set it back.
    """

    __slots__ = ("is_short", "limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.is_short = False

    def has(self, size_bytes: int) -> bool:
        """Whether there is room for so much more."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            self.is_short = True
            return False
        return True


_UNBOUNDED = Room(inf)  # for sources that nobody else can make


class Source:
    """One process at the other end of a connection: what all its records share.

    ``definitions`` maps the numbers of the dictionary to sites and threads; numbers only grow and never change
    their meaning. ``plans`` is where a formatter keeps what it has prepared for each site, so that it goes when
    the connection goes. ``start_time`` is the worker's ``logging._startTime``: seconds as a float, or an int in
    nanoseconds from CPython 3.13. ``size_bytes`` is about what all of it takes in memory; ``room`` counts it until
    nobody knows the source any more.
    """

    __slots__ = (
        "_room",
        "app",
        "definitions",
        "host",
        "labels",
        "pid",
        "plans",
        "process_name",
        "size_bytes",
        "start_time",
    )

    def __init__(
        self,
        *,
        app: str = "",
        host: str = "",
        pid: int | None = None,
        process_name: str | None = None,
        labels: Mapping[str, str] | None = None,
        start_time: float = 0.0,
        room: Room = _UNBOUNDED,
    ) -> None:
        self._room = room
        self.size_bytes = 0
        self.app = app
        self.host = host
        self.pid = pid
        self.process_name = process_name
        self.labels = dict(labels or {})
        self.start_time = start_time
        self.definitions: dict[int, Definition] = {}
        self.plans: dict[object, dict[Any, Any]] = {}
        self._count((app, host, process_name, *self.labels, *self.labels.values()))

    def __del__(self) -> None:
        # Whoever knows it last: a delivery may wait for a stuck disk long after its connection is gone.
        self._room.used_bytes -= self.size_bytes

    @classmethod
    def of(cls, hello: Any, room: Room = _UNBOUNDED) -> Source:
        """Return the process that a HELLO describes, its texts cut to sane lengths."""
        process_name = hello.process_name
        return cls(
            app=hello.app[:MAX_NAME_CHARS],
            host=hello.host[:MAX_NAME_CHARS],
            pid=hello.pid,
            process_name=process_name[:MAX_NAME_CHARS] if process_name is not None else None,
            labels={
                name[:MAX_LABEL_CHARS]: value[:MAX_LABEL_CHARS]
                for name, value in list(hello.labels.items())[:MAX_LABELS]
                if isinstance(name, str) and isinstance(value, str)
            },
            start_time=hello.start_time,
            room=room,
        )

    def in_short(self) -> Source:
        """Return who it is, without labels and definitions: what can be kept of a hundred thousand for days."""
        process_name = self.process_name
        return Source(
            app=self.app[:MAX_SHORT_CHARS],
            host=self.host[:MAX_SHORT_CHARS],
            pid=self.pid,
            process_name=process_name[:MAX_SHORT_CHARS] if process_name is not None else None,
        )

    def define(self, fields: Sequence[Any]) -> None:
        """Add the next definition. Raises ``ValueError`` for a wrong number of fields."""
        made = definition(fields)
        self.definitions[len(self.definitions)] = made
        self._count(made)

    def reserve(self, texts: Iterable[Any]) -> bool:
        """Whether some texts may be kept in ``plans``; they are counted then, and else made anew each time."""
        size_bytes = _bytes_of(texts)
        if not self._room.has(size_bytes):
            return False
        self._take(size_bytes)
        return True

    def _count(self, texts: Iterable[Any]) -> None:
        """Count what is kept in any case; who is responsible for the room sees to it."""
        size_bytes = _bytes_of(texts)
        self._room.has(size_bytes)
        self._take(size_bytes)

    def _take(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self._room.used_bytes += size_bytes


def _bytes_of(texts: Iterable[Any]) -> int:
    return KEPT_BYTES + sum(map(sys.getsizeof, texts))
