"""Judgements of a language model: which split has them, and how far they lead a measure astray.

`ingest judge` writes them, and where people judged some queries too, it lets the model judge those
as well. On them a measure has two values, and their difference says what the model's error does.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from two_tower.models.data import Dataset, Qrel, Query
from two_tower.models.vectors import Float64Array
from two_tower.retriever.evaluation.measures import Rankings, Values, answerable, per_query

JUDGED = "judged"

PEOPLE_FROM, MODEL_FROM = 1, 2
"""Grades from which a passage is relevant: of people, and of a model on the scale of 0 to 3."""

NORMAL_95 = 1.96


class CheckSplits(NamedTuple):
    """Names of the splits of the queries that both have judged."""

    people: str
    model: str


CHECK_SPLITS = CheckSplits("check-people", "check-judged")


class Check(NamedTuple):
    """The queries that people and the model judged.

    Attributes:
        queries: that people found an answer to.
        people: what people say of them.
        model: what the model says.
        says: the agreement in words, a line each.
    """

    queries: list[Query]
    people: list[Qrel]
    model: list[Qrel]
    says: Sequence[str]

    def gaps(self, rankings: Rankings) -> Values:
        """Return measure -> for each query the value by the model less that by people."""
        by_people = per_query(rankings, self.people, relevant_from=PEOPLE_FROM)
        by_model = per_query(rankings, self.model, relevant_from=MODEL_FROM)
        return {measure: by_model[measure] - by_people[measure] for measure in by_people}


def is_judged(data: Dataset, split: str) -> bool:
    """Say whether a split has grades of a model from 0 to 3."""
    return split in (JUDGED, CHECK_SPLITS.model) and split in data.splits


def read_check(data: Dataset, split: str) -> Check | None:
    """Return the check of a split that a model judged; None where there is none."""
    if split != JUDGED or not set(CHECK_SPLITS) <= set(data.splits):
        return None
    people, model = data.qrels(CHECK_SPLITS.people), data.qrels(CHECK_SPLITS.model)
    queries, people = answerable(data.queries(), people, relevant_from=PEOPLE_FROM)
    graded = {qrel.query_id for qrel in model}
    queries = [query for query in queries if query.query_id in graded]
    rows = {query.query_id: row for row, query in enumerate(queries)}
    people, model = (
        sorted((q for q in qrels if q.query_id in rows), key=lambda q: rows[q.query_id])
        for qrels in (people, model)
    )
    says = data.manifest.get("source", {}).get("judging", {}).get("says", [])
    return Check(queries, people, model, says) if len(queries) > 1 else None


def judge_error(gap: Float64Array) -> float:
    """Return how far off a mean may be because of the judge: |mean gap| + 1.96 standard errors.

    The mean gap is the judge's bias on this measure, as prediction-powered inference estimates it
    (Angelopoulos et al., 2023, arXiv:2301.09633); here it widens an interval and moves nothing.

    Args:
        gap: (queries,), for each the value by the model less that by people.
    """
    return float(abs(gap.mean()) + NORMAL_95 * gap.std(ddof=1) / np.sqrt(len(gap)))


def widened(interval: tuple[float, float], error: float) -> tuple[float, float]:
    """Return an interval that is `error` longer at both ends."""
    return interval[0] - error, interval[1] + error


def judge_errors(gaps: Values) -> Mapping[str, float]:
    """Return measure -> `judge_error`."""
    return {measure: judge_error(gap) for measure, gap in gaps.items()}
