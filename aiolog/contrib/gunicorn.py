"""gunicorn: the whole of its logging in one line of ``gunicorn.conf.py``.

    from aiolog.contrib.gunicorn import logconfig_dict as configure

    logconfig_dict = configure(app="shop")

Imports nothing of gunicorn. No ``post_fork`` hook is needed, with ``preload_app`` or without.
"""

from __future__ import annotations

from typing import Any

from aiolog.configure import handler_options


def logconfig_dict(
    app: str | None = None, *, level: str | int = "INFO", stderr_level: str | int | None = "WARNING", **options: Any
) -> dict[str, Any]:
    """Return settings under which everything in gunicorn's processes reaches aiolog, its own loggers included.

    ``level``: of the root logger and of gunicorn's two. ``stderr_level``: what stands on stderr as well, so that a
    worker that cannot start is seen without a log server; None: nothing. ``options``: ``url`` or those of
    ``AiologHandler``; what is not said the environment may say, as for :func:`aiolog.setup`.

    All of ``root``, ``loggers`` and ``handlers`` are there because gunicorn lays this over its defaults key by key
    (``CONFIG_DEFAULTS`` in gunicorn/glogging.py): whatever is missing would name handlers that are gone.
    """
    ours = {"class": "aiolog.AiologHandler", **handler_options(app=app, **options)}
    handlers: dict[str, Any] = {"aiolog": ours}
    if stderr_level is not None:
        handlers["stderr"] = {"class": "logging.StreamHandler", "level": stderr_level, "formatter": "generic"}
    own: dict[str, Any] = {"level": level, "handlers": [], "propagate": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"generic": {"format": "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"}},
        "handlers": handlers,
        "root": {"level": level, "handlers": list(handlers)},
        "loggers": {"gunicorn.error": own, "gunicorn.access": dict(own)},
    }
