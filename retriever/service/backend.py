"""The searching side of the service: one retriever, a bounded pool of threads around it."""

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

from two_tower.retriever.search.cross import CROSS

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.retriever.collection.schema import read_metadata
from two_tower.retriever.engine.address import EngineAddress
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import CollectionMismatch, EngineError, EngineUnavailable
from two_tower.retriever.records import SearchResult
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.service.config import Limits, ServiceConfig
from two_tower.retriever.service.failures import OVERLOADED, TIMED_OUT, ServiceFailure

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


EXAMPLES = 4

LONGEST_EXAMPLE = 60

MODES: Mapping[str, Mapping[str, Any]] = {
    "bm25": {"legs": {"bm25": 100}, "rerank": False},
    "hybrid": {"rerank": False},
    "reranked": {},
}

log = logging.getLogger(__name__)


def modes(bundle: ModelBundle) -> dict[str, dict[str, Any]]:
    """Return the settings that the page compares; the last are the service's default."""
    if not bundle.has_cross_scorer:
        return {name: dict(settings) for name, settings in MODES.items()}
    return {name: {**settings, "cross": False} for name, settings in MODES.items()} | {CROSS: {}}


class Opened(NamedTuple):
    """A retriever and the engine it asks."""

    engine: Engine
    retriever: Retriever


class Health(NamedTuple):
    """What a service that is ready says about itself.

    Attributes:
        collection: the versioned collection that it searches.
        fingerprint: of the bundle that both sides share.
        passages: how many it searches.
        is_current: False once the alias has moved to another collection; restart with its bundle.
    """

    collection: str
    fingerprint: str
    passages: int
    is_current: bool


class Backend:
    """Answers jobs with the retriever, in threads, within the limits.

    The engine need not be there when the service starts, nor stay: every job opens the retriever
    if that has not worked yet, and the client's connections come back by themselves.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self._bundle = ModelBundle.load(config.bundle)
        self._opened: Opened | None = None
        self._examples: tuple[str, ...] = ()
        self._lock = threading.Lock()
        limits = config.limits
        self._slots = threading.BoundedSemaphore(limits.threads + limits.waiting)
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="search")
        self._batches: Batches[Any] = Batches(self._pool, threads=limits.threads)
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="health")

    @property
    def limits(self) -> Limits:
        """The limits that this was made with."""
        return self.config.limits

    def open(self) -> Opened:
        """Return the retriever; connect where that has not been done.

        Raises:
            EngineError: no engine, no such collection, or one loaded with another bundle.
        """
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
                log.info("searching %s", self._opened.retriever.collection)
            return self._opened

    def _connect(self) -> Opened:
        engine = connect(url=self.config.url, path=self.config.path)
        try:
            settings = self.config.settings
            retriever = Retriever(engine, self.config.name, self._bundle, settings=settings)
            if self._bundle.has_cross_scorer or self._bundle.config["tower"]["kind"] != "mean":
                _one_thread_per_search()
        except BaseException:
            engine.close()
            raise
        return Opened(engine, retriever)

    async def search(self, job: Callable[[Retriever], T]) -> T:
        """Run `job` in a thread.

        Raises:
            ServiceFailure: all threads and waiting places are taken, or it takes too long.
            TwoTowerError: what the job raises.
        """
        return await self._within_limits(
            lambda: self._pool.submit(lambda: job(self.open().retriever))
        )

    async def answer(
        self,
        query: str,
        wishes: str,
        *,
        settings: SearchSettings | None,
        ask: Callable[[Retriever, Sequence[str]], list[SearchResult]],
        show: Callable[[SearchResult], T],
    ) -> T:
        """Answer a query, with others that wait at the same time and have equal wishes.

        Args:
            query: what to look for.
            wishes: everything else that was asked for, as text.
            settings: those among the wishes; None for the service's own.
            ask: answers several queries with these wishes.
            show: makes the answer of one result.

        Raises:
            ServiceFailure: as `search`.
            TwoTowerError: what `ask` raises.
        """
        question = Question(
            query,
            wishes,
            lambda queries: ask(self.open().retriever, queries),
            show,
            self._most_together(settings or self.config.settings),
        )
        answer: T = await self._within_limits(lambda: self._batches.submit(question))
        return answer

    def _most_together(self, settings: SearchSettings) -> int:
        """A cross-scorer reads one query at a time, which is nearly all of such a search."""
        return 1 if settings.cross and self._bundle.has_cross_scorer else MOST_TOGETHER

    async def _within_limits(self, start: "Callable[[], Future[T]]") -> T:
        if not self._slots.acquire(blocking=False):
            raise ServiceFailure(OVERLOADED)
        future = start()
        # A job that timed out keeps its thread, so it keeps its place until it really ends.
        future.add_done_callback(lambda _: self._slots.release())
        return await self._within_time(future)

    async def health(self) -> Health:
        """Ask the engine whether this service can search.

        That happens beside the pool, so that load never makes a working service look dead.

        Raises:
            EngineError: it cannot.
        """
        try:
            return await self._within_time(self._checks.submit(self._check))
        except ServiceFailure:
            raise EngineUnavailable("the engine did not answer the health check in time") from None

    def _check(self) -> Health:
        engine, retriever = self.open()
        metadata = read_metadata(engine, retriever.collection)
        if metadata.bundle_fingerprint != self._bundle.fingerprint:
            raise CollectionMismatch(
                f"collection {retriever.collection!r} has bundle {metadata.bundle_fingerprint[:12]}"
                f", this service {self._bundle.fingerprint[:12]}; restart it with that bundle"
            )
        return Health(
            collection=retriever.collection,
            fingerprint=self._bundle.fingerprint,
            passages=retriever.size,
            is_current=self._is_current(engine, retriever.collection),
        )

    def _is_current(self, engine: Engine, collection: str) -> bool:
        try:
            return engine.resolve(self.config.name) == collection
        except EngineError:
            return False

    async def _within_time(self, future: "Future[T]") -> T:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout_s)
        except TimeoutError:
            raise ServiceFailure(TIMED_OUT) from None

    def describe(self) -> dict[str, Any]:
        """Return what a `CollectionAnswer` says; asks the engine for example titles once."""
        engine, retriever = self.open()
        if not self._examples:
            self._examples = self.config.examples or _titles(engine, retriever.collection)
        return {
            "name": self.config.name,
            "collection": retriever.collection,
            "passages": retriever.size,
            "fields": {name: kind.value for name, kind in retriever.fields.items()},
            "most_hits": self.limits.k,
            "modes": modes(self._bundle),
            "examples": list(self._examples),
            "dashboard": _dashboard(self.config),
        }

    def close(self) -> None:
        """Let running searches end and release the engine."""
        for pool in (self._pool, self._checks):
            pool.shutdown(wait=True, cancel_futures=True)
        self._batches.close()
        if self._opened is not None:
            self._opened.engine.close()


def _one_thread_per_search() -> None:
    """Keep torch from splitting one search among threads, which slows down all others."""
    import torch

    torch.set_num_threads(1)


def _titles(engine: Engine, collection: str) -> tuple[str, ...]:
    """Return a few short titles, or beginnings where there are none, in the order of point ids."""
    records, _ = engine.scroll(collection, limit=50, with_payload=["title", "text"])
    payloads = [record.payload or {} for record in records]
    shown = (p.get("title") or " ".join(p.get("text", "").split()[:6]) for p in payloads)
    short = (text for text in shown if 0 < len(text) <= LONGEST_EXAMPLE)
    return tuple(dict.fromkeys(short))[:EXAMPLES]


def _dashboard(config: ServiceConfig) -> str | None:
    """Return the dashboard's address without credentials; the embedded engine has none."""
    if config.dashboard:
        return config.dashboard.rstrip("/")
    address = EngineAddress.find(url=config.url, path=config.path)
    return f"{str(address).rstrip('/')}/dashboard" if address.url else None
