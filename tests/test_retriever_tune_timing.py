"""Times that a slow machine does not decide: made-up milliseconds with answers by arithmetic."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from two_tower.retriever.tuning.measure import (
    ROUNDS,
    TIMED_PER_ROUND,
    WARM_UP_PER_ROUND,
    Latency,
    Percentile,
    summarise,
    time_rounds,
)

QUERIES = np.linspace(1.0, 2.0, 101)  # ms of each query; p50 is 1.5, p95 is 1.95
SLOWDOWN = np.array([1.0, 4.0, 1.0, 1.0, 2.0])  # of each round, whoever is timed in it


def test_what_slows_a_round_for_all_slows_no_setting() -> None:
    twice = np.stack([QUERIES, 2 * QUERIES])[:, None, :] * SLOWDOWN[None, :, None]
    default, setting = summarise(twice)
    assert [each.ms for each in default] == pytest.approx([1.5, 1.95])
    assert [each.ms for each in setting] == pytest.approx([3.0, 3.9])
    assert [each.noise for each in (*default, *setting)] == pytest.approx([0.0] * 4)


def test_one_bad_round_of_a_setting_does_not_move_it() -> None:
    times = np.ones((2, ROUNDS, 20))
    times[1, 2] = 9.0
    _, setting = summarise(times)
    assert setting == Latency(Percentile(1.0, 0.0), Percentile(1.0, 0.0))


def test_what_differs_from_round_to_round_is_noise() -> None:
    times = np.ones((2, ROUNDS, 20))
    times[1] = np.array([10, 12, 11, 14, 13])[:, None]  # median 12; deviations 2 0 1 2 1
    _, setting = summarise(times)
    assert setting.p95.ms == 12
    assert setting.p95.noise == pytest.approx(2.776 * 1.2533 * 1.4826 * 1 / np.sqrt(5) / 12)


def test_groups_timed_in_a_slow_and_a_fast_hour_are_brought_to_one_level() -> None:
    """The same search, half as slow again as the default, beside a default of 1 ms and of 3 ms."""
    one = Latency(Percentile(1.5, 0.1), Percentile(3.0, 0.2)).scaled(2.0 / 1.0)
    other = Latency(Percentile(4.5, 0.1), Percentile(9.0, 0.2)).scaled(2.0 / 3.0)
    assert one == other == Latency(Percentile(3.0, 0.1), Percentile(6.0, 0.2))


def test_every_search_answers_the_same_queries_in_every_round_and_remembers_none() -> None:
    made: list[tuple[str, list[str]]] = []

    def maker(name: str, seconds: float) -> Callable[[], Callable[[str], None]]:
        def make() -> Callable[[str], None]:
            asked: list[str] = []
            made.append((name, asked))

            def search(query: str) -> None:
                asked.append(query)
                time.sleep(seconds)

            return search

        return make

    queries = [f"q{number}" for number in range(TIMED_PER_ROUND + 20)]
    times = time_rounds([maker("a", 0.0), maker("b", 0.0002)], queries, label="Timing")
    assert times.shape == (2, ROUNDS, TIMED_PER_ROUND)
    assert (times[1] >= 0.2).all()
    expected = queries[-WARM_UP_PER_ROUND:] + queries[:TIMED_PER_ROUND]
    assert [asked for _, asked in made] == [expected] * 2 * ROUNDS
    assert [name for name, _ in made[:4]] == ["a", "b", "b", "a"]
