"""Times that can be compared, though the machine has other things to do as well.

Settings are timed in groups, a group in rounds. In a round every setting answers the same queries
one by one, and so does the default search; a setting's times are multiples of the default's median
of that round, and their median over the rounds counts. What slows the machine slows both.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from two_tower.models.console import progress

ROUNDS = 5
TIMED_QUERIES = 80
WARM_UP = 3
STUDENT_95 = 2.776  # of a mean of `ROUNDS`
MEDIAN_FACTOR = 1.2533  # how much further a median scatters than a mean
DEVIATION_FACTOR = 1.4826  # a standard deviation is so many median absolute deviations

Floats = npt.NDArray[np.float64]
Search = Callable[[str], object]
"""Answers one query."""


class Pace(NamedTuple):
    """A percentile of a setting's times.

    Attributes:
        ms: milliseconds.
        noise: about half of its 95% interval, as a share of it.
    """

    ms: float
    noise: float


class Times(NamedTuple):
    """Of one setting, or of the default search."""

    p50: Pace
    p95: Pace

    def scaled(self, factor: float) -> "Times":
        """Return these times as they would be on a machine slower by `factor`."""
        return Times(*(pace._replace(ms=pace.ms * factor) for pace in self))


def time_rounds(
    fresh: Sequence[Callable[[], Search]], queries: Sequence[str], *, label: str
) -> Floats:
    """Return the milliseconds of every search, round and query, under a progress bar.

    Args:
        fresh: makes a search that remembers no query, the default one first.
        queries: some are asked before, to warm up.
        label: of the progress bar.
    """
    timed = queries[:TIMED_QUERIES]
    times_ms = np.zeros((len(fresh), ROUNDS, len(timed)))
    for turn in progress(range(ROUNDS), label=label):
        for place in np.roll(range(len(fresh)), turn).tolist():  # none always follows the same one
            search = fresh[place]()
            for query in queries[-WARM_UP:]:
                search(query)
            for number, query in enumerate(timed):
                start = time.perf_counter()
                search(query)
                times_ms[place, turn, number] = (time.perf_counter() - start) * 1000.0
    return times_ms


def summarise(times_ms: Floats) -> list[Times]:
    """Return the percentiles of each search.

    Args:
        times_ms: (searches, rounds, queries), the default search first.
    """
    speeds = np.median(times_ms[0], axis=1)  # (rounds,)
    level_ms = float(np.median(speeds))
    percentiles = np.percentile(times_ms, [50, 95], axis=2) / speeds  # (2, searches, rounds)
    return [
        Times(*(_pace(multiples, level_ms) for multiples in percentiles[:, search]))
        for search in range(len(times_ms))
    ]


def _pace(multiples: Floats, level_ms: float) -> Pace:
    """Return the median over rounds; one bad round of five makes it no worse, and no noisier."""
    middle = float(np.median(multiples))
    deviation = DEVIATION_FACTOR * float(np.median(np.abs(multiples - middle)))
    error = MEDIAN_FACTOR * deviation / np.sqrt(len(multiples))
    return Pace(middle * level_ms, float(STUDENT_95 * error / middle))
