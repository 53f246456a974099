"""What the ledger remembers, and what a file sink makes of it after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import kept

from aiolog import formatting, ledger
from aiolog.errors import ConfigError, reason
from aiolog.fanout import Delivery
from aiolog.ledger import ALL, COMPACT_BYTES, GROUP, MAGIC, NONE, Entry, Ledger, Run, decode, encode
from aiolog.sinks.file import FileSink
from aiolog.source import Site, Source, Thread

A, B = b"a" * 16, b"b" * 16
INODE = 7

sessions = st.sampled_from([A, B, b"c" * 16])
runs = st.builds(
    Run.of,
    sessions,
    st.integers(1, 1 << 63),
    st.lists(st.sampled_from(["", "x\n"]), min_size=1, max_size=9),
)
entries = st.builds(
    Entry,
    st.just(GROUP),
    st.floats(0, 1e10),
    st.integers(0, 1 << 63),
    st.integers(0, 1 << 62),
    st.integers(0, 1 << 62),
    st.integers(0, (1 << 32) - 1),
    st.lists(runs, max_size=4).map(tuple),
    st.lists(sessions, max_size=3).map(tuple),
)


@pytest.fixture
def opened(tmp_path):
    """Make ledgers on one path; each is closed at the end."""
    made, warnings = [], []

    def new(**settings) -> Ledger:
        one = Ledger(
            tmp_path / ".app.log.ledger",
            **({"synced": False, "ttl_seconds": 100.0, "max_sessions": 10, "clock": lambda: 1000.0} | settings),
            warn=warnings.append,
        )
        one.warnings = warnings
        made.append(one)
        one.was_there = one.read()
        return one

    yield new
    for one in made:
        one.close()


def group(to: Ledger, *runs: Run, offset: int = 0, data: bytes = b"x\n", is_committed: bool = True) -> None:
    to.announce(INODE, offset, data, runs)
    if is_committed:
        to.committed()


# -- entries


@given(st.lists(entries, max_size=5))
def test_what_is_encoded_is_decoded(made):
    """Entries come back as they were, and where each ends."""
    data = MAGIC + b"".join(map(encode, made))
    found = list(decode(data))
    assert [entry for entry, _ in found] == made
    assert [end for _, end in found][-1:] == [len(data)][: len(made)]


@given(st.lists(entries, min_size=1, max_size=4), st.data())
def test_damage_ends_the_reading_and_nothing_else(made, data):
    """Whatever becomes of the bytes: a prefix of the entries is read, and nothing is raised."""
    whole = MAGIC + b"".join(map(encode, made))
    at = data.draw(st.integers(0, len(whole) - 1))
    broken = data.draw(
        st.sampled_from(
            [
                whole[:at],
                whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :],
                whole[:at] + bytes(len(whole) - at),
                whole + bytes(100),
                whole + b"\xff" * 100,
            ]
        )
    )
    found = [entry for entry, _ in decode(broken)]
    assert found == made[: len(found)]


@given(runs, st.integers(0, 12))
def test_a_run_knows_its_records_by_its_texts(run, count):
    """With so many texts in the file exactly the records before the next text are dealt with."""
    has = [*run.has_text] if isinstance(run.has_text, bytes) else [run.has_text == ALL] * run.records
    seq = run.first_seq - 1
    for one in has:
        if one and not count:
            break
        count -= bool(one)
        seq += 1
    assert run.texts == sum(map(bool, has))
    assert run.seq_of(run.texts) == run.last_seq
    assert run.seq_of(run.texts if count > 0 else run.texts - sum(map(bool, has[seq - run.first_seq + 1 :]))) == seq


# -- the ledger


def test_what_was_committed_is_remembered(opened):
    """After a restart the last group is in doubt and all before it are not."""
    one = opened()
    assert not one.was_there
    one.settle(INODE, 0)
    group(one, Run(A, 1, 10))
    group(one, Run(A, 11, 5), Run(B, 1, 2))
    assert (one.mark(A), one.mark(B), one.mark(b"?" * 16)) == (15, 2, None)
    again = opened()
    assert again.was_there
    assert not again.is_damaged
    assert [[run.last_seq for run in entry.runs] for entry in again.doubtful] == [[10], [15, 2]]
    assert again.mark(A) is None
    for entry in again.doubtful:
        again.apply(entry)
    again.settle(INODE, 2)
    assert (opened().mark(A), opened().mark(B), opened().doubtful) == (15, 2, [])


def test_nothing_behind_a_torn_record_counts(opened):
    """Of a group that stands there in part only what comes before the tear is dealt with, texts or none."""
    one = opened()
    entry = Entry(GROUP, 1.0, INODE, 0, 9, 0, (Run(A, 1, 4), Run(A, 5, 5, NONE), Run(B, 1, 2, NONE)), (B,))
    assert one.apply(entry, 2) == 2 + 5 + 2
    assert (one.mark(A), one.mark(B)) == (2, None)
    assert one.apply(entry, 4) == 0
    assert (one.mark(A), one.mark(B)) == (9, None)


def test_an_entry_that_was_announced_in_vain_is_overwritten(opened):
    """The write failed, and the group came again with more: what counts is the second entry alone."""
    one = opened()
    one.settle(INODE, 0)
    group(one, Run(A, 1, 100, b"\1\0" * 50), is_committed=False)
    assert one.mark(A) is None
    group(one, Run(A, 1, 3))
    assert one.mark(A) == 3
    again = opened()
    assert not again.is_damaged
    (entry,) = again.doubtful
    assert entry.runs == (Run(A, 1, 3, ALL),)
    group(one, Run(A, 4, 50), is_committed=False)
    one.settle(INODE, 2)  # also makes void what was announced
    assert opened().mark(A) == 3


def test_a_goodbye_is_remembered_too(opened):
    """A session that has said BYE leaves with the next entry, of whatever kind."""
    one = opened()
    one.settle(INODE, 0)
    group(one, Run(A, 1, 1), Run(B, 1, 1))
    one.forget(A)
    group(one, Run(B, 2, 1))
    assert (one.mark(A), one.mark(B)) == (None, 2)
    one.forget(B)
    one.settle(INODE, 2)
    again = opened()
    assert (again.mark(A), again.mark(B), again.doubtful) == (None, None, [])


def test_a_long_ledger_becomes_short(opened, tmp_path):
    """Past its limit a settle() writes the marks alone, and they mean the same."""
    one = opened()
    one.settle(INODE, 0)
    seq = 1
    while not one.is_long:
        group(one, Run(A, seq, 1000, b"\1\0" * 500))
        seq += 1000
    one.settle(INODE, 2)
    assert not one.is_long
    size = (tmp_path / ".app.log.ledger").stat().st_size
    assert size < 200 < COMPACT_BYTES
    group(one, Run(A, seq, 1))
    again = opened()
    assert (again.mark(A), [run.last_seq for entry in again.doubtful for run in entry.runs]) == (seq - 1, [seq])
    assert (tmp_path / ".app.log.ledger").stat().st_mode & 0o777 == 0o600


def test_where_there_is_no_room_for_a_short_one_the_long_one_grows(opened, monkeypatch, tmp_path):
    """Without a free inode the ledger goes on in the file that it has (F19)."""
    monkeypatch.setattr(ledger, "COMPACT_BYTES", 100)
    one = opened()
    one.settle(INODE, 0)
    (tmp_path / ".app.log.ledger.new").mkdir()
    for seq in range(1, 9):
        group(one, Run(A, seq, 1))
        one.settle(INODE, 2)
    assert any("cannot shorten" in text for text in one.warnings)
    assert opened().mark(A) == 8
    assert len(one.warnings) < 5


class Time:
    """A machine's clocks: what the wall says may jump; what the process lives through does not."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.ticks = 5.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.ticks += seconds

    @property
    def clocks(self):
        return {"clock": lambda: self.now, "monotonic": lambda: self.ticks}


def test_sessions_expire_across_restarts(opened):
    """A session that does not come back is forgotten after its time, however often the server starts meanwhile."""
    time = Time()
    one = opened(**time.clocks)
    one.settle(INODE, 0)
    group(one, Run(A, 1, 1))
    for n in range(4):
        time.pass_by(30)
        group(one, Run(B, n + 1, 1))
        one.settle(INODE, 2)
        one.close()
        one = opened(**time.clocks)
        one.settle(INODE, 2)
    assert (one.mark(A), one.mark(B)) == (None, 4)


def test_sessions_expire_while_the_server_runs(opened, monkeypatch):
    """However long it does, a session that does not come back is forgotten after its time."""
    monkeypatch.setattr(ledger, "COMPACT_BYTES", 1)
    time = Time()
    one = opened(**time.clocks)
    one.settle(INODE, 0)
    group(one, Run(A, 1, 1))
    for n in range(100):
        assert one.mark(A) == (1 if n <= 10 else None)
        time.pass_by(10)
        group(one, Run(B, n + 1, 1))
        while not one.is_long:
            group(one, Run(B, n + 1, 1))
        one.settle(INODE, 2)


YEAR_SECONDS = 366 * 86_400.0


@pytest.mark.parametrize("jump", [101.0, 8 * 86_400.0, 50 * YEAR_SECONDS, -8 * 86_400.0, -50 * YEAR_SECONDS])
@pytest.mark.parametrize("is_orderly", [True, False])
def test_time_in_which_no_server_ran_makes_nobody_old(opened, jump, is_orderly):
    """A server that was off for longer than sessions are kept, or a clock that was set meanwhile, costs no mark."""
    time = Time()
    one = opened(**time.clocks)
    one.settle(INODE, 0)
    group(one, Run(A, 1, 1))
    time.pass_by(40)
    group(one, Run(B, 1, 1))
    if is_orderly:
        one.settle(INODE, 2)
    one.close()
    time.now += jump
    again = opened(**time.clocks)
    for entry in again.doubtful:
        again.apply(entry)
    again.settle(INODE, 2)
    assert (again.mark(A), again.mark(B)) == (1, 1)
    assert {session: round(time.now - seen_at) for session, (_, seen_at) in again.marks.items()} == {A: 40, B: 0}
    for _ in range(2):  # and now it is
        time.pass_by(40)
        group(again, Run(B, 2, 1))
    again.settle(INODE, 2)
    again.close()
    last = opened(**time.clocks)
    for entry in last.doubtful:
        last.apply(entry)
    last.settle(INODE, 2)
    assert (last.mark(A), last.mark(B)) == (None, 2)


@pytest.mark.parametrize("jump", [8 * 86_400.0, 50 * YEAR_SECONDS, -8 * 86_400.0])
@pytest.mark.parametrize("is_killed", [True, False])
def test_a_clock_that_jumps_under_a_running_server_makes_nobody_old(opened, monkeypatch, jump, is_killed):
    """Neither for itself, nor for the server that reads what a killed one left."""
    monkeypatch.setattr(ledger, "COMPACT_BYTES", 1)
    time = Time()
    one = opened(**time.clocks)
    one.settle(INODE, 0)
    group(one, Run(A, 1, 1))
    time.pass_by(40)
    time.now += jump
    group(one, Run(B, 1, 1))
    while not (is_killed or one.is_long):
        group(one, Run(B, 1, 1))
    if is_killed:
        one.close()
        one = opened(**time.clocks)
        for entry in one.doubtful:
            one.apply(entry)
    one.settle(INODE, 2)
    assert (one.mark(A), one.mark(B)) == (1, 1)
    assert one.marks[B][1] == time.now


def test_the_oldest_sessions_give_way(opened):
    """The table is bounded, and what that may cost is said."""
    now = [0.0]
    one = opened(max_sessions=3, clock=lambda: now[0])
    one.settle(INODE, 0)
    for n in range(5):
        now[0] += 1
        group(one, Run(bytes([n]) * 16, 1, 1))
    one.settle(INODE, 2)
    again = opened(max_sessions=3, clock=lambda: now[0])
    again.settle(INODE, 2)
    assert [again.mark(bytes([n]) * 16) for n in range(5)] == [None, None, 1, 1, 1]
    assert "2 sessions were forgotten" in one.warnings[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: b"something else\n" + data,
        lambda data: data.replace(b"ledger 1", b"ledger 9"),
        lambda data: data[:60] + b"?" + data[61:],
        lambda data: data + bytes(4096),
    ],
)
def test_damage_is_known(opened, tmp_path, damage):
    """What is no ledger, or not whole, says so; what can be read of it counts (F7)."""
    path = tmp_path / ".app.log.ledger"
    one = opened()
    one.settle(INODE, 0)
    group(one, Run(A, 1, 1))
    one.settle(INODE, 2)
    one.close()
    path.write_bytes(damage(path.read_bytes()))
    again = opened()
    assert again.is_damaged
    again.settle(INODE, 2)
    assert not opened().is_damaged


def test_a_ledger_of_three_gigabytes_is_read_as_far_as_it_tells(opened, tmp_path):
    """What is no entry is not read, however much of it there is; what stands before it counts."""
    path = tmp_path / ".app.log.ledger"
    for content in (b"", MAGIC, MAGIC + b"\xff\xff\xff\x7f" + bytes(4)):
        path.write_bytes(content)
        os.truncate(path, 3 << 30)
        tracemalloc.start()
        assert opened().is_damaged
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
    path.unlink()
    one = opened()
    one.settle(INODE, 0)
    group(one, Run(A, 1, 1))
    one.settle(INODE, 2)
    os.truncate(path, 3 << 30)
    again = opened()
    assert (again.is_damaged, again.mark(A)) == (True, 1)
    again.settle(INODE, 2)
    assert path.stat().st_size < 200


def test_a_ledger_that_is_longer_than_any_is_damaged(opened, monkeypatch, tmp_path):
    """The bound on what is read follows from when it is compacted, and how often that may fail."""
    monkeypatch.setattr(ledger, "COMPACT_BYTES", 100)
    path = tmp_path / ".app.log.ledger"
    entries = [encode(Entry(GROUP, 1.0, INODE, 0, 0, 0, (Run(A, n, 1),))) for n in range(1, 1000)]
    path.write_bytes(MAGIC + b"".join(entries))
    one = opened(max_sessions=1)
    assert one.is_damaged
    assert 16 * 100 <= sum(len(encode(entry)) for entry in one.doubtful) < 100 * 100
    monkeypatch.undo()
    one = opened()
    assert (one.is_damaged, len(one.doubtful)) == (False, 999)


@pytest.mark.parametrize("kind", ["fifo", "link", "zeros", "directory", "nowhere"])
def test_what_is_no_file_is_no_ledger(opened, tmp_path, kind):
    """It is refused with its path, and neither waited for nor read for ever."""
    path = tmp_path / ".app.log.ledger"
    (tmp_path / "other").write_bytes(MAGIC)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to({"link": "other", "zeros": "/dev/zero", "nowhere": "nowhere"}[kind])
    with pytest.raises(ConfigError, match=re.escape(f"{path} is not a regular file. Remove it")):
        opened()


@pytest.mark.parametrize("name", [".app.log.ledger", ".app.log.ledger.new"])
def test_a_directory_in_the_way_is_named(opened, tmp_path, name):
    """Where a ledger is to be written, it is said which one, and what to do."""
    one = opened()
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match="is a directory") as caught:
        one.settle(INODE, 0)
    assert reason(caught.value) == f"{tmp_path / name} is a directory. Remove it"
    (tmp_path / name).rmdir()
    one.settle(INODE, 0)


@pytest.mark.parametrize("name", [".app.log.ledger", ".app.log.ledger.new"])
async def test_a_pipe_in_the_place_of_a_ledger_ends_the_start(tmp_path, name):
    """With a sentence that has its path; beside it, it is replaced."""
    os.mkfifo(tmp_path / name)
    warnings = []
    sink = FileSink("all", tmp_path / "app.log", FORMATS["json"], clock=lambda: 1.0, warn=warnings.append)
    if name.endswith(".new"):
        await sink.open()
        await sink.close()
        assert not (tmp_path / name).exists()
    else:
        with pytest.raises(ConfigError, match=re.escape(f"sink all: {tmp_path / name} is not a regular file")):
            await sink.open()


def test_an_entry_cut_short_by_a_kill_is_no_damage(opened, tmp_path):
    """The last entry may be torn; those before it count."""
    path = tmp_path / ".app.log.ledger"
    one = opened()
    one.settle(INODE, 0)
    group(one, Run(A, 1, 1))
    whole = path.stat().st_size
    group(one, Run(A, 2, 1))
    for size in reversed(range(whole, path.stat().st_size)):
        os.truncate(path, size)
        again = opened()
        assert not again.is_damaged
        assert [run.last_seq for entry in again.doubtful for run in entry.runs] == [1]


# -- a file sink after a crash


class Kill(BaseException):
    """Ends a write in the middle, as SIGKILL does: nothing is tidied up."""


SITES = [
    Site("app", 20, "INFO", "/a.py", "a.py", "a", 1, "f"),
    Site("app.x", 40, "ERROR", "/a.py", "a.py", "a", 2, "f"),
]
FORMATS = {
    "json": formatting.json_lines(),
    "text": formatting.text("%(message)s"),
    "errors": formatting.text("%(message)s", accepts=lambda site: site.levelno >= 40),
    "raw": formatting.text("%(message)s", escaping="raw"),
}


def source() -> Source:
    made = Source(process_name="w", pid=1)
    for site in SITES:
        made.define(site)
    made.define(Thread(1, "t"))
    return made


def deliveries(counts) -> list[Delivery]:
    """Batches of sessions A and B in turn, of so many records; every third is an error, every fifth has two lines."""
    made, seqs = [], {A: 1, B: 1}
    origin = source()
    for n, count in enumerate(counts):
        session = (A, B)[n % 2]
        first = seqs[session]
        records = [
            (1.0, int(seq % 3 == 0), 2, f"{session[:1].decode()} {seq}" + ("\nmore" if seq % 5 == 0 else ""))
            for seq in range(first, first + count)
        ]
        made.append(Delivery(origin, records, session=session, first_seq=first))
        seqs[session] += count
    return made


async def killed_at(directory: Path, kind: str, batches: list[Delivery], call: int, fraction=1.0, *, max_bytes=0):
    """Write groups of two batches; die in the ``call``-th write, having done a part. Returns how many came back."""
    sink = FileSink(
        "app", directory / "app.log", FORMATS[kind], kept(max_bytes=max_bytes), clock=lambda: 1.0, warn=print
    )
    await sink.open()
    left, done = [call], 0

    def kill_in(real):
        def write(descriptor, data, *offset):
            left[0] -= 1
            if left[0] == 0:
                real(descriptor, bytes(data)[: int(len(data) * fraction)], *offset)
                raise Kill
            if left[0] < 0:
                raise Kill
            return real(descriptor, data, *offset)

        return write

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", kill_in(os.write))
        patch.setattr(os, "pwrite", kill_in(os.pwrite))
        with contextlib.suppress(Kill):
            while done < len(batches):
                await sink.write(batches[done : done + 2])
                done += 2
    # The process is gone: its descriptors are closed, and nothing else happens.
    for descriptor in (sink._live._descriptor, sink._live.ledger._descriptor):
        if descriptor >= 0:
            os.close(descriptor)
    sink._live._descriptor = sink._live.ledger._descriptor = -1
    sink._looking.cancel()
    sink._thread.shutdown()
    sink._backups_thread.shutdown()
    return done


async def resumed(directory: Path, kind: str, batches: list[Delivery], done: int, max_bytes: int) -> list[str]:
    """Start again and send what was not acked, as clients do: from the least mark on, in batches of other sizes."""
    said = []
    sink = FileSink(
        "app", directory / "app.log", FORMATS[kind], kept(max_bytes=max_bytes), clock=lambda: 2.0, warn=said.append
    )
    await sink.open()
    for batch in batches[done:]:
        half = len(batch.records) // 2
        for part, first_seq in (
            (batch.records[:half], batch.first_seq),
            (batch.records[half:], batch.first_seq + half),
        ):
            if part:
                await sink.write([Delivery(batch.source, part, session=batch.session, first_seq=first_seq)])
    await sink.close()
    return said


def written(directory: Path) -> bytes:
    """All that stands in the live file and its backups."""
    names = sorted(
        path for path in directory.iterdir() if path.name.startswith("app.log.2") or path.name.startswith("app.log.1")
    )
    return b"".join(path.read_bytes() for path in [*names, directory / "app.log"])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]),
    st.sampled_from([0, 40, 200]),
)
def test_a_kill_anywhere_costs_nothing(kind, counts, call, fraction, max_bytes):
    """Wherever in the ledger or in the file a kill comes: with what clients send again, every record is there once."""
    batches = deliveries(counts)
    expected = "".join(text for batch in batches for text in FORMATS[kind](batch.source, batch.records))

    async def scenario(directory: Path) -> None:
        done = await killed_at(directory, kind, batches, call, fraction, max_bytes=max_bytes)
        said = await resumed(directory, kind, batches, done, max_bytes)
        assert written(directory).decode() == expected, said

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(Path(directory)))


async def test_whole_records_of_a_dead_client_are_kept(tmp_path):
    """Nobody sends the torn group again: its whole records stay, the torn one is moved aside, and all is said."""
    batches = deliveries([9])
    await killed_at(tmp_path, "json", batches, 2, 0.5)
    said = []
    sink = FileSink("app", tmp_path / "app.log", FORMATS["json"], clock=lambda: 2.0, warn=said.append)
    await sink.open()
    mark = sink.mark(A)
    await sink.close()
    kept = written(tmp_path).decode().splitlines()
    assert 0 < mark == len(kept) < 9
    (torn,) = tmp_path.glob("app.log.torn-*")
    whole = "".join(FORMATS["json"](batches[0].source, batches[0].records)).encode()
    assert whole.startswith(written(tmp_path) + torn.read_bytes())
    assert f"{9 - mark} records were not yet whole" in said[0]


@pytest.mark.parametrize("loss", [1, 37, 300, 5000])
async def test_what_a_power_cut_took_is_not_counted(tmp_path, loss):
    """The file is shorter than several entries say: those that it does not hold are not counted (F4, F6)."""
    batches = deliveries([10] * 12)
    await killed_at(tmp_path, "json", batches, 10_000)
    path = tmp_path / "app.log"
    os.truncate(path, max(0, path.stat().st_size - loss))
    await resumed(tmp_path, "json", batches, 0, 0)
    assert (
        written(tmp_path)
        == "".join(text for batch in batches for text in FORMATS["json"](batch.source, batch.records)).encode()
    )


@pytest.mark.parametrize("tail", [bytes(4096), b"\xff" * 100, b"half a line", b"\0\n\0\n", b"a whole line\n"])
async def test_bytes_behind_the_last_group(tmp_path, tail):
    """What nobody wrote is moved aside, unless it is whole lines; no record is lost or twice (F6)."""
    batches = deliveries([10] * 3)
    await killed_at(tmp_path, "json", batches, 10_000)
    with (tmp_path / "app.log").open("ab") as out:
        out.write(tail)
    await resumed(tmp_path, "json", batches, 0, 0)
    expected = "".join(text for batch in batches for text in FORMATS["json"](batch.source, batch.records)).encode()
    torn = b"".join(path.read_bytes() for path in tmp_path.glob("app.log.torn-*"))
    assert (written(tmp_path), torn) == ((expected + tail, b"") if tail == b"a whole line\n" else (expected, tail))


@pytest.mark.parametrize("at", [0, 700, 1500])
async def test_a_block_that_never_reached_the_disk(tmp_path, at):
    """The file is as long as it should be, and a part of the last group reads as NULs: that comes again (F4)."""
    batches = deliveries([10] * 4)
    await killed_at(tmp_path, "json", batches, 10_000)
    path = tmp_path / "app.log"
    size = path.stat().st_size
    with path.open("r+b") as out:
        out.seek(size - at - 512)
        out.write(bytes(512))
    await resumed(tmp_path, "json", batches, 0, 0)
    expected = "".join(text for batch in batches for text in FORMATS["json"](batch.source, batch.records)).encode()
    assert written(tmp_path) == expected


async def test_a_rotation_ends_all_doubt(tmp_path):
    """A server dies right after it rotated, and the backup is gone at the next start: nothing is written again."""
    batches = deliveries([5] * 4)
    for call in range(1, 12):
        directory = tmp_path / str(call)
        directory.mkdir()
        await killed_at(directory, "json", batches, call, 0.0, max_bytes=1000)
        backups = sorted(directory.glob("app.log.1*"))
        if backups and not (directory / "app.log").stat().st_size:
            break
    else:
        pytest.fail("no kill came between a rotation and the first record after it")
    before = len(b"".join(path.read_bytes() for path in backups).splitlines())
    for path in backups:
        path.unlink()
    said = await resumed(directory, "json", batches, 0, 1000)
    assert not any("is gone" in text for text in said)
    assert len(written(directory).splitlines()) == 20 - before


async def test_a_bit_that_flips_costs_one_record(tmp_path):
    """Damage in the middle of the last group: the records before it count, the rest comes again, nothing else."""
    batches = deliveries([10] * 3)
    await killed_at(tmp_path, "json", batches, 10_000)
    path = tmp_path / "app.log"
    data = bytearray(path.read_bytes())
    data[-300] ^= 1
    path.write_bytes(data)
    await resumed(tmp_path, "json", batches, 0, 0)
    after = written(tmp_path).decode(errors="replace").splitlines()
    expected = [text[:-1] for batch in batches for text in FORMATS["json"](batch.source, batch.records)]
    assert len(after) == len(expected) == 30
    assert sum(a != b for a, b in zip(after, expected, strict=True)) <= 1


async def test_without_a_ledger_the_data_is_believed(tmp_path):
    """A ledger that is gone costs a sentence, and at most what was not acked comes twice (F7)."""
    batches = deliveries([5] * 4)
    done = await killed_at(tmp_path, "json", batches, 8)
    (tmp_path / ".app.log.ledger").unlink()
    said = await resumed(tmp_path, "json", batches, done, 0)
    lines = written(tmp_path).decode().splitlines()
    assert len(set(lines)) == 20
    assert len(lines) <= 25
    assert ["has no ledger" in text for text in said] == [True]


async def test_the_file_that_was_moved_away_is_found_by_its_inode(tmp_path):
    """Somebody renamed the file of a killed server: what stands there counts as written all the same."""
    batches = deliveries([5] * 2)
    await killed_at(tmp_path, "json", batches, 10_000)
    (tmp_path / "app.log").rename(tmp_path / "moved.log")
    said = await resumed(tmp_path, "json", batches, 0, 0)
    assert written(tmp_path) == b""
    assert len((tmp_path / "moved.log").read_text().splitlines()) == 10
    assert said == []


async def test_where_the_file_is_gone_all_that_comes_again_is_written(tmp_path):
    """Nobody can tell what stood in it: what comes again is written again, and that is said."""
    batches = deliveries([5] * 4)
    await killed_at(tmp_path, "json", batches, 10_000)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "app.log").rename(tmp_path / "elsewhere" / "app.log")
    said = await resumed(tmp_path, "json", batches, 0, 0)
    assert len(written(tmp_path).splitlines()) == 20
    assert "is gone" in said[0]


async def test_bytes_that_are_gone_after_an_orderly_end_are_said(tmp_path):
    """The ledger knows how long the file was: a part that is missing at the next start costs a sentence."""
    sink = FileSink("app", tmp_path / "app.log", FORMATS["json"], clock=lambda: 2.0, warn=print)
    await sink.open()
    await sink.write(deliveries([5]))
    await sink.close()
    os.truncate(tmp_path / "app.log", 100)
    said = await resumed(tmp_path, "json", [], 0, 0)
    assert any("bytes that stood in" in text and "are gone" in text for text in said)
