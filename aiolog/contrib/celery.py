"""Celery: everything that a worker and its children log, with the task that they are at.

    from aiolog.contrib.celery import install

    app = Celery("shop", broker=…)
    install(app)

Imports Celery when :func:`install` is called. A prefork child ends by ``os._exit`` and runs no hook but the signal
``worker_process_shutdown``; the handler flushes there.
"""

from __future__ import annotations

from typing import Any

from aiolog.configure import setup
from aiolog.context import bind
from aiolog.handler import flush


def install(celery_app: Any, /, *, app: str | None = None, console: bool = True, **options: Any) -> None:
    """Send what the workers of ``celery_app`` log to aiolog, by Celery's signals; call it where the app is made.

    ``app``: its name in each line; the name of the Celery app without it. ``console``: Celery configures its own
    output to the terminal or ``--logfile`` as well, with the level of ``--loglevel``; without it Celery configures
    nothing, and takes no output of tasks for records. ``options``: of :func:`aiolog.setup`; the level is that of
    ``--loglevel``.

    Celery empties the root logger at the start of a worker (``worker_hijack_root_logger``), whatever was there: this
    sets up afterwards. Each record of a task has ``task_id`` and ``task_name`` among its fields.
    """
    from celery import signals  # noqa: PLC0415 - only who has a Celery app has Celery

    if app is None:
        app = celery_app.main
    bound: dict[str, Any] = {}  # by task id: eager tasks run inside of others

    def configure(loglevel: int | None = None, **_: Any) -> None:
        setup(**{"app": app, "level": loglevel, **options})

    def begin(task_id: str, task: Any, **_: Any) -> None:
        bound[task_id] = bind(task_id=task_id, task_name=task.name)  # from here on, without a with statement

    def end(task_id: str, **_: Any) -> None:
        if (context := bound.pop(task_id, None)) is not None:
            context.__exit__(None, None, None)

    def end_child(**_: Any) -> None:
        flush()

    # Weak receivers would be gone at the end of this call.
    if console:
        signals.after_setup_logger.connect(configure, weak=False)
        signals.after_setup_task_logger.connect(configure, weak=False)  # celery.task does not propagate from here on
    else:
        signals.setup_logging.connect(configure, weak=False)
    signals.task_prerun.connect(begin, weak=False)
    signals.task_postrun.connect(end, weak=False)
    signals.worker_process_shutdown.connect(end_child, weak=False)
