"""Programs that log through a real AiologHandler: run by the process tests, under every interpreter found.

    python worker.py flood PORT WORKER COUNT [--per-second R] [--seconds S] [--flush S] [--buffer-bytes N] [--when-full P]
                           [--block-timeout S] [--spool DIR] [--spool-max-bytes N] [--book FILE]
    python worker.py names PORT COUNT
    python worker.py pool PORT METHOD TASKS
    python worker.py executor PORT METHOD TASKS
    python worker.py process PORT METHOD TASKS
    python worker.py fork PORT CHILDREN THREADS COUNT
    python worker.py storm PORT CHILDREN THREADS
    python worker.py exits PORT HOW COUNT
    python worker.py reconfigure PORT TIMES
    python worker.py attributes PORT FILE TEMPLATE
    python worker.py objects PORT

Each record's message is "WORKER NUMBER CRC PADDING": who logged it, its place in that worker's order, and a checksum
over the rest. Each program prints one line of JSON on stdout: what it emitted, and what the handler says of it.
Standard library and aiolog only, so that it runs wherever a worker runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from aiolog import AiologHandler

PADDING = "a short message, as they are: user 1234 logged in from 10.0.0.1"


def body(worker: str, number: int) -> str:
    """Return the message of one record."""
    text = f"{worker} {number} {PADDING}"
    return f"{worker} {number} {zlib.crc32(text.encode()):08x} {PADDING}"


def check(message: str) -> tuple[str, int]:
    """Return worker and number of a message. Raises ValueError when it is not whole."""
    worker, number, crc, padding = message.split(" ", 3)
    if int(crc, 16) != zlib.crc32(f"{worker} {number} {padding}".encode()):
        raise ValueError(f"altered: {message!r}")
    return worker, int(number)


def logger_to(port: int, **options: object) -> tuple[logging.Logger, AiologHandler]:
    """Return a logger with a handler to the port."""
    options.setdefault("spool_dir", os.environ.get("AIOLOG_TEST_SPOOL"))
    options.setdefault("app", "test")
    handler = AiologHandler("127.0.0.1", port, **options)  # type: ignore[arg-type]
    logger = logging.getLogger("worker")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    return logger, handler


def flood(
    port: int,
    worker: str,
    count: int,
    *,
    per_second: float,
    seconds: float,
    flush: float,
    book: str = "",
    **options: object,
) -> dict[str, object]:
    """Log COUNT records, or for SECONDS; as fast as can be, or at a pace. Says how slow the slowest call was.

    In BOOK stands a line for each log call that has returned.
    """
    lines = os.open(book, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if book else -1
    logger, handler = logger_to(port, **options)
    slowest, began, number = 0.0, time.perf_counter(), 0
    calls: list[float] = []
    while number < count or time.perf_counter() - began < seconds:
        if per_second:
            due = began + number / per_second
            while (left := due - time.perf_counter()) > 0:
                time.sleep(left)
        message = body(worker, number)
        before = time.perf_counter()
        logger.info(message)
        took = time.perf_counter() - before
        slowest = max(slowest, took)
        if per_second:
            calls.append(took)
        if book:
            os.write(lines, b"%d\n" % number)
        number += 1
    handler.flush(flush)
    calls.sort()
    return {
        "worker": worker,
        "emitted": number,
        "slowest_seconds": slowest,
        "p999_seconds": calls[int(len(calls) * 0.999)] if calls else None,
        "max_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "stats": handler.stats(),
    }


def names(port: int, count: int) -> dict[str, object]:
    """Log COUNT records, each under a name of its own, without making as many loggers."""
    # A thousand files that a server makes at once may take it longer than the tenth of a second after which calls drop.
    _, handler = logger_to(port, block_timeout_seconds=5.0)
    for number in range(count):
        handler.handle(
            logging.LogRecord(f"name.{number}", logging.INFO, __file__, 1, body("names", number), None, None, "names")
        )
    handler.flush(600)
    return {"emitted": count, "stats": handler.stats()}


def _begin(port: int) -> None:
    """Set up a child of a pool, as its initializer; a forked one has inherited its parent's handler."""
    if not logging.getLogger("worker").handlers:
        logger_to(port)


def _task(number: int) -> int:
    """Log three records, the last of them as the last thing before the task returns."""
    logger = logging.getLogger("worker")
    for part in range(3):
        logger.info(body(f"task{number}", part))
    return os.getpid()


def pool(port: int, method: str, tasks: int) -> dict[str, object]:
    """Run tasks in a multiprocessing.Pool; the parent logs before and after."""
    logger, handler = logger_to(port)
    logger.info(body("parent", 0))
    with multiprocessing.get_context(method).Pool(3, initializer=_begin, initargs=(port,)) as workers:
        pids = set(workers.map(_task, range(tasks), chunksize=1))
        workers.close()
        workers.join()
    logger.info(body("parent", 1))
    handler.flush()
    return {"children": len(pids), "stats": handler.stats()}


def _task_after_setup(number: int) -> tuple[int, int]:
    """Do as :func:`_task`; returns how many handlers of ours there are, too."""
    handlers = logging.getLogger().handlers
    return _task(number), sum(isinstance(handler, AiologHandler) for handler in handlers)


def initializer(port: int, method: str, tasks: int) -> dict[str, object]:
    """Run tasks in a multiprocessing.Pool whose initializer is aiolog.setup()."""
    import aiolog

    aiolog.setup(url=f"tcp://127.0.0.1:{port}", app="test", propagate_env=True)
    logger = logging.getLogger("worker")
    logger.info(body("parent", 0))
    with multiprocessing.get_context(method).Pool(3, initializer=aiolog.setup) as workers:
        children = dict(workers.map(_task_after_setup, range(tasks), chunksize=1))
        workers.close()
        workers.join()
    logger.info(body("parent", 1))
    return {"children": len(children), "handlers": list(children.values()), "pid": os.getpid()}


def executor(port: int, method: str, tasks: int) -> dict[str, object]:
    """Run tasks in a ProcessPoolExecutor."""
    logger, handler = logger_to(port)
    logger.info(body("parent", 0))
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(3, mp_context=context, initializer=_begin, initargs=(port,)) as workers:
        pids = set(workers.map(_task, range(tasks)))
    logger.info(body("parent", 1))
    handler.flush()
    return {"children": len(pids), "stats": handler.stats()}


def _main_of_process(handler: AiologHandler, number: int) -> None:
    """Be a child that is given its parent's handler, by inheritance or by pickle."""
    logger = logging.getLogger("worker")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if handler not in logger.handlers:
        logger.addHandler(handler)
    _task(number)


def process(port: int, method: str, tasks: int) -> dict[str, object]:
    """Run one Process per task, and give each the handler itself: fork inherits it, the others pickle it."""
    logger, handler = logger_to(port)
    logger.info(body("parent", 0))
    context = multiprocessing.get_context(method)
    for number in range(tasks):
        child = context.Process(target=_main_of_process, args=(handler, number))
        child.start()
        child.join()
        assert child.exitcode == 0, child.exitcode
    logger.info(body("parent", 1))
    handler.flush()
    return {"children": tasks, "stats": handler.stats()}


def fork(port: int, children: int, threads: int, count: int) -> dict[str, object]:
    """Log from threads, fork children amid that, and log from threads in each child."""
    import faulthandler

    faulthandler.dump_traceback_later(60, exit=True)
    logger, handler = logger_to(port)

    def log_all(worker: str) -> None:
        for number in range(count):
            logger.info(body(worker, number))

    def log_from_threads(who: str) -> list[threading.Thread]:
        started = [threading.Thread(target=log_all, args=(f"{who}.{n}",)) for n in range(threads)]
        for thread in started:
            thread.start()
        return started

    mine = log_from_threads("parent")
    pids = []
    for child in range(children):
        pid = os.fork()
        if pid == 0:
            try:
                for thread in log_from_threads(f"child{child}"):
                    thread.join()
                handler.flush()
                left = handler.stats()["buffered"]
            finally:
                os._exit(1 if left else 0)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    for thread in mine:
        thread.join()
    handler.flush()
    return {"codes": codes, "stats": handler.stats()}


def storm(port: int, children: int, threads: int) -> dict[str, object]:
    """Fork many children one after another, some alive at once, while threads log; each child logs from threads too."""
    import faulthandler

    faulthandler.dump_traceback_later(100, exit=True)
    logger, handler = logger_to(port)
    stop = threading.Event()
    counts: dict[str, int] = {}

    def log_on(worker: str) -> None:
        while not stop.is_set():
            logger.info(body(worker, counts.get(worker, 0)))
            counts[worker] = counts.get(worker, 0) + 1
            time.sleep(0.002)

    def log_some(worker: str) -> None:
        for number in range(5):
            logger.info(body(worker, number))

    def started(target: Callable[[str], None], who: str) -> list[threading.Thread]:
        made = [threading.Thread(target=target, args=(f"{who}.{n}",)) for n in range(threads)]
        for thread in made:
            thread.start()
        return made

    mine = started(log_on, "parent")
    alive: list[int] = []
    codes = []
    for child in range(children):
        pid = os.fork()
        if pid == 0:
            left = 1
            stop.set()  # greenlets, unlike threads, go on in a child
            try:
                for thread in started(log_some, f"child{child}"):
                    thread.join()
                handler.flush(30)
                left = handler.stats()["buffered"]
            finally:
                os._exit(1 if left else 0)
        alive.append(pid)
        if len(alive) >= 8 or child + 1 == children:
            codes += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in alive]
            alive.clear()
    stop.set()
    for thread in mine:
        thread.join()
    handler.flush(30)
    return {"codes": codes, "emitted": counts, "stats": handler.stats()}


def exits(port: int, how: str, count: int) -> dict[str, object]:
    """Log, and leave at once in one way or another, without flushing."""
    logger, handler = logger_to(port)
    for number in range(count):
        logger.info(body("main", number))
    print(json.dumps({"emitted": count}), flush=True)
    if how == "exception":
        raise SystemExit("an error that nobody caught")
    if how == "forgotten":  # as Celery does with the root logger's handlers
        logger.handlers.clear()
        del handler
    elif how == "closed":
        handler.close()
        logger.info(body("main", count))
    elif how == "fork":
        pid = os.fork()
        if pid == 0:
            logger.info(body("child", 0))
            sys.exit(0)
        os.waitpid(pid, 0)
    elif how == "thread":
        threading.Thread(target=lambda: (time.sleep(0.2), logger.info(body("main", count)))).start()
    elif how == "atexit":
        import atexit

        atexit.register(lambda: logger.info(body("main", count)))
    raise SystemExit(0)


def reconfigure(port: int, times: int) -> dict[str, object]:
    """Run dictConfig again and again while threads log, as reloaders do."""
    import logging.config

    settings = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"aiolog": {"class": "aiolog.AiologHandler", "port": port}},
        "root": {"level": "INFO", "handlers": ["aiolog"]},
    }
    logging.config.dictConfig(settings)
    stop = threading.Event()
    counts = {f"thread{n}": 0 for n in range(4)}

    def log(worker: str) -> None:
        while not stop.wait(0.0005):
            logging.getLogger("worker").info(body(worker, counts[worker]))
            counts[worker] += 1

    threads = [threading.Thread(target=log, args=(worker,)) for worker in counts]
    for thread in threads:
        thread.start()
    slowest = 0.0
    for _ in range(times):
        time.sleep(0.02)
        began = time.perf_counter()
        logging.config.dictConfig(settings)
        slowest = max(slowest, time.perf_counter() - began)
    stop.set()
    for thread in threads:
        thread.join()
    logging.shutdown()
    deadline = time.monotonic() + 10
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    return {
        "emitted": counts,
        "slowest_seconds": slowest,
        "threads": [thread.name for thread in threading.enumerate()],
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def attributes(port: int, path: str, template: str) -> dict[str, object]:
    """Log records of all kinds; write to FILE what a standard handler with TEMPLATE makes of each."""
    logger, handler = logger_to(port)
    logger.setLevel(1)
    logging.addLevelName(33, "SPECIAL")
    counted = [0]

    class Counting(logging.FileHandler):
        def emit(self, record: logging.LogRecord) -> None:
            counted[0] += 1
            super().emit(record)

    for first in (False, True):  # after ours, and before it, when it leaves message and asctime on the record
        standard = Counting(path, encoding="utf-8")
        standard.setFormatter(logging.Formatter(template))
        logger.handlers = [standard, handler] if first else [handler, standard]
        _log_all_kinds(logger)
        logger.removeHandler(standard)
        standard.close()
    handler.flush()
    return {"emitted": counted[0], "stats": handler.stats()}


def _log_all_kinds(logger: logging.Logger) -> None:
    import asyncio

    logger.info("plain")
    logger.info("with %s and %d", "arguments", 3)
    logger.debug("%(key)s", {"key": "a mapping"})
    logger.log(33, "a level of our own")
    logger.log(7, "a level without a name")
    logger.warning("two\nlines")
    logger.error("Ünïcödé \U0001f680 %s", "\u2028")
    logger.info("with extra", extra={"user": "somebody", "count": 3})
    logger.info("with a stack", stack_info=True)
    logger.getChild("child").critical("from a child")
    try:
        raise ValueError("inner\nin two lines")
    except ValueError as error:
        logger.exception("one")
        try:
            raise RuntimeError("outer") from error
        except RuntimeError:
            logger.critical("chained", exc_info=True, stack_info=True)
    logger.error("no exception", exc_info=True)
    thread = threading.Thread(target=lambda: logger.info("from a thread"), name="a thread of ours")
    thread.start()
    thread.join()

    async def task() -> None:
        logger.info("from a task")

    async def tasks() -> None:
        await asyncio.gather(asyncio.create_task(task(), name="a task of ours"), task())

    asyncio.run(tasks())
    for number in range(2_000):  # one of them will be near the turn of a millisecond
        logger.info("%d", number)
    made = logging.makeLogRecord({"name": "worker", "levelno": 20, "levelname": "INFO", "msg": "made", "created": 5.25})
    logger.handle(made)
    made = logging.makeLogRecord(
        {"name": "worker", "levelno": 20, "levelname": "\x1b[32mINFO", "process": 5, "thread": 6}
    )
    made.processName, made.threadName, made.msecs, made.relativeCreated = "elsewhere", "another", 7.0, 8.5
    logger.handle(made)


def objects(port: int) -> dict[str, object]:
    """Log what an application should not, and does."""
    import datetime
    import decimal
    import uuid

    class Rude:
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    class Text(str):
        __slots__ = ()

    cycle: list[object] = []
    cycle.append(cycle)
    deep: object = 0
    for _ in range(3_000):
        deep = [deep]
    things = [
        None, True, 0, -(10**30), 10**5_000, 1.5, float("nan"), float("inf"), b"\xff" * 100_000, bytearray(b"x"),
        memoryview(b"x"), "\ud800 alone", Text("text"), "\0\x1b[2J\x7f", {1, 2}, frozenset(), object(), Rude(),
        Rude, cycle, deep, [1] * 1_000_000, {"a": {"b": [1, {"c": (2, 3)}]}}, {1: 2, (3, 4): 5, None: 6},
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), decimal.Decimal("1.5"), uuid.UUID(int=1), ValueError("v"),
        threading.Lock(), (n for n in range(3)), lambda: 0, "x" * 3_000_000, range(10), 1 + 2j, ...,
    ]  # fmt: skip
    logger, handler = logger_to(port)
    emitted = 0
    for thing in things:
        logger.info(thing)
        logger.info("as an argument: %s", thing)
        logger.info("as a wrong argument: %d %d", thing)
        logger.info("as an extra", extra={"thing": thing, "nested": {"thing": [thing]}})
        emitted += 4
    logger.info("odd keys", extra={1: 1, Text("k"): 2, "": 3, "\ud800": 4, "x" * 10_000: 5})
    logger.info("too few: %s %s", 1)
    logger.info("many extras", extra={f"key{n}": n for n in range(5_000)})
    handler.flush(20)
    return {"emitted": emitted + 3, "stats": handler.stats()}


def main() -> None:
    """Run one program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("port", type=int)
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--buffer-bytes", type=int, default=16 << 20)
    parser.add_argument("--when-full", default="block")
    parser.add_argument("--per-second", type=float, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--flush", type=float, default=60)
    parser.add_argument("--block-timeout", type=float, default=0.1)
    parser.add_argument("--spool")
    parser.add_argument("--spool-max-bytes", type=int, default=256 << 20)
    parser.add_argument("--book", default="")
    given = parser.parse_args()
    rest = [int(word) if word.isdigit() else word for word in given.rest]
    if given.program == "flood":
        result = flood(
            given.port,
            str(rest[0]),
            int(rest[1]),
            per_second=given.per_second,
            seconds=given.seconds,
            flush=given.flush,
            buffer_bytes=given.buffer_bytes,
            when_full=given.when_full,
            book=given.book,
            spool_dir=given.spool,
            spool_max_bytes=given.spool_max_bytes,
            block_timeout_seconds=given.block_timeout,
        )
    else:
        result = globals()[given.program](given.port, *rest)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
