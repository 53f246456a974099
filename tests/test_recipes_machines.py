"""The recipes for systemd, Docker and Kubernetes, which cannot run here: read by real parsers, their commands run.

Only what machines have of their own is rewritten: paths, host names, ports, and users.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from running import Process, ServerProcess
from test_recipes import blocks, masked

from aiolog.config import Config, parse

DOCKER_CONFIG = (Path(__file__).parent.parent / "config/docker.toml").read_text()
# Of a unit's keys, what systemd.service(5), systemd.exec(5) and systemd.unit(5) have and these pages use.
KEYS = {
    "Unit": {"Description", "Documentation", "Wants"},
    "Service": {
        "Type", "ExecStart", "ExecReload", "User", "LogsDirectory", "StateDirectory", "WorkingDirectory", "Restart",
        "RestartSec", "RestartPreventExitStatus", "TimeoutStopSec", "LimitNOFILE", "NoNewPrivileges", "ProtectSystem",
        "ProtectHome", "PrivateTmp", "Environment",
    },
    "Install": {"WantedBy"},
}  # fmt: skip


def files(page):
    """Return the named blocks of a page, and the one line that it shows."""
    found = {block["name"]: block["text"] for block in blocks(page) if block["name"]}
    (line,) = [block["text"] for block in blocks(page) if not block["name"]]
    return found, json.loads(line)


def unit(text):
    """Parse a unit; a key that nobody knows would be ignored by systemd, so it fails here."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str
    parser.read_string(text)
    for section in parser.sections():
        assert set(parser[section]) <= KEYS[section]
    return parser


def run_both(tmp_path, *, serve, config, client, script, env, check=None):
    """Run a server by its command line and a client by its own; return the records."""
    (tmp_path / "aiolog.toml").write_text(config.replace("/var/log/aiolog", str(tmp_path / "log")))
    (tmp_path / "shop.py").write_text(script)
    argv = [str(tmp_path / "aiolog.toml") if word == "/etc/aiolog/aiolog.toml" else word for word in serve]
    assert Path(argv[0]).name == "aiolog"
    ports = {"AIOLOG_SERVER__PORT": "0", "AIOLOG_HTTP__PORT": "0"}
    loopback = {"AIOLOG_SERVER__HOST": "127.0.0.1", "AIOLOG_HTTP__HOST": "127.0.0.1"}
    with contextlib.ExitStack() as stack:

        def start(kind, argv, stem, **env):
            return stack.enter_context(contextlib.closing(kind(argv, directory=tmp_path, stem=stem, env=env)))

        server = start(ServerProcess, ["-m", "aiolog.cli", *argv[1:]], "server", **ports, **loopback)
        server.ready()
        if check is not None:
            argv = [str(tmp_path / "aiolog.toml") if word == "/etc/aiolog/aiolog.toml" else word for word in check]
            asked = start(
                Process, ["-m", "aiolog.cli", *argv[1:]], "check", **loopback, AIOLOG_SERVER__PORT=str(server.port)
            )
            assert asked.wait() == 0, asked.stderr
        url = env.get("AIOLOG_URL", "tcp://127.0.0.1:9020")
        assert url.endswith(":9020")
        env = env | {
            "AIOLOG_URL": f"tcp://127.0.0.1:{server.port}",
            "AIOLOG_SPOOL_DIR": str(tmp_path / "spool"),
        }
        assert Path(client[0]).name == "python"
        assert Path(client[1]).name == "shop.py"
        shop = start(Process, [str(tmp_path / "shop.py")], "shop", **env)
        assert shop.wait() == 0, shop.stderr
        assert shop.stderr == ""
        deadline = time.monotonic() + 10
        while not (records := server.records("log/app.log")):
            assert time.monotonic() < deadline
        assert server.stop(signal.SIGTERM) == 0, server.stderr
        assert list((tmp_path / "spool").iterdir()) == []
    return records


def assert_shown(line, records):
    """The one record is the shown line, but for what a machine has of its own."""
    (record,) = records
    machine = {"file": "…", "host": "…"}
    assert masked(record) | machine == masked(line) | machine
    assert Path(line["file"]).name == Path(record["file"]).name


def test_systemd(tmp_path):
    """Both units parse, and their commands and environment do what the page says."""
    found, line = files("systemd")
    server, shop = (unit(found[f"/etc/systemd/system/{name}.service"]) for name in ("aiolog", "shop"))
    config = found["/etc/aiolog/aiolog.toml"]
    environment = dict(word.split("=", 1) for word in shlex.split(shop["Service"]["Environment"]))
    assert environment["AIOLOG_SPOOL_DIR"].startswith(f"/var/lib/{shop['Service']['StateDirectory']}/")
    assert parse(config).sinks["app"].path.startswith(f"/var/log/{server['Service']['LogsDirectory']}/")
    assert int(server["Service"]["TimeoutStopSec"]) > Config().server.drain_timeout_seconds
    assert server["Service"]["ExecReload"].split()[1] == "-HUP"
    records = run_both(
        tmp_path,
        serve=shlex.split(server["Service"]["ExecStart"]),
        config=config,
        client=shlex.split(shop["Service"]["ExecStart"]),
        script=found["/opt/shop/shop.py"],
        env=environment,
    )
    assert_shown(line, records)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
@pytest.mark.parametrize("name", ["aiolog", "shop"])
def test_systemd_takes_the_units(tmp_path, name):
    """`systemd-analyze verify` has nothing to say, with programs and users that are there."""
    found, _ = files("systemd")
    for one in ("aiolog", "shop"):
        text = found[f"/etc/systemd/system/{one}.service"]
        text = re.sub(r"^(ExecStart)=\S+", rf"\1={sys.executable}", text, flags=re.MULTILINE)
        (tmp_path / f"{one}.service").write_text(re.sub(r"^(User)=\S+", r"\1=root", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / f"{name}.service")],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line or f"{name}.service" in line] == []


def test_systemd_does_not_restart_a_wrong_configuration(tmp_path):
    """The unit names the exit code that the server ends with then."""
    found, _ = files("systemd")
    server = unit(found["/etc/systemd/system/aiolog.service"])
    (tmp_path / "aiolog.toml").write_text("[servre]\n")
    process = Process(
        ["-m", "aiolog.cli", "serve", "--config", str(tmp_path / "aiolog.toml")],
        directory=tmp_path,
        python=sys.executable,
    )
    with contextlib.closing(process):
        assert process.wait() == int(server["Service"]["RestartPreventExitStatus"])


def test_docker(tmp_path):
    """The services' commands run together, as the project's own compose file does; names and volumes agree."""
    found, line = files("docker")
    compose = yaml.safe_load(found["compose.yaml"])
    logs, shop = compose["services"]["logs"], compose["services"]["shop"]
    assert shop["environment"]["AIOLOG_URL"] == "tcp://logs:9020"
    mounts = dict(volume.split(":") for one in (logs, shop) for volume in one["volumes"])
    assert mounts.keys() == compose["volumes"].keys()
    assert mounts["spool"] == shop["environment"]["AIOLOG_SPOOL_DIR"]
    check = logs["healthcheck"]["test"]
    assert check[0] == "CMD"
    records = run_both(
        tmp_path,
        serve=["aiolog", *logs["command"]],
        config=DOCKER_CONFIG,
        client=shop["command"],
        script=found["shop.py"],
        env=shop["environment"],
        check=check[1:],
    )
    assert_shown(line, records)


def test_kubernetes(tmp_path):
    """The pod's commands run together; its variables from the downward API become the labels that the page shows."""
    found, line = files("kubernetes")
    pod = yaml.safe_load(found["pod.yaml"])
    (logs,), (shop,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    assert logs["restartPolicy"] == "Always"  # or the pod would wait for its end
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for one in (logs, shop) for mount in one["volumeMounts"]} == volumes
    downward = {"metadata.name": pod["metadata"]["name"], "metadata.namespace": "default", "spec.nodeName": "node-1"}
    environment = {
        one["name"]: one["value"] if "value" in one else downward[one["valueFrom"]["fieldRef"]["fieldPath"]]
        for one in shop["env"]
    }
    assert environment["AIOLOG_SPOOL_DIR"] == shop["volumeMounts"][0]["mountPath"]
    records = run_both(
        tmp_path,
        serve=logs["command"],
        config=DOCKER_CONFIG,
        client=shop["command"],
        script=found["shop.py"],
        env=environment,
        check=logs["startupProbe"]["exec"]["command"],
    )
    assert_shown(line, records)


@pytest.mark.parametrize("page", ["systemd", "docker", "kubernetes"])
def test_the_page_has_one_script_and_one_line(page):
    """What the three pages show is the same program."""
    found, line = files(page)
    (script,) = [text for name, text in found.items() if name.endswith("shop.py")]
    assert script.splitlines()[line["line"] - 1].startswith("logging.getLogger")
