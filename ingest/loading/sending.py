"""Writes to the engine, in a thread of their own where encoding and the engine's work can overlap.

They cannot where the engine is embedded: it holds the GIL during a write, and a second thread would
only take turns with it. There the caller's thread writes, and `workers` make points meanwhile.
"""

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Protocol, Self

from two_tower.models.errors import TwoTowerError
from two_tower.retriever.engine.failures import AGAIN

# A request gives the GIL up some five times; to get it back takes up to this long each time, by
# default 5 ms, in which the engine has nothing to do.
SWITCH_S = 0.0005
# Batches that wait: enough that neither side idles, few enough that memory stays bounded.
QUEUED = 4
# Every so many batches one is waited for, so that the engine's queue and the last wait stay short.
WAIT_EVERY = 16
# The embedded engine has done a write when it returns; to wait means to flush its files to disk,
# which takes as long as writing thousands of points. Until then they are in its log alone.
FLUSH_EVERY = 128
# Of a server: a full batch reaches every shard, the last one may be a single point.
WAITED_AT_THE_END = 2

_TURNS = threading.Lock()


@contextmanager
def frequent_turns() -> Iterator[None]:
    """Let threads take turns every half millisecond; the outermost block alone changes that."""
    is_outermost = _TURNS.acquire(blocking=False)
    before = sys.getswitchinterval()
    if is_outermost:
        sys.setswitchinterval(min(SWITCH_S, before))
    try:
        yield
    finally:
        if is_outermost:
            sys.setswitchinterval(before)
            _TURNS.release()


class Write(Protocol):
    """One request; with `wait` it returns when the engine has done it."""

    def __call__(self, *, wait: bool) -> object:
        """Send it."""


class Sender:
    """Sends writes in their order; a context manager whose end means that all are done.

    Attributes:
        sent: passages in the writes that the engine took.
    """

    def __init__(self, *, rate_limit: float | None = None, is_embedded: bool = False) -> None:
        """Start nothing yet.

        Args:
            rate_limit: passages per second, at most.
            is_embedded: whether it is the embedded engine; else a thread sends, and threads of this
                process take turns more often meanwhile.
        """
        self.sent = 0
        self._rate_limit = rate_limit
        self._wait_every = FLUSH_EVERY if is_embedded else WAIT_EVERY
        self._waited_at_the_end = 1 if is_embedded else WAITED_AT_THE_END
        self._held: deque[tuple[Write, int]] = deque()
        self._number = 0
        self._start = 0.0
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self._queue: queue.Queue[tuple[Write, int] | None] = queue.Queue(QUEUED)
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._has_thread = not is_embedded
        self._turns = frequent_turns() if self._has_thread else nullcontext()

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._turns.__enter__()
        if self._has_thread:
            self._thread.start()
        return self

    def put(self, write: Write, passages: int) -> None:
        """Have a write about so many passages sent; returns when there is room for more.

        Raises:
            TwoTowerError: an earlier write failed; what came after it was not sent.
        """
        self._require_no_failure()
        if self._has_thread:
            self._queue.put((write, passages))
        else:
            self._hold((write, passages))
            self._require_no_failure()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            self._stopped.set()
        try:
            if self._has_thread:
                self._queue.put(None)
                self._thread.join()
            for write, passages in self._held:
                self._send(write, passages, wait=True)
        finally:
            self._turns.__exit__(None, None, None)
        if error is None:
            self._require_no_failure()

    def _require_no_failure(self) -> None:
        if isinstance(self._failure, TwoTowerError):
            reason = str(self._failure)
            advice = "" if AGAIN in reason else f": {AGAIN}"
            raise type(self._failure)(
                f"{reason}; {self.sent:,} passages were written{advice}"
            ) from None
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self._hold(item)

    def _hold(self, item: tuple[Write, int]) -> None:
        """Send what was held longest, and hold this: the last ones are waited for."""
        self._held.append(item)
        if len(self._held) > self._waited_at_the_end:
            self._number += 1
            self._send(*self._held.popleft(), wait=self._number % self._wait_every == 0)

    def _send(self, write: Write, passages: int, *, wait: bool) -> None:
        """Send unless something failed; the queue must run empty in any case."""
        if self._rate_limit and self._failure is None:  # what is sent must be within the limit
            self._stopped.wait(self._start + self.sent / self._rate_limit - time.monotonic())
        if self._failure is not None or self._stopped.is_set():
            return
        try:
            write(wait=wait)
            self.sent += passages
        except BaseException as error:
            self._failure = error
