"""Which records a sink takes, beyond level and logger: applications, and one expression.

    level >= WARNING and not logger.startswith("noisy.") or fields.user == 42
    "timeout" in msg and app in ("shop", "billing")

The expression is a small part of Python's own grammar: ``and``, ``or``, ``not``, comparisons, ``in``, parentheses,
text, numbers, tuples of these, ``None``, ``True``, ``False``, and the methods ``startswith``, ``endswith`` and
``lower`` of text. Its names are :data:`NAMES`; a level's name stands for its number; ``fields.x`` or ``fields["x"]`` is
an extra, ``labels.x`` a label of the process. What a record lacks is ``None``. It is total: values of types that do
not fit each other compare as false, and there is nothing in it that takes long on a long text.

Compiled once to nested functions, it knows records and must never know a sink, a file or the configuration. Nothing
of what a peer sends is ever evaluated.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from aiolog.errors import ConfigError
from aiolog.formatting import Format
from aiolog.record import STANDARD_ATTRIBUTES, WireRecord, attributes
from aiolog.source import Site, Source

MAX_FILTER_CHARS = 2_000  # a page; and with it the depth of the functions below
LEVELS = {"NOTSET": 0, "DEBUG": 10, "INFO": 20, "WARN": 30, "WARNING": 30, "ERROR": 40, "FATAL": 50, "CRITICAL": 50}

_Values: TypeAlias = Mapping[str, Any]
_Evaluate: TypeAlias = Callable[[_Values], Any]

# From the names of JSON keys to the attributes of records; those of the first row never change at one call site.
_OF_SITE = {"level": "levelno", "levelname": "levelname", "logger": "name", "file": "pathname", "line": "lineno",
            "func": "funcName"}  # fmt: skip
_OF_SOURCE = ("app", "host", "labels")
_OF_RECORD = {"msg": "msg", "pid": "process", "process": "processName", "thread": "threadName", "task": "taskName",
              "exc": "exc_text", "stack": "stack_info"}  # fmt: skip
_TABLES = ("fields", "labels")
NAMES = (*_OF_SITE, *_OF_SOURCE, *_OF_RECORD, "fields")
"""What an expression may name: the keys of JSON lines, ``level`` being the number and ``levelname`` its name."""


class Filter(NamedTuple):
    """A compiled expression, and whether it asks for nothing but what a call site and its process give."""

    text: str
    evaluate: _Evaluate
    is_of_site: bool

    def takes(self, source: Source, wire: WireRecord) -> bool:
        """Whether the sink takes a record of any form. Raises nothing."""
        found = attributes(source, wire)
        values = {name: found.get(key) for name, key in (*_OF_SITE.items(), *_OF_RECORD.items())}
        values |= {"app": source.app, "host": source.host, "labels": source.labels}
        values["fields"] = {name: value for name, value in found.items() if name not in STANDARD_ATTRIBUTES}
        return _truth(self.evaluate(values))


def compile_filter(text: str) -> Filter:
    """Return the filter of an expression. Raises ``ConfigError``, which says what is wrong and where."""
    if len(text) > MAX_FILTER_CHARS:
        raise ConfigError(f"the filter has {len(text)} characters. Use at most {MAX_FILTER_CHARS}.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise ConfigError(
            f"the filter {text!r} is no expression ({getattr(error, 'msg', error)}{where}). "
            'Write it as in Python: level >= WARNING and "timeout" in msg.'
        ) from None
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return Filter(text, _compiled(tree.body, text), names <= {*_OF_SITE, *_OF_SOURCE, *LEVELS})


# ------------------------------------------------------------------------------------------- from a tree to functions


def _refuse(node: ast.AST, text: str, why: str) -> ConfigError:
    part = ast.get_source_segment(text.strip(), node) or text
    return ConfigError(f"the filter {text!r} cannot be used: {part!r} {why}.")


def _compiled(node: ast.expr, text: str) -> _Evaluate:  # noqa: PLR0911 - a case is a kind of node
    """Return the function of a node. Raises ``ConfigError`` for what is not part of the grammar."""
    match node:
        case ast.BoolOp(op=op, values=parts):
            functions = [_compiled(part, text) for part in parts]
            if isinstance(op, ast.And):
                return lambda values: all(_truth(function(values)) for function in functions)
            return lambda values: any(_truth(function(values)) for function in functions)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            function = _compiled(operand, text)
            return lambda values: not _truth(function(values))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return _constant(-number)
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return _constant(value)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            functions = [_compiled(element, text) for element in elements]
            return lambda values: tuple([function(values) for function in functions])
        case ast.Compare(left=left, ops=ops, comparators=rights):
            return _comparison([left, *rights], ops, text)
        case ast.Name(id=name):
            return _name(node, name, text)
        case ast.Attribute(value=ast.Name(id=table), attr=key) if table in _TABLES:
            return _entry(table, key)
        case ast.Subscript(value=ast.Name(id=table), slice=ast.Constant(value=str() as key)) if table in _TABLES:
            return _entry(table, key)
        case ast.Call(func=ast.Attribute(value=of, attr=method), args=arguments, keywords=[]) if method in _METHODS:
            return _call(node, _compiled(of, text), method, [_compiled(one, text) for one in arguments], text)
    raise _refuse(node, text, "is not part of the grammar: and, or, not, comparisons, in, startswith, endswith, lower")


def _constant(value: Any) -> _Evaluate:
    return lambda _values: value


def _name(node: ast.Name, name: str, text: str) -> _Evaluate:
    if name in LEVELS:
        return _constant(LEVELS[name])
    if name not in NAMES:
        raise _refuse(node, text, f"is no name; the names are {', '.join(NAMES)}, and those of levels in capitals")
    return operator.itemgetter(name)


def _entry(table: str, key: str) -> _Evaluate:
    return lambda values: values[table].get(key)


_ORDERED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


def _comparison(parts: Sequence[ast.expr], ops: Sequence[ast.cmpop], text: str) -> _Evaluate:
    functions = [_compiled(part, text) for part in parts]
    compare = [_OPERATORS.get(type(op)) or _ordered(type(op)) for op in ops]

    def evaluate(values: _Values) -> bool:
        found = [function(values) for function in functions]
        try:
            return all(holds(left, right) for holds, left, right in zip(compare, found, found[1:], strict=False))
        except RecursionError:  # of values that a peer nested a thousand deep
            return False

    return evaluate


def _ordered(op: type[ast.cmpop]) -> Callable[[Any, Any], bool]:
    compare = _ORDERED[op]

    def holds(left: Any, right: Any) -> bool:
        is_number = isinstance(left, (int, float)) and isinstance(right, (int, float))
        return (is_number or (isinstance(left, str) and isinstance(right, str))) and compare(left, right)

    return holds


def _is_in(left: Any, right: Any) -> bool:
    if isinstance(right, str):
        return isinstance(left, str) and left in right
    return isinstance(right, (tuple, list, dict)) and any(left == one for one in right)


_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.eq, ast.IsNot: operator.ne, ast.In: _is_in,
    ast.NotIn: lambda left, right: not _is_in(left, right),
}  # fmt: skip

_METHODS = {"startswith": 1, "endswith": 1, "lower": 0}


def _call(node: ast.Call, of: _Evaluate, method: str, arguments: Sequence[_Evaluate], text: str) -> _Evaluate:
    if len(arguments) != _METHODS[method]:
        raise _refuse(node, text, f"needs {_METHODS[method]} values")

    def evaluate(values: _Values) -> Any:
        found, given = of(values), [argument(values) for argument in arguments]
        if not isinstance(found, str):
            return None
        if not given:
            return found.lower()
        ends = tuple(one for one in (given[0] if isinstance(given[0], tuple) else (given[0],)) if isinstance(one, str))
        return found.startswith(ends) if method == "startswith" else found.endswith(ends)

    return evaluate


def _truth(value: Any) -> bool:
    return bool(value)  # a peer's values are plain ones, whose truth cannot raise


# ------------------------------------------------------------------------------------------------------- of a format


class Filtered:
    """A format that gives "" for every record which is not of one of the ``apps``, or which the filter does not take.

    ``apps`` empty and ``chosen`` None take all. Records of the logger ``always`` are taken in any case.
    """

    def __init__(self, format: Format, apps: Collection[str], chosen: Filter | None, *, always: str) -> None:  # noqa: A002
        self.continuation = getattr(format, "continuation", None)
        self._format = format
        self._apps = frozenset(apps)
        self._chosen = chosen
        self._always = always

    def __call__(self, source: Source, records: Sequence[WireRecord]) -> list[str]:
        """Return the text of each record that is taken, "" for the others."""
        texts = self._format(source, records)
        sites = source.plans.setdefault(self, {})  # of each call site whether it is taken, where that can be said
        return [
            text and (text if self._takes(source, wire, sites) else "")
            for text, wire in zip(texts, records, strict=True)
        ]

    def _takes(self, source: Source, wire: WireRecord, sites: dict[Any, bool]) -> bool:
        number = wire[1] if isinstance(wire, (tuple, list)) and len(wire) > 1 and type(wire[1]) is int else None
        taken = sites.get(number)
        if taken is not None:
            return taken
        site = source.definitions.get(number) if number is not None else None
        if isinstance(site, Site) and site.name == self._always:
            taken = True
        elif self._apps and source.app not in self._apps:
            taken = False
        elif self._chosen is None or self._chosen.is_of_site:
            taken = self._chosen is None or self._chosen.takes(source, wire)
        else:
            return self._chosen.takes(source, wire)
        if number in source.definitions and source.reserve(()):  # of numbers that were never defined there is no end
            sites[number] = taken
        return taken
