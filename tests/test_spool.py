"""The backlog in files: what the backlog promises, and all of it again when the process is gone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import signal
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test
from test_backlog import BacklogMachine, Producer, ServerSession, alarm, packed, sent, switching  # noqa: F401

from aiolog import segments
from aiolog.backlog import REASONS
from aiolog.coerce import INT_MIN
from aiolog.errors import ProtocolError
from aiolog.protocol import MAX_RECORD_BYTES, VERSION, Define, Hello, encode
from aiolog.segments import HEADER_BYTES, MAX_SITES_BYTES, Home, Segment, SpoolError
from aiolog.source import MAX_DEFINITION_CHARS, MAX_SITES, MAX_THREADS, Site, Thread
from aiolog.spool import Orphan, Spool

DEFINITIONS = [("app", 20, "INFO", "/app.py", "app.py", "app", 1, "main"), (1, "MainThread")]


def hello(**fields):
    given = dict.fromkeys(("process_name", "host", "app"), "test")
    return Hello(**{**given, "version": VERSION, "session": os.urandom(16), "pid": 1, "labels": {"a": "b"},
                    "start_time": 1.5, "token": "secret", "acked": 0, **fields})  # fmt: skip


class OnDisk(Spool):
    """A spool on a disk that can be full."""

    is_full = False

    def _create(self, number, size_bytes):
        if self.is_full:
            raise OSError(errno.ENOSPC, "full")
        return super()._create(number, size_bytes)


def new(directory, *, max_bytes=8 << 20, buffer_bytes=16 << 20, definitions=None, **fields):
    said = []
    spool = OnDisk(
        str(directory),
        hello(**fields),
        DEFINITIONS if definitions is None else definitions,
        max_bytes=max_bytes,
        buffer_bytes=buffer_bytes,
        say=said.append,
    )
    spool.said = said
    return spool


def adopt(directory):
    """Return the only orphan below a directory, as a finder sees it."""
    (path,) = (path for path in Path(directory).iterdir())
    home = Home.adopt(str(path))
    assert home is not None
    return Orphan(home, buffer_bytes=4 << 20)


def deliver(backlog, server=None):
    """Send all that a backlog owes over one connection; returns the server's side of it."""
    server = server or ServerSession()
    server.last_seq = max(server.last_seq, backlog.acked_seq)
    backlog.rewind(server.last_seq)
    while (frame := backlog.next_frame(1 << 20)) is not None:
        server.take(frame)
        backlog.ack(server.last_seq)
    return server


def files(directory, pattern="*/*.seg"):
    return sorted(Path(directory).glob(pattern))


def chain(spool):
    """The segments from where the sender reads."""
    segment = spool._at
    while True:
        yield segment
        if not segment.next:
            return
        segment = segment.next[0][0]


def numbers_in(segment):
    """The numbers of the records in a segment."""
    found, at = [], HEADER_BYTES
    while (entry := segment.payload_at(at)) is not None:
        at += 8 + len(entry[1])
        if not entry[0]:
            found.append(spool_number(entry[1]))
    return found


def spool_number(record):
    import msgpack

    return msgpack.unpackb(record)[0]


@pytest.fixture(autouse=True)
def _no_descriptor_is_left():
    """Every test closes what it opens, by abandoning it as a fork would."""
    yield
    for home in list(segments._homes):
        home.release()


# ---------------------------------------------------------------------------------------------------------------
# The backlog's own promises


class SpoolMachine(BacklogMachine):
    """The same steps on files, and at the end perhaps a sudden death."""

    directory: Path
    count = itertools.count()

    @initialize(
        max_bytes=st.sampled_from([16_384, 65_536, 1 << 20]),
        where=st.sampled_from(["disk", "disk", "memory", "both"]),
        dies=st.booleans(),
    )
    def begin(self, max_bytes, where, dies):
        self.home = self.directory / str(next(self.count))
        self.backlog = new(self.home, max_bytes=max_bytes, buffer_bytes=max_bytes)
        self.where, self.dies = where, dies
        self.backlog.is_full = where == "memory"

    @rule()
    def toggle_the_disk(self):
        """What was full has room again, and the other way round."""
        if self.where == "both":
            self.backlog.is_full = not self.backlog.is_full

    def put(self, policy, size_bytes):
        self.number += 1
        if policy != "drop_newest":
            while self.backlog.is_over and self.drop(policy):
                pass
        if self.backlog.is_over:
            self.backlog.refuse()
            self.lost.append(self.number)
            return
        record = packed(self.number, size_bytes)
        self.backlog.put(record)
        self.uncut.append(self.number)
        self.largest_bytes = max(self.largest_bytes, len(record))

    @rule(reason=st.sampled_from(REASONS))
    def drop_one(self, reason):
        self.drop(reason)

    def drop(self, reason):
        spool = self.backlog
        in_memory = spool._memory_bytes > spool.buffer_bytes
        droppable = [s for s in chain(spool) if s.next and not s.claims and (not s.path) == in_memory]
        expected = numbers_in(droppable[0]) if droppable else []
        before = spool.dropped[reason]
        dropped = spool.drop_oldest(reason)
        assert dropped == bool(droppable)
        assert spool.dropped[reason] == before + len(expected)
        for number in expected:
            self.uncut.remove(number)
        self.lost += expected
        return dropped

    @rule()
    def prepare(self):
        self.backlog.prepare()

    @invariant()
    def memory_is_bounded(self):
        if (spool := getattr(self, "backlog", None)) is None:
            return
        held = [*spool._passed, *chain(spool)]
        on_disk = sum(s.size_bytes for s in held if s.path and s.home)
        in_memory = sum(s.size_bytes for s in held if not s.path)
        assert (spool._file_bytes, spool._memory_bytes) == (on_disk, in_memory)
        largest = max(self.largest_bytes + HEADER_BYTES + 8, spool.max_bytes // 8)
        assert on_disk <= spool.max_bytes + 2 * largest  # a put, and a gap that must be told
        assert spool.size_bytes >= 0
        if self.home.is_dir():
            assert len(files(self.home)) <= len(held) + 1

    def teardown(self):
        if (spool := getattr(self, "backlog", None)) is None:
            return
        if self.where == "disk" and self.dies and spool._homes:
            self.die()
            return
        super().teardown()
        assert spool._memory_bytes == 0 or not spool._at.path or spool._passed == []
        assert spool._told == spool._refused
        spool.renew(os.urandom(16))
        if self.where == "disk":
            assert not self.home.exists() or list(self.home.iterdir()) == []

    def die(self):
        """kill -9, and somebody finds what is left: every record that was put and not dropped is delivered, once."""
        self.backlog.abandon()
        orphan = adopt(self.home)
        told = self.backlog._told - self.backlog._refused + len(self.lost)
        deliver(orphan, self.server)
        assert orphan.is_empty
        assert not orphan.is_damaged
        assert sorted(self.server.numbers + self.lost) == list(range(1, self.number + 1))
        assert self.server.numbers == sorted(self.server.numbers)
        assert self.server.dropped == told
        orphan.close(remove=True)
        assert list(self.home.iterdir()) == []


def test_any_sequence_of_calls_keeps_every_promise(tmp_path):
    """What tests/test_backlog.py demands of a backlog, of one in files, in memory, or now here and now there."""
    SpoolMachine.directory = tmp_path
    run_state_machine_as_test(
        SpoolMachine,
        settings=settings(
            max_examples=150,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking such a history takes minutes
            report_multiple_bugs=False,
        ),
    )


# ---------------------------------------------------------------------------------------------------------------
# Files


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_in_the_directory(tmp_path):
    """A directory of its own, readable by nobody else, with no token in it; nothing at all before the first record."""
    spool = new(tmp_path / "a" / "spool")
    assert not (tmp_path / "a").exists()
    spool.put(packed(1))
    (home,) = (tmp_path / "a" / "spool").iterdir()
    assert mode(tmp_path / "a" / "spool") == mode(home) == 0o700
    assert {path.name.split("-")[0]: mode(path) for path in home.iterdir()} == dict.fromkeys(
        ("owner", "sites", "00000001"), 0o600
    )
    assert b"secret" not in b"".join(path.read_bytes() for path in home.iterdir())
    assert Home.adopt(str(home)) is None  # alive
    spool.abandon()
    orphan = adopt(tmp_path / "a" / "spool")
    assert orphan.home.hello._replace(token="secret") == spool._hello
    assert [tuple(fields) for fields in orphan.definitions] == DEFINITIONS
    assert deliver(orphan).numbers == [1]


def test_definitions_are_there_before_the_records(tmp_path):
    """Each is written once, with the first record after it; a new directory gets all of them again."""
    definitions = DEFINITIONS[:1]
    spool = new(tmp_path, definitions=definitions)
    spool.put(packed(1))
    home = spool._homes[0]
    size = (Path(home.path) / "sites").stat().st_size
    spool.put(packed(2))
    assert (Path(home.path) / "sites").stat().st_size == size
    definitions.append(DEFINITIONS[1])
    spool.put(packed(3))
    assert [tuple(fields) for fields in home.definitions()] == DEFINITIONS
    deliver(spool)
    spool.renew(os.urandom(16))
    assert list(tmp_path.iterdir()) == []
    spool.put(packed(4))
    assert [tuple(fields) for fields in spool._homes[1].definitions()] == DEFINITIONS
    with (Path(spool._homes[1].path) / "sites").open("ab") as file:
        file.write(b"\x50\0\0\0torn")
    assert [tuple(fields) for fields in spool._homes[1].definitions()] == DEFINITIONS


def test_a_record_larger_than_a_segment(tmp_path):
    """It gets one of its own size, and what comes after it goes on there or in the next."""
    spool = new(tmp_path, max_bytes=1 << 20)
    for number in range(6):
        spool.put(packed(number, 500_000 if number % 2 else 10))
    assert deliver(spool).numbers == list(range(6))


def test_segments_go_when_they_are_acked(tmp_path):
    """A file is removed with the ack of its last record; few descriptors are open however many there are."""
    spool, server = new(tmp_path, max_bytes=64 << 20), ServerSession()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20_000):
        spool.put(packed(number, 1_000))
    assert len(files(tmp_path)) == 20
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 6
    spool.rewind(0)
    for frame in sent(spool):
        server.take(frame)
    assert len(files(tmp_path)) in (20, 21)
    spool.ack(server.last_seq)
    deliver(spool, server)
    assert server.numbers == list(range(20_000))
    assert len(files(tmp_path)) == 2  # the last, and the one made ahead
    assert spool.is_empty


def test_somebody_removes_the_files(tmp_path):
    """A clean-up job takes the directory away: what was mapped is delivered, the rest counted, and a new one made."""
    spool = new(tmp_path / "spool", max_bytes=64 << 20)
    for number in range(5_000):
        spool.put(packed(number, 1_000))
    shutil.rmtree(tmp_path / "spool")
    server = deliver(spool)
    assert spool.is_empty
    assert len(server.numbers) + server.dropped == 5_000 == spool.acked + spool.dropped["drop_oldest"]
    assert 0 < server.dropped < 5_000
    assert server.numbers == sorted(server.numbers)
    for number in range(5_000, 10_000):
        spool.put(packed(number, 1_000))
        if number % 100 == 0:
            deliver(spool, server)
    assert server.numbers[-4_901:] == list(range(5_000, 9_901))
    assert len(files(tmp_path, "spool/*/*.seg")) > 0
    assert [text.split(" from")[0] for text in spool.said if "removed" in text] == ["somebody removed files"]


def test_a_renewed_spool_with_something_owed_stays(tmp_path):
    """Under the new session, which is written down: the numbers go on."""
    spool = new(tmp_path)
    for number in range(4):
        spool.put(packed(number))
    frames = sent(spool)
    spool.ack(2)
    session = os.urandom(16)
    spool.renew(session)
    assert frames
    spool.abandon()
    orphan = adopt(tmp_path)
    assert (orphan.home.hello.session, orphan.acked_seq) == (session, 2)
    assert deliver(orphan).numbers == [2, 3]


def test_acked_is_remembered(tmp_path):
    """What was acked is not sent again, wherever in a segment that is."""
    for acked in range(0, 3_000, 500):
        directory = tmp_path / str(acked)
        spool = new(directory, max_bytes=1 << 20)
        for number in range(1, 3_001):
            spool.put(packed(number, 200))
        server = ServerSession()
        spool.rewind(0)
        while server.last_seq < acked:
            server.take(spool.next_frame(1))
            spool.ack(min(acked, server.last_seq))
        spool.abandon()
        orphan = adopt(directory)
        assert orphan.acked_seq == acked
        assert deliver(orphan).numbers == list(range(acked + 1, 3_001))


def test_a_server_that_has_more_than_is_left(tmp_path):
    """A machine lost power, and with it what the server had acked: there is nothing to send, and nothing wrong."""
    spool = new(tmp_path)
    for number in range(10):
        spool.put(packed(number))
    spool.abandon()
    orphan = adopt(tmp_path)
    assert orphan.rewind(1_000)
    assert orphan.is_empty
    live = new(tmp_path / "live")
    live.put(packed(1))
    with pytest.raises(ProtocolError):
        live.rewind(1_000)


def test_numbers_of_what_was_in_memory_are_not_given_again(tmp_path):
    """The disk was full for a while: what was sent from memory then keeps its numbers after a death."""
    spool, server = new(tmp_path, max_bytes=1 << 20, buffer_bytes=1 << 20), ServerSession()

    def fill(first, *, full):
        spool.is_full = full
        for number in range(first, first + 100):
            spool.put(packed(number, 4_000))

    fill(1, full=False)
    fill(101, full=True)
    fill(201, full=False)
    spool.rewind(0)
    while server.last_seq < 150:
        server.take(spool.next_frame(1 << 20))
        spool.ack(max(0, server.last_seq - 20))
    spool.abandon()
    orphan = adopt(tmp_path)
    on_disk = {number for segment in chain(orphan) if segment.path for number in numbers_in(segment)}
    assert server.last_seq > 150
    assert on_disk > set(range(270, 301))
    deliver(orphan, server)
    assert server.numbers == sorted(set(server.numbers))
    assert on_disk <= set(server.numbers)
    assert max(on_disk) == 300
    assert not orphan.is_damaged


# ---------------------------------------------------------------------------------------------------------------
# What is found


def left_behind(directory, *, count=400, size=1_000, acked=0):
    """Leave the spool of a dead process: some segments, all of them numbered up to the middle."""
    spool = new(directory, max_bytes=1 << 20)
    for number in range(1, count + 1):
        spool.put(packed(number, size))
    spool.rewind(0)
    frame = spool.next_frame(1)
    if acked and frame:
        spool.ack(acked)
    spool.abandon()


def assert_prefix(orphan):
    """Reading ends, raises nothing, and gives true records from the first on."""
    numbers = deliver(orphan).numbers
    assert numbers == list(range(1, len(numbers) + 1))
    assert orphan.is_empty
    return numbers


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_to_segments_gives_a_prefix(tmp_path_factory, data):
    """Bits flip, ends are cut off or turn to zeros, files vanish: what is delivered is true and in order."""
    directory = tmp_path_factory.mktemp("spool")
    left_behind(directory)
    path = data.draw(st.sampled_from(files(directory)))
    content = bytearray(path.read_bytes())
    end = len(bytes(content).rstrip(b"\0"))
    at = data.draw(st.integers(0, end - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "zeros", "noise"]))
    if how == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del content[at:]
    elif how == "zeros":
        content[at:] = bytes(len(content) - at)
    else:
        noise = data.draw(st.binary(min_size=1, max_size=50))
        content[at : at + len(noise)] = noise
    path.write_bytes(content)
    orphan = adopt(directory)
    numbers = deliver(orphan).numbers
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(range(1, 401))
    if how == "flip" and at >= HEADER_BYTES:
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) < 400
        assert orphan.is_damaged or path == files(directory)[-1]
    orphan.close(remove=False)


def test_a_record_whose_writer_died_in_the_act(tmp_path):
    """Half a record at the end was never returned from: it is not delivered, and it is no damage."""
    left_behind(tmp_path, count=5)
    (path,) = files(tmp_path)
    content = path.read_bytes()
    end = len(content.rstrip(b"\0"))
    with path.open("r+b") as file:
        file.seek(end)
        file.write(segments.entry(packed(6, 1_000))[:700])
    orphan = adopt(tmp_path)
    assert assert_prefix(orphan) == [1, 2, 3, 4, 5]
    assert not orphan.is_damaged


def test_what_is_no_spool_is_left_alone(tmp_path):
    """A stranger's directory, a spool of a later format, a damaged owner: named, and not touched."""
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "file").write_text("mine")
    with pytest.raises(SpoolError, match="no owner"):
        Home.adopt(str(tmp_path / "stranger"))
    (tmp_path / "stranger" / "owner").write_text("me")
    with pytest.raises(SpoolError, match="another kind"):
        Home.adopt(str(tmp_path / "stranger"))
    left_behind(tmp_path / "spools")
    (home,) = (tmp_path / "spools").iterdir()
    content = (home / "owner").read_bytes()
    (home / "owner").write_bytes(content[:8] + b"\x63" + content[9:])
    with pytest.raises(SpoolError, match="format 99"):
        Home.adopt(str(home))
    (home / "owner").write_bytes(content[:-3] + b"abc")
    with pytest.raises(SpoolError, match="damaged"):
        Home.adopt(str(home))
    (home / "owner").write_bytes(content)
    assert assert_prefix(adopt(tmp_path / "spools")) == list(range(1, 401))
    (tmp_path / "empty").mkdir()
    assert Home.adopt(str(tmp_path / "empty")) is None
    assert not (tmp_path / "empty").exists()


def test_the_largest_that_a_handler_writes_is_read(tmp_path):
    """A full dictionary of the longest characters, and a record as large as a frame takes in the smallest spool."""
    sites = [Site("", INT_MIN, "", "", "", "", INT_MIN, "")] * MAX_SITES
    sites[0] = sites[0]._replace(name="\U0001f4a9" * MAX_DEFINITION_CHARS)  # in one, but what counts is the sum
    definitions = [*sites, *([Thread(INT_MIN, "")] * MAX_THREADS)]
    size_bytes = sum(len(segments.entry(bytes(4) + encode(Define([one])))) for one in definitions)
    assert 3 * size_bytes < MAX_SITES_BYTES
    for max_bytes in (64 << 10, 64 << 20):
        spool = new(tmp_path / str(max_bytes), max_bytes=max_bytes)
        for number in range(3):
            spool.put(packed(number, MAX_RECORD_BYTES - 100))
        spool.abandon()
        assert deliver(adopt(tmp_path / str(max_bytes))).numbers == [0, 1, 2]


@pytest.mark.parametrize(
    "message", [b"\xff\xff\xff\xff" + encode(Define([DEFINITIONS[0]])), bytes(4) + encode(Define([])), bytes(4)]
)
def test_a_definition_that_is_none_is_passed_over(tmp_path, message):
    """Whatever number it claims, it takes no memory for the holes before it."""
    left_behind(tmp_path)
    (path,) = files(tmp_path, "*/sites")
    with path.open("ab") as file:
        file.write(segments.entry(message))
    assert adopt(tmp_path).definitions == DEFINITIONS


def test_a_lock_on_what_is_gone_is_no_lock(tmp_path, monkeypatch):
    """Another finder removed the directory between our open() and our flock(): we have nothing."""
    left_behind(tmp_path)
    (home,) = tmp_path.iterdir()
    flock = fcntl.flock

    def slow(descriptor, how):
        (home / "owner").unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    assert Home.adopt(str(home)) is None


# ---------------------------------------------------------------------------------------------------------------
# Threads, signals, forks


class Counted(Producer):
    """Puts records of many sizes: where one does not fit any more, a smaller one would."""

    def put(self):
        number = next(self._numbers)
        self.backlog.put(packed(number, number * 7919 % 701))
        self.put_count += 1

    def run(self, count):
        for _ in range(count):
            self.put()


@pytest.mark.usefixtures("switching")
def test_threads_and_signals_write_whole_records_in_order(tmp_path, alarm):  # noqa: F811
    """Five threads and a signal handler put while one sends and acks: all is there, once, each writer's in order."""
    spool, server = new(tmp_path, max_bytes=64 << 20), ServerSession()
    spool._segment_bytes = 8_192  # a new one every 300 records
    producers = [Counted(spool, identity) for identity in range(5)]
    interrupting = Counted(spool, 5)
    done, failures = threading.Event(), []

    def send():
        try:
            spool.rewind(0)
            while not (done.is_set() and spool.is_empty):
                if (frame := spool.next_frame(256 << 10)) is not None:
                    server.take(frame)
                spool.ack(server.last_seq)
        except BaseException as error:
            failures.append(error)
            raise

    sender = threading.Thread(target=send)
    sender.start()
    threads = [threading.Thread(target=one.run, args=(8_000,)) for one in producers[1:]]
    for thread in threads:
        thread.start()
    alarm(interrupting.put, 0.005)  # longer than a put takes here, or handlers would nest without end
    producers[0].run(8_000)
    for thread in threads:
        thread.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    done.set()
    sender.join(60)
    assert not failures
    assert not sender.is_alive()
    assert interrupting.put_count > 5
    for one in (*producers, interrupting):
        own = [number & 0xFFFFFFFF for number in server.numbers if number >> 32 == one.identity]
        # A signal may interrupt its own handler.
        assert (sorted(own) if one is interrupting else own) == list(range(one.put_count))
    assert len(server.numbers) == spool.accepted == spool.acked
    assert spool.said == []


def test_a_full_segment_is_closed_to_all(tmp_path):
    """A writer that is late with a small record cannot put it where the reader has been already."""
    spool = new(tmp_path, max_bytes=1 << 20)
    spool.put(packed(1))
    server = deliver(spool)
    late = spool._tail
    spool.put(packed(2, 200_000))
    with pytest.raises(ValueError):
        late.write(b"small")
    assert numbers_in(late) == [1]
    assert deliver(spool, server).numbers == [1, 2]


def test_a_record_that_comes_between_two_looks(tmp_path, monkeypatch):
    """The reader finds nothing more; a record comes, and the segment is sealed; only then it looks for the next one."""
    spool = new(tmp_path, max_bytes=1 << 20)
    spool.put(packed(1))
    server = deliver(spool)
    payload_at = Segment.payload_at

    def interrupted(segment, at):
        found = payload_at(segment, at)
        if found is None:
            monkeypatch.undo()
            spool.put(packed(2))
            spool.put(packed(3, 200_000))
        return found

    monkeypatch.setattr(Segment, "payload_at", interrupted)
    deliver(spool, server)
    assert server.numbers == [1, 2, 3]


@pytest.mark.usefixtures("switching")
def test_threads_that_drop_count_exactly(tmp_path):
    """Four threads over a small spool, dropping the oldest, while one sends: put = received + dropped, and told so."""
    spool, server = new(tmp_path, max_bytes=64 << 10), ServerSession()
    done = threading.Event()

    def run(identity):
        for number in range(5_000):
            while spool.is_over and spool.drop_oldest("drop_oldest"):
                pass
            if spool.is_over:
                spool.refuse()
            else:
                spool.put(packed(identity << 32 | number, 100))

    def send():
        spool.rewind(0)
        while not (done.is_set() and spool.is_empty):
            if (frame := spool.next_frame(8_000)) is not None:
                server.take(frame)
                spool.ack(server.last_seq)

    sender = threading.Thread(target=send)
    threads = [threading.Thread(target=run, args=(identity,)) for identity in range(4)]
    for thread in (sender, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    sender.join(60)
    assert not sender.is_alive()
    assert spool.accepted == 20_000 == len(server.numbers) + server.dropped
    assert server.dropped == sum(spool.dropped.values()) > 0
    for identity in range(4):
        own = [number for number in server.numbers if number >> 32 == identity]
        assert own == sorted(set(own))


def open_files():
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(str(path.readlink()))
    return found


def test_a_fork_takes_nothing_along(tmp_path):
    """The child's copy writes nowhere, and keeps no lock; the parent's goes on."""
    spool = new(tmp_path)
    spool.put(packed(1))
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            spool.abandon()
            spool.put(packed(2))
            code = any(str(tmp_path) in path for path in open_files())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == before
    spool.put(packed(3))
    assert deliver(spool).numbers == [1, 3]
