"""Which of measured settings is kept: hand-made rows with answers that arithmetic gives."""

import math
from dataclasses import replace

import numpy as np
import pytest

from retriever.goals import OF_EXACT, RECALLS, parse_goal
from retriever.options import CollectionOptions
from retriever.tune_choice import choose_fusion, front, recommend, separate
from retriever.tune_grid import (
    ALONE,
    BOTH,
    Setting,
    cluster_settings,
    ef_settings,
    fusion_settings,
    pca_settings,
    quantization_options,
    quantization_settings,
)
from retriever.tune_measure import Row

PLAIN = CollectionOptions()


def row(label: str, found: list[float], *, p95: float = 1.0, sweep: str = "candidates") -> Row:
    """A search by both legs with one recall@10 per query."""
    values = {name + of: np.array(found) for of in ("", OF_EXACT) for name in RECALLS}
    return Row(Setting(sweep, label, PLAIN, BOTH), values, p95 / 2, p95, 1.0, 1.0, 32.0)


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
    found = separate([row("b", next_best), row("a", good), row("same", good)])
    assert found is not None
    assert (found.best.setting.label, found.runner_up.setting.label) == ("a", "b")
    # the differences are 0 1 0 0: mean 1/4, standard deviation 1/2, of four
    half = 1.96 * 0.5 / math.sqrt(4)
    assert found.difference == pytest.approx(0.25)
    assert found.half_width == pytest.approx(half)
    assert found.needed == math.ceil(4 * (half / 0.25) ** 2)
    assert not found.is_settled
    assert (found.alike, found.among) == (2, 2)


def test_settings_that_chance_cannot_explain_are_settled() -> None:
    found = separate([row("good", [1.0] * 99 + [0.0]), row("bad", [0.0] * 100)])
    assert found is not None
    assert found.is_settled
    assert found.alike == 0
    assert separate([row("a", [1.0, 0.0]), row("b", [1.0, 0.0])]) is None


def test_another_fusion_must_win_by_more_than_chance() -> None:
    queries = 100
    default = row("tower weight 15", [0.5] * queries, sweep="fusion")
    lucky = row("tower weight 20", [0.5] * (queries - 1) + [1.0], sweep="fusion")
    better = row("tower weight 30", [0.6] * queries, sweep="fusion")
    weighted = replace(BOTH, tower_weight=30.0)
    better = Row(replace(better.setting, search=weighted), better.values, 1, 1, 1, 1, 32)
    assert choose_fusion([default, lucky]) == BOTH
    assert choose_fusion([default, lucky, better]) == weighted
    assert choose_fusion([]) == BOTH


def test_a_search_without_bm25_is_never_recommended() -> None:
    alone = Row(Setting("ef", "exact", PLAIN, ALONE), row("", [1.0]).values, 0.1, 0.1, 1, 1, 32)
    whole = [row("fast", [0.98], p95=3), row("good", [0.99], p95=5), row("best", [1.0], p95=9)]
    goal = parse_goal("recall@10>=0.99 of exact, min p95")
    assert recommend([alone, *whole], goal).setting.label == "good"
    as_fast = row("measured later", [1.0], p95=4.9)
    assert recommend([*whole, as_fast], goal).setting.label == "good"
    faster = row("measured later", [1.0], p95=4.7)
    assert recommend([*whole, faster], goal).setting.label == "measured later"
    nearest = parse_goal("p95<=1, max recall@10")
    assert recommend([alone, *whole], nearest).setting.label == "fast"


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
