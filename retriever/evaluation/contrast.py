"""The queries that two systems answer most differently, with the best passages of each."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from two_tower.models.data import Passage, Query
from two_tower.models.errors import ConfigError
from two_tower.retriever.evaluation.evaluate import Evaluation
from two_tower.retriever.evaluation.verdict import MEASURE

EACH_WAY = 5

SHOWN = 3


class RankedPassage(NamedTuple):
    """A passage in a column of a contrast.

    Attributes:
        passage: with its text; without one where the collection does not hold it.
        rank: in the ranking of the system, from 1; None below the best 100.
        grade: of the judgement; None without one.
    """

    passage: Passage
    rank: int | None
    grade: int | None


class Column(NamedTuple):
    """One system on one query: its value, its best passages, the answers that it ranks lower."""

    system: str
    value: float
    best: list[RankedPassage]
    lower: list[RankedPassage]


class Contrast(NamedTuple):
    """One query, side by side; `columns` are the system and, where there is one, the baseline."""

    query: Query
    columns: list[Column]


class Contrasts(NamedTuple):
    """The queries at both ends, the most extreme first."""

    best: list[Contrast]
    worst: list[Contrast]


def find_contrasts(evaluation: Evaluation, passages: Iterable[Passage]) -> Contrasts:
    """Return where the last system beats the baseline most and loses to it most, by nDCG@10.

    Without a baseline: the queries that the last system answers best and worst.

    Raises:
        ConfigError: no system is measured.
    """
    if not evaluation.values:
        raise ConfigError("no system is measured; expected at least one")
    baseline = evaluation.report.baseline
    system = next(name for name in reversed(list(evaluation.values)) if name != baseline)
    pair = [system, baseline] if baseline else [system]
    gains = evaluation.values[system][MEASURE].copy()
    if baseline:
        gains -= evaluation.values[baseline][MEASURE]
    order = np.argsort(-gains, kind="stable").tolist()
    best, worst = order[:EACH_WAY], order[::-1][:EACH_WAY]
    if baseline:
        best = [row for row in best if gains[row] > 0]
        worst = [row for row in worst if gains[row] < 0]
    ids: set[str] = set()
    for query in (evaluation.queries[row] for row in [*best, *worst]):
        for name in pair:
            ids.update(*_shown_ids(evaluation, name, query.query_id))
    texts = {p.passage_id: p for p in passages if p.passage_id in ids}
    return Contrasts(
        [_contrast(evaluation, pair, row, texts) for row in best],
        [_contrast(evaluation, pair, row, texts) for row in worst],
    )


def _contrast(
    evaluation: Evaluation, pair: Sequence[str], row: int, texts: Mapping[str, Passage]
) -> Contrast:
    query = evaluation.queries[row]
    grades = _grades(evaluation, query.query_id)
    columns = []
    for name in pair:
        ranking = evaluation.rankings[name].get(query.query_id, [])
        ranks = {passage_id: rank for rank, passage_id in enumerate(ranking, 1)}
        best, lower = (
            [RankedPassage(texts.get(i, Passage(i, "")), ranks.get(i), grades.get(i)) for i in ids]
            for ids in _shown_ids(evaluation, name, query.query_id)
        )
        value = float(evaluation.values[name][MEASURE][row])
        columns.append(Column(name, value, best, lower))
    return Contrast(query, columns)


def _shown_ids(
    evaluation: Evaluation, system: str, query_id: str
) -> tuple[Sequence[str], Sequence[str]]:
    """Return the best passages of a system, and answers that are not among them."""
    best = evaluation.rankings[system].get(query_id, [])[:SHOWN]
    at_least = evaluation.report.relevant_from
    grades = _grades(evaluation, query_id).items()
    lower = [i for i, grade in grades if grade >= at_least and i not in best]
    return best, lower[:SHOWN]


def _grades(evaluation: Evaluation, query_id: str) -> dict[str, int]:
    """Return passage id -> grade of what is judged for a query, the highest first."""
    judged = (qrel for qrel in evaluation.qrels if qrel.query_id == query_id)
    ordered = sorted(judged, key=lambda qrel: -qrel.relevance)
    return {qrel.passage_id: qrel.relevance for qrel in ordered}
