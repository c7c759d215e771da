"""Measures systems on judged queries: the whole corpus is ranked, never a pool of candidates."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from two_tower.models.data import PEOPLE, Dataset, Qrel, Query
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.progress import progress, working
from two_tower.models.provenance import commit
from two_tower.retriever.evaluation.coverage import FirstHits, first_hits
from two_tower.retriever.evaluation.judging import (
    MODEL_FROM,
    PEOPLE_FROM,
    Check,
    is_judged,
    judge_error,
    judge_errors,
    read_check,
    widened,
)
from two_tower.retriever.evaluation.measures import (
    DEPTH,
    Rankings,
    Values,
    judged_queries,
    per_query,
)
from two_tower.retriever.evaluation.significance import Comparison, bootstrap_intervals, compare
from two_tower.retriever.evaluation.systems import Ranker, System, read_ahead
from two_tower.retriever.evaluation.verdict import MEASURE, StageWorth, headroom, stage_worths
from two_tower.retriever.search.retriever import Retriever

log = logging.getLogger(__name__)

DEFAULT_BASELINE = "bm25"

TIMED_QUERIES = 200

TIMED_K = 10

WARM_UP = 20  # queries after the timed ones

REPEATED_WARM_UP = 5  # of the timed ones, where there are no others

BATCH = 64


@dataclass(frozen=True)
class SystemResult:
    """One row of the table.

    Attributes:
        system: its name.
        queries: number of judged queries.
        metrics: measure -> mean over queries, in [0, 1].
        intervals: measure -> [low, high], the 95% bootstrap interval of that mean.
        p50_ms: median time of one query at k=10, one at a time; None for rankings from a file.
        p95_ms: 95th percentile of the same.
        index_mb: size of its vectors; None where that is not known.
        source: file or collection, empty for a system of this collection; and what is to be known
            of how it ranked.
        comparisons: measure -> its comparison with the baseline.
        escalated: share of the queries that the cross-scorer read, where that was decided by the
            chance of the first hit.
        first_hits: how far the chances of first hits hold; None where there are none.
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
    escalated: float | None = None
    first_hits: FirstHits | None = None


@dataclass(frozen=True)
class Report:
    """What `retriever evaluate` measured; `to_dict` is REPORT/report.json.

    `answers` counts the relevant passages, `missing_answers` those that are not in the collection,
    `own_left_out` the queries that are passages themselves and whose own is left out. `worths` is
    what each stage gains over the one before, `headroom` the nDCG@10 of all that the legs found in
    its ideal order, None where no leg was measured. `judge` says whose judgements they are. Where a
    model judged, `check` says in lines how far it agrees with people, and `checked_queries` on how
    many its error was measured. `read_by` is the model behind a URL that had read the queries
    before; empty where a tower reads them.
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
    own_left_out: int = 0
    worths: tuple[StageWorth, ...] = ()
    headroom: float | None = None
    judge: str = PEOPLE
    read_by: str = ""
    check: tuple[str, ...] = ()
    checked_queries: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Report":
        """Return the report that `to_dict` gave, in this version or an earlier one."""
        return TypeAdapter(cls).validate_python(stored)


@dataclass(frozen=True)
class Evaluation:
    """A report, with the values and rankings behind its means.

    Attributes:
        report: the means.
        queries: the judged ones.
        qrels: their judgements, in the same order.
        rankings: system -> query_id -> passage ids, best first.
        values: system -> measure -> one value per query.
    """

    report: Report
    queries: tuple[Query, ...]
    qrels: tuple[Qrel, ...]
    rankings: Mapping[str, Rankings]
    values: Mapping[str, Values]


def measure_all(
    retriever: Retriever,
    dataset: Dataset,
    *,
    systems: Sequence[System],
    split: str = "dev",
    baseline: str | None = None,
    relevant_from: int | None = None,
    keep_own: bool = False,
) -> Evaluation:
    """Run every judged query through each system.

    The others are compared with `baseline`: by default bm25 where it is measured, else none. From
    the grade `relevant_from` a passage is relevant to recall, MRR and MAP: by default 1, and 2
    where a model graded, as TREC Deep Learning asks; nDCG takes every grade above 0. Where people
    judged beside a model, intervals hold its error. A query that is itself a passage, by its id,
    would find that first; unless `keep_own`, or where it is judged, that passage is left out, as
    BEIR does.

    Raises:
        ConfigError: two systems of one name, or a baseline that is not among them.
        DataError: no query with a relevant passage in that split, or none of those passages in
            the collection.
    """
    baseline = _baseline([system.name for system in systems], baseline)
    if relevant_from is None:
        relevant_from = MODEL_FROM if is_judged(dataset, split) else PEOPLE_FROM
    queries, qrels = judged_queries(dataset, split, relevant_from=relevant_from)
    answers = {qrel.passage_id for qrel in qrels if qrel.relevance >= relevant_from}
    present = _count_present(retriever, answers, source=f"{dataset.path}, split {split!r}")
    check = read_check(dataset, split)
    asked = [*queries, *(check.queries if check else ())]
    read_ahead(retriever, asked)
    own = 0 if keep_own else retriever.count({query.query_id for query in queries})
    rows: dict[str, SystemResult] = {}
    rankings: dict[str, Rankings] = {}
    values: dict[str, Values] = {}
    for system in progress(systems, label="systems"):
        name = system.name
        rows[name], rankings[name], values[name] = _measure(
            system,
            asked,
            qrels,
            size=retriever.size,
            relevant_from=relevant_from,
            leave_out_own=own > 0,
        )
    with working("Comparing"):
        compared = compare(values, baseline=baseline) if baseline else {}
    report = Report(
        collection=retriever.collection,
        passages=retriever.size,
        data=str(dataset.path),
        split=split,
        bundle=retriever.metadata.bundle_fingerprint,
        commit=commit(),
        systems=tuple(replace(r, comparisons=compared.get(n, {})) for n, r in rows.items()),
        baseline=baseline,
        relevant_from=relevant_from,
        highest_grade=max(qrel.relevance for qrel in qrels),
        answers=len(answers),
        missing_answers=len(answers) - present,
        own_left_out=own,
        worths=stage_worths(
            values,
            p50_ms={name: row.p50_ms for name, row in rows.items()},
            index_mb={name: row.index_mb for name, row in rows.items()},
        ),
        headroom=headroom(rankings, qrels),
        judge=dataset.judge(split),
        read_by=_reader(retriever),
    )
    if check:
        report = _checked(report, check, rankings)
        rankings = {
            name: {query.query_id: each[query.query_id] for query in queries}
            for name, each in rankings.items()
        }
    return Evaluation(report, tuple(queries), tuple(qrels), rankings, values)


def _count_present(retriever: Retriever, answers: Collection[str], *, source: str) -> int:
    """Return how many of the relevant passages of `source` the collection holds; never none."""
    if present := retriever.count(answers):
        return present
    raise DataError(
        f"{retriever.collection} holds none of the {len(answers):,} relevant passages of {source}; "
        "expected a collection loaded from that DATA or one with the same ids: ingest list"
    )


def _checked(report: Report, check: Check, rankings: Mapping[str, Rankings]) -> Report:
    """Return the report with intervals that hold the error of the model that judged."""
    gaps = {name: check.gaps(each) for name, each in rankings.items()}
    systems = []
    for row in report.systems:
        errors = judge_errors(gaps[row.system])
        intervals = {m: widened(interval, errors[m]) for m, interval in row.intervals.items()}
        comparisons = {}
        for measure, each in row.comparisons.items():
            error = judge_error(gaps[row.system][measure] - gaps[str(report.baseline)][measure])
            interval = widened(each.interval, error)
            comparisons[measure] = replace(each, interval=interval, judge_error=error)
        systems.append(replace(row, intervals=intervals, comparisons=comparisons))
    worths = []
    for worth in report.worths:
        error = judge_error(gaps[worth.system][MEASURE] - gaps[worth.over][MEASURE])
        interval = widened(worth.interval, error)
        worths.append(replace(worth, interval=interval, judge_error=error))
    return replace(
        report,
        systems=tuple(systems),
        worths=tuple(worths),
        check=tuple(check.says),
        checked_queries=len(check.queries),
    )


def _measure(
    system: System,
    queries: Sequence[Query],
    qrels: Sequence[Qrel],
    *,
    size: int,
    relevant_from: int,
    leave_out_own: bool,
) -> tuple[SystemResult, Rankings, Values]:
    """Time some of the queries one by one, then rank the corpus of `size` for every query.

    Those without judgement in `qrels` are ranked alone. Times come first, for the engine caches the
    encoded queries.
    """
    ranker = system.start()
    p50_ms, p95_ms = _percentiles(ranker, queries, k=min(TIMED_K, size), name=system.name)
    batches = [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]
    depth = min(DEPTH + leave_out_own, size)
    rankings = {
        query.query_id: ranking
        for batch in progress(batches, label=system.name)
        for query, ranking in zip(batch, ranker.rank(batch, depth), strict=True)
    }
    if leave_out_own:
        judged = {(qrel.query_id, qrel.passage_id) for qrel in qrels}
        rankings = {
            own: [id_ for id_ in ranking if id_ != own or (own, own) in judged][:DEPTH]
            for own, ranking in rankings.items()
        }
    if remark := ranker.remark():
        log.warning("%s: %s", system.name, remark)
    values = per_query(rankings, qrels, relevant_from=relevant_from)
    answers = {(q.query_id, q.passage_id) for q in qrels if q.relevance >= relevant_from}
    judged_ids = {qrel.query_id for qrel in qrels}
    of_judged = {query_id: rankings[query_id] for query_id in rankings if query_id in judged_ids}
    crossed = [ranker.crossed[i] for i in of_judged if i in ranker.crossed]
    intervals = bootstrap_intervals(np.stack(list(values.values()), axis=1))
    row = SystemResult(
        system=system.name,
        queries=len(next(iter(values.values()))),
        metrics={measure: float(each.mean()) for measure, each in values.items()},
        intervals=dict(zip(values, intervals, strict=True)),
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        index_mb=ranker.index_mb,
        source="; ".join(filter(None, (system.source, remark))),
        escalated=sum(crossed) / len(crossed) if crossed else None,
        first_hits=None if leave_out_own else first_hits(ranker.chances, of_judged, answers),
    )
    return row, rankings, values


def _percentiles(
    ranker: Ranker, queries: Sequence[Query], *, k: int, name: str
) -> tuple[float | None, float | None]:
    """Return p50 and p95 in ms of one query at a time; None for rankings from a file."""
    if not ranker.is_timed:
        return None, None
    for query in queries[TIMED_QUERIES:][:WARM_UP] or queries[-REPEATED_WARM_UP:]:
        ranker.rank([query], k)
    times_ms = []
    for query in progress(queries[:TIMED_QUERIES], label=f"{name}: time of a query"):
        start = time.perf_counter()
        ranker.rank([query], k)
        times_ms.append((time.perf_counter() - start) * 1000.0)
    p50, p95 = np.percentile(times_ms, [50, 95])
    return float(p50), float(p95)


def _reader(retriever: Retriever) -> str:
    bundle = retriever.bundle
    return bundle.documents.model if bundle.asks_endpoint and bundle.documents else ""


def _baseline(names: Sequence[str], baseline: str | None) -> str | None:
    """Return the system that the others are compared with, if there is one."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(
            f"two systems are called {repeated[0]!r}; expected one each: rename the run file or "
            "the settings"
        )
    if baseline is not None and baseline not in names:
        raise ConfigError(
            f"baseline {baseline!r} is not measured; expected one of {', '.join(names)}"
        )
    baseline = baseline or DEFAULT_BASELINE
    return baseline if baseline in names and len(names) > 1 else None
