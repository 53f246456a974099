r"""Wire records become text: a ``logging.Formatter`` template, JSON lines or logfmt, compiled to a function.

It knows what a line looks like, and what a peer may not put into one. It knows nothing of files, sockets, bytes
or clocks (``localtime`` and ``strftime`` only convert), and it never raises for what a record holds.

All formats work alike. What never changes at one call site is rendered when its first record comes, and kept in
``Source.plans``; a plain record then costs the joining of a few strings around its message. Whatever does not fit
that way (a first record, fields in place, a wrong type, a moment before 1970) is rebuilt by
:func:`aiolog.record.attributes` and rendered field by field, to the same text.

A line begins at the margin only where a record begins, and no terminal takes an order from one::

    2026-11-23 08:00:00,123 ERROR app: it\x1b[2J broke
    \t| Traceback (most recent call last):
    \t|   File "app.py", line 3, in run
"""

from __future__ import annotations

import json
import logging
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring, encode_basestring_ascii
from math import floor, isfinite
from time import localtime, strftime
from typing import Any, Literal, NamedTuple, TypeAlias

from aiolog.errors import ConfigError
from aiolog.record import (
    MALFORMED,
    MAX_EXTRA_DEPTH,
    MILLISECOND_NS,
    SECOND_NS,
    STANDARD_ATTRIBUTES,
    Site,
    Source,
    WireRecord,
    attributes,
)

Format: TypeAlias = Callable[[Source, Sequence[WireRecord]], list[str]]
"""One text a record, in order and aligned: "" for a record not taken, else all its lines with the last newline."""

Accepts: TypeAlias = Callable[[Site], bool]
Style: TypeAlias = Literal["%", "{", "$"]
Escaping: TypeAlias = Literal["safe", "raw"]

CONTINUATION = "\t| "  # what every line of a record but the first begins with, and the first never does

_DIGITS = tuple(f"{number:03d}" for number in range(1000))  # an index is 4 times as fast as a format
_SECONDS_KEPT = 16  # texts of whole seconds; records of many processes come in nearly the order of their moments


def text(
    template: str,
    *,
    style: Style = "%",
    datefmt: str | None = None,
    escaping: Escaping = "safe",
    accepts: Accepts = lambda _site: True,
) -> Format:
    r"""Compile a template of ``logging.Formatter`` to a format.

    ``raw`` gives exactly what ``logging.Formatter(template, datefmt, style).format(record)`` gives in the worker
    (Lib/logging/__init__.py), and a newline. ``safe`` gives the same with control characters, what turns the
    direction of writing and lone surrogates as ``\xNN`` or ``\uNNNN``, and each line but a record's first behind
    :data:`CONTINUATION`; it can always be encoded as UTF-8, ``raw`` only with ``errors="surrogatepass"``.

    Where the standard formatter raises, a field is "-" for an attribute that the record lacks, and "?" and the
    value for a value that the field cannot show. ``accepts`` is asked once for each site of a source.

    Raises ``ConfigError`` for a template that the standard formatter refuses, or would fail on for every record.
    """
    return _Text(template, style, datefmt, escaping, accepts)


def json_lines(*, accepts: Accepts = lambda _site: True) -> Format:
    """Return the format of one JSON object a line, in ASCII.

    The keys are, in this order: ts (RFC 3339, UTC, microseconds; null without a date) level logger msg app host
    pid process thread task file line func exc stack trace_id span_id fields. Missing when there is nothing in
    them: app, task, exc, stack, trace_id, span_id, fields. ``fields`` holds the source's labels and the record's
    extras; the extras win. Trace and span are the extras trace_id and span_id, or otelTraceID and otelSpanID.
    """
    return _Structured(_JSON, accepts)


def logfmt(*, accepts: Accepts = lambda _site: True) -> Format:
    """Return the format of one line of ``key=value`` a record: the keys of JSON, and the fields after them.

    Values are quoted as JSON strings, not ASCII only, where they have to be; a field with the name of another key
    is called ``fields.name``.
    """
    return _Structured(_LOGFMT, accepts)


def whole_records(format: Format, data: bytes) -> list[int]:  # noqa: A002 - the word of the configuration
    r"""Return where each record ends that is surely whole, at the beginning of ``data`` in this format.

    Of a torn group, that is: the last line of it may have had more lines to come. With ``raw`` nobody can tell.

    >>> whole_records(json_lines(), b"{}\n{}\n{")
    [3, 6]
    >>> whole_records(text("%(message)s"), b"one\n\t| more\ntwo\n")
    [12]
    """
    continuation = getattr(format, "continuation", None)
    if continuation is None:
        return []
    ends = [newline.end() for newline in re.finditer(rb"\n", data)]
    if not continuation:
        return ends
    further: bytes = continuation.encode()
    return [end for end in ends if not further.startswith(data[end : end + len(further)])]


# ---------------------------------------------------------------------------------------------------------------
# What a peer may not put into a line

# C0 but tab and newline, DEL, C1; the Unicode line ends; marks, embeddings, overrides and isolates of direction
# (CVE-2021-42574); lone surrogates, which UTF-8 cannot carry. All that str.splitlines splits at is here.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def _escape(raw: str) -> str:
    """Escape what is unsafe and mark the lines after the first. Piece by piece gives the same as all at once."""
    if raw.isprintable():
        return raw
    return _UNSAFE.sub(_escaped, raw).replace("\n", "\n" + CONTINUATION)


def _at_margin(line: str) -> str:
    """Return the text of a record such that its first line does not look like the continuation of another."""
    return "\\x09" + line[1:] if line.startswith("\t") else line


# ---------------------------------------------------------------------------------------------------------------
# What all formats share


def _window(created: Any) -> tuple[float, float, int]:
    """Return where the second of ``created`` starts and ends, in its own unit, and the second as a number.

    Raises ``ValueError`` or ``OverflowError`` for what is no finite number, and for a float before 1970: its
    milliseconds, in ``logging``, are negative.
    """
    if type(created) is int:
        second = created // SECOND_NS
        return second * SECOND_NS, (second + 1) * SECOND_NS, second
    if type(created) is float and created >= 0:
        second = floor(created)
        return float(second), second + 1.0, second
    raise ValueError("not a plain moment")


class _Layout:
    """A compiled format, and how it learns the sites and threads of a source.

    ``Source.plans[self]`` maps the number of a site to the four constant texts of its lines, or to None when it
    is not taken, and the number of a thread to a tuple of its one text: as bounded as the dictionary itself.
    """

    continuation: str | None = ""  # what further lines of a record begin with; None: they cannot be told

    def __init__(self, accepts: Accepts) -> None:
        self._accepts = accepts

    def _site(self, source: Source, values: Mapping[str, Any]) -> tuple[str, str, str, str]:
        """Return the constant texts of a site, given all attributes of a plain record of it."""
        raise NotImplementedError

    def _thread(self, values: Mapping[str, Any]) -> str:
        """Return the text of a thread, given all attributes of a plain record of it."""
        raise NotImplementedError

    def _rebuilt(self, source: Source, wire: WireRecord, values: dict[str, Any]) -> str:
        """Return the text of any record, given all its attributes."""
        raise NotImplementedError

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
        if site not in plans or (type(thread) is int and thread not in plans):
            plain = attributes(source, (0.0, site, thread, ""))
            if site not in plans:
                known = Site(*(plain[name] for name in Site._fields))
                plans[site] = self._site(source, plain) if self._accepts(known) else None
            if type(thread) is int:
                plans[thread] = (self._thread(plain),)
        return plans[site] is not None


# ---------------------------------------------------------------------------------------------------------------
# Text by a template


class _Field(NamedTuple):
    """A field of a template: the attribute it shows, whether by nothing but ``str``, and how it is rendered."""

    name: str
    bare: bool
    render: Callable[[Mapping[str, Any]], str]


_Piece: TypeAlias = str | _Field

_PERCENT_FIELD = re.compile(r"%(?:\((?P<name>[^()]*)\)(?P<conversion>[#0+ -]*\d*(?:\.\d*)?[hlL]?[diouxXeEfFgGcrsa])|%)")


def _percent_pieces(template: str) -> Iterator[_Piece]:
    end = 0
    for match in [*_PERCENT_FIELD.finditer(template), None]:
        literal = template[end : match.start() if match else None]
        if "%" in literal:
            raise ValueError(f"there is a lone % in {literal!r}; write %% for the sign")
        yield literal
        if match:
            end, name = match.end(), match["name"]
            yield "%" if name is None else _Field(name, match["conversion"] == "s", match[0].__mod__)


def _brace_pieces(template: str) -> Iterator[_Piece]:
    for literal, field, spec, conversion in string.Formatter().parse(template):
        yield literal
        if field is None:
            continue
        if spec and "{" in spec:  # it would let a peer choose how much memory a line takes
            raise ValueError(f"the width of {field!r} may not come from the record; write it as a number")
        name = re.split(r"[.[]", field, maxsplit=1)[0]
        whole = f"{{{field}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
        yield _Field(name, whole == f"{{{name}}}", whole.format_map)


def _dollar_pieces(template: str) -> Iterator[_Piece]:
    end = 0
    for match in string.Template.pattern.finditer(template):
        yield template[end : match.start()]
        end, name = match.end(), match["named"] or match["braced"]
        yield _Field(name, bare=True, render=f"%({name})s".__mod__) if name else "$"
    yield template[end:]


_STYLES: dict[str, tuple[Callable[[str], Iterator[_Piece]], str]] = {
    "%": (_percent_pieces, "%(message)s"),
    "{": (_brace_pieces, "{message}"),
    "$": (_dollar_pieces, "$message"),
}

# A record with every attribute in its usual type, to try a template on.
_SAMPLE = {
    **logging.LogRecord("", 0, "", 0, "", None, None).__dict__,
    **dict.fromkeys(("message", "asctime", "taskName", "exc_text", "stack_info", "funcName", "processName"), ""),
    **dict.fromkeys(("process", "thread"), 0),
}


def _parse(template: str, style: str, datefmt: str | None) -> list[_Piece]:
    """Split a template into literals and fields. Raises ``ConfigError`` for one that fits no record."""
    try:
        logging.Formatter(template, datefmt, style)  # type: ignore[arg-type] # it checks the style as well
        strftime(datefmt or "", localtime(0))
        split, default = _STYLES[style]
        pieces = [piece for piece in split(template or default) if piece]
        for piece in pieces:
            if isinstance(piece, _Field):
                with suppress(KeyError):  # an extra, of which nothing is known yet
                    piece.render(_SAMPLE)
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as error:
        raise ConfigError(
            f"The template {template!r} (style {style!r}, datefmt {datefmt!r}) cannot be used: {error}."
        ) from None
    return pieces


def _refused(value: Any) -> str:
    """Return what stands for a value that a field cannot show."""
    try:
        return f"?{value}"
    except Exception:  # noqa: BLE001 - nested too deep
        return "?"


def _show(field: _Field, values: Mapping[str, Any]) -> str:
    """Render a field, whatever the value is; "-" for an attribute that is not there."""
    try:
        return field.render(values)
    except Exception:  # noqa: BLE001 - the values are a peer's
        value = values.get(field.name)
        if value is not None:
            return _refused(value)
    try:
        return field.render({field.name: "-"})
    except (ValueError, TypeError, AttributeError, LookupError):  # "-" is no number either
        return "-"


def _joined(pieces: Sequence[_Piece], values: Mapping[str, Any]) -> str:
    return "".join(piece if isinstance(piece, str) else _show(piece, values) for piece in pieces)


class _Straight(NamedTuple):
    """A template in the order of nearly all: the time, perhaps the thread, the message; constants around them.

    A line is ``before + time + between + thread + beside + message + after``.
    """

    before: list[_Piece]
    between: list[_Piece]
    beside: list[_Piece]
    after: list[_Piece]
    dated: bool  # the text of the time begins with that of the second
    milliseconds: tuple[str, ...]  # and ends with one of these thousand
    thread: list[_Piece]


_THREAD = frozenset({"thread", "threadName"})
_MESSAGE = frozenset({"message", "msg"})
_VARYING = _THREAD | _MESSAGE | {"asctime", "msecs", "created", "relativeCreated"}


def _straighten(pieces: Sequence[_Piece], *, with_milliseconds: bool) -> _Straight | None:
    """Sort the pieces into the places of a straight line; None when they do not come in its order."""
    places: list[list[_Piece]] = [[], [], [], []]
    time, thread, message = 1, 2, 3  # the places that begin after these
    place, dated = 0, False
    milliseconds, names = ("",) * len(_DIGITS), list[_Piece]()
    for piece in pieces:
        if isinstance(piece, str) or piece.name not in _VARYING:
            places[place].append(piece)
            continue
        # With only literals since the last varying field, two of one kind make one text.
        gap = places[place]
        near = all(isinstance(text, str) for text in gap)
        if piece.name == "asctime" and piece.bare and place < time:
            place, dated = time, True
            if with_milliseconds:
                milliseconds = tuple(f",{digits}" for digits in _DIGITS)
        elif piece.name == "msecs" and (place < time or (place == time and near)):
            joint = ""
            if place == time:
                joint = _joined(gap, {})
                gap.clear()
            place = time
            milliseconds = tuple(
                f"{ending}{joint}{_show(piece, {'msecs': float(number)})}" for number, ending in enumerate(milliseconds)
            )
        elif piece.name in _THREAD and (place < thread or (place == thread and near)):
            if place == thread:
                names += gap
                gap.clear()
            place = thread
            names.append(piece)
        elif piece.name in _MESSAGE and piece.bare and place < message:
            place = message
        else:
            return None
    before, between, beside, after = places
    return _Straight(before, between, beside, after, dated, milliseconds, names) if place == message else None


class _Text(_Layout):
    """Lines by a template of ``logging.Formatter``; one that is not straight renders every record slowly."""

    def __init__(self, template: str, style: str, datefmt: str | None, escaping: Escaping, accepts: Accepts) -> None:
        super().__init__(accepts)
        self._pieces = _parse(template, style, datefmt)
        self._straight = _straighten(self._pieces, with_milliseconds=not datefmt)
        self._safe = escaping != "raw"
        self.continuation = CONTINUATION if self._safe else None
        self._escape: Callable[[str], str] = _escape if self._safe else str
        self._at_margin: Callable[[str], str] = _at_margin if self._safe else str
        self._break = "\n" + CONTINUATION if self._safe else "\n"
        self._datefmt = datefmt
        self._milliseconds = [self._escape(ending) for ending in self._straight.milliseconds] if self._straight else []

        @lru_cache(_SECONDS_KEPT)
        def whole_second(second: int) -> str:
            return strftime(datefmt or logging.Formatter.default_time_format, localtime(second))

        self._whole_second = whole_second
        self._names = {piece.name for piece in self._pieces if isinstance(piece, _Field)}
        # What changes the line when it is in `rare`; a record that has other things there has a plain line.
        self._visible = set(self._names)
        if not self._names <= STANDARD_ATTRIBUTES:
            self._visible.add("extra")
        if "asctime" in self._names:
            self._visible |= {"created", "msecs"}

    def __call__(self, source: Source, records: Sequence[WireRecord]) -> list[str]:
        """Return the text of each record."""
        straight = self._straight
        if straight is None:
            return [self._slowly(source, wire) for wire in records]
        plans = source.plans.setdefault(self, {})
        milliseconds, dated, threaded = self._milliseconds, straight.dated, bool(straight.thread)
        safe, visible = self._safe, self._visible
        lines: list[str] = []
        start = end = 0.0
        second = thread = ""
        for wire in records:
            try:
                plan = plans[wire[1]]
                if plan is None:
                    lines.append("")
                    continue
                if len(wire) > 4 and not visible.isdisjoint(wire[4].keys()):  # it has `rare`
                    lines.append(self._rebuilt(source, wire, attributes(source, wire)))
                    continue
                before, between, beside, after = plan
                created, message = wire[0], wire[3]
                if not start <= created < end:
                    window = _window(created)
                    second = self._second(window[2]) if dated else ""
                    start, end, _ = window
                elapsed = created - start
                ending = milliseconds[int(elapsed * 1000) if type(created) is float else elapsed // MILLISECOND_NS]
                if threaded:
                    (thread,) = plans[wire[2]]
                if safe and not message.isprintable():
                    message = _escape(message)
                line = f"{before}{second}{ending}{between}{thread}{beside}{message}{after}"
                if safe and not (before or second):
                    line = _at_margin(line)
                if len(wire) > 4:
                    line = f"{self._appended(line[:-1], wire[4])}\n"
            except Exception:  # noqa: BLE001 - whatever was wrong with it, the slow way takes it
                line = self._slowly(source, wire)
            lines.append(line)
        return lines

    def _second(self, second: int) -> str:
        shown = self._escape(self._whole_second(second))
        if shown.startswith("\t"):
            raise ValueError("not for the margin")
        return shown

    def _site(self, source: Source, values: Mapping[str, Any]) -> tuple[str, str, str, str]:  # noqa: ARG002
        if self._straight is None:
            return "", "", "", ""
        before, between, beside, after = (self._escape(_joined(place, values)) for place in self._straight[:4])
        return self._at_margin(before), between, beside, after + "\n"

    def _thread(self, values: Mapping[str, Any]) -> str:
        return self._escape(_joined(self._straight.thread, values)) if self._straight else ""

    def _rebuilt(self, source: Source, wire: WireRecord, values: dict[str, Any]) -> str:  # noqa: ARG002
        values["message"] = values["msg"]
        if "asctime" in self._names:
            values["asctime"] = self._asctime(values["created"], values["msecs"])
        line = self._at_margin(self._escape(_joined(self._pieces, values)))
        return self._appended(line, values) + "\n"

    def _appended(self, line: str, values: Mapping[str, Any]) -> str:
        """Append traceback and stack as ``logging.Formatter.format`` does, to a line that is escaped already."""
        for raw in (values.get("exc_text"), values.get("stack_info")):
            if raw:
                line = f"{line}{'' if line.endswith(self._break) else self._break}{self._escape(raw)}"
        return line

    def _asctime(self, created: Any, msecs: Any) -> str:
        try:
            shown = self._whole_second(floor(created))
            return "%s,%03d" % (shown, msecs) if not self._datefmt else shown  # noqa: UP031 - %d cuts, as there
        except Exception:  # noqa: BLE001 - not finite, the year 10**9, or no number at all
            return _refused(created)


# ---------------------------------------------------------------------------------------------------------------
# JSON and logfmt

_ENCODER = json.JSONEncoder(separators=(",", ":"))


def _plain(value: Any, depth: int = MAX_EXTRA_DEPTH) -> Any:
    """Return a value of any type as what JSON can say, to a bounded depth."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else _ENCODER.encode(value)  # JSON has no NaN: its name as text
    if isinstance(value, dict | list | tuple):
        if not depth:
            return f"[aiolog: cut, a {type(value).__name__} of {len(value)}]"
        if isinstance(value, dict):
            return {f"{key}": _plain(item, depth - 1) for key, item in value.items()}
        return [_plain(item, depth - 1) for item in value]
    return repr(value)


def _json_value(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return encode_basestring_ascii(value)
    if value is None:
        return "null"
    try:
        return f"{value}" if kind is int else _ENCODER.encode(_plain(value))
    except Exception:  # noqa: BLE001 - a key or an int that has no str()
        return '"?"'


def _json_fields(fields: Mapping[str, Any]) -> str:
    pairs = ",".join(f"{encode_basestring_ascii(name)}:{_json_value(value)}" for name, value in fields.items())
    return f',"fields":{{{pairs}}}'


_BARE = re.compile(r'[^\s"=\\]+')


def _quoted(raw: str) -> str:
    """Return a text as a JSON string in which only what is unsafe is escaped."""
    quoted = encode_basestring(raw)
    return quoted if quoted.isprintable() else _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)


def _logfmt_value(value: Any) -> str:
    try:
        plain = _plain(value)
        shown = plain if isinstance(plain, str) else _ENCODER.encode(plain)
    except Exception:  # noqa: BLE001 - see _json_value
        return "?"
    return shown if shown.isprintable() and _BARE.fullmatch(shown) else _quoted(shown)


# fmt: off
_KEYS = frozenset({
    "ts", "level", "logger", "msg", "app", "host", "pid", "process", "thread", "task", "file", "line", "func",
    "exc", "stack", "trace_id", "span_id",
})
# fmt: on


def _logfmt_key(name: str) -> str:
    key = name
    if not name.isidentifier():
        key = "".join(char if char.isprintable() and char not in ' "=\\' else "_" for char in name) or "_"
    return f"fields.{key}" if key in _KEYS else key


def _logfmt_fields(fields: Mapping[str, Any]) -> str:
    return "".join(f" {_logfmt_key(name)}={_logfmt_value(value)}" for name, value in fields.items())


class _Notation(NamedTuple):
    """How pairs of a key and a value are written: JSON or logfmt."""

    opening: str  # stands before the time
    shut: str  # and after it
    timeless: str  # or in place of all three, for a moment without a date
    key: Callable[[str], str]
    value: Callable[[Any], str]
    text: Callable[[str], str]  # a value that is text; raises TypeError for another
    fields: Callable[[Mapping[str, Any]], str]
    close: str


_JSON = _Notation(
    '{"ts":"', 'Z"', '{"ts":null', ',"{}":'.format, _json_value, encode_basestring_ascii, _json_fields, "}\n"
)
_LOGFMT = _Notation("ts=", "Z", "ts=null", " {}=".format, _logfmt_value, _quoted, _logfmt_fields, "\n")


_LIFTED = (("trace_id", ("trace_id", "otelTraceID")), ("span_id", ("span_id", "otelSpanID")))
_RARE_SHOWN = frozenset({"exc_text", "stack_info", "taskName", "extra"})


def _lift(extras: dict[str, Any], names: Sequence[str]) -> Any:
    """Take the first of the extras that says something; OpenTelemetry says "0" outside a span."""
    for name in names:
        if (value := extras.pop(name, None)) not in (None, "", "0", 0):
            return value
    return None


@lru_cache(_SECONDS_KEPT)
def _utc_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


class _Structured(_Layout):
    """Lines of keys and values, in the order of time, site, message, source, thread, place, and the rest."""

    def __init__(self, notation: _Notation, accepts: Accepts) -> None:
        super().__init__(accepts)
        self._notation = notation

    def __call__(self, source: Source, records: Sequence[WireRecord]) -> list[str]:
        """Return the text of each record."""
        plans = source.plans.setdefault(self, {})
        notation = self._notation
        shut, encoded = notation.shut, notation.text
        lines: list[str] = []
        start = end = 0.0
        second = ""
        for wire in records:
            try:
                plan = plans[wire[1]]
                if plan is None:
                    lines.append("")
                    continue
                before, between, place, rest = plan
                (thread,) = plans[wire[2]]
                if len(wire) > 4:  # it has `rare`
                    task, rest = self._rare(source, wire[4], rest)
                    thread += task
                created = wire[0]
                if not start <= created < end:
                    window = _window(created)
                    second = f"{notation.opening}{_utc_second(window[2])}."
                    start, end, _ = window
                elapsed = created - start
                micro = round(elapsed * 1e6) if type(created) is float else elapsed // 1000
                line = (
                    f"{second}{_DIGITS[micro // 1000]}{_DIGITS[micro % 1000]}{shut}"
                    f"{before}{encoded(wire[3])}{between}{thread}{place}{rest}"
                )
            except Exception:  # noqa: BLE001 - whatever was wrong with it, the slow way takes it
                line = self._slowly(source, wire)
            lines.append(line)
        return lines

    def _pairs(self, pairs: Mapping[str, Any]) -> str:
        return "".join(self._notation.key(key) + self._notation.value(value) for key, value in pairs.items())

    def _site(self, source: Source, values: Mapping[str, Any]) -> tuple[str, str, str, str]:
        before = {"level": values["levelname"], "logger": values["name"]}
        between = {"host": source.host, "pid": values["process"], "process": values["processName"]}
        place = {"file": values["pathname"], "line": values["lineno"], "func": values["funcName"]}
        return (
            self._pairs(before) + self._notation.key("msg"),
            self._pairs(({"app": source.app} if source.app else {}) | between),
            self._pairs(place),
            self._rest(source, None, None, {}),
        )

    def _thread(self, values: Mapping[str, Any]) -> str:
        return self._pairs({"thread": values["threadName"]})

    def _task(self, name: Any) -> str:
        return self._notation.key("task") + self._notation.value(name) if name else ""

    def _rest(self, source: Source, exc_text: str | None, stack_info: str | None, extras: dict[str, Any]) -> str:
        """Return all that comes after the place; takes trace and span out of the extras."""
        notation = self._notation
        rest = ""
        if exc_text:
            rest += notation.key("exc") + notation.text(exc_text)
        if stack_info:
            rest += notation.key("stack") + notation.text(stack_info)
        if extras:
            for key, names in _LIFTED:
                if (value := _lift(extras, names)) is not None:
                    rest += notation.key(key) + notation.value(value)
        if fields := source.labels | extras:
            rest += notation.fields(fields)
        return rest + notation.close

    def _rare(self, source: Source, rare: Mapping[str, Any], rest: str) -> tuple[str, str]:
        """Return the task and the rest of a record. Raises when ``rare`` holds more than they, or a wrong type."""
        if not rare.keys() <= _RARE_SHOWN:
            raise ValueError("a standard attribute differs")
        task = rare.get("taskName")
        if task is None or len(rare) > 1:
            flat = rare.get("extra") or ()
            extras = dict(zip(flat[::2], flat[1::2], strict=True))
            if not extras.keys().isdisjoint(STANDARD_ATTRIBUTES):
                raise ValueError("an extra has the name of a standard attribute")
            rest = self._rest(source, rare.get("exc_text"), rare.get("stack_info"), extras)
        return self._task(task), rest

    def _rebuilt(self, source: Source, wire: WireRecord, values: dict[str, Any]) -> str:
        created = values["created"]
        if MALFORMED not in values and type(wire[0]) is int and wire[0] / 1e9 == created:
            created = wire[0]  # the same moment, but every nanosecond of it
        before, between, place, _ = self._site(source, values)
        extras = {name: value for name, value in values.items() if name not in STANDARD_ATTRIBUTES}
        return (
            f"{self._moment(created)}{before}{self._notation.text(values['msg'])}{between}"
            f"{self._thread(values)}{self._task(values['taskName'])}{place}"
            f"{self._rest(source, values['exc_text'], values['stack_info'], extras)}"
        )

    def _moment(self, created: Any) -> str:
        try:
            if type(created) is int:
                second, micro = created // SECOND_NS, created % SECOND_NS // 1000
            else:
                second = floor(created)
                micro = round((created - second) * 1e6)
                second, micro = second + micro // 10**6, micro % 10**6
            return f"{self._notation.opening}{_utc_second(second)}.{micro:06d}{self._notation.shut}"
        except Exception:  # noqa: BLE001 - not finite, before the year 1 or after 9999, or no number at all
            return self._notation.timeless
