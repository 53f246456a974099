"""A compiled format: the loops over a batch, written for its slots, and what it keeps of each site and thread.

Most of a line is the same for all records of a call site. A *plan* is that: the constant texts of the site, around
the *slots*, which differ from record to record. For a layout with the slots moment, message and thread, a line is

    ``constant0 moment constant1 message constant2 thread constant3``

and the loops that join them are written out and compiled once for each layout, as ``namedtuple`` does with its
``__new__``: they ask for nothing that the layout does not show. There are three ways to a text, each for what the one
before it cannot take, and all to the same text:

===========  =================================================================================================
evenly       most batches: records of one second, nearly all without ``rare``. What holds for all is asked of all
             together, in C; the lines of a flood of one call site are one ``str.join``, or one a millisecond
one by one   a few records, many with ``rare``, of several seconds: types, moment and escaping are looked at in each
slowly       whatever does not fit (a first record, fields in place, a wrong type, a moment before 1970) is rebuilt
             by :func:`aiolog.record.attributes` and rendered field by field
===========  =================================================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import floor, inf
from typing import Any, NamedTuple

from aiolog.formats import Accepts, Lines
from aiolog.record import MALFORMED, MILLISECOND_NS, SECOND_NS, WireRecord, attributes
from aiolog.source import Site, Source

DIGITS = tuple(f"{number:03d}" for number in range(1000))  # an index is 4 times as fast as a format
SECONDS_KEPT = 16  # texts of whole seconds; records of many processes come in nearly the order of their moments
_TOGETHER = 64  # records whose messages are looked at together: one that needs escaping costs its neighbours little
_MANY = 24  # records from which on asking all together costs less than asking each
_ONE_IN = 32  # records is asked for `rare` first: in an even batch each that has it costs as much as ten others
_WORTH_A_JOIN = 16  # records of one millisecond, on average: then finding where it ends costs less than it saves


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
# round as logging does for msecs and datetime for microseconds, with the methods behind int() and round(), which take
# half as long; what is rounded up to a whole second has no digits, and goes the slow way.
_UNITS = {
    "milli": ("rest // 1_000_000", "(rest * 1000).__trunc__()"),
    "micro": ("rest // 1000", "(rest * 1e6).__round__()"),
    "nano": ("rest", "(rest * 1e9).__round__()"),
}

_LOOPS = """
{alike}

def one_by_one(source, records):
    plans = source.plans.setdefault(layout, {{}})
    threads = source.plans.setdefault(layout.threads, {{}})
    made = []
    add = made.append
    {recall_second}
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
                {take_second}
                {take_rest}
                {take_thread}
                {keep_raw}
                {escape}
                {take_rare}
                line = {line}
                {finish}
                {append_rare}
                add(line)
            except Exception:
                add(layout._slowly(source, wire))
    return made

def evenly(source, records):
    plans = source.plans[layout]
    threads = source.plans[layout.threads]
    if plans.get(records[0][1], unknown) is None or set(map(len, records[::one_in])) != four:
        return None
    columns = {take_columns}
    {take_moments}
    plain = records
    {escape_all}
    {ask_alike}
    made = []
    add = made.append
    known = unknown
    for wire in plain:
        try:
            created, site, thread, message = wire
            plan = plans[site]
            if plan is None:
                add("")
                continue
            {constants} = plan
            {take_rest}
            {take_thread}
            {keep_raw}
            line = {line}
            {finish}
            add(line)
        except Exception:
            made += one_by_one(source, records[len(made) : len(made) + 1])
    return made
"""

_RECALL_SECOND = """
start, end, second = layout._last_second
exact = type(start) is int"""

_TAKE_SECOND = """
if type(created) is not type(start) or not start <= created < end:
    start, end, second = layout._last_second = window(created)
    exact = type(start) is int"""

_TAKE_REST = """
rest = created - start
{unit} = {from_int} if exact else {from_float}"""

_TAKE_THREAD = """
if thread != known:
    {threads}= threads[thread]
    known = thread"""

_ESCAPE = """
if are_plain is None:
    are_plain = False  # for the others, where one has no message
    are_plain = all_plain([wire[3] for wire in chunk])
if not are_plain:
    message = escape(message)"""

_TAKE_MOMENTS = """
moments = list(columns[0]) if columns else [wire[0] for wire in records]
created = moments[0]
{recall_second}
{take_second}
ordered = sorted(moments)
if not are_between(ordered, start, end):
    return None"""

_ESCAPE_ALL = """
messages = columns[3] if columns else [wire[3] for wire in records]
if not all_plain(messages):
    plain = escaped(records, messages, all_plain, escape)"""

_PLAIN_ONLY = """
if not all_plain([wire[3] for wire in records]):
    return None"""

# Of many sites only moments and messages are asked for, and two loops cost less.
_TAKE_COLUMNS = "columns_of(records) if records[0][1] == records[len(records) // 2][1] == records[-1][1] else None"

_ASK_ALIKE = """
if columns and plain is records and are_alike(columns):
    lines = alike(plans[records[0][1]], threads.get(records[0][2]), moments, moments == ordered, messages)
    if lines is not None:
        return lines"""

# Of a flood: the lines of one site and one thread are the same before what differs first, and behind what does last.
# Where the layout shows no more of a moment than its millisecond, those of one differ in the message alone.
_ALIKE = """
def alike(constants, thread, moments, are_ordered, messages):
    {constants} = constants
    {take_threads}
    {recall_second}
    {join}"""

_JOIN_MILLISECONDS = """
texts = []
for milli, begin, end in milliseconds(moments, start) if are_ordered else ():
    before, after = {before}, {after}
    texts.append(before + (after + before).join(messages[begin:end]) + after)
if texts and (before + after).count(newline) == 1:
    return Lines("".join(texts), len(messages))"""

_JOIN_MOMENTS = """
before, after = {before}, {after}
texts = [
    {between}
    for created, message in zip(moments, messages)
    for rest in (created - start,)
    for {unit} in ({from_int} if exact else {from_float},)
]
if (before + texts[0] + after).count(newline) == 1:
    texts[0] = before + texts[0]
    texts[-1] += after
    return Lines((after + before).join(texts), len(messages))"""


def _filled(template: str, **pieces: str) -> str:
    """Fill a template as ``str.format`` does; all lines of a piece are indented as the place where it stands."""
    lines = []
    stripped = {name: piece.strip("\n") for name, piece in pieces.items()}
    for line in template.strip("\n").splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        lines.append(line.format(**stripped).replace("\n", "\n" + indent))
    return "\n".join(lines)


def _are_between(ordered: Sequence[float], start: float, end: float) -> bool:
    """Whether some moments, in order, are of the type of ``start`` and before ``end``; False if it cannot tell."""
    if type(start) is float:  # between it and the next whole number is no int; a sum with a NaN is not less than inf
        return start < ordered[0] and ordered[-1] < end and sum(ordered) < inf
    return start <= ordered[0] and ordered[-1] < end and list(map(type, ordered)).count(int) == len(ordered)


def _escaped(
    records: Sequence[WireRecord],
    messages: Sequence[str],
    all_plain: Callable[[Sequence[str]], bool],
    escape: Callable[[str], str],
) -> list[WireRecord]:
    """Return the records with their messages escaped, but for those with ``rare``."""
    found: list[WireRecord] = []
    for begin in range(0, len(records), _TOGETHER):
        chunk, raws = records[begin : begin + _TOGETHER], messages[begin : begin + _TOGETHER]
        if not all_plain(raws):
            chunk = [
                wire if (shown := escape(raw)) == raw or len(wire) != 4 else (*wire[:3], shown)
                for wire, raw in zip(chunk, raws, strict=True)
            ]
        found += chunk
    return found


def _columns_of(records: Sequence[WireRecord]) -> list[tuple[Any, ...]] | None:
    """Return the moments, the sites, the threads and the messages of some records; None if one has more than these."""
    try:
        columns = list(zip(*records, strict=True))  # half of what a loop over the records takes for each
    except ValueError:
        return None
    return columns if len(columns) == 4 else None


def _are_alike(columns: Sequence[Sequence[Any]], *, has_threads: bool) -> bool:
    """Whether some records are of one site and, if need be, of one thread."""
    return all(column.count(column[0]) == len(column) for column in columns[1 : 3 if has_threads else 2])


def _milliseconds(moments: Sequence[float], start: float) -> list[tuple[int, int, int]]:
    """Return steps of moments in order: the millisecond since ``start`` that all of them are of, begin and end.

    None at all when they are too many to be worth it.
    """
    exact = type(start) is int
    one = MILLISECOND_NS if exact else 0.001

    def milli_of(moment: float) -> int:  # as in _UNITS
        return int((moment - start) // MILLISECOND_NS if exact else (moment - start) * 1000)

    found: list[tuple[int, int, int]] = []
    if (milli_of(moments[-1]) - milli_of(moments[0])) * _WORTH_A_JOIN > len(moments):
        return found
    begin = 0
    while begin < len(moments):
        milli = milli_of(moments[begin])
        end = bisect_left(moments, start + (milli + 1) * one, begin + 1)
        while milli_of(moments[end - 1]) != milli:  # floats are not exact; what is left out is a step of its own
            end -= 1
        found.append((milli, begin, end))
        begin = end
    return found


def parts_of(shape: Sequence[Slot | None], prefix: str) -> tuple[str, list[str]]:
    """Return the source of two things: the names of a shape's constants, as a target, and each part of its line."""
    constants = [f"{prefix}{number}" for number in range(shape.count(None))]
    waiting = iter(constants)
    return f"[{', '.join(constants)}]", [slot.expression if slot else next(waiting) for slot in shape]


def text_of(parts: Sequence[str]) -> str:
    """Return the source of the text that some parts of a line make."""
    return "f'" + "".join(f"{{{part}}}" for part in parts) + "'"


class Layout(ABC):
    """A compiled format, and how it learns the sites and threads of a source.

    ``Source.plans[self]`` maps the number of a site to the constant texts of its lines, or to None when it is not
    taken, and ``Source.plans[self.threads]`` the number of a thread to its texts: both as bounded as the dictionary.
    """

    continuation: str | None = ""  # what further lines of a record begin with; None: they cannot be told

    def __init__(self, accepts: Accepts) -> None:
        self._accepts = accepts
        self.threads = (self, "threads")
        self._last_second: tuple[float, float, str] = (0.0, 0.0, "")  # no moment is in it
        self._one_by_one: Callable[[Source, Sequence[WireRecord]], list[str]] | None = None
        self._evenly: Callable[[Source, Sequence[WireRecord]], Sequence[str] | None]

    def __call__(self, source: Source, records: Sequence[WireRecord]) -> Sequence[str]:
        """Return the text of each record."""
        if self._one_by_one is None:
            return [self._slowly(source, wire) for wire in records]
        texts = None
        if len(records) >= _MANY:
            try:
                texts = self._evenly(source, records)
            except Exception:  # noqa: BLE001 - something among them is not what it should be
                texts = None
        return self._one_by_one(source, records) if texts is None else texts

    def _compile(
        self,
        shape: Sequence[Slot | None],
        *,
        unit: str,
        all_plain: Callable[[Sequence[str]], bool] | None,
        escape: Callable[[str], str],
        check_rare: str = "",
        take_rare: str = "",
        append_rare: str = "",
        finish: str = "",
        names: Mapping[str, Any],
    ) -> None:
        """Write the loops for lines of this shape and compile them: None is a constant of the site, at least one.

        The others are statements: ``check_rare``, ``take_rare`` and ``append_rare`` for records that may have ``rare``,
        before and after their slots are known and once their line is made, ``finish`` for the line of any record. No
        text of a setting or a record gets into the source.
        """
        constants, parts = parts_of(shape, "constant")
        line = text_of(parts)
        kinds = Counter(slot.kind for slot in shape if slot)
        threads = "".join(f"thread{number}, " for number in range(kinds["thread"]))
        from_int, from_float = _UNITS[unit]
        is_timed, is_escaped = bool(kinds["moment"]), all_plain is not None and bool(kinds["message"])
        needs_raw = "(raw)" in line
        take_columns, alike, ask_alike = "None", "", ""
        if is_timed and is_escaped and shape.count(MESSAGE) == kinds["message"] == 1 and not finish:
            differing = [
                number
                for number, slot in enumerate(shape)
                if slot == MESSAGE or (slot and slot.kind == "moment" and slot != SECOND and unit != "milli")
            ]
            first, last = differing[0], differing[-1]
            join = _filled(
                _JOIN_MILLISECONDS if unit == "milli" else _JOIN_MOMENTS,
                before=text_of(parts[:first]),
                between=text_of(parts[first : last + 1]),
                after=text_of(parts[last + 1 :]),
                unit=unit,
                from_int=from_int,
                from_float=from_float,
            )
            take_threads = f"{threads}= thread" if threads else ""
            alike = _filled(
                _ALIKE, constants=constants, take_threads=take_threads, recall_second=_RECALL_SECOND, join=join
            )
            take_columns, ask_alike = _TAKE_COLUMNS, _ASK_ALIKE

        source = _filled(
            _LOOPS,
            constants=constants,
            take_second=_TAKE_SECOND if is_timed else "",
            recall_second=_RECALL_SECOND if is_timed else "",
            take_moments=_filled(_TAKE_MOMENTS, recall_second=_RECALL_SECOND, take_second=_TAKE_SECOND)
            if is_timed
            else "",
            take_rest=_filled(_TAKE_REST, unit=unit, from_int=from_int, from_float=from_float) if is_timed else "",
            take_thread=_filled(_TAKE_THREAD, threads=threads) if threads else "",
            check_rare=check_rare,
            take_rare=take_rare,
            append_rare=append_rare,
            keep_raw="raw = message" if needs_raw else "",
            escape=_ESCAPE if is_escaped else "",
            take_columns=take_columns,
            escape_all=(_PLAIN_ONLY if needs_raw else _ESCAPE_ALL) if is_escaped else "",
            alike=alike,
            ask_alike=ask_alike,
            line=line,
            finish=finish,
        )
        namespace: dict[str, Any] = {
            "layout": self,
            "window": self._window,
            "are_between": _are_between,
            "columns_of": _columns_of,
            "are_alike": partial(_are_alike, has_threads=bool(threads)),
            "milliseconds": _milliseconds,
            "Lines": Lines,
            "all_plain": all_plain,
            "escape": escape,
            "escaped": _escaped,
            "together": _TOGETHER,
            "one_in": _ONE_IN,
            "four": {4},
            "digits": DIGITS,
            "newline": "\n",
            "nothing": {},
            "unknown": object(),  # no number of a thread equals it
            **names,
        }
        exec(compile(source, f"<{type(self).__name__}>", "exec"), namespace)  # noqa: S102 - see the docstring
        self._one_by_one, self._evenly = namespace["one_by_one"], namespace["evenly"]

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
            if type(thread) is int:
                texts = self._thread(plain)
                if source.reserve(texts):
                    threads[thread] = texts
            if site not in plans:
                known = Site(*(plain[name] for name in Site._fields))
                constants = self._site(source, plain) if self._accepts(known) else None
                if source.reserve(constants or ()):
                    plans[site] = constants
                return constants is not None
        return plans[site] is not None
