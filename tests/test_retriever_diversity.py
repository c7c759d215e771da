import itertools
import time

import numpy as np
import pytest

from two_tower.retriever.search.diversity import at_most_per_group, mmr
from two_tower.retriever.search.pipeline import Costs, Stopwatch


def unit(*angles: float) -> np.ndarray:
    radians = np.deg2rad(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def naive_mmr(scores: np.ndarray, vectors: np.ndarray, diversity: float, k: int) -> list[int]:
    low, high = scores.min(), scores.max()
    chosen: list[int] = []
    while len(chosen) < min(k, len(scores)):
        gains = {}
        for row in range(len(scores)):
            if row not in chosen:
                relevance = (scores[row] - low) / (high - low)
                nearest = max((vectors[row] @ vectors[c] for c in chosen), default=0.0)
                gains[row] = (1 - diversity) * relevance - diversity * nearest
        chosen.append(max(gains, key=lambda row: gains[row]))
    return chosen


def test_mmr_by_hand() -> None:
    # 0 and 1 point the same way, 2 across. Scaled scores 1, .9, 0 -> after 0:
    # row 1: .5*.9 - .5*1 = -.05; row 2: .5*0 - .5*0 = 0.
    scores, vectors = np.array([10.0, 9.0, 0.0]), unit(0, 0, 90)
    assert mmr(scores, vectors, diversity=0.5, k=3) == [0, 2, 1]
    assert mmr(scores, vectors, diversity=0.4, k=3) == [0, 1, 2]
    assert mmr(scores, vectors, diversity=0.0, k=2) == [0, 1]


def test_mmr_may_prefer_the_opposite() -> None:
    assert mmr(np.array([3.0, 2.0, 1.0]), unit(0, 90, 180), diversity=1.0, k=2) == [0, 2]


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.7, 1.0])
def test_mmr_is_the_naive_loop(diversity: float) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((40, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.sort(random.standard_normal(40))[::-1]
    assert mmr(scores, vectors, diversity=diversity, k=15) == naive_mmr(
        scores, vectors, diversity, 15
    )


def test_equal_scores_and_few_rows() -> None:
    assert sorted(mmr(np.ones(3), unit(0, 10, 20), diversity=0.5, k=9)) == [0, 1, 2]


def test_groups_keep_the_first_of_each_value() -> None:
    payloads = [{"a": 1}, {"a": 1}, {"b": 2}, {"a": "1"}, {"a": 1}, {}, {"a": None}, {"a": None}]
    assert at_most_per_group(payloads, "a", size=1) == [0, 2, 3, 5, 6]
    assert at_most_per_group(payloads, "a", size=2) == [0, 1, 2, 3, 5, 6, 7]


def test_costs_are_a_running_mean_that_skipping_wears_down() -> None:
    costs = Costs()
    assert costs.expect_ms("rerank") == 0.0
    costs.record("rerank", 10.0)
    assert costs.expect_ms("rerank") == 10.0
    costs.record("rerank", 20.0)
    assert costs.expect_ms("rerank") == pytest.approx(0.8 * 10 + 0.2 * 20)
    costs.forgive("rerank")
    assert costs.expect_ms("rerank") == pytest.approx(0.9 * 12)


def test_a_stage_is_paid_for_only_where_it_fits_with_what_must_follow() -> None:
    costs = Costs()
    costs.record("rerank", 500.0)
    costs.record("payload", 300.0)
    assert Stopwatch(costs, queries=1, budget_ms=None).affords("rerank")
    assert Stopwatch(costs, queries=1, budget_ms=5_000).affords("rerank")
    watch = Stopwatch(costs, queries=1, budget_ms=700)
    assert not watch.affords("rerank")
    assert watch.skipped == ["rerank"]
    tries = next(n for n in itertools.count() if watch.affords("rerank"))
    assert tries > 0  # it is tried again after a while


def test_a_stage_can_wait_for_others_to_fit_and_to_have_run() -> None:
    costs = Costs()
    for stage in ("rerank", "cross", "diversity"):
        costs.record(stage, 400.0)
    watch = Stopwatch(costs, queries=1, budget_ms=700)
    assert watch.affords("cross", after="rerank")
    assert not watch.affords("cross", before=["diversity"], after="rerank")
    assert watch.affords("diversity")
    assert watch.skipped == ["cross"]
    hurried = Stopwatch(costs, queries=1, budget_ms=300)
    costs.record("cross", 0.0)
    assert not hurried.affords("rerank")
    assert not hurried.affords("cross", after="rerank")
    assert hurried.skipped == ["rerank", "cross"]


def test_queries_searched_together_share_the_time() -> None:
    watch = Stopwatch(Costs(), queries=4, budget_ms=None)
    time.sleep(0.02)
    watch.lap("encode")
    assert 5.0 <= watch.laps_ms["encode"] < 20.0
