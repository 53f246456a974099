"""What was measured, for people: a table, a plot, and which promises hold."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.loads import LOADS
from benchmarks.measure import Figures, median

Round = Mapping[str, Mapping[str, Figures]]
"""One run: by load and rival. What could not be measured is missing."""

US = "aiolog"


class Results(NamedTuple):
    """All runs, and what a server costs that has nothing to do."""

    rounds: Sequence[Round]
    footprint: Mapping[str, float]
    missing: Mapping[str, str]  # rivals that are not installed, and what they lack

    def medians(self) -> dict[str, dict[str, Figures]]:
        """Return the medians over the runs, by load and rival, in their order."""
        loads = list(dict.fromkeys(load for measured in self.rounds for load in measured))
        return {
            load: {
                rival: median([measured[load][rival] for measured in self.rounds if rival in measured.get(load, ())])
                for rival in dict.fromkeys(rival for measured in self.rounds for rival in measured.get(load, ()))
            }
            for load in loads
        }


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "CPU": cpu[1] if cpu else platform.machine(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.0f} GiB",
        "Python": platform.python_version(),
        "Linux": ".".join(platform.release().split(".")[:2]),
    }


# -- the table


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _pair(low: float | None, high: float | None) -> str:
    return "–" if low is None else f"{_number(low)} / {_number(high)}"


def exactness(of: Figures) -> str:
    """Return "yes", or what is wrong with the records: such a result does not count."""
    wrong = [f"{getattr(of, name):,} {name}" for name in ("lost", "twice", "torn", "disorder") if getattr(of, name)]
    return of.failed or ", ".join(wrong) or "yes"


_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "emit p50 µs": lambda of: _number(of.emit_p50_us),
    "p99": lambda of: _number(of.emit_p99_us),
    "p99.9": lambda of: _number(of.emit_p999_us),
    "slowest": lambda of: _number(of.emit_slowest_us),
    "records/s": lambda of: _number(of.records_per_second),
    "worker CPU µs": lambda of: _number(of.worker_cpu_us),
    "server CPU µs": lambda of: _number(of.server_cpu_us),
    "worker MiB": lambda of: _number(of.worker_mib),
    "server MiB": lambda of: _number(of.server_mib),
    "to file ms p50 / p99": lambda of: _pair(of.file_p50_ms, of.file_p99_ms),
    "to ack": lambda of: _pair(of.ack_p50_ms, of.ack_p99_ms),
    "exact": exactness,
}


def rows(results: Results) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each load with its rows: the rival, then the columns; what does not count is struck out."""
    for load, rivals in results.medians().items():
        yield (
            load,
            [
                [rival if of.counts else f"~~{rival}~~", *(cell(of) for cell in _COLUMNS.values())]
                for rival, of in rivals.items()
            ],
        )


def print_table(results: Results, console: Console) -> None:
    """Print one table of everything."""
    table = Table(*["", *_COLUMNS], title=f"medians of {len(results.rounds)}", title_justify="left")
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for load, lines in rows(results):
        table.add_section()
        table.add_row(f"[bold]{load}", style="bold")
        for rival, *cells in lines:
            name = rival.strip("~")
            style = "green" if name == US else "red strike" if name != rival else ""
            table.add_row(f"  {name}", *cells[:-1], f"[not strike]{cells[-1]}", style=style)
    console.print(table)
    for rival, lacks in results.missing.items():
        console.print(f"{rival}: not measured, for there is no {lacks} here.")


def markdown(results: Results) -> str:
    """Return the promises and the table for ``docs/performance.md``."""
    parts = [
        ", ".join(f"{name}: {value}" for name, value in machine().items()) + f". Medians of {len(results.rounds)}."
    ]
    parts.append("\n".join(["| figure | target | measured | |", "|---|---|---|---|", *_promise_lines(results)]))
    head = "| " + " | ".join(["", *_COLUMNS]) + " |\n|---|" + "--:|" * len(_COLUMNS)
    for load, lines in rows(results):
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"**{load}**: {describe(load)}.\n\n{head}\n{table}")
    if results.missing:
        parts.append(
            "Not measured: " + "; ".join(f"{rival} (no {lacks})" for rival, lacks in results.missing.items()) + "."
        )
    return "\n\n".join(parts) + "\n"


def describe(load: str) -> str:
    """Say in one line what a load is."""
    of = LOADS.get(load)
    if of is None:
        return load
    pace = f"{of.per_second:,} a second" if of.per_second else "as fast as they can"
    server = {"well": "", "absent": "; the server starts when all is logged", "stopped": "; the server is stopped"}
    job = f"{of.connections:,} connections of {of.workers} processes log {of.records:,} {of.kind} records"
    return f"{job}, {pace}, as {of.format}{server[of.server]}"


# -- the promises

_Of = Callable[[str, str], Figures]


class Promise(NamedTuple):
    """A figure of one run, and what it may be."""

    figure: str
    target: str
    measure: Callable[[_Of], Any]  # raises KeyError or TypeError for what was not measured
    limit: float
    at_least: bool = False


def _cpu(load: str, rival: str, of: _Of) -> float:
    figures = of(load, rival)
    if figures.server_cpu_us is None or not figures.counts:
        raise KeyError(rival)
    return figures.server_cpu_us


def _cpu_ratio(load: str, rival: str) -> Callable[[_Of], float]:
    return lambda of: _cpu(load, US, of) / _cpu(load, rival, of)


def _best_of_others(of: _Of) -> float:
    costs = []
    for rival in ("rsyslog", "Fluent Bit", "QueueHandler", "SocketHandler", "loguru", "logbook"):
        try:
            costs.append(_cpu("paced", rival, of))
        except KeyError:
            continue
    if not costs:
        raise KeyError("others")
    return _cpu("paced", US, of) / min(costs)


PROMISES = (
    Promise("server CPU a record, flood, text", "≤ 0.5 × rsyslog's", _cpu_ratio("flood", "rsyslog"), 0.5),
    Promise("", "≤ 0.4 × Fluent Bit's", _cpu_ratio("flood", "Fluent Bit"), 0.4),
    Promise("", "≤ 0.06 × QueueListener's", _cpu_ratio("flood", "QueueHandler"), 0.06),
    Promise(
        "server CPU a record, flood, JSON",
        "≤ 1.3 × its own text",
        lambda of: _cpu("flood-json", US, of) / _cpu("flood", US, of),
        1.3,
    ),
    Promise("server CPU a record, paced 4 × 1,000/s", "≤ 0.5 × the best of the others", _best_of_others, 0.5),
    Promise("server CPU a record, 1,000 × 20/s", "≤ 0.7 × rsyslog's", _cpu_ratio("many-1000", "rsyslog"), 0.7),
    Promise(
        "",
        "≤ 1.5 × its own at 100 × 200/s",
        lambda of: _cpu("many-1000", US, of) / _cpu("many-100", US, of),
        1.5,
    ),
    Promise(
        "records a second to the file, flood",
        "≥ 1.4 × rsyslog's",
        lambda of: of("flood", US).records_per_second / of("flood", "rsyslog").records_per_second,  # type: ignore[operator]
        1.4,
        at_least=True,
    ),
    Promise(
        "",
        "≥ 6 × QueueListener's",
        lambda of: of("flood", US).records_per_second / of("flood", "QueueHandler").records_per_second,  # type: ignore[operator]
        6,
        at_least=True,
    ),
    Promise(
        "emit p50, flood",
        "≤ 1.4 × NullHandler's",
        lambda of: of("flood", US).emit_p50_us / of("flood", "NullHandler").emit_p50_us,
        1.4,
    ),
    Promise(
        "emit p99.9, paced",
        "≤ QueueHandler's",
        lambda of: of("paced", US).emit_p999_us / of("paced", "QueueHandler").emit_p999_us,
        1.0,
    ),
    Promise(
        "emit slowest, paced",
        "≤ QueueHandler's",
        lambda of: of("paced", US).emit_slowest_us / of("paced", "QueueHandler").emit_slowest_us,
        1.0,
    ),
    *(
        Promise(
            f"emit p99.9, server {server}",
            "≤ 1.1 × with it well",
            lambda of, server=server: of(server, US).emit_p999_us / of("paced", US).emit_p999_us,
            1.1,
        )
        for server in ("absent", "stopped")
    ),
    *(
        Promise(
            f"emit slowest, server {server}",
            "≤ 1.1 × with it well",
            lambda of, server=server: of(server, US).emit_slowest_us / of("paced", US).emit_slowest_us,
            1.1,
        )
        for server in ("absent", "stopped")
    ),
    Promise(
        "worker CPU a record, flood, everything included",
        "≤ 1.8 × NullHandler's",
        lambda of: of("flood", US).worker_cpu_us / of("flood", "NullHandler").worker_cpu_us,
        1.8,
    ),
    Promise("emit to line in the file, paced, p50", "≤ 5 ms", lambda of: of("paced", US).file_p50_ms, 5),
    Promise("the same, p99", "≤ 50 ms", lambda of: of("paced", US).file_p99_ms, 50),
    Promise("server memory, flood", "≤ 64 MiB", lambda of: of("flood", US).server_mib, 64),
)


def promises(results: Results) -> Iterator[tuple[str, str, float, bool]]:
    """Yield (figure, target, measured, whether it holds): the median over the runs of what each run gave.

    A ratio is taken within a run, so that what slowed a whole run cancels out.
    """
    for promise in PROMISES:
        values = []
        for measured in results.rounds:
            try:
                value = promise.measure(lambda load, rival, measured=measured: measured[load][rival])
            except (KeyError, TypeError):
                continue
            if value is not None:
                values.append(value)
        if values:
            value = statistics.median(values)
            yield (
                promise.figure,
                promise.target,
                value,
                (value >= promise.limit) == promise.at_least or value == promise.limit,
            )
    footprint = results.footprint
    if footprint:
        kib = footprint["KiB for an idle connection"]
        yield "server memory for one of 1,000 idle connections", "≤ 16 KiB", kib, kib <= 16
        for statement in ("import aiolog", "from aiolog import AiologHandler"):
            ratio = footprint[statement] / footprint["import logging.handlers"]
            yield f"`{statement}`", "≤ 1.3 × `import logging.handlers`", ratio, ratio <= 1.3


def _promise_lines(results: Results) -> Iterator[str]:
    for figure, target, value, holds in promises(results):
        yield f"| {figure} | {target} | {_number(value)} | {'holds' if holds else '**missed**'} |"


def print_promises(results: Results, console: Console) -> None:
    """Print what was promised and what is."""
    table = Table("figure", "target", "measured", "", title="promises", title_justify="left")
    table.columns[2].justify = "right"
    for figure, target, value, holds in promises(results):
        table.add_row(figure, target, _number(value), "holds" if holds else "missed", style="" if holds else "red")
    if table.rows:
        console.print(table)


# -- the plots

_BARS = {
    "server_cpu_us": "server CPU a record, µs",
    "worker_cpu_us": "worker CPU a record, µs",
    "emit_p999_us": "emit p99.9, µs",
    "records_per_second": "records/s",
}
_BAR_CHARS = 40


def print_bars(results: Results, console: Console) -> None:
    """Draw the first load in the terminal."""
    for load, rivals in list(results.medians().items())[:1]:
        for field, title in _BARS.items():
            values = {name: getattr(of, field) for name, of in rivals.items() if of.counts and getattr(of, field)}
            if not values:
                continue
            console.print(f"[bold]{load}: {title}")
            for name, value in sorted(values.items(), key=lambda pair: pair[1]):
                bar = "█" * max(1, round(_BAR_CHARS * value / max(values.values())))
                console.print(f"  {name:24}{bar} {_number(value)}", style="green" if name == US else "")


def plot(results: Results, path: Path) -> None:
    """Draw the loads side by side, and what grows with the connections, into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    medians = results.medians()
    growing = [load for load in medians if load.startswith("many-")]
    flat = [load for load in medians if load not in growing]
    height = 2.6 * (len(flat) + bool(growing))
    figure, axes = plt.subplots(
        len(flat) + bool(growing), len(_BARS), figsize=(16, height), squeeze=False, layout="constrained"
    )
    for line, load in zip(axes, flat, strict=False):
        for axis, (field, title) in zip(line, _BARS.items(), strict=True):
            _bars(axis, medians[load], field)
            axis.set_title(f"{load}: {title}", fontsize=9)
    if growing:
        for axis, (field, title) in zip(axes[-1], _BARS.items(), strict=True):
            _curves(axis, {int(load.rpartition("-")[2]): medians[load] for load in growing}, field)
            axis.set_title(f"by connections: {title}", fontsize=9)
    figure.savefig(path, dpi=64, pil_kwargs={"optimize": True})
    plt.close(figure)


def _bars(axis: Any, rivals: Mapping[str, Figures], field: str) -> None:
    values = {name: getattr(of, field) or 0 for name, of in rivals.items() if of.counts}
    names = sorted(values, key=lambda name: -values[name])
    colors = ["#2a9d5c" if name == US else "#9aa5b1" for name in names]
    bars = axis.barh(names, [values[name] for name in names], color=colors)
    axis.bar_label(bars, [_number(values[name]) if values[name] else "–" for name in names], padding=3, fontsize=7)
    axis.tick_params(labelsize=7)
    axis.margins(x=0.2)
    axis.spines[["top", "right"]].set_visible(False)


def _curves(axis: Any, loads: Mapping[int, Mapping[str, Figures]], field: str) -> None:
    for name in dict.fromkeys(name for rivals in loads.values() for name in rivals):
        points = [(n, getattr(of[name], field)) for n, of in loads.items() if name in of and of[name].counts]
        points = [(n, value) for n, value in points if value]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=2.5 if name == US else 1)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=6)
