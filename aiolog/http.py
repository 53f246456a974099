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

from collections.abc import Collection, Iterator

from aiohttp import web
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
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
                web.post("/rotate", self._rotate),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_SECONDS)

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept requests; return the host and port that were bound.

        Raises ConfigError when the address cannot be used.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} for HTTP ({reason(error)}). "
                f"{listening_advice(error, 'choose another for [http] port')}, or set [http] enabled = false"
            ) from error
        address = self._runner.addresses[0]
        return address[0], address[1]

    async def close(self) -> None:
        """Stop answering; also where nothing was begun."""
        await self._runner.cleanup()

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
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


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
