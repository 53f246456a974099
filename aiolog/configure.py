"""``setup()``: the one handler of a process, by arguments and environment, on every logger that needs it.

Knows ``logging``'s loggers, the environment and the interpreter's hooks; the handler does the rest. What it does it
does under the lock of ``logging``, which every fork waits for: so two threads, or a ``dictConfig``, never meet half a
set-up. Nothing here touches the network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from logging.handlers import DEFAULT_TCP_LOGGING_PORT
from types import TracebackType
from typing import Any, TextIO

from aiolog import labels as labels_module
from aiolog.handler import AiologHandler

ADOPTED = (
    "celery",
    "celery.task",
    "django.server",
    "granian",
    "granian.access",
    "gunicorn.access",
    "gunicorn.error",
    "hypercorn.access",
    "hypercorn.error",
    "uvicorn",
    "uvicorn.access",
    "uvicorn.asgi",
    "uvicorn.error",
)
"""Loggers that their frameworks keep from propagating to the root logger, one way of configuring them or another."""

VARIABLES = {
    "url": "AIOLOG_URL",
    "app": "AIOLOG_APP",
    "level": "AIOLOG_LEVEL",
    "labels": labels_module.VARIABLE,
    "token": "AIOLOG_TOKEN",
    "spool_dir": "AIOLOG_SPOOL_DIR",
}
"""The environment's name of each setting; ``AIOLOG_TOKEN_FILE`` names a file that holds the token."""

TOKEN_FILE = "AIOLOG_TOKEN_FILE"  # noqa: S105 - the name of a variable
HOST = "127.0.0.1"

_DEFAULTS: dict[str, Any] = {"host": HOST, "port": DEFAULT_TCP_LOGGING_PORT, **AiologHandler.__init__.__kwdefaults__}  # type: ignore[dict-item]
_OWN_OPTIONS = _DEFAULTS.keys() - {"host", "port"}
_ALL_OPTIONS = _OWN_OPTIONS | {
    "adopt", "capture_warnings", "excepthook", "host", "level", "logger", "port", "propagate_env",
    "threading_excepthook", "unraisablehook", "url",
}  # fmt: skip

_handler: AiologHandler | None = None  # the one of this process; a forked child has inherited it
_is_foreign = False  # it was made by somebody else, and only taken over
_given: dict[str, Any] = {}  # what calls of setup() have said so far
_places: list[logging.Logger] = []  # where it was put by setup(): the first is the one that it is for
_hooked: set[str] = set()  # which of the interpreter's hooks are ours


def setup(
    *,
    url: str | None = None,
    host: str | None = None,
    port: int | str | None = None,
    app: str | None = None,
    level: int | str | None = None,
    labels: Mapping[str, str] | None = None,
    token: str | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    logger: logging.Logger | str | None = None,
    adopt: Collection[str] | None = None,
    capture_warnings: bool = False,
    excepthook: bool = False,
    threading_excepthook: bool = False,
    unraisablehook: bool = False,
    propagate_env: bool = False,
    **options: Any,
) -> AiologHandler:
    """Send what this process logs to an aiolog server, and return the handler that does.

    Call it as often as you like, in a parent and in its children: there is one handler in a process. What a call does
    not say stays as earlier calls said it; else the environment (``AIOLOG_URL``, ``AIOLOG_APP``, ``AIOLOG_LEVEL``,
    ``AIOLOG_LABELS``, ``AIOLOG_TOKEN`` or ``AIOLOG_TOKEN_FILE``, ``AIOLOG_SPOOL_DIR``) speaks, else a default.

    ``url``: ``tcp://host:port`` or ``unix:///path``; or ``host`` and ``port``. ``options``: any other option of
    :class:`AiologHandler`. ``level``: of the logger; without one, a root logger that nobody has configured yet is set
    to INFO. ``logger``: the root logger unless you say another.
    ``adopt``: loggers that get the handler too where their records do not propagate to ``logger``; by default, where
    that is the root logger, those in :data:`ADOPTED` that exist by now. A logger that is taken from propagation later
    (by a ``dictConfig``, say) is adopted by the next call, not before.
    ``capture_warnings``, ``excepthook``, ``threading_excepthook``, ``unraisablehook``: log warnings, and exceptions
    that nobody caught, and then do what was done before. ``propagate_env``: put these settings into ``os.environ``,
    for children that inherit nothing else; the token too.

    Raises ``TypeError`` for an option that is none, ``ValueError`` for a value that cannot be; never because a server
    is down.
    """
    global _given, _handler, _is_foreign
    _refuse_unknown(options)
    said = {"url": url, "host": host, "port": port, "app": app, "level": level, "labels": labels, "token": token,
            "spool_dir": spool_dir, "logger": logger, "adopt": adopt, **options}  # fmt: skip
    wanted = {"warnings": capture_warnings, "except": excepthook, "threading": threading_excepthook,
              "unraisable": unraisablehook}  # fmt: skip
    with logging._lock:  # type: ignore[attr-defined]  # noqa: SLF001 - an RLock; logging sees to it in forks
        given = _merge(_given, {name: value for name, value in said.items() if value is not None})
        target = _logger(given.get("logger"))
        number = _level(*_value("level", given, os.environ))
        adopted = _names(given.get("adopt", ADOPTED if target is logging.root else ()))
        handler, is_foreign = _take(target, given)
        # Nothing raises from here on.
        if number is None and _handler is None and target is logging.root and not target.handlers:
            number = logging.INFO if target.level == logging.WARNING else None
        _attach(handler, target, adopted)
        if number is not None:
            target.setLevel(number)
        _given, _handler, _is_foreign = given, handler, is_foreign
        if propagate_env:
            _export(handler, number)
        for name, hook in _HOOKS.items():
            if wanted[name] and name not in _hooked:
                _hooked.add(name)
                hook()
    return handler


def handler_options(**said: Any) -> dict[str, Any]:
    """Return the keywords with which a framework's own settings make the handler that :func:`setup` would.

    ``url``, ``host``, ``port`` and the options of a handler; what is None or missing the environment may say.
    Raises as :func:`setup` does.
    """
    given = _merge({}, {name: value for name, value in said.items() if value is not None})
    _refuse_unknown(given.keys() - {"url", "host", "port"})
    return _settings(given, os.environ)


def _refuse_unknown(options: Collection[str]) -> None:
    for name in options:
        if name not in _OWN_OPTIONS:
            import difflib  # noqa: PLC0415 - seldom needed

            near = difflib.get_close_matches(name, _ALL_OPTIONS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"setup() has no option {name!r}{hint}")


def _merge(before: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that calls have said, this one last; an address in one form replaces one in the other."""
    if "url" in said and not said.keys().isdisjoint({"host", "port"}):
        raise ValueError("url and host or port were given; say where the server is in one of the two ways")
    if not said.keys().isdisjoint({"url", "host", "port"}):
        other = {"host", "port"} if "url" in said else {"url"}
        before = {name: value for name, value in before.items() if name not in other}
    return {**before, **said}


# -- settings


def _value(name: str, given: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[Any, str]:
    """Return a setting, or None, and by which name it was given. An empty variable says nothing."""
    if name in given:
        return given[name], name
    variable = VARIABLES.get(name, "")
    return environment.get(variable) or None, variable


def _settings(given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the keywords for a handler; those of which nobody said anything are missing.

    Raises ValueError for what cannot be.
    """
    settings = {name: value for name, value in given.items() if name in _OWN_OPTIONS}
    if "host" in given or "port" in given:
        settings["host"], settings["port"] = _address(given.get("host", HOST), given.get("port"))
    else:
        url, origin = _value("url", given, environment)
        if url is not None:
            settings["host"], settings["port"] = parse_url(url, origin)
    app, _ = _value("app", given, environment)
    if app is not None:
        settings["app"] = app
    token, _ = _value("token", given, environment)
    if token is None and (path := environment.get(TOKEN_FILE)):
        token = _read_token(path)
    if token is not None:
        settings["token"] = token
    spool_dir, _ = _value("spool_dir", given, environment)
    if spool_dir is not None:
        settings["spool_dir"] = spool_dir
    try:  # the handler reads the variable itself, when it knows its process; here is who may complain
        labels_module.parse(environment.get(labels_module.VARIABLE, ""))
    except ValueError as error:
        raise ValueError(f"{labels_module.VARIABLE} cannot be used: {error}") from None
    if not isinstance(given.get("labels", {}), Mapping):
        raise ValueError(f"labels is {given['labels']!r}; it must be a mapping of names to values")  # noqa: TRY004
    return settings


def _address(host: Any, port: Any) -> tuple[str, int | str | None]:
    """Return host and port as the handler takes them; a host that is a path means a Unix socket."""
    if not isinstance(host, str) or not host:
        raise ValueError(f"host is {host!r}; it must be a name or an address, or the path of a Unix socket")
    if host.startswith("/") and port is None:
        return host, None
    return host, DEFAULT_TCP_LOGGING_PORT if port is None else port


def parse_url(url: Any, origin: str = "url") -> tuple[str, int | None]:
    """Return host and port of ``tcp://host:port``, or path and None of ``unix:///path``.

    Without a port it is the default one. Raises ValueError, in which ``origin`` says where the text stood.
    """
    text = url if isinstance(url, str) else ""
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "unix" and rest.startswith("/"):
        return rest, None
    if separator and scheme == "tcp":
        rest = rest.removesuffix("/")
        if rest.startswith("["):  # IPv6
            host, bracket, after = rest[1:].partition("]")
            colon, port = after[:1], after[1:]
            valid = bool(bracket) and colon in ("", ":")
        else:
            host, colon, port = rest.partition(":")
            valid = True
        if valid and host and not set(host) & set("/@?#") and (port.isdecimal() if colon else True):
            number = int(port) if colon else DEFAULT_TCP_LOGGING_PORT
            if number < 1 << 16:
                return host, number
    raise ValueError(f"{origin} is {url!r}; it must be tcp://host:port or unix:///path")


def _read_token(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - no pathlib in a worker
            return file.read().strip()
    except (OSError, ValueError) as error:
        what = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ValueError(f"{TOKEN_FILE} is {path!r}, which cannot be read ({what})") from None


def _level(level: Any, origin: str) -> int | None:
    if level is None or (type(level) is int and level >= 0):
        return level
    if isinstance(level, str):
        if level.strip().isdecimal():
            return int(level)
        number = logging.getLevelNamesMapping().get(level.strip().upper(), logging.getLevelNamesMapping().get(level))
        if number is not None:
            return number
    raise ValueError(f"{origin} is {level!r}; it must be the name of a level, such as INFO, or its number")


def _logger(logger: Any) -> logging.Logger:
    if isinstance(logger, logging.Logger):
        return logger
    if logger is not None and not isinstance(logger, str):
        raise ValueError(f"logger is {logger!r}; it must be a logger or the name of one")
    return logging.getLogger(logger or None)


def _names(adopt: Any) -> list[str]:
    if isinstance(adopt, str) or not isinstance(adopt, Collection):
        raise ValueError(f"adopt is {adopt!r}; it must be a list of the names of loggers")  # noqa: TRY004
    return [str(name) for name in adopt]


# -- the handler and its loggers


def _take(target: logging.Logger, given: Mapping[str, Any]) -> tuple[AiologHandler, bool]:
    """Return the handler for this process, with the settings that were said, and whether somebody else made it.

    One that somebody has put on the logger, by a ``dictConfig`` say, is taken over. What it was made with counts as
    said: only arguments change it, and no environment.
    """
    found = next((one for one in target.handlers if isinstance(one, AiologHandler)), None)
    if found is not None and (found is not _handler or _is_foreign):
        found.reconfigure(**_settings(given, {}))
        return found, True
    settings = {**_DEFAULTS, **_settings(given, os.environ)}
    if _handler is None or _is_foreign:
        return AiologHandler(**settings), False
    _handler.reconfigure(**settings)
    return _handler, False


def _attach(handler: AiologHandler, target: logging.Logger, adopt: Collection[str]) -> None:
    """Put the handler on the target and on what does not come there; take it away where it is no longer needed."""
    places = [target]
    for name in adopt:
        start = logger = target.manager.loggerDict.get(name)
        while isinstance(logger, logging.Logger):  # and no placeholder, nor missing
            if logger in places or any(_is_anothers(one, handler, logger) for one in logger.handlers):
                break
            if not logger.propagate or logger.parent is None:
                places.append(start if logger is logging.root else logger)  # type: ignore[arg-type]
                break
            logger = logger.parent
    for logger in places:
        if handler not in logger.handlers:
            logger.addHandler(handler)
    for logger in _places:
        if _handler is not None and (logger not in places or handler is not _handler):
            logger.removeHandler(_handler)
    _places[:] = places


def _is_anothers(found: logging.Handler, handler: AiologHandler, logger: logging.Logger) -> bool:
    """Whether a logger has a handler of ours that no call of :func:`setup` has put there."""
    is_own = logger in _places and (found is handler or found is _handler)
    return isinstance(found, AiologHandler) and not is_own


def _export(handler: AiologHandler, level: int | None) -> None:
    """Put settings where children that inherit nothing else find them."""
    host, port = handler.host, handler.port
    where = f"[{host}]" if ":" in host else host
    every = {**labels_module.parse(os.environ.get(labels_module.VARIABLE, "")), **handler.labels}
    values = {
        "url": f"unix://{host}" if port is None else f"tcp://{where}:{port}",
        "app": handler.app,
        "level": "" if level is None else str(level),
        "labels": labels_module.join(every),
        "token": handler.token,
        "spool_dir": handler.spool_dir or "",
    }
    for name, value in values.items():
        if value:
            os.environ[VARIABLES[name]] = value


# -- the interpreter's hooks: each logs, and then does what was done before


def _log(level: int, trace: TracebackType | None, exc_info: Any, text: str, *args: Any) -> None:
    """Log at the place where an exception was raised. Raises nothing."""
    with contextlib.suppress(Exception):
        logger = _places[0]
        path, line, function = "", 0, None
        while trace is not None:
            code, line = trace.tb_frame.f_code, trace.tb_lineno
            path, function, trace = code.co_filename, code.co_name, trace.tb_next
        if logger.isEnabledFor(level):
            logger.handle(logger.makeRecord(logger.name, level, path, line, text, args, exc_info, function))


def _hook_except() -> None:
    before = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, Exception):  # no KeyboardInterrupt: somebody wanted that
            _log(logging.CRITICAL, trace, (kind, error, trace), "uncaught %s: %s", kind.__name__, error)
        before(kind, error, trace)

    sys.excepthook = excepthook


def _hook_threading() -> None:
    before = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs) -> None:
        kind, error, trace = args.exc_type, args.exc_value, args.exc_traceback
        if issubclass(kind, Exception):
            name = getattr(args.thread, "name", None)
            _log(
                logging.CRITICAL,
                trace,
                (kind, error, trace),
                "uncaught in thread %s, %s: %s",
                name,
                kind.__name__,
                error,
            )
        before(args)

    threading.excepthook = excepthook


def _hook_unraisable() -> None:
    before = sys.unraisablehook

    def unraisablehook(unraisable: Any) -> None:
        kind, error, trace = unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback
        what = unraisable.err_msg or "Exception ignored in"
        exc_info = (kind, error, trace) if error is not None else None
        _log(logging.ERROR, trace, exc_info, "%s: %r, %s: %s", what, unraisable.object, kind.__name__, error)
        before(unraisable)

    sys.unraisablehook = unraisablehook


def _hook_warnings() -> None:
    if getattr(logging, "_warnings_showwarning", None) is not None:
        return  # logging.captureWarnings() sends them to the logger py.warnings already
    before = warnings.showwarning

    def showwarning(  # noqa: PLR0917 - as warnings calls it
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is None:
            with contextlib.suppress(Exception):
                logger = logging.getLogger("py.warnings") if _places[0] is logging.root else _places[0]
                if logger.isEnabledFor(logging.WARNING):
                    args = (category.__name__, message)
                    record = logger.makeRecord(
                        logger.name, logging.WARNING, filename, lineno, "%s: %s", args, None, None
                    )
                    logger.handle(record)
        before(message, category, filename, lineno, file, line)

    warnings.showwarning = showwarning


_HOOKS: dict[str, Callable[[], None]] = {
    "warnings": _hook_warnings,
    "except": _hook_except,
    "threading": _hook_threading,
    "unraisable": _hook_unraisable,
}
