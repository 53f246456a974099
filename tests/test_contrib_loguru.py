"""loguru's sink: records arrive as they are, not as one formatted text."""

from __future__ import annotations

import os
import threading

import loguru
import pytest

from aiolog import AiologHandler
from aiolog.contrib.loguru import sink
from aiolog.record import STANDARD_ATTRIBUTES
from aiolog.testing import Collector


def extras(record):
    """What of a record is neither an attribute of LogRecord nor of its process."""
    return {k: v for k, v in record.items() if k not in STANDARD_ATTRIBUTES | {"app", "host", "labels"}}


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture
def add(collector):
    """Add a sink to loguru's one logger, and take it off again."""
    handler = AiologHandler(collector.host, collector.port)
    added = []
    loguru.logger.remove()
    yield lambda **options: added.append(loguru.logger.add(sink(handler), level=0, catch=False, **options))
    for one in added:
        loguru.logger.remove(one)
    handler.close()


@pytest.mark.parametrize("enqueue", [False, True])
def test_a_record_keeps_what_it_has(collector, add, enqueue):
    """Level, name, place, thread, process and moment are those of the call; bound and given values are fields."""
    add(enqueue=enqueue)
    moments = []

    def log():
        loguru.logger.patch(lambda r: moments.append(r["time"])).bind(order=41).success(
            "is paid: {}", "yes", amount=9.5
        )

    thread = threading.Thread(target=log, name="till")
    thread.start()
    thread.join()
    (record,) = collector.wait_for(1)
    assert (record["msg"], record["levelname"], record["name"]) == ("is paid: yes", "SUCCESS", __name__)
    assert extras(record) == {"order": 41, "amount": 9.5}
    assert (record["pathname"], record["funcName"], record["threadName"]) == (__file__, "log", "till")
    assert record["process"] == os.getpid()
    assert abs(record["created"] - moments[0].timestamp()) < 1e-6


def test_exceptions(collector, add):
    """The traceback is the standard one, without the values of variables, which may be secrets."""
    add(diagnose=True)
    secret = "hunter" + "2"
    try:
        int(secret)
    except ValueError:
        loguru.logger.exception("failed")
    (record,) = collector.wait_for(1)
    assert record["msg"] == "failed"
    assert record["exc_text"].startswith("Traceback (most recent call last):\n")
    assert "│" not in record["exc_text"]


def test_names_of_attributes_are_free(collector, add):
    """A bound value may be called as an attribute of LogRecord."""
    add()
    loguru.logger.bind(name="somebody", args=1).trace("x")
    (record,) = collector.wait_for(1)
    assert extras(record) == {"name_": "somebody", "args_": 1}
    assert record["levelname"] == "TRACE"
