"""Records both ways: whatever an application logs is encoded, and whatever a peer sends is understood."""

from __future__ import annotations

import datetime as dt
import enum
import itertools
import logging
import math
import os
import sys
import threading
import time
import types
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from aiolog import record as record_module
from aiolog.coerce import INT_MAX, INT_MIN, MAX_NAME_CHARS
from aiolog.protocol import (
    FROM_CLIENT,
    MAX_ARRAY_LEN,
    MAX_MAP_LEN,
    MAX_RECORD_BYTES,
    Decoder,
    batch_frame,
    pack_record,
    unpack_records,
)
from aiolog.record import (
    MALFORMED,
    MAX_EXTRA_CHARS,
    MAX_EXTRA_NODES,
    MAX_MESSAGE_CHARS,
    MAX_OBJECT_CHARS,
    MAX_TRACE_CHARS,
    REDACTED,
    REDACTION_FAILED,
    STANDARD_ATTRIBUTES,
    Encoder,
    attributes,
)
from aiolog.source import (
    MAX_DEFINITION_CHARS,
    MAX_DEFINITIONS,
    MAX_SITES,
    MAX_THREADS,
    Site,
    Source,
    Thread,
    definition,
)

PID = os.getpid()
START_TIME = logging._startTime
NANOSECONDS = sys.version_info >= (3, 13)
COMPUTED = {"msg", "args", "exc_info", "exc_text", "message", "asctime"}  # what does not come back as it was
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


format_exception = logging.Formatter().formatException


def new_encoder(format_exception=format_exception):
    return Encoder(pid=PID, process_name="MainProcess", start_time=START_TIME, format_exception=format_exception)


def new_record(msg="hello", args=(), *, extra=None, exc_info=None, sinfo=None, name="app.part", line=12, level=20):
    logger = logging.getLogger(name)
    return logger.makeRecord(name, level, "/srv/app/part.py", line, msg, args, exc_info, "run", extra, sinfo)


def through(wire):
    """Return a wire record as the server gets it: packed, framed, cut out of the stream and unpacked."""
    decoder = Decoder(FROM_CLIENT)
    decoder.feed(batch_frame(1, 0, [pack_record(wire)]))
    (received,) = unpack_records(decoder.next())
    return received


def source_of(encoder):
    """Return the source that a server holds, once it has the encoder's definitions."""
    source = Source(pid=encoder.pid, process_name=encoder.process_name, start_time=encoder.start_time)
    for fields in encoder.definitions:
        source.define(list(fields))
    return source


def rebuilt(encoder, record):
    wire = through(encoder.encode(record))
    return attributes(source_of(encoder), wire)


def assert_equal_but_computed(found, record):
    """Every standard attribute but those that ``logging`` computes late is what it was, type included."""
    for name in STANDARD_ATTRIBUTES - COMPUTED:
        wanted = record.__dict__.get(name)
        assert found[name] == wanted or (found[name] != found[name] and wanted != wanted), name  # noqa: PLR0124 - nan
        assert type(found[name]) is type(wanted), name
    assert (found["msg"], found["args"], found["exc_info"]) == (record.getMessage(), None, None)
    assert "message" not in found
    assert MALFORMED not in found


# ---------------------------------------------------------------------------------------------------------------
# Fidelity


def test_a_plain_record_is_four_values_and_comes_back_whole():
    """The second record of a site carries two numbers in place of ten attributes; the server has all of them."""
    encoder = new_encoder()
    encoder.encode(new_record())
    record = new_record("user %s did %d", ("bob", 3))
    wire = encoder.encode(record)
    assert wire[1:] == (0, 1, "user bob did 3")
    assert len(pack_record(wire)) == 9 + 1 + 1 + 1 + len("user bob did 3") + 1
    found = rebuilt(encoder, record)
    assert_equal_but_computed(found, record)
    assert set(found) == STANDARD_ATTRIBUTES - {"message", "asctime"}
    # And makeLogRecord makes of it what a formatter prints the same.
    layout = logging.Formatter("%(asctime)s|%(levelname)s|%(relativeCreated)r|%(threadName)s|%(msecs)r|%(message)s")
    assert layout.format(logging.makeLogRecord(found)) == layout.format(record)


def test_a_plain_record_has_only_attributes_that_the_fast_way_looks_at():
    """A new attribute of ``LogRecord`` in a later CPython would make every record rare, and must be noticed."""
    assert set(new_record().__dict__) <= set(Encoder.encode.__code__.co_names)


def test_a_record_that_another_handler_formatted_is_still_plain():
    """A console handler leaves ``message`` and ``asctime`` on the record; they neither travel nor cost anything."""
    encoder = new_encoder()
    record = new_record()
    encoder.encode(record)
    logging.Formatter("%(asctime)s %(message)s").format(record)
    assert {"message", "asctime"} <= record.__dict__.keys()
    encoder._encode_slowly = None  # calling it would raise
    assert len(encoder.encode(record)) == 4


texts = st.text(st.characters(), max_size=30)
numbers = st.floats() | st.integers(INT_MIN, INT_MAX)
altered_attributes = st.fixed_dictionaries(
    {},
    optional={
        "created": st.floats(),
        "msecs": st.floats(),
        "relativeCreated": st.floats(),
        "levelname": texts,
        "levelno": st.integers(INT_MIN, INT_MAX),
        "name": texts,
        "pathname": texts,
        "lineno": st.integers(INT_MIN, INT_MAX),
        "funcName": texts | st.none(),
        "thread": st.integers(INT_MIN, INT_MAX) | st.none(),
        "threadName": texts | st.none(),
        "process": st.integers(INT_MIN, INT_MAX) | st.none(),
        "processName": texts | st.none(),
        "taskName": texts | st.none(),
        "stack_info": st.none() | texts.filter(len),
    },
)


def is_moment(created):
    return -1e18 < created < 1e20


@relaxed
@given(altered_attributes, texts)
@example({"created": math.nan, "msecs": math.inf}, "")
@example({"created": math.inf, "relativeCreated": 0.0, "msecs": 0.0}, "")
@example({"created": 253_402_300_800.0}, "")
@example({"relativeCreated": math.nan}, "")
@example({"relativeCreated": -math.inf}, "")
@example({"relativeCreated": 1e300}, "")
@example({"msecs": 12.0}, "")
@example({"taskName": "Task-1"}, "")
@example({"process": None, "processName": None, "thread": None, "threadName": None, "taskName": None}, "")
def test_every_attribute_comes_back(altered, message):
    """Whatever a filter or another process made of the standard attributes, the server has the same."""
    encoder = new_encoder()
    for _ in range(2):  # the first way and the fast one
        record = new_record(message)
        record.__dict__.update(altered)
        found = rebuilt(encoder, record)
        if not is_moment(record.created):
            # What no clock shows is replaced and marked, and costs nothing else.
            assert "created" in found.pop(MALFORMED)
            found["created"] = record.created
        assert_equal_but_computed(found, record)


def record_at(moment_ns):
    """Return a record with the three attributes of time that ``LogRecord.__init__`` gives it at that moment."""
    record = new_record()
    record.created = moment_ns / 1e9
    if NANOSECONDS:
        record.msecs = moment_ns % 10**9 // 10**6 + 0.0
        record.relativeCreated = (moment_ns - START_TIME) / 1e6
    else:
        record.msecs = int((record.created - int(record.created)) * 1000) + 0.0
        record.relativeCreated = (record.created - START_TIME) * 1000
    return record


@relaxed
@given(st.integers(START_TIME if NANOSECONDS else int(START_TIME * 1e9), 4_000_000_000 * 10**9), st.booleans())
def test_every_moment_comes_back(moment_ns, slowly):
    """``created``, ``msecs`` and ``relativeCreated`` are bit for bit what the worker had, up to the year 2096."""
    record = record_at(moment_ns)
    encoder = new_encoder()
    if not slowly:
        encoder.encode(new_record())
    assert_equal_but_computed(rebuilt(encoder, record), record)


@relaxed
@given(st.lists(st.tuples(st.integers(-2, 2), st.sampled_from([0, 1, 10**6 - 1, 10**6, 10**9 - 1, 123_456_789]))))
@example([(0, 0), (0, 10**9 - 1), (1, 0), (0, 10**9 - 1), (-2, 500), (2, 10**6)])
def test_a_clock_that_jumps_over_seconds(moments):
    """Forwards and back, to the ends of seconds and of milliseconds: each record is plain and exact."""
    encoder = new_encoder()
    encoder.encode(new_record())
    base = int(START_TIME if NANOSECONDS else START_TIME * 1e9) // 10**9 + 100
    for second, within_ns in moments:
        record = record_at((base + second) * 10**9 + within_ns)
        assert len(encoder.encode(record)) == 4
        assert_equal_but_computed(rebuilt(encoder, record), record)


@pytest.mark.parametrize("name", ["created", "msecs", "relativeCreated"])
@pytest.mark.parametrize("by", [-1.0, -0.25, 0.25, 1.0, 1e9, math.inf, math.nan])
def test_a_time_that_was_changed_comes_back_changed(name, by):
    """One of the three that no longer fits the others travels by itself; the records after it are plain."""
    encoder = new_encoder()
    encoder.encode(new_record())
    record = new_record()
    setattr(record, name, getattr(record, name) + by)
    encoder.encode(record)
    if is_moment(record.created):
        assert_equal_but_computed(rebuilt(encoder, record), record)
    assert len(encoder.encode(new_record())) == 4


@pytest.mark.parametrize("relative", [math.nan, math.inf, -1.0, 1e300, None, "x"])
def test_a_wrong_relative_time_costs_no_moment(relative):
    """The moment on the wire is the record's own, whatever was done to the other two attributes of time."""
    record = new_record()
    record.relativeCreated = relative
    wire = new_encoder().encode(record)
    assert (wire[0] / 1e9 if type(wire[0]) is int else wire[0]) == record.created


def test_real_moments_are_plain():
    """What ``LogRecord`` itself computes never has to travel: not one of a thousand records is rare."""
    encoder = new_encoder()
    encoder.encode(new_record())
    assert {len(encoder.encode(new_record())) for _ in range(1000)} == {4}


def test_a_real_traceback_travels():
    """``exc_info`` becomes the text that the handler's formatter makes of it; ``exc_info`` itself stays."""
    try:
        {}["missing"]
    except KeyError:
        record = new_record("it broke", exc_info=sys.exc_info())
    found = rebuilt(new_encoder(), record)
    assert found["exc_text"] == logging.Formatter().formatException(record.exc_info)
    assert found["exc_text"].endswith("KeyError: 'missing'")
    assert_equal_but_computed(found, record)
    layout = logging.Formatter("%(levelname)s %(message)s")
    assert layout.format(logging.makeLogRecord(found)) == layout.format(record)


def test_an_exception_already_formatted_is_not_formatted_again():
    """``exc_text`` is the cache of ``logging``: a formatter of the application may have shortened it on purpose."""
    record = new_record(exc_info=(ValueError, ValueError("long"), None))
    record.exc_text = "short"
    assert rebuilt(new_encoder(format_exception=None), record)["exc_text"] == "short"


def test_stack_info_travels():
    """The stack of a call with ``stack_info=True`` comes back."""
    record = new_record(sinfo="Stack (most recent call last):\n  File …")
    found = rebuilt(new_encoder(), record)
    assert found["stack_info"] == record.stack_info
    assert_equal_but_computed(found, record)


def test_extras_stand_among_the_attributes():
    """Extras come back at the top, in their order and with their values; tuples as lists or tuples."""
    extra = {"user": "bob", "n": 3, "ratio": 0.5, "ok": True, "none": None, "deep": {"a": [1, {"b": 2}]}, "große": "é"}
    found = rebuilt(new_encoder(), new_record(extra=extra))
    assert {name: found[name] for name in found if name not in STANDARD_ATTRIBUTES} == {
        **extra, "deep": {"a": (1, {"b": 2})}
    }  # fmt: skip
    assert MALFORMED not in found


class BraceRecord(logging.LogRecord):
    """A record whose message is rendered by ``str.format``, as the logging cookbook shows."""

    def getMessage(self):  # noqa: N802 - the name in logging
        return str(self.msg).format(*self.args)


def test_a_record_class_of_the_application_renders_its_own_message(monkeypatch):
    """``setLogRecordFactory`` with {-style messages works, on the first way and the fast one."""
    monkeypatch.setattr(logging, "_logRecordFactory", BraceRecord)
    encoder = new_encoder()
    assert encoder.encode(new_record("{} of {}", (1, "{}")))[3] == "1 of {}"
    assert encoder.encode(new_record("{} is %s", (2,)))[3] == "2 is %s"


def test_a_dictionary_as_the_only_argument():
    """``log.info("%(a)s", {"a": 1})`` works as in ``logging``, and so does a lone per cent sign without arguments."""
    encoder = new_encoder()
    for _ in range(2):
        assert encoder.encode(new_record("%(a)s", ({"a": 1},)))[3] == "1"
        assert encoder.encode(new_record("100 % of %s"))[3] == "100 % of %s"


@pytest.mark.parametrize("switch", ["logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"])
def test_the_switches_of_logging(switch, monkeypatch):
    """What an application tells ``logging`` to leave out is None at the server, not the process's own."""
    monkeypatch.setattr(logging, switch, False, raising=False)
    encoder = new_encoder()
    for _ in range(2):
        record = new_record()
        assert_equal_but_computed(rebuilt(encoder, record), record)


def test_the_texts_of_templates_are_left_alone():
    """Format strings and lookups in a message without arguments travel verbatim (S10)."""
    attack = "%s %n %(password)s {0.__class__} ${jndi:ldap://x}"
    encoder = new_encoder()
    assert [encoder.encode(new_record(attack))[3] for _ in range(2)] == [attack, attack]


# ---------------------------------------------------------------------------------------------------------------
# Totality of the encoder


def fail(*_):
    raise ValueError("foreign code")


class RaisesAll:
    """An object that raises in whatever one may do to it."""

    __str__ = __repr__ = __eq__ = __ne__ = __bool__ = __len__ = __iter__ = __int__ = __float__ = __format__ = fail
    __hash__ = fail
    __lt__ = __gt__ = __le__ = __ge__ = __index__ = __mul__ = __rmul__ = __add__ = __round__ = __getattr__ = fail


class RaisesInClass(RaisesAll):
    """It even raises when asked what it is."""

    __class__ = property(fail)


class HashableButUnequal:
    """A key that raises when it is compared."""

    __eq__ = fail

    def __hash__(self):
        return hash("created")


class Text(str):
    """Text whose methods lie."""

    __slots__ = ()
    __str__ = __repr__ = fail

    def __len__(self):
        return 0


class RepliesWithText:
    """Its text is a subclass of ``str``."""

    def __str__(self):
        return Text("text of a subclass")


class NoText:
    """Its text is no text."""

    def __str__(self):
        return 3  # noqa: PLE0307 - that is the point

    __repr__ = __str__


class Number(int):
    """A number whose methods raise."""

    __index__ = __int__ = __eq__ = __le__ = __ge__ = __lt__ = __gt__ = __str__ = __repr__ = fail
    __hash__ = int.__hash__


class Colour(enum.IntEnum):
    """An everyday subclass of ``int``."""

    RED = 1


class Recursive:
    """Its text has no end."""

    def __repr__(self):
        return repr([self, self])


class EqualMeta(type):
    """A metaclass that cannot be compared."""

    __eq__ = fail
    __hash__ = type.__hash__


class OddClass(metaclass=EqualMeta):
    """An object of an odd class."""


def cyclic():
    knot = [1, {}]
    knot[1]["again"] = knot
    return knot


def nested(depth):
    value = "bottom"
    for level in range(depth):
        value = [value] if level % 2 else {"in": value}
    return value


ODDITIES = {
    "raises in everything": RaisesAll,
    "raises in __class__": RaisesInClass,
    "raises when compared": HashableButUnequal,
    "a lying str": lambda: Text("lies"),
    "replies with a str subclass": RepliesWithText,
    "text that is no text": NoText,
    "a raising int": lambda: Number(3),
    "an enum": lambda: Colour.RED,
    "endless text": Recursive,
    "an odd metaclass": OddClass,
    "a cycle": cyclic,
    "a deep nest": lambda: nested(100_000),
    "a generator": lambda: (x for x in "abc"),
    "bytes": lambda: b"\xff\x00" * 10,
    "many bytes": lambda: bytes(1 << 20),
    "bytearray": lambda: bytearray(b"x"),
    "memoryview": lambda: memoryview(b"abcdefgh").cast("Q"),
    "a released memoryview": lambda: (view := memoryview(b"x"), view.release())[0],
    "a set": lambda: {1, "a", None},
    "a huge int": lambda: 10**5000,
    "a big int": lambda: 1 << 64,
    "a small int": lambda: -(1 << 63) - 1,
    "nan": lambda: math.nan,
    "infinity": lambda: -math.inf,
    "complex": lambda: 1j,
    "a lone surrogate": lambda: "\ud800 and \udfff",
    "a nul": lambda: "\x00",
    "a long text": lambda: "\U0001f600" * (1 << 20),
    "a long list": lambda: list(range(1_000_000)),
    "a long dict": lambda: {str(n): n for n in range(20_000)},
    "a dict of odd keys": lambda: {1: 2, None: 3, (1, 2): 4, "\ud800": 5, 2.5: 6, RepliesWithText(): 7, b"k": 8},
    "a dict of long keys": lambda: {"\U0001f600" * 5000 + str(n): None for n in range(200)},
    "a tuple": lambda: (1, [2, (3,)]),
    "a type": lambda: RaisesAll,
    "an exception": lambda: ValueError(RaisesAll()),
    "a module": lambda: sys,
    "none": lambda: None,
    "a function": lambda: fail,
}
LARGE = {"a deep nest", "a long dict", "a long list", "a long text", "a dict of long keys"}  # take a while each


class Odd(NamedTuple):
    """Stands for an oddity until hypothesis has looked at the example, which it could not do with the real one."""

    name: str


def made_odd(value):
    """Put the oddities where they are stood for."""
    if isinstance(value, Odd):
        return ODDITIES[value.name]()
    if isinstance(value, (list, tuple)):
        return type(value)(map(made_odd, value))
    return {key: made_odd(item) for key, item in value.items()} if isinstance(value, dict) else value


oddity = st.sampled_from(sorted(ODDITIES.keys() - LARGE)).map(Odd)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | oddity,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


def assert_plain(value):
    """Nothing of the application's own classes is left, not even a subclass of ``str``."""
    if isinstance(value, (list, tuple)):
        assert type(value) in (tuple, list, Site, Thread)
        for item in value:
            assert_plain(item)
    elif isinstance(value, dict):
        assert type(value) is dict
        for pair in value.items():
            assert_plain(list(pair))
    else:
        assert type(value) in (str, int, float, bool, type(None))


def assert_understood(encoder, record):
    """The record is encoded, packed, received and rebuilt, and no larger than a frame can hold."""
    for encode in (encoder.encode, encoder.encode, encoder.encode_small):
        wire = encode(record)
        assert_plain(wire)
        packed = pack_record(wire)
        assert len(packed) <= (2 if encode == encoder.encode else 1) * MAX_RECORD_BYTES
        received = through(wire) if len(packed) <= MAX_RECORD_BYTES else wire
        found = attributes(source_of(encoder), received)
        assert type(found["msg"]) is str
        copy = logging.makeLogRecord(found)
        assert type(copy.getMessage()) is str
        assert isinstance(logging.Formatter("%(name)s %(process)s %(message)s %(lineno)d").format(copy), str)
    return found


@pytest.mark.parametrize("name", ODDITIES)
def test_an_odd_object_costs_no_record(name):
    """Each oddity in turn as message, argument, extra and, if it is small, in place of every single attribute."""
    make = ODDITIES[name]
    assert_understood(new_encoder(), new_record(make()))
    assert_understood(new_encoder(), new_record("%s and %d", (make(), make())))
    found = assert_understood(new_encoder(), new_record(extra={"odd": make(), "even": 2}))
    assert "odd" in found
    for attribute in [*new_record().__dict__, "taskName"]:
        if name in LARGE:
            break
        record = new_record()
        record.__dict__[attribute] = make()
        assert_understood(new_encoder(), record)
        warmed = new_encoder()
        warmed.encode(new_record())
        assert_understood(warmed, record)


@pytest.mark.parametrize("attribute", new_record().__dict__)
def test_a_missing_attribute_costs_no_record(attribute):
    """A record that somebody took an attribute from is encoded; with an extra in its place, the extra travels."""
    record = new_record()
    del record.__dict__[attribute]
    assert_understood(new_encoder(), record)
    record.__dict__["replacement"] = "here"
    warmed = new_encoder()
    warmed.encode(new_record())
    assert assert_understood(warmed, record)["replacement"] == "here"


@pytest.mark.parametrize("key", [1, None, (1, 2), b"bytes", 2.5, frozenset("a"), Text("text")])
def test_the_name_of_an_extra_may_be_anything(key):
    """``extra={1: 2}`` is legal; the name becomes text."""
    record = new_record()
    record.__dict__[key] = "value"
    found = assert_understood(new_encoder(), record)
    assert "value" in found.values()
    assert MALFORMED not in found


@settings(relaxed, max_examples=150)
@given(values, st.lists(values, max_size=3), st.dictionaries(st.text(max_size=8) | st.integers(), values, max_size=5))
def test_the_encoder_is_total(msg, args, extra):
    """Any objects in the message, the arguments and the extras: it is encoded, and understood at the other end."""
    try:
        record = new_record(made_odd(msg), tuple(map(made_odd, args)))
    except ValueError:  # logging itself asks a single argument whether it is a mapping
        reject()
    for name, value in extra.items():
        if name not in record.__dict__:
            record.__dict__[name] = made_odd(value)
    assert_understood(new_encoder(), record)


def test_arguments_that_do_not_fit_are_kept():
    """A message that cannot be rendered still shows its text and its arguments."""
    message = new_encoder().encode(new_record("%d of %d", ("one",)))[3]
    assert message == "%d of %d ('one',) [aiolog: the arguments do not fit the message: TypeError]"


def test_long_texts_are_cut_and_say_so():
    """Each text has a limit of its own; what was cut is told, with the length it had."""
    record = new_record("m" * (MAX_MESSAGE_CHARS + 1), sinfo="s" * (MAX_TRACE_CHARS + 5))
    record.exc_text = "e" * (MAX_TRACE_CHARS + 7)
    record.threadName = "t" * (MAX_NAME_CHARS + 1)
    found = rebuilt(new_encoder(), record)
    assert found["msg"] == "m" * MAX_MESSAGE_CHARS + f"… [aiolog: cut from {MAX_MESSAGE_CHARS + 1} characters]"
    assert found["stack_info"].endswith(f"s… [aiolog: cut from {MAX_TRACE_CHARS + 5} characters]")
    assert found["exc_text"].endswith(f"e… [aiolog: cut from {MAX_TRACE_CHARS + 7} characters]")
    assert found["threadName"] == "t" * MAX_NAME_CHARS


@pytest.mark.parametrize(
    "extra",
    [
        {f"n{i}": i for i in range(20_000)},
        {f"n{i}": "" for i in range(20_000)},
        {f"n{i}" + "\U0001f600" * 4000: i for i in range(500)},
        {"list": list(range(1_000_000))},
        {"lists": [[[i] for i in range(100)] for _ in range(100)]},
        {"text": ["\U0001f600" * 1000] * 1000},
        {"dict": {f"\U0001f600{i}": {} for i in range(5000)}},
        {"deep": nested(5000)},
    ],
    ids=["ints", "texts", "names", "list", "lists", "text", "dict", "deep"],
)
def test_extras_are_bounded_together(extra):
    """Breadth, depth and names of the extras stay within what a server unpacks, and what was cut says so."""
    encoder = new_encoder()
    record = new_record()
    record.__dict__.update(extra)
    for wire in (encoder.encode(record), encoder.encode_small(record)):
        flat = wire[4]["extra"]
        assert len(flat) <= 2 * (MAX_EXTRA_NODES + 1) <= MAX_ARRAY_LEN
        assert MAX_EXTRA_NODES + 1 <= MAX_MAP_LEN
        assert len(pack_record(wire)) <= MAX_RECORD_BYTES
        assert "[aiolog: cut" in str(flat)
        assert chars_of(flat) <= MAX_EXTRA_CHARS + 2 * MAX_NAME_CHARS + 100 * len("… [aiolog: cut from 99999 items]")
        through(wire)


def chars_of(value):
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(chars_of(part) for pair in value.items() for part in pair)
    return sum(map(chars_of, value)) if isinstance(value, list) else 0


def test_a_record_made_small_fits_whatever_is_in_it():
    """With every text at its longest, in characters of four bytes, and fields in place, half a frame is enough."""
    wide = "\U0001f600" * (1 << 18)
    encoder = new_encoder()
    encoder._claimed = MAX_DEFINITIONS  # the dictionary is full
    record = new_record(wide, sinfo=wide)
    for name in ("name", "levelname", "pathname", "filename", "module", "funcName", "threadName", "processName"):
        record.__dict__[name] = wide
    record.exc_text = record.taskName = wide
    for number in range(2_000):
        record.__dict__[f"{number}{wide[:5000]}"] = wide
    assert len(pack_record(encoder.encode_small(record))) <= MAX_RECORD_BYTES * 3 // 4
    assert MALFORMED not in attributes(Source(), through(encoder.encode_small(record)))


def test_an_exception_that_cannot_be_formatted_costs_no_record():
    """A formatter that raises leaves a note where the traceback would be."""
    record = new_record(exc_info=(ValueError, ValueError("x"), None))
    found = rebuilt(new_encoder(format_exception=fail), record)
    assert found["exc_text"] == "[aiolog: the traceback could not be formatted: ValueError]"


def test_leaving_is_not_held_up():
    """KeyboardInterrupt and SystemExit in foreign code are no errors of a record; they get through."""

    class Leaves:
        def __str__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new_encoder().encode(new_record("%s", (Leaves(),)))


# ---------------------------------------------------------------------------------------------------------------
# What frameworks make of records


def test_a_dictionary_of_structlog_is_a_message_and_fields():
    """``event`` is the message; the rest are fields, but what the record says already and structlog's own."""
    event = {"event": "sold", "user": "bob", "n": 3, "level": "info", "logger": "app.part", "_record": object(), 5: 6}
    record = new_record(event, extra={"_logger": object(), "_name": "app.part", "own": 1})
    encoder = new_encoder()
    for _ in range(2):
        found = rebuilt(encoder, record)
        assert found["msg"] == "sold"
        extras = {name: value for name, value in found.items() if name not in STANDARD_ATTRIBUTES}
        assert extras == {"own": 1, "user": "bob", "n": 3, "5": 6}
    assert event["event"] == "sold"  # nothing of it was changed
    assert rebuilt(encoder, new_record({"event": "x", "level": "loud", "name": "bob"}))["level"] == "loud"
    assert rebuilt(encoder, new_record({"event": "x", "name": "bob"}))["name_"] == "bob"
    assert rebuilt(encoder, new_record({"a": 1}))["msg"] == "{'a': 1}"  # no structlog, a dictionary as a message


def test_exceptions_in_a_dictionary_of_structlog():
    """``exc_info`` as True, as an exception or as its three parts is a traceback; so are texts made before."""
    encoder = new_encoder()
    try:
        raise ValueError("in there")
    except ValueError as error:
        for exc_info in (True, error, sys.exc_info()):
            found = rebuilt(encoder, new_record({"event": "x", "exc_info": exc_info}))
            assert found["exc_text"].endswith("ValueError: in there")
            assert "exc_info" not in found.keys() - STANDARD_ATTRIBUTES
    found = rebuilt(encoder, new_record({"event": "x", "exception": "Traceback …", "stack": "Stack …"}))
    assert (found["exc_text"], found["stack_info"]) == ("Traceback …", "Stack …")
    assert not {"exception", "stack"} & found.keys()
    assert rebuilt(encoder, new_record({"event": "x", "exc_info": True}))["exc_text"] == "NoneType: None"


def test_structlog_itself():
    """Its processors for the standard library, as in its documentation, end as message, fields and traceback."""
    structlog = pytest.importorskip("structlog")
    records = []
    stdlib = logging.Logger("app.structlog")  # noqa: LOG001
    stdlib.addHandler(type("Keeps", (logging.Handler,), {"emit": lambda _, record: records.append(record)})())
    encoder = new_encoder()
    found = {}
    for last in (structlog.stdlib.ProcessorFormatter.wrap_for_formatter, structlog.stdlib.render_to_log_kwargs):
        log = structlog.wrap_logger(
            stdlib,
            processors=[structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, last],
            wrapper_class=structlog.stdlib.BoundLogger,
        ).bind(user="bob")
        log.info("sold", n=3)
        try:
            raise ValueError("in there")
        except ValueError:
            log.exception("broke")
        found[last] = [rebuilt(encoder, record) for record in records[-2:]]
    for sold, broke in found.values():
        assert (sold["msg"], sold["user"], sold["n"], sold["exc_text"]) == ("sold", "bob", 3, None)
        assert (broke["msg"], broke["levelname"]) == ("broke", "ERROR")
        assert broke["exc_text"].endswith("ValueError: in there")
        assert not {"event", "exc_info", "_logger", "_name"} & (broke.keys() - STANDARD_ATTRIBUTES)


def test_loguru_itself():
    """Its standard handler sink: bound fields are fields, and the traceback is there once."""
    loguru = pytest.importorskip("loguru")
    records = []
    keeps = type("Keeps", (logging.Handler,), {"emit": lambda _, record: records.append(record)})()
    number = loguru.logger.add(keeps, format="{message}", level=0)
    try:
        loguru.logger.bind(user="bob", name="other").info("sold {}", 3)
        try:
            raise ValueError("in there")
        except ValueError:
            loguru.logger.exception("broke")
    finally:
        loguru.logger.remove(number)
    encoder = new_encoder()
    sold, broke = (rebuilt(encoder, record) for record in records)
    assert (sold["msg"], sold["user"], sold["name_"]) == ("sold 3", "bob", "other")
    assert "extra" not in sold
    assert broke["msg"].startswith("broke\nTraceback")
    assert broke["exc_text"] is None


def test_access_records_of_gunicorn_are_fields_and_no_header_travels():
    """gunicorn's own atoms of a request with secrets in its headers: a white list of them, and the message."""
    glogging = pytest.importorskip("gunicorn.glogging")
    config = pytest.importorskip("gunicorn.config").Config()
    environ = {
        "REMOTE_ADDR": "10.0.0.1", "REQUEST_METHOD": "GET", "RAW_URI": "/a?b=c", "PATH_INFO": "/a",
        "QUERY_STRING": "b=c", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_USER_AGENT": "curl/8",
        "HTTP_AUTHORIZATION": "Bearer s3cret", "HTTP_COOKIE": "session=s3cret",
    }  # fmt: skip
    headers = [("AUTHORIZATION", "Bearer s3cret"), ("COOKIE", "session=s3cret"), ("USER-AGENT", "curl/8")]
    response = type("R", (), {"status": "200 OK", "sent": 512, "headers": [("Set-Cookie", "s3cret")]})
    request = type("Q", (), {"headers": headers})
    took = dt.timedelta(microseconds=1_234)
    access = glogging.Logger(config)
    atoms = glogging.SafeAtoms(access.atoms(response, request, environ, took))
    record = new_record(config.access_log_format, (atoms,), name="gunicorn.access")
    encoder = new_encoder()
    for _ in range(2):
        wire = encoder.encode(record)
        assert "s3cret" not in str(wire)
        found = attributes(source_of(encoder), through(wire))
        assert '"GET /a?b=c HTTP/1.1" 200 512' in found["msg"]
        assert {name: value for name, value in found.items() if name not in STANDARD_ATTRIBUTES} == {
            "client_ip": "10.0.0.1", "method": "GET", "path": "/a", "query": "b=c", "status": 200, "bytes": 512,
            "duration_us": 1_234, "user_agent": "curl/8",
        }  # fmt: skip
    assert new_encoder().encode(new_record("%(h)s", (atoms,), name="other"))[3:] == ("10.0.0.1",)


class Property:
    """Has a method and a path, and counts who asks."""

    asked = 0

    @property
    def method(self):
        Property.asked += 1
        return "GET"

    path = method


def test_requests_are_their_method_and_path():
    """Django's, Flask's and Starlette's requests are one line; a property of an unknown class is never asked for."""
    werkzeug = pytest.importorskip("werkzeug.test")
    Request = pytest.importorskip("werkzeug.wrappers").Request  # noqa: N806
    asgi = types.SimpleNamespace(
        scope={"type": "http", "method": "PUT", "path": "/asgi", "headers": [(b"cookie", b"s")]}
    )
    django = type("WSGIRequest", (), {"__module__": "django.core.handlers.wsgi"})()
    django.method, django.path, django.META = "POST", "/shop/", {"HTTP_COOKIE": "secret"}
    lazy = type("Request", (Property,), {"__module__": "rest_framework.request", "path": "/drf"})()
    flask = Request(werkzeug.EnvironBuilder(path="/flask", method="DELETE", headers={"Cookie": "s"}).get_environ())
    extra = {"django": django, "flask": flask, "asgi": asgi, "lazy": lazy, "nested": {"request": django}}
    found = rebuilt(new_encoder(), new_record(extra=extra))
    assert [found[name] for name in extra] == [
        "POST /shop/", "DELETE /flask", "PUT /asgi", "GET /drf", {"request": "POST /shop/"}
    ]  # fmt: skip
    before = Property.asked
    unknown = types.SimpleNamespace(method=5, path="/x")
    found = rebuilt(new_encoder(), new_record(extra={"unknown": unknown, "property": Property()}))
    assert found["unknown"] == "namespace(method=5, path='/x')"
    assert "Property object at" in found["property"]
    assert Property.asked == before


def test_the_text_of_an_object_is_bounded():
    """A table of a thousand rows is no field: an unknown object's text is cut, a str is not."""
    table = type("Table", (), {"__str__": lambda _: "x" * 50_000})()
    found = rebuilt(new_encoder(), new_record(extra={"table": table, "text": "y" * 50_000}))
    assert found["table"] == "x" * MAX_OBJECT_CHARS + "… [aiolog: cut from 50000 characters]"
    assert found["text"] == "y" * 50_000


def test_uvicorns_coloured_message_is_left_out():
    """It is the message once more, with the codes of a terminal in it."""
    extra = {"color_message": "\x1b[36m%d\x1b[0m"}
    assert "color_message" not in rebuilt(new_encoder(), new_record(name="uvicorn.error", extra=extra))
    assert rebuilt(new_encoder(), new_record(extra=extra)).keys() >= {"color_message"}


# ---------------------------------------------------------------------------------------------------------------
# Redaction


def redacting(redact, hides=None):
    encoder = new_encoder()
    encoder.redact_by(redact, hides)
    return encoder


def test_redaction_reaches_every_text():
    """Message, traceback, stack, extras and their names, the context's as well, nested ones and texts of objects."""
    encoder = redacting(lambda text: text.replace("s3cret", "---"))
    record = new_record(
        "%s s3cret", ("s3cret",), sinfo="in s3cret", exc_info=(ValueError, ValueError("s3cret"), None),
        extra={"a": "s3cret", "s3cret": 1, "deep": [{"b": "a s3cret"}], "object": Text("s3cret"), "n": 5},
    )  # fmt: skip
    for _ in range(2):
        wire = encoder.encode(record, {"bound": "s3cret"})
        assert "s3cret" not in str((wire, encoder.definitions[:0]))
    found = attributes(source_of(encoder), through(wire))
    assert (found["msg"], found["exc_text"], found["stack_info"]) == ("--- ---", "ValueError: ---", "in ---")
    assert (found["a"], found["---"], found["deep"], found["n"]) == ("---", 1, ({"b": "a ---"},), 5)
    assert "s3cret" not in str(encoder.encode_small(record))
    assert encoder.encode(new_record("plain s3cret"))[3] == "plain ---"


@pytest.mark.parametrize("hook", [fail, lambda text: None, lambda text: b"x", lambda: "no argument"])
def test_a_hook_that_fails_lets_nothing_through(hook):
    """It raises, or returns no text: a note stands there, and never what was to be hidden."""
    encoder = redacting(hook)
    for _ in range(2):
        wire = encoder.encode(new_record("s3cret", extra={"a": "s3cret"}, sinfo="s3cret"))
        assert "s3cret" not in str(wire)
        assert wire[3] == wire[4]["stack_info"] == REDACTION_FAILED


def test_fields_hidden_by_name():
    """The value of a hidden name does not travel, whatever its type, nested or not."""
    encoder = redacting(str, hides="password".__eq__)
    found = rebuilt(encoder, new_record(extra={"password": ["a"], "deep": {"password": 5, "user": "bob"}}))
    assert (found["password"], found["deep"]) == (REDACTED, {"password": REDACTED, "user": "bob"})


def test_a_secret_at_the_edge_of_a_text():
    """A text is redacted before it is cut, so that no half of a secret stays at the end."""
    encoder = redacting(lambda text: text.replace("s3cret", "-"))
    text = "x" * (MAX_MESSAGE_CHARS - 3) + "s3cret" + "y" * 10_000
    message = encoder.encode(new_record(text))[3]
    assert message.startswith("x" * (MAX_MESSAGE_CHARS - 3) + "-yy… [aiolog: cut from")
    grown = redacting(lambda text: text * 3).encode(new_record("x" * MAX_MESSAGE_CHARS))[3]
    assert len(grown) < MAX_MESSAGE_CHARS + 100


# ---------------------------------------------------------------------------------------------------------------
# The dictionary


def test_sites_are_bounded_and_then_travel_in_place():
    """After 4,096 sites the fields themselves travel; known sites keep their numbers."""
    encoder = new_encoder()
    for line in range(MAX_SITES + 10):
        wire = encoder.encode(new_record(line=line))
    assert len(encoder.definitions) == MAX_SITES + 1  # and one thread
    assert isinstance(wire[1], Site)
    assert rebuilt(encoder, new_record(line=MAX_SITES + 9))["lineno"] == MAX_SITES + 9
    assert rebuilt(encoder, new_record(line=5))["lineno"] == 5
    assert type(encoder.encode(new_record(line=5))[1]) is int


def test_threads_are_bounded_and_then_travel_in_place():
    """A thread per request fills its share of the dictionary and no more."""
    encoder = new_encoder()
    for number in range(MAX_THREADS + 10):
        record = new_record()
        record.thread, record.threadName = number, f"Thread-{number}"
        wire = encoder.encode(record)
    assert len(encoder.definitions) == MAX_THREADS + 1
    assert wire[2] == Thread(MAX_THREADS + 9, f"Thread-{MAX_THREADS + 9}")
    found = rebuilt(encoder, record)
    assert (found["thread"], found["threadName"]) == (MAX_THREADS + 9, f"Thread-{MAX_THREADS + 9}")


def test_the_characters_of_the_dictionary_are_bounded():
    """Names of any length fill the dictionary to its limit in characters and not beyond; short ones still fit."""
    encoder = new_encoder()
    for line in range(500):
        record = new_record(line=line)
        record.pathname = record.funcName = record.module = str(line) * MAX_NAME_CHARS
        encoder.encode(record)
    held = sum(len(field) for entry in encoder.definitions for field in entry if isinstance(field, str))
    assert MAX_DEFINITION_CHARS - 4 * MAX_NAME_CHARS < held <= MAX_DEFINITION_CHARS
    assert isinstance(encoder.encode(record)[1], Site)
    assert type(encoder.encode(new_record("short"))[1]) is int


def test_definitions_are_sites_of_eight_or_threads_of_two():
    """Any other number of fields is refused; wrong types in the right number are coerced."""
    assert definition(["n", 20, "INFO", "p", "f", "m", 1, None]) == Site("n", 20, "INFO", "p", "f", "m", 1, None)
    assert definition([b"n", "x", 3, None, (), {}, math.nan, 2.5]) == Site("b'n'", 0, "3", "None", "()", "{}", 0, "2.5")
    assert definition([1 << 80, "t"]) == Thread(INT_MAX, "t")
    assert definition([None, None]) == Thread(None, None)
    for count in (0, 1, 3, 7, 9):
        with pytest.raises(ValueError):
            definition(["x"] * count)


@pytest.fixture
def switching():
    """Let threads be switched as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(count, work):
    """Run ``work(number)`` in so many threads at once; whatever one raises is raised here."""
    errors = []
    gate = threading.Barrier(count)

    def run(number):
        try:
            gate.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), name=f"worker-{number}") for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("switching")
def test_threads_that_define_at_once_share_one_dictionary():
    """Eight threads meet sites of their own and shared ones at once: each number stands for the right one in all."""
    encoder = new_encoder()
    wires = [[] for _ in range(8)]

    def work(number):
        for turn in range(600):
            line = turn if turn % 2 else 1_000 * number + turn
            record = new_record(str(line), line=line, name=f"app.{line % 7}")
            # A definition stands in the list before the record that uses it is out.
            wire = encoder.encode(record)
            assert wire[1] < len(encoder.definitions)
            assert wire[2] < len(encoder.definitions)
            wires[number].append((wire, record))

    in_threads(8, work)
    source = source_of(encoder)
    for wire, record in itertools.chain(*wires):
        found = attributes(source, wire)
        assert (found["lineno"], found["name"]) == (record.lineno, record.name)
        assert (found["thread"], found["threadName"]) == (record.thread, record.threadName)
        assert found["msg"] == str(record.lineno)


@pytest.mark.usefixtures("switching")
def test_threads_together_never_overfill_the_dictionary(monkeypatch):
    """A server closes a connection for one definition or one character too many, so the limits hold exactly."""
    monkeypatch.setattr(record_module, "MAX_DEFINITIONS", 50)
    monkeypatch.setattr(record_module, "MAX_DEFINITION_CHARS", 50 * 40)
    for _ in range(20):
        encoder = new_encoder()
        in_threads(8, lambda number, e=encoder: [e.encode(new_record(line=100 * number + i)) for i in range(30)])
        assert len(encoder.definitions) <= 50
        assert sum(len(f) for entry in encoder.definitions for f in entry if isinstance(f, str)) <= 50 * 40


# ---------------------------------------------------------------------------------------------------------------
# Totality of the server's half

packable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(INT_MIN, INT_MAX)
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from(["extra", *sorted(STANDARD_ATTRIBUTES)]),
    lambda inner: (
        st.lists(inner, max_size=9).map(tuple)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["extra", *sorted(STANDARD_ATTRIBUTES)]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
small_numbers = st.integers(-1, 3)
wire_records = st.tuples(
    st.floats() | st.integers(INT_MIN, INT_MAX) | packable,
    small_numbers | packable,
    small_numbers | packable,
    st.text(max_size=5) | packable,
    st.dictionaries(st.sampled_from(["extra", *sorted(STANDARD_ATTRIBUTES)]), packable, max_size=4) | packable,
) | st.tuples(st.floats(), small_numbers, small_numbers, st.text(max_size=5))


def definitions_source():
    source = Source(app="a", pid=7, process_name="p", start_time=1.0)
    source.define(["n", 20, "INFO", "/p", "p", "m", 1, "f"])
    source.define([5, "t"])
    return source


SOURCE = definitions_source()
KINDS = {
    **dict.fromkeys(("exc_text", "stack_info", "taskName", "processName", "threadName", "funcName"), (str, type(None))),
    **dict.fromkeys(("name", "levelname", "pathname", "filename", "module", "msg"), (str,)),
    **dict.fromkeys(("process", "thread"), (int, type(None))),
    **dict.fromkeys(("levelno", "lineno"), (int,)),
    **dict.fromkeys(("created", "msecs", "relativeCreated"), (float, int)),
    **dict.fromkeys(("args", "exc_info"), (type(None),)),
}


def is_well_formed(wire):
    """Say by the table of ``aiolog.record`` alone whether a value is a wire record of SOURCE."""
    if not isinstance(wire, tuple) or not 4 <= len(wire) <= 5:
        return False
    created, site, thread, message, rare = (*wire, {})[:5]
    return (
        type(created) in (int, float)
        and is_moment(created)
        and type(message) is str
        and ((type(site) is int and site == 0) or (isinstance(site, tuple) and len(site) == 8))
        and ((type(thread) is int and thread == 1) or (isinstance(thread, tuple) and len(thread) == 2))
        and isinstance(rare, dict)
        and all(
            isinstance(value, tuple) and len(value) % 2 == 0 and all(type(name) is str for name in value[::2])
            if key == "extra"
            else key not in ("msg", "args", "exc_info")
            and type(value) in KINDS.get(key, ())
            and (key != "created" or is_moment(value))
            for key, value in rare.items()
        )
    )


@relaxed
@given(wire_records | packable)
@example((math.nan, 0, 1, ""))
@example((1e300, 0, 1, ""))
@example((-math.inf, 0, 1, ""))
@example((0.0, 0, 1, "", {"levelno": "x"}))
@example((0.0, 0, 1, "", {"levelno": 1 << 63, "lineno": -1}))
@example((0.0, 0, 1, "", {"created": 1e300}))
@example((0.0, 0, 1, "", {"extra": ("a",)}))
@example((0.0, 0, 1, "", {"extra": (1, 2)}))
@example((0.0, 0, 1, "", {"exc_text": 5}))
@example((0.0, 1, 0, "a thread for a site"))
@example((0.0, True, True, "numbers that are none"))
def test_the_server_understands_anything(wire):
    """Any msgpack value becomes attributes of the right types that ``logging`` can format; faults are marked (S7)."""
    found = attributes(SOURCE, wire)
    for name, kinds in KINDS.items():
        assert type(found[name]) in kinds, name
    if not (isinstance(wire, tuple) and len(wire) == 5 and isinstance(wire[4], dict) and MALFORMED in str(wire[4])):
        assert (MALFORMED in found) == (not is_well_formed(wire))
    record = logging.makeLogRecord(found)
    assert type(logging.Formatter("%(levelno)d %(name)s %(lineno)d %(msecs)03d %(message)s").format(record)) is str


def test_what_is_wrong_is_named():
    """The mark says what the sender did wrong, and whatever was right is kept."""
    found = attributes(SOURCE, (math.nan, 9, (1, 2, 3), b"bytes", {"args": [1], "exc_text": 5, "taskName": "T"}))
    assert found[MALFORMED] == (
        "created is not a moment; the message is not text; the site was never defined; "
        "a thread in place has the wrong number of fields; "
        "rare has 'args', which is no attribute or of the wrong type; "
        "rare has 'exc_text', which is no attribute or of the wrong type"
    )
    assert (found["msg"], found["name"], found["args"], found["exc_text"]) == ("b'bytes'", "unknown", None, "5")
    assert (found["taskName"], found["created"]) == ("T", 0.0)


def test_a_peer_cannot_replace_attributes_by_extras():
    """An extra with the name of a standard attribute is left out."""
    found = attributes(SOURCE, (0.0, 0, 1, "true", {"extra": ("msg", "forged", "message", "forged", "own", 1)}))
    assert (found["msg"], found["own"]) == ("true", 1)
    assert "message" not in found


def test_a_deep_record_is_no_recursion():
    """A value as deep as msgpack unpacks is understood (S4)."""
    deep = ()
    for _ in range(1000):
        deep = (deep,)
    for wire in (deep, (0.0, deep, deep, deep, deep), (0.0, 0, 1, "", {"extra": ("deep", deep)})):
        assert type(attributes(SOURCE, wire)["msg"]) is str


def test_the_encoder_costs_microseconds():
    """A plain record is encoded in the time of a few function calls, with a wide margin for slow machines."""
    encoder = new_encoder()
    record = new_record("user %s did %d", ("bob", 3))
    encoder.encode(record)
    began = time.process_time()
    for _ in range(20_000):
        encoder.encode(record)
    assert (time.process_time() - began) / 20_000 < 20e-6
