"""The same load and the same faults for aiolog, SocketHandler with a receiver, and rsyslog over TCP.

    python tests/faults/compare.py [--times N] [--workers N] [--per-second R] [--rsyslog PATH [--rsyslog-modules DIR]]

Prints a table in Markdown: per system and fault what was emitted, lost and written twice, and the slowest log call.
rsyslog is run by hand on a port of its own, never as the system's service. Workers are this file's too.
"""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from booked import PRINTABLE, message
from judge import backups, content
from worker import check

LEAST_UP_SECONDS, MOST_UP_SECONDS = 1.5, 3.0  # between two faults


class Reconnecting(logging.handlers.SysLogHandler):
    """The standard handler, which over TCP never connects again (CPython 3.11); here it does, at the next record."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Give up the connection that failed."""
        if self.socket:
            self.socket.close()
        self.socket = None


def work(kind: str, port: int, name: str, per_second: float) -> None:
    """Log until SIGUSR2, close as a program at its end does, and print what was emitted and the slowest call."""
    stopped: list[int] = []
    signal.signal(signal.SIGUSR2, lambda signum, _frame: stopped.append(signum))
    logging.raiseExceptions = False  # a standard handler prints a traceback for each record that it loses
    handler: logging.Handler
    if kind == "aiolog":
        from aiolog import AiologHandler

        handler = AiologHandler("127.0.0.1", port, app="compare")
    elif kind == "SocketHandler":
        handler = logging.handlers.SocketHandler("127.0.0.1", port)
    else:
        handler = Reconnecting(("127.0.0.1", port), socktype=socket.SOCK_STREAM)
        handler.append_nul = False
        handler.setFormatter(logging.Formatter("%(message)s\n"))  # a newline frames a message over TCP
    logger = logging.getLogger("worker")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    rng = random.Random(name)
    paddings = ["x" + "".join(rng.choices(PRINTABLE, k=200)) + "x" for _ in range(64)]
    slowest, number, began = 0.0, 0, time.perf_counter()
    while not stopped:
        while (left := began + number / per_second - time.perf_counter()) > 0:
            time.sleep(left)
        before = time.perf_counter()
        logger.info(message(name, number, paddings[number % 64]))
        slowest = max(slowest, time.perf_counter() - before)
        number += 1
    logging.shutdown()
    print(json.dumps({"emitted": number, "slowest": slowest}), flush=True)


class System:
    """One log server that can be started, killed, stopped and started again."""

    def __init__(self, kind: str, directory: Path, given: argparse.Namespace) -> None:
        self.kind, self.directory = kind, directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.file = directory / "app.log"
        env = dict(os.environ)
        if kind == "aiolog":
            config = directory / "aiolog.toml"
            config.write_text(f'[http]\nenabled = false\n[sinks.app]\npath = "{self.file}"\nmax_bytes = 0\n')
            self.argv = [sys.executable, "-m", "aiolog.cli", "serve", "--no-stdout", "-c", config, "--port", self.port]
        elif kind == "SocketHandler":
            self.argv = [sys.executable, HERE / "cookbook.py", self.port, self.file]
        else:
            config = directory / "rsyslog.conf"
            config.write_text(
                f'global(workDirectory="{directory}" maxMessageSize="8k")\n'
                f'module(load="imtcp" MaxSessions="500")\ninput(type="imtcp" port="{self.port}")\n'
                'template(name="raw" type="string" string="%rawmsg%\\n")\n'
                f'action(type="omfile" file="{self.file}" template="raw")\n'
            )
            self.argv = [given.rsyslog, "-n", "-f", config, "-i", directory / "rsyslog.pid"]
            if given.rsyslog_modules:
                self.argv += ["-M", given.rsyslog_modules]
                env["LD_LIBRARY_PATH"] = str(Path(given.rsyslog_modules).parent)
        self.env = env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.directory / "rsyslog.pid").unlink(missing_ok=True)
        out = (self.directory / "said").open("ab")
        self.process = subprocess.Popen(
            list(map(str, self.argv)), cwd=self.directory, env=self.env, stdout=out, stderr=out
        )
        out.close()
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.directory / "said").read_text()
                time.sleep(0.01)

    def end(self, signum: int) -> None:
        assert self.process
        self.process.send_signal(signum)
        self.process.wait(20)

    def numbers(self) -> tuple[dict[str, list[int]], int]:
        """Return what stands in the file, by worker, and how many lines are torn."""
        seen: dict[str, list[int]] = {}
        torn = 0
        for path in backups(self.file):
            for raw in content(path).decode(errors="replace").splitlines():
                try:
                    text = json.loads(raw)["msg"] if self.kind == "aiolog" else raw
                    if self.kind == "rsyslog":
                        text = text.partition(">")[2]
                    worker, number = check(text)
                except (ValueError, KeyError):
                    torn += bool(raw)
                else:
                    seen.setdefault(worker, []).append(number)
        return seen, torn


FAULTS = {"kill -9": signal.SIGKILL, "restart": signal.SIGTERM, "SIGSTOP 5 s": signal.SIGSTOP, "none": 0}


def try_out(kind: str, fault: str, given: argparse.Namespace) -> str:
    """Run one cell; return its row."""
    directory = Path(tempfile.mkdtemp(prefix="aiolog-compare-"))
    rng = random.Random(given.seed)
    system = System(kind, directory, given)
    system.start()
    names = [f"w{n}" for n in range(given.workers)]
    argv = [sys.executable, __file__, "--as-worker", kind, "--port", system.port, "--per-second", given.per_second]
    workers = {
        name: subprocess.Popen([*map(str, argv), "--name", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for name in names
    }
    try:
        time.sleep(1.5)
        for _ in range(1 if fault in ("SIGSTOP 5 s", "none") else given.times):
            time.sleep(rng.uniform(LEAST_UP_SECONDS, MOST_UP_SECONDS))
            if fault == "SIGSTOP 5 s":
                assert system.process
                system.process.send_signal(signal.SIGSTOP)
                time.sleep(5)
                system.process.send_signal(signal.SIGCONT)
            elif fault != "none":
                system.end(FAULTS[fault])
                time.sleep(0.2)  # what a supervisor takes
                system.start()
        time.sleep(1)
        results = {}
        for name, worker in workers.items():
            worker.send_signal(signal.SIGUSR2)
            results[name] = json.loads(worker.communicate(timeout=60)[0])
        time.sleep(1)
        system.end(signal.SIGTERM)
    finally:
        for worker in workers.values():
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        if system.process and system.process.poll() is None:
            system.end(signal.SIGKILL)
    seen, torn = system.numbers()
    emitted = sum(result["emitted"] for result in results.values())
    lost = sum(len(set(range(results[n]["emitted"])) - set(seen.get(n, ()))) for n in names)
    twice = sum(count - 1 for n in names for count in Counter(seen.get(n, ())).values())
    slowest = max(result["slowest"] for result in results.values()) * 1e3
    shutil.rmtree(directory)
    return f"| {kind} | {fault} | {emitted} | {lost} | {twice} | {torn} | {slowest:.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--per-second", type=float, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rsyslog", default=shutil.which("rsyslogd"))
    parser.add_argument("--rsyslog-modules")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--as-worker")
    parser.add_argument("--port", type=int)
    parser.add_argument("--name")
    given = parser.parse_args()
    if given.as_worker:
        work(given.as_worker, given.port, given.name, given.per_second)
        return
    kinds = given.only or ["aiolog", "SocketHandler", *(["rsyslog"] if given.rsyslog else [])]
    print(
        f"{given.workers} workers, {given.per_second:g} records a second each; kill and restart {given.times} times\n"
    )
    print("| system | fault | emitted | lost | twice | torn lines | slowest call, ms |")
    print("|---|---|---|---|---|---|---|")
    for fault in FAULTS:
        for kind in kinds:
            print(try_out(kind, fault, given), flush=True)


if __name__ == "__main__":
    main()
