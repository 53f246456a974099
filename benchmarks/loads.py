"""What the workers log, how much of it and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

LONG_CHARS = 4_096
TEXT_LINE = "%(asctime)s %(levelname)s %(processName)s[%(process)d] %(name)s: %(message)s"

# A record says whose it is, its number and its moment, and ends with the first two again: so a line that is lost,
# twice, torn, mixed or out of order shows. A traceback's last line is where its record ends.
_BEGIN, _USER, _END = "<%d %d %d>", "user %d logged in from 10.0.0.%d after %.1f ms", "</%d %d>"
_TEMPLATES = {
    "short": f"{_BEGIN} {_USER} {_END}",
    "extra": f"{_BEGIN} {_USER} {_END}",
    "long": f"{_BEGIN} {_USER} %s {_END}",
    "traceback": f"{_BEGIN} {_USER}",
}
_LONG = "0123456789abcdef" * (LONG_CHARS // 16)


class Load(NamedTuple):
    """``records`` and ``per_second`` are of all workers together; ``per_second`` 0: as fast as they can."""

    name: str
    records: int
    per_second: int = 0
    connections: int = 4
    workers: int = 4  # processes, which share the connections
    kind: str = "short"
    format: str = "text"
    server: str = "well"  # or "absent": it starts when all is logged; "stopped": it goes on then

    def connections_of(self, worker: int) -> range:
        """Return the connections of a worker."""
        return range(worker, self.connections, self.workers)

    def numbers(self, worker: int) -> Iterator[tuple[int, int]]:
        """Yield the records of a worker: the connection that each takes, in turn, and its number there, from 0."""
        own = self.connections_of(worker)
        for number in range(self.records_each):
            for connection in own:
                yield connection, number

    @property
    def records_each(self) -> int:
        """The records of each connection."""
        return self.records // self.connections

    def template(self, style: str) -> str:
        """Return the message before its arguments are put in; ``style`` is % or {."""
        percent = _TEMPLATES[self.kind]
        return percent if style == "%" else percent.replace("%.1f", "{:.1f}").replace("%d", "{}").replace("%s", "{}")

    def arguments(self, connection: int, number: int, moment: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the log call takes behind the message."""
        user = number % 1_000
        args: tuple[Any, ...] = (connection, number, moment, user, number % 256, user / 10)
        if self.kind == "traceback":
            return args, {"exc_info": _failed(f"</{connection} {number}>")}
        if self.kind == "long":
            args = (*args, _LONG)
        options = (
            {"extra": {"user": user, "path": "/api/v1/login", "took_ms": user / 10}} if self.kind == "extra" else {}
        )
        return (*args, connection, number), options


def _failed(text: str) -> RuntimeError:
    """Return an exception that was raised, four frames deep."""

    def dive(depth: int) -> None:
        if depth:
            dive(depth - 1)
        raise RuntimeError(text)

    try:
        dive(3)
    except RuntimeError as error:
        return error
    raise AssertionError


LOADS = {
    load.name: load
    for load in (
        Load("flood", 200_000),
        Load("flood-json", 200_000, format="json"),
        Load("extra-json", 100_000, kind="extra", format="json"),
        Load("paced", 16_000, 4_000),
        Load("many-10", 80_000, 20_000, connections=10, workers=10),
        Load("many-100", 80_000, 20_000, connections=100, workers=20),
        Load("many-1000", 80_000, 20_000, connections=1_000, workers=20),
        Load("long", 40_000, kind="long"),
        Load("traceback", 40_000, kind="traceback"),
        Load("absent", 12_000, 4_000, server="absent"),
        Load("stopped", 12_000, 4_000, server="stopped"),
    )
}
