"""What aiolog costs while nothing is logged: memory for each idle connection, and the time of its import."""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.loads import Load
from benchmarks.measure import free_port
from benchmarks.rivals import FORK, Rival

CONNECTIONS = 1_000
IMPORT_ROUNDS = 15


def idle_kib(make: type[Rival], directory: Path) -> float:
    """Return the memory that one idle connection takes in the server, in KiB, over CONNECTIONS of them.

    Each has logged one record.
    """
    rival = make(Load("idle", CONNECTIONS, connections=CONNECTIONS), directory, free_port())
    pid = rival.start()
    connected, end = FORK.Event(), FORK.Event()

    def connect() -> None:
        for connection in range(CONNECTIONS):
            rival.call(connection)("<%d 0 0> </%d 0>", connection, connection)
        for handler in [handler() for handler in logging._handlerList]:
            if handler is not None:
                handler.flush()
        connected.set()
        end.wait()

    process = FORK.Process(target=connect)
    before = _resident_kib(pid)
    process.start()
    try:
        assert connected.wait(60)
        return (_resident_kib(pid) - before) / CONNECTIONS
    finally:
        end.set()
        process.join()
        rival.stop()


def import_ms() -> dict[str, float]:
    """Return how long imports take, in ms: medians of fresh interpreters, in turn.

    With bytecode, as an installer leaves it: the standard library's is always there, ours perhaps not in a checkout.
    """
    took: dict[str, list[float]] = {
        "import logging.handlers": [],
        "import aiolog": [],
        "from aiolog import AiologHandler": [],
    }
    with tempfile.TemporaryDirectory(prefix="aiolog-bytecode-") as directory:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": directory, "PYTHONDONTWRITEBYTECODE": ""}
        for _ in range(1 + IMPORT_ROUNDS):  # the first one compiles
            for statement, seconds in took.items():
                program = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
                seconds.append(float(subprocess.check_output([sys.executable, "-c", program], env=environment)))
    return {statement: statistics.median(seconds[1:]) * 1e3 for statement, seconds in took.items()}


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
