"""What the standard library offers for the same job: a receiver of SocketHandler's pickles, after the logging cookbook.

    python cookbook.py PORT FILE

Each record is four bytes of length, big-endian, and the pickle of a LogRecord's attributes; each connection has a
thread; every record goes to one FileHandler, which flushes it. It unpickles what strangers send: for comparisons on
a loopback only.
"""

from __future__ import annotations

import logging
import pickle
import signal
import socketserver
import struct
import sys
import threading


class Records(socketserver.StreamRequestHandler):
    """One connection: read records until it ends."""

    def handle(self) -> None:
        """Hand each record to the file."""
        while len(prefix := self.rfile.read(4)) == 4:
            (size,) = struct.unpack(">L", prefix)
            body = self.rfile.read(size)
            if len(body) < size:  # the peer died amid a record; the cookbook's own loop would spin here
                return
            logging.getLogger().handle(logging.makeLogRecord(pickle.loads(body)))


class Receiver(socketserver.ThreadingTCPServer):
    """Accept on a loopback port."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Serve until SIGTERM."""
    port, path = int(sys.argv[1]), sys.argv[2]
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger().addHandler(file)
    with Receiver(("127.0.0.1", port), Records) as receiver:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=receiver.shutdown).start())
        print("ready", flush=True)
        receiver.serve_forever(0.05)


if __name__ == "__main__":
    main()
