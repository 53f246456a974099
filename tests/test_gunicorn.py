"""Real input: gunicorn with four workers, a Flask application, and HTTP clients that do not stop."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from running import files, serve

LOAD_SECONDS = 20
CLIENTS = 4

APPLICATION = """
import logging, os
from flask import Flask, request

app = Flask(__name__)
log = logging.getLogger("shop")

@app.get("/buy/<int:number>")
def buy(number):
    log.info("order %d", number, extra={"number": number})
    if number % 50 == 0:
        try:
            raise RuntimeError("out of stock")
        except RuntimeError:
            log.exception("order %d failed", number)
    return "ok %d" % os.getpid()
"""

SETTINGS = """
workers = 4
bind = "127.0.0.1:0"
preload_app = {preload}
logconfig_dict = {{
    "version": 1,
    "disable_existing_loggers": False,
    "root": {{"level": "INFO", "handlers": ["aiolog"]}},
    "loggers": {{
        "gunicorn.error": {{"level": "INFO", "handlers": [], "propagate": True}},
        "gunicorn.access": {{"level": "INFO", "handlers": [], "propagate": True}},
    }},
    "handlers": {{"aiolog": {{"class": "aiolog.AiologHandler", "port": {port}, "app": "shop"}}}},
}}
"""

CONFIG = """
[sinks.app]
path = "logs/app.log"
max_bytes = "512 KiB"
backup_count = 0
"""


def ask(port, numbers, answered):
    """Ask for one number after another on one connection, until they end; note who answered each."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for number in numbers:
        connection.request("GET", f"/buy/{number}")
        response = connection.getresponse()
        body = response.read().decode()
        assert response.status == 200
        answered[number] = int(body.split()[1])
        if response.will_close:
            connection.close()
    connection.close()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("preload", [False, True])
def test_every_request_of_every_worker_is_in_the_one_file(tmp_path, preload):
    """Access and application records of four workers equal the requests answered, over at least 5 rotations."""
    seconds = LOAD_SECONDS if not preload else 5
    (tmp_path / "application.py").write_text(APPLICATION)
    with serve(tmp_path, CONFIG) as server:
        (tmp_path / "gunicorn.conf.py").write_text(SETTINGS.format(port=server.port, preload=preload))
        command = [sys.executable, "-m", "gunicorn", "application:app"]
        gunicorn = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        try:
            port = wait_for_port(server)
            answered: dict[int, int] = {}
            until = time.monotonic() + seconds

            def numbers(first):
                number = first
                while time.monotonic() < until:
                    yield number
                    number += CLIENTS

            clients = [threading.Thread(target=ask, args=(port, numbers(n), answered)) for n in range(CLIENTS)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            gunicorn.send_signal(signal.SIGTERM)
            assert gunicorn.wait(20) == 0
        finally:
            gunicorn.kill()
            stderr = gunicorn.communicate()[1]
        assert stderr == ""
        assert server.stop() == 0
        records = server.records()
    assert len(answered) > 100 * seconds
    orders = Counter(r["fields"]["number"] for r in records if r["logger"] == "shop" and r["level"] == "INFO")
    assert orders == Counter(dict.fromkeys(answered, 1))
    failures = [r for r in records if r["logger"] == "shop" and r["level"] == "ERROR"]
    assert len(failures) == sum(number % 50 == 0 for number in answered)
    assert all("RuntimeError: out of stock" in r["exc"] for r in failures)
    access = Counter(
        int(re.search(r"GET /buy/(\d+) ", r["msg"])[1]) for r in records if r["logger"] == "gunicorn.access"
    )
    assert access == orders
    assert {r["pid"] for r in records if r["logger"] == "shop"} == set(answered.values())
    if not preload:
        assert len(set(answered.values())) == 4
        assert len(files(tmp_path / "logs/app.log")) > 5


def wait_for_port(server):
    """Return where gunicorn listens, which it says through aiolog itself; and only when its workers are up."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        said = [r["msg"] for r in server.records() if r["logger"] == "gunicorn.error"]
        if sum("Booting worker" in text for text in said) == 4:
            return int(next(re.search(r"Listening at: http://127.0.0.1:(\d+)", t)[1] for t in said if "Listening" in t))
        time.sleep(0.05)
    raise AssertionError(f"gunicorn did not start: {said}")
