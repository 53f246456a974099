"""What must be in the files after workers have logged: everything, once, whole and in order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from worker import check


class Verdict:
    """The records of worker.py that were found, and what is wrong with them."""

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.dropped = 0  # as the server's own records say
        self.others: list[Mapping[str, Any]] = []
        for record in records:
            if record["logger"] == "worker":
                worker, number = check(record["msg"])
                self.seen[worker].append(number)
            elif record["logger"] == "aiolog" and "dropped" in record.get("fields", {}):
                self.dropped += record["fields"]["dropped"]
            else:
                self.others.append(record)

    @property
    def received(self) -> int:
        return sum(map(len, self.seen.values()))

    @property
    def twice(self) -> int:
        return sum(n - 1 for numbers in self.seen.values() for n in Counter(numbers).values())

    @property
    def disorder(self) -> int:
        """Records that stand before one with a smaller number, of the same worker."""
        return sum(a >= b for numbers in self.seen.values() for a, b in pairwise(numbers))

    def lost(self, emitted: Mapping[str, int]) -> int:
        """How many of the records 0 to n-1 of each worker are not there."""
        return sum(len(set(range(n)) - set(self.seen.get(worker, ()))) for worker, n in emitted.items())

    def assert_exact(self, emitted: Mapping[str, int]) -> None:
        """Fail unless each worker's records are there, each once and in order, and no others."""
        found = {"lost": self.lost(emitted), "twice": self.twice, "disorder": self.disorder, "dropped": self.dropped}
        assert found == {"lost": 0, "twice": 0, "disorder": 0, "dropped": 0}
        assert {worker: len(numbers) for worker, numbers in self.seen.items()} == dict(emitted)
