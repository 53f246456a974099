"""What must hold of files at full size: `make long`, some minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from oracle import Verdict
from programs import Program, flood
from running import files, serve
from test_long import say

from aiolog.rotation import parse_backup

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_a_thousand_rotations_under_a_flood(tmp_path):
    """4 processes, over 1,000 rotations, zstd and retention: what was to be kept is there, each record once."""
    kept = 200
    config = f"""
        [sinks.app]
        path = "logs/app.log"
        max_bytes = "64 KiB"
        backup_count = {kept}
        compress = "zstd"
    """
    with serve(tmp_path, config, "--no-stdout") as server:
        count = 100_000
        workers = {f"w{n}": flood(server.port, f"w{n}", count) for n in range(4)}
        for worker in workers.values():
            worker.result(timeout=300)
        assert server.stop(timeout=30) == 0
        records = server.records()
    live = tmp_path / "logs/app.log"
    backups = [backup for path in files(live) if (backup := parse_backup(live.name, path.name))]
    verdict = Verdict(records)
    rotations = 4 * count * len(json.dumps(records[-1], separators=(",", ":"))) // (64 << 10)
    say(rotations=f">{rotations}", kept=len(backups), records=verdict.received)
    assert rotations > 1_000
    assert len(backups) == kept
    assert verdict.twice == verdict.disorder == verdict.dropped == 0
    for numbers in verdict.seen.values():  # retention took the oldest, and nothing from the midst
        assert numbers == list(range(numbers[0], count))
    assert not list(live.parent.glob("*.tmp"))


def test_a_million_names_against_a_template(tmp_path):
    """As many loggers as records: bounded files, bounded memory, nothing lost."""
    config = """
        [sinks.by]
        path = "logs/{logger}.log"
        max_bytes = 0
    """
    count = 1_000_000
    with serve(tmp_path, config, "--no-stdout") as server:
        Program("names", server.port, count).result(timeout=800)
        status = Path(f"/proc/{server.pid}/status").read_text()
        peak_kib = int(status.split("VmHWM:")[1].split()[0])
        descriptors = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        assert server.stop(timeout=30) == 0
    paths = [path for path in (tmp_path / "logs").iterdir() if not path.name.startswith(".")]
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    verdict = Verdict({**record, "logger": "worker"} for record in records if record["logger"] != "aiolog")
    say(files=len(paths), records=verdict.received, peak_mib=peak_kib >> 10, descriptors=descriptors)
    assert len(paths) == 1_025
    assert verdict.dropped == 0
    assert sorted(verdict.seen["names"]) == list(range(count))
    assert descriptors < 600
    assert peak_kib < 128 << 10
