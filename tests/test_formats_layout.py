"""The compiled loop: any batch gives what its records give one by one."""

from __future__ import annotations

import math
from functools import cache
from sys import getsizeof

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import NOON, NOON_NS, Worker, nasty_texts

from aiolog.formats import Lines
from aiolog.formats import layout as layouts
from aiolog.formatting import ecs, json_lines, logfmt, otel, text
from aiolog.source import Room, Source

FORMATS = [
    text("%(asctime)s %(levelname)s %(name)s: %(message)s"),
    text("%(message)s %(threadName)s %(asctime)s %(msecs)03d %(message)-9s", multiline="escape"),
    text("%(created)f %(message)s"),
    json_lines(),
    json_lines(fields=["thread", "msg", "fields", "ts"], flatten_extras=True),
    logfmt(),
    ecs(),
    otel(),
]
moments = st.sampled_from([NOON, NOON + 0.9999999, NOON_NS, NOON_NS + 999, NOON_NS + 876_543_999, 0.5, 1e9, 10**9,
                           1_500_000_000, 2_000_000_000, 10**12 - 1, 10**12, 1e12, 10**18, 1e18])  # fmt: skip
rare = st.fixed_dictionaries(
    {},
    optional={
        "exc_text": nasty_texts,
        "taskName": nasty_texts,
        "process": st.integers(0, 9),
        "extra": st.lists(st.tuples(st.sampled_from("ab"), nasty_texts), max_size=2).map(lambda pairs: sum(pairs, ())),
    },
)
records = st.tuples(moments, st.sampled_from([0, 1, 9]), st.sampled_from([2, 3, 9]), st.just("plain") | nasty_texts)
records |= st.tuples(moments, st.just(0), st.just(2), nasty_texts, rare)


def source(**other):
    made = Source(app="shop", host="web1", pid=1, process_name="Main", labels={"env": "prod"}, **other)
    for definition in (("a", 20, "INFO", "p", "f", "m", 1, "fn"), ("b", 40, "ERROR", "p", "f", "m", 2, None),
                       (1, "T1"), (2, "T2")):  # fmt: skip
        made.define(definition)
    return made


@settings(max_examples=100, deadline=None)
@given(st.lists(records, max_size=6), st.sampled_from([0, 1, layouts._MANY, layouts._TOGETHER - 1, layouts._TOGETHER]))
def test_a_batch_is_its_records(batch, before):
    """Whatever stands beside a record, and wherever the batch is divided: a fresh format would say the same."""
    batch = [(NOON_NS, 1, 3, "quiet")] * before + batch
    for compiled in FORMATS:
        common = source()
        alone = {}
        for record in batch:
            key = repr(record)
            if key not in alone:
                alone[key] = compiled(source(), [record])[0]
        expected = [alone[repr(record)] for record in batch]
        assert list(compiled(common, batch)) == expected
        assert list(compiled(common, batch)) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(records, max_size=6), st.integers(0, 3_000))
def test_without_room_a_format_says_the_same_and_keeps_nothing(batch, room_bytes):
    """All that is kept is counted, what has no room is made anew each time, and all of it is given back."""
    batch = [(NOON_NS, 0, 2, "quiet"), (NOON_NS, 0, 2, "extra", {"extra": ("a", 1)}), *batch]
    for compiled in FORMATS:
        room = Room(math.inf)
        cramped = source(room=room)
        before, room.limit_bytes = room.used_bytes, room.used_bytes + room_bytes
        expected = list(compiled(source(), batch))
        assert list(compiled(cramped, batch)) == expected
        assert list(compiled(cramped, batch)) == expected
        assert room.is_short or room.used_bytes > before
        assert room.used_bytes == cramped.size_bytes <= room.limit_bytes
        kept_bytes = sum(
            getsizeof(text)
            for plans in cramped.plans.values()
            for texts in plans.values()
            for text in ((texts,) if isinstance(texts, str) else texts or ())
        )
        assert kept_bytes <= room.used_bytes - before
        del cramped
        assert room.used_bytes == 0


# -- what is asked of all records together


# In place of a record of an even batch, made from it and a record of another place in it.
ODD = {
    "rare": lambda one, _: (*one, {"extra": ("a", 1)}),
    "a traceback": lambda one, _: (*one, {"exc_text": "Traceback\n  boom"}),
    "shown and rare": lambda one, _: (*one, {"created": 1.0, "threadName": "x"}),
    "no map": lambda one, _: (*one, 5),
    "too long": lambda one, _: (*one, {}, 1),
    "too short": lambda one, _: one[:3],
    "a list": lambda one, _: list(one),
    "text": lambda _one, _: "abcd",
    "bytes": lambda _one, _: b"\x00\x00\x02m",
    "none": lambda _one, _: None,
    "NaN": lambda one, _: (float("nan"), *one[1:]),
    "infinite": lambda one, _: (float("inf"), *one[1:]),
    "no moment": lambda one, _: ("now", *one[1:]),
    "a bool": lambda one, _: (True, *one[1:]),
    "the same in seconds": lambda one, _: (one[0] / 1e9 if type(one[0]) is int else float(one[0]), *one[1:]),
    "the same in nanoseconds": lambda one, _: (int(one[0] * 1e9) if type(one[0]) is float else one[0], *one[1:]),
    "the number in another unit": lambda one, _: (float(one[0]) if type(one[0]) is int else int(one[0]), *one[1:]),
    "a whole second": lambda one, _: (one[0] // 10**9 * 10**9 if type(one[0]) is int else one[0] // 1, *one[1:]),
    "another second": lambda one, _: (one[0] + (10**9 if type(one[0]) is int else 1.0), *one[1:]),
    "before 1970": lambda one, _: (-one[0], *one[1:]),
    "an earlier moment": lambda one, other: (min(one[0], other[0]), *one[1:]),
    "rounded up": lambda one, _: (NOON_NS // 10**9 + 0.9999999, *one[1:]),
    "another site": lambda one, other: (one[0], other[1], *one[2:]),
    "a site not taken": lambda one, _: (one[0], 4, *one[2:]),
    "a site not learned": lambda one, _: (one[0], 5, *one[2:]),
    "no site": lambda one, _: (one[0], 2, *one[2:]),
    "an unknown site": lambda one, _: (one[0], 99, *one[2:]),
    "a site in place": lambda one, _: (one[0], ("c", 20, "INFO", "p", "f", "m", 1, None), *one[2:]),
    "an unhashable site": lambda one, _: (one[0], [0], *one[2:]),
    "a site that equals": lambda one, _: (one[0], float(one[1]), *one[2:]),
    "a site that is a bool": lambda one, _: (one[0], bool(one[1]), *one[2:]),
    "another thread": lambda one, other: (*one[:2], 5 - one[2], other[3]),
    "an unknown thread": lambda one, _: (*one[:2], 99, one[3]),
    "a thread in place": lambda one, _: (*one[:2], [9, "nine\n"], one[3]),
    "a message of two lines": lambda one, _: (*one[:3], "one\ntwo"),
    "a message to escape": lambda one, _: (*one[:3], '\t\x1b[2J \u2028 " \\ \ud800'),
    "no message": lambda one, _: (*one[:3], None),
    "a number as message": lambda one, _: (*one[:3], 7),
}  # fmt: skip
APART = {"float": [0.0, 1e-9, 2e-5, 1e-3, 0.3, -2e-5], "int": [0, 1, 20_000, 1_000_000, 300_000_000, -20_000]}
STARTS = {"float": [NOON, NOON_NS / 1e9, 0.0, 0.25, 1e9 + 0.9, 1e15], "int": [NOON_NS, 0, 1, 10**9, 10**18 - 10**6]}


def is_ordinary(wire):
    """Whether a record can be made odd."""
    if not isinstance(wire, tuple) or len(wire) != 4:
        return False
    return isinstance(wire[0], float | int) and math.isfinite(wire[0]) and type(wire[1]) is type(wire[2]) is int


@st.composite
def nearly_even(draw):
    """Return a batch of one or some sites and threads, in which some records may be odd."""
    kind = draw(st.sampled_from(["float", "int"]))
    begin, apart = draw(st.sampled_from(STARTS[kind])), draw(st.sampled_from(APART[kind]))
    sites, threads = draw(st.sampled_from([[0], [1], [0, 1], [4], [0, 4]])), draw(st.sampled_from([[2], [2, 3]]))
    length = draw(st.integers(1, 130))
    batch = [
        (begin + number * apart, sites[number % len(sites)], threads[number % len(threads)], f"message {number}")
        for number in range(length)
    ]
    places = st.integers(0, length - 1)
    for place, other, name in draw(st.lists(st.tuples(places, places, st.sampled_from(sorted(ODD))), max_size=4)):
        one, another = batch[place], batch[other]
        if is_ordinary(one) and is_ordinary(another):
            batch[place] = ODD[name](one, another)
    return batch


@cache
def formats_of_some():
    """Return formats of each kind that take all sites but one."""

    def accepts(site):
        return site.name != "quiet"

    return {
        "text": text("%(asctime)s %(levelname)s %(name)s: %(message)s", accepts=accepts, time_zone="UTC"),
        "thread": text("%(asctime)s %(threadName)s %(message)s.", accepts=accepts, time_zone="UTC", multiline="escape"),
        "two lines": text("%(asctime)s %(name)s\n%(message)s", accepts=accepts, time_zone="UTC"),
        "seconds": text("%(asctime)s %(message)s", accepts=accepts, datefmt="%H:%M:%S", time_zone="UTC"),
        "raw": text("%(asctime)s %(message)s", accepts=accepts, escaping="raw", time_zone="UTC"),
        "message first": text("%(message)s %(msecs)d %(message)-12s", accepts=accepts),
        "no moment": text("%(name)s %(message)s", accepts=accepts),
        "no message": text("%(asctime)s %(name)s", accepts=accepts, time_zone="UTC"),
        "json": json_lines(accepts=accepts),
        "message only": json_lines(fields=["msg"], accepts=accepts),
        "logfmt": logfmt(accepts=accepts),
        "otel": otel(accepts=accepts),
    }


def some_source():
    made = Source(app="shop", host="web1", pid=1, process_name="Main", labels={"env": "prod"})
    for definition in (("a", 20, "INFO", "p", "f", "m", 1, "fn"), ("b\n", 40, "ERROR", "p", "f", "m", 2, None),
                       (1, "T1"), (2, "T\n2"), ("quiet", 10, "DEBUG", "p", "f", "m", 3, "fn"),
                       ("late", 10, "DEBUG", "p", "f", "m", 3, "fn")):  # fmt: skip
        made.define(definition)
    return made


@settings(max_examples=400, deadline=None)
@given(nearly_even(), st.booleans())
def test_all_together_give_what_each_gives_alone(batch, is_known):
    """One by one is the measure, whatever was learned before."""
    for name, compiled in formats_of_some().items():
        together, alone = some_source(), some_source()
        if is_known:
            for source in (together, alone):
                compiled._one_by_one(source, [(NOON, site, thread, "x") for site in (0, 1, 4) for thread in (2, 3)])
        for _ in range(2):
            texts = compiled(together, batch)
            assert len(texts) == len(batch)
            assert list(texts) == compiled._one_by_one(alone, batch), name


@pytest.mark.parametrize("name", ODD)
def test_one_odd_record_is_shown_as_alone(name):
    """Wherever it stands among others of one site, and at either end."""
    for begin, apart in ((NOON, 2e-5), (NOON_NS, 20_000)):
        even = [(begin + number * apart, 0, 2, f"message {number}") for number in range(80)]
        for place in (0, 37, 79):
            batch = [*even]
            batch[place] = ODD[name](even[place], (even[0][0], 1, 3, "another"))
            for layout, compiled in formats_of_some().items():
                together, alone = some_source(), some_source()
                for _ in range(2):
                    assert list(compiled(together, batch)) == compiled._one_by_one(alone, batch), layout


@pytest.mark.parametrize("unit", [1, 1e-9])
@pytest.mark.parametrize("sites", [[0], [0, 1, 4]])
@pytest.mark.parametrize("name", [*formats_of_some()])
def test_even_batches_go_all_together(name, sites, unit, monkeypatch):
    """Also those with a message to escape and a record with fields in them; in a flood of one site they are joined."""
    compiled, source = formats_of_some()[name], some_source()
    batch = [(NOON_NS * unit + number * unit * 1000, sites[number % len(sites)], 2, "x") for number in range(130)]
    expected = [compiled(source, [record])[0] for record in batch]
    monkeypatch.setattr(compiled, "_one_by_one", pytest.fail)
    monkeypatch.setitem(compiled._evenly.__globals__, "one_by_one", pytest.fail)
    texts = compiled(source, batch)
    assert list(texts) == expected
    are_joined = name in {"text", "thread", "seconds", "json", "logfmt", "otel"}
    assert isinstance(texts, Lines) == (are_joined and sites == [0])
    if name not in {"raw", "message first"}:
        batch[50], batch[70] = (*batch[50][:3], "\x1b"), (*batch[70], {"extra": ("a", 1)})
        monkeypatch.undo()
        expected = [compiled(source, [record])[0] for record in batch]
        monkeypatch.setattr(compiled, "_one_by_one", pytest.fail)
        assert list(compiled(source, batch)) == expected


@pytest.mark.parametrize("second", [0, 1, 5, 1000, 2**20, 10**9, int(NOON), 2**33, 2**44])
def test_a_millisecond_ends_where_it_would_for_each(second):
    """Floats are not exact: the end of a millisecond is where the next record shows another, to the last bit."""
    compiled, source = formats_of_some()["text"], some_source()
    for first in range(0, 1000, 7):
        moments = []
        for end in (second + milli / 1000 for milli in range(first, min(first + 4, 1000))):
            for direction in (0, math.inf):
                moment = end
                for _ in range(12):
                    moments.append(moment)
                    moment = math.nextafter(moment, direction)
        batch = [(moment, 0, 2, "x") for moment in sorted(moments) if second < moment < second + 1]
        expected = compiled._one_by_one(source, batch)
        texts = compiled(source, batch)
        assert list(texts) == expected
        assert isinstance(texts, Lines) == (second < 2**44)  # where a second has few floats, many milliseconds are few


def test_lines_are_the_texts_that_they_join():
    """As many, in order, one by one and in slices."""
    lines = Lines("a\nb\nc\n", 3)
    assert len(lines) == 3
    assert list(lines) == ["a\n", "b\n", "c\n"]
    assert lines[1] == "b\n"
    assert lines[1:] == ["b\n", "c\n"]


@pytest.mark.parametrize("unit", [1, 10**9])
def test_seconds_and_nanoseconds_do_not_meet(unit):
    """A window of one unit never takes a moment of the other, even where the numbers are the same."""
    compiled = text("%(asctime)s %(message)s", time_zone="UTC")
    common = source()
    batch = [(10**9 * unit, 0, 2, "int"), (1e9 * unit, 0, 2, "float"), (10**9 * unit, 0, 2, "int")]
    compiled(common, batch)
    assert compiled(common, batch) == [compiled(source(), [record])[0] for record in batch]


def test_nothing_of_a_setting_gets_into_the_source_of_the_loop(monkeypatch):
    """It is written of this project's own words alone, whatever a template, a key or a default says."""
    written = []

    def spy(code, *args):
        written.append(code)
        return compile(code, *args)

    monkeypatch.setattr(layouts, "compile", spy, raising=False)
    evil = "'''{boom}\"\"\"\\"
    text(f"{evil} %(message)s %({evil})s", defaults={evil: evil}, datefmt=evil)
    text(f"{{message:{evil[0]}>9}}", style="{")
    json_lines(rename={"msg": evil, "ts": evil + "2", "thread": evil + "3"})
    assert len(written) == 3
    assert not any("boom" in code or "'''" in code for code in written)


def test_what_is_learned_is_bounded_by_the_dictionary():
    """Numbers that were never defined leave nothing, and each that was leaves one entry a table."""
    for compiled in FORMATS:
        common = source()
        batch = [(NOON_NS, site, thread, "x", {"extra": ("a", "b")}) for site in range(50) for thread in range(50)]
        compiled(common, batch)
        compiled(common, batch)
        assert sum(map(len, common.plans.values())) <= 2 * len(common.definitions)
        assert Worker().source.plans == {}
