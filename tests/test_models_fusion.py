import json
import math

import numpy as np
import pytest

from models.errors import BundleError
from models.fusion import FinalWeights, Fusion, HybridWeights, fit_final, fit_hybrid

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


def test_a_hybrid_score_is_what_its_formula_says() -> None:
    weights = HybridWeights(bm25=0.5, bm25_slope=0.1, cosine=6.0, cosine_slope=-1.0)
    found = weights.scores(np.array([9.0, 3.0]), np.array([0.2, 0.8]))
    s = math.log(10.0)
    lexical, tower = 0.5 + 0.1 * s, 6.0 - s
    assert found == pytest.approx([lexical * 9 + tower * 0.2, lexical * 3 + tower * 0.8])


def test_the_tower_is_never_worth_less_than_nothing() -> None:
    weights = HybridWeights(bm25=1.0, bm25_slope=0.0, cosine=6.0, cosine_slope=-2.0)
    bm25 = np.array([100.0, 50.0])
    assert weights.scores(bm25, np.array([0.1, 0.9])) == pytest.approx(bm25)


def test_many_queries_score_like_each_alone() -> None:
    weights = HybridWeights(0.5, 0.1, 6.0, -1.0)
    bm25, cosine, _ = made_lists(noise=0)
    together = weights.scores(bm25, cosine)
    alone = [weights.scores(*pair) for pair in zip(bm25, cosine, strict=True)]
    assert together == pytest.approx(np.stack(alone))


def test_an_empty_list_has_no_scores() -> None:
    empty = np.zeros(0)
    assert HybridWeights(1, 0, 1, 0).scores(empty, empty).shape == (0,)


def test_fitting_finds_how_the_answers_were_drawn() -> None:
    bm25, cosine, relevant = made_lists(noise=2.0)
    weights = fit_hybrid(bm25, cosine, relevant, seed=0)
    assert weights is not None
    s = np.log1p(bm25.max(axis=1)).mean()
    lexical = weights.bm25 + weights.bm25_slope * s
    tower = weights.cosine + weights.cosine_slope * s
    assert tower / lexical == pytest.approx(20, rel=0.3)
    scores = weights.scores(bm25, cosine)
    hit = relevant[np.arange(QUERIES), scores.argmax(axis=1)].mean()
    assert hit > relevant[np.arange(QUERIES), bm25.argmax(axis=1)].mean() + 0.05
    assert hit > relevant[np.arange(QUERIES), cosine.argmax(axis=1)].mean() + 0.05


def test_fitting_twice_gives_the_same_numbers() -> None:
    lists = made_lists(noise=2.0)
    assert fit_hybrid(*lists, seed=3) == fit_hybrid(*lists, seed=3)


def test_too_few_answers_teach_nothing() -> None:
    bm25, cosine, relevant = made_lists(noise=1.0)
    relevant[20:] = False
    assert fit_hybrid(bm25, cosine, relevant, seed=0) is None
    assert fit_final(bm25, cosine, relevant, seed=0) is None


def test_final_scores_are_calibrated() -> None:
    hybrid, cross, relevant = made_lists(noise=2.0)
    weights = fit_final(hybrid, cross, relevant, seed=0)
    assert weights is not None
    chance = 1 / (1 + np.exp(-weights.scores(hybrid, cross)))
    assert chance.mean() == pytest.approx(relevant.mean(), abs=0.005)
    likely = chance > 0.5
    assert relevant[likely].mean() == pytest.approx(chance[likely].mean(), abs=0.08)
    unlikely = (chance > 0.05) & (chance < 0.3)
    assert relevant[unlikely].mean() == pytest.approx(chance[unlikely].mean(), abs=0.05)


def test_a_fusion_survives_its_file() -> None:
    with_cross = Fusion(HybridWeights(1, 2, 3, 4), FinalWeights(5, 6, 7), {"hidden": 8})
    for fusion in (with_cross, Fusion(HybridWeights(1, 2, 3, 4))):
        assert Fusion.of_bytes(fusion.to_bytes()) == fusion


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"{}",
        json.dumps({"hybrid": {"bm25": 1}, "final": None}).encode(),
        Fusion(HybridWeights(math.nan, 0, 1, 0)).to_bytes(),
        Fusion(HybridWeights(math.inf, 0, 1, 0)).to_bytes(),
        b'{"hybrid": {"bm25": "x", "bm25_slope": 0, "cosine": 1, "cosine_slope": 0}}',
    ],
)
def test_a_broken_file_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"^fusion.json is broken .*train again$"):
        Fusion.of_bytes(content)
