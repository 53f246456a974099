"""What is measured: each a small class that says how its users would set it up.

A run has a *stage*, a process of its own that starts the server and forks the workers, as the main process of an
application does. Some rivals have their server in it: a thread that reads a queue.
"""

from __future__ import annotations

import importlib
import json
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.loads import TEXT_LINE, Load

FORK = multiprocessing.get_context("fork")
READY_SECONDS = 20.0
FINISH_SECONDS = 120.0
NO_ROTATION_BYTES = 1 << 34  # rotation is on, but for the cost of looking nothing comes of it

Call = Callable[..., Any]


class JsonFormatter(logging.Formatter):
    """One JSON object a line, as everybody writes it for the standard handlers."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "msg": record.getMessage(),
            "pid": record.process,
            "process": record.processName,
            "thread": record.threadName,
            "file": record.pathname,
            "line": record.lineno,
            "func": record.funcName,
        }
        if extra := {name: value for name, value in record.__dict__.items() if name not in _USUAL}:
            line["fields"] = extra
        return json.dumps(line)


_USUAL = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}


class Rival:
    """One way of logging. ``start`` and ``stop`` run on the stage, the other methods in a worker."""

    name: ClassVar[str]
    packages: ClassVar[Sequence[str]] = ()  # what must be importable, and on the PATH
    programs: ClassVar[Sequence[str]] = ()
    kinds: ClassVar[Sequence[str]] = ("short", "extra", "long", "traceback")
    formats: ClassVar[Sequence[str]] = ("text", "json")
    servers: ClassVar[Sequence[str]] = ("well", "stopped", "absent")  # what the server may be in a load
    style: ClassVar[str] = "%"
    writes = True

    def __init__(self, load: Load, directory: Path, port: int) -> None:
        self.load = load
        self.directory = directory
        self.port = port

    @classmethod
    def missing(cls) -> str:
        """Return what is not installed, or ""."""
        return ", ".join(
            [name for name in cls.packages if not _is_importable(name)]
            + [name for name in cls.programs if not shutil.which(name, path=_PATH)]
        )

    @classmethod
    def takes(cls, load: Load) -> bool:
        """Whether this load can be put on it."""
        return load.kind in cls.kinds and load.format in cls.formats and load.server in cls.servers

    @property
    def path(self) -> Path:
        """The file of all lines."""
        return self.directory / "app.log"

    @property
    def paths(self) -> list[Path]:
        """The files of all lines."""
        return [self.path] if self.writes else []

    @property
    def formatter(self) -> logging.Formatter:
        return JsonFormatter() if self.load.format == "json" else logging.Formatter(TEXT_LINE)

    def start(self) -> int:
        """Start the server, and return its pid; 0 where there is none."""
        return 0

    def stop(self) -> None:
        """End it in its usual way."""

    def handler(self, connection: int) -> logging.Handler:
        """Make the handler of a connection."""
        raise NotImplementedError

    def call(self, connection: int) -> Call:
        """Return the function that logs."""
        logger = logging.getLogger(f"bench.{connection}")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self.handler(connection))
        return logger.error if self.load.kind == "traceback" else logger.info

    def finish(self) -> None:
        """Deliver what is left, as the end of the process would."""
        logging.shutdown()

    def acks(self) -> dict[int, list[tuple[int, int]]]:
        """Return, by connection, (moment in ns, records acked so far), where there are acks."""
        return {}


class Nothing(Rival):
    """The floor: what ``logging`` itself costs."""

    name = "NullHandler"
    writes = False
    servers = ("well",)

    def handler(self, connection: int) -> logging.Handler:
        return logging.NullHandler()


class PerProcess(Rival):
    """The alternative without a centre: a file for each process."""

    name = "RotatingFileHandler"
    servers = ("well",)

    @property
    def paths(self) -> list[Path]:
        return [self.directory / f"app.{connection}.log" for connection in range(self.load.connections)]

    def handler(self, connection: int) -> logging.Handler:
        handler = logging.handlers.RotatingFileHandler(self.paths[connection], maxBytes=NO_ROTATION_BYTES)
        handler.setFormatter(self.formatter)
        return handler


class ConcurrentLogHandler(Rival):
    """All processes write one file, under a lock."""

    name = "concurrent-log-handler"
    packages = ("concurrent_log_handler",)
    servers = ("well",)

    def handler(self, connection: int) -> logging.Handler:
        from concurrent_log_handler import ConcurrentRotatingFileHandler

        handler = ConcurrentRotatingFileHandler(str(self.path), maxBytes=NO_ROTATION_BYTES)
        handler.setFormatter(self.formatter)
        return handler


class Queued(Rival):
    """``QueueHandler`` and ``QueueListener`` over a multiprocessing queue."""

    name = "QueueHandler"
    servers = ("well", "stopped")

    def start(self) -> int:
        self.queue = FORK.Queue()
        handler = logging.FileHandler(self.path)
        handler.setFormatter(self.formatter)
        self.listener = logging.handlers.QueueListener(self.queue, handler)
        self.listener.start()
        return os.getpid()

    def stop(self) -> None:
        self.listener.stop()

    def handler(self, connection: int) -> logging.Handler:
        return logging.handlers.QueueHandler(self.queue)

    def finish(self) -> None:
        self.queue.close()
        self.queue.join_thread()


class Loguru(Rival):
    """loguru with ``enqueue=True``."""

    name = "loguru"
    packages = ("loguru",)
    kinds = ("short", "long")
    formats = ("text",)  # its JSON holds the message twice
    servers = ("well", "stopped")
    style = "{"

    def start(self) -> int:
        from loguru import logger

        line = "{time:YYYY-MM-DD HH:mm:ss,SSS} {level} {process.name}[{process.id}] {name}: {message}"
        logger.remove()
        logger.add(self.path, format=line, enqueue=True)
        self.logger = logger
        return os.getpid()

    def stop(self) -> None:
        self.logger.remove()

    def call(self, connection: int) -> Call:
        return self.logger.info

    def finish(self) -> None:
        self.logger.complete()


class _Server(Rival):
    """A server in a process of its own, which listens on ``port``."""

    def argv(self) -> list[str]:
        """Return the command, where it is one; else ``serve`` runs in a fork."""
        return []

    def serve(self) -> None:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def start(self) -> int:
        if argv := self.argv():
            with (self.directory / "server.out").open("wb") as out:
                self.server: Any = subprocess.Popen(
                    argv, cwd=self.directory, stdout=out, stderr=out, env={**os.environ, **self.environment()}
                )
        else:
            self.server = FORK.Process(target=self.serve, name="server")
            self.server.start()
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name} does not listen") from error
                time.sleep(0.01)
            else:
                pid: int = self.server.pid
                return pid

    def stop(self) -> None:
        os.kill(self.server.pid, signal.SIGTERM)
        self.server.wait() if isinstance(self.server, subprocess.Popen) else self.server.join()


class Aiolog(_Server):
    """This project: ledger on, durability ``written``, which are the defaults."""

    name = "aiolog"

    def argv(self) -> list[str]:
        template = f'template = "{TEXT_LINE}"\n' if self.load.format == "text" else ""
        config = self.directory / "aiolog.toml"
        config.write_text(
            f"[server]\nport = {self.port}\n[http]\nenabled = false\n[sinks.app]\npath = 'app.log'\n"
            f"max_bytes = {NO_ROTATION_BYTES}\nformat = '{self.load.format}'\n{template}"
        )
        return [sys.executable, "-m", "aiolog", "serve", "--config", str(config)]

    def handler(self, connection: int) -> logging.Handler:
        import aiolog

        self._handlers = {**getattr(self, "_handlers", {}), connection: aiolog.AiologHandler(port=self.port)}
        return self._handlers[connection]

    def finish(self) -> None:
        for handler in self._handlers.values():
            handler.flush(FINISH_SECONDS)
        logging.shutdown()

    def acks(self) -> dict[int, list[tuple[int, int]]]:
        """Note the acks from now on; a record must have been logged before."""
        noted: dict[int, list[tuple[int, int]]] = {}
        for connection, handler in self._handlers.items():
            noted[connection] = []
            backlog = handler._sender.backlog
            backlog.ack = _noting(backlog, noted[connection])
        return noted


def _noting(backlog: Any, noted: list[tuple[int, int]]) -> Callable[[int], bool]:
    ack = backlog.ack

    def note(seq: int) -> bool:
        advanced: bool = ack(seq)
        noted.append((time.time_ns(), backlog.acked))
        return advanced

    return note


class AiologBase(Aiolog):
    """Another checkout of this project, for what a change brought: ``BASE=directory``."""

    name = "aiolog-base"
    root = os.environ.get("BASE", "")

    @classmethod
    def missing(cls) -> str:
        return "" if cls.root else "BASE=directory, another checkout"

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": self.root}

    def handler(self, connection: int) -> logging.Handler:
        if sys.path[0] != self.root:
            sys.path.insert(0, self.root)
        return super().handler(connection)


class Cookbook(_Server):
    """``SocketHandler`` and the receiver of the logging cookbook."""

    name = "SocketHandler"

    def serve(self) -> None:
        handler = logging.FileHandler(self.path)
        handler.setFormatter(self.formatter)
        logging.getLogger().addHandler(handler)

        class Receiver(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while head := self.rfile.read(4):
                    (length,) = struct.unpack(">L", head)
                    record = logging.makeLogRecord(pickle.loads(self.rfile.read(length)))
                    logging.getLogger(record.name).handle(record)

        class Listener(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 1_024

        Listener(("127.0.0.1", self.port), Receiver).serve_forever()

    def handler(self, connection: int) -> logging.Handler:
        return logging.handlers.SocketHandler("127.0.0.1", self.port)


class Logbook(_Server):
    """logbook over ZeroMQ."""

    name = "logbook"
    packages = ("logbook", "zmq")
    kinds = ("short", "long")
    formats = ("text",)
    style = "{"

    def serve(self) -> None:
        import logbook
        from logbook.queues import ZeroMQSubscriber

        line = (
            "{record.time:%Y-%m-%d %H:%M:%S,%f} {record.level_name} {record.process_name}[{record.process}] "
            "{record.channel}: {record.message}"
        )
        handler = logbook.FileHandler(str(self.path), format_string=line)
        with handler.applicationbound():
            ZeroMQSubscriber(f"tcp://127.0.0.1:{self.port}", multi=True).dispatch_forever()

    def call(self, connection: int) -> Call:
        import logbook
        from logbook.queues import ZeroMQHandler

        self.handlers = [*getattr(self, "handlers", ()), ZeroMQHandler(f"tcp://127.0.0.1:{self.port}", multi=True)]
        logger = logbook.Logger(f"bench.{connection}")
        logger.handlers.append(self.handlers[-1])
        return logger.info

    def finish(self) -> None:
        for handler in self.handlers:
            handler.close()
        self.handlers[0].context.term()


_PATH = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin:/opt/fluent-bit/bin"

_RSYSLOG = """\
global(workDirectory="{directory}" maxMessageSize="64k")
module(load="imtcp" addtlFrameDelimiter="0" disableLFDelimiter="on" maxSessions="2000")
template(name="text" type="string"
  string="%timegenerated:::date-rfc3339% %HOSTNAME% %syslogtag%%msg:::sp-if-no-1st-sp%%msg%\\n")
template(name="json" type="string" string="%msg:2:$%\\n")
ruleset(name="app") {{ action(type="omfile" file="{path}" template="{format}") }}
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="app")
"""


class Rsyslog(_Server):
    """``SysLogHandler`` over TCP to rsyslog, which is C."""

    name = "rsyslog"
    programs = ("rsyslogd",)
    servers = ("well", "stopped")  # the handler's constructor raises without a server

    def argv(self) -> list[str]:
        config = self.directory / "rsyslog.conf"
        config.write_text(
            _RSYSLOG.format(directory=self.directory, path=self.path, format=self.load.format, port=self.port)
        )
        program = shutil.which("rsyslogd", path=_PATH)
        assert program
        return [program, "-n", "-f", str(config), "-i", str(self.directory / "rsyslog.pid")]

    def handler(self, connection: int) -> logging.Handler:
        handler = logging.handlers.SysLogHandler(("127.0.0.1", self.port), socktype=socket.SOCK_STREAM)
        handler.ident = f"bench[{os.getpid()}]: "
        # The server puts time, host and program in front.
        text = logging.Formatter("%(levelname)s %(processName)s %(name)s: %(message)s")
        handler.setFormatter(text if self.load.format == "text" else JsonFormatter())
        return handler


class FluentBit(_Server):
    """fluent-logger to Fluent Bit, which is C."""

    name = "Fluent Bit"
    packages = ("fluent",)
    programs = ("fluent-bit",)
    servers = ("well", "stopped")

    def argv(self) -> list[str]:
        program = shutil.which("fluent-bit", path=_PATH)
        assert program
        argv = [program, "-q", "-f", "0.1", "-i", "forward", "-p", "listen=127.0.0.1", "-p", f"port={self.port}"]
        argv += ["-o", "file", "-m", "*", "-p", f"path={self.directory}", "-p", "file=app.log"]
        if self.load.format == "json":
            return [*argv, "-p", "format=plain"]
        template = "{time} {level} {process}[{pid}] {logger}: {message}"
        return [*argv, "-p", "format=template", "-p", f"template={template}"]

    def handler(self, connection: int) -> logging.Handler:
        from fluent.handler import FluentHandler, FluentRecordFormatter

        handler = FluentHandler("app", host="127.0.0.1", port=self.port)
        names = {"level": "levelname", "process": "processName", "pid": "process", "logger": "name"}
        fields = {field: f"%({name})s" for field, name in {**names, "message": "message"}.items()}
        handler.setFormatter(FluentRecordFormatter(fields))
        return handler


def _is_importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


RIVALS: dict[str, type[Rival]] = {
    rival.name: rival
    for rival in (
        Aiolog, AiologBase, Rsyslog, FluentBit, Queued, Cookbook, Loguru, Logbook, ConcurrentLogHandler, PerProcess,
        Nothing,
    )
}  # fmt: skip
