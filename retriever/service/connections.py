"""Sockets of clients: how long a silent one stays open, and how many there may be.

The server closes a connection that has been answered and stays quiet, and no other: whoever sends
no request, half of one, or does not read the answer would keep it for ever.
"""

import asyncio
import os
import resource
import time
from functools import lru_cache

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 10.0
"""Until a request's headers must be there."""

SENDING_S = 60.0
"""For a client to read its answer."""

MOST_CONNECTIONS, FEWEST_CONNECTIONS = 2000, 16

KEPT_FILES = 100
"""Open files that the engine, the log and a burst of connections may need beside those."""


class Connection(H11Protocol):
    """One connection; where there are too many, the one that has been silent longest is closed.

    Attributes:
        request_s: until a request must have been answered, and the answer read.
    """

    request_s = SENDING_S

    _timer: asyncio.TimerHandle | None = None
    _is_busy = False
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._restart()
        if len(self.connections) > most_connections():
            silent = [c for c in self.connections if isinstance(c, Connection) and not c._is_busy]
            min(silent, key=lambda connection: connection._since)._give_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time-out."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        if self._is_busy != self._has_request:
            self._restart()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, or answer one that is there."""
        super().on_response_complete()
        self._restart()

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _restart(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._is_busy, self._since = self._has_request, time.monotonic()
        seconds = self.request_s if self._is_busy else HEADERS_S
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        self.connections.discard(self)
        self.transport.abort()


def connection_class(timeout_s: float) -> type[Connection]:
    """Return the connections of a service whose bodies and searches may take `timeout_s` each."""
    return type("ServiceConnection", (Connection,), {"request_s": 2 * timeout_s + SENDING_S})


@lru_cache(maxsize=1)
def most_connections() -> int:
    """Return how many connections the limit of open files leaves room for."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    room = limit - len(os.listdir("/proc/self/fd")) - KEPT_FILES
    return max(FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, room))
