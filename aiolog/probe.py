"""Ask a server whether it is there: HELLO, WELCOME, BYE over the port for records.

Knows a blocking socket and the protocol, and no record: it proves more than an open port does, and writes nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import NamedTuple

from aiolog.errors import AiologError, ProtocolError, reason
from aiolog.protocol import (
    FROM_SERVER,
    MAX_ANSWER_BYTES,
    SESSION_BYTES,
    VERSION,
    Bye,
    Decoder,
    Hello,
    Refuse,
    Welcome,
    encode,
)

RECEIVE_BYTES = 4096  # a WELCOME has about 70


class UnreachableError(AiologError):
    """No server that would take records answers at an address."""


class RefusalError(UnreachableError):
    """The server answers, and refuses: it says what to do."""


class Address(NamedTuple):
    """Where a server listens, and the token that it asks for."""

    host: str
    port: int
    token: str = ""

    def __str__(self) -> str:
        """Show where, and no token."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def greet(address: Address, *, timeout_seconds: float = 5.0) -> Welcome:
    """Say HELLO and BYE to the server at ``address``; return its WELCOME.

    Raises UnreachableError when none comes within ``timeout_seconds``: nobody listens, it is no aiolog server, or
    it refuses.
    """
    try:
        return _converse(address, time.monotonic() + timeout_seconds)
    except TimeoutError as error:
        raise UnreachableError(
            f"nobody answered at {address} within {timeout_seconds:g} s. Is it an aiolog server?"
        ) from error
    except OSError as error:
        raise UnreachableError(
            f"no server answers at {address} ({reason(error)}). Start `aiolog serve`, or give --host and --port"
        ) from error
    except ProtocolError as error:
        raise UnreachableError(
            f"what answers at {address} is no aiolog server ({error}). Give another --port"
        ) from error


def _converse(address: Address, until: float) -> Welcome:
    with socket.create_connection((address.host, address.port), _left(until)) as sock:
        hello = Hello(
            version=VERSION,
            session=os.urandom(SESSION_BYTES),
            pid=os.getpid(),
            process_name="probe",
            host=socket.gethostname(),
            app="aiolog",
            labels={},
            start_time=time.time(),
            token=address.token,
            acked=0,
        )
        sock.sendall(encode(hello))
        decoder = Decoder(FROM_SERVER, MAX_ANSWER_BYTES)
        while (message := decoder.next()) is None:
            sock.settimeout(_left(until))
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("it closed the connection without a word")
            decoder.feed(data)
        if isinstance(message, Refuse):
            raise RefusalError(f"the server at {address} refuses: {message.text}")
        if not isinstance(message, Welcome):
            raise ProtocolError(f"{type(message).__name__.upper()} came where WELCOME belongs")
        with contextlib.suppress(OSError):  # the answer is there; the rest is good manners
            sock.sendall(encode(Bye()))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(RECEIVE_BYTES):
                sock.settimeout(_left(until))
        return message


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
