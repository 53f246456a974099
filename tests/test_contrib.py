"""contrib as a whole: each module is for one framework, and is imported without any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = ("celery", "django", "gunicorn", "loguru", "structlog", "uvicorn")
MODULES = sorted(
    path.stem for path in (Path(__file__).parent.parent / "aiolog/contrib").glob("*.py") if path.stem != "__init__"
)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_imported_without_its_framework(name):
    """An application that has none of the others, nor this one yet, can import it."""
    program = f"""
import sys
for framework in {FRAMEWORKS!r}:
    sys.modules[framework] = None  # an import of it would raise
import aiolog.contrib.{name}
assert "asyncio" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=30)


def test_every_framework_has_a_module():
    """But uvicorn, whose end the handler itself knows; foreign is what structlog and loguru share."""
    assert {*FRAMEWORKS, "foreign"} - {"uvicorn"} == set(MODULES)
