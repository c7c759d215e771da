"""The queries that two systems answer most differently, with what each of them found."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from two_tower.models.data import Passage, Query
from two_tower.models.errors import ConfigError
from two_tower.retriever.evaluation.evaluate import Evaluation

MEASURE = "ndcg@10"

EACH_WAY = 5

SHOWN = 3


class Found(NamedTuple):
    """A passage in a column of a contrast.

    Attributes:
        passage: with its text; empty where the collection does not hold it.
        rank: in that system's ranking, from 1; None where it is not among the best 100.
        grade: as judged; None where nobody judged it.
    """

    passage: Passage
    rank: int | None
    grade: int | None


class Column(NamedTuple):
    """What one system made of a query: its value, its best passages, the answers it ranks lower."""

    system: str
    value: float
    best: list[Found]
    lower: list[Found]


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

    Args:
        evaluation: of at least one system.
        passages: of the collection; read only as far as needed.
    """
    names = list(evaluation.values)
    if not names:
        raise ConfigError("no system is measured; expected at least one")
    baseline = evaluation.report.baseline
    system = next(name for name in reversed(names) if name != baseline)
    pair = [system, baseline] if baseline else [system]
    gains = evaluation.values[system][MEASURE].copy()
    if baseline:
        gains -= evaluation.values[baseline][MEASURE]
    order = np.argsort(-gains, kind="stable").tolist()
    best, worst = order[:EACH_WAY], order[::-1][:EACH_WAY]
    if baseline:
        best = [row for row in best if gains[row] > 0]
        worst = [row for row in worst if gains[row] < 0]
    texts = _texts(evaluation, pair, rows=[*best, *worst], passages=passages)
    best_and_worst = (
        [_contrast(evaluation, pair, row, texts) for row in rows] for rows in (best, worst)
    )
    return Contrasts(*best_and_worst)


def _texts(
    evaluation: Evaluation, pair: Sequence[str], *, rows: Sequence[int], passages: Iterable[Passage]
) -> dict[str, Passage]:
    """Return the passages that will be shown, by id."""
    wanted: set[str] = set()
    for row in rows:
        query_id = evaluation.queries[row].query_id
        wanted |= _relevant(evaluation, query_id).keys()
        for name in pair:
            wanted |= set(evaluation.rankings[name].get(query_id, [])[:SHOWN])
    found: dict[str, Passage] = {}
    for passage in passages:
        if len(found) == len(wanted):
            break
        if passage.passage_id in wanted:
            found[passage.passage_id] = passage
    return found


def _contrast(
    evaluation: Evaluation, pair: Sequence[str], row: int, texts: Mapping[str, Passage]
) -> Contrast:
    query = evaluation.queries[row]
    grades = _grades(evaluation, query.query_id)
    relevant = _relevant(evaluation, query.query_id)
    columns = []
    for name in pair:
        ranking = list(evaluation.rankings[name].get(query.query_id, []))
        ranks = {passage_id: rank for rank, passage_id in enumerate(ranking, 1)}
        shown = ranking[:SHOWN]
        lower = [passage_id for passage_id in relevant if passage_id not in shown]
        best_and_lower = (
            [Found(texts.get(i, Passage(i, "")), ranks.get(i), grades.get(i)) for i in ids]
            for ids in (shown, lower[:SHOWN])
        )
        value = float(evaluation.values[name][MEASURE][row])
        columns.append(Column(name, value, *best_and_lower))
    return Contrast(query, columns)


def _grades(evaluation: Evaluation, query_id: str) -> dict[str, int]:
    return {q.passage_id: q.relevance for q in evaluation.qrels if q.query_id == query_id}


def _relevant(evaluation: Evaluation, query_id: str) -> dict[str, int]:
    """Return the passages that answer a query, the highest grade first."""
    grades = _grades(evaluation, query_id)
    at_least = evaluation.report.relevant_from
    ordered = sorted(grades.items(), key=lambda pair: -pair[1])
    return {passage_id: grade for passage_id, grade in ordered if grade >= at_least}
