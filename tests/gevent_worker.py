"""worker.py as in a process of gevent, which replaces threads and sockets: before all else, or as late as can be.

python gevent_worker.py early|late PROGRAM PORT …
"""

import sys

when = sys.argv.pop(1)
if when == "early":
    from gevent import monkey

    monkey.patch_all()

import worker  # noqa: E402 - gevent comes first

if when == "late":  # aiolog is loaded, and its handler has a thread
    port = int(sys.argv[2])
    logger, handler = worker.logger_to(port)
    logger.info(worker.body("late", 0))
    handler.flush()
    logger.removeHandler(handler)
    from gevent import monkey

    monkey.patch_all()
    worker.logger_to = lambda *_, **__: (logger.addHandler(handler), (logger, handler))[1]

worker.main()
