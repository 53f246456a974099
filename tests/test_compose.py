"""docker-compose.yml and Dockerfile without Docker: their commands and environments as processes on loopback.

Only what containers have of their own is rewritten: host names, ports and paths of volumes.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import Process, ServerProcess, lines

from aiolog.config import Config, ServerConfig, parse

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]


def instruction(name: str) -> str:
    """Return the last instruction of a name in the Dockerfile, without it."""
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, re.MULTILINE)[-1]


def environment(service: str) -> dict[str, str]:
    """Return the environment of a service, with the defaults of its ${NAME:-default}."""
    return {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
        for name, value in SERVICES[service]["environment"].items()
    }


def as_process(argv: list[str], hosts: dict[str, str]) -> list[str]:
    """Return the arguments of Python for a container's command line, with other words in the place of some."""
    assert json.loads(instruction("ENTRYPOINT")) == ["aiolog"]
    return ["-m", "aiolog.cli", *(hosts.get(word, word) for word in argv)]


def test_the_services_run_together(tmp_path):
    """The server is healthy by its own check, the demo finds it by name, and its records are in the volume."""
    volume = tmp_path / "volume"
    copied, image_path = re.search(r"^COPY (config/\S+) (\S+)$", DOCKERFILE, re.MULTILINE).groups()
    config = tmp_path / "aiolog.toml"
    config.write_text((ROOT / copied).read_text().replace("/var/log/aiolog", str(volume)))
    paths = {image_path: str(config)}
    # 0.0.0.0 would do too; but these are processes of a machine, and its network may be open.
    ports = {"AIOLOG_SERVER__PORT": "0", "AIOLOG_HTTP__PORT": "0"}
    loopback = {"AIOLOG_SERVER__HOST": "127.0.0.1", "AIOLOG_HTTP__HOST": "127.0.0.1"}

    def start(kind: type[Process], service: str, argv: list[str], words: dict[str, str], **env: str) -> Any:
        return stack.enter_context(
            contextlib.closing(
                kind(
                    as_process(argv, words),
                    directory=tmp_path,
                    stem=service,
                    env={**environment(service), **env},
                )
            )
        )

    with contextlib.ExitStack() as stack:
        server = start(ServerProcess, "server", SERVICES["server"]["command"], paths, **ports, **loopback)
        server.ready()
        port = str(server.port)

        check = SERVICES["server"]["healthcheck"]["test"]
        assert check[:2] == ["CMD", "aiolog"]
        health = start(Process, "server", check[2:], paths, **loopback, AIOLOG_SERVER__PORT=port)
        assert health.wait() == 0, health.stderr
        other = start(
            Process, "server", check[2:], paths, **loopback, AIOLOG_SERVER__PORT=port, AIOLOG_SERVER__TOKEN="x"
        )
        assert other.wait() == 69
        assert "token" in other.stderr

        words = {"server": server.host, "9020": port}
        demo = start(Process, "demo", SERVICES["demo"]["command"], words)
        deadline = time.monotonic() + 20
        while len(list(lines(volume / "app.log"))) < 20:
            assert time.monotonic() < deadline, demo.stderr
            time.sleep(0.05)
        # What `docker compose stop` does: first the demo, which depends on the server.
        assert demo.stop(signal.SIGTERM) == 0, demo.stderr
        assert server.stop(signal.SIGTERM) == 0, server.stderr
        assert "warning" not in server.stderr

        logged = int(re.search(r"│ all +│ +(\d+) │", demo.stdout)[1])
        records = [json.loads(line) for line in lines(volume / "app.log")]
        assert len(records) == logged
        assert len({record["process"] for record in records}) == 4
        assert server.stdout.count("\n") >= logged  # the console, for `docker compose logs`


@pytest.mark.parametrize("service", SERVICES)
def test_containers_may_do_little(service):
    """Every service has a read-only root, no capabilities, and no way to new privileges."""
    settings = SERVICES[service]
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert instruction("USER") == "aiolog"


def test_the_image_agrees_with_the_defaults():
    """Ports, volume, paths and the time to stop are the same in image, compose file and configuration."""
    defaults = Config()
    ports = [str(defaults.server.port), str(defaults.http.port)]
    assert instruction("EXPOSE").split() == ports
    assert SERVICES["server"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]
    volume = instruction("VOLUME")
    assert SERVICES["server"]["volumes"] == [f"logs:{volume}"]
    config = parse((ROOT / "config/docker.toml").read_text())
    assert config.sinks["app"].path.startswith(f"{volume}/")
    assert json.loads(instruction("CMD")) == SERVICES["server"]["command"]
    health = json.loads(instruction("HEALTHCHECK").rpartition("CMD ")[2])
    assert ["CMD", *health] == SERVICES["server"]["healthcheck"]["test"]
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert ServerConfig().drain_timeout_seconds < 10  # after which Docker kills


def test_the_build_takes_what_the_package_needs():
    """Every path that the Dockerfile copies is there, and not ignored."""
    taken = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [
        path for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for path in line.split()[:-1]
    ]
    for path in sources:
        assert (ROOT / path).exists()
        assert path.split("/")[0] in taken
