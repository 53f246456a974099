"""The exceptions of aiolog, split by whose fault it is.

    AiologError                 everything that aiolog raises on purpose
    ├── ProtocolError           the peer sent what the protocol does not allow
    └── ConfigError             the operator asked for what cannot be

Who asks a server or reads a spool has kinds of its own, beside the functions that raise them. A message is for people:
one sentence what, one sentence what to do.
"""

from __future__ import annotations

import errno
import os


class AiologError(Exception):
    """The root of all that aiolog raises on purpose."""


class ProtocolError(AiologError):
    """The peer broke the protocol; only its own connection suffers.

    ``code`` is the number that a ``REFUSE`` carries, one of :class:`aiolog.protocol.Refusal`.
    """

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class ConfigError(AiologError):
    """A setting, a file or an address that the operator chose cannot be used."""


def reason(error: BaseException) -> str:
    """Return what the system said of an error, without its number, path and address.

    Those stand in the sentence around it already; asyncio and aiofiles put them into the error's own text once more.
    """
    if isinstance(error, OSError) and error.errno is not None:
        # Numbers of getaddrinfo() are negative, and their texts are not strerror's.
        return os.strerror(error.errno) if error.errno > 0 else error.strerror or str(error)
    return (str(error) or repr(error)).rstrip(".")


def listening_advice(error: OSError, other_port: str) -> str:
    """Return what to do where nobody can listen; ``other_port`` says how another port is chosen."""
    if error.errno == errno.EADDRINUSE:
        return f"Stop what uses the port (`ss -ltnp` names it), or {other_port}"
    if error.errno == errno.EACCES:
        return f"Ports below 1024 are for root: {other_port}"
    return "Give a name or an address of this machine as the host"
