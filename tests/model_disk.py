"""A disk that dies where it is told to: the real file system, with a memory of what was synced.

While a sink's thread works, the system calls by which it changes the disk come by here (:func:`patched`). They can
be counted, and the k-th be the last, done or half done; they can be refused; and after a power cut the files hold
what was synced and a part, at random, of what was not. All else of ``os`` is untouched.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aiolog import backups as backups_module
from aiolog import livefile as livefile_module
from aiolog.fanout import Commit
from aiolog.sinks import file as file_module

_unlink, _ftruncate = os.unlink, os.ftruncate  # for the disk's own work, which is none of the sinks'


class KillError(BaseException):
    """Ends a sink's thread in the middle, as SIGKILL does."""


class Disk:
    """One directory; ``logs`` is what the sinks see. ``remembers``: keep what a power cut needs."""

    current: Disk | None = None  # the one whose sinks are at work

    def __init__(self, root: Path, *, remembers: bool) -> None:
        self.logs, self._grave = root / "logs", root / "grave"
        self.logs.mkdir()
        self._grave.mkdir()
        self.remembers = remembers
        self.dead = False
        self.working = 0
        self.calls = 0
        self.changes = 0  # grows with each change, so that a reader knows when to look again
        self.kill_in: int | None = None  # the how manieth call from now is the last
        self.fraction = 1.0  # of the last call is done
        self.room: int | None = None  # bytes that may still be written
        self.fail_sync_in = 0  # the how manieth sync of a file from now fails; below 1 none does
        self._descriptors: set[int] = set()
        self._durable: dict[int, bytes] = {}  # by inode: what was in it at its last sync
        self._writes: dict[int, list[tuple[int, bytes | None]]] = {}  # since then: offset and data, or a size
        self._spoilt: set[int] = set()  # inodes of which a sync failed
        self._names: list[tuple[str, Path, Path | None, Path | None]] = []  # changes since the directory's last sync
        self._buried = 0

    # -- what the sinks' threads do

    @contextmanager
    def at_work(self) -> Iterator[None]:
        before, Disk.current = Disk.current, self
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1
            Disk.current = before

    def _do(self, call: Callable[[], Any], in_part: Callable[[float], Any] | None = None) -> Any:
        """Make one call that changes the disk, or die in it."""
        if self.dead:
            raise KillError
        self.calls += 1
        self.changes += 1
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in <= 0:
                self.kill_in = None
                with suppress(OSError):
                    if self.fraction >= 1:
                        call()
                    elif in_part is not None:
                        in_part(self.fraction)
                self.dead = True
                raise KillError
        return call()

    def _written(self, descriptor: int, offset: int, data: bytes | None) -> None:
        if self.remembers:
            self._writes.setdefault(os.fstat(descriptor).st_ino, []).append((offset, data))

    def _taken(self, data: bytes) -> bytes:
        if self.room is None:
            return data
        if data and not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[: self.room]
        self.room -= len(data)
        return data

    def write(self, real: Any, descriptor: int, data: Any) -> int:
        def call(share: float = 1.0) -> int:
            taken = self._taken(whole[: int(len(whole) * share)])
            count: int = real(descriptor, taken)
            self._written(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) - count, taken)
            return count

        whole = bytes(data)
        return self._do(call, call)

    def pwrite(self, real: Any, descriptor: int, data: Any, offset: int) -> int:
        def call(share: float = 1.0) -> int:
            taken = self._taken(whole[: int(len(whole) * share)])
            self._written(descriptor, offset, taken)
            return real(descriptor, taken, offset)

        whole = bytes(data)
        return self._do(call, call)

    def ftruncate(self, real: Any, descriptor: int, size: int) -> None:
        def call() -> None:
            real(descriptor, size)
            self._written(descriptor, size, None)

        self._do(call)

    def fsync(self, _real: Any, descriptor: int) -> None:
        def call() -> None:
            status = os.fstat(descriptor)
            if self.room is not None and is_stream:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # where blocks are looked for late
            self.fail_sync_in -= not stat.S_ISDIR(status.st_mode)
            if self.fail_sync_in == 0 and not stat.S_ISDIR(status.st_mode):
                # The pages count as clean from now on and are not on the disk, whatever later syncs say.
                self._writes[status.st_ino] = []
                self._spoilt.add(status.st_ino)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if stat.S_ISDIR(status.st_mode):
                self._forget_names()
            else:
                self._sync(descriptor, status.st_ino)

        def in_part(share: float) -> None:
            if is_stream:
                _ftruncate(descriptor, int(os.fstat(descriptor).st_size * share))

        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        is_stream = ".torn-" in name or name.endswith(".tmp")  # what Python's own files write does not come by here
        self._do(call, in_part)

    fdatasync = fsync

    def _sync(self, descriptor: int, inode: int) -> None:
        if not self.remembers:
            return
        if inode in self._spoilt:  # what the failed sync dropped stays lost, and what was written since does not
            data = bytearray(self._durable.get(inode, b""))
            for offset, written in self._writes.get(inode, []):
                if written is None:
                    del data[offset:]
                else:
                    data.extend(bytes(max(0, offset - len(data))))
                    data[offset : offset + len(written)] = written
            self._durable[inode] = bytes(data)
        else:
            self._durable[inode] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        self._writes[inode] = []

    def open(self, real: Any, path: Any, flags: int, mode: int = 0o777) -> int:
        def call() -> int:
            if self.room == 0 and is_new:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            descriptor: int = real(path, flags, mode)
            self._descriptors.add(descriptor)
            if is_new and self.remembers:
                self._names.append(("create", Path(path), None, None))
                inode = os.fstat(descriptor).st_ino
                self._durable[inode], self._writes[inode] = b"", []
                self._spoilt.discard(inode)
            return descriptor

        is_new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        return self._do(call) if is_new else call()

    def close(self, real: Any, descriptor: int) -> None:
        self._descriptors.discard(descriptor)
        real(descriptor)

    def rename(self, real: Any, source: Any, target: Any) -> None:
        def call() -> None:
            saved = self._bury(Path(target))
            real(source, target)
            if self.remembers:
                self._names.append(("rename", Path(source), Path(target), saved))

        self._do(call)

    replace = rename

    def unlink(self, real: Any, path: Any) -> None:
        def call() -> None:
            saved = self._bury(Path(path))
            real(path)
            if self.remembers:
                self._names.append(("unlink", Path(path), None, saved))

        if not os.path.lexists(path):
            real(path)
        self._do(call)

    def open_stream(self, descriptor: int, mode: str, **settings: Any) -> Any:
        """Python's own ``open`` of a descriptor, which closes it itself."""
        self._descriptors.discard(descriptor)
        return open(descriptor, mode, **settings)

    def _bury(self, path: Path) -> Path | None:
        """Keep what is about to lose its name, until the directory is synced."""
        if not self.remembers or not os.path.lexists(path):
            return None
        self._buried += 1
        saved = self._grave / str(self._buried)
        os.link(path, saved)
        return saved

    def _forget_names(self) -> None:
        self._names.clear()
        for saved in self._grave.iterdir():
            _unlink(saved)

    # -- what the world does to it

    @property
    def open_descriptors(self) -> int:
        return len(self._descriptors)

    def kill(self) -> None:
        """Be the disk of a process that is gone: its descriptors are closed, and nothing else happens."""
        self.dead = True
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self.kill_in = None

    def revive(self) -> None:
        self.dead = False

    def sync_all(self) -> None:
        for path in self.logs.iterdir():
            self._durable[path.stat().st_ino], self._writes[path.stat().st_ino] = path.read_bytes(), []

    def cut_power(self, random: Random) -> None:
        """Lose what was not synced, or a part of it: of each file, and of the names, what came last."""
        assert self.dead
        kept = random.choice([len(self._names), random.randint(0, len(self._names))])
        for what, path, target, saved in reversed(self._names[kept:]):
            if what == "create":
                path.unlink(missing_ok=True)
            elif what == "rename":
                assert target is not None
                target.rename(path)
                path = target  # noqa: PLW2901 - it is the target's place that something else may have had
            if saved is not None:
                saved.rename(path)
        self._forget_names()
        for path in sorted(self.logs.iterdir()):
            inode = path.stat().st_ino
            path.write_bytes(self._left(inode, path.read_bytes(), random))
            self._durable[inode], self._writes[inode] = path.read_bytes(), []
        self.changes += 1

    def _left(self, inode: int, cached: bytes, random: Random) -> bytes:
        durable, writes = self._durable.get(inode, b""), self._writes.get(inode, [])
        if not writes:
            return durable if cached != durable and random.random() < 0.5 else cached
        way = random.choice(["all", "none", "some", "holes"])
        kept = {"all": len(writes), "none": 0}.get(way, random.randint(0, len(writes)))
        data = bytearray(durable)
        for n, (offset, written) in enumerate(writes[: kept + 1]):
            if n == kept and (written is None or way != "some"):
                break
            if written is None:
                del data[offset:]
                continue
            part = written if n < kept else written[: random.randint(0, len(written))]
            if part:
                data.extend(bytes(max(0, offset - len(data))))
                data[offset : offset + len(part)] = part
        if way == "holes" and len(data) > len(durable):  # the size is on the disk, and not the blocks
            start = random.randint(len(durable), len(data))
            data[start:] = bytes(len(data) - start)
        return bytes(data)


def _patched(name: str) -> Callable[..., Any]:
    real = getattr(os, name)

    def call(*args: Any, **named: Any) -> Any:
        disk = Disk.current
        if disk is None or named:
            return real(*args, **named)
        return getattr(disk, name)(real, *args)

    return call


def _open_stream(file: Any, mode: str = "r", **settings: Any) -> Any:
    disk = Disk.current
    assert disk is not None
    return disk.open_stream(file, mode, **settings)


CALLS = ("write", "pwrite", "ftruncate", "fsync", "fdatasync", "open", "close", "rename", "replace", "unlink")


@contextmanager
def patched(hand: Callable[[str], Executor]) -> Iterator[pytest.MonkeyPatch]:
    """Let all sinks work by ``hand(name)`` instead of a thread, and on the disk of that hand."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, _patched(name))
        for module in (livefile_module, backups_module):
            patch.setattr(module, "open", _open_stream, raising=False)
        patch.setattr(file_module, "SinkThread", hand)
        yield patch


class Hand(Executor):
    """A sink's thread that works when it is asked to, in the thread that asks; ``on_death`` when it dies."""

    def __init__(self, disk: Disk, on_death: Callable[[], None], *, held: bool = False) -> None:
        self.ended = False
        self.held = held
        self._disk = disk
        self._on_death = on_death
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, fn: Any, /, *args: Any, **named: Any) -> Future[Any]:
        if self.ended:
            raise RuntimeError("this sink is closed")
        future: Future[Any] = Future()
        self._jobs.append((future, partial(fn, *args, **named)))
        if not self.held:
            self.work()
        return future

    def commit(self, fn: Any, argument: Any) -> Commit:
        commit = Commit(asyncio.get_running_loop())
        self.submit(fn, argument).add_done_callback(lambda future: commit.end(future.exception()))
        return commit

    def work(self) -> None:
        """Do all there is to do."""
        while self._jobs and not self._disk.dead:
            future, job = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                with self._disk.at_work():
                    result = job()
            except KillError:
                self._on_death()  # and nobody ever hears of it
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

    def let(self) -> None:
        self.held = False
        self.work()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.ended = True
