"""Which keys a structured line has, in which order, and what each says: our own, Elastic's and OpenTelemetry's.

It knows names and what of a record they stand for; how a key and a value are written is for ``structured``.

``ECS``  Elastic Common Schema as ecs-logging writes it (github.com/elastic/ecs-logging/tree/main/spec): the first
         three keys in this order, ``log.level`` never nested, keys of labels without dots.
``OTEL`` the log data model of OpenTelemetry (opentelemetry.io/docs/specs/otel/logs/data-model), attributes named by
         its semantic conventions. There is no ObservedTimestamp: a format has no clock, and who reads it is told to
         take Timestamp where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from aiolog.source import Source

Values: TypeAlias = Mapping[str, Any]
"""All attributes of a record; for a key of kind "rare" only those that there are of exc_text, stack_info, ``traces``
(both in one, as ``logging.Formatter`` writes them: ECS has one key for them), taskName and what is lifted, and always
``extra``, a mapping."""


class Key(NamedTuple):
    """What a key says, and what that depends on; an optional one is left out when it would say None or "".

    A "rare" one says what is in one of ``Values``, named by ``needs``, or nothing.
    """

    kind: Literal["moment", "message", "thread", "site", "rare", "extras"]
    value: Callable[[Source, Values], Any] = lambda _source, _values: None
    optional: bool = False
    needs: str = ""


class Lifted(NamedTuple):
    """An extra that has a key of its own, under any of some names, if the value is one."""

    names: tuple[str, ...]
    is_valid: Callable[[Any], bool]


class Schema(NamedTuple):
    """A set of keys.

    ``keys`` are all there are, ``usual`` those that a line has, in their order. ``extras`` is the key of the extras;
    ``inner`` are keys that stand in its object before them, the first of them never left out. ``lifted`` says
    which extras have a key of their own, ``labelled`` whether the labels of the source stand among the extras.
    """

    keys: Mapping[str, Key]
    usual: tuple[str, ...]
    extras: str
    lifted: Mapping[str, Lifted]
    moment: Literal["rfc3339", "unix_ns"] = "rfc3339"
    inner: Mapping[str, Key] = {}
    labelled: bool = True
    is_plain: bool = False  # extras are plain values under names without dots


def _of(attribute: str) -> Callable[[Source, Values], Any]:
    return lambda _source, values: values[attribute]


def _site(attribute: str) -> Key:
    return Key("site", _of(attribute))


def _optional(attribute: str, kind: Literal["site", "thread"] = "site") -> Key:
    return Key(kind, _of(attribute), optional=True)


def _rare(attribute: str) -> Key:
    return Key("rare", _of(attribute), optional=True, needs=attribute)


_MOMENT, _MESSAGE, _EXTRAS = Key("moment"), Key("message"), Key("extras")
_HOST = Key("site", lambda source, _values: source.host)
_APP = Key("site", lambda source, _values: source.app, optional=True)
_TRACE, _SPAN = ("trace_id", "otelTraceID"), ("span_id", "otelSpanID")


def _is_anything(_value: Any) -> bool:
    return True


OWN = Schema(
    keys={
        "ts": _MOMENT,
        "level": _site("levelname"),
        "logger": _site("name"),
        "msg": _MESSAGE,
        "app": _APP,
        "host": _HOST,
        "pid": _site("process"),
        "process": _site("processName"),
        "thread": Key("thread", _of("threadName")),
        "task": _rare("taskName"),
        "file": _site("pathname"),
        "line": _site("lineno"),
        "func": _site("funcName"),
        "exc": _rare("exc_text"),
        "stack": _rare("stack_info"),
        "trace_id": _rare("trace_id"),
        "span_id": _rare("span_id"),
        "fields": _EXTRAS,
        # For who asks for them.
        "levelno": _site("levelno"),
        "module": _site("module"),
        "filename": _site("filename"),
        "thread_id": Key("thread", _of("thread")),
    },
    usual=(
        *("ts", "level", "logger", "msg", "app", "host", "pid", "process", "thread", "task", "file", "line", "func"),
        *("exc", "stack", "trace_id", "span_id", "fields"),
    ),
    extras="fields",
    lifted={"trace_id": Lifted(_TRACE, _is_anything), "span_id": Lifted(_SPAN, _is_anything)},
)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


ECS_VERSION = "1.6.0"  # the newest that ecs-logging for Python writes; all keys below are in it

ECS = Schema(
    keys={
        "@timestamp": _MOMENT,
        "log.level": _site("levelname"),
        "message": _MESSAGE,
        "ecs.version": Key("site", lambda _source, _values: ECS_VERSION),
        "service.name": _APP,
        "event.dataset": Key("site", lambda source, _values: source.app and f"{source.app}.log", optional=True),
        "host.hostname": _HOST._replace(optional=True),
        "process.pid": _optional("process"),
        "process.name": _optional("processName"),
        "process.thread.id": _optional("thread", "thread"),
        "process.thread.name": _optional("threadName", "thread"),
        "python.task": _rare("taskName"),
        "log.logger": _site("name"),
        "log.origin.file.name": _site("filename"),
        "log.origin.file.line": _site("lineno"),
        "log.origin.function": _optional("funcName"),
        "error.stack_trace": _rare("traces"),
        "trace.id": _rare("trace.id"),
        "transaction.id": _rare("transaction.id"),
        "span.id": _rare("span.id"),
        "labels": _EXTRAS,
    },
    usual=(
        *("@timestamp", "log.level", "message", "ecs.version", "service.name", "event.dataset", "host.hostname"),
        *("process.pid", "process.name", "process.thread.id", "process.thread.name", "python.task", "log.logger"),
        *("log.origin.file.name", "log.origin.file.line", "log.origin.function", "error.stack_trace"),
        *("trace.id", "transaction.id", "span.id", "labels"),
    ),
    extras="labels",
    lifted={
        "trace.id": Lifted(("trace.id", *_TRACE, "elasticapm_trace_id"), _is_text),
        "transaction.id": Lifted(("transaction.id", "elasticapm_transaction_id"), _is_text),
        "span.id": Lifted(("span.id", *_SPAN, "elasticapm_span_id"), _is_text),
    },
    is_plain=True,
)


def severity_number(levelno: int) -> int | None:
    """Return the SeverityNumber of a level: DEBUG 5, INFO 9, WARNING 13, ERROR 17, CRITICAL 21; None below 1.

    Levels in between follow the next lower one at a distance of up to 3, as in OpenTelemetry's own handler for
    Python; what is below DEBUG is TRACE, 1.
    """
    if levelno < 10:
        return 1 if levelno > 0 else None
    tens = min(levelno // 10, 5)
    return 4 * tens + 1 + min(levelno - 10 * tens, 3)


def _resource(source: Source, values: Values) -> dict[str, Any]:
    found = {"service.name": source.app, "host.name": source.host, "process.pid": values["process"]}
    found["python.process.name"] = values["processName"]
    resource = {name: value for name, value in found.items() if value not in (None, "")}
    for label, value in source.labels.items():
        name = label
        while name in resource:
            name = f"label.{name}"
        resource[name] = value
    return {"service.name": "unknown_service"} | resource  # the name that the specification wants for none


OTEL = Schema(
    keys={
        "Timestamp": _MOMENT,
        "SeverityText": _site("levelname"),
        "SeverityNumber": Key("site", lambda _source, values: severity_number(values["levelno"]), optional=True),
        "Body": _MESSAGE,
        "Resource": Key("site", _resource),
        "InstrumentationScope": Key("site", lambda _source, values: {"name": values["name"]}),
        "TraceId": _rare("TraceId"),
        "SpanId": _rare("SpanId"),
        "Attributes": _EXTRAS,
    },
    usual=(
        *("Timestamp", "SeverityText", "SeverityNumber", "Body", "Resource", "InstrumentationScope", "TraceId"),
        *("SpanId", "Attributes"),
    ),
    extras="Attributes",
    lifted={
        "TraceId": Lifted(_TRACE, lambda value: _is_text(value) and bool(re.fullmatch("[0-9a-f]{32}", value))),
        "SpanId": Lifted(_SPAN, lambda value: _is_text(value) and bool(re.fullmatch("[0-9a-f]{16}", value))),
    },
    moment="unix_ns",
    inner={
        "code.file.path": _site("pathname"),
        "code.line.number": _site("lineno"),
        "code.function.name": _optional("funcName"),
        "thread.id": _optional("thread", "thread"),
        "thread.name": _optional("threadName", "thread"),
        "python.task": _rare("taskName"),
        "exception.stacktrace": _rare("exc_text"),
        "code.stacktrace": _rare("stack_info"),
    },
    labelled=False,
)
