import numpy as np
import pytest

from two_tower.retriever.search import stages as fusion

NAN = np.nan
SCORES = np.array([[0.9, 3.0], [0.5, NAN], [NAN, 9.0], [0.1, 6.0]])


def test_missing_scores_become_the_floor() -> None:
    filled = fusion.fill_missing(SCORES, np.array([0.1, 0.0]))
    assert filled.tolist() == [[0.9, 3.0], [0.5, 0.0], [0.1, 9.0], [0.1, 6.0]]


def test_weighted_sum_by_hand() -> None:
    fused = fusion.weighted_sum(np.array([[0.5, 10.0], [0.9, 2.0]]), np.array([15.0, 1.0]))
    assert fused == pytest.approx([0.5 * 15 + 10, 0.9 * 15 + 2])


def test_ranks_start_at_one_and_put_missing_last() -> None:
    assert fusion.ranks(SCORES).tolist() == [[1, 3], [2, 4], [4, 1], [3, 2]]


def test_ties_keep_the_given_order() -> None:
    assert fusion.ranks(np.array([[1.0], [2.0], [1.0], [2.0]]))[:, 0].tolist() == [3, 1, 4, 2]


def test_reciprocal_rank_fusion_by_hand() -> None:
    fused = fusion.reciprocal_rank_fusion(SCORES, np.array([1.0, 2.0]), k=60)
    assert fused == pytest.approx([1 / 61 + 2 / 63, 1 / 62, 2 / 61, 1 / 63 + 2 / 62])
