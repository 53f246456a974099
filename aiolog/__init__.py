"""aiolog: one log server for all the processes of a Python service, and the handler that reaches it.

``import aiolog`` costs next to nothing: each public name loads its module when it is first asked for, and none of
them loads asyncio, ssl or anything of the server.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from aiolog.configure import setup
    from aiolog.context import bind, clear, unbind
    from aiolog.errors import AiologError, ConfigError, ProtocolError
    from aiolog.handler import AiologHandler, flush

__version__ = "0.1.0"

_HOMES = {
    "AiologHandler": "aiolog.handler",
    "AiologError": "aiolog.errors",
    "ConfigError": "aiolog.errors",
    "ProtocolError": "aiolog.errors",
    "bind": "aiolog.context",
    "clear": "aiolog.context",
    "flush": "aiolog.handler",
    "setup": "aiolog.configure",
    "unbind": "aiolog.context",
}

__all__ = [
    "AiologError",
    "AiologHandler",
    "ConfigError",
    "ProtocolError",
    "__version__",
    "bind",
    "clear",
    "flush",
    "setup",
    "unbind",
]


def __getattr__(name: str) -> object:
    """Load the module of a public name at its first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - nothing eager

    found: object = getattr(importlib.import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
