"""Writes to the engine in a thread of their own, so that encoding and the engine's work overlap."""

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from threadpoolctl import threadpool_limits

from two_tower.ingest.loading.retry import AGAIN
from two_tower.models.errors import TwoTowerError

# A request gives the GIL up some five times; to get it back takes up to this long each time, by
# default 5 ms, in which the engine has nothing to do.
SWITCH_S = 0.0005

_BLAS, _TURNS = threading.Lock(), threading.Lock()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread: after a small product its others spin for ten times as long.

    The engine can use that time. It also makes vectors that do not depend on the number of cores.
    """
    with _first(_BLAS) as first:
        if first:
            with threadpool_limits(1, user_api="blas"):
                yield
        else:
            yield


@contextmanager
def frequent_turns() -> Iterator[None]:
    """Let threads take turns every half millisecond."""
    with _first(_TURNS) as first:
        before = sys.getswitchinterval()
        if first:
            sys.setswitchinterval(min(SWITCH_S, before))
        try:
            yield
        finally:
            if first:
                sys.setswitchinterval(before)


@contextmanager
def _first(lock: threading.Lock) -> Iterator[bool]:
    """Say whether nobody else holds the lock, and hold it if so."""
    first = lock.acquire(blocking=False)
    try:
        yield first
    finally:
        if first:
            lock.release()


# Batches that wait: enough that neither side idles, few enough that memory stays bounded.
QUEUED = 4
# Every so many batches one is waited for, so that the engine's queue and the last wait stay short.
WAIT_EVERY = 16
# A full batch reaches every shard, the last one may be a single point.
WAITED_AT_THE_END = 2


class Write(Protocol):
    """One request; with `wait` it returns when the engine has done it."""

    def __call__(self, *, wait: bool) -> object:
        """Send it."""


class Sender:
    """Sends writes in their order; a context manager whose end means that all are done.

    Threads of this process take turns more often meanwhile.

    Attributes:
        sent: passages in the writes that the engine took.
    """

    def __init__(self, *, rate_limit: float | None = None) -> None:
        """Start nothing yet.

        Args:
            rate_limit: passages per second, at most.
        """
        self.sent = 0
        self._rate_limit = rate_limit
        self._queue: queue.Queue[tuple[Write, int] | None] = queue.Queue(QUEUED)
        self._start = 0.0
        self._turns = frequent_turns()
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def __enter__(self) -> Self:
        self._turns.__enter__()
        self._thread.start()
        return self

    def put(self, write: Write, passages: int) -> None:
        """Have a write sent; returns when there is room for it in the queue.

        Args:
            write: the request.
            passages: how many it is about.

        Raises:
            TwoTowerError: an earlier write failed; what came after it was not sent.
        """
        self._require_no_failure()
        self._queue.put((write, passages))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            self._stopped.set()
        try:
            self._queue.put(None)
            self._thread.join()
        finally:
            self._turns.__exit__(None, None, None)
        if error is None:
            self._require_no_failure()

    def _require_no_failure(self) -> None:
        if isinstance(self._failure, TwoTowerError):
            told = str(self._failure)
            again = "" if AGAIN in told else f": {AGAIN}"
            raise type(self._failure)(
                f"{told}; {self.sent:,} passages were written{again}"
            ) from None
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        self._start = time.monotonic()
        held: deque[tuple[Write, int]] = deque()
        number = 0
        while (item := self._queue.get()) is not None:
            held.append(item)
            if len(held) > WAITED_AT_THE_END:
                number += 1
                self._send(held.popleft(), wait=number % WAIT_EVERY == 0)
        for item in held:
            self._send(item, wait=True)

    def _send(self, item: tuple[Write, int], *, wait: bool) -> None:
        """Send unless something failed; the queue must run empty in any case."""
        self._pace()
        if self._failure is not None or self._stopped.is_set():
            return
        write, passages = item
        try:
            write(wait=wait)
            self.sent += passages
        except BaseException as error:
            self._failure = error

    def _pace(self) -> None:
        """Wait until what is sent already is within the limit, before the next; the last too."""
        if self._rate_limit and self._failure is None:
            self._stopped.wait(self._start + self.sent / self._rate_limit - time.monotonic())
