"""The searching side of the service: one retriever, a bounded pool of threads around it."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from shutil import disk_usage
from typing import Any, Generic, Protocol, TypeVar

from threadpoolctl import threadpool_limits

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.no_tower import NoTower
from two_tower.models.data import Passage
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.text.transformer_tokenizer import CROSS_GRAPH
from two_tower.retriever.collection.schema import (
    BM25,
    EXAMPLES,
    LONGEST_EXAMPLE,
    MOST_EXAMPLES,
    read_metadata,
)
from two_tower.retriever.collection.serving import NOTE_EVERY_S, note_served
from two_tower.retriever.engine.address import EngineAddress
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.edge_folder import LEAST_FREE
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import (
    CollectionMismatch,
    CollectionNotFound,
    EngineError,
    EngineUnavailable,
    VersionNotFollowed,
)
from two_tower.retriever.records import SearchResult
from two_tower.retriever.search.bundles import find_bundle, load_bundle
from two_tower.retriever.search.fusion import CROSS
from two_tower.retriever.search.retriever import FOLLOW_S, Retriever
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.service.config import MOST_HITS, ServiceConfig
from two_tower.retriever.service.failures import OVERLOADED, TIMED_OUT, ServiceFailure

T = TypeVar("T")

MOST_TOGETHER, MOST_CROSSED = 8, 4

MODES: Mapping[str, Mapping[str, Any]] = {
    BM25: {"legs": {BM25: 100}, "rerank": False},
    "hybrid": {"rerank": False},
    "reranked": {},
}

log = logging.getLogger(__name__)


def modes(bundle: ModelBundle | NoTower) -> dict[str, dict[str, Any]]:
    """Return the settings that the page compares; the last are the service's default."""
    if not bundle.dim:
        return {BM25: {}}
    if not bundle.has_cross_scorer:
        return {name: dict(settings) for name, settings in MODES.items()}
    return {name: {**settings, "cross": False} for name, settings in MODES.items()} | {CROSS: {}}


@dataclass(frozen=True, eq=False)
class Question(Generic[T]):
    """One search that waits for a thread.

    Attributes:
        query: what to look for.
        key: all other arguments, as text; only searches with equal keys share a batch.
        ask: searches for several queries with this key.
        show: makes the answer of one result.
        most_together: the largest batch; 1 where a batch saves no time, for every search of a batch
            waits for the last.
        answer: the answer to come.
    """

    query: str
    key: str
    ask: Callable[[Sequence[str]], list[SearchResult]]
    show: Callable[[SearchResult], T]
    most_together: int = MOST_TOGETHER
    answer: "Future[T]" = field(default_factory=Future)


class Batches(Generic[T]):
    """The searches that wait for a thread of `pool`, which ends after this is closed."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._waiting: deque[Question[T]] = deque()
        self._lock = threading.Lock()

    def submit(self, question: Question[T]) -> "Future[T]":
        """Return the answer to come; cancelling it takes the search out of the queue."""
        with self._lock:
            self._waiting.append(question)
        self._pool.submit(self._run)
        return question.answer

    def close(self) -> None:
        """Cancel what still waits."""
        with self._lock:
            for question in self._waiting:
                question.answer.cancel()
            self._waiting.clear()

    def _run(self) -> None:
        batch = [one for one in self._take() if one.answer.set_running_or_notify_cancel()]
        if batch:
            _answer_batch(batch)

    def _take(self) -> list[Question[T]]:
        """Return the search that waits longest, and the next ones with the same key."""
        with self._lock:
            if not self._waiting:
                return []
            first = self._waiting[0]
            batch: list[Question[T]] = []
            others: deque[Question[T]] = deque()
            for question in self._waiting:
                fits = len(batch) < first.most_together and question.key == first.key
                (batch if fits else others).append(question)
            self._waiting = others
        return batch


def _answer_batch(batch: list[Question[T]]) -> None:
    """Give every search of a batch its answer or its own failure, whatever happens.

    A search without either would keep its place in the service for ever.
    """
    try:
        results = batch[0].ask([question.query for question in batch])
        pairs = list(zip(batch, results, strict=True))
    except BaseException as error:  # a panic of the engine is no `Exception`
        if len(batch) == 1 or isinstance(error, EngineError):
            for question in batch:
                question.answer.set_exception(_told(error))
        else:  # one query may be at fault, so each is asked alone
            for question in batch:
                _answer_batch([question])
        return
    for question, result in pairs:
        try:
            answer = question.show(result)
        except BaseException as error:
            question.answer.set_exception(_told(error))
        else:
            question.answer.set_result(answer)


def _told(error: BaseException) -> Exception:
    """Return a failure as an `Exception`, which alone becomes an answer."""
    if isinstance(error, Exception):
        return error
    log.error("%s: %s", type(error).__name__, error)
    return EngineError(f"the search ended in {type(error).__name__}")


def _guarded(job: Callable[[], T]) -> T:
    """Run a job whose failure, whatever it is, comes out as an `Exception`."""
    try:
        return job()
    except BaseException as error:
        raise _told(error) from None


class ChangeReport(Protocol):
    """What `Changeable.add` did: numbers of passages."""

    added: int
    replaced: int
    payload_only: int
    unchanged: int


class Changeable(Protocol):
    """The part of `ingest.changes.Collection` that the service needs."""

    name: str

    def add(self, passages: Sequence[Passage]) -> ChangeReport:
        """Add or replace passages."""

    def delete(self, passage_ids: Sequence[str]) -> int:
        """Delete passages; return how many there were."""


MakeChangeable = Callable[[Engine, str, Any], Changeable]


class Backend:
    """Answers jobs with the retriever, in threads, within the limits.

    The service may start before the engine and outlives its restarts: every job opens the retriever
    where none is open yet, and the client reconnects by itself. A thread looks every `FOLLOW_S`
    what the collection's name stands for; searches that have begun end with the old version.
    """

    def __init__(
        self,
        config: ServiceConfig,
        make_changeable: MakeChangeable | None = None,
        *,
        changing: AbstractContextManager[object] | None = None,
    ) -> None:
        """Start threads, and connect to nothing yet.

        Args:
            config: what to serve, and how.
            make_changeable: gives the collection of an engine, a name and a bundle for changes.
            changing: lets one change at a time into the collection; a lock of this process where
                it is None.
        """
        self.config = config
        self._make_changeable = make_changeable
        self._changing = changing or threading.Lock()
        self._bundle = load_bundle(config.bundle)
        self._retriever: Retriever | None = None
        self._behind = ""  # why the version that the name stands for is not the one searched
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._examples = config.examples
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(config.threads + config.waiting)
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="search")
        self._batches: Batches[Any] = Batches(self._pool)
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="health")

    @property
    def is_open(self) -> bool:
        """Whether the engine has answered once."""
        return self._retriever is not None

    def open(self) -> Retriever:
        """Return the retriever; connect where that has not been done.

        Raises:
            EngineError: no engine, no such collection, or one loaded with another bundle.
        """
        with self._lock:
            if self._retriever is None:
                self._retriever = self._connect()
                log.info("searching %s", self._retriever.collection)
                self._follower.start()
            return self._retriever

    def _connect(self) -> Retriever:
        engine = connect(url=self.config.url, path=self.config.path, create=False)
        try:
            settings = self.config.settings
            try:
                bundle = self._bundle or find_bundle(engine, self.config.name)
            except (BundleError, ConfigError) as error:
                raise VersionNotFollowed(str(error)) from None
            retriever = Retriever(engine, self.config.name, bundle, settings=settings)
            threadpool_limits(1, user_api="blas")  # one search on many threads slows down others
        except BaseException:
            engine.close()
            raise
        return retriever

    def _follow(self) -> None:
        """Keep up with the name, and note in the collection's metadata that it is served."""
        noted, next_note = "", 0.0
        while not self._ended.wait(FOLLOW_S):
            retriever = self.open()
            try:
                self._refresh(retriever)
            except Exception as error:  # whatever it is: without this thread nothing is followed
                if str(error) != self._behind and not self._ended.is_set():
                    log.warning("still searching %s: %s", retriever.collection, error)
                self._behind = str(error)
            if retriever.collection != noted or time.monotonic() >= next_note:
                noted, next_note = retriever.collection, time.monotonic() + NOTE_EVERY_S
                with suppress(
                    EngineError, OSError
                ):  # a key that may only read, or the engine is away
                    note_served(retriever.engine, retriever.collection)

    def _refresh(self, retriever: Retriever) -> bool:
        """Search what the name stands for now; return whether it is another version.

        Raises:
            VersionNotFollowed: its bundle is not found or broken.
            EngineError: the engine does not answer, or the name stands for nothing.
        """
        try:
            is_new = retriever.refresh()
        except (BundleError, ConfigError, CollectionMismatch) as error:
            current = retriever.engine.resolve(self.config.name)
            raise VersionNotFollowed(f"{self.config.name!r} is now {current}: {error}") from None
        self._behind = ""
        return is_new

    def _run(self, job: Callable[[Retriever], T]) -> T:
        """Run a job; where its version was dropped meanwhile, once more with the new one."""
        retriever = self.open()
        try:
            return job(retriever)
        except CollectionNotFound:
            if not self._refresh(retriever):
                raise
            return job(retriever)

    async def search(self, job: Callable[[Retriever], T]) -> T:
        """Run `job` in a thread.

        Raises:
            ServiceFailure: all threads and waiting places are taken, or it takes too long.
            TwoTowerError: what the job raises.
        """
        return await self._within_limits(
            lambda: self._pool.submit(_guarded, lambda: self._run(job))
        )

    async def answer(
        self,
        query: str,
        key: str,
        *,
        settings: SearchSettings | None,
        ask: Callable[[Retriever, Sequence[str]], list[SearchResult]],
        show: Callable[[SearchResult], T],
    ) -> T:
        """Answer a query, in one batch with waiting searches of the same key.

        The arguments are those of `Question`; `settings` are None for the service's own.

        Raises:
            ServiceFailure: as `search`.
            TwoTowerError: what `ask` raises.
        """
        settings = settings or self.config.settings
        question = Question(
            query,
            key,
            lambda queries: self._run(lambda retriever: ask(retriever, queries)),
            show,
            most_together=self._most_together(settings),
        )
        answer: T = await self._within_limits(lambda: self._batches.submit(question))
        return answer

    def _most_together(self, settings: SearchSettings) -> int:
        """Return how many searches with these settings are answered at once."""
        if settings.rewrite:
            return 1  # a language model may be late for one of them
        bundle = self._retriever.bundle if settings.cross and self._retriever else None
        if bundle is None or not bundle.has_cross_scorer:
            return MOST_TOGETHER
        # A cross-encoder reads one pair at a time, which is nearly all of such a search.
        return 1 if CROSS_GRAPH in bundle.extras else MOST_CROSSED

    async def change(self, job: Callable[[Changeable], T]) -> T:
        """Run a job that changes the collection, one at a time; raises what `search` does."""
        make = self._make_changeable
        if make is None:
            raise EngineError("this service cannot change its collection")

        def run(retriever: Retriever) -> T:
            with self._changing:
                answer = job(make(retriever.engine, retriever.collection, retriever.bundle))
                retriever.refresh()
            return answer

        return await self.search(run)

    async def _within_limits(self, start: "Callable[[], Future[T]]") -> T:
        if not self._slots.acquire(blocking=False):
            raise ServiceFailure(OVERLOADED)
        try:
            future = start()
        except BaseException:
            self._slots.release()
            raise
        # A job that timed out keeps its thread, so it keeps its place until it really ends.
        future.add_done_callback(lambda _: self._slots.release())
        return await self._within_time(future)

    async def _within_time(self, future: "Future[T]") -> T:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.config.timeout_s)
        except TimeoutError:
            raise ServiceFailure(TIMED_OUT) from None

    async def health(self) -> dict[str, Any]:
        """Ask the engine whether this service can search; return the content of a `HealthAnswer`.

        The check runs beside the pool, so that load never makes a working service look dead.

        Raises:
            EngineError: this service cannot search.
        """
        try:
            return await self._within_time(self._checks.submit(_guarded, self._check))
        except ServiceFailure:
            raise EngineUnavailable("the engine did not answer the health check in time") from None

    def _check(self) -> dict[str, Any]:
        retriever = self.open()
        collection = retriever.collection
        metadata = read_metadata(retriever.engine, collection)
        try:
            is_current = retriever.engine.resolve(self.config.name) == collection
        except EngineError:
            is_current = False
        retriever.engine.scroll(collection, limit=1)  # it may answer about, and not from, a shard
        return {
            "status": "ready",
            "collection": collection,
            "fingerprint": retriever.bundle.fingerprint,
            "passages": retriever.size,
            "is_current": is_current,
            **({"note": self._behind} if self._behind else {}),
            "warnings": _warnings(retriever.engine, metadata.expected_points, collection),
        }

    def describe(self) -> dict[str, Any]:
        """Return the content of a `CollectionAnswer`; examples are read once.

        They are those of the configuration, else queries of DATA, else titles.
        """
        retriever = self.open()
        self._examples = (
            self._examples
            or tuple(retriever.metadata.data.get(EXAMPLES, ()))
            or _titles(retriever.engine, retriever.collection)
        )
        return {
            "name": self.config.name,
            "collection": retriever.collection,
            "passages": retriever.size,
            "fields": {name: kind.value for name, kind in retriever.fields.items()},
            "most_hits": MOST_HITS,
            "modes": modes(retriever.bundle),
            "examples": list(self._examples),
            "dashboard": self._dashboard(),
            "keeps_log": self.config.log is not None,
        }

    def _dashboard(self) -> str | None:
        """Return the dashboard's address without credentials; the embedded engine has none."""
        if self.config.dashboard:
            return self.config.dashboard.rstrip("/")
        address = EngineAddress.find(url=self.config.url, path=self.config.path)
        return f"{str(address).rstrip('/')}/dashboard" if address.url else None

    def close(self) -> None:
        """Let running searches end and release the engine."""
        self._ended.set()
        for pool in (self._pool, self._checks):
            pool.shutdown(wait=True, cancel_futures=True)
        self._batches.close()
        if self._follower.ident is not None:
            self._follower.join(self.config.timeout_s)
        if self._retriever is not None:
            self._retriever.close()


def _warnings(engine: Engine, expected: int, collection: str) -> list[str]:
    """Return what does not stop searches and still asks for somebody."""
    warnings = []
    points = engine.count(collection, exact=True).count
    if points != expected:
        warnings.append(
            f"the collection holds {points:,} passages, its last load meant {expected:,}; "
            "run: ingest verify"
        )
    if engine.is_embedded and (free := disk_usage(engine.where).free) < LEAST_FREE:
        warnings.append(f"the disk of the embedded engine has {free / 1e6:,.0f} MB left")
    return warnings


def _titles(engine: Engine, collection: str) -> tuple[str, ...]:
    """Return a few short titles, or beginnings where there are none, in the order of point ids."""
    records, _ = engine.scroll(collection, limit=50, with_payload=["title", "text"])
    payloads = [record.payload or {} for record in records]
    titles = (p.get("title") or " ".join(p.get("text", "").split()[:6]) for p in payloads)
    short = (text for text in titles if 0 < len(text) <= LONGEST_EXAMPLE)
    return tuple(dict.fromkeys(short))[:MOST_EXAMPLES]
