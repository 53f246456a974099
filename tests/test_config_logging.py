"""The examples in config/logging, loaded by the standard library in a process of its own, reach a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from running import serve

EXAMPLES = Path(__file__).parent.parent / "config/logging"

LOADERS = {
    ".json": "import json, logging.config; logging.config.dictConfig(json.load(open(sys.argv[1])))",
    ".ini": "import logging.config; logging.config.fileConfig(sys.argv[1], disable_existing_loggers=False)",
}


@pytest.mark.parametrize(
    ("name", "loggers"),
    [
        ("dictconfig.json", ["myapp", "some.library"]),
        ("uvicorn.json", ["myapp", "uvicorn.error", "uvicorn.access"]),
        ("gunicorn.ini", ["myapp", "gunicorn.error", "gunicorn.access"]),
    ],
)
def test_an_example_reaches_the_server(tmp_path, name, loggers):
    """Each logger that the example is for arrives once, under the name of the application."""
    with serve(tmp_path, None, "--no-stdout") as server:
        example = tmp_path / name
        text = (EXAMPLES / name).read_text()
        assert text.count("9020") == 1
        example.write_text(text.replace("9020", str(server.port)))
        program = f"""
import sys
{LOADERS[example.suffix]}
import logging
for name in sys.argv[2:]:
    logging.getLogger(name).info("hello from %s", name)
"""
        subprocess.run([sys.executable, "-W", "error", "-c", program, example, *loggers], check=True, timeout=30)
        assert server.stop() == 0
        records = server.records()
    assert [(record["logger"], record["msg"], record["app"]) for record in records] == [
        (logger, f"hello from {logger}", "myapp") for logger in loggers
    ]


def test_no_example_is_left_out():
    """Every file in config/logging is tested above."""
    assert {path.name for path in EXAMPLES.iterdir()} == {"dictconfig.json", "uvicorn.json", "gunicorn.ini"}
