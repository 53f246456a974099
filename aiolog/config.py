"""The settings of the server: frozen types, made from TOML, the environment and the command line.

It knows every key with its unit, its limits and its default (the types below say them; the JSON Schema and
``config/aiolog.toml`` follow), and how to tell an operator in one sentence what is wrong and in one what to do. It
must never know what a setting does: it opens no socket, compiles no template and asks no clock. Only :func:`load`
reads files; all else is from text to types.

Flags win over the environment, the environment over the file, the file over the defaults.
``AIOLOG_SERVER__PORT`` is ``port`` of ``[server]``, ``AIOLOG_SINKS__APP__PATH`` is ``path`` of ``[sinks.app]``; a
name without ``__`` after ``AIOLOG_`` is none of ours. A file that names any sink replaces the default sinks; the
environment and the flags only change sinks, or add to them.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import re
import reprlib
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import time
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import NODEFAULT, Meta, Struct, inspect, structs

from aiolog.errors import ConfigError, reason
from aiolog.routing import PathTemplate

KIB, MIB, GIB = 1024, 1024**2, 1024**3
DAY_SECONDS = 86_400

MAX_FILE_BYTES = 1 * MIB  # of a configuration or a token: a thousand sinks with all their keys; /dev/zero has no end
READ_BYTES = 64 * KIB  # at a time: a pipe gives no more

# -------------------------------------------------------------------------------------------------- the types

Port = Annotated[int, Meta(ge=0, le=65_535)]
Host = Annotated[str, Meta(pattern=r"^[^\x00\s]+$", examples=["127.0.0.1"])]
FilePath = Annotated[str, Meta(pattern=r"^[^\x00]*[^\x00/]$", examples=["logs/app.log"])]
UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not listened on here
OptionalPath = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
# 0 would close everybody; an hour is the end of anybody's patience.
Timeout = Annotated[float, Meta(ge=0.01, le=3600)]
Level = Literal["NOTSET", "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL"]


class ServerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[server]``: where records come in, and how much one peer or all together may take."""

    host: Annotated[Host, Meta(description="Address to listen on. Loopback, because records travel unencrypted.")] = (
        "127.0.0.1"
    )
    port: Annotated[
        Port, Meta(description="TCP port; 0 takes any free one. 9020 is logging's DEFAULT_TCP_LOGGING_PORT.")
    ] = 9020
    socket: Annotated[
        OptionalPath,
        Meta(
            # sockaddr_un.sun_path has 108 bytes, with the NUL at its end: unix(7).
            max_length=107,
            description="Path of a Unix socket to listen on too. Its mode is 0660: the group decides who may log.",
            examples=["/run/aiolog/aiolog.sock"],
        ),
    ] = ""
    token: Annotated[
        str, Meta(description="What every handler must say first. Better in token_file: this file gets shared.")
    ] = ""
    token_file: Annotated[
        OptionalPath,
        Meta(description="File that holds the token alone; not with token.", examples=["/run/secrets/aiolog"]),
    ] = ""
    max_frame_bytes: Annotated[
        int, Meta(ge=1 * MIB, le=64 * MIB, description="Largest frame of a peer, refused before it takes memory.")
    ] = 1 * MIB
    window_bytes: Annotated[
        int, Meta(ge=4 * KIB, le=64 * MIB, description="What a process may have under way before it needs an ack.")
    ] = 1 * MIB
    max_connections: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Connections at a time. Each takes a descriptor: mind ulimit -n."),
    ] = 4096
    max_inflight_bytes: Annotated[
        int,
        Meta(
            ge=1 * MIB,
            le=64 * GIB,
            description="What all peers together may have under way: the bound on memory when they stall.",
        ),
    ] = 256 * MIB
    max_dictionary_bytes: Annotated[
        int,
        Meta(
            ge=64 * MIB,
            le=64 * GIB,
            description="What all processes may say of themselves and their log statements, about 1 KiB each.",
        ),
    ] = 512 * MIB
    handshake_timeout_seconds: Annotated[
        Timeout, Meta(description="From connecting to a whole HELLO. Strangers that say nothing are not kept.")
    ] = 10.0
    frame_timeout_seconds: Annotated[
        Timeout, Meta(description="From a frame's first byte to its last. A peer that drips bytes is closed.")
    ] = 30.0
    idle_timeout_seconds: Annotated[
        Timeout, Meta(description="Silence until a connection is closed: its peer may have gone without a word.")
    ] = 90.0
    heartbeat_seconds: Annotated[
        float,
        Meta(
            ge=0.01,
            le=60,
            description="Between two BUSY while a write takes long, or a slow disk looks like a dead server.",
        ),
    ] = 5.0
    drain_timeout_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="What a stop waits for writes under way. Unacked records stay with their process.",
        ),
    ] = 5.0
    session_ttl_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=366 * DAY_SECONDS,
            description="How long a session without BYE is remembered. A spool sent later may be written twice.",
        ),
    ] = 7.0 * DAY_SECONDS
    max_sessions: Annotated[
        int, Meta(ge=1, le=2**24, description="Sessions remembered: the bound on memory when a peer invents them.")
    ] = 65_536
    spool_dirs: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^\x00]+$")], ...],
        Meta(
            description="Directories of spools: what killed processes left there is taken in. [] is none.",
            examples=[["/var/spool/shop"]],
        ),
    ] = ()

    @property
    def reachable_host(self) -> str:
        """By which address processes here reach a server that listens on ``host``, which may be all of them."""
        return UNSPECIFIED.get(self.host, self.host)

    def __repr__(self) -> str:
        """Show all but the token: a configuration ends up in logs and tracebacks."""
        return Struct.__repr__(structs.replace(self, token="***") if self.token else self)  # noqa: S106 - none


class HttpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[http]``: health and metrics."""

    enabled: Annotated[bool, Meta(description="Whether to serve health and metrics over HTTP.")] = True
    host: Annotated[
        Host, Meta(description="Address to listen on. Loopback, because nobody is asked for a password.")
    ] = "127.0.0.1"
    port: Annotated[
        Port, Meta(description="TCP port; 0 takes any free one. 9022 is logging's DEFAULT_HTTP_LOGGING_PORT.")
    ] = 9022


class _SinkConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """What every sink can be told: which records it takes, and how a text line looks."""

    template: Annotated[
        str, Meta(description="The line as for logging.Formatter; it may name any LogRecord attribute or extra.")
    ] = "%(asctime)s %(levelname)s %(processName)s[%(process)d] %(name)s: %(message)s"
    style: Annotated[
        Literal["%", "{", "$"], Meta(description="How the template marks its fields, as for logging.Formatter.")
    ] = "%"
    datefmt: Annotated[
        str | None,
        Meta(description="What asctime is, as for time.strftime; absent: with ms.", examples=["%Y-%m-%d %H:%M:%S"]),
    ] = None
    time_zone: Annotated[
        str,
        Meta(description='Zone of asctime, an IANA name or "UTC"; "": local time.', examples=["Europe/Berlin"]),
    ] = ""
    defaults: Annotated[
        dict[str, str | int | float | bool],
        Meta(description="What the template shows where a record has no such extra.", examples=[{"user": "-"}]),
    ] = {}
    escaping: Annotated[
        Literal["safe", "raw"],
        Meta(description='"safe": no message can forge a line or drive a terminal; "raw": as logging.Formatter.'),
    ] = "safe"
    multiline: Annotated[
        Literal["indent", "escape"],
        Meta(description='Further lines of a record: "indent" them by a tab and a bar, or "escape" to one line.'),
    ] = "indent"
    fields: Annotated[
        tuple[str, ...],
        Meta(description="Which keys a line has, in this order. [] is the usual ones.", examples=[["ts", "msg"]]),
    ] = ()
    rename: Annotated[
        dict[str, str],
        Meta(description="Other names for keys.", examples=[{"ts": "time", "msg": "message"}]),
    ] = {}
    flatten_extras: Annotated[
        bool, Meta(description="Extras stand beside the other keys, not in an object of their own.")
    ] = False
    level: Annotated[
        Level | Annotated[int, Meta(ge=0, le=1_000_000)],
        Meta(description="Lowest level taken: a name, or a number for your own levels. NOTSET takes all."),
    ] = "NOTSET"
    max_level: Annotated[
        Level | Annotated[int, Meta(ge=0, le=1_000_000)] | None,
        Meta(description="Highest level taken; absent: no bound. With level it cuts out a band."),
    ] = None
    loggers: Annotated[
        tuple[Annotated[str, Meta(pattern=r"[^.]$")], ...],
        Meta(
            description='Loggers taken: "app" takes app and app.db, not apple. [] takes all.',
            examples=[["app", "gunicorn"]],
        ),
    ] = ()
    apps: Annotated[
        tuple[str, ...],
        Meta(
            description="Applications taken, by what their handlers were given as app. [] takes all.",
            examples=[["shop", "billing"]],
        ),
    ] = ()
    filter: Annotated[
        str,
        Meta(
            description='Records taken, as a condition on level, logger, msg, app, fields and more; "" takes all.',
            examples=["level >= WARNING or fields.user == 42"],
        ),
    ] = ""

    @property
    def level_number(self) -> int:
        """The lowest level taken as ``logging`` counts levels; 0 takes all."""
        return _level_number(self.level)

    @property
    def max_level_number(self) -> float:
        """The highest level taken as ``logging`` counts levels; infinite without a bound."""
        return math.inf if self.max_level is None else _level_number(self.max_level)


def _level_number(level: str | int) -> int:
    return level if isinstance(level, int) else logging.getLevelNamesMapping()[level]


Format = Annotated[
    Literal["json", "text", "logfmt", "ecs", "otel"],
    Meta(
        description='"json": an object a line; "text": the template; "logfmt": key=value; "ecs", "otel": JSON with '
        "the keys of Elastic or OpenTelemetry."
    ),
]
WhenFull = Annotated[
    Literal["block", "drop_newest"],
    Meta(description='Behind a slow sink, "block" slows the processes down; "drop_newest" drops, counted.'),
]
BufferBytes = Annotated[
    int,
    Meta(ge=4 * KIB, le=16 * GIB, description="What may wait for this sink in memory; then when_full decides."),
]


class FileSinkConfig(_SinkConfig, frozen=True, kw_only=True, tag="file"):
    """``[sinks.<name>]`` with ``type = "file"``, which may be left out where there is a ``path``."""

    path: Annotated[
        FilePath,
        Meta(
            description="The live file, relative to --dir or the working directory; with {app} {host} {logger} "
            "{process} {level} {date} in it, a file for each.",
        ),
    ]
    format: Format = "json"
    max_bytes: Annotated[
        int, Meta(ge=0, le=2**44, description="Rotate before the file grows beyond this; 0: never by size.")
    ] = 64 * MIB
    when: Annotated[
        Literal["", "S", "M", "H", "D", "midnight", "W0", "W1", "W2", "W3", "W4", "W5", "W6"],
        Meta(description='Rotate by time too, as TimedRotatingFileHandler (W0 is Monday); "": never by time.'),
    ] = ""
    # 10,000 weeks are 191 years: the next rotation is always a date that Python can tell.
    interval: Annotated[int, Meta(ge=1, le=10_000, description="How many of when from rotation to rotation.")] = 1
    at_time: Annotated[
        str,
        Meta(
            pattern=r"^(([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?)?$",
            description='With when = "midnight" or a weekday, the time of day instead of its end; "": its end.',
            examples=["03:30"],
        ),
    ] = ""
    utc: Annotated[bool, Meta(description="Whether days, also the {date} of a path, are of UTC.")] = False
    rotate_at_start: Annotated[bool, Meta(description="Whether a start of the server begins a new file.")] = False
    backup_count: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Backups kept; 14 are two weeks of days. 0 keeps all.")
    ] = 14
    max_age: Annotated[
        float,
        Meta(ge=0, le=100 * 366 * DAY_SECONDS, description='Backups older than this go, "30 days" say. 0 keeps them.'),
    ] = 0.0
    max_total_bytes: Annotated[
        int, Meta(ge=0, le=2**50, description="Backups go, the oldest first, until all files are below it. 0: never.")
    ] = 0
    min_free_bytes: Annotated[
        int, Meta(ge=0, le=2**50, description="Backups go, the oldest first, until so much disk is free. 0: never.")
    ] = 0
    compress: Annotated[
        Literal["", "gzip", "zstd"],
        Meta(description='How backups are compressed; "": not, so that grep reads them.'),
    ] = ""
    max_open_files: Annotated[
        int,
        Meta(ge=1, le=100_000, description="Of a path with fields, files open at once, two descriptors each."),
    ] = 256
    max_routes: Annotated[
        int, Meta(ge=1, le=1_000_000, description='Of a path with fields, files in all; more records go to "_other".')
    ] = 1024
    reorder_window: Annotated[
        float,
        Meta(ge=0, le=60, description='Records wait so long to be sorted by time, "200 ms" say. 0: as they come.'),
    ] = 0.0
    durability: Annotated[
        Literal["written", "fsynced"],
        Meta(description='What an ack survives: "written" the end of the server, "fsynced" a power cut too.'),
    ] = "written"
    when_full: WhenFull = "block"
    buffer_bytes: BufferBytes = 64 * MIB


class StdoutSinkConfig(_SinkConfig, frozen=True, kw_only=True, tag="stdout"):
    """``[sinks.<name>]`` with ``type = "stdout"``: for a person, or for what collects a container's output."""

    format: Format = "text"
    color: Annotated[
        Literal["auto", "always", "never"], Meta(description='Color by level; "auto": when stdout is a terminal.')
    ] = "auto"
    when_full: WhenFull = "drop_newest"
    buffer_bytes: BufferBytes = 4 * MIB


SinkConfig = FileSinkConfig | StdoutSinkConfig

# In the words of a file, because the environment and the flags may change them key by key.
DEFAULT_SINKS: dict[str, dict[str, object]] = {
    "app": {"type": "file", "path": "logs/app.log"},
    "console": {"type": "stdout"},
}


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one server; ``Config()`` is what runs without any file."""

    server: ServerConfig = ServerConfig()
    http: HttpConfig = HttpConfig()
    sinks: dict[str, SinkConfig] = msgspec.field(
        default_factory=lambda: msgspec.convert(DEFAULT_SINKS, dict[str, SinkConfig])
    )


# -------------------------------------------------------------------------------------------- what is for all


def load(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
    *,
    check: Callable[[SinkConfig], object] | None = None,
    directory: Path | None = None,
    again: bool = False,
) -> Config:
    """Read the file at ``path`` (None: there is none) and the token file, and return the settings.

    After it, ``server.token`` is the token wherever it came from. A relative ``token_file`` is relative to the
    working directory. ``environ``, ``overrides`` and ``check`` are as for :func:`parse`. Where relative paths of sinks
    begin is ``directory``; with it, links are followed to find two sinks with one file. ``again`` reads regular files
    only: a pipe was emptied by the first time, and would keep a server waiting.

    Raises :class:`ConfigError` as :func:`parse` does, and when a file is missing, cannot be read, is not UTF-8 or is
    larger than :data:`MAX_FILE_BYTES`, or when the token file is empty.
    """
    what_to_do = "Check the path, or leave it out to run with the defaults."
    text = "" if path is None else _read(path, what_to_do, again=again)
    origin = str(path or "the defaults")
    config = parse(text, environ=environ, overrides=overrides, origin=origin, check=check)
    if directory is not None:
        _refuse_links_to_one_file(config, directory, origin)
    token_file = config.server.token_file
    if not token_file:
        return config
    token = _read(Path(token_file), "Write the token there, or change [server] token_file.", again=again).strip()
    if not token:
        # A server that asked for no token because a secret is not mounted yet would let everybody in.
        raise ConfigError(f"{token_file}: the token file is empty. Write the token into it, or remove token_file.")
    return structs.replace(config, server=structs.replace(config.server, token=token))


def parse(
    text: str,
    *,
    environ: Mapping[str, str] = {},
    overrides: Mapping[str, object] = {},
    origin: str = "aiolog.toml",
    check: Callable[[SinkConfig], object] | None = None,
) -> Config:
    """Return the settings that TOML ``text``, the environment and the command line together ask for.

    ``overrides`` are flags under dotted names (``"server.port"``); a value of None was not given. A value from
    ``environ`` is read as TOML where that fits its key, else as plain text. A size is a whole number of bytes, or
    text with a unit in either case: k, M, G and KiB, MiB, GiB are powers of 1024, kB, MB, GB powers of 1000.
    ``origin`` names the text in messages. It reads no file: ``token_file`` is for :func:`load`. ``check`` raises
    :class:`ConfigError` for a sink whose template, filter or keys are none; who said them is put before it.

    Raises :class:`ConfigError`, and nothing else whatever the text is: what is wrong, who said it, what to do.
    """
    document = _document(text, origin)
    tables = _tables(document, origin)
    for name, value in environ.items():
        rest = name.removeprefix("AIOLOG_")
        if rest != name and "__" in rest:
            _overlay(tables, rest.lower().split("__"), _from_environment(name, value))
    for name, given in overrides.items():
        if given is not None:
            _overlay(tables, name.split("."), _Setting(f"--{name.rpartition('.')[2]}", (given,)))
    if not document.get("sinks"):
        _add_default_sinks(tables)

    config = Config(
        server=_section(("server",), tables.get(("server",), {}), ServerConfig),
        http=_section(("http",), tables.get(("http",), {}), HttpConfig),
        sinks={
            section[1]: _section(section, table, _sink_type(section, tables, origin))
            for section, table in tables.items()
            if section[0] == "sinks"
        },
    )
    _refuse_hosts(config, tables)
    _refuse_contradictions(config, tables)
    if check is not None:
        for name, sink in config.sinks.items():
            _check_sink(("sinks", name), sink, tables, check)
    return config


def accepts(
    level_number: int, loggers: Iterable[str], max_level_number: float = math.inf
) -> Callable[[str, int], bool]:
    """Return a predicate on (logger name, level number): does a sink with these settings take the record?

    A name in ``loggers`` stands for that logger and all below it, as in ``logging`` itself; none stands for all.
    """
    prefixes = tuple(f"{name}." for name in loggers)

    def accept(name: str, levelno: int) -> bool:
        return level_number <= levelno <= max_level_number and (not prefixes or f"{name}.".startswith(prefixes))

    return accept


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file, for editors that complete and check TOML."""
    schema = msgspec.json.schema(Config)
    # What parse() takes beyond the types: sizes with a unit, levels in lower case, a file sink without its type.
    for definition in schema["$defs"].values():
        for key, described in definition["properties"].items():
            if key.endswith("_bytes"):
                described["type"] = ["integer", "string"]
            elif key in _DURATIONS:
                described["type"] = ["number", "string"]
            elif key in {"level", "max_level"}:
                names = described["anyOf"][0]["enum"]
                names.extend([name.lower() for name in names])
    schema["$defs"]["FileSinkConfig"]["required"].remove("type")
    return schema


# ------------------------------------------------------------------------------------- from words to settings


class _Setting(NamedTuple):
    """A value and who said it; of its ``readings`` the first that fits is taken, the last is as it was typed."""

    origin: str
    readings: tuple[object, ...]
    strict: bool = True  # False: "9020" is a number and "1" is true, because there is only text


_Section = tuple[str, ...]  # ("server",), ("http",) or ("sinks", name)
_Tables = dict[_Section, dict[str, _Setting]]
_SECTIONS = Config.__struct_fields__

# A name that TOML takes without quotes: [sinks.app], sinks.app.path and the label of a metric can all carry it.
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

# k, M and G as logrotate has them, the IEC and SI names for who wants to be exact.
_SIZE = re.compile(r"(\d+)\s*(b|[kmg](?:ib|b)?)?", re.ASCII | re.IGNORECASE)
_UNITS = {"k": KIB, "m": MIB, "g": GIB, "kib": KIB, "mib": MIB, "gib": GIB, "kb": 10**3, "mb": 10**6, "gb": 10**9}

# Sizes and durations to show, of which the first that a key allows is taken.
_EXAMPLE_BYTES = (2 * MIB, 128 * MIB)
_EXAMPLE_SECONDS = ((3600.0, '3600 or "1 h"'), (0.2, '0.2 or "200 ms"'))

_UNITS_OF_TIME = {"", "S", "M", "H", "D"}
_DURATIONS = {"max_age", "reorder_window"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)
_UNIT_SECONDS = {
    unit: seconds
    for units, seconds in (
        ("ms", 0.001),
        ("s sec second seconds", 1.0),
        ("m min minute minutes", 60.0),
        ("h hour hours", 3_600.0),
        ("d day days", float(DAY_SECONDS)),
        ("w week weeks", 7.0 * DAY_SECONDS),
    )
    for unit in units.split()
} | {"": 1.0}

# What other formats would pass over in silence: a template without format = "text" is a mistake.
_FORMATS_OF = {
    **dict.fromkeys(("template", "style", "datefmt", "time_zone", "defaults", "escaping", "multiline"), ("text",)),
    **dict.fromkeys(("fields", "rename"), ("json", "logfmt", "ecs", "otel")),
    "flatten_extras": ("json", "ecs"),  # logfmt has no other way, OpenTelemetry no place for them
}
_CHECKED = (*_FORMATS_OF, "filter")  # what parse() has checked by others
_DEFAULTS = {key: getattr(_SinkConfig(), key) for key in _CHECKED}


def _document(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The message has the place, except at the end of the text. (CPython 3.14 has .lineno and .colno.)
        what, _, where = str(error).rpartition(" (at ")
        place = re.findall(r"\d+", where) or (text.count("\n") + 1, len(text.rpartition("\n")[2]) + 1)
        raise ConfigError(
            f"{origin}, line {place[0]}, column {place[1]}: this is not TOML ({what}). Correct it there."
        ) from None
    except (ValueError, RecursionError):
        raise ConfigError(
            f"{origin}: there is a number of thousands of digits or a nesting of hundreds of levels. Remove it."
        ) from None


def _tables(document: Mapping[str, Any], origin: str) -> _Tables:
    """Sort what the file says by section; an empty one is kept, because a sink without a path is an error."""
    tables: _Tables = {}
    for name, table in document.items():
        sections: dict[_Section, Any] = {(name,): table}
        if name == "sinks" and isinstance(table, dict):
            sections = {(name, sink): keys for sink, keys in table.items()}
        for section, keys in sections.items():
            _check_section(section, origin)
            if not isinstance(keys, dict):
                example = "[sinks.app]" if name == "sinks" else _header(section)
                raise ConfigError(
                    f"{origin}: {_header(section)} is a section and cannot be {_show(keys)}. "
                    f"Write {example} on a line and its keys below it."
                )
            tables[section] = {key: _Setting(origin, (value,)) for key, value in keys.items()}
    return tables


def _overlay(tables: _Tables, path: list[str], setting: _Setting) -> None:
    section = tuple(path[:-1] or path)
    _check_section(section, setting.origin)
    tables.setdefault(section, {})[path[-1]] = setting


def _check_section(section: _Section, origin: str) -> None:
    head = section[0]
    if head not in _SECTIONS or len(section) != (2 if head == "sinks" else 1):
        hint = "" if head in _SECTIONS else _did_you_mean(head, _SECTIONS, "[{}]".format)
        if head in ServerConfig.__struct_fields__:
            hint = f"If the key {head} is meant, write [server] on a line above it."
        raise ConfigError(
            f"{origin}: there is no section {_header(section)}. "
            f"{hint or 'The sections are [server], [http] and [sinks.<name>].'}"
        )
    if not _BARE_KEY.fullmatch(section[-1]):
        raise ConfigError(
            f"{origin}: a sink cannot be named {_show(section[-1])}. Use only the letters A to Z, digits, - and _."
        )


def _from_environment(name: str, text: str) -> _Setting:
    origin = f"environment variable {_name(name)}"
    try:
        # A line break would make a second key of the rest.
        document = {} if "\n" in text else tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        document = {}
    return _Setting(origin, (*document.values(), text), strict=False)


def _add_default_sinks(tables: _Tables) -> None:
    """Put the default sinks below what was said about them; who says the type says the whole sink."""
    for name, defaults in DEFAULT_SINKS.items():
        said = tables.setdefault(("sinks", name), {})
        if "type" not in said:
            tables["sinks", name] = {k: _Setting("the default sinks", (v,)) for k, v in defaults.items()} | said


def _sink_type(section: _Section, tables: _Tables, origin: str) -> type[FileSinkConfig | StdoutSinkConfig]:
    table = tables[section]
    if "type" in table and _value(section, "type", table["type"], Literal["file", "stdout"]) == "stdout":
        return StdoutSinkConfig
    if "path" not in table:
        known = {"type", *FileSinkConfig.__struct_fields__}
        for key, setting in table.items():
            if key not in known and (hint := _did_you_mean(key, ("path", "type"))):
                raise ConfigError(f"{setting.origin}: {_header(section)} has no key {_name(key)}. {hint}")
        said_by = next(iter(table.values())).origin if table else origin
        # Said from outside the file, this is rather a wrong name than a new sink.
        others = [other[-1] for other in tables if other[0] == "sinks" and other != section]
        hint = f"; the other sinks are {', '.join(others)}" if others and said_by != origin else ""
        raise ConfigError(
            f'{said_by}: {_header(section)} has no path. Give it path = "logs/app.log", or type = "stdout"{hint}.'
        )
    return FileSinkConfig


_AnySection = TypeVar("_AnySection", bound=Struct)


def _section(section: _Section, table: Mapping[str, _Setting], kind: type[_AnySection]) -> _AnySection:
    """Make a section, key by key: msgspec on the whole says ``$.sinks[...]`` where people look for a name."""
    fields = {field.name: field for field in structs.fields(kind)}
    values: dict[str, object] = {}
    for key, setting in table.items():
        if key in fields:
            values[key] = _value(section, key, setting, fields[key].type, fields[key].default)
        elif key != kind.__struct_config__.tag_field:
            hint = _did_you_mean(key, fields) or f"Its keys are {', '.join(fields)}."
            raise ConfigError(f"{setting.origin}: {_header(section)} has no key {_name(key)}. {hint}")
    return kind(**values)


def _value(section: _Section, key: str, setting: _Setting, wanted: Any, default: object = NODEFAULT) -> Any:
    for reading in setting.readings:
        try:
            return msgspec.convert(_canonical(key, reading), wanted, strict=setting.strict)
        except ValueError:  # msgspec.ValidationError is one, and CPython's for more than 4,300 digits another
            continue
    typed = setting.readings[-1]
    # A secret is not repeated: messages end up in logs and tickets.
    shown = f"of type {type(typed).__name__}" if key == "token" else _show(typed)
    kind = inspect.type_info(wanted)
    hint = _did_you_mean(typed, _choices(kind), _show) if isinstance(typed, str) else ""
    if not hint:
        known = "" if default in (NODEFAULT, None) else f"; the default is {_show_default(key, default)}"
        hint = f"Use {_expected(key, kind)}{known}."
    raise ConfigError(f"{setting.origin}: {_header(section)} {key} cannot be {shown}. {hint}")


def _canonical(key: str, value: object) -> object:
    """Read a size or a duration with its unit, and a level in lower case; return all else, right or wrong, as it is."""
    if isinstance(value, str):
        if key.endswith("_bytes") and (size := _SIZE.fullmatch(value.strip())):
            return int(size[1]) * _UNITS.get((size[2] or "").lower(), 1)
        if key in _DURATIONS and (duration := _DURATION.fullmatch(value.strip().lower())):
            seconds = _UNIT_SECONDS.get(duration[2])
            return value if seconds is None else float(duration[1]) * seconds
        if key in {"level", "max_level"}:
            return value.upper()
    if key == "at_time" and isinstance(value, time):  # TOML has a type for that
        return value.isoformat(timespec="seconds")
    return value


def _refuse_hosts(config: Config, tables: _Tables) -> None:
    """Raise for a host that nobody can ask the system for: ``socket`` encodes it so, and raises UnicodeError."""
    for name, host in (("server", config.server.host), ("http", config.http.host)):
        try:
            host.encode("idna")
        except UnicodeError:  # "..", a label of more than 63 letters, bytes that are no text
            text = (
                f'[{name}] host cannot be {_show(host)}. Use an address or a name such as "127.0.0.1" or "localhost".'
            )
            raise _contradiction(tables, text, ((name,), "host")) from None


def _check_sink(section: _Section, sink: SinkConfig, tables: _Tables, check: Callable[[SinkConfig], object]) -> None:
    """Have a sink checked; who said what is wrong with it is found by what would be right at its default."""
    try:
        check(sink)
    except ConfigError as error:
        said = [key for key in _CHECKED if key in tables[section]]
        wrong = [key for key in said if _is_right(structs.replace(sink, **{key: _DEFAULTS[key]}), check)]
        keys = [(section, key) for key in wrong or said or tables[section]]
        raise _contradiction(tables, f"{_header(section)} {error}", *keys) from None


def _is_right(sink: SinkConfig, check: Callable[[SinkConfig], object]) -> bool:
    try:
        check(sink)
    except ConfigError:
        return False
    return True


def _refuse_contradictions(config: Config, tables: _Tables) -> None:
    """Raise for settings that are right alone and wrong together."""
    server, http = config.server, config.http
    if server.token and server.token_file:
        text = "[server] has a token and a token_file. Remove one of them."
        raise _contradiction(tables, text, (("server",), "token"), (("server",), "token_file"))
    if server.max_inflight_bytes < server.max_frame_bytes:
        text = "[server] max_inflight_bytes has no room for one frame of max_frame_bytes. Raise it."
        raise _contradiction(tables, text, (("server",), "max_inflight_bytes"), (("server",), "max_frame_bytes"))
    if http.enabled and http.port and (http.host, http.port) == (server.host, server.port):
        text = f"[server] and [http] both want port {http.port} of {_name(http.host)}. Change one of them."
        both = [((section,), key) for section in ("server", "http") for key in ("port", "host")]
        raise _contradiction(tables, text, *both)

    templates: dict[_Section, PathTemplate] = {}
    for name, sink in config.sinks.items():
        section = ("sinks", name)
        for text, *keys in _contradictions_of(sink):
            raise _contradiction(tables, f"{_header(section)} {text}", *((section, key) for key in keys))
        if isinstance(sink, StdoutSinkConfig):
            continue
        try:
            templates[section] = PathTemplate(os.path.normpath(sink.path))
        except ConfigError as error:
            raise _contradiction(tables, f"{_header(section)} {error}", (section, "path")) from None
        for other, template in list(templates.items())[:-1]:
            if text := _conflict(other, template, section, templates[section], sink.path):
                raise _contradiction(tables, text, (other, "path"), (section, "path"))


def _conflict(one: _Section, template: PathTemplate, other: _Section, other_template: PathTemplate, path: str) -> str:
    """Say what is wrong with two sinks that would write one file, or what keeps the other's; "" for nothing."""
    both = f"{_header(one)} and {_header(other)}"
    if template.may_meet(other_template):
        both_have = "both have path =" if template.text == other_template.text else "may both write"
        return f"{both} {both_have} {_show(path)}. Give each a file of its own."
    for first, second, ours, theirs in (
        (one, other, template, other_template),
        (other, one, other_template, template),
    ):
        if ours.may_spoil(theirs):
            return (
                f"{_header(second)} path = {_show(theirs.text)} may be the name of a backup, a ledger or a torn line "
                f"of {_header(first)}, whose path is {_show(ours.text)}. Choose another name for one of them."
            )
    return ""


def _refuse_links_to_one_file(config: Config, directory: Path, origin: str) -> None:
    """Raise for two sinks with one file, or with what keeps it, where their directories are links to one."""
    templates: dict[str, PathTemplate] = {}
    for name, sink in config.sinks.items():
        if isinstance(sink, StdoutSinkConfig):
            continue
        templates[name] = template = PathTemplate(os.path.normpath(sink.path))
        with suppress(OSError, ValueError):  # a loop of links; who opens it says so
            template.root = PurePath(os.path.realpath(directory / template.root))
        for other in [*templates][:-1]:
            if text := _conflict(("sinks", other), templates[other], ("sinks", name), template, sink.path):
                raise ConfigError(f"{origin}: {text}")


def _contradiction(tables: _Tables, text: str, *settings: tuple[_Section, str]) -> ConfigError:
    # Who said it, each once; a default says nothing.
    said = (tables.get(section, {}).get(key) for section, key in settings)
    return ConfigError(f"{' and '.join(dict.fromkeys(one.origin for one in said if one))}: {text}")


def _contradictions_of(sink: SinkConfig) -> Iterator[tuple[str, ...]]:
    """Yield what is wrong with a sink in itself, and the keys that say so."""
    for key, formats in _FORMATS_OF.items():
        if sink.format not in formats and getattr(sink, key) != _DEFAULTS[key]:
            text = f'{key} is not for format = "{sink.format}". Set format = "{formats[0]}", or remove {key}.'
            yield text, key, "format"
    if sink.escaping == "raw" and sink.multiline != _DEFAULTS["multiline"]:
        yield 'multiline is not for escaping = "raw". Remove one of them.', "multiline", "escaping"
    if sink.max_level_number < sink.level_number:
        yield "has a max_level below its level, so that it takes nothing. Exchange them.", "level", "max_level"
    if isinstance(sink, FileSinkConfig):
        if sink.interval != 1 and not sink.when:
            yield 'has an interval but no when. Say of what (when = "H"), or remove interval.', "interval", "when"
        if sink.at_time and sink.when in _UNITS_OF_TIME:
            yield 'has an at_time, a moment of a day. Set when = "midnight", or remove at_time.', "at_time", "when"


def _read(path: Path, what_to_do: str, *, again: bool) -> str:
    try:
        # Editors on Windows begin a file with a byte order mark, which TOML does not know.
        text = _read_bytes(path, again=again).decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file. {what_to_do}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{path}: it cannot be read ({reason(error)}). {what_to_do}") from None


def _read_bytes(path: Path, *, again: bool) -> bytes:
    """Read a file up to its bound; with ``again``, nothing that could keep us waiting, or has been read before.

    Raises OSError, ValueError, or ConfigError for what is refused.
    """
    # Of a pipe, to open it alone waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if again else 0))
    try:
        if again and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError(
                f"{path}: it is a pipe, a device or a directory, and only a regular file is read again. "
                "Put its content into a file, and restart the server with that."
            )
        data = bytearray()
        while block := os.read(descriptor, READ_BYTES):
            data += block
            if len(data) > MAX_FILE_BYTES:
                raise ConfigError(
                    f"{path}: it is larger than {_show_size(MAX_FILE_BYTES)}. Check that it is the right file."
                )
        return bytes(data)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------- from settings to words

# Long enough to know again what was typed, short enough for one line.
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 60


def _show(value: object) -> str:
    """Write a value much as TOML does, cut short, with nothing in it that could drive a terminal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and len(value) <= _brief.maxstring and value.isprintable():
        return value.join("''" if '"' in value else '""')
    try:
        return _brief.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _name(text: str) -> str:
    return text if text.isprintable() and 0 < len(text) <= _brief.maxstring else _show(text)


def _header(section: _Section) -> str:
    return f"[{'.'.join(map(_name, section))}]"


def _show_size(size_bytes: int) -> str:
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return str(size_bytes)


def _show_default(key: str, default: object) -> str:
    if key.endswith("_bytes") and isinstance(default, int):
        return f'"{_show_size(default)}"'
    if default == ():
        return "[]"
    return f"{default:g}" if isinstance(default, float) else _show(default)


def _choices(kind: inspect.Type) -> list[str]:
    match kind:
        case inspect.Metadata(type=inner):
            return _choices(inner)
        case inspect.UnionType(types=kinds):
            return [choice for one in kinds for choice in _choices(one)]
        case inspect.LiteralType(values=values):
            return [str(value) for value in values]
    return []


def _expected(key: str, kind: inspect.Type) -> str:
    """Say what a key takes, out of its type, so that the limits stand in one place."""
    text = "text"
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            text = _expected(key, inner)
            if extra and "examples" in extra:
                text += f" such as {_example(extra['examples'][0])}"
        case inspect.UnionType(types=kinds):
            text = " or ".join(_expected(key, one) for one in kinds if not isinstance(one, inspect.NoneType))
        case inspect.LiteralType(values=values):
            text = "one of " + ", ".join(map(_show, values))
        case inspect.BoolType():
            text = "true or false"
        case inspect.IntType(ge=low, le=high) if key.endswith("_bytes") and low is not None and high is not None:
            example = next((size for size in _EXAMPLE_BYTES if low <= size <= high), low)
            text = f'a size such as {example} or "{_show_size(example)}", from {_show_size(low)} to {_show_size(high)}'
        case inspect.IntType(ge=low, le=high):
            text = f"a whole number from {low} to {high}"
        case inspect.FloatType(ge=low, le=high) if key in _DURATIONS:
            allowed = [said for seconds, said in _EXAMPLE_SECONDS if (low or 0) <= seconds <= (high or math.inf)]
            text = f"a duration such as {allowed[0]}, from {low} to {high} seconds"
        case inspect.FloatType(ge=low, le=high):
            text = f"a number of seconds from {low} to {high}"
        case inspect.VarTupleType():
            text = "a list of text"
        case inspect.DictType():
            text = "a table"
        case inspect.StrType(max_length=int(length)):
            text = f"text of at most {length} characters"
    return text


def _example(value: object) -> str:
    """Write an example as TOML does; JSON has the same text and lists, but another table."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {json.dumps(one)}' for key, one in value.items())} }}"
    return json.dumps(value)


def _did_you_mean(typed: str, names: Iterable[str], show: Callable[[str], str] = str) -> str:
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(typed.casefold(), folded, n=1)
    return f"Did you mean {show(folded[near[0]])}?" if near else ""
