from dataclasses import replace

import numpy as np
import pytest
from qdrant_client import models as qm
from qdrant_client.hybrid.fusion import distribution_based_score_fusion

from two_tower.models.bundle.fusion import HybridWeights
from two_tower.models.errors import ConfigError
from two_tower.retriever.engine.wire import Scored, SparseVector
from two_tower.retriever.records import Hit
from two_tower.retriever.search.fusion import Ranking, fuse, gather, stage_weights
from two_tower.retriever.search.pipeline import top_hits
from two_tower.retriever.search.queries import QueryVectors, plan
from two_tower.retriever.search.settings import SearchSettings

TOWER = np.array([1.0, 0.0], dtype=np.float32)
VECTORS = QueryVectors(
    TOWER,
    {
        "dense": TOWER.tolist(),
        "pca_1": [1.0],
        "bm25": SparseVector([7], [1.0]),
    },
)


def choose(ranking: Ranking, *, k: int) -> list[Hit]:
    """The best k, by the ids of their points."""
    return top_hits(ranking, ranking.order[:k].tolist(), {})


def response(**scores: float) -> Scored:
    return Scored(list(scores), list(scores.values()))


def test_plan_gives_each_leg_its_own_limit_and_rescores_the_union() -> None:
    requests = plan(SearchSettings(legs={"pca_1": 30, "bm25": 50}), VECTORS, k=10)
    assert {name: r.limit for name, r in requests.items()} == {
        "pca_1": 30,
        "bm25": 50,
        "rerank": 80,
    }
    rerank = requests["rerank"]
    assert rerank.using == "dense"
    assert rerank.query == TOWER.tolist()
    assert [(p.using, p.limit) for p in rerank.prefetch] == [("pca_1", 30), ("bm25", 50)]
    assert rerank.params.ignore is True


def test_what_the_dense_leg_found_needs_no_rescoring() -> None:
    requests = plan(SearchSettings(), VECTORS, k=10)
    assert [p.using for p in requests["rerank"].prefetch] == ["bm25"]
    assert list(plan(SearchSettings(legs={"dense": 5}), VECTORS, k=1)) == ["dense"]


def test_plan_asks_for_at_least_k_and_leaves_out_an_empty_bm25_query() -> None:
    requests = plan(SearchSettings(rerank=False), VECTORS, k=500)
    assert [r.limit for r in requests.values()] == [500, 500]
    stop_words = QueryVectors(TOWER, {"dense": TOWER.tolist()})
    assert list(plan(SearchSettings(), stop_words, k=10)) == ["dense"]
    assert plan(SearchSettings(legs={"bm25": 10}), stop_words, k=10) == {}


def test_gather_floors_say_what_a_missing_score_can_be_at_most() -> None:
    requests = plan(SearchSettings(legs={"dense": 2, "bm25": 5}, rerank=False), VECTORS, k=1)
    found = gather(requests, [response(a=0.9, b=0.4), response(b=7.0, c=3.0)])
    assert found.point_ids == ["a", "b", "c"]
    assert found.scores == pytest.approx(
        np.array([[0.9, np.nan], [0.4, 7.0], [np.nan, 3.0]]), nan_ok=True
    )
    # dense was full: what it left out scores 0.4 at most. bm25 was not: the rest has no such term.
    assert found.floors.tolist() == [0.4, 0.0]


def test_choose_fuses_and_reports_every_stage() -> None:
    settings = SearchSettings(legs={"dense": 3, "bm25": 3}, tower_weight=10.0)
    requests = plan(settings, VECTORS, k=1)
    answers = [response(a=0.9, b=0.5), response(b=8.0, c=6.0), response(b=0.5, c=0.4)]
    winners = choose(fuse(settings, gather(requests, answers)), k=3)
    assert [(w.rank, w.passage_id) for w in winners] == [(1, "b"), (2, "c"), (3, "a")]
    assert [w.score for w in winners] == pytest.approx([5 + 8, 4 + 6, 9 + 0])
    stages = [{n: (s.score, s.rank) for n, s in w.stages.items()} for w in winners]
    assert stages[0] == {"dense": (0.5, 2), "bm25": (8.0, 1), "rerank": (0.5, 2)}
    assert stages[1] == {"bm25": (6.0, 2), "rerank": (0.4, 3)}
    assert stages[2] == {"dense": (0.9, 1), "rerank": (0.9, 1)}


def test_without_rerank_a_missing_cosine_is_the_least_of_the_leg() -> None:
    settings = SearchSettings(legs={"dense": 2, "bm25": 3}, tower_weight=10.0, rerank=False)
    answers = [response(a=0.9, b=0.5), response(b=8.0, c=6.0)]
    winners = choose(fuse(settings, gather(plan(settings, VECTORS, k=1), answers)), k=3)
    assert {w.passage_id: w.score for w in winners} == pytest.approx({"b": 13, "c": 11, "a": 9})


def test_reciprocal_ranks_on_request() -> None:
    settings = SearchSettings(fusion="rrf", rerank=False)
    answers = [response(a=0.9, b=0.5), response(b=8.0, c=6.0)]
    winners = choose(fuse(settings, gather(plan(settings, VECTORS, k=1), answers)), k=3)
    expected = {"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62}
    assert {w.passage_id: w.score for w in winners} == pytest.approx(expected)


@pytest.mark.parametrize(
    "legs",
    [
        ({"a": 0.9, "b": 0.5, "c": 0.45}, {"b": 8.0, "c": 6.0, "d": 2.0, "e": 1.0}),
        ({"a": 0.9, "b": 0.9}, {"c": 3.0}),  # equal scores, a single one
        ({f"p{i}": 0.1 for i in range(40)} | {"z": 0.9}, {"z": 1.0, "p1": 0.5}),
    ],
)
def test_scores_over_their_spread_are_those_of_qdrants_client(
    legs: tuple[dict[str, float], dict[str, float]],
) -> None:
    settings = SearchSettings(fusion="dbsf", rerank=False)
    answers = [response(**scores) for scores in legs]
    winners = choose(fuse(settings, gather(plan(settings, VECTORS, k=1), answers)), k=50)
    points = [
        [qm.ScoredPoint(id=i, version=0, score=score) for i, score in scores.items()]
        for scores in legs
    ]
    expected = {str(p.id): p.score for p in distribution_based_score_fusion(points, limit=50)}
    assert {w.passage_id: w.score for w in winners} == pytest.approx(expected)


def test_learnt_weights_take_the_place_of_the_fixed_one() -> None:
    settings = SearchSettings(legs={"dense": 2, "bm25": 3}, rerank=False)
    answers = [response(a=0.9, b=0.5), response(b=8.0, c=6.0)]
    found = gather(plan(settings, VECTORS, k=1), answers)
    ranking = fuse(settings, found, learnt=HybridWeights(20.0))
    assert ranking.cosines is not None
    winners = choose(ranking, k=3)
    # a: 20 * 0.9, b: 8 + 20 * 0.5, c: 6 + 20 * 0.5, the least of the dense leg
    assert [(w.passage_id, w.score) for w in winners] == [("a", 18.0), ("b", 18.0), ("c", 16.0)]
    for fixed in (replace(settings, fusion="weighted"), replace(settings, tower_weight=15.0)):
        ranking = fuse(fixed, found, learnt=HybridWeights(20.0))
        assert ranking.cosines is None
        expected = [15 * 0.9, 8 + 15 * 0.5, 6 + 15 * 0.5]
        assert ranking.scores.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("leg", ["dense", "bm25", "pca_1"])
def test_nothing_is_learnt_for_one_leg_alone(leg: str) -> None:
    settings = SearchSettings(legs={leg: 3}, rerank=False)
    found = gather(plan(settings, VECTORS, k=1), [response(a=0.9, b=0.5)])
    ranking = fuse(settings, found, learnt=HybridWeights(20.0))
    assert (ranking.cosines, ranking.scores.tolist()) == (None, [0.9, 0.5])


def test_one_stage_keeps_its_own_scores() -> None:
    settings = SearchSettings(legs={"bm25": 3}, rerank=False)
    found = gather(plan(settings, VECTORS, k=1), [response(a=2.0, b=5.0)])
    winners = choose(fuse(settings, found), k=2)
    assert [(w.passage_id, w.score) for w in winners] == [("b", 5.0), ("a", 2.0)]


def test_nothing_found_is_an_empty_result() -> None:
    settings = SearchSettings()
    assert choose(fuse(settings, gather({}, [])), k=5) == []
    requests = plan(settings, VECTORS, k=5)
    assert choose(fuse(settings, gather(requests, [response()] * 3)), k=5) == []


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["dense", "bm25"], [6, 1]),
        (["dense", "bm25", "rerank"], [0, 1, 6]),
        (["dense", "pca_1", "bm25"], [3, 3, 1]),
        (["dense"], [6]),
        (["bm25"], [1]),
        (["pca_1", "rerank"], [0, 6]),
    ],
)
def test_weights(stages: list[str], expected: list[float]) -> None:
    assert stage_weights(SearchSettings(tower_weight=6), stages).tolist() == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"legs": {}}, "no leg"),
        ({"legs": {"dense": 0}}, "search.legs.dense is 0, expected 1 or more"),
        ({"cross_candidates": 0}, "cross_candidates is 0, expected 1 to 200"),
        ({"cross_candidates": 201}, "cross_candidates is 201, expected 1 to 200"),
        ({"tower_weight": -1.5}, r"tower_weight is -1\.5, expected 0 or more"),
        ({"tower_weight": float("nan")}, "tower_weight is nan, expected a finite number"),
        ({"diversity": 1.5}, "diversity is 1.5, expected 0 to 1"),
        ({"group_by": "a.b"}, "group_by is 'a.b', expected the name of a payload field"),
        ({"group_by": "a" * 101}, "expected the name of a payload field"),
        ({"group_size": 0}, "group_size is 0, expected 1 to 1000"),
        ({"grop_size": 2}, r"did you mean search\.group_size\?"),
        ({"fusion": "sum"}, "fusion is 'sum', expected 'learnt' or 'weighted' or 'rrf' or 'dbsf'"),
    ],
)
def test_impossible_settings(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSettings(**settings)
