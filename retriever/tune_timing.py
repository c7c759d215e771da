"""Times that can be compared, though the machine has other things to do as well.

Settings are timed in groups, a group in rounds. In a round every setting answers the same queries
one by one, and so does the default search; a setting's time is a multiple of the default's of that
round, and the median over the rounds counts. What slows the machine for a while slows both.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.console import progress

ROUNDS = 5
TIMED_QUERIES = 80
WARM_UP = 3
STUDENT_95 = 2.776  # of a mean of `ROUNDS`
MEDIAN_FACTOR = 1.2533  # how much further a median scatters than a mean

Floats = npt.NDArray[np.float64]
Search = Callable[[str], object]
"""Answers one query."""


class Pace(NamedTuple):
    """A percentile of a setting's times.

    Attributes:
        ms: milliseconds.
        noise: half of its 95% interval, as a share of it; 0 for the default search, by definition.
    """

    ms: float
    noise: float


class Times(NamedTuple):
    """Of one setting, or of the default search."""

    p50: Pace
    p95: Pace

    def scaled(self, own: "Times", usual: "Times") -> "Times":
        """Return these times as if the default search had taken `usual` instead of `own`."""
        factors = (new.ms / old.ms for new, old in zip(usual, own, strict=True))
        return Times(*(p._replace(ms=p.ms * f) for p, f in zip(self, factors, strict=True)))


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
    both = [_paces(np.percentile(times_ms, percent, axis=2)) for percent in (50, 95)]
    return [Times(*pair) for pair in zip(*both, strict=True)]


def usual(groups: Sequence[Times]) -> Times:
    """Return the median of what the default search took beside each group."""
    middles = [float(np.median([pace.ms for pace in paces])) for paces in zip(*groups, strict=True)]
    return Times(*(Pace(ms, 0.0) for ms in middles))


def _paces(percentile_ms: Floats) -> list[Pace]:
    """Return the pace of each row of (searches, rounds)."""
    default_ms = float(np.median(percentile_ms[0]))
    found = []
    for multiples in percentile_ms / percentile_ms[0]:
        middle = float(np.median(multiples))
        error = MEDIAN_FACTOR * float(multiples.std(ddof=1)) / np.sqrt(len(multiples))
        found.append(Pace(middle * default_ms, float(STUDENT_95 * error / middle)))
    return found
