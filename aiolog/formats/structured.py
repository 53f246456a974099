"""Lines of keys and values, in JSON or logfmt: which keys, in which order, under which names.

It knows how a key and a value are written, and that nothing of an extra is lost: one that has the name of another
key stands behind the name of the extras and a dot.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from json.encoder import encode_basestring, encode_basestring_ascii
from math import floor, isfinite
from typing import Any, NamedTuple, TypeAlias

from aiolog.coerce import INT_MAX, MAX_NAME_CHARS
from aiolog.errors import ConfigError
from aiolog.formats import Accepts
from aiolog.formats.escaping import PLAIN_ASCII, PLAIN_QUOTED, all_plain, escape_in_json
from aiolog.formats.layout import MESSAGE, SECOND, SECONDS_KEPT, Layout, Slot, parts_of, text_of
from aiolog.formats.schemas import Key, Lifted, Schema, Values
from aiolog.record import MALFORMED, MAX_EXTRA_DEPTH, SECOND_NS, STANDARD_ATTRIBUTES, WireRecord, attributes
from aiolog.source import Source

# ---------------------------------------------------------------------------------------------------------------
# Values

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
    try:
        return _ENCODER.encode(_plain(value))
    except Exception:  # noqa: BLE001 - a key or an int that has no str()
        return '"?"'


_BARE = re.compile(r'[^\s"=\\]+')


def _quoted(raw: str) -> str:
    """Return a text as a JSON string in which only what is unsafe is escaped."""
    return escape_in_json(encode_basestring(raw))


def _logfmt_value(value: Any) -> str:
    try:
        plain = _plain(value)
        shown = plain if isinstance(plain, str) else _ENCODER.encode(plain)
    except Exception:  # noqa: BLE001 - see _json_value
        return "?"
    return shown if shown.isprintable() and _BARE.fullmatch(shown) else _quoted(shown)


def _logfmt_name(name: str) -> str:
    if name.isidentifier():
        return name
    return "".join(char if char.isprintable() and char not in ' "=\\' else "_" for char in name) or "_"


def _label_value(value: Any) -> str:
    """Return a value that is not plain as JSON in a text."""
    shown = _json_value(value)
    return encode_basestring_ascii(shown) if isinstance(value, dict | list | tuple) else shown


_Write: TypeAlias = Callable[[Any], str]

# Of each type of everyday values what writes it, of C where there is something: the encoder takes a microsecond for a
# number. It may raise where `_json_value` does not.
_IN_BOTH: dict[type, _Write] = {
    int: int.__repr__,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
}
_IN_JSON: dict[type, _Write] = {
    **_IN_BOTH,
    str: encode_basestring_ascii,
    float: lambda value: float.__repr__(value) if isfinite(value) else _json_value(value),
}
_IN_LOGFMT: dict[type, _Write] = {
    **_IN_BOTH,
    float: lambda value: float.__repr__(value) if isfinite(value) else _logfmt_value(value),
}


def _written(everyday: Mapping[type, _Write], other: _Write) -> _Write:
    """Return what writes values of any type and raises nothing."""

    def write(value: Any) -> str:
        try:
            return everyday.get(type(value), other)(value)
        except Exception:  # noqa: BLE001 - an int that has no str()
            return other(value)

    return write


class Notation(NamedTuple):
    """How pairs of a key and a value are written. A key brings the sign that parts it from the pair before."""

    opening: str
    close: str
    quote: str  # around a moment
    key: Callable[[str], str]
    everyday: Mapping[type, _Write]  # what writes values of these types
    other: _Write  # and any other value, or one of which the former raised
    text: Callable[[str], str]  # a message, in quotes; raises TypeError for what is no text
    plain: bytes  # the table that says whether a message in quotes is as it was
    is_flat: bool  # extras have no object of their own


JSON = Notation(
    opening="{",
    close="}\n",
    quote='"',
    key=lambda name: f",{encode_basestring_ascii(name)}:",
    everyday=_IN_JSON,
    other=_json_value,
    text=encode_basestring_ascii,
    plain=PLAIN_ASCII,
    is_flat=False,
)
LOGFMT = Notation(
    opening="",
    close="\n",
    quote="",
    key=lambda name: f" {_logfmt_name(name)}=",
    everyday=_IN_LOGFMT,
    other=_logfmt_value,
    text=_quoted,
    plain=PLAIN_QUOTED,
    is_flat=True,
)

# ---------------------------------------------------------------------------------------------------------------
# Keys


def _names(
    notation: Notation, schema: Schema, fields: Sequence[str], rename: Mapping[str, str], *, flatten_extras: bool
) -> dict[str, str]:
    """Return the chosen keys in their order, and the name of each in a line. Raises ``ConfigError``."""
    chosen = tuple(fields) or schema.usual
    _refuse_unknown("fields", chosen, schema.keys)
    _refuse_unknown("rename", rename, schema.keys)
    if flatten_extras and schema.extras not in chosen:
        raise ConfigError(f'flatten_extras needs "{schema.extras}" in fields. Add it there: it says where they stand.')
    for key, name in rename.items():
        if key not in chosen:
            raise ConfigError(f'rename cannot have "{key}": fields leaves it out. Add it there, or remove it here.')
        if key == schema.extras and (flatten_extras or notation.is_flat):
            raise ConfigError(f'rename cannot have "{key}": the extras stand at the top level. Remove it.')
        if not name or (notation is LOGFMT and _logfmt_name(name) != name):
            raise ConfigError(f'rename cannot make {_shown(name)} of "{key}". Use letters, digits, _ and dots.')
    for setting, names in (("fields", chosen), ("rename", [rename.get(key, key) for key in chosen])):
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"{setting} cannot give a line two keys {_shown(twice[0])}. Change one of them.")
    return {key: rename.get(key, key) for key in chosen}


def _refuse_unknown(setting: str, given: Iterable[str], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            folded = {one.casefold(): one for one in known}
            near = difflib.get_close_matches(key.casefold(), folded, n=1)
            hint = f'Did you mean "{folded[near[0]]}"?' if near else f"The keys are {', '.join(known)}."
            raise ConfigError(f"{setting} cannot have {_shown(key)}. {hint}")


def _shown(name: str) -> str:
    """Write a name as TOML does, with nothing in it that could drive a terminal."""
    return encode_basestring_ascii(name)


class _Piece(NamedTuple):
    """A piece of a line, with its key: what it depends on, as in ``Key``, and its text.

    The text of a moment or a message is only what stands before its value. ``is_solid``: it is never left out.
    """

    kind: str
    text: Callable[[Source, Values], str]
    needs: str = ""
    is_solid: bool = True


NAMES_KEPT = 256  # of extras, as keys: an application has some tens, and one costs more to make than to look up
MAX_KEPT_CHARS = 2 << 10  # of names that are looked up together, and of what stands before them in 8 times as many
FEW_NAMES = 32  # of the extras of a record: so many are looked up together
FEW_APART = 8  # extras that want one key: so many are told apart as people would, the others by a number
_TEXTS = frozenset({"exc_text", "stack_info", "taskName"})
_NOBODY = Source()  # a thread's text depends on no source

# Of a moment: the unit of the loop, the digits after the second, and what comes between them and the last quote.
_MOMENTS = {
    "rfc3339": ("micro", ("digits[micro // 1000]", "digits[micro % 1000]"), "Z"),
    "unix_ns": ("nano", ("digits[nano // 1_000_000]", "digits[nano // 1000 % 1000]", "digits[nano % 1000]"), ""),
}

# In the loop: a record that has `rare` has more slots.
_WIDEN = """
if rare is not nothing:
    {rares} = rares_of(source, rare)
    {constants} = source.plans[layout.wide][wire[1]]
    line = {line}
    {finish}
    add(line)
    continue"""


@lru_cache(SECONDS_KEPT)
def _utc_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


class StructuredLayout(Layout):
    """Lines of keys and values.

    ``Source.plans[self.wide]`` maps the number of a site to the constant texts of its records that have ``rare``, and
    ``Source.plans[self.labels]`` has what is the same in the extras of all of them.
    """

    def __init__(
        self,
        notation: Notation,
        schema: Schema,
        *,
        fields: Sequence[str],
        rename: Mapping[str, str],
        flatten_extras: bool,
        accepts: Accepts,
    ) -> None:
        super().__init__(accepts)
        self.wide = (self, "wide")
        self.labels = (self, "labels")
        self._notation = notation
        self._schema = schema
        self._is_flat = notation.is_flat or flatten_extras
        self._names = _names(notation, schema, fields, rename, flatten_extras=flatten_extras)
        self._lifted = {key: lifted for key, lifted in schema.lifted.items() if key in self._names}
        self._lifted_names = frozenset(name for lifted in self._lifted.values() for name in lifted.names)
        # The keys that no extra may take, and what stands before the name of one that would.
        beside = list(schema.inner) or (list(self._names.values()) if self._is_flat else [])
        self._taken = frozenset(map(notation.key, beside))
        self._apart = f"{schema.extras}." if beside else "_"
        is_label = schema.is_plain and not self._is_flat
        self._is_alone = not beside and not is_label  # an extra can only be in the way of another
        self._extra_key = lru_cache(NAMES_KEPT)(_label_key if is_label else notation.key)
        self._keys_of = lru_cache(NAMES_KEPT)(self._new_keys)
        self._other = _label_value if is_label else notation.other
        self._extra_value = _written(notation.everyday, self._other)
        self._value = _written(notation.everyday, notation.other)

        self._pieces = [*self._pieces_of(), _Piece("site", _constant(notation.close))]
        unit, self._digits, shut = _MOMENTS[schema.moment]
        self._shut = shut + notation.quote
        # The first key has nothing to be parted from. What stands before a moment that comes first is constant.
        first = self._pieces[0]
        self._lead = ""
        if first.kind == "moment":
            self._lead = notation.opening + first.text(_NOBODY, {})[1:] + notation.quote
        self._is_cut = not (first.is_solid and first.kind in ("site", "moment", "message"))
        finish = "line = begun(line)" if self._is_cut else ""

        runs = [
            [(piece.needs, piece.text) for piece in run]
            for kind, run in groupby(self._pieces, lambda piece: piece.kind)
            if kind == "rare"
        ]
        self._no_rares = [""] * len(runs)
        self._rare_pieces = [(needs, number, text) for number, run in enumerate(runs) for needs, text in run]
        self._extras_pieces = [piece for piece in self._rare_pieces if piece[0] == "extra"]  # one, or none
        constants, parts = parts_of(self._shape(is_wide=True), "wide")
        rares = f"[{', '.join(f'rare{number}' for number in range(len(runs)))}]"
        self._compile(
            self._shape(is_wide=False),
            unit=unit,
            all_plain=all_plain(notation.plain),
            escape=lambda message: notation.text(message)[1:-1],
            take_rare=_WIDEN.format(rares=rares, constants=constants, line=text_of(parts), finish=finish),
            finish=finish,
            names={"rares_of": self._rares, "begun": self._begun},
        )

    # -- the pieces of a line

    def _pieces_of(self) -> Iterator[_Piece]:
        notation, schema = self._notation, self._schema
        for key, name in self._names.items():
            if schema.keys[key].kind != "extras":
                yield self._piece(name, schema.keys[key])
            elif not schema.inner:
                yield _Piece(
                    "rare", self._extras if self._is_flat else self._object(notation.key(name)), "extra", is_solid=False
                )
            else:
                yield _Piece("site", _constant(notation.key(name) + "{"))
                first, *others = (self._piece(inner, one) for inner, one in schema.inner.items())
                yield _Piece("site", _without_comma(first.text))
                yield from others
                yield _Piece("rare", self._extras, "extra", is_solid=False)
                yield _Piece("site", _constant("}"))

    def _piece(self, name: str, key: Key) -> _Piece:
        before, value_of, encoded = self._notation.key(name), key.value, self._value

        def text(source: Source, values: Values) -> str:
            value = value_of(source, values)
            return "" if key.optional and (value is None or value == "") else before + encoded(value)

        text_of = _constant(before) if key.kind in ("moment", "message") else text
        return _Piece(key.kind, text_of, key.needs, not key.optional)

    def _object(self, before: str) -> Callable[[Source, Values], str]:
        def text(source: Source, values: Values) -> str:
            pairs = self._extras(source, values)
            return f"{before}{{{pairs[1:]}}}" if pairs else ""

        return text

    def _extras(self, source: Source, values: Values) -> str:
        """Return the pairs of the extras, and of the labels where they belong to them; no two have one key."""
        if "pairs" in values:
            return values["pairs"]  # type: ignore[no-any-return]
        extras: dict[str, Any] = values["extra"]
        if self._schema.labelled and source.labels:
            extras = source.labels | extras
        key_of, value_of = self._extra_key, self._extra_value
        if self._is_alone and "".join(extras).isascii():  # then different names make different keys
            return "".join([key_of(name) + value_of(value) for name, value in extras.items()])
        return "".join([key + value_of(value) for key, value in self._set_apart(extras).items()])

    def _pairs(self, source: Source, flat: Sequence[Any]) -> str | None:
        """Return what :meth:`_extras` does, of names and values in turn; None where it takes a look at each."""
        if len(flat) % 2 or len(flat) > 2 * FEW_NAMES:
            return None
        labels = source.plans.get(self.labels) or self._learn_labels(source)
        if labels["names"] is None:
            return None
        try:
            keys = self._keys_of(labels["names"], tuple(flat[::2]))
        except (ValueError, TypeError):
            return None
        if keys is None:
            return None
        pairs = [labels["pairs"]]
        writer_of, other = self._notation.everyday.get, self._other
        for key, value in zip(keys, flat[1::2]):  # noqa: B905 - strict would take a fifth of it
            pairs.append(f"{key}{writer_of(type(value), other)(value)}")
        return "".join(pairs)

    def _learn_labels(self, source: Source) -> dict[Any, Any]:
        """Keep the names of the labels that stand before a source's extras, and their pairs; None if they take much."""
        labels = self._set_apart(source.labels if self._schema.labelled else {})
        pairs = "".join([key + self._extra_value(value) for key, value in labels.items()])
        names = tuple(source.labels) if labels else ()
        is_kept = len(pairs) <= 8 * MAX_KEPT_CHARS and source.reserve((pairs,))
        learned = {"names": names, "pairs": pairs} if is_kept else {"names": None}
        source.plans[self.labels] = learned
        return learned

    def _new_keys(self, labels: tuple[str, ...], extras: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the keys of some extras behind some labels; None if their values matter, or what they are called.

        Raises ValueError, and TypeError for what is no name, where they are not to be kept.
        """
        names = (*labels, *extras)
        if sum(map(len, names)) > MAX_KEPT_CHARS:
            raise ValueError("the names of the extras are too long to be kept")
        if any(type(name) is not str for name in names):
            raise TypeError("the name of an extra is no text")
        if len({*names}) < len(names) or not (STANDARD_ATTRIBUTES | self._lifted_names).isdisjoint(names):
            return None
        return tuple(self._set_apart(dict.fromkeys(names)))[len(labels) :]

    def _set_apart(self, extras: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values under keys of which no two are the same and none is taken."""
        pairs: dict[str, Any] = {}
        wanted = Counter[str]()  # how often a key was not to be had
        for name, value in extras.items():
            first = key = self._extra_key(name)
            while key in self._taken or key in pairs:
                wanted[first] += 1
                key = self._extra_key(self._apart_by(wanted[first]) + name)
            pairs[key] = value
        return pairs

    def _apart_by(self, times: int) -> str:
        """Return what comes before a name whose key was not to be had so many times."""
        return self._apart * times if times <= FEW_APART else f"{self._apart * FEW_APART}{times}_"

    # -- the loop's lines

    def _shape(self, *, is_wide: bool) -> list[Slot | None]:
        """Return the shape of lines, constants around each slot; in a wide one what is rare has slots too."""
        shape: list[Slot | None] = [] if self._lead else [None]
        kinds = Counter[str]()
        for kind, _ in groupby(self._pieces, lambda piece: piece.kind):
            if kind == "moment":
                shape += [SECOND, *(Slot(kind, digits) for digits in self._digits), None]
            elif kind == "message":
                shape += [MESSAGE, None]
            elif kind == "thread" or (kind == "rare" and is_wide):
                shape += [Slot(kind, f"{kind}{kinds[kind]}"), None]
                kinds[kind] += 1
        return shape

    def _constants(self, source: Source, values: Mapping[str, Any], *, is_wide: bool) -> tuple[str, ...]:
        """Return the constant texts of a site, in the order of the shape."""
        texts = [""]
        for kind, pieces in groupby(self._pieces, lambda piece: piece.kind):
            if kind == "thread" or (kind == "rare" and is_wide):
                texts.append("")
                continue
            given = {"extra": {}} if kind == "rare" else values
            texts[-1] += "".join(
                [piece.text(source, given) for piece in pieces if not piece.needs or piece.needs in given]
            )
            if kind == "moment":
                texts[-1] += self._notation.quote
                texts.append(self._shut)
            elif kind == "message":
                texts[-1] += '"'
                texts.append('"')
        if not self._is_cut:
            texts[0] = self._notation.opening + texts[0][1:]
        return tuple(texts[1:] if self._lead else texts)

    def _site(self, source: Source, values: Mapping[str, Any]) -> tuple[str, ...]:
        return self._constants(source, values, is_wide=False)

    def _thread(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        groups = groupby(self._pieces, lambda piece: piece.kind)
        return tuple(
            "".join([piece.text(_NOBODY, values) for piece in run]) for kind, run in groups if kind == "thread"
        )

    def _second(self, second: int) -> str:
        if self._schema.moment == "rfc3339":
            return f"{self._lead}{_utc_second(second)}."
        if not 1 <= second < INT_MAX // SECOND_NS:
            raise ValueError("its nanoseconds are none, or not the digits of a second and nine more")
        return f"{self._lead}{second}"

    # -- what is rare, and any record

    def _rares(self, source: Source, rare: Mapping[str, Any]) -> list[str]:
        """Return the texts of what is rare, run by run. Raises when there is something that only the slow way shows."""
        values: dict[str, Any] = {"extra": {}}
        pieces = self._rare_pieces
        pairs = None
        if "extra" in rare:
            if type(rare["extra"]) not in (tuple, list):
                raise TypeError("the extras are not names and values")
            pairs = self._pairs(source, rare["extra"])
        if pairs is not None:
            values["pairs"] = pairs
        if pairs is not None and len(rare) == 1:
            pieces = self._extras_pieces
        else:
            self._take(rare, values)
            self._complete(values)
        texts = self._no_rares.copy()
        for needs, run, text in pieces:
            if needs in values:
                texts[run] += text(source, values)
        return texts

    def _take(self, rare: Mapping[str, Any], values: dict[str, Any]) -> None:
        """Put into ``values`` what is rare, the extras unless their pairs are there. Raises as :meth:`_rares` does."""
        for name, value in rare.items():
            if name == "extra":
                if "pairs" in values:
                    continue
                extras = values[name]
                flat = iter(value)
                for extra in flat:  # a tenth of what dict(zip(flat, flat, strict=True)) takes
                    extras[extra] = next(flat)
                if not STANDARD_ATTRIBUTES.isdisjoint(extras):
                    raise ValueError("an extra has the name of a standard attribute")
                if max(map(len, extras), default=0) > MAX_NAME_CHARS:
                    raise ValueError("an extra has a name that is too long to be kept")
            elif name in _TEXTS and type(value) is str:
                values[name] = value
            else:
                raise ValueError("an attribute differs, or is of the wrong type")

    def _complete(self, values: dict[str, Any]) -> None:
        """Add what follows from what is rare, and take what has a key of its own from the extras."""
        if "exc_text" in values or "stack_info" in values:
            values["traces"] = "\n".join(filter(None, (values.get("exc_text"), values.get("stack_info"))))
        extras = values["extra"]
        if not self._lifted_names.isdisjoint(extras):
            for key, lifted in self._lifted.items():
                if (value := _lift(extras, lifted)) is not None:
                    values[key] = value

    def _rebuilt(self, source: Source, wire: WireRecord, values: dict[str, Any]) -> str:
        created = values["created"]
        if MALFORMED not in values:
            if type(wire[0]) is int and wire[0] / 1e9 == created:
                created = wire[0]  # the same moment, but every nanosecond of it
            wide = source.plans.setdefault(self.wide, {})
            if len(wire) > 4 and type(wire[1]) is int and wire[1] not in wide:
                plain = attributes(source, (0.0, wire[1], wire[2], ""))
                constants = self._constants(source, plain, is_wide=True)
                if source.reserve(constants):
                    wide[wire[1]] = constants
        rare = {name: values[name] for name in _TEXTS if values[name]}
        rare["extra"] = {name: value for name, value in values.items() if name not in STANDARD_ATTRIBUTES}
        self._complete(rare)
        line = ""
        for piece in self._pieces:
            given = rare if piece.kind == "rare" else values
            if not piece.needs or piece.needs in given:
                line += piece.text(source, given)
            if piece.kind == "moment":
                line += self._moment(created)
            elif piece.kind == "message":
                line += self._notation.text(values["msg"])
        return self._begun(line)

    def _begun(self, line: str) -> str:
        """Return a line with its opening in place of what parts the first pair from none, if there is a pair."""
        return self._notation.opening + (line if line == self._notation.close else line[1:])

    def _moment(self, created: Any) -> str:
        try:
            if type(created) is int:
                second, nano = divmod(created, SECOND_NS)
            else:
                second = floor(created)
                scale = 1000 if self._schema.moment == "rfc3339" else 1
                nano = round((created - second) * (SECOND_NS // scale)) * scale
                second, nano = second + nano // SECOND_NS, nano % SECOND_NS
            quote = self._notation.quote
            if self._schema.moment == "rfc3339":
                return f"{quote}{_utc_second(second)}.{nano // 1000:06d}{self._shut}"
            nanoseconds = second * SECOND_NS + nano
            return f"{quote}{nanoseconds}{self._shut}" if 0 <= nanoseconds <= INT_MAX else "null"
        except Exception:  # noqa: BLE001 - not finite, before the year 1 or after 9999, or no number at all
            return "null"


def _constant(text: str) -> Callable[[Source, Values], str]:
    return lambda _source, _values: text


def _without_comma(text: Callable[[Source, Values], str]) -> Callable[[Source, Values], str]:
    return lambda source, values: text(source, values)[1:]


def _lift(extras: dict[str, Any], lifted: Lifted) -> Any:
    """Take the first of the extras that says something valid; OpenTelemetry says "0" outside a span."""
    for name in lifted.names:
        if name in extras:
            value = extras[name]
            if value in (None, "", "0", 0):
                del extras[name]
            elif lifted.is_valid(value):
                return extras.pop(name)
    return None


_LABEL = str.maketrans(dict.fromkeys(".*\\", "_"))


def _label_key(name: str) -> str:
    return JSON.key(name.translate(_LABEL))
