"""The part of chance: bootstrap intervals, paired tests, correction for many tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from two_tower.models.vectors import Float64Array
from two_tower.retriever.evaluation.measures import Values

RESAMPLES = 2000

PERMUTATIONS = 10_000

ALPHA = 0.05

BLOCK = 100

ROUNDING = 1e-12  # equal sums of the same numbers in another order differ by less


@dataclass(frozen=True)
class Comparison:
    """One system against the baseline, by one measure, over the same queries.

    Attributes:
        difference: mean of system minus baseline.
        interval: [low, high], its 95% bootstrap interval.
        p: two-sided, of the paired randomisation test.
        p_holm: `p` corrected for all systems that were compared by this measure.
        judge_error: how far a model that judged may have led the difference astray; the interval
            is longer by it at both ends.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float
    judge_error: float = 0.0

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p is below 5%, and the difference more than the judge's error."""
        return self.p_holm < ALPHA and abs(self.difference) >= self.judge_error


def bootstrap_intervals(columns: Float64Array) -> list[tuple[float, float]]:
    """Return the 95% percentile-bootstrap interval of the mean of each column.

    Sakai, "Evaluating evaluation metrics based on the bootstrap", SIGIR 2006.

    Args:
        columns: (queries, m); all columns are resampled alike.
    """
    rng = np.random.default_rng(0)
    size = len(columns)
    means = []
    for _ in range(0, RESAMPLES, BLOCK):
        counts = [np.bincount(rng.integers(0, size, size), minlength=size) for _ in range(BLOCK)]
        means.append(np.array(counts) @ columns / size)  # (BLOCK, m)
    lows, highs = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0).tolist()
    return list(zip(lows, highs, strict=True))


def randomisation_ps(columns: Float64Array) -> list[float]:
    """Return the two-sided p of the paired randomisation test for each column.

    Under the null hypothesis each difference could as well have the other sign; p is the share of
    random signs whose sum is at least as far from 0, the observed signs counted among them.
    Smucker, Allan and Carterette, "A comparison of statistical significance tests for information
    retrieval evaluation", CIKM 2007.

    Args:
        columns: (queries, m) differences between two systems each; all get the same signs.
    """
    observed = np.abs(columns.sum(axis=0)) - ROUNDING
    rng = np.random.default_rng(0)
    extreme = np.ones(columns.shape[1])
    for _ in range(0, PERMUTATIONS, BLOCK):
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(BLOCK, len(columns)), dtype=np.int8)
        extreme += (np.abs(signs @ columns) >= observed).sum(axis=0)
    ps: list[float] = (extreme / (PERMUTATIONS + 1)).tolist()
    return ps


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number, in their order.

    The i-th smallest of m, from 0, is multiplied by m - i, and none falls below a smaller one's.
    Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    corrected = [0.0] * len(ps)
    highest = 0.0
    for place, row in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[row]))
        corrected[row] = highest
    return corrected


def compare(systems: Mapping[str, Values], *, baseline: str) -> dict[str, dict[str, Comparison]]:
    """Return system -> measure -> its comparison with the baseline, which is not among them.

    All values are over the same queries in the same order.
    """
    others = [name for name in systems if name != baseline]
    comparisons: dict[str, dict[str, Comparison]] = {name: {} for name in others}
    for measure, base in systems[baseline].items() if others else ():
        columns = np.stack([systems[name][measure] - base for name in others], axis=1)
        ps = randomisation_ps(columns)
        means, intervals = columns.mean(axis=0).tolist(), bootstrap_intervals(columns)
        rows = zip(others, means, intervals, ps, holm(ps), strict=True)
        for name, mean, interval, p, p_holm in rows:
            comparisons[name][measure] = Comparison(mean, interval, p, p_holm)
    return comparisons
