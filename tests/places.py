"""Programs that log from where one should not: run by test_places.py, under each interpreter.

    python places.py PORT PLACE

Each prints one line of JSON: how many records each of its voices logged. Standard library and aiolog only. Those hooks
that can be registered before ``logging`` and aiolog are imported are, and afterwards too.
"""

# ruff: noqa: E402 - some hooks are registered before logging and aiolog are imported

from __future__ import annotations

import atexit
import itertools
import json
import os
import sys
import threading
from collections.abc import Iterator

numbers: dict[str, Iterator[int]] = {}


def say(voice: str) -> None:
    """Log the next record of a voice; it may interrupt itself, so its number is taken in one step."""
    number = next(numbers.setdefault(voice, itertools.count()))
    logging.getLogger("worker").info(body(voice, number))


place = sys.argv[2]
if place == "forks":
    os.register_at_fork(
        before=lambda: say("early-before"),
        after_in_parent=lambda: say("early-parent"),
        after_in_child=lambda: say(f"early-child{len(children)}"),
    )
elif place == "atexit":
    atexit.register(lambda: say("early"))
children: list[int] = []

import faulthandler
import gc
import logging
import signal
import time
import weakref

from worker import body, logger_to

LOAD = 3_000


def signals() -> None:
    """Log, flush and reconfigure in the main thread while a signal handler logs; and two threads log as well."""

    def on_alarm(*_: object) -> None:
        say("signal")

    threads = [threading.Thread(target=lambda n=n: [say(f"thread{n}") for _ in range(LOAD)]) for n in range(2)]
    for thread in threads:
        thread.start()
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for number in range(LOAD):
        say("main")
        if number % 500 == 0:
            handler.flush()
            logging.getLogger(f"worker.new{number}").isEnabledFor(10)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for thread in threads:
        thread.join()


def collector() -> None:
    """Log from ``__del__`` and weakref callbacks, whenever the collector runs: amid log calls too."""

    class Last:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            say("del")
            died.append(None)

    died: list[None] = []
    refs = []
    gc.set_threshold(10)
    for _ in range(LOAD):
        last = Last()
        refs.append(weakref.ref(last, lambda _: say("weakref")))
        say("main")
    del last
    while len(died) < LOAD:  # another thread, the sender's too, may be at it
        gc.collect()
        time.sleep(0.001)


def forks() -> None:
    """Fork eight times with hooks that log at each of the three moments, and a thread that logs meanwhile."""
    os.register_at_fork(
        before=lambda: say("late-before"),
        after_in_parent=lambda: say("late-parent"),
        after_in_child=lambda: say(f"late-child{len(children)}"),
    )
    stop = threading.Event()

    def log() -> None:
        while not stop.is_set():
            say("thread")
            time.sleep(0.0005)

    thread = threading.Thread(target=log)
    thread.start()
    for number in range(8):
        pid = os.fork()
        if not pid:
            say(f"child{number}")
            os._exit(0 if handler.flush() is None and not handler.stats()["buffered"] else 1)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * 8, codes
    stop.set()
    thread.join()
    for number in range(8):
        for voice in (f"early-child{number}", f"late-child{number}", f"child{number}"):
            numbers[voice] = itertools.count(1)


def at_exit() -> None:
    """Log from atexit callbacks that were registered first and last, and from a thread that outlives main."""
    atexit.register(lambda: say("late"))
    threading.Thread(target=lambda: (time.sleep(0.1), say("thread"))).start()  # type: ignore[func-returns-value]
    say("main")
    print(json.dumps({"main": 1, "early": 1, "late": 1, "thread": 1}), flush=True)


def others() -> None:
    """Log from another handler's emit, from a filter, from ``__str__``, from a hook for exceptions of threads."""

    class Chatty(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "emit" not in record.getMessage():
                say("emit")

    class Text:
        def __str__(self) -> str:
            say("str")
            return "text"

    def on_error(*_: object) -> None:
        say("hook")

    threading.excepthook = on_error
    chatty = logging.getLogger("chatty")
    chatty.setLevel(logging.INFO)
    chatty.addHandler(Chatty())
    chatty.propagate = False
    inner = logging.getLogger("worker.inner")
    inner.addFilter(lambda _: say("filter") is None)
    for number in range(200):
        chatty.info("to the other")
        inner.info("%s", Text())
        if number < 5:
            failing = threading.Thread(target=lambda: 1 / 0)
            failing.start()
            failing.join()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(60, exit=True)
    _, handler = logger_to(int(sys.argv[1]))
    {"signals": signals, "collector": collector, "forks": forks, "atexit": at_exit, "others": others}[place]()
    if place != "atexit":
        handler.flush(30)
        print(json.dumps({voice: next(one) for voice, one in numbers.items()}), flush=True)
