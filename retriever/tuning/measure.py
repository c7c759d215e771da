"""Measures one setting: quality by the qrels and by exact search, time, memory.

Exact search, which compares every vector, runs once. A setting of the tower's leg alone is compared
with the nearest full vectors, a search by both legs with the same fusion of `DEEP` exact candidates
of each leg.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from two_tower.models.data import Qrel, Query
from two_tower.models.progress import progress
from two_tower.models.vectors import Float64Array
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.clusters import Centroids
from two_tower.retriever.collection.options import DiskOptions
from two_tower.retriever.collection.schema import BM25, DENSE
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.evaluation.evaluate import TIMED_K
from two_tower.retriever.evaluation.measures import Values, per_query
from two_tower.retriever.evaluation.systems import count_posting_bytes, index_mb
from two_tower.retriever.search.fusion import Candidates, fuse
from two_tower.retriever.search.pipeline import ask
from two_tower.retriever.search.queries import QueryEncoder, plan
from two_tower.retriever.search.retriever import QUERIES_PER_REQUEST, Retriever
from two_tower.retriever.search.rewriting import Answers
from two_tower.retriever.search.settings import AnnSettings, SearchSettings
from two_tower.retriever.tuning.goals import OF_EXACT
from two_tower.retriever.tuning.grid import HYBRID, Setting

ROUNDS = 5

TIMED_PER_ROUND = 80

WARM_UP_PER_ROUND = 3

STUDENT_95 = 2.776  # of a mean of `ROUNDS`

MEDIAN_FACTOR = 1.2533  # how much further a median scatters than a mean

DEVIATION_FACTOR = 1.4826  # a standard deviation is so many median absolute deviations

DEEP = 500

RECALL_DEPTHS = {"recall@1": 1, "recall@10": 10, "recall@100": 100}

SHALLOW, DEEPEST = 10, 100

EXACT_SEARCH = SearchSettings(
    legs={DENSE: DEEP, BM25: DEEP},
    cross=False,
    ann=AnnSettings(exact=True, ignore_quantized=True),
)

Search = Callable[[str], object]
"""Answers one query."""


class Percentile(NamedTuple):
    """A percentile of the times of a search.

    Attributes:
        ms: milliseconds.
        noise: about half of its 95% interval, as a share of it.
    """

    ms: float
    noise: float


class Latency(NamedTuple):
    """How long a search takes."""

    p50: Percentile
    p95: Percentile

    def scaled(self, factor: float) -> "Latency":
        """Return this latency as it would be on a machine slower by `factor`."""
        return Latency(*(each._replace(ms=each.ms * factor) for each in self))


@dataclass(frozen=True, eq=False)
class Row:
    """A setting and its measurements.

    Attributes:
        setting: the measured one.
        values: measure -> one value per query; `recall@10` by the qrels, `recall@10 of exact`.
        latency: of one query for 10 hits, payloads included.
        memory_mb: of the vectors that are read, computed from the options.
        on_disk_mb: the same if the vectors were on disk and only their copies in memory.
        bits: per passage, of the vectors that the tower's leg is searched by.
    """

    setting: Setting
    values: Values
    latency: Latency
    memory_mb: float
    on_disk_mb: float
    bits: float

    def mean(self, measure: str) -> float:
        """Return a measure of a goal: mean over queries, ms or MB."""
        p50, p95 = self.latency
        costs = {"p50": p50.ms, "p95": p95.ms, "memory": self.memory_mb}
        return costs[measure] if measure in costs else float(self.values[measure].mean())


def time_rounds(
    makers: Sequence[Callable[[], Search]], queries: Sequence[str], *, label: str
) -> Float64Array:
    """Return the milliseconds (searches, rounds, queries) under a progress bar.

    Each maker returns a search with an empty cache, the first one the default search. The last
    queries warm a search up.
    """
    timed = queries[:TIMED_PER_ROUND]
    times_ms = np.zeros((len(makers), ROUNDS, len(timed)))
    for turn in progress(range(ROUNDS), label=label):
        for place in np.roll(range(len(makers)), turn).tolist():  # the order changes by round
            search = makers[place]()
            for query in queries[-WARM_UP_PER_ROUND:]:
                search(query)
            for number, query in enumerate(timed):
                start = time.perf_counter()
                search(query)
                times_ms[place, turn, number] = (time.perf_counter() - start) * 1000.0
    return times_ms


def summarise(times_ms: Float64Array) -> list[Latency]:
    """Return the latency of each search.

    `times_ms` are (searches, rounds, queries), the default search first.
    """
    speeds = np.median(times_ms[0], axis=1)  # (rounds,)
    level_ms = float(np.median(speeds))
    percentiles = np.percentile(times_ms, [50, 95], axis=2) / speeds  # (2, searches, rounds)
    return [
        Latency(*(_over_rounds(multiples, level_ms) for multiples in percentiles[:, search]))
        for search in range(len(times_ms))
    ]


def _over_rounds(multiples: Float64Array, level_ms: float) -> Percentile:
    """Return the median over rounds; one bad round of five makes it no worse, and no noisier."""
    middle = float(np.median(multiples))
    deviation = DEVIATION_FACTOR * float(np.median(np.abs(multiples - middle)))
    error = MEDIAN_FACTOR * deviation / np.sqrt(len(multiples))
    return Percentile(middle * level_ms, float(STUDENT_95 * error / middle))


class Benchmark:
    """Measures settings of one collection, or of copies of it, on the same queries."""

    def __init__(
        self,
        engine: Engine,
        retriever: Retriever,
        queries: Sequence[Query],
        qrels: Sequence[Qrel],
        *,
        answers: Sequence[Answers | None] | None = None,
    ) -> None:
        """Encode the queries and search exactly, once for all settings.

        qrels name point ids; `answers` are passages imagined for each query.
        """
        self._engine = engine
        self._query_ids = [query.query_id for query in queries]
        self._texts = [query.text for query in queries]
        self._qrels = qrels
        self._default = retriever
        self._groups: list[tuple[list[Row], float]] = []  # with p50 of the default search beside
        self._widths = retriever.metadata.schema.widths
        bm25 = Bm25Encoder.of(retriever.metadata.bm25, retriever.bundle)
        encoder = QueryEncoder(retriever.bundle, bm25)
        self._vectors = encoder.encode(self._texts, [*self._widths, BM25], answers)
        fusion = retriever.fusion
        self._learnt = fusion.hybrid if fusion else None
        self._posting_bytes = count_posting_bytes(retriever)
        exact = self._candidates(retriever, EXACT_SEARCH, DEEPEST)
        self._exact = list(progress(exact, label="Exact search", total=len(queries)))
        self._nearest = [_nearest(candidates) for candidates in self._exact]

    def measure(
        self, retriever: Retriever, settings: Sequence[Setting], *, label: str
    ) -> list[Row]:
        """Measure settings on the collection that `retriever` searches, under a progress bar.

        The default search of the source is timed beside them.
        """
        k = min(TIMED_K, retriever.size)

        def make_search(retriever: Retriever, search: SearchSettings) -> Search:
            return partial(retriever.with_rewriter(None).with_settings(search).search, k=k)

        makers = [partial(make_search, self._default, HYBRID)]
        makers += [partial(make_search, retriever, setting.search) for setting in settings]
        times_ms = time_rounds(makers, self._texts, label=f"Timing {label}")
        default, *latencies = summarise(times_ms)
        pairs = [*zip(settings, latencies, strict=True)]
        rows = [self._row(retriever, *pair) for pair in progress(pairs, label=label)]
        self._groups.append((rows, default.p50.ms))
        return rows

    def levelled_rows(self) -> list[Row]:
        """Return all rows so far with times as if the default search had always taken the same."""
        level_ms = float(np.median([default_ms for _, default_ms in self._groups]))
        return [
            replace(row, latency=row.latency.scaled(level_ms / default_ms))
            for rows, default_ms in self._groups
            for row in rows
        ]

    def _row(self, retriever: Retriever, setting: Setting, latency: Latency) -> Row:
        on_disk = replace(setting.options, on_disk=DiskOptions(vectors=True))
        size_mb = partial(
            index_mb, self._default, setting.search, posting_bytes=self._posting_bytes
        )
        return Row(
            setting=setting,
            values=self._recalls(retriever, setting),
            latency=latency,
            memory_mb=size_mb(options=setting.options),
            on_disk_mb=size_mb(options=on_disk),
            bits=setting.bits(self._widths),
        )

    def _recalls(self, retriever: Retriever, setting: Setting) -> Values:
        """Rank for 100 hits, and for 10 too where that asks the engine for fewer candidates."""
        search = setting.search
        rankings = {DEEPEST: self._rank(retriever, search, DEEPEST)}
        if min(search.legs.values()) < DEEPEST:
            rankings[SHALLOW] = self._rank(retriever, search, SHALLOW)
        by_qrels = {
            k: per_query(dict(zip(self._query_ids, ranked, strict=True)), self._qrels)
            for k, ranked in rankings.items()
        }
        exact = self._nearest
        if setting.is_hybrid:
            exact = [self._fuse(search, candidates) for candidates in self._exact]
        values: Values = {}
        for name, depth in RECALL_DEPTHS.items():
            k = SHALLOW if depth <= SHALLOW and SHALLOW in rankings else DEEPEST
            pairs = zip(rankings[k], exact, strict=True)
            values[name] = by_qrels[k][name]
            values[name + OF_EXACT] = np.array([_overlap(*pair, depth=depth) for pair in pairs])
        return values

    def _rank(self, retriever: Retriever, search: SearchSettings, k: int) -> list[list[str]]:
        candidates = self._candidates(retriever, search, min(k, retriever.size))
        return [self._fuse(search, each)[:k] for each in candidates]

    def _fuse(self, search: SearchSettings, candidates: Candidates) -> list[str]:
        ranking = fuse(search, candidates, learnt=self._learnt)
        return [candidates.point_ids[row] for row in ranking.order]

    def _candidates(
        self, retriever: Retriever, search: SearchSettings, k: int
    ) -> Iterator[Candidates]:
        """Ask the engine what `Retriever.search` would, for many queries at a time."""
        centroids = Centroids.from_metadata(retriever.metadata)
        more = retriever.metadata.options.oversampling
        planned = partial(plan, search, k=k, centroids=centroids, oversampling=more)
        plans = [planned(vectors) for vectors in self._vectors]
        for start in range(0, len(plans), QUERIES_PER_REQUEST):
            batch = plans[start : start + QUERIES_PER_REQUEST]
            yield from ask(self._engine, retriever.collection, batch)


def rewritten_row(
    engine: Engine,
    retriever: Retriever,
    queries: Sequence[Query],
    qrels: Sequence[Qrel],
    *,
    setting: Setting,
) -> Row:
    """Measure a search that asks a language model first (HyDE): its time is added to the search's.

    The retriever's own settings name the model. A query that gets no answer in time is searched
    without, as the engine does.
    """
    rewriting = retriever.rewriting
    assert rewriting is not None, "asked of retrievers whose settings rewrite"
    answers, times_ms = [], []
    for query in progress(queries, label="rewrite"):
        start = time.perf_counter()
        answers += rewriting.answers([query.text])
        times_ms.append((time.perf_counter() - start) * 1000.0)
    benchmark = Benchmark(engine, retriever, queries, qrels, answers=answers)
    plain = replace(setting, search=replace(setting.search, rewrite=None))
    (row,) = benchmark.measure(retriever, [plain], label="rewrite")
    more_ms = np.percentile(times_ms, [50, 95]).tolist()
    pairs = zip(row.latency, more_ms, strict=True)
    latency = Latency(*(each._replace(ms=each.ms + more) for each, more in pairs))
    return replace(row, setting=setting, latency=latency)


def _nearest(exact: Candidates) -> list[str]:
    """Return the points of the dense leg, nearest first."""
    cosines = exact.scores[:, exact.stages.index(DENSE)]
    order = np.argsort(-cosines, kind="stable")  # NaN, of the other leg's points, comes last
    return [exact.point_ids[row] for row in order if not np.isnan(cosines[row])]


def _overlap(ranking: Sequence[str], exact: Sequence[str], *, depth: int) -> float:
    """Return how much of the exact best `depth` is among those of a ranking."""
    best = {*exact[:depth]}
    return len(best & {*ranking[:depth]}) / len(best)
