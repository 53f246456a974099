"""A TCP proxy that does to a connection what bad networks do. Settings may change while it runs.

    with Proxy(server.port) as proxy:
        proxy.cut_after_bytes = 5_000        # reset both sides after so many bytes of a client
        log_to(proxy.port)

It runs in a thread of its own. ``up`` is the way from client to server, ``down`` the way back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

CHUNK_BYTES = 16 << 10
MAX_PART_BYTES = 2_000  # that is lost or comes twice: some batches of a beat
HOLD_SECONDS = 0.02  # between two looks of a pump that is held


class Proxy:
    """Pass bytes both ways to a port of this machine, or not."""

    def __init__(self, to_port: int, *, seed: int = 0) -> None:
        self.to_port = to_port
        self.delay_seconds = 0.0  # each way
        self.jitter_seconds = 0.0
        self.drip: tuple[int, float] | None = None  # so many bytes at a time, and seconds after each
        self.cut_after_bytes = 0  # of a client; then both sides are reset
        self.cut_is_random = False  # after any number of bytes up to that
        self.half_close_after_bytes = 0  # of a client; then the server sees the end of the stream
        self.swallow_acks = False  # nothing comes back, though the connection stands
        self.corrupt_every_bytes = 0  # bytes are damaged on the way up
        self.corrupt_acks_every_bytes = 0  # and on the way down
        self.damage = "flip"  # one bit of a byte; or "cut out" a part, or "repeat" it
        self.black_hole = False  # nothing passes, in either direction; no new connection either
        self.connections = 0
        self.cuts = 0
        self.damaged = 0  # so often
        self.up_bytes = 0
        self._frozen: set[int] = set()  # connections through which nothing passes any more
        self._open: dict[int, tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        self._listener.close()

    def freeze(self) -> None:
        """Let nothing pass any more through what is connected now, as a NAT that forgot it; new ones work."""
        self._frozen |= set(self._open)

    def reset_all(self) -> None:
        """Reset what is connected now."""
        self._loop.call_soon_threadsafe(lambda: [self._reset(number) for number in list(self._open)])

    # -- the thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listener, limit=CHUNK_BYTES)
        await self._stopped.wait()
        server.close()
        for number in list(self._open):
            self._reset(number)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self.black_hole:
            await asyncio.sleep(HOLD_SECONDS)
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self.to_port, limit=CHUNK_BYTES)
        except OSError:
            writer.transport.abort()
            return
        number, self.connections = self.connections, self.connections + 1
        self._open[number] = writer, forth
        for way in (self._pump(number, reader, forth, up=True), self._pump(number, back, writer, up=False)):
            task = asyncio.ensure_future(way)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _reset(self, number: int) -> None:
        for writer in self._open.pop(number, ()):
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def _held(self, number: int) -> bool:
        return self.black_hole or number in self._frozen

    async def _pump(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        passed, due = 0, 0.0
        cut = self.cut_after_bytes
        if cut and self.cut_is_random:
            cut = self._random.randint(1, cut)
        half = self.half_close_after_bytes
        flip_every = self.corrupt_every_bytes if up else self.corrupt_acks_every_bytes
        flip_at = flip_every and self._random.randint(1, flip_every)
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(4096)
        late = asyncio.ensure_future(self._write_late(number, waiting, writer))
        try:
            while True:
                while self._held(number):
                    await asyncio.sleep(HOLD_SECONDS)
                limit = CHUNK_BYTES
                if up and cut:
                    limit = min(limit, cut - passed)
                if up and half:
                    limit = min(limit, half - passed)
                if self.drip:
                    limit = min(limit, self.drip[0])
                data = await reader.read(limit)
                if not data:
                    await waiting.put((0.0, b""))
                    await late
                    return
                while self._held(number):
                    await asyncio.sleep(HOLD_SECONDS)
                passed += len(data)
                if up:
                    self.up_bytes += len(data)
                elif self.swallow_acks:
                    continue
                flip_every = self.corrupt_every_bytes if up else self.corrupt_acks_every_bytes
                if flip_every and flip_at and passed >= flip_at:
                    at = len(data) - 1 - (passed - flip_at)
                    if at >= 0:
                        data = self._damage(data, at)
                    flip_at = passed + self._random.randint(1, flip_every)
                due = max(due, time.monotonic() + self.delay_seconds + self._random.random() * self.jitter_seconds)
                await waiting.put((due, data))
                if self.drip:
                    await asyncio.sleep(self.drip[1])
                if up and cut and passed >= cut:
                    while not waiting.empty():
                        await asyncio.sleep(0)
                    self.cuts += 1
                    self._reset(number)
                    return
                if up and half and passed >= half:
                    self.cuts += 1
                    await waiting.put((0.0, b""))
                    await late
                    return  # the other way goes on until the server ends it
        except OSError:
            self._reset(number)
        finally:
            late.cancel()

    def _damage(self, data: bytes, at: int) -> bytes:
        self.damaged += 1
        part_bytes = self._random.randint(1, MAX_PART_BYTES)
        if self.damage == "cut out":
            return data[:at] + data[at + part_bytes :]
        if self.damage == "repeat":
            return data[: at + part_bytes] + data[at:]
        return data[:at] + bytes([data[at] ^ 1 << self._random.randrange(8)]) + data[at + 1 :]

    async def _write_late(
        self, number: int, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                due, data = await waiting.get()
                if (left := due - time.monotonic()) > 0:
                    await asyncio.sleep(left)
                if not data:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
        except (OSError, RuntimeError):
            self._reset(number)
