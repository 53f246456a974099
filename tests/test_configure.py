"""``setup()`` as applications call it: once, often, in children, with right and wrong settings."""

from __future__ import annotations

import inspect
import logging
import logging.config
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from interpreters import every_interpreter
from oracle import Verdict
from programs import Program
from running import serve

import aiolog
from aiolog import AiologHandler, configure
from aiolog import handler as handler_module
from aiolog.configure import ADOPTED, VARIABLES, parse_url, setup
from aiolog.testing import Collector

ROOT = Path(__file__).parent.parent
TASKS = 5
LOG = logging.getLogger("app.configured")


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    """Leave logging, the hooks and the module's state as they were."""
    for name in [*VARIABLES.values(), configure.TOKEN_FILE]:
        monkeypatch.delenv(name, raising=False)
    others = set(handler_module._handlers)
    root = logging.getLogger()
    known = [root, *(logging.getLogger(name) for name in ADOPTED)]
    before = [(one, one.handlers[:], one.level, one.propagate) for one in known]
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    configure._handler, configure._is_foreign, configure._given = None, False, {}
    configure._places.clear()
    configure._hooked.clear()
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    yield
    for one in set(handler_module._handlers) - others:
        handler_module._handlers.discard(one)
        for sender in one._senders():  # whatever it owes
            thread, sender._thread = sender._thread, None
            sender.wake()
            thread.join(15)
            assert not thread.is_alive()
        logging.Handler.close(one)
    for one, handlers, level, propagate in before:
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)
    sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
    configure._handler, configure._is_foreign, configure._given = None, False, {}
    configure._places.clear()
    configure._hooked.clear()


@pytest.fixture
def collector():
    with Collector() as made:
        yield made


def ours(logger=None):
    return [one for one in logging.getLogger(logger).handlers if isinstance(one, AiologHandler)]


# -- settings


def test_one_line_is_enough(collector):
    """After one call the records of every logger that propagates arrive, from the level on that was said."""
    handler = setup(url=collector.url, app="shop", level="info")
    logging.getLogger("shop.cart").info("sold %d", 3)
    logging.getLogger("shop.cart").debug("not this")
    assert aiolog.flush(10)
    (record,) = collector.records
    assert (record["msg"], record["name"], record["app"]) == ("sold 3", "shop.cart", "shop")
    assert ours() == [handler]
    assert aiolog.setup is setup


def test_nothing_happens_before_the_first_record():
    """No thread, no socket, and no error for a server that is not there."""
    before = threading.enumerate()
    handler = setup(host="host.invalid", port=1)
    assert threading.enumerate() == before
    assert handler.address == ("host.invalid", 1)


def test_the_environment_speaks_where_no_argument_does(monkeypatch, tmp_path):
    """Each setting has its variable; an argument wins; an empty variable says nothing."""
    (tmp_path / "token").write_text("from a file\n")
    environment = {
        "AIOLOG_URL": "tcp://logs:9021", "AIOLOG_APP": "env", "AIOLOG_LEVEL": "warning", "AIOLOG_LABELS": "zone=a",
        "AIOLOG_TOKEN_FILE": str(tmp_path / "token"), "AIOLOG_SPOOL_DIR": str(tmp_path / "spool"),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    handler = setup()
    assert handler.address == ("logs", 9021)
    assert (handler.app, handler.token, handler.spool_dir) == ("env", "from a file", str(tmp_path / "spool"))
    assert logging.getLogger().level == logging.WARNING
    monkeypatch.setenv("AIOLOG_TOKEN", "said")
    monkeypatch.setenv("AIOLOG_APP", "")
    assert setup(port=9, level="DEBUG", labels={"zone": "b"}) is handler
    assert (handler.address, handler.token, handler.app) == (("127.0.0.1", 9), "said", "")
    assert handler.labels == {"zone": "b"}
    assert logging.getLogger().level == logging.DEBUG
    setup(url="unix:///run/aiolog.sock")
    assert (handler.address, handler.port) == ("/run/aiolog.sock", None)


def test_labels_of_both_kinds_travel(collector, monkeypatch):
    """The environment's labels and the argument's stand in HELLO together; the argument wins."""
    monkeypatch.setenv("AIOLOG_LABELS", "zone=env,team=a")
    setup(url=collector.url, labels={"zone": "argument"})
    LOG.warning("x")
    (record,) = collector.wait_for(1)
    assert record["labels"].items() >= {"zone": "argument", "team": "a", "ppid": str(os.getppid())}.items()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("tcp://logs:9021", ("logs", 9021)),
        ("tcp://logs", ("logs", 9020)),
        ("tcp://10.0.0.1:1/", ("10.0.0.1", 1)),
        ("tcp://[::1]:9021", ("::1", 9021)),
        ("tcp://[::1]", ("::1", 9020)),
        ("unix:///run/a.sock", ("/run/a.sock", None)),
    ],
)
def test_addresses(url, address):
    """Both schemes, with and without a port, IPv6 in brackets."""
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url",
    ["logs:9020", "http://logs", "tcp://", "tcp://:9020", "tcp://logs:x", "tcp://logs:70000", "tcp://logs:", "unix://a",
     "tcp://user@logs:1", "tcp://logs/path", "tcp://[::1", "tcp://[::1]x", "", 5, "tcp://logs:²"],
)  # fmt: skip
def test_what_is_no_address(url):
    """One sentence, which says where the text stood."""
    with pytest.raises(ValueError, match=r"AIOLOG_URL is .*; it must be tcp://host:port or unix:///path"):
        parse_url(url, "AIOLOG_URL")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"url": "logs"}, "url is 'logs'; it must be tcp"),
        ({"url": "tcp://a", "port": 1}, "url and host or port were given; say where the server is in one"),
        ({"host": ""}, "host is ''; it must be a name or an address"),
        ({"port": "x"}, "port is 'x'; it must be a number"),
        ({"port": 70_000}, "port is 70000; it must be a number below 65536"),
        ({"level": "LOUD"}, "level is 'LOUD'; it must be the name of a level, such as INFO, or its number"),
        ({"level": 1.5}, "level is 1.5; it must be"),
        ({"labels": "a=b"}, "labels is 'a=b'; it must be a mapping"),
        ({"app": 5}, "app is 5; it must be text"),
        ({"adopt": "uvicorn"}, "adopt is 'uvicorn'; it must be a list"),
        ({"logger": 5}, "logger is 5; it must be a logger or the name of one"),
        ({"buffer_bytes": "big"}, "buffer_bytes is 'big'; the least that works is"),
        ({"flush_timeout_seconds": -1}, "flush_timeout_seconds is -1; the least that works is 0"),
        ({"heartbeat_seconds": float("nan")}, "heartbeat_seconds is nan; the least"),
        ({"when_full": "wait"}, "when_full is 'wait'; it must be one of"),
        ({"redact": "all"}, "redact is 'all'; it must be"),
    ],
)
def test_a_wrong_value_is_one_sentence_and_changes_nothing(options, sentence):
    """A ValueError that names the setting; what was set up before still is."""
    handler = setup(app="before", port=5)
    settings = handler.settings()
    with pytest.raises(ValueError, match=sentence):
        setup(**options)
    assert setup() is handler
    assert handler.settings() == settings


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("AIOLOG_URL", "logs", "AIOLOG_URL is 'logs'; it must be"),
        ("AIOLOG_LEVEL", "LOUD", "AIOLOG_LEVEL is 'LOUD'; it must be"),
        ("AIOLOG_LABELS", "a", "AIOLOG_LABELS cannot be used: 'a' is no label"),
        ("AIOLOG_TOKEN_FILE", "/nowhere/token", "AIOLOG_TOKEN_FILE is '/nowhere/token', which cannot be read"),
    ],
)
def test_a_wrong_variable_is_one_sentence(monkeypatch, name, value, sentence):
    """It names the variable."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=sentence):
        setup()
    assert ours() == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [("buffer_byte", "; did you mean 'buffer_bytes'?"), ("uri", "; did you mean 'url'?"), ("zzz", "$")],
)
def test_an_unknown_option(name, hint):
    """A TypeError with the nearest name, if one is near."""
    with pytest.raises(TypeError, match=rf"setup\(\) has no option '{name}'{hint.replace('?', '[?]')}"):
        setup(**{name: 1})


def test_options_are_those_of_the_handler():
    """What setup() has of its own and what the handler takes is what hints are made from."""
    own = {name for name, one in inspect.signature(setup).parameters.items() if one.kind is one.KEYWORD_ONLY}
    assert own | set(handler_module.SETTINGS) == configure._ALL_OPTIONS
    assert set(handler_module.SETTINGS) == configure._DEFAULTS.keys()
    handler = setup(when_full="drop_newest", buffer_bytes=1 << 20, redact="default")
    assert (handler.when_full, handler.buffer_bytes, handler.redact) == ("drop_newest", 1 << 20, "default")


# -- again and again


def test_a_second_call_is_the_same_handler(collector):
    """Nothing said: nothing changes, no second handler, no second thread, and the session goes on."""
    handler = setup(url=collector.url, app="shop", flush_timeout_seconds=3)
    LOG.warning("one")
    collector.wait_for(1)
    settings, sender, threads = handler.settings(), handler._sender, threading.active_count()
    for _ in range(3):
        assert setup() is handler
        assert setup(app="shop") is handler
    LOG.warning("two")
    collector.wait_for(2)
    assert (handler.settings(), handler._sender, threading.active_count()) == (settings, sender, threads)
    assert ours() == [handler]


def test_other_settings_hold_from_the_next_record_on(collector):
    """What is held already still goes, and nothing is lost or mixed up while threads log meanwhile."""
    handler = setup(port=1, app="first", flush_timeout_seconds=0.1)
    LOG.warning("held")
    assert not aiolog.flush(0.05)
    assert setup(url=collector.url, app="second") is handler
    LOG.warning("new")
    apps = {record["msg"]: record["app"] for record in collector.wait_for(2)}
    assert apps == {"held": "first", "new": "second"}
    assert aiolog.flush(10)
    assert handler.stats()["accepted"] == handler.stats()["acked"] == 2
    counts = [0] * 4
    stop = threading.Event()

    def log(number):
        while not stop.is_set():
            LOG.warning("%d %d", number, counts[number])
            counts[number] += 1

    threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20):
        setup(app=f"app{number}")
        stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert aiolog.flush(30)
    texts = collector.messages[2:]
    assert sorted(texts) == sorted(f"{number} {n}" for number in range(4) for n in range(counts[number]))
    assert not [one for one in collector.records if "aiolog_malformed" in one]
    assert handler.stats()["buffered"] == 0


def test_threads_that_call_it_at_once_share_one(collector):
    """Twelve threads set up, log, and there is one handler and one connection's worth of records."""
    handlers = []

    def begin(number):
        handlers.append(setup(url=collector.url))
        LOG.warning("%d", number)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, handlers))) == 1
    assert ours() == handlers[:1]
    collector.wait_for(12)
    assert aiolog.flush(10)
    assert sorted(map(int, collector.messages)) == list(range(12))


def test_a_handler_of_dictconfig_is_taken_over(collector, monkeypatch):
    """What it was configured with stays, the environment notwithstanding; an argument changes it."""
    monkeypatch.setenv("AIOLOG_URL", "tcp://elsewhere:1")
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"a": {"class": "aiolog.AiologHandler", "port": collector.port, "app": "dict"}},
            "root": {"handlers": ["a"], "level": "INFO"},
        }
    )
    (made,) = ours()
    assert setup() is made
    assert (made.port, made.app) == (collector.port, "dict")
    assert setup(app="said", excepthook=False) is made
    assert (made.port, made.app) == (collector.port, "said")
    LOG.info("x")
    assert [one["app"] for one in collector.wait_for(1)] == ["said"]


def test_after_a_dictconfig_it_goes_on(collector):
    """dictConfig() closes every handler, and may take ours away; the next call puts it back, and it is as before."""
    handler = setup(url=collector.url)
    LOG.warning("one")
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"handlers": []}})
    assert ours() == []
    assert handler._sender.stopping
    assert setup() is handler
    assert not handler._sender.stopping
    LOG.warning("two")
    collector.wait_for(2)
    assert aiolog.flush(10)
    assert any(one() is handler for one in logging._handlerList)  # logging.shutdown() will flush it


def test_another_logger(collector):
    """With ``logger`` the others are left alone, adopted ones too; moved to the root, it is there alone."""
    quiet = logging.getLogger("uvicorn")
    quiet.propagate = False
    handler = setup(url=collector.url, logger="shop.only", level="INFO")
    logging.getLogger("shop.only.part").info("this")
    logging.getLogger("other").error("not this")
    assert (ours("shop.only"), ours(), ours("uvicorn")) == ([handler], [], [])
    assert setup(logger=logging.getLogger()) is handler
    assert (ours("shop.only"), ours(), ours("uvicorn")) == ([], [handler], [handler])
    logging.getLogger("shop.only").info("and this")
    assert [one["msg"] for one in collector.wait_for(2)] == ["this", "and this"]


def test_the_level_of_a_configured_root_is_left_alone():
    """Only a root logger that nobody has configured is set to INFO."""
    program = "import logging, aiolog; root = logging.getLogger(); aiolog.setup(); assert root.level == logging.INFO;"
    run(program + "root.setLevel(30); aiolog.setup(); assert root.level == 30")
    logging.getLogger().addHandler(logging.NullHandler())
    setup()
    assert logging.getLogger().level == logging.WARNING
    setup(level=logging.ERROR)
    setup()
    assert logging.getLogger().level == logging.ERROR


# -- adopted loggers


def test_known_loggers_that_do_not_propagate_are_adopted(collector):
    """Each record of theirs arrives once, whether a logger or its parent is where propagation ends."""
    for name in ("uvicorn", "uvicorn.access", "gunicorn.error", "django.server"):
        logging.getLogger(name).propagate = False
    handler = setup(url=collector.url, level="INFO")
    for name in ADOPTED:
        logging.getLogger(name).warning("%s", name)
    assert ours("uvicorn") == ours("uvicorn.access") == [handler]
    assert ours("uvicorn.error") == ours("gunicorn.access") == ours("celery") == []
    aiolog.flush(10)
    assert collector.messages == list(ADOPTED)


def test_loggers_that_change_later_are_adopted_by_the_next_call(collector):
    """uvicorn's dictConfig may run after us; and what propagates once more loses the handler."""
    setup(url=collector.url)
    access = logging.getLogger("uvicorn.access")
    access.propagate = False
    access.warning("nobody sees this")
    handler = setup()
    assert ours("uvicorn.access") == [handler]
    access.warning("this arrives")
    access.propagate = True
    setup()
    assert ours("uvicorn.access") == []
    access.warning("this too")
    assert [one["msg"] for one in collector.wait_for(2)] == ["this arrives", "this too"]


def test_uvicorns_own_configuration(collector):
    """The dictionary that uvicorn configures logging with leaves two loggers that do not propagate."""
    pytest.importorskip("uvicorn")
    from uvicorn.config import LOGGING_CONFIG

    logging.config.dictConfig(LOGGING_CONFIG)
    setup(url=collector.url, level="INFO")
    logging.getLogger("uvicorn.access").handlers = ours("uvicorn.access")  # not onto this test's stdout
    logging.getLogger("uvicorn").handlers = ours("uvicorn")
    logging.getLogger("uvicorn.error").info("started")
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "10.0.0.1:5", "GET", "/", "1.1", 200)
    assert [one["msg"] for one in collector.wait_for(2)] == ["started", '10.0.0.1:5 - "GET / HTTP/1.1" 200']


def test_what_others_have_put_is_neither_doubled_nor_taken_away(collector):
    """A known logger that has a handler of ours by a dictConfig keeps it, and gets no second one."""
    own = AiologHandler(collector.host, collector.port)
    server = logging.getLogger("django.server")
    server.propagate = False
    server.addHandler(own)
    setup(url=collector.url, level="INFO")
    setup()
    assert ours("django.server") == [own]
    server.warning("once")
    aiolog.flush(10)
    assert collector.messages == ["once"]
    server.removeHandler(own)


def test_adopt_may_be_said():
    """A list of one's own replaces the known ones; names that nobody uses make no loggers."""
    logging.getLogger("mine").propagate = False
    logging.getLogger("uvicorn").propagate = False
    handler = setup(adopt=("mine", "never.used"))
    assert (ours("mine"), ours("uvicorn")) == ([handler], [])
    assert "never.used" not in logging.root.manager.loggerDict
    setup(adopt=())
    assert ours("mine") == []
    logging.getLogger("mine").propagate = True


# -- hooks


def run(program, *argv, python=sys.executable, code=0, **environment):
    done = subprocess.run(
        [python, "-c", program, *map(str, argv)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def test_uncaught_exceptions_are_logged_and_then_go_where_they_went(collector):
    """In the main thread, in threads, in finalizers: logged at their place, and the hooks of before run."""
    program = """
import sys, threading, aiolog
def before(*args): print("before", args[0].__name__ if len(args) == 3 else args[0].exc_type.__name__, flush=True)
sys.excepthook = threading.excepthook = sys.unraisablehook = before
every = dict(excepthook=True, threading_excepthook=True, unraisablehook=True)
for _ in range(2):
    aiolog.setup(url=sys.argv[1], **every)
def broken(): raise KeyError("in a thread")
thread = threading.Thread(target=broken, name="worker")
thread.start(); thread.join()
class Bad:
    def __del__(self): raise OSError("in a finalizer")
Bad()
def fails(): raise ValueError("at the end")
fails()
"""
    done = run(program, collector.url, code=1)
    assert done.stdout.split() == ["before", "KeyError", "before", "OSError", "before", "ValueError"]
    thread, finalizer, main = collector.wait_for(3)
    assert thread["msg"] == "uncaught in thread worker, KeyError: 'in a thread'"
    assert (thread["levelname"], thread["threadName"], thread["funcName"]) == ("CRITICAL", "worker", "broken")
    assert finalizer["msg"].endswith(", OSError: in a finalizer")
    assert (finalizer["levelname"], finalizer["funcName"]) == ("ERROR", "__del__")
    assert (main["msg"], main["funcName"], main["name"]) == ("uncaught ValueError: at the end", "fails", "root")
    assert main["exc_text"].endswith("ValueError: at the end")
    assert len(collector.records) == 3


def test_an_interrupt_is_no_error(collector):
    """Ctrl-C and sys.exit() pass the hooks without a record."""
    program = "import sys, aiolog; aiolog.setup(url=sys.argv[1], excepthook=True); raise KeyboardInterrupt"
    run(program, collector.url, code=-2)
    assert collector.records == []


def test_warnings_are_logged_and_shown(collector):
    """With the place that they are about, by the logger that logging.captureWarnings() has for them."""
    program = """
import sys, warnings, aiolog
aiolog.setup(url=sys.argv[1], capture_warnings=True)
aiolog.setup(capture_warnings=True)
warnings.warn("old", DeprecationWarning)
"""
    done = run(program, collector.url, PYTHONWARNINGS="default")
    assert "DeprecationWarning: old" in done.stderr
    (record,) = collector.wait_for(1)
    assert (record["name"], record["msg"], record["levelname"], record["lineno"]) == (
        "py.warnings", "DeprecationWarning: old", "WARNING", 5
    )  # fmt: skip


def test_without_being_asked_no_hook_is_touched():
    """The defaults leave the interpreter as it is."""
    before = sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    setup()
    assert (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning) == before


# -- processes


def test_it_travels_by_name():
    """As an initializer, pickled: a spawned child imports it."""
    assert pickle.loads(pickle.dumps(aiolog.setup)) is setup


def test_settings_for_children(monkeypatch, tmp_path):
    """With propagate_env a child that inherits nothing but the environment sets up the same."""
    for name in VARIABLES.values():
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
    monkeypatch.setenv("AIOLOG_LABELS", "team=b")
    options = {
        "url": "tcp://[::1]:9021", "app": "shop", "level": "WARNING", "labels": {"zone": "a,b=c"}, "token": "t",
        "spool_dir": tmp_path,
    }  # fmt: skip
    before = setup(**options, propagate_env=True).settings()
    configure._handler, configure._given = None, {}
    configure._places.clear()
    logging.getLogger().handlers.clear()
    after = setup()
    assert {**after.settings(), "labels": {}} == {**before, "labels": {}}
    assert os.environ["AIOLOG_LABELS"] == "team=b,zone=a%2Cb%3Dc"
    assert logging.getLogger().level == logging.WARNING


@every_interpreter
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_as_the_initializer_of_a_pool(tmp_path, python, method):
    """Under each start method every record of every task arrives once, the parent's own too."""
    with serve(tmp_path, None, "--no-stdout") as server:
        result = Program("initializer", server.port, method, TASKS, python=python).result()
        assert server.stop() == 0
        records = server.records()
    Verdict(records).assert_exact({"parent": 2} | {f"task{n}": 3 for n in range(TASKS)})
    assert {record["app"] for record in records} == {"test"}
    children = {record["fields"]["ppid"] for record in records if record["msg"].startswith("task")}
    assert result["handlers"] == [1] * result["children"]
    assert str(result["pid"]) in children or method == "forkserver"  # whose children are the server's


@every_interpreter
def test_auto(python, collector):
    """``import aiolog.auto`` sets up by the environment alone."""
    program = "import aiolog.auto, logging; logging.getLogger('app').info('hello'); import aiolog.auto"
    run(program, python=python, AIOLOG_URL=collector.url, AIOLOG_APP="auto", AIOLOG_LABELS="a=b")
    (record,) = collector.wait_for(1)
    assert (record["msg"], record["app"], record["labels"]["a"]) == ("hello", "auto", "b")


@every_interpreter
def test_a_server_that_is_down_raises_nothing(python):
    """Neither the set-up nor a log call, and the process ends in good time."""
    program = (
        "import aiolog, logging; aiolog.setup(port=1, flush_timeout_seconds=0.1, excepthook=True); logging.error('x');"
        "assert not aiolog.flush(0.1)"
    )
    assert "Traceback" not in run(program, python=python).stderr


def test_flush_of_all(collector):
    """flush() waits for every handler of the process, within one deadline, and says whether all is acked."""
    handlers = [AiologHandler(collector.host, collector.port) for _ in range(3)]
    for handler in handlers:
        handler.handle(logging.makeLogRecord({"msg": "x"}))
    assert aiolog.flush(10)
    assert len(collector.records) == 3
    away = [AiologHandler("127.0.0.1", 1, flush_timeout_seconds=0) for _ in range(2)]
    for handler in away:
        handler.handle(logging.makeLogRecord({"msg": "x"}))
    assert not aiolog.flush(0.1)
    assert not aiolog.flush()
