"""A compiled format: the loop over a batch, written for its slots, and what it keeps of each site and thread.

Most of a line is the same for all records of a call site. A *plan* is that: the constant texts of the site, around
the *slots*, which differ from record to record. For a layout with the slots moment, message and thread, a line is

    ``constant0 moment constant1 message constant2 thread constant3``

and the loop that joins them is written out and compiled once for each layout, as ``namedtuple`` does with its
``__new__``: it asks for nothing that the layout does not show. Whatever does not fit that way (a first record, fields
in place, a wrong type, a moment before 1970) is rebuilt by :func:`aiolog.record.attributes` and rendered field by
field, to the same text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import floor
from typing import Any, NamedTuple

from aiolog.formats import Accepts, Format
from aiolog.record import MALFORMED, SECOND_NS, Site, Source, WireRecord, attributes

DIGITS = tuple(f"{number:03d}" for number in range(1000))  # an index is 4 times as fast as a format
SECONDS_KEPT = 16  # texts of whole seconds; records of many processes come in nearly the order of their moments
_TOGETHER = 64  # records whose messages are looked at together: one that needs escaping costs its neighbours little


class Slot(NamedTuple):
    """What differs from record to record, and its Python expression in the loop.

    The loop knows ``second`` (the text of the whole second), ``milli``, ``micro`` or ``nano`` (of the second, as
    many as the layout's unit says), ``message`` (escaped), ``raw`` (the message as it came), ``thread0`` … (the texts
    of the thread), and what the layout's own statements and ``names`` add.
    """

    kind: str  # "moment", "message", "thread" or "rare"
    expression: str


SECOND = Slot("moment", "second")
MESSAGE = Slot("message", "message")

# The rest of a second as the slots want it: from an int in nanoseconds, and from a float in seconds. They cut and
# round as logging does for msecs and datetime for microseconds; what is rounded up to a whole second has no digits,
# and goes the slow way.
_UNITS = {
    "milli": ("rest // 1_000_000", "int(rest * 1000)"),
    "micro": ("rest // 1000", "round(rest * 1e6)"),
    "nano": ("rest", "round(rest * 1e9)"),
}

_LOOP = """
def lines(source, records):
    plans = source.plans.setdefault(layout, {{}})
    threads = source.plans.setdefault(layout.threads, {{}})
    made = []
    add = made.append
    kind = None
    known = unknown
    for begin in range(0, len(records), together):
        chunk = records[begin : begin + together]
        are_plain = None
        for wire in chunk:
            try:
                plan = plans[wire[1]]
                if plan is None:
                    add("")
                    continue
                if len(wire) == 4:
                    created, _, thread, message = wire
                    rare = nothing
                else:
                    created, _, thread, message, rare = wire
                    {check_rare}
                {constants} = plan
                {take_moment}
                {take_thread}
                {keep_raw}
                {escape}
                {take_rare}
                line = {line}
                {finish}
                add(line)
            except Exception:
                add(layout._slowly(source, wire))
    return made
"""

_TAKE_MOMENT = """
                if type(created) is not kind or not start <= created < end:
                    start, end, second = window(created)
                    kind = type(created)
                    exact = kind is int
                rest = created - start
                {unit} = {from_int} if exact else {from_float}"""

_TAKE_THREAD = """
                if thread != known:
                    {threads} = threads[thread]
                    known = thread"""

_ESCAPE = """
                if are_plain is None:
                    are_plain = all_plain(chunk)
                if not are_plain:
                    message = escape(message)"""


def line_of(shape: Sequence[Slot | None], prefix: str) -> tuple[str, str]:
    """Return the source of two things: the names of the constants of a shape, as a target, and its line."""
    constants = [f"{prefix}{number}" for number in range(shape.count(None))]
    waiting = iter(constants)
    parts = [slot.expression if slot else next(waiting) for slot in shape]
    return f"[{', '.join(constants)}]", "f'" + "".join(f"{{{part}}}" for part in parts) + "'"


class Layout(ABC):
    """A compiled format, and how it learns the sites and threads of a source.

    ``Source.plans[self]`` maps the number of a site to the constant texts of its lines, or to None when it is not
    taken, and ``Source.plans[self.threads]`` the number of a thread to its texts: both as bounded as the dictionary.
    """

    continuation: str | None = ""  # what further lines of a record begin with; None: they cannot be told

    def __init__(self, accepts: Accepts) -> None:
        self._accepts = accepts
        self.threads = (self, "threads")
        self._lines: Format | None = None

    def __call__(self, source: Source, records: Sequence[WireRecord]) -> list[str]:
        """Return the text of each record."""
        if self._lines is None:
            return [self._slowly(source, wire) for wire in records]
        return self._lines(source, records)

    def _compile(
        self,
        shape: Sequence[Slot | None],
        *,
        unit: str,
        all_plain: Callable[[Sequence[WireRecord]], bool] | None,
        escape: Callable[[str], str],
        check_rare: str = "",
        take_rare: str = "",
        finish: str = "",
        names: Mapping[str, Any],
    ) -> Format:
        """Write the loop for lines of this shape and compile it: None is a constant of the site, at least one.

        ``check_rare``, ``take_rare`` and ``finish`` are statements: for a record that has ``rare``, before and after
        its slots are known, and for all records once their line is made. No text of a setting or a
        record gets into the source.
        """
        constants, line = line_of(shape, "constant")
        kinds = Counter(slot.kind for slot in shape if slot)
        threads = [f"thread{number}" for number in range(kinds["thread"])]
        from_int, from_float = _UNITS[unit]
        source = _LOOP.format(
            constants=constants,
            take_moment=bool(kinds["moment"])
            * _TAKE_MOMENT.format(unit=unit, from_int=from_int, from_float=from_float),
            take_thread=bool(threads) * _TAKE_THREAD.format(threads=", ".join(threads) + ","),
            check_rare=check_rare,
            take_rare=take_rare,
            keep_raw="raw = message" if "(raw)" in line else "",
            escape=_ESCAPE if all_plain and kinds["message"] else "",
            line=line,
            finish=finish,
        )
        namespace: dict[str, Any] = {
            "layout": self,
            "window": self._window,
            "all_plain": all_plain,
            "escape": escape,
            "together": _TOGETHER,
            "digits": DIGITS,
            "nothing": {},
            "unknown": object(),  # no number of a thread equals it
            **names,
        }
        exec(compile(source, f"<{type(self).__name__}>", "exec"), namespace)  # noqa: S102 - see the docstring
        lines: Format = namespace["lines"]
        return lines

    def _window(self, created: Any) -> tuple[float, float, str]:
        """Return where the second of ``created`` starts and ends, in its own unit, and its text.

        Raises ``ValueError`` or ``OverflowError`` for what is no finite number, and for a float before 1970: its
        milliseconds, in ``logging``, are negative.
        """
        if type(created) is int:
            second = created // SECOND_NS
            return second * SECOND_NS, (second + 1) * SECOND_NS, self._second(second)
        if type(created) is float and created >= 0:
            second = floor(created)
            return float(second), second + 1.0, self._second(second)
        raise ValueError("not a plain moment")

    @abstractmethod
    def _second(self, second: int) -> str:
        """Return the text of a whole second since 1970. Raises what it likes for one that only the slow way shows."""

    @abstractmethod
    def _site(self, source: Source, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the constant texts of a site, in their order, given all attributes of a plain record of it."""

    @abstractmethod
    def _thread(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the texts of a thread, one a slot of a thread, given all attributes of a plain record of it."""

    @abstractmethod
    def _rebuilt(self, source: Source, wire: WireRecord, values: dict[str, Any]) -> str:
        """Return the text of any record, given all its attributes."""

    def _slowly(self, source: Source, wire: WireRecord) -> str:
        """Return the text of anything at all, and learn its site and thread for the next record."""
        values = attributes(source, wire)
        if MALFORMED in values or type(wire[1]) is not int:
            taken = self._accepts(Site.of([values[name] for name in Site._fields]))
        else:
            taken = self._learned(source, wire[1], wire[2])
        return self._rebuilt(source, wire, values) if taken else ""

    def _learned(self, source: Source, site: int, thread: Any) -> bool:
        """Return whether the site is taken, after learning it and the thread."""
        plans = source.plans.setdefault(self, {})
        threads = source.plans.setdefault(self.threads, {})
        if site not in plans or (type(thread) is int and thread not in threads):
            plain = attributes(source, (0.0, site, thread, ""))
            if site not in plans:
                known = Site(*(plain[name] for name in Site._fields))
                plans[site] = self._site(source, plain) if self._accepts(known) else None
            if type(thread) is int:
                threads[thread] = self._thread(plain)
        return plans[site] is not None
