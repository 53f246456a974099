"""Escaping: what is unsafe, and the question whether many messages are plain."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import nasty_texts

from aiolog.formats import escaping
from aiolog.formats.structured import JSON, LOGFMT

# A table for the question, and what is done to a message when the answer is no.
TABLES = {
    "text": (escaping.PLAIN_TEXT, escaping.escape_indenting),
    "one line": (escaping.PLAIN_TEXT, escaping.escape_to_one_line),
    "json": (escaping.PLAIN_ASCII, lambda raw: JSON.text(raw)[1:-1]),
    "logfmt": (escaping.PLAIN_QUOTED, lambda raw: LOGFMT.text(raw)[1:-1]),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_is_plain_needs_no_escape(name):
    """Of every character but those of the higher planes, which are sampled: plain means left as it is."""
    table, escape = TABLES[name]
    are_plain = escaping.all_plain(table)
    plain = 0
    for code in [*range(0x10000), *range(0x10000, 0x110000, 997)]:
        char = chr(code)
        if are_plain([f"a{char}b"]):
            plain += 1
            assert escape(f"a{char}b") == f"a{char}b", hex(code)
    assert plain >= 90


@pytest.mark.parametrize("name", TABLES)
def test_ordinary_messages_are_plain(name):
    """Otherwise the question would only cost time."""
    are_plain = escaping.all_plain(TABLES[name][0])
    assert are_plain(["GET /orders/7 took 12 ms: 100% [ok] {'a': 1}", ""])
    if name in ("text", "one line"):
        assert are_plain(['Größe, naïve, Привет, 日本語, 😀, "quoted"\ta\\b'])


@settings(deadline=None)
@given(st.lists(nasty_texts | st.text(), max_size=5), st.sampled_from(sorted(TABLES)))
def test_one_that_needs_escaping_is_found_among_many(messages, name):
    """The answer for many is yes only if it is for each."""
    table, escape = TABLES[name]
    if escaping.all_plain(table)(messages):
        assert [escape(message) for message in messages] == messages


@pytest.mark.parametrize("message", [5, b"x", None, (), "\ud800"])
def test_where_it_cannot_be_told_the_answer_is_no(message):
    """Then each record is looked at by itself, and the odd one goes its own way."""
    assert not escaping.all_plain(escaping.PLAIN_TEXT)(["x", message])


@settings(deadline=None)
@given(st.lists(nasty_texts, max_size=4))
def test_piece_by_piece_is_all_at_once(pieces):
    """Constants of a line are escaped once, long before the rest of it."""
    for escape in (escaping.escape_indenting, escaping.escape_to_one_line):
        assert "".join(map(escape, pieces)) == escape("".join(pieces))
