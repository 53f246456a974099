"""``aiolog demo``: processes that log like an application, then a count of what arrived, and the verdict.

It knows the handler as an application does, ``aiolog serve`` as an operator does (a process with signals), and the
files as a reader does. It must never look inside the server: what it counts, anybody could.

Ctrl-C at a terminal reaches every process in the foreground. The workers ignore it, and the server is in a session
of its own: the parent stops first the workers, which flush, and then the server, which drains.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from logging.handlers import DEFAULT_HTTP_LOGGING_PORT
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import IO, NamedTuple

from aiolog.errors import AiologError
from aiolog.handler import AiologHandler
from aiolog.probe import Address, greet
from aiolog.rotation import parse_backup

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

APP = "shop"
FLUSH_SECONDS = 10.0  # for a worker's last records
START_SECONDS = 15.0  # for the server to listen
STOP_SECONDS = 15.0  # for the server to drain, before it is left behind
BURST = 256  # records between two looks for a stop, without a rate
TICK_SECONDS = 0.05  # between two bursts, with one
RECORD_BYTES = 350  # of a line of this application, in JSON
ROTATION_SECONDS = 5.0  # so soon a person sees a rotation
MIN_FILE_BYTES, MAX_FILE_BYTES = 64 << 10, 64 << 20
FILES_SHOWN = 10


class Row(NamedTuple):
    """The records of one process; ``arrived`` were found in the files or acked, ``twice`` more than once."""

    process: str
    logged: int
    arrived: int
    dropped: int
    twice: int = 0

    @property
    def lost(self) -> int:
        """How many nobody answers for."""
        return self.logged - self.arrived - self.dropped


class Plan(NamedTuple):
    """What every process is to do: ``rate`` records a second (0: as fast as can be), ``records`` in all (0: no end)."""

    address: Address
    run: str
    rate: float
    records: int


def demo(address: Address, *, workers: int, rate: float, count: int, directory: Path | None) -> int:
    """Run ``workers`` processes until each has logged ``count`` records (0: until Ctrl-C); return the exit code.

    ``rate`` is in records a second and process; 0 is as fast as can be. With a ``directory``, a server of its own
    is started that writes there, and ended with it.

    Raises AiologError when there is no server.
    """
    for signum in (signal.SIGTERM, signal.SIGHUP):  # `docker stop`, and a terminal that closes
        signal.signal(signum, signal.default_int_handler)
    plan = Plan(address, os.urandom(4).hex(), rate, count)
    if directory is None:
        greet(address)
        rows = _work(plan, workers)
        _show(rows, "acked", [])
    else:
        live = directory.absolute() / "app.log"
        file_bytes = int(workers * rate * RECORD_BYTES * ROTATION_SECONDS) if rate else MAX_FILE_BYTES
        with _served(address, live, min(max(file_bytes, MIN_FILE_BYTES), MAX_FILE_BYTES)) as (server, bound):
            rows = _work(plan._replace(address=bound), workers)
        seen = _seen(live, plan.run)
        rows = [_checked(row, seen.get(row.process, [])) for row in rows]
        _show(rows, "written", _files(live))
        if server.returncode:
            _say(f"the server ended with exit code {server.returncode}")
            return 1
    return int(any(row.lost or row.twice or not row.logged for row in rows))


# ---------------------------------------------------------------------------------------------------- the workers


def _work(plan: Plan, workers: int) -> list[Row]:
    """Run the processes until they are done or Ctrl-C stops them."""
    pace = f"{plan.rate:g} records a second each" if plan.rate else "as fast as they can"
    _say(f"{workers} processes log {pace} to {plan.address}; Ctrl-C ends it")
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, SpawnProcess] = {}
    # A signal that is ignored stays so over exec, and Python leaves it: the workers ignore it from the beginning.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in range(1, workers + 1):
        ours, theirs = context.Pipe()
        name = f"worker-{number}"
        processes[ours] = context.Process(target=_log, args=(plan, theirs, number), name=name, daemon=True)
        processes[ours].start()
        theirs.close()
    signal.signal(signal.SIGINT, before)
    rows: dict[str, Row] = {}
    try:
        _collect(processes, rows)
    except KeyboardInterrupt:
        _say("stopping; the processes send what they still have")
        for pipe in processes:
            with contextlib.suppress(OSError):  # it is done already
                pipe.send(None)
        _collect(processes, rows)
    for process in processes.values():
        process.join()
    return [rows[process.name] for process in processes.values()]


def _collect(processes: dict[Connection, SpawnProcess], rows: dict[str, Row]) -> None:
    """Wait for every process's own count, or its death, and put it into ``rows``."""
    while waiting := [pipe for pipe, process in processes.items() if process.name not in rows]:
        for pipe in wait(waiting):
            assert isinstance(pipe, Connection)
            process = processes[pipe]
            try:
                rows[process.name] = Row(f"{process.name}[{process.pid}]", *pipe.recv())
            except EOFError:
                process.join()
                _say(f"{process.name} ended before its time (exit code {process.exitcode})")
                rows[process.name] = Row(f"{process.name}[{process.pid}]", 0, 0, 0)


def _log(plan: Plan, parent: Connection, seed: int) -> None:
    """Be one process of an application: log, until all is logged or the parent says so; then say how many."""
    (host, port, token), run, rate, count = plan
    handler = AiologHandler(host, port, app=APP, labels={"run": run}, token=token, flush_timeout_seconds=FLUSH_SECONDS)
    logging.basicConfig(handlers=[handler], level=logging.DEBUG)
    shop = _Shop(seed)
    burst = max(1, round(rate * TICK_SECONDS)) if rate else BURST
    logged, due = 0, time.monotonic()
    while not (count and logged >= count) and not parent.poll(max(0.0, due - time.monotonic())):
        for _ in range(min(burst, count - logged) if count else burst):
            shop.log(logged)
            logged += 1
        due += burst / rate if rate else 0.0
    handler.close()
    stats = handler.stats()
    with contextlib.suppress(OSError):  # the parent was killed
        parent.send((logged, stats["acked"], sum(stats["dropped"].values())))


class _Shop:
    """What an application says all day: requests, queries, orders, and now and then something that went wrong."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - nobody guesses orders here
        self._web, self._db, self._orders = (logging.getLogger(f"{APP}.{name}") for name in ("web", "db", "orders"))

    def log(self, number: int) -> None:
        """Log one record that carries its number, by which it can be found again."""
        dice = self._random.random()
        order = self._random.randrange(10_000, 99_999)
        seconds = self._random.expovariate(30)
        if dice < 0.5:
            extra = {"n": number, "status": 200, "seconds": round(seconds, 4)}
            self._web.info("GET /orders/%d 200", order, extra=extra)
        elif dice < 0.8:
            self._db.debug("SELECT * FROM orders WHERE id = %d took %.1f ms", order, seconds * 1e3, extra={"n": number})
        elif dice < 0.95:
            self._orders.info("order %d is paid", order, extra={"n": number, "amount": order / 100})
        elif dice < 0.99:
            self._db.warning("the pool is at its limit, %.1f ms waited", seconds * 1e3, extra={"n": number})
        else:
            try:
                self._pay(order)
            except ConnectionError:
                self._orders.exception("order %d cannot be paid", order, extra={"n": number})

    def _pay(self, order: int) -> None:
        raise ConnectionError(f"the bank does not answer for order {order}")


# ----------------------------------------------------------------------------------------------------- the server


@contextlib.contextmanager
def _served(address: Address, live: Path, max_bytes: int) -> Iterator[tuple[subprocess.Popen[bytes], Address]]:
    """Run ``aiolog serve`` that writes ``live``; yield its process and where it listens. It has ended after that.

    Raises AiologError when it does not start.
    """
    needed = {
        "AIOLOG_SINKS__APP__TYPE": "file",
        "AIOLOG_SINKS__APP__PATH": str(live),
        "AIOLOG_SINKS__APP__FORMAT": "json",
        "AIOLOG_SINKS__APP__BACKUP_COUNT": "0",  # all that was written is counted at the end
    }
    nice = {"AIOLOG_SINKS__APP__MAX_BYTES": str(max_bytes), "AIOLOG_SINKS__APP__COMPRESS": "zstd"}
    if not is_free("127.0.0.1", DEFAULT_HTTP_LOGGING_PORT):
        nice["AIOLOG_HTTP__PORT"] = "0"
    server = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "aiolog.cli", "serve", "--host", address.host, "--port", str(address.port)],
        env=nice | os.environ | needed,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # the terminal's Ctrl-C is not for it
    )
    assert server.stderr is not None
    ports: list[int] = []
    heard = threading.Event()
    echo = threading.Thread(target=_echo, args=(server.stderr, ports, heard), daemon=True)
    echo.start()
    try:
        heard.wait(START_SECONDS)
        if not ports:
            raise AiologError("the server did not start")
        yield server, address._replace(port=ports[0])
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        echo.join(STOP_SECONDS)


def _echo(stderr: IO[bytes], ports: list[int], heard: threading.Event) -> None:
    """Show what the server says; put the port where it listens into ``ports``, and set ``heard`` then or at its end."""
    for line in stderr:
        sys.stderr.write(line.decode(errors="backslashreplace"))
        if not ports and (match := re.search(rb"listening on \S+:(\d+)", line)):
            ports.append(int(match[1]))
            heard.set()
    heard.set()


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


# ------------------------------------------------------------------------------------------------------- the count


_OPENERS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".zst": zstd.open}


def _files(live: Path) -> list[Path]:
    """Return the backups of a live file, each once, and the file itself: the oldest first."""
    found: dict[tuple[int, int], str] = {}
    for name in os.listdir(live.parent):  # noqa: PTH208 - names, not paths
        if backup := parse_backup(live.name, name):
            # A backup and its compressed twin are both there when compressing was interrupted; the shorter name is
            # the one that is whole.
            key = backup.stamp, backup.counter
            found[key] = min(found.get(key, name), name, key=len)
    return [live.with_name(found[key]) for key in sorted(found)] + [live]


def _open(path: Path) -> IO[str]:
    opener: Callable[..., IO[str]] = _OPENERS.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8")


def _seen(live: Path, run: str) -> dict[str, list[int]]:
    """Return the numbers of the records of this run in the files, by process."""
    seen: dict[str, list[int]] = {}
    for path in _files(live):
        with _open(path) as lines:
            for line in lines:
                if run not in line:  # of another run
                    continue
                with contextlib.suppress(ValueError, KeyError):  # not ours, or torn: that record is lost then
                    record = json.loads(line)
                    number = record["fields"]["n"]
                    seen.setdefault(f"{record['process']}[{record['pid']}]", []).append(number)
    return seen


def _checked(row: Row, numbers: Sequence[int]) -> Row:
    """Put what the files say in the place of what the process was told."""
    distinct = len({*numbers})
    return row._replace(arrived=distinct, twice=len(numbers) - distinct)


def _show(rows: Sequence[Row], arrived: str, files: Sequence[Path]) -> None:
    """Print the counts, and the files."""
    from rich.console import Console  # noqa: PLC0415 - workers need none of it
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    counts = Table("process", show_footer=True)
    counts.columns[0].footer = "all"
    for name in ("logged", arrived, "dropped", "twice", "lost"):
        values = [getattr(row, "arrived" if name == arrived else name) for row in rows]
        counts.add_column(name, justify="right", footer=str(sum(values)))
    for row in rows:
        counts.add_row(row.process, *map(str, (row.logged, row.arrived, row.dropped, row.twice, row.lost)))
    console.print(counts)
    if files:
        table = Table("file", title=str(files[0].parent), title_justify="left")
        table.add_column("bytes", justify="right")
        if len(files) > FILES_SHOWN:
            table.add_row(f"… {len(files) - FILES_SHOWN} older ones", "")
        for path in files[-FILES_SHOWN:]:
            table.add_row(path.name, str(path.stat().st_size))
        console.print(table)


def _say(text: str) -> None:
    sys.stderr.write(f"aiolog demo: {text}\n")
