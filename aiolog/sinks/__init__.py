"""Where records end: one module a sink, and here what all of them share.

A sink knows deliveries, a format and its own file or stream. It must never know a socket, a session's ack or the
configuration. It calls the system from its own :class:`SinkThread`, so that a disk or a pipe that is stuck holds
up its own lane and nobody else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from aiolog.fanout import Commit, Delivery
from aiolog.record import WireRecord
from aiolog.source import Source

_P = ParamSpec("_P")
_T = TypeVar("_T")
_A = TypeVar("_A")


def runs(group: Sequence[Delivery]) -> Iterator[tuple[Source, Sequence[WireRecord]]]:
    """Yield what a format takes, in the order of writing: of each delivery its notices, then its records."""
    for delivery in group:
        if delivery.notices:
            yield delivery.notice_source, delivery.notices
        yield delivery.source, delivery.records


class SinkThread(Executor):
    """One daemon thread that makes the blocking calls of one sink, in the order in which they were asked for.

    The pools of :mod:`concurrent.futures` and asyncio are joined when the interpreter exits, so one stuck write
    would hang the exit; this thread dies with the process. It starts at the first call. The queue is bounded by
    its users: a lane has one write under way at a time.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._changing = threading.Lock()  # held while the two below change
        self._started = False
        self.ended = False

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have the thread call ``fn``; any thread may ask. Raises ``RuntimeError`` after :meth:`shutdown`."""
        future: Future[_T] = Future()
        self._put(partial(_work_for, future, partial(fn, *args, **kwargs)))
        return future

    def commit(self, fn: Callable[[_A], object], argument: _A) -> Commit:
        """Have the thread call ``fn``; from the event loop this costs less than :meth:`submit`.

        Raises ``RuntimeError`` after :meth:`shutdown`.
        """
        commit = Commit(asyncio.get_running_loop())
        self._put(partial(_commit, commit, fn, argument))
        return commit

    def _put(self, job: Callable[[], None]) -> None:
        with self._changing:
            if self.ended:
                raise RuntimeError("this sink is closed")
            self._jobs.put(job)
            if not self._started:
                self._started = True
                self._thread.start()

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - Executor's
        """Let the thread end after the calls that it has; with ``wait``, until it has ended."""
        with self._changing:
            self.ended = True
            self._jobs.put(None)
        if wait and self._started:
            self._thread.join()

    def _run(self) -> None:
        while job := self._jobs.get():
            job()
            del job  # or an idle thread would keep the last group alive


def _work_for(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the future
        future.set_exception(error)
    else:
        future.set_result(result)


def _commit(commit: Commit, function: Callable[[Any], object], argument: Any) -> None:
    try:
        function(argument)
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
        commit.end(error)
    else:
        commit.end(None)
