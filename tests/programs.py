"""Run the programs of worker.py as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parent / "worker.py"


class Program:
    """One running program; :meth:`result` waits for its line of JSON."""

    def __init__(
        self,
        *argv: object,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        file: Path = WORKER,
    ) -> None:
        self.process = subprocess.Popen(
            [python, str(file), *map(str, argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.stderr = ""

    def result(self, timeout: float = 100, code: int = 0) -> dict[str, Any]:
        """Return what it printed, when it has ended with ``code``."""
        try:
            out, self.stderr = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        assert self.process.returncode == code, (
            f"{self.process.args} ended with {self.process.returncode}: {self.stderr}"
        )
        result: dict[str, Any] = json.loads(out)
        return result


def flood(port: int, worker: str, count: int, *options: object, **how: Any) -> Program:
    """Start ``worker.py flood``."""
    return Program("flood", port, worker, count, *options, **how)
