"""Searches that wait for a thread together are answered together.

A batch costs the engine and this process much less than its searches one by one, so a busy service
is the quicker per search the longer its queue. Nothing waits for a batch to fill: a thread that is
free takes its share of what is there, and leaves as much for each of the others.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from two_tower.retriever.errors import EngineError
from two_tower.retriever.records import SearchResult

T = TypeVar("T")
MOST_TOGETHER = 8


class Question(NamedTuple, Generic[T]):
    """One search.

    Attributes:
        query: what to look for.
        wishes: everything else about it, as text; only equal ones are answered together.
        ask: answers several queries with these wishes.
        show: makes the answer of one result.
        most_together: how many such are answered together at most; 1 where that saves nothing,
            for all of a batch wait until its last is done.
    """

    query: str
    wishes: str
    ask: Callable[[Sequence[str]], list[SearchResult]]
    show: Callable[[SearchResult], T]
    most_together: int = MOST_TOGETHER


class _Asked(NamedTuple, Generic[T]):
    question: Question[T]
    answer: "Future[T]"


class Batches(Generic[T]):
    """The searches that wait for a thread of `pool`, which ends after this is closed."""

    def __init__(self, pool: ThreadPoolExecutor, *, threads: int) -> None:
        self._pool = pool
        self._threads = threads
        self._waiting: deque[_Asked[T]] = deque()
        self._lock = threading.Lock()

    def submit(self, question: Question[T]) -> "Future[T]":
        """Return the answer to come; cancelling it takes the search out of the queue."""
        asked = _Asked(question, Future())
        with self._lock:
            self._waiting.append(asked)
        self._pool.submit(self._run)
        return asked.answer

    def close(self) -> None:
        """Cancel what still waits."""
        with self._lock:
            for asked in self._waiting:
                asked.answer.cancel()
            self._waiting.clear()

    def _run(self) -> None:
        batch = [asked for asked in self._take() if asked.answer.set_running_or_notify_cancel()]
        if batch:
            _settle(batch)

    def _take(self) -> list[_Asked[T]]:
        """Return the search that waits longest, and the next ones with the same wishes."""
        with self._lock:
            if not self._waiting:
                return []
            first = self._waiting[0].question
            share = math.ceil(len(self._waiting) / self._threads)
            most = min(share, first.most_together)
            taken: list[_Asked[T]] = []
            others: deque[_Asked[T]] = deque()
            for asked in self._waiting:
                fits = len(taken) < most and asked.question.wishes == first.wishes
                (taken if fits else others).append(asked)
            self._waiting = others
        return taken


def _settle(batch: list[_Asked[T]]) -> None:
    """Give every search of a batch its answer or its own failure."""
    try:
        results = batch[0].question.ask([asked.question.query for asked in batch])
    except Exception as error:
        if len(batch) == 1 or isinstance(error, EngineError):
            for asked in batch:
                asked.answer.set_exception(error)
        else:  # one query may be at fault: each on its own, then
            for asked in batch:
                _settle([asked])
        return
    for asked, result in zip(batch, results, strict=True):
        try:
            asked.answer.set_result(asked.question.show(result))
        except Exception as error:
            asked.answer.set_exception(error)
