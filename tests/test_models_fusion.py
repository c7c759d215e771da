import json
import math

import numpy as np
import pytest

from models.errors import BundleError
from models.fusion import (
    FinalWeights,
    Fusion,
    HybridWeights,
    cautious_weight,
    fit_final,
    fit_hybrid,
    reciprocal_ranks,
)

QUERIES, LISTED = 400, 12


def made_lists(*, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists where the answer is drawn by the odds of BM25 + 20 cosine."""
    random = np.random.default_rng(seed)
    bm25 = random.gamma(3.0, 3.0, (QUERIES, LISTED)).astype(np.float32)
    cosine = random.normal(0.4, 0.15, (QUERIES, LISTED)).astype(np.float32)
    total = bm25 + 20 * cosine + noise * random.gumbel(size=bm25.shape)
    relevant = np.zeros(bm25.shape, dtype=bool)
    relevant[np.arange(QUERIES), total.argmax(axis=1)] = True
    return bm25, cosine, relevant


def test_scores_are_what_their_formulas_say() -> None:
    hybrid = HybridWeights(8.0).scores(np.array([9.0, 3.0]), np.array([0.25, 0.5]))
    assert hybrid.tolist() == [11.0, 7.0]
    final = FinalWeights(0.5, 2.0, -1.0).scores(hybrid, np.array([1.0, -1.0]))
    assert final.tolist() == [0.5 * 11 + 2 - 1, 0.5 * 7 - 2 - 1]


def test_reciprocal_ranks_count_ties_against_the_answer() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [2.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    relevant = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]], dtype=bool)
    assert reciprocal_ranks(scores, relevant).tolist() == [1.0, 1 / 3, 1 / 2, 1.0]


def test_the_weight_is_the_smallest_that_is_about_as_good_as_the_best() -> None:
    bm25, cosine, relevant = made_lists(noise=2.0)
    grid = np.geomspace(1, 100, 41)
    found = cautious_weight(bm25, cosine, relevant, grid=grid)

    def quality(weight: float) -> np.ndarray:
        values = []
        for b, c, r in zip(bm25, cosine, relevant, strict=True):
            order = np.argsort(-(b + weight * c), kind="stable")
            values.append(1 / (1 + int(np.flatnonzero(r[order])[0])))
        return np.array(values)

    curve = {weight: quality(weight) for weight in grid}
    best = max(curve.values(), key=np.mean)
    good = [
        weight
        for weight, values in curve.items()
        if (best - values).mean() <= (best - values).std() / math.sqrt(QUERIES)
    ]
    assert found == pytest.approx(min(good))
    assert found < max(good)


def test_fitting_beats_either_score_alone_and_is_repeatable() -> None:
    bm25, cosine, relevant = made_lists(noise=2.0)
    weights = fit_hybrid(bm25, cosine, relevant)
    assert weights is not None
    assert weights == fit_hybrid(bm25, cosine, relevant)
    mixed = reciprocal_ranks(weights.scores(bm25, cosine), relevant).mean()
    assert mixed > reciprocal_ranks(bm25, relevant).mean() + 0.03
    assert mixed > reciprocal_ranks(cosine, relevant).mean() + 0.03


def test_too_few_answers_teach_nothing() -> None:
    bm25, cosine, relevant = made_lists(noise=1.0)
    relevant[20:] = False
    assert fit_hybrid(bm25, cosine, relevant) is None
    assert fit_final(bm25, cosine, relevant) is None


def test_final_scores_are_calibrated() -> None:
    hybrid, cosine, relevant = made_lists(noise=2.0)
    cross = 20 * cosine
    weights = fit_final(hybrid, cross, relevant)
    assert weights is not None
    chance = 1 / (1 + np.exp(-weights.scores(hybrid, cross)))
    assert chance.mean() == pytest.approx(relevant.mean(), abs=0.005)
    likely = chance > 0.5
    assert relevant[likely].mean() == pytest.approx(chance[likely].mean(), abs=0.08)
    unlikely = (chance > 0.05) & (chance < 0.3)
    assert relevant[unlikely].mean() == pytest.approx(chance[unlikely].mean(), abs=0.05)


def test_a_fusion_survives_its_file() -> None:
    with_cross = Fusion(HybridWeights(1.5), FinalWeights(5, 6, 7), {"hidden": 8})
    for fusion in (with_cross, Fusion(HybridWeights(1.5))):
        assert Fusion.of_bytes(fusion.to_bytes()) == fusion


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"{}",
        json.dumps({"hybrid": {"bm25": 1}, "final": None}).encode(),
        Fusion(HybridWeights(math.nan)).to_bytes(),
        Fusion(HybridWeights(math.inf)).to_bytes(),
        b'{"hybrid": {"tower": "x"}, "final": null, "cross": null}',
    ],
)
def test_a_broken_file_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"^fusion.json is broken .*train again$"):
        Fusion.of_bytes(content)
