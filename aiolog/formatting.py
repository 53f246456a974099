r"""Wire records become text: a ``logging.Formatter`` template, a schema's JSON lines or logfmt, compiled to a function.

This is the door to :mod:`aiolog.formats`: how to get a format, and what can be told from the bytes of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aiolog.formats import Accepts, Escaping, Format, Lines, Multiline, Style
from aiolog.formats.escaping import CONTINUATION
from aiolog.formats.schemas import ECS, OTEL, OWN
from aiolog.formats.structured import JSON, LOGFMT, StructuredLayout
from aiolog.formats.text import TextLayout
from aiolog.source import Site

__all__ = ["CONTINUATION", "Accepts", "Format", "Lines", "ecs", "json_lines", "logfmt", "otel", "text", "whole_records"]


def _all(_site: Site) -> bool:
    return True


def text(
    template: str,
    *,
    style: Style = "%",
    datefmt: str | None = None,
    time_zone: str = "",
    defaults: Mapping[str, Any] = {},
    escaping: Escaping = "safe",
    multiline: Multiline = "indent",
    accepts: Accepts = _all,
) -> Format:
    r"""Compile a template of ``logging.Formatter`` to a format.

    ``raw`` gives exactly what ``logging.Formatter(template, datefmt, style, defaults=defaults).format(record)`` gives
    in the worker (Lib/logging/__init__.py), and a newline; ``asctime`` is in the ``time_zone``, an IANA name, or in
    local time for "". ``safe`` gives the same with control characters, what turns the direction of writing and lone
    surrogates as ``\xNN`` or ``\uNNNN``, and each line but a record's first behind :data:`CONTINUATION`, or with
    ``multiline="escape"`` all in one line with ``\n`` for newlines; it can always be encoded as UTF-8, ``raw`` only
    with ``errors="surrogatepass"``.

    Where the standard formatter raises, a field is "-" for an attribute that the record lacks, and "?" and the
    value for a value that the field cannot show. ``accepts`` is asked once for each site of a source.

    Raises ``ConfigError`` for a template that the standard formatter refuses, or would fail on for every record, and
    for a zone that the system does not know.
    """
    return TextLayout(
        template,
        style=style,
        datefmt=datefmt,
        time_zone=time_zone,
        defaults=defaults,
        escaping=escaping,
        multiline=multiline,
        accepts=accepts,
    )


def json_lines(
    *,
    fields: Sequence[str] = (),
    rename: Mapping[str, str] = {},
    flatten_extras: bool = False,
    accepts: Accepts = _all,
) -> Format:
    """Return the format of one JSON object a line, in ASCII.

    The keys are, in this order: ts (RFC 3339, UTC, microseconds; null without a date) level logger msg app host
    pid process thread task file line func exc stack trace_id span_id fields. Missing when there is nothing in
    them: app, task, exc, stack, trace_id, span_id, fields. ``fields`` holds the source's labels and the record's
    extras; the extras win. Trace and span are the extras trace_id and span_id, or otelTraceID and otelSpanID.

    ``fields`` chooses others, in another order; there are also levelno, module, filename and thread_id. ``rename``
    gives keys other names. With ``flatten_extras`` the extras stand where ``fields`` would, one key each; one that
    has the name of another key is called ``fields.name``.

    Raises ``ConfigError`` for keys that are none, and for two of one name.
    """
    return StructuredLayout(JSON, OWN, fields=fields, rename=rename, flatten_extras=flatten_extras, accepts=accepts)


def logfmt(*, fields: Sequence[str] = (), rename: Mapping[str, str] = {}, accepts: Accepts = _all) -> Format:
    """Return the format of one line of ``key=value`` a record: the keys of JSON, and the fields in their place.

    Values are quoted as JSON strings, not ASCII only, where they have to be; a field with the name of another key
    is called ``fields.name``. The rest is as for :func:`json_lines`.
    """
    return StructuredLayout(LOGFMT, OWN, fields=fields, rename=rename, flatten_extras=False, accepts=accepts)


def ecs(
    *,
    fields: Sequence[str] = (),
    rename: Mapping[str, str] = {},
    flatten_extras: bool = False,
    accepts: Accepts = _all,
) -> Format:
    """Return the format of Elastic Common Schema, one JSON object a line.

    Labels and extras are ``labels``: plain values under names without dots, as Elasticsearch wants them. With
    ``flatten_extras`` they stand at the top level as they are, for extras that have names of the schema. The rest is
    as for :func:`json_lines`, with the keys of :data:`aiolog.formats.schemas.ECS`.
    """
    return StructuredLayout(JSON, ECS, fields=fields, rename=rename, flatten_extras=flatten_extras, accepts=accepts)


def otel(*, fields: Sequence[str] = (), rename: Mapping[str, str] = {}, accepts: Accepts = _all) -> Format:
    """Return the format of OpenTelemetry's log data model, one JSON object a line.

    The source's labels are attributes of its ``Resource``, the record's extras ``Attributes``. The rest is as for
    :func:`json_lines`, with the keys of :data:`aiolog.formats.schemas.OTEL`.
    """
    return StructuredLayout(JSON, OTEL, fields=fields, rename=rename, flatten_extras=False, accepts=accepts)


def whole_records(format: Format, data: bytes) -> list[int]:  # noqa: A002 - the word of the configuration
    r"""Return where each record ends that is surely whole, at the beginning of ``data`` in this format.

    Of a torn group, that is: the last line of it may have had more lines to come. With ``raw`` nobody can tell.

    >>> whole_records(json_lines(), b"{}\n{}\n{")
    [3, 6]
    >>> whole_records(text("%(message)s"), b"one\n\t| more\ntwo\n")
    [12]
    >>> whole_records(text("%(message)s", multiline="escape"), b"one\\nmore\ntwo\n")
    [10, 14]
    """
    continuation = getattr(format, "continuation", None)
    if continuation is None:
        return []
    ends = [newline.end() for newline in re.finditer(rb"\n", data)]
    if not continuation:
        return ends
    further: bytes = continuation.encode()
    return [end for end in ends if not further.startswith(data[end : end + len(further)])]
