"""Which of measured settings is kept: hand-made rows with answers that arithmetic gives."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.search.settings import AnnSettings
from two_tower.retriever.tuning.choice import (
    choose_fusion,
    count_changes,
    front,
    recommend,
)
from two_tower.retriever.tuning.goals import OF_EXACT, RECALLS, parse_goal
from two_tower.retriever.tuning.grid import (
    DENSE_ONLY,
    HYBRID,
    Setting,
    cluster_settings,
    ef_settings,
    fusion_settings,
    pca_settings,
    quantization_options,
    quantization_settings,
)
from two_tower.retriever.tuning.measure import Latency, Percentile, Row
from two_tower.retriever.tuning.report import doubts, ties, verdict
from two_tower.retriever.tuning.tune import Tuning

PLAIN = CollectionOptions()


def row(
    label: str,
    found: list[float],
    *,
    p95: float = 1.0,
    noise: float = 0.0,
    memory: float = 1.0,
    sweep: str = "candidates",
) -> Row:
    """A search by both legs with one recall@10 per query."""
    values = {name + of: np.array(found) for of in ("", OF_EXACT) for name in RECALLS}
    latency = Latency(Percentile(p95 / 2, noise), Percentile(p95, noise))
    return Row(Setting(sweep, label, PLAIN, HYBRID), values, latency, memory, memory, 32.0)


def searching(measured: Row, **changes: Any) -> Row:
    setting = replace(measured.setting, search=replace(HYBRID, **changes))
    return replace(measured, setting=setting)


def tuning(rows: list[Row], goal: str) -> Tuning:
    wanted = parse_goal(goal)
    queries = len(rows[0].values["recall@1"])
    return Tuning("c", 1000, queries, wanted, tuple(rows), *recommend(rows, wanted))


def test_the_front_has_what_no_other_beats_in_both() -> None:
    rows = [
        row("slow and good", [0.9], p95=9),
        row("slow and poor", [0.4], p95=8),
        row("fast and fair", [0.5], p95=2),
        row("as fast and poorer", [0.3], p95=2),
        row("fastest", [0.1], p95=1),
    ]
    best = [each.setting.label for each in front(rows, "recall@10")]
    assert best == ["fastest", "fast and fair", "slow and good"]


def test_the_number_of_queries_that_would_separate() -> None:
    good, next_best = [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]
    rows = [row("b", next_best), row("a", good), row("same", good)]
    (doubt,) = doubts(tuning(rows, "max recall@10"))
    # the differences are 0 1 0 0: mean 1/4, standard deviation 1/2, of four
    half = 1.96 * 0.5 / math.sqrt(4)
    assert f"of the best two (a, b) differs by 0.2500 ± {half:.4f}" in doubt
    assert "2 of 2 others cannot be told from the best" in doubt
    assert f"about {math.ceil(4 * (half / 0.25) ** 2)} queries would separate these two" in doubt


def test_settings_that_chance_cannot_explain_are_settled() -> None:
    rows = [row("good", [1.0] * 99 + [0.0]), row("bad", [0.0] * 100)]
    assert doubts(tuning(rows, "max recall@10")) == []
    alike = [row("a", [1.0, 0.0]), row("b", [1.0, 0.0])]
    (doubt,) = doubts(tuning(alike, "max recall@10"))
    assert "recall@10 of all 2 searches by both legs is 0.5000" in doubt


def test_another_fusion_must_win_by_more_than_chance() -> None:
    queries = 100
    default = row("tower weight 15", [0.5] * queries, sweep="fusion")
    lucky = row("tower weight 20", [0.5] * (queries - 1) + [1.0], sweep="fusion")
    better = row("tower weight 30", [0.6] * queries, sweep="fusion")
    weighted = replace(HYBRID, tower_weight=30.0)
    better = searching(better, tower_weight=30.0)
    assert choose_fusion([default, lucky]) == HYBRID
    assert choose_fusion([default, lucky, better]) == weighted
    assert choose_fusion([]) == HYBRID


def test_a_search_without_bm25_is_never_recommended() -> None:
    alone = row("exact", [1.0], p95=0.1, sweep="ef")
    alone = replace(alone, setting=replace(alone.setting, search=DENSE_ONLY))
    whole = [row("fast", [0.98], p95=3), row("good", [0.99], p95=5), row("best", [1.0], p95=9)]
    goal = parse_goal("recall@10>=0.99 of exact, min p95")
    assert recommend([alone, *whole], goal)[0].setting.label == "good"
    nearest = parse_goal("p95<=1, max recall@10")
    assert recommend([alone, *whole], nearest)[0].setting.label == "fast"


@pytest.mark.parametrize(
    ("noise", "kept", "tied"),
    [(0.0, "fastest", []), (0.05, "plain", ["fastest", "large"]), (0.5, "plain", None)],
)
def test_of_settings_that_noise_cannot_tell_apart_the_plainest_in_least_memory_is_kept(
    noise: float, kept: str, tied: list[str] | None
) -> None:
    """With 5% each, times may differ by the root of twice that squared, 7%, without meaning it."""
    rows = [
        searching(row("fastest", [1.0] * 9, p95=10.0, noise=noise), tower_weight=20.0),
        row("large", [1.0] * 9, p95=10.6, noise=noise, memory=2.0),
        row("plain", [1.0] * 9, p95=10.65, noise=noise),
        row("slow", [1.0] * 9, p95=11.5, noise=noise, memory=2.0),
    ]
    for order in (rows, rows[::-1]):
        best, others = recommend(order, parse_goal("recall@10>=0.99 of exact, min p95"))
        assert best.setting.label == kept
        labels = {each.setting.label for each in others}
        assert labels == ({"fastest", "large", "slow"} if tied is None else {*tied})


def test_rows_that_meet_the_goal_and_are_no_candidates_are_named() -> None:
    alone = searching(row("dense alone", [0.9, 0.9], p95=1.0, sweep="ef"), legs={"dense": 100})
    rows = [row("both", [0.9, 0.9], p95=9.0), alone]
    said = verdict(tuning(rows, "recall@10 >= 0.8, p95 <= 2, min p95"))
    assert said.startswith("no search by both legs with the chosen fusion meets")
    assert said.endswith("another fusion: ef: dense alone")
    nobody = verdict(tuning(rows, "recall@10 >= 0.95, p95 <= 2, min p95"))
    assert nobody.startswith("no setting meets")


def test_a_tie_stays_within_the_goal() -> None:
    rows = [row("good", [1.0] * 9, p95=10, memory=2.0), row("poor", [0.5] * 9, p95=10)]
    best, others = recommend(rows, parse_goal("recall@10>=0.99 of exact, min p95"))
    assert (best.setting.label, others) == ("good", ())


def test_a_recall_that_is_higher_by_chance_does_not_win() -> None:
    """One query of a hundred differs: 0.01 ± 1.96 * 0.1 / sqrt(100)."""
    lucky = searching(row("lucky", [1.0] * 50 + [0.0] * 50), tower_weight=20.0)
    plain = row("plain", [1.0] * 49 + [0.0] * 51)
    poor = row("poor", [1.0] * 20 + [0.0] * 80)
    best, others = recommend([lucky, plain, poor], parse_goal("max recall@10"))
    assert best is plain
    assert others == (lucky,)
    said = ties(tuning([lucky, plain, poor], "max recall@10"))
    assert said is not None
    assert "Tied with it in recall@10" in said
    assert "lucky (0.5000 ± 0.0985)" in said
    assert ties(tuning([plain, poor], "max recall@10")) is None


def test_computed_memory_has_no_noise() -> None:
    small, smaller = row("small", [1.0], memory=1.01), row("smaller", [1.0], memory=1.0)
    assert recommend([small, smaller], parse_goal("min memory")) == (smaller, ())


def test_what_too_few_queries_leave_open_is_said() -> None:
    alike = tuning([row("a", [1.0, 0.0]), row("b", [0.0, 1.0])], "max recall@10")
    (doubt,) = doubts(alike)
    assert doubt == (
        "too few queries to separate the settings: recall@10 of all 2 searches by both legs is "
        "0.5000 on these 2"
    )
    near = [1.0] * 100 + [0.0]
    (doubt,) = doubts(tuning([row("a", near)], "recall@10>=0.99 of exact, min p95"))
    half = 1.96 * np.std(near, ddof=1) / math.sqrt(101)
    assert f"sure of 0.99 for recall@10 of exact, which is 0.9901 ± {half:.4f}" in doubt
    needed = math.ceil(101 * (half / (100 / 101 - 0.99)) ** 2)
    assert f"about {needed:,} would tell" in doubt
    assert doubts(tuning([row("a", near)], "recall@10>=0.5 of exact, min p95")) == []


def test_a_time_measured_on_a_busy_machine_is_doubted() -> None:
    def said(goal: str) -> list[str]:
        return doubts(tuning([row("a", [1.0, 1.0], p95=6.0, noise=0.5)], goal))

    assert said("min p95") == [
        "p95 of the recommended setting is 6.0 ms ± 50%: the machine was busy; measure again when "
        "it is not"
    ]
    assert len(said("p50<=9 ms, max recall@10")) == 1
    assert said("max recall@10") == []


def test_changes_are_counted_field_by_field() -> None:
    assert count_changes(HYBRID, HYBRID) == 0
    ann = AnnSettings(ef=64, oversampling=2.0)
    assert count_changes(replace(HYBRID, legs={"bm25": 9}, ann=ann), HYBRID) == 3


def test_every_setting_of_the_grid_can_be_asked_and_has_a_name_of_its_own() -> None:
    options = quantization_options(PLAIN, points=94_590, dim=256)
    assert {each.hnsw.above_kb for each in options.values()} == {94_590 * 256 * 4 // 1000 // 16}
    settings = [
        *ef_settings(PLAIN),
        *pca_settings(PLAIN, (64, 32)),
        *fusion_settings(PLAIN, has_learnt=True),
        *cluster_settings(replace(PLAIN, clusters=16)),
        *(each for name, o in options.items() for each in quantization_settings(name, o)),
    ]
    labels = [each.label for each in settings]
    assert len(labels) == len(set(labels)) == 8 + 8 + 7 + 4 + 16
    widths = {"dense": 256, "pca_64": 64, "pca_32": 32}
    bits = {each.label: each.bits(widths) for each in settings}
    assert bits["exact"] == 256 * 32
    assert bits["pca_64, 200 rescored"] == bits["pca_64 alone"] == 64 * 32
    assert bits["int8, x2 rescored"] == 256 * 8
    assert bits["1.5 bits, scores of the copies"] == 256 * 1.5
