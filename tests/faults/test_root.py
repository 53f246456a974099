"""What takes root: power cuts (F4, F5, F36), full disks (F18, F19, F34), packet filters (F10, F12, F41), cgroups."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from pathlib import Path

import machine
import pytest
from load import HEAD, PLAIN, TWO_SINKS, Stage, say, seeded, times, until, wrapped
from running import aiolog

from aiolog.protocol import ACK_HOLD_SECONDS

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

QUICK = {"heartbeat_seconds": 0.5}
SYNCED = TWO_SINKS.replace('.log"\n', '.log"\ndurability = "fsynced"\n')


# ------------------------------------------------------------------------------------------------------- power cuts


@contextlib.contextmanager
def cut_off(tmp_path, rng, cuts, config, env=None):
    """Cut the power of the disk below the logs some times, under load; yield the stage when all has ended."""
    with (
        machine.disk(tmp_path / "logs", tmp_path / "disk.img") as disk,
        Stage(tmp_path, config, seed=rng.randrange(1 << 30), env=env) as stage,
    ):
        stage.work(4, per_second=300)
        for _ in range(cuts):
            time.sleep(rng.uniform(0.2, 0.9))  # any moment
            disk.cut_power()
            stage.kill()
            disk.come_back()
            stage.restart_until_acked()
        stage.finish()
        yield stage


@pytest.mark.parametrize("level", ["fsynced", "written"])
def test_power_cuts(tmp_path, level):
    """F4: fsynced: exact. Written: what is lost was not on the disk, and the log says that something is missing."""
    cuts = times("AIOLOG_CUTS", 20)
    rng = seeded(f"F4-{level}")
    config = SYNCED if level == "fsynced" else TWO_SINKS
    with cut_off(tmp_path, rng, cuts, config) as stage:
        verdicts = stage.figures("F4", level=level, cuts=cuts)
        for verdict in verdicts.values():
            verdict.assert_clean()
            if level == "fsynced":
                verdict.assert_exact()
        if level == "written":  # how many of the lost ones the other sink would have taken nobody knows
            # Said is what the ledgers do not know, which is more than what the files do not hold.
            assert verdicts["all"].found.said_lost >= verdicts["all"].lost_emitted > 0
            assert verdicts["errors"].found.said_lost >= verdicts["errors"].lost_emitted


def test_a_disk_that_lies_about_its_syncs(tmp_path, shim):
    """F5: nobody can keep what such a disk loses; but what was acked and is not there is said."""
    cuts = times("AIOLOG_CUTS", 20) // 3
    rng = seeded("F5")
    lie = {"FAULT_CALL": "fdatasync", "FAULT_PATH": "/all.log", "FAULT_HOW": "lie"}
    with cut_off(tmp_path, rng, cuts, SYNCED, env=shim | lie) as stage:
        verdicts = stage.figures("F5", cuts=cuts)
        verdicts["errors"].assert_exact()
        verdicts["all"].assert_clean()
        assert verdicts["all"].found.said_lost >= verdicts["all"].lost_emitted > 0


def test_a_power_cut_amid_rotations(tmp_path):
    """F4: the same, where every moment is near a rename, a compression or a removal."""
    cuts = times("AIOLOG_CUTS", 20) // 2
    rng = seeded("F4-rotate")
    config = SYNCED.replace('"2 MiB"', '"128 KiB"').replace('"1 MiB"', '"64 KiB"')
    with cut_off(tmp_path, rng, cuts, config) as stage:
        stage.assert_exact("F4-rotate", cuts=cuts)


def test_a_file_system_that_becomes_read_only(tmp_path):
    """As ext4 does after an error: nothing is acked, the server lives; mounted anew and restarted, all is there."""
    rng = seeded("read-only")
    with machine.disk(tmp_path / "logs", tmp_path / "disk.img", options="errors=remount-ro") as disk:
        device = Path(machine.run("findmnt", "-n", "-o", "SOURCE", tmp_path / "logs").strip()).name
        trigger = Path(f"/sys/fs/ext4/{device}/trigger_fs_error")
        if not trigger.exists():
            pytest.skip("this kernel has no trigger_fs_error")
        with Stage(tmp_path, SYNCED, seed=rng.randrange(1 << 30)) as stage:
            workers = stage.work(2, per_second=300)
            time.sleep(1)
            trigger.write_text("for a test")
            until(lambda: "cannot write" in stage.server.stderr or "ALERT" in stage.server.stderr, 20, "it says so")
            time.sleep(ACK_HOLD_SECONDS + 0.5)  # of what was written before
            acked = sum(worker.book.acked for worker in workers)
            time.sleep(1.5)
            assert sum(worker.book.acked for worker in workers) == acked
            assert stage.server.process.poll() is None
            stage.kill()
            machine.unmount(tmp_path / "logs")
            machine.run("e2fsck", "-fy", disk.image, check=False)
            disk.mount()
            stage.restart_until_acked()
            stage.finish()
            stage.assert_exact("read-only")


# ------------------------------------------------------------------------------------------------------- full disks


def fill(filler, leave_bytes=0):
    """Fill a file system, but for so many bytes."""
    free = os.statvfs(filler.parent)
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        left = free.f_bavail * free.f_frsize - leave_bytes
        while left > 0 or not leave_bytes:
            left -= file.write(bytes(max(1, min(left, 64 << 10))))


def test_a_full_disk(tmp_path):
    """F18: no ack for what is not written, few words, bounded memory; with room again it goes on by itself."""
    rng = seeded("F18")
    books = tmp_path / "books"
    with (
        machine.tmpfs(tmp_path / "logs", "size=8m"),
        Stage(tmp_path, PLAIN, books=books, seed=rng.randrange(1 << 30)) as stage,
    ):
        filler = tmp_path / "logs/filler"
        workers = stage.work(4, per_second=100)
        for turn in range(3):
            fill(filler, leave_bytes=300 << 10)
            lines = stage.server.stderr.count("cannot write")
            until(lambda lines=lines: stage.server.stderr.count("cannot write") > lines, 20, "the disk is full")
            time.sleep(ACK_HOLD_SECONDS + 0.5)  # of what was written before
            acked = sum(worker.book.acked for worker in workers)
            time.sleep(1.5)
            assert sum(worker.book.acked for worker in workers) == acked
            if turn == 1:
                stage.kill()  # with half a group on a full disk
                stage.start()
                time.sleep(0.5)
            freed = time.monotonic()
            before = {worker: len(worker.book.acks) for worker in workers}
            filler.unlink()
            stage.recoveries.append(stage.first_ack(freed, before) - freed)
        rss = int(Path(f"/proc/{stage.server.pid}/status").read_text().split("VmHWM:")[1].split()[0])
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait()
        stage.stop()
        stage.assert_exact("F18", said_lines=stage.said.count("\n"), server_max_rss_mib=rss >> 10)
        assert rss < 128 << 10
        assert stage.said.count("\n") < 40
        assert max(stage.recoveries) < 2.5


def test_a_start_on_a_full_disk(tmp_path):
    """F18: killed, the disk fills to the last byte, started: it starts, or says why not; later everything is there."""
    rng = seeded("F18-start")
    with machine.tmpfs(tmp_path / "logs", "size=4m"), Stage(tmp_path, PLAIN, seed=rng.randrange(1 << 30)) as stage:
        filler = tmp_path / "logs/filler"
        stage.work(2, per_second=300)
        time.sleep(1)
        stage.kill()
        with (tmp_path / "logs/all.log").open("ab") as live:
            live.write(b'{"torn": "by a dead server')
        fill(filler)
        stage.start(wait=False)
        try:
            stage.server.ready()
            started = True
        except AssertionError:
            started = False
            assert "Traceback" not in stage.server.stderr
        time.sleep(0.5)
        filler.unlink()
        if not started:
            stage.restart_until_acked()
        until(lambda: all(worker.book.acked for worker in stage.workers), 20, "acks go on")
        stage.finish()
        stage.assert_exact("F18-start", started_on_full=started)


def test_no_inodes_at_a_rotation(tmp_path):
    """F19: where no new file can be made, the old one is written on; with inodes again, rotation goes on."""
    rng = seeded("F19")
    config = HEAD + '\n[sinks.all]\npath = "logs/all.log"\nmax_bytes = "64 KiB"\nbackup_count = 0\ncompress = "gzip"\n'
    logs = tmp_path / "logs"
    with machine.tmpfs(logs, "size=64m,nr_inodes=5"), Stage(tmp_path, config, seed=rng.randrange(1 << 30)) as stage:
        workers = stage.work(2, per_second=500)
        stage.server.expect(r"cannot (rotate|write|compress)")
        acked = sum(worker.book.acked for worker in workers)
        time.sleep(1.5)
        now = sum(worker.book.acked for worker in workers)
        names = len(list(logs.iterdir()))
        machine.run("mount", "-o", "remount,nr_inodes=500", logs)
        until(lambda: len(list(logs.iterdir())) > names + 3, 30, "rotation goes on")
        stage.finish()
        stage.assert_exact("F19", acked_meanwhile=now - acked)
        assert now - acked > 500


# ---------------------------------------------------------------------------------------------------- packet filters


@contextlib.contextmanager
def apart(tmp_path, row, config=TWO_SINKS):
    """Yield a stage whose processes live in a network namespace, the words to run something there, and how to work."""
    rng = seeded(row)
    with machine.network(row.lower()) as inside:
        python = wrapped(tmp_path)
        python.write_text(python.read_text().replace("exec ", f"exec {' '.join(inside)} "))
        with Stage(tmp_path, config, seed=rng.randrange(1 << 30), python=python) as stage:
            yield stage, inside, lambda count=1, **options: stage.work(count, prefix=inside, handler=QUICK, **options)


def forget_rules(inside):
    machine.run(*inside, "nft", "flush", "chain", "inet", "aiolog", "in")


@pytest.mark.parametrize("seconds", [1, 10])
def test_packets_that_vanish(tmp_path, seconds):
    """F10: a true black hole: no call waits; after it acks come long before TCP's own patience would end."""
    with apart(tmp_path, "F10") as (stage, inside, work):
        workers = work(4, per_second=500)
        time.sleep(1)
        machine.run(*inside, "nft", f"add rule inet aiolog in tcp dport {stage.port} drop")
        time.sleep(seconds)
        before = {worker: len(worker.book.acks) for worker in workers}
        forget_rules(inside)
        healed = time.monotonic()
        stage.recoveries.append(stage.first_ack(healed, before) - healed)
        stage.rest()
        stage.stop()
        slowest = max(worker.result["slowest_seconds"] for worker in workers)
        stage.assert_exact("F10-nft", seconds=seconds, slowest_call_ms=f"{slowest * 1e3:.1f}")
    assert slowest < 0.3
    assert stage.recoveries[0] < QUICK["heartbeat_seconds"] + 2


@pytest.mark.parametrize("percent", [5, 30])
def test_packets_that_get_lost(tmp_path, percent):
    """F12: TCP sends them again; nothing is lost or twice."""
    with apart(tmp_path, "F12") as (stage, inside, work):
        machine.run(
            *inside, "nft", f"add rule inet aiolog in tcp dport {stage.port} numgen random mod 100 < {percent} drop"
        )
        machine.run(
            *inside, "nft", f"add rule inet aiolog in tcp sport {stage.port} numgen random mod 100 < {percent} drop"
        )
        work(4, per_second=300)
        time.sleep(6)
        forget_rules(inside)
        stage.rest()
        stage.stop()
        stage.assert_exact("F12", percent=percent)


def test_resets_by_a_filter(tmp_path):
    """F8: a firewall that answers with resets, now and then."""
    with apart(tmp_path, "F8nft") as (stage, inside, work):
        work(4, per_second=300)
        for _ in range(8):
            time.sleep(0.4)
            machine.run(*inside, "nft", f"add rule inet aiolog in tcp dport {stage.port} reject with tcp reset")
            time.sleep(0.2)
            forget_rules(inside)
        stage.rest()
        stage.stop()
        stage.assert_exact("F8-nft", resets=8)


def test_a_nat_that_forgets(tmp_path):
    """F41: packets of the connections that are open now vanish; new connections work: so the workers get new ones."""
    with apart(tmp_path, "F41") as (stage, inside, work):
        workers = work(2, per_second=20)
        for _ in range(3):
            time.sleep(1)
            said = machine.run(*inside, "ss", "-Htn", "state", "established", f"sport = :{stage.port}")
            ports = {line.split()[-1].rsplit(":", 1)[1] for line in said.splitlines()}
            assert ports
            before = {worker: len(worker.book.acks) for worker in workers}
            for port in ports:
                machine.run(*inside, "nft", f"add rule inet aiolog in tcp sport {port} drop")
                machine.run(*inside, "nft", f"add rule inet aiolog in tcp dport {port} drop")
            frozen = time.monotonic()
            stage.recoveries.append(stage.first_ack(frozen + 0.05, before) - frozen)
        stage.rest()
        stage.stop()
        stage.assert_exact("F41-nft")
    assert max(stage.recoveries) < 2 * QUICK["heartbeat_seconds"] + 1


# ---------------------------------------------------------------------------------------------------- control groups


def test_a_frozen_server(tmp_path):
    """F16: as stopped, but by the freezer, which no process can notice."""
    rng = seeded("F16-freezer")
    with machine.cgroup("freezer", "f16") as group:
        python = wrapped(tmp_path, f"echo $$ > {group}/tasks")
        with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30), python=python) as stage:
            workers = stage.work(4, per_second=300)
            time.sleep(1)
            (group / "freezer.state").write_text("FROZEN")
            time.sleep(8)
            before = {worker: len(worker.book.acks) for worker in workers}
            (group / "freezer.state").write_text("THAWED")
            woken = time.monotonic()
            stage.recoveries.append(stage.first_ack(woken, before) - woken)
            stage.finish()
            slowest = max(worker.result["slowest_seconds"] for worker in workers)
            stage.assert_exact("F16-freezer", slowest_call_ms=f"{slowest * 1e3:.1f}")
            assert slowest < 0.3


def test_a_server_with_little_memory(tmp_path):
    """F28: within 160 MiB it stays alive under floods and peers that send half of large frames; or F1 holds."""
    rng = seeded("F28")
    with machine.cgroup("memory", "f28") as group, contextlib.ExitStack() as stack:
        (group / "memory.limit_in_bytes").write_text(str(160 << 20))
        (group / "memory.swappiness").write_text("0")
        python = wrapped(tmp_path, f"echo $$ > {group}/tasks")
        config = TWO_SINKS + '\n[server]\nmax_inflight_bytes = "32 MiB"\n'
        with Stage(tmp_path, config, seed=rng.randrange(1 << 30), python=python) as stage:
            stage.work(2, per_second=300)
            for _ in range(400):  # a HELLO that was begun and is not finished
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", stage.port)))
                sock.settimeout(0)
                with contextlib.suppress(OSError):
                    sock.send(struct.pack(">L", 65_000) + bytes(60_000))
            floods = stage.work(2, seconds=4)
            for worker in floods:
                worker.wait()
            killed = stage.server.process.poll() is not None
            if killed:
                assert stage.server.wait() == -signal.SIGKILL
                stage.restart_until_acked()
            stage.rest()
            peak = int((group / "memory.max_usage_in_bytes").read_text())
            stage.stop()
            stage.assert_counted("F28", killed=killed, peak_mib=peak >> 20)


# --------------------------------------------------------------------------------------------------- spools on disks


def test_a_spool_on_a_full_disk(tmp_path):
    """F34: the application goes on, records take the way of memory, and every drop is counted."""
    rng = seeded("F34")
    with machine.tmpfs(tmp_path / "spool", "size=3m"):
        handler = {"spool_dir": str(tmp_path / "spool"), "buffer_bytes": 1 << 20}
        with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
            stage.kill()
            (old,) = stage.work(1, count=300, end="kill", handler=handler)
            old.wait()
            filler = tmp_path / "spool/filler"
            fill(filler)
            (full,) = stage.work(1, per_second=2_000, handler=handler)
            time.sleep(2)
            stage.start()
            stage.rest()
            filler.unlink()
            done = aiolog(tmp_path, "recover", str(tmp_path / "spool"), "--port", str(stage.port))
            assert done.returncode == 0, done.stderr
            stage.stop()
            assert full.stderr.strip(), "it says that there is no room"
            assert "Traceback" not in full.stderr
            stage.assert_counted("F34", slowest_call_ms=f"{full.result['slowest_seconds'] * 1e3:.1f}")


def test_a_spool_that_cannot_be_written_at_the_start(tmp_path):
    """F34: a read-only place is said once, and records go by memory."""
    rng = seeded("F34-read-only")
    with (
        machine.tmpfs(tmp_path / "spool", "size=3m,ro"),
        Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage,
    ):
        (worker,) = stage.work(1, count=500, handler={"spool_dir": str(tmp_path / "spool")})
        assert worker.wait() == 0, worker.stderr
        assert worker.stderr.strip().count("\n") == 0
        assert worker.stderr
        stage.stop()
        stage.assert_exact("F34-read-only")


def test_a_spool_after_a_power_cut(tmp_path):
    """F36: what was on the disk is delivered, whole and in order; nothing torn ever is."""
    cuts = times("AIOLOG_CUTS", 20) // 3
    rng = seeded("F36")
    with machine.disk(tmp_path / "spool", tmp_path / "disk.img", size="64M") as disk:
        handler = {"spool_dir": str(tmp_path / "spool" / "own")}
        synced: dict[str, int] = {}  # of each worker, what was on the disk for sure
        with Stage(tmp_path, TWO_SINKS, seed=rng.randrange(1 << 30)) as stage:
            for n in range(cuts):
                stage.kill()
                (worker,) = stage.work(1, per_second=2_000, handler=handler)
                time.sleep(rng.uniform(0.2, 0.8))  # any moment
                synced[worker.name] = worker.book.emitted if n % 2 else 0
                if n % 2:
                    os.sync()
                disk.cut_power()
                worker.process.kill()
                worker.process.wait()
                disk.come_back()
                stage.start()
                aiolog(tmp_path, "recover", handler["spool_dir"], "--port", str(stage.port))
                say("F36", emitted=worker.book.emitted, synced=synced[worker.name])
                assert worker.book.emitted
            stage.finish()
            found = stage.figures("F36", cuts=cuts)["all"].found
            assert found.twice == found.altered == found.torn == found.disorder == 0
            for worker in stage.workers:
                numbers = found.seen.get(worker.name, [])
                assert numbers == list(range(len(numbers)))
                assert len(numbers) >= synced[worker.name]
