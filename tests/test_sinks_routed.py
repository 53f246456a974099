"""The sink of many files on real files: who gets one, who may not, what a day's end does; all is there once."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory import kept

from aiolog import formatting
from aiolog.errors import ConfigError
from aiolog.fanout import Delivery
from aiolog.rotation import split_backup
from aiolog.routing import PathTemplate
from aiolog.sinks.routed import RoutedFileSink
from aiolog.source import Site, Source, Thread

MORNING = 1_795_420_862.0  # 2026-11-23T08:01:02Z
DAY = 86_400.0
MESSAGE = formatting.text("%(message)s")


class Clock:
    def __init__(self):
        self.now = MORNING

    def __call__(self):
        return self.now


class Process:
    """One session; its deliveries have the next numbers. A record is a logger and a message."""

    def __init__(self, app="shop", name="worker-1"):
        self.session = secrets.token_bytes(16)
        self.source = Source(app=app, host="web1", pid=7, process_name=name)
        self.source.define(Thread(1, "MainThread"))
        self.loggers = {}
        self.seq = 0

    def wire(self, logger, message, **rare):
        number = self.loggers.get(logger)
        if number is None:
            self.source.define(Site(logger, 20, "INFO", "/app.py", "app.py", "app", 1, "f"))
            number = self.loggers[logger] = len(self.source.definitions) - 1
        return (1.5, number, 0, message, rare) if rare else (1.5, number, 0, message)

    def __call__(self, *records):
        first_seq = self.seq + 1
        self.seq += len(records)
        wires = [self.wire(*record) if isinstance(record, tuple) and len(record) == 2 else record for record in records]
        return Delivery(self.source, wires, session=self.session, first_seq=first_seq)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def warnings():
    return []


@pytest.fixture
async def opened(tmp_path, clock, warnings):
    """Open sinks below ``tmp_path/logs``; all are closed at the end."""
    sinks = []

    async def open_sink(template="{logger}.log", form=MESSAGE, max_open_files=256, max_routes=1024, **settings):
        sink = RoutedFileSink(
            "by",
            PathTemplate(f"logs/{template}"),
            tmp_path,
            form,
            kept(**settings),
            max_open_files=max_open_files,
            max_routes=max_routes,
            utc=True,
            clock=clock,
            warn=warnings.append,
        )
        sinks.append(sink)
        await sink.open()
        return sink

    yield open_sink
    for sink in sinks:
        await sink.close()


def tree(directory):
    """Return what every file below holds that is not hidden, by its path."""
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def open_descriptors():
    return len([*Path("/proc/self/fd").iterdir()])


async def tended(sink):
    """Wait until the thread of the backups has done all it was asked."""
    await asyncio.wrap_future(sink._backups_thread.submit(lambda: None))


# -- which file


async def test_each_record_goes_to_the_file_of_its_name(opened, tmp_path):
    """Files are made when they are needed, and hold what is theirs, in order."""
    sink, shop, bill = await opened("{app}/{logger}.log"), Process("shop"), Process("bill")
    await sink.write([shop(("a", "1"), ("b", "2"), ("a", "3")), bill(("a", "4"))])
    await sink.write([shop(("a", "5"))])
    assert tree(tmp_path / "logs") == {"bill/a.log": "4\n", "shop/a.log": "1\n3\n5\n", "shop/b.log": "2\n"}
    assert sink.records_written == 5
    assert sink.bytes_written == 10


async def test_a_record_of_another_process_has_that_ones_file(opened, tmp_path):
    """A connection may bring records that were made in another process, and says so in each."""
    sink, process = await opened("{process}.log"), Process(name="main")
    await sink.write([process(("a", "1"), process.wire("a", "2", processName="child"), ("a", "3"))])
    assert tree(tmp_path / "logs") == {"child.log": "2\n", "main.log": "1\n3\n"}


async def test_what_the_format_leaves_out_makes_no_file(opened, tmp_path):
    """A record that the sink's level or filter does not take is nobody's."""
    chosen = formatting.text("%(message)s", accepts=lambda site: site.name != "b")
    sink, process = await opened(form=chosen), Process()
    await sink.write([process(("b", "1"), ("a", "2"), ("b", "3"))])
    assert tree(tmp_path / "logs") == {"a.log": "2\n"}


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x", "/etc/passwd", "..", "", "a/../../b", "a\0b", "é", "\ud800", "x" * 300]
)
async def test_no_name_leads_out(opened, tmp_path, name):
    """Whatever a logger is called, its file is one component below the root."""
    sink, process = await opened(), Process()
    await sink.write([process((name, "1"))])
    (path,) = tree(tmp_path / "logs")
    assert "/" not in path
    assert {one.name for one in tmp_path.iterdir()} == {"logs"}


async def test_a_record_of_a_wrong_form_has_a_file_too(opened, tmp_path):
    """What a peer sends in the place of a record is written where "unknown" belongs."""
    sink, process = await opened(), Process()
    await sink.write([process(("a", "1"), "nonsense", (1.5, 99, 0, "2"), None)])
    assert set(tree(tmp_path / "logs")) == {"a.log", "unknown.log"}
    assert sink.records_written == 4


@pytest.mark.parametrize("rare", [5, None, 1.5, True, "x", [1], {"processName": 5}, {1: 2}], ids=repr)
async def test_a_record_whose_rest_is_of_a_wrong_form_is_written(opened, tmp_path, rare):
    """Were it refused, the group would come again for ever, and nobody would be acked."""
    sink, process = await opened(), Process()
    await sink.write([process(("a", "1"))])
    await sink.write([process((1.5, process.loggers["a"], 0, "2", rare))])
    assert tree(tmp_path / "logs") == {"a.log": "1\n2\n"}


# -- bounds


async def test_few_files_are_open_and_all_are_written(opened, tmp_path):
    """With more names than descriptors the longest unused lets go, and goes on where it was."""
    sink, process = await opened(max_open_files=3), Process()
    for turn in range(4):
        await sink.write([process(*((f"l{n}", f"{turn}.{n}") for n in range(10)))])
        assert sum(live.is_open for live in sink._files.values()) <= 3
    assert tree(tmp_path / "logs") == {f"l{n}.log": "".join(f"{t}.{n}\n" for t in range(4)) for n in range(10)}


async def test_a_flood_of_names_is_bounded(opened, tmp_path, warnings):
    """Beyond max_routes names share one file, nothing is lost, and that is said once."""
    sink, process = await opened(max_routes=20, max_open_files=8), Process()
    for turn in range(10):
        await sink.write([process(*((f"n{turn}.{n}", f"{turn}.{n}") for n in range(200)))])
    files = tree(tmp_path / "logs")
    assert len(files) == 21
    assert Counter("".join(files.values()).split()) == Counter(f"{t}.{n}" for t in range(10) for n in range(200))
    assert len(files["_other.log"].split()) == 2000 - 20
    assert [text for text in warnings if "20 files have a name by now" in text] == warnings
    assert len(warnings) == 1


async def test_names_of_an_earlier_server_count(opened, tmp_path, warnings):
    """A restart is no way around the bound."""
    first, process = await opened(max_routes=2), Process()
    await first.write([process(("a", "1"), ("b", "2"))])
    await first.close()
    second = await opened(max_routes=2)
    await second.write([process(("c", "3"), ("a", "4"))])
    assert tree(tmp_path / "logs") == {"a.log": "1\n4\n", "b.log": "2\n", "_other.log": "3\n"}


@pytest.mark.parametrize("obstacle", ["link", "fifo", "directory", "linked directory"])
async def test_what_stands_in_the_place_of_a_file_is_left_alone(opened, tmp_path, warnings, obstacle):
    """A name that is no plain file of ours cannot have one: its records go to the fallback, with one line."""
    logs, target = tmp_path / "logs/shop", tmp_path / "target"
    target.mkdir()
    (target / "secret").write_text("untouched")
    logs.mkdir(parents=True)
    if obstacle == "link":
        (logs / "a.log").symlink_to(target / "secret")
    elif obstacle == "fifo":
        os.mkfifo(logs / "a.log")
    elif obstacle == "directory":
        (logs / "a.log").mkdir()
    else:
        (tmp_path / "logs/bill").symlink_to(target)
    sink = await opened("{app}/{logger}.log")
    shop, bill = Process("shop"), Process("bill")
    await sink.write([shop(("a", "1"), ("b", "2")), bill(("x", "3"))])
    await sink.write([shop(("a", "4"))])
    files = tree(tmp_path / "logs")
    files.pop("shop/a.log", None)
    redirected = {"_other/_other.log": "3\n"} if obstacle == "linked directory" else {"_other/_other.log": "1\n4\n"}
    assert redirected.items() <= files.items()
    assert {path.name: path.read_text() for path in target.iterdir()} == {"secret": "untouched"}
    assert len(warnings) == 1
    assert "_other" in warnings[0]


async def test_a_full_disk_bars_nobody(opened, tmp_path, monkeypatch):
    """What another file would meet as well is tried again, not sent elsewhere."""
    sink, process, real = await opened(), Process(), os.open
    left = [1]

    def fail(path, flags, *rest, **named):
        if str(path).endswith("a.log") and left[0]:
            left[0] -= 1
            raise OSError(28, os.strerror(28))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", fail)
    group = [process(("a", "1"), ("b", "2"))]
    with pytest.raises(OSError, match="No space"):
        await sink.write(group)
    await sink.write(group)
    assert tree(tmp_path / "logs") == {"a.log": "1\n", "b.log": "2\n"}


async def test_what_nobody_can_read_is_not_acked(opened, tmp_path):
    """Where the root was removed, and something else stands there, a file without a name takes no records."""
    sink, process = await opened("{app}/{logger}.log"), Process()
    await sink.write([process(("a", "1"))])
    shutil.rmtree(tmp_path / "logs")
    (tmp_path / "logs").write_text("")
    group = [process(("a", "2"))]
    with pytest.raises(OSError, match="cannot open"):
        await sink.write(group)
    (tmp_path / "logs").unlink()
    await sink.write(group)
    assert tree(tmp_path / "logs") == {"shop/a.log": "2\n"}


async def test_a_group_that_failed_half_way_is_written_once(opened, tmp_path, monkeypatch):
    """What one file has of it is not written there again, and the other gets its part."""
    sink, process, real = await opened(), Process(), os.write
    await sink.write([process(("a", "0"), ("b", "0"))])

    def fail(descriptor, data):
        if bytes(data).startswith(b"b"):
            raise OSError(28, os.strerror(28))
        return real(descriptor, data)

    group = [process(("a", "a1"), ("b", "b1"), ("c", "c1"), ("a", "a2"))]
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match="No space"):
        await sink.write(group)
    monkeypatch.setattr(os, "write", real)
    await sink.write(group)
    assert tree(tmp_path / "logs") == {"a.log": "0\na1\na2\n", "b.log": "0\nb1\n", "c.log": "c1\n"}


async def test_a_file_that_the_disk_failed_is_given_up_though_it_rested(opened, tmp_path, monkeypatch):
    """After a failed fsync a file is never written to again, also when it had to let go of its descriptor meanwhile."""
    sink, process, real = await opened(durability="fsynced", max_open_files=1), Process(), os.fdatasync
    await sink.write([process(("a", "0"), ("b", "0"))])
    left = [1]

    def fail(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "a.log" and left:
            left.pop()
            raise OSError(5, os.strerror(5))
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail)
    group = [process(("a", "1"), ("b", "1"))]
    with pytest.raises(OSError, match="error"):
        await sink.write(group)
    await sink.write(group)
    files = tree(tmp_path / "logs")
    assert (files.pop("a.log"), files.pop("b.log")) == ("1\n", "0\n1\n")
    assert [*files.values()] == ["0\n"]


async def test_two_servers_cannot_have_one_tree(opened):
    """The second is refused in a sentence, also while all files are closed."""
    await opened()
    with pytest.raises(ConfigError, match="is being written by another server or sink"):
        await opened()


# -- after a crash


async def crashed(sink):
    """Let go of everything as the kernel does for a process that is gone: nothing is written any more."""

    def drop():
        for live in sink._files.values():
            live.ledger.close()
            live._close_descriptor()
        os.close(sink._lock)

    await asyncio.wrap_future(sink._thread.submit(drop))
    sink._looking.cancel()
    sink._thread.shutdown()
    sink._backups_thread.shutdown()


async def test_what_comes_again_after_a_crash_is_recognised(opened, tmp_path):
    """Each file's ledger knows its own records, whatever the other files have."""
    process = Process()
    group = [process(("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"))]
    first = await opened()
    await first.write(group)
    await crashed(first)
    second = await opened()
    assert second.mark(process.session) is None
    await second.write(group)
    await second.write([process(("b", "5"))])
    assert tree(tmp_path / "logs") == {"a.log": "1\n3\n", "b.log": "2\n5\n", "c.log": "4\n"}


async def test_a_fallback_is_written_last(opened, tmp_path, monkeypatch):
    """Killed amid a group, it has nothing of the group unless all others have their part: a name that comes to it later
    would otherwise be taken for written."""
    process, real = Process(), os.write
    first = await opened(max_routes=1)
    await first.write([process(("a", "0"), ("x", "0"))])

    def fail(descriptor, data):
        if bytes(data).startswith(b"a"):
            raise OSError(5, os.strerror(5))
        return real(descriptor, data)

    group = [process(("a", "a1"), ("x", "x1"))]
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match="error"):
        await first.write(group)
    monkeypatch.setattr(os, "write", real)
    await crashed(first)
    (tmp_path / "logs/a.log").rename(tmp_path / "kept")
    (tmp_path / "logs/a.log").symlink_to(tmp_path / "kept")  # the name is barred from now on
    second = await opened(max_routes=1)
    await second.write(group)
    assert (tmp_path / "logs/_other.log").read_text().split() == ["0", "a1", "x1"]


@pytest.mark.parametrize("days", [0, 1])
async def test_what_was_one_name_too_many_is_recognised(opened, tmp_path, clock, days):
    """What went to the fallback and comes again is known, though its name may have a file of its own by then."""
    process = Process()
    first = await opened("{date}/{logger}.log", max_routes=1)
    await first.write([process(("a", "1"))])
    group = [process(("b", "2"))]
    await first.write(group)
    await crashed(first)
    clock.now += days * DAY
    second = await opened("{date}/{logger}.log", max_routes=3)
    await second.write(group)
    await second.write([process(("b", "3"))])
    files = tree(tmp_path / "logs")
    assert files[f"2026-11-{23 + days}/b.log"] == "3\n"
    assert sorted("".join(files.values()).split()) == ["1", "2", "3"]


@pytest.mark.parametrize("restart", [False, True])
async def test_a_record_of_midnight_is_in_one_of_the_days(opened, tmp_path, clock, restart):
    """What was written before midnight and comes again after it is known, though its file has another name by then."""
    process = Process()
    sink = await opened("{date}/{logger}.log")
    group = [process(("a", "1"), ("b", "2"))]
    await sink.write(group)
    clock.now += DAY
    if restart:
        await crashed(sink)
        sink = await opened("{date}/{logger}.log")
    await sink.write([*group, process(("a", "3"))])
    await tended(sink)
    files = tree(tmp_path / "logs")
    assert {path.split("/")[0]: "" for path in files} == {"2026-11-23": "", "2026-11-24": ""}
    assert "".join(files[path] for path in sorted(files) if "/a.log" in path) == "1\n3\n"
    assert "".join(files[path] for path in sorted(files) if "/b.log" in path) == "2\n"
    assert all(split_backup(Path(path).name) for path in files if path.startswith("2026-11-23"))


async def test_a_day_is_remembered_until_the_next_one_has_a_ledger(opened, tmp_path, clock, monkeypatch):
    """A disk that is full at midnight, and a crash: what was written before is known nevertheless."""
    process, real = Process(), os.open
    sink = await opened("{date}/{logger}.log")
    group = [process(("a", "1"))]
    await sink.write(group)
    clock.now += DAY
    await sink.look()

    def fail(path, *rest, **named):
        if str(path).endswith(".ledger.new"):
            raise OSError(28, os.strerror(28))
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match="No space"):
        await sink.write([*group, process(("a", "2"))])
    monkeypatch.setattr(os, "open", real)
    await crashed(sink)
    sink = await opened("{date}/{logger}.log")
    await sink.write(group)
    await sink.write([process(("a", "3"))])
    await tended(sink)
    assert "".join(tree(tmp_path / "logs").values()) == "1\n3\n"
    assert [path.parent.name for path in (tmp_path / "logs").rglob(".*.ledger")] == ["2026-11-24"]


async def test_a_day_that_cannot_end_ends_later(opened, tmp_path, clock, monkeypatch, warnings):
    """With a full disk at midnight nothing stays open, and the files become backups when there is room again."""
    sink, process, real = await opened("{date}/{logger}.log"), Process(), os.pwrite
    group = [process(*((f"l{n}", "1") for n in range(10)))]
    await tended(sink)
    before = open_descriptors()
    await sink.write(group)

    def fail(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", fail)
    clock.now += DAY
    await sink.look()
    await tended(sink)  # a sweep has a directory open
    assert sum("could not be ended" in text for text in warnings) == 10
    assert open_descriptors() <= before
    monkeypatch.setattr(os, "pwrite", real)
    await sink.write([*group, process(("l0", "2"))])
    await sink.look()
    await tended(sink)
    files = tree(tmp_path / "logs")
    assert files.pop("2026-11-24/l0.log") == "2\n"
    assert sorted(split_backup(Path(path).name)[0] for path, text in files.items() if text) == [
        f"l{n}.log" for n in range(10)
    ]
    assert "".join(files.values()) == "1\n" * 10
    assert sink.records_written == 11


async def test_what_a_day_knew_is_remembered_over_quiet_days(opened, tmp_path, clock):
    """A name that logs again after days, and restarts in between, still knows what it had."""
    process = Process()
    group = [process(("a", "1"))]
    sink = await opened("{logger}-{date}.log")
    await sink.write(group)
    await sink.close()
    for _ in range(3):
        clock.now += DAY
        sink = await opened("{logger}-{date}.log")
        await sink.write([Process()(("other", "x"))])
        await sink.close()
    sink = await opened("{logger}-{date}.log")
    await sink.write([*group, process(("a", "2"))])
    await tended(sink)
    assert "".join(text for path, text in tree(tmp_path / "logs").items() if path.startswith("a-")) == "1\n2\n"
    ledgers = sorted(path.name for path in (tmp_path / "logs").glob(".a-*.ledger"))
    assert ledgers == [".a-2026-11-26.log.ledger"]


async def test_ended_days_are_forgotten_with_their_sessions(opened, tmp_path, clock):
    """Names that never come back leave no ledgers behind, and sessions that ended are in no new one."""
    process, once = Process(), Process()
    sink = await opened("{date}/{logger}.log")
    await sink.write([once(("a", "1"))])
    for n in range(20):
        if n == 10:
            await sink.close()
            sink = await opened("{date}/{logger}.log")
        await sink.write([Process()((f"once{n}", "x")), process(("a", "2"))])
        clock.now += DAY
        await sink.look()
    assert len(list((tmp_path / "logs").rglob(".*.ledger"))) <= 10
    assert len(sink._inherited) <= 10
    await sink.write([process(("a", "3"))])
    assert set(sink._files["2026-12-13/a.log"].ledger.marks) == {process.session}
    clock.now += DAY
    await sink.look()
    sink.forget(process.session)
    await sink.write([Process()(("a", "4"))])
    assert process.session not in sink._files["2026-12-14/a.log"].ledger.marks


# -- backups


async def test_files_rotate_each_for_itself(opened, tmp_path):
    """The bound of size is that of a file, backups are named after theirs, and rotate() takes them all."""
    sink, process = await opened(max_bytes=6, backup_count=2), Process()
    await sink.write([process(*(("a", f"{n}") for n in range(10)), ("b", "x"))])
    await tended(sink)
    files = tree(tmp_path / "logs")
    assert sorted(split_backup(path)[0] if split_backup(path) else path for path in files) == ["a.log"] * 3 + ["b.log"]
    made = await sink.rotate()
    assert sorted(split_backup(name)[0] for name in made) == ["a.log", "b.log"]
    assert tree(tmp_path / "logs")["b.log"] == ""


async def test_a_whole_tree_keeps_its_bounds(opened, tmp_path, clock):
    """max_total_bytes is over all files and all days, the oldest backup of any going first; strangers stay."""
    logs = tmp_path / "logs"
    sink, process = await opened("{app}/{logger}.log", max_total_bytes=50), Process()
    for n in range(5):
        await sink.write([process(("a", f"a{n}" * 3), ("b", f"b{n}" * 3))])
        await sink.rotate()
        clock.now += 10
    strangers = [logs / "shop/notes.txt", logs / "other.log.20201123T080102Z.0000", logs / "shop/a.log.1"]
    for path in strangers:
        path.write_text("kept" * 100)
    await sink.write([process(("a", "live"))])
    await sink.look()
    await tended(sink)
    assert all(path.exists() for path in strangers)
    left = [path for path in tree(logs) if split_backup(Path(path).name) and logs / path not in strangers]
    assert len(left) == 6  # of 7 bytes each, and the live files
    assert sink.backups_removed == 4
    assert {tree(logs)[path][1] for path in left} == {"2", "3", "4"}


async def test_a_flood_keeps_the_bounds_of_the_tree(opened, tmp_path, clock):
    """What was rotated since the last look is bounded at the next one, not once a minute."""
    sink, process = await opened(max_bytes=20, max_total_bytes=100), Process()
    await sink.look()
    for _ in range(50):
        await sink.write([process(("a", "123456789"))])
    clock.now += 5
    await sink.look()
    await tended(sink)
    assert sum(map(len, tree(tmp_path / "logs").values())) <= 100


async def test_backups_of_one_second_go_one_by_one(opened, tmp_path, clock):
    """A day that ends, and the first backup of the next day in the same second, are two: the older one goes alone."""
    sink, process = await opened("{date}/{logger}.log", max_total_bytes=25), Process()
    await sink.write([process(("a", "1" * 9))])
    clock.now += DAY
    await sink.write([process(("a", "2" * 9))])
    await sink.rotate()
    await sink.write([process(("a", "3" * 9))])
    await sink.look()
    await tended(sink)
    assert sorted(tree(tmp_path / "logs").values()) == ["2" * 9 + "\n", "3" * 9 + "\n"]


async def test_days_that_ended_count_as_backups(opened, tmp_path, clock):
    """backup_count keeps so many days of a name, whatever the directory is called."""
    sink, process = await opened("{date}/{logger}.log", backup_count=2, compress="gzip"), Process()
    for n in range(5):
        await sink.write([process(("a", f"day {n}"))])
        clock.now += DAY
    await sink.look()
    await tended(sink)
    backups = (tmp_path / "logs").rglob("*.gz")
    assert sorted(path.parent.name for path in backups) == ["2026-11-26", "2026-11-27"]


async def test_a_live_file_under_a_backups_name_is_not_removed(opened, tmp_path, clock):
    """Who renames a live file to what reads as a backup takes nothing from those who still write there."""
    sink, process = await opened(max_age_seconds=10), Process()
    await sink.write([process(("a", "1"))])
    renamed = tmp_path / "logs/a.log.20200101T000000Z.0000"
    (tmp_path / "logs/a.log").rename(renamed)
    sink._backups_thread.submit(sink._sweep)
    await tended(sink)
    assert renamed.read_text() == "1\n"


async def test_a_sweep_that_fails_says_so(opened, warnings, monkeypatch):
    """Nobody waits for it, so it is not silent either."""
    sink = await opened(max_age_seconds=10)
    await tended(sink)
    monkeypatch.setattr(os, "walk", lambda _root: 1 / 0)
    sink._backups_thread.submit(sink._sweep)
    await tended(sink)
    monkeypatch.undo()
    assert "retention in" in warnings[-1]
    assert "division by zero" in warnings[-1]


# -- all together


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 1), st.lists(st.sampled_from("abcdef"), max_size=6)), max_size=3),
            st.sampled_from(["", "", "", "crash", "close", "day", "again", "crash at midnight"]),
        ),
        max_size=8,
    ),
    template=st.sampled_from(["{logger}.log", "{app}/{logger}-{date}.log", "{date}/{app}.log"]),
    max_routes=st.sampled_from([1, 2, 100]),
    max_open_files=st.sampled_from([1, 2, 100]),
    max_bytes=st.sampled_from([0, 6]),
)
def test_every_record_once_and_in_order(steps, template, max_routes, max_open_files, max_bytes):
    """Through crashes, restarts, days and bounds: each record is in one file, and each file has a process's order."""

    async def live(directory):
        clock, processes = Clock(), [Process("shop"), Process("bill")]
        expected, unacked = [], []

        async def opened():
            sink = RoutedFileSink("by", PathTemplate(f"logs/{template}"), directory, MESSAGE,
                                  kept(max_bytes=max_bytes), max_open_files=max_open_files, max_routes=max_routes,
                                  utc=True, clock=clock, warn=lambda _text: None)  # fmt: skip
            await sink.open()
            return sink

        sink = await opened()
        for batches, event in steps:
            group = []
            for who, loggers in batches:
                process = processes[who]
                texts = [f"{who}.{process.seq + 1 + n}" for n in range(len(loggers))]
                expected += texts
                group.append(process(*zip(loggers, texts, strict=True)))
            await sink.write(group)
            if event == "again":
                await sink.write(group)
            elif event == "day":
                clock.now += DAY
            elif event:
                await (sink.close() if event == "close" else crashed(sink))
                clock.now += DAY if event == "crash at midnight" else 1
                sink = await opened()
                await sink.write(group)  # nobody was told that it was written
        await sink.close()
        assert not unacked
        found = tree(directory / "logs")
        assert Counter("".join(found.values()).split()) == Counter(expected)
        by_live = {}
        for path in sorted(found, key=lambda path: (split_backup(path) is None, path)):
            split = split_backup(path)
            by_live.setdefault(split[0] if split else path, []).extend(found[path].split())
        for texts in by_live.values():
            for who in ("0", "1"):
                numbers = [int(text[2:]) for text in texts if text.startswith(who)]
                assert numbers == sorted(numbers)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(live(Path(directory)))
