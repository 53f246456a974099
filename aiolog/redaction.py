"""What is not to leave the process: secrets found in text, in a time that grows with its length and no faster.

Pure: text in, text out. The default finds what people log by accident (headers, ``password=…``, keys, URLs with a
password) and is no promise: a secret that looks like a word is one. Words are looked for first, which costs next to
nothing; only where one stands, its pattern is. None has a quantifier within a quantifier, and what one has matched it
does not look at again: so a text that was made to be slow is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

DEFAULT = "default"
REDACTED = "[redacted]"

# What the names of secrets have in them: in text before = or :, and in the names of fields.
_NAMES = (
    "password", "passwd", "passphrase", "pwd", "secret", "token", "api_key", "api-key", "apikey", "access_key",
    "access-key", "accesskey", "private_key", "private-key", "credential", "sessionid",
)  # fmt: skip
_HEADERS = ("authorization", "cookie")


_SIGN = r"""["']?\s{0,4}[:=]\s{0,4}"""  # name=value, name: value, "name": value
_QUOTED = r""""[^"\n]*"?|'[^'\n]*'?"""
# Words, and what follows each of them, in small letters; the group ``secret`` goes. A pattern begins with its word, so
# that re searches for that as for plain text.
_RULES: tuple[tuple[tuple[str, ...], str], ...] = (
    (_NAMES, rf"""{_SIGN}(?P<secret>{_QUOTED}|[^\s"',;&]+)"""),
    # Schemes whose credentials have many parts take the rest of the line, as cookies do.
    (
        ("authorization",),
        rf"""{_SIGN}(?P<secret>{_QUOTED}|(?:digest|oauth|hawk|aws4)[^\r\n]*|(?:\w{{1,20}}\s{{1,4}})?[^\s"',;&]+)""",
    ),
    (("cookie",), rf"{_SIGN}(?P<secret>{_QUOTED}|[^\r\n]+)"),
    (("bearer",), r"\s{1,4}(?P<secret>[\w.~+/=-]{8,})"),
    (("://",), r"""[^\s/:@"']{0,256}:(?P<secret>[^\s/"']{1,256})@"""),
    # Amazon's key ids; JSON web tokens: two or three parts of base64, the first a JSON object.
    (("akia", "asia"), r"(?<!\w....)(?P<secret>[a-z0-9]{16})(?!\w)"),
    (("eyj",), r"(?<![\w-]...)(?P<secret>[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)"),
    # Private keys, with or without their end.
    (
        ("-----begin",),
        r"[a-z ]{0,40}private key-----(?P<secret>.*?)(?:-----end[a-z ]{0,40}private key-----|\Z)",
    ),
)
_PATTERNS = tuple((word, re.compile(re.escape(word) + rest, re.DOTALL)) for words, rest in _RULES for word in words)


def redact_default(text: str) -> str:
    """Return a text without what looks like a secret."""
    # Of the same length, letter by letter: the one that grows when it becomes small would shift all that follows.
    lower = text.replace("\u0130", "i").lower()
    spans = [
        found.span("secret")
        for word, pattern in _PATTERNS
        if (at := lower.find(word)) >= 0
        for found in pattern.finditer(lower, at)
    ]
    if not spans:
        return text
    parts: list[str] = []
    end = 0
    for start, stop in sorted(spans):  # they may overlap
        if start >= end:
            parts += text[end:start], REDACTED
        end = max(end, stop)
    return "".join((*parts, text[end:]))


def hides_default(name: str) -> bool:
    """Whether the value of a field of this name is a secret as a whole."""
    lower = name.lower()
    return any(word in lower for word in (*_NAMES, *_HEADERS))


class Redaction(NamedTuple):
    """What a handler does to texts, and which fields it hides whole."""

    text: Callable[[str], str]
    hides: Callable[[str], bool] | None


def compiled(redact: Any) -> Redaction | None:
    """Return what the option ``redact`` means: None, a function, ``"default"``, or patterns and ``"default"``.

    Raises ValueError for anything else, and for a pattern that is none.
    """
    if redact is None:
        return None
    if callable(redact):
        return Redaction(redact, None)
    if redact == DEFAULT:
        return Redaction(redact_default, hides_default)
    if isinstance(redact, (str, re.Pattern)) or not isinstance(redact, Iterable):
        raise ValueError(  # noqa: TRY004 - the one kind of error for a setting
            f"redact is {redact!r}; it must be a function, {DEFAULT!r}, or a list of patterns, {DEFAULT!r} among them"
        )
    with_default = False
    patterns: list[re.Pattern[str]] = []
    for one in redact:
        if isinstance(one, str) and one == DEFAULT:
            with_default = True
        elif isinstance(one, re.Pattern) and isinstance(one.pattern, str):
            patterns.append(one)
        else:
            patterns.append(_compile(one))
    return Redaction(_remover(patterns, with_default=with_default), hides_default if with_default else None)


def _compile(pattern: Any) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise ValueError(f"redact has {pattern!r} in it, which is no pattern for text")  # noqa: TRY004 - a setting
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"redact has {pattern!r} in it, which is no pattern: {error}") from None


def _remover(patterns: Sequence[re.Pattern[str]], *, with_default: bool) -> Callable[[str], str]:
    def remove(text: str) -> str:
        if with_default:
            text = redact_default(text)
        for pattern in patterns:
            text = pattern.sub(REDACTED, text)
        return text

    return remove
