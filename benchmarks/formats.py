"""What one record costs each format, and against an older module: CPU of this process, interleaved, medians.

    python benchmarks/formats.py [--against FILE]

What is measured ends with one text of all lines, which is what a sink encodes. FILE is a formatting.py of one file,
from before or from another branch, or the ``aiolog`` directory of another checkout; its lines are compared with ours
first.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from aiolog import formatting
from aiolog.source import Source

TEMPLATE = "%(asctime)s %(levelname)s %(processName)s[%(process)d] %(name)s: %(message)s"
RECORDS, ROUNDS = 640, 25  # a frame of 64 KiB
MEASURED = 6_000  # records at a time
APART_NS = 20_000  # 50,000 records a second of one process: a flood
SITES = 20
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


def source(kind: type[Source]) -> Source:
    made = kind(app="shop", host="web1", pid=123, process_name="MainProcess")
    for line in range(SITES):
        made.define((f"app.db{line}", 20, "INFO", "/srv/app/db.py", "db.py", "db", line, "query"))
    made.define((7, "MainThread"))
    return made


class Case(NamedTuple):
    """Records that come together, of which ``rare`` in a hundred have extras."""

    records: int = RECORDS
    sites: int = SITES
    moments: type = float
    rare: int = 0

    def batch(self) -> tuple:
        made = []
        for index in range(self.records):
            created = 1_795_420_862_123_456_789 + index * APART_NS
            message = f"request {index} took 12 ms and gave status 200 for user ada"
            record = (created / 1e9 if self.moments is float else created, index % self.sites, SITES, message)
            is_rare = (index + 50) % 100 < self.rare
            made.append((*record, {"extra": ("user", "ada", "status", 200)}) if is_rare else record)
        return tuple(made)


CASES = {
    "one site": Case(sites=1),
    "one, ints": Case(sites=1, moments=int),
    "sites": Case(),
    "ints": Case(moments=int),
    "1 in 100": Case(rare=1),
    "extras": Case(rare=100),
    "64": Case(64),
    "6": Case(6),
    "1": Case(1),
}


def nanoseconds(compiled, its_source, records) -> float:
    repeats = max(1, MEASURED // len(records))
    start = time.process_time_ns()
    for _ in range(repeats):
        joined(compiled(its_source, records))
    return (time.process_time_ns() - start) / repeats / len(records)


def joined(texts) -> str:
    return getattr(texts, "joined", None) or "".join(texts)  # an older module has a class of its own for such lines


def load(path: Path):
    """Return an older module, under a name of its own, and what it knows as a source."""
    if path.is_dir():  # a package: it takes the place of ours while it is imported
        ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "aiolog"}
        sys.path.insert(0, str(path.parent))
        try:
            return importlib.import_module("aiolog.formatting"), importlib.import_module("aiolog.record").Source
        finally:
            sys.path.remove(str(path.parent))
            sys.modules.update(ours)
    spec = importlib.util.spec_from_file_location("older", path)
    older = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(older)
    return older, Source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path)
    path = parser.parse_args().against
    older, its_kind = load(path.resolve()) if path else (None, None)
    modules = {formatting: Source} | ({older: its_kind} if older else {})
    for kind, case in CASES.items():
        records = case.batch()
        runs = {}
        for name, make in MAKERS.items():
            for module, its_source in modules.items():
                if hasattr(module, name) or name not in ("ecs", "otel"):
                    runs[name, module] = (make(module), source(its_source), [])
        for compiled, its_source, _ in runs.values():
            compiled(its_source, Case().batch())  # learns all sites
        lines = {run: list(compiled(its_source, records)) for run, (compiled, its_source, _) in runs.items()}
        for _ in range(ROUNDS):
            for compiled, its_source, times in runs.values():
                times.append(nanoseconds(compiled, its_source, records))
        for name in MAKERS:
            times, of_text = runs[name, formatting][2], ratio(runs[name, formatting], runs["text", formatting])
            said = f"{kind:9} {name:20} {statistics.median(times):6.0f} ns, {of_text:5.2f} of text"
            if (name, older) in runs:
                assert lines[name, formatting] == lines[name, older], name
                before, of_it = runs[name, older][2], ratio(runs[name, formatting], runs[name, older])
                said += f"; before {statistics.median(before):6.0f} ns, {of_it:.2f} of it"
            print(said)


def ratio(one, other) -> float:
    return statistics.median(mine / its for mine, its in zip(one[2], other[2], strict=True))


if __name__ == "__main__":
    main()
