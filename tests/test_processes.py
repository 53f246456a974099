"""The handler in every kind of process, under every interpreter found: forks, pools, exits."""

from __future__ import annotations

import subprocess

import pytest
from interpreters import every_interpreter
from oracle import Verdict
from programs import Program
from running import serve

TASKS = 5
FIRST_AT_EXIT = """
import atexit
import sys
atexit.register(lambda: logging.warning("first and last"))  # before logging's own hook, and so run after it
import logging
from aiolog import AiologHandler
logging.getLogger().addHandler(AiologHandler("127.0.0.1", int(sys.argv[1])))
"""


@every_interpreter
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["pool", "executor", "process"])
def test_every_record_of_every_task_arrives(tmp_path, python, method, kind):
    """Under each start method: also the last record of a task before its process ends, and the parent's own."""
    with serve(tmp_path, None, "--no-stdout") as server:
        Program(kind, server.port, method, TASKS, python=python).result()
        assert server.stop() == 0
        verdict = Verdict(server.records())
    verdict.assert_exact({"parent": 2} | {f"task{n}": 3 for n in range(TASKS)})


@every_interpreter
def test_forks_amid_threads_that_log(tmp_path, python):
    """8 threads log while 8 children are forked, and 8 threads log in each: no deadlock, nothing twice, all whole."""
    with serve(tmp_path, None, "--no-stdout") as server:
        result = Program("fork", server.port, 8, 8, 300, python=python).result(timeout=90)
        assert server.stop() == 0
        verdict = Verdict(server.records())
    assert result["codes"] == [0] * 8
    names = ["parent"] + [f"child{n}" for n in range(8)]
    verdict.assert_exact({f"{name}.{thread}": 300 for name in names for thread in range(8)})


@every_interpreter
def test_two_hundred_forks_amid_eight_threads(tmp_path, python):
    """Threads log all the while, and eight in each child: no deadlock, nothing lost, nothing twice."""
    with serve(tmp_path, None, "--no-stdout") as server:
        result = Program("storm", server.port, 200, 8, python=python).result(timeout=110)
        assert server.stop() == 0
        verdict = Verdict(server.records())
    assert result["codes"] == [0] * 200
    children = {f"child{n}.{thread}": 5 for n in range(200) for thread in range(8)}
    verdict.assert_exact(children | result["emitted"])


@every_interpreter
@pytest.mark.parametrize(
    ("how", "more"),
    [
        ("normal", {}),
        ("exception", {}),
        ("forgotten", {}),
        ("closed", {"main": 1}),
        ("fork", {"child": 1}),
        ("thread", {"main": 1}),
        ("atexit", {"main": 1}),
    ],
)
def test_no_record_is_lost_at_an_exit(tmp_path, python, how, more):
    """Without an explicit flush, however the process ends by itself, its last record is in the file."""
    with serve(tmp_path, None, "--no-stdout") as server:
        Program("exits", server.port, how, 200, python=python).result(code=1 if how == "exception" else 0)
        assert server.stop() == 0
        verdict = Verdict(server.records())
    verdict.assert_exact({"main": 200 + more.get("main", 0)} | {k: v for k, v in more.items() if k != "main"})


@every_interpreter
def test_a_first_record_that_an_exit_hook_logs(tmp_path, python):
    """It arrives, although the hooks that flush have run or can no longer be registered."""
    with serve(tmp_path, None, "--no-stdout") as server:
        subprocess.run([python, "-c", FIRST_AT_EXIT, str(server.port)], check=True, timeout=30)
        assert server.stop() == 0
        assert [record["msg"] for record in server.records()] == ["first and last"]


@every_interpreter
def test_dictconfig_again_and_again_under_load(tmp_path, python):
    """No deadlock, nothing lost or twice, and no thread or socket left over when threads log meanwhile."""
    with serve(tmp_path, None, "--no-stdout") as server:
        result = Program("reconfigure", server.port, 50, python=python).result()
        assert server.stop() == 0
        verdict = Verdict(server.records())
    assert verdict.lost(result["emitted"]) == verdict.twice == verdict.dropped == 0
    assert result["slowest_seconds"] < 1
    assert result["threads"] == ["MainThread"]
    assert result["descriptors"] < 12
