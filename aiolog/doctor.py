"""What is wrong with the logging of an application: which loggers reach aiolog, which do not, and what to change.

:func:`examine` looks at the tree of loggers and changes nothing. :func:`load` brings it about, as the application's own
framework would; :func:`consult` asks a server. The command prints.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import logging
import logging.config
import os
import runpy
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from logging.handlers import DEFAULT_HTTP_LOGGING_PORT
from pathlib import Path
from typing import Any, NamedTuple

from aiolog.errors import ConfigError
from aiolog.handler import AiologHandler
from aiolog.probe import Address, RefusalError, UnreachableError, greet

LOGGER = "aiolog.doctor"  # of the one record that is sent
CLOCK_SECONDS = 1.0  # a difference that matters: lines of two machines stand in the wrong order
DATE_POLL_SECONDS = 0.03  # the date in HTTP turns once a second; so near is its turn seen
LOOPBACK = ("127.", "::1", "localhost")

_HINT = "Start `aiolog serve`, or mend AIOLOG_URL, or what the handler is given"

# What to say of loggers whose frameworks keep them to themselves.
_ADVICE = {
    "uvicorn": "Call aiolog.setup() in the module of the app, or give uvicorn a --log-config (docs/recipes/fastapi.md)",
    "gunicorn": 'Say logconfig_dict = aiolog.contrib.gunicorn.logconfig_dict(app="…") in gunicorn.conf.py',
    "django": 'Say LOGGING = aiolog.contrib.django.logging_config(app="…") in the settings',
    "celery": "Call aiolog.contrib.celery.install(app) where the Celery app is made",
}


_INTERNAL = ("multiprocessing",)  # its debugging: off by itself, and never propagating


class Route(NamedTuple):
    """Where the records of one logger go."""

    name: str
    level: int
    handlers: tuple[AiologHandler, ...]  # that a record reaches, each as often as it does
    end: str  # the logger at which propagation ends


class Finding(NamedTuple):
    """Something to change."""

    what: str
    change: str


CLOCK = Finding(
    "The clocks of this machine and of a server differ: lines of two machines stand in the wrong order",
    "Run a time service (chrony, systemd-timesyncd) on both",
)


class Answer(NamedTuple):
    """What a server said, in seconds and words."""

    durability: str | None  # None where it was not asked: a Unix socket
    ack_seconds: float
    clock: str
    is_clock_wrong: bool


# ------------------------------------------------------------------------------------------------ the tree of loggers


def where(handler: AiologHandler) -> str:
    """Return the address of a handler's server, for people."""
    address = handler.address
    return str(address) if isinstance(address, (str, bytes)) else f"{address[0]}:{address[1]}"


def routes(root: logging.Logger | None = None) -> list[Route]:
    """Return the route of the root logger and of each logger whose route is not its parent's, by name."""
    top = logging.root if root is None else root
    found = [_route(top)]
    for _, logger in sorted(top.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and (_writes(logger) or not logger.propagate or logger.level):
            found.append(_route(logger))
    return found


def _route(logger: logging.Logger) -> Route:
    reached: list[AiologHandler] = []
    here = logger
    while True:
        for handler in here.handlers:
            reached += _behind(handler)
        if not here.propagate or here.parent is None:
            return Route(logger.name, logger.getEffectiveLevel(), tuple(reached), here.name)
        here = here.parent


def _behind(handler: Any, depth: int = 4) -> Iterator[AiologHandler]:
    """Yield the handlers of ours that one leads to: itself, or what a memory or queue handler hands on to."""
    if isinstance(handler, AiologHandler):
        yield handler
    elif depth:
        listener = getattr(handler, "listener", None)  # of a QueueHandler, from 3.12
        for other in (getattr(handler, "target", None), *(getattr(listener, "handlers", None) or ())):
            yield from _behind(other, depth - 1)


def table(found: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each route: the logger, its level, and where its records go."""
    width = max(len(route.name) for route in found)
    for route in found:
        goes = ", ".join(map(where, route.handlers)) or f"nowhere here (propagation ends at {route.end})"
        yield f"{route.name:{width}}  {logging.getLevelName(route.level):8}  {goes}"


def examine(root: logging.Logger | None = None) -> list[Finding]:
    """Return what to change in the tree of loggers."""
    top = logging.root if root is None else root
    found = routes(top)
    if not any(route.handlers for route in found):
        return [
            Finding(
                "No logger has an aiolog handler: nothing arrives",
                'Call aiolog.setup(app="…") where the program begins',
            )
        ]
    findings = []
    main = found[0]
    if not main.handlers:
        findings.append(
            Finding(
                "The root logger has no aiolog handler: what libraries log does not arrive",
                "Put the handler on the root logger, or call aiolog.setup()",
            )
        )
    elif main.level > logging.INFO:
        findings.append(
            Finding(
                f"The root logger's level is {logging.getLevelName(main.level)}: what is below is not logged",
                'Set it to INFO: aiolog.setup(level="INFO")',
            )
        )
    for route in found:
        findings += _of_route(route, top)
    findings += _disabled(top)
    return findings


def _of_route(route: Route, top: logging.Logger) -> Iterator[Finding]:
    twice = sorted({where(one) for one in route.handlers if [where(h) for h in route.handlers].count(where(one)) > 1})
    for address in twice:
        yield Finding(
            f"{route.name}: a record comes to {address} by several handlers (and is sent once)",
            f"Take the handler off {route.name}, or set its propagate to False",
        )
    if route.handlers or route.end != route.name or route.name == top.name:
        return  # who ends the propagation is named, not each of its children
    logger = logging.getLogger(route.name) if top is logging.root else top.manager.getLogger(route.name)
    if logger.disabled or route.level > logging.CRITICAL or (logger.handlers and not _writes(logger)):
        return  # on purpose
    if route.name in _INTERNAL:
        return
    usual = f'Set logging.getLogger("{route.name}").propagate = True, or call aiolog.setup(adopt=["{route.name}"])'
    yield Finding(
        f"{route.name} does not propagate and has no aiolog handler: its records do not arrive",
        _ADVICE.get(route.name.split(".")[0], usual),
    )


def _writes(logger: logging.Logger) -> bool:
    return any(not isinstance(one, logging.NullHandler) for one in logger.handlers)


def _disabled(top: logging.Logger) -> Iterator[Finding]:
    names = sorted(
        name for name, one in top.manager.loggerDict.items() if isinstance(one, logging.Logger) and one.disabled
    )
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        yield Finding(
            f"Disabled, so that they log nothing: {shown}",
            'Say "disable_existing_loggers": False in dictConfig, or disable_existing_loggers=False to fileConfig',
        )
    if top.manager.disable > 0:
        yield Finding(
            f"logging.disable({top.manager.disable}) is in force: what is not above that level is not logged",
            "Find who called logging.disable()",
        )


# ------------------------------------------------------------------------------------------------------ the application


def load(target: str) -> str:
    """Configure logging as the application does; returns in words how that was done.

    ``target``: a file (``.json``, ``.yaml``, ``.ini`` or ``.conf`` of logging; ``gunicorn.conf.py``), or a module,
    whatever its import does: with ``LOGGING`` it is Django's settings, with a Celery app a worker's start.
    Raises ConfigError when that fails.
    """
    path = Path(target)
    try:
        if path.suffix and path.is_file():
            return _load_file(path)
        return _load_module(target.partition(":")[0])
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{target} cannot be loaded ({type(error).__name__}: {error})") from error


def _load_file(path: Path) -> str:
    if path.suffix == ".py":
        settings = runpy.run_path(str(path)).get("logconfig_dict")
        if settings is None:
            return f"ran {path}"
        logging.config.dictConfig(settings)
        return f"logconfig_dict of {path}"
    if path.suffix == ".json":
        logging.config.dictConfig(json.loads(path.read_text(encoding="utf-8")))
    elif path.suffix in (".yaml", ".yml"):
        yaml = importlib.import_module("yaml")
        logging.config.dictConfig(yaml.safe_load(path.read_text(encoding="utf-8")))
    else:
        logging.config.fileConfig(path, disable_existing_loggers=False)
    return f"the settings in {path}"


def _load_module(name: str) -> str:
    here = os.getcwd()  # noqa: PTH109 - sys.path has strings
    if here not in sys.path:
        sys.path.insert(0, here)
    module = importlib.import_module(name)
    settings = getattr(module, "LOGGING", None)
    if isinstance(settings, dict):
        os.environ["DJANGO_SETTINGS_MODULE"] = name
        importlib.import_module("django").setup()
        return f"django.setup() with {name}"
    celery = sys.modules.get("celery")
    for app in vars(module).values():
        if celery is not None and isinstance(app, celery.Celery):
            app.log.setup(logging.INFO)
            return f"a worker's start with the Celery app of {name}"
    return f"imported {name}"


# ----------------------------------------------------------------------------------------------------------- the server


def endpoints(found: Sequence[Route]) -> dict[str, AiologHandler]:
    """Return a handler for each server that some logger reaches."""
    return {where(handler): handler for route in found for handler in reversed(route.handlers)}


def consult(handler: AiologHandler, *, timeout_seconds: float, http_url: str | None) -> Answer:
    """Ask a handler's server whether it takes records, and send one by that handler.

    Raises UnreachableError when no ack comes in time.
    """
    durability = None
    address = handler.address
    is_local = isinstance(address, (str, bytes))
    if not is_local and type(handler).makeSocket is AiologHandler.makeSocket:  # else a TLS of the application's own
        durability = _greet(Address(str(address[0]), int(address[1]), handler.token), timeout_seconds)
    record = logging.LogRecord(LOGGER, logging.INFO, __file__, 0, "aiolog doctor was here", None, None)
    acked = handler.stats()["acked"]
    began = time.perf_counter()
    handler.emit(record)
    handler.flush(timeout_seconds)
    took = time.perf_counter() - began
    if handler.stats()["acked"] <= acked:
        handler.flush_timeout_seconds = 0.0  # that was all the waiting there is; the exit would flush again
        raise UnreachableError(f"no ack came from {where(handler)} within {timeout_seconds:g} s. {_HINT}")
    if is_local or str(address[0]).startswith(LOOPBACK) or address[0] == socket.gethostname():
        return Answer(durability, took, "the server is on this machine, and has its clock", is_clock_wrong=False)
    url = http_url or f"http://{address[0]}:{DEFAULT_HTTP_LOGGING_PORT}"
    return Answer(durability, took, *_clock(url))


def _greet(address: Address, timeout_seconds: float) -> str:
    try:
        return greet(address, timeout_seconds=timeout_seconds).durability
    except RefusalError:
        raise
    except UnreachableError as error:
        what = str(error).partition(". ")[0]  # what to do is another thing here than on a command line
        raise UnreachableError(f"{what}. {_HINT}") from error


def _clock(url: str) -> tuple[str, bool]:
    """Say how far the server's clock is from this one, by the Date of its HTTP side (acks carry no time); too far?"""
    try:
        ahead = clock_difference(url)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"cannot be seen, {url} does not answer ({error}); say where its [http] is by --http", False
    way = "ahead of" if ahead > 0 else "behind"
    return f"the server's is {abs(ahead):.2f} s {way} this one", abs(ahead) >= CLOCK_SECONDS


def clock_difference(url: str) -> float:
    """Return by how many seconds the clock behind an HTTP URL is ahead; exact to some hundredths.

    The Date header has whole seconds; so it is asked for until it turns, which is at most a second. Raises OSError,
    ValueError, HTTPException.
    """
    scheme, _, rest = url.partition("://")
    if scheme != "http":
        raise ValueError(f"{url} is no http:// URL")
    with contextlib.closing(http.client.HTTPConnection(rest.partition("/")[0], timeout=2.0)) as connection:
        first, _ = _date(connection)
        while True:
            time.sleep(DATE_POLL_SECONDS)
            date, moment = _date(connection)
            if date != first:
                return date - moment


def _date(connection: http.client.HTTPConnection) -> tuple[float, float]:
    """Return the server's date, and this clock in the middle of asking for it."""
    began = time.time()
    connection.request("GET", "/health")
    response = connection.getresponse()
    response.read()
    moment = (began + time.time()) / 2
    header = response.getheader("Date")
    if header is None:
        raise ValueError("it says no date")
    return parsedate_to_datetime(header).timestamp(), moment
