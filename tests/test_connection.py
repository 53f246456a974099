"""One client on the server's side: what is acted on when, what is acked, who continues a session, what is cut off."""

from __future__ import annotations

import gc
import zlib

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from memory import DEFINE, KIB, SITE, MemorySink, World, batch

from aiolog.backlog import MIN_BUFFER_BYTES, Backlog
from aiolog.coerce import MAX_NAME_CHARS
from aiolog.connection import LINGER_SECONDS, MAX_UNREAD_ACK_BYTES
from aiolog.protocol import (
    ACK_BATCHES,
    BATCH_BYTES,
    VERSION,
    Ack,
    Batch,
    Busy,
    Bye,
    Define,
    Hello,
    Refusal,
    Refuse,
    Welcome,
    batch_frame,
    encode,
    pack_record,
)
from aiolog.source import MAX_LABEL_CHARS, MAX_LABELS, MAX_SITES, MAX_THREADS

BYE = encode(Bye())


@pytest.fixture
def sink():
    return MemorySink()


@pytest.fixture
def world(sink):
    world = World([sink])
    yield world
    world.close()


@pytest.fixture
def client(world):
    """Return a client that has been greeted."""
    client = world.client().hello()
    client.said()
    return client


def kinds(messages):
    return [type(message) for message in messages]


def refusal(messages):
    """Return the code of the refusal that ends what the server said."""
    assert isinstance(messages[-1], Refuse)
    return messages[-1].code


# -- the conversation


def test_hello_is_answered_with_welcome(world):
    """It names the store, the window and the durability, and the last record that the server answers for."""
    client = world.client().hello(acked=7)
    assert client.said() == [Welcome(VERSION, world.server.store, 7, 1 << 20, "written")]


@pytest.mark.parametrize("checked", [False, True])
def test_a_hello_with_its_check_is_answered_in_kind(world, sink, checked):
    """And a client that gives none sees none, to its last frame."""
    client = world.client().hello(checked=checked)
    client.send(batch_frame(1, 0, [pack_record([1.5, 0, 1, "a"])], checked=checked), encode(Bye(), checked=checked))
    world.run()
    written = bytes(client.transport.written)
    said = client.said()
    assert kinds(said) == [Welcome, Ack]
    assert written == b"".join(encode(message, checked=checked) for message in said)
    assert sink.messages == ["a"]
    assert client.transport.eof


@pytest.mark.parametrize(
    ("name", "position"),
    [("hello", 10), ("define", 12), ("batch", 6), ("batch", 40)],
    ids=["hello: session", "define: a site's name", "batch: first_seq", "batch: payload"],
)
def test_what_changed_on_the_way_has_no_effect(world, sink, name, position):
    """One bit of a checked frame: the connection is refused, and there is no session or record that nobody sent."""
    frames = {
        "hello": encode(Hello(VERSION, b"s" * 16, 7, "worker", "h", "shop", {}, 0.0, "", 2), checked=True),
        "define": encode(Define([SITE, [1, "MainThread"]]), checked=True),
        "batch": batch_frame(3, 0, [pack_record([1.5, 0, 1, "a"])] * 3, checked=True),
    }
    damaged = bytearray(frames[name])
    damaged[position] ^= 2
    client = world.client().send(*(frames | {name: bytes(damaged)}).values())
    world.run()
    said = client.said()
    assert refusal(said) == Refusal.PROTOCOL
    assert "damaged" in said[-1].text
    assert sink.messages == []
    assert set(world.server.sessions) <= {b"s" * 16}
    assert len(world.server.sessions) == (name != "hello")


def test_a_batch_is_acked_when_every_block_lane_has_committed_it():
    """Not when the first has, and not when it was received."""
    fast, slow = MemorySink("fast"), MemorySink("slow")
    world = World([fast, slow])
    client = world.client().hello()
    slow.hold()
    client.send(batch(1, "a", "b"))
    world.run()
    assert fast.messages == ["a", "b"]
    assert kinds(client.said()) == [Welcome]
    slow.let()
    world.run()
    assert client.said() == [Ack(2)]
    assert slow.messages == ["a", "b"]
    world.close()


def test_the_next_frames_wait_until_what_came_before_is_delivered(world, sink, client):
    """One delivery a connection is under way, however much was sent; what waits is then delivered together."""
    sink.hold()
    client.send(batch(1, "a"))
    client.send(batch(2, "b"), batch(3, "c", "d"), DEFINE, batch(5, "e"))
    world.run()
    assert [len(group) for group in sink.tried] == [1]
    sink.let()
    world.run()
    assert [len(group) for group in sink.tried] == [1, 1, 1]
    assert sink.messages == ["a", "b", "c", "d", "e"]
    assert client.said() == [Ack(1), Ack(4), Ack(5)]


FULL = "x" * (BATCH_BYTES // 2)


@pytest.mark.parametrize(
    ("frames", "together"),
    [
        pytest.param([batch(1, "a"), batch(2, "b"), batch(3, "c")], [3], id="in order"),
        pytest.param([batch(1, "a"), batch(2, "b")[:-1]], [1], id="a part of a frame"),
        pytest.param([batch(1, "a"), batch(3, "b", dropped=1), batch(4, "c")], [1, 2], id="a gap"),
        pytest.param([batch(1, "a", "b"), batch(2, "b", "c")], [2, 1], id="some came before"),
        pytest.param([batch(1, "a"), batch(2), batch(2, "b")], [1, 1], id="a heartbeat between"),
        pytest.param([batch(1, "a"), DEFINE, batch(2, "b")], [1, 1], id="definitions between"),
        pytest.param([batch(1, FULL), batch(2, "b"), batch(3, FULL)], [2, 1], id="more than a full batch"),
        pytest.param([batch(1, FULL + FULL), batch(2, "b")], [1, 1], id="a full batch"),
        pytest.param([batch(1, *"a" * 1_500), batch(1_501, *"b" * 549)], [1_500, 549], id="too many records"),
    ],
)
def test_batches_that_came_together_are_delivered_together(world, sink, client, frames, together):
    """As far as each continues the one before, and no more than a full one; whatever comes next has its own turn."""
    client.send(*frames)
    world.run()
    assert [len(delivery.records) for delivery in sink.deliveries] == together
    last = sink.deliveries[-1]
    assert client.said()[-1] == Ack(last.first_seq + len(last.records) - 1)
    assert world.server.counts.records == sum(together)


PAYLOAD = b"\x91" + pack_record([1.5, 0, 1, "b"])


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(batch(3, "b"), id="an undeclared gap"),
        pytest.param(encode(Batch(2, 1, 0, 0, PAYLOAD)), id="damaged"),
        pytest.param(encode(Batch(2, 2, 0, zlib.crc32(PAYLOAD), PAYLOAD)), id="of another number"),
        pytest.param(encode(Ack(1)), id="no message of a client"),
        pytest.param(b"\0\0\0\2\xc1\xc1", id="no msgpack"),
    ],
)
def test_what_came_before_a_wrong_frame_is_delivered_and_acked(world, sink, client, wrong):
    """The refusal comes in its turn."""
    client.send(batch(1, "a"), wrong)
    world.run()
    assert kinds(client.said()) == [Ack, Refuse]
    assert sink.messages == ["a"]


def test_reading_stops_only_while_a_whole_frame_waits(world, sink, client):
    """A part of the next frame may come while a batch is under way; a whole one closes the tap until it is acted on."""
    frame = batch(2, "b")
    sink.hold()
    client.send(batch(1, "a"), frame[:-1])
    assert not client.transport.paused
    client.send(frame[-1:])
    assert client.transport.paused
    client.send(batch(3, "c"))
    sink.let()
    world.run()
    assert not client.transport.paused
    assert client.transport.pauses == 2  # the third came when the second was under way
    assert sink.messages == ["a", "b", "c"]


def test_a_client_in_step_is_never_paused(world, sink, client):
    """Who waits for each ack costs no call of pause_reading."""
    for number in range(1, 20):
        client.send(batch(number, "x"))
        world.run()
    assert client.transport.pauses == 0
    assert len(sink.messages) == 19


def test_any_split_of_the_bytes_gives_the_same(world, sink):
    """Byte by byte, all comes out as in one piece."""
    client = world.client()
    client.hello()
    client.said()
    for byte in batch(1, "a") + batch(2, "b", "c"):
        client.send(bytes([byte]))
    world.run()
    assert sink.messages == ["a", "b", "c"]
    assert client.said() == [Ack(1), Ack(3)]


def test_the_source_of_records_is_what_hello_said(world, sink, client):
    """Process, application and the call site come out as they went in."""
    client.send(batch(1, "a"))
    world.run()
    (record,) = sink.records
    assert (record["process"], record["processName"], record["name"], record["threadName"]) == (
        7, "worker", "app", "MainThread",
    )  # fmt: skip
    assert sink.deliveries[0].source.app == "shop"


def test_records_that_come_again_are_acked_and_not_delivered(world, sink, client):
    """What is written is acked like a new one, and counted as a duplicate."""
    client.send(batch(1, "a", "b"))
    world.run()
    client.send(batch(1, "a", "b"))
    client.send(batch(2, "b"))
    world.run()
    assert sink.messages == ["a", "b"]
    assert client.said() == [Ack(2), Ack(2), Ack(2)]
    assert world.server.counts.duplicates == 3


def test_of_a_batch_that_overlaps_only_the_new_records_are_delivered(world, sink, client):
    """The old ones are cut off its beginning, and its first seq is that of the first new one."""
    client.send(batch(1, "a", "b"))
    world.run()
    client.send(batch(2, "b", "c", "d"))
    world.run()
    assert sink.messages == ["a", "b", "c", "d"]
    assert sink.deliveries[-1].first_seq == 3
    assert client.said() == [Ack(2), Ack(4)]
    assert (world.server.counts.duplicates, world.server.counts.records) == (1, 4)


def test_a_gap_that_is_not_declared_is_refused(world, sink, client):
    """Neither its records nor anything after it is taken."""
    client.send(batch(1, "a"), batch(3, "c"), batch(2, "b"))
    world.run()
    said = client.said()
    assert said[0] == Ack(1)
    assert refusal(said) == Refusal.PROTOCOL
    assert sink.messages == ["a"]


def test_a_declared_gap_is_a_record_before_the_batch(world, sink, client):
    """It says how many records of whom are missing, and between which moments."""
    client.send(batch(1, "a", created=0.0))
    world.run()
    client.send(batch(5, "e", dropped=3, created=60.0))
    world.run()
    first, notice, last = sink.records
    assert (first["msg"], last["msg"]) == ("a", "e")
    assert (notice["name"], notice["levelname"], notice["dropped"]) == ("aiolog", "WARNING", 3)
    assert (notice["from_pid"], notice["from_process"], notice["from_app"]) == (7, "worker", "shop")
    assert (notice["since"], notice["until"]) == ("1970-01-01T00:00:00.000Z", "1970-01-01T00:01:00.000Z")
    assert client.said() == [Ack(1), Ack(5)]
    assert world.server.counts.dropped == 3


def test_drops_alone_are_told_and_acked(world, sink, client):
    """A batch of no records may declare a gap; coming again, it is acked and not told twice."""
    for _ in range(2):
        client.send(batch(4, dropped=3))
        world.run()
    assert [record["dropped"] for record in sink.records] == [3]
    assert client.said() == [Ack(3), Ack(3)]
    client.send(batch(4, "d"))
    world.run()
    assert sink.messages[1:] == ["d"]


def test_a_gap_that_comes_again_is_told_once(world, sink, client):
    """Of drops that overlap what is known, only the new ones count."""
    client.send(batch(3, "c", dropped=2))
    world.run()
    client.send(batch(3, "c", "d", dropped=2))
    world.run()
    assert sink.messages[1:] == ["c", "d"]
    assert world.server.counts.dropped == 2


def test_a_heartbeat_is_acked_at_once(world, sink, client):
    """Even while a sink is stuck for others."""
    sink.hold()
    world.client().hello().send(batch(1, "other"))
    client.send(batch(1))
    world.run()
    assert client.said() == [Ack(0)]
    assert len(sink.tried) == 1


def test_bye_ends_the_session(world, sink, client):
    """It is acted on after what came before it; then the server half-closes, and knows the session for a while yet."""
    client.send(batch(1, "a"), BYE)
    world.run()
    assert client.said() == [Ack(1)]
    assert client.transport.eof
    client.transport.end()
    world.run()
    assert world.server.connections == set()
    # What an older connection had under way comes after the BYE, as it may.
    late = world.client(client.session).hello().send(batch(1, "a"))
    world.run()
    assert late.said()[1:] == [Ack(1)]
    assert sink.messages == ["a"]


def test_a_session_that_ended_is_forgotten_and_not_missed(world, client, sink):
    """Nothing is left of it after a minute, and nobody says that it went without a goodbye."""
    client.send(batch(1, "a"), BYE)
    world.run()
    world.do(world.server.listen("127.0.0.1", 0)).result()
    world.run(58)
    assert [*world.server.sessions] == [client.session]
    world.run(3)
    assert world.server.sessions == {}
    assert sink.messages == ["a"]
    for listener in world.server._listeners:
        listener.close()
    world.run()


# -- what is refused, and how


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (encode(Batch(1, 1, 0, 5, b"\x91\xc0")), "CRC"),
        (batch(1 << 62, dropped=(1 << 62) + 1), "impossible numbers"),
        (encode(Define([[1, 2, 3]])), "neither a site"),
        (b"\xff\xff\xff\xff", "was announced"),
        (b"\0\0\0\2\x91\x63", "unknown type"),
    ],
)
def test_a_bad_frame_is_refused_once_and_the_rest_forgotten(world, sink, client, frame, sentence):
    """What came before it is delivered; the line on the server names the peer; the half-close lets it read why."""
    client.send(batch(1, "a"), frame, batch(2, "b"))
    world.run()
    client.send(batch(2, "b"), b"\xff" * 100)
    world.run()
    said = client.said()
    assert kinds(said) == [Ack, Refuse]
    assert sentence in said[-1].text
    assert client.transport.eof
    assert not client.transport.closing
    assert sink.messages == ["a"]
    assert world.server.counts.refused == 1
    assert len(world.lines) == 1
    assert "192.0.2.1:40000 was refused" in world.lines[0]


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({"version": VERSION + 1}, Refusal.VERSION),
        ({"session": b"short"}, Refusal.PROTOCOL),
        ({"acked": -1}, Refusal.PROTOCOL),
        ({"acked": 1 << 63}, Refusal.PROTOCOL),
    ],
)
def test_an_impossible_hello_is_refused(world, hello, code):
    """And leaves no session behind."""
    client = world.client().hello(**hello)
    assert refusal(client.said()) == code
    assert world.server.sessions == {}


def test_only_hello_may_come_first_and_only_once(world):
    """A batch before it, and a second one, are refused."""
    assert refusal(world.client().send(batch(1, "a")).said()) == Refusal.PROTOCOL
    assert refusal(world.client().hello().hello().said()) == Refusal.PROTOCOL


def test_before_hello_a_peer_gets_no_more_than_its_room(world, client):
    """A frame that is allowed later is refused before, by its length alone."""
    head = (100_000).to_bytes(4, "big")
    assert refusal(world.client().send(head).said()) == Refusal.PROTOCOL
    assert client.send(head).said() == []


@pytest.mark.parametrize(("given", "welcome"), [("secret", True), ("Secret", False), ("", False), ("\udc80", False)])
def test_a_token_opens_the_door(given, welcome):
    """Only the server's own does; what it was is in no line."""
    world = World(token="secret")
    client = world.client().hello(token=given)
    said = client.said()
    if welcome:
        assert kinds(said) == [Welcome]
    else:
        assert refusal(said) == Refusal.TOKEN
        assert "secret" not in "".join([*world.lines, said[-1].text]).lower()
    world.close()


def test_what_a_hello_says_is_cut_to_sane_lengths(world, sink):
    """Texts and labels have bounds, whatever a peer sends."""
    labels = {f"{n:05}" + "k" * 2_000 if n == 0 else f"{n:05}": "v" * 2_000 if n == 0 else "v" for n in range(1_000)}
    client = world.client().hello(app="a" * 9_999, host="h" * 9_999, process_name="p" * 9_999, labels=labels)
    client.send(batch(1, "x"))
    world.run()
    source = sink.deliveries[0].source
    assert {len(source.app), len(source.host), len(source.process_name)} == {MAX_NAME_CHARS}
    assert len(source.labels) == MAX_LABELS
    assert max(map(len, [*source.labels, *source.labels.values()])) == MAX_LABEL_CHARS


def test_labels_of_any_form_do_no_harm(world):
    """A label that nests as deeply as msgpack goes costs its connection at most, and no traceback."""
    deep = ()
    for _ in range(1_000):
        deep = (deep,)
    client = world.client().hello(labels={"a": deep, "b": 5, "c": "right"})
    assert kinds(client.said()) in ([Welcome], [Refuse])


@pytest.mark.parametrize(
    "definitions",
    [
        [[1, "t"]] * (MAX_SITES + MAX_THREADS + 1),
        [["n" * 900, 20, "INFO", "p" * 900, "f" * 900, "m" * 900, 1, "u" * 900]] * 1_200,
        [[b"n" * 900, 20, "INFO", b"p" * 900, b"f" * 900, b"m" * 900, 1, b"u" * 900]] * 1_200,
    ],
    ids=["too many", "too long", "too long and not text"],
)
def test_the_dictionary_is_bounded(world, client, definitions):
    """By number and by characters, over all the DEFINEs of a connection."""
    for start in range(0, len(definitions), 100):
        client.send(encode(Define(definitions[start : start + 100])))
    assert refusal(client.said()) == Refusal.PROTOCOL


def test_a_full_dictionary_is_welcome(world, client):
    """As large as a handler sends it, in many DEFINEs."""
    for _ in range((MAX_SITES + MAX_THREADS - 2) // 2):
        client.send(encode(Define([SITE, [1, "t"]])))
    assert client.said() == []


# -- a session that is continued on a newer connection


def test_an_idle_connection_gives_way_at_once(world, sink, client):
    """The newer one is welcomed with what is written; the older is told, half-closed, and no longer heard."""
    client.send(batch(1, "a"))
    world.run()
    newer = world.client(client.session).hello()
    (welcome,) = newer.said()
    assert welcome.last_seq == 1
    assert refusal(client.said()) == Refusal.SUPERSEDED
    assert client.transport.eof
    client.send(batch(2, "never"))
    newer.send(batch(1, "a", "b"))
    world.run()
    assert sink.messages == ["a", "b"]
    assert newer.said() == [Ack(2)]
    assert world.lines == []  # nothing is wrong


def test_a_newer_connection_waits_for_a_batch_under_way(world, sink, client):
    """It is welcomed when that is committed, so that nothing is sent twice; BUSY keeps it waiting."""
    sink.hold()
    client.send(batch(1, "a"))
    client.send(batch(2, "b"))
    newer = world.client(client.session).hello().send(batch(2, "b"))
    world.look(6)
    assert kinds(newer.said()) == [Busy]
    assert sink.messages == []
    sink.let()
    world.run()
    welcome, ack = newer.said()
    assert (welcome.last_seq, ack) == (1, Ack(2))
    assert kinds(client.said()) == [Busy, Refuse]
    assert sink.messages == ["a", "b"]


def test_a_batch_of_a_lost_connection_is_committed_before_the_next_welcome(world, sink, client):
    """Whether the older connection was lost before the HELLO of the newer one or after it."""
    for number, order in enumerate(("lost, hello", "hello, lost"), 1):
        sink.hold()
        client.send(batch(number, order))
        client.send(batch(number + 1, "not acted on"))
        newer = world.client(client.session)
        for step in order.split(", "):
            if step == "lost":
                client.transport.lose()
            else:
                newer.hello()
        world.run()
        assert newer.said() == []
        sink.let()
        world.run()
        (welcome,) = newer.said()
        assert welcome.last_seq == number
        client = newer
    assert sink.messages == ["lost, hello", "hello, lost"]


@pytest.mark.parametrize("lost", [(), ("middle",), ("first",), ("first", "middle"), ("middle", "first")])
@pytest.mark.parametrize("before_last", [False, True])
def test_in_a_chain_of_three_the_last_continues(world, sink, client, lost, before_last):
    """Whichever of the older ones are lost, and whether before the last HELLO or after it."""
    sink.hold()
    client.send(batch(1, "a"))
    middle = world.client(client.session).hello().send(batch(1, "a", "never"))
    last = world.client(client.session)
    if not before_last:
        last.hello()
    for name in lost:
        {"first": client, "middle": middle}[name].transport.lose()
    if before_last:
        last.hello()
    world.run()
    assert last.said() == []
    sink.let()
    world.run()
    (welcome,) = last.said()
    assert welcome.last_seq == 1
    last.send(batch(1, "a", "b"))
    world.run()
    assert sink.messages == ["a", "b"]
    assert Welcome not in kinds(middle.said())
    session = world.server.sessions[client.session]
    assert session.connection is last.connection
    last.transport.lose()
    assert session.connection is None


def test_when_all_of_a_chain_are_lost_the_session_is_free(world, sink, client):
    """Whoever comes later finds it idle, at what was written."""
    sink.hold()
    client.send(batch(1, "a"))
    middle = world.client(client.session).hello()
    client.transport.lose()
    middle.transport.lose()
    sink.let()
    world.run()
    assert world.server.sessions[client.session].connection is None
    assert world.client(client.session).hello().said()[0].last_seq == 1


@pytest.mark.parametrize("end", ["lost", "superseded"])
def test_a_frame_left_on_an_old_connection_is_not_acted_on(world, sink, client, end):
    """A connection that ends just after a batch, with the next in its decoder, must leave that to its successor."""
    newer = world.client(client.session)
    sink.hold()
    client.send(batch(1, "a"))
    client.send(batch(2, "b"))
    world.run()
    sink.let()
    # After the lane has told of batch 1, and before the old connection goes on with batch 2:
    world.loop.call_soon(client.transport.lose if end == "lost" else newer.hello)
    world.run()
    if end == "lost":
        newer.hello()
    assert newer.said()[0].last_seq == 1
    newer.send(batch(2, "b"))
    world.run()
    assert sink.messages == ["a", "b"]
    assert newer.said() == [Ack(2)]
    assert world.server.counts.duplicates == 0


class Tap:
    """What reads in a transport's place; it is told nothing twice."""

    def __init__(self):
        self.is_reading = True

    def pause_reading(self):
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self):
        assert not self.is_reading
        self.is_reading = True


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_who_waited_for_an_older_connection_is_read_no_further(world, sink, client, frames, monkeypatch):
    """What takes over reading goes on as the transport was: paused, while frames wait that came too early."""
    taps = []
    newer = world.client(client.session)
    sink.hold()
    client.send(batch(1, "a"))
    world.run()
    sent = []
    monkeypatch.setattr(newer.transport, "receive", sent.append)
    newer.hello().send(*(batch(seq, FULL) for seq in range(2, 2 + frames)))
    monkeypatch.undo()
    monkeypatch.setattr(world.server, "take", lambda *_: taps.append(Tap()) or taps[-1])
    newer.transport.receive(b"".join(sent))  # all at once: nothing is left in the kernel
    assert not taps
    sink.let()
    sink.hold()
    world.run()
    assert taps[0].is_reading == (frames < 2)
    sink.let()
    world.run()
    assert taps[0].is_reading
    assert sink.messages == ["a", *[FULL] * frames]


def test_sessions_do_not_mix(world, sink):
    """Two clients with the same seqs are two sessions."""
    first, second = world.client().hello(), world.client().hello()
    first.send(batch(1, "first"))
    second.send(batch(1, "second"))
    world.run()
    assert sorted(sink.messages) == ["first", "second"]


# -- ends


def test_a_client_that_half_closes_gets_its_acks(world, sink, client):
    """All frames that came before are acted on, then the connection closes."""
    sink.hold()
    client.send(batch(1, "a"))
    client.send(batch(2, "b"), batch(3, "c"), DEFINE, batch(4, "d"))
    client.transport.end()
    sink.let()
    world.run()
    assert client.said() == [Ack(1), Ack(3), Ack(4)]
    assert sink.messages == ["a", "b", "c", "d"]
    assert world.server.connections == set()


@pytest.mark.parametrize("rest", [b"", batch(2, "b")[:-1]])
def test_a_client_that_ends_with_nothing_left_is_closed_at_once(world, sink, client, rest):
    """A part of a frame counts as nothing; the session stays, to be continued."""
    client.send(batch(1, "a"))
    world.run()
    client.send(rest)
    client.transport.end()
    world.run()
    assert world.server.connections == set()
    assert world.server.sessions[client.session].connection is None


def test_a_refused_client_that_closes_is_let_go_at_once(world, client):
    """Whatever it had sent after the frame that was refused."""
    client.send(batch(9, "gap"), batch(1, "a"))
    assert refusal(client.said()) == Refusal.PROTOCOL
    client.transport.end()
    world.run()
    assert world.server.connections == set()


def test_part_without_a_batch_under_way_half_closes(world, client):
    """The client reads the end, and closes; what it sent meanwhile is forgotten."""
    client.connection.part()
    client.connection.part()
    assert client.transport.eof
    assert client.said() == []
    client.send(batch(1, "late"))
    client.transport.end()
    world.run()
    assert world.server.connections == set()


def test_part_with_a_batch_under_way_acks_it_first(world, sink, client):
    """That batch is the last one; a whole frame that waits behind it stays with the client."""
    sink.hold()
    client.send(batch(1, "a"))
    client.send(batch(2, "b"))
    client.connection.part()
    world.run()
    assert not client.transport.eof
    sink.let()
    world.run()
    assert client.said() == [Ack(1)]
    assert client.transport.eof
    assert not client.transport.paused  # or the client's end would never be read
    client.transport.end()
    world.run()
    assert world.server.connections == set()
    assert sink.messages == ["a"]


def test_part_between_an_ack_and_the_next_frame_acts_on_no_more(world, sink, client):
    """Nothing is acked after the half-close."""
    sink.hold()
    client.send(batch(1, "a"))
    client.send(batch(2, "b"))
    world.run()
    sink.let()
    world.loop.call_soon(client.connection.part)
    world.run()
    assert client.said() == [Ack(1)]
    assert sink.messages == ["a"]


def test_part_while_a_newer_connection_waits_ends_both_in_order(world, sink, client):
    """The newer one still learns what is written, and both are half-closed rather than cut."""
    sink.hold()
    client.send(batch(1, "a"))
    newer = world.client(client.session).hello()
    for connection in (client.connection, newer.connection):
        connection.part()
    world.run(60)
    sink.let()
    world.look()
    (welcome,) = newer.said()
    assert welcome.last_seq == 1
    for each in (client, newer):
        assert each.transport.eof
        assert not each.transport.closing
        each.transport.end()
    world.run()
    assert world.server.connections == set()


def test_a_peer_that_does_not_close_is_cut(world, client):
    """Our last words get a moment to be read, and no more."""
    client.connection.part()
    world.look(LINGER_SECONDS)
    assert not client.transport.closing
    world.look(0.1)
    assert client.transport.lost


# -- time


def test_busy_is_said_while_a_sink_is_stuck(world, sink, client):
    """Every heartbeat_seconds to who waits, and to nobody else."""
    other = world.client().hello()
    sink.hold()
    client.send(batch(1, "a"))
    for _ in range(3):
        world.look(4.9)
        world.look(0.2)
    assert client.said() == [Busy()] * 3
    sink.let()
    world.look(4)
    assert client.said() == [Ack(1)]
    assert kinds(other.said()) == [Welcome]


def test_busy_is_said_during_a_drain_too(world, sink, client):
    """Or a client would give up on an ack that is still to come."""
    sink.hold()
    client.send(batch(1, "a"))
    client.connection.part()
    world.look(6)
    assert client.said() == [Busy()]
    sink.let()
    world.run()
    assert client.said() == [Ack(1)]


@pytest.mark.parametrize("data", [b"", b"\0\0", batch(1, "x")[:-1]])
def test_a_hello_must_come_in_time(world, data):
    """Nothing, and a part of a frame, are refused after handshake_timeout_seconds."""
    client = world.client().send(data)
    world.look(9)
    assert client.said() == []
    world.look(2)
    assert refusal(client.said()) == Refusal.PROTOCOL


def test_a_hello_that_drips_is_refused_in_time(world):
    """A byte now and then does not count as progress."""
    client = world.client()
    for _ in range(12):
        client.send(b"\0")
        world.look(1)
    assert refusal(client.said()) == Refusal.PROTOCOL


def test_a_frame_that_drips_is_refused_in_time(world, client):
    """It may take frame_timeout_seconds from its first byte, and no longer."""
    frame = batch(1, "a" * 100)
    for byte in frame[:30]:
        client.send(bytes([byte]))
        world.look(0.99)
    assert client.said() == []
    client.send(frame[30:31])
    world.look(1)
    assert "not finished in time" in client.said()[-1].text


def test_each_frame_has_its_own_time(world, sink, client):
    """Frames that overlap in what is received do not add up to one that takes too long."""
    stream = b"".join(batch(number, "x") for number in range(1, 20))
    step = len(batch(1, "x")) + 1
    for start in range(0, len(stream), step):
        client.send(stream[start : start + step])
        world.look(15)
    assert Refuse not in kinds(client.said())
    assert len(sink.messages) == 19


def test_silence_is_refused_after_the_idle_timeout(world, client):
    """A heartbeat is enough to stay."""
    world.look(89)
    client.send(batch(1))
    world.look(89)
    assert client.said() == [Ack(0)]
    world.look(2)
    assert "no heartbeat" in client.said()[-1].text


def test_the_time_that_a_write_takes_is_not_held_against_the_client(world, sink, client):
    """While a batch is under way, and just after it, neither silence nor half a frame counts."""
    sink.hold()
    client.send(batch(1, "a"), batch(2, "b")[:-1])
    for _ in range(100):
        world.look(10)
    sink.let()
    world.look()
    said = client.said()
    assert said[-1] == Ack(1)
    client.send(batch(2, "b")[-1:])
    world.look()
    assert client.said() == [Ack(2)]


# -- a client that reads none of its acks


def flood_of_heartbeats(client, count):
    for _ in range(count // 100):
        client.send(batch(1) * 100)


def test_who_reads_no_acks_is_cut(world, client):
    """After frame_timeout_seconds, with a line that says why; who reads again in time stays."""
    for reads in (True, False):
        client.transport.reads = False
        flood_of_heartbeats(client, MAX_UNREAD_ACK_BYTES // 5)
        world.look(29)
        if reads:
            client.transport.read()
        world.look(2)
        assert client.transport.closing is not reads
    assert "reads none of its acks" in world.lines[0]


def test_who_reads_no_acks_is_not_read_either(world, client):
    """What the server keeps for it is bounded, however much it sends."""
    client.transport.reads = False
    flood_of_heartbeats(client, 40_000)
    assert client.transport.paused
    assert len(client.transport.written) < 2 * MAX_UNREAD_ACK_BYTES
    client.transport.read()
    assert not client.transport.paused
    world.run()
    assert len(client.said()) == 40_000


# -- limits that connections share


def test_when_too_much_is_held_reading_stops_and_goes_on_later():
    """All connections together hold max_inflight_bytes, and a read each; when there is room they are read again."""
    sink = MemorySink()
    world = World([sink], max_inflight_bytes=100 * KIB)
    first, second = world.client().hello(), world.client().hello()
    sink.hold()
    first.send(batch(1, "x" * 90 * KIB))
    second.send(batch(1, "y" * 30 * KIB)[:-1])
    assert second.transport.paused
    assert not first.transport.paused
    assert world.server.held_bytes > 120 * KIB
    second.send(batch(1, "y" * 30 * KIB)[-1:])
    for connection in list(world.server.connections):
        connection.read_on()  # the server asks; there is no room yet
    world.run()
    assert second.transport.paused
    sink.let()
    world.run()
    second.connection.read_on()
    world.run()
    assert sorted(map(len, sink.messages)) == [30 * KIB, 90 * KIB]
    assert world.server.held_bytes == 0
    world.close()


def test_a_batch_of_a_lost_connection_is_still_held(world, sink):
    """Or processes that come, send and go would fill the memory behind a stuck sink."""
    sink.hold()
    for _ in range(10):
        client = world.client().hello().send(batch(1, "x" * 10 * KIB)).send(batch(2, "y" * 10 * KIB))
        client.transport.lose()
        world.run()
    assert 100 * KIB < world.server.held_bytes < 120 * KIB
    sink.let()
    world.run()
    assert len(sink.messages) == 10
    assert world.server.held_bytes == 0


@pytest.mark.parametrize("then", ["stays", "half-closes", "is cut"])
def test_what_the_sinks_have_is_bounded_whoever_sent_it(then):
    """Many that come, send a batch and go: the sink has the first, the others' frames wait, or go with them."""
    sink = MemorySink()
    world = World([sink], max_inflight_bytes=100 * KIB)
    sink.hold()
    clients = []
    for _ in range(30):
        client = world.client().hello(batch(1, "x" * 30 * KIB))
        if then == "half-closes":
            client.transport.end()
        elif then == "is cut":
            client.transport.lose()
        clients.append(client)
        world.run()
    assert 100 * KIB < world.server.delivering_bytes < 132 * KIB
    assert (world.server.held_bytes < 132 * KIB) == (then == "is cut")
    world.look(world.server.limits.heartbeat_seconds + 1)
    sink.let()
    for _ in range(30):
        world.run()
        for client in clients:
            client.connection.read_on()
    world.run()
    assert len(sink.messages) == (4 if then == "is cut" else 30)
    assert world.server.held_bytes == world.server.delivering_bytes == 0
    if then != "is cut":
        assert [{Busy(), Ack(1)} <= {*client.said()} for client in clients] == [True] * 30
    world.close()


def statements(count, chars=100):
    """Return the DEFINE frame of as many log statements more."""
    return encode(Define([["n" * chars, 20, "INFO", "/a.py", "a.py", "a", number, "f"] for number in range(count)]))


def test_what_all_processes_say_of_themselves_has_a_bound(sink):
    """Beyond it the one that says the most is refused, whoever said the last; the others go on, and it comes back."""
    world = World([sink], max_dictionary_bytes=256 * KIB)
    few = [world.client().hello() for _ in range(10)]
    many = world.client().hello().send(statements(220))
    world.run()
    assert 150 * KIB < world.server.room.used_bytes < 256 * KIB
    assert kinds(many.said()) == [Welcome]
    for client in few:
        client.send(statements(25), batch(1, "few"))
    world.run()
    *_, last = many.said()
    assert last.code == Refusal.FULL
    assert "server.max_dictionary_bytes" in last.text
    assert world.server.room.used_bytes < 256 * KIB
    for client in few:
        assert kinds(client.said()) == [Welcome, Ack]
    many.transport.lose()
    for client in few:
        client.transport.lose()
    messages = sink.messages
    sink.deliveries.clear()
    sink.tried.clear()
    assert world.server.room.used_bytes == 0
    again = world.client(many.session).hello().send(statements(220), batch(1, "many"))
    world.run()
    assert kinds(again.said()) == [Welcome, Ack]
    assert sorted(messages + sink.messages) == ["few"] * 10 + ["many"]
    world.close()


def test_one_process_that_says_too_much_is_refused_alone(sink):
    """Also amid a batch of others, and what it had under way is written."""
    world = World([sink], max_dictionary_bytes=64 * KIB)
    sink.hold()
    well, bad = world.client().hello(), world.client().hello()
    well.send(batch(1, "well"))
    bad.send(batch(1, "bad"), statements(150), batch(2, "never"))
    world.run()
    assert kinds(bad.said()) == [Welcome]  # its statements wait behind the batch
    sink.let()
    world.run()
    assert kinds(bad.said()) == [Ack, Refuse]
    assert kinds(well.said()) == [Welcome, Ack]
    assert sink.messages == ["well", "bad"]
    world.close()


def test_what_formats_keep_counts_too(sink, monkeypatch):
    """Where they ask for more than there is, the process that takes the most is refused."""
    world = World([sink], max_dictionary_bytes=256 * KIB)
    kept = []

    async def write(group):
        kept.extend(delivery.source.reserve(["k" * 40 * KIB]) for delivery in group)

    monkeypatch.setattr(sink, "write", write)
    bad, well = world.client().hello(), world.client().hello()
    for seq in range(1, 8):
        bad.send(batch(seq, "bad"))
        world.run()
    assert kept == [True] * 6 + [False]
    assert refusal(bad.said()) == Refusal.FULL
    well.send(batch(1, "well"))
    world.run()
    assert kinds(well.said()) == [Welcome, Ack]
    assert kept[-1]
    world.close()


def test_what_waits_for_a_stuck_sink_has_a_bound(sink):
    """Though its process says much, sends a little and goes, again and again: then nobody is read from."""
    world = World([sink], max_dictionary_bytes=256 * KIB, max_inflight_bytes=512 * KIB)
    sink.hold()
    well = world.client().hello()
    for _ in range(30):
        client = world.client().hello()
        world.run()
        client.send(statements(100), batch(1, "x"))
        world.run()
        client.transport.lose()
        world.run()
    assert 512 * KIB < world.server.room.used_bytes < 800 * KIB
    assert any("the log statements of all processes take 0 MiB" in line for line in world.lines)
    well.send(batch(1, "well"))
    world.run()
    sink.let()
    world.run()
    for connection in list(world.server.connections):
        connection.read_on()
    world.run()
    assert kinds(well.said()) == [Welcome, Ack]
    assert sink.messages[-1] == "well"
    assert 5 < sink.messages.count("x") < 15
    assert world.server.held_bytes == 0
    sink.deliveries.clear()
    sink.tried.clear()
    assert world.server.room.used_bytes < 8 * KIB
    world.close()


def test_who_waits_for_an_older_connection_and_goes_holds_nothing(sink):
    """However many of one session do, while the older one's batch waits for a stuck sink."""
    world = World([sink])
    sink.hold()
    older = world.client().hello().send(batch(1, "x"))
    world.run()
    held_bytes, used_bytes = world.server.held_bytes, world.server.room.used_bytes
    for _ in range(20):
        newer = world.client(older.session).hello(labels={"a": "v" * MAX_LABEL_CHARS})
        world.run()
        newer.transport.lose()
        world.run()
    assert world.server.held_bytes - held_bytes < 100
    assert world.server.room.used_bytes <= used_bytes
    sink.let()
    world.run()
    older.transport.lose()
    assert world.server.held_bytes == 0
    assert sink.messages == ["x"]
    world.close()


def test_a_definition_that_is_none_leaves_nothing(world):
    """Nor do those before it, as soon as it is refused: the client may take its time to close."""
    before = world.server.room.used_bytes
    frame = encode(Define([["n" * 900, 20, "INFO", "/a.py", "a.py", "a", 1, "f"]] * 100 + [[1, 2, 3]]))
    client = world.client().hello().send(frame)
    world.run()
    assert refusal(client.said()) == Refusal.PROTOCOL
    assert world.server.room.used_bytes == before


def test_of_a_hello_nothing_stays_that_is_not_counted(world):
    """Labels that are no texts are not kept, whatever they hold."""
    client = world.client().hello(labels={"a": [[{}] * 100] * 10, "b": "right"})
    world.run()
    assert not any(isinstance(one, Hello) for one in client.connection.__dict__.values())


def test_who_waits_for_an_older_connection_may_have_to_give_way(sink):
    """Its HELLO is counted too; the session is free again when the older one has let go."""
    world = World([sink], max_dictionary_bytes=64 * KIB)
    sink.hold()
    labels = {f"{number}": "v" * MAX_LABEL_CHARS for number in range(40)}
    older = world.client().hello().send(batch(1, "x"))
    world.run()
    newer = world.client(older.session).hello(labels=labels)
    others = [world.client().hello().send(statements(25)) for _ in range(2)]
    world.run()
    assert world.server.room.used_bytes < 64 * KIB
    assert refusal(newer.said()) == Refusal.FULL
    sink.let()
    world.run()
    for client in (older, newer):
        client.transport.lose()
    again = world.client(older.session).hello().send(batch(2, "y"))
    world.run()
    assert kinds(again.said()) == [Welcome, Ack]
    assert [kinds(client.said()) for client in others] == [[Welcome]] * 2
    assert sink.messages == ["x", "y"]
    world.close()


# -- the whole, at random

SESSIONS = 3
RECORD_BYTES = 3 * KIB  # so that a batch has two or three


class Worker:
    """One process: a real backlog, and the connections that it has had; only the newest is still its own."""

    def __init__(self, name):
        self.name = name
        self.session = name.encode().ljust(16, b".")
        self.backlog = Backlog(64 * KIB)
        self.emitted = 0
        self.client = None
        self.greeted = False

    def emit(self):
        self.emitted += 1
        self.backlog.put(pack_record([1.5, 0, 1, f"{self.name} {self.emitted}".ljust(RECORD_BYTES)]))

    def connect(self, world):
        self.client = world.client(self.session).hello(acked=self.backlog.acked_seq)
        self.greeted = False

    def read(self):
        """Act on what the server said, as the sender does; whether it said that it closes."""
        refused = False
        for message in self.client.said():
            if isinstance(message, Welcome):
                assert not self.greeted
                self.greeted = True
                self.backlog.rewind(message.last_seq)
            elif isinstance(message, Ack):
                self.backlog.ack(message.seq)
            else:
                assert isinstance(message, Busy), message
        return refused

    def frame(self):
        return self.backlog.next_frame(32 * KIB) if self.greeted else None


workers = st.integers(0, SESSIONS - 1)


class Life(RuleBasedStateMachine):
    """Processes that log, are cut, come back before the server knows, and a sink that stops and fails."""

    @initialize()
    def start(self):
        self.sink = MemorySink()
        self.world = World([self.sink])
        self.workers = [Worker(f"worker-{number}") for number in range(SESSIONS)]
        self.transports = []  # all that the server may still believe in
        for worker in self.workers:
            self._connect(worker)

    def _connect(self, worker):
        worker.connect(self.world)
        self.transports.append(worker.client.transport)

    @rule(number=workers, count=st.integers(1, 12))
    def emit(self, number, count):
        for _ in range(count):
            self.workers[number].emit()

    @rule(number=workers, reason=st.sampled_from(["drop_oldest", "drop_newest"]))
    def drop(self, number, reason):
        worker = self.workers[number]
        if reason == "drop_newest":
            worker.emitted += 1
            worker.backlog.refuse()
        else:
            worker.backlog.drop_oldest(reason)

    @rule(number=workers, count=st.integers(1, 8))
    def send(self, number, count):
        worker = self.workers[number]
        for _ in range(count):
            if frame := worker.frame():
                worker.client.send(frame)

    @rule(number=workers, share=st.floats(0, 1))
    def send_a_part_and_break(self, number, share):
        worker = self.workers[number]
        if frame := worker.frame():
            worker.client.send(frame[: int(len(frame) * share)])
            worker.client.transport.lose()
            self._connect(worker)

    @rule(number=workers)
    def reconnect(self, number):
        """Give the old connection up, without the server knowing of it."""
        self._connect(self.workers[number])

    @rule(number=workers)
    def half_close(self, number):
        worker = self.workers[number]
        worker.client.transport.end()
        self._connect(worker)

    @rule(data=st.data(), soon=st.booleans())
    def cut(self, data, soon):
        """Cut a connection, old or new; now, or in the middle of what the loop does next."""
        transport = data.draw(st.sampled_from(self.transports[-6:]))
        if soon:
            self.world.loop.call_soon(transport.lose)
        else:
            transport.lose()

    @rule(number=workers)
    def hello_soon(self, number):
        """Come back in the middle of what the loop does next."""
        worker = self.workers[number]
        self.world.loop.call_soon(self._connect, worker)

    @rule(what=st.sampled_from(["hold", "let", "fail", "mend"]))
    def touch_sink(self, what):
        if what in ("hold", "let"):
            getattr(self.sink, what)()
        else:
            self.sink.error = OSError("full") if what == "fail" else None

    @rule(seconds=st.sampled_from([0, 0, 0.1, 1]))
    def run(self, seconds):
        self.world.look(seconds)

    @rule(seconds=st.sampled_from([0, 2]))
    def replace_sink(self, seconds):
        """Put a new lane in the place of the old one, which may be stuck or fail; both write to one place."""
        fresh = MemorySink()
        fresh.deliveries = self.sink.deliveries
        self.world.do(
            self.world.fanout.replace({"memory": self.world.lane(fresh)}, {}, (), timeout_seconds=1.0), seconds=2
        ).result()
        self.sink = fresh

    @rule(number=workers)
    def read(self, number):
        worker = self.workers[number]
        if not worker.client.transport.lost:
            worker.read()

    def _received(self):
        received = {worker.name: [] for worker in self.workers}
        dropped = 0
        for record in self.sink.records:
            if record["name"] == "aiolog":
                dropped += record["dropped"]
            else:
                name, number = record["msg"].split()
                received[name].append(int(number))
        return received, dropped

    @invariant()
    @precondition(lambda self: hasattr(self, "sink"))
    def each_once_and_in_order(self):
        for numbers in self._received()[0].values():
            assert numbers == sorted(set(numbers))

    @invariant()
    @precondition(lambda self: hasattr(self, "sink"))
    def an_ack_is_a_promise(self):
        received, _ = self._received()
        for worker in self.workers:
            assert worker.backlog.acked <= len(received[worker.name])

    def teardown(self):
        if not hasattr(self, "sink"):
            return
        self.sink.error = None
        self.sink.let()
        self.world.run(2)
        for worker in self.workers:
            self._connect(worker)
            for _ in range(1_000):
                self.world.run()
                worker.read()
                while frame := worker.frame():
                    worker.client.send(frame)
                if worker.greeted and worker.backlog.is_empty:
                    break
            assert worker.backlog.is_empty
        received, dropped = self._received()
        for worker in self.workers:
            assert len(received[worker.name]) + worker.backlog._dropped == worker.emitted
        assert dropped == sum(worker.backlog._dropped for worker in self.workers)
        for transport in self.transports:
            transport.lose()
        assert self.world.server.held_bytes == 0
        self.world.run()
        for kept in (self.sink.deliveries, self.sink.tried):
            kept.clear()
        gc.collect()  # a sink that was replaced knows its error, whose traceback knows it and a group
        assert self.world.server.room.used_bytes == 0
        assert self.world.server.connections == set()
        assert all(session.connection is None for session in self.world.server.sessions.values())
        self.world.close()


def test_any_life_of_processes_and_sinks_is_exact():
    """Whatever is cut, held, replaced or fails: each record is written once, in order, and each drop is counted."""
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_acks_of_small_batches_are_held(sink):
    """The first after a pause is acked at once, further ones together when the time is over."""
    world = World([sink], ack_hold_seconds=0.05)
    client = world.client().hello()
    client.send(batch(1, "a"))
    world.run()
    assert client.said()[1:] == [Ack(1)]
    for seq in (2, 3, 4):
        client.send(batch(seq, "b"))
        world.run()
    assert client.said() == []
    world.run(0.05)
    assert client.said() == [Ack(4)]
    world.run(1.0)
    assert client.said() == []
    client.send(batch(5, "c"))
    world.run()
    assert client.said() == [Ack(5)]
    world.close()


def test_much_is_acked_at_once_and_a_heartbeat_too(sink):
    """From 16 KiB unacked on no ack is held; a heartbeat gets the one that is."""
    world = World([sink], ack_hold_seconds=0.05)
    client = world.client().hello()
    client.send(batch(1, "a"))
    world.run()
    client.send(batch(2, "b" * 10_000))
    world.run()
    assert client.said()[1:] == [Ack(1)]
    client.send(batch(3, "c" * 10_000))
    world.run()
    assert client.said() == [Ack(3)]
    client.send(batch(4, "d"))
    world.run()
    assert client.said() == []
    client.send(batch(5))
    world.run()
    assert client.said() == [Ack(4)]
    world.run(1.0)
    assert client.said() == []
    world.close()


@pytest.mark.parametrize("chars", [1, 10, 100, 600])
def test_a_client_with_the_smallest_buffer_waits_for_no_held_ack(sink, chars):
    """What it may send without one is what is acked at once."""
    world = World([sink], ack_hold_seconds=1.0)
    client = world.client().hello()
    backlog = Backlog(MIN_BUFFER_BYTES)
    for _ in range(40):
        for _ in range(900 // chars):  # so that bytes count, and not batches
            assert backlog.offer(pack_record([1.5, 0, 1, "x" * chars]))
        while (frame := backlog.next_frame(1 << 20)) is not None:
            client.send(frame)
            world.run()
            for message in client.said():
                if isinstance(message, Ack):
                    backlog.ack(message.seq)
        assert not backlog.has_unsent
    assert len(sink.messages) == 40 * (900 // chars)
    world.close()


def test_many_batches_are_acked_at_once(sink):
    """However small they are: a client waits when twice as many are under way."""
    world = World([sink], ack_hold_seconds=0.5)
    client = world.client().hello()
    client.send(batch(1, "a"))
    world.run()
    assert client.said()[1:] == [Ack(1)]
    for seq in range(2, 2 + 2 * ACK_BATCHES):
        client.send(batch(seq, "b"))
        world.run()
    assert client.said() == [Ack(1 + ACK_BATCHES), Ack(1 + 2 * ACK_BATCHES)]
    world.run(1.0)
    assert client.said() == []
    world.close()


@pytest.mark.parametrize("how", ["bye", "part", "end", "refuse"])
def test_an_ack_that_is_held_is_sent_before_the_end(sink, how):
    """Whoever ends the connection, the client learns first what is delivered."""
    world = World([sink], ack_hold_seconds=0.05)
    client = world.client().hello()
    client.send(batch(1, "a"))
    world.run()
    client.send(batch(2, "b"))
    world.run()
    if how == "bye":
        client.send(BYE)
    elif how == "part":
        client.connection.part()
    elif how == "refuse":
        client.send(batch(9, "an undeclared gap"))
    else:
        client.transport.end()
    world.run()
    _, *acks = client.said()
    assert [message for message in acks if not isinstance(message, Refuse)] == [Ack(1), Ack(2)]
    assert isinstance(acks[-1], Refuse) == (how == "refuse")
    world.run(1.0)
    assert client.said() == []
    client.transport.lose()
    world.close()
