"""Lines of keys: which are chosen, in which order, under which names, and where extras go that want one of them."""

from __future__ import annotations

import json
import math
import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import NOON_NS, Worker, names, nasty_texts, parse_logfmt, workers

from aiolog.errors import ConfigError
from aiolog.formats.schemas import ECS, OTEL, OWN
from aiolog.formatting import ecs, json_lines, logfmt, otel
from aiolog.record import STANDARD_ATTRIBUTES
from aiolog.source import Source

MADE = {"json": (json_lines, OWN), "logfmt": (logfmt, OWN), "ecs": (ecs, ECS), "otel": (otel, OTEL)}


def parsed(line):
    """Return the pairs of a JSON line in their order; one key twice is a failure."""

    def once(pairs):
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)

    assert line.endswith("}\n")
    assert len(line.splitlines()) == 1
    return json.loads(line, object_pairs_hook=once)


def same(value):
    """Return a value as any JSON brings it back: two surrogates that make a pair become one character."""
    return json.loads(json.dumps(value))


def pairs_of(name, line):
    return dict(parse_logfmt(line)) if name == "logfmt" else parsed(line)


@st.composite
def choices(draw, schema, *, is_flat=False):
    """Draw keys in some order, and other names for some of them, such that no two are the same."""
    chosen = draw(st.lists(st.sampled_from(sorted(schema.keys)), min_size=1, unique=True))
    others = draw(st.lists(st.text("abcxyz_.", min_size=1, max_size=9).map(lambda name: f"new.{name}"),
                           min_size=len(chosen), max_size=len(chosen), unique=True))  # fmt: skip
    renamed = {key: other for key, other in zip(chosen, others, strict=True)
               if draw(st.booleans()) and not (is_flat and key == schema.extras)}  # fmt: skip
    return chosen, renamed


@settings(max_examples=150, deadline=None)
@given(workers(texts=nasty_texts), st.sampled_from(["json", "ecs", "otel"]), st.data())
def test_a_line_has_the_chosen_keys_in_the_chosen_order(worker, name, data):
    """And each says what it says in a line of all keys; whichever way the line was made."""
    make, schema = MADE[name]
    chosen, renamed = data.draw(choices(schema))
    lines = worker.lines(make(fields=chosen, rename=renamed))
    assert len(set(lines)) == 1
    found = parsed(lines[0])
    everything = parsed(worker.lines(make(fields=list(schema.keys)))[0])
    assert list(found) == [renamed.get(key, key) for key in chosen if renamed.get(key, key) in found]
    for key in chosen:
        if key == schema.extras and key in everything:
            continue  # it also holds what would have a key of its own
        assert found.get(renamed.get(key, key)) == everything.get(key)
        assert (renamed.get(key, key) in found) == (key in everything)


@settings(max_examples=150, deadline=None)
@given(workers(texts=names), st.data())
def test_logfmt_has_the_chosen_keys_in_the_chosen_order(worker, data):
    """The same for logfmt, whose extras stand among the keys."""
    worker.extra = {}
    chosen, renamed = data.draw(choices(OWN, is_flat=True))
    lines = worker.lines(logfmt(fields=chosen, rename=renamed))
    assert len(set(lines)) == 1
    found = parse_logfmt(lines[0])
    everything = dict(parse_logfmt(worker.lines(logfmt(fields=list(OWN.keys)))[0]))
    assert found == [(renamed.get(key, key), everything[key]) for key in chosen if key in everything]


@pytest.mark.parametrize("name", MADE)
def test_every_key_alone(name):
    """A line of one key that has nothing to say is empty, and still a line."""
    make, schema = MADE[name]
    empty = Worker(app="", site=("n", 20, "INFO", "p", "f", "m", 1, None), thread=(None, None), process=None,
                   processName=None)  # fmt: skip
    extra = {"trace_id": "a" * 32, "span_id": "b" * 16, "elasticapm_transaction_id": "c", "n": 1}
    full = Worker(taskName="T", exc_text="E", stack_info="S", labels={"env": "prod"}, extra=extra)
    for key in schema.keys:
        layout = make(fields=[key])
        for worker in (empty, full):
            lines = worker.lines(layout)
            assert len(set(lines)) == 1
            found = pairs_of(name, lines[0])
            if worker is full and (name, key) != ("logfmt", "fields"):
                assert list(found) == [key]
            else:
                assert worker is full or list(found) in ([key], [])


def test_names_are_written_as_the_notation_wants():
    """A new name may have any character in JSON."""
    layout = json_lines(fields=["ts", "msg", "level"], rename={"msg": 'a "b"\n\ud800', "level": "é\x1b"})
    for line in Worker().lines(layout):
        assert line.isascii()
        assert list(parsed(line)) == ["ts", 'a "b"\n\ud800', "é\x1b"]


def test_fields_alone_change_nothing():
    """The usual keys, said in full, are what there is without a word."""
    worker = Worker(extra={"a": 1}, exc_text="E", taskName="T")
    for make, schema in MADE.values():
        assert worker.lines(make(fields=schema.usual)) == worker.lines(make())
        assert worker.lines(make(fields=(), rename={})) == worker.lines(make())


def test_what_is_left_out_stays_with_the_extras():
    """Trace and span are extras like others where they have no key of their own."""
    worker = Worker(extra={"trace_id": "a" * 32, "x": 1})
    for line in worker.lines(json_lines(fields=["msg", "fields"])):
        assert parsed(line) == {"msg": "hello", "fields": {"trace_id": "a" * 32, "x": 1}}
    for line in worker.lines(otel(fields=["Body", "Attributes"])):
        assert parsed(line)["Attributes"].items() >= {"trace_id": "a" * 32, "x": 1}.items()


def test_keys_for_those_who_ask():
    """The number of the level, the module, the file's name and the thread's ident are not among the usual ones."""
    for line in Worker().lines(json_lines(fields=["levelno", "module", "filename", "thread_id"])):
        assert parsed(line) == {"levelno": 20, "module": "db", "filename": "db.py", "thread_id": 7}


# -- extras at the top level

clashing = st.sampled_from([*OWN.keys, "fields.level", "fields.fields.level", "labels.message", "level ", "lev\x00el",
                            "new", "😀", "\ud83d\ude00", "log.level", "message"]) | nasty_texts  # fmt: skip
plain_values = st.integers(-(2**63), 2**64 - 1) | st.booleans() | nasty_texts | st.none()


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(clashing, plain_values, max_size=8), st.sampled_from(["json", "ecs", "logfmt"]), st.booleans())
def test_no_extra_is_lost_at_the_top_level(extra, name, is_labelled):
    """One that has the name of another key, shown or not, or of another extra stands behind a prefix."""
    extra = {key: value for key, value in extra.items() if key not in STANDARD_ATTRIBUTES}
    lifted = ("trace_id", "span_id", "otelTraceID", "otelSpanID", "trace.id", "span.id", "transaction.id")
    extra = {key: value for key, value in extra.items() if key not in lifted}
    worker = Worker(extra=extra, labels={"env": "prod"} if is_labelled else {})
    layout = logfmt() if name == "logfmt" else MADE[name][0](flatten_extras=True)
    bare = pairs_of(name, Worker(labels=worker.source.labels).lines(layout)[1])
    for line in worker.lines(layout):
        found = pairs_of(name, line)
        assert {key: found[key] for key in bare} == bare
        rest = {key: value for key, value in found.items() if key not in bare}
        assert len(rest) == len(extra)
        if name == "logfmt":
            assert len(parse_logfmt(line)) == len(found)
            continue
        prefix = "fields." if name == "json" else "labels."
        for key, value in extra.items():
            places = [re.fullmatch(f"((?:{re.escape(prefix)})*)(.*)", place, re.DOTALL) for place in rest]
            assert same(value) in [rest[place[0]] for place in places if same(key).endswith(place[2])]


def test_an_extra_with_the_name_of_a_key():
    """It is found where one looks for it: at its own place behind ``fields``."""
    extra = {"level": "forged", "fields.level": "too", "ok": 1, "exc": "mine"}
    expected = {"fields.level": "forged", "fields.fields.level": "too", "ok": 1, "fields.exc": "mine"}
    for line in Worker(extra=extra).lines(json_lines(flatten_extras=True)):
        found = parsed(line)
        assert list(found)[-4:] == list(expected)
        assert {key: found[key] for key in expected} == expected
    for line in Worker(extra={"text": "mine"}).lines(json_lines(flatten_extras=True, rename={"msg": "text"})):
        found = parsed(line)
        assert (found["text"], found["fields.text"]) == ("hello", "mine")
    for line in Worker(extra={"log.level": "mine", "event.action": "login"}).lines(ecs(flatten_extras=True)):
        found = parsed(line)
        assert (found["log.level"], found["labels.log.level"], found["event.action"]) == ("INFO", "mine", "login")


def test_extras_stand_where_their_key_is():
    """``fields`` says the place, first or in the middle."""
    worker = Worker(extra={"a": 1, "b": 2})
    for line in worker.lines(json_lines(fields=["fields", "msg"], flatten_extras=True)):
        assert list(parsed(line)) == ["a", "b", "msg"]
    for line in worker.lines(logfmt(fields=["level", "fields", "msg"])):
        assert line == 'level=INFO a=1 b=2 msg="hello"\n'
    for line in Worker().lines(logfmt(fields=["fields", "msg"])):
        assert line == 'msg="hello"\n'


def test_names_that_become_one_are_kept_apart():
    """Two spellings of one character in JSON, and what logfmt and Elastic cannot write in a name."""
    line = Worker(extra={"😀": 1, "\ud83d\ude00": 2}).lines(json_lines())[1]
    assert sorted(parsed(line)["fields"].values()) == [1, 2]
    assert logfmt()(Worker().source, [(NOON_NS, 0, 1, "x", {"extra": ["a b", 1, "a_b", 2, "a=b", 3]})])[0].endswith(
        " a_b=1 fields.a_b=2 fields.fields.a_b=3\n"
    )
    line = Worker(extra={"a.b": 1, "a_b": 2, "a*b": 3}).lines(ecs())[1]
    assert parsed(line)["labels"] == {"a_b": 1, "_a_b": 2, "__a_b": 3}


# -- values


@settings(max_examples=100, deadline=None)
@given(workers(texts=nasty_texts), st.booleans())
def test_values_come_back(worker, flatten):
    """Extras of every kind, at the top level or not, and the texts of the record."""
    found = parsed(worker.lines(json_lines(flatten_extras=flatten))[1])
    assert found["msg"] == same(worker.message)
    extras = found if flatten else found.get("fields", {})
    for name in {"user", "ratio"} & worker.extra.keys():
        value = worker.extra[name]
        odd = isinstance(value, float) and not math.isfinite(value)
        assert extras[name] == (json.dumps(value) if odd else same(value))


def test_a_moment_first_last_or_not_at_all():
    """The first key has no comma before it, whichever it is, with and without what is rare."""
    full = Worker(exc_text="E", taskName="T", extra={"a": 1})
    for fields in (["ts", "msg"], ["msg", "ts"], ["msg"], ["exc", "ts"], ["task", "msg", "exc"], ["thread", "ts"],
                   ["app", "task", "ts"], ["fields", "ts"], ["fields"]):  # fmt: skip
        for worker in (Worker(app=""), full):
            for make in (json_lines, logfmt):
                lines = worker.lines(make(fields=fields))
                assert len(set(lines)) == 1
                (parsed if make is json_lines else parse_logfmt)(lines[0])


# -- what is refused


@pytest.mark.parametrize(
    ("name", "settings_given", "said"),
    [
        ("json", {"fields": ["ts", "lvl"]}, 'fields cannot have "lvl". Did you mean "level"?'),
        ("json", {"fields": ["Msg"]}, 'fields cannot have "Msg". Did you mean "msg"?'),
        ("json", {"fields": ["\x1b[2J"]}, 'fields cannot have "\\u001b[2J". The keys are ts, level, logger, msg,'),
        ("json", {"fields": ["ts", "msg", "ts"]}, 'fields cannot give a line two keys "ts". Change one of them.'),
        ("json", {"rename": {"lvl": "x"}}, 'rename cannot have "lvl". Did you mean "level"?'),
        ("json", {"rename": {"msg": "level"}}, 'rename cannot give a line two keys "level". Change one of them.'),
        ("json", {"rename": {"msg": ""}}, 'rename cannot make "" of "msg".'),
        ("json", {"fields": ["ts"], "rename": {"msg": "m"}}, 'rename cannot have "msg": fields leaves it out.'),
        ("json", {"fields": ["ts"], "flatten_extras": True}, 'flatten_extras needs "fields" in fields.'),
        ("json", {"rename": {"fields": "x"}, "flatten_extras": True}, 'rename cannot have "fields": the extras stand'),
        ("logfmt", {"rename": {"fields": "x"}}, 'rename cannot have "fields": the extras stand at the top level.'),
        ("logfmt", {"rename": {"msg": "a b"}}, 'rename cannot make "a b" of "msg". Use letters, digits, _ and dots.'),
        ("ecs", {"fields": ["timestamp"]}, 'fields cannot have "timestamp". Did you mean "@timestamp"?'),
        ("otel", {"fields": ["attributes"]}, 'fields cannot have "attributes". Did you mean "Attributes"?'),
        ("otel", {"fields": ["msg"]}, 'fields cannot have "msg". The keys are Timestamp, SeverityText,'),
    ],
)
def test_keys_that_are_none_are_refused(name, settings_given, said):
    """The operator hears of it when the server starts: which setting, which key, and what was probably meant."""
    with pytest.raises(ConfigError) as caught:
        MADE[name][0](**settings_given)
    assert str(caught.value).startswith(said)
    assert str(caught.value).isprintable()


def test_two_keys_may_change_their_names():
    """What is one key twice is seen after renaming, not before."""
    layout = json_lines(fields=["ts", "msg", "level"], rename={"msg": "level", "level": "msg"})
    for line in Worker().lines(layout):
        assert list(parsed(line).items())[1:] == [("level", "hello"), ("msg", "INFO")]


def shown(value):
    """Return a value as JSON brings it back, which has no name for what is no number."""
    return json.dumps(value) if type(value) is float and not math.isfinite(value) else same(value)


def lines_of(make, extras, labels=None):
    """Return the lines of one record, several times: learned first, then by what was learned."""
    source = Source(app="shop", labels=labels)
    source.define(("app.db", 20, "INFO", "/srv/app/db.py", "db.py", "db", 1, "query"))
    source.define((7, "MainThread"))
    layout = make()
    record = (1_795_420_862.25, 0, 1, "told", {"extra": [part for pair in extras.items() for part in pair]})
    return layout, [text for _ in range(3) for text in layout(source, [record])]


@pytest.mark.parametrize("make", [json_lines, logfmt, ecs, otel])
@pytest.mark.parametrize(
    "extras",
    [
        {"user": 5, "took": 0.1, "path": "/a b", "ok": True, "none": None},
        {"nan": math.nan, "most": math.inf, "least": -math.inf, "large": 1e16, "small": 5e-324, "whole": 2.0},
        {"list": [1, "a", None], "map": {"a": [1.5]}, "text": 'q"\\\n\x7fé'},
        {"label": "its own", "other": 1},
        {f"name{number}": number for number in range(100)},
        {"n" * 4_000: 1, "m" * 4_000: 2},
        {"trace_id": "a" * 32, "user": 5},
        {"a b": 1, "a_b": 2, "a.b": 3},
    ],
)
def test_extras_are_shown_alike_learned_or_not(make, extras):
    """Names that are looked up together, each for itself, and those of the labels of the process."""
    for labels in ({}, {"label": "of the process", "ppid": "1"}, {f"{n}" * 200: "much" for n in range(10, 74)}):
        _, lines = lines_of(make, extras, labels)
        assert len(set(lines)) == 1
        if make is json_lines:
            line = parsed(lines[0])
            trace = {"trace_id": line["trace_id"]} if "trace_id" in line else {}
            assert line["fields"] | trace == {name: shown(value) for name, value in (labels | extras).items()}


@pytest.mark.parametrize("make", [json_lines, logfmt, ecs, otel])
@pytest.mark.parametrize(
    "flat", [("a", 1, "odd"), ("name", 1, "a", 2), {"a": 1, "b": 2}, "ab", ("n" * 5_000, 1), (1, 2), ("a", 1, "a", 2)]
)
def test_odd_extras_are_shown_alike_learned_or_not(make, flat):
    """What no worker sends is shown as the slow way shows it, also when others have made their names known."""
    layout, _ = lines_of(make, {"a": 1, "b": 2})
    source = Source()
    source.define(("app.db", 20, "INFO", "/srv/app/db.py", "db.py", "db", 1, "query"))
    source.define((7, "MainThread"))
    sound, odd = ((1_795_420_862.25, 0, 1, "told", {"extra": extra}) for extra in (("a", 1), flat))
    lines = [layout(source, [odd])[0], *layout(source, [sound, odd])[1:], *layout(source, [odd])]
    assert len(set(lines)) == 1
    assert lines[0] == layout._slowly(source, odd)


@pytest.mark.parametrize("make", [json_lines, logfmt, ecs, otel])
def test_many_names_that_become_one_key_stay_a_line(make):
    """Each has a key of its own, and the line grows with their number, not with its square."""
    names = ["".join(".*\\_"[number // 4**place % 4] for place in range(6)) for number in range(4_096)]
    _, lines = lines_of(make, {name: number for number, name in enumerate(names)})
    assert len(set(lines)) == 1
    assert len(lines[0]) < 100 * len(names)
    if make in (json_lines, ecs):
        fields = parsed(lines[0])["fields" if make is json_lines else "labels"]
        assert sorted(fields.values()) == list(range(len(names)))


@pytest.mark.parametrize("make", [json_lines, logfmt, ecs, otel])
@pytest.mark.parametrize(("count", "char"), [(1, "x"), (40, "x"), (6, "\U0001f600")])
def test_long_names_of_extras_are_not_kept(make, count, char):
    """A peer may send a name of any length, and ever new ones."""
    tracemalloc.start()
    try:
        layout, _ = lines_of(make, {"first": 1})
        before, _ = tracemalloc.get_traced_memory()
        source = Source()
        source.define(("app.db", 20, "INFO", "/srv/app/db.py", "db.py", "db", 1, "query"))
        source.define((7, "MainThread"))
        long = char * (100_000 // count // len(char.encode()))
        for number in range(300):
            flat = [part for n in range(count) for part in (f"{number} {n} {long}", n)]
            layout(source, [(1_795_420_862.25, 0, 1, "told", {"extra": flat})] * 2)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20 << 20, after - before
