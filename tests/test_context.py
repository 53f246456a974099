"""Fields of the context: per thread and task, restored, and read in the thread that logs."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from aiolog import context
from aiolog.context import bind, bound, clear, unbind, with_trace
from aiolog.handler import AiologHandler
from aiolog.testing import Collector


@pytest.fixture(autouse=True)
def _clean():
    clear()
    yield
    clear()


@pytest.fixture
def log():
    """Return a function that logs one record and returns what arrives."""
    with Collector() as collector:
        handler = AiologHandler(collector.host, collector.port)
        logger = logging.Logger("app.context")  # noqa: LOG001 - not to be found by the next test
        logger.addHandler(handler)

        def send(text, **how):
            count = len(collector.records)
            logger.info(text, **how)
            return collector.wait_for(count + 1)[count]

        yield send
        handler.close()


def test_a_call_holds_until_it_is_taken_back():
    """Fields add up; unbind() takes some, clear() all."""
    assert bound() is None
    bind(user=1)
    bind(request="r")
    assert bound() == {"user": 1, "request": "r"}
    bind(user=2)
    unbind("request", "unknown")
    assert bound() == {"user": 2}
    unbind("user")
    assert bound() is None
    unbind("user")
    bind(a=1)
    clear()
    assert bound() is None


def test_with_restores_what_was():
    """At the end of the block, an exception included, what was bound before is bound again."""
    bind(user=1)
    with bind(user=2, inner=True) as fields:
        assert fields == bound() == {"user": 2, "inner": True}
        bind(more=3)
    assert bound() == {"user": 1}
    with pytest.raises(ValueError, match="x"), bind(user=3):
        raise ValueError("x")
    assert bound() == {"user": 1}


def test_a_block_may_end_in_another_context():
    """As that of a fixture or a generator does: no error."""
    block = bind(user=1)
    contextvars.copy_context().run(block.__exit__, None, None, None)
    assert bound() == {"user": 1}


def test_threads_and_tasks_have_their_own():
    """What a thread or a task binds is not seen in another one; a task begins with what its parent had."""
    bind(user=0)
    seen = {}

    def thread():
        seen["thread"] = bound()
        bind(user="thread")

    started = threading.Thread(target=thread)
    started.start()
    started.join()

    async def task(number):
        before = bound()
        bind(user=number)
        await asyncio.sleep(0)
        seen[number] = before, bound()

    async def tasks():
        await asyncio.gather(task(1), task(2))

    asyncio.run(tasks())
    assert seen == {
        "thread": None, 1: ({"user": 0}, {"user": 1}), 2: ({"user": 0}, {"user": 2})
    }  # fmt: skip
    assert bound() == {"user": 0}


def test_fields_become_extras_and_an_explicit_one_wins(log):
    """Each record has what was bound when it was logged; the extra of the call is nearer."""
    with bind(user=5, path="/a"):
        record = log("in", extra={"path": "/b", "own": True})
    assert (record["user"], record["path"], record["own"]) == (5, "/b", True)
    assert "user" not in log("out")


def test_a_field_with_the_name_of_an_attribute_is_kept_apart(log):
    """``bind(name=…)`` neither replaces the logger's name nor gets lost."""
    with bind(name="bob", thread=7):
        for _ in range(2):
            record = log("x")
            assert (record["name"], record["name_"], record["thread_"]) == ("app.context", "bob", 7)


def test_values_are_of_the_moment_of_the_call(log):
    """A list that changes after the call has not changed in the record."""
    some = [1]
    with bind(some=some):
        record = log("x")
        some.append(2)
    assert record["some"] == (1,)


def test_spans_of_opentelemetry(log):
    """Within a span its ids are fields, in the W3C's form; bound ones and extras win. Outside there are none."""
    span = NonRecordingSpan(SpanContext(trace_id=0xAB, span_id=0xCD, is_remote=False))
    with trace.use_span(span):
        record = log("in")
        assert (record["trace_id"], record["span_id"]) == (f"{0xAB:032x}", f"{0xCD:016x}")
        assert log("in", extra={"trace_id": "own"})["trace_id"] == "own"
        with bind(span_id="bound", user=1):
            record = log("in")
            assert (record["trace_id"], record["span_id"], record["user"]) == (f"{0xAB:032x}", "bound", 1)
    assert "trace_id" not in log("out")


def test_a_broken_opentelemetry_costs_no_record(log, monkeypatch):
    """Half imported, or raising: the record goes without ids."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", object())
    assert with_trace(None) is None
    assert with_trace({"a": 1}) == {"a": 1}
    assert log("x")["msg"] == "x"
    assert context.is_traced()


def test_nothing_is_imported_for_it():
    """This module, and a record with fields, load no OpenTelemetry."""
    program = (
        "import sys, logging, aiolog; aiolog.bind(a=1);"
        "h = aiolog.AiologHandler('127.0.0.1', 1, flush_timeout_seconds=0);"
        "h.handle(logging.makeLogRecord({})); assert not any(n.startswith('opentelemetry') for n in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
