"""The main job, with real processes: from log calls in workers to one rotating file."""

from __future__ import annotations

import pytest
from interpreters import every_interpreter, version_of
from oracle import Verdict
from programs import Program, flood
from running import files, serve

EVERY_ATTRIBUTE = (
    "%(asctime)s|%(created)f|%(msecs)03d|%(relativeCreated)s|%(name)s|%(levelno)s|%(levelname)s|%(pathname)s|"
    "%(filename)s|%(module)s|%(lineno)d|%(funcName)s|%(process)d|%(processName)s|%(thread)d|%(threadName)s|%(message)s"
)


def test_four_workers_at_full_speed_lose_nothing(tmp_path):
    """4 processes × 50,000 records as fast as they can: each record once, whole, in its process's order."""
    with serve(tmp_path, None, "--no-stdout") as server:
        workers = {f"w{n}": flood(server.port, f"w{n}", 50_000) for n in range(4)}
        emitted = {name: worker.result()["emitted"] for name, worker in workers.items()}
        assert server.stop() == 0
        verdict = Verdict(server.records())
    assert verdict.received == 200_000
    verdict.assert_exact(emitted)


@pytest.mark.parametrize("compress", ["", "gzip", "zstd"])
def test_rotation_amid_a_flood_loses_nothing(tmp_path, compress):
    """Files stay below their limit and together hold every record once, compressed or not."""
    config = f"""
        [sinks.app]
        path = "logs/app.log"
        max_bytes = "512 KiB"
        backup_count = 0
        compress = "{compress}"
    """
    with serve(tmp_path, config) as server:
        workers = {f"w{n}": flood(server.port, f"w{n}", 10_000) for n in range(3)}
        emitted = {name: worker.result()["emitted"] for name, worker in workers.items()}
        assert server.stop() == 0
        Verdict(server.records()).assert_exact(emitted)
    rotated = files(tmp_path / "logs/app.log")
    assert len(rotated) > 10
    assert max(path.stat().st_size for path in rotated) <= 512 << 10
    assert len({path.name for path in rotated}) == len(rotated)


def test_two_sinks_each_get_what_they_take(tmp_path):
    """Each file sink writes the records of its own filter, and an ack waits for both."""
    config = """
        [sinks.all]
        path = "logs/all.log"

        [sinks.errors]
        path = "logs/errors.log"
        level = "ERROR"
    """
    with serve(tmp_path, config) as server:
        result = Program("attributes", server.port, tmp_path / "expected.txt", "%(message)s").result()
        assert server.stop() == 0
        everything = server.records("logs/all.log")
        errors = server.records("logs/errors.log")
    assert len(everything) == result["emitted"]
    assert errors == [record for record in everything if record["level"] in ("ERROR", "CRITICAL")]
    assert errors


@every_interpreter
def test_every_attribute_reads_as_in_the_worker(tmp_path, python):
    """A template naming every attribute gives, through aiolog, the very text that the formatter gave in the worker."""
    # exc_text is left out: the standard formatter sets it on the record only after it has filled in the template.
    template = f"{EVERY_ATTRIBUTE}|%(stack_info)s" + ("" if version_of(python) == "3.11" else "|%(taskName)s")
    config = f"""
        [sinks.app]
        path = "logs/app.log"
        format = "text"
        escaping = "raw"
        template = "{template}"
    """
    expected = tmp_path / "expected.txt"
    with serve(tmp_path, config) as server:
        result = Program("attributes", server.port, expected, template, python=python).result()
        assert server.stop() == 0
        found = (tmp_path / "logs/app.log").read_text()
    assert result["stats"]["acked"] == result["emitted"] > 10
    assert found == expected.read_text()


@every_interpreter
def test_objects_of_any_kind_reach_the_file(tmp_path, python):
    """Whatever stands in msg, args and extra: no exception in the application, and one line a record."""
    with serve(tmp_path, None, "--no-stdout") as server:
        program = Program("objects", server.port, python=python)
        result = program.result()
        assert server.stop() == 0
        records = server.records()
    assert program.stderr == ""
    assert len(records) == result["emitted"] == result["stats"]["acked"]


def test_memory_stays_bounded_under_backpressure(tmp_path):
    """With a buffer of 1 MiB a flood is slowed to the server's pace: nothing dropped, and no memory taken."""
    with serve(tmp_path, None, "--no-stdout") as server:
        # Patient, for this is about memory: a machine that does much else may keep acks back for a tenth of a second.
        options = ("--buffer-bytes", 1 << 20, "--block-timeout", 10)
        small = flood(server.port, "small", 1_000, *options).result()
        workers = {f"w{n}": flood(server.port, f"w{n}", 100_000, *options) for n in range(2)}
        results = {name: worker.result() for name, worker in workers.items()}
        assert server.stop() == 0
        verdict = Verdict(server.records())
    verdict.assert_exact({"small": 1_000} | {name: result["emitted"] for name, result in results.items()})
    for result in results.values():
        assert sum(result["stats"]["dropped"].values()) == 0
        # Its buffer, and what malloc keeps of frames that came and went.
        assert result["max_rss_kib"] - small["max_rss_kib"] < 4 << 10
