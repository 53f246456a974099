"""The whole promise, at random: real clients' backlogs, the real server, two real files, and all that can break.

The network is bytes in two directions that are cut where it hurts; the disk is a real one that dies at any system
call, fills up, or loses what was not synced (:mod:`model_disk`); the clock stands still. Whatever happens, each file
holds each record that its filter takes once, in order, and whole; and what was dropped is said once.

``AIOLOG_MODEL_EXAMPLES`` says how many lives are tried.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import memory
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from memory import kept
from model_disk import Disk, Hand, patched

from aiolog import formatting, ledger
from aiolog.backlog import Backlog
from aiolog.connection import Connection
from aiolog.errors import ConfigError
from aiolog.fanout import Fanout, Lane
from aiolog.ordering import OrderedLane
from aiolog.protocol import (
    ACK_HOLD_SECONDS,
    FROM_SERVER,
    VERSION,
    Ack,
    Busy,
    Bye,
    Decoder,
    Define,
    Hello,
    Refuse,
    Welcome,
    encode,
    pack_record,
)
from aiolog.report import Report
from aiolog.rotation import parse_backup
from aiolog.server import Server
from aiolog.sinks.file import FileSink
from aiolog.source import Site, Source, Thread

EXAMPLES = int(os.environ.get("AIOLOG_MODEL_EXAMPLES", "300"))
STEPS = 60
CLIENTS = 3
WINDOW_BYTES = 700  # some batches of a few records
SITES = [
    Site("app", 20, "INFO", "/app.py", "app.py", "app", 1, "main"),
    Site("app.db", 40, "ERROR", "/db.py", "db.py", "db", 2, "query"),
]
THREAD = Thread(1, "MainThread")
FORMATS = {
    "all": formatting.json_lines(),
    "errors": formatting.text("%(levelname)s %(message)s", accepts=lambda site: site.levelno >= 30),
}
KINDS = {
    "plain": "",
    "two lines": "\nand more of it",
    "forged": "\nERROR p0.0 1\n\t| {}",
    "unicode": " ä🙂\u2028\x1b[1m\ud800",
    "long": " " + "x" * 150,
}
DROPPED = re.compile(r"(\d+) records of process (\S+)\[\d+\] were dropped")
LOST = re.compile(r"(\d+) records of process (\S+)\[\d+\] were acked")


class Wire(memory.Transport):
    """The server's end of a connection; what a dead server would say is not said."""

    def __init__(self, host, connection):
        self.host = host
        super().__init__(host, connection)

    def write(self, data):
        if not self.host.is_dead:
            super().write(data)


class Link:
    """One connection, and what is under way in it; ``is_given_up`` when the client has closed it."""

    def __init__(self, host):
        self.host = host
        self.to_server = bytearray()
        self.is_cut = self.is_given_up = self.is_ended = False
        self._is_end_said = False
        self.transport = Wire(host, Connection(host.server, host.loop))
        host.links.append(self)

    @property
    def is_over(self):
        return self.host.is_dead or self.transport.lost

    def send(self, data):
        if not (self.is_cut or self.is_over):
            self.to_server += data

    def push(self, count=None):
        """Let the server receive so many bytes, and the end behind the last one."""
        if self.is_over:
            return
        data = bytes(self.to_server[:count])
        del self.to_server[: len(data)]
        if data:
            self.transport.receive(data)
        if not self.to_server and self.is_ended and not self.is_cut and not self._is_end_said:
            self._is_end_said = True
            self.transport.end()
        if self.is_given_up and self.transport.written and not self.is_over:
            self.transport.lose()  # by the reset that answers what nobody reads

    def pull(self, count=None):
        """Return what the client receives of the next bytes; None where the server's end is reached."""
        written = self.transport.written
        data = bytes(written[:count])
        del written[: len(data)]
        if not data and not written and (self.is_over or self.transport.eof or self.transport.closing):
            return None
        return data

    def cut(self):
        self.is_cut = True
        self.to_server.clear()
        self.transport.written.clear()

    def give_up(self):
        """Be closed by the client; what it sent may still arrive."""
        self.is_given_up = self.is_ended = True
        self.transport.written.clear()


class Reports(Report):
    """All that the server says, before any of it is left out."""

    def __init__(self, clock, said):
        super().__init__(clock, lambda _line: None)
        self._said = said

    def __call__(self, kind, text):
        self._said.append((kind, text))
        super().__call__(kind, text)


class Host:
    """One life of the server, as :class:`aiolog.service.Service` would live it."""

    def __init__(self, model):
        self.disk = model.disk
        self.loop = memory.Loop()
        self.links = []
        self.hands = {}
        self.is_dead = False
        self._faults = []
        self.loop.set_exception_handler(lambda _, context: self._faults.append(context))
        self.fanout = Fanout()
        report = Reports(self.loop.time, model.said)
        self.server = Server(
            self.fanout,
            memory.LIMITS._replace(window_bytes=WINDOW_BYTES),
            report,
            durability=model.durability,
            wall_clock=lambda: model.now,
            ack_hold_seconds=ACK_HOLD_SECONDS if model.has_beat else 0,
        )
        self.sinks = {}
        self._opening = True
        Host.starting = self
        for name, form in FORMATS.items():
            self.sinks[name] = FileSink(
                name,
                self.disk.logs / f"{name}.log",
                form,
                kept(max_bytes=model.max_bytes, compress=model.compress, durability=model.durability),
                clock=lambda: model.now,
                warn=lambda text: report(text[:40], text),
            )
        lanes = {name: self._lane(sink, model, report) for name, sink in self.sinks.items()}
        self.opening = self.do(self.fanout.open(lanes))
        self.run(10)  # what is opened before one that cannot be is closed again
        if not self.is_dead:
            self.opening.result()

    def _lane(self, sink, model, report):
        common = {"when_full": "block", "buffer_bytes": 1, "report": report}
        if sink.name == "all" and model.window_seconds:
            return OrderedLane(sink, **common, window_seconds=model.window_seconds, clock=lambda: model.now)
        return Lane(sink, **common)

    def hand(self, name):
        made = Hand(self.disk, self.loop.stop, held=name.startswith("aiolog-backups"))
        self.hands[name] = made
        return made

    def run(self, seconds=0.0):
        """Let the server do all there is to do; bury it if it died of that."""
        if not self.is_dead:
            self.loop.run(seconds)
            if self.disk.dead:
                self.kill()

    def look(self, seconds=0.0):
        self.run(seconds)
        for connection in list(self.server.connections):
            if not self.is_dead:
                connection.look(self.loop.time())
        self.run()

    def do(self, coroutine):
        task = self.loop.create_task(coroutine)
        self.run()
        return task

    def let(self):
        """Let all threads work."""
        for hand in self.hands.values():
            hand.let()
        self.run()

    def kill(self):
        if self.is_dead:
            return
        self.is_dead = True
        faults = list(self._faults)
        self.disk.kill()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run()
        self.loop.close()
        assert not faults

    def drain(self):
        """End in order, as long as nothing is stuck."""
        self.let()
        if self.is_dead:
            return False
        draining = self.do(self.server.drain())
        for _ in range(6):
            self.look(0.5)
        self.let()
        if self.is_dead:
            return False
        if not draining.done():
            draining.cancel()
            self.run()
            return False
        draining.result()
        if not self._finished(self.fanout.drain()) or not self._finished(self.fanout.close()):
            return False
        self._finished(self.server.close())
        assert not self.disk.open_descriptors
        self.kill()
        return True

    def _finished(self, coroutine):
        task = self.do(coroutine)
        self.run(10)
        if self.is_dead or not task.done():
            task.cancel()
            self.run()
            return False
        task.result()
        return True


class Client:
    """One process: a real backlog, what it put there, and its connection."""

    def __init__(self, name, buffer_bytes):
        self.name = name
        self.sessions = 0
        self.session = b""
        self.new_session()
        self.backlog = Backlog(buffer_bytes)
        self.waiting = []  # numbers of records that no frame has held
        self.sent = []  # numbers, in the order of their seqs
        self.source = Source(app="shop", host="h", pid=7, process_name=name)
        for definition in (*SITES, THREAD):
            self.source.define(definition)
        self.number = 0
        self.dropped = 0
        self.link = None
        self.greeted = self.defined = False
        self.decoder = None

    def new_session(self):
        self.sessions += 1
        self.session = f"{self.name}/{self.sessions}".encode().ljust(16, b".")

    def log(self, site, kind, now):
        """Put one record; returns its number and its text in each file."""
        self.number += 1
        wire = (now + self.number / 100, site, 2, f"{self.name} {self.number}{KINDS[kind]}")
        self.backlog.put(pack_record(wire))
        self.waiting.append(self.number)
        return self.number, {name: form(self.source, [wire])[0] for name, form in FORMATS.items()}

    def drop(self):
        """Drop the oldest record that was never sent."""
        if self.backlog.drop_oldest("drop_oldest"):
            self.dropped += 1
            self.waiting.pop(0)

    def refuse(self):
        """Drop the newest, before it is put."""
        self.backlog.refuse()
        self.dropped += 1

    @property
    def acked(self):
        return self.sent[: self.backlog.acked]

    def connect(self, host):
        self.close()
        self.link = Link(host)
        self.decoder = Decoder(FROM_SERVER)
        self.greeted = self.defined = False
        hello = Hello(VERSION, self.session, 7, self.name, "h", "shop", {}, 0.0, "", self.backlog.acked_seq)
        self.link.send(encode(hello))

    def close(self):
        if self.link is not None:
            self.link.give_up()
            self.link = None

    def send(self):
        """Send the next frame; whether there was one."""
        if self.link is None or not self.greeted or self.link.is_ended:
            return False
        before = self.backlog.sent
        frame = self.backlog.next_frame(WINDOW_BYTES)
        count = self.backlog.sent - before
        self.sent += self.waiting[:count]
        del self.waiting[:count]
        if frame is None:
            return False
        if not self.defined:
            self.defined = True
            self.link.send(encode(Define([*SITES, THREAD])))
        self.link.send(frame)
        return True

    def say_bye(self):
        """End the session, when nothing is owed; what comes later is of another one."""
        if self.link is not None and self.greeted and self.backlog.is_empty:
            self.link.send(encode(Bye()))
            self.close()
            self.new_session()
            self.backlog.renew(self.session)

    def read(self, count=None):
        """Act on what the server said, as the sender does."""
        if self.link is None:
            return
        data = self.link.pull(count)
        if data is None:
            self.close()
            return
        self.decoder.feed(data)
        while self.link is not None and (message := self.decoder.next()) is not None:
            if isinstance(message, Welcome):
                assert not self.greeted
                self.greeted = True
                self.backlog.rewind(message.last_seq)
            elif isinstance(message, Ack):
                assert self.greeted
                self.backlog.ack(message.seq)
            elif isinstance(message, Refuse):
                assert message.code in (5, 6) or "in time" in message.text, message
                self.close()
            else:
                assert isinstance(message, Busy)


class Files:
    """What stands in the files of one sink: its live file and its backups."""

    def __init__(self, directory, name):
        self.directory, self.name = directory, f"{name}.log"

    def data(self):
        """Return all bytes, the oldest first."""
        names = {path.name for path in self.directory.iterdir() if parse_backup(self.name, path.name)}
        names = sorted(name for name in names if name.removesuffix(".gz") == name or name[:-3] not in names)
        parts = [(self.directory / name).read_bytes() for name in names]
        parts = [
            gzip.decompress(part) if name.endswith(".gz") else part for name, part in zip(names, parts, strict=True)
        ]
        # A power cut at "written" may tear a backup, too; that one is not mended.
        return b"".join([part if part.endswith(b"\n") or not part else part + b"\n" for part in parts] + [self.live()])

    def live(self):
        path = self.directory / self.name
        return path.read_bytes() if path.exists() else b""

    def torn(self):
        """Return what was moved aside: names and bytes."""
        return {
            path.name: path.read_bytes()
            for path in self.directory.iterdir()
            if path.name.startswith(f"{self.name}.torn-")
        }

    def texts(self):
        """Return the texts of all records, the last perhaps torn."""
        texts = []
        for line in re.findall(rb"[^\n]*\n|[^\n]+", self.data()):
            further = line.startswith(b"\t| ") or b"\t| ".startswith(line)  # the last one may be torn amid that
            if further and texts and self.name == "errors.log":
                texts[-1] += line
            else:
                texts.append(line)
        return texts


clients = st.integers(0, CLIENTS - 1)
amounts = st.one_of(st.none(), st.none(), st.integers(0, 300))
sinks = st.sampled_from(sorted(FORMATS))
kinds = st.sampled_from(sorted(KINDS))


class Life(RuleBasedStateMachine):
    """Processes that log to a server on a machine, and all that happens to them."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="aiolog-model-", dir=SHM if SHM.is_dir() else None))
        self.host = None

    @initialize(
        durability=st.sampled_from(["written", "fsynced"]),
        has_power_cuts=st.booleans(),
        max_bytes=st.sampled_from([0, 300, 1_000]),
        compress=st.sampled_from(["", "", "gzip"]),
        compact_bytes=st.sampled_from([100, 400, 1 << 20]),
        buffer_bytes=st.sampled_from([2_000, 8_000]),
        window_seconds=st.sampled_from([0, 0, 0.5, 30]),
        has_beat=st.booleans(),
    )
    def begin(  # noqa: PLR0917
        self, durability, has_power_cuts, max_bytes, compress, compact_bytes, buffer_bytes, window_seconds, has_beat
    ):
        self.durability, self.max_bytes, self.compress = durability, max_bytes, compress
        self.has_power_cuts = has_power_cuts
        self.is_lossy = has_power_cuts and durability == "written"
        self.buffer_bytes = buffer_bytes
        self.window_seconds = window_seconds
        self.has_beat = has_beat  # whether acks are held, as in service
        self.disk = Disk(self.root, remembers=has_power_cuts)
        ledger.COMPACT_BYTES = compact_bytes
        self.now = 1_700_000_000.0
        self.said = []  # by all servers: kind and text
        self.texts = {name: {} for name in FORMATS}  # the text of each record: whose, and its number
        self.forgiven = set()  # after a power cut at "written": what may be lost, or stand twice
        self.everybody = []
        self.clients = []
        for number in range(CLIENTS):
            self.clients.append(self._born(number))
        self.files = {name: Files(self.disk.logs, name) for name in FORMATS}
        self.seen_changes = -1
        self._start()

    def _born(self, number):
        client = Client(f"p{number}.{len(self.everybody)}", self.buffer_bytes)
        self.everybody.append(client)
        return client

    # -- processes

    @rule(number=clients, count=st.integers(1, 8), site=st.integers(0, 1), kind=kinds, flow=st.booleans())
    def log(self, number, count, site, kind, flow):
        self._log(self.clients[number], count, site, kind)
        if flow:
            self._send(self.clients[number])

    def _log(self, client, count, site, kind):
        for n in range(count):
            if client.backlog.is_over:
                client.drop()
            record, texts = client.log(site if n % 3 else 1, kind if n % 2 else "plain", self.now)
            for name, text in texts.items():
                if text:
                    self.texts[name][text.encode()] = client, record

    @rule(counts=st.lists(st.integers(0, 5), min_size=CLIENTS, max_size=CLIENTS), kind=kinds)
    def work(self, counts, kind):
        """Everybody logs and talks, on a good day."""
        self._work(counts, kind)

    def _work(self, counts, kind):
        if self.host.is_dead:
            self._start()
        for client, count in zip(self.clients, counts, strict=True):
            self._log(client, count, 0, kind)
        self._flow(3)

    @rule(number=clients, count=st.integers(1, 4), newest=st.booleans())
    def drop(self, number, count, newest):
        for _ in range(count):
            if newest:
                self.clients[number].refuse()
            else:
                self.clients[number].drop()

    @rule(number=clients)
    def say_bye(self, number):
        self.clients[number].say_bye()

    @rule(number=clients)
    def die(self, number):
        """Be gone with all that is not sent; another process comes."""
        self.clients[number].close()
        self.clients[number] = self._born(number)

    @rule(number=clients)
    def connect(self, number):
        """Come back, though the server may not know that the old connection is gone."""
        if not self.host.is_dead:
            self.clients[number].connect(self.host)

    def _send(self, client):
        if client.link is None and not self.host.is_dead:
            client.connect(self.host)
        while client.send():
            pass

    @rule(number=clients)
    def send(self, number):
        self._send(self.clients[number])

    # -- the network

    @rule(number=clients, count=amounts)
    def push(self, number, count):
        link = self.clients[number].link
        if link is not None:
            link.push(count)

    @rule(number=clients, count=amounts)
    def pull(self, number, count):
        self.clients[number].read(count)

    @rule(index=st.integers(0, 5), count=amounts)
    def arrive_late(self, index, count):
        """Of a connection that the client has given up something arrives."""
        late = [link for link in self.host.links if link.is_given_up]
        if late:
            late[-1 - index % len(late)].push(count)

    @rule(index=st.integers(0, 5))
    def lose(self, index):
        """The server learns that a connection is gone."""
        if self.host.links and not self.host.is_dead:
            self.host.links[-1 - index % len(self.host.links)].transport.lose()

    @rule(number=clients, known=st.booleans())
    def cut(self, number, known):
        link = self.clients[number].link
        if link is not None:
            link.cut()
            if known:
                self.clients[number].close()

    @rule(number=clients)
    def half_close(self, number):
        link = self.clients[number].link
        if link is not None:
            link.is_ended = True

    @rule(rounds=st.integers(1, 4))
    def flow(self, rounds):
        """Everybody talks."""
        self._flow(rounds)

    @property
    def _beat_seconds(self):
        return 2 * ACK_HOLD_SECONDS if self.has_beat else 0

    def _flow(self, rounds):
        for _ in range(rounds):
            for client in self.clients:
                self._send(client)
                if client.link is not None:
                    client.link.push()
            self.host.run(self._beat_seconds)
            for client in self.clients:
                client.read()

    # -- the server and its disk

    @rule(seconds=st.sampled_from([0, 0, 0.3, 6]))
    def run(self, seconds):
        self.now += seconds
        if not self.host.is_dead:
            self.host.look(seconds)

    @rule(seconds=st.sampled_from([-3_600, -1, 1, 20]))
    def set_clock(self, seconds):
        self.now += seconds

    @rule(name=sinks, what=st.sampled_from(["hold", "let"]), backups=st.booleans())
    def stick(self, name, what, backups):
        """A disk that does not answer, or does again."""
        if not self.host.is_dead:
            hand = self.host.hands[f"aiolog-backups-{name}" if backups else f"aiolog-{name}"]
            if what == "let":
                hand.let()
                self.host.run()
            else:
                hand.held = True

    @rule(room=st.one_of(st.integers(0, 400), st.none()))
    def fill(self, room):
        """A full disk, soon; or room again."""
        self.disk.room = room

    @rule(call=st.integers(1, 5), counts=st.lists(st.integers(0, 5), min_size=CLIENTS, max_size=CLIENTS))
    def fail_to_sync(self, call, counts):
        """The disk does not keep what it was given, and says so once."""
        if self.durability == "fsynced":
            self.disk.fail_sync_in = call
            self._work(counts, "plain")

    @rule(
        call=st.integers(1, 14),
        fraction=st.sampled_from([0.0, 0.3, 0.6, 0.95, 1.0, 1.0]),
        counts=st.lists(st.integers(0, 5), min_size=CLIENTS, max_size=CLIENTS),
        kind=kinds,
        room=st.one_of(st.none(), st.none(), st.integers(0, 300)),
        restart=st.booleans(),
    )
    def kill_at_work(self, call, fraction, counts, kind, room, restart):  # noqa: PLR0917
        """Die in a system call of what comes next."""
        if self.host.is_dead:
            self._start()
        if room is not None:
            self.disk.room = room
        self.disk.kill_in, self.disk.fraction = call, fraction
        self._work(counts, kind)
        if restart and self.host.is_dead:
            self._start()

    @rule(call=st.integers(1, 8), fraction=st.sampled_from([0.0, 0.5, 1.0]))
    def kill_in_start(self, call, fraction):
        """Die while repairing what the last death left."""
        self.host.kill()
        self.disk.kill_in, self.disk.fraction = call, fraction
        self._start()

    @rule(restart=st.booleans())
    def kill(self, restart):
        self.host.kill()
        if restart:
            self._start()

    @rule()
    def restart(self):
        if self.host.is_dead:
            self._start()

    @rule(restart=st.booleans())
    def drain(self, restart):
        """End in order; by a kill where that takes too long."""
        if not self.host.is_dead:
            for client in self.clients:
                client.read()
            if not self.host.drain():
                self.host.kill()
            if restart:
                self._start()

    @precondition(lambda self: self.host is not None and self.has_power_cuts)
    @rule(random=st.randoms(use_true_random=False), restart=st.booleans())
    def cut_power(self, random, restart):
        self.host.kill()
        self.disk.cut_power(random)
        if self.durability == "written":
            self.forgiven |= {(client, number) for client in self.everybody for number in range(1, client.number + 1)}
        if restart:
            self._start()

    def _start(self):
        """Start the server: it always does, and destroys nothing."""
        self.disk.revive()
        before = {name: (files.live(), files.torn()) for name, files in self.files.items()}
        try:
            self.host = Host(self)
        except ConfigError:
            # A kill amid a rotation left no live file, and there is no room for another
            assert self.disk.room == 0
            Host.starting.kill()
            self.disk.revive()
            self.disk.room = None
            self.host = Host(self)
        if self.host.is_dead:
            return
        for name, files in self.files.items():
            live, torn = before[name]
            kept = files.live()
            assert live.startswith(kept)
            # What was moved aside later stood before it: the names sort in the order of their making.
            aside = [data for new, data in sorted(files.torn().items(), reverse=True) if new not in torn]
            assert live == kept or live[len(kept) :] == b"".join(aside)
            assert len(aside) <= 1 or self.has_power_cuts

    # -- what holds

    @invariant()
    def each_once_and_in_order(self):
        """In each file, at any moment; and what was acked is there."""
        if self.host is None or self.disk.changes == self.seen_changes:
            return
        self.seen_changes = self.disk.changes
        for name in FORMATS:
            self._found(name, is_at_rest=False)

    def _found(self, name, *, is_at_rest):
        """Return the numbers of each client's records in a file, in order, and how many drops it tells of."""
        found = {client: [] for client in self.everybody}
        dropped, known = Counter(), self.texts[name]
        texts = self.files[name].texts()
        for n, text in enumerate(texts):
            if text in known:
                client, number = known[text]
                found[client].append(number)
            elif notice := self._notice(name, text):
                dropped[notice[1]] += notice[0]
            else:
                assert not is_at_rest or self.is_lossy, (name, text, texts)
                assert n == len(texts) - 1 or self.host.is_dead or self.has_power_cuts, (name, text, texts)
        for client, numbers in found.items():
            exact = [number for number in numbers if (client, number) not in self.forgiven]
            assert exact == sorted(set(exact)), (name, client.name, numbers)
            taken = self._taken(name, client)
            if self.is_lossy:
                continue
            assert numbers == [number for number in taken if number in {*numbers}], (name, client.name)
            assert {*numbers} <= {*client.sent}, (name, client.name)
            sent = [number for number in client.sent if number in taken]
            assert numbers == sent[: len(numbers)], (name, client.name, numbers, "a gap")
            missing = {*client.acked} & taken.keys() - {*numbers}
            assert not missing, (name, client.name, missing, "acked and not in the file")
        return found, dropped

    def _taken(self, name, client):
        return {number: text for text, (whose, number) in self.texts[name].items() if whose is client}

    def _notice(self, name, text):
        """Return how many records of whom a notice says were dropped; 0 for a notice of another kind."""
        try:
            message = json.loads(text)["msg"] if name == "all" else text.decode()
        except ValueError:
            return None
        if match := DROPPED.search(message):
            return int(match[1]), match[2]
        if match := LOST.search(message):
            return 0, match[2]
        return None

    def teardown(self):
        try:
            if self.host is not None:
                self._end()
        finally:
            if self.host is not None:
                self.host.kill()
            shutil.rmtree(self.root)

    def _end(self):
        """Everything heals, and everybody who lives says all there is to say."""
        self.disk.room = self.disk.kill_in = None
        self.disk.fail_sync_in = 0
        if self.host.is_dead:
            self._start()
        assert not self.host.is_dead
        self.host.let()
        self.host.look(2)
        for client in self.clients:
            client.connect(self.host)
            self._log(client, 1, 1, "plain")  # a repair that found no room is made up for with the next write
        for _ in range(300):
            self._flow(1)
            if self.window_seconds:  # nothing waits for its time for ever
                self.now += self.window_seconds
                self.host.look(self.window_seconds)
            if all(client.backlog.is_empty for client in self.clients):
                break
        for client in self.clients:
            assert client.backlog.is_empty, client.name
            client.close()
        for link in self.host.links:
            link.transport.lose()
        self.host.run(self._beat_seconds)
        # What the dead have sent last may have come as late as that; it waits for its time, and is held meanwhile.
        self.now += self.window_seconds
        self.host.look(self.window_seconds)
        assert self.host.server.held_bytes == 0
        assert self.host.server.connections == set()
        assert self.host.drain()
        for name in FORMATS:
            self._judge(name)
        self._judge_words()

    def _judge(self, name):
        found, dropped = self._found(name, is_at_rest=True)
        for client in self.clients:
            present = {*found[client]}
            missing = {number for number in client.sent if number in self._taken(name, client)} - present
            missing -= {number for number in missing if (client, number) in self.forgiven}
            assert not missing, (name, client.name, missing)
            assert len(client.sent) + client.dropped == client.number + client.backlog.dropped["drop_newest"]
        if self.is_lossy:
            return
        for client in self.everybody:
            if client in self.clients:
                assert dropped[client.name] == client.dropped, (name, client.name)
            else:
                assert dropped[client.name] <= client.dropped, (name, client.name)

    def _judge_words(self):
        """Nothing is said that would frighten without a reason."""
        for kind, text in self.said:
            assert not kind.startswith("gap") or self.is_lossy, text
            for sign in ("damaged", "no ledger", "is gone", "by somebody else", "fault of aiolog"):
                assert sign not in text or self.has_power_cuts, text


SHM = Path("/dev/shm")


@pytest.mark.timeout(900)  # for many examples
def test_any_life_is_exact():
    """Whatever is cut, filled, killed or without power: each file holds each record once, in order, and whole."""
    compact_bytes = ledger.COMPACT_BYTES
    with patched(lambda name: Host.starting.hand(name)):  # noqa: PLW0108 - whichever host starts at that moment
        try:
            run_state_machine_as_test(
                Life,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    phases=[Phase.generate],  # a search for a shorter life takes minutes; the blob repeats this one
                    print_blob=True,
                    suppress_health_check=list(HealthCheck),
                    report_multiple_bugs=False,
                ),
            )
        finally:
            ledger.COMPACT_BYTES = compact_bytes
