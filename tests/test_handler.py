"""The handler as an application meets it: configured, copied, interrupted, closed, used once more."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import logging.config
import logging.handlers
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from fake_server import WAIT_SECONDS, FakeServer

from aiolog import AiologHandler, context
from aiolog import handler as handler_module
from aiolog import sender as sender_module
from aiolog.backlog import MIN_BUFFER_BYTES
from aiolog.labels import process_labels
from aiolog.protocol import MAX_RECORD_BYTES, SESSION_BYTES

SOON_SECONDS = 2.0  # what should take no time at all, on a machine that does much else


def descriptors():
    """The open descriptors of this process."""
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(sender_module, "_complaints", {})
    with FakeServer() as fake:
        yield fake


def end(handler):
    """Let go of a handler whatever it owes."""
    sender = handler._sender
    if sender is not None:
        thread, sender._thread = sender._thread, None
        if thread is not None and thread.is_alive():
            sender.wake()
            if (sock := sender.sock) is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()
        sender.backlog.__init__(MIN_BUFFER_BYTES)  # nothing is owed: close() is quick
        sender.stopping = True
    logging.Handler.close(handler)


@pytest.fixture
def new_handler(server):
    """Return a function that makes handlers for the server; they are gone after the test."""
    handlers = []

    def new(*args, cls=AiologHandler, **settings):
        handler = cls(*(args or server.address), **settings)
        handlers.append(handler)
        return handler

    yield new
    for handler in handlers:
        end(handler)


@pytest.fixture
def handler(new_handler):
    return new_handler()


@pytest.fixture
def logger(handler):
    """Return a logger that has the handler alone."""
    log = logging.Logger("app.test")  # noqa: LOG001 - not to be found by the next test
    log.addHandler(handler)
    return log


def record(text, **attributes):
    made = logging.LogRecord("app", logging.INFO, "/app.py", 1, text, None, None, "main")
    made.__dict__.update(attributes)
    return made


def identity(stats):
    return stats["accepted"] == stats["acked"] + sum(stats["dropped"].values()) + stats["buffered"]


# -- made and configured


def test_it_is_a_socket_handler(handler):
    """Code that asks for the standard class finds it, with its attributes and its order of arguments."""
    assert isinstance(handler, logging.handlers.SocketHandler)
    other = AiologHandler("logs.example", 9021)
    assert (other.host, other.port, other.address) == ("logs.example", 9021, ("logs.example", 9021))
    assert (other.sock, other.closeOnError, other.retryTime) == (None, False, None)
    assert AiologHandler().address == ("127.0.0.1", logging.handlers.DEFAULT_TCP_LOGGING_PORT)
    assert AiologHandler("h", "9020").address == ("h", 9020)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"when_full": "wait"}, "when_full is 'wait'; it must be one of block, drop_oldest, drop_newest"),
        ({"buffer_bytes": 1}, f"buffer_bytes is 1; the least that works is {MIN_BUFFER_BYTES}"),
    ],
)
def test_impossible_settings(settings, sentence):
    """A setting that cannot be is refused in a sentence that says what can."""
    with pytest.raises(ValueError, match=sentence):
        AiologHandler(**settings)


def test_the_constructor_opens_and_starts_nothing():
    """A handler that has no record yet costs no descriptor and no thread, and counts nothing."""
    before = descriptors(), threading.enumerate()
    handler = AiologHandler("host.invalid", 1)
    handler.flush()
    stats = handler.stats()
    assert (descriptors(), threading.enumerate()) == before
    assert not stats.pop("connected")
    assert sum(stats.pop("dropped").values()) == sum(stats.values()) == 0
    handler.close()


def test_a_unix_socket(tmp_path):
    """With port None the host is a path, as with the standard handler."""
    with FakeServer(str(tmp_path / "socket")) as server:
        handler = AiologHandler(str(tmp_path / "socket"), None)
        handler.handle(record("over a path"))
        handler.close()
        assert server.texts == ["over a path"]


def test_dict_config(server):
    """The standard dictionary makes a handler, its '.' sets attributes, and its records arrive."""
    host, port = server.address
    kept = logging.root.handlers[:], logging.root.level
    try:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {
                    "aiolog": {
                        "class": "aiolog.AiologHandler",
                        "host": host,
                        "port": str(port),
                        "app": "shop",
                        "level": "WARNING",
                        ".": {"retryMax": 7.0, "closeOnError": True},
                    }
                },
                "loggers": {"app.configured": {"handlers": ["aiolog"], "propagate": False}},
            }
        )
        (handler,) = logging.getLogger("app.configured").handlers
        assert (handler.retryMax, handler.closeOnError, handler.level) == (7.0, True, logging.WARNING)
        logging.getLogger("app.configured").info("not this")
        logging.getLogger("app.configured").error("but %s", "this")
        handler.close()
    finally:
        logging.getLogger("app.configured").handlers = []
        logging.root.handlers[:], logging.root.level = kept
    assert server.texts == ["but this"]
    assert server.peers[0].hello.app == "shop"


def test_file_config(server, tmp_path):
    """The INI form of the standard library makes a handler with positional and keyword arguments."""
    host, port = server.address
    ini = tmp_path / "logging.ini"
    ini.write_text(
        textwrap.dedent(f"""
        [loggers]
        keys=root,ini
        [handlers]
        keys=aiolog
        [formatters]
        keys=
        [logger_root]
        handlers=
        [logger_ini]
        handlers=aiolog
        qualname=app.ini
        propagate=0
        [handler_aiolog]
        class=aiolog.AiologHandler
        args=({host!r}, {port})
        kwargs={{"app": "ini"}}
        """)
    )
    kept = logging.root.handlers[:], logging.root.level
    try:
        logging.config.fileConfig(ini, disable_existing_loggers=False)
        logging.getLogger("app.ini").warning("from an INI file")
        logging.getLogger("app.ini").handlers[0].close()
    finally:
        logging.getLogger("app.ini").handlers = []
        logging.root.handlers[:], logging.root.level = kept
    assert server.texts == ["from an INI file"]
    assert server.peers[0].hello.app == "ini"


@pytest.mark.parametrize("copied", [lambda handler: pickle.loads(pickle.dumps(handler)), copy.deepcopy])
def test_a_copy_has_the_settings_and_a_session_of_its_own(server, new_handler, copied):
    """A handler that went through pickle, used or not, keeps what was set and delivers its own records."""
    handler = new_handler(app="shop", labels={"zone": "a"}, token="t", when_full="drop_newest", buffer_bytes=1 << 20)
    handler.retryMax = 3.0
    handler.setLevel(logging.INFO)
    handler.handle(record("first"))
    handler.flush()
    other = copied(handler)
    settings = handler.__getstate__()
    assert settings == {name: other.__dict__[name] for name in settings}
    assert settings.keys() >= set(handler_module.SETTINGS)
    assert other.stats()["accepted"] == 0
    other.handle(record("second"))
    other.close()
    handler.handle(record("third"))
    handler.close()
    assert sorted(server.texts) == ["first", "second", "third"]
    assert len(server.sessions) == 2


def test_hello_says_who_it_is(server, new_handler):
    """HELLO carries the process, the app, the labels as text, and the token."""
    handler = new_handler(app="shop", labels={"zone": "a", "shard": 7}, token="secret")
    handler.handle(record("x"))
    handler.close()
    hello = server.peers[0].hello
    labels = process_labels(os.environ, os.getppid()) | {"zone": "a", "shard": "7"}
    assert labels["ppid"] == str(os.getppid())
    assert (hello.app, hello.labels, hello.token) == ("shop", labels, "secret")
    assert (hello.pid, hello.process_name, hello.acked) == (os.getpid(), "MainProcess", 0)
    assert len(hello.session) == SESSION_BYTES


def test_two_handlers_have_two_sessions(server, new_handler):
    """Two handlers in one process, to one server, neither share nor mix anything."""
    handlers = [new_handler() for _ in range(2)]
    for number in range(100):
        handlers[number % 2].handle(record(number))
    for handler in handlers:
        handler.close()
    texts = [[r["msg"] for r in session.records] for session in server.sessions.values()]
    assert sorted(texts, key=lambda some: int(some[0])) == [
        [str(n) for n in range(0, 100, 2)],
        [str(n) for n in range(1, 100, 2)],
    ]


# -- what a record may be


def test_the_formatter_formats_exceptions_and_the_record_stays_as_it_was(server, handler, logger):
    """A formatter's formatException() is used, its format() is not, and other handlers find an untouched record."""

    class Short(logging.Formatter):
        def formatException(self, ei):  # noqa: N802
            return f"short {ei[0].__name__}"

        def format(self, record):
            raise AssertionError

    seen = []

    class After(logging.Handler):
        def emit(self, record):
            seen.append((record.msg, record.args, record.exc_text, hasattr(record, "message"), record.exc_info[0]))

    handler.setFormatter(Short())
    logger.addHandler(After())
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logger.exception("it %s", "broke")
    handler.flush()
    (arrived,) = server.records
    assert (arrived["msg"], arrived["exc_text"]) == ("it broke", "short ZeroDivisionError")
    assert seen == [("it %s", ("broke",), None, False, ZeroDivisionError)]


def test_filters(server, handler, logger):
    """A filter may hold a record back, add to it, and from CPython 3.12 on put another in its place."""

    def refuse_secrets(some):
        some.colour = "red"
        return "secret" not in some.msg

    handler.addFilter(refuse_secrets)
    logger.info("secret")
    logger.info("open")
    if sys.version_info >= (3, 12):
        handler.addFilter(lambda some: record(some.msg.upper(), colour="blue"))
        logger.info("replaced")
    handler.flush()
    colours = {r["msg"]: r["colour"] for r in server.records}
    assert colours == {"open": "red"} | ({"REPLACED": "blue"} if sys.version_info >= (3, 12) else {})


class Hostile:
    """Raises whatever is done with it."""

    def __getattribute__(self, name):
        raise ValueError(name)

    def __str__(self):
        raise ValueError

    __repr__ = __eq__ = __hash__ = __bool__ = __len__ = __str__


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", [*record("x").__dict__, "mine"])
def test_a_hostile_attribute_costs_no_record(server, handler, name):
    """Whichever attribute raises, emit() does not, and something of the record arrives."""
    handler.handleError = lambda record: pytest.fail("it was not encoded")
    handler.emit(record("x", **{name: Hostile()}))
    handler.flush()
    assert len(server.records) == 1


def test_a_record_without_attributes_is_a_record(server, handler):
    """A record that lost its attributes, the pid among them, arrives."""
    bare = record("x")
    bare.__dict__.clear()
    handler.handleError = lambda record: pytest.fail("it was not encoded")
    handler.emit(bare)
    handler.flush()
    assert len(server.records) == 1


def test_an_encoder_that_fails_is_reported_as_logging_does(server, handler, monkeypatch, capsys):
    """Whatever goes wrong ends in handleError(), which prints, and prints nothing if raiseExceptions is off."""
    handler.handle(record("first"))
    encoder = handler._life[1]
    monkeypatch.setattr(encoder, "encode", lambda *_: 1 / 0)
    handler.handle(record("second"))
    assert "--- Logging error ---" in capsys.readouterr().err
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler.handle(record("third"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(encoder, "encode", lambda *_: (_ for _ in ()).throw(RecursionError))
    with pytest.raises(RecursionError):
        handler.emit(record("fourth"))
    monkeypatch.undo()
    handler.handle(record("fifth"))
    handler.flush()
    assert server.texts == ["first", "fifth"]


def test_text_that_is_no_unicode_arrives(server, handler):
    """A lone surrogate, as in the name of a file that cannot be decoded, arrives; so does what comes after it."""
    for text in ("\udc80", "plain", "\ud800 %s", "ä"):
        handler.handle(record(text, mine=text))
    handler.flush()
    assert server.texts == ["\udc80", "plain", "\ud800 %s", "ä"]
    assert [one["mine"] for one in server.records] == server.texts


@pytest.mark.parametrize("size", [MAX_RECORD_BYTES, 20 << 20])
def test_a_record_too_large_is_cut_and_marked(server, handler, size):
    """A message, traceback and extra of megabytes arrive cut, with a mark that says from how much."""
    text = "\U0001f600" * size
    handler.handle(record(text, exc_text=text, stack_info=text, mine=text))
    handler.flush()
    (arrived,) = server.records
    for name in ("msg", "exc_text", "stack_info", "mine"):
        assert f"[aiolog: cut from {size} characters]" in arrived[name], name
        assert arrived[name].startswith("\U0001f600" * 1_000)


# -- logging amid logging


def test_a_signal_handler_that_logs(server, handler, logger):
    """A signal handler may log at any point of a log call, also of the first; nothing is lost, twice or stuck."""
    came = []

    def on_alarm(*_):
        came.append(0)
        logger.info("signal %d", len(came))

    old = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0003)
    try:
        until = time.monotonic() + 1.0
        number = 0
        while time.monotonic() < until:
            number += 1
            logger.info("main %d", number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    handler.flush(WAIT_SECONDS)
    texts = server.texts
    assert [t for t in texts if t.startswith("main")] == [f"main {n}" for n in range(1, number + 1)]
    assert sorted(t for t in texts if t.startswith("signal")) == sorted(f"signal {n + 1}" for n in range(len(came)))
    assert len(came) > 20


def test_a_finalizer_that_logs(server, handler, logger):
    """Objects that log from __del__, as the collector takes them amid a log call, cost nothing but their records."""

    class Dying:
        def __init__(self, number):
            self.number, self.me = number, self

        def __del__(self):
            logger.info("gone %d", self.number)

    threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for number in range(500):
            Dying(number)
            logger.info("alive %d", number, extra={"some": [[], {}, [[]]]})
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    handler.flush(WAIT_SECONDS)
    assert sorted(server.texts) == sorted([f"{what} {n}" for what in ("gone", "alive") for n in range(500)])


def test_an_argument_and_a_handler_that_log(server, handler, logger):
    """A record's own __str__ and another handler's emit() may log: the inner record arrives too, as it should."""

    class Chatty:
        def __str__(self):
            logger.warning("inside")
            return "text"

    class Echo(logging.Handler):
        def emit(self, record):
            if record.levelno == logging.ERROR:
                logger.info("echo")

    logger.addHandler(Echo())
    logger.info("an %s", Chatty())
    logger.error("loud")
    handler.flush()
    assert server.texts == ["inside", "an text", "loud", "echo"]


@pytest.mark.parametrize("when_full", ["block", "drop_oldest", "drop_newest"])
def test_the_senders_thread_may_log_and_flush(server, new_handler, when_full):
    """A makeSocket() that logs through its own handler, flushes it, and fills it, does not wait for itself."""

    class Chatty(AiologHandler):
        def makeSocket(self, timeout=1):  # noqa: N802
            for number in range(300):
                self.handle(record(f"connecting {number}".ljust(1_000)))
            self.flush()
            return super().makeSocket(timeout)

    handler = new_handler(
        cls=Chatty, when_full=when_full, buffer_bytes=MIN_BUFFER_BYTES, block_timeout_seconds=WAIT_SECONDS
    )
    began = time.monotonic()
    handler.handle(record("first"))
    handler.flush(WAIT_SECONDS)  # the first is acked, or dropped for those that came later: they may still come
    server.wait_for(lambda: handler.stats()["accepted"] == 301)
    handler.flush(WAIT_SECONDS)
    assert time.monotonic() - began < SOON_SECONDS
    stats = handler.stats()
    assert identity(stats)
    assert stats["accepted"] == 301
    assert len(server.texts) == stats["acked"] > 10


# -- one record, one server


def family(*handlers):
    """Return a logger below another, each with one of the handlers, the last one's being the root of the two."""
    parent, child = logging.Logger("app"), logging.Logger("app.child")  # noqa: LOG001 - not to be found by the next test
    child.parent = parent
    for logger, handler in zip((child, parent), handlers, strict=True):
        logger.addHandler(handler)
    return child


def test_a_record_by_two_loggers_is_sent_once(server, handler):
    """The handler on a logger and on its parent: each record once, with and without extras, first and later ones."""
    child = family(handler, handler)
    for number in range(3):
        child.info("plain %d", number)
        child.info("extra %d", number, extra={"a": 1})
    handler.flush()
    assert server.texts == [f"{kind} {number}" for number in range(3) for kind in ("plain", "extra")]
    assert not [name for found in server.records for name in found if "aiolog" in name]


def test_two_handlers_for_one_server_send_a_record_once(server, new_handler):
    """Which of them does is the first in the way; with another server, both do."""
    with FakeServer() as elsewhere:
        child = family(new_handler(), new_handler())
        other = new_handler(*elsewhere.address)
        child.parent.addHandler(other)
        for text in ("one", "two"):
            child.info(text)
        for one in (*child.handlers, *child.parent.handlers):
            one.flush()
        assert (server.texts, elsewhere.texts) == (["one", "two"], ["one", "two"])
        end(other)


def test_filters_decide_before_duplicates_are_known(server, handler, new_handler):
    """A record that the first handler's filter holds back goes by the second; a replaced one goes once."""
    other = new_handler()
    child = family(handler, other)
    handler.addFilter(lambda some: "second" not in some.msg)
    child.info("by the second")
    child.info("by the first")
    if sys.version_info >= (3, 12):
        for one in (handler, other):
            one.addFilter(lambda some: record(some.msg.upper()))
        child.info("replaced")
    handler.flush()
    other.flush()
    assert sorted(server.texts) == ["REPLACED"] * (sys.version_info >= (3, 12)) + ["by the first", "by the second"]


def test_copies_are_records_of_their_own(server, handler):
    """A copy that somebody changed and logs again is sent, and so is one that came through a pickle."""
    first = record("first")
    handler.handle(first)
    handler.handle(first)
    changed = copy.copy(first)
    changed.msg = "changed"
    handler.handle(changed)
    passed = pickle.loads(pickle.dumps(first))
    passed.msg = "passed on"
    handler.handle(passed)
    handler.flush()
    assert server.texts == ["first", "changed", "passed on"]
    assert not [name for found in server.records for name in found if "aiolog" in name]


def test_a_queue_before_the_handler(server, handler):
    """Records that pass a QueueListener, whose handler ours is, arrive once, in order."""
    waiting = queue.Queue()
    listener = logging.handlers.QueueListener(waiting, handler)
    log = logging.Logger("app.queue")  # noqa: LOG001
    log.addHandler(logging.handlers.QueueHandler(waiting))
    listener.start()
    for number in range(50):
        log.info("%d", number)
    listener.stop()
    handler.flush()
    assert server.texts == [str(number) for number in range(50)]


# -- other settings


def test_secrets_never_reach_the_backlog(server, tmp_path):
    """With ``redact`` neither the connection nor a spool's files have seen them."""
    handler = AiologHandler(*server.address, redact=["default", "hunter2"], spool_dir=tmp_path)
    server.stop()
    log = logging.Logger("app")  # noqa: LOG001
    log.addHandler(handler)
    for _ in range(2):
        log.info("password=%s", "s3cret", extra={"token": "s3cret", "note": "hunter2", "user": "bob"})
    log.error("Authorization: Bearer s3cret", exc_info=(ValueError, ValueError("pwd=s3cret"), None))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"bob" in written
    assert b"s3cret" not in written
    assert b"hunter2" not in written
    server.start()
    handler.flush(WAIT_SECONDS)
    handler.close()
    assert server.texts == ["password=[redacted]"] * 2 + ["Authorization: [redacted]"]
    assert server.records[0]["token"] == server.records[0]["note"] == "[redacted]"
    assert server.records[2]["exc_text"] == "ValueError: pwd=[redacted]"


def test_a_handler_that_is_made_has_done_nothing_yet(server, tmp_path):
    """Its first log call was rehearsed: no thread, descriptor, file, count or connection is left, no text redacted."""

    def held():
        return threading.enumerate(), sorted(Path("/proc/self/fd").iterdir())

    redacted = []
    before = held()
    handler = AiologHandler(*server.address, redact=redacted.append, spool_dir=tmp_path / "spool")
    assert held() == before
    assert redacted == server.peers == [*tmp_path.iterdir()] == []
    assert handler.stats()["accepted"] == 0
    assert handler._life[0] == 0


def test_a_rehearsal_asks_no_code_of_the_application(new_handler):
    """Neither what is bound, which may be lazy, nor an iterable of patterns, which may give them once."""

    class Lazy:
        def __str__(self):
            asked.append(self)
            return "lazy"

    asked = []

    with context.bind(user=Lazy()):
        handler = new_handler(redact=iter(["hunter2"]))
    assert asked == []
    handler.handle(record("hunter2"))
    assert handler.flushed(WAIT_SECONDS)


def test_a_rehearsal_that_fails_is_nobodys_business(new_handler, monkeypatch):
    """A handler is made all the same; what does not work then may when there is something to log."""
    monkeypatch.setattr(os, "getppid", lambda: 1 // 0)
    handler = new_handler()
    monkeypatch.undo()
    handler.handle(record("heard"))
    assert handler.flushed(WAIT_SECONDS)


def test_patterns_that_can_be_asked_for_once(server, new_handler):
    """A generator redacts as a list does, in this process and in a copy."""
    handler = new_handler(redact=(pattern for pattern in ["hunter2"]))
    for one in (handler, pickle.loads(pickle.dumps(handler))):
        one.handle(record("hunter2"))
        assert one.flushed(WAIT_SECONDS)
    assert server.texts == ["[redacted]"] * 2


def test_redaction_survives_pickle_and_may_begin_later(server, new_handler):
    """A copy redacts as well; a handler that is told so later does from then on."""
    handler = pickle.loads(pickle.dumps(new_handler(redact="default")))
    handler.handle(record("password=x"))
    handler.close()
    later = new_handler()
    later.handle(record("password=x"))
    later.reconfigure(redact="default")
    later.handle(record("password=x"))
    later.close()
    assert sorted(server.texts) == ["password=[redacted]", "password=[redacted]", "password=x"]


def test_a_context_costs_no_record(server, handler, logger):
    """Bound fields of any kind and size, together with extras, are encoded like them."""
    with context.bind(lock=threading.Lock(), long="x" * 3_000_000, **{f"f{n}": n for n in range(2_000)}):
        logger.info("much", extra={"own": 1})
    handler.flush()
    assert server.texts == ["much"]


def test_other_settings_take_effect_at_the_next_record(server, new_handler):
    """reconfigure() names what changes; a wrong value changes nothing; a closed handler is as new."""
    handler = new_handler(app="one")
    handler.handle(record("first"))
    with pytest.raises(ValueError, match="port is -1"):
        handler.reconfigure(app="two", port=-1)
    assert handler.app == "one"
    handler.reconfigure(app="two")
    handler.handle(record("second"))
    handler.close()
    assert handler._sender.stopping
    handler.reconfigure()
    assert not handler._sender.stopping
    handler.handle(record("third"))
    handler.flush()
    assert sorted(server.texts) == ["first", "second", "third"]
    assert {peer.hello.app for peer in server.peers} == {"one", "two"}
    stats = handler.stats()
    assert identity(stats)
    assert stats["accepted"] == stats["acked"] == 3


# -- what it counts


def test_the_counts_agree_at_all_times(server, new_handler):
    """However many threads log, acks come and records are dropped, accepted = acked + dropped + buffered."""
    handler = new_handler(buffer_bytes=MIN_BUFFER_BYTES, when_full="drop_oldest")
    over = threading.Event()

    def log():
        while not over.is_set():
            handler.handle(record("x" * 300))

    threads = [threading.Thread(target=log) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        until = time.monotonic() + 1.0
        wrong = []
        while time.monotonic() < until:
            stats = handler.stats()
            if not identity(stats) or stats["buffered"] < 0:
                wrong.append(stats)
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert wrong == []
    handler.flush(WAIT_SECONDS)
    stats = handler.stats()
    assert identity(stats)
    assert (stats["buffered"], stats["buffered_bytes"]) == (0, 0)
    assert stats["acked"] == stats["sent"] == len(server.texts)
    assert sum(stats["dropped"].values()) == server.dropped


# -- flush and close


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_flush_keeps_its_deadline(server, new_handler, timeout):
    """With no server flush() returns in time, with the record still there for later."""
    server.stop()
    handler = new_handler()
    handler.handle(record("x"))
    began = time.monotonic()
    handler.flush(timeout)
    assert timeout <= time.monotonic() - began < timeout + SOON_SECONDS / 2
    assert handler.stats()["buffered"] == 1
    server.start()
    handler.flush()
    assert server.texts == ["x"]


def senders():
    """Return the threads of all senders; a test elsewhere may have left one that owes something."""
    return {thread for thread in threading.enumerate() if thread.name == "aiolog-sender"}


def test_late_records_arrive_and_their_thread_ends(server, handler, logger, monkeypatch):
    """A closed handler delivers what comes later, connects once for many such records, and leaves nothing behind."""
    others = senders()
    monkeypatch.setattr(sender_module, "LATE_LINGER_SECONDS", 0.2)
    server.stop()
    before = descriptors()
    server.start()
    logger.info("in time")
    handler.close()
    assert senders() == others
    handler.close()
    for number in range(3):
        logger.info("late %d", number)
    handler.flush()
    assert server.texts == ["in time", "late 0", "late 1", "late 2"]
    assert len(server.peers) == 2
    until = time.monotonic() + WAIT_SECONDS
    while senders() != others and time.monotonic() < until:
        time.sleep(0.01)
    assert senders() == others
    server.stop()
    assert descriptors() == before


def test_a_close_with_no_server_says_what_is_at_stake(server, new_handler, capfd):
    """close() returns at its deadline with one line; a second close() waits no more, and delivery goes on."""
    server.stop()
    handler = new_handler(flush_timeout_seconds=0.2)
    handler.handle(record("x"))
    began = time.monotonic()
    handler.close()
    assert 0.2 <= time.monotonic() - began < 0.2 + SOON_SECONDS / 2
    assert f"1 records of process {os.getpid()} could not be delivered yet" in capfd.readouterr().err
    server.start()
    server.wait_for(lambda: server.texts == ["x"])


def test_close_and_flush_with_the_locks_of_logging_held(server, handler):
    """dictConfig() holds the module's lock, and shutdown() the handler's, while they flush: no deadlock."""
    gc.collect()  # a handler of an earlier test that is collected in a thread here would wait for logging's lock there
    handler.handle(record("x"))
    began = time.monotonic()
    with logging._lock, handler.lock:
        logged = threading.Thread(target=handler.handle, args=(record("meanwhile"),))
        logged.start()
        logged.join(WAIT_SECONDS)  # a log call in another thread needs neither
        assert not logged.is_alive()
        handler.flush(WAIT_SECONDS)
        handler.close()
    assert time.monotonic() - began < SOON_SECONDS
    assert sorted(server.texts) == ["meanwhile", "x"]


def test_without_threads_each_record_is_delivered_as_it_comes(server, handler, logger, monkeypatch):
    """Where no thread can be started a log call delivers by itself; a server that is away costs one wait, not many."""
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "aiolog-sender":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(handler_module, "LATE_FLUSH_SECONDS", 0.3)
    logger.info("1")
    assert server.texts == ["1"]
    logger.info("2")
    assert server.texts == ["1", "2"]
    server.stop()
    began = time.monotonic()
    for number in range(3, 6):
        logger.info("%d", number)
    assert time.monotonic() - began < 1.0 + SOON_SECONDS
    assert handler.stats()["buffered"] == 3
    monkeypatch.undo()
    server.start()
    logger.info("6")  # threads can be started again
    handler.close()
    assert server.texts == ["1", "2", "3", "4", "5", "6"]


def test_a_first_record_after_the_last_flush_of_the_process(server):
    """A handler that is first used in the last of all exit hooks still delivers."""
    program = """
    import atexit, sys
    handlers = []
    atexit.register(lambda: handlers[1].handle(logging.makeLogRecord({"msg": "at the very end"})))
    import logging
    from aiolog import AiologHandler, context
    handlers += [AiologHandler("127.0.0.1", sys.argv[1]) for _ in range(2)]
    handlers[0].handle(logging.makeLogRecord({"msg": "first"}))
    """
    port = str(server.address[1])
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), port], check=True, timeout=WAIT_SECONDS)
    server.wait_for(lambda: all(peer.closed for peer in server.peers))
    assert sorted(server.texts) == ["at the very end", "first"]
