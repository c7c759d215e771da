"""What stands in front of the service: headers for browsers, the key, the size of bodies.

Plain ASGI, one class per concern; `service.create_app` puts them around the application.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from two_tower.retriever.records import SearchResult
from two_tower.retriever.service.failures import UNAUTHORIZED, Failure

# The page is three files of our own: nothing inline, nothing from elsewhere.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        *(f"{kind} 'self'" for kind in ("script-src", "style-src", "img-src", "connect-src")),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)

SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class SecurityHeaders:
    """Middleware: tells browsers what no page of this service may do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def add_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, add_headers)


class BearerKey:
    """Middleware: answers 401 to who does not send the key.

    Args:
        app: what answers the others.
        key: the secret.
        open_paths: what everybody may see; a path that ends in / stands for all below it.
    """

    def __init__(self, app: ASGIApp, *, key: str, open_paths: Collection[str]) -> None:
        self._app = app
        self._digest = _digest(key)
        self._open = frozenset(open_paths)
        self._folders = tuple(path for path in open_paths if path.endswith("/") and path != "/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            # Digests have one length, so the time of the comparison tells nothing about the key.
            if scheme.lower() != "bearer" or not hmac.compare_digest(
                _digest(key.strip()), self._digest
            ):
                await UNAUTHORIZED.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._open or (bool(self._folders) and path.startswith(self._folders))


class BodyLimit:
    """Middleware: reads the body before anything else does, up to a size and for a time.

    Args:
        app: what answers when the body is fine.
        most_bytes: a longer one is answered 413.
        timeout_s: one that takes longer to arrive is answered 408.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._most_bytes = most_bytes
        self._timeout_s = timeout_s
        self._too_large = Failure(
            413, "body_too_large", f"the request body has more than {most_bytes:,} bytes"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self._timeout_s)
        except TimeoutError:
            slow = Failure(408, "body_too_slow", "the request body did not arrive in time")
            await slow.response()(scope, receive, send)
            return
        if body is None:
            await self._too_large.response()(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body, None where it is too large."""
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > self._most_bytes:
            return None
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most_bytes:
                return None
        return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body, then whatever comes next."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


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
