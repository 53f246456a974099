"""What it costs a worker to log: which modules are loaded, and what a handler does before its first record."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from interpreters import every_interpreter

import aiolog

ROOT = Path(__file__).parent.parent
HEAVY = {"asyncio", "ssl", "uvloop", "aiofiles", "click", "rich", "aiohttp", "isal", "msgspec", "prometheus_client"}
HEAVY |= {"tomllib"}


def run(python, program):
    """Run a program in a fresh interpreter; returns what it printed as JSON."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    done = subprocess.run(
        [python, "-W", "error", "-c", program],
        env=environment | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@every_interpreter
def test_the_import_alone_loads_nothing(python):
    """``import aiolog`` loads no module but itself."""
    loaded = run(
        python,
        "import json, sys; before = set(sys.modules); import aiolog; print(json.dumps([*set(sys.modules) - before]))",
    )
    assert set(loaded) <= {"aiolog", "__future__"}


@every_interpreter
def test_a_handler_loads_nothing_of_a_server(python):
    """The handler's module and an instance of it load no asyncio, no ssl, and no library but msgpack."""
    program = """
import json, sys
before = set(sys.modules)
import aiolog
handler = aiolog.AiologHandler("127.0.0.1", 9020, app="test")
print(json.dumps([*set(sys.modules) - before]))
"""
    loaded = run(python, program)
    packages = {name.split(".")[0] for name in loaded}
    assert not packages & HEAVY
    assert "msgpack" in packages
    own = {name.removeprefix("aiolog.") for name in loaded if name.startswith("aiolog.")}
    assert own <= {
        "errors", "crash", "context", "labels", "coerce", "source", "record", "protocol", "backlog", "sender", "handler"
    }  # fmt: skip


@every_interpreter
def test_a_constructor_touches_nothing(python):
    """A handler for a host that nobody knows is made without DNS, socket, thread, file or process."""
    program = """
import json, sys, threading
from aiolog import AiologHandler
import logging.config
happened = []
watching = True
def audit(event, args):
    if watching and event.split(".")[0] in ("socket", "open", "os", "subprocess", "_thread", "signal", "mmap", "fcntl"):
        happened.append(event)
sys.addaudithook(audit)
handlers = [
    AiologHandler(),
    AiologHandler("host.invalid", 1, app="x", labels={"a": "b"}, token="t", when_full="drop_oldest"),
    AiologHandler("/nowhere/socket", None),
]
logging.config.dictConfig({
    "version": 1,
    "handlers": {"aiolog": {"class": "aiolog.AiologHandler", "host": "host.invalid", "app": "web"}},
    "root": {"handlers": ["aiolog"], "level": "INFO"},
})
for handler in [*handlers, *logging.getLogger().handlers]:
    handler.flush()
    handler.stats()
    handler.close()
watching = False
print(json.dumps([happened, threading.active_count(), logging.getLogger().handlers[0].app]))
"""
    happened, threads, app = run(python, program)
    assert happened == []
    assert threads == 1
    assert app == "web"


@every_interpreter
def test_the_audit_sees_what_it_should(python):
    """The same hook notices the socket and the thread of a first record, so its silence above means something."""
    program = """
import json, logging, sys, threading
from aiolog import AiologHandler
happened = []
handler = AiologHandler("127.0.0.1", 1, flush_timeout_seconds=0)
sys.addaudithook(lambda event, args: happened.append(event))
handler.handle(logging.makeLogRecord({"msg": "x"}))
for _ in range(10_000):
    if "socket.connect" in happened:
        break
    threading.Event().wait(0.001)
threads = threading.active_count()
print(json.dumps([[e for e in happened if e.startswith("socket.")], threads]))
"""
    happened, threads = run(python, program)
    assert "socket.connect" in happened
    assert threads == 2


def test_public_names_are_those_of_all():
    """Each public name is found, and is listed; any other is an AttributeError that names the package."""
    for name in aiolog.__all__:
        assert getattr(aiolog, name) is not None
        assert name in dir(aiolog)
    with pytest.raises(AttributeError, match="module 'aiolog' has no attribute 'Handler'"):
        aiolog.Handler  # noqa: B018
    assert issubclass(aiolog.ProtocolError, aiolog.AiologError)
    assert issubclass(aiolog.ConfigError, aiolog.AiologError)
    assert set(aiolog._HOMES) == set(aiolog.__all__) - {"__version__"}
