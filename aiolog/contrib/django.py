"""Django: the whole of ``LOGGING`` in one line of the settings.

    from aiolog.contrib.django import logging_config

    LOGGING = logging_config(app="shop")

Imports nothing of Django.
"""

from __future__ import annotations

from typing import Any

from aiolog.configure import handler_options


def logging_config(app: str | None = None, *, level: str | int = "INFO", **options: Any) -> dict[str, Any]:
    """Return ``LOGGING`` under which everything that is logged reaches aiolog, ``runserver``'s lines included.

    ``level``: of the root logger. ``options``: ``url`` or those of ``AiologHandler``; what is not said the environment
    may say, as for :func:`aiolog.setup`.

    Django lays this over its own settings (``DEFAULT_LOGGING`` in django/utils/log.py), in which ``django`` writes to
    the terminal while ``DEBUG``, mails errors to ``ADMINS``, and propagates. ``django.server``, which is runserver's,
    does not; it keeps its lines on the terminal here, as Django writes them.
    """
    # aiolog first: Django's formatter colours the record itself.
    server = {"level": "INFO", "handlers": ["aiolog", "django.server"], "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "django.server": {
                "()": "django.utils.log.ServerFormatter",
                "format": "[{server_time}] {message}",
                "style": "{",
            }
        },
        "handlers": {
            "aiolog": {"class": "aiolog.AiologHandler", **handler_options(app=app, **options)},
            "django.server": {"class": "logging.StreamHandler", "level": "INFO", "formatter": "django.server"},
        },
        "root": {"level": level, "handlers": ["aiolog"]},
        "loggers": {"django.server": server},
    }
