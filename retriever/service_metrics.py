"""What the service tells Prometheus."""

import time
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from two_tower.retriever.records import SearchResult

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "retriever_requests",
            "Requests by path and HTTP status.",
            ["path", "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "retriever_request_seconds",
            "Time from the request to the end of the answer.",
            ["path"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "retriever_requests_in_flight", "Requests being answered.", registry=self._registry
        )
        self.stage_seconds = Histogram(
            "retriever_stage_seconds",
            "Time that each step of a search took.",
            ["stage"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self.skipped = Counter(
            "retriever_skipped_stages",
            "Stages left out for want of time.",
            ["stage"],
            registry=self._registry,
        )

    def record(self, result: SearchResult) -> None:
        """Take in where a search spent its time."""
        for stage, ms in result.timings_ms.items():
            self.stage_seconds.labels(stage).observe(ms / 1000.0)
        for stage in result.skipped:
            self.skipped.labels(stage).inc()

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)


class Measured:
    """Middleware: counts and times every request.

    Args:
        app: what answers.
        metrics: where to count.
        paths: those that get a label of their own; all others share one, since anybody can
            invent paths.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, paths: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = "none"  # the client left before there was one

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        path = scope["path"] if scope["path"] in self._paths else "other"
        start = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, watch)
            finally:
                self._metrics.seconds.labels(path).observe(time.perf_counter() - start)
                self._metrics.requests.labels(path, status).inc()
