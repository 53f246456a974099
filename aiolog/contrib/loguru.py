"""loguru: a sink that sends its records to aiolog as they are, fields and all.

    logger.add(aiolog.contrib.loguru.sink(), level=0)

Better than ``logger.add(AiologHandler())``, which is given one formatted text. Imports nothing of loguru.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from aiolog.contrib.foreign import Outlet, make_record, moment


def sink(handler: logging.Handler | None = None) -> Callable[[Any], None]:
    """Return a sink for ``logger.add``; ``handler`` is the one of :func:`aiolog.setup`, unless you give another.

    Moment, thread and process are those of the log call, with ``enqueue=True`` too. What was bound is a field, and so
    is what the call was given by keyword. A traceback is the standard one: loguru's ``diagnose`` writes the values of
    variables into its own, which no log needs.
    """
    outlet = Outlet(handler)

    def send(message: Any) -> None:
        record = message.record
        exception = record["exception"]
        level, thread, process = record["level"], record["thread"], record["process"]
        outlet.handle(
            make_record(
                record["name"] or "loguru",
                level.no,
                record["message"],
                path=record["file"].path,
                line=record["line"],
                function=record["function"],
                exc_info=exception and (exception.type, exception.value, exception.traceback),
                fields=record["extra"],
                levelname=level.name,
                thread=thread.id,
                threadName=thread.name,
                process=process.id,
                processName=process.name,
                **moment(record["time"].timestamp()),
            )
        )

    return send
