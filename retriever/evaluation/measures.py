"""Rankings and judgements in, one value per query out; ir-measures does the arithmetic."""

from collections.abc import Mapping, Sequence
from typing import Any

import ir_measures
import numpy as np
from ir_measures import AP, RR, R, nDCG

from two_tower.models.data import Qrel, Query
from two_tower.models.vectors import Float64Array
from two_tower.retriever.records import Run

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
    wanted = {qrel.query_id for qrel in qrels if qrel.relevance >= relevant_from}
    return (
        [query for query in queries if query.query_id in wanted],
        [qrel for qrel in qrels if qrel.query_id in wanted],
    )


def per_query(rankings: Rankings, qrels: Sequence[Qrel], *, relevant_from: int = 1) -> Values:
    """Return measure -> one value per judged query; a query with no result counts as 0.

    Scores are handed over as reciprocal ranks, so that ties stay in the system's own order.

    Args:
        rankings: of one system.
        qrels: in the order of queries that the values are to have.
        relevant_from: the grade from which a passage is relevant; nDCG takes every grade.
    """
    run: Run = {
        query_id: {passage_id: 1.0 / rank for rank, passage_id in enumerate(ranking, 1)}
        for query_id, ranking in rankings.items()
    }
    judged = [ir_measures.Qrel(q.query_id, q.passage_id, q.relevance) for q in qrels]
    rows = {query_id: i for i, query_id in enumerate(dict.fromkeys(q.query_id for q in qrels))}
    values = {name: np.zeros(len(rows)) for name in MEASURES}
    names = {_from_grade(m, relevant_from): name for name, m in MEASURES.items()}
    for metric in ir_measures.iter_calc(list(names), judged, run):
        values[names[metric.measure]][rows[metric.query_id]] = metric.value
    return values


def _from_grade(measure: Any, grade: int) -> Any:
    return measure(rel=grade) if "rel" in measure.SUPPORTED_PARAMS else measure
