"""How many threads BLAS uses."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController


class _BlasThreads:
    """The number of BLAS's threads, which is the process's, not each thread's own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._limit: Any = None
        self._libraries: ThreadpoolController | None = None
        self._modules = 0

    def _loaded(self) -> ThreadpoolController:
        """Return the libraries of all packages so far; to look for them takes a millisecond."""
        if self._libraries is None or len(sys.modules) != self._modules:
            self._libraries = ThreadpoolController().select(user_api="blas")
            self._modules = len(sys.modules)
        return self._libraries

    @contextmanager
    def one(self) -> Iterator[None]:
        """Set it to one; the first of several overlapping blocks does, the last one restores it."""
        with self._lock:
            if not self._blocks:
                self._limit = self._loaded().limit(limits=1)
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    self._limit.restore_original_limits()


one_blas_thread = _BlasThreads().one
"""Keeps BLAS to one thread, as a context manager or, called, as a decorator.

After a small product its others spin for ten times as long, and on busy cores the product waits for
them. It also makes numbers that do not depend on the number of cores.
"""
