"""The file sink on real files: what it writes, what it repairs, and what it never does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import os
import random
import resource
import secrets
import shutil
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory import kept

from aiolog import backups as backups_module
from aiolog import formatting, ledger
from aiolog.errors import ConfigError, reason
from aiolog.fanout import Delivery
from aiolog.livefile import ROTATION_RETRY_SECONDS
from aiolog.rotation import Schedule, parse_backup, stamp_text
from aiolog.sinks import file
from aiolog.sinks.file import FileSink
from aiolog.source import Source

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MORNING = 1_795_420_862.0  # 2026-11-23T08:01:02Z
MESSAGE = formatting.text("%(message)s", escaping="raw")


class Clock:
    def __init__(self) -> None:
        self.now = MORNING

    def __call__(self) -> float:
        return self.now


def make_source() -> Source:
    source = Source()
    source.define(("app", 20, "INFO", "/app.py", "app.py", "app", 1, "f"))
    source.define((1, "MainThread"))
    return source


SOURCE = make_source()


def deliver(*messages: str, notices=(), session=None, first_seq=None) -> Delivery:
    """A batch of a session of its own, or of ``session``; each notice stands for a record that was dropped."""
    return Delivery(
        SOURCE,
        [(1.0, 0, 1, m) for m in messages],
        session=session or secrets.token_bytes(16),
        first_seq=first_seq or 1 + len(notices),
        dropped=len(notices),
        notices=[(1.0, 0, 1, m) for m in notices],
    )


def visible(directory: Path) -> list[str]:
    """Return the names of all files but the ledger."""
    return sorted(path.name for path in directory.iterdir() if path.name != ".app.log.ledger")


def backups(path: Path) -> list[Path]:
    """Return the backups of a live file, oldest first."""
    return sorted(p for p in path.parent.iterdir() if parse_backup(path.name, p.name))


def text_of(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = zstd.decompress(data)
    return data.decode()


def all_lines(path: Path) -> list[str]:
    """Return what all backups and the live file hold, in order."""
    return "".join(text_of(p) for p in [*backups(path), path]).splitlines()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def settled(sink: FileSink) -> None:
    """Wait until retention and compression have nothing to do."""
    while (last := sink._live.backups._last) and not last.done():
        await asyncio.wrap_future(last)


@contextlib.contextmanager
def file_size_limit(limit_bytes: int):
    """Let the kernel refuse to make any file longer: a disk that is full in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))  # CPython ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def is_ledger(descriptor) -> bool:
    """Whether a descriptor is that of a ledger, old or new."""
    return isinstance(descriptor, int) and ".ledger" in str(Path(f"/proc/self/fd/{descriptor}").readlink())


def failing(monkeypatch, name: str, error: int, times: int = 1):
    """Let an ``os`` function fail a number of times, where no real fault can be had; the ledger's calls succeed."""
    real, left = getattr(os, name), [times]

    def fail(*args, **kwargs):
        if left[0] and not is_ledger(args[0]):
            left[0] -= 1
            raise OSError(error, os.strerror(error))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, fail)
    return left


async def cancelled_while_writing(sink: FileSink, group, gate: threading.Event, monkeypatch) -> None:
    """Cancel a write whose thread is inside the system, where it stays until ``gate`` is set."""
    inside, real = threading.Event(), os.write

    def write(descriptor, data):
        inside.set()
        gate.wait()
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    writing = asyncio.ensure_future(sink.write(group))
    await asyncio.to_thread(inside.wait)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "app.log"


@pytest.fixture
async def opened(path, clock, warnings):
    """Open file sinks on ``path``; all are closed at the end."""
    sinks = []

    async def open_sink(at: Path = path, **settings) -> FileSink:
        sink = FileSink("app", at, MESSAGE, kept(**settings), clock=clock, warn=warnings.append)
        sinks.append(sink)
        await sink.open()
        return sink

    yield open_sink
    for sink in sinks:
        await sink.close()


# -- writing


async def test_a_group_is_one_write(opened, path, monkeypatch):
    """All records of all deliveries go in order, notices first, with one call of the system, and are counted."""
    sink, writes, real = await opened(), [], os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(len(data)) or real(fd, data))
    await sink.write([deliver("a", "b", notices=["n"]), deliver("ä")])
    assert path.read_text("utf-8") == "n\na\nb\nä\n"
    assert writes == [9]
    assert (sink.records_written, sink.bytes_written, sink.write_errors, sink.rotations) == (4, 9, 0, 0)


async def test_what_a_sink_does_not_take_is_not_written(path, clock, warnings):
    """An empty text is a record of another sink; a group of them does not touch the file."""
    sink = FileSink("app", path, formatting.text("%(message)s", accepts=lambda _site: False), clock=clock,
                    warn=warnings.append)  # fmt: skip
    await sink.open()
    await sink.write([deliver("a", "b")])
    await sink.close()
    assert path.read_bytes() == b""
    assert sink.records_written == 0


async def test_a_lone_surrogate_is_degraded_and_not_refused(opened, path):
    """A raw template lets it through; the record is written all the same."""
    await (await opened()).write([deliver("a\udcffb")])
    assert path.read_bytes() == b"a\\udcffb\n"


async def test_an_existing_file_is_continued(opened, path):
    """What was there stays there."""
    path.write_text("old\n")
    await (await opened()).write([deliver("new")])
    assert path.read_text() == "old\nnew\n"


async def test_short_writes_are_continued(opened, path, monkeypatch):
    """A system that takes seven bytes at a time gets them all."""
    sink, real = await opened(), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    await sink.write([deliver("0123456789", "abcdefghij")])
    assert path.read_text() == "0123456789\nabcdefghij\n"


async def test_a_write_that_claims_too_much_is_found_out(opened, path, monkeypatch):
    """The size that the file really has counts, not what write() returned (fault F21)."""
    sink, real = await opened(), os.write
    await sink.write([deliver("before")])
    monkeypatch.setattr(os, "write", lambda fd, data: 10 if len(data) > 10 else real(fd, data))
    group = [deliver("0123456789abcdef")]
    with pytest.raises(OSError, match="bytes that are not in the file"):
        await sink.write(group)
    assert path.read_text() == "before\n"
    monkeypatch.setattr(os, "write", real)
    await sink.write(group)
    assert path.read_text() == "before\n0123456789abcdef\n"


# -- files and directories


async def test_modes(opened, tmp_path):
    """Directories are made with 0750 and files with 0640, even under a umask of 0 (attack S20)."""
    path, before = tmp_path / "a" / "b" / "app.log", os.umask(0)
    try:
        sink = await opened(path, max_bytes=3, compress="gzip")
        await sink.write([deliver("a", "b")])
        await settled(sink)
    finally:
        os.umask(before)
    assert [mode_of(p) for p in (path.parent.parent, path.parent)] == [0o750, 0o750]
    modes = {p.name[-3:]: mode_of(p) for p in path.parent.iterdir()}
    assert modes == {"log": 0o640, ".gz": 0o640, "ger": 0o600}


async def test_a_symbolic_link_is_refused(opened, path, tmp_path):
    """A link at the last component is not followed, whatever it points at (attack S16)."""
    target = tmp_path / "passwd"
    target.write_text("root")
    path.symlink_to(target)
    with pytest.raises(ConfigError, match=r"sink app: cannot open .*app.log: it is a symbolic link\. Choose"):
        await opened()
    assert target.read_text() == "root"


@pytest.mark.timeout(10)
async def test_a_fifo_is_refused_at_once(opened, path):
    """A FIFO without a reader cannot hang the start (attack S18)."""
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not a regular file"):
        await opened()


async def test_a_hard_link_is_refused(opened, path, tmp_path):
    """A second name may be a file of somebody else, which must not be written to (attack S18)."""
    (tmp_path / "shadow").write_text("root\n")
    os.link(tmp_path / "shadow", path)
    with pytest.raises(ConfigError, match="hard links"):
        await opened()
    assert path.read_text() == "root\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_a_file_of_another_user_is_refused(opened, path):
    """Who owns the file can read and change all that comes into it (attack S18)."""
    path.touch()
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        await opened()


@pytest.mark.parametrize("bad", ["directory", "below a file", "in /proc", "/dev/null"])
async def test_a_place_that_cannot_be_is_refused_in_a_sentence(opened, path, tmp_path, bad):
    """Whatever is wrong with a path is an error of the configuration, with what to do."""
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    place = {
        "directory": tmp_path / "directory",
        "below a file": tmp_path / "file" / "app.log",
        "in /proc": Path("/proc/aiolog/app.log"),
        "/dev/null": Path("/dev/null"),
    }[bad]
    with pytest.raises(ConfigError, match=r"^sink app: .*\. .*another path|may create and write"):
        await opened(place)


async def test_a_directory_that_cannot_be_written_is_refused(opened, path, monkeypatch):
    """The file may be writable in it; rotation would fail at night."""
    path.touch()
    real = os.access  # root may write everywhere, so it is told otherwise
    monkeypatch.setattr(os, "access", lambda p, mode: p != path.parent and real(p, mode))
    with pytest.raises(ConfigError, match="rotation cannot write to"):
        await opened()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be who is refused")
@pytest.mark.parametrize(
    ("mode", "owner", "allowed"), [(0o755, 0, True), (0o1777, 0, True), (0o777, 0, False), (0o755, 1, False)]
)
async def test_root_does_not_write_where_others_may_rename(opened, tmp_path, mode, owner, allowed):
    """Whoever may rename there could put a link in the place of a log (CVE-2016-1247)."""
    directory = tmp_path / "logs"
    directory.mkdir()
    directory.chmod(mode)
    os.chown(directory, owner, owner)
    if allowed:
        await opened(directory / "app.log")
    else:
        with pytest.raises(ConfigError, match=r"may rename files in .*mode 0750.*runs as root does not write there"):
            await opened(directory / "app.log")


async def test_two_sinks_cannot_have_one_file(opened, path):
    """The second is refused while the first lives, and welcome after it."""
    first = await opened()
    with pytest.raises(ConfigError, match="is being written by another"):
        await opened()
    await first.close()
    await opened()


# -- rotation by size


async def test_the_limit_is_in_bytes_and_is_never_exceeded(opened, path):
    """With text of one to four bytes a character no file gets larger, and no record is lost or split."""
    sink, rng = await opened(max_bytes=250), random.Random(1)
    messages = ["".join(rng.choices("aäあ🙂", k=rng.randrange(1, 50))) for _ in range(300)]
    for start in range(0, 300, 30):
        await sink.write([deliver(*messages[start : start + 15]), deliver(*messages[start + 15 : start + 30])])
    assert all_lines(path) == messages
    files = [*backups(path), path]
    assert all(p.stat().st_size <= 250 for p in files)
    assert all(p.stat().st_size > 250 - 4 * 50 for p in files[:-1])  # and each was filled as far as it went
    assert sink.rotations == len(files) - 1
    assert sink.bytes_written == sum(p.stat().st_size for p in files)


async def test_a_record_larger_than_the_limit_has_a_file_of_its_own(opened, path):
    """Only such a record makes a file too large; nothing is cut."""
    sink = await opened(max_bytes=10)
    await sink.write([deliver("a", "0123456789", "b")])
    assert [text_of(p) for p in [*backups(path), path]] == ["a\n", "0123456789\n", "b\n"]


async def test_rotations_within_a_second_keep_every_backup(opened, path):
    """With a clock that stands still the counter tells them apart."""
    sink = await opened(max_bytes=2)
    for i in range(5):
        await sink.write([deliver(str(i))])
    assert [p.name[-4:] for p in backups(path)] == ["0000", "0001", "0002", "0003"]
    assert all_lines(path) == list("01234")


async def test_an_existing_name_is_never_overwritten(opened, path, tmp_path):
    """A directory, a link and a file that have the next names already are left as they are (attack S21)."""
    stem = "app.log.20261123T080102Z.000"
    (tmp_path / f"{stem}0").mkdir()
    (tmp_path / f"{stem}1").symlink_to("/etc/passwd")
    (tmp_path / f"{stem}2").write_text("precious")
    sink = await opened(max_bytes=2)
    await sink.write([deliver("a", "b")])
    assert text_of(tmp_path / f"{stem}3") == "a\n"
    assert (tmp_path / f"{stem}2").read_text() == "precious"


# -- rotation that fails


async def test_a_failed_rotation_never_stops_the_writing(opened, path, clock, warnings, monkeypatch):
    """The current file grows on; the next try comes after a while and not with the next group (attack S21)."""
    sink = await opened(max_bytes=4)
    left = failing(monkeypatch, "rename", errno.EACCES, times=2)
    await sink.write([deliver("a", "b", "c", "d")])
    await sink.write([deliver("e")])
    clock.now += ROTATION_RETRY_SECONDS - 0.1
    await sink.write([deliver("f")])
    assert (left, path.read_text(), len(warnings)) == ([1], "a\nb\nc\nd\ne\nf\n", 1)
    assert "cannot rotate" in warnings[0]
    assert "Permission denied" in warnings[0]
    clock.now -= 3600  # a clock that was set back does not make it wait for an hour
    await sink.write([deliver("g")])
    assert left == [0]
    clock.now += ROTATION_RETRY_SECONDS
    await sink.write([deliver("h")])
    assert [text_of(p) for p in [*backups(path), path]] == ["a\nb\nc\nd\ne\nf\ng\n", "h\n"]


async def test_a_rotation_that_cannot_make_the_new_file_is_undone(opened, path, clock, warnings, monkeypatch):
    """Without an inode for the new file the old one gets its name back, and all goes on in it (fault F19)."""
    sink = await opened(max_bytes=4, compress="gzip")
    await sink.write([deliver("a", "b")])
    left = failing(monkeypatch, "open", errno.ENOSPC)
    await sink.write([deliver("c", "d", "e")])
    await settled(sink)
    assert (left, backups(path), path.read_text()) == ([0], [], "a\nb\nc\nd\ne\n")
    assert "No space left" in warnings[0]
    clock.now += ROTATION_RETRY_SECONDS
    await sink.write([deliver("f")])
    await settled(sink)
    assert [text_of(p) for p in [*backups(path), path]] == ["a\nb\nc\nd\ne\n", "f\n"]


async def test_a_link_that_is_swapped_in_during_a_rotation_is_not_followed(opened, path, tmp_path, clock, monkeypatch):
    """Records go on into the file that is open, which nobody compresses away, until the link is gone (S16)."""
    target = tmp_path / "passwd"
    target.write_text("root")
    sink, real = await opened(max_bytes=4, compress="gzip"), os.rename

    def rename_and_swap(*args, **kwargs):
        real(*args, **kwargs)
        path.symlink_to(target)

    monkeypatch.setattr(os, "rename", rename_and_swap)
    await sink.write([deliver("a", "b", "c")])
    sink._live.backups.tend()
    await settled(sink)
    await sink.write([deliver("d")])
    assert target.read_text() == "root"
    assert [text_of(p) for p in backups(path)] == ["a\nb\nc\nd\n"]
    monkeypatch.undo()
    path.unlink()
    clock.now += ROTATION_RETRY_SECONDS
    await sink.write([deliver("e")])
    await settled(sink)
    assert all_lines(path) == list("abcde")
    assert path.read_text() == "e\n"


# -- rotation by time


async def test_a_schedule_rotates_before_the_first_record_that_is_due(opened, path, clock):
    """An hour after the last rotation a new file begins, whatever the size."""
    sink = await opened(schedule=Schedule("H"))
    await sink.write([deliver("a")])
    clock.now += 3599
    await sink.write([deliver("b")])
    clock.now += 1
    await sink.write([deliver("c", "d")])
    await sink.write([deliver("e")])
    assert [text_of(p) for p in [*backups(path), path]] == ["a\nb\n", "c\nd\ne\n"]


async def test_after_a_restart_the_last_write_says_what_is_due(opened, path):
    """As in TimedRotatingFileHandler: a file of yesterday is rotated at once, one of this hour is not."""
    for age, count in ((3600, 1), (1800, 1)):
        path.write_text("old\n")
        os.utime(path, (MORNING - age, MORNING - age))
        sink = await opened(schedule=Schedule("H"))
        await sink.write([deliver("new")])
        await sink.close()
        assert len(backups(path)) == count


async def test_rotation_on_demand(opened, path, clock):
    """What stands in the file becomes a backup now; with nothing in it there is nothing to do."""
    sink = await opened()
    assert await sink.rotate() == []
    await sink.write([deliver("a")])
    clock.now += 5
    (name,) = await sink.rotate()
    assert name == f"app.log.{stamp_text(int(clock.now))}.0000"
    await sink.write([deliver("b")])
    assert text_of(path) == "b\n"
    assert all_lines(path) == ["a", "b"]


async def test_rotation_at_start(opened, path):
    """A server that begins leaves what an earlier one wrote in a file of its own; an empty one it goes on with."""
    sink = await opened(at_start=True)
    await sink.write([deliver("a")])
    await sink.close()
    await (await opened(at_start=True)).write([deliver("b")])
    assert text_of(path) == "b\n"
    assert len(backups(path)) == 1


async def test_what_is_due_is_done_though_nobody_writes(opened, path, clock):
    """The end of a day, and a name that somebody took away, do not wait for the next record."""
    sink = await opened(schedule=Schedule("H"), max_age_seconds=86_400)
    await sink.write([deliver("a")])
    await sink.look()
    assert len(backups(path)) == 0
    clock.now += 3_601
    await sink.look()
    assert len(backups(path)) == 1
    clock.now += 3_601
    await sink.look()
    assert len(backups(path)) == 1  # an empty file is never rotated
    path.rename(path.with_name("moved"))
    await sink.look()
    assert path.read_text() == ""
    clock.now += 86_400
    await sink.look()
    await settled(sink)
    assert backups(path) == []
    assert sink.backups_removed == 1


async def test_a_look_needs_no_file(path, clock, warnings):
    """Before it is open, and after it is closed, there is nothing to look at."""
    sink = FileSink("app", path, MESSAGE, clock=clock, warn=warnings.append)
    await sink.look()
    await sink.close()
    assert not path.exists()
    assert warnings == []


async def test_an_empty_file_is_never_rotated(opened, path, clock):
    """However late it is, and the schedule then counts from the first record."""
    sink = await opened(schedule=Schedule("H"))
    clock.now += 10 * 3600
    await sink.write([deliver("a")])
    await sink.write([deliver("b")])
    assert backups(path) == []


async def test_a_clock_that_jumps_makes_no_storm_and_no_standstill(opened, path, clock):
    """A year ahead is one rotation; back again, the next comes within the interval, in order (fault F27)."""
    sink, year = await opened(schedule=Schedule("H")), 365 * 86400
    for i, jump in enumerate([0, year, 1, -year, 1, 3600, 1]):
        clock.now += jump
        await sink.write([deliver(str(i))])
    assert [text_of(p) for p in [*backups(path), path]] == ["0\n", "1\n2\n3\n4\n", "5\n6\n"]


# -- failures of a write


async def test_a_full_disk_leaves_nothing_of_the_group(opened, path):
    """What a failed write left is cut off; the same group, tried again, stands there once (fault F18)."""
    sink = await opened()
    await sink.write([deliver("before")])
    group = [deliver("x" * 3000, "y" * 3000)]
    for _ in range(2):
        with file_size_limit(4096), pytest.raises(OSError) as caught:
            await sink.write(group)
        assert caught.value.errno == errno.EFBIG
        assert path.read_text() == "before\n"
    await sink.write(group)
    assert all_lines(path) == ["before", "x" * 3000, "y" * 3000]
    assert (sink.records_written, sink.write_errors) == (3, 2)


async def test_what_cannot_be_cut_off_now_is_cut_off_before_the_next_write(opened, path, monkeypatch):
    """A disk that refuses even that gets no new records on top of torn ones."""
    sink, group = await opened(), [deliver("x" * 3000, "y" * 3000)]
    failing(monkeypatch, "ftruncate", errno.EIO, times=2)
    with file_size_limit(4096), pytest.raises(OSError):
        await sink.write(group)
    assert path.stat().st_size == 4096
    with pytest.raises(OSError):
        await sink.write(group)
    await sink.write(group)
    assert all_lines(path) == ["x" * 3000, "y" * 3000]


@pytest.mark.parametrize("more", [(), ("z",)])
async def test_a_group_that_failed_behind_a_rotation_is_not_written_twice(opened, path, more):
    """What stands before the rotation is remembered, also when the lane adds deliveries to the group."""
    sink, group = await opened(max_bytes=1000), [deliver(*"abc"), deliver("d" * 990, "e" * 3000, "f")]
    with file_size_limit(2000), pytest.raises(OSError):
        await sink.write(group)
    assert all_lines(path) == [*"abc", "d" * 990]
    await sink.write([*group, deliver(*more)])
    assert all_lines(path) == [*"abc", "d" * 990, "e" * 3000, "f", *more]


async def test_another_group_starts_from_its_own_beginning(opened, path):
    """What is remembered of a failed group is not held against another one."""
    sink = await opened(max_bytes=1000)
    with file_size_limit(2000), pytest.raises(OSError):
        await sink.write([deliver("a" * 990, "b" * 3000)])
    await sink.write([deliver("c", "d")])
    assert all_lines(path) == ["a" * 990, "c", "d"]


async def test_a_cancelled_group_that_comes_again_is_written_once(opened, path, monkeypatch):
    """The thread finishes what it was doing; the second call finds nothing left to do."""
    sink, group, gate = await opened(), [deliver("a", "b")], threading.Event()
    await cancelled_while_writing(sink, group, gate, monkeypatch)
    gate.set()
    await sink.write(group)
    assert all_lines(path) == ["a", "b"]


# -- durability


async def test_fsynced_means_the_data_and_the_name_are_on_the_disk(opened, path, monkeypatch):
    """Each group is followed by one fdatasync, each new name by one fsync of the directory."""
    calls = []
    for name in ("write", "fdatasync", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda fd, *a, _n=name, _r=real: (is_ledger(fd) or calls.append(_n), _r(fd, *a))[1]
        )
    sink = await opened(durability="fsynced", max_bytes=4)
    calls.clear()
    await sink.write([deliver("a")])
    await sink.write([deliver("b", "c")])
    first, *rest = ["write", "fdatasync", "fsync"], ["write", "fdatasync"], ["write", "fdatasync", "fsync"]
    assert calls == [*first, *rest[0], *rest[1]]


async def test_written_costs_no_fsync(opened, monkeypatch):
    """The kernel's hands are enough for this level."""
    sink = await opened()
    failing(monkeypatch, "fdatasync", errno.EIO)
    failing(monkeypatch, "fsync", errno.EIO)
    await sink.write([deliver("a")])


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
async def test_after_a_failed_fsync_the_group_goes_to_a_new_file(opened, path, warnings, monkeypatch, call):
    """Asking the same file again would prove nothing: it is moved aside without the group, and said (F22)."""
    sink = await opened(durability="fsynced", max_bytes=10**6)
    await sink.write([deliver("kept")])
    sink._live._directory_dirty = True  # as after a rotation, so that the directory is asked too
    group = [deliver("a", "b")]
    left = failing(monkeypatch, call, errno.EIO)
    with pytest.raises(OSError):
        await sink.write(group)
    assert left == [0]
    assert "ALERT: the disk failed to keep" in warnings[0]
    await sink.write(group)
    await sink.write([deliver("c")])
    assert [text_of(p) for p in [*backups(path), path]] == ["kept\n", "a\nb\nc\n"]


async def test_a_disk_that_keeps_failing_makes_no_storm_of_backups(opened, path, monkeypatch):
    """Each try has a fresh file, but an empty one is replaced and not rotated."""
    sink, group, seen = await opened(durability="fsynced", backup_count=1), [deliver("a")], set()
    await sink.write([deliver("kept")])
    failing(monkeypatch, "fdatasync", errno.EIO, times=7)  # of the old file too, before it is given up
    for _ in range(4):
        seen.add(os.fstat(sink._live._descriptor).st_ino)
        with pytest.raises(OSError):
            await sink.write(group)
    await sink.write(group)
    assert [text_of(p) for p in [*backups(path), path]] == ["kept\n", "a\n"]
    assert len(seen) > 1


async def test_a_kill_amid_the_replacement_of_an_empty_file_frightens_nobody(opened, tmp_path, warnings, monkeypatch):
    """The ledger announced a group that the disk did not keep; who reads that must not miss a file that is gone."""
    path, after = tmp_path / "logs/app.log", tmp_path / "after"
    sink, group = await opened(path, durability="fsynced"), [deliver("a")]

    def die():
        shutil.copytree(path.parent, after)
        raise OSError(errno.EIO, "killed")

    failing(monkeypatch, "fdatasync", errno.EIO)
    with pytest.raises(OSError):
        await sink.write(group)
    monkeypatch.setattr(sink._live, "_open_path", die)
    with pytest.raises(OSError, match="killed"):
        await sink.write(group)
    assert not (after / path.name).exists()
    del warnings[:]
    again = await opened(after / path.name, durability="fsynced")
    await again.write(group)
    assert text_of(after / path.name) == "a\n"
    assert warnings == []


async def test_a_suspicious_file_that_cannot_be_replaced_takes_nothing(opened, path, monkeypatch):
    """Here a failed rotation does stop the writing: nothing may be acknowledged from such a file."""
    sink, group = await opened(durability="fsynced"), [deliver("a")]
    await sink.write([deliver("kept")])
    failing(monkeypatch, "fdatasync", errno.EIO)
    failing(monkeypatch, "rename", errno.EROFS)
    for _ in range(2):
        with pytest.raises(OSError):
            await sink.write(group)
        assert path.read_text() == "kept\n"
    await sink.write(group)
    assert [text_of(p) for p in [*backups(path), path]] == ["kept\n", "a\n"]


# -- the hands of others


async def test_a_file_that_logrotate_renamed_is_made_anew(opened, path, tmp_path, warnings):
    """The group after the rename goes to a new file with the old name, and none is lost (fault F25)."""
    sink = await opened()
    await sink.write([deliver("a")])
    path.rename(tmp_path / "app.log.1")
    await sink.write([deliver("b")])
    assert ((tmp_path / "app.log.1").read_text(), path.read_text(), warnings) == ("a\n", "b\n", [])


async def test_a_file_and_directory_that_were_removed_are_made_anew(opened, tmp_path, warnings):
    """Even after ``rm -r logs`` the next group has a file, and what is gone is said."""
    path = tmp_path / "logs" / "app.log"
    sink = await opened(path)
    await sink.write([deliver("a")])
    shutil.rmtree(path.parent)
    await sink.write([deliver("b")])
    assert path.read_text() == "b\n"
    assert visible(path.parent) == ["app.log"]
    assert [f"{path} was removed by somebody else, and 2 bytes with it" in text for text in warnings] == [True]


async def test_a_removed_file_that_cannot_be_made_anew_takes_nothing(opened, path):
    """Records that nobody can find again are not written."""
    sink, group = await opened(), [deliver("b")]
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=f"cannot open {path}: Is a directory") as caught:
        await sink.write(group)
    assert str(path) in reason(caught.value)
    path.rmdir()
    await sink.write(group)
    assert path.read_text() == "b\n"


async def test_copytruncate_is_seen_and_said(opened, path, warnings):
    """It cannot be made safe, so it is called by its name; writing goes on at the new end (fault F25)."""
    sink = await opened()
    await sink.write([deliver("a" * 100)])
    os.truncate(path, 0)
    await sink.write([deliver("b")])
    await sink.write([deliver("c")])
    assert path.read_bytes() == b"b\nc\n"
    assert len(warnings) == 1
    assert "was cut from 101 to 0 bytes by somebody else" in warnings[0]
    assert "no copytruncate" in warnings[0]


async def test_a_file_that_is_cut_during_a_write_is_not_filled_up_with_zeros(opened, path, warnings, monkeypatch):
    """A copytruncate that hits the moment of a write may double that group, but leaves no holes."""
    sink, group, real = await opened(), [deliver("b")], os.write
    await sink.write([deliver("a" * 100)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: os.truncate(path, 0) or real(fd, data))
        with pytest.raises(OSError, match="not in the file"):
            await sink.write(group)
    await sink.write(group)
    assert path.read_bytes() == b"b\nb\n"
    assert "by somebody else" in warnings[0]


# -- after a crash


@pytest.mark.parametrize(
    ("kept", "torn"),
    [
        (b"a\nb\n", b"tor"),
        (b"", b"torn"),
        (b"a\n", bytes(4096)),
        (b"a\n", b"\xff" * 200_000),
        (b"a\n" * 50_000, b"t"),
    ],
)
async def test_a_torn_line_is_moved_aside_and_never_destroyed(opened, path, warnings, kept, torn):
    """Whole lines stay, the rest is in a file of its own, and new lines begin at a line's beginning."""
    path.write_bytes(kept + torn)
    sink = await opened()
    await sink.write([deliver("new")])
    aside = path.with_name("app.log.torn-20261123T080102Z")
    assert (path.read_bytes(), aside.read_bytes()) == (kept + b"new\n", torn)
    assert mode_of(aside) == 0o640
    assert f"Its {len(torn)} bytes are in {aside}" in warnings[-1]


async def test_a_second_torn_line_does_not_overwrite_the_first(opened, path, tmp_path):
    """Two crashes in one second leave two files, and a link there is not followed."""
    for torn in ("one", "two"):
        path.write_text(torn)
        await (await opened()).close()
    assert (tmp_path / "app.log.torn-20261123T080102Z").read_text() == "one"
    assert (tmp_path / "app.log.torn-20261123T080102Z.1").read_text() == "two"


async def test_a_torn_line_on_a_full_disk_waits_for_room(opened, path, tmp_path, warnings):
    """The start succeeds, nothing is written on top of the torn line, and it is moved when there is room."""
    path.write_bytes(b"a\n" + b"t" * 5000)
    with file_size_limit(4096):
        sink, group = await opened(), [deliver("new")]
        assert "cannot repair the end of" in warnings[-1]
        with pytest.raises(OSError):
            await sink.write(group)
        assert visible(tmp_path) == ["app.log"]
    await sink.write(group)
    assert path.read_bytes() == b"a\nnew\n"
    assert (tmp_path / "app.log.torn-20261123T080102Z").read_bytes() == b"t" * 5000


# -- backups


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
async def test_backups_are_compressed_beside_the_writing(opened, path, compress):
    """The twin holds the same bytes, has the age of the original, and takes its place."""
    sink = await opened(max_bytes=3000, compress=compress)
    messages = [f"{i} {'ä' * 100}" for i in range(100)]
    await sink.write([deliver(*messages)])
    await settled(sink)
    names = {*visible(path.parent)}
    assert all(n.endswith({"gzip": ".gz", "zstd": ".zst"}[compress]) for n in names - {"app.log"})
    assert len(names) == sink.rotations + 1
    assert all_lines(path) == messages


async def test_a_compressed_backup_is_as_old_as_its_records(opened, path, tmp_path):
    """Tools that look at the time of a file see the last record's, not the compression's."""
    old = tmp_path / "app.log.20200101T000000Z.0000"
    old.write_text("old\n")
    os.utime(old, (1, 2))
    await settled(await opened(compress="zstd"))
    assert (tmp_path / f"{old.name}.zst").stat().st_mtime == 2


async def test_an_interrupted_compression_is_done_again(opened, path, tmp_path):
    """Half a twin, or a whole one whose original is still there: after the next start there is one, and whole."""
    for name in ("app.log.20200101T000000Z.0000", "app.log.20200101T000000Z.0001"):
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "app.log.20200101T000000Z.0000.gz.tmp").write_bytes(b"half")
    (tmp_path / "app.log.20200101T000000Z.0001.gz").write_bytes(b"whole, perhaps")
    sink = await opened(compress="gzip")
    await settled(sink)
    assert [p.name[-7:] for p in backups(path)] == ["0000.gz", "0001.gz"]
    assert all_lines(path) == ["app.log.20200101T000000Z.0000", "app.log.20200101T000000Z.0001"]
    assert len(visible(tmp_path)) == 3


async def test_a_backup_that_cannot_be_compressed_stays(opened, path, tmp_path, warnings):
    """A directory in the place of the twin costs a sentence, and no record."""
    (tmp_path / "app.log.20200101T000000Z.0000").write_text("precious\n")
    (tmp_path / "app.log.20200101T000000Z.0000.gz").mkdir()
    await settled(await opened(compress="gzip"))
    assert (tmp_path / "app.log.20200101T000000Z.0000").read_text() == "precious\n"
    assert "cannot compress the backup app.log.20200101T000000Z.0000: Is a directory" in warnings[0]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("compress", ["", "zstd"])
async def test_retention_keeps_the_newest(opened, path, compress):
    """Of many backups as many stay as were asked for, and the live file."""
    sink = await opened(max_bytes=2, backup_count=3, compress=compress)
    await sink.write([deliver(*"0123456789")])
    await settled(sink)
    assert all_lines(path) == list("6789")


@pytest.mark.parametrize("compress", ["", "zstd"])
async def test_retention_by_bytes_counts_what_is_there(opened, path, compress):
    """The live file counts; and what fits when it is compressed is not removed before."""
    sink = await opened(max_bytes=2_000, max_total_bytes=10_000, compress=compress)
    for _ in range(20):
        await sink.write([deliver(*("x" * 99 for _ in range(20)))])
        await settled(sink)
    total_bytes = sum(p.stat().st_size for p in [path, *backups(path)])
    assert total_bytes <= 10_000
    assert len(all_lines(path)) == (400 if compress else 100)


async def test_retention_by_free_disk_removes_and_says_so(opened, path, warnings, monkeypatch):
    """The oldest go until there is room, never the live file; the operator hears of it."""
    free = [10_000]
    monkeypatch.setattr(backups_module, "free_on", lambda _directory: free[0])
    sink = await opened(max_bytes=2, min_free_bytes=1_000)
    await sink.write([deliver(*"0123456789")])
    await settled(sink)
    assert len(backups(path)) == 9
    assert warnings == []
    free[0] = 994  # three backups of two bytes make up for it
    await sink.look()
    await settled(sink)
    assert all_lines(path) == list("3456789")
    assert "3 backups (6 bytes) were removed before their time" in warnings[0]
    free[0] = 0
    await sink.look()
    await settled(sink)
    assert all_lines(path) == ["9"]
    await sink.look()
    await settled(sink)
    assert "there is no backup to remove" in warnings[-1]


async def test_a_compressed_backup_is_a_row_of_frames(opened, path, monkeypatch):
    """Each frame can be read alone, so that a damaged one costs itself; a reader of the format joins them."""
    monkeypatch.setattr(backups_module, "FRAME_BYTES", 1_000)
    sink = await opened(max_bytes=3_000, compress="zstd")
    await sink.write([deliver(*("x" * 99 for _ in range(60)))])
    await settled(sink)
    data = backups(path)[0].read_bytes()
    frames = data.split(b"\x28\xb5\x2f\xfd")[1:]
    assert len(frames) == 3
    assert [len(zstd.decompress(b"\x28\xb5\x2f\xfd" + frame)) for frame in frames] == [1_000] * 3


async def test_retention_touches_nothing_of_others(opened, path, tmp_path):
    """Another sink's live file and backups, and what merely looks alike, stay (loguru removed app.error.log)."""
    others = ["app.error.log", "app.error.log.20200101T000000Z.0000", "app.log.1", "app.log.bak",
              "app.log.torn-20200101T000000Z", "app.log.20200101T000000Z.0000.gz.tmp.mine", "xapp.log"]  # fmt: skip
    for name in others:
        (tmp_path / name).write_text("precious")
    sink = await opened(max_bytes=2, backup_count=1, compress="gzip")
    await sink.write([deliver(*"0123456789")])
    await settled(sink)
    assert all((tmp_path / name).read_text() == "precious" for name in others)
    assert all_lines(path) == list("89")


# -- the end


@pytest.mark.timeout(10)
async def test_close_does_not_wait_for_a_long_compression(opened, path, tmp_path, monkeypatch):
    """It is stopped, leaves nothing half, and is done at the next start."""
    monkeypatch.setattr(backups_module, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(backups_module, "FRAME_BYTES", 1)
    old = tmp_path / "app.log.20200101T000000Z.0000"
    old.write_bytes(random.Random(1).randbytes(5_000_000))
    sink = await opened(compress="gzip")
    started = time.monotonic()
    await sink.close()
    assert time.monotonic() - started < 2
    assert visible(tmp_path) == ["app.log", old.name]


@pytest.mark.timeout(10)
async def test_close_does_not_wait_for_a_stuck_disk(opened, warnings, monkeypatch):
    """A write that never returns keeps its thread, and nobody else."""
    sink, gate = await opened(), threading.Event()
    monkeypatch.setattr(file, "CLOSE_SECONDS", 0.05)
    await cancelled_while_writing(sink, [deliver("a")], gate, monkeypatch)
    await sink.close()
    assert "the disk did not answer" in warnings[0]
    gate.set()


# -- everything together


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(min_value=0, max_value=60),
    st.lists(
        st.tuples(
            st.lists(st.text("aä🙂", max_size=20), max_size=8),
            st.integers(min_value=-5000, max_value=5000),
            st.sampled_from(["", "", "", "write", "rename", "fdatasync", "ftruncate write", "restart", "renamed"]),
        ),
        max_size=12,
    ),
)
def test_every_record_once_and_in_order(max_bytes, steps):
    """Whatever the sizes, the clock and the faults: all files together hold each record once, in order."""

    async def run(directory: Path) -> None:
        path, clock, expected, number = directory / "app.log", Clock(), [], 0

        def new() -> FileSink:
            keeping = kept(max_bytes=max_bytes, schedule=Schedule("H"), compress="gzip", durability="fsynced")
            return FileSink("app", path, MESSAGE, keeping, clock=clock, warn=lambda _text: None)

        sink = new()
        await sink.open()
        for texts, jump, fault in steps:
            clock.now += jump
            if fault == "restart":
                await sink.close()
                sink = new()
                await sink.open()
            messages = [f"{(number := number + 1)} {text}" for text in texts]
            expected += messages
            group = [deliver(message) for message in messages]
            with pytest.MonkeyPatch.context() as patch:
                for name in fault.split():
                    if hasattr(os, name):
                        failing(patch, name, errno.EIO)
                for _ in range(4):
                    with contextlib.suppress(OSError):
                        await sink.write(group)
                        break
                else:
                    pytest.fail("the faults ended, and the group was still refused")
        await settled(sink)
        await sink.close()
        assert all_lines(path) == expected
        if max_bytes and not any("rename" in step[2] for step in steps):
            for p in [*backups(path), path]:
                assert len(text_of(p).encode()) <= max_bytes or len(text_of(p).splitlines()) == 1

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))


class Apart:
    """A format that gives its texts one by one."""

    def __init__(self, whole) -> None:
        self._whole = whole
        self.continuation = whole.continuation

    def __call__(self, source, records):
        return list(self._whole(source, records))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([0, 300, 5_000]),
    st.lists(
        st.tuples(
            st.integers(0, 150),  # how many records
            st.integers(0, 150),  # how many of those before come again with them
            st.sampled_from(["one site", "some sites", "a notice", "not taken"]),
            st.sampled_from(["", "", "write", "restart"]),
        ),
        max_size=6,
    ),
)
def test_lines_that_were_made_together_are_written_as_others(max_bytes, steps):
    """Byte for byte, and also in the ledger: over rotations, faults and records that come again."""

    async def run(directory: Path, wrap) -> tuple[list[str], list]:
        source, path, clock, records = make_source(), directory / "app.log", Clock(), []
        source.define(("app.db", 20, "INFO", "/db.py", "db.py", "db", 1, "f"))
        source.define(("quiet", 20, "INFO", "/q.py", "q.py", "q", 1, "f"))

        def new() -> FileSink:
            layout = formatting.text(
                "%(asctime)s %(name)s %(message)s", time_zone="UTC", accepts=lambda site: site.name != "quiet"
            )
            return FileSink("app", path, wrap(layout), kept(max_bytes=max_bytes), clock=clock, warn=lambda _text: None)

        sink, session = new(), b"s" * 16
        await sink.open()
        for count, again, kind, fault in steps:
            if fault == "restart":
                await sink.close()
                sink = new()
                await sink.open()
            site = {"some sites": (0, 2), "not taken": (3,)}.get(kind, (0,))
            begin = max(0, len(records) - again)
            records += [
                (MORNING + 0.1 + n * 2e-5, site[n % len(site)], 1, f"record {n}")
                for n in range(len(records), len(records) + count)
            ]
            notices = [(MORNING, 0, 1, "lost")] if kind == "a notice" and len(records) == count else []
            first_seq = begin + 1 + len(notices)
            group = [
                Delivery(
                    source, records[begin:], session=session, first_seq=first_seq, dropped=len(notices), notices=notices
                )
            ]
            records[:0] = notices  # each stands for one
            with pytest.MonkeyPatch.context() as patch:
                if fault == "write":
                    failing(patch, "write", errno.EIO)
                with contextlib.suppress(OSError):
                    await sink.write(group)
                await sink.write(group)
        await settled(sink)
        await sink.close()
        entries = ledger.decode((path.parent / ".app.log.ledger").read_bytes())
        return [text_of(p) for p in [*backups(path), path]], [(one.size, one.crc, one.runs) for one, _ in entries]

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        assert asyncio.run(run(Path(one), lambda layout: layout)) == asyncio.run(run(Path(other), Apart))
