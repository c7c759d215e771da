import math

import numpy as np
import pytest

from two_tower.models.data import Qrel, Query
from two_tower.retriever.evaluation.measures import MEASURES, answerable, per_query

QRELS = [
    Qrel("q1", "a", 1, "dev"),
    Qrel("q2", "b", 2, "dev"),
    Qrel("q2", "c", 1, "dev"),
    Qrel("q2", "z", 0, "dev"),
    Qrel("q3", "d", 1, "dev"),
]
RANKINGS = {"q1": ["x", "a", "y"], "q2": ["b", "z", "y", "c"], "q3": []}


def test_measures_by_hand() -> None:
    values = per_query(RANKINGS, QRELS)
    assert set(values) == set(MEASURES)
    assert values["recall@1"].tolist() == [0, 1 / 2, 0]
    assert values["recall@3"].tolist() == [1, 1 / 2, 0]
    assert values["recall@10"].tolist() == values["recall@100"].tolist() == [1, 1, 0]
    assert values["mrr@10"].tolist() == [1 / 2, 1, 0]
    assert values["map@100"].tolist() == [1 / 2, (1 / 1 + 2 / 4) / 2, 0]
    gain = 2 / math.log2(2) + 1 / math.log2(5)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert values["ndcg@10"] == pytest.approx([1 / math.log2(3), gain / ideal, 0])


def test_a_relevant_passage_beyond_the_cutoff_does_not_count() -> None:
    ranking = [f"x{i}" for i in range(10)] + ["a"]
    values = per_query({"q1": ranking, "q2": [], "q3": []}, QRELS)
    assert values["mrr@10"][0] == values["ndcg@10"][0] == values["recall@10"][0] == 0
    assert values["recall@100"][0] == 1


def test_agrees_with_a_naive_loop_on_random_rankings() -> None:
    rng = np.random.default_rng(7)
    passages = [str(i) for i in range(300)]
    qrels, rankings = [], {}
    for i in range(30):
        query_id = f"q{i}"
        relevant = set(rng.choice(passages, size=rng.integers(1, 6), replace=False).tolist())
        qrels += [Qrel(query_id, p, 1, "dev") for p in sorted(relevant)]
        rankings[query_id] = rng.permutation(passages)[:100].tolist()
    values = per_query(rankings, qrels)
    for row, (query_id, ranking) in enumerate(rankings.items()):
        relevant = {q.passage_id for q in qrels if q.query_id == query_id}
        hits = [passage_id in relevant for passage_id in ranking]
        for depth in (1, 3, 10, 100):
            found = sum(hits[:depth]) / len(relevant)
            assert values[f"recall@{depth}"][row] == pytest.approx(found)
        first = next((1 / (r + 1) for r, hit in enumerate(hits[:10]) if hit), 0.0)
        assert values["mrr@10"][row] == pytest.approx(first)


def test_queries_that_nothing_answers_are_left_out() -> None:
    queries = [Query("q1", "a"), Query("q2", "b"), Query("q9", "c")]
    kept, qrels = answerable(queries, [*QRELS, Qrel("q9", "a", 0, "dev")])
    assert [query.query_id for query in kept] == ["q1", "q2"]
    assert qrels == QRELS


def test_a_passage_is_relevant_from_a_grade() -> None:
    """With grade 2, only b answers q2; nDCG still takes c, and nothing answers q1 and q3."""
    values = per_query(RANKINGS, QRELS, relevant_from=2)
    assert values["recall@1"].tolist() == values["recall@100"].tolist() == [0, 1, 0]
    assert values["mrr@10"].tolist() == values["map@100"].tolist() == [0, 1, 0]
    assert values["ndcg@10"].tolist() == per_query(RANKINGS, QRELS)["ndcg@10"].tolist()
    queries = [Query("q1", "a"), Query("q2", "b")]
    kept, qrels = answerable(queries, QRELS, relevant_from=2)
    assert [query.query_id for query in kept] == ["q2"]
    assert {qrel.query_id for qrel in qrels} == {"q2"}
