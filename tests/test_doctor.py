"""`aiolog doctor`: what it finds in a tree of loggers, of an application, and at a server."""

from __future__ import annotations

import email.utils
import http.server
import logging
import logging.handlers
import queue
import threading
import time

import pytest
from running import aiolog, serve

from aiolog import AiologHandler, doctor
from aiolog.errors import ConfigError
from aiolog.probe import UnreachableError


class Tree:
    """A tree of loggers of its own."""

    def __init__(self, *handlers, level=logging.INFO):
        self.root = logging.RootLogger(level)
        self.manager = logging.Manager(self.root)
        self.root.manager = self.manager
        for handler in handlers:
            self.root.addHandler(handler)

    def __call__(self, name, *handlers, propagate=True):
        logger = self.manager.getLogger(name)
        logger.propagate = propagate
        for handler in handlers:
            logger.addHandler(handler)
        return logger

    def found(self):
        return [finding.what for finding in doctor.examine(self.root)]


def test_nothing_is_wrong():
    """One handler on the root logger, and all others propagate."""
    tree = Tree(AiologHandler())
    tree("shop.orders")
    assert tree.found() == []
    assert [route.name for route in doctor.routes(tree.root)] == ["root"]


def test_nothing_at_all():
    """Without a handler of ours that is the one thing to say."""
    tree = Tree(logging.StreamHandler())
    tree("a", propagate=False)
    assert tree.found() == ["No logger has an aiolog handler: nothing arrives"]


def test_loggers_that_keep_to_themselves():
    """Who ends the propagation is named, not its children; nor who is silenced on purpose."""
    tree = Tree(AiologHandler())
    tree("uvicorn.access", logging.StreamHandler(), propagate=False)
    tree("quiet", propagate=False)
    tree("quiet.child").setLevel(logging.DEBUG)
    tree("null", logging.NullHandler(), propagate=False)
    tree("above", propagate=False).setLevel(logging.CRITICAL + 1)
    tree("own", AiologHandler(), propagate=False)
    findings = doctor.examine(tree.root)
    assert [finding.what.split()[0] for finding in findings] == ["quiet", "uvicorn.access"]
    assert 'adopt=["quiet"]' in findings[0].change
    assert "--log-config" in findings[1].change
    table = "\n".join(doctor.table(doctor.routes(tree.root)))
    assert "quiet.child     DEBUG     nowhere here (propagation ends at quiet)" in table


def test_a_root_without():
    """A handler on a logger of the application alone misses what libraries say."""
    tree = Tree()
    tree("shop", AiologHandler())
    assert tree.found() == ["The root logger has no aiolog handler: what libraries log does not arrive"]


def test_levels_and_what_is_disabled():
    """The root logger's level, disabled loggers, and logging.disable()."""
    tree = Tree(AiologHandler(), level=logging.WARNING)
    for n in range(7):
        tree(f"old{n}").disabled = True
    tree.manager.disable = logging.INFO
    assert tree.found() == [
        "The root logger's level is WARNING: what is below is not logged",
        "Disabled, so that they log nothing: old0, old1, old2, old3, old4 and 2 more",
        "logging.disable(20) is in force: what is not above that level is not logged",
    ]


def test_the_same_server_twice():
    """By two handlers to one server; two servers are a choice."""
    tree = Tree(AiologHandler("logs", 9020))
    tree("shop", AiologHandler("logs", 9020))
    tree("other", AiologHandler("elsewhere", 9020))
    assert tree.found() == ["shop: a record comes to logs:9020 by several handlers (and is sent once)"]


def test_behind_other_handlers():
    """A MemoryHandler's target counts, and what the listener of a QueueHandler has (from 3.12)."""
    tree = Tree(logging.handlers.MemoryHandler(10, target=AiologHandler()))
    assert tree.found() == []
    first = logging.handlers.QueueHandler(queue.SimpleQueue())
    first.listener = logging.handlers.QueueListener(first.queue, AiologHandler())
    assert Tree(first).found() == []


def test_a_server_that_takes_records(tmp_path):
    """One record is sent by the application's own handler, and acked."""
    with serve(tmp_path, None, "--no-stdout") as server:
        handler = AiologHandler("127.0.0.1", server.port, app="shop")
        answer = doctor.consult(handler, timeout_seconds=10, http_url=None)
        handler.close()
        assert server.stop() == 0
        (record,) = server.records()
    assert answer.durability == "written"
    assert 0 < answer.ack_seconds < 5
    assert not answer.is_clock_wrong
    assert (record["logger"], record["app"]) == ("aiolog.doctor", "shop")


@pytest.mark.parametrize("address", [("127.0.0.1", 1), ("/nowhere/socket", None)])
def test_a_server_that_is_not_there(address):
    """It says so in time, and the exit waits no second time."""
    handler = AiologHandler(*address)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="Start `aiolog serve`"):
        doctor.consult(handler, timeout_seconds=0.3, http_url=None)
    assert time.monotonic() - began < 3
    handler.flush_timeout_seconds = 0.0
    handler.close()
    for sender in handler._senders():  # or it would go on trying, in all other tests
        thread, sender._thread = sender._thread, None
        sender.wake()
        thread.join(15)
        assert not thread.is_alive()


@pytest.mark.parametrize("ahead", [-5.0, 0.0, 90.0])
def test_the_clock_behind_a_url(ahead):
    """The Date of HTTP has whole seconds, and yet the difference is exact to some hundredths."""

    class Clock(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response_only(200)
            self.send_header("Date", email.utils.formatdate(time.time() + ahead, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Clock) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert doctor.clock_difference(url) == pytest.approx(ahead, abs=0.2)
        text, is_wrong = doctor._clock(url)
        server.shutdown()
    assert is_wrong == (ahead != 0)
    assert ("behind" if ahead < 0 else "ahead of") in text or not ahead


def test_a_real_servers_clock(tmp_path):
    """The [http] side of a server says its date."""
    with serve(tmp_path, None, "--no-stdout") as server:
        assert abs(doctor.clock_difference(server.url)) < 0.5


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1", "nonsense"])
def test_a_clock_that_cannot_be_seen(url):
    """That is said, and is nothing to change."""
    text, is_wrong = doctor._clock(url)
    assert "cannot be seen" in text
    assert not is_wrong


# -- the command

SETTINGS = '{"version": 1, "handlers": {"aiolog": {"class": "aiolog.AiologHandler", "port": %d}}, "root": {"handlers": ["aiolog"], "level": "INFO"}}'  # noqa: E501

TARGETS = {
    "log.json": (SETTINGS, "log.json", "the settings in log.json", 0),
    "log.yaml": (SETTINGS, "log.yaml", "the settings in log.yaml", 0),
    "log.ini": (
        (
            "[loggers]\nkeys=root\n[handlers]\nkeys=a\n[formatters]\nkeys=\n[logger_root]\nlevel=INFO\nhandlers=a\n"
            "[handler_a]\nclass=aiolog.AiologHandler\nargs=('127.0.0.1', %d)\n"
        ),
        "log.ini",
        "the settings in log.ini",
        0,
    ),
    "gunicorn.conf.py": (
        "from aiolog.contrib.gunicorn import logconfig_dict as configure\nlogconfig_dict = configure(port=%d)\n",
        "gunicorn.conf.py",
        "logconfig_dict of gunicorn.conf.py",
        0,
    ),
    "shop.py": ("import aiolog; aiolog.setup(port=%d)\n", "shop:app", "imported shop", 0),
    "settings.py": (
        "from aiolog.contrib.django import logging_config\nLOGGING = logging_config(port=%d)\n",
        "settings",
        "django.setup() with settings",
        0,
    ),
    "tasks.py": (
        "import celery; from aiolog.contrib.celery import install\napp = celery.Celery(); install(app, port=%d)\n",
        "tasks",
        "a worker's start with the Celery app of tasks",
        0,
    ),
    "wrong.py": (
        "import logging, aiolog; aiolog.setup(port=%d); logging.getLogger('quiet').propagate = False\n",
        "wrong",
        "imported wrong",
        1,
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_every_kind_of_target(tmp_path, name):
    """Modules, settings and files: how logging was set up stands first, then what there is to change."""
    text, target, how, code = TARGETS[name]
    with serve(tmp_path, None, "--no-stdout") as server:
        (tmp_path / name).write_text(text % server.port)
        done = aiolog(tmp_path, "doctor", target)
        assert done.returncode == code, done.stdout + done.stderr
        assert server.stop() == 0
        assert [r["msg"] for r in server.records() if r["logger"] == "aiolog.doctor"] == ["aiolog doctor was here"]
    assert done.stdout.startswith(f"logging as by {how}\n")
    assert "takes records; acked means written" in done.stdout
    assert done.stdout.count("nothing to change") == (code == 0)
    assert ("quiet does not propagate" in done.stdout) == (code == 1)


def test_by_the_environment_alone(tmp_path):
    """Without a target AIOLOG_URL says where; 69 where nobody answers, and no traceback for a target that is none."""
    with serve(tmp_path, None, "--no-stdout") as server:
        env = {"AIOLOG_URL": f"tcp://127.0.0.1:{server.port}"}
        assert aiolog(tmp_path, "doctor", env=env).returncode == 0
        assert server.stop() == 0
    done = aiolog(tmp_path, "doctor", "--timeout", "0.5", env=env)
    assert done.returncode == 69
    assert "Connection refused" in done.stdout
    done = aiolog(tmp_path, "doctor", "no.such.module")
    assert done.returncode == 78
    assert done.stderr.startswith("aiolog: no.such.module cannot be loaded (ModuleNotFoundError")


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    """Whatever a module raises is one error of the operator's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_one.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="broken_one cannot be loaded"):
        doctor.load("broken_one")
