"""Ask a running server to do something, over its HTTP.

Knows the requests of :mod:`aiolog.http`, whose side is the other one; knows no server and no sink.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from aiolog.config import UNSPECIFIED, HttpConfig
from aiolog.errors import AiologError, ConfigError, reason

TIMEOUT_SECONDS = 30.0  # a disk that is slow may take so long to rename a file
ASKED_HEADER = "X-Aiolog-Asked"  # with any value


class RefusedError(AiologError):
    """The server answered, and did not do it."""


def rotate(http_config: HttpConfig, token: str, sinks: Sequence[str]) -> dict[str, list[str]]:
    """Have file sinks rotated, all or those named; return the names of the backups by sink.

    Raises ConfigError when HTTP is off or a sink is none, RefusedError when nobody answers or a rotation failed.
    """
    if not http_config.enabled:
        raise ConfigError("[http] is off, and it is how the server is asked. Turn it on, and restart the server")
    host = UNSPECIFIED.get(http_config.host, http_config.host)
    connection = http.client.HTTPConnection(host, http_config.port, timeout=TIMEOUT_SECONDS)
    query = urlencode([("sink", name) for name in sinks])
    headers = {ASKED_HEADER: "1"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request("POST", f"/rotate?{query}", headers=headers)
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RefusedError(
            f"no aiolog server answers on {host}:{http_config.port} ({reason(error)}). "
            "Start `aiolog serve`, or name its configuration with --config"
        ) from error
    finally:
        connection.close()
    if response.status == http.client.FORBIDDEN:
        raise RefusedError(
            "the server's token is another, or missing here. Set AIOLOG_SERVER__TOKEN, or name its configuration with "
            "--config"
        )
    if response.status == http.client.NOT_FOUND:
        raise ConfigError(str(answer.get("error")))
    if response.status != http.client.OK:
        raise RefusedError(str(answer.get("error")))
    rotated: dict[str, list[str]] = answer["rotated"]
    return rotated
