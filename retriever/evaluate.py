"""Measures systems on judged queries: the whole corpus is ranked, never a pool of candidates."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import ir_measures
import numpy as np
import numpy.typing as npt
from ir_measures import RR, R, nDCG

from models.console import progress
from models.data import Dataset, Qrel, Query
from models.lexical import Bm25Config
from models.provenance import commit
from retriever.cross import CROSS
from retriever.errors import ConfigError, DataError
from retriever.lexical import RankBm25Index, TfidfIndex
from retriever.records import Run
from retriever.search import Retriever
from retriever.stages import SearchSettings

Ranker = Callable[[str, int], list[str]]
"""(query text, k) -> passage ids, best first."""

MEASURES = {
    "recall@1": R @ 1,
    "recall@3": R @ 3,
    "recall@10": R @ 10,
    "recall@100": R @ 100,
    "mrr@10": RR @ 10,
    "ndcg@10": nDCG @ 10,
}
DEPTH = 100
TIMED_QUERIES = 200
TIMED_K = 10
RESAMPLES = 2000


@dataclass(frozen=True)
class SystemResult:
    """One row of the table.

    Attributes:
        system: its name.
        queries: how many were judged.
        metrics: measure -> mean over queries, in [0, 1].
        intervals: measure -> [low, high], the 95% bootstrap interval of that mean.
        p50_ms: median time of one query at k=10, one at a time.
        p95_ms: 95th percentile of the same.
    """

    system: str
    queries: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Report:
    """What `retriever evaluate` found; `to_dict` is REPORT/report.json."""

    collection: str
    passages: int
    data: str
    split: str
    bundle: str
    commit: str
    systems: tuple[SystemResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


def system_names(retriever: Retriever) -> list[str]:
    """Return the names of all systems in the order of the table; the default engine comes last.

    `hybrid` and `rerank` fuse by what the bundle learnt; where it did, `weighted` is `rerank` with
    the fixed weight. `cross` is there where the bundle has a cross-scorer.
    """
    reduced = [f"pca_{dim}" for dim in retriever.metadata.pca_dims]
    fixed = ["weighted"] if retriever.bundle.fusion else []
    last = [CROSS] if retriever.bundle.has_cross_scorer else []
    baselines = ["tfidf", "rank_bm25", "bm25", "dense", *reduced, "rrf"]
    return [*baselines, *fixed, "hybrid", "rerank", *last]


def default_systems(retriever: Retriever) -> list[str]:
    """Return all but rank_bm25, which takes seconds per query on a large corpus."""
    return [name for name in system_names(retriever) if name != "rank_bm25"]


def evaluate(
    retriever: Retriever,
    dataset: Dataset,
    *,
    split: str,
    systems: Sequence[str] | None = None,
) -> Report:
    """Run every judged query of `split` through each system.

    Raises:
        ConfigError: an unknown system.
        DataError: no query with a relevant passage in that split.
    """
    known = system_names(retriever)
    chosen = default_systems(retriever) if systems is None else list(systems)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"unknown system {name!r}; expected some of {', '.join(known)}")
    queries, qrels = answerable(dataset.queries(split), dataset.qrels(split))
    if not queries:
        raise DataError(
            f"{dataset.path} has no query with a relevant passage in split {split!r}; "
            f"its splits: {', '.join(dataset.splits)}"
        )
    rows = tuple(
        measure_system(name, build_ranker(name, retriever), queries, qrels, size=retriever.size)
        for name in sorted(set(chosen), key=known.index)
    )
    return Report(
        collection=retriever.collection,
        passages=retriever.size,
        data=str(dataset.path),
        split=split,
        bundle=retriever.metadata.bundle_fingerprint,
        commit=commit(),
        systems=rows,
    )


def answerable(queries: Sequence[Query], qrels: Sequence[Qrel]) -> tuple[list[Query], list[Qrel]]:
    """Leave out queries that no passage answers: recall says nothing about them."""
    wanted = {qrel.query_id for qrel in qrels if qrel.relevance > 0}
    return (
        [query for query in queries if query.query_id in wanted],
        [qrel for qrel in qrels if qrel.query_id in wanted],
    )


def build_ranker(system: str, retriever: Retriever) -> Ranker:
    """Return the ranker of a system: an in-memory baseline or the engine with other settings."""
    if system == "tfidf":
        tfidf = TfidfIndex(list(retriever.passages()))
        return lambda query, k: tfidf.rank(query, k=k)
    if system == "rank_bm25":
        config = Bm25Config(**retriever.metadata.bm25)
        bm25 = RankBm25Index(list(retriever.passages()), config)
        return lambda query, k: bm25.rank(query, k=k)
    variant = retriever.with_settings(system_settings(system, retriever.settings))
    return lambda query, k: [hit.passage_id for hit in variant.search(query, k=k)]


def system_settings(system: str, default: SearchSettings) -> SearchSettings:
    """Return the settings that make the engine behave as `system`."""
    if system == CROSS:
        return replace(default, rerank=True, cross=True)
    uncrossed = replace(default, cross=False)
    hybrids = {
        "rrf": replace(uncrossed, fusion="rrf", rerank=False),
        "weighted": replace(uncrossed, fusion="weighted", rerank=True),
        "hybrid": replace(uncrossed, rerank=False),
        "rerank": replace(uncrossed, rerank=True),
    }
    return hybrids.get(system) or replace(uncrossed, legs={system: DEPTH}, rerank=False)


def measure_system(
    name: str, ranker: Ranker, queries: Sequence[Query], qrels: Sequence[Qrel], *, size: int
) -> SystemResult:
    """Rank the corpus for every query, then time some of the queries one by one."""
    depth = min(DEPTH, size)
    rankings = {
        query.query_id: ranker(query.text, depth) for query in progress(queries, label=name)
    }
    values = per_query(rankings, qrels)
    times_ms = time_queries(ranker, queries[:TIMED_QUERIES], k=min(TIMED_K, size))
    return SystemResult(
        system=name,
        queries=len(queries),
        metrics={measure: float(v.mean()) for measure, v in values.items()},
        intervals={measure: bootstrap_interval(v) for measure, v in values.items()},
        p50_ms=float(np.percentile(times_ms, 50)),
        p95_ms=float(np.percentile(times_ms, 95)),
    )


def per_query(
    rankings: Mapping[str, Sequence[str]], qrels: Sequence[Qrel]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return measure -> one value per judged query; a query with no result counts as 0.

    Scores are handed over as reciprocal ranks, so that ties stay in the system's own order.
    """
    run: Run = {
        query_id: {passage_id: 1.0 / rank for rank, passage_id in enumerate(ranking, 1)}
        for query_id, ranking in rankings.items()
    }
    judged = [ir_measures.Qrel(q.query_id, q.passage_id, q.relevance) for q in qrels]
    rows = {query_id: i for i, query_id in enumerate(dict.fromkeys(q.query_id for q in qrels))}
    values = {measure: np.zeros(len(rows)) for measure in MEASURES}
    names = {measure: name for name, measure in MEASURES.items()}
    for metric in ir_measures.iter_calc(list(MEASURES.values()), judged, run):
        values[names[metric.measure]][rows[metric.query_id]] = metric.value
    return values


def bootstrap_interval(values: npt.NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95% percentile-bootstrap interval of the mean over queries.

    Sakai, "Evaluating evaluation metrics based on the bootstrap", SIGIR 2006.
    """
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def time_queries(ranker: Ranker, queries: Sequence[Query], *, k: int) -> npt.NDArray[np.float64]:
    """Return the milliseconds of each query, one at a time, after a short warm-up."""
    for query in queries[:5]:
        ranker(query.text, k)
    times_ms = []
    for query in queries:
        start = time.perf_counter()
        ranker(query.text, k)
        times_ms.append((time.perf_counter() - start) * 1000.0)
    return np.array(times_ms)
