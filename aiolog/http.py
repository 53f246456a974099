"""Health and metrics over HTTP, for people, probes and Prometheus.

It reads what the server and the lanes count, at the moment it is asked, and must never know a sink's class: of a sink
it shows the counters that it has, and asks it to rotate if it can. What changes something takes a header that no page
of a browser can send unasked (:data:`ASKED_HEADER`; the Fetch standard's "CORS-safelisted request-header"), and the
server's token, if there is one.

====================  ====================================================================================
``GET /``             what there is to see, as text
``GET /health``       200 ``{"status": "ok", …}``; 503 with ``"draining"``, or with ``"failing"`` and the
                      ``sinks`` that cannot write and hold up the acks
``POST /rotate``      rotate the file sinks now, or those that ``sink`` names, as often as it is given; 200 with
                      the backups of each, 404 for a name that is none, 409 with what failed
``GET /metrics``      the text format of Prometheus, or OpenMetrics where the client accepts it
====================  ====================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from aiolog import __version__
from aiolog.control import ASKED_HEADER
from aiolog.errors import ConfigError, listening_advice, reason
from aiolog.fanout import Lane, Rotates
from aiolog.server import Server

CLOSE_SECONDS = 0.5  # for an answer under way at the end; what scrapes comes again
# Of all clients: probes, two Prometheus, people. Few enough to leave the log clients their descriptors (256 in macOS).
MAX_CONNECTIONS = 64
BACKLOG = 64  # accepted in one turn of the loop, before any of them is counted: these descriptors come on top
FIRST_REQUEST_SECONDS = 10.0  # until its head is complete; as the log clients' handshake has it

INDEX = f"""aiolog {__version__}

/health    200 when records are taken and written, 503 when not
/metrics   counters and gauges for Prometheus
/rotate    POST, as `aiolog rotate` does: begin new files now
"""

# Of the server: the metric, the attribute of Server.counts, and what it says.
_COUNTERS = (
    ("aiolog_records_received", "records", "New records that connections brought."),
    ("aiolog_records_duplicate", "duplicates", "Records that came again, and were acked without being written again."),
    ("aiolog_records_dropped", "dropped", "Records that clients declared dropped: their buffers were full."),
    ("aiolog_batches_received", "batches", "Batches that connections brought, heartbeats included."),
    ("aiolog_received_bytes", "received_bytes", "Bytes of the batches that brought new records."),
    ("aiolog_connections_accepted", "connections", "Connections accepted."),
    ("aiolog_connections_refused", "refused", "Connections refused, with a line on stderr."),
)

# Of one sink: the metric, the attribute of the sink or else of its lane, and what it says.
_SINK_COUNTERS = (
    ("aiolog_sink_records_written", "records_written", "Records that the sink committed."),
    ("aiolog_sink_written_bytes", "bytes_written", "Bytes that the sink committed, before compression."),
    ("aiolog_sink_records_dropped", "dropped_records", "Records dropped before the sink, which was too slow."),
    ("aiolog_sink_records_refused", "records_dropped", "Records dropped in the sink, whose reader was gone."),
    ("aiolog_sink_write_errors", "write_errors", "Writes that the system refused."),
    ("aiolog_sink_rotations", "rotations", "Backups made."),
    ("aiolog_sink_backups_removed", "backups_removed", "Backups that retention removed."),
)


class HttpServer:
    """Answer for one server; every method runs on its event loop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._registry = CollectorRegistry()
        self._registry.register(ServerCollector(server))
        ProcessCollector(registry=self._registry)
        self._visits: dict[asyncio.BaseTransport, _Visit] = {}  # the connections, at most one more than MAX_CONNECTIONS
        app = web.Application(middlewares=[self._note])
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
                web.post("/rotate", self._rotate),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_SECONDS)
        self._listener: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept requests; return the host and port that were bound.

        Raises ConfigError when the address cannot be used.
        """
        await self._runner.setup()
        make = self._runner.server
        assert make is not None
        loop = asyncio.get_running_loop()
        try:
            # Not a TCPSite: aiohttp bounds neither the connections nor the time that each takes for a request.
            self._listener = await loop.create_server(lambda: _Visit(make(), self, loop), host, port, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} for HTTP ({reason(error)}). "
                f"{listening_advice(error, 'choose another for [http] port')}, or set [http] enabled = false"
            ) from error
        address = self._listener.sockets[0].getsockname()
        return address[0], address[1]

    async def close(self) -> None:
        """Stop answering; also where nothing was begun."""
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    # -- the connections

    def joined(self, visit: _Visit, transport: asyncio.BaseTransport) -> None:
        """Take a new connection; where there are enough, cut the one that has been idle longest for it.

        Not the new one, unless all others wait for their answers: who holds all of them idle would keep the probes
        out. One that has asked nothing yet goes before any that has, so that a scraper keeps its connection.
        """
        idle = [one for one in self._visits.values() if not one.is_asking]
        self._visits[transport] = visit
        if len(self._visits) <= MAX_CONNECTIONS:
            return
        min(idle, key=lambda one: (one.has_asked, one.idle_since), default=visit).cut()
        self._server.report(
            "http connections",
            f"HTTP has {MAX_CONNECTIONS} connections, and the one idle longest was cut for another. See who holds them "
            "(`ss -tnp` names them), or let [http] host be an address that only your probes reach",
        )

    def left(self, transport: asyncio.BaseTransport) -> None:
        """Forget a connection that has closed, or is about to."""
        self._visits.pop(transport, None)

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note that the connection has sent a complete head, and when it was answered; for all requests."""
        visit = self._visits.get(request.transport) if request.transport else None
        if visit is None:  # cut meanwhile: nobody hears the answer
            return await handler(request)
        with visit.asking():
            return await handler(request)

    # -- the answers

    async def _index(self, _request: web.Request) -> web.Response:
        return web.Response(text=INDEX)

    async def _health(self, _request: web.Request) -> web.Response:
        failing = [name for name, lane in self._server.fanout.lanes.items() if lane.blocks and lane.failing]
        if self._server.draining:
            return web.json_response({"status": "draining"}, status=503)
        if failing:
            return web.json_response({"status": "failing", "sinks": failing}, status=503)
        return web.json_response(
            {
                "status": "ok",
                "version": __version__,
                "connections": len(self._server.connections),
                "records": self._server.counts.records,
            }
        )

    async def _rotate(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        # A browser names the page with every POST, also one whose name was made to lead here (DNS rebinding).
        is_of_page = ASKED_HEADER not in request.headers or "Origin" in request.headers
        if is_of_page or not self._server.may_enter(token):
            return web.json_response({"error": f"this needs the header {ASKED_HEADER}, and the token"}, status=403)
        lanes = self._server.fanout.lanes
        can = {name: lane.sink for name, lane in lanes.items() if isinstance(lane.sink, Rotates)}
        names = request.query.getall("sink", [*can])
        if unknown := [name for name in names if name not in can]:
            text = f"no file sink is named {', '.join(unknown)}; there are {', '.join(can) or 'none'}"
            return web.json_response({"error": text}, status=404)
        made: dict[str, list[str]] = {}
        failed: list[str] = []
        for name in dict.fromkeys(names):
            try:
                made[name] = await can[name].rotate()
            except (OSError, ConfigError, ValueError, RuntimeError) as error:  # the last: a reload has closed it
                failed.append(f"sink {name} cannot rotate: {reason(error)}")
        if failed:
            return web.json_response({"error": "; ".join(failed), "rotated": made}, status=409)
        return web.json_response({"rotated": made})

    async def _metrics(self, request: web.Request) -> web.Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
            body = encode(self._registry)
        except (TypeError, ValueError):  # a version that is no number: the client library compares it with one
            encode, content_type = choose_encoder("")
            body = encode(self._registry)
        return web.Response(body=body, headers={"Content-Type": content_type})


class _Visit(asyncio.Protocol):
    """One connection: all that happens on it is aiohttp's matter, and only how long it may last is ours.

    It is cut, and not closed: closing waits for a peer to read what was written, and it may never do.
    """

    def __init__(self, protocol: web.RequestHandler, http: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._protocol = protocol
        self._http = http
        self._loop = loop
        self._transport: asyncio.Transport | None = None  # None again once it is cut or lost
        self._deadline: asyncio.TimerHandle | None = None  # of the first request; later ones have aiohttp's keep-alive
        self.has_asked = False
        self.is_asking = False
        self.idle_since = loop.time()

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """While a request is being answered, the connection is not idle."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.has_asked = self.is_asking = True
        try:
            yield
        finally:
            self.is_asking = False
            self.idle_since = self._loop.time()

    def cut(self) -> None:
        """Close the connection at once, and forget it: its place is free from now on."""
        if self._transport is not None:
            self._http.left(self._transport)
            self._transport.abort()
            self._transport = None

    # -- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._deadline = self._loop.call_later(FIRST_REQUEST_SECONDS, self.cut)
        self._protocol.connection_made(transport)
        self._http.joined(self, transport)

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> None:
        self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._transport is not None:
            self._http.left(self._transport)
            self._transport = None
        self._protocol.connection_lost(error)


class ServerCollector(Collector):
    """What a server, its lanes and its sinks count, as metrics."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with its value at this moment."""
        server = self._server
        yield InfoMetricFamily(
            "aiolog", "The version, and what an ack means.", {"version": __version__, "durability": server.durability}
        )
        for name, attribute, text in _COUNTERS:
            yield CounterMetricFamily(name, text, getattr(server.counts, attribute), unit=_unit(name))
        connected = len(server.connections)
        yield GaugeMetricFamily("aiolog_connections", "Connections open.", connected)
        yield GaugeMetricFamily("aiolog_sessions", "Sessions remembered.", len(server.sessions))
        held = "Bytes received and not yet written, of all connections."
        yield GaugeMetricFamily("aiolog_held_bytes", held, server.held_bytes, unit="bytes")
        yield GaugeMetricFamily("aiolog_draining", "1 when the server is about to end.", int(server.draining))
        yield from self._sinks(server.fanout.lanes.values())

    def _sinks(self, lanes: Collection[Lane]) -> Iterator[Metric]:
        failing = GaugeMetricFamily("aiolog_sink_failing", "1 while the sink cannot write.", labels=["sink"])
        for lane in lanes:
            failing.add_metric([lane.sink.name], int(lane.failing))
        yield failing
        for name, attribute, text in _SINK_COUNTERS:
            family = CounterMetricFamily(name, text, labels=["sink"], unit=_unit(name))
            for lane in lanes:
                value = getattr(lane.sink, attribute, getattr(lane, attribute, None))
                if value is not None:
                    family.add_metric([lane.sink.name], value)
            yield family


def _unit(name: str) -> str:
    return "bytes" if name.endswith("_bytes") else ""
