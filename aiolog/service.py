"""One server as it runs: from the settings to sinks, lanes and listeners, through reloads, to the end of a drain.

It knows every part and does the work of none: what a setting means stands in :mod:`aiolog.config`, what a record
becomes in the formats and sinks, who gets an ack in the server. Nothing but :mod:`aiolog.cli` may import it.

The end, after SIGTERM or SIGINT::

    stop accepting ─► commit what is under way ─► last acks ─► close     all of it within drain_timeout_seconds:
                                                                         a sink that is stuck is left behind
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import ipaddress
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from msgspec import Struct, structs

from aiolog import formatting, recovery
from aiolog.config import Config, FileSinkConfig, ServerConfig, SinkConfig, StdoutSinkConfig, accepts
from aiolog.connection import Limits
from aiolog.errors import ConfigError, reason
from aiolog.fanout import Fanout, Lane, Rotates, Sink
from aiolog.filters import Filtered, compile_filter
from aiolog.formatting import Format
from aiolog.http import HttpServer
from aiolog.livefile import Keeping
from aiolog.ordering import OrderedLane
from aiolog.report import Report
from aiolog.rotation import Retention, Rotation, Schedule
from aiolog.routing import PathTemplate
from aiolog.server import Server
from aiolog.sinks import SinkThread
from aiolog.sinks.file import FileSink
from aiolog.sinks.routed import RoutedFileSink
from aiolog.sinks.stdout import StdoutSink, wants_color
from aiolog.source import Site

STDERR, STDOUT = 2, 1
MAX_SIGNALS = 8  # that wait their turn, so that a storm of them is none of reloads
GC_THRESHOLD = 20_000  # objects; a large batch makes 2,000, which all go with it
RECOVER_SECONDS = 5.0  # between two looks for what killed processes left
OWN_LOGGER = "aiolog"  # of the server's own records: they say what was lost, so no sink's filter keeps them out
CONSOLE_DRAIN_SECONDS = 0.5  # for sinks that may drop: a person sees the last lines, a stuck reader delays little
ERROR_CHARS = 200  # of an exception that nobody foresaw, in one line
KIND_CHARS = 32  # a warning of a sink is of the same kind as another that begins alike


def serve(load: Callable[[], Config], directory: Path) -> int:
    """Run a server until a signal ends it; return the exit code.

    ``load`` reads the settings, now and at every SIGHUP. ``directory`` is where relative paths of sinks begin.

    Raises ConfigError when a setting, a path or an address cannot be used, at the start or after a reload.
    """
    service = Service(load, directory)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(service.run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on Windows, and nothing needs it
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def say(line: str) -> None:
    """Write a line to stderr, or leave it out where nobody reads: no record waits for a reader of stderr."""
    with contextlib.suppress(OSError):
        if select.select([], [STDERR], [], 0)[1]:
            os.write(STDERR, line.encode(errors="backslashreplace"))


def notify(state: str) -> None:
    """Tell systemd, if it asked: the datagram of sd_notify(3) to ``$NOTIFY_SOCKET``."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] in ("/", "@"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


# ---------------------------------------------------------------------------------------- from settings to sinks


def format_of(config: SinkConfig) -> Format:
    """Compile the format of a sink. Raises ConfigError for a template, a zone, a key or a filter that is none."""
    made = _whole_format_of(config)
    if not config.apps and not config.filter:
        return made
    return Filtered(made, config.apps, compile_filter(config.filter) if config.filter else None, always=OWN_LOGGER)


def _whole_format_of(config: SinkConfig) -> Format:
    takes = accepts(config.level_number, config.loggers, config.max_level_number)

    def accepted(site: Site) -> bool:
        return takes(site.name, site.levelno) or site.name == OWN_LOGGER

    if config.format == "text":
        return formatting.text(
            config.template,
            style=config.style,
            datefmt=config.datefmt,
            time_zone=config.time_zone,
            defaults=config.defaults,
            escaping=config.escaping,
            multiline=config.multiline,
            accepts=accepted,
        )
    fields, rename, flatten_extras = config.fields, config.rename, config.flatten_extras
    if config.format == "json":
        return formatting.json_lines(fields=fields, rename=rename, flatten_extras=flatten_extras, accepts=accepted)
    if config.format == "ecs":
        return formatting.ecs(fields=fields, rename=rename, flatten_extras=flatten_extras, accepts=accepted)
    compiled = formatting.otel if config.format == "otel" else formatting.logfmt
    return compiled(fields=fields, rename=rename, accepts=accepted)


def sink_of(name: str, config: SinkConfig, server: ServerConfig, directory: Path, warn: Callable[[str], None]) -> Sink:
    """Make a sink, not yet open. Raises ConfigError for a template or a schedule that is none."""
    try:
        compiled = format_of(config)
        if isinstance(config, StdoutSinkConfig):
            color = config.color == "always" or (config.color == "auto" and wants_color(os.isatty(STDOUT), os.environ))
            return StdoutSink(name, compiled, descriptor=STDOUT, color=color, warn=warn)
        at_time = dt.time.fromisoformat(config.at_time) if config.at_time else None
        schedule = Schedule(config.when, config.interval, at_time, config.utc) if config.when else None
        template = PathTemplate(config.path)
    except ConfigError as error:
        raise ConfigError(f"[sinks.{name}] {error}") from error
    keeping = Keeping(
        Rotation(config.max_bytes, schedule, config.rotate_at_start),
        Retention(config.backup_count, config.max_age, config.max_total_bytes, config.min_free_bytes),
        config.compress,
        config.durability,
        session_ttl_seconds=server.session_ttl_seconds,
        max_sessions=server.max_sessions,
    )
    if template.is_plain:
        path = directory / template.root / template.fallback
        return FileSink(name, path, compiled, keeping, clock=time.time, warn=warn)
    return RoutedFileSink(
        name,
        template,
        directory,
        compiled,
        keeping,
        max_open_files=config.max_open_files,
        max_routes=config.max_routes,
        utc=config.utc,
        clock=time.time,
        warn=warn,
    )


def with_stdout(config: Config, *, wanted: bool) -> Config:
    """Return the settings with a sink to stdout, or without any. Raises ConfigError when no sink would be left."""
    sinks = config.sinks
    if not wanted:
        sinks = {name: sink for name, sink in sinks.items() if not isinstance(sink, StdoutSinkConfig)}
    elif not any(isinstance(sink, StdoutSinkConfig) for sink in sinks.values()):
        sinks = {"stdout": StdoutSinkConfig(), **sinks}
    if not sinks:
        raise ConfigError("without stdout there is no sink left. Remove --no-stdout, or configure a file")
    return structs.replace(config, sinks=sinks)


def durability_of(sinks: Mapping[str, SinkConfig]) -> str:
    """Return what an ack means: the weakest durability of the sinks that an ack waits for."""
    levels = {
        sink.durability if isinstance(sink, FileSinkConfig) else "written"
        for sink in sinks.values()
        if sink.when_full == "block"
    }
    return "fsynced" if levels == {"fsynced"} else "written"


class _OwnLog(logging.Handler):
    """What libraries log in this process, such as a callback that failed: seldom, and never into a sink."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Say it in one line."""
        cause = f" ({record.exc_info[1]!r})" if record.exc_info else ""
        self._report(record.name, f"{record.name}: {record.getMessage()}{cause}")


class Service:
    """The parts of one server, wired.

    Raises ConfigError for settings that cannot be.
    """

    def __init__(self, load: Callable[[], Config], directory: Path) -> None:
        self._load = load
        self._directory = directory
        self._config = config = load()
        self._report = Report(time.monotonic, say)
        self._fanout = Fanout()
        self._server = Server(
            self._fanout,
            Limits(*(getattr(config.server, name) for name in Limits._fields)),
            self._report,
            durability=durability_of(config.sinks),
            token=config.server.token,
            wall_clock=time.time,
        )
        self._http = HttpServer(self._server)
        self._signals: asyncio.Queue[int] = asyncio.Queue()
        self._deadline: asyncio.TimerHandle | None = None  # of the drain, once it was asked for
        self._is_committed = False
        self._recovering: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serve until a signal asks for the end; return the exit code. Called once, by :func:`serve`.

        Raises ConfigError when a sink or a listener cannot be opened.
        """
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            loop.add_signal_handler(signum, self._take_signal, loop, signum)
        logging.basicConfig(handlers=[_OwnLog(self._report)], level=logging.WARNING)
        try:
            await self._fanout.open(self._lanes(self._config.sinks))
            await self._listen()
            # What is here now stays, and records are no cycles: looking for garbage took a seventh of the time.
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
            notify("READY=1")
            while (asked := await self._signals.get()) in (signal.SIGHUP, signal.SIGUSR1):
                await (self._reload() if asked == signal.SIGHUP else self._reopen())
            await self._drain()
            summary = self._summary()
        finally:
            await self._http.close()
            await self._fanout.close()
            await self._server.close()
        if self._deadline is not None:
            self._deadline.cancel()
        say(summary)
        return 0

    def _take_signal(self, loop: asyncio.AbstractEventLoop, signum: int) -> None:
        if signum in {signal.SIGHUP, signal.SIGUSR1}:
            if self._signals.qsize() < MAX_SIGNALS:
                self._signals.put_nowait(signum)
        elif self._deadline is None:
            # Whatever is under way at this moment, a start or a reload, the end comes in time.
            self._deadline = loop.call_later(self._config.server.drain_timeout_seconds, self._give_up)
            self._signals.put_nowait(signum)
        else:
            say("aiolog: stopped at once; what was not acked stays with its processes\n")
            os._exit(128 + signum)

    def _give_up(self) -> None:
        """End with a sink that is stuck: its thread is in a system call, and nothing can call it back."""
        if self._is_committed or not self._server.held_bytes:
            say(self._summary())
            os._exit(0)  # only the closing takes long: a backup is being compressed, and will be again
        failing = ", ".join(name for name, lane in self._fanout.lanes.items() if lane.blocks and lane.failing)
        say(
            f"aiolog: the drain was not done in {self._config.server.drain_timeout_seconds:g} s: "
            f"{f'sink {failing} fails, and ' if failing else ''}{self._server.held_bytes} bytes were received and "
            "not written. They were not acked, and stay with their processes\n"
        )
        os._exit(1)

    # -- the start

    def _lanes(self, sinks: Mapping[str, SinkConfig]) -> dict[str, Lane]:
        def warn(text: str) -> None:
            self._report(text[:KIND_CHARS], text)

        lanes: dict[str, Lane] = {}
        for name, config in sinks.items():
            sink = sink_of(name, config, self._config.server, self._directory, warn)
            kind: Callable[..., Lane] = Lane
            if isinstance(config, FileSinkConfig) and config.reorder_window:
                kind = partial(OrderedLane, window_seconds=config.reorder_window, clock=time.time)
            lanes[name] = kind(sink, when_full=config.when_full, buffer_bytes=config.buffer_bytes, report=self._report)
        return lanes

    async def _recover(self, port: int) -> None:
        """Take in what killed processes left in their spools, now and again; through our own port, as anybody else."""
        thread = SinkThread("aiolog-recover")
        loop = asyncio.get_running_loop()

        def recover_all() -> None:
            server = self._config.server
            for name in server.spool_dirs:
                directory = str(self._directory / name)
                try:
                    for found in recovery.recover(directory, server.reachable_host, port, server.token):
                        self._report(f"spool {found.path}", f"spool: {found.text}")
                except FileNotFoundError:
                    pass  # no process has had a spool yet
                except OSError as error:
                    self._report(f"spools {directory}", f"cannot read the spools in {directory}: {reason(error)}")

        while True:
            await loop.run_in_executor(thread, recover_all)
            await asyncio.sleep(RECOVER_SECONDS)

    async def _listen(self) -> None:
        """Open the listeners, and say in one line where records come in and where they go."""
        server, http = self._config.server, self._config.http
        host, port = await self._server.listen(server.host, server.port, server.socket)
        if self._config.server.spool_dirs:
            self._recovering = asyncio.create_task(self._recover(port), name="recover")
        said = [f"listening on {_address(host, port)}"]
        if server.socket:
            said[0] += f" and {server.socket}"
        if http.enabled:
            said.append(f"metrics on http://{_address(*await self._http.listen(http.host, http.port))}/metrics")
        said.append(f"writing {', '.join(self._targets(self._config.sinks))}")
        say(f"aiolog: {', '.join(said)}\n")
        if not server.token and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            say(
                f"aiolog: warning: whoever reaches {_address(host, port)} may log here, unencrypted. "
                "Set [server] token_file, or listen on 127.0.0.1\n"
            )

    def _targets(self, sinks: Mapping[str, SinkConfig]) -> list[str]:
        return [
            str((self._directory / sink.path).absolute()) if isinstance(sink, FileSinkConfig) else "stdout"
            for sink in sinks.values()
        ]

    # -- the middle

    async def _reload(self) -> None:
        """Read the settings anew, and replace the sinks that changed; wrong settings change nothing.

        Nor does an exception that nobody foresaw: to end the server for a setting would cost all its clients. Raises
        ConfigError, or that exception, when the old sinks cannot be opened again either: the server must end then.
        """
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        old = self._config
        try:
            config = self._load()
            kept = {name for name, sink in config.sinks.items() if old.sinks.get(name) == sink}
            fresh = {name: sink for name, sink in config.sinks.items() if name not in kept}
            gone = {name: sink for name, sink in old.sinks.items() if name not in kept}
            if fresh or gone:
                timeout_seconds = old.server.drain_timeout_seconds
                await self._fanout.replace(self._lanes(fresh), self._lanes(gone), kept, timeout_seconds)
        except ConfigError as error:
            if self._fanout.lanes.keys() != old.sinks.keys():
                raise
            say(f"aiolog: not reloaded, everything stays as it was. {error}\n")
        except Exception as error:
            if self._fanout.lanes.keys() != old.sinks.keys():
                raise
            what = " ".join(f"{type(error).__name__}: {error}".split())
            say(
                "aiolog: not reloaded, everything stays as it was. The settings could not be read "
                f"({what[:ERROR_CHARS]}). Take the last change back, and check it with `aiolog validate`\n"
            )
        else:
            self._config = structs.replace(old, sinks=config.sinks)
            self._server.durability = durability_of(config.sinks)
            changed = ", ".join({**gone, **fresh}) or "none"
            say(f"aiolog: reloaded, sinks changed: {changed}; writing {', '.join(self._targets(config.sinks))}\n")
            if waiting := [*_changes("server", old.server, config.server), *_changes("http", old.http, config.http)]:
                say(f"aiolog: {', '.join(waiting)} changed too, and need a restart\n")
        notify("READY=1")

    async def _reopen(self) -> None:
        """Follow live files that somebody else renamed, at once: for the postrotate script of logrotate."""
        for lane in list(self._fanout.lanes.values()):
            if isinstance(lane.sink, Rotates):
                await lane.sink.look()
        say("aiolog: looked for files that were renamed; each goes on in a new one\n")

    # -- the end

    async def _drain(self) -> None:
        notify("STOPPING=1")
        if self._recovering is not None:
            self._recovering.cancel()
        seconds = self._config.server.drain_timeout_seconds
        say(f"aiolog: draining, for {seconds:g} s at most; a second signal ends it at once\n")
        self._fanout.hurry()
        await self._server.drain()
        await self._fanout.drain()
        self._is_committed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONSOLE_DRAIN_SECONDS):
                for lane in self._fanout.lanes.values():
                    await lane.drain()

    def _summary(self) -> str:
        """Say in one line what became of the records. The sinks are still there when it is made."""
        counts = self._server.counts
        missed = "".join(
            f", {lane.dropped_records} missed by the slow sink {name}"
            for name, lane in self._fanout.lanes.items()
            if lane.dropped_records
        )
        missed += "".join(
            f", {lane.sink.records_dropped} refused by the output of sink {name}"
            for name, lane in self._fanout.lanes.items()
            if isinstance(lane.sink, StdoutSink) and lane.sink.records_dropped
        )
        return (
            f"aiolog: drained. Records: {counts.records} delivered, {counts.dropped} dropped by their processes, "
            f"{counts.duplicates} came twice and were taken once{missed}. Connections: {counts.connections}\n"
        )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _changes(section: str, old: Struct, new: Struct) -> list[str]:
    return [f"[{section}] {name}" for name in old.__struct_fields__ if getattr(old, name) != getattr(new, name)]
