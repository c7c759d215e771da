import itertools
import math

import numpy as np
import pytest
from scipy import stats

from two_tower.retriever.evaluation.significance import (
    PERMUTATIONS,
    bootstrap_intervals,
    compare,
    holm,
    randomisation_ps,
)


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    return bootstrap_intervals(values[:, None])[0]


def randomisation_p(differences: np.ndarray) -> float:
    return randomisation_ps(differences[:, None])[0]


def test_bootstrap_interval_is_close_to_the_normal_one() -> None:
    values = np.random.default_rng(1).binomial(1, 0.7, size=1000).astype(float)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.005)
    assert high == pytest.approx(values.mean() + half, abs=0.005)
    assert bootstrap_interval(values) == (low, high)


def test_randomisation_against_all_sign_flips() -> None:
    differences = np.array([0.5, -0.1, 0.3, 0.2, 0.0, 0.4, -0.2, 0.6, 0.1, 0.3])
    observed = abs(differences.sum())
    flips = [np.dot(s, differences) for s in itertools.product((1, -1), repeat=len(differences))]
    exact = np.mean([abs(total) >= observed - 1e-12 for total in flips])
    assert randomisation_p(differences) == pytest.approx(exact, abs=0.01)


def test_randomisation_agrees_with_the_t_test_on_many_queries() -> None:
    random = np.random.default_rng(3)
    for shift in (0.0, 0.02, 0.04):
        differences = random.normal(shift, 0.5, size=1500)
        expected = stats.ttest_1samp(differences, 0.0).pvalue
        assert randomisation_p(differences) == pytest.approx(expected, abs=0.015)


def test_equal_systems_and_far_systems() -> None:
    assert randomisation_p(np.zeros(50)) == 1.0
    assert randomisation_p(np.ones(50)) == 1 / (PERMUTATIONS + 1)


def test_false_alarms_are_as_rare_as_promised() -> None:
    random = np.random.default_rng(5)
    ps = [randomisation_p(random.normal(0, 1, size=30)) for _ in range(100)]
    assert sum(p < 0.05 for p in ps) <= 12  # 5 expected; more than 12 has a chance under 0.2%


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_comparisons_are_with_the_baseline_and_corrected_for_their_number() -> None:
    random = np.random.default_rng(9)
    base = random.random(200)
    systems = {
        "a": {"m": base + random.normal(0.03, 0.2, 200)},
        "base": {"m": base},
        "b": {"m": base},
    }
    found = compare(systems, baseline="base")
    assert list(found) == ["a", "b"]
    a = found["a"]["m"]
    assert a.difference == pytest.approx((systems["a"]["m"] - base).mean())
    assert a.interval[0] < a.difference < a.interval[1]
    assert a.p == randomisation_p(systems["a"]["m"] - base)
    assert a.p_holm == pytest.approx(2 * a.p)
    assert found["b"]["m"].p_holm == 1.0
    assert not found["b"]["m"].is_significant
