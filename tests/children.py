"""Processes of every kind that log and end in every way, without a flush: run by test_exits.py, under each interpreter.

    python children.py PORT KIND DIRECTORY HOW...  [--spool DIR] [--one-by-one]

KIND is main (a program of its own), fork (os.fork, as gunicorn's workers are), or a start method of multiprocessing
behind what runs in it: process-spawn, with-pool-fork (`with Pool()`, which terminates), close-pool-forkserver,
executor-fork. HOW is one of WAYS, and for a pool nothing.

Each child logs COUNT records, a millisecond apart, named KIND.HOW; then it leaves. In DIRECTORY/KIND.HOW stand its pid,
when each of its log calls returned, and when it began to end: so that what is lost has an age.
Standard library and aiolog only.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from worker import body, logger_to

COUNT = 100
HOOKS_RUN = ("return", "exception", "sys.exit")
NOTHING_RUNS = ("os._exit", "SIGTERM", "SIGKILL", "terminate", "exec")
WAYS = HOOKS_RUN + NOTHING_RUNS
TASKS = 6


def log(name: str) -> list[float]:
    """Log as a child does; returns when each call returned."""
    logger = logging.getLogger("worker")
    times = []
    for number in range(COUNT):
        logger.info(body(name, number))
        times.append(time.monotonic())
        time.sleep(0.001 if number + 1 < COUNT else 0)
    return times


def note(directory: str, name: str, pid: int, times: list[float], end: float | None = None) -> None:
    """Write the book of a child, whole or not at all, before it begins to end."""
    path = Path(directory) / f".{name}"
    path.write_text(" ".join(map(repr, [pid, *times, end or time.monotonic()])))
    path.rename(Path(directory) / name)


def live(name: str, how: str, directory: str, port: int = 0, spool: str | None = None) -> None:
    """Be a child: log, and end."""
    if port:  # not inherited
        logger_to(port, spool_dir=spool)
    note(directory, name, os.getpid(), log(name))
    if how == "exception":
        raise RuntimeError("nobody catches this")
    if how == "sys.exit":
        sys.exit(0)
    if how == "os._exit":
        os._exit(0)
    if how == "exec":
        os.execv(sys.executable, [sys.executable, "-c", "pass"])
    if how in ("SIGTERM", "SIGKILL"):
        os.kill(os.getpid(), signal.Signals[how])
        time.sleep(60)
    if how == "terminate":
        time.sleep(60)


def end_of(directory: str, name: str) -> None:
    """Wait until a child has logged everything."""
    book = Path(directory) / name
    while not book.exists():
        time.sleep(0.0005)


def main_(given: argparse.Namespace) -> None:
    """Start each child as a program of its own."""
    argv = [sys.executable, __file__, str(given.port), "alone", given.directory]
    spool = ["--spool", given.spool] if given.spool else []

    def start(name: str, how: str) -> tuple[subprocess.Popen[bytes], None]:
        return subprocess.Popen([*argv, name, how, *spool], stderr=subprocess.DEVNULL), None

    run(given, start, lambda child: child.terminate(), lambda child: child.wait(60))


def fork(given: argparse.Namespace) -> None:
    """Fork each child from a parent that logs as well."""
    logger_to(given.port, spool_dir=given.spool)
    logging.getLogger("worker").info(body(f"{given.kind}.parent", 0))

    def start(name: str, how: str) -> tuple[int, None]:
        pid = os.fork()
        if pid:
            return pid, None
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        live(name, how, given.directory)
        sys.exit(0)

    run(given, start, lambda pid: os.kill(pid, signal.SIGTERM), lambda pid: os.waitpid(pid, 0))


def process(given: argparse.Namespace) -> None:
    """Run each child as a Process of multiprocessing; a forked one inherits its parent's handler."""
    method = given.kind.split("-")[1]
    if method == "fork":
        logger_to(given.port, spool_dir=given.spool)
        logging.getLogger("worker").info(body(f"{given.kind}.parent", 0))
    context = multiprocessing.get_context(method)

    def start(name: str, how: str):  # type: ignore[no-untyped-def]
        child = context.Process(
            target=live, args=(name, how, given.directory, 0 if method == "fork" else given.port, given.spool)
        )
        child.start()
        return child, None

    run(given, start, lambda child: child.terminate(), lambda child: child.join(60))


def run(given: argparse.Namespace, start, terminate, wait) -> None:  # type: ignore[no-untyped-def]
    """Start the children, together or one by one, end those that wait to be ended, and wait for all."""
    for group in [[how] for how in given.how] if given.one_by_one else [given.how]:
        children = {how: start(f"{given.kind}.{how}", how)[0] for how in group}
        if "terminate" in children:
            end_of(given.directory, f"{given.kind}.terminate")
            terminate(children["terminate"])
        for child in children.values():
            wait(child)


def _begin(port: int, spool: str | None) -> None:
    if not logging.getLogger("worker").handlers:
        logger_to(port, spool_dir=spool)


def _task(name: str) -> tuple[str, int, list[float]]:
    return name, os.getpid(), log(name)


def pool(given: argparse.Namespace) -> None:
    """Run tasks in a pool or an executor; each task logs as a child does."""
    *what, method = given.kind.split("-")
    context = multiprocessing.get_context(method)
    how = {"initializer": _begin, "initargs": (given.port, given.spool)}
    names = [f"{given.kind}.task{number}" for number in range(TASKS)]
    with contextlib.ExitStack() as stack:
        if what == ["executor"]:
            workers = stack.enter_context(ProcessPoolExecutor(3, mp_context=context, **how))
            results = list(workers.map(_task, names))
        else:
            workers = stack.enter_context(context.Pool(3, **how))
            results = workers.map(_task, names, chunksize=1)
        end = time.monotonic()
        for name, pid, times in results:
            note(given.directory, name, pid, times, end)
        if what == ["close", "pool"]:
            workers.close()
            workers.join()


def main() -> None:
    """Run the children of one kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("kind")
    parser.add_argument("directory")
    parser.add_argument("how", nargs="*")
    parser.add_argument("--spool")
    parser.add_argument("--one-by-one", action="store_true")
    given = parser.parse_args()
    if given.kind == "alone":
        live(*given.how, given.directory, given.port, given.spool)
    else:
        first = given.kind.split("-")[0]
        {"main": main_, "fork": fork, "process": process}.get(first, pool)(given)


if __name__ == "__main__":
    main()
