"""Send on what dead processes left in a spool directory, under their own sessions.

Knows the spool and the sender; knows no ``logging``, no server and no configuration. Whoever holds the lock of a
directory is its one finder: handlers that start, servers that may read it and ``aiolog recover`` may all look at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from math import inf
from time import time
from typing import Any, NamedTuple

from aiolog import crash
from aiolog.errors import reason
from aiolog.segments import DAMAGED_SUFFIX, Home, SpoolError
from aiolog.sender import Endpoint, Sender
from aiolog.spool import Orphan

BUFFER_BYTES = 4 << 20  # a quarter of it is under way at a time, and so in memory
KEEP_SECONDS = 7 * 86_400  # as long as a server remembers a session; later, nothing tells what it had already
TIMEOUT_SECONDS = 10.0  # for one spool to make no progress before the next one is tried


class Found(NamedTuple):
    """What became of one directory."""

    path: str
    process: str  # whose it was, for people; "" where that cannot be read
    records: int  # delivered by us
    left: bool  # something is still there, to be sent later or to be looked at
    text: str  # all of that in a sentence


class _Server:
    """An address as a sender wants it, with the pauses of a handler."""

    retryStart = 0.05  # noqa: N815
    retryMax = 0.5  # noqa: N815
    retryFactor = 2.0  # noqa: N815
    retryTime: float | None = None  # noqa: N815
    when_full = "block"
    block_timeout_seconds = 0.1
    heartbeat_seconds = 5.0
    connect_timeout_seconds = 1.0

    def __init__(self, host: str, port: int) -> None:
        self.address: Any = (host, port)

    def makeSocket(self, timeout: float = 1) -> socket.socket:  # noqa: N802
        return socket.create_connection(self.address, timeout)


def recover(
    directory: str, host: str, port: int, token: str = "", *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Iterator[Found]:
    """Send every spool of a dead process below ``directory`` to a server, one after another; say what became of each.

    May be called again and again: what belongs to the living, or to another finder, is passed over in silence.
    ``timeout_seconds`` for each spool. Raises OSError when the directory cannot be read.
    """
    yield from recover_to(_Server(host, port), directory, token, timeout_seconds=timeout_seconds)


def recover_to(endpoint: Endpoint, directory: str, token: str, *, timeout_seconds: float) -> Iterator[Found]:
    """Do as :func:`recover` does, to a handler's own endpoint."""
    for path in _candidates(directory):
        try:
            home = Home.adopt(path)
            found = None if home is None else _send(home, endpoint, token, timeout_seconds)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one spool, the others do not wait for it
            found = Found(path, "", 0, left=True, text=f"{_trouble(path, error)}; it is left as it is")
        if found is not None:
            yield found


def _trouble(path: str, error: Exception) -> str:
    if isinstance(error, SpoolError):
        return str(error)
    return f"{path} cannot be read ({reason(error) if isinstance(error, OSError) else repr(error)})"


def _candidates(directory: str) -> list[str]:
    """Return the directories that may be spools, the oldest first. Raises OSError."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if (
                    not entry.name.startswith(".")
                    and not entry.name.endswith(DAMAGED_SUFFIX)
                    and entry.is_dir(follow_symlinks=False)
                    # Somebody else's is not to be sent with our token; but root reads for all.
                    and (entry.stat().st_uid == os.geteuid() or os.geteuid() == 0)
                ):
                    found.append((entry.stat().st_mtime, entry.path))
    return [path for _, path in sorted(found)]


def _send(home: Home, endpoint: Endpoint, token: str, timeout_seconds: float) -> Found:
    """Send one spool, whose lock we hold, and let go of it. Raises SpoolError, OSError."""
    touched_at = _touched_at(home.path)
    try:
        orphan = Orphan(home, buffer_bytes=BUFFER_BYTES)
    except BaseException:
        home.release()
        raise
    hello = home.hello._replace(token=token)
    process = f"{hello.app or hello.process_name or 'process'}[{hello.pid}]@{hello.host}"
    is_done = is_over = False
    try:
        if not orphan.is_empty:
            crash.point("spool_adopted")
        sender = Sender(endpoint, orphan, hello, orphan.definitions)
        before = -1
        while not is_done and orphan.acked > before:
            before = orphan.acked
            is_done = sender.flush(timeout_seconds)
        records = orphan.acked - orphan.skipped
        path, text = home.path, f"{records} records of {process} were delivered"
        if is_done and orphan.is_damaged:
            path = home.put_aside()
            text += f"; what follows is damaged, and is kept in {path}"
        elif is_done:
            is_over = True
        elif (age_seconds := time() - touched_at) > KEEP_SECONDS:
            text += (
                f"; the rest was {age_seconds / 86_400:.0f} days old and could not be, so {orphan.count_unsent()} "
                f"records were removed with {path}"
            )
            is_over = True
        else:
            text += f"; the rest stays in {path}"
        return Found(path, process, records, left=not is_done or not is_over, text=text)
    finally:
        orphan.close(remove=is_over)


def _touched_at(path: str) -> float:
    """Return when something below a directory was last written."""
    times = [0.0]
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        times += [entry.stat().st_mtime for entry in entries]
    return max(times)


def start(directory: str, endpoint: Endpoint, token: str, say: Callable[[str], object]) -> None:
    """Recover in a daemon thread of its own, for as long as that takes. Where none can be started, somebody else will.

    A worker's part: it must not wait, nor fail, for what another process left.
    """

    def run() -> None:
        with contextlib.suppress(OSError):  # no directory: nothing was left
            for found in recover_to(endpoint, directory, token, timeout_seconds=inf):
                if found.records or found.left:
                    say(f"spool: {found.text}")

    with contextlib.suppress(RuntimeError):
        threading.Thread(target=run, name="aiolog-recovery", daemon=True).start()
