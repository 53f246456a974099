"""What only root can do to a machine: mounts, power cuts, network rules, control groups; undone at the end of each.

Each is a context manager, and skips the test with a sentence where the machine does not have it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), include/uapi/linux/fs.h
NO_LOG_FLUSH = 2  # what is not on the disk at this moment never gets there: a power cut
UNMOUNT_SECONDS = 10.0
CGROUPS = Path("/sys/fs/cgroup")


def need_root(*programs: str) -> None:
    """Skip unless we are root and these programs are there."""
    if os.geteuid():
        pytest.skip("it takes root")
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"there is no {program} here")


def run(*argv: object, check: bool = True) -> str:
    """Run a command; return what it said."""
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, timeout=60)
    assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout + done.stderr


def _mount(*argv: object) -> None:
    done = subprocess.run(["mount", *map(str, argv)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


def unmount(where: Path) -> None:
    """Unmount, waiting for the last user to let go."""
    deadline = time.monotonic() + UNMOUNT_SECONDS
    while "busy" in (said := run("umount", where, check=False)):
        assert time.monotonic() < deadline, said
        time.sleep(0.05)


@contextlib.contextmanager
def tmpfs(where: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs with options such as ``size=4m``."""
    need_root("mount")
    where.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", options, "aiolog-test", where)
    try:
        yield where
    finally:
        unmount(where)


class Disk:
    """A small ext4 in a file, whose power can be cut."""

    def __init__(self, where: Path, image: Path) -> None:
        self.where, self.image = where, image

    def mount(self, options: str = "") -> None:
        _mount("-o", f"loop{options and ','}{options}", self.image, self.where)

    def cut_power(self) -> None:
        """Lose everything that was not synced. What runs there gets errors from now on."""
        descriptor = os.open(self.where, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, array.array("I", [NO_LOG_FLUSH]))
        finally:
            os.close(descriptor)

    def come_back(self) -> None:
        """Mount again, as after a boot: the journal is replayed."""
        unmount(self.where)
        self.mount()


@contextlib.contextmanager
def disk(where: Path, image: Path, size: str = "256M", options: str = "") -> Iterator[Disk]:
    """Make a file system and mount it."""
    need_root("mkfs.ext4", "losetup", "mount")
    where.mkdir(exist_ok=True)
    run("truncate", "-s", size, image)
    run("mkfs.ext4", "-q", "-F", image)
    made = Disk(where, image)
    made.mount(options)
    try:
        yield made
    finally:
        run("umount", where, check=False)
        image.unlink()


@contextlib.contextmanager
def network(name: str) -> Iterator[tuple[str, ...]]:
    """Make a network namespace with a loopback of its own; yields the words that run a command in it."""
    need_root("ip", "nft")
    name = f"aiolog-{name}-{os.getpid()}"
    if said := run("ip", "netns", "add", name, check=False):
        pytest.skip(f"cannot make a network namespace: {said.strip()}")
    inside = ("ip", "netns", "exec", name)
    try:
        run(*inside, "ip", "link", "set", "lo", "up")
        if said := run(*inside, "nft", "add", "table", "inet", "aiolog", check=False):
            pytest.skip(f"nft does not work here: {said.strip()}")
        run(*inside, "nft", "add chain inet aiolog in { type filter hook input priority 0 ; }")
        yield inside
    finally:
        run("ip", "netns", "del", name)


@contextlib.contextmanager
def cgroup(controller: str, name: str) -> Iterator[Path]:
    """Make a control group (version 1)."""
    need_root()
    parent = CGROUPS / controller
    if not (parent / "tasks").exists():
        pytest.skip(f"there is no version 1 cgroup controller {controller!r} here")
    group = parent / f"aiolog-{name}-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        deadline = time.monotonic() + UNMOUNT_SECONDS
        while True:
            try:
                group.rmdir()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
