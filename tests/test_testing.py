"""The collector that ships for users' own tests: it receives, acks, waits, and goes away."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading

import pytest

from aiolog import AiologHandler
from aiolog import sender as sender_module
from aiolog.protocol import FROM_SERVER, VERSION, Ack, Decoder, Hello, Refuse, Welcome, batch_frame, encode, pack_record
from aiolog.testing import Collector, as_log_record


def record(text, **attributes):
    return logging.makeLogRecord({"name": "app", "msg": text, "levelno": 20, "levelname": "INFO", **attributes})


@pytest.fixture
def collector():
    with Collector() as made:
        yield made


def test_records_arrive_as_attributes(collector):
    """What a handler sent stands there with every attribute, extras, app, host and labels."""
    handler = AiologHandler(collector.host, collector.port, app="shop", labels={"zone": "a"})
    handler.handle(record("sold %d", args=(3,), user="bob"))
    (found,) = collector.wait_for(1)
    assert (found["msg"], found["user"], found["app"], found["host"]) == (
        "sold 3", "bob", "shop", socket.gethostname()
    )  # fmt: skip
    assert found["labels"]["zone"] == "a"
    assert collector.records == [found]
    assert collector.messages == ["sold 3"]
    assert logging.Formatter("%(levelname)s %(name)s %(message)s").format(as_log_record(found)) == "INFO app sold 3"
    handler.close()


def test_it_acks_so_that_flush_returns(collector):
    """A handler that was flushed has nothing left, and its records are in the order of its calls."""
    handler = AiologHandler(collector.host, collector.port)
    for number in range(5_000):
        handler.handle(record(str(number)))
    assert handler.flushed(10)
    assert handler.stats()["acked"] == 5_000
    assert collector.messages == [str(number) for number in range(5_000)]
    handler.close()


def test_each_record_once_however_often_it_comes(collector):
    """A batch that is sent again after a reconnect is acked and not kept twice; drops are counted."""
    hello = Hello(VERSION, b"s" * 16, 1, "p", "h", "a", {}, 0.0, "", 0)
    site, thread = ("app", 20, "INFO", "/a.py", "a.py", "a", 1, "f"), (1, "t")
    packed = [pack_record((1.0, site, thread, text)) for text in ("one", "two", "three")]

    def say(*frames):
        with socket.create_connection((collector.host, collector.port), 10) as sock:
            sock.sendall(encode(hello) + b"".join(frames))
            decoder, said = Decoder(FROM_SERVER), []
            while len(said) < 1 + len(frames) and (data := sock.recv(4096)):
                decoder.feed(data)
                while (message := decoder.next()) is not None:
                    said.append(message)
            return said

    assert say(batch_frame(1, 0, packed[:2])) == [Welcome(VERSION, "collector", 0, 1 << 20, "written"), Ack(2)]
    said = say(batch_frame(1, 0, packed), batch_frame(6, 2, packed[:1]))
    assert said == [Welcome(VERSION, "collector", 2, 1 << 20, "written"), Ack(3), Ack(6)]
    assert collector.messages == ["one", "two", "three", "one"]
    assert collector.dropped == 2
    collector.clear()
    assert (collector.records, collector.dropped) == ([], 0)
    assert isinstance(say(batch_frame(9, 0, packed[:1]))[-1], Refuse)  # a gap that nobody declared


def test_waiting_ends_with_what_came(collector):
    """What does not come in time is an AssertionError that shows what did; a late record ends the wait at once."""
    handler = AiologHandler(collector.host, collector.port)
    handler.handle(record("only this"))
    with pytest.raises(AssertionError, match=r"1 of 2 records came in 0\.2 s: \['only this'\]"):
        collector.wait_for(2, timeout=0.2)
    threading.Timer(0.1, handler.handle, [record("another")]).start()
    assert [one["msg"] for one in collector.wait_for(2)] == ["only this", "another"]
    handler.close()


def test_a_token(capfd, monkeypatch):
    """A client with another token is refused; with the right one it is served."""
    monkeypatch.setattr(sender_module, "REFUSED_PAUSE_SECONDS", 0.2)
    with Collector(token="right") as collector:
        wrong = AiologHandler(collector.host, collector.port, token="wrong", flush_timeout_seconds=0.2)
        wrong.handle(record("refused"))
        assert not wrong.flushed()
        right = AiologHandler(collector.host, collector.port, token="right")
        right.handle(record("served"))
        assert right.flushed(10)
        assert collector.messages == ["served"]
        right.close()
        wrong.reconfigure(token="right")  # so that nothing is owed at the end of this test
        assert wrong.flushed(15)
        wrong.close()
    assert "refuses this process" in capfd.readouterr().err


def test_a_unix_socket(tmp_path):
    """With a path it listens there, and removes it afterwards."""
    path = tmp_path / "socket"
    with Collector(path=path) as collector:
        assert collector.url == f"unix://{path}"
        handler = AiologHandler(collector.host, collector.port)
        handler.handle(record("by a path"))
        handler.close()
        assert collector.messages == ["by a path"]
    assert not path.exists()


def test_nothing_is_left_behind():
    """After close() there is no thread, and nobody listens; a second close() does nothing."""
    before = threading.active_count()
    collector = Collector()
    handler = AiologHandler(collector.host, collector.port)
    handler.handle(record("x"))
    collector.wait_for(1)
    handler.close()
    collector.close()
    collector.close()
    assert threading.active_count() == before
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((collector.host, collector.port), 5)
    assert collector.messages == ["x"]


def test_the_base_install_is_enough():
    """It loads nothing of the server's libraries."""
    program = (
        "import sys, aiolog.testing; aiolog.testing.Collector().close();"
        "assert not {'asyncio', 'uvloop', 'aiofiles', 'click', 'aiohttp', 'msgspec'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
