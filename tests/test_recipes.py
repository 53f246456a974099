"""docs/recipes, as a user would follow them: files and commands are taken from the pages, and the shown lines found.

A file is a block under a line that ends with its name in backquotes and a colon. A block of console has commands behind
`$ `; one that ends with `&` goes on until the next such block. A block of JSON shows lines of logs/app.log.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import serve
from test_outages import free_port

RECIPES = Path(__file__).parent.parent / "docs/recipes"
MACHINES = {"systemd", "docker", "kubernetes"}  # what cannot run here: see test_recipes_machines.py
PAGES = sorted(path.stem for path in RECIPES.glob("*.md") if path.stem not in MACHINES | {"README"})
BLOCK = re.compile(r"(?:^`(?P<name>[^`\n]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
STARTS = re.compile(r"\$ (.*)$", re.MULTILINE)
PORT = "8000"  # on all pages
WAIT_SECONDS = 30

# What differs from run to run: in a record, in its fields, and in a text; and the place of what is not the page's own.
VARY = {"ts", "host", "pid"}
VARY_FIELDS = {"ppid", "run", "task_id", "duration_us", "runtime", "user_agent", "server_time"}
TEXTS = re.compile(
    r"\d\d/\w{3}/\d{4}[ :]\d\d:\d\d:\d\d( \+\d{4})?|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
    r"|\b\d+\.\d{3,}|\d{4,}|curl/[\d.]+|(?<=fd=)\d+|(?<=Thread-)\d+|(?<=Worker-)\d+|(?<=Process-)\d+|(?<=\bgw)\d+"
)
HOME = "/srv/shop"  # where the files of the pages are, on the pages


def blocks(page: str) -> list[re.Match[str]]:
    """Return the blocks of a page in their order: named files, consoles, lines."""
    return list(BLOCK.finditer((RECIPES / f"{page}.md").read_text()))


def normal(record, home=HOME):
    """Return a record without what differs from run to run; ``home`` is where the files of the page are."""
    place = record["file"]
    if place.startswith(f"{home}/"):
        place = {"file": place.removeprefix(home)}
    else:  # of a library, and of a version of it
        place = {"file": "…", "line": "…", "func": "…"}
    return masked(json.loads(json.dumps(record).replace(home, HOME))) | place


def masked(value):
    """Return a record, or a part of it, with a sign in the place of what differs."""
    if isinstance(value, dict):
        return {name: "…" if name in VARY | VARY_FIELDS else masked(one) for name, one in value.items()}
    return TEXTS.sub("#", value) if isinstance(value, str) else value


class Reader:
    """Somebody who follows a page in a directory of his own."""

    def __init__(self, directory: Path, url: str, port: int) -> None:
        self.directory = directory
        self.port = port
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "AIOLOG"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIOLOG_URL": url,
            "PYTHONUNBUFFERED": "1",
        }
        self.started: list[subprocess.Popen[bytes]] = []

    @property
    def said(self) -> str:
        return (self.directory / "terminal").read_text()

    def type(self, line: str) -> None:
        """Do what a line of console says."""
        if line == "kill %1":
            self.stop()
            return
        command = line.replace(PORT, str(self.port))
        if command.startswith("export "):
            self.environment |= dict(word.split("=", 1) for word in command.split()[1:])
            return
        if command.startswith("curl "):
            self._wait_for_port()
        with (self.directory / "terminal").open("ab") as terminal:
            process = subprocess.Popen(
                [
                    "bash",
                    "-c",
                    f"exec {command.removesuffix('&')}" if "=" not in command.split()[0] else command.removesuffix("&"),
                ],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=terminal,
                start_new_session=True,  # a group, as a shell makes one of each line
            )
        self.started.append(process)
        if not command.endswith("&"):
            assert process.wait(WAIT_SECONDS) == 0, self.said

    def _wait_for_port(self) -> None:
        until = time.monotonic() + WAIT_SECONDS
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            assert time.monotonic() < until, self.said
            time.sleep(0.02)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """End what goes on in the background, and then what it left behind.

        First the process alone, as a service manager does: a group at once hangs Celery, whose children go then too.
        """
        for process in self.started:
            try:
                if process.poll() is None:
                    process.send_signal(signum)
                    process.wait(WAIT_SECONDS)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM if process.returncode is not None else signal.SIGKILL)
        self.started.clear()


@contextlib.contextmanager
def reader(directory, url, port):
    """Leave nothing behind."""
    made = Reader(directory, url, port)
    try:
        yield made
    finally:
        made.stop(signal.SIGKILL)


def follow(page, server, someone):
    """Follow a page from its beginning to its end."""
    shown = 0
    for block in blocks(page):
        text = block["text"]
        if block["name"]:
            (someone.directory / block["name"]).write_text(text.replace(PORT, str(someone.port)))
        elif block["kind"] == "console":
            if "kill" not in text:
                someone.stop()
            for command in STARTS.findall(text):
                someone.type(command)
        elif block["kind"] == "json":
            for line in text.splitlines():
                find(json.loads(line), server, someone)
                shown += 1
        else:
            raise AssertionError(f"what is to be done with {block[0]}?")
    someone.stop()
    return shown


def find(record, server, someone):
    """Wait until a record like the shown one is in the log."""
    wanted = normal(record)
    until = time.monotonic() + WAIT_SECONDS
    while wanted not in (found := [normal(one, str(someone.directory)) for one in server.records()]):
        near = [one for one in found if one["logger"] == record["logger"]] or found
        assert time.monotonic() < until, f"{wanted}\nis not in\n" + "\n".join(map(str, near)) + someone.said
        time.sleep(0.05)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", PAGES)
def test_a_page(tmp_path, page):
    """Everything that it says is done, and every line that it shows is in the log."""
    with serve(tmp_path, None, "--no-stdout") as server, free_port() as port:
        with reader(tmp_path, f"tcp://127.0.0.1:{server.port}", port) as someone:
            shown = follow(page, server, someone)
            assert "aiolog:" not in someone.said
        assert server.stop() == 0
        assert not [r for r in server.records() if "dropped" in r.get("fields", {})]
    assert shown > 0


def test_the_index_names_every_page():
    """And no other; no page is longer than two screens."""
    named = set(re.findall(r"\]\((\S+?)\.md\)", (RECIPES / "README.md").read_text()))
    pages = {path.stem for path in RECIPES.glob("*.md")}
    assert named - {"../exits"} == pages - {"README"}
    for page in pages:
        assert len((RECIPES / f"{page}.md").read_text().splitlines()) <= 110, page


def test_a_shown_line_can_be_wrong():
    """What differs from run to run is masked, and nothing else."""
    line = {"ts": "2026-11-23T09:22:30.7Z", "msg": "order 41 is paid by 12345", "pid": 5, "file": "/srv/shop/shop.py",
            "line": 3, "fields": {"order": 41}}  # fmt: skip
    assert normal(line) == normal({**line, "ts": "x", "pid": 6, "msg": "order 41 is paid by 99999"})
    assert normal(line) != normal({**line, "msg": "order 42 is paid by 12345"})
    assert normal(line) != normal({**line, "fields": {"order": 42}})
    assert normal(line) != normal({**line, "fields": {}})
    assert normal(line) != normal({**line, "line": 4})
    assert normal(line) == normal({**line, "file": "/tmp/x/shop.py"}, "/tmp/x")
    assert normal(line) != normal({**line, "file": "/tmp/x/other.py"}, "/tmp/x")
    assert normal({**line, "file": "/usr/lib/x.py"}) == normal({**line, "file": "/lib/x.py", "line": 4})
