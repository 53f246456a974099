"""The interpreters that process tests run under: this one, and each that `make test` found and prepared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def found() -> dict[str, str]:
    """Return the Python executables by version, as "3.12": fork and exit behave differently in each."""
    here = "{}.{}".format(*sys.version_info[:2])
    others = {path.parent.parent.name: str(path) for path in sorted(ROOT.glob(".venvs/3.*/bin/python"))}
    return {here: sys.executable, **{version: path for version, path in others.items() if version != here}}


def version_of(python: str) -> str:
    """Return the version of one of them, as "3.12"."""
    return next(version for version, path in found().items() if path == python)


every_interpreter = pytest.mark.parametrize("python", [pytest.param(path, id=v) for v, path in found().items()])
