"""Does anybody feel a rotation? The slowest acks while a file of 512 MiB is rotated and compressed, and without.

    python benchmarks/rotation.py [--mib 512] [--compress zstd] [--runs 5]

A process sends a record every 2 ms and waits for its ack, for some seconds: first nothing is rotated; then the same
while `aiolog rotate` takes the large file away and it is being compressed. Printed for each run: p50, p99 and the
slowest of both, in ms, their ratio, and how long the compression took.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from aiolog import AiologHandler

PAUSE_SECONDS = 0.002
LINE = (
    '{{"ts":"2026-11-23T09:22:30.{:06d}Z","level":"INFO","logger":"shop.orders","msg":"order {} is paid","host":"web1",'
    '"pid":8124,"process":"worker-2","thread":"MainThread","file":"/srv/shop/orders.py","line":41,"func":"pay"}}\n'
)


def acks(handler: AiologHandler, until: float) -> list[float]:
    """Return how long each record took to be acked, in ms, one after the other until a moment."""
    took = []
    while time.monotonic() < until:
        record = logging.LogRecord("probe", logging.INFO, __file__, 1, "probe", None, None)
        began = time.perf_counter()
        handler.handle(record)
        handler.flush(30)
        took.append((time.perf_counter() - began) * 1e3)
        time.sleep(PAUSE_SECONDS)
    return sorted(took)


def figures(took: list[float]) -> str:
    """Return p50, p99 and the slowest."""
    return f"p50 {took[len(took) // 2]:6.2f}  p99 {took[int(len(took) * 0.99)]:6.2f}  slowest {took[-1]:7.2f} ms"


def run(mib: int, compress: str) -> float:
    """Measure once; return the ratio of the slowest acks."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        live = directory / "logs/app.log"
        live.parent.mkdir()
        rng = random.Random(1)
        block = "".join(LINE.format(rng.randrange(10**6), rng.randrange(10**12)) for _ in range(40_000)).encode()
        with live.open("wb") as out:
            for _ in range((mib << 20) // len(block)):
                out.write(block)
        os.sync()  # or the first seconds would measure that
        config = directory / "aiolog.toml"
        config.write_text(f'[server]\nport = 0\n[http]\nport = 0\n[sinks.app]\npath = "{live}"\nmax_bytes = 0\n'
                          f'compress = "{compress}"\n')  # fmt: skip
        server = subprocess.Popen(
            [sys.executable, "-m", "aiolog", "serve", "-c", config], stderr=subprocess.PIPE, text=True, cwd=directory
        )
        try:
            assert server.stderr is not None
            words = next(line for line in server.stderr if "listening on" in line).split()
            port = int(words[3].rstrip(",").rpartition(":")[2])
            url = words[6].rstrip(",").removesuffix("/metrics")
            handler = AiologHandler("127.0.0.1", port)
            acks(handler, time.monotonic() + 1.0)
            quiet = acks(handler, time.monotonic() + 5.0)
            request = urllib.request.Request(f"{url}/rotate", method="POST", headers={"X-Aiolog-Asked": "1"})
            began = time.monotonic()
            with urllib.request.urlopen(request) as answer:
                assert json.load(answer)["rotated"]["app"]
            rotating = acks(handler, began + 5.0)
            while not (found := [path for path in live.parent.iterdir() if path.suffix in {".zst", ".gz"}]):
                time.sleep(0.1)
            done = found[0]
            compressed_seconds = (done.stat().st_ctime_ns / 1e9) - (time.time() - (time.monotonic() - began))
            handler.close()
        finally:
            server.terminate()
            server.communicate()
    ratio = rotating[-1] / quiet[-1]
    print(f"without   {figures(quiet)}\nrotating  {figures(rotating)}  ratio of slowest {ratio:.2f}, of p99 "
          f"{rotating[int(len(rotating) * 0.99)] / quiet[int(len(quiet) * 0.99)]:.2f}; compressed after "
          f"{compressed_seconds:.1f} s", flush=True)  # fmt: skip
    return ratio


def main() -> None:
    """Run some times, and print the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--compress", choices=("zstd", "gzip"), default="zstd")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    ratios = [run(given.mib, given.compress) for _ in range(given.runs)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(
        f"slowest ack while rotating {given.mib} MiB with {given.compress}, against without: "
        f"{statistics.median(ratios):.2f} (median of {len(ratios)}: {each})"
    )


if __name__ == "__main__":
    main()
