"""What the ledger costs the server: CPU a record, with and without it, ``written`` and ``fsynced``, in one run.

    python benchmarks/ledger.py [RECORDS] [ROUNDS]

Two worker processes log as fast as they can, and then at a pace of 5,000 records a second each; the server writes one
file of JSON lines. Its CPU is what the system counted for its process, user and system, from start to end, less that
of a start without records. The rounds alternate, and the ratios are of medians: the machine's speed cancels out.

"without" replaces the ledger by one that remembers nothing; there is no such setting.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = """
import logging, sys, time
from aiolog import AiologHandler
port, count, pace = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
logger = logging.getLogger("bench")
logger.setLevel(logging.INFO)
logger.propagate = False
logger.addHandler(handler := AiologHandler(port=port))
began = time.perf_counter()
for number in range(count):
    if pace and number % 50 == 0:
        time.sleep(max(0.0, began + number / pace - time.perf_counter()))
    logger.info("user %d logged in from 10.0.0.%d after %.1f ms", number, number % 256, 0.5)
handler.flush(600)
assert handler.stats()["acked"] == count, handler.stats()
"""

SERVER = """
import sys
if sys.argv.pop(1) == "without":
    import aiolog.livefile as file

    class NoLedger:
        doubtful, settled, is_damaged, is_long = [], None, False, False
        def __init__(self, *_, **__): self._marks = {}
        def read(self): return True
        def mark(self, session): return None
        def forget(self, session): pass
        def announce(self, *_): pass
        def committed(self): pass
        def settle(self, *_): pass
        def close(self): pass

    file.Ledger = NoLedger
from aiolog.cli import main
main()
"""

KINDS = {"without": "written", "written": "written", "fsynced": "fsynced"}


def server_cpu_seconds(kind: str, count: int, pace: float) -> float:
    """Return the CPU time of one server that took ``count`` records from each of two workers."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = directory / "aiolog.toml"
        config.write_text(
            f'[http]\nenabled = false\n[sinks.app]\npath = "app.log"\nformat = "json"\ndurability = "{KINDS[kind]}"\n'
        )
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, kind, "serve", "-c", config, "--port", "0"],
            cwd=directory, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stderr is not None
        found = re.search(r"listening on \S+:(\d+)", server.stderr.readline())
        assert found
        workers = [
            subprocess.Popen([sys.executable, "-c", WORKER, found[1], str(count), str(pace)])
            for _ in range(2 * bool(count))
        ]
        assert not any(worker.wait() for worker in workers)
        server.send_signal(signal.SIGTERM)
        server.stderr.read()
        server.stderr.close()
        _, status, usage = os.wait4(server.pid, 0)
        server.returncode = os.waitstatus_to_exitcode(status)
        assert server.returncode == 0
        lines = sum(path.read_bytes().count(b"\n") for path in directory.glob("app.log*"))
        assert lines == 2 * count, lines
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure, and print one line a load and kind."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    for load, records, pace in (("flood", count, 0.0), ("5,000/s", min(count, 25_000), 5_000.0)):
        took: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            start = server_cpu_seconds("written", 0, 0)
            for kind, seconds in took.items():
                seconds.append((server_cpu_seconds(kind, records, pace) - start) / (2 * records))
        medians = {kind: statistics.median(seconds) for kind, seconds in took.items()}
        for kind, seconds in medians.items():
            print(
                f"{load:8} {kind:8} {seconds * 1e6:6.2f} µs a record, {seconds / medians['without']:.3f} of without "
                f"(min {min(took[kind]) * 1e6:.2f}, max {max(took[kind]) * 1e6:.2f})"
            )


if __name__ == "__main__":
    main()
