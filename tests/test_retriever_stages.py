import numpy as np
import pytest
from qdrant_client import models as qm
from qdrant_client.http.models import QueryResponse

from retriever.errors import ConfigError
from retriever.stages import (
    QueryVectors,
    SearchSettings,
    choose,
    gather,
    plan,
    stage_weights,
)

TOWER = np.array([1.0, 0.0], dtype=np.float32)
VECTORS = QueryVectors(
    TOWER,
    {
        "dense": TOWER.tolist(),
        "pca_1": [1.0],
        "bm25": qm.SparseVector(indices=[7], values=[1.0]),
    },
)


def response(**scores: float) -> QueryResponse:
    return QueryResponse(
        points=[qm.ScoredPoint(id=i, version=0, score=s) for i, s in scores.items()]
    )


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
    assert rerank.params.quantization.ignore is True


def test_plan_asks_for_at_least_k_and_leaves_out_an_empty_bm25_query() -> None:
    requests = plan(SearchSettings(rerank=False), VECTORS, k=500)
    assert [r.limit for r in requests.values()] == [500, 500]
    stop_words = QueryVectors(TOWER, {"dense": TOWER.tolist()})
    assert list(plan(SearchSettings(), stop_words, k=10)) == ["dense", "rerank"]
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
    settings = SearchSettings(legs={"dense": 3, "bm25": 3}, tower_weight=0.5, rerank=True)
    requests = plan(settings, VECTORS, k=1)
    found = gather(
        requests,
        [response(a=0.9, b=0.5), response(b=8.0, c=6.0), response(a=0.9, b=0.5, c=0.85)],
    )
    winners = choose(settings, found, k=3)
    tower, bm25 = np.array([0.9, 0.5, 0.85]), np.array([0.0, 8.0, 6.0])
    fused = (tower - tower.mean()) / tower.std() / 2 + (bm25 - bm25.mean()) / bm25.std() / 2
    assert [w.point_id for w in winners] == ["abc"[row] for row in np.argsort(-fused)]
    assert [w.score for w in winners] == pytest.approx(sorted(fused, reverse=True))
    best = winners[0]
    assert best.point_id == "c"
    assert best.stages == {"bm25": (6.0, 2), "rerank": (0.85, 2)}


def test_one_stage_keeps_its_own_scores() -> None:
    settings = SearchSettings(legs={"bm25": 3}, rerank=False)
    found = gather(plan(settings, VECTORS, k=1), [response(a=2.0, b=5.0)])
    assert [(w.point_id, w.score) for w in choose(settings, found, k=2)] == [("b", 5.0), ("a", 2.0)]


def test_nothing_found_is_an_empty_result() -> None:
    settings = SearchSettings()
    assert choose(settings, gather({}, []), k=5) == []
    requests = plan(settings, VECTORS, k=5)
    assert choose(settings, gather(requests, [response()] * 3), k=5) == []


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["dense", "bm25"], [0.3, 0.7]),
        (["dense", "bm25", "rerank"], [0.0, 0.7, 0.3]),
        (["dense", "pca_1", "bm25"], [0.15, 0.15, 0.7]),
        (["dense"], [1.0]),
        (["bm25"], [1.0]),
        (["bm25", "tfidf"], [0.5, 0.5]),
        (["dense", "rerank"], [0.0, 1.0]),
    ],
)
def test_weights(stages: list[str], expected: list[float]) -> None:
    weights = stage_weights(SearchSettings(tower_weight=0.3), stages)
    assert weights == pytest.approx(expected)
    assert weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"legs": {}}, "no leg"),
        ({"legs": {"dense": 0}}, "'dense' asks for 0"),
        ({"tower_weight": 1.5}, "tower_weight is 1.5"),
    ],
)
def test_impossible_settings(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSettings(**settings)
