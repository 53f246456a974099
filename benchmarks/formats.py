"""What one record costs each format, and against an older module: CPU of this process, interleaved, medians.

    python benchmarks/formats.py [--against FILE]

FILE is a formatting.py of one file, from before or from another branch; its lines are compared with ours first.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from pathlib import Path

from aiolog import formatting
from aiolog.record import Source

TEMPLATE = "%(asctime)s %(levelname)s %(processName)s[%(process)d] %(name)s: %(message)s"
RECORDS, REPEATS, ROUNDS = 1000, 6, 25
APART_NS = 100_000  # 10,000 records a second of one process
MAKERS = {
    "text": lambda module: module.text(TEMPLATE),
    "text, raw": lambda module: module.text(TEMPLATE, escaping="raw"),
    "text, message first": lambda module: module.text("%(message)s %(asctime)s"),
    "text, none taken": lambda module: module.text(TEMPLATE, accepts=lambda _site: False),
    "json": lambda module: module.json_lines(),
    "logfmt": lambda module: module.logfmt(),
    "ecs": lambda module: module.ecs(),
    "otel": lambda module: module.otel(),
}


def source() -> Source:
    made = Source(app="shop", host="web1", pid=123, process_name="MainProcess")
    for line in range(20):
        made.define((f"app.db{line}", 20, "INFO", "/srv/app/db.py", "db.py", "db", line, "query"))
    made.define((7, "MainThread"))
    return made


def batch(kind: str) -> list:
    made = []
    for index in range(RECORDS):
        created = 1_795_420_862_123_456_789 + index * APART_NS
        message = f"request {index} took 12 ms and gave status 200 for user ada"
        record = (created / 1e9 if kind == "floats" else created, index % 20, 20, message)
        made.append((*record, {"extra": ("user", "ada", "status", 200)}) if kind == "extras" else record)
    return made


def nanoseconds(compiled, its_source, records) -> float:
    start = time.process_time_ns()
    for _ in range(REPEATS):
        compiled(its_source, records)
    return (time.process_time_ns() - start) / REPEATS / len(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path)
    path = parser.parse_args().against
    older = None
    if path:
        spec = importlib.util.spec_from_file_location("older", path)
        older = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(older)
    modules = [module for module in (formatting, older) if module]
    for kind in ("ints", "floats", "extras"):
        records = batch(kind)
        runs = {}
        for name, make in MAKERS.items():
            for module in modules:
                if hasattr(module, name) or name not in ("ecs", "otel"):
                    runs[name, module] = (make(module), source(), [])
        lines = {run: compiled(its_source, records) for run, (compiled, its_source, _) in runs.items()}
        for _ in range(ROUNDS):
            for compiled, its_source, times in runs.values():
                times.append(nanoseconds(compiled, its_source, records))
        for name in MAKERS:
            times, of_text = runs[name, formatting][2], ratio(runs[name, formatting], runs["text", formatting])
            said = f"{kind:7} {name:20} {statistics.median(times):6.0f} ns, {of_text:5.2f} of text"
            if (name, older) in runs:
                assert lines[name, formatting] == lines[name, older], name
                before, of_it = runs[name, older][2], ratio(runs[name, formatting], runs[name, older])
                said += f"; before {statistics.median(before):6.0f} ns, {of_it:.2f} of it"
            print(said)


def ratio(one, other) -> float:
    return statistics.median(mine / its for mine, its in zip(one[2], other[2], strict=True))


if __name__ == "__main__":
    main()
