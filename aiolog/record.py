"""Records on their way: a ``LogRecord`` becomes a wire record in the worker, and attributes again in the server.

This is the only module that knows the attributes of ``logging.LogRecord``. It knows nothing of bytes, sockets,
threads or clocks. Both directions are total: whatever an application puts into a record, and whatever a peer
sends as one, something readable comes out and nothing is raised.

A wire record is ``[created, site, thread, message]``, or with a fifth element, ``rare``:

==========  ==================================================================================================
created     the moment: a float, seconds since the epoch (CPython up to 3.12), or an int, *nanoseconds* since
            the epoch (from 3.13, where ``LogRecord`` counts in them). ``msecs`` and ``relativeCreated`` follow
            from it exactly, so they do not travel
site        a number in the dictionary of definitions, or the eight fields of a :class:`Site` in place
thread      a number in the same dictionary, or the two fields of a :class:`Thread` in place
message     the rendered message, text. ``args`` never travel: they may hold secrets, and change after the call
rare        a map with what most records do not have: ``exc_text``, ``stack_info``, ``taskName``; ``extra``, a
            flat array of names and values; and any standard attribute that differs from what the rest gives
==========  ==================================================================================================

What frameworks do to records is undone here, so that each has a message and fields: structlog's dictionaries in place
of a message, loguru's nested ``extra``, gunicorn's atoms in place of arguments, requests in place of text.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

from aiolog.coerce import INT_MAX, INT_MIN, MAX_NAME_CHARS, as_name, as_number, as_repr, as_text
from aiolog.source import (
    MAX_DEFINITION_CHARS,
    MAX_DEFINITIONS,
    MAX_SITES,
    MAX_THREADS,
    Definition,
    Site,
    Source,
    Thread,
)

WireRecord: TypeAlias = Sequence[Any]

MAX_MESSAGE_CHARS = 128 << 10  # four-byte characters still make half a frame of 1 MiB
MAX_PLAIN_CHARS = 96 << 10  # up to here a message alone cannot make a record too large, however wide its characters
MAX_OBJECT_CHARS = 4 << 10  # of the text of an object that nobody knows: a table or a tensor is no field
MAX_TRACE_CHARS = 64 << 10  # of an exception's or a stack's text: about 800 frames
MAX_EXTRA_CHARS = 64 << 10  # of all texts in one record's extra together
MAX_EXTRA_NODES = 1_000  # values in one record's extra, nested ones counted: bounds breadth
MAX_EXTRA_DEPTH = 8  # bounds depth, and with it cycles; every JSON reader goes deeper than that
SECOND_NS = 10**9
MILLISECOND_NS = 10**6

MALFORMED = "aiolog_malformed"  # the extra that marks a record whose sender broke its form
MARK = "_aiolog_sent:"  # begins the attribute that tells which server a record went to; no extra
REDACTION_FAILED = "[aiolog: redaction failed]"
REDACTED = "[redacted]"
REDACTION_MARGIN_CHARS = 4 << 10  # what a redaction sees beyond a text's limit, so that no secret is cut before

# LogRecord counts in nanoseconds from CPython 3.13 (Lib/logging/__init__.py, LogRecord.__init__).
_NANOSECONDS = sys.version_info >= (3, 13)

_PLAIN = logging.makeLogRecord({}).__dict__
_PLAIN_COUNT = len(_PLAIN)

STANDARD_ATTRIBUTES = frozenset(_PLAIN) | {"message", "asctime", "taskName"}
"""The attributes that every record has or gets, in any supported CPython; all others are extras."""

_SITE_NAMES = ("name", "levelno", "levelname", "pathname", "filename", "module", "lineno", "funcName")
_HAS_TASK_NAME = "taskName" in _PLAIN  # from CPython 3.12
# What Formatter.format leaves on a record for the next handler to find is not worth the slow way.
_FAST_ATTRIBUTES = frozenset(_PLAIN) | {"message", "asctime"}
_RARE_KINDS: dict[Any, tuple[type, ...]] = {
    **dict.fromkeys(("name", "levelname", "pathname", "filename", "module"), (str,)),
    **dict.fromkeys(("levelno", "lineno"), (int,)),
    **dict.fromkeys(("created", "msecs", "relativeCreated"), (float, int)),
    **dict.fromkeys(("process", "thread"), (int, type(None))),
    **dict.fromkeys(("funcName", "threadName", "processName", "taskName", "exc_text", "stack_info"), (str, type(None))),
}
_LOGURU_TRACEBACK = "\n"  # loguru's exc_text: the traceback stands in the message already (loguru/_simple_sinks.py)
# gunicorn's access records have a dictionary as arguments, with every header in it; these of it travel as fields:
# gunicorn/glogging.py has them in Logger.atoms.
_GUNICORN_ACCESS = "gunicorn.access"
_ATOMS = {
    "h": "client_ip",
    "m": "method",
    "U": "path",
    "q": "query",
    "s": "status",
    "B": "bytes",
    "D": "duration_us",
    "f": "referer",
    "a": "user_agent",
}
# Where a request's method and path are properties, which are only asked of classes that are known to be quick.
_REQUEST_MODULES = ("aiohttp.", "django.", "rest_framework.", "starlette.", "werkzeug.")
_site_of = itemgetter(*_SITE_NAMES)


# ---------------------------------------------------------------------------------------------------------------
# In the worker: LogRecord → wire record


class Encoder:
    """Turn the records of one process into wire records, and keep its dictionary of definitions.

    Any thread may call :meth:`encode`, a signal handler may interrupt it: it takes no lock. ``definitions`` is
    only appended to, and a definition stands in it before the first wire record that uses it is returned.
    """

    def __init__(
        self,
        *,
        pid: int,
        process_name: str | None,
        start_time: float,
        format_exception: Callable[[Any], str],
    ) -> None:
        self.definitions: list[Definition] = []
        self._sites: dict[tuple[Any, ...], int] = {}
        self._threads: dict[tuple[Any, Any], int] = {}
        # The same numbers by what takes least to look up, with what is still to be compared; the last one stays.
        self._everyday: dict[tuple[Any, ...], tuple[int, str, str | None, str, str]] = {}
        self._everyday_threads: dict[Any, tuple[int, str | None]] = {}
        self._second: float = 0  # the last one that a record was of, in what LogRecord counts in
        self._claimed = 0  # definitions, and the characters in them
        self._claimed_chars = 0
        self.pid = pid
        self.process_name = process_name
        self.start_time = start_time
        self._format_exception = format_exception
        self._redact: Callable[[str], str] | None = None
        self._hides: Callable[[str], bool] | None = None

    def redact_by(self, redact: Callable[[str], str] | None, hides: Callable[[str], bool] | None = None) -> None:
        """From now on let ``redact`` have every text first, and hide the fields whose names it ``hides``."""
        self._redact, self._hides = redact, hides

    def encode(  # noqa: PLR0911, PLR0912 - each way out is a comparison that failed
        self, record: logging.LogRecord, context: Mapping[str, Any] | None = None
    ) -> WireRecord:
        """Return the wire record: a tuple of four or five msgpack-able values. Never raises an ``Exception``.

        ``context``: fields that become extras unless the record has its own of that name.
        """
        # Each attribute is read from the record, and its dictionary asked for last: CPython from 3.11 on makes that
        # when it is first asked for, and an attribute is quicker before (100 ns for the one, 2 for the other, in
        # our measurement). What is compared by identity is the same object in every record that logging itself makes.
        try:
            site, levelname, function, filename, module = self._everyday[
                record.name, record.levelno, record.pathname, record.lineno
            ]
            thread, thread_name = self._everyday_threads[record.thread]
            message, args = record.msg, record.args
            if (
                record.levelname is not levelname
                or record.funcName is not function
                or record.filename != filename
                or record.module != module
                or record.threadName is not thread_name
                or type(record) is not logging.LogRecord  # it may have a getMessage() of its own
                or type(message) is not str
            ):
                return self._encode_slowly(record, context)
            # Exactly what LogRecord computed, so that the server can do it again. See the module's docstring.
            relative = record.relativeCreated
            if _NANOSECONDS:
                elapsed_ns = int(relative * 1e6 + 0.49)  # quicker than round(), and as near
                created = elapsed_ns + self.start_time
                within_ns = created - self._second  # quicker than the remainder of a number of two words
                if not 0 <= within_ns < SECOND_NS:
                    if created < 0 or created >= INT_MAX:  # before 1970, or more than msgpack can carry
                        return self._encode_slowly(record, context)
                    within_ns = created % SECOND_NS
                    self._second = created - within_ns
                if (
                    created / 1e9 != record.created
                    or elapsed_ns / 1e6 != relative
                    or within_ns // MILLISECOND_NS != record.msecs
                ):
                    return self._encode_slowly(record, context)
            else:
                created = record.created
                within = created - self._second  # quicker than a remainder, too
                if not 0.0 <= within < 1.0:
                    second = float(created // 1.0)
                    within = created - second
                    self._second = second
                if (created - self.start_time) * 1000.0 != relative or within * 1000.0 // 1.0 != record.msecs:
                    return self._encode_slowly(record, context)
            if args:
                message = message % args
            if len(message) > MAX_PLAIN_CHARS:
                return self._encode_slowly(record, context)
            if self._redact is not None:
                message = self._cleared(message, MAX_MESSAGE_CHARS)
            if (
                record.exc_info is not None
                or record.exc_text is not None
                or record.stack_info is not None
                or record.process != self.pid
                or record.processName is not self.process_name
                or context is not None
                or type(args) is not tuple
                or (_HAS_TASK_NAME and record.taskName is not None)  # type: ignore[attr-defined]
                or (len(attributes := record.__dict__) != _PLAIN_COUNT and not attributes.keys() <= _FAST_ATTRIBUTES)
            ):
                rare = self._rare(record.__dict__, context)
                if rare:
                    return (created, site, thread, message, rare)
            return (created, site, thread, message)
        except Exception:  # noqa: BLE001, S110 - foreign code ran; the slow way finds out which attribute it was
            pass
        # Not in the clause above: sys.exc_info() is to be the application's own when a record asks for it.
        return self._encode_slowly(record, context)

    def encode_small(self, record: logging.LogRecord, context: Mapping[str, Any] | None = None) -> WireRecord:
        """Return the wire record with every text cut to an eighth: for a record that did not fit a frame."""
        return self._encode_slowly(record, context, shrink=8)

    def _encode_slowly(
        self, record: logging.LogRecord, context: Mapping[str, Any] | None = None, shrink: int = 1
    ) -> WireRecord:
        """Encode attribute by attribute: for first-time sites, odd attributes and messages that are none."""
        attributes = record.__dict__
        event = _event(attributes.get("msg"))
        message = _render(record) if event is None else as_text(event.pop("event"))
        message = self._cleared(message, MAX_MESSAGE_CHARS // shrink)
        rare = self._rare(attributes, context, event, shrink)
        created = self._created(attributes, rare)
        wire = (created, self._site(attributes), self._thread(attributes), message)
        return (*wire, rare) if rare else wire

    def _cleared(self, text: str, limit: int) -> str:
        """Return a text without what is not to leave this process, cut to its limit."""
        redact = self._redact
        if redact is None:
            return _clip(text, limit)
        return _clip(_redacted(redact, text[: limit + REDACTION_MARGIN_CHARS]), limit, len(text))

    def _rare(
        self,
        attributes: dict[Any, Any],
        context: Mapping[str, Any] | None,
        event: dict[str, Any] | None = None,
        shrink: int = 1,
    ) -> dict[str, Any]:
        """Return what most records do not have; ``event`` is what structlog logged beside the message."""
        # Values are compared by type first: the == and the truth of a foreign object may raise.
        rare: dict[str, Any] = {}
        exc_text, stack_info = self._exc_text(attributes, event), attributes.get("stack_info")
        if event is not None and not _is_given(stack_info) and type(event.get("stack")) is str:
            stack_info = event.pop("stack")
        if _is_given(exc_text):
            rare["exc_text"] = self._cleared(as_text(exc_text), MAX_TRACE_CHARS // shrink)
        if _is_given(stack_info):
            rare["stack_info"] = self._cleared(as_text(stack_info), MAX_TRACE_CHARS // shrink)
        if (task_name := attributes.get("taskName")) is not None:
            rare["taskName"] = as_name(task_name)
        pid, process_name = attributes.get("process"), attributes.get("processName")
        if type(pid) is not int or pid != self.pid:
            rare["process"] = None if pid is None else as_number(pid)
        if process_name is not self.process_name and (
            type(process_name) is not str or process_name != self.process_name
        ):
            rare["processName"] = None if process_name is None else as_name(process_name)
        extra = _extras(attributes, context, event)
        if extra:
            plain = _Plain(MAX_EXTRA_NODES // shrink, MAX_EXTRA_CHARS // shrink, self._redact, self._hides)
            rare["extra"] = [part for pair in plain.mapping(extra.items(), MAX_EXTRA_DEPTH).items() for part in pair]
        return rare

    def _exc_text(self, attributes: Mapping[Any, Any], event: dict[str, Any] | None) -> Any:
        """Return the traceback of a record, or something empty; takes it out of ``event``."""
        exc_text, exc_info = attributes.get("exc_text"), attributes.get("exc_info")
        if event is not None:
            told = event.pop("exc_info", None)
            exc_info = exc_info if _is_given(exc_info) else told
            if not _is_given(exc_text) and type(event.get("exception")) is str:
                exc_text = event.pop("exception")
        if type(exc_text) is str and exc_text == _LOGURU_TRACEBACK:
            return None
        if _is_given(exc_text) or not _is_given(exc_info):
            return exc_text
        try:
            if issubclass(type(exc_info), BaseException):
                exc_info = (type(exc_info), exc_info, exc_info.__traceback__)  # type: ignore[union-attr]
            elif type(exc_info) is not tuple:
                exc_info = sys.exc_info()
            return self._format_exception(exc_info)
        except Exception as error:  # noqa: BLE001 - a broken exc_info must not cost the record
            return f"[aiolog: the traceback could not be formatted: {type(error).__name__}]"

    def _created(self, attributes: Mapping[str, Any], rare: dict[str, Any]) -> float:
        """Return the moment for the wire; whatever the server would not compute from it goes into ``rare``."""
        given = attributes.get("created")
        msecs, relative = attributes.get("msecs"), attributes.get("relativeCreated")
        created: Any
        try:
            created = round(relative * 1e6) + self.start_time if _NANOSECONDS else None  # type: ignore[operator]
        except Exception:  # noqa: BLE001 - not a number, or not a finite one
            created = None
        if (
            type(created) is not int
            or type(given) is not float
            or not INT_MIN <= created <= INT_MAX
            or created / 1e9 != given
        ):
            try:
                created = float(given)  # type: ignore[arg-type]
            except Exception:  # noqa: BLE001
                created = None
        if not _is_moment(created):
            created = 0.0
        rebuilt = _clock(created, self.start_time)
        for name, value in (("created", given), ("msecs", msecs), ("relativeCreated", relative)):
            if type(value) is not float or value != rebuilt[name]:
                rare[name] = value if type(value) is float else _scalar(value)
        return created  # type: ignore[no-any-return]

    def _site(self, attributes: Mapping[str, Any]) -> Any:
        try:
            key = _site_of(attributes)
            known = self._sites.get(key)
        except Exception:  # noqa: BLE001 - an attribute is missing, or cannot be hashed
            return Site.of([attributes.get(name) for name in _SITE_NAMES])
        if known is None:
            site = Site.of(key)
            if len(self._sites) >= MAX_SITES:
                return site
            known = self._define(site, self._sites, key)
        if type(known) is int:
            name, levelno, levelname, pathname, filename, module, lineno, function = key
            self._everyday[name, levelno, pathname, lineno] = known, levelname, function, filename, module
        return known

    def _thread(self, attributes: Mapping[str, Any]) -> Any:
        key = (attributes.get("thread"), attributes.get("threadName"))
        try:
            known = self._threads.get(key)
        except Exception:  # noqa: BLE001 - one cannot be hashed
            return Thread.of(key)
        if known is None:
            thread = Thread.of(key)
            if len(self._threads) >= MAX_THREADS:
                return thread
            known = self._define(thread, self._threads, key)
        if type(known) is int:
            self._everyday_threads[key[0]] = known, key[1]
        return known

    def _define(self, entry: Definition, numbers: dict[Any, int], key: tuple[Any, ...]) -> Any:
        """Return the number of a new definition, or the definition itself when the dictionary is full."""
        chars = sum(len(field) for field in entry if isinstance(field, str))
        # Claimed first, and given back if it was too much: two threads may be here at once, and a server closes a
        # connection whose dictionary is larger by one.
        self._claimed += 1
        self._claimed_chars += chars
        if self._claimed > MAX_DEFINITIONS or self._claimed_chars > MAX_DEFINITION_CHARS:
            self._claimed -= 1
            self._claimed_chars -= chars
            return entry
        # Append is atomic; the entry then stands at `start` or behind.
        start = len(self.definitions)
        self.definitions.append(entry)
        number = self.definitions.index(entry, start)
        numbers[key] = number
        return number


def _render(record: logging.LogRecord) -> str:
    """Return the message, or the best that can be made of one that cannot be rendered."""
    try:
        message = record.getMessage()
        return message if type(message) is str else as_text(message)
    except Exception as error:  # noqa: BLE001 - str() and % run foreign code
        msg, args = record.__dict__.get("msg"), record.__dict__.get("args")
        return f"{as_text(msg)} {as_repr(args)} [aiolog: the arguments do not fit the message: {type(error).__name__}]"


def _clip(text: str, limit: int, length: int = 0) -> str:
    """Cut a text to its limit, and say so; ``length`` is what it had if somebody has cut it already."""
    if len(text) <= limit and length <= limit + REDACTION_MARGIN_CHARS:
        return text
    return f"{text[:limit]}… [aiolog: cut from {max(len(text), length)} characters]"


def _redacted(redact: Callable[[str], str], text: str) -> str:
    """Return what a hook of the application leaves of a text; nothing of it if the hook fails."""
    try:
        left: Any = redact(text)
        if isinstance(left, str):
            return left if type(left) is str else str.__str__(left)
    except Exception:  # noqa: BLE001, S110 - said in place of the text
        pass
    return REDACTION_FAILED


def _event(msg: Any) -> dict[str, Any] | None:
    """Return what structlog logs in place of a message (ProcessorFormatter.wrap_for_formatter), None for all else."""
    if type(msg) is not dict:
        return None
    event = {name if type(name) is str else as_text(name): value for name, value in msg.copy().items()}
    return event if "event" in event else None


def _extras(
    attributes: dict[Any, Any], context: Mapping[str, Any] | None, event: dict[str, Any] | None
) -> dict[Any, Any]:
    """Return the fields of a record by name, what is nearest to the log call winning."""
    extras: dict[Any, Any] = {_free(name): value for name, value in context.items()} if context else {}
    logger, level = (name if type(name) is str else "" for name in map(attributes.get, ("name", "levelname")))
    if logger == _GUNICORN_ACCESS and issubclass(type(atoms := attributes.get("args")), dict):
        extras.update(_atoms(atoms))
    for name, value in attributes.copy().items():
        if type(name) is not str:
            extras[name] = value
        elif name not in STANDARD_ATTRIBUTES and not name.startswith(MARK):
            if name == "extra" and type(value) is dict:  # loguru's bound fields
                extras |= {_free(inner): one for inner, one in value.copy().items()}
            elif name == "color_message" and logger.startswith("uvicorn"):
                pass  # the message once more, for terminals
            elif event is None or not name.startswith("_"):  # _logger, _name: structlog's own
                extras[name] = value
    if event is not None:
        for name, value in event.items():
            # What a record says already, structlog's processors have added once more.
            said = {"level": level, "logger": logger}.get(name)
            if not name.startswith("_") and not (said and type(value) is str and value.upper() == said.upper()):
                extras[_free(name)] = value
    return extras


def _free(name: Any) -> Any:
    """Return a name for a field that is not that of a standard attribute, which a server would not take."""
    return f"{name}_" if type(name) is str and name in STANDARD_ATTRIBUTES else name


def _atoms(atoms: Any) -> dict[str, Any]:
    """Return the fields of one request from what gunicorn formats its access log with."""
    fields: dict[str, Any] = {}
    for atom, name in _ATOMS.items():
        value = dict.get(atoms, atom)
        if atom == "s" and type(value) is str and value.isdecimal() and len(value) == 3:
            value = int(value)
        if type(value) is int or (type(value) is str and value not in ("", "-")):
            fields[name] = value
    return fields


def _request_line(value: Any) -> str | None:
    """Return ``GET /path`` of a web framework's request, and None of anything else.

    No code of an object is run unless its class is known: a property may be slow, or have an effect.
    """
    try:
        own = object.__getattribute__(value, "__dict__")
        method, path = own.get("method"), own.get("path")
        if type(scope := own.get("scope")) is dict:  # ASGI
            method, path = scope.get("method"), scope.get("path")
        if method is None and any(kind.__module__.startswith(_REQUEST_MODULES) for kind in type(value).__mro__):
            method, path = value.method, value.path
        if type(method) is str and type(path) is str and method.isalpha() and method.isupper():
            return f"{method} {path}"
    except Exception:  # noqa: BLE001, S110 - no request, or not one now
        pass
    return None


def _is_given(value: Any) -> bool:
    try:
        return bool(value)
    except Exception:  # noqa: BLE001
        return True


def _scalar(value: Any) -> Any:
    return _Plain(0, MAX_NAME_CHARS).value(value)


class _Plain:
    """Turn any object into None, bool, int, float, str, list and dict; bounded by nodes, characters and depth."""

    __slots__ = ("_chars", "_hides", "_nodes", "_redact")

    def __init__(
        self,
        nodes: int,
        chars: int,
        redact: Callable[[str], str] | None = None,
        hides: Callable[[str], bool] | None = None,
    ) -> None:
        self._nodes = nodes
        self._chars = chars
        self._redact = redact
        self._hides = hides

    def value(self, value: Any, depth: int = MAX_EXTRA_DEPTH) -> Any:
        """Return the plain value; a node is counted by whoever holds it."""
        kind = type(value)
        if kind is float or value is None or kind is bool or (kind is int and INT_MIN <= value <= INT_MAX):
            return value
        if kind is not list and kind is not tuple and kind is not dict:
            if kind is str:
                return self._take(value, self._chars)
            return self._take(_request_line(value) or as_text(value), min(self._chars, MAX_OBJECT_CHARS))
        if not depth or self._is_spent:
            return f"[aiolog: cut, a {kind.__name__} of {len(value)}]"
        try:
            return self.mapping(value.items(), depth - 1) if kind is dict else self._sequence(value, depth - 1)
        except Exception:  # noqa: BLE001 - it changed under our hands
            return "[aiolog: changed while it was read]"

    def mapping(self, items: Collection[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        """Return names and plain values, with at most ``depth`` levels of lists and dicts in each."""
        made: dict[str, Any] = {}
        for name, value in items:
            if self._is_spent:
                made["…"] = f"[aiolog: cut from {len(items)} items]"
                break
            self._nodes -= 1
            text = self._take(name if type(name) is str else as_text(name), MAX_NAME_CHARS)
            made[text] = REDACTED if self._hides is not None and self._hides(text) else self.value(value, depth)
        return made

    def _sequence(self, items: Collection[Any], depth: int) -> list[Any]:
        made: list[Any] = []
        for value in items:
            if self._is_spent:
                made.append(f"[aiolog: cut from {len(items)} items]")
                break
            self._nodes -= 1
            made.append(self.value(value, depth))
        return made

    @property
    def _is_spent(self) -> bool:
        return self._nodes <= 0 or self._chars <= 0

    def _take(self, text: str, limit: int) -> str:
        limit, length = max(0, limit), len(text)
        if self._redact is not None:
            text = _redacted(self._redact, text[: limit + REDACTION_MARGIN_CHARS])
        taken = _clip(text, limit, length)
        self._chars -= len(taken)
        return taken


# ---------------------------------------------------------------------------------------------------------------
# In the server: wire record → attributes


def _clock(created: float, start_time: float) -> dict[str, Any]:
    """Compute the three attributes of time as ``LogRecord.__init__`` does; float seconds or int nanoseconds."""
    try:
        if type(created) is int:
            return {
                "created": created / 1e9,
                "msecs": created % SECOND_NS // MILLISECOND_NS + 0.0,
                "relativeCreated": (created - start_time) / 1e6,
            }
        return {
            "created": created,
            "msecs": int((created - int(created)) * 1000) + 0.0,
            "relativeCreated": (created - start_time) * 1000,
        }
    except (OverflowError, ValueError, TypeError):  # nan, infinity, or a start_time that is no number
        return {"created": created, "msecs": 0.0, "relativeCreated": 0.0}


def _is_moment(created: Any) -> bool:
    return type(created) in (float, int) and -1e18 < created < 1e20


def attributes(source: Source, wire: Any) -> dict[str, Any]:
    """Rebuild every attribute of the ``LogRecord``, fit for ``logging.makeLogRecord``; extras stand among them.

    ``msg`` is the rendered message, ``args`` and ``exc_info`` are None, as with the standard ``SocketHandler``.
    Total: a record of a wrong form is coerced, and says so in the extra ``aiolog_malformed``.
    """
    faults: list[str] = []
    parts = list(wire) if isinstance(wire, (list, tuple)) else []
    if not 4 <= len(parts) <= 5:
        faults.append("not an array of 4 or 5")
        parts = (parts + [0.0, None, None, as_text(wire)][len(parts) :])[:4]
    created, site, thread, message, *rest = parts
    rare = rest[0] if rest else {}
    if not isinstance(rare, dict):
        faults.append("rare is not a map")
        rare = {}
    if not _is_moment(created):
        faults.append("created is not a moment")
        created = 0.0
    if type(message) is not str:
        faults.append("the message is not text")
        message = as_text(message)
    found = {
        **_resolve(source, site, Site, Site("unknown", 0, "NOTSET", "", "", "", 0, None), faults)._asdict(),
        **_clock(created, source.start_time),
        "msg": message,
        "args": None,
        "exc_info": None,
        "exc_text": None,
        "stack_info": None,
        "taskName": None,
        "process": source.pid,
        "processName": source.process_name,
    }
    ident, name = _resolve(source, thread, Thread, Thread(None, None), faults)
    found["thread"], found["threadName"] = ident, name
    extra: dict[str, Any] = {}
    for key, value in rare.items():
        if key == "extra" and isinstance(value, (list, tuple)):
            extra = {as_name(k): v for k, v in zip(value[::2], value[1::2], strict=False)}
            if len(value) % 2 or any(type(name) is not str for name in value[::2]):
                faults.append("extra is not names and values")
        elif type(value) in _RARE_KINDS.get(key, ()) and (key != "created" or _is_moment(value)):
            found[key] = value
        else:
            faults.append(f"rare has {as_name(key)!r}, which is no attribute or of the wrong type")
            if key in ("exc_text", "stack_info"):
                found[key] = as_text(value)
    found.update((key, value) for key, value in extra.items() if key not in STANDARD_ATTRIBUTES)
    if faults:
        found[MALFORMED] = "; ".join(faults)
    return found


def _resolve(source: Source, given: Any, kind: Any, unknown: Any, faults: list[str]) -> Any:
    """Return the definition that a number names, or the one given in place, or ``unknown`` and a fault."""
    if isinstance(given, (list, tuple)):
        try:
            return kind.of(given)
        except ValueError:
            faults.append(f"a {kind.__name__.lower()} in place has the wrong number of fields")
            return unknown
    found = source.definitions.get(given) if type(given) is int else None
    if isinstance(found, kind):
        return found
    faults.append(f"the {kind.__name__.lower()} was never defined")
    return unknown
