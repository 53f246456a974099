"""The sender against a server that does what no server should: each record arrives once, and nobody waits in vain."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from itertools import islice, pairwise
from pathlib import Path

import pytest
from fake_server import WAIT_SECONDS, FakeServer
from hypothesis import given
from hypothesis import strategies as st

from aiolog import sender as sender_module
from aiolog.backlog import MIN_BUFFER_BYTES, Backlog
from aiolog.protocol import (
    BATCH_BYTES,
    MAX_ANSWER_BYTES,
    VERSION,
    Ack,
    Batch,
    Bye,
    Define,
    Hello,
    Refusal,
    Refuse,
    encode,
    pack_record,
)
from aiolog.sender import COALESCE_BYTES, LASTING_REFUSALS, PATH_FAULTS, UNDER_WAY_BATCHES, Sender, backoff

SITE = ("app", 20, "INFO", "/app.py", "app.py", "app", 1, "main")
THREAD = (1, "MainThread")
LARGE = 70_000  # a record of so many bytes is a batch of its own
SOON_SECONDS = 2.0  # what should take no time at all, on a machine that does much else


def descriptors():
    """The open descriptors of this process."""
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


class Endpoint:
    """What a sender needs of a handler."""

    retryStart = 0.01  # noqa: N815
    retryMax = 0.05  # noqa: N815
    retryFactor = 2.0  # noqa: N815
    retryTime = None  # noqa: N815
    when_full = "block"
    block_timeout_seconds = 0.2
    heartbeat_seconds = 5.0
    connect_timeout_seconds = 1.0

    def __init__(self, address):
        self.address = address
        self.attempts = 0

    def makeSocket(self, timeout=1):  # noqa: N802
        self.attempts += 1
        return socket.create_connection(self.address, timeout)


class Client(Sender):
    """A sender with its endpoint, backlog and dictionary."""

    def __init__(self, address, *, buffer_bytes=16 << 20, **settings):
        self.endpoint = Endpoint(address)
        self.endpoint.__dict__.update(settings)
        self.definitions = [SITE, THREAD]
        hello = Hello(VERSION, os.urandom(16), 1, "MainProcess", "host", "app", {}, 0.0, "", 0)
        super().__init__(self.endpoint, Backlog(buffer_bytes), hello, self.definitions)

    def log(self, *texts, site=0):
        for text in texts:
            self.put(pack_record([1.0, site, 1, str(text)]))

    def abort(self):
        """End the thread, whatever it owes."""
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            self.wake()
            if (sock := self.sock) is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()


@pytest.fixture
def server():
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def new_client(server, monkeypatch):
    """Return a function that makes clients; they are gone after the test."""
    clients = []
    monkeypatch.setattr(sender_module, "_complaints", {})

    def new(*, start=True, address=None, **settings):
        client = Client(address or server.address, **settings)
        clients.append(client)
        if start:
            client.start()
        return client

    yield new
    for client in clients:
        client.abort()


@pytest.fixture
def client(new_client):
    return new_client()


@pytest.fixture
def returns(monkeypatch):
    """Count how often a sender of this process comes back from a wait for the server or for a record."""
    counted = []

    def counting(wait):
        def counted_wait(self, *given, **named):
            wait(self, *given, **named)
            counted.append(wait.__name__)

        return counted_wait

    for wait in (Sender._wait, Sender._sleep):
        monkeypatch.setattr(Sender, wait.__name__, counting(wait))
    return counted


def withhold(peer, batch):
    """Take nothing, ack nothing."""


def large(number):
    return f"{number} ".ljust(LARGE, "x")


def log_until_it_waits(client):
    """Log at a steady pace until so much is under way that the sender waits for an ack, and a little more."""
    for number in range(2_000):
        client.log(number)
        time.sleep(0.001)
        if client.backlog.under_way >= UNDER_WAY_BATCHES and client.backlog.has_unsent:
            break
    time.sleep(0.05)
    client.log("more")


def numbers(server):
    """The numbers at the beginning of all texts that arrived."""
    return [int(text.split()[0]) for text in server.texts]


# -- again, and not twice


def test_what_is_not_acked_is_sent_again_and_nothing_else(server, client):
    """After a cut the next connection begins behind the last ack, in order, and ends with the last record."""
    server.on_batch = lambda peer, batch: FakeServer.take(peer, batch) if batch.first_seq <= 3 else None
    client.log(*map(large, range(1, 11)))
    server.wait_for(lambda: server.peers and server.peers[0].seqs == list(range(1, 11)))
    deadline = time.monotonic() + WAIT_SECONDS
    while client.backlog.acked < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    server.on_batch = FakeServer.take
    server.peers[0].reset()
    assert client.flush(WAIT_SECONDS)
    assert server.peers[1].hello.acked == 3
    assert server.peers[1].seqs == list(range(4, 11))
    assert numbers(server) == list(range(1, 11))
    assert client.reconnects == 1


def test_welcome_tells_what_need_not_be_sent_again(server, new_client):
    """A server that wrote half a batch and died before its ack gets the other half alone."""
    client = new_client(start=False)
    client.log(*range(1, 11))

    def keep_six(peer, batch):
        FakeServer.keep(peer, batch)
        del peer.session.records[6:]
        peer.session.last_seq = 6
        server.on_batch = FakeServer.take
        peer.reset()

    server.on_batch = keep_six
    client.start()
    assert client.flush(WAIT_SECONDS)
    assert server.peers[0].seqs == list(range(1, 11))
    assert server.peers[1].seqs == [7, 8, 9, 10]
    assert numbers(server) == list(range(1, 11))


def test_an_ack_for_a_part_of_a_batch(server, new_client):
    """The acked part is gone at once, the rest is sent again on the next connection."""
    client = new_client(start=False)
    client.log(*range(1, 11))
    server.on_batch = lambda peer, batch: peer.ack(4)
    client.start()
    deadline = time.monotonic() + WAIT_SECONDS
    while client.backlog.acked < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert (client.backlog.acked, client.backlog.records) == (4, 6)
    server.peers[0].session.last_seq = 4
    server.on_batch = FakeServer.take
    server.peers[0].reset()
    assert client.flush(WAIT_SECONDS)
    assert server.peers[1].seqs == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("when", ["on a batch", "in WELCOME"])
def test_an_ack_of_what_was_never_sent(server, new_client, monkeypatch, capfd, when):
    """A server that acks the future is complained of and tried again; the sender lives."""
    monkeypatch.setattr(sender_module, "COMPLAIN_AFTER_SECONDS", 0)
    if when == "on a batch":
        server.on_batch = lambda peer, batch: peer.ack(999)
    else:
        server.on_hello = lambda peer, hello: peer.welcome(999)
    client = new_client()
    client.log(1)
    server.wait_for(lambda: len(server.peers) >= 2)
    server.on_hello, server.on_batch = FakeServer.greet, FakeServer.take
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == [1]
    assert "the server acked the record 999; the last one sent is 1" in capfd.readouterr().err or when == "in WELCOME"


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_a_connection_that_ends(server, client, how):
    """However a server leaves, the same records come on the next connection."""
    server.on_batch = withhold
    client.log(1, 2)
    server.wait_for(lambda: server.peers and sum(batch.count for batch in server.peers[0].batches) == 2)
    server.on_batch = FakeServer.take
    getattr(server.peers[0], how)()
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == [1, 2]


def test_answers_that_drip(server, client):
    """WELCOME and acks may come a byte at a time."""
    server.on_hello = lambda peer, hello: peer.welcome(piece_bytes=1)

    def drip(peer, batch):
        FakeServer.keep(peer, batch)
        peer.send(Ack(peer.session.last_seq), piece_bytes=1)

    server.on_batch = drip
    client.log(1)
    assert client.flush(WAIT_SECONDS)
    client.log(2)
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == [1, 2]
    assert len(server.peers) == 1


def test_definitions_come_first_on_each_connection(server, client):
    """Each connection gets the whole dictionary, once, and what is new in it before its first use."""
    client.log(1)
    assert client.flush(WAIT_SECONDS)
    client.definitions.append((*SITE[:6], 77, "other"))
    client.log(2, site=2)
    assert client.flush(WAIT_SECONDS)
    server.peers[0].reset()
    client.log(3, site=2)
    assert client.flush(WAIT_SECONDS)
    defined = [[len(m.sites) for m in peer.messages if isinstance(m, Define)] for peer in server.peers]
    assert defined == [[2, 1], [3]]
    assert [record["lineno"] for record in server.records] == [1, 77, 77]


# -- how much is under way


def test_what_is_logged_between_two_beats_travels_together(server, client):
    """Nobody waits for an ack, and yet a record every millisecond makes far fewer batches."""
    server.on_batch = FakeServer.keep
    for number in range(60):
        client.log(number)
        client.wake()
        time.sleep(0.001)
    server.wait_for(lambda: server.peers and len(server.peers[0].seqs) == 60)
    assert 1 < len(server.peers[0].batches) <= 30
    server.peers[0].ack()
    assert client.flush(WAIT_SECONDS)


def test_a_slow_server_gets_larger_batches_not_more(server, client):
    """Without acks a number of batches is under way at most; what comes then waits for one, and travels together."""
    server.on_batch = FakeServer.keep
    log_until_it_waits(client)
    count = client.backlog.records
    peer = server.peers[0]
    assert len(peer.batches) <= UNDER_WAY_BATCHES
    assert len(peer.seqs) < count
    peer.ack()
    server.wait_for(lambda: len(peer.seqs) == count)
    assert len(peer.batches) <= UNDER_WAY_BATCHES + 2
    peer.ack()
    assert client.flush(WAIT_SECONDS)


def test_a_flush_sends_what_waits_for_a_slow_server(server, client):
    """The end of a process does not wait for acks before it sends the rest: the server may be back when it is gone."""
    server.on_batch = FakeServer.keep
    log_until_it_waits(client)
    count = client.backlog.records
    flushing = threading.Thread(target=client.flush, args=(WAIT_SECONDS,))
    flushing.start()
    server.wait_for(lambda: len(server.peers[0].seqs) == count, timeout=SOON_SECONDS)
    server.peers[0].ack()
    flushing.join()


def test_acks_are_looked_for_when_much_is_held(new_client, monkeypatch):
    """Small records fill a small buffer in fewer batches than acks are otherwise looked for after."""
    monkeypatch.setattr(sender_module, "ACK_BATCHES", 1 << 30)
    monkeypatch.setattr(sender_module, "UNDER_WAY_BATCHES", 1 << 31)
    client = new_client(buffer_bytes=MIN_BUFFER_BYTES, heartbeat_seconds=10 * WAIT_SECONDS)
    began, most_bytes = time.monotonic(), 0
    # The beat goes on all the time, and the server acks each batch.
    while most_bytes < MIN_BUFFER_BYTES // 4 or client.backlog.size_bytes > most_bytes // 2:
        assert client.backlog.size_bytes < MIN_BUFFER_BYTES // 2
        assert time.monotonic() - began < WAIT_SECONDS
        client.log("x", "y", "z")
        time.sleep(0.001)
        most_bytes = max(most_bytes, client.backlog.size_bytes)
    assert client.flush(WAIT_SECONDS)


def test_a_flush_asks_for_an_ack_that_is_held(server, client):
    """A server may hold an ack for a while; a heartbeat makes it send it."""
    server.on_batch = lambda peer, batch: FakeServer.keep(peer, batch) if batch.count else peer.ack()
    client.log(1)
    began = time.monotonic()
    assert client.flush(WAIT_SECONDS)
    assert time.monotonic() - began < WAIT_SECONDS / 2
    assert len(server.peers[0].heartbeats) == 1


@pytest.mark.parametrize("crossing", ["an older ack", "busy"])
def test_a_flush_waits_for_the_ack_that_it_asked_for(server, client, monkeypatch, crossing):
    """What was on its way when the server was asked is not the answer; who took it for that would cease to listen."""
    monkeypatch.setattr(sender_module, "LULL_SECONDS", 60.0)
    client.log(0)
    assert client.flush(WAIT_SECONDS)
    asked = threading.Event()

    def answer(peer, batch):
        FakeServer.keep(peer, batch)
        if not batch.count:
            if crossing == "busy":
                peer.busy()
            else:
                peer.ack(peer.session.last_seq - 1)
            asked.set()

    server.on_batch = answer
    client.log(1)
    server.wait_for(lambda: len(server.peers[0].seqs) == 2)
    client.log(2)
    flushing = threading.Thread(target=client.flush, args=(WAIT_SECONDS,))
    flushing.start()
    assert asked.wait(SOON_SECONDS)
    until(lambda: client.backlog.records == (2 if crossing == "busy" else 1))
    time.sleep(0.05)  # so that it waits again
    server.peers[0].ack()
    flushing.join(SOON_SECONDS)
    assert not flushing.is_alive()


@pytest.mark.parametrize("moment", ["all is acked", "the server is asked"])
def test_a_flush_that_begins_as_another_ends(server, client, monkeypatch, moment):
    """Its record has come since the sender looked, and its hurry is not taken for the one that is over."""
    client.endpoint.heartbeat_seconds = 60.0
    server.on_batch = lambda peer, batch: FakeServer.keep(peer, batch) if batch.count else peer.ack()
    client.log(0)
    assert client.flush(WAIT_SECONDS)
    until(lambda: client.asleep and not client._hurried)

    def interrupt():
        monkeypatch.undo()
        client.log(1)
        client._hurry()

    if moment == "all is acked":
        whether = Backlog.awaits_ack.fget
        monkeypatch.setattr(Backlog, "awaits_ack", property(lambda backlog: interrupt() or whether(backlog)))
    else:
        asks_in = client._asks_in
        monkeypatch.setattr(client, "_asks_in", lambda *given: [-1.0, asks_in(*given), interrupt()][0])
    client._hurry()
    until(lambda: client.backlog.records == 0 and client.backlog.acked == 2)


def test_a_flush_waits_for_no_beat(server, client, monkeypatch):
    """Nor does the end: what is waited for leaves at once."""
    monkeypatch.setattr(sender_module, "BEAT_SECONDS", 60.0)
    monkeypatch.setattr(sender_module, "BUSY_SECONDS", 240.0)
    for number in range(3):  # from the second on it gathers
        client.log(number)
        client.wake()
        time.sleep(0.02)
    assert not client.backlog.is_empty
    began = time.monotonic()
    assert client.flush(WAIT_SECONDS)
    client.log(3)
    assert client.stop(WAIT_SECONDS)
    assert time.monotonic() - began < WAIT_SECONDS / 2
    assert numbers(server) == [0, 1, 2, 3]


def test_who_begins_does_nothing_before_there_is_a_record(server, new_client):
    """The log call that started the thread is to be done first. Then it connects at once, and needs no flush for it."""
    client = new_client()
    until(lambda: client.asleep)
    assert (client._wakers, server.peers) == (None, [])
    client.log(0)
    server.wait_for(lambda: numbers(server) == [0])
    another = new_client()
    until(lambda: another.asleep)
    assert another.stop(SOON_SECONDS)
    assert not another._thread.is_alive()
    assert len(server.peers) == 1


def test_who_looks_once_whether_all_is_acked_has_not_given_up(server, new_client):
    """At the end of a process it is waited for, as for any sender: ``reconfigure()`` has only looked."""
    client = new_client(start=False)
    client.log(0)
    assert not client.stop(0)
    client.start()
    assert client.flush(WAIT_SECONDS, insist=False)
    assert numbers(server) == [0]


def test_a_flush_amid_steady_logging_ends_the_hurry(server, client):
    """It asks once all that was put before is sent, however much goes on being sent; then the beat is back."""
    server.on_batch = lambda peer, batch: FakeServer.keep(peer, batch) if batch.count else peer.ack()
    ended = threading.Event()

    def log():
        for number in range(5_000):
            if ended.is_set():
                return
            client.log(number)
            time.sleep(0.001)

    steady = threading.Thread(target=log)
    steady.start()
    try:
        server.wait_for(lambda: server.peers and len(server.peers[0].seqs) > 50)
        client.flush(WAIT_SECONDS)
        server.wait_for(lambda: not client._hurried)
        assert server.peers[0].heartbeats
    finally:
        ended.set()
        steady.join()
    assert client.flush(WAIT_SECONDS)


@pytest.mark.parametrize("pause_seconds", [0.02, 0.002])
def test_who_never_rests_asks_for_acks_too(server, new_client, monkeypatch, pause_seconds):
    """A server that holds its acks longer than two heartbeats is asked in between, and not taken for dead."""
    monkeypatch.setattr(sender_module, "ACK_BATCHES", 1 << 30)  # so many under way are no reason to look
    monkeypatch.setattr(sender_module, "UNDER_WAY_BATCHES", 1 << 31)
    server.on_batch = lambda peer, batch: FakeServer.keep(peer, batch) if batch.count else peer.ack()
    client = new_client(heartbeat_seconds=0.1)
    count = round(0.8 / pause_seconds)
    for number in range(count):
        client.log(number)
        time.sleep(pause_seconds)
    assert client.flush(WAIT_SECONDS)
    assert len(server.peers) == 1
    assert server.peers[0].heartbeats
    assert numbers(server) == list(range(count))


def test_much_waits_neither_for_an_ack_nor_for_a_beat(server, new_client, monkeypatch):
    """From 64 KiB on records travel at once."""
    monkeypatch.setattr(sender_module, "BEAT_SECONDS", 60.0)
    monkeypatch.setattr(sender_module, "BUSY_SECONDS", 240.0)
    client = new_client()
    server.on_batch = FakeServer.keep
    client.log(0)
    server.wait_for(lambda: server.peers and server.peers[0].batches)
    client.log("1".ljust(COALESCE_BYTES))
    client.log(2)  # something has to wake the thread: the ack would, but there is none
    client.wake()
    server.wait_for(lambda: len(server.peers[0].seqs) >= 2, timeout=SOON_SECONDS)


def test_the_window_is_respected(server, new_client):
    """Without acks no more is sent than the window holds, and the batch that fills it."""
    server.window_bytes = 100_000
    server.on_batch = withhold
    client = new_client(heartbeat_seconds=0.2)
    client.log(*(str(number).ljust(20_000) for number in range(40)))
    # Nothing was sent for 0.2 s. It may be a later connection: one without acks ends after 0.4 s.
    peer = server.wait_for(lambda: next((peer for peer in server.peers if peer.heartbeats), None))
    sizes = [len(batch.payload) for batch in peer.batches if batch.count]
    assert 100_000 <= sum(sizes) < 100_000 + BATCH_BYTES + 20_000
    server.on_batch = FakeServer.take
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == list(range(40))


def test_a_batch_that_never_gets_through_is_halved(server, new_client):
    """Behind a path that breaks after 8,000 bytes all arrives; when the path is well batches grow again."""
    client = new_client(start=False)
    client.log(*(str(number).ljust(100) for number in range(1_000)))
    sizes = []

    def pass_small(peer, batch):
        sizes.append(len(batch.payload))
        if len(batch.payload) > 8_000:
            peer.reset()
        elif not peer.closed:
            FakeServer.take(peer, batch)

    server.on_batch = pass_small
    client.start()
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == list(range(1_000))
    assert sizes[0] > BATCH_BYTES
    server.on_batch = FakeServer.take
    for first in range(1_000, 11_000, 1_000):
        client.log(*(str(number).ljust(100) for number in range(first, first + 1_000)))
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == list(range(11_000))
    assert max(len(batch.payload) for batch in server.peers[-1].batches) > BATCH_BYTES


# -- signs of life


def test_an_idle_connection_is_tried(server, new_client):
    """With nothing to say a sender sends empty batches that carry the next seq, and stays connected."""
    client = new_client(heartbeat_seconds=0.05)
    client.log(1, 2)
    assert client.flush(WAIT_SECONDS)
    server.wait_for(lambda: len(server.peers[0].heartbeats) >= 4)
    assert {batch.first_seq for batch in server.peers[0].heartbeats} == {3}
    assert client.reconnects == 0


def test_a_heartbeat_may_never_come(server, new_client):
    """What is longer than a selector or a lock can wait is no reason to leave a server."""
    client = new_client(heartbeat_seconds=1e300)
    for number in range(3):
        client.log(number)
        server.wait_for(lambda number=number: len(server.texts) > number, timeout=SOON_SECONDS)
        until(lambda: client.asleep)
    assert client.reconnects == 0


@pytest.mark.parametrize("when", ["a batch is under way", "idle"])
def test_silence_ends_a_connection(server, new_client, when):
    """A server that says nothing for two heartbeats is left, and what it did not ack goes to the next connection."""
    client = new_client(heartbeat_seconds=0.1)
    if when == "idle":
        client.log(0)
        assert client.flush(WAIT_SECONDS)
    silent_since = time.monotonic()
    server.on_batch = withhold
    if when != "idle":
        client.log(0)
    server.wait_for(lambda: server.peers and server.peers[0].closed)
    assert 0.2 <= time.monotonic() - silent_since < 0.5 + SOON_SECONDS
    server.on_batch = FakeServer.take
    client.log(1)
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == [0, 1]


def test_acks_that_a_damaged_length_swallows(server, new_client):
    """Bytes that make no message are no sign of life."""
    client = new_client(heartbeat_seconds=0.1)
    moments = []

    def swallow(peer, batch):
        if peer is not server.peers[0]:
            FakeServer.take(peer, batch)
            return
        moments.append(time.monotonic())
        if len(moments) == 1:
            peer.sock.sendall(struct.pack(">L", MAX_ANSWER_BYTES))
        peer.ack()

    server.on_batch = swallow
    client.log(0)
    assert client.flush(WAIT_SECONDS)
    assert len(moments) >= 2
    assert moments[-1] - moments[0] < 0.5 + SOON_SECONDS
    assert numbers(server) == [0]


def test_a_length_that_no_answer_has(server, client):
    """It ends a connection at once."""

    def announce(peer, batch):
        FakeServer.keep(peer, batch)
        peer.sock.sendall(struct.pack(">L", MAX_ANSWER_BYTES + 1))
        server.on_batch = FakeServer.take

    server.on_batch = announce
    client.log(0)
    assert client.flush(SOON_SECONDS)
    assert numbers(server) == [0]
    assert len(server.peers) == 2


def test_busy_is_a_sign_of_life(server, new_client):
    """A server that says BUSY may take its time, and is sent nothing twice."""
    client = new_client(heartbeat_seconds=0.15)
    server.on_batch = FakeServer.keep
    client.log(1)
    server.wait_for(lambda: server.peers and server.peers[0].batches)
    for _ in range(16):
        server.peers[0].busy()
        time.sleep(0.05)
    server.on_batch = FakeServer.take
    server.peers[0].ack()
    assert client.flush(WAIT_SECONDS)
    assert len(server.peers) == 1
    assert server.peers[0].seqs == [1]


def test_busy_before_welcome(server, new_client, monkeypatch):
    """A server that still writes the session's last batch says so, and HELLO waits for as long as it does."""
    monkeypatch.setattr(sender_module, "HANDSHAKE_TIMEOUT_SECONDS", 0.2)

    def hesitate(peer, hello):
        for _ in range(10):
            peer.busy()
            time.sleep(0.05)
        peer.welcome()

    server.on_hello = hesitate
    client = new_client()
    client.log(1)
    assert client.flush(WAIT_SECONDS)
    assert len(server.peers) == 1


def test_no_welcome(server, new_client, monkeypatch):
    """A stopped server accepts and never answers: it is left after the time for a handshake."""
    monkeypatch.setattr(sender_module, "HANDSHAKE_TIMEOUT_SECONDS", 0.1)
    server.on_hello = lambda peer, hello: None
    client = new_client()
    client.log(1)
    server.wait_for(lambda: len(server.peers) >= 2)
    server.on_hello = FakeServer.greet
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == [1]


@pytest.mark.parametrize("code", list(Refusal))
def test_refusals(server, new_client, monkeypatch, code):
    """After a refusal that will last a sender comes back late; after one that will pass, at its usual pace."""
    monkeypatch.setattr(sender_module, "REFUSED_PAUSE_SECONDS", 0.8)
    came = []

    def refuse(peer, hello):
        came.append(time.monotonic())
        peer.refuse(code, "no")

    server.on_hello = refuse
    client = new_client()
    client.log(1)
    server.wait_for(lambda: len(came) >= 2)
    assert (came[1] - came[0] >= 0.8) == (code in LASTING_REFUSALS)
    server.on_hello = FakeServer.greet
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == [1]


def test_a_refusal_amid_a_connection(server, client, monkeypatch, capfd):
    """What a server refuses is soon sent again: the path may have changed it. Refused again and again, it is quoted."""
    monkeypatch.setattr(sender_module, "REFUSED_PAUSE_SECONDS", 0.8)
    came = []

    def refuse(peer, batch):
        came.append(time.monotonic())
        peer.refuse(Refusal.PROTOCOL, "a batch of a colour that I dislike")

    server.on_batch = refuse
    client.log(1)
    server.wait_for(lambda: len(came) >= PATH_FAULTS + 2)
    pauses = [after - before for before, after in pairwise(came)]
    assert max(pauses[:PATH_FAULTS]) < 0.8 <= pauses[PATH_FAULTS]
    server.on_batch = FakeServer.take
    assert client.flush(WAIT_SECONDS)
    said = capfd.readouterr().err
    assert f"127.0.0.1:{server.address[1]} refuses this process: a batch of a colour that I dislike" in said


def test_an_ack_before_a_refusal_is_progress(server, client, monkeypatch):
    """However often a path breaks a connection: as long as each gets something through, the next comes soon."""
    monkeypatch.setattr(sender_module, "REFUSED_PAUSE_SECONDS", WAIT_SECONDS)
    came = []

    def take_one(peer, batch):
        came.append(time.monotonic())
        FakeServer.keep(peer, batch)
        peer.send(Ack(peer.session.last_seq), Refuse(Refusal.PROTOCOL, "what came behind it was damaged"))
        peer.close()

    server.on_batch = take_one
    for number in range(2 * PATH_FAULTS):
        client.log(number)
        server.wait_for(lambda number=number: len(came) > number)
    server.on_batch = FakeServer.take
    client.log("last")
    assert client.flush(WAIT_SECONDS / 2)
    assert server.texts == [*map(str, range(2 * PATH_FAULTS)), "last"]


@pytest.mark.parametrize("checks", [True, False])
def test_a_server_that_knows_no_checks_gets_none(server, client, checks):
    """It reads the field of HELLO past its own ten and answers without one; the rest of the connection has none."""
    server.checks = checks
    client.log(*range(3))
    assert client.flush(WAIT_SECONDS)
    client.stop(WAIT_SECONDS)
    server.wait_for(lambda: server.peers[0].closed)
    assert server.texts == ["0", "1", "2"]
    assert {type(message) for message in server.peers[0].messages} == {Hello, Define, Batch, Bye}
    assert server.peers[0].decoder.is_checked == checks


@pytest.mark.parametrize("how", ["refuses", "closes"])
def test_a_server_that_takes_no_hello_with_a_check(server, client, how):
    """It is asked again without, and so on each connection; one that has answered in kind is not."""

    def be_strict(peer, hello):
        if not peer.decoder.is_checked:
            peer.welcome()
        elif how == "refuses":
            peer.decoder.is_checked = False
            peer.refuse(Refusal.PROTOCOL, "HELLO has 11 fields instead of 10")
        else:
            peer.close()

    server.on_hello = be_strict
    for number in range(2):
        client.log(number)
        assert client.flush(WAIT_SECONDS)
        server.peers[-1].reset()
    assert [peer.decoder.is_checked for peer in server.peers if peer.batches] == [False, False]
    assert len(server.peers) == 4
    server.on_hello = FakeServer.greet
    client.log(2)
    assert client.flush(WAIT_SECONDS)
    server.on_hello = be_strict
    server.peers[-1].reset()
    before = len(server.peers)
    client.log(3)
    server.wait_for(lambda: len(server.peers) >= before + 3)
    server.on_hello = FakeServer.greet
    assert client.flush(WAIT_SECONDS)
    assert not any(peer.batches for peer in server.peers[before:-1])
    assert server.peers[-1].decoder.is_checked
    assert numbers(server) == [0, 1, 2, 3]


def test_an_ack_that_changed_on_the_way_acks_nothing(server, client):
    """A bit of its seq would forget records that were never taken: the connection ends, and they are sent again."""
    acks = []

    def ack_more(peer, batch):
        acks.append(batch)
        damaged = bytearray(encode(Ack(0), checked=True))
        damaged[6] ^= 1
        peer.sock.sendall(damaged)
        server.on_batch = FakeServer.take

    server.on_batch = ack_more
    client.log("kept")
    assert client.flush(WAIT_SECONDS)
    assert len(acks) == 1
    assert server.texts == ["kept"]
    assert len(server.peers) == 2


def test_a_restart_is_not_worth_a_line(server, client, capfd):
    """A server that refuses because it stops, and is back at once, is not complained of."""
    refusals = []

    def refuse_twice(peer, hello):
        refusals.append(peer)
        if len(refusals) == 2:
            server.on_hello = FakeServer.greet
        peer.refuse(Refusal.STOPPING, "the server is stopping")

    server.on_hello = refuse_twice
    client.log(1)
    assert client.flush(WAIT_SECONDS)
    assert len(refusals) == 2
    assert capfd.readouterr().err == ""


@given(start=st.floats(1e-3, 10), factor=st.floats(1, 10), maximum=st.floats(1e-3, 100), count=st.integers(1, 30))
def test_pauses_are_full_jitter_under_an_exponential_cap(start, factor, maximum, count):
    """The n-th pause is between 0 and start x factor^n, and never above the maximum."""
    for number, pause in enumerate(islice(backoff(start, factor, maximum), count)):
        assert 0 <= pause <= min(maximum, start * factor**number * (1 + 1e-9))


def test_pauses_use_the_whole_range():
    """Jitter is full: the pauses of many senders lie in every tenth of the range."""
    firsts = [next(backoff(1.0, 2.0, 30.0)) for _ in range(1_000)]
    assert {int(first * 10) for first in firsts} == set(range(10))


# -- a full backlog


def durations(client, count, size=500):
    """Put records; returns how long each call took, in seconds."""
    taken = []
    for number in range(count):
        began = time.monotonic()
        client.log(str(number).ljust(size))
        taken.append(time.monotonic() - began)
    return taken


def test_block_waits_while_acks_advance(server, new_client):
    """A flood is slowed to the pace of a server that acks now and then, and loses nothing."""

    def slowly(peer, batch):
        time.sleep(0.01)
        FakeServer.take(peer, batch)

    server.on_batch = slowly
    client = new_client(buffer_bytes=MIN_BUFFER_BYTES, block_timeout_seconds=5.0)
    durations(client, 2_000)
    assert client.backlog.size_bytes <= MIN_BUFFER_BYTES + 1_000
    assert client.flush(WAIT_SECONDS)
    assert sum(client.backlog.dropped.values()) == 0
    assert numbers(server) == list(range(2_000))


def test_block_drops_at_once_when_acks_cease_and_recovers(server, new_client):
    """One wait of block_timeout_seconds, then none; after the next ack nothing is dropped again."""
    server.on_batch = FakeServer.keep
    client = new_client(buffer_bytes=MIN_BUFFER_BYTES, block_timeout_seconds=0.5, heartbeat_seconds=60.0)
    taken = durations(client, 1_000)
    waits = [seconds for seconds in taken if seconds > 0.25]
    assert len(waits) == 1
    assert 0.4 < waits[0] < 0.5 + SOON_SECONDS
    dropped = client.backlog.dropped["block_timeout"]
    assert dropped > 500
    assert sum(client.backlog.dropped.values()) == dropped
    server.on_batch = FakeServer.take
    server.peers[0].ack()
    assert client.flush(WAIT_SECONDS)
    assert len(server.texts) == 1_000 - dropped
    assert server.dropped == dropped
    client.endpoint.block_timeout_seconds = 5.0
    durations(client, 1_000)
    assert client.flush(WAIT_SECONDS)
    assert client.backlog.dropped["block_timeout"] == dropped


@pytest.mark.parametrize(("policy", "first", "last"), [("drop_oldest", None, 1_999), ("drop_newest", 0, None)])
def test_who_drops_never_waits(server, new_client, policy, first, last):
    """A full backlog costs a call nothing; what goes is what the policy names, and the server is told how much."""
    server.on_batch = FakeServer.keep
    client = new_client(
        buffer_bytes=MIN_BUFFER_BYTES, block_timeout_seconds=60.0, heartbeat_seconds=60.0, when_full=policy
    )
    assert max(durations(client, 2_000)) < SOON_SECONDS
    dropped = client.backlog.dropped[policy]
    assert dropped > 1_000
    server.wait_for(lambda: server.peers and server.peers[0].batches)
    server.on_batch = FakeServer.take
    server.peers[0].ack()
    assert client.flush(WAIT_SECONDS)
    arrived = numbers(server)
    assert len(arrived) == 2_000 - dropped
    assert server.dropped == dropped
    assert arrived == sorted(arrived)
    if first is not None:
        assert arrived[0] == first
        assert arrived[-1] != 1_999
    if last is not None:
        assert arrived[-1] == last


# -- what it says


def lines(capfd):
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("aiolog: ")]


def until(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_complaints_are_rare(server, new_client, monkeypatch, capfd):
    """All senders of a process say of one server together once that it is away; who said so says when it is back."""
    monkeypatch.setattr(sender_module, "COMPLAIN_AFTER_SECONDS", 0)
    server.stop()
    clients = [new_client() for _ in range(3)]
    for client in clients:
        client.log(1)
    until(lambda: all(client.endpoint.attempts >= 4 for client in clients))
    where = f"127.0.0.1:{server.address[1]}"
    (said,) = [line for line in lines(capfd) if where in line]  # a sender of another test may have its own to say
    assert said.startswith(f"aiolog: no server at {where} (")
    assert said.endswith("records are kept, up to 16 MiB. Start `aiolog serve`, or mend host and port")
    server.start()
    assert all(client.flush(WAIT_SECONDS) for client in clients)
    (said,) = [line for line in lines(capfd) if where in line]
    assert said.startswith(f"aiolog: {where} answers again after ")
    assert said.endswith("0 records were dropped so far")


def test_complaints_come_again(server, new_client, monkeypatch, capfd):
    """A server that stays away is said to be so again, and not before its time."""
    monkeypatch.setattr(sender_module, "COMPLAIN_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(sender_module, "COMPLAIN_SECONDS", 0.3)
    server.stop()
    client = new_client()
    said_at = []
    monkeypatch.setattr(Client, "say", staticmethod(lambda text: said_at.append(time.monotonic())))
    began = time.monotonic()
    client.log(1)
    until(lambda: len(said_at) >= 3)
    assert said_at[0] - began >= 0.1
    assert said_at[1] - said_at[0] >= 0.3
    assert said_at[2] - said_at[1] >= 0.3
    server.start()
    assert client.flush(WAIT_SECONDS)


# -- what it costs


def test_an_idle_sender_sleeps(server, client, returns):
    """Between two heartbeats a connected sender does not wake once, and neither does one that never had a record."""
    new = Client(server.address)
    new.start()
    client.log(1)
    assert client.flush(WAIT_SECONDS)
    until(lambda: client.asleep and client._idle and client._is_at_socket and new.asleep)
    del returns[:]
    cpu = time.process_time()
    time.sleep(0.5)
    assert returns == []
    assert time.process_time() - cpu < 0.25
    new.abort()


def test_a_record_wakes_an_idle_sender_without_a_byte(server, client, monkeypatch):
    """Who logs does not write to a socket: it would give up the GIL for that, and get it back late."""
    client.log(0)
    assert client.flush(WAIT_SECONDS)
    rung = []
    monkeypatch.setattr(client, "_ring", lambda: rung.append(client.asleep))
    for number in range(1, 6):
        until(lambda: client.asleep and not client._is_at_socket)
        client.log(number)
        server.wait_for(lambda number=number: len(server.texts) > number)
    assert rung == []


def test_a_record_wakes_a_sender_that_waits_for_an_answer(server, client):
    """Before the first ack of a connection it waits at the socket; a record is sent all the same."""
    server.on_batch = withhold
    for number in range(3):
        client.log(number)
        server.wait_for(lambda number=number: server.peers and len(server.peers[0].seqs) > number, timeout=SOON_SECONDS)
        until(lambda: client.asleep and client._is_at_socket)
    server.on_batch = FakeServer.take


def test_a_connection_that_ends_in_silence_is_noticed_soon(server, client):
    """What was sent on it, by a process that says nothing more, is sent again before anybody asks for it."""
    client.log(0)
    assert client.flush(WAIT_SECONDS)
    server.on_batch = lambda peer, batch: peer.reset()
    client.log(1)
    server.wait_for(lambda: server.peers[0].closed)
    server.on_batch = FakeServer.take
    server.wait_for(lambda: server.texts == ["0", "1"], timeout=SOON_SECONDS)


@pytest.mark.parametrize("when", ["amid records", "after a record", "in a lull"])
def test_a_goodbye_is_heard_soon(server, client, monkeypatch, when):
    """A server that stops waits for its clients, so that nothing is on its way when it has gone."""
    monkeypatch.setattr(sender_module, "ACK_BATCHES", 1 << 30)  # so many under way are no reason to look
    client.log(0)
    assert client.flush(WAIT_SECONDS)
    until(lambda: client.asleep and client._is_at_socket == (when == "in a lull"))
    server.peers[0].half_close()
    count = 1
    while when == "amid records" and not server.peers[0].closed and count < 20:
        client.log(count)
        count += 1
        time.sleep(0.05)
    server.wait_for(lambda: server.peers[0].closed, timeout=SOON_SECONDS)
    client.log(count)
    server.wait_for(lambda: numbers(server) == list(range(count + 1)), timeout=SOON_SECONDS)
    assert count < 20


def test_a_sender_that_was_stopped_sleeps(server, client, returns):
    """It still owes something, which a server does not ack: it waits for that, and does not spin."""
    server.on_batch = FakeServer.keep
    client.log(0)
    assert not client.stop(0.1)
    del returns[:]
    time.sleep(0.5)
    assert len(returns) < 20
    server.peers[0].ack()
    client._thread.join(WAIT_SECONDS)
    assert not client._thread.is_alive()
    assert client.backlog.is_empty


def test_a_sender_that_waits_to_write_sleeps(server, new_client, returns):
    """Before a server that is busy and reads nothing a sender does not spin; it leaves one that is silent as well."""

    def stop_reading(peer, hello):
        peer.may_read.clear()
        peer.welcome()

    server.window_bytes = 1 << 30
    server.on_hello = stop_reading
    client = new_client(buffer_bytes=64 << 20, heartbeat_seconds=0.2)
    client.log(*(large(number) for number in range(200)))  # 14 MB: more than the buffers of two sockets hold
    until(lambda: client.connected)
    for _ in range(20):
        server.peers[0].busy()
        time.sleep(0.05)
    assert client.endpoint.attempts == 1
    assert len(returns) < 400
    until(lambda: client.endpoint.attempts >= 2)
    assert len(returns) < 400
    server.on_hello = FakeServer.greet
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == list(range(200))
    for peer in server.peers:
        peer.may_read.set()


# -- its life


def test_a_stop_says_bye_and_what_comes_later_begins_a_session(server, client):
    """After stop() the thread is gone and the session ended; a revived sender begins a new one."""
    client.log(1)
    thread = client._thread
    assert client.stop(WAIT_SECONDS)
    assert not thread.is_alive()
    server.wait_for(lambda: server.peers[0].closed)
    assert isinstance(server.peers[0].messages[-1], Bye)
    client.log(2)
    client.revive()
    assert client.flush(WAIT_SECONDS)
    assert server.peers[1].hello.session != server.peers[0].hello.session
    assert server.peers[1].hello.acked == 0
    assert server.peers[1].seqs == [1]
    assert client.stop(WAIT_SECONDS)


def test_a_stop_with_a_server_away_goes_on_trying(server, client):
    """stop() returns at its deadline; the thread delivers when the server comes, and then ends."""
    server.stop()
    client.log(1)
    began = time.monotonic()
    assert not client.stop(0.2)
    assert not client.stop(60.0)  # the exit of a process waits once
    assert 0.2 <= time.monotonic() - began < 0.2 + SOON_SECONDS
    server.start()
    client._thread.join(WAIT_SECONDS)
    assert not client._thread.is_alive()
    assert numbers(server) == [1]


@pytest.fixture
def no_threads(monkeypatch):
    """Let no sender's thread start, as at the exit of CPython 3.12."""
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "aiolog-sender":
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_flush_without_a_thread_delivers(server, new_client, no_threads):
    """Where no thread can be started, flush() connects, sends, waits for the ack and says BYE in the caller's own."""
    client = new_client(start=False)
    with pytest.raises(RuntimeError):
        client.start()
    for number in (1, 2):
        client.log(number)
        assert client.flush(WAIT_SECONDS)
    assert numbers(server) == [1, 2]
    server.wait_for(lambda: all(peer.closed for peer in server.peers))
    assert [isinstance(peer.messages[-1], Bye) for peer in server.peers] == [True, True]


@pytest.mark.parametrize("trouble", ["no server", "no welcome", "busy for ever", "no ack", "not read", "no close"])
def test_a_flush_without_a_thread_keeps_its_deadline(server, new_client, no_threads, trouble):
    """Whatever a server withholds, a flush of 0.3 s takes hardly longer."""
    if trouble == "no server":
        server.stop()
    elif trouble == "no welcome":
        server.on_hello = lambda peer, hello: None
    elif trouble == "busy for ever":

        def busy(peer, hello):
            while not peer.closed and not over.wait(0.02):
                peer.busy()

        server.on_hello = busy
    elif trouble == "no ack":
        server.on_batch = withhold
    elif trouble == "not read":
        server.window_bytes = 1 << 30
        server.on_hello = lambda peer, hello: (peer.may_read.clear(), peer.welcome())
    else:
        server.on_batch = lambda peer, batch: (FakeServer.take(peer, batch), peer.may_read.clear())
    over = threading.Event()
    client = new_client(start=False, buffer_bytes=64 << 20)
    client.log(*map(large, range(200 if trouble == "not read" else 1)))
    began = time.monotonic()
    assert client.flush(0.3) == (trouble == "no close")
    seconds = time.monotonic() - began
    over.set()
    assert seconds < 1.2


def test_a_sender_outlives_the_lack_of_descriptors(server, new_client, monkeypatch):
    """A process without a free descriptor keeps its records until there is one."""
    socketpair = socket.socketpair
    calls = []

    def fail_thrice(*args, **kwargs):
        calls.append(args)
        if len(calls) <= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return socketpair(*args, **kwargs)

    monkeypatch.setattr(socket, "socketpair", fail_thrice)
    client = new_client()
    client.log(1)
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == [1]


def test_whatever_make_socket_raises_is_an_attempt_that_failed(server, client):
    """A makeSocket() of somebody else's may raise anything: the thread tries again."""
    make = client.endpoint.makeSocket

    def broken(timeout=1):
        client.endpoint.makeSocket = make
        raise KeyError("no such key")

    client.endpoint.makeSocket = broken
    client.log(1)
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == [1]


def senders():
    """Return the threads of all senders; a test elsewhere may have left one that owes something."""
    return {thread for thread in threading.enumerate() if thread.name == "aiolog-sender"}


def test_no_descriptor_and_no_thread_is_left(server, new_client):
    """After a stop, and after a flush without a thread, everything is closed."""
    others = senders()
    server.stop()
    before = descriptors()
    server.start()
    for start in (True, False):
        client = new_client(start=start)
        client.log(1)
        assert client.flush(WAIT_SECONDS)
        assert client.stop(WAIT_SECONDS)
    server.stop()
    assert descriptors() == before
    assert senders() == others


# -- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the path of a key and a certificate for localhost."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not here to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", path, "-out", f"{path}.crt",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + path.with_suffix(".pem.crt").read_text())
    return path


@pytest.fixture
def dripping(server):
    """Return the address of a proxy that hands on what the server says in packets of 7 bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def forward(source, sink, piece_bytes):
        with contextlib.suppress(OSError):
            while data := source.recv(piece_bytes):
                sink.sendall(data)
                if piece_bytes < 100:
                    time.sleep(0.001)
            sink.shutdown(socket.SHUT_WR)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with near, socket.create_connection(server.address) as far:
                    up = threading.Thread(target=forward, args=(near, far, 65_536))
                    up.start()
                    forward(far, near, 7)
                    near.shutdown(socket.SHUT_RDWR)
                    up.join(WAIT_SECONDS)

    thread = threading.Thread(target=accept)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(WAIT_SECONDS)
    listener.close()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_connection_in_tls(server, new_client, dripping, certificate, version):
    """A makeSocket() that wraps the connection carries megabytes, heartbeats and acks in pieces, on one connection."""
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(certificate)
    inside.minimum_version = inside.maximum_version = getattr(ssl.TLSVersion, version)
    outside = ssl.create_default_context(cafile=f"{certificate}.crt")
    server.wrap = lambda sock: inside.wrap_socket(sock, server_side=True)

    def read_late(peer, hello):
        peer.may_read.clear()
        peer.welcome()
        threading.Timer(0.5, peer.may_read.set).start()

    server.on_hello = read_late
    server.window_bytes = 1 << 30
    client = new_client(start=False, address=dripping, buffer_bytes=64 << 20, heartbeat_seconds=0.5)
    make = client.endpoint.makeSocket
    client.endpoint.makeSocket = lambda timeout=1: outside.wrap_socket(make(timeout), server_hostname="localhost")
    client.log(*map(large, range(200)))
    client.start()
    assert client.flush(WAIT_SECONDS)
    assert numbers(server) == list(range(200))
    server.wait_for(lambda: server.peers[0].heartbeats)
    client.log(200)
    assert client.stop(WAIT_SECONDS)
    assert numbers(server) == list(range(201))
    assert len(server.peers) == 1
