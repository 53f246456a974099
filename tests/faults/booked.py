"""A worker that keeps a book: which log calls returned, and how many records were acked when.

    python booked.py PORT WORKER BOOK [--per-second R] [--seconds S] [--count N] [--seed N] [--end HOW] [--flush S]
                     [--handler JSON] [--one-in-flight 1]

It logs until one of the limits, or SIGUSR2; then it flushes, and prints one line of JSON. The book is appended to by
one os.write per returned call, so that it is right however the worker ends:

    NUMBER                    the log call with this number returned; they count from 0
    a ACKED MONOTONIC         so many records were acked at this moment

Every fifth record is an ERROR. A message is one of worker.py, with random padding: printable, foreign and control
characters. ``--handler`` is the settings of the handler, ``--end`` one of ENDS. Standard library and aiolog only.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from worker import logger_to

ERROR_EVERY = 5
PRINTABLE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;-_/'\"{}[]()<>%$&?!"
STRANGE = "\n\t\x00\x1b\x7f\x85\u2028\u202eäßЖ漢🚀"  # no backslash: the text format's escapes could not be told apart
PADDINGS = 64  # made once: a call must cost what a log call costs


def paddings(rng: random.Random) -> list[str]:
    """Return texts of about 200 characters, every third with characters that need care."""
    texts = []
    for n in range(PADDINGS):
        chars = rng.choices(PRINTABLE, k=200)
        if n % 3 == 0:
            for place in rng.sample(range(1, 199), 8):
                chars[place] = rng.choice(STRANGE)
        texts.append("x" + "".join(chars) + "x")  # neither end is a space or a line's end
    return texts


def message(worker: str, number: int, padding: str) -> str:
    """Return the message of one record, as :func:`worker.check` reads it."""
    return f"{worker} {number} {zlib.crc32(f'{worker} {number} {padding}'.encode()):08x} {padding}"


def _exec() -> None:
    os.execv(sys.executable, [sys.executable, "-c", "pass"])


def _raise() -> None:
    raise RuntimeError("an error that nobody caught")


ENDS: dict[str, Callable[[], None]] = {
    "return": lambda: None,
    "exception": _raise,
    "_exit": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "exec": _exec,
}


def main() -> None:
    """Log, keep the book, end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("worker")
    parser.add_argument("book")
    parser.add_argument("--per-second", type=float, default=0)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--count", type=int, default=1 << 60)
    parser.add_argument("--one-in-flight", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flush", type=float, default=60)
    parser.add_argument("--end", choices=ENDS, default="return")
    parser.add_argument("--handler", type=json.loads, default={})
    given = parser.parse_args()

    stopped: list[int] = []
    signal.signal(signal.SIGUSR2, lambda signum, _frame: stopped.append(signum))
    book = os.open(given.book, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    logger, handler = logger_to(given.port, **given.handler)
    texts = paddings(random.Random(f"{given.seed} {given.worker}"))
    calls, latencies, acked, number, began = [], [], 0, 0, time.perf_counter()

    def note_acks() -> None:
        nonlocal acked
        if (now := handler.stats()["acked"]) != acked:
            acked = now
            os.write(book, b"a %d %.4f\n" % (acked, time.monotonic()))

    while number < given.count and not stopped and time.perf_counter() - began < given.seconds:
        if given.per_second:
            due = began + number / given.per_second
            while (left := due - time.perf_counter()) > 0 and not stopped:
                time.sleep(min(left, 0.05))
                note_acks()
        text = message(given.worker, number, texts[number % PADDINGS])
        before = time.perf_counter()
        logger.log(logging.INFO if number % ERROR_EVERY else logging.ERROR, text)
        calls.append(time.perf_counter() - before)
        os.write(book, b"%d\n" % number)
        number += 1
        while given.one_in_flight and acked < number and not stopped:
            note_acks()
            time.sleep(0.0005)
        latencies.append(time.perf_counter() - before)
        if not number % 8 or given.per_second:
            note_acks()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # who asks for the end now would meet an interpreter without handlers
    if given.end == "return":
        handler.flush(given.flush)
        note_acks()
    calls.sort()
    latencies.sort()
    result = {
        "emitted": number,
        "slowest_seconds": calls[-1] if calls else 0.0,
        "p99_seconds": calls[int(len(calls) * 0.99)] if calls else 0.0,
        "ack_p99_seconds": latencies[int(len(latencies) * 0.99)] if given.one_in_flight else None,
        "max_rss_kib": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]),
        "stats": handler.stats(),
    }
    print(json.dumps(result), flush=True)
    ENDS[given.end]()


if __name__ == "__main__":
    main()
