"""Templates of ``logging.Formatter`` in its three styles, split into literals and fields.

It knows what the standard formatter takes and refuses (Lib/logging/__init__.py), and how a field shows any value at
all; it knows nothing of lines.
"""

from __future__ import annotations

import logging
import re
import reprlib
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from time import localtime, strftime
from typing import Any, NamedTuple, TypeAlias

from aiolog.errors import ConfigError


class Field(NamedTuple):
    """A field of a template: the attribute it shows, whether by nothing but ``str``, and how it is rendered."""

    name: str
    bare: bool
    render: Callable[[Mapping[str, Any]], str]


Piece: TypeAlias = str | Field

# What an operator writes on a few screens; and no width makes a line of megabytes of a record that says "hello".
MAX_TEMPLATE_CHARS = 10_000

_brief = reprlib.Repr()
_brief.maxstring = 120  # of a template in a message

_PERCENT_FIELD = re.compile(r"%(?:\((?P<name>[^()]*)\)(?P<conversion>[#0+ -]*\d*(?:\.\d*)?[hlL]?[diouxXeEfFgGcrsa])|%)")


def _percent_pieces(template: str) -> Iterator[Piece]:
    end = 0
    for match in [*_PERCENT_FIELD.finditer(template), None]:
        literal = template[end : match.start() if match else None]
        if "%" in literal:
            raise ValueError(f"there is a lone % in {_brief.repr(literal)}; write %% for the sign")
        yield literal
        if match:
            end, name = match.end(), match["name"]
            yield "%" if name is None else Field(name, match["conversion"] == "s", match[0].__mod__)


def _brace_pieces(template: str) -> Iterator[Piece]:
    for literal, field, spec, conversion in string.Formatter().parse(template):
        yield literal
        if field is None:
            continue
        if spec and "{" in spec:  # it would let a peer choose how much memory a line takes
            raise ValueError(f"the width of {field!r} may not come from the record; write it as a number")
        name = re.split(r"[.[]", field, maxsplit=1)[0]
        whole = f"{{{field}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
        yield Field(name, whole == f"{{{name}}}", whole.format_map)


def _dollar_pieces(template: str) -> Iterator[Piece]:
    end = 0
    for match in string.Template.pattern.finditer(template):
        yield template[end : match.start()]
        end, name = match.end(), match["named"] or match["braced"]
        yield Field(name, bare=True, render=f"%({name})s".__mod__) if name else "$"
    yield template[end:]


_STYLES: dict[str, tuple[Callable[[str], Iterator[Piece]], str]] = {
    "%": (_percent_pieces, "%(message)s"),
    "{": (_brace_pieces, "{message}"),
    "$": (_dollar_pieces, "$message"),
}

_EXAMPLES = {"%": "%(message)s", "{": "{message}", "$": "$message or ${message}"}

# A record with every attribute in its usual type, to try a template on.
_SAMPLE = {
    **logging.LogRecord("", 0, "", 0, "", None, None).__dict__,
    **dict.fromkeys(("message", "asctime", "taskName", "exc_text", "stack_info", "funcName", "processName"), ""),
    **dict.fromkeys(("process", "thread"), 0),
}


def parse(template: str, style: str, datefmt: str | None, defaults: Mapping[str, Any]) -> list[Piece]:
    """Split a template into literals and fields. Raises ``ConfigError`` for one that fits no record."""
    sample = {**defaults, **_SAMPLE}
    try:
        _check_size(template, style, datefmt)
        logging.Formatter(template, datefmt, style, defaults=defaults)  # type: ignore[arg-type] # it checks the style
        strftime(datefmt or "", localtime(0))
        split, default = _STYLES[style]
        pieces = [piece for piece in split(template or default) if piece]
        for piece in pieces:
            if isinstance(piece, Field):
                with suppress(KeyError):  # an extra, of which nothing is known yet
                    piece.render(sample)
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, MemoryError) as error:
        datefmt_shown = datefmt if datefmt is None else _brief.repr(datefmt)
        raise ConfigError(
            f"the template {_brief.repr(template)} (style {style!r}, datefmt {datefmt_shown}) cannot be used: {error}. "
            f"Fields are written as {_EXAMPLES.get(style, _EXAMPLES['%'])}."
        ) from None
    return pieces


def _check_size(template: str, style: str, datefmt: str | None) -> None:
    """Raise ``ValueError`` for a line that is too wide whatever the record says; tries nothing."""
    specs: list[str] = []
    if style == "%":
        specs = [match["conversion"] or "" for match in _PERCENT_FIELD.finditer(template)]
    elif style == "{":
        specs = [spec or "" for _, _, spec, _ in string.Formatter().parse(template)]
    # More digits than the limit has are not made a number: CPython refuses those of more than 4,300.
    widths = [digits.lstrip("0") for spec in specs for digits in re.findall(r"\d+", spec)]
    is_wide = any(len(digits) > len(str(MAX_TEMPLATE_CHARS)) for digits in widths)
    chars = 0 if is_wide else sum(int(digits or "0") for digits in widths)
    if is_wide or len(template) + len(datefmt or "") + chars > MAX_TEMPLATE_CHARS:
        raise ValueError(
            f"with the widths of its fields it has more than {MAX_TEMPLATE_CHARS} characters. "
            "Use smaller widths, or less text"
        )


def refused(value: Any) -> str:
    """Return what stands for a value that a field cannot show."""
    try:
        return f"?{value}"
    except Exception:  # noqa: BLE001 - nested too deep
        return "?"


def show(field: Field, values: Mapping[str, Any]) -> str:
    """Render a field, whatever the value is; "-" for an attribute that is not there."""
    try:
        return field.render(values)
    except Exception:  # noqa: BLE001 - the values are a peer's
        value = values.get(field.name)
        if value is not None:
            return refused(value)
    try:
        return field.render({field.name: "-"})
    except (ValueError, TypeError, AttributeError, LookupError):  # "-" is no number either
        return "-"


def joined(pieces: Sequence[Piece], values: Mapping[str, Any]) -> str:
    """Render the pieces one after the other."""
    return "".join(piece if isinstance(piece, str) else show(piece, values) for piece in pieces)
