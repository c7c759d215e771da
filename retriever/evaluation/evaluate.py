"""Measures systems on judged queries: the whole corpus is ranked, never a pool of candidates."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from two_tower.models.console import progress
from two_tower.models.data import Dataset, Qrel, Query
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.provenance import commit
from two_tower.models.vectors import Float64Array
from two_tower.retriever.evaluation.measures import DEPTH, Rankings, Values, answerable, per_query
from two_tower.retriever.evaluation.significance import Comparison, bootstrap_intervals, compare
from two_tower.retriever.evaluation.systems import Started, System
from two_tower.retriever.search.retriever import Retriever

DEFAULT_BASELINE = "bm25"

TIMED_QUERIES = 200

TIMED_K = 10

WARM_UP, FEW = 20, 5

BATCH = 64


@dataclass(frozen=True)
class SystemResult:
    """One row of the table.

    Attributes:
        system: its name.
        queries: how many were judged.
        metrics: measure -> mean over queries, in [0, 1].
        intervals: measure -> [low, high], the 95% bootstrap interval of that mean.
        p50_ms: median time of one query at k=10, one at a time; None where a file was read.
        p95_ms: 95th percentile of the same.
        index_mb: what its vectors take; None where that is not known.
        source: where it comes from, where the name does not say.
        comparisons: measure -> how it stands to the baseline.
    """

    system: str
    queries: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    p50_ms: float | None
    p95_ms: float | None
    index_mb: float | None = None
    source: str = ""
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What `retriever evaluate` found; `to_dict` is REPORT/report.json.

    `answers` counts the relevant passages, `missing_answers` those that are not in the collection.
    """

    collection: str
    passages: int
    data: str
    split: str
    bundle: str
    commit: str
    systems: tuple[SystemResult, ...]
    baseline: str | None = None
    relevant_from: int = 1
    highest_grade: int = 1
    answers: int = 0
    missing_answers: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Report":
        """Return what `to_dict` gave, of this version or an earlier one."""
        rows = []
        for row in stored["systems"]:
            compared = {m: Comparison(**c) for m, c in row.get("comparisons", {}).items()}
            rows.append(SystemResult(**row | {"comparisons": compared}))
        return cls(**dict(stored) | {"systems": tuple(rows)})


@dataclass(frozen=True)
class Evaluation:
    """A report and what it was made of.

    Attributes:
        report: the means.
        queries: those that were judged.
        qrels: their judgements.
        rankings: system -> query_id -> passage ids, best first.
        values: system -> measure -> one value per query.
    """

    report: Report
    queries: tuple[Query, ...]
    qrels: tuple[Qrel, ...]
    rankings: Mapping[str, Rankings]
    values: Mapping[str, Values]


@dataclass(frozen=True)
class Judging:
    """How rankings are judged.

    Attributes:
        split: which judgements.
        baseline: what the others are compared with; bm25 where it is measured, else nothing.
        relevant_from: the grade from which a passage is relevant to recall, MRR and MAP; nDCG
            takes every grade above 0. TREC Deep Learning asks for 2.
    """

    split: str = "dev"
    baseline: str | None = None
    relevant_from: int = 1


class Measured(NamedTuple):
    """One system's row, before it is compared, and what it was made of."""

    row: SystemResult
    rankings: Rankings
    values: Values


def measure_all(
    retriever: Retriever, dataset: Dataset, *, systems: Sequence[System], judging: Judging
) -> Evaluation:
    """Run every judged query through each system.

    Raises:
        ConfigError: two systems of one name, or a baseline that is not among them.
        DataError: no query with a relevant passage in that split, or none of those passages in
            the collection.
    """
    baseline = _baseline([system.name for system in systems], judging.baseline)
    queries, qrels = _judged(dataset, judging)
    answers = {qrel.passage_id for qrel in qrels if qrel.relevance >= judging.relevant_from}
    held = retriever.held(answers)
    if not held:
        raise DataError(
            f"{retriever.collection} holds none of the {len(answers):,} relevant passages of "
            f"{dataset.path}, split {judging.split!r}; expected a collection loaded from that DATA "
            "or one with the same ids: ingest list"
        )
    measured = {
        system.name: measure_system(
            system, queries, qrels, size=retriever.size, relevant_from=judging.relevant_from
        )
        for system in systems
    }
    values = {name: each.values for name, each in measured.items()}
    compared = compare(values, baseline=baseline) if baseline else {}
    report = Report(
        collection=retriever.collection,
        passages=retriever.size,
        data=str(dataset.path),
        split=judging.split,
        bundle=retriever.metadata.bundle_fingerprint,
        commit=commit(),
        systems=tuple(
            replace(each.row, comparisons=compared.get(name, {})) for name, each in measured.items()
        ),
        baseline=baseline,
        relevant_from=judging.relevant_from,
        highest_grade=max(qrel.relevance for qrel in qrels),
        answers=len(answers),
        missing_answers=len(answers) - held,
    )
    rankings = {name: each.rankings for name, each in measured.items()}
    return Evaluation(report, tuple(queries), tuple(qrels), rankings, values)


def measure_system(
    system: System,
    queries: Sequence[Query],
    qrels: Sequence[Qrel],
    *,
    size: int,
    relevant_from: int = 1,
) -> Measured:
    """Time some of the queries one by one, then rank the corpus for every query.

    In this order, for the engine remembers what it encoded.
    """
    started = system.start()
    p50_ms, p95_ms = _percentiles(started, queries, k=min(TIMED_K, size))
    rankings = rank_all(started, queries, k=min(DEPTH, size), label=system.name)
    values = per_query(rankings, qrels, relevant_from=relevant_from)
    intervals = bootstrap_intervals(np.stack(list(values.values()), axis=1))
    row = SystemResult(
        system=system.name,
        queries=len(queries),
        metrics={measure: float(v.mean()) for measure, v in values.items()},
        intervals=dict(zip(values, intervals, strict=True)),
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        index_mb=started.index_mb,
        source=system.source,
    )
    return Measured(row, rankings, values)


def rank_all(
    started: Started, queries: Sequence[Query], *, k: int, label: str
) -> dict[str, list[str]]:
    """Return query_id -> the `k` best passages, under a progress bar."""
    rank_many = started.rank_many or (lambda some, k: [started.rank(query, k) for query in some])
    batches = [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]
    return {
        query.query_id: ranking
        for batch in progress(batches, label=label)
        for query, ranking in zip(batch, rank_many(batch, k), strict=True)
    }


def time_queries(started: Started, queries: Sequence[Query], *, k: int) -> Float64Array:
    """Return the milliseconds of each query, one at a time, after a warm-up with other queries."""
    for query in queries[TIMED_QUERIES:][:WARM_UP] or queries[-FEW:]:
        started.rank(query, k)
    times_ms = []
    for query in queries[:TIMED_QUERIES]:
        start = time.perf_counter()
        started.rank(query, k)
        times_ms.append((time.perf_counter() - start) * 1000.0)
    return np.array(times_ms)


def _percentiles(
    started: Started, queries: Sequence[Query], *, k: int
) -> tuple[float | None, float | None]:
    """Return p50 and p95 in ms; nothing where a file was read."""
    if not started.is_timed:
        return None, None
    times_ms = time_queries(started, queries, k=k)
    p50, p95 = np.percentile(times_ms, [50, 95])
    return float(p50), float(p95)


def _baseline(names: Sequence[str], wanted: str | None) -> str | None:
    """Return the system that the others are compared with, if there is one."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(
            f"two systems are called {twice[0]!r}; expected one each: rename the run file or "
            "the settings"
        )
    if wanted is not None and wanted not in names:
        raise ConfigError(
            f"baseline {wanted!r} is not measured; expected one of {', '.join(names)}"
        )
    chosen = wanted or DEFAULT_BASELINE
    return chosen if chosen in names and len(names) > 1 else None


def _judged(dataset: Dataset, judging: Judging) -> tuple[list[Query], list[Qrel]]:
    """Return the queries that something answers, and judgements in the same order of queries."""
    grade = judging.relevant_from
    split = judging.split
    queries, qrels = answerable(dataset.queries(split), dataset.qrels(split), relevant_from=grade)
    if not queries:
        at_least = f" of grade {grade} or more" if grade > 1 else ""
        raise DataError(
            f"{dataset.path} has no query with a relevant passage{at_least} in split {split!r}; "
            f"its splits: {', '.join(dataset.splits)}"
        )
    place = {query.query_id: i for i, query in enumerate(queries)}
    known = [qrel for qrel in qrels if qrel.query_id in place]
    return queries, sorted(known, key=lambda qrel: place[qrel.query_id])
