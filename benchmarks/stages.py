"""Where the time of a record goes: each step of its way alone, hot, over and over on one batch.

    python -m benchmarks.stages [PICTURE.png]

What is missing from the sum is what a batch costs, not a record: waking up, system calls, the hop to a sink's thread.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiolog import formatting
from aiolog.backlog import Backlog
from aiolog.checksum import crc32
from aiolog.livefile import Part
from aiolog.protocol import FROM_CLIENT, Decoder, batch_frame, pack_everyday, unpack_records
from aiolog.record import Encoder
from aiolog.source import Source
from benchmarks.loads import TEXT_LINE, Load

RECORDS = 640  # a frame of 64 KiB
ROUNDS = 40


def stages() -> dict[str, dict[str, float]]:
    """Return what each step takes, in ns a record: the best of all rounds."""
    load = Load("stages", RECORDS)
    message = load.template("%")
    logger = logging.getLogger("bench.stages")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    made: list[logging.LogRecord] = []
    keeper = logging.Handler()
    keeper.handle = made.append  # type: ignore[assignment, method-assign]
    logger.addHandler(keeper)
    arguments = [load.arguments(0, number, time.time_ns())[0] for number in range(RECORDS)]

    def log() -> None:
        made.clear()
        for args in arguments:
            logger.info(message, *args)

    worker = {"logging itself": _best(log)}
    encoder = Encoder(
        pid=os.getpid(),
        process_name="MainProcess",
        start_time=logging._startTime,  # type: ignore[attr-defined]
        format_exception=str,
    )
    wires = [encoder.encode(record) for record in made]
    worker["message and fields"] = _best(lambda: [encoder.encode(record) for record in made])
    packed = [pack_everyday(wire) for wire in wires]
    worker["msgpack"] = _best(lambda: [pack_everyday(wire) for wire in wires])
    backlog = Backlog(1 << 30)
    worker["into the backlog"] = _best(lambda: [backlog.put(record) for record in packed])
    frame = batch_frame(1, 0, packed)
    worker["frame and checksum"] = _best(lambda: batch_frame(1, 0, packed))
    worker["send"] = _best_send(frame)

    decoder = Decoder(FROM_CLIENT)

    def read() -> Any:
        decoder.feed(frame)
        return decoder.next()

    batch = read()
    server = {"frame": _best(read)}
    server["checksum and msgpack"] = _best(lambda: unpack_records(batch, crc32))
    records = unpack_records(batch)
    source = Source(host="h", pid=os.getpid(), process_name="MainProcess", start_time=encoder.start_time)
    for fields in encoder.definitions:
        source.define(fields)
    as_text, as_json = formatting.text(TEXT_LINE), formatting.json_lines()
    server["format, text"] = _best(lambda: as_text(source, records))
    texts = as_text(source, records)
    part = Part(b"s" * 16, 1, texts, texts.joined if isinstance(texts, formatting.Lines) else "")
    server["join and encode"] = _best(lambda: joined(part).encode())
    data = joined(part).encode()
    server["ledger's entry"] = _best(lambda: (crc32(data), part.run))
    with tempfile.TemporaryFile(buffering=0) as file:
        server["write"] = _best(lambda: file.write(data))
    server["(format, JSON, instead)"] = _best(lambda: as_json(source, records))
    return {"worker": worker, "server": server}


def joined(part: Part) -> str:
    """Return all texts of a part in one, as they are written."""
    return part.joined or "".join(part.texts)


def _best(step: Callable[[], Any]) -> float:
    took = []
    for _ in range(ROUNDS):
        began = time.process_time_ns()
        step()
        took.append(time.process_time_ns() - began)
    return min(took) / RECORDS


def _best_send(frame: bytes) -> float:
    """Return what a system call to send takes in the sending thread; the frame fits into the socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        peer, _ = listener.accept()
        with peer:
            took = []
            for _ in range(ROUNDS):
                began = time.process_time_ns()
                client.sendall(frame)
                took.append(time.process_time_ns() - began)
                left = len(frame)
                while left:
                    left -= len(peer.recv(left))
    return min(took) / RECORDS


def plot(found: dict[str, dict[str, float]], path: Path) -> None:
    """Draw them as two stacked bars."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(found), 1, figsize=(11, 1.9 * len(found)), layout="constrained")
    for axis, (side, steps) in zip(axes, found.items(), strict=True):
        left = 0.0
        for n, (step, nanoseconds) in enumerate(
            (step, took) for step, took in steps.items() if not step.startswith("(")
        ):
            axis.barh(
                [0], [nanoseconds], left=left, color=plt.get_cmap("tab20")(n), label=f"{step}: {nanoseconds:.0f} ns"
            )
            left += nanoseconds
        axis.set_title(f"{side}: {left:.0f} ns a record, hot, in batches of {RECORDS}", fontsize=9, loc="left")
        axis.set_yticks([])
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.legend(ncols=4, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})
    plt.close(figure)


def main() -> None:
    """Measure, print, and draw if told where."""
    found = stages()
    for side, steps in found.items():
        print(f"{side}, ns a record")
        for step, nanoseconds in steps.items():
            print(f"  {step:26}{nanoseconds:7.1f}")
    if len(sys.argv) > 1:
        plot(found, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
