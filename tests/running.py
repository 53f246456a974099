"""A real ``aiolog serve`` for tests, in a process of its own.

    with serve(tmp_path) as server:                     # port 0, ready when this returns
        log_to(server.port)
        assert server.stop() == 0                       # SIGTERM, a drain, the exit code
        assert [r["msg"] for r in server.records()] == ["hello"]

It ends only processes that it started, by their pid.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiolog.rotation import parse_backup

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

READY_SECONDS = 20.0  # for a start on a machine that does much else
STOP_SECONDS = 40.0  # gunicorn kills after 30 what did not hear it

READY = re.compile(r"listening on (?P<host>\S+):(?P<port>\d+)")
METRICS = re.compile(r"metrics on (?P<url>http://\S+)/metrics")


class Process:
    """A process whose stderr is read as it comes, and whose stdout goes to a file, ``<stem>.stdout``.

    ``argv`` without the interpreter: ``["-m", "aiolog.cli", "serve"]``. ``stdout`` takes a descriptor instead.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        directory: Path,
        stem: str = "process",
        python: str | os.PathLike[str] = sys.executable,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stdin: int | None = None,
    ) -> None:
        self.directory = directory
        self._stdout_path = directory / f"{stem}.stdout"
        with self._stdout_path.open("ab") as out:
            self.process = subprocess.Popen(
                [os.fspath(python), *argv],
                cwd=directory,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=out if stdout is None else stdout,
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
            )
        self._lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self._lines.append(line)
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        """All that it has said so far."""
        with self._more:
            return "".join(self._lines)

    @property
    def stdout(self) -> str:
        """All that it has printed so far."""
        return self._stdout_path.read_text(errors="backslashreplace")

    def expect(self, pattern: str | re.Pattern[str], timeout: float = READY_SECONDS) -> re.Match[str]:
        """Wait until stderr matches ``pattern``; fails when the process ends without that."""
        with self._more:
            self._more.wait_for(lambda: self._ended or re.search(pattern, "".join(self._lines)), timeout)
            found = re.search(pattern, "".join(self._lines))
        assert found, f"{self.process.args} never said {pattern!r}; it said:\n{self.stderr}"
        return found

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """Wait for the end; the exit code is negative for a signal, as in :mod:`subprocess`."""
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def stop(self, signum: int = signal.SIGTERM, timeout: float = STOP_SECONDS) -> int:
        """Ask it to end, and return the exit code."""
        self.send(signum)
        return self.wait(timeout)

    def kill(self) -> None:
        """End it as a crash would."""
        self.stop(signal.SIGKILL)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.kill()
        self._reader.join(STOP_SECONDS)
        assert self.process.stderr is not None
        self.process.stderr.close()


class ServerProcess(Process):
    """``aiolog serve``: where it listens, what it wrote."""

    host = ""
    port = 0
    url = ""  # of HTTP, without a path; "" where it is off

    def ready(self) -> None:
        """Wait until it listens."""
        line = self.expect(READY.pattern + r".*\n")
        self.host, self.port = line["host"], int(line["port"])
        metrics = METRICS.search(line[0])
        self.url = metrics["url"] if metrics else ""

    def records(self, path: str = "logs/app.log") -> list[dict[str, Any]]:
        """Return the JSON records of a file and all its backups, the oldest first."""
        return [json.loads(line) for line in lines(self.directory / path)]


@contextlib.contextmanager
def serve(
    directory: Path,
    config: str | None = None,
    *args: str,
    port: int = 0,
    python: str | os.PathLike[str] = sys.executable,
    env: Mapping[str, str] | None = None,
    stdout: int | None = None,
    wait: bool = True,
) -> Iterator[ServerProcess]:
    """Run ``aiolog serve`` in ``directory``, from the TOML text ``config`` if there is one; kill it at the end.

    It is ready when this returns, unless ``wait`` is false. ``port`` gives a restarted server its old port.
    """
    argv = ["-m", "aiolog.cli", "serve", *args]
    if config is not None:
        file = directory / "aiolog.toml"
        file.write_text(config)
        argv += ["--config", str(file)]
    if "--port" not in args:
        argv += ["--port", str(port)]
    server = ServerProcess(
        argv,
        directory=directory,
        stem="server",
        python=python,
        env={"AIOLOG_HTTP__PORT": "0", **(env or {})},
        stdout=stdout,
    )
    try:
        if wait:
            server.ready()
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def run(
    directory: Path, *argv: str, program: Sequence[str] = ("-m", "aiolog.cli"), **options: Any
) -> Iterator[Process]:
    """Run ``aiolog ARGV``, or another ``program``, in ``directory``; kill it at the end."""
    process = Process([*program, *argv], directory=directory, **options)
    try:
        yield process
    finally:
        process.close()


def aiolog(
    directory: Path, *argv: str, env: Mapping[str, str] | None = None, stdin: str = "", timeout: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run ``aiolog ARGV`` in ``directory`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "aiolog.cli", *argv],
        cwd=directory,
        env={**os.environ, **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def files(live: Path) -> list[Path]:
    """Return the backups of a live file, each once, and the file itself: the oldest first."""
    backups = {}
    for name in sorted((path.name for path in live.parent.iterdir()), reverse=True):
        # In reverse, so that of a backup and its compressed twin, which is there for a moment, the plain one stays.
        if backup := parse_backup(live.name, name):
            backups[backup.stamp, backup.counter] = live.with_name(name)
    return [backups[key] for key in sorted(backups)] + [live] * live.exists()


def lines(live: Path) -> Iterator[str]:
    """Yield the lines of a live file and all its backups, the oldest first."""
    for path in files(live):
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".zst":
            data = zstd.decompress(data)
        yield from data.decode().splitlines()
