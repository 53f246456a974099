r"""The wire: frames and messages; bytes in, messages out.

This module is the specification of the protocol, version 1, and the only one that knows msgpack. It knows no
socket, no clock and no asyncio, and does not know what a record means (that is :mod:`aiolog.record`).

A frame is a length and a msgpack array, the prefix being that of the standard ``SocketHandler``::

    0        4                                   4 + length
    +--------+-----------------------------------+
    | length | msgpack array: [type, field, …]   |      length: u32, big-endian, of the array alone
    +--------+-----------------------------------+

The length is checked before anything is allocated for it, against ``max_frame_bytes``, or MAX_ANSWER_BYTES from the
server.

====  =======  ==============================================================================================
type  message  fields
====  =======  ==============================================================================================
1     HELLO    version, session, pid, process_name, host, app, labels, start_time, token, acked
2     DEFINE   sites: an array of definitions, a site of 8 fields or a thread of 2. The n-th definition of a
               connection, counted from 0 over all its DEFINEs, is number n of its dictionary
3     BATCH    first_seq, count, dropped, crc, payload: the msgpack array of ``count`` wire records, as bytes;
               crc is its CRC-32 (that of zlib), see below. ``dropped`` records are missing between the record
               before this batch and ``first_seq``. A batch of no records is a heartbeat, or tells of drops alone
4     BYE      none: the session is complete and will not be continued
16    WELCOME  version, store, last_seq, window_bytes, durability
17    ACK      seq: every record up to this one is delivered, at the durability that WELCOME named. May be held for
               ACK_HOLD_SECONDS while little is unacked, fewer than ACK_BATCHES, so that one tells of many batches; a
               heartbeat is acked at once
18    BUSY     none: alive, still writing; restart the timer, do not send again
19    REFUSE   code, text: the connection closes; ``code`` is a :class:`Refusal`, ``text`` is for people
====  =======  ==============================================================================================

The conversation::

    client                                   server
      │ HELLO(session, acked=0) ──────────────► │
      │ ◄────────────── WELCOME(last_seq=0, …)  │   send from last_seq + 1
      │ DEFINE([site, thread]) ───────────────► │
      │ BATCH(first_seq=1, count=3) ──────────► │
      │ BATCH(first_seq=4, count=2) ──────────► │   up to window_bytes without waiting
      │ ◄────────────────────────────── ACK(3)  │   acks are cumulative
      │ ◄────────────────────────────── ACK(5)  │
      │ BYE ──────────────────────────────────► │

``session`` is 16 random bytes, new for every handler in every process, and the secret of that session.
``seq`` numbers records from 1. After a reconnect the client sends again whatever is not acked; a record that is
already written is acked like a new one. A connection that the client finds silent for too long while it waits
for an ACK is dead to it; so is, to the server, one that sends nothing for longer than its idle timeout.

Checked connections. TCP's own sum misses what a broken router or proxy changes and sums anew, and a bit of a ``seq``
or of a session that changes on the way loses records or doubles them. A client may therefore add one more field to
its HELLO, the check: the CRC-32 of all bytes of the array before it, always as five bytes, ``0xce`` and a u32. A
server that knows of it answers in kind, and from then on every message of the connection ends with its check, both
ways. But BATCH has none: there the crc goes on, over the payload, from the CRC-32 of the msgpack array ``[first_seq,
count, dropped]``. The first message of a direction says for all whether they are checked; who leaves the check out is
answered without, and a server that does not take a HELLO for its check is sent one without.

>>> frame = encode(Ack(seq=5))
>>> frame
b'\x00\x00\x00\x03\x92\x11\x05'
>>> decoder = Decoder(FROM_SERVER)
>>> decoder.feed(frame[:5])         # any split of the bytes gives the same messages
>>> decoder.next() is None
True
>>> decoder.feed(frame[5:])
>>> decoder.next()
Ack(seq=5)
>>> records = [pack_record([1.5, 0, 1, "started"]), pack_record([1.6, 0, 1, "ready"])]
>>> decoder = Decoder(FROM_CLIENT)
>>> decoder.feed(batch_frame(1, 0, records))
>>> batch = decoder.next()
>>> batch.first_seq, batch.count, unpack_records(batch)
(1, 2, ((1.5, 0, 1, 'started'), (1.6, 0, 1, 'ready')))
>>> encode(Ack(seq=5), checked=True)
b'\x00\x00\x00\x08\x93\x11\x05\xce#\xa7\x08$'
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import msgpack

from aiolog.errors import ProtocolError

VERSION = 1
SESSION_BYTES = 16
MAX_FRAME_BYTES = 1 << 20  # sixteen batches, or one with a record of MAX_RECORD_BYTES
MAX_HELLO_BYTES = 64 << 10  # before it has said who it is, a peer gets no more memory than this
MAX_ANSWER_BYTES = 4 << 10  # from the server: the longest is a REFUSE of two sentences
MAX_RECORD_BYTES = 512 << 10  # half a frame, so that a record always fits one with its neighbours' headers
MAX_BATCH_RECORDS = 2_048  # of any size; a batch of short lines has 1,300
# What a client counts for each record that it holds beside its bytes: a bytes object's header (33), its slot in the
# backlog's deque (8), and malloc's rounding. The server counts so too, before it acks.
RECORD_OVERHEAD_BYTES = 48
# msgpack makes room for an array when its header comes, at each of 1,024 levels: 3,000 bytes of nested headers take
# 16 MB for a moment at this length, and 130 MB at 16,384.
MAX_ARRAY_LEN = 2_048
MAX_MAP_LEN = 2_048  # labels and nested extras; the handler sends at most 1,000 values in one record
BATCH_BYTES = 64 << 10  # where a client cuts a batch: larger ones save nothing that we could measure
DEFINE_BYTES = 64 << 10
# Clients send at a beat: what is logged between two shares one frame and its system calls. It is that of the monotonic
# clock, which all processes of a machine share, so that the server reads, commits and acks for all of them together.
BEAT_SECONDS = 0.0075
ACK_HOLD_SECONDS = 1.0  # a fifth of what a client waits before it asks; who cannot wait that long asks at once
ACK_BATCHES = 16  # so many are acked at once: half of what a client has under way before it waits
# One byte can become an object of 75 (an empty map; our measurement, 2026-11-23). A frame that is larger than a client
# sends without one large record in it is therefore counted; its arrays and maps may be as many as 64 KiB could hold.
COUNTED_BYTES = 2 * BATCH_BYTES
MAX_CONTAINERS = 65_536
SEQ_MAX = 1 << 62

_LENGTH = struct.Struct(">L")
_BATCH_HEAD = b"\x96\x03"  # how the array of a BATCH begins: six elements, the type first
_ARRAY_32 = struct.Struct(">BL")
_ARRAY_32_TAG = 0xDD
_CHECK = struct.Struct(">BL")
_CHECK_TAG = 0xCE


class Refusal(IntEnum):
    """Why a server refuses a connection: the ``code`` of REFUSE."""

    PROTOCOL = 1  # the peer broke the protocol
    VERSION = 2  # another version of it
    TOKEN = 3  # the token is wrong or missing
    FULL = 4  # too many connections or sessions; come again later
    SUPERSEDED = 5  # the same session has said HELLO on a newer connection
    STOPPING = 6  # the server is draining; come again later


class Hello(NamedTuple):
    """The first message of a connection: who is there, and up to which seq it knows its records acked."""

    version: int
    session: bytes
    pid: int
    process_name: str | None
    host: str
    app: str
    labels: Mapping[str, str]
    start_time: float  # logging._startTime: seconds as a float, nanoseconds as an int from CPython 3.13
    token: str
    acked: int


class Define(NamedTuple):
    """More definitions for the dictionary of this connection: sites of 8 fields, threads of 2."""

    sites: Sequence[Sequence[Any]]


class Batch(NamedTuple):
    """Records ``first_seq`` to ``first_seq + count - 1``, after ``dropped`` ones that nobody will see."""

    first_seq: int
    count: int  # type: ignore[assignment]  # the wire's word; nobody counts a tuple's fields
    dropped: int
    crc: int
    payload: bytes


class Bye(NamedTuple):
    """The session is complete."""


class Welcome(NamedTuple):
    """The answer to HELLO: ``last_seq`` is the last record of the session that the server answers for."""

    version: int
    store: str
    last_seq: int
    window_bytes: int
    durability: str


class Ack(NamedTuple):
    """Every record up to ``seq`` is delivered."""

    seq: int


class Busy(NamedTuple):
    """The server lives and still writes."""


class Refuse(NamedTuple):
    """The server closes the connection, and says why."""

    code: int
    text: str


Message: TypeAlias = Hello | Define | Batch | Bye | Welcome | Ack | Busy | Refuse

_NUMBER = (int, float)
# For each type of message: its class, and what its fields must be. (bool passes for int, and does no harm.)
_Form: TypeAlias = tuple[type[Any], list[Any]]
FROM_CLIENT: Mapping[int, _Form] = {
    1: (Hello, [int, bytes, int, (str, type(None)), str, str, dict, _NUMBER, str, int]),
    2: (Define, [(list, tuple)]),
    3: (Batch, [int, int, int, int, bytes]),
    4: (Bye, []),
}
FROM_SERVER: Mapping[int, _Form] = {
    16: (Welcome, [int, str, int, int, str]),
    17: (Ack, [int]),
    18: (Busy, []),
    19: (Refuse, [int, str]),
}
_TYPE_OF = {form[0]: number for forms in (FROM_CLIENT, FROM_SERVER) for number, form in forms.items()}

# surrogatepass: a lone surrogate (an undecodable file name, say) is text in Python, and must not cost its record.
# One packer for all threads: pack() runs no Python code on plain values, so nothing can come in between.
_pack = msgpack.Packer(unicode_errors="surrogatepass").pack


def _unpack(body: Any) -> Any:
    """Return the one value in ``body``, arrays as tuples.

    Raises ProtocolError when it is anything but one well-formed, modest msgpack value.
    """
    count = _container_counter() if len(body) > COUNTED_BYTES else None
    try:
        return msgpack.unpackb(
            body,
            list_hook=count,
            object_hook=count,
            use_list=False,
            unicode_errors="surrogatepass",
            max_array_len=MAX_ARRAY_LEN,
            max_map_len=MAX_MAP_LEN,
            max_ext_len=0,
        )
    except Exception as error:
        # msgpack's own errors share no root: FormatError, StackError, ExtraData, UnicodeDecodeError, ValueError.
        raise ProtocolError(f"a frame is not valid msgpack ({type(error).__name__})", Refusal.PROTOCOL) from error


def _container_counter() -> Callable[[Any], Any]:
    left = iter(range(MAX_CONTAINERS))

    def count(container: Any) -> Any:
        if next(left, None) is None:
            raise ValueError("more arrays and maps than a client sends")
        return container

    return count


def encode(message: Message, *, checked: bool = False) -> bytes:
    """Return the frame of a message, with its check if it is to have one; the crc of a BATCH is the caller's."""
    body: bytes
    if checked and type(message) is not Batch:
        body = _pack((_TYPE_OF[type(message)], *message, None))[:-1]  # the header counts the check, nil is one byte
        body += _CHECK.pack(_CHECK_TAG, zlib.crc32(body))
    else:
        body = _pack((_TYPE_OF[type(message)], *message))
    return _LENGTH.pack(len(body)) + body


# The packer's own method: a function around it would cost each log call a twentieth of what it has.
pack_record: Callable[[Sequence[Any]], bytes] = _pack
"""Return the bytes of one wire record, a part of a batch's payload.

Raises whatever msgpack raises for a value that is not plain; :mod:`aiolog.record` makes only plain ones.
"""

pack_everyday: Callable[[Sequence[Any]], bytes] = msgpack.Packer().pack
"""Return what :data:`pack_record` does, sooner, as texts are not copied on their way.

Raises UnicodeEncodeError, besides, for a text that UTF-8 has no bytes for.
"""


def batch_frame(first_seq: int, dropped: int, records: Sequence[bytes], *, checked: bool = False) -> bytes:
    """Return the BATCH frame of packed records; at most MAX_BATCH_RECORDS, and together below a frame's limit."""
    count = len(records)
    payload = b"".join((_ARRAY_32.pack(_ARRAY_32_TAG, count), *records))
    before = zlib.crc32(_pack((first_seq, count, dropped))) if checked else 0
    return encode(Batch(first_seq, count, dropped, zlib.crc32(payload, before), payload))


def define_frames(definitions: Sequence[Sequence[Any]], *, checked: bool = False) -> Iterator[bytes]:
    """Yield DEFINE frames of about DEFINE_BYTES, or of one larger definition, that carry them all in their order."""
    chunk: list[Sequence[Any]] = []
    chunk_bytes = 0
    for fields in definitions:
        size_bytes = len(_pack(fields))
        if chunk and (chunk_bytes + size_bytes > DEFINE_BYTES or len(chunk) == MAX_ARRAY_LEN):
            yield encode(Define(chunk), checked=checked)
            chunk, chunk_bytes = [], 0
        chunk.append(fields)
        chunk_bytes += size_bytes
    if chunk:
        yield encode(Define(chunk), checked=checked)


def unpack_records(
    batch: Batch, crc32: Callable[[bytes, int], int] = zlib.crc32, *, checked: bool = False
) -> tuple[Sequence[Any], ...]:
    """Return the wire records of a batch, checked for number but not each for form; ``crc32`` is zlib's, or equals it.

    Raises ProtocolError when it is damaged, or holds another number of records than it says.
    """
    before = crc32(_pack((batch.first_seq, batch.count, batch.dropped)), 0) if checked else 0
    if crc32(batch.payload, before) != batch.crc:
        raise ProtocolError("a batch arrived damaged: its CRC does not match", Refusal.PROTOCOL)
    records = _unpack(batch.payload)
    if not isinstance(records, tuple) or len(records) != batch.count:
        raise ProtocolError(f"a batch does not hold the {batch.count} records it announces", Refusal.PROTOCOL)
    return records


class Decoder:
    """Cut a stream of bytes into the messages of one direction.

    Holds at most what it was fed and has not yet given out. After a ProtocolError it must not be used again.
    ``crc32`` is what :meth:`next_part` checks with.
    """

    def __init__(
        self,
        forms: Mapping[int, _Form],
        max_frame_bytes: int = MAX_FRAME_BYTES,
        crc32: Callable[[bytes, int], int] = zlib.crc32,
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.is_checked = False  # whether messages end with their checks: the first says so for all
        self._is_first = True
        self._crc32 = crc32
        self.buffered_bytes = 0  # fed and not yet given out: 0 between frames
        self._forms = forms
        self._rest: bytes | bytearray = b""  # what was fed last, or where a frame is not complete, all of it
        self._start = 0  # of what is not yet given out

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        if not self.buffered_bytes:  # everyday reads are whole frames: nothing is copied
            self._rest = data
            self._start = 0
        else:
            if isinstance(self._rest, bytes):
                self._rest = bytearray(self._rest)
            del self._rest[: self._start]
            self._start = 0
            self._rest += data
        self.buffered_bytes += len(data)

    def has_frame(self) -> bool:
        """Whether :meth:`next` would return a message, or raise, without more bytes."""
        if self.buffered_bytes < _LENGTH.size:
            return False
        length: int = _LENGTH.unpack_from(self._rest, self._start)[0]
        return length > self.max_frame_bytes or self.buffered_bytes >= _LENGTH.size + length

    def next(self) -> Any:
        """Return the next message, or None when it is not complete.

        Raises ProtocolError for a frame that is too long, is no msgpack, or is no message of this direction. The
        text says what came, and what to do.
        """
        if self.buffered_bytes < _LENGTH.size:
            return None
        rest, start = self._rest, self._start
        (length,) = _LENGTH.unpack_from(rest, start)
        if length > self.max_frame_bytes:
            explain = _explain_answer if self._forms is FROM_SERVER else _explain_length
            raise ProtocolError(explain(bytes(rest[start : start + 8]), length, self.max_frame_bytes), 1)
        if self.buffered_bytes < _LENGTH.size + length:
            return None
        begin = start + _LENGTH.size
        body = rest[begin : begin + length]
        self._go_past(_LENGTH.size + length)
        if body[:1] in (b"}", b"\x80") and body[-1:] == b".":
            raise ProtocolError(
                "the standard SocketHandler's pickles came, which this server never loads; "
                "use aiolog.AiologHandler in that process",
                Refusal.PROTOCOL,
            )
        return self._message(_unpack(body), body)

    def _go_past(self, frame_bytes: int) -> None:
        self._start += frame_bytes
        self.buffered_bytes -= frame_bytes
        if not self.buffered_bytes:  # an idle connection holds nothing
            self._rest = b""

    def next_part(self, seq: int, max_bytes: int, max_records: int) -> tuple[Batch, tuple[Sequence[Any], ...]] | None:
        """Return the next message and its records, if it is a sound BATCH that begins at ``seq`` and misses nothing.

        Any other, and one that is larger than that, is left to :meth:`next`, and nothing is kept of it.
        """
        rest, start, buffered_bytes = self._rest, self._start, self.buffered_bytes
        if not rest.startswith(_BATCH_HEAD, start + _LENGTH.size):  # looked at before anything is made of it
            return None
        if _LENGTH.unpack_from(rest, start)[0] > max_bytes:
            return None
        try:
            batch = self.next()
            if batch is not None and 0 < batch.count <= max_records and (batch.first_seq, batch.dropped) == (seq, 0):
                return batch, unpack_records(batch, self._crc32, checked=self.is_checked)
        except ProtocolError:  # raised again in its turn
            pass
        self._rest, self._start, self.buffered_bytes = rest, start, buffered_bytes
        return None

    def _message(self, fields: Any, body: bytes | bytearray) -> Any:
        if not isinstance(fields, tuple) or not fields or type(fields[0]) is not int:
            raise ProtocolError("a frame is not an array that begins with a type", Refusal.PROTOCOL)
        form = self._forms.get(fields[0])
        if form is None:
            raise ProtocolError(f"a frame has the unknown type {fields[0]}", Refusal.PROTOCOL)
        make, kinds = form
        values = fields[1:]
        if (self.is_checked or self._is_first) and make is not Batch:
            values = self._without_check(values, body, make)
        if list(map(type, values)) == kinds:  # everyday messages, in one look
            return tuple.__new__(make, values)  # what _make() does, after it has counted them
        name = make.__name__.upper()
        if len(values) != len(kinds):
            raise ProtocolError(f"{name} has {len(values)} fields instead of {len(kinds)}", Refusal.PROTOCOL)
        for field, value, kind in zip(make._fields, values, kinds, strict=True):
            if not isinstance(value, kind):
                raise ProtocolError(f"the field {field} of {name} is of the wrong type", Refusal.PROTOCOL)
        return make._make(values)

    def _without_check(self, values: tuple[Any, ...], body: bytes | bytearray, make: type[Any]) -> tuple[Any, ...]:
        """Return the fields of a message whose check, if it must have one, is right."""
        at = len(body) - _CHECK.size
        has_check = len(values) == len(make._fields) + 1 and body[at] == _CHECK_TAG
        if self._is_first:
            self._is_first = False
            self.is_checked = has_check
        if not self.is_checked:
            return values
        if not has_check or zlib.crc32(memoryview(body)[:at]) != values[-1]:
            raise ProtocolError(f"{make.__name__.upper()} arrived damaged: its check does not match", Refusal.PROTOCOL)
        return values[:-1]


def _explain_length(head: bytes, length: int, limit: int) -> str:
    """Say in one sentence what the bytes of an impossible length look like, and in another what to do."""
    if head.startswith((b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"DELE", b"CONN", b"PRI ")):
        return "an HTTP request came to the port for records; metrics and health have a port of their own ([http])"
    if head.startswith(b"\x16\x03"):
        return "a TLS handshake came, and this port speaks plain TCP; turn TLS off in that client"
    if head.startswith(b"SSH-"):
        return "an SSH client came; this port is for aiolog.AiologHandler"
    return (
        f"a frame of {length} bytes was announced, and the limit is {limit}; "
        "either something else than aiolog.AiologHandler connected, or max_frame_bytes is too small"
    )


def _explain_answer(head: bytes, length: int, limit: int) -> str:
    """Say it of what a client hears."""
    if head.startswith(b"HTTP"):
        return "an HTTP server answered; give the handler the port for records, not that of metrics or of the service"
    return f"an answer of {length} bytes was announced, and the limit is {limit}; something else than aiolog is there"
