"""What loads change in their process for as long as any of them runs: BLAS threads, turns."""

import sys
import threading
from collections.abc import Callable
from typing import Any

from threadpoolctl import threadpool_limits

# A request gives the GIL up some five times; to get it back takes up to this long each time, by
# default 5 ms, in which the engine has nothing to do.
SWITCH_S = 0.0005


class WhileAny:
    """A context that several threads may be in: the first makes a change, the last undoes it.

    If each undid its own, the last to leave could put back what it found: another's change.
    """

    def __init__(self, change: Callable[[], Callable[[], Any]]) -> None:
        """Make no change yet.

        Args:
            change: makes it, and returns what undoes it.
        """
        self._change = change
        self._undo: Callable[[], Any] = lambda: None
        self._inside = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._undo = self._change()
            self._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._undo()


def _take_turns() -> Callable[[], None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(SWITCH_S, before))
    return lambda: sys.setswitchinterval(before)


def _calm_blas() -> Callable[[], Any]:
    undo: Callable[[], Any] = threadpool_limits(1, user_api="blas").restore_original_limits
    return undo


FREQUENT_TURNS = WhileAny(_take_turns)
# After a small product the other threads spin for ten times as long, time that the engine can use.
# One thread also makes vectors that do not depend on the number of cores.
ONE_BLAS_THREAD = WhileAny(_calm_blas)
