"""A server that can be killed and started again on its port, and workers with books that log to it.

    with Stage(tmp_path, TWO_SINKS) as stage:
        stage.work(8, per_second=500)
        stage.kill()
        stage.start()
        stage.finish()                         # the workers flush and end, then the server drains
        stage.assert_exact("F1")

Only processes started here are ended, by their pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from judge import TEMPLATE, Book, Found, Verdict, read_book
from running import ServerProcess, serve

BOOKED = Path(__file__).parent / "booked.py"
ACK_SECONDS = 20.0  # for a first ack after a fault, on a machine that does much else; the bound itself is each test's
END_SECONDS = 90.0

HEAD = """
[http]
enabled = false
"""
TWO_SINKS = (
    HEAD
    + f"""
[sinks.all]
path = "logs/all.log"
max_bytes = "2 MiB"
backup_count = 0
compress = "zstd"

[sinks.errors]
path = "logs/errors.log"
format = "text"
template = "{TEMPLATE}"
level = "ERROR"
max_bytes = "1 MiB"
backup_count = 0
"""
)
PLAIN = (
    HEAD
    + """
[sinks.all]
path = "logs/all.log"
max_bytes = 0
backup_count = 0
"""
)


def say(row: str, *more: str, **figures: object) -> None:
    """Print the figures of a row, for ``pytest -rP``; also to the file that AIOLOG_FIGURES names."""
    line = " ".join([row, *(f"{name}={value}" for name, value in figures.items()), *more])
    print(line, flush=True)
    if path := os.environ.get("AIOLOG_FIGURES"):
        with Path(path).open("a") as out:
            out.write(line + "\n")


def seeded(row: str) -> random.Random:
    """Return the random numbers of one test: by AIOLOG_SEED, or fresh; the seed is printed."""
    seed = int(os.environ.get("AIOLOG_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{row} AIOLOG_SEED={seed}", flush=True)
    return random.Random(f"{seed} {row}")


def times(name: str, default: int) -> int:
    """Return how often: an environment variable's word, or the default."""
    return int(os.environ.get(name) or default)


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait until ``condition`` holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


class Worker:
    """One running booked.py."""

    def __init__(
        self,
        port: int,
        name: str,
        book: Path,
        *,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
        prefix: tuple[str, ...] = (),
        handler: Mapping[str, Any] | None = None,
        **options: object,
    ) -> None:
        self.name = name
        self.book_path = book
        argv = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        if handler:
            argv.append(f"--handler={json.dumps(handler)}")
        self.process = subprocess.Popen(
            [*prefix, python, str(BOOKED), str(port), name, str(book), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.stderr = ""
        self.result: dict[str, Any] = {}

    @property
    def book(self) -> Book:
        return read_book(self.book_path)

    def wait(self, timeout: float = END_SECONDS) -> int:
        """Wait for its end; return the exit code. What it printed is ``result`` then."""
        out, self.stderr = self.process.communicate(timeout=timeout)
        self.result = json.loads(out) if out.strip() else {}
        return self.process.returncode

    def stop(self) -> None:
        """Ask it to log no more, to flush and to end; it has begun when its book is there."""
        until(self.book_path.exists, ACK_SECONDS, f"{self.name} begins")
        self.process.send_signal(signal.SIGUSR2)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()


class Stage:
    """A directory with a server and its workers."""

    def __init__(
        self,
        directory: Path,
        config: str = TWO_SINKS,
        *,
        books: Path | None = None,
        seed: int = 0,
        archive: Path | None = None,
        python: str | os.PathLike[str] = sys.executable,
        args: tuple[str, ...] = ("--no-stdout",),
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> None:
        """``python`` may be a script that prepares something and becomes Python; ``env`` is every server's."""
        self._how: dict[str, Any] = {"python": python, "stdout": stdout}
        self._args = args
        self._env = dict(env or {})
        self.directory = directory
        self.config = config
        self.books_path = books or directory / "books"
        self.books_path.mkdir(exist_ok=True)
        self.port = 0
        self.seed = seed
        self.workers: list[Worker] = []
        self.recoveries: list[float] = []
        self.archive = archive
        self.moved: list[Path] = []  # files of the sink "all" that somebody moved away, the oldest first
        self.said = ""  # what servers that are gone said
        self._stack = contextlib.ExitStack()
        self._server: ServerProcess | None = None

    # -- the server

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self._stack.close()

    @property
    def server(self) -> ServerProcess:
        assert self._server
        return self._server

    def start(self, env: Mapping[str, str] | None = None, *, wait: bool = True) -> float:
        """Start a server on the port of the last one; return the moment before."""
        self._stack.close()
        began = time.monotonic()
        self._server = self._stack.enter_context(
            serve(
                self.directory,
                self.config,
                *self._args,
                port=self.port,
                env=self._env | dict(env or {}),
                wait=wait,
                **self._how,
            )
        )
        if wait:
            self.port = self._server.port
        return began

    def kill(self) -> None:
        self.server.kill()
        self.said += self.server.stderr

    def stop(self, timeout: float = 15.0) -> float:
        """SIGTERM; return how many seconds the end took."""
        began = time.monotonic()
        code = self.server.stop(timeout=timeout)
        self.said += self.server.stderr
        assert code == 0, f"the server ended with {code}: {self.server.stderr}"
        return time.monotonic() - began

    def restart_until_acked(self, **options: Any) -> None:
        """Start again after a fault, and note how long the first ack took from then."""
        before = {worker: len(worker.book.acks) for worker in self.workers}
        began = self.start(**options)
        self.recoveries.append(self.first_ack(began, before) - began)

    def first_ack(self, since: float, before: Mapping[Worker, int] | None = None) -> float:
        """Wait for the first ack of any worker after a moment; return when it came."""

        def find() -> float:
            moments = (
                moment
                for worker in self.workers
                for moment, _ in worker.book.acks[(before or {}).get(worker, 0) :]
                if moment >= since
            )
            return min(moments, default=0.0)

        return until(find, ACK_SECONDS, f"an ack; the server said:\n{self.server.stderr}")

    # -- the workers

    def work(self, workers: int = 1, *, port: int | None = None, name: str = "w", **options: Any) -> list[Worker]:
        """Start workers, by default with names that no other had."""
        started = []
        for _ in range(workers):
            own = f"{name}{len(self.workers)}"
            worker = Worker(port or self.port, own, self.books_path / f"{own}.book", **{"seed": self.seed, **options})
            self.workers.append(worker)
            started.append(worker)
        for worker in started:
            until(worker.book_path.exists, ACK_SECONDS, f"{worker.name} begins")
        return started

    def finish(self) -> None:
        """Let all workers flush and end, then the server."""
        self.rest()
        self.stop()

    def rest(self) -> None:
        """Let all workers that still run flush and end."""
        living = [worker for worker in self.workers if worker.process.poll() is None]
        for worker in living:
            worker.stop()
        for worker in living:
            code = worker.wait()
            assert code == 0, f"{worker.name} ended with {code}: {worker.stderr}"

    @property
    def books(self) -> dict[str, Book]:
        return {worker.name: worker.book for worker in self.workers}

    @property
    def dropped(self) -> int:
        """How many records the workers say that they dropped."""
        return sum(sum(worker.result["stats"]["dropped"].values()) for worker in self.workers if worker.result)

    # -- the judgement

    def verdicts(self) -> dict[str, Verdict]:
        """Judge the sinks "all" and, where there is one, "errors"."""
        books = self.books
        logs = self.directory / "logs"
        verdicts = {"all": Verdict(Found(logs / "all.log", archive=self.archive, also=self.moved), books)}
        if "sinks.errors" in self.config:
            found = Found(logs / "errors.log", text=True, archive=self.archive)
            verdicts["errors"] = Verdict(found, books, errors=True)
        return verdicts

    def figures(self, row: str, **more: object) -> dict[str, Verdict]:
        """Print one line for the row, and return the verdicts."""
        verdicts = self.verdicts()
        recovery = {"recovery_max_s": f"{max(self.recoveries):.2f}"} if self.recoveries else {}
        for sink, verdict in verdicts.items():
            say(row, verdict.figures(), sink=sink, **more, **recovery)
        return verdicts

    def assert_exact(self, row: str, **more: object) -> None:
        """Print the figures; fail unless every sink has everything once."""
        for verdict in self.figures(row, **more).values():
            verdict.assert_exact()
        assert self.dropped == 0

    def assert_counted(self, row: str, **more: object) -> None:
        """Print the figures; fail unless nothing but counted and said drops is missing."""
        dropped = self.dropped
        for sink, verdict in self.figures(row, **more, dropped=dropped).items():
            if sink == "all":
                verdict.assert_counted(dropped)
            else:  # how many of the dropped ones this sink would have taken nobody knows
                verdict.assert_clean()
                assert verdict.found.said_dropped == dropped >= verdict.lost_emitted


def wrapped(directory: Path, *commands: str) -> Path:
    """Make a script that runs shell commands and then becomes Python, for ``Stage(python=…)``."""
    script = directory / "python-in-a-shell"
    script.write_text("\n".join(["#!/bin/sh", "set -e", *commands, f'exec "{sys.executable}" "$@"', ""]))
    script.chmod(0o755)
    return script


@contextlib.contextmanager
def archiving(logs: Path, archive: Path) -> Iterator[None]:
    """Link every backup into ``archive`` as soon as it has its name, before retention may remove it."""
    from aiolog.rotation import parse_backup

    archive.mkdir()
    stopped = threading.Event()
    live = ("all.log", "errors.log")

    def look() -> None:
        for path in list(logs.iterdir()) if logs.exists() else ():
            if any(parse_backup(name, path.name) for name in live):
                with contextlib.suppress(OSError):
                    os.link(path, archive / path.name)

    def run() -> None:
        while not stopped.wait(0.01):
            look()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        look()
