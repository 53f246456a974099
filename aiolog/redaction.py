"""What is not to leave the process: patterns for secrets, each of them linear in the length of a text.

Pure: text in, text out. The default patterns find what people log by accident (headers, ``password=…``, keys, URLs with
a password) and are no promise: a secret that looks like a word is one. No pattern has a quantifier within a
quantifier, and none can begin at every character and run to the end, so a text that was made to be slow is not.
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
    "access-key", "accesskey", "private_key", "private-key", "authorization", "credential", "cookie", "sessionid",
)  # fmt: skip


class _Rule(NamedTuple):
    """A pattern and what it leaves; only looked for in a text that has one of ``words`` in it, in lower case."""

    words: tuple[str, ...]
    pattern: re.Pattern[str]
    left: str


_VALUE = r"""(?:"[^"\n]*"?|'[^'\n]*'?|[^\s"',;&]+)"""
_RULES = (
    # Whole keys, with or without their end.
    _Rule(
        ("private key-----",),
        re.compile(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        REDACTED,
    ),
    # Headers: all that stands in the line.
    _Rule(("cookie",), re.compile(r"""(cookie["']?: ?)[^\r\n]+""", re.IGNORECASE), rf"\1{REDACTED}"),
    _Rule(
        ("authorization",),
        re.compile(
            r"""(authorization["']?\s{0,4}[:=]\s{0,4}["']?(?:(?:basic|bearer|digest|negotiate|token)\s{1,4})?)[^\s"',;]+""",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
    _Rule(("bearer ",), re.compile(r"(\bbearer\s{1,4})[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{REDACTED}"),
    # name=value, name: value, "name": "value"
    _Rule(
        _NAMES,
        re.compile(
            rf"""((?:{"|".join(_NAMES)})["']?\s{{0,4}}[:=]\s{{0,4}})(?!{re.escape(REDACTED)}){_VALUE}""", re.IGNORECASE
        ),
        rf"\1{REDACTED}",
    ),
    # scheme://user:password@host
    _Rule(("://",), re.compile(r"""(://[^\s/:@"']{0,256}:)[^\s/"']{1,256}@"""), rf"\1{REDACTED}@"),
    # Amazon's key ids, and JSON web tokens: three parts of base64, the first a JSON object.
    _Rule(("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), REDACTED),
    _Rule(("eyj",), re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), REDACTED),
)


def redact_default(text: str) -> str:
    """Return a text without what looks like a secret."""
    lower = text.lower()
    for words, pattern, left in _RULES:
        if any(word in lower for word in words):
            text = pattern.sub(left, text)
    return text


def hides_default(name: str) -> bool:
    """Whether the value of a field of this name is a secret as a whole."""
    lower = name.lower()
    return any(word in lower for word in _NAMES)


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
