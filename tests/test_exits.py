"""The exit matrix of plain processes: every kind of child, every way to end, every interpreter found.

docs/exits.md has the table. Where hooks run, nothing is lost. Where nothing can run, nothing is lost with a spool, and
without one what the last milliseconds held: `make long` prints how many of them.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from children import COUNT, HOOKS_RUN, NOTHING_RUNS, TASKS, WAYS
from interpreters import every_interpreter, found
from oracle import Verdict
from running import aiolog, serve

CHILDREN = Path(__file__).parent / "children.py"
METHODS = ("fork", "spawn", "forkserver")
KINDS = ("main", "fork", *(f"process-{method}" for method in METHODS))
POOLS = tuple(f"{what}-{method}" for what in ("with-pool", "close-pool", "executor") for method in METHODS)
# Everything here starts at once on a machine that does more; a process alone needs a tenth, see docs/exits.md.
LAST_SECONDS = 1.0
ROUNDS = 10


def run(server, python, kind, directory, *options):
    """Run the children of one kind; each leaves its book in the directory."""
    directory.mkdir(exist_ok=True)
    ways = WAYS if kind in KINDS else []
    subprocess.run(
        [python, CHILDREN, str(server.port), kind, directory, *ways, *map(str, options)],
        capture_output=True,
        check=True,
        timeout=100,
        env={name: value for name, value in os.environ.items() if name != "AIOLOG_TEST_SPOOL"},
    )


def losses(directory, verdict):
    """Return for each child how many of its records are not there, and the age of the oldest of them, in seconds."""
    found = {}
    for book in sorted(directory.iterdir()):
        _, *times, end = map(float, book.read_text().split())
        assert len(times) == COUNT
        lost = set(range(COUNT)) - set(verdict.seen.get(book.name, ()))
        # What is lost is the end: nothing before it, and nothing between.
        assert lost == set(range(COUNT - len(lost), COUNT)), book.name
        found[book.name] = (len(lost), end - times[min(lost)] if lost else 0.0)
    return found


def assert_matrix(directory, verdict, *, spool):
    """Fail unless each child lost what its way of ending allows."""
    assert verdict.twice == verdict.disorder == verdict.dropped == 0
    for name, (lost, age) in losses(directory, verdict).items():
        how = name.partition(".")[2]
        if spool or how in HOOKS_RUN or not name.startswith(("with-pool", *(f"{kind}." for kind in KINDS))):
            assert lost == 0, name
        assert age < LAST_SECONDS, name


def recovered(server, spool):
    """Send what the dead left behind."""
    result = aiolog(server.directory, "recover", str(spool), "--port", str(server.port))
    assert result.returncode == 0, result.stderr
    assert list(spool.iterdir()) == []


def matrix(tmp_path, python, kinds, *, spool):
    """Run all kinds against one server; returns its records."""
    options = ("--spool", tmp_path / "spool") if spool else ()
    with serve(tmp_path, None, "--no-stdout") as server:
        for kind in kinds:
            run(server, python, kind, tmp_path / "books", *options)
        if spool:
            recovered(server, tmp_path / "spool")
        assert server.stop() == 0
        verdict = Verdict(server.records())
    assert_matrix(tmp_path / "books", verdict, spool=spool)
    for parent in {"fork.parent", "process-fork.parent"} & {f"{kind}.parent" for kind in kinds}:
        assert verdict.seen[parent] == [0]
    ways = sum(len(WAYS) if kind in KINDS else TASKS for kind in kinds)
    assert len(list((tmp_path / "books").iterdir())) == ways


@every_interpreter
@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
def test_every_child_and_every_end(tmp_path, python, spool):
    """40 children, 8 ways to end: where hooks run none is lost; where none can, with a spool none either."""
    matrix(tmp_path, python, KINDS, spool=spool)


@every_interpreter
def test_a_pool_that_is_terminated_has_lost_nothing_it_kept_on_disk(tmp_path, python):
    """`with Pool()` ends its children by SIGTERM, and the hooks run or do not."""
    matrix(tmp_path, python, ["with-pool-fork", "executor-spawn"], spool=True)


@pytest.mark.long
@pytest.mark.timeout(600)
@every_interpreter
@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
def test_every_pool(tmp_path, python, spool):
    """Pools that terminate, pools that are closed and joined, and executors, under each start method."""
    matrix(tmp_path, python, POOLS, spool=spool)


@pytest.mark.long
@pytest.mark.timeout(900)
@every_interpreter
@pytest.mark.parametrize("kind", [*KINDS, *(f"with-pool-{method}" for method in METHODS)])
def test_what_the_last_milliseconds_held(tmp_path, python, kind):
    """Without a spool, one child at a time: how many were lost, and how old the oldest of them was. For the table."""
    seen: dict[str, list[tuple[int, float]]] = {}
    with serve(tmp_path, None, "--no-stdout") as server:
        for number in range(ROUNDS):
            run(server, python, kind, tmp_path / f"{number}", "--one-by-one")
        assert server.stop() == 0
        records = server.records()
    # Each round has the same names: the records of one are those of one process.
    for number in range(ROUNDS):
        books = tmp_path / f"{number}"
        pids = {book.name: int(book.read_text().split()[0]) for book in books.iterdir()}
        mine = Verdict(r for r in records if r["logger"] == "worker" and pids.get(r["msg"].split()[0]) == r["pid"])
        for name, loss in losses(books, mine).items():
            seen.setdefault(re.sub(r"task\d+", "task", name), []).append(loss)
    version = next(version for version, path in found().items() if path == python)
    for name, list_ in seen.items():
        lost, ages = [one[0] for one in list_], [one[1] * 1e3 for one in list_ if one[0]]
        print(
            f"{version} {name}: lost {sum(lost)} of {COUNT * len(lost)}, at most {max(lost)} at one end, "
            f"oldest median {statistics.median(ages or [0]):.1f} ms, worst {max(ages, default=0):.1f} ms"
        )
        if name.partition(".")[2] in HOOKS_RUN:
            assert sum(lost) == 0
        assert max(ages, default=0) < LAST_SECONDS * 1e3


def test_the_ways_are_all_there():
    """No way to end is in neither class, and one interpreter at least is this one."""
    assert set(WAYS) == set(HOOKS_RUN) | set(NOTHING_RUNS)
    assert sys.executable in found().values()
