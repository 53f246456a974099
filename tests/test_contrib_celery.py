"""Celery's signals, with tasks run eagerly in a process of their own; test_exits_services.py has real workers."""

from __future__ import annotations

import subprocess
import sys

from aiolog.record import STANDARD_ATTRIBUTES
from aiolog.testing import Collector

PROGRAM = """
import logging
import celery
import aiolog
from aiolog.contrib.celery import install

app = celery.Celery("shop")
app.conf.task_always_eager = True
install(app, url="%s", console=%s)
log = logging.getLogger("shop")

@app.task
def inner():
    log.info("inner")
    raise ValueError("no")

@app.task
def outer():
    log.info("before")
    inner.delay()
    log.info("after")

app.log.setup(loglevel="INFO")  # as a worker does
outer.delay()
log.info("outside")
aiolog.flush()
"""


def run(collector, console):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % (collector.url, console)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return [r for r in collector.records if r["name"] == "shop"], done.stderr


def test_records_carry_their_task():
    """A task inside of another has its own name, also when it fails; afterwards the outer one's counts again."""
    with Collector() as collector:
        records, stderr = run(collector, console=True)
    tasks = [(r["msg"], (r.get("task_name") or "").rpartition(".")[2]) for r in records]
    assert tasks == [("before", "outer"), ("inner", "inner"), ("after", "outer"), ("outside", "")]
    assert records[0]["task_id"] == records[2]["task_id"] != records[1]["task_id"]
    assert {r["app"] for r in records} == {"shop"}
    assert "outside" in stderr
    assert not {"task_id"} & STANDARD_ATTRIBUTES


def test_alone():
    """Without the console Celery configures nothing."""
    with Collector() as collector:
        records, stderr = run(collector, console=False)
    assert len(records) == 4
    assert "outside" not in stderr
