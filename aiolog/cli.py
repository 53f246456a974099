"""The commands: arguments in, an exit code out.

A command knows its arguments and who does the work. It imports what it needs when it runs, so that ``aiolog --help``
and ``aiolog healthcheck`` load no event loop, no HTTP and no sinks. stdout carries data, stderr the rest, and nobody
is shown a traceback for what can be mended.

Exit codes: 0; 1, something was lost, or is to be changed; 2, usage; 69, no server answers or takes all; 78, the
configuration; 130 or 143, a second Ctrl-C or SIGTERM. (69 and 78 are EX_UNAVAILABLE and EX_CONFIG of sysexits.h.)
"""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiolog import __version__
from aiolog.errors import AiologError, ConfigError, reason

try:
    import click
except ModuleNotFoundError:  # the base package is for processes that log
    sys.exit("aiolog: the commands need the packages of a server. Run: pip install 'aiolog[server]'")

if TYPE_CHECKING:
    from aiolog.config import Config
    from aiolog.probe import Address

EX_UNAVAILABLE = 69
EX_CONFIG = 78
STDERR = 2
SEND_STALL_SECONDS = 5.0  # `aiolog send` waits so long for acks to go on before it drops anything
MAX_SECONDS = 86_400.0  # of a --timeout: a day, and sockets take no more than some years
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

Command = Callable[..., Any]


def main() -> None:
    """Run the command line and exit with its code."""
    _open_standard_descriptors()
    try:
        code = _run()
    except BrokenPipeError:  # the reader of stdout has gone
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or what is still buffered raises again at the exit
    sys.exit(code)


def _open_standard_descriptors() -> None:
    """Open what `2>&-` closed: the next file to be opened would be stderr, and get its lines."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)


def _run() -> int:
    try:
        code = commands(prog_name="aiolog", standalone_mode=False)
        if sys.stdout is not None:  # closed by the shell
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except AiologError as error:
        click.echo(f"aiolog: {error}", err=True)
        return EX_CONFIG if isinstance(error, ConfigError) else EX_UNAVAILABLE
    return code or 0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aiolog")
def commands() -> None:
    """One log server for all processes of a Python service."""


class Number(click.FloatRange):
    """A number within bounds: NaN passes every comparison, and nothing can be done so many times or so long."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number. Raises BadParameter, as click's own do."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number to count with. Use one such as 5.", param, ctx)
        return number


SECONDS = Number(0.01, MAX_SECONDS)


def address_options(command: Command) -> Command:
    """Add --config, --host and --port: each names the server more closely than the one before."""
    options = (
        click.option("-c", "--config", "path", type=click.Path(path_type=Path), metavar="FILE", help="TOML, optional."),
        click.option("--host", help="Name or address of the server. [default: as configured, or 127.0.0.1]"),
        click.option("--port", type=click.IntRange(0, 65_535), help="TCP port. [default: as configured, or 9020]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _load(path: Path | None, **flags: object) -> Config:
    """Read the settings; a flag ``server_port`` is the key ``port`` of ``[server]``, and None was not given."""
    from aiolog.config import load

    return load(path, os.environ, _overrides(flags))


def _overrides(flags: Mapping[str, object]) -> dict[str, object]:
    return {name.replace("_", ".", 1): value for name, value in flags.items()}


def _address(path: Path | None, host: str | None, port: int | None) -> Address:
    """Find a server as it finds its own address: flags, environment, file, defaults."""
    from aiolog.probe import Address

    # Without HTTP: its port is that of a server here, and may be the port for records of one elsewhere.
    server = _load(path, server_host=host, server_port=port, http_enabled=False).server
    return Address(server.reachable_host, server.port, server.token)


# ------------------------------------------------------------------------------------------------------- the server


@commands.command()
@address_options
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where relative paths of sinks begin. [default: here]",
)
@click.option("--stdout/--no-stdout", default=None, help="Print records too, or print none. [default: as configured]")
def serve(*, path: Path | None, host: str | None, port: int | None, directory: Path, stdout: bool | None) -> int:
    """Run the server.

    SIGTERM and SIGINT drain it: what was received is written and acked first. A second one ends it at once. SIGHUP
    reads the configuration anew. SIGUSR1 has it follow files that logrotate has renamed.
    """
    from aiolog import config as settings
    from aiolog import service

    directory = directory.absolute()
    flags = _overrides({"server_host": host, "server_port": port})
    again = False

    def load() -> Config:
        nonlocal again
        config = settings.load(path, os.environ, flags, check=service.format_of, directory=directory, again=again)
        again = True
        return config if stdout is None else service.with_stdout(config, wanted=stdout)

    return service.serve(load, directory)


@commands.command()
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a configuration instead, for editors.")
@click.argument("path", type=click.Path(path_type=Path), metavar="[FILE]", required=False)
def validate(*, path: Path | None, schema: bool) -> None:
    """Check a configuration, with the environment as it is now."""
    from aiolog import config as settings
    from aiolog import service

    if schema:
        import json

        click.echo(json.dumps(settings.json_schema(), indent=2))
        return
    config = settings.load(path, os.environ, {}, check=service.format_of, directory=Path())
    for name, sink in config.sinks.items():
        service.sink_of(name, sink, config.server, Path(), warn=click.echo)
    click.echo(f"{path or 'the default configuration'} is right: sinks {', '.join(config.sinks)}")


# ------------------------------------------------------------------------------------------------------- its clients


@commands.command()
@address_options
@click.option("--timeout", type=SECONDS, default=5.0, show_default=True, help="Seconds for all of it.")
def healthcheck(*, path: Path | None, host: str | None, port: int | None, timeout: float) -> None:
    """Ask the server whether it takes records, over their own port."""
    from aiolog.probe import greet

    address = _address(path, host, port)
    welcome = greet(address, timeout_seconds=timeout)
    click.echo(f"{address} takes records; acked means {welcome.durability}")


@commands.command(short_help="Send a record, or each line of stdin.")
@address_options
@click.option("--level", type=click.Choice(LEVELS, case_sensitive=False), default="INFO", show_default=True)
@click.option("--logger", "name", default="aiolog.send", show_default=True, help="Name of the logger.")
@click.option("--app", default="", help="Name of the application.")
@click.argument("message")
def send(
    *, path: Path | None, host: str | None, port: int | None, level: str, name: str, app: str, message: str
) -> None:
    """Send MESSAGE as a record, or each line of stdin for "-", and wait for the ack."""
    import logging

    from aiolog.handler import AiologHandler
    from aiolog.probe import UnreachableError, greet

    address = _address(path, host, port)
    greet(address)  # without a server, one sentence at once; the handler would try for seconds
    handler = AiologHandler(
        address.host, address.port, app=app, token=address.token, block_timeout_seconds=SEND_STALL_SECONDS
    )
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)
    levelno = logging.getLevelNamesMapping()[level]
    if message == "-":
        # What is not UTF-8 is shown, not refused.
        with open(0, encoding="utf-8", errors="backslashreplace", closefd=False) as lines:
            for line in lines:
                logger.log(levelno, line.removesuffix("\n"))
    else:
        logger.log(levelno, message)
    handler.close()
    handler.flush_timeout_seconds = 0.0  # that was all the waiting there is; the exit would flush again
    stats = handler.stats()
    if stats["acked"] != stats["accepted"]:
        lost = stats["accepted"] - stats["acked"]
        raise UnreachableError(
            f"{lost} of {stats['accepted']} records were not acked by {address}. See what the server says on its stderr"
        )


@commands.command(short_help="Send what dead processes left in a spool.")
@address_options
@click.option("--timeout", type=SECONDS, default=10.0, show_default=True, help="Seconds to wait.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False), metavar="DIR")
def recover(*, path: Path | None, host: str | None, port: int | None, timeout: float, directory: str) -> int:
    """Send what processes left in the spool directory DIR when they died, each under its own session.

    What living processes have there is theirs. Succeeds when nothing is left behind.
    """
    from aiolog import recovery
    from aiolog.probe import UnreachableError, greet

    address = _address(path, host, port)
    greet(address)  # without a server, one sentence at once
    is_left = False
    try:
        for found in recovery.recover(directory, address.host, address.port, address.token, timeout_seconds=timeout):
            click.echo(found.text)
            is_left |= found.left
    except OSError as error:
        raise UnreachableError(f"{directory} cannot be read ({reason(error)})") from error
    return EX_UNAVAILABLE if is_left else 0


@commands.command(short_help="Begin new log files now.")
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), metavar="FILE", help="TOML, optional.")
@click.argument("sinks", nargs=-1, metavar="[SINK]...")
def rotate(*, path: Path | None, sinks: tuple[str, ...]) -> None:
    """Begin new log files now: of all file sinks of the server here, or of those named.

    Asks over [http], whose address is found as the server finds it.
    """
    from aiolog import control

    config = _load(path)
    for name, backups in control.rotate(config.http, config.server.token, sinks).items():
        click.echo(f"{name}: {', '.join(backups) or 'nothing to rotate'}")


@commands.command(short_help="Show which loggers reach the server.")
@click.option("--timeout", type=SECONDS, default=5.0, show_default=True, help="Seconds for one server.")
@click.option("--http", "http_url", metavar="URL", help="The server's [http], for its clock. [default: its port 9022]")
@click.argument("target", metavar="[MODULE_OR_SETTINGS]", required=False)
def doctor(*, timeout: float, http_url: str | None, target: str | None) -> int:
    """Show what an application's loggers send to aiolog, and what to change.

    MODULE_OR_SETTINGS is imported, or read: a module that sets up logging, Django's settings, the module of a Celery
    app, gunicorn.conf.py, or a file for logging.config. Without it, the environment's AIOLOG_URL and others count.
    One record is sent to each server. Exit codes: 0, all is well; 1, something to change; 69, a server does not answer.
    """
    from aiolog import doctor
    from aiolog.configure import setup
    from aiolog.errors import AiologError

    if target is None:
        setup()
        how = "aiolog.setup() with this environment"
    else:
        how = doctor.load(target)
    routes = doctor.routes()
    click.echo(f"logging as by {how}\n\nloggers")
    for line in doctor.table(routes):
        click.echo(f"  {line}")
    findings = doctor.examine()
    is_away = False
    for address, handler in doctor.endpoints(routes).items():
        click.echo(f"\nserver {address}")
        try:
            answer = doctor.consult(handler, timeout_seconds=timeout, http_url=http_url)
        except AiologError as error:
            is_away = True
            click.echo(f"  {error}")
            continue
        means = f"; acked means {answer.durability}" if answer.durability else ""
        click.echo(f"  takes records{means}")
        click.echo(f"  one record was sent and acked in {answer.ack_seconds * 1e3:.1f} ms")
        click.echo(f"  clock: {answer.clock}")
        if answer.is_clock_wrong:
            findings.append(doctor.CLOCK)
    nothing = "nothing to change in the loggers" if is_away else "nothing to change"
    click.echo("\nto change" if findings else f"\n{nothing}")
    for finding in findings:
        click.echo(f"  {finding.what}.\n    {finding.change}.")
    return EX_UNAVAILABLE if is_away else int(bool(findings))


@commands.command(short_help="Log from several processes, and count.")
@address_options
@click.option("--workers", type=click.IntRange(1, 1000), default=4, show_default=True, help="Processes that log.")
@click.option(
    "--rate",
    type=Number(0),
    default=10,
    show_default=True,
    help="Records a second of each process; 0: as fast as can be.",
)
@click.option(
    "--count", type=click.IntRange(0), default=0, show_default=True, help="Records of each process; 0: until Ctrl-C."
)
@click.option("--serve", "with_server", is_flag=True, help="Run a server too, which writes to --dir.")
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False), default="logs", show_default=True)
def demo(
    *,
    path: Path | None,
    host: str | None,
    port: int | None,
    workers: int,
    rate: float,
    count: int,
    with_server: bool,
    directory: Path,
) -> int:
    """Log from several processes like an application, then count what arrived.

    Succeeds when no record is lost and none is there twice.
    """
    from aiolog import demo

    address = _address(path, host, port)
    if with_server and port is None and not demo.is_free(address.host, address.port):
        address = address._replace(port=0)  # a demonstration is not about ports
    return demo.demo(address, workers=workers, rate=rate, count=count, directory=directory if with_server else None)


if __name__ == "__main__":
    main()
