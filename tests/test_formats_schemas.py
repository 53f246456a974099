"""The presets against their specifications: a small schema of each, written from its text."""

from __future__ import annotations

import json
import re
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import NOON_NS, Worker, floats, names, nanoseconds, nasty_texts, workers

from aiolog.formats.schemas import ECS, OTEL, OWN, severity_number
from aiolog.formatting import ecs, otel

# Ids of traces as OpenTelemetry and Elastic make them, and what an application may put there by mistake.
ids = st.sampled_from(["0", 0, "", "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "FF", 7, None, ["x"]])
traced = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("trace_id", "span_id", "otelTraceID", "otelSpanID", "elasticapm_trace_id", "elasticapm_transaction_id",
         "elasticapm_span_id", "trace.id", "level", "thread.name", "a.b", "a_b", "nested"),
        ids | st.dictionaries(names, st.lists(st.integers(), max_size=2), max_size=2),
    ),
)  # fmt: skip
labels = st.dictionaries(st.sampled_from(["env", "service.name", "host.name", "region", "user"]), names, max_size=3)


@st.composite
def traced_workers(draw, texts=names):
    """Draw an honest worker whose records may belong to spans, and whose source has labels."""
    worker = draw(workers(texts=texts, created=floats.filter(lambda moment: moment < 2.5e9) | nanoseconds))
    worker.extra |= draw(traced)
    worker.source.labels.update(draw(labels))
    return worker


# -- Elastic: github.com/elastic/ecs-logging, spec/spec.json and spec/README.md; field types from ECS 1.6


def is_date(value):
    return bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", value) and datetime.fromisoformat(value))


def is_text(value):
    return type(value) is str


def is_long(value):
    return type(value) is int


def is_labels(value):
    return type(value) is dict and all(
        not set(key) & set(".*\\") and not isinstance(label, dict | list) for key, label in value.items()
    )


ECS_REQUIRED = ["@timestamp", "log.level", "message", "ecs.version"]
ECS_TYPES = {
    "@timestamp": is_date,
    "process.pid": is_long,
    "process.thread.id": is_long,
    "log.origin.file.line": is_long,
    "labels": is_labels,
}


@settings(max_examples=150, deadline=None)
@given(traced_workers(texts=nasty_texts))
def test_ecs_is_what_ecs_logging_specifies(worker):
    """Three keys first, in their order; required ones always there; types right; log.level not nested; no null."""
    lines = worker.lines(ecs())
    assert len(set(lines)) == 1
    found = json.loads(lines[0])
    assert list(found)[:3] == ECS_REQUIRED[:3]
    assert set(ECS_REQUIRED) <= set(found)
    assert list(found) == [key for key in ECS.usual if key in found]
    for key, value in found.items():
        assert ECS_TYPES.get(key, is_text)(value), (key, value)


def test_an_ecs_line():
    """A whole one, with all that a record can have."""
    worker = Worker(
        labels={"env": "prod"},
        taskName="Task-1",
        exc_text="Traceback\n  boom",
        stack_info="Stack",
        extra={"otelTraceID": "ff", "otelSpanID": "ee", "elasticapm_transaction_id": "dd", "order.id": 7, "n": [1]},
    )
    for line in worker.lines(ecs()):
        assert json.loads(line) == {
            "@timestamp": "2026-11-23T08:01:02.250000Z",
            "log.level": "INFO",
            "message": "hello",
            "ecs.version": "1.6.0",
            "service.name": "shop",
            "event.dataset": "shop.log",
            "host.hostname": "web1",
            "process.pid": 123,
            "process.name": "MainProcess",
            "process.thread.id": 7,
            "process.thread.name": "MainThread",
            "python.task": "Task-1",
            "log.logger": "app.db",
            "log.origin.file.name": "db.py",
            "log.origin.file.line": 42,
            "log.origin.function": "query",
            "error.stack_trace": "Traceback\n  boom\nStack",
            "trace.id": "ff",
            "transaction.id": "dd",
            "span.id": "ee",
            "labels": {"env": "prod", "order_id": 7, "n": "[1]"},
        }


def test_a_stack_alone_is_the_stack_trace():
    """ECS has one key for both, and each may come without the other."""
    for given_traces, shown in (({"stack_info": "S"}, "S"), ({"exc_text": "E"}, "E"), ({}, None)):
        for line in Worker(**given_traces).lines(ecs()):
            assert json.loads(line).get("error.stack_trace") == shown


def test_an_id_that_is_no_text_stays_a_label():
    """Elasticsearch would refuse the whole document for it."""
    for line in Worker(extra={"trace_id": [1], "span_id": 7}).lines(ecs()):
        assert json.loads(line)["labels"] == {"trace_id": "[1]", "span_id": 7}


# -- OpenTelemetry: opentelemetry.io/docs/specs/otel/logs/data-model


def is_any_map(value):
    return type(value) is dict and all(type(key) is str for key in value)


OTEL_TYPES = {
    "Timestamp": lambda value: type(value) is str and value.isdigit() and 0 <= int(value) < 2**64,  # ns, uint64
    "TraceId": lambda value: bool(re.fullmatch("[0-9a-f]{32}", value)),  # 16 bytes
    "SpanId": lambda value: bool(re.fullmatch("[0-9a-f]{16}", value)),  # 8 bytes
    "SeverityText": is_text,
    "SeverityNumber": lambda value: type(value) is int and 1 <= value <= 24,
    "Body": is_text,
    "Resource": lambda value: is_any_map(value) and is_text(value["service.name"]),
    "InstrumentationScope": lambda value: is_text(value["name"]),
    "Attributes": lambda value: (
        is_any_map(value) and is_text(value["code.file.path"]) and is_long(value["code.line.number"])
    ),
}


@settings(max_examples=150, deadline=None)
@given(traced_workers(texts=nasty_texts))
def test_otel_is_what_the_data_model_specifies(worker):
    """Only its named fields, each of its type; what has no field is an attribute."""
    lines = worker.lines(otel())
    assert len(set(lines)) == 1
    found = json.loads(lines[0])
    assert list(found) == [key for key in OTEL.usual if key in found]
    for key, value in found.items():
        assert OTEL_TYPES[key](value), (key, value)
    created = worker.created
    second = int(created) if isinstance(created, float) else created // 10**9
    rest = round((created - second) * 1e9) if isinstance(created, float) else created % 10**9
    assert int(found["Timestamp"]) == second * 10**9 + rest


def test_an_otel_line():
    """A whole one, with all that a record can have."""
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    worker = Worker(
        created=NOON_NS,
        labels={"service.version": "1.2", "host.name": "pod-7"},
        taskName="Task-1",
        exc_text="Traceback\n  boom",
        stack_info="Stack",
        extra={"otelTraceID": trace, "otelSpanID": span, "order.id": 7, "n": [1, {"x": None}], "thread.name": "mine"},
    )
    for line in worker.lines(otel()):
        assert json.loads(line) == {
            "Timestamp": "1795420862123456789",
            "SeverityText": "INFO",
            "SeverityNumber": 9,
            "Body": "hello",
            "Resource": {
                "service.name": "shop",
                "host.name": "web1",
                "process.pid": 123,
                "python.process.name": "MainProcess",
                "service.version": "1.2",
                "label.host.name": "pod-7",
            },
            "InstrumentationScope": {"name": "app.db"},
            "TraceId": trace,
            "SpanId": span,
            "Attributes": {
                "code.file.path": "/srv/app/db.py",
                "code.line.number": 42,
                "code.function.name": "query",
                "thread.id": 7,
                "thread.name": "MainThread",
                "python.task": "Task-1",
                "exception.stacktrace": "Traceback\n  boom",
                "code.stacktrace": "Stack",
                "order.id": 7,
                "n": [1, {"x": None}],
                "Attributes.thread.name": "mine",
            },
        }


def test_an_id_that_is_none_stays_an_attribute():
    """A TraceId is 16 bytes, so another name for a request is not one; and nothing is said outside a span."""
    for line in Worker(extra={"trace_id": "request-7", "span_id": "0"}).lines(otel()):
        found = json.loads(line)
        assert "TraceId" not in found
        assert "SpanId" not in found
        assert found["Attributes"]["trace_id"] == "request-7"
        assert "span_id" not in found["Attributes"]


def test_a_service_without_a_name():
    """The resource must have one; a label may give it."""
    assert json.loads(Worker(app="").lines(otel())[1])["Resource"]["service.name"] == "unknown_service"
    worker = Worker(app="", labels={"service.name": "shop"})
    assert json.loads(worker.lines(otel())[1])["Resource"]["service.name"] == "shop"


@pytest.mark.parametrize(
    ("levelno", "number"),
    [(-5, None), (0, None), (1, 1), (5, 1), (9, 1), (10, 5), (11, 6), (13, 8), (19, 8), (20, 9), (25, 12), (30, 13),
     (39, 16), (40, 17), (41, 18), (50, 21), (53, 24), (60, 24), (10**9, 24)],
)  # fmt: skip
def test_severity_numbers(levelno, number):
    """The least number of a range for each standard level, and more for what is above it."""
    assert severity_number(levelno) == number
    found = json.loads(Worker(site=("n", levelno, "LEVEL", "p", "f", "m", 1, None)).lines(otel())[1])
    assert (found["SeverityText"], found.get("SeverityNumber")) == ("LEVEL", number)


@given(st.integers(0, 100), st.integers(0, 100))
def test_a_higher_level_is_no_lower_severity(one, other):
    """Who filters by number keeps the order of levels."""
    low, high = sorted([one, other])
    assert (severity_number(low) or 0) <= (severity_number(high) or 0)


@pytest.mark.parametrize(("created", "shown"), [(0, "0"), (5, "5"), (0.0, "0"), (0.5, "500000000"), (-1, None),
                                                (2**63, "9223372036854775808"), (1e12, None)])  # fmt: skip
def test_nanoseconds_near_the_limits(created, shown):
    """64 bits, without leading zeros; outside them there is no number."""
    worker = Worker()
    lines = otel()(worker.source, [(created, 0, 1, "x")] * 3)
    assert [json.loads(line)["Timestamp"] for line in lines] == [shown] * 3


@pytest.mark.parametrize("schema", [OWN, ECS, OTEL], ids=["own", "ecs", "otel"])
def test_a_schema_is_one(schema):
    """What is usual, lifted and for extras are keys; the first inner one is never left out."""
    assert set(schema.usual) <= set(schema.keys)
    assert len(set(schema.usual)) == len(schema.usual)
    assert schema.keys[schema.extras].kind == "extras"
    assert set(schema.lifted) <= set(schema.keys)
    assert all(schema.keys[key].needs == key for key in schema.lifted)
    for first in list(schema.inner.values())[:1]:
        assert (first.kind, first.optional) == ("site", False)
