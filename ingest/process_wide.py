"""What a load changes in its whole process, and puts back: BLAS threads, and who has the GIL.

Of loads in several threads the first changes it, and puts it back when it ends; the others leave it
alone. Were each to put back what it found, the last would put back the change of another.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

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
