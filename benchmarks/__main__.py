"""Run the loads on the rivals, in turn, and report: ``make bench``, or ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import footprint, report
from benchmarks.loads import LOADS
from benchmarks.measure import Figures, measure
from benchmarks.report import Results
from benchmarks.rivals import RIVALS, Rival

RESULTS = Path(__file__).parent / "results"
TABLE_CHARS = 210  # a narrower terminal wraps its lines; a cell that is cut says nothing
BEGIN, END = "<!-- figures: written by `make bench DOCUMENT=…` -->\n", "<!-- end of the figures -->\n"


def main() -> None:
    """Measure, or read what was measured before, and report."""
    arguments = _arguments()
    console = Console()
    console.width = max(console.width, TABLE_CHARS)
    if arguments.read:
        results = _read(arguments.read)
    else:
        results = _measure(arguments, console)
        directory = RESULTS / f"{datetime.now():%Y-%m-%d-%H%M%S}"  # noqa: DTZ005 - for whoever sits here
        directory.mkdir(parents=True)
        _write(results, directory / "figures.json")
        (directory / "table.md").write_text(report.markdown(results))
        report.plot(results, directory / "plot.png")
        console.print(f"figures.json, table.md and plot.png are in {directory}")
    report.print_table(results, console)
    report.print_bars(results, console)
    report.print_promises(results, console)
    if arguments.document:
        _document(results, arguments.document)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="how often, for the medians")
    parser.add_argument("--loads", default="", help=f"some of {', '.join(LOADS)}, by how they begin")
    parser.add_argument("--rivals", default="", help=f"some of {', '.join(RIVALS)}, by how they begin")
    parser.add_argument("--document", type=Path, help="a page whose figures are written anew, with its plot beside it")
    parser.add_argument("--read", type=Path, help="figures.json of an earlier run, to report again")
    return parser.parse_args()


def _chosen(known: dict[str, Any], wanted: str) -> list[Any]:
    words = wanted.replace(",", " ").split()
    prefixes = tuple(word for word in words if word not in known)
    chosen = [value for name, value in known.items() if not words or name in words or name.startswith(prefixes)]
    if not chosen:
        raise SystemExit(f"there is no {wanted}; there are {', '.join(known)}")
    return chosen


def _measure(arguments: argparse.Namespace, console: Console) -> Results:
    loads = _chosen(LOADS, arguments.loads)
    rivals: list[type[Rival]] = _chosen(RIVALS, arguments.rivals)
    missing = {rival.name: rival.missing() for rival in rivals if rival.missing()}
    rounds: list[dict[str, dict[str, Figures]]] = []
    for run in range(arguments.runs):
        rounds.append({load.name: {} for load in loads})
        for load in loads:
            for rival in rivals:
                if rival.name in missing or not rival.takes(load):
                    continue
                with console.status(f"run {run + 1} of {arguments.runs}: {load.name}, {rival.name}"), _empty() as name:
                    try:
                        figures = measure(rival, load, Path(name))
                    except RuntimeError as error:
                        console.print(f"{load.name}, {rival.name}: {error}", style="red")
                        continue
                rounds[-1][load.name][rival.name] = figures
                if not figures.counts:
                    console.print(f"{load.name}, {rival.name}: {report.exactness(figures)}", style="red")
    costs: dict[str, float] = {}
    if not arguments.loads:
        with console.status("imports and idle connections"), _empty() as name:
            idle_kib = footprint.idle_kib(RIVALS[report.US], Path(name))
            costs = {"KiB for an idle connection": idle_kib, **footprint.import_ms()}
    return Results(rounds, costs, {name: lacks for name, lacks in missing.items() if name != "aiolog-base"})


def _empty() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="aiolog-bench-")


def _write(results: Results, path: Path) -> None:
    rounds = [
        {load: {rival: figures._asdict() for rival, figures in rivals.items()} for load, rivals in measured.items()}
        for measured in results.rounds
    ]
    path.write_text(json.dumps({"machine": report.machine(), **results._asdict(), "rounds": rounds}, indent=1))


def _read(path: Path) -> Results:
    written = json.loads(path.read_text())
    rounds = [
        {load: {rival: Figures(**figures) for rival, figures in rivals.items()} for load, rivals in measured.items()}
        for measured in written["rounds"]
    ]
    return Results(rounds, written["footprint"], written["missing"])


def _document(results: Results, page: Path) -> None:
    """Put the figures into a page, between its two marks, and the plot beside it."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} lacks the marks {BEGIN.strip()} and {END.strip()}")
    page.write_text(f"{before}{BEGIN}\n{report.markdown(results)}\n{END}{after}")
    report.plot(results, page.with_suffix(".png"))


if __name__ == "__main__":
    main()
