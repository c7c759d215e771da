import itertools
import json
import math

import numpy as np
import pytest

from two_tower.models.bundle.fusion import (
    FinalWeights,
    Fusion,
    HybridWeights,
    cautious_weight,
    fit_final,
    fit_hybrid,
    reciprocal_ranks,
)
from two_tower.models.errors import BundleError

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
    weights = FinalWeights(0.5, 2.0, 3.0, -1.0)
    worth = weights.worth(hybrid, np.array([1.0, -1.0]))
    assert worth.tolist() == [0.5 * 11 + 2, 0.5 * 7 - 2]
    first = math.exp(7.5) / (math.exp(3) + math.exp(1.5))
    second = math.exp(1.5) / (math.exp(3) + math.exp(7.5))
    final = weights.log_odds(worth)
    assert final.tolist() == pytest.approx([math.log(first) - 1, math.log(second) - 1])
    both = weights.log_odds(np.stack([worth, worth[::-1]]))
    assert both.tolist() == [final.tolist(), final[::-1].tolist()]  # each row by itself


def test_chances_of_a_list_and_of_nothing_add_up_to_one() -> None:
    worth = np.random.default_rng(0).normal(0.0, 4.0, 30)
    final = FinalWeights(1.0, 1.0, 2.0, 0.0).log_odds(worth)
    nothing = math.exp(2) / (math.exp(2) + np.exp(worth).sum())
    assert (1 / (1 + np.exp(-final))).sum() + nothing == pytest.approx(1.0)
    assert np.argsort(final).tolist() == np.argsort(worth).tolist()


@pytest.mark.parametrize("worth", [[5000.0, -5000.0], [7.0], [-900.0, -900.0]])
def test_log_odds_of_extreme_scores_are_finite(worth: list[float]) -> None:
    found = FinalWeights(1.0, 1.0, -800.0, 0.0).log_odds(np.array(worth))
    assert np.isfinite(found).all()


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


def calibrated(hybrid: np.ndarray, cross: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    weights = fit_final(hybrid, cross, relevant)
    assert weights is not None
    return 1 / (1 + np.exp(-weights.log_odds(weights.worth(hybrid, cross))))


def assert_calibrated(chance: np.ndarray, relevant: np.ndarray) -> None:
    assert chance.mean() == pytest.approx(relevant.mean(), abs=0.005)
    edges = (0.0, 0.05, 0.3, 0.5, 0.8, 1.0)
    for low, high in itertools.pairwise(edges):
        inside = (chance >= low) & (chance < high)
        error = 3 * math.sqrt(0.25 / max(1, inside.sum()))
        assert relevant[inside].mean() == pytest.approx(chance[inside].mean(), abs=error)
    first = chance.argmax(axis=1)[:, None]  # the hit that is shown on top, above all
    shown, right = (np.take_along_axis(a, first, axis=1).mean() for a in (chance, relevant))
    assert shown == pytest.approx(right, abs=0.05)


def test_final_scores_are_calibrated() -> None:
    hybrid, cosine, relevant = made_lists(noise=2.0)
    hybrid += np.random.default_rng(1).normal(0, 30, (QUERIES, 1))  # comparable within a query
    assert_calibrated(calibrated(hybrid, 20 * cosine, relevant), relevant)


def test_final_scores_know_of_queries_without_an_answer() -> None:
    hybrid, cosine, relevant = made_lists(noise=2.0)
    relevant[::3] = False
    hybrid[::3] -= 12.0  # what says so
    chance = calibrated(hybrid, 20 * cosine, relevant)
    assert_calibrated(chance, relevant)
    assert chance[::3].sum(axis=1).mean() < 0.5 * chance[1::3].sum(axis=1).mean()


def test_final_scores_allow_for_several_answers() -> None:
    hybrid, cosine, _ = made_lists(noise=0.0)
    total = hybrid + 20 * cosine
    luck = np.random.default_rng(2).random(total.shape)
    relevant = luck < 1 / (1 + np.exp(-(total - np.quantile(total, 0.7))))
    assert relevant.sum(axis=1).mean() > 2
    chance = calibrated(hybrid, 20 * cosine, relevant)
    assert chance.mean() == pytest.approx(relevant.mean(), abs=0.02)


def test_a_fusion_survives_its_file() -> None:
    with_cross = Fusion(HybridWeights(1.5), FinalWeights(5, 6, 7, 8), {"hidden": 8})
    for fusion in (with_cross, Fusion(HybridWeights(1.5))):
        assert Fusion.of_bytes(fusion.to_bytes()) == fusion


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"{}",
        json.dumps({"hybrid": {"bm25": 1}, "final": None}).encode(),
        b'{"hybrid": {"tower": 1}, "final": {"hybrid": 1, "cross": 1, "offset": 1}, "cross": {}}',
        b'{"hybrid": {"tower": NaN}, "final": null, "cross": null}',
        b'{"hybrid": {"tower": Infinity}, "final": null, "cross": null}',
        b'{"hybrid": {"tower": "x"}, "final": null, "cross": null}',
    ],
)
def test_a_broken_file_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"^fusion.json is broken .*train again$"):
        Fusion.of_bytes(content)
