"""Rotation that somebody asks for: `aiolog rotate`, a signal, and the real logrotate."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import time

import pytest
from oracle import Verdict
from programs import flood
from running import aiolog, serve

from aiolog.control import ASKED_HEADER

CONFIG = """
[http]
port = 0
[sinks.app]
path = "logs/app.log"
[sinks.by]
path = "logs/by/{logger}.log"
[sinks.console]
type = "stdout"
"""


def ask(server, path, headers):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    connection.request("POST", path, headers=headers)
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def environment(server):
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return {"AIOLOG_HTTP__HOST": host, "AIOLOG_HTTP__PORT": port, "AIOLOG_SERVER__PORT": str(server.port)}


def test_rotate_begins_new_files(tmp_path):
    """All file sinks, or those named; what was written is in the backups, and what comes goes to new files."""
    with serve(tmp_path, CONFIG) as server:
        env = environment(server)
        assert aiolog(tmp_path, "send", "one", "--logger", "a", env=env).returncode == 0
        result = aiolog(tmp_path, "rotate", env=env)
        assert result.returncode == 0, result.stderr
        app, by = result.stdout.splitlines()
        assert app.startswith("app: app.log.20")
        assert by.startswith("by: a.log.20")
        result = aiolog(tmp_path, "rotate", "app", env=env)
        assert result.stdout == "app: nothing to rotate\n"
        assert aiolog(tmp_path, "send", "two", "--logger", "a", env=env).returncode == 0
        assert server.stop() == 0
        assert [record["msg"] for record in server.records()] == ["one", "two"]
        assert (tmp_path / "logs/app.log").read_text().count("\n") == 1


def test_rotate_names_what_is_wrong(tmp_path):
    """An unknown sink, no server, HTTP that is off: one sentence each, and its exit code."""
    with serve(tmp_path, CONFIG) as server:
        env = environment(server)
        result = aiolog(tmp_path, "rotate", "console", env=env)
        assert (result.returncode, result.stderr) == (78, "aiolog: no file sink is named console; there are app, by\n")
    result = aiolog(tmp_path, "rotate", env=env)
    assert result.returncode == 69
    assert result.stderr.startswith("aiolog: no aiolog server answers on 127.0.0.1:")
    result = aiolog(tmp_path, "rotate", env={"AIOLOG_HTTP__ENABLED": "false"})
    assert (result.returncode, result.stdout) == (78, "")


def test_no_page_of_a_browser_can_rotate(tmp_path):
    """Without the header that only a program sends, and without the token, nothing happens."""
    with serve(tmp_path, CONFIG, env={"AIOLOG_SERVER__TOKEN": "s3cret"}) as server:
        bearer = {"Authorization": "Bearer s3cret"}
        result = aiolog(tmp_path, "rotate", env=environment(server) | {"AIOLOG_SERVER__TOKEN": "wrong"})
        assert result.returncode == 69
        assert "Set AIOLOG_SERVER__TOKEN" in result.stderr
        for headers in ({}, bearer, {ASKED_HEADER: "1"}, {ASKED_HEADER: "1", "Authorization": "Bearer wrong"}):
            assert ask(server, "/rotate", headers)[0] == 403
        assert ask(server, "/rotate", {ASKED_HEADER: "1", **bearer}) == (200, {"rotated": {"app": [], "by": []}})


def test_a_page_whose_name_leads_here_cannot_rotate(tmp_path):
    """DNS rebinding gives a page every header but Origin, which its browser writes."""
    with serve(tmp_path, CONFIG) as server:
        headers = {ASKED_HEADER: "1", "Host": "evil.example:9022", "Origin": "http://evil.example:9022"}
        assert ask(server, "/rotate", headers)[0] == 403
        assert ask(server, "/rotate", {ASKED_HEADER: "1"})[0] == 200


def test_a_signal_reopens(tmp_path):
    """After SIGUSR1 a file that was renamed has a successor, though nothing was logged."""
    with serve(tmp_path, CONFIG) as server:
        (tmp_path / "logs/app.log").rename(tmp_path / "logs/moved")
        server.send(signal.SIGUSR1)
        server.expect("each goes on in a new one")
        assert (tmp_path / "logs/app.log").exists()
        assert server.stop() == 0


LOGROTATE = shutil.which("logrotate", path="/usr/sbin:/usr/bin")  # not on everybody's PATH


@pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not installed")
def test_logrotate(tmp_path):
    """The real one renames, signals and compresses, ten times under load: nothing lost, nothing twice."""
    state, config = tmp_path / "state", tmp_path / "logrotate.conf"
    with serve(tmp_path, '[sinks.app]\npath = "logs/app.log"\nmax_bytes = 0\nbackup_count = 0\n') as server:
        config.write_text(
            f"{tmp_path}/logs/app.log {{\n  rotate 100\n  nocreate\n  missingok\n  compress\n  delaycompress\n"
            f"  postrotate\n    kill -USR1 {server.pid}\n  endscript\n}}\n"
        )
        config.chmod(0o600)
        program = flood(server.port, "w", 20_000, "--per-second", 8_000)
        live = tmp_path / "logs/app.log"
        for _ in range(10):
            while program.process.poll() is None and not (live.exists() and live.stat().st_size > 100_000):
                time.sleep(0.005)
            subprocess.run(
                [LOGROTATE, "--force", "--state", state, config], check=True, capture_output=True, timeout=30
            )
        program.result()
        assert server.stop() == 0
    texts = []
    numbered = sorted((tmp_path / "logs").glob("app.log.*"), key=lambda path: -int(path.name.split(".")[2]))
    for path in [*numbered, tmp_path / "logs/app.log"]:
        if path.suffix == ".gz":
            texts.append(subprocess.run(["zcat", path], check=True, capture_output=True).stdout)
        elif path.exists():
            texts.append(path.read_bytes())
    records = [json.loads(line) for line in b"".join(texts).splitlines()]
    assert len(numbered) == 10
    Verdict(records).assert_exact({"w": 20_000})
