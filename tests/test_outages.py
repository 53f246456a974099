"""The server away, late, restarted, stopped and unreachable, under the records of real processes."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time

import pytest
from oracle import Verdict
from programs import flood
from running import serve

MAX_WAIT_SECONDS = 0.2  # of one log call, whatever the server does: block_timeout_seconds is 0.1


@contextlib.contextmanager
def free_port():
    """Yield a port that nobody listens on, and nobody else is given meanwhile."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def black_hole():
    """Yield a port at which connections are never answered: the queue of its listener is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                filler.connect(address)
        yield address[1]


def test_a_server_that_comes_late_gets_everything(tmp_path):
    """Records from before there was a server wait for it."""
    with free_port() as port:
        early = flood(port, "early", 20_000)
        paced = flood(port, "paced", 500, "--per-second", 250)
        time.sleep(1.5)  # not waiting for anything: this is how late the server is
    with serve(tmp_path, None, "--no-stdout", port=port) as server:
        emitted = {"early": early.result()["emitted"], "paced": paced.result()["emitted"]}
        assert server.stop() == 0
        Verdict(server.records()).assert_exact(emitted)


def test_ten_restarts_under_load(tmp_path):
    """A server that is stopped and started again, ten times, loses nothing and writes nothing twice."""
    port, workers = 0, {}
    for turn in range(11):
        with serve(tmp_path, None, "--no-stdout", port=port) as server:
            port = server.port
            if not turn:
                workers = {
                    f"w{n}": flood(port, f"w{n}", 0, "--per-second", 1_000, "--seconds", 15) for n in range(3)
                } | {"flood": flood(port, "flood", 300_000, "--buffer-bytes", 1 << 20)}
            if turn == 10:
                results = {name: worker.result() for name, worker in workers.items()}
            else:
                time.sleep(0.8)  # the load runs meanwhile
            assert server.stop() == 0
            verdict = Verdict(server.records()) if turn == 10 else None
    assert min(result["stats"]["reconnects"] for name, result in results.items() if name != "flood") >= 5
    # Out of room with no server to write to, the flood drops its oldest: counted, and said.
    dropped = sum(sum(result["stats"]["dropped"].values()) for result in results.values())
    assert verdict.twice == verdict.disorder == 0
    assert verdict.dropped == dropped
    emitted = {name: result["emitted"] for name, result in results.items()}
    assert verdict.received + dropped == sum(emitted.values())
    assert verdict.lost({name: n for name, n in emitted.items() if name != "flood"}) == 0


def test_a_stopped_server_delays_no_call_and_every_drop_is_counted(tmp_path):
    """While the server is stopped calls wait 0.2 s at most; then received + dropped = emitted, and the log says so."""
    with serve(tmp_path, None, "--no-stdout") as server:
        workers = {f"w{n}": flood(server.port, f"w{n}", 0, "--buffer-bytes", 1 << 20, "--seconds", 6) for n in range(2)}
        time.sleep(1.5)
        server.send(signal.SIGSTOP)
        time.sleep(2.5)
        server.send(signal.SIGCONT)
        results = {name: worker.result() for name, worker in workers.items()}
        assert server.stop() == 0
        verdict = Verdict(server.records())
    assert max(result["slowest_seconds"] for result in results.values()) < MAX_WAIT_SECONDS
    dropped = sum(sum(result["stats"]["dropped"].values()) for result in results.values())
    assert dropped > 0
    assert verdict.dropped == dropped
    assert verdict.received + dropped == sum(result["emitted"] for result in results.values())
    assert verdict.twice == verdict.disorder == 0


@pytest.mark.parametrize("trouble", ["absent", "stopped", "black hole"])
def test_calls_do_not_feel_the_trouble_of_the_server(tmp_path, trouble):
    """At a steady pace the slowest calls are no slower than beside a server that is well, in the same minute."""
    pace = ("--per-second", 500, "--seconds", 2.5)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(tmp_path, None, "--no-stdout"))
        well = flood(server.port, "well", 0, *pace).result()
        if trouble == "absent":
            port = stack.enter_context(free_port())
        elif trouble == "black hole":
            port = stack.enter_context(black_hole())
        else:
            port = server.port
            server.send(signal.SIGSTOP)
        ill = flood(port, "troubled", 0, *pace, "--flush", 0).result()
        if trouble == "stopped":
            server.send(signal.SIGCONT)
    # Figures stand in docs/performance.md; here is only what can be told apart from the noise of a shared machine.
    assert ill["p999_seconds"] < max(0.05, 3 * well["p999_seconds"])
    assert ill["slowest_seconds"] < max(0.1, 3 * well["slowest_seconds"])


def test_a_connection_that_is_cut_again_and_again_loses_nothing(tmp_path):
    """Behind a proxy that resets every connection after some bytes, each record still arrives once."""
    with serve(tmp_path, None, "--no-stdout") as server, cutting_proxy(server.port, 5_000) as (port, cuts):
        emitted = {"w": flood(port, "w", 0, "--per-second", 1_000, "--seconds", 4).result()["emitted"]}
        assert server.stop() == 0
        Verdict(server.records()).assert_exact(emitted)
    assert len(cuts) > 5


@contextlib.contextmanager
def cutting_proxy(to_port, after_bytes):
    """Pass bytes both ways; reset both sides after so many from the client. Yields its port, and a list of cuts."""
    cuts = []
    listener = socket.create_server(("127.0.0.1", 0))

    def reset(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()

    def back(client, server):
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)

    def serve_one(client):
        with contextlib.suppress(OSError):
            server = socket.create_connection(("127.0.0.1", to_port))
            threading.Thread(target=back, args=(client, server), daemon=True).start()
            left = after_bytes
            while data := client.recv(min(4096, left)):
                server.sendall(data)
                left -= len(data)
                if not left:
                    cuts.append(1)
                    reset(server)
                    reset(client)
                    return
            server.close()
            client.close()

    def accept():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve_one, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], cuts
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
