"""The exit matrix of real services: gunicorn, uvicorn and Celery, each ended in each way that it has.

docs/exits.md has the table. Each service logs a record per request or task, and a last word when a process of it
ends, in the hook that the framework has for that. Everyday runs take a part of it and this interpreter; `make long`
the rest.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from interpreters import found
from oracle import Verdict
from running import Process, aiolog, serve

REQUESTS = 30

# On the other interpreters `make venvs` installs these three as well.
everywhere = pytest.mark.parametrize(
    "python",
    [
        pytest.param(path, id=version, marks=() if path == sys.executable else pytest.mark.long)
        for version, path in found().items()
    ],
)

GUNICORN_APPLICATION = """
import logging, os, time
from worker import body

log = logging.getLogger("worker")

def application(environ, start_response):
    number = int(environ["PATH_INFO"][1:])
    log.info(body("request", number))
    if environ["QUERY_STRING"]:
        time.sleep(60)
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""

GUNICORN_SETTINGS = """
import logging, os
from aiolog.contrib.gunicorn import logconfig_dict as configure
from worker import body

logconfig_dict = configure("test", port={port}, spool_dir={spool})
bind = "127.0.0.1:0"
workers = 2
{more}

def post_worker_init(worker):
    logging.getLogger("ready").info("%d", os.getpid())  # from here on it hears signals

def worker_exit(server, worker):
    logging.getLogger("worker").info(body("last.%d" % os.getpid(), 0))
"""

UVICORN_APPLICATION = """
import logging, os
from worker import body

log = logging.getLogger("worker")

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                log.info(body("last.%d" % os.getpid(), 0))
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    log.info(body("request", int(scope["path"][1:])))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
"""

CELERY_APPLICATION = """
import logging, os, time
from celery import Celery, signals
from aiolog.contrib import celery as contrib
from worker import body

app = Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {name: "{queue}" for name in (
    "data_folder_in", "data_folder_out", "processed_folder", "control_folder")}
app.conf.broker_transport_options["polling_interval"] = 0.05
app.conf.update(worker_prefetch_multiplier=1, task_ignore_result=True, worker_enable_remote_control=False)
{install}
log = logging.getLogger("worker")

@signals.worker_process_shutdown.connect
def last(**_):
    log.info(body("last.%d" % os.getpid(), 0))

@app.task
def work(number):
    log.info(body("request", number))

@app.task
def die(how, number):
    log.info(body("request", number))
    if how == "limit":
        time.sleep(60)
    os._exit(1) if how == "_exit" else os.kill(os.getpid(), 9)
"""


def wait_until(condition, what, timeout=30):
    """Wait for something that another process does."""
    until = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < until, what()
        time.sleep(0.02)
    return value


def said(server, logger, pattern):
    """Return the matches in what a logger has said so far."""
    return [m for r in server.records() if r["logger"] == logger and (m := re.search(pattern, r["msg"]))]


def ask(port, number, query="", timeout=20):
    """Make one request, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    connection.request("GET", f"/{number}{query}")
    assert connection.getresponse().status == 200 or query
    connection.close()


class Service:
    """A service under test: its server of logs, its process, and what must be in the log."""

    def __init__(self, tmp_path, server, python, argv, spool):
        self.server = server
        self.spool = spool
        path = f"{Path(__file__).parent}{os.pathsep}{tmp_path}"
        self.process = Process(argv, directory=tmp_path, stem="service", python=python, env={"PYTHONPATH": path})

    def failure(self):
        return f"{self.process.stderr}\n{self.process.stdout}"

    def expect(self, logger, pattern, count=1):
        """Wait until a logger has said something so often."""
        wait_until(lambda: len(said(self.server, logger, pattern)) >= count, self.failure)
        return said(self.server, logger, pattern)

    def has_replaced_all(self):
        """Whether for each of two gunicorn workers that had enough requests another one is ready."""
        records = self.server.records()
        begun = sum(r["logger"] == "ready" for r in records)
        ended = sum(r["msg"].startswith("Autorestarting worker") for r in records)  # said before the request's record
        return sum(r["msg"].startswith("request ") for r in records) >= REQUESTS and begun == 2 + ended

    def verdict(self):
        """Stop the log server, with what the dead left behind, and judge."""
        if self.spool:
            result = aiolog(self.server.directory, "recover", str(self.spool), "--port", str(self.server.port))
            assert result.returncode == 0, result.stderr
            assert list(self.spool.iterdir()) == []
        assert self.server.stop() == 0
        verdict = Verdict(self.server.records())
        assert verdict.twice == verdict.dropped == 0
        return verdict


@contextlib.contextmanager
def service(tmp_path, python, argv, files, *, spool=False):
    """Run a service; ``files`` are templates for {port} and {spool} of the log server."""
    directory = tmp_path / "spool" if spool else None
    with serve(tmp_path, None, "--no-stdout") as server:
        for name, text in files.items():
            (tmp_path / name).write_text(
                text.replace("{port}", str(server.port)).replace("{spool}", repr(directory and str(directory)))
            )
        made = Service(tmp_path, server, python, argv, directory)
        try:
            yield made
        finally:
            made.process.close()


# ------------------------------------------------------------------------------------------------------- gunicorn

GUNICORN_WAYS = {
    "SIGTERM": "",
    "SIGINT": "",
    "timeout": "timeout = 1",
    "max_requests": "max_requests = 5",
    "reload": "reload = True\nreload_engine = 'poll'",
    "SIGHUP": "",
    "worker SIGKILL": "",
    "gevent": "worker_class = 'gevent'",
}


@everywhere
@pytest.mark.parametrize(
    ("how", "preload"),
    [
        pytest.param(how, preload, id=f"{how}-preload" if preload else how, marks=pytest.mark.long if preload else ())
        for how in GUNICORN_WAYS
        for preload in (False, True)
        if (how, preload) != ("reload", True)  # gunicorn itself refuses that
    ],
)
def test_gunicorn(tmp_path, python, how, preload):
    """Every request of every worker, and the last word of each that could still speak."""
    if how == "gevent" and python != sys.executable:
        pytest.skip("gevent is installed for the first interpreter only")
    files = {
        "application.py": GUNICORN_APPLICATION,
        "gunicorn.conf.py": GUNICORN_SETTINGS.replace("{more}", f"{GUNICORN_WAYS[how]}\npreload_app = {preload}"),
    }
    killed = how == "worker SIGKILL"
    argv = ["-m", "gunicorn", "application"]
    with service(tmp_path, python, argv, files, spool=killed) as gunicorn:
        port = int(gunicorn.expect("gunicorn.error", r"Listening at: \S+:(\d+)")[0][1])
        gunicorn.expect("ready", "", 2)
        for number in range(REQUESTS):
            ask(port, number)
        emitted = REQUESTS
        lost = set()
        if how == "timeout":
            with contextlib.suppress(OSError, http.client.HTTPException):
                ask(port, emitted, "?stuck")
            emitted += 1
            gunicorn.expect("ready", "", 3)
        elif how == "reload":
            os.utime(tmp_path / "application.py", (2e9, 2e9))
            gunicorn.expect("ready", "", 4)
        elif how == "SIGHUP":
            gunicorn.process.send(signal.SIGHUP)
            gunicorn.expect("ready", "", 4)
        elif how == "max_requests":
            # A worker that is just being forked does not hear its master's SIGTERM, and is killed half a minute later.
            wait_until(gunicorn.has_replaced_all, gunicorn.failure)
        elif killed:

            def be_stuck(port=port):
                with contextlib.suppress(http.client.RemoteDisconnected):
                    ask(port, REQUESTS, "?stuck")

            stuck = threading.Thread(target=be_stuck)
            stuck.start()
            emitted += 1
            (where,) = wait_until(
                lambda: [r["pid"] for r in gunicorn.server.records() if r["msg"].startswith(f"request {REQUESTS} ")],
                gunicorn.failure,
            )
            os.kill(where, signal.SIGKILL)
            lost = {where}
            stuck.join()
        assert gunicorn.process.stop(signal.SIGINT if how == "SIGINT" else signal.SIGTERM) == 0, gunicorn.failure()
        verdict = gunicorn.verdict()
    booted = {int(m[1]) for m in said(gunicorn.server, "gunicorn.error", r"Booting worker with pid: (\d+)")}
    assert len(booted) >= (5 if how == "max_requests" else 4 if how in ("reload", "SIGHUP") else 2)
    assert {w for w in verdict.seen if w.startswith("last")} == {f"last.{pid}" for pid in booted - lost}
    assert sorted(verdict.seen["request"]) == list(range(emitted))
    assert len(said(gunicorn.server, "gunicorn.error", "Shutting down: Master")) == 1
    assert "KeyError" not in gunicorn.process.stderr


# -------------------------------------------------------------------------------------------------------- uvicorn

UVICORN_SETTINGS = json.dumps(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"aiolog": {"class": "aiolog.AiologHandler", "port": "{port}", "spool_dir": None}},
        "root": {"handlers": ["aiolog"], "level": "INFO"},
    }
)


@everywhere
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("spool", [False, pytest.param(True, marks=pytest.mark.long)], ids=["memory", "spool"])
def test_uvicorn(tmp_path, python, how, workers, spool):
    """Every request, the last word of each lifespan, and what uvicorn itself says last."""
    settings = UVICORN_SETTINGS.replace("null", json.dumps(str(tmp_path / "spool"))) if spool else UVICORN_SETTINGS
    argv = ["-m", "uvicorn", "application:application", "--port", "0", "--log-config", "log.json",
            "--workers", str(workers)]  # fmt: skip
    files = {"application.py": UVICORN_APPLICATION, "log.json": settings}
    with service(tmp_path, python, argv, files, spool=spool) as uvicorn:
        port = int(uvicorn.expect("uvicorn.error", r"running on http://\S+:(\d+)")[0][1])
        uvicorn.expect("uvicorn.error", "startup complete", workers)
        for number in range(REQUESTS):
            ask(port, number)
        uvicorn.process.stop(signal.Signals[how])
        verdict = uvicorn.verdict()
    started = {int(m[1]) for m in said(uvicorn.server, "uvicorn.error", r"Started server process \[(\d+)\]")}
    finished = {int(m[1]) for m in said(uvicorn.server, "uvicorn.error", r"Finished server process \[(\d+)\]")}
    assert len(started) == workers
    assert sorted(verdict.seen["request"]) == list(range(REQUESTS))
    lost = [w for w in (f"last.{pid}" for pid in started) if w not in verdict.seen]
    unsaid = started - finished
    assert (lost, unsaid) == ([], set())


# --------------------------------------------------------------------------------------------------------- Celery

CELERY_INSTALLED = """
from aiolog.contrib.celery import install
install(app, url="tcp://127.0.0.1:{port}", spool_dir={spool})
"""
CELERY_HIJACKED = """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"aiolog": {"class": "aiolog.AiologHandler", "port": {port}, "flush_timeout_seconds": 30}},
    "root": {"handlers": ["aiolog"], "level": "INFO"},
})
logging.getLogger("worker").info(body("before.%d" % os.getpid(), 0))
"""


@contextlib.contextmanager
def celery_worker(tmp_path, python, install, *argv, spool=False):
    """Run a worker over the filesystem; ready when this returns."""
    queue = tmp_path / "queue"
    queue.mkdir()
    files = {"tasks.py": CELERY_APPLICATION.replace("{queue}", str(queue)).replace("{install}", install)}
    worker = ["-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "INFO",
              "--without-gossip", "--without-mingle", "--without-heartbeat", *argv]  # fmt: skip
    with service(tmp_path, python, worker, files, spool=spool) as celery:
        wait_until(
            lambda: " ready." in celery.process.stderr or said(celery.server, "celery.apps.worker", "ready"),
            celery.failure,
        )
        yield celery


def submit(celery, python, *calls):
    """Put tasks into the queue, in a process that logs nothing."""
    program = "import sys; from tasks import *; exec(sys.argv[1])"
    path = f"{Path(__file__).parent}{os.pathsep}{celery.server.directory}"
    subprocess.run(
        [python, "-c", program, "\n".join(calls)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=celery.server.directory,
        check=True,
        timeout=60,
    )


def request_numbers(celery):
    return [r for r in celery.server.records() if r["msg"].startswith("request ")]


@everywhere
@pytest.mark.parametrize("console", [True, pytest.param(False, marks=pytest.mark.long)], ids=["console", "alone"])
@pytest.mark.parametrize("children", [pytest.param("lasting", marks=pytest.mark.long), "three tasks each"])
def test_celery(tmp_path, python, children, console):
    """Every task's record and every child's last word, though Celery empties the root logger and ends by os._exit."""
    limit = ("--max-tasks-per-child", "3") if children != "lasting" else ()
    install = CELERY_INSTALLED.replace("spool_dir", f"console={console}, spool_dir")
    with celery_worker(tmp_path, python, install, *limit) as celery:
        submit(celery, python, f"for n in range({REQUESTS}): work.delay(n)")
        wait_until(lambda: len(request_numbers(celery)) == REQUESTS, celery.failure)
        assert celery.process.stop(signal.SIGTERM, timeout=30) == 0, celery.failure()
        verdict = celery.verdict()
    records = request_numbers(celery)
    assert sorted(verdict.seen["request"]) == list(range(REQUESTS))
    pids = {r["pid"] for r in records}
    assert {f"last.{pid}" for pid in pids} <= {w for w in verdict.seen if w.startswith("last")}
    assert len(pids) >= (REQUESTS // 3 if limit else 1)
    assert {r["fields"]["task_name"] for r in records} == {"tasks.work"}
    assert len({r["fields"]["task_id"] for r in records}) == REQUESTS
    assert {r["app"] for r in celery.server.records() if r["logger"] != "aiolog"} == {"tasks"}
    # Celery's own words come too, of the parent and of the children.
    assert len(said(celery.server, "celery.app.trace", r"Task tasks\.work\[.*\] succeeded")) == REQUESTS
    assert len(said(celery.server, "celery.worker.strategy", r"Task tasks\.work\[.*\] received")) == REQUESTS
    assert ("succeeded" in celery.process.stderr) == console


@pytest.mark.long
@everywhere
@pytest.mark.parametrize("how", ["limit", "_exit", "SIGKILL"])
def test_celery_children_that_die(tmp_path, python, how):
    """Nothing runs in a child that is killed at its time limit, leaves by os._exit or is killed: the spool has all."""
    argv = ("--time-limit", "1") if how == "limit" else ()
    with celery_worker(tmp_path, python, CELERY_INSTALLED, *argv, spool=True) as celery:
        submit(celery, python, f"for n in range(5): die.delay({how!r}, n)")
        gone = {"limit": "Hard time limit", "_exit": "exitcode 1", "SIGKILL": "signal 9"}[how]
        wait_until(lambda: celery.process.stderr.count(gone) >= 5, celery.failure, 60)
        assert celery.process.stop(signal.SIGTERM, timeout=30) == 0, celery.failure()
        verdict = celery.verdict()
    assert sorted(verdict.seen["request"]) == list(range(5))


@pytest.mark.long
def test_celery_without_install_takes_the_handler_away(tmp_path):
    """What was logged before it emptied the root logger arrives all the same; what is after does not: so, install()."""
    with celery_worker(tmp_path, sys.executable, CELERY_HIJACKED) as celery:
        submit(celery, sys.executable, "work.delay(0)")
        wait_until(lambda: "succeeded" in celery.process.stderr, celery.failure)
        assert celery.process.stop(signal.SIGTERM, timeout=30) == 0, celery.failure()
        verdict = celery.verdict()
    assert f"before.{celery.process.pid}" in verdict.seen
    assert "request" not in verdict.seen
