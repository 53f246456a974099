"""The benchmark: it measures what it says, and a rival that loses records does not count."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.loads import Load
from benchmarks.verify import verify

ROOT = Path(__file__).parents[1]

# In a process of its own: it forks, which a process with threads should not.
PROGRAM = """
import json, logging, sys
from pathlib import Path
from benchmarks.loads import Load
from benchmarks.measure import measure
from benchmarks.rivals import RIVALS, Rival

class Careless(Rival):
    name = "careless"
    def handler(self, connection):
        handler = logging.FileHandler(self.path)
        handler.addFilter(lambda record: record.args[1] % 10)  # the first of ten is lost
        return handler

make = {**RIVALS, "careless": Careless}[sys.argv[1]]
figures = measure(make, Load("tiny", int(sys.argv[3]), int(sys.argv[4]), connections=8), Path(sys.argv[2]))
print(json.dumps({**figures._asdict(), "counts": figures.counts}))
"""


def figures_of(rival: str, directory: Path, records: int = 400, per_second: int = 0) -> dict:
    argv = [sys.executable, "-c", PROGRAM, rival, str(directory), str(records), str(per_second)]
    run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_rival_that_loses_records_does_not_count(tmp_path):
    """Of 8 connections with 50 records each, 5 are lost on each."""
    figures = figures_of("careless", tmp_path)
    assert not figures["counts"]
    assert (figures["lost"], figures["twice"], figures["torn"], figures["disorder"]) == (40, 0, 0, 0)


def test_aiolog_counts_and_has_every_figure(tmp_path):
    """At a pace there are delays to the file and to the ack, and none is longer than the run."""
    figures = figures_of("aiolog", tmp_path, per_second=800)
    assert figures["counts"], figures
    assert not [name for name, value in figures.items() if value is None]
    assert 0 < figures["emit_p50_us"] <= figures["emit_p99_us"] <= figures["emit_slowest_us"]
    assert 0 < figures["file_p50_ms"] <= figures["file_p99_ms"] < 60_000
    assert 0 < figures["ack_p50_ms"] <= figures["ack_p99_ms"] < 60_000
    assert figures["server_cpu_us"] > 0
    assert figures["worker_cpu_us"] > 0


def test_the_floor_writes_nothing_and_loses_nothing(tmp_path):
    """The null handler has neither a file nor a server."""
    figures = figures_of("NullHandler", tmp_path)
    assert figures["counts"]
    assert figures["server_cpu_us"] is figures["records_per_second"] is None


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (["<0 0 1> a </0 0>", "<0 1 1> b </0 1>", "<1 0 1> c </1 0>", "<1 1 1> d </1 1>"], (0, 0, 0, 0)),
        (["<0 0 1> a </0 0>", "<1 0 1> c </1 0>", "<1 1 1> d </1 1>"], (1, 0, 0, 0)),
        (
            ["<0 0 1> a </0 0>", "<0 1 1> b </0 1>", "<0 1 1> b </0 1>", "<1 0 1> </1 0>", "<1 1 1> </1 1>"],
            (0, 1, 0, 0),
        ),
        (["<0 1 1> b </0 1>", "<0 0 1> a </0 0>", "<1 0 1> c </1 0>", "<1 1 1> d </1 1>"], (0, 0, 0, 1)),
        (["<0 0 1> a </0 0><0 1 1> b </0 1>", "<1 0 1> c </1 0>", "<1 1 1> d </1 1>"], (0, 0, 1, 0)),
        (["<0 0 1> a </0 0>", "<0 1 1> b", "<1 0 1> c </1 0>", "<1 1 1> d </1 1>"], (1, 0, 1, 0)),
        (["<0 0 1> a <0 1 1> b </0 1>", "<1 0 1> c </1 0>", "<1 1 1> d </1 1>"], (1, 0, 1, 0)),
        ([], (4, 0, 0, 0)),
    ],
)
def test_what_is_wrong_with_a_file_is_found(tmp_path, lines, wrong):
    """Lost, twice, torn and out of order, each by its number."""
    path = tmp_path / "app.log"
    path.write_text("".join(f"2026-11-28 12:00:00 INFO {line}\n" for line in lines))
    load = Load("four", 4, connections=2)
    assert verify(load, [path], [[]])[:4] == wrong


def test_delays_are_from_the_call_to_the_growth_of_the_file(tmp_path):
    """A record that came with the second growth has that one's moment."""
    path = tmp_path / "app.log"
    path.write_text("<0 0 100> a </0 0>\n<0 1 200> b </0 1>\n")
    steps = [[(19, 150), (38, 270)]]
    assert list(verify(Load("two", 2, connections=1), [path], steps).delays) == [50, 70]


def test_a_traceback_is_one_record(tmp_path):
    """Its end is the last line of the traceback; between, there may be what looks like a mark."""
    path = tmp_path / "app.log"
    path.write_text('<0 0 1> a\nTraceback\n  File "<stdin>", in <module>\nError: </0 0>\n<0 1 1> a\nError: </0 1>\n')
    assert verify(Load("two", 2, connections=1), [path], [[]]).is_sound
