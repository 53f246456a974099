"""One load on one rival, once: the processes, the clocks and the figures.

    this process ── the stage ─┬─ the server, or in the stage itself
      watches the files,       ├─ worker 0
      reads the clocks         └─ worker …

All times are the system's: CPU from the clock of each process, a line's arrival from the size of its file.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import statistics
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.loads import Load
from benchmarks.rivals import FORK, Rival
from benchmarks.verify import verify

FLOOD_LOOK_SECONDS = 0.005  # between two looks at the files
PACED_LOOK_SECONDS = 0.00025  # a line is seen later than it came by half of that, and what the machine adds
STALL_SECONDS = 3.0  # no line for so long after the workers have ended: the rest is lost
PATIENCE_SECONDS = 10.0  # beyond its pace: then a server that was stopped or absent comes back, for those who wait
LOAD_SECONDS = 120.0  # a load takes longer than that only when somebody is stuck


class Figures(NamedTuple):
    """What one run gave; None where there is nothing to measure. CPU is user and system together."""

    emit_p50_us: float
    emit_p99_us: float
    emit_p999_us: float
    emit_slowest_us: float
    records_per_second: float | None
    worker_cpu_us: float  # a record, from the first log call to the end of the last flush
    server_cpu_us: float | None
    worker_mib: float  # peak, beyond what it had before the first record; the largest of all workers
    server_mib: float | None  # peak
    file_p50_ms: float | None
    file_p99_ms: float | None
    ack_p50_ms: float | None
    ack_p99_ms: float | None
    lost: int
    twice: int
    torn: int
    disorder: int
    failed: str = ""

    @property
    def counts(self) -> bool:
        """Whether every record is in the file once, whole and in order."""
        return not (self.failed or self.lost or self.twice or self.torn or self.disorder)


class _Stage:
    """What the processes of one run share."""

    def __init__(self) -> None:
        self.server = FORK.Value("i", 0)
        self.ready = FORK.Semaphore(0)  # one for each worker
        self.go = FORK.Event()
        self.logged = FORK.Semaphore(0)
        self.well = FORK.Event()  # the server may be there again
        self.finished = FORK.Event()  # all workers have ended
        self.end = FORK.Event()


def measure(make: type[Rival], load: Load, directory: Path) -> Figures:
    """Run it in ``directory``, which is empty. Raises RuntimeError when a process fails."""
    rival = make(load, directory, free_port())
    stage = _Stage()
    process = FORK.Process(target=_play, args=(stage, rival), name="stage")
    process.start()
    try:
        return _conduct(rival, stage, process)
    finally:
        if process.is_alive() and stage.server.value:
            os.kill(stage.server.value, signal.SIGCONT)
        stage.end.set()
        process.join(30)
        if process.is_alive():
            process.kill()
            process.join()
        for worker in range(load.workers):
            _result(directory, worker).unlink(missing_ok=True)


def _conduct(rival: Rival, stage: _Stage, process: Any) -> Figures:
    load = rival.load
    for _ in range(load.workers):
        _acquire(stage.ready, process)
    pid = stage.server.value
    cpu_before = _cpu_seconds(pid)
    if load.server == "stopped":
        os.kill(pid, signal.SIGSTOP)
    watch = _Watch(rival.paths)
    look_seconds = PACED_LOOK_SECONDS if load.per_second else FLOOD_LOOK_SECONDS
    deadline = time.monotonic() + LOAD_SECONDS

    def look() -> None:
        watch.look()
        if not process.is_alive():
            raise RuntimeError("a process of the run has failed")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the workers are stuck after {LOAD_SECONDS:g} s")

    def mend() -> None:
        if load.server == "stopped":
            os.kill(pid, signal.SIGCONT)
        stage.well.set()

    patience = time.monotonic() + PATIENCE_SECONDS + (load.records / load.per_second if load.per_second else 0.0)
    watch.began = time.time_ns()
    stage.go.set()
    left = load.workers
    while left:
        left -= stage.logged.acquire(timeout=look_seconds)
        look()
        if time.monotonic() > patience:
            mend()
    mend()
    expected = load.records if rival.writes else 0
    while not stage.finished.wait(look_seconds):
        look()
    while watch.count() < expected and watch.quiet_seconds < STALL_SECONDS:
        time.sleep(look_seconds)
        look()
    pid = stage.server.value
    server_cpu, server_mib = _cpu_seconds(pid) - cpu_before, _peak_mib(pid) if pid else None
    workers = [pickle.loads(_result(rival.directory, worker).read_bytes()) for worker in range(load.workers)]
    stage.end.set()
    process.join()
    return _figures(rival, workers, watch, server_cpu if pid else None, server_mib)


def _figures(
    rival: Rival, workers: Sequence[dict[str, Any]], watch: _Watch, server_cpu: float | None, mib: float | None
) -> Figures:
    load = rival.load
    verdict = verify(load, rival.paths, watch.steps)
    emits = sorted(took for worker in workers for took in worker["emits"])
    acks = sorted(delay for worker in workers for delay in worker["acks"])
    delays = verdict.delays if load.per_second else ()
    return Figures(
        _share(emits, 0.5, 1e3),
        _share(emits, 0.99, 1e3),
        _share(emits, 0.999, 1e3),
        emits[-1] / 1e3,
        load.records / (watch.last - watch.began) * 1e9 if watch.last else None,
        sum(worker["cpu_seconds"] for worker in workers) / load.records * 1e6,
        None if server_cpu is None else server_cpu / load.records * 1e6,
        max(worker["mib"] for worker in workers),
        mib,
        _share(delays, 0.5, 1e6) if delays else None,
        _share(delays, 0.99, 1e6) if delays else None,
        _share(acks, 0.5, 1e6) if acks else None,
        _share(acks, 0.99, 1e6) if acks else None,
        *verdict[:4],
    )


def median(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure, and the worst of what was wrong."""

    def middle(values: Sequence[Any]) -> Any:
        given = [value for value in values if value is not None]
        return statistics.median(given) if given else None

    names = Figures._fields
    columns = dict(zip(names, zip(*runs, strict=True), strict=True))
    wrong = ("lost", "twice", "torn", "disorder", "failed")
    return Figures(**{name: max(columns[name]) if name in wrong else middle(columns[name]) for name in names})


def _share(values: Sequence[int], share: float, unit: float) -> float:
    """Return the value that ``share`` of the sorted ``values`` do not exceed."""
    return values[min(len(values) - 1, int(len(values) * share))] / unit


# -- the stage


def _play(stage: _Stage, rival: Rival) -> None:
    """Start the server, fork the workers, wait for them, and stop the server when told."""
    is_absent = rival.load.server == "absent"
    if not is_absent:
        stage.server.value = rival.start()
    workers = [
        FORK.Process(target=_work, args=(stage, rival, worker), name=f"worker-{worker}")
        for worker in range(rival.load.workers)
    ]
    for worker in workers:
        worker.start()
    if is_absent:
        stage.well.wait()
        stage.server.value = rival.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            os._exit(1)
    stage.finished.set()
    stage.end.wait()
    rival.stop()


def _work(stage: _Stage, rival: Rival, worker: int) -> None:
    """Log, and write down how long each call took."""
    load = rival.load
    with (rival.directory / "workers.err").open("ab") as err:  # what they complain of is in the figures
        os.dup2(err.fileno(), 2)
    calls = {connection: rival.call(connection) for connection in load.connections_of(worker)}
    message = load.template(rival.style)
    arguments, clock, now = load.arguments, time.perf_counter_ns, time.time_ns
    emits = array("q")
    moments: dict[int, array[int]] = {connection: array("q") for connection in calls}
    acks: dict[int, list[tuple[int, int]]] = {}
    pause_ns = 10**9 * load.workers // load.per_second if load.per_second else 0
    stage.ready.release()
    stage.go.wait()
    before_mib = _peak_mib(os.getpid())
    cpu_before = time.process_time()
    due = clock() + pause_ns * worker // load.workers
    for connection, number in load.numbers(worker):
        if pause_ns:
            ahead = due - clock()
            if ahead > 0:
                time.sleep(ahead / 1e9)
            due += pause_ns
        moment = now()
        args, options = arguments(connection, number, moment)
        call = calls[connection]
        began = clock()
        call(message, *args, **options)
        emits.append(clock() - began)
        if pause_ns:
            moments[connection].append(moment)
            if not acks and number:
                acks = rival.acks()
    stage.logged.release()
    rival.finish()
    figures = {
        "emits": emits.tolist(),
        "cpu_seconds": time.process_time() - cpu_before,
        "mib": _peak_mib(os.getpid()) - before_mib,
        "acks": [delay for connection, noted in acks.items() for delay in _ack_delays(moments[connection], noted)],
    }
    _result(rival.directory, worker).write_bytes(pickle.dumps(figures))
    os._exit(0)  # finish() was the end; what a library does after it is not measured


def _ack_delays(moments: Sequence[int], noted: Sequence[tuple[int, int]]) -> list[int]:
    """Return how long each record took from its log call to its ack, in ns."""
    delays: list[int] = []
    done = noted[0][1] if noted else 0
    for at, acked in noted[1:]:
        delays += [at - moment for moment in moments[done:acked]]
        done = max(done, acked)
    return delays


def _result(directory: Path, worker: int) -> Path:
    return directory / f"worker-{worker}.figures"


# -- clocks


class _Watch:
    """How the files grow."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.steps: list[list[tuple[int, int]]] = [[] for _ in paths]  # of each file: (bytes, ns since the epoch)
        self.began = self.last = 0  # when the load began, and when one grew last
        self._ends = 0
        self._paths = paths
        self._counted = [0] * len(paths)
        self._quiet_since = time.monotonic()

    @property
    def quiet_seconds(self) -> float:
        """How long none has grown."""
        return time.monotonic() - self._quiet_since

    def look(self) -> None:
        """Note their sizes."""
        for path, steps in zip(self._paths, self.steps, strict=True):
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            if size > (steps[-1][0] if steps else 0):
                self.last = time.time_ns()
                self._quiet_since = time.monotonic()
                steps.append((size, self.last))

    def count(self) -> int:
        """Return how many records have come, by their ends."""
        for n, (path, steps) in enumerate(zip(self._paths, self.steps, strict=True)):
            if steps and steps[-1][0] > self._counted[n]:
                with path.open("rb") as file:
                    file.seek(self._counted[n])
                    self._ends += file.read(steps[-1][0] - self._counted[n]).count(b"</")
                self._counted[n] = steps[-1][0]
        return self._ends


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process with all its threads, dead ones included, to the nanosecond.

    The clock's number is the kernel's for "process ``pid``, as scheduled" (include/linux/posix-timers.h).
    """
    return time.clock_gettime((~pid << 3) | 2) if pid else 0.0


def _peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _acquire(semaphore: Any, process: Any) -> None:
    while not semaphore.acquire(timeout=0.2):
        if not process.is_alive():
            raise RuntimeError("it could not be started")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
