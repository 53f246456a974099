"""Lines by a template of ``logging.Formatter``.

It knows how the standard formatter makes a line of a template, a traceback and a stack, and where the slots of a
template are; a template that shows ``created``, ``relativeCreated`` or a padded ``asctime`` has none, and all its
records go the slow way.
"""

from __future__ import annotations

import difflib
import logging
import zoneinfo
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from math import floor
from time import localtime, strftime, struct_time
from typing import Any

from aiolog.errors import ConfigError
from aiolog.formats import Accepts, Escaping, Multiline
from aiolog.formats.escaping import (
    CONTINUATION,
    PLAIN_TEXT,
    all_plain,
    at_margin,
    escape_indenting,
    escape_to_one_line,
)
from aiolog.formats.layout import DIGITS, MESSAGE, SECOND, SECONDS_KEPT, Layout, Slot
from aiolog.formats.templates import Field, Piece, joined, parse, refused, show
from aiolog.record import STANDARD_ATTRIBUTES, WireRecord
from aiolog.source import Source

_THREAD = frozenset({"thread", "threadName"})
_MESSAGE = frozenset({"message", "msg"})
_SLOWLY = frozenset({"asctime", "created", "relativeCreated"})  # but a bare asctime

# In the loop: a record of which `rare` changes the line is rebuilt; traceback and stack come after any line.
_REBUILD_SHOWN = """
if not is_hidden(rare.keys()):
    add(layout._slowly(source, wire))
    continue"""
_APPEND = """
if rare is not nothing:
    line = appended(line[:-1], rare) + newline"""


class TextLayout(Layout):
    """Lines by a template; one without slots renders every record slowly."""

    def __init__(
        self,
        template: str,
        *,
        style: str,
        datefmt: str | None,
        time_zone: str,
        defaults: Mapping[str, Any],
        escaping: Escaping,
        multiline: Multiline,
        accepts: Accepts,
    ) -> None:
        super().__init__(accepts)
        self._pieces = parse(template, style, datefmt, defaults)
        self._defaults = dict(defaults)
        self._datefmt = datefmt
        self._names = {piece.name for piece in self._pieces if isinstance(piece, Field)}
        is_safe, is_indented = escaping != "raw", multiline != "escape"
        self.continuation = None if not is_safe else CONTINUATION if is_indented else ""
        self._escape: Callable[[str], str] = str
        if is_safe:
            self._escape = escape_indenting if is_indented else escape_to_one_line
        self._at_margin: Callable[[str], str] = at_margin if is_safe else str
        self._break = "\n" + CONTINUATION if is_safe else "\n"
        converter = _converter(time_zone)

        @lru_cache(SECONDS_KEPT)
        def whole_second(second: int) -> str:
            return strftime(datefmt or logging.Formatter.default_time_format, converter(second))

        self._whole_second = whole_second

        # What changes the line when it is in `rare`; a record that has other things there has a plain line.
        visible = set(self._names)
        if not self._names <= STANDARD_ATTRIBUTES:
            visible.add("extra")
        if "asctime" in self._names:
            visible |= {"created", "msecs"}
        if is_safe and not is_indented:  # a line that ends in an escape of a newline cannot be told from one that is
            visible |= {"exc_text", "stack_info"}

        self._places: list[list[Piece]] = []  # the constant pieces, as they stand together
        self._thread_fields: list[Field] = []
        names: dict[str, Any] = {
            "appended": self._appended,
            "is_hidden": visible.isdisjoint,
            "at_margin": at_margin,
            "newline": "\n",
        }
        shape = self._shape(names)
        self._is_begun = False  # by a constant
        if shape:
            self._is_begun = shape[0] is None
            # A line may begin with a tab unless it begins with its date (_second sees to that) or with a literal.
            begins = self._places[0] if self._is_begun else shape[:1]
            is_exposed = is_safe and not any(piece is SECOND or isinstance(piece, str) for piece in begins)
            self._compile(
                shape,
                unit="milli",
                all_plain=all_plain(PLAIN_TEXT) if is_safe else None,
                escape=self._escape,
                check_rare=_REBUILD_SHOWN,
                append_rare=_APPEND,
                finish="line = at_margin(line)" if is_exposed else "",
                names=names,
            )

    def _shape(self, names: dict[str, Any]) -> list[Slot | None] | None:
        """Sort the pieces into slots and constant places; None when there is one that has no slot."""
        shape: list[Slot | None] = []
        for piece in [*self._pieces, "\n"]:
            found = [] if isinstance(piece, str) else self._slots(piece, names)
            if found is None:
                return None
            if not found:
                if not shape or shape[-1]:
                    shape.append(None)
                    self._places.append([])
                self._places[-1].append(piece)
            shape += found
        return shape

    def _slots(self, field: Field, names: dict[str, Any]) -> list[Slot] | None:
        """Return the slots of a field, none when it is constant; None when it has no slot and is not constant."""
        name, unique = field.name, f"field{len(names)}"
        if name == "asctime" and field.bare:
            names[unique] = tuple(f",{digits}" for digits in DIGITS)
            return [SECOND] if self._datefmt else [SECOND, Slot("moment", f"{unique}[milli]")]
        if name == "msecs":
            names[unique] = tuple(self._escape(show(field, {name: float(number)})) for number in range(1000))
            return [Slot("moment", f"{unique}[milli]")]
        if name in _THREAD:
            self._thread_fields.append(field)
            return [Slot("thread", f"thread{len(self._thread_fields) - 1}")]
        if name in _MESSAGE:
            names[unique] = self._showing(field)
            return [MESSAGE if field.bare else Slot("message", f"{unique}(raw)")]
        return None if name in _SLOWLY else []

    def _showing(self, field: Field) -> Callable[[str], str]:
        return lambda message: self._escape(show(field, {field.name: message}))

    def _second(self, second: int) -> str:
        if "asctime" not in self._names:
            return ""
        shown = self._escape(self._whole_second(second))
        if not shown or shown.startswith("\t"):
            raise ValueError("not for the margin")
        return shown

    def _site(self, source: Source, values: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG002
        if self._one_by_one is None:
            return ("",)
        values = {**self._defaults, **values}
        *texts, last = (joined(place, values) for place in self._places)
        texts = [self._escape(text) for text in texts] + [self._escape(last[:-1]) + "\n"]
        if self._is_begun:
            texts[0] = self._at_margin(texts[0])
        return tuple(texts)

    def _thread(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(self._escape(show(field, values)) for field in self._thread_fields)

    def _rebuilt(self, source: Source, wire: WireRecord, values: dict[str, Any]) -> str:  # noqa: ARG002
        values = {**self._defaults, **values, "message": values["msg"]}
        if "asctime" in self._names:
            values["asctime"] = self._asctime(values["created"], values["msecs"])
        line = joined(self._pieces, values)
        for trace in (values["exc_text"], values["stack_info"]):
            if trace:
                line = f"{line}{'' if line.endswith(chr(10)) else chr(10)}{trace}"
        return self._at_margin(self._escape(line)) + "\n"

    def _appended(self, line: str, rare: Mapping[str, Any]) -> str:
        """Append traceback and stack as ``logging.Formatter.format`` does, to a line that is escaped already."""
        for raw in (rare.get("exc_text"), rare.get("stack_info")):
            if raw:
                line = f"{line}{'' if line.endswith(self._break) else self._break}{self._escape(raw)}"
        return line

    def _asctime(self, created: Any, msecs: Any) -> str:
        try:
            shown = self._whole_second(floor(created))
            return "%s,%03d" % (shown, msecs) if not self._datefmt else shown  # noqa: UP031 - %d cuts, as there
        except Exception:  # noqa: BLE001 - not finite, the year 10**9, or no number at all
            return refused(created)


def _converter(time_zone: str) -> Callable[[int], struct_time]:
    """Return what makes the parts of a date of seconds since 1970. Raises ``ConfigError`` for a zone that is none."""
    if not time_zone:
        return localtime
    zone: tzinfo = UTC if time_zone == "UTC" else _zone(time_zone)

    def convert(second: int) -> struct_time:
        moment = datetime.fromtimestamp(second, zone)
        offset, is_dst = moment.utcoffset(), moment.dst()
        # timetuple() leaves out what %Z and %z show, and %z shows nothing where daylight saving is unknown.
        parts = (*moment.timetuple()[:8], bool(is_dst), moment.tzname(), int(offset.total_seconds()) if offset else 0)
        return struct_time(parts)

    return convert


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a directory of zones, such as Europe
        pass
    known = {one.casefold(): one for one in zoneinfo.available_timezones()}
    near = difflib.get_close_matches(name.casefold(), known, n=1)
    hint = f'Did you mean "{known[near[0]]}"?' if near else 'Use an IANA name such as "Europe/Berlin", "UTC", or "".'
    if not known:
        hint = "This system has no time zones: install tzdata."
    raise ConfigError(f"time_zone cannot be {encode_basestring_ascii(name)}. {hint}")
