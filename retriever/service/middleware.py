"""Middleware: headers for browsers, the host asked, the key, the size of bodies, metrics.

Plain ASGI, one class per concern; `app.create_app` puts them around the application.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Collection

from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from two_tower.retriever.service.failures import UNAUTHORIZED, Failure
from two_tower.retriever.service.metrics import Metrics

log = logging.getLogger(__name__)

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
    """Middleware: headers that forbid browsers whatever the page does not need."""

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


class Head:
    """Middleware: answers HEAD as GET; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class KnownHost:
    """Middleware: answers 421 to a request for a host that this service is not.

    A page of a stranger can make its own name point to this machine (DNS rebinding); the browser
    then lets it read what it gets, but still says whose name it asked.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            host = host_name(Headers(scope=scope).get("host", ""))
            if host not in self._hosts:
                message = f"this service is not {host[:100]!r}; start it with --allowed-host"
                await Failure(421, "unknown_host", message).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_name(header: str) -> str:
    """Return the name or address in a Host header, in lower case, without port and brackets."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


BEARER = HTTPBearer(auto_error=False, description="The key that the operator gives out.")


class BearerKey:
    """Middleware: answers 401 to a request without the key, before its body is read.

    `open_paths` need no key; a path that ends in / stands for all below it. Wrong keys are logged,
    and each makes the next answer to the same address later.
    """

    def __init__(self, app: ASGIApp, *, key: str, open_paths: Collection[str]) -> None:
        self._app = app
        self._digest = _digest(key)
        self._open = frozenset(open_paths)
        self._folders = tuple(path for path in open_paths if path.endswith("/") and path != "/")
        self._guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            sent = await BEARER(Request(scope))
            # Digests have one length, so the time of the comparison tells nothing about the key.
            if sent is None or not hmac.compare_digest(
                _digest(sent.credentials.strip()), self._digest
            ):
                if sent is not None:
                    client = scope.get("client") or ("an unknown address", 0)
                    await asyncio.sleep(self._guesses.record(client[0]))
                await UNAUTHORIZED.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._open or (bool(self._folders) and path.startswith(self._folders))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Guesses:
    """Wrong keys, by the address that they came from."""

    MOST_ADDRESSES = 1024
    FORGOTTEN_AFTER_S = 300.0
    LONGEST_WAIT_S = 2.0

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def record(self, address: str) -> float:
        """Count a wrong key, and log it; return after how many seconds to answer."""
        now = time.monotonic()
        count, since = self._counts.pop(address, (0, now))
        if now - since > self.FORGOTTEN_AFTER_S:
            count, since = 0, now
        count += 1
        self._counts[address] = (count, since)
        if len(self._counts) > self.MOST_ADDRESSES:
            self._counts.popitem(last=False)
        if count & (count - 1) == 0:  # the first, second, fourth, eighth …
            log.warning("a wrong key from %s, number %d in %.0f s", address, count, now - since)
        return float(min(self.LONGEST_WAIT_S, 0.05 * 2.0 ** min(count - 1, 10)))


class BodyLimit:
    """Middleware: reads the body before the application does.

    A longer body than `most_bytes` is answered 413, one that arrives after `timeout_s` 408.
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
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, receive_again, send)

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


class Measured:
    """Middleware: counts and times every request.

    Only `paths` get a label of their own, for anybody can invent others.
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
