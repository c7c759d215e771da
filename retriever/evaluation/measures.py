"""Rankings and judgements in, one value per query out; ir-measures does the arithmetic."""

import logging
from collections.abc import Mapping, Sequence

import ir_measures
import numpy as np
from ir_measures import AP, RR, R, nDCG

from two_tower.models.data import PEOPLE, Dataset, Qrel, Query
from two_tower.models.errors import DataError
from two_tower.models.vectors import Float64Array
from two_tower.retriever.records import Run

log = logging.getLogger(__name__)

DEPTH = 100

MEASURES = {
    "recall@1": R @ 1,
    "recall@3": R @ 3,
    "recall@10": R @ 10,
    "recall@100": R @ 100,
    "mrr@10": RR @ 10,
    "ndcg@10": nDCG @ 10,
    "map@100": AP @ 100,
}
"""Name in reports -> measure. Only nDCG tells grades apart."""

Rankings = Mapping[str, Sequence[str]]
"""query_id -> passage ids, best first."""

Values = dict[str, Float64Array]
"""measure -> one value per judged query."""


def answerable(
    queries: Sequence[Query], qrels: Sequence[Qrel], *, relevant_from: int = 1
) -> tuple[list[Query], list[Qrel]]:
    """Leave out queries that no passage answers: recall says nothing about them."""
    answered_ids = {qrel.query_id for qrel in qrels if qrel.relevance >= relevant_from}
    return (
        [query for query in queries if query.query_id in answered_ids],
        [qrel for qrel in qrels if qrel.query_id in answered_ids],
    )


def judged_queries(
    dataset: Dataset, split: str, *, relevant_from: int = 1, count: int | None = None
) -> tuple[list[Query], list[Qrel]]:
    """Return the answerable queries of a split and their qrels, in the same order of queries.

    `count` of them are drawn at random, the same ones each time; None takes all. The log says so
    where a model wrote the queries.

    Raises:
        DataError: there is none.
    """
    queries, qrels = answerable(
        dataset.queries(split), dataset.qrels(split), relevant_from=relevant_from
    )
    if not queries:
        grade = f" of grade {relevant_from} or more" if relevant_from > 1 else ""
        raise DataError(
            f"{dataset.path} has no query with a relevant passage{grade} in split {split!r}; "
            f"its splits: {', '.join(dataset.splits)}"
        )
    if (judge := dataset.judge(split)) != PEOPLE:
        log.warning("the judgements of split %s are %s, not made by people", split, judge)
    if count is not None:
        order = np.random.default_rng(0).permutation(len(queries))[:count]
        queries = [queries[row] for row in order]
    rows = {query.query_id: row for row, query in enumerate(queries)}
    known = [qrel for qrel in qrels if qrel.query_id in rows]
    return queries, sorted(known, key=lambda qrel: rows[qrel.query_id])


def per_query(rankings: Rankings, qrels: Sequence[Qrel], *, relevant_from: int = 1) -> Values:
    """Return measure -> one value per judged query; a query with no result counts as 0.

    The values are in the order in which the qrels name the queries.
    """
    # Reciprocal ranks as scores keep ties in the system's own order.
    run: Run = {
        query_id: {passage_id: 1.0 / rank for rank, passage_id in enumerate(ranking, 1)}
        for query_id, ranking in rankings.items()
    }
    judged = [ir_measures.Qrel(q.query_id, q.passage_id, q.relevance) for q in qrels]
    rows = {query_id: row for row, query_id in enumerate(dict.fromkeys(q.query_id for q in qrels))}
    names = {
        measure(rel=relevant_from) if "rel" in measure.SUPPORTED_PARAMS else measure: name
        for name, measure in MEASURES.items()
    }
    values = {name: np.zeros(len(rows)) for name in MEASURES}
    for metric in ir_measures.iter_calc(list(names), judged, run):
        values[names[metric.measure]][rows[metric.query_id]] = metric.value
    return values
