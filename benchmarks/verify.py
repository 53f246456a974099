"""Whether every record stands in the files once, whole and in its order."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.loads import Load

_RECORD = re.compile(rb"<(\d+) (\d+) (\d+)>[^<]*(?:<(?!/?\d+ )[^<]*)*</\1 \2>")
_MARK = re.compile(rb"</?\d+ \d+")


class Verdict(NamedTuple):
    """What is wrong, in records; ``delays`` are from the log call to the line in the file, in ns."""

    lost: int
    twice: int
    torn: int
    disorder: int
    delays: Sequence[int]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is."""
        return not any(self[:4])


def verify(load: Load, paths: Sequence[Path], seen: Sequence[Sequence[tuple[int, int]]]) -> Verdict:
    """Read the files; ``seen`` holds, for each, where it ended when, in bytes and ns since the epoch."""
    numbers: list[list[int]] = [[] for _ in range(load.connections)]
    torn = 0
    delays: list[int] = []
    for path, steps in zip(paths, seen, strict=True):
        data = path.read_bytes() if path.exists() else b""
        sizes = [size for size, _ in steps]
        marks = joints = end = 0
        for match in _RECORD.finditer(data):
            # Between two records stands the end of one line, and the head of the next.
            joints += end > 0 and data.count(b"\n", end, match.start()) != 1
            end = match.end()
            marks += 2
            connection = int(match[1])
            if connection < load.connections:
                numbers[connection].append(int(match[2]))
            at = bisect_left(sizes, end)
            if at < len(steps):
                delays.append(steps[at][1] - int(match[3]))
        torn += max(joints, abs(len(_MARK.findall(data)) - marks)) + (bool(data) and not data.endswith(b"\n"))
    lost = twice = disorder = 0
    for found in numbers if paths else ():
        once = set(found)
        lost += load.records_each - len(once)
        twice += len(found) - len(once)
        disorder += sum(later < earlier for earlier, later in pairwise(found))
    return Verdict(lost, twice, torn, disorder, sorted(delays))
