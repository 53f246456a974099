"""The exceptions of aiolog, split by whose fault it is.

    AiologError                 everything that aiolog raises on purpose
    ├── ProtocolError           the peer sent what the protocol does not allow
    └── ConfigError             the operator asked for what cannot be

A message is for people: one sentence what, one sentence what to do.
"""

from __future__ import annotations

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
