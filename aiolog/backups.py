"""What was rotated away from one live file: compress it, and remove what retention does not keep.

It knows the directory of its live file and the names that :mod:`aiolog.rotation` gives; it must never know a record,
a ledger or who writes. All of it happens in a thread that the caller lends, at a low priority, and so never in the
way of a write. It touches only what it can parse as a backup of its own live file.

A compressed backup is a row of frames (zstd) or members (gzip) of :data:`FRAME_BYTES` each, which every reader of the
format joins, and of which a damaged one costs itself alone.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import stat
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from pathlib import Path

from aiolog import crash
from aiolog.errors import reason
from aiolog.ledger import sync_directory
from aiolog.rotation import SUFFIXES, Aged, Retention, aged, parse_backup

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FILE_MODE = 0o640  # the group may read: that is how log shippers and adm are let in
FRAME_BYTES = 4 << 20  # 5 ms of zstd, 25 of gzip: how soon a compression notices that it must stop
CLOSE_SECONDS = 2.0  # what close() waits for compression; an unfinished one is redone at the next start
PARTIAL = ".tmp"  # ends the name of a compressed backup that is not whole yet
NICE = 10  # of the thread: compression takes what the rest leaves, on a machine that is busy
MAX_UNCOMPRESSED = 8  # backups that may wait for it before max_total_bytes counts them as they are
COMPRESSIONS = 1  # at once, over all sinks: of two cores one is always left for the log

CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_compressing = threading.BoundedSemaphore(COMPRESSIONS)


class Backups:
    """The backups of one live file; one job at a time, in ``thread``.

    ``names`` is held while a backup gets its name, here or in a rotation, so that both see a directory at rest.
    ``removed`` counts the backups that retention took. ``clock`` gives seconds since the epoch; ``warn`` takes one
    sentence for the operator.
    """

    def __init__(
        self,
        path: Path,
        retention: Retention,
        compress: str,
        thread: Executor,
        *,
        clock: Callable[[], float],
        warn: Callable[[str], None],
    ) -> None:
        self.names = threading.Lock()
        self.live: tuple[int, int] | None = None  # device and inode of what is still written to, whatever its name
        self.removed = 0
        self._path = path
        self._retention = retention
        self._compress = compress
        self._thread = thread
        self._clock = clock
        self._warn = warn
        self._queued = False
        self._last: Future[None] | None = None
        self._stopping = threading.Event()

    def tend(self) -> None:
        """Ask for the work to be done, soon; any thread."""
        # One under way and one that sees all that came after it: that is the bound of the queue.
        if not self._queued and not self._stopping.is_set():
            self._queued = True
            self._last = self._thread.submit(self.tend_now)

    async def close(self) -> None:
        """Wait for the work, but not long: what is interrupted is done again at the next start."""
        if self._last:
            last = asyncio.wrap_future(self._last)
            await asyncio.wait([last], timeout=CLOSE_SECONDS)
            self._stopping.set()
            await asyncio.wait([last], timeout=CLOSE_SECONDS)
        self.stop()

    def stop(self) -> None:
        """Let the work end soon, and none begin."""
        self._stopping.set()

    # -- in the thread

    def tend_now(self) -> None:
        """Do the work; in the thread that was lent."""
        self._queued = False
        if threading.current_thread() is not threading.main_thread():
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # of this thread alone, on Linux
        for name in self._listed():
            # Only this thread makes partial ones, so one that is there now was interrupted.
            if name.endswith(PARTIAL) and parse_backup(self._path.name, name.removesuffix(PARTIAL)):
                _try("remove", name, self._path.with_name(name).unlink, self._warn)
        # What is to be removed in any case makes room first; what is too large is known when all is compressed.
        self._expire(self._retention._replace(max_total_bytes=0))
        if suffix := SUFFIXES[self._compress]:
            for name in sorted(self._listed()):
                if self._is_plain(name) and not self._stopping.is_set():
                    _try("compress", name, partial(self._compress_backup, name, name + suffix), self._warn)
        # Of what was rotated meanwhile the next call knows the true size; but the bound is not put off for ever.
        if self._queued and sum(map(self._is_plain, self._listed())) <= MAX_UNCOMPRESSED:
            return
        self._expire(Retention(max_total_bytes=self._retention.max_total_bytes))

    def _is_plain(self, name: str) -> bool:
        backup = parse_backup(self._path.name, name)
        return backup is not None and not backup.suffix

    def _listed(self) -> list[str]:
        with self.names:
            return os.listdir(self._path.parent)  # noqa: PTH208 - names, not paths

    def _expire(self, retention: Retention) -> None:
        if not any(retention) or self._stopping.is_set():
            return
        directory = self._path.parent
        sizes: dict[str, int] = {}
        for name in self._listed():
            if parse_backup(self._path.name, name):
                with suppress(OSError):
                    sizes[name] = directory.joinpath(name).lstat().st_size
        live_bytes = 0
        with suppress(OSError):
            live_bytes = self._path.lstat().st_size
        free_bytes = free_on(directory)
        backups = aged(self._path.name, sizes)
        expired = retention.expired(backups, now=self._clock(), live_bytes=live_bytes, free_bytes=free_bytes)
        self.removed += remove(directory, expired, [self.live], self._warn)
        if not backups and free_bytes < retention.min_free_bytes:
            self._warn(
                f"less than min_free_bytes is left on the disk of {directory}, and there is no backup to remove. "
                "Make room there."
            )

    def _compress_backup(self, name: str, compressed_name: str) -> None:
        """Put a compressed twin in the place of a backup, which goes when the twin is whole and on the disk.

        A twin that is there already came from a run that was interrupted between the two, and is made again.
        """
        path = self._path.with_name(name)
        unfinished = self._path.with_name(compressed_name + PARTIAL)
        descriptor = os.open(path, _READ_FLAGS)
        with open(descriptor, "rb", buffering=0) as source:  # noqa: PTH123 - a descriptor
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) == self.live:
                return
            while not _compressing.acquire(timeout=0.1):
                if self._stopping.is_set():
                    return
            try:
                target = os.open(unfinished, CREATE_FLAGS, FILE_MODE)
                with open(target, "wb") as out:  # noqa: PTH123 - a descriptor
                    compress = _COMPRESSORS[self._compress]
                    while block := source.read(FRAME_BYTES):
                        if self._stopping.is_set():
                            unfinished.unlink()
                            return
                        out.write(compress(block))
                    out.flush()
                    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
                    os.fsync(target)
                crash.point("compress_tmp")
                with self.names:
                    unfinished.replace(path.with_name(compressed_name))
                    crash.point("compress_renamed")
                    sync_directory(path.parent)
                    path.unlink(missing_ok=True)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            finally:
                _compressing.release()


def free_on(directory: Path) -> int:
    """Return how many bytes are free on a directory's disk; plenty where the system cannot tell."""
    try:
        disk = os.statvfs(directory)
    except OSError:
        return sys.maxsize
    return disk.f_bavail * disk.f_frsize


def remove(
    directory: Path,
    expired: Sequence[tuple[Aged, str]],
    live: Collection[tuple[int, int] | None],
    warn: Callable[[str], None],
) -> int:
    """Remove backups below ``directory``, each for the bound that is named beside it; returns how many.

    Of a backup the compressed twin goes last: whole records are there until it does. What has a device and inode of
    ``live``, or is no plain file, stays. What went for lack of room is said.
    """
    removed = 0
    short_bytes = []
    for backup, bound in expired:
        done = True
        for name in backup.names:
            path = directory / name
            with suppress(OSError):
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) in live:
                    done = False
                    break
            done &= _try("remove", name, path.unlink, warn)
            crash.point("expire_unlinked")
        removed += done
        if done and bound == "min_free_bytes":
            short_bytes.append(backup.size_bytes)
    if short_bytes:
        warn(
            f"{len(short_bytes)} backups ({sum(short_bytes)} bytes) were removed before their time: less than "
            f"min_free_bytes was left on the disk of {directory}. Make room there."
        )
    return removed


def _try(what: str, name: str, act: Callable[[], object], warn: Callable[[str], None]) -> bool:
    try:
        act()
    except FileNotFoundError:
        return False  # somebody else was faster
    except Exception as error:  # noqa: BLE001 - nobody waits for this thread, so it says what it met
        warn(f"cannot {what} the backup {name}: {reason(error)}.")
        return False
    return True


def _zstd(block: bytes) -> bytes:
    return zstd.compress(block, options={zstd.CompressionParameter.checksum_flag: 1})


def _gzip(block: bytes) -> bytes:
    return gzip.compress(block, compresslevel=6, mtime=0)  # 9, its default, takes four times as long for 2 %


_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"zstd": _zstd, "gzip": _gzip}
