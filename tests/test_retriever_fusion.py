import math

import numpy as np
import pytest

from retriever import fusion

NAN = np.nan
SCORES = np.array([[0.9, 3.0], [0.5, NAN], [NAN, 9.0], [0.1, 6.0]])


def test_missing_scores_become_the_floor() -> None:
    filled = fusion.fill_missing(SCORES, np.array([0.1, 0.0]))
    assert filled.tolist() == [[0.9, 3.0], [0.5, 0.0], [0.1, 9.0], [0.1, 6.0]]


def test_z_scores_by_hand() -> None:
    z = fusion.z_scores(np.array([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]]))
    deviation = math.sqrt(((1 - 3) ** 2 + 0 + (5 - 3) ** 2) / 3)
    assert z[:, 0] == pytest.approx([-2 / deviation, 0.0, 2 / deviation])
    assert z[:, 1].tolist() == [0.0, 0.0, 0.0]  # a stage that says nothing moves nothing


def test_weighted_sum_does_not_depend_on_a_stage_s_unit() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 2))
    weights = np.array([0.3, 0.7])
    scaled = scores * np.array([100.0, 0.01]) + np.array([5.0, -2.0])
    expected = fusion.weighted_sum(scores, weights)
    assert fusion.weighted_sum(scaled, weights) == pytest.approx(expected)
    z = [(c - c.mean()) / c.std() for c in scores.T]
    assert expected == pytest.approx(0.3 * z[0] + 0.7 * z[1])


def test_ranks_start_at_one_and_put_missing_last() -> None:
    assert fusion.ranks(SCORES).tolist() == [[1, 3], [2, 4], [4, 1], [3, 2]]


def test_ties_keep_the_given_order() -> None:
    assert fusion.ranks(np.array([[1.0], [2.0], [1.0], [2.0]]))[:, 0].tolist() == [3, 1, 4, 2]


def test_reciprocal_rank_fusion_by_hand() -> None:
    fused = fusion.reciprocal_rank_fusion(SCORES, np.array([1.0, 2.0]), k=60)
    assert fused == pytest.approx([1 / 61 + 2 / 63, 1 / 62, 2 / 61, 1 / 63 + 2 / 62])
