"""What dead processes left: each spool once, under its own session, and what cannot be sent is kept and said."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest
from fake_server import FakeServer
from test_spool import files, left_behind, new

from aiolog import AiologHandler, recovery, segments
from aiolog.protocol import pack_record
from aiolog.recovery import recover

DAY_SECONDS = 86_400


@pytest.fixture
def server():
    with FakeServer() as fake:
        yield fake


def leave(directory, *texts, **fields):
    """Leave a spool of records that a server understands; returns its session."""
    spool = new(directory, **fields)
    for text in texts:
        spool.put(pack_record([1.0, 0, 1, text]))
    spool.abandon()
    return spool._hello.session


def test_each_process_under_its_own_session(server, tmp_path):
    """With the finder's token, and the words of the dead; then nothing is left, and a second look finds nothing."""
    sessions = {leave(tmp_path, f"{n} a", f"{n} b", app="shop", pid=n): n for n in range(1, 4)}
    found = list(recover(str(tmp_path), *server.address, "ours"))
    assert sorted(one.text for one in found) == [f"2 records of shop[{n}]@test were delivered" for n in range(1, 4)]
    assert all(one.records == 2 and not one.left for one in found)
    assert {peer.hello.session for peer in server.peers} == set(sessions)
    assert {(peer.hello.token, peer.hello.start_time) for peer in server.peers} == {("ours", 1.5)}
    for session, number in sessions.items():
        assert [record["msg"] for record in server.sessions[session].records] == [f"{number} a", f"{number} b"]
        assert server.sessions[session].ended
    assert list(tmp_path.iterdir()) == []
    assert list(recover(str(tmp_path), *server.address)) == []


def test_what_the_server_has_is_not_sent_again(server, tmp_path):
    """The dead process had sent more than it knew acked."""
    session = leave(tmp_path, "one", "two", "three")
    server.on_hello = lambda peer, hello: (setattr(peer.session, "last_seq", 2), peer.welcome())
    (found,) = recover(str(tmp_path), *server.address)
    assert [record["msg"] for record in server.sessions[session].records] == ["three"]
    assert not found.left


def test_a_server_that_is_away(tmp_path):
    """Nothing is lost by trying: it stays, and comes with the next attempt."""
    leave(tmp_path, "one")
    (found,) = recover(str(tmp_path), "127.0.0.1", 1, timeout_seconds=0.1)
    assert (found.records, found.left) == (0, True)
    assert found.text.startswith("0 records of test[1]@test were delivered; the rest stays in")
    with FakeServer() as server:
        list(recover(str(tmp_path), *server.address))
        assert server.texts == ["one"]


def test_what_is_too_old_goes(tmp_path):
    """After a week no server can tell what it had: what cannot be delivered is removed, counted and said."""
    leave(tmp_path, "one", "two")
    week_ago = time.time() - 8 * DAY_SECONDS
    for path in tmp_path.glob("*/*"):
        os.utime(path, (week_ago, week_ago))
    (found,) = recover(str(tmp_path), "127.0.0.1", 1, timeout_seconds=0.1)
    assert found.left
    assert "the rest was 8 days old and could not be, so 2 records were removed with" in found.text
    assert list(tmp_path.iterdir()) == []


def test_damage_is_put_aside(server, tmp_path):
    """What is true before it is delivered; the files stay, under a name that no finder takes."""
    session = leave(tmp_path, *map(str, range(100)))
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content.rstrip(b"\0")) // 2] ^= 1
    path.write_bytes(content)
    (found,) = recover(str(tmp_path), *server.address)
    texts = [record["msg"] for record in server.sessions[session].records]
    assert texts == list(map(str, range(len(texts))))
    assert 0 < len(texts) == found.records < 100
    assert found.left
    assert found.path.endswith(".damaged")
    assert files(found.path, "*.seg")
    assert list(recover(str(tmp_path), *server.address)) == []


def test_a_stranger_is_named_and_left(server, tmp_path):
    """And costs the others nothing."""
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "file").write_text("mine")
    (tmp_path / "a file").write_text("mine")
    leave(tmp_path, "one")
    found = list(recover(str(tmp_path), *server.address))
    assert sorted(one.text for one in found if one.left) == [
        f"{tmp_path}/stranger has no owner, so it is no spool; it is left as it is"
    ]
    assert server.texts == ["one"]
    assert (tmp_path / "stranger" / "file").read_text() == "mine"


@pytest.mark.parametrize("pattern", ["owner", "sites", "*.seg"])
@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "huge"])
def test_what_is_no_file_of_a_spool_costs_the_others_nothing(server, tmp_path, pattern, kind):
    """A pipe that nobody writes, a link, a directory, a terabyte of nothing: named and left, the next is sent."""
    leave(tmp_path / "spools", "bad")
    (bad,) = files(tmp_path / "spools", f"*/{pattern}")
    moved = bad.rename(tmp_path / "moved")
    if kind == "fifo":
        os.mkfifo(bad)
    elif kind == "link":
        bad.symlink_to(moved)
    elif kind == "directory":
        bad.mkdir()
    else:
        with bad.open("wb") as file:
            file.truncate(1 << 40)
    os.utime(bad.parent, (1, 1))  # the oldest comes first
    leave(tmp_path / "spools", "good")
    found = list(recover(str(tmp_path / "spools"), *server.address))
    assert server.texts == ["good"]
    assert [(one.records, one.left) for one in found] == [(0, True), (1, False)]
    assert found[0].path == str(bad.parent)
    named = str(bad.parent if (pattern, kind) == ("owner", "huge") else bad)
    assert found[0].text.startswith(named)
    assert found[0].text.endswith("; it is left as it is")
    assert os.path.lexists(bad)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("odd")])
def test_whatever_one_spool_raises_is_said(server, tmp_path, monkeypatch, error):
    """And the others do not wait for it."""
    for text in ("bad", "good"):
        leave(tmp_path, text)
    real, raised = segments.Home.definitions, []

    def definitions(home):
        if not raised:
            raised.append(home.path)
            raise error
        return real(home)

    monkeypatch.setattr(segments.Home, "definitions", definitions)
    found = list(recover(str(tmp_path), *server.address))
    assert [(one.records, one.left) for one in found] == [(0, True), (1, False)]
    assert found[0].text == f"{raised[0]} cannot be read ({error!r}); it is left as it is"
    monkeypatch.undo()
    list(recover(str(tmp_path), *server.address))
    assert sorted(server.texts) == ["bad", "good"]


def test_a_handler_that_starts_sends_what_was_left(server, tmp_path, capfd):
    """In a thread of its own, while it logs; its own directory is not touched."""
    left_behind(tmp_path, count=50)
    leave(tmp_path, "from the dead")
    handler = AiologHandler(*server.address, spool_dir=tmp_path)
    handler.handle(logging.makeLogRecord({"msg": "mine", "process": os.getpid()}))
    server.wait_for(lambda: "from the dead" in server.texts and "mine" in server.texts)
    handler.close()
    server.wait_for(lambda: sum(session.ended for session in server.sessions.values()) == 3)
    for thread in threading.enumerate():
        if thread.name == "aiolog-recovery":
            thread.join(10)
    assert list(tmp_path.iterdir()) == []
    assert "spool: 1 records of test[1]@test were delivered" in capfd.readouterr().err


def test_no_directory_is_no_trouble(server, tmp_path, capfd):
    """The first process of all finds nothing, and says nothing."""
    recovery.start(str(tmp_path / "none"), None, "", print)
    with pytest.raises(FileNotFoundError):
        list(recover(str(tmp_path / "none"), *server.address))
    assert capfd.readouterr() == ("", "")
