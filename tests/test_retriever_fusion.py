import numpy as np
import pytest

from two_tower.retriever.search import fusion
from two_tower.retriever.search.settings import SearchSettings

NAN = np.nan
SCORES = np.array([[0.9, 3.0], [0.5, NAN], [NAN, 9.0], [0.1, 6.0]])


def fused(scores: np.ndarray, floors: list[float]) -> fusion.Ranking:
    """The sum of 15 * dense and BM25."""
    names = [f"p{row}" for row in range(len(scores))]
    candidates = fusion.Candidates(names, ["dense", "bm25"], scores, np.array(floors))
    return fusion.fuse(SearchSettings(tower_weight=15.0), candidates)


def test_missing_scores_become_the_floor() -> None:
    ranking = fused(SCORES, [0.1, 0.0])
    expected = [15 * 0.9 + 3, 15 * 0.5 + 0.0, 15 * 0.1 + 9, 15 * 0.1 + 6]
    assert ranking.scores == pytest.approx(expected)
    assert ranking.order.tolist() == [0, 2, 1, 3]


def test_weighted_sum_by_hand() -> None:
    ranking = fused(np.array([[0.5, 10.0], [0.9, 2.0]]), [0.0, 0.0])
    assert ranking.scores == pytest.approx([0.5 * 15 + 10, 0.9 * 15 + 2])


def test_ranks_start_at_one_and_put_missing_last() -> None:
    assert fusion.stage_ranks(SCORES).tolist() == [[1, 3], [2, 4], [4, 1], [3, 2]]


def test_ties_keep_the_given_order() -> None:
    scores = np.array([[1.0], [2.0], [1.0], [2.0]])
    assert fusion.stage_ranks(scores)[:, 0].tolist() == [3, 1, 4, 2]


def test_reciprocal_rank_fusion_by_hand() -> None:
    fused = fusion.reciprocal_rank_fusion(SCORES, np.array([1.0, 2.0]))
    assert fused == pytest.approx([1 / 61 + 2 / 63, 1 / 62, 2 / 61, 1 / 63 + 2 / 62])
