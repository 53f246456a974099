"""Which file a record goes to: path templates over what a peer says, confined to a directory.

    logs/{app}/{logger}.log        logs/shop/shop.orders.log
    ──── ─────────────────
    root the part that records choose

It knows names, never a file system. What a peer says becomes a part of one component and nothing else: letters, digits
and a few signs stay, all else becomes ``_``, and then ``~`` and a hash of the true name follow, so that two different
names never meet in one file. A name that reads as a backup's, is hidden, or is too long, is treated the same way.
``~`` itself is no sign that stays, so nobody can claim another's hash.
"""

from __future__ import annotations

import re
import reprlib
import string
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from operator import add
from pathlib import PurePath
from time import gmtime, strftime
from typing import NamedTuple

from aiolog.errors import ConfigError

FIELDS = ("app", "host", "logger", "process", "level", "date")
OTHER = "_other"  # what stands for every field where a record may have no file of its own
NOTHING = "-"  # what stands for a field that is empty
MAX_COMPONENT_CHARS = 200  # of 255 bytes that file systems grant; a stamp, a counter and two endings follow it
MAX_NAME_BYTES = 255  # of one component: NAME_MAX of ext4, xfs, btrfs and tmpfs
OWN_TAIL_BYTES = 30  # ".20261123T080102Z.0000.zst.tmp": the longest that is put behind the name of a live file
MIN_FIELD_CHARS = 40  # of one field: below it there is no room for a hash and something to read
HASH_CHARS = 16
DATE_FORMAT = "%Y-%m-%d"

_KEPT = r"A-Za-z0-9._@+=,-"
_CHANGED = re.compile(rf"[^{_KEPT}]")
_AS_BACKUP = re.compile(r"\.\d{8}T\d{6}Z\.\d{4}", re.ASCII)
_ENDS_AS_BACKUP = re.compile(rf"{_AS_BACKUP.pattern}(\.gz|\.zst)?(\.tmp)?\Z", re.ASCII)
_FIELD_PATTERN = rf"[{_KEPT}~]+"
_SAMPLES = (0, 1_000_000_000, 1_795_460_462)  # moments whose parts, from the month to the second, have one digit or two
# What stands beside a live file, in the words of ledger, rotation, backups and livefile: before its name and behind it.
# Moments are all zeros here.
_LEDGERS = (".ledger", ".ledger.new")
_ZERO = "00000000T000000Z"
_BACKUPS = tuple(f".{_ZERO}.0000{suffix}{partial}" for suffix in ("", ".gz", ".zst") for partial in ("", ".tmp"))
_TORN = (f".torn-{_ZERO}", f".torn-{_ZERO}.0")
_TORN_STAMP = re.compile(r"\.torn-\d{8}T\d{6}Z(?P<counter>\.\d+)?", re.ASCII)

_brief = reprlib.Repr()
_brief.maxstring = 60  # of a path in a message: long enough to know it again
_DATE_MARK = "\0"  # where the date comes into a path; no component can hold it


def safe(value: str, max_chars: int) -> str:
    """Return a text that may be a part of a component: ``value`` itself, or what can be kept of it and its hash.

    >>> safe("shop.orders", 100), safe("", 100)
    ('shop.orders', '-')
    >>> safe("../../etc/passwd", 100)
    '_._.._etc_passwd~e5e710ea784151b5'
    """
    if not value:
        return NOTHING
    kept = _CHANGED.sub("_", value)
    if kept[0] in ".~":
        kept = "_" + kept[1:]
    if kept.endswith("."):
        kept = kept[:-1] + "_"
    if kept == value and len(kept) <= max_chars and kept not in (OTHER, NOTHING) and not _AS_BACKUP.search(kept):
        return kept
    mark = blake2b(value.encode(errors="surrogatepass"), digest_size=HASH_CHARS // 2).hexdigest()
    return f"{kept[: max_chars - HASH_CHARS - 1]}~{mark}"


class _Component(NamedTuple):
    """One part of a path between slashes: ``literals[0] + field[0] + literals[1] + …``."""

    literals: tuple[str, ...]
    fields: tuple[str, ...]

    @property
    def field_chars(self) -> int:
        return (MAX_COMPONENT_CHARS - sum(map(_bytes, self.literals))) // len(self.fields)

    def pattern(self, date_pattern: str = _FIELD_PATTERN) -> str:
        """Return what its names look like, as a regular expression."""
        patterns = [date_pattern if field == "date" else _FIELD_PATTERN for field in self.fields]
        return _Component(tuple(map(re.escape, self.literals)), self.fields).joined(patterns)

    def joined(self, texts: Sequence[str]) -> str:
        """Return the component with a text for each of its fields."""
        return self.literals[0] + "".join(map(add, texts, self.literals[1:]))

    def render(self, values: Mapping[str, str]) -> str:
        """Return the component for a record, with a mark in place of the date."""
        texts = [_DATE_MARK if field == "date" else safe(values[field], self.field_chars) for field in self.fields]
        whole = self.joined(texts)
        # "a-b" and "c" make the same as "a" and "b-c": one of the two reads back as itself, and that one stays.
        is_twice = len(texts) > 1 and self._read_back(whole, "(.+?)") != texts
        if is_twice or (_ENDS_AS_BACKUP.search(whole) and set(self.fields) != {"date"}):
            mark = blake2b("\0".join(texts).encode(), digest_size=HASH_CHARS // 2).hexdigest()
            last = max(n for n, field in enumerate(self.fields) if field != "date")
            texts[last] = f"{texts[last][: self.field_chars - HASH_CHARS - 1]}~{mark}"
        return self.joined(texts)

    def _read_back(self, whole: str, field_pattern: str, date_pattern: str = _DATE_MARK) -> list[str] | None:
        """Return the texts of the fields, the shortest first; None where it is none of this component's names."""
        patterns = [f"({date_pattern})" if field == "date" else field_pattern for field in self.fields]
        escaped = _Component(tuple(map(re.escape, self.literals)), self.fields)
        match = re.fullmatch(escaped.joined(patterns), whole)
        return list(match.groups()) if match else None

    def undated(self, part: str, date_pattern: str) -> str:
        """Return a name of this component with a mark in place of its date."""
        if "date" not in self.fields:
            return part
        texts = self._read_back(part, f"({_FIELD_PATTERN})", date_pattern) or []
        return self.joined(
            [_DATE_MARK if field == "date" else text for field, text in zip(self.fields, texts, strict=True)]
        )

    def may_meet(self, other: _Component, date_pattern: str = _FIELD_PATTERN) -> bool:
        """Whether one name could come of both, the date of the one with fields being as ``date_pattern``."""
        if not self.fields and not other.fields:
            return self.literals == other.literals
        if not self.fields or not other.fields:
            fixed, open_ = (self, other) if other.fields else (other, self)
            return re.fullmatch(open_.pattern(date_pattern), fixed.literals[0]) is not None
        heads = sorted((self.literals[0], other.literals[0]), key=len)
        tails = sorted((self.literals[-1], other.literals[-1]), key=len)
        return heads[1].startswith(heads[0]) and tails[1].endswith(tails[0])

    def may_spoil(self, other: _Component, date_pattern: str) -> bool:
        """Whether a live file of ``other``, with such dates, could have the name of what stands beside one of ours."""
        beside = [("", tail) for tail in (*_BACKUPS, *_TORN)]
        if other.literals[0].startswith("."):  # no field begins with a dot
            beside += [(".", tail) for tail in _LEDGERS]
        if self.fields:
            date_pattern = _FIELD_PATTERN
        still = other.still("", "")
        return any(self.still(head, tail).may_meet(still, date_pattern) for head, tail in beside)

    def still(self, head: str, tail: str) -> _Component:
        """Return the component with more before and behind it, and zeros for each moment in its literals."""
        literals = [*map(_still, self.literals)]
        literals[0] = head + literals[0]
        literals[-1] += tail
        return self._replace(literals=tuple(literals))


class PathTemplate:
    """The path of a file sink, with or without fields.

    ``root`` is the directory that no record can leave; ``is_plain`` where there are no fields, and ``has_date`` where
    the date is one. ``date_format`` is as for ``strftime``.

    Raises ``ConfigError`` for a field that is none, a ``..`` behind the first field, or too little room for a name.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.date_format = DATE_FORMAT
        if re.search(r"\{date:[^}]*/", text):
            raise self._refused("a date with a slash would be two names. Use {date:%Y}/{date:%m}")
        path = PurePath(text)
        components = [self._component(part) for part in path.parts]
        fixed = next((n for n, one in enumerate(components) if one.fields), len(components) - 1)
        self.is_plain = not any(one.fields for one in components)
        self.has_date = any("date" in one.fields for one in components)
        if not all(re.fullmatch(self._date_pattern, self._date_text(moment)) for moment in _SAMPLES):
            raise self._refused(
                f"the dates of {{date:{self.date_format}}} are not all of one length, so that no file would be known "
                "again. Use %d, %m or %H, which have two digits"
            )
        for part, one in zip(path.parts, components, strict=True):
            self._check_length(part, one, MAX_NAME_BYTES - OWN_TAIL_BYTES * (one is components[-1]))
        self.root = PurePath(*(one.joined(()) for one in components[:fixed]))
        self._components = components[fixed:]
        if not self.is_plain and any(part == ".." for part in path.parts[fixed:]):
            raise self._refused("'..' behind a field would lead out of the directory. Write the path without it")

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(f"the path {_brief.repr(self.text)} cannot be used: {why}.")

    def _check_length(self, part: str, component: _Component, max_bytes: int) -> None:
        """Refuse a part whose name, or what stands beside it later, no file system takes."""
        dates = [component.field_chars for field in component.fields if field == "date"]
        if dates and len(self._date_text(0)) > dates[0]:
            raise self._refused(f"the date in {_brief.repr(part)} is too long. Use %Y-%m-%d, or other parts of a date")
        size_bytes = _bytes(component.literals[0])
        if not component.fields and size_bytes > max_bytes:
            room = "" if max_bytes == MAX_NAME_BYTES else ", with room for the names of its backups"
            raise self._refused(
                f"{_brief.repr(part)} has {size_bytes} bytes, and a name has at most {max_bytes}{room}. Shorten it"
            )

    def _component(self, part: str) -> _Component:
        literals, fields = [""], []
        try:
            pieces = list(string.Formatter().parse(part))
        except ValueError as error:
            raise self._refused(f"{error}. Write {{{{ or }}}} for the sign") from None
        for literal, field, spec, conversion in pieces:
            literals[-1] += literal
            if field is None:
                continue
            if field not in FIELDS or conversion or (spec and field != "date"):
                raise self._refused(
                    f"{{{field}}} is no field. The fields are {', '.join(map('{{{}}}'.format, FIELDS))}"
                )
            if spec:
                self.date_format = spec
            fields.append(field)
            literals.append("")
        component = _Component(tuple(literals), tuple(fields))
        if fields and component.field_chars < MIN_FIELD_CHARS:
            raise self._refused(
                f"{_brief.repr(part)} leaves too little room for names. Use fewer fields or letters in it"
            )
        return component

    def resolve(self, values: Mapping[str, str]) -> str:
        """Return the path below :attr:`root`, with a mark in place of the date; see :meth:`dated`.

        ``values`` has a text for each of :data:`FIELDS` but the date.
        """
        return "/".join(one.render(values) for one in self._components)

    @property
    def fallback(self) -> str:
        """The path for what may have no file of its own."""
        return "/".join(
            one.joined([_DATE_MARK if field == "date" else OTHER for field in one.fields]) for one in self._components
        )

    @staticmethod
    def dated(path: str, date: str) -> str:
        """Return a path of :meth:`resolve` with its date, a text of ``date_format``."""
        return path.replace(_DATE_MARK, _CHANGED.sub("_", date)) if _DATE_MARK in path else path

    def family(self, path: str) -> str | None:
        """Return a path below :attr:`root` as :meth:`resolve` gives it, whatever its date; None where it is no such."""
        parts = path.split("/")
        if len(parts) != len(self._components):
            return None
        pairs = list(zip(self._components, parts, strict=True))
        # Ledgers and the like end otherwise, and an expression of five fields would try all ways to divide them.
        if not all(part.startswith(one.literals[0]) and part.endswith(one.literals[-1]) for one, part in pairs):
            return None
        date = self._date_pattern
        if not all(re.fullmatch(one.pattern(date), part) for one, part in pairs):
            return None
        return "/".join(one.undated(part, date) for one, part in pairs)

    @property
    def depth(self) -> int:
        """How many components there are below :attr:`root`."""
        return len(self._components)

    def _date_text(self, seconds: float) -> str:
        return _CHANGED.sub("_", strftime(self.date_format, gmtime(seconds)))

    @property
    def _date_pattern(self) -> str:
        """What a date looks like: of a sample, digits for digits, letters for letters, and either sign of a zone."""
        sample = re.sub(r"\d", "0", re.escape(self._date_text(0))).replace(r"\+", "[+-]")
        return re.sub(r"[A-Za-z]+", "[A-Za-z_]+", sample).replace("0", r"\d")

    def may_meet(self, other: PathTemplate) -> bool:
        """Whether one file could belong to both; without asking a file system, so links are not followed."""
        ours, theirs = self._parts, other._parts
        return len(ours) == len(theirs) and all(a.may_meet(b) for a, b in zip(ours, theirs, strict=True))

    def may_spoil(self, other: PathTemplate) -> bool:
        """Whether a live file of ``other`` could be what stands beside one of ours: a ledger, a backup, a torn line.

        Links are not followed. Of two templates with fields nobody can tell for sure; they are refused then.
        """
        ours, theirs = self._parts, other._parts
        if not ours or len(ours) != len(theirs) or not ours[-1].may_spoil(theirs[-1], other._date_pattern):
            return False
        return all(a.may_meet(b) for a, b in zip(ours[:-1], theirs[:-1], strict=True))

    @property
    def _parts(self) -> list[_Component]:
        return [*map(_literal, self.root.parts), *self._components]


def _literal(part: str) -> _Component:
    return _Component((part,), ())


def _still(text: str) -> str:
    """Return a literal with zeros for each moment of a backup in it, and for the counter."""
    return _TORN_STAMP.sub(lambda match: _TORN[match["counter"] is not None], _AS_BACKUP.sub(_BACKUPS[0], text))


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
