"""structlog's last processor: an event arrives as what it is."""

from __future__ import annotations

import logging

import pytest
import structlog

from aiolog import AiologHandler
from aiolog.contrib.structlog import Processor
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
def handler(collector):
    handler = AiologHandler(collector.host, collector.port)
    yield handler
    handler.close()


def logger_with(*processors, name=None):
    return structlog.wrap_logger(
        structlog.PrintLogger() if name is None else logging.getLogger(name),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )


def test_an_event_keeps_its_types(collector, handler, capsys):
    """The event is the message; what was bound and given are fields, numbers stay numbers; nothing is printed."""
    log = logger_with(Processor(handler)).bind(order=41)
    log.warning("is paid", amount=9.5, ok=True)
    (record,) = collector.wait_for(1)
    assert (record["msg"], record["levelname"]) == ("is paid", "WARNING")
    assert extras(record) == {"order": 41, "amount": 9.5, "ok": True}
    assert record["name"] == "structlog"
    assert record["funcName"] == "test_an_event_keeps_its_types"
    assert record["pathname"] == __file__
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_levels(collector, handler, level):
    """Each method's name is its level; add_log_level's word is the same."""
    logger_with(structlog.processors.add_log_level, Processor(handler)).log(getattr(logging, level.upper()), "x")
    assert collector.wait_for(1)[0]["levelname"] == level.upper()


def test_exceptions_and_stacks(collector, handler):
    """exception(), exc_info as an exception, format_exc_info and stack_info stand where those of logging do."""
    log = logger_with(Processor(handler))
    try:
        int("inner")
    except ValueError as error:
        log.exception("one")
        log.error("two", exc_info=error)  # noqa: TRY400 - that way too
        logger_with(structlog.processors.format_exc_info, Processor(handler)).exception("three")
    log.info("four", stack_info=True)
    logger_with(structlog.processors.StackInfoRenderer(), Processor(handler)).info("five", stack_info=True)
    log.error("six", exc_info=True)  # noqa: LOG014 - as applications do
    records = collector.wait_for(6)
    for record in records[:3]:
        assert record["exc_text"].endswith("'inner'")
        assert extras(record) == {}
    assert "test_exceptions_and_stacks" in records[3]["stack_info"]
    assert "test_exceptions_and_stacks" in records[4]["stack_info"]
    assert records[5]["exc_text"] is None


def test_names_of_attributes_are_free(collector, handler):
    """A field may be called as an attribute of LogRecord: it gets an underscore; names and sites of structlog count."""
    log = logger_with(
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.CallsiteParameterAdder(),
        Processor(handler),
        name="shop.orders",
    )
    log.info("x", name="somebody", args=(1,), msg="y", custom=1, _hidden=2)
    (record,) = collector.wait_for(1)
    names = {"name_": "somebody", "args_": (1,), "msg_": "y", "custom": 1}
    assert extras(record) == names | {"qual_name": record["funcName"], "qual_module": __name__}
    assert record["name"] == "shop.orders"
    assert record["msg"] == "x"


def test_it_passes_on_and_counts_the_level(collector, handler, capsys):
    """With terminal=False the next processor renders the same event; the handler's own level holds."""
    handler.setLevel("WARNING")
    log = logger_with(Processor(handler, terminal=False), structlog.processors.KeyValueRenderer())
    log.info("below")
    log.error("above", n=1)
    assert [record["msg"] for record in collector.wait_for(1)] == ["above"]
    assert capsys.readouterr().out.splitlines() == ["event='below'", "n=1 event='above'"]
