"""Filters: a small expression that takes or leaves, whatever a record holds, and refuses what it is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolog import formatting
from aiolog.errors import ConfigError
from aiolog.filters import MAX_FILTER_CHARS, NAMES, Filtered, compile_filter
from aiolog.source import Site, Source, Thread

SITES = (
    Site("shop.orders", 20, "INFO", "/srv/shop/orders.py", "orders.py", "orders", 41, "pay"),
    Site("noisy.poll", 30, "WARNING", "/srv/poll.py", "poll.py", "poll", 7, "poll"),
    Site("aiolog", 30, "WARNING", "/srv/aiolog.py", "aiolog.py", "aiolog", 7, "notice"),
)


def source(app="shop"):
    made = Source(app=app, host="web1", pid=7, process_name="worker-1", labels={"tier": "front"})
    for site in SITES:
        made.define(site)
    made.define(Thread(1, "MainThread"))
    return made


def record(message="order 7 is paid", site=0, **rare):
    return (1.5, site, len(SITES), message, rare) if rare else (1.5, site, len(SITES), message)


def takes(text, wire, app="shop"):
    return compile_filter(text).takes(source(app), wire)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("level >= INFO", True),
        ("level > 20", False),
        ("INFO <= level < WARNING", True),
        ('levelname == "INFO"', True),
        ('logger.startswith("shop.")', True),
        ('logger.startswith(("a.", "shop."))', True),
        ('logger.endswith("x")', False),
        ('"PAID" in msg.lower()', False),
        ('"paid" in msg', True),
        ('"paid" not in msg', False),
        ('app in ("billing", "shop")', True),
        ('app in ["billing"]', False),
        ('host == "web1" and pid == 7 and process == "worker-1"', True),
        ('thread == "MainThread" and task is None', True),
        ('file.endswith("orders.py") and line == 41 and func == "pay"', True),
        ("fields.user == 42", True),
        ('fields["user"] == 42', True),
        ('fields["no-such"] == 42', False),
        ("fields.missing", False),
        ("not fields.missing", True),
        ('labels.tier == "front"', True),
        ("exc", False),
        ("not (level > ERROR or fields.user < -1)", True),
        ("fields.user in (41, 42)", True),
        ("fields.user > 'a'", False),  # types that do not fit each other
        ("fields.user < 'a'", False),
        ("fields.user.startswith('4')", False),  # no text
        ("fields.tags", True),
        ("'b' in fields.tags", True),
        ("'user' in fields", True),
        ("True and 1.5 < 2", True),
    ],
)
def test_what_an_expression_says(text, expected):
    """Comparisons, membership, methods of text, and what a record lacks."""
    assert takes(text, record(extra=["user", 42, "tags", ["a", "b"]])) is expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no expression"),
        ("level >=", "is no expression"),
        ("level >= INFO; 1", "is no expression"),
        ("levle > 3", "'levle' is no name; the names are level, levelname, logger"),
        ("__import__('os').system('x')", "is not part of the grammar"),
        ("msg.__class__", "is not part of the grammar"),
        ("msg.format(fields)", "is not part of the grammar"),
        ("[x for x in fields]", "is not part of the grammar"),
        ("lambda: 1", "is not part of the grammar"),
        ("msg[0]", "is not part of the grammar"),
        ("level ** level", "is not part of the grammar"),
        ("'a' * 10**9", "is not part of the grammar"),
        ("f'{msg}'", "is not part of the grammar"),
        ("fields[msg]", "is not part of the grammar"),
        ("b'x' == msg", "is not part of the grammar"),
        ("msg.startswith()", "needs 1 values"),
        ("msg.lower('x')", "needs 0 values"),
        ("msg.startswith(prefix='x')", "is not part of the grammar"),
        ("(" * 300 + "1" + ")" * 300, "is no expression"),
        ("level and " * (MAX_FILTER_CHARS // 10) + "level", "characters"),
    ],
)
def test_what_is_none_is_refused(text, said):
    """In one sentence that names the part, before any record comes; and nothing of it is run."""
    with pytest.raises(ConfigError) as caught:
        compile_filter(text)
    assert said in str(caught.value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=6,
)


@given(
    value=plain,
    other=st.sampled_from(["fields.y", "1", "-2.5", "'a'", "None", "(1, 'a')", "msg", "fields", "level"]),
    op=st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not in", "is", "is not"]),
)
def test_a_filter_is_total(value, other, op):
    """Whatever the types of what it compares, it takes or it does not."""
    wire = record(extra=["x", value, "y", value])
    text = f"fields.x {op} {other} or not {other} {op} fields.x and fields.x.lower().startswith({other})"
    assert takes(text, wire) in {True, False}


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("op", ["==", "in"])
def test_values_nested_deep_compare_as_false(op):
    """msgpack carries 1,024 levels, which is more than CPython 3.11 compares; others compare some more."""
    wire = record(extra=["x", nested(100_000), "y", [nested(100_000)] if op == "in" else nested(100_000)])
    assert takes(f"fields.x {op} fields.y", wire) is False


@given(wire=st.one_of(plain, st.lists(plain, max_size=6).map(tuple)))
def test_a_record_of_any_form_is_judged(wire):
    """What a peer sends in the place of a record is taken or left, and nothing is raised."""
    names = " or ".join(name for name in NAMES if name != "labels")
    chosen = compile_filter(f"{names} or labels.x")
    assert chosen.takes(source(), wire) in {True, False}
    filtered = Filtered(formatting.json_lines(), ["shop"], chosen, always="aiolog")
    assert len(filtered(source(), [wire])) == 1


@pytest.mark.parametrize(
    ("text", "of_site"),
    [
        ("level > INFO and app == 'x' and labels.tier == 'y' and host and file and line and func", True),
        ("level > INFO and fields.x", False),
        ("msg", False),
        ("pid == 7", False),  # a record may come from another process than its connection
    ],
)
def test_what_never_changes_at_a_site_is_asked_once(text, of_site):
    """An expression over nothing but the call site and the process is decided once for each site."""
    assert compile_filter(text).is_of_site is of_site


def test_a_filtered_format_leaves_out_what_is_not_taken():
    """Texts stay aligned with their records: "" for what is left out, and the server's own words always come."""
    lines = formatting.text("%(message)s")
    wires = [record("a"), record("b", 1), record("c", 2), record("d", extra=["user", 1])]
    by_level = Filtered(lines, [], compile_filter("level >= WARNING"), always="aiolog")
    assert by_level(source(), wires) == ["", "b\n", "c\n", ""]
    by_field = Filtered(lines, [], compile_filter("fields.user"), always="aiolog")
    assert by_field(source(), wires) == ["", "", "c\n", "d\n"]
    by_app = Filtered(lines, ["shop"], None, always="aiolog")
    assert by_app(source(), wires) == ["a\n", "b\n", "c\n", "d\n"]
    assert by_app(source("other"), wires) == ["", "", "c\n", ""]
    both = Filtered(lines, ["shop"], compile_filter("level < WARNING"), always="aiolog")
    one = source()
    for _ in range(2):  # the second time from what it remembers
        assert both(one, wires) == ["a\n", "", "c\n", "d\n"]
    assert both(source("other"), wires) == ["", "", "c\n", ""]


def test_what_was_never_defined_is_not_remembered():
    """A peer has 2**64 numbers to name, and one may be defined later."""
    filtered, one = (
        Filtered(formatting.text("%(message)s"), [], compile_filter("level >= 20"), always="aiolog"),
        source(),
    )
    filtered(one, [record(site=number) for number in range(100, 1_100)])
    assert len(one.plans[filtered]) == 0
    assert filtered(one, [record(site=len(one.definitions))]) == [""]
    one.define(SITES[0])
    assert filtered(one, [record(site=len(one.definitions) - 1)]) == ["order 7 is paid\n"]


def test_a_filtered_format_can_tell_its_records_apart():
    """After a crash the whole records of a torn group are found through the filter as well."""
    filtered = Filtered(formatting.text("%(message)s"), ["shop"], None, always="aiolog")
    assert formatting.whole_records(filtered, b"a\n\t| b\nc\n") == [7]
