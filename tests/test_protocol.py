"""The wire: any split of the bytes gives the same messages, and any bad input a sentence and nothing worse."""

from __future__ import annotations

import contextlib
import doctest
import itertools
import logging
import logging.handlers
import pickle
import re
import struct
import time
import tracemalloc
import zlib

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiolog import protocol
from aiolog.coerce import INT_MAX, INT_MIN, MAX_NAME_CHARS
from aiolog.errors import ProtocolError
from aiolog.protocol import (
    BATCH_BYTES,
    COUNTED_BYTES,
    DEFINE_BYTES,
    FROM_CLIENT,
    FROM_SERVER,
    MAX_ANSWER_BYTES,
    MAX_ARRAY_LEN,
    MAX_BATCH_RECORDS,
    MAX_CONTAINERS,
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    MAX_MAP_LEN,
    MAX_RECORD_BYTES,
    Ack,
    Batch,
    Busy,
    Bye,
    Decoder,
    Define,
    Hello,
    Refusal,
    Refuse,
    Welcome,
    batch_frame,
    define_frames,
    encode,
    pack_everyday,
    pack_record,
    unpack_records,
)
from aiolog.record import MAX_EXTRA_NODES
from aiolog.source import MAX_DEFINITION_CHARS, MAX_DEFINITIONS, Site, Thread

MAX_PEAK_BYTES = 24 << 20  # what one bad frame may take for a moment
MAX_STALL_SECONDS = 0.5  # measured: 0.05 at worst; the margin is for a machine that does much else
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

numbers = st.integers(INT_MIN, INT_MAX)
texts = st.text(st.characters(), max_size=20)
scalars = st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | texts | st.binary(max_size=20)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
client_messages = st.one_of(
    st.builds(
        Hello, numbers, st.binary(), numbers, texts | st.none(), texts, texts,
        st.dictionaries(texts, texts, max_size=3), st.floats(allow_nan=False) | numbers, texts, numbers,
    ),
    st.builds(Define, st.lists(st.lists(plain, max_size=8).map(tuple), max_size=5).map(tuple)),
    st.builds(Batch, numbers, numbers, numbers, numbers, st.binary(max_size=200)),
    st.just(Bye()),
)  # fmt: skip
server_messages = st.one_of(
    st.builds(Welcome, numbers, texts, numbers, numbers, texts),
    st.builds(Ack, numbers),
    st.just(Busy()),
    st.builds(Refuse, numbers, texts),
)


def framed(body):
    return struct.pack(">L", len(body)) + body


def drained(decoder):
    return list(iter(decoder.next, None))


def decoded(data, forms=FROM_CLIENT):
    decoder = Decoder(forms)
    decoder.feed(data)
    return drained(decoder)


def test_the_docstring_is_true():
    """The specification's examples run."""
    results = doctest.testmod(protocol)
    assert results.attempted > 8
    assert results.failed == 0


# ---------------------------------------------------------------------------------------------------------------
# Messages


@relaxed
@given(client_messages)
def test_each_message_of_a_client_comes_back(message):
    """What was encoded is what is decoded, type and fields."""
    (found,) = decoded(encode(message), FROM_CLIENT)
    assert found == message
    assert type(found) is type(message)


@relaxed
@given(server_messages)
def test_each_message_of_a_server_comes_back(message):
    """The same in the other direction."""
    (found,) = decoded(encode(message), FROM_SERVER)
    assert found == message
    assert type(found) is type(message)


def test_each_type_of_message_has_one_number():
    """No number stands for two types, in either direction."""
    assert not FROM_CLIENT.keys() & FROM_SERVER.keys()
    assert len(protocol._TYPE_OF) == 8


@relaxed
@given(st.lists(client_messages, max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_any_split_of_the_bytes_gives_the_same_messages(messages, steps):
    """However the stream is cut, the messages are the same, and has_frame tells of each before it is taken."""
    stream = b"".join(map(encode, messages))
    decoder = Decoder(FROM_CLIENT)
    found = []
    position = 0
    for step in itertools.cycle(steps):
        if position >= len(stream):
            break
        decoder.feed(stream[position : position + step])
        position += step
        while decoder.has_frame():
            found.append(decoder.next())
            assert found[-1] is not None
        assert decoder.next() is None
        assert decoder.buffered_bytes == min(position, len(stream)) - sum(len(encode(m)) for m in found)
    assert found == messages
    assert decoder.buffered_bytes == 0


def parts(*batches):
    """Return the frames of batches of some records: first_seq, records, dropped."""
    return b"".join(batch_frame(first, dropped, [pack_record(["x"])] * count) for first, count, dropped in batches)


@pytest.mark.parametrize(
    ("stream", "taken"),
    [
        pytest.param(parts((2, 1, 0)), True, id="the next"),
        pytest.param(parts((2, 5, 0)), True, id="of some records"),
        pytest.param(parts((2, 6, 0)), False, id="of too many"),
        pytest.param(parts((3, 1, 0)), False, id="not the next"),
        pytest.param(parts((2, 1, 1)), False, id="something is missing before it"),
        pytest.param(parts((2, 0, 0)), False, id="a heartbeat"),
        pytest.param(parts((2, 1, 0))[:-1], False, id="not whole"),
        pytest.param(parts((2, 1, 0))[:5], False, id="hardly begun"),
        pytest.param(b"", False, id="nothing"),
        pytest.param(encode(Define([["t", 1]])), False, id="another message"),
        pytest.param(encode(Batch(2, 1, 0, 0, b"\x91\xa1x")), False, id="damaged"),
        pytest.param(encode(Batch(2, 2, 0, zlib.crc32(b"\x91\xa1x"), b"\x91\xa1x")), False, id="of another number"),
        pytest.param(framed(b"\x96\x03\xc1"), False, id="no msgpack"),
        pytest.param(encode(Batch(2, 1, 0, 0, bytes(200))), False, id="too long"),
        pytest.param(struct.pack(">L", MAX_FRAME_BYTES + 1) + b"\x96\x03", False, id="far too long"),
    ],
)
def test_only_a_batch_that_continues_is_the_next_part(stream, taken):
    """Whatever else comes is left as it was, for its turn, and nothing is kept of it."""
    decoder, plain = Decoder(FROM_CLIENT), Decoder(FROM_CLIENT)
    for each in (decoder, plain):
        each.feed(parts((1, 1, 0)) + stream + encode(Bye()) * taken)
        each.next()
    found = decoder.next_part(2, 100, 5)
    if taken:
        assert found == (plain.next(), (("x",),) * found[0].count)
    else:
        assert found is None
    for _ in range(2):
        try:
            expected = plain.next()
        except ProtocolError as error:
            with pytest.raises(ProtocolError, match=re.escape(str(error))):
                decoder.next()
            return
        assert decoder.next() == expected
        assert decoder.buffered_bytes == plain.buffered_bytes
        for each in (decoder, plain):
            each.feed(b"\0")


def test_byte_by_byte_and_all_at_once():
    """The two extremes of a split."""
    messages = [Bye(), Batch(1, 0, 0, 0, b"x" * 1000), Define(((1, 2),)), Bye()]
    stream = b"".join(map(encode, messages))
    decoder = Decoder(FROM_CLIENT)
    found = []
    for byte in stream:
        decoder.feed(bytes([byte]))
        found += drained(decoder)
    assert found == decoded(stream) == messages


def test_a_decoder_holds_no_more_than_it_was_fed():
    """Twenty megabytes of frames pass through, always with half of one left over, and the buffer does not grow."""
    frame = encode(Batch(1, 0, 0, 0, bytes(1000)))
    decoder = Decoder(FROM_CLIENT)
    decoder.feed(frame[:500])
    tracemalloc.start()
    for _ in range(20_000):
        decoder.feed(frame[500:] + frame[:500])
        assert decoder.next() is not None
        assert decoder.buffered_bytes == 500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 10


# ---------------------------------------------------------------------------------------------------------------
# Batches and records


@relaxed
@given(st.lists(plain, max_size=10), st.integers(1, 1 << 62), st.integers(0, 1 << 40))
def test_records_come_back_in_order(records, first_seq, dropped):
    """What was packed record by record is what is unpacked, with its numbers."""
    (batch,) = decoded(batch_frame(first_seq, dropped, [pack_record([record]) for record in records]))
    assert (batch.first_seq, batch.dropped, batch.count) == (first_seq, dropped, len(records))
    assert unpack_records(batch) == tuple((record,) for record in records)


@given(plain)
def test_an_everyday_record_is_packed_the_same(value):
    """``pack_everyday`` gives the bytes of ``pack_record``, or raises, and then packs the next one."""
    wanted = pack_record([value])
    with contextlib.suppress(UnicodeEncodeError):
        assert pack_everyday([value]) == wanted
    with pytest.raises(UnicodeEncodeError):
        pack_everyday([value, "\ud800"])
    assert pack_everyday([1, "ä"]) == pack_record([1, "ä"])


def test_text_that_is_no_unicode_comes_back():
    """A lone surrogate, as in the name of a file that cannot be decoded, travels."""
    (batch,) = decoded(batch_frame(1, 0, [pack_record(["\udc80 \ud800"])]))
    assert unpack_records(batch) == (("\udc80 \ud800",),)


GOOD = batch_frame(7, 2, [pack_record([1.5, 0, 1, "started"]), pack_record([1.6, 0, 1, "ready", {"taskName": "T"}])])


def test_a_flipped_bit_anywhere_is_detected():
    """Each bit of a batch's payload in turn: damage is a ProtocolError, never a wrong record."""
    (whole,) = decoded(GOOD)
    at = GOOD.index(whole.payload)
    for position in range(at, len(GOOD)):
        for bit in range(8):
            damaged = bytearray(GOOD)
            damaged[position] ^= 1 << bit
            (batch,) = decoded(bytes(damaged))
            with pytest.raises(ProtocolError, match="damaged"):
                unpack_records(batch)


def test_a_flipped_bit_in_the_header_is_never_another_batch():
    """A damaged length, type, count or CRC is refused or waits for bytes; seqs are for the session to check."""
    (whole,) = decoded(GOOD)
    at = GOOD.index(whole.payload)
    for position, bit in itertools.product(range(at), range(8)):
        damaged = bytearray(GOOD)
        damaged[position] ^= 1 << bit
        try:
            for batch in decoded(bytes(damaged)):
                records = unpack_records(batch)
                assert (records, batch.count) == (unpack_records(whole), whole.count)
                assert (batch.first_seq, batch.dropped) != (whole.first_seq, whole.dropped)
        except ProtocolError:
            pass


# ---------------------------------------------------------------------------------------------------------------
# Checks

HELLO = Hello(1, bytes(range(16)), 7, "worker", "host", "app", {"a": "b"}, 0.5, "", 40)
SITE, THREAD = ["app", 20, "INFO", "/app.py", "app.py", "app", 1, "main"], [1, "MainThread"]
RECORDS = [pack_record([1.5, 0, 1, text]) for text in ("started", "ready", "done")]
CONVERSATIONS = {
    "client": (
        FROM_CLIENT,
        [
            encode(HELLO, checked=True),
            *define_frames([SITE, THREAD], checked=True),
            batch_frame(43, 2, RECORDS, checked=True),
            batch_frame(46, 0, (), checked=True),
            encode(Bye(), checked=True),
        ],
    ),
    "server": (
        FROM_SERVER,
        [
            encode(message, checked=True)
            for message in (Busy(), Welcome(1, "s", 40, 1 << 20, "written"), Ack(45), Ack(1 << 40), Refuse(6, "stops"))
        ],
    ),
}


def understood(stream, forms):
    """Return what a peer acts on: the messages up to the first that is damaged or not whole, batches as their records.

    And whether something was damaged.
    """
    decoder = Decoder(forms)
    decoder.feed(stream)
    found = []
    try:
        while (message := decoder.next()) is not None:
            if isinstance(message, Batch):
                records = unpack_records(message, checked=decoder.is_checked)
                message = (message.first_seq, message.count, message.dropped, records)
            found.append(message)
    except ProtocolError as error:
        assert_sentence(error)
        return found, True
    return found, False


@pytest.mark.parametrize("side", CONVERSATIONS)
def test_a_flipped_bit_anywhere_in_a_checked_connection_is_detected(side):
    """Each bit of a whole conversation in turn: what came before it is understood, and nothing from there on.

    It is refused, or as a length that is too large waits for bytes that do not come.
    """
    forms, frames = CONVERSATIONS[side]
    whole, is_damaged = understood(b"".join(frames), forms)
    assert (len(whole), is_damaged) == (len(frames), False)
    starts = list(itertools.accumulate(map(len, frames), initial=0))
    for number, (frame, start) in enumerate(zip(frames, starts, strict=False)):
        for position, bit in itertools.product(range(len(frame)), range(8)):
            damaged = bytearray(b"".join(frames))
            damaged[start + position] ^= 1 << bit
            found, is_damaged = understood(bytes(damaged), forms)
            assert found == whole[:number]
            assert is_damaged or position < 4


@relaxed
@given(st.lists(client_messages.filter(lambda message: not isinstance(message, Batch)), min_size=1, max_size=5))
def test_each_checked_message_comes_back(messages):
    """With or without its check a message is the same; the first says which of the two all others must be."""
    plain, checked = ([encode(message, checked=checked) for message in messages] for checked in (False, True))
    for frames in (plain, checked):
        assert decoded(b"".join(frames)) == messages
    for frames in (plain[:1] + checked, checked[:1] + plain):
        with pytest.raises(ProtocolError, match=r"fields instead of|its check does not match"):
            decoded(b"".join(frames))


@pytest.mark.parametrize("first_seq", [43, 1_000_000, (1 << 32) - 1, 1 << 61])
def test_two_flipped_bits_in_the_numbers_are_detected(first_seq):
    """Above all two of one place in ``first_seq`` and ``dropped``, which TCP's sum misses as any sum does."""
    frame = batch_frame(first_seq, 2, RECORDS, checked=True)
    (whole,) = decoded(frame)
    at = frame.index(whole.payload)
    for one, other in itertools.combinations(range(4 * 8, at * 8), 2):
        damaged = bytearray(frame)
        damaged[one // 8] ^= 1 << one % 8
        damaged[other // 8] ^= 1 << other % 8
        with contextlib.suppress(ProtocolError):
            for batch in decoded(bytes(damaged)):
                unpack_records(batch, checked=True)
                pytest.fail(f"{batch[:4]} is taken for {whole[:4]}")


def test_the_crc_of_a_checked_batch_is_another():
    """Who leaves its numbers out of it, or puts them in where they are not expected, is refused."""
    plain, checked = (decoded(batch_frame(7, 2, RECORDS, checked=checked))[0] for checked in (False, True))
    assert unpack_records(plain) == unpack_records(checked, checked=True)
    for batch, is_checked in ((plain, True), (checked, False)):
        with pytest.raises(ProtocolError, match="damaged"):
            unpack_records(batch, checked=is_checked)


def test_a_batch_that_came_with_others_is_checked_too():
    """A look ahead leaves it where it is, to be refused in its turn."""
    decoder = Decoder(FROM_CLIENT)
    decoder.feed(encode(HELLO, checked=True) + batch_frame(1, 0, RECORDS, checked=True) + batch_frame(4, 0, RECORDS))
    decoder.next()
    assert decoder.next_part(1, BATCH_BYTES, 10) is not None
    assert decoder.next_part(4, BATCH_BYTES, 10) is None
    assert decoder.next().first_seq == 4


def payload_batch(payload, count=1):
    return Batch(1, count, 0, zlib.crc32(payload), payload)


@pytest.mark.parametrize(
    "batch",
    [
        payload_batch(b""),
        payload_batch(b"\xc0"),
        payload_batch(b"\x81\xa1a\x01"),
        payload_batch(b"\x90", 1),
        payload_batch(b"\x91\xc0", 0),
        payload_batch(b"\x91\xc0", -1),
        payload_batch(b"\x91\xc0\xc0", 1),
        payload_batch(b"\xdd\x00\x00\x00\x02\xc0", 2),
    ],
    ids=["nothing", "nil", "map", "too few", "too many", "negative", "more behind", "cut"],
)
def test_a_batch_holds_what_it_announces(batch):
    """Another number of records, another type, or bytes left over: refused as a whole."""
    with pytest.raises(ProtocolError) as caught:
        unpack_records(batch)
    assert_sentence(caught.value)


# ---------------------------------------------------------------------------------------------------------------
# Sizes: what a client sends, a server takes

WIDE = "\U0001f600"  # four bytes, and the longest there is
WIDEST_SITE = Site(*(WIDE * MAX_NAME_CHARS if kind == "str" else INT_MAX for kind in (
    "str", "int", "str", "str", "str", "str", "int", "str")))  # fmt: skip


def total_chars(definitions):
    return sum(len(field) for fields in definitions for field in fields if isinstance(field, str))


@pytest.mark.parametrize(
    "definitions",
    [
        [],
        [Thread(None, None)] * MAX_DEFINITIONS,
        [WIDEST_SITE] * (MAX_DEFINITION_CHARS // total_chars([WIDEST_SITE])),
        [Site(f"app.{n}", 20, "INFO", "/srv/app/part.py", "part.py", "part", n, "run") for n in range(MAX_DEFINITIONS)],
        [WIDEST_SITE, *[Thread(n, f"Thread-{n}") for n in range(3000)], WIDEST_SITE],
    ],
    ids=["none", "smallest", "largest", "usual", "mixed"],
)
def test_definitions_travel_in_order_in_frames_of_bounded_size(definitions):
    """Whatever the encoder allows to be defined fits frames that a server takes, about 64 KiB each."""
    frames = list(define_frames(definitions))
    assert all(
        len(frame) <= max(DEFINE_BYTES, len(pack_record(WIDEST_SITE))) + 16 < MAX_FRAME_BYTES for frame in frames
    )
    assert [tuple(fields) for frame in frames for fields in decoded(frame)[0].sites] == [*map(tuple, definitions)]
    packed_bytes = sum(len(pack_record(fields)) for fields in definitions)
    assert len(frames) <= 2 * packed_bytes / DEFINE_BYTES + len(definitions) / MAX_ARRAY_LEN + 1


def test_a_batch_of_the_largest_records_fits_a_frame():
    """A batch is cut after BATCH_BYTES, so one byte less and a record of the largest size is the most it holds."""
    largest = pack_record("x" * (MAX_RECORD_BYTES - 5))
    assert len(largest) == MAX_RECORD_BYTES
    records = [pack_record("y")] * (MAX_BATCH_RECORDS - 2) + [pack_record("z" * (BATCH_BYTES - 5 - 4096)), largest]
    assert sum(map(len, records[:-1])) < BATCH_BYTES
    frame = batch_frame(1 << 62, 1 << 61, records)
    assert len(frame) - 4 <= MAX_FRAME_BYTES
    assert len(unpack_records(*decoded(frame))) == MAX_BATCH_RECORDS


def test_the_fullest_batch_of_containers_is_still_taken():
    """A client that logs nothing but empty dicts stays below what the server counts, to the last one."""
    maps = pack_record([1.0, 0, 1, "", {"extra": ["a", [{}] * (MAX_EXTRA_NODES - 1)]}])
    large = pack_record([1.0, 0, 1, "x" * (2 * BATCH_BYTES), {"extra": ["a", [{}] * (MAX_EXTRA_NODES - 1)]}])
    records = [maps] * (BATCH_BYTES // len(maps))
    assert sum(map(len, records)) < BATCH_BYTES
    batch = decoded(batch_frame(1, 0, [*records, large]))[0]
    assert len(batch.payload) > COUNTED_BYTES
    assert len(unpack_records(batch)) == len(records) + 1


# ---------------------------------------------------------------------------------------------------------------
# Bad input


def assert_sentence(error):
    """A ProtocolError says in words what came, briefly, and carries the code for REFUSE."""
    text = str(error)
    assert len(text) > 20
    assert " " in text
    assert len(text) < 300
    assert text.isprintable()
    assert error.code == Refusal.PROTOCOL


def test_an_impossible_length_is_refused_before_its_body():
    """Four bytes decide (S1): the limit itself is taken, one more is not, and nothing is allocated for it."""
    for limit, forms in ((MAX_FRAME_BYTES, FROM_CLIENT), (MAX_HELLO_BYTES, FROM_CLIENT), (10, FROM_SERVER)):
        for length in (limit + 1, 0xFFFF_FFFF):
            decoder = Decoder(forms, limit)
            decoder.feed(struct.pack(">L", length))
            assert decoder.has_frame()
            with pytest.raises(ProtocolError) as caught:
                decoder.next()
            assert_sentence(caught.value)
            assert str(length) in str(caught.value)
        decoder = Decoder(forms, limit)
        decoder.feed(struct.pack(">L", limit))
        assert not decoder.has_frame()
        assert decoder.next() is None


def test_the_limit_of_a_decoder_may_be_raised():
    """A server grants more once it knows the peer."""
    decoder = Decoder(FROM_CLIENT, 100)
    decoder.max_frame_bytes = 2000
    decoder.feed(encode(Batch(1, 0, 0, 0, bytes(1000))))
    assert isinstance(decoder.next(), Batch)


def measured(call):
    """Return the ProtocolError that the call raises, if any, the bytes that it took at its peak, and its seconds."""
    error = None
    tracemalloc.start()
    try:
        call()
    except ProtocolError as caught:
        error = caught
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    began = time.process_time()
    with contextlib.suppress(ProtocolError):
        call()
    return error, peak_bytes, time.process_time() - began


def array16(count):
    return b"\xdc" + struct.pack(">H", count)


def repeated(count, block, size_bytes=MAX_FRAME_BYTES - 100):
    """Return an array of as many blocks as fit the size, each an array of ``count`` elements."""
    blocks = min(MAX_ARRAY_LEN, size_bytes // len(block))
    return array16(blocks) + block * blocks


N = MAX_ARRAY_LEN
REFUSED_BODIES = {
    "S2 array header of 100 million, six times": b"\xdd\x06\x40\x00\x00" * 6,
    "S2 array headers of 65,535": b"\xdc\xff\xff" * 1000,
    "S2 array headers of the longest allowed": array16(N) * 1000,
    "S2 the same with an element before each": (array16(N) + b"\xc0") * 1000,
    "S2 map headers of four billion": b"\xdf\xff\xff\xff\xff" * 100,
    "S2 map headers of the longest allowed": b"\xdf" + struct.pack(">L", MAX_MAP_LEN) * 250,
    "S2 a str of four billion": b"\xdb\xff\xff\xff\xff",
    "S2 bytes of four billion": b"\xc6\xff\xff\xff\xff",
    "S3 a million empty maps": b"\xdd" + struct.pack(">L", 1_048_571) + b"\x80" * 1_048_571,
    "S3 the same, in rows": repeated(N, array16(N) + b"\x80" * N),
    "S3 a million empty arrays, in rows": repeated(N, array16(N) + b"\x91\x90" * N),
    "S3 maps of one, in rows": repeated(N, array16(N) + b"\x81\xa0\xc0" * N),
    "S3 chains of arrays": repeated(1, b"\x91" * 500 + b"\xc0"),
    "S3 short texts": repeated(N, array16(N) + b"\xa2NN" * N),
    "S3 short numbers": repeated(N, array16(N) + b"\xcd\x01\x01" * N),
    "S3 small enough not to be counted": repeated(N, array16(N) + b"\x80" * N, COUNTED_BYTES - 100),
    "S4 nested 100,000 deep": b"\x91" * 100_000 + b"\xc0",
    "S4 maps nested 100,000 deep": b"\x81\xa1a" * 100_000 + b"\xc0",
    "S6 a map of ints": b"\x82\x01\x02\xcf" + struct.pack(">Q", 2**61) + b"\x02",
    "S6 a map of floats": b"\x81\xcb" + struct.pack(">d", 1.0) + b"\x01",
    "S6 a map of maps": b"\x81\x80\x01",
    "S7 nothing": b"",
    "S7 nil": b"\xc0",
    "S7 the type that msgpack never uses": b"\xc1",
    "S7 a map": b"\x80",
    "S7 a text": b"\xa3BYE",
    "S7 no type": b"\x90",
    "S7 a type that is text": b"\x91\xa1\x04",
    "S7 a type that is a bool": b"\x92\xc3\x05",
    "S7 a type that is a float": b"\x91\xcb" + struct.pack(">d", 4.0),
    "S7 a type that nobody knows": b"\x91\x05",
    "S7 a message of the other side": b"\x92\x11\x05",
    "S7 an extension": b"\x91\xd4\x00\x00",
    "S7 a moment of msgpack's own": b"\x91\xd6\xff\x00\x00\x00\x00",
    "S7 text that is not UTF-8": b"\x91\xa1\xff",
    "S7 bytes left over": b"\x91\x04\xc0",
    "S7 a body that ends early": b"\x92\x04",
}


@pytest.mark.parametrize("name", REFUSED_BODIES)
def test_a_bad_body_is_refused_in_bounded_memory_and_time(name):
    """Each attack on the body of a frame (S2, S3, S4, S6, S7) is one sentence, and bounded while it lasts."""
    body = framed(REFUSED_BODIES[name])
    error, peak_bytes, seconds = measured(lambda: decoded(body))
    assert_sentence(error)
    assert peak_bytes - 3 * len(body) < MAX_PEAK_BYTES
    assert seconds < MAX_STALL_SECONDS


@pytest.mark.parametrize("name", [name for name in REFUSED_BODIES if name.startswith(("S2", "S3", "S4", "S6"))])
def test_a_bomb_in_a_payload_is_bounded_too(name):
    """The same inside a batch, where it may be well-formed: memory and time stay bounded, and it never crashes."""
    body = REFUSED_BODIES[name]
    _, peak_bytes, seconds = measured(lambda: unpack_records(payload_batch(body, 0)))
    assert peak_bytes < MAX_PEAK_BYTES
    assert seconds < MAX_STALL_SECONDS


def test_memory_returns_after_a_bomb():
    """Nothing of a refused frame stays (S3)."""
    body = framed(REFUSED_BODIES["S3 the same, in rows"])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(3):
        with pytest.raises(ProtocolError):
            decoded(body)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 100_000


@pytest.mark.parametrize("what", ["arrays", "maps"])
def test_containers_are_counted_exactly(what):
    """In a large frame so many arrays and maps are taken, and not one more."""
    one = {"arrays": b"\x90", "maps": b"\x80"}[what]
    full = MAX_CONTAINERS // 1024

    def body(last_row):
        # One outer array, rows of 1023 with the row itself as the 1024th, and a text that makes the frame large.
        text = b"\xdb" + struct.pack(">L", COUNTED_BYTES) + b"x" * COUNTED_BYTES
        return array16(full + 1) + (array16(1023) + one * 1023) * (full - 1) + array16(last_row) + one * last_row + text

    assert len(protocol._unpack(body(1022))) == full + 1  # the outer array is one of them
    with pytest.raises(ProtocolError):
        protocol._unpack(body(1023))


def test_wrong_types_name_the_field():
    """Each field of each message in turn with a value of another type (S7): message and field are in the sentence."""
    samples = {
        1: Hello(1, bytes(16), 1, None, "h", "a", {}, 0.5, "", 0), 2: Define(()), 3: Batch(1, 0, 0, 0, b""),
        16: Welcome(1, "s", 0, 1, "written"), 17: Ack(1), 19: Refuse(1, "x"),
    }  # fmt: skip
    for number, sample in samples.items():
        forms = FROM_CLIENT if number in FROM_CLIENT else FROM_SERVER
        name = type(sample).__name__.upper()
        for index, field in enumerate(sample._fields):
            wrong = [value for value in (None, "x", b"x", 1, 1.5, {}) if not isinstance(value, forms[number][1][index])]
            assert wrong
            for value in wrong:
                fields = [number, *sample]
                fields[index + 1] = value
                with pytest.raises(ProtocolError, match=f"field {field} of {name}") as caught:
                    decoded(framed(msgpack.packb(fields)), forms)
                assert_sentence(caught.value)
        for fields in ([number, *sample][:-1], [number, *sample, None]):
            with pytest.raises(ProtocolError, match=f"{name} has .* fields instead of {len(sample)}"):
                decoded(framed(msgpack.packb(fields)), forms)


def standard_frames():
    """Return what the handlers of the standard library and of its cookbook send."""
    record = logging.makeLogRecord({"msg": "hello", "levelno": 20})
    yield logging.handlers.SocketHandler("127.0.0.1", 1).makePickle(record)
    for number in range(pickle.HIGHEST_PROTOCOL + 1):
        yield framed(pickle.dumps(record.__dict__, number))


def test_the_pickles_of_the_standard_handler_are_named_and_never_loaded(monkeypatch):
    """A cookbook client is told which handler to use (S8), in every protocol of pickle that it may speak."""
    monkeypatch.setattr(pickle, "loads", None)
    named = 0
    for frame in standard_frames():
        with pytest.raises(ProtocolError) as caught:
            decoded(frame)
        assert_sentence(caught.value)
        named += "SocketHandler" in str(caught.value) and "aiolog.AiologHandler" in str(caught.value)
    assert named >= pickle.HIGHEST_PROTOCOL  # protocol 0 is text, and nobody sends it


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
        (b"POST /v1/logs HTTP/1.1\r\n", "HTTP"),
        (b"HEAD / HTTP/1.0\r\n", "HTTP"),
        (b"OPTIONS * HTTP/1.1\r\n", "HTTP"),
        (b"DELETE /x HTTP/1.1\r\n", "HTTP"),
        (b"CONNECT x:443 HTTP/1.1\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP"),
        (bytes.fromhex("16030100c8010000c40303"), "TLS"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH"),
        (bytes(4), "msgpack"),
        (b"<13>Nov 23 08:00:00 host app: a syslog line\n", "limit"),
        (b'{"message": "json lines"}\n', "limit"),
        (b"\xff" * 16, "limit"),
    ],
    ids=[
        "GET",
        "POST",
        "HEAD",
        "OPTIONS",
        "DELETE",
        "CONNECT",
        "HTTP/2",
        "TLS",
        "SSH",
        "empty",
        "syslog",
        "json",
        "ff",
    ],
)
def test_strangers_are_told_what_they_are(data, word):
    """Other protocols on the port are recognised by their first bytes (S9), and the fourth one decides."""
    with pytest.raises(ProtocolError, match=word) as caught:
        decoded(data)
    assert_sentence(caught.value)
    decoder = Decoder(FROM_CLIENT)
    for byte in data[:3]:
        decoder.feed(bytes([byte]))
        assert decoder.next() is None
    decoder.feed(data[3:4])
    with pytest.raises(ProtocolError):
        decoder.next()


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"HTTP/1.1 400 Bad Request\r\n", "HTTP server answered"), (b"220 mail.example ESMTP\r\n", "something else")],
    ids=["HTTP", "SMTP"],
)
def test_a_client_is_told_what_answered(answer, words):
    """In words of its own: no setting of the server is to be raised for that."""
    decoder = Decoder(FROM_SERVER, MAX_ANSWER_BYTES)
    decoder.feed(answer)
    with pytest.raises(ProtocolError, match=words) as caught:
        decoder.next()
    assert_sentence(caught.value)
    assert "max_frame_bytes" not in str(caught.value)


@relaxed
@given(st.binary(max_size=300))
def test_garbage_is_a_protocol_error_or_nothing(garbage):
    """Any bytes at all: a message, more bytes wanted, or a ProtocolError; nothing else is ever raised."""
    for forms in (FROM_CLIENT, FROM_SERVER):
        for data in (garbage, framed(garbage), framed(b"\x96\x03\x01\x01\x00\x00" + garbage)):
            try:
                messages = decoded(data, forms)
            except ProtocolError as error:
                assert_sentence(error)
            else:
                assert all(isinstance(m, (Hello, Define, Batch, Bye, Welcome, Ack, Busy, Refuse)) for m in messages)


@relaxed
@given(st.binary(max_size=300), st.integers(-2, 5))
def test_garbage_in_a_payload_is_a_protocol_error_or_records(garbage, count):
    """Any payload with a right CRC: records in the number announced, or a ProtocolError."""
    try:
        assert len(unpack_records(payload_batch(garbage, count))) == count
    except ProtocolError as error:
        assert_sentence(error)


@relaxed
@given(st.integers(0, 3), plain)
def test_any_value_is_a_protocol_error_or_a_message(cut, value):
    """Well-formed msgpack of any form as a frame."""
    body = msgpack.packb(value, unicode_errors="surrogatepass")
    for data in (framed(body), framed(msgpack.packb([cut, value], unicode_errors="surrogatepass"))):
        try:
            decoded(data)
        except ProtocolError as error:
            assert_sentence(error)
