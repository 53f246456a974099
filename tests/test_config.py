"""aiolog.config: what operators write becomes settings, or one sentence what is wrong and one what to do."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import string
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiolog import config as module
from aiolog import service
from aiolog.config import (
    GIB,
    KIB,
    MAX_FILE_BYTES,
    MIB,
    Config,
    FileSinkConfig,
    HttpConfig,
    ServerConfig,
    StdoutSinkConfig,
    accepts,
    json_schema,
    load,
    parse,
)
from aiolog.errors import ConfigError

# A busy machine is no bug of a pure function.
patient = settings(deadline=None)
EXAMPLES = Path(__file__).parents[1] / "config"


def refusal(text="", *, environ=None, overrides=None, origin="aiolog.toml"):
    """Return what the operator reads when these settings are refused."""
    with pytest.raises(ConfigError) as caught:
        parse(text, environ=environ or {}, overrides=overrides or {}, origin=origin)
    return str(caught.value)


def sink(keys, **more):
    """Return the file sink that these lines make."""
    return parse(f"[sinks.app]\npath = 'app.log'\n{keys}", **more).sinks["app"]


# --- defaults, and the files that come with the project


def test_nothing_said_is_the_defaults():
    """No file, no environment and no flags give a server that works."""
    config = parse("")
    assert config == Config()
    assert config == load(None, {}, {})
    assert (config.server.host, config.server.port, config.http.port) == ("127.0.0.1", 9020, 9022)
    assert config.sinks == {"app": FileSinkConfig(path="logs/app.log"), "console": StdoutSinkConfig()}
    assert config.sinks["app"].format == "json"
    assert config.sinks["console"].format == "text"


def test_default_ports_are_those_of_logging():
    """The ports are the ones that the standard library set aside for logging."""
    import logging.handlers

    assert ServerConfig().port == logging.handlers.DEFAULT_TCP_LOGGING_PORT
    assert HttpConfig().port == logging.handlers.DEFAULT_HTTP_LOGGING_PORT


def test_documented_file_is_exactly_the_defaults():
    """config/aiolog.toml says the defaults and nothing else."""
    assert parse((EXAMPLES / "aiolog.toml").read_text("utf-8")) == parse("")


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("server", ServerConfig),
        ("http", HttpConfig),
        ("sinks.app", FileSinkConfig),
        ("sinks.console", StdoutSinkConfig),
    ],
)
def test_documented_file_explains_every_key(header, kind):
    """Each key stands in config/aiolog.toml, below its own description with its limits and choices."""
    text = (EXAMPLES / "aiolog.toml").read_text("utf-8")
    section = text.partition(f"\n[{header}]\n")[2].partition("\n[")[0]
    comments = dict(re.findall(r"((?:^# .*\n)+?)(?:# )?(\w+) = ", section, re.MULTILINE))
    comments = {key: " ".join(words.replace("\n# ", " ").removeprefix("# ").split()) for words, key in comments.items()}
    for field in msgspec.structs.fields(kind):
        assert re.search(rf"^(# )?{field.name} = ", section, re.MULTILINE), field.name
        if kind is StdoutSinkConfig and field.name != "color":
            continue  # explained at the file sink
        info = msgspec.inspect.type_info(field.type)
        comment = comments[field.name]
        assert info.extra_json_schema["description"] in comment
        limits = re.search(r"from (\S+( [KMG]iB)? to \S+( [KMG]iB)?)$", module._expected(field.name, info))
        assert limits is None or limits[1] in comment, limits[1]
        for choice in module._choices(info):
            assert choice in comment, choice


def test_two_lines_are_a_useful_file():
    """config/minimal.toml is one file sink, and two lines."""
    text = (EXAMPLES / "minimal.toml").read_text("utf-8")
    assert len(text.splitlines()) == 2
    assert parse(text).sinks == {"app": FileSinkConfig(path="logs/app.log")}


def test_example_of_the_design_works():
    """The example that the design shows is a configuration."""
    config = parse("""
        [server]
        host = "127.0.0.1"
        port = 9020
        [http]
        port = 9022
        [sinks.app]
        type = "file"
        path = "logs/app.log"
        format = "text"
        template = "%(asctime)s %(message)s"
        level = "INFO"
        loggers = ["app", "gunicorn"]
        max_bytes = "64 MiB"
        when = "midnight"
        backup_count = 14
        compress = "zstd"
        durability = "written"
        [sinks.console]
        type = "stdout"
        when_full = "drop_newest"
    """)
    app = config.sinks["app"]
    assert (app.level_number, app.loggers, app.when, app.compress) == (20, ("app", "gunicorn"), "midnight", "zstd")
    assert isinstance(config.sinks["console"], StdoutSinkConfig)


# --- who wins


def test_flag_beats_environment_beats_file_beats_default():
    """Each source wins over the next, key by key."""
    text = "[server]\nport = 1\nhost = '::1'\nmax_sessions = 7\n"
    environ = {"AIOLOG_SERVER__PORT": "2", "AIOLOG_SERVER__HOST": "0.0.0.0"}
    server = parse(text, environ=environ, overrides={"server.port": 3}).server
    assert (server.port, server.host, server.max_sessions, server.max_connections) == (3, "0.0.0.0", 7, 4096)


def test_flag_of_none_was_not_given():
    """A flag whose value is None changes nothing."""
    assert parse("[server]\nport = 1", overrides={"server.port": None}).server.port == 1


@pytest.mark.parametrize("name", ["AIOLOG_TOKEN", "AIOLOG_SERVER_PORT", "AIOLOG", "MY_AIOLOG_SERVER__PORT", "PATH"])
def test_environment_of_others_is_not_ours(name):
    """A name without the prefix, or without two underscores after it, is passed over."""
    assert parse("", environ={name: "no number"}) == Config()


@pytest.mark.parametrize(
    ("name", "text", "attribute", "value"),
    [
        ("SERVER__PORT", "9021", "server.port", 9021),
        ("SERVER__PORT", '"9021"', "server.port", 9021),
        ("SERVER__TOKEN", "12345", "server.token", "12345"),
        ("SERVER__TOKEN", "true", "server.token", "true"),
        ("SERVER__TOKEN", "[" * 100_000, "server.token", "[" * 100_000),
        ("SERVER__TOKEN", "a\nb = 1", "server.token", "a\nb = 1"),
        ("SERVER__TOKEN", '1\nport = "x"', "server.token", '1\nport = "x"'),
        ("SERVER__DRAIN_TIMEOUT_SECONDS", "2.5", "server.drain_timeout_seconds", 2.5),
        ("SERVER__WINDOW_BYTES", "64k", "server.window_bytes", 64 * KIB),
        ("SERVER__WINDOW_BYTES", "65536", "server.window_bytes", 64 * KIB),
        ("HTTP__ENABLED", "false", "http.enabled", False),
        ("HTTP__ENABLED", "False", "http.enabled", False),
        ("HTTP__ENABLED", "1", "http.enabled", True),
    ],
)
def test_environment_is_read_as_its_key_needs_it(name, text, attribute, value):
    """A value is TOML where that fits the key, else plain text; it never becomes a second key."""
    section, _, key = attribute.partition(".")
    read = getattr(getattr(parse("", environ={f"AIOLOG_{name}": text}), section), key)
    assert read == value
    assert type(read) is type(value)


def test_environment_changes_the_default_sinks():
    """Without sinks in the file, the environment says keys of the default ones, and may add others."""
    environ = {
        "AIOLOG_SINKS__APP__PATH": "/var/log/app.log",
        "AIOLOG_SINKS__APP__LEVEL": "info",
        "AIOLOG_SINKS__APP__LOGGERS": '["app"]',
        "AIOLOG_SINKS__ERRORS__PATH": "errors.log",
    }
    assert parse("[server]\nport = 0", environ=environ).sinks == {
        "app": FileSinkConfig(path="/var/log/app.log", level="INFO", loggers=("app",)),
        "console": StdoutSinkConfig(),
        "errors": FileSinkConfig(path="errors.log"),
    }


def test_type_from_outside_begins_the_sink_anew():
    """Who says the type of a default sink says all of it: a stdout does not inherit a path."""
    sinks = parse("", environ={"AIOLOG_SINKS__APP__TYPE": "stdout"}).sinks
    assert sinks["app"] == StdoutSinkConfig()


def test_sink_in_the_file_replaces_the_default_sinks():
    """A file that names a sink has that sink only; the environment changes it."""
    text = "[sinks.mine]\npath = 'x.log'"
    sinks = parse(text, environ={"AIOLOG_SINKS__MINE__COMPRESS": "gzip"}).sinks
    assert sinks == {"mine": FileSinkConfig(path="x.log", compress="gzip")}


def test_environment_for_a_sink_that_is_not_there():
    """A key of a sink that the file does not have is refused, with the names that there are."""
    text = refusal("[sinks.mine]\npath = 'x.log'", environ={"AIOLOG_SINKS__APP__LEVEL": "INFO"})
    assert text.startswith("environment variable AIOLOG_SINKS__APP__LEVEL: [sinks.app] has no path.")
    assert text.endswith("the other sinks are mine.")


# --- values


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("4096", 4096),
        ('"4096"', 4096),
        ('"4096 B"', 4096),
        ('"64k"', 64 * KIB),
        ('"64K"', 64 * KIB),
        ('"64 KiB"', 64 * KIB),
        ('"64kib"', 64 * KIB),
        ('"64 kB"', 64_000),
        ('"64 MiB"', 64 * MIB),
        ('"64M"', 64 * MIB),
        ('"64MB"', 64_000_000),
        ('" 2 GiB "', 2 * GIB),
        ('"2g"', 2 * GIB),
        ('"2 GB"', 2_000_000_000),
        ("0", 0),
    ],
)
def test_sizes(written, size_bytes):
    """IEC units and bare letters are powers of 1024, SI units powers of 1000, in either case."""
    assert sink(f"max_bytes = {written}").max_bytes == size_bytes


@pytest.mark.parametrize(
    "written",
    [
        '"64 MIBB"',
        '"64 mebi"',
        '"1.5 GiB"',
        '"-1"',
        "-1",
        "1.0",
        "true",
        '""',
        '"٦٤"',
        '"' + "9" * 5000 + '"',
        "[]",
    ],
)
def test_what_is_no_size(written):
    """What is not exactly a size is refused, with an example of one and the limits."""
    text = refusal(f"[sinks.app]\npath = 'x'\nmax_bytes = {written}")
    assert "[sinks.app] max_bytes cannot be " in text
    assert text.endswith('Use a size such as 2097152 or "2 MiB", from 0 to 16384 GiB; the default is "64 MiB".')


@pytest.mark.parametrize("key", ["port", "max_connections", "max_frame_bytes", "drain_timeout_seconds"])
def test_booleans_are_no_numbers(key):
    """``true`` is not 1, from a file, a flag or the environment."""
    where = f"[server] {key} cannot be "
    assert where in refusal(f"[server]\n{key} = true")
    assert where in refusal(overrides={f"server.{key}": True})
    assert where in refusal(environ={f"AIOLOG_SERVER__{key.upper()}": "true"})


def test_text_is_a_number_in_the_environment_only():
    """A file and a flag know numbers, so a port in quotes is a mistake there."""
    assert '[server] port cannot be "9020"' in refusal('[server]\nport = "9020"')
    assert '[server] port cannot be "9020"' in refusal(overrides={"server.port": "9020"})


@pytest.mark.parametrize("kind", [ServerConfig, HttpConfig, FileSinkConfig, StdoutSinkConfig])
def test_limits_are_sharp(kind):
    """Both limits of every number are taken, and one step beyond either is refused with the limits in the text."""
    section = {ServerConfig: "server", HttpConfig: "http"}.get(kind, "sinks.x")
    basis = {"sinks.x.type": "file", "sinks.x.path": "x"} if kind is FileSinkConfig else {"sinks.x.type": "stdout"}
    if kind is FileSinkConfig:
        basis["sinks.x.when"] = "H"
    if kind is ServerConfig:
        basis |= {"server.max_inflight_bytes": 64 * GIB, "http.enabled": False}
    for field in msgspec.structs.fields(kind):
        info = msgspec.inspect.type_info(field.type)
        number = getattr(info, "type", info)
        if isinstance(number, msgspec.inspect.UnionType):
            number = number.types[-1]
        if not isinstance(number, msgspec.inspect.IntType | msgspec.inspect.FloatType):
            continue
        assert number.ge is not None, field.name
        assert number.le is not None, field.name
        name = f"{section}.{field.name}"
        for good in (number.ge, number.le):
            more = {"server.max_inflight_bytes": "64 MiB"} if name == "server.max_frame_bytes" else {}
            parse("", overrides=basis | more | {name: good})
        for bad in (number.ge - 1, number.le + 1, float("nan"), float("inf"), 10**400, -(1 << 20_000)):
            assert f"[{section}] {field.name} cannot be " in refusal(overrides=basis | {name: bad})


@pytest.mark.parametrize("seconds", ["10", "10.0", "1e1"])
def test_seconds_are_any_number(seconds):
    """Durations are whole or not, and become floats."""
    value = parse(f"[server]\nidle_timeout_seconds = {seconds}").server.idle_timeout_seconds
    assert (value, type(value)) == (10.0, float)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ('"NOTSET"', 0),
        ('"debug"', 10),
        ('"Info"', 20),
        ('"WARN"', 30),
        ('"warning"', 30),
        ('"FATAL"', 50),
        ("15", 15),
    ],
)
def test_levels(written, number):
    """A level is a standard name in either case, or any number."""
    assert sink(f"level = {written}").level_number == number
    assert parse("", environ={"AIOLOG_SINKS__APP__LEVEL": written}).sinks["app"].level_number == number
    assert parse("", environ={"AIOLOG_SINKS__APP__LEVEL": written.strip('"')}).sinks["app"].level_number == number


def test_level_of_another_program_is_a_number():
    """The server cannot know the names that an application gave to its own levels."""
    assert "or a whole number from 0 to 1000000" in refusal("[sinks.app]\npath = 'x'\nlevel = 'TRACE'")


def test_loggers_stand_for_all_below_them():
    """The prefix app takes app and app.x but not apple; no prefix takes all."""
    accept = accepts(20, ("app", "gunicorn.access"))
    taken = ["app", "app.db", "app.db.pool", "gunicorn.access"]
    others = ["apple", "ap", "", "gunicorn", "gunicorn.error", "my.app", "App"]
    assert all(accept(name, 20) for name in taken)
    assert not any(accept(name, 50) for name in others)
    assert not accept("app", 19)
    assert all(accepts(0, ())(name, 0) for name in taken + others)


@patient
@given(st.lists(st.text("ab.", min_size=1)), st.text("ab."))
def test_prefixes_go_by_whole_names(loggers, name):
    """A sink takes a name when one of its loggers is the name or one of the name's parents."""
    parts = name.split(".")
    parents = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    assert accepts(0, loggers)(name, 0) == (not loggers or bool(parents & set(loggers)))


def test_settings_are_frozen():
    """Nobody changes a setting of a running server by accident."""
    config = parse("")
    for section in (config, config.server, config.http, *config.sinks.values()):
        with pytest.raises(AttributeError):
            setattr(section, section.__struct_fields__[0], None)


# --- refusals: what the operator reads


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[servr]\nport = 1", "there is no section [servr]. Did you mean [server]?"),
        ("[sink.app]\npath = 'x'", "there is no section [sink]. Did you mean [sinks]?"),
        ("[zzz]", "there is no section [zzz]. The sections are [server], [http] and [sinks.<name>]."),
        ("port = 1", "there is no section [port]. If the key port is meant, write [server] on a line above it."),
        (
            "server = 1",
            "[server] is a section and cannot be 1. Write [server] on a line and its keys below it.",
        ),
        ("sinks = 1", "there is no section [sinks]. The sections are [server], [http] and [sinks.<name>]."),
        (
            "[sinks]\npath = 'x'",
            '[sinks.path] is a section and cannot be "x". Write [sinks.app] on a line and its keys below it.',
        ),
        ("[server]\nprot = 1", "[server] has no key prot. Did you mean port?"),
        (
            "[server]\ntype = 'file'",
            "[server] has no key type. Its keys are host, port, socket, token, token_file, ",
        ),
        ("[http]\ntls = true", "[http] has no key tls. Its keys are enabled, host, port."),
        ("[sinks.app]\npath = 'x'\nmaxBytes = 1", "[sinks.app] has no key maxBytes. Did you mean max_bytes?"),
        ("[sinks.app]\npath = 'x'\ncolor = 'auto'", "[sinks.app] has no key color. Its keys are "),
        ("[sinks.app]\ntype = 'stdout'\npath = 'x'", "[sinks.app] has no key path. Its keys are "),
        ("[sinks.app]", '[sinks.app] has no path. Give it path = "logs/app.log", or type = "stdout".'),
        (
            "[sinks.app]\ntype = 'file'",
            '[sinks.app] has no path. Give it path = "logs/app.log", or type = "stdout".',
        ),
        ("[sinks.app]\npaht = 'x'", "[sinks.app] has no key paht. Did you mean path?"),
        ("[sinks.app]\nlevel = 'INFO'\nPath = 'x'", "[sinks.app] has no key Path. Did you mean path?"),
        ("[sinks.app]\ntyp = 'stdout'", "[sinks.app] has no key typ. Did you mean type?"),
        ("[sinks.app]\ncolor = 'auto'", "[sinks.app] has no path. "),
        ("[sinks.app]\ntype = 'stdot'", '[sinks.app] type cannot be "stdot". Did you mean "stdout"?'),
        ("[sinks.app]\ntype = 3", '[sinks.app] type cannot be 3. Use one of "file", "stdout".'),
        ("[sinks.app]\npath = ''", '[sinks.app] path cannot be "". Use text such as "logs/app.log".'),
        ("[sinks.app]\npath = 'logs/'", '[sinks.app] path cannot be "logs/". Use text such as "logs/app.log".'),
        ('[sinks.app]\npath = "a\\u0000b"', "[sinks.app] path cannot be 'a\\x00b'. "),
        (
            "[sinks.'a b']\npath = 'x'",
            'a sink cannot be named "a b". Use only the letters A to Z, digits, - and _.',
        ),
        (
            "[sinks.app]\npath = 'x'\ncompress = 'zst'",
            '[sinks.app] compress cannot be "zst". Did you mean "zstd"?',
        ),
        (
            "[sinks.app]\npath = 'x'\nwhen = 'MIDNIGHT'",
            '[sinks.app] when cannot be "MIDNIGHT". Did you mean "midnight"?',
        ),
        (
            "[sinks.app]\npath = 'x'\nlevel = 'warnin'",
            '[sinks.app] level cannot be "warnin". Did you mean "WARNING"?',
        ),
        (
            "[sinks.app]\npath = 'x'\nloggers = 'app'",
            '[sinks.app] loggers cannot be "app". Use a list of text such as ["app", "gunicorn"]; ',
        ),
        ("[sinks.app]\npath = 'x'\nloggers = ['app.']", "[sinks.app] loggers cannot be ['app.']. "),
        (
            "[server]\nport = 70000",
            "[server] port cannot be 70000. Use a whole number from 0 to 65535; the default is 9020.",
        ),
        (
            "[server]\nhost = ''",
            '[server] host cannot be "". Use text such as "127.0.0.1"; the default is "127.0.0.1".',
        ),
        (
            "[server]\ndrain_timeout_seconds = '5s'",
            '[server] drain_timeout_seconds cannot be "5s". Use a number of seconds from 0 to 3600; ',
        ),
        ("[http]\nenabled = 'yes'", '[http] enabled cannot be "yes". Use true or false; the default is true.'),
        ("[server]\nport = 0x" + "f" * 9000, "[server] port cannot be a number of thousands of digits. "),
    ],
)
def test_refusal_says_what_and_what_to_do(text, message):
    """A mistake is named with its file, section, key and value, and the nearest right thing."""
    assert refusal(text, origin="etc/my.toml").startswith(f"etc/my.toml: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "line 1, column 5: this is not TOML (Invalid value). Correct it there."),
        ("[server]\nport = 9020 9021\n", "line 2, column 13: this is not TOML ("),
        ("[server]\n\nport = [", "line 3, column 9: this is not TOML ("),
    ],
)
def test_broken_toml_is_told_by_line_and_column(text, message):
    """A syntax error has its place, also at the end of the text."""
    assert refusal(text).startswith(f"aiolog.toml, {message}")


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000])
def test_toml_that_breaks_its_reader(text):
    """What makes tomllib give up with another error than its own is refused like the rest."""
    assert refusal(text) == (
        "aiolog.toml: there is a number of thousands of digits or a nesting of hundreds of levels. Remove it."
    )


def test_value_of_ten_thousand_levels():
    """Dotted keys nest without end; what they make is shown cut short."""
    text = refusal("[server]\nport." + "a." * 10_000 + "a = 1")
    assert text.startswith("aiolog.toml: [server] port cannot be {'a': {'a': ")
    assert len(text) < 200


def test_refusal_names_the_environment_variable():
    """A mistake in the environment is not looked for in the file."""
    text = refusal("[server]\nport = 1", environ={"AIOLOG_SERVER__PORT": "abc"})
    assert text.startswith('environment variable AIOLOG_SERVER__PORT: [server] port cannot be "abc". ')
    text = refusal(environ={"AIOLOG_SERVR__PORT": "1"})
    assert text == "environment variable AIOLOG_SERVR__PORT: there is no section [servr]. Did you mean [server]?"
    text = refusal(environ={"AIOLOG_SERVER__PROT": "1"})
    assert text == "environment variable AIOLOG_SERVER__PROT: [server] has no key prot. Did you mean port?"


@pytest.mark.parametrize("name", ["SERVER__PORT__X", "SERVER__", "__PORT", "SINKS__APP", "SINKS__A__B__C", "__"])
def test_environment_name_of_a_wrong_shape(name):
    """A name that is no section and key is refused, not passed over."""
    assert refusal(environ={f"AIOLOG_{name}": "1"}).startswith(f"environment variable AIOLOG_{name}: ")


def test_refusal_names_the_flag():
    """A mistake on the command line is told as a flag."""
    assert refusal(overrides={"server.port": -1}).startswith("--port: [server] port cannot be -1. ")
    assert refusal(overrides={"port": 1}).startswith("--port: there is no section [port]. ")


def test_no_refusal_shows_a_token():
    """A token of the wrong type is not repeated, and a configuration does not print it."""
    for text in ("[server]\ntoken = 31415926", "[server]\ntokn = '31415926'", "[server]\ntoken = '31415926"):
        assert "31415926" not in refusal(text)
    config = parse("[server]\ntoken = '31415926'")
    assert config.server.token == "31415926"
    assert "31415926" not in repr(config)
    assert "token='***'" in repr(config)


def test_refusal_cannot_drive_a_terminal():
    """Control characters in keys, values and names arrive escaped."""
    evil = "\\u001b[2J\\u202e"
    for text in (
        f'[server]\n"{evil}" = 1',
        f'[server]\nhost = "{evil} "',
        f'["{evil}"]',
        f'[sinks."{evil}"]\npath = "x"',
    ):
        assert refusal(text).isprintable()
    assert refusal(environ={"AIOLOG_SERVER__\x1b": "\x1b"}).isprintable()


def test_refusal_stays_short():
    """A megabyte in the wrong place does not become a megabyte of message."""
    for text in ("[server]\nport = '" + "x" * MIB + "'", "[server]\n" + "x" * MIB + " = 1", "[" + "x" * MIB + "]"):
        assert len(refusal(text)) < 500


# --- right alone, wrong together


def test_token_and_token_file():
    """Two tokens are one too many, wherever they come from."""
    text = refusal("[server]\ntoken_file = 't'", environ={"AIOLOG_SERVER__TOKEN": "s"})
    assert text == (
        "environment variable AIOLOG_SERVER__TOKEN and aiolog.toml: [server] has a token and a token_file. "
        "Remove one of them."
    )


def test_inflight_below_one_frame():
    """A budget in which no frame fits would never read one."""
    assert "[server] max_inflight_bytes has no room" in refusal(
        "[server]\nmax_frame_bytes = '2M'\nmax_inflight_bytes = '1M'"
    )


def test_one_port_for_two():
    """The log port and the HTTP port of one address differ; without HTTP, or with port 0, there is no question."""
    assert "both want port 9022 of 127.0.0.1" in refusal(overrides={"server.port": 9022})
    parse("", overrides={"server.port": 9022, "http.enabled": False})
    parse("", overrides={"server.port": 9022, "http.host": "127.0.0.2"})
    parse("", overrides={"server.port": 0, "http.port": 0})


@pytest.mark.parametrize("other", ["logs/app.log", "./logs/app.log", "logs//app.log", "logs/x/../app.log"])
def test_two_sinks_with_one_file(other):
    """Two sinks would rotate each other's file away, however the path is written."""
    text = refusal(f"[sinks.a]\npath = 'logs/app.log'\n[sinks.b]\npath = '{other}'")
    assert text.startswith(f'aiolog.toml: [sinks.a] and [sinks.b] both have path = "{other}". Give each')


@pytest.mark.parametrize(
    "other",
    [".app.log.ledger", ".app.log.ledger.new", "app.log.20200101T000000Z.0000", "app.log.20200101T000000Z.0000.gz",
     "app.log.20200101T000000Z.0000.zst", "app.log.20200101T000000Z.0000.zst.tmp", "app.log.torn-20200101T000000Z",
     "app.log.torn-20200101T000000Z.1", "./.app.log.ledger", "x/../.app.log.ledger", ".{app}.ledger"],
)  # fmt: skip
@pytest.mark.parametrize("order", [1, -1])
def test_a_sink_with_the_name_of_anothers_ledger_or_backup(other, order):
    """It would be overwritten, or removed as too old, with all its records."""
    sections = ["[sinks.a]\npath = 'logs/app.log'\n", f"[sinks.b]\npath = 'logs/{other}'\n"][::order]
    path = "logs/" + other.removeprefix("./").removeprefix("x/../")
    assert refusal("".join(sections)) == (
        f'aiolog.toml: [sinks.b] path = "{path}" may be the name of a backup, a ledger or a torn line of [sinks.a], '
        'whose path is "logs/app.log". Choose another name for one of them.'
    )


@pytest.mark.parametrize("name", ["app.log", ".app.log.ledger", "app.log.20200101T000000Z.0000"])
@pytest.mark.parametrize("shape", ["link", "absolute"])
def test_two_sinks_with_one_file_behind_a_link(tmp_path, name, shape):
    """Where directories are known, another way to one of them is no other directory."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "link").symlink_to("logs")
    other = f"link/{name}" if shape == "link" else f"{tmp_path}/logs/{name}"
    path = tmp_path / "my.toml"
    path.write_text(f"[sinks.a]\npath = 'logs/app.log'\n[sinks.b]\npath = '{other}'\n")
    assert load(path, {}, {}).sinks
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: \[sinks\.[ab]\] .*\[sinks\.[ab]\]"):
        load(path, {}, {}, directory=tmp_path)
    path.write_text(f"[sinks.a]\npath = 'logs/{{app}}.txt'\n[sinks.b]\npath = '{other}'\n")
    assert load(path, {}, {}, directory=tmp_path).sinks


@pytest.mark.parametrize("host", ["..", "a..b", "a" * 300, "ü" * 100, "\udcff"])
@pytest.mark.parametrize("section", ["server", "http"])
def test_a_host_that_is_no_name(host, section):
    """The system cannot even be asked for it; the key, the flag or the variable is named."""
    said = f"[{section}] host cannot be "
    if "\udcff" not in host:
        assert refusal(f"[{section}]\nhost = '{host}'").startswith(f"aiolog.toml: {said}")
    assert refusal(overrides={f"{section}.host": host}).startswith(f"--host: {said}")
    name = f"AIOLOG_{section.upper()}__HOST"
    assert refusal(environ={name: host}).startswith(f"environment variable {name}: {said}")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%eth0", "localhost", "bücher.example", "0.0.0.0", "a.b."])
def test_a_host_that_may_be_a_name(host):
    """Whether there is such a host only the system can tell."""
    assert parse("", overrides={"server.host": host}).server.host == host


@pytest.mark.parametrize(
    ("key", "value", "toml"),
    [("template", "%(message", "'%(message'"), ("time_zone", "Europe/Berln", "'Europe/Berln'"),
     ("fields", '["lvl"]', '["lvl"]'), ("rename", '{ lvl = "x" }', '{ lvl = "x" }'),
     ("filter", "level ==", "'level =='")],
)  # fmt: skip
def test_what_a_sink_is_checked_for_names_who_said_it(key, value, toml):
    """A template, a zone, a key and a filter are told by the file or the variable that they come from."""
    shape = "json" if key in {"fields", "rename"} else "text"
    rest = f"[sinks.app]\npath = 'x'\nformat = '{shape}'\nlevel = 'INFO'\n"
    with pytest.raises(ConfigError) as caught:
        parse(f"{rest}{key} = {toml}", check=service.format_of)
    assert str(caught.value).startswith("aiolog.toml: [sinks.app] ")
    name = f"AIOLOG_SINKS__APP__{key.upper()}"
    with pytest.raises(ConfigError) as caught:
        parse(rest + 'loggers = ["app"]', environ={name: value}, check=service.format_of)
    assert str(caught.value).startswith(f"environment variable {name}: [sinks.app] ")
    assert caught.value.args[0].split("[sinks.app] ")[1][0].islower()


def test_a_right_sink_is_checked_once():
    """To look for who was wrong is for those who are."""
    checked = []
    config = parse("[sinks.a]\npath = 'a'\n[sinks.b]\ntype = 'stdout'\n", check=checked.append)
    assert checked == list(config.sinks.values())


@pytest.mark.parametrize("kind", [ServerConfig, FileSinkConfig, StdoutSinkConfig])
def test_examples_in_a_refusal_are_allowed(kind):
    """Who types what the message shows is not refused again."""
    section, rest = ("server", "") if kind is ServerConfig else ("sinks.a", f'type = "{kind.__struct_config__.tag}"\n')
    rest += "path = 'x'\n" if kind is FileSinkConfig else ""
    examples = 0
    for key in kind.__struct_fields__:
        if key.endswith("_bytes") or key in {"max_age", "reorder_window"}:
            shown = refusal(f"[{section}]\n{rest}{key} = []")
            number, text = re.search(r'such as (\S+) or ("[^"]+"), from', shown).groups()
            configs = [parse(f"[{section}]\n{rest}{key} = {value}") for value in (number, text)]
            assert configs[0] == configs[1]
            examples += 1
    assert examples == {ServerConfig: 4, FileSinkConfig: 6, StdoutSinkConfig: 1}[kind]


@pytest.mark.parametrize("line", ['template = "x"', 'style = "{"', 'datefmt = "%Y"', 'escaping = "raw"',
                                  'time_zone = "UTC"', 'defaults = { user = "-" }',
                                  'multiline = "escape"'])  # fmt: skip
@pytest.mark.parametrize("shape", ["json", "logfmt", "ecs", "otel"])
def test_template_without_text(line, shape):
    """What only text lines have is refused elsewhere, where it would do nothing and nobody would know why."""
    key = line.split()[0]
    text = refusal(f"[sinks.app]\npath = 'x'\nformat = '{shape}'\n{line}")
    assert text == (
        f'aiolog.toml: [sinks.app] {key} is not for format = "{shape}". Set format = "text", or remove {key}.'
    )
    assert sink(f"format = 'text'\n{line}").format == "text"


@pytest.mark.parametrize(
    ("line", "shapes"),
    [
        ('fields = ["ts"]', {"json", "logfmt", "ecs", "otel"}),
        ('rename = { ts = "time" }', {"json", "logfmt", "ecs", "otel"}),
        ("flatten_extras = true", {"json", "ecs"}),
    ],
)
def test_keys_where_there_are_none(line, shapes):
    """What only lines of keys have is refused where it would do nothing."""
    key = line.split()[0]
    for shape in ("text", "json", "logfmt", "ecs", "otel"):
        if shape in shapes:
            assert sink(f"format = '{shape}'\n{line}").format == shape
        else:
            assert refusal(f"[sinks.app]\npath = 'x'\nformat = '{shape}'\n{line}") == (
                f'aiolog.toml: [sinks.app] {key} is not for format = "{shape}". Set format = "json", or remove {key}.'
            )


def test_multiline_with_raw():
    """Raw lines are as they came, so nobody can choose how further ones look."""
    text = refusal("[sinks.app]\npath = 'x'\nformat = 'text'\nescaping = 'raw'\nmultiline = 'escape'")
    assert text == 'aiolog.toml: [sinks.app] multiline is not for escaping = "raw". Remove one of them.'


def test_tables_of_a_sink():
    """rename and defaults are tables: inline, under a header of their own, or from the environment."""
    assert sink('rename = { ts = "time" }').rename == {"ts": "time"}
    assert sink('[sinks.app.rename]\nts = "time"\nmsg = "message"').rename == {"ts": "time", "msg": "message"}
    given = sink("", environ={"AIOLOG_SINKS__APP__RENAME": '{ ts = "time" }', "AIOLOG_SINKS__APP__FIELDS": '["ts"]'})
    assert (given.rename, given.fields) == ({"ts": "time"}, ("ts",))
    text = "format = 'text'\ndefaults = { user = '-', n = 1, ratio = 0.5, known = true }"
    assert sink(text).defaults == {"user": "-", "n": 1, "ratio": 0.5, "known": True}
    assert refusal("[sinks.app]\npath = 'x'\nrename = 'ts'") == (
        'aiolog.toml: [sinks.app] rename cannot be "ts". Use a table such as { ts = "time", msg = "message" }.'
    )
    assert "defaults cannot be {'user': [1]}" in refusal("[sinks.app]\npath = 'x'\ndefaults = { user = [1] }")
    assert 'Did you mean "ecs"?' in refusal("[sinks.app]\npath = 'x'\nformat = 'esc'")


def test_interval_without_when():
    """An interval of nothing would never rotate."""
    assert "[sinks.app] has an interval but no when." in refusal("[sinks.app]\npath = 'x'\ninterval = 2")
    assert sink("interval = 2\nwhen = 'H'").interval == 2


# --- files


def test_load_reads_the_file(tmp_path):
    """The settings come from the file, also when an editor on Windows wrote it."""
    path = tmp_path / "my.toml"
    path.write_bytes("\ufeff[server]\r\nport = 1 # größer\r\n".encode())
    assert load(path, {}, {}).server.port == 1
    assert load(path, {"AIOLOG_SERVER__PORT": "2"}, {}).server.port == 2
    assert load(path, {"AIOLOG_SERVER__PORT": "2"}, {"server.port": 3}).server.port == 3


def test_load_names_the_file(tmp_path):
    """A message about a file begins with its path."""
    path = tmp_path / "my.toml"
    path.write_text("[server]\nport = -1\n")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: \[server\] port cannot be -1\. "):
        load(path, {}, {})


def test_load_of_what_cannot_be_read(tmp_path):
    """A missing file, a folder, another encoding and an impossible path are sentences, not tracebacks."""
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# gr\xf6\xdfer")
    for path, message in (
        (
            tmp_path / "none.toml",
            "there is no such file. Check the path, or leave it out to run with the defaults.",
        ),
        (tmp_path, "it cannot be read (Is a directory). Check the path"),
        (latin, "byte 4 is not UTF-8. Save the file as UTF-8."),
        (Path("a\0b"), "it cannot be read (embedded null byte). "),
    ):
        with pytest.raises(ConfigError) as caught:
            load(path, {}, {})
        assert str(caught.value).startswith(f"{path}: {message}")


@contextlib.contextmanager
def pipe_with(data):
    """The path of a pipe that ends after the data, as the shell's <(…) gives."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    try:
        yield Path(f"/dev/fd/{reader}")
    finally:
        os.close(reader)


def test_a_pipe_is_read_once():
    """At a start it is a file as any other; later it would be empty, which is a configuration too."""
    with pipe_with(b"[server]\nport = 1\n") as path:
        assert load(path, {}, {}).server.port == 1
        with pytest.raises(ConfigError, match=rf"^{path}: it is a pipe, .* only a regular file is read again\. Put"):
            load(path, {}, {}, again=True)


@pytest.mark.parametrize("key", ["configuration", "token_file"])
def test_what_has_become_a_fifo_is_not_waited_for(tmp_path, key):
    """A server that reloads would wait for a writer, and serve nobody meanwhile."""
    path = tmp_path / "fifo"
    path.write_text("")
    arguments = (path, {}, {}) if key == "configuration" else (None, {}, {"server.token_file": str(path)})
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=f"^{path}: it is a pipe"):
        load(*arguments, again=True)


@pytest.mark.parametrize("again", [False, True])
def test_a_file_without_end(tmp_path, again):
    """What is larger than any configuration is not one, and is not read to its end."""
    large = tmp_path / "large"
    large.write_bytes(b"#" * MAX_FILE_BYTES)
    assert load(large, {}, {}, again=again) == Config()
    large.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    for path in (large, Path("/dev/zero")):
        for arguments in ((path, {}, {}), (None, {}, {"server.token_file": str(path)})):
            with pytest.raises(ConfigError, match=rf"^{path}: it is (larger than 1 MiB\. Check|a pipe, a device)"):
                load(*arguments, again=again)


def test_token_file(tmp_path):
    """The token is what the file says without the white space around it."""
    secret = tmp_path / "secret"
    secret.write_text(" s3cret\n")
    assert load(None, {"AIOLOG_SERVER__TOKEN_FILE": str(secret)}, {}).server.token == "s3cret"
    assert parse("", environ={"AIOLOG_SERVER__TOKEN_FILE": str(secret)}).server.token == ""


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_token_file_without_a_token(tmp_path, content):
    """A secret that is not there does not become a server that lets everybody in."""
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_text(content)
    with pytest.raises(ConfigError, match=r"there is no such file|the token file is empty"):
        load(None, {}, {"server.token_file": str(secret)})


# --- the schema


def test_schema_has_every_key_with_its_description():
    """Editors show for each key what it is, and do not redline what parse() takes."""
    schema = json.loads(json.dumps(json_schema()))
    for kind in (ServerConfig, HttpConfig, FileSinkConfig, StdoutSinkConfig):
        definition = schema["$defs"][kind.__name__]
        assert set(definition["properties"]) - {"type"} == set(kind.__struct_fields__)
        assert all(len(told["description"]) > 10 for key, told in definition["properties"].items() if key != "type")
    app = schema["$defs"]["FileSinkConfig"]
    assert app["required"] == ["path"]
    assert app["properties"]["max_bytes"]["type"] == ["integer", "string"]
    assert {"INFO", "info"} <= set(app["properties"]["level"]["anyOf"][0]["enum"])


# --- whatever is written


def toml(value):
    """Write any value as TOML, tables inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


# Mostly right words, so that hypothesis gets beyond the first mistake.
words = st.sampled_from(
    ["server", "http", "sinks", "app", "type", "stdout", "INFO", "", "64 MiB", "text", "x.log"]
    + [key for kind in (ServerConfig, HttpConfig, FileSinkConfig, StdoutSinkConfig) for key in kind.__struct_fields__]
)
texts = words | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
toml_scalars = st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    toml_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
tables = st.dictionaries(texts, values, max_size=4)
documents = st.fixed_dictionaries(
    {},
    optional={
        "server": tables | values,
        "http": tables,
        "sinks": st.dictionaries(texts, tables, max_size=3) | values,
    },
)


def settings_or_refusal(text="", **more):
    """Return the settings, or None when they were refused in words; all else is a failure."""
    try:
        return parse(text, **more)
    except ConfigError as error:
        message = str(error)
    assert len(message) < 1500
    assert message[-1] in ".?"
    return None


@patient
@given(st.text() | st.text(string.printable) | st.lists(texts | st.sampled_from("[]=\n.'\""), max_size=12).map("".join))
def test_any_text_is_settings_or_a_refusal(text):
    """No text makes parse raise anything but ConfigError."""
    settings_or_refusal(text)


@patient
@given(documents | tables)
def test_any_document_is_settings_or_a_refusal(document):
    """No TOML document does either, and what is taken has the types that it promises."""
    text = "\n".join(f"{toml(key)} = {toml(value)}" for key, value in document.items())
    assert tomllib.loads(text) is not None
    config = settings_or_refusal(text)
    if config is not None:
        assert config.sinks
        assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config


@patient
@given(
    st.dictionaries(st.lists(texts, max_size=4).map("__".join).map("AIOLOG_{}".format), st.text() | texts, max_size=4)
)
def test_any_environment_is_settings_or_a_refusal(environ):
    """No environment does either."""
    settings_or_refusal(environ=environ)


@patient
@given(
    st.dictionaries(
        st.lists(texts, max_size=4).map(".".join),
        scalars | values | st.binary() | st.builds(object) | st.complex_numbers(),
        max_size=4,
    )
)
def test_any_flag_is_settings_or_a_refusal(overrides):
    """No flag does either, not even with a value that TOML cannot write."""
    settings_or_refusal(overrides=overrides)


@patient
@given(st.sampled_from(FileSinkConfig.__struct_fields__), toml_scalars)
def test_file_environment_and_flag_agree(key, value):
    """What a file takes, a flag and the environment take too, and it means the same."""
    written = {"type": "file", "path": "x", "format": "text", "when": "H"}
    text = "[sinks.a]\n" + "\n".join(f"{k} = {toml(v)}" for k, v in (written | {key: value}).items())
    from_file = settings_or_refusal(text)
    if from_file is None:
        return
    flags = {f"sinks.a.{k}": v for k, v in (written | {key: value}).items()}
    variables = {f"AIOLOG_SINKS__A__{k.upper()}": toml(v) for k, v in (written | {key: value}).items()}
    assert parse("", overrides=flags).sinks["a"] == from_file.sinks["a"]
    assert parse("", environ=variables).sinks["a"] == from_file.sinks["a"]


# --- the house


def test_module_is_pure():
    """It imports no asyncio, socket, threading or time, and of aiolog only what is as pure."""
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"asyncio", "socket", "threading", "time"}
    assert {name for name in imported if name.startswith("aiolog")} == {"aiolog.errors", "aiolog.routing"}
