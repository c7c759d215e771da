"""Learnt fusion: how much the scores of the stages are worth beside each other, as plain numbers.

    hybrid  = bm25 + tower * cosine
    worth   = a * (hybrid + cross * logit)        where a cross-scorer read the candidates
    final_i = worth_i - log(e^nothing + sum of e^worth_j over the others j) + offset

`tower` and `cross` are chosen on labelled train queries by the reciprocal rank of the answer, not
at the very best but as small as they can be without being worse than that by more than one standard
error (the rule of Breiman et al., "Classification and Regression Trees", 1984): curves are flat at
their top, and what leans less on what was learnt here holds better on other texts. The other three
numbers calibrate: 1 / (1 + exp(-final)) estimates the chance that the passage answers. It is what
the passage is worth beside its rivals and beside `nothing`, that no passage answers (Luce,
"Individual Choice Behavior", 1959), for scores can be compared within one query only: a score that
stands alone is a likelier answer than the same score in a crowd. `offset` is for queries that have
several answers.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from two_tower.models.config import configuration, from_mapping
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.vectors import AnyFloatArray, BoolArray, Float64Array, FloatArray

TOWER_WEIGHT = 15.0
"""How many points of BM25 a cosine of 1 is worth before anything is learnt."""

FEWEST_QUERIES = 30
"""Fewer labelled queries than this say nothing about weights."""

SMALLEST_SPREAD = 1e-6

TOWER_GRID = np.geomspace(1.0, 1000.0, 61)

CROSS_GRID = np.geomspace(0.1, 30.0, 41)

Finite = Annotated[float, Field(allow_inf_nan=False)]


@configuration("fusion")
class FusionConfig:
    """How the fusion is learnt.

    Attributes:
        folds: parts of the train queries, each scored by towers that learn without it; 0 leaves
            the learnt fusion, and with it the cross-scorer, out.
    """

    folds: int = 2

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"fusion.folds is {self.folds}, expected 0, or 2 or more")


@configuration()
class HybridWeights:
    """hybrid = BM25 + `tower` * cosine + `late` * (late interaction - `late_mean`).

    `late_mean` is that of candidates, so that a query without late interaction can be compared.
    `normalised` divides BM25 and cosine by their spread first.

    The spread is the standard deviation over the candidates of a query. A weight learnt on labels
    needs none, and one that was never learnt has to hold for any corpus: how many points of BM25 a
    cosine is worth differs tenfold between corpora, but not after that.
    """

    tower: Finite
    normalised: bool = False
    late: Finite = 0.0
    late_mean: Finite = 0.0

    def scores(
        self, bm25: AnyFloatArray, cosine: AnyFloatArray, late: AnyFloatArray | None = None
    ) -> AnyFloatArray:
        """Return the hybrid scores (..., n), each row the candidates of one query.

        BM25 is 0 where no term matches; `late` is None where late interaction did not run.
        """
        if self.normalised:
            bm25, cosine = unit_spread(bm25), unit_spread(cosine)
        result: AnyFloatArray = bm25 + self.tower * cosine
        if late is not None:
            result = result + self.late * (late - self.late_mean)
        return result


def unit_spread(scores: AnyFloatArray) -> AnyFloatArray:
    """Return scores (..., n) over the standard deviation of their row; equal ones become 0."""
    spread = scores.std(axis=-1, keepdims=True)
    result: AnyFloatArray = (scores - scores.mean(axis=-1, keepdims=True)) / np.where(
        spread > SMALLEST_SPREAD, spread, np.inf
    )
    return result


WITHOUT_LABELS = HybridWeights(tower=1.0, normalised=True)
"""What a bundle brings that no labelled query taught what a cosine is worth."""

WITHOUT_LABELS_FROM_SCRATCH = HybridWeights(tower=0.5, normalised=True)
"""The same where the towers know nothing but the passages: no pretrained model reads for them."""


@configuration()
class FinalWeights:
    """worth = hybrid * `hybrid` + cross * `cross`, and what turns it into log-odds.

    Attributes:
        hybrid: a above.
        cross: a times the cross-scorer's weight.
        nothing: the worth of no passage being an answer.
        offset: added to the log-odds.
    """

    hybrid: Finite
    cross: Finite
    nothing: Finite
    offset: Finite

    def worth(self, hybrid: AnyFloatArray, cross: AnyFloatArray) -> AnyFloatArray:
        """Return what candidates are ranked by, of the same shape as both."""
        result: AnyFloatArray = self.hybrid * hybrid + self.cross * cross
        return result

    def log_odds(self, worth: AnyFloatArray) -> AnyFloatArray:
        """Return the final scores of `worth` (..., n), each row the candidates of one query."""
        return log_odds(worth, self.nothing) + self.offset


@configuration()
class Fusion:
    """The content of fusion.json; `final` and `cross` are None where there is no cross-scorer.

    Attributes:
        hybrid: puts BM25 and cosine together.
        final: adds the cross-scorer.
        cross: the configuration of the cross-scorer, as `cross_config` reads it.
    """

    hybrid: HybridWeights
    final: FinalWeights | None = None
    cross: Mapping[str, Any] | None = None

    def to_bytes(self) -> bytes:
        """Return fusion.json."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def of_bytes(cls, content: bytes) -> "Fusion":
        """Read fusion.json.

        Raises:
            BundleError: it is something else.
        """
        try:
            return from_mapping(cls, json.loads(content))
        except (ValueError, ConfigError) as error:
            raise BundleError(f"fusion.json is broken ({error}); train again") from None

    def cross_config(self) -> CrossConfig:
        """Return how the bundle's cross-scorer is read.

        Raises:
            BundleError: nothing says so, or not so that it can be understood.
        """
        if self.cross is None:
            raise BundleError("fusion.json does not say how to read the cross-scorer; train again")
        try:
            return from_mapping(CrossConfig, self.cross, where="cross.")
        except ConfigError as error:
            raise BundleError(f"fusion.json is broken ({error}); train again") from None


def fit_hybrid(bm25: FloatArray, cosine: FloatArray, relevant: BoolArray) -> HybridWeights | None:
    """Learn what a cosine is worth from the candidates of labelled queries.

    Args:
        bm25: (queries, n) scores.
        cosine: (queries, n), of towers that did not learn from these queries.
        relevant: (queries, n), which candidates are known answers.

    Returns:
        None where too few queries have an answer among their candidates.
    """
    weight = cautious_weight(bm25, cosine, relevant, grid=TOWER_GRID)
    return None if weight is None else HybridWeights(weight)


def fit_late(
    hybrid: HybridWeights, scores: AnyFloatArray, late: FloatArray, relevant: BoolArray
) -> HybridWeights:
    """Add the weight of late interaction, learnt from queries that it did not learn from.

    With a and b the numbers that make the answers likeliest under softmax(a * hybrid + b * late),
    it is b / a: few queries are read for it, and their ranks alone would say less than that.

    Args:
        hybrid: the other weights.
        scores: (queries, n), the hybrid's without it.
        late: (queries, n).
        relevant: (queries, n), which candidates are known answers.

    Returns:
        `hybrid` as it was where too few queries have an answer.
    """
    from scipy.optimize import minimize

    useful = relevant.any(axis=1) & ~relevant.all(axis=1)
    if useful.sum() < FEWEST_QUERIES:
        return hybrid
    known, answers = np.asarray(scores[useful], np.float64), relevant[useful]
    mean, spread = float(late[useful].mean()), float(late[useful].std()) or 1.0
    added = (late[useful] - mean) / spread
    scale = float(known.std()) or 1.0

    def loss(numbers: Float64Array) -> float:
        z = np.exp(numbers[0]) / scale * known + numbers[1] * added
        z -= z.max(axis=1, keepdims=True)
        right = (np.exp(z) * answers).sum(axis=1)
        return float((np.log(np.exp(z).sum(axis=1)) - np.log(right + np.finfo(float).tiny)).mean())

    log_a, b = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(-5, 5), (-50, 50)]).x
    weight = max(0.0, float(b / np.exp(log_a) * scale / spread))
    return replace(hybrid, late=weight, late_mean=mean)


def fit_final(hybrid: FloatArray, cross: FloatArray, relevant: BoolArray) -> FinalWeights | None:
    """Learn the final weights from queries that the cross-scorer did not learn from.

    Arguments are those of `fit_hybrid`, with the hybrid's scores and the cross-scorer's logits.
    """
    weight = cautious_weight(hybrid, cross, relevant, grid=CROSS_GRID)
    if weight is None:
        return None
    return calibrated((hybrid + weight * cross).astype(np.float64), weight, relevant)


def log_odds(worth: AnyFloatArray, nothing: float) -> AnyFloatArray:
    """Return (..., n): log of e^worth over the sum of e^nothing and of the others in its row."""
    worth = np.asarray(worth, dtype=np.float64)
    top = np.maximum(worth.max(axis=-1, keepdims=True), nothing)
    others = np.exp(worth - top) @ (1.0 - np.eye(worth.shape[-1])) + np.exp(nothing - top)
    result: AnyFloatArray = worth - top - np.log(np.maximum(others, np.finfo(np.float64).tiny))
    return result


def calibrated(
    combined: AnyFloatArray,
    weight: float,
    relevant: BoolArray,
    *,
    importance: Float64Array | float = 1.0,
) -> FinalWeights:
    """Return the weights under which the labels are likeliest, every candidate by itself.

    Args:
        combined: (queries, n), hybrid + `weight` * cross.
        weight: the cross-scorer's.
        relevant: (queries, n), which candidates are known answers.
        importance: (n,), how much a candidate counts at each place.
    """
    from scipy.optimize import minimize

    spread = float(combined.std()) or 1.0

    def loss(numbers: Float64Array) -> float:
        log_scale, nothing, offset = numbers
        logits = log_odds(np.exp(log_scale) / spread * combined, nothing) + offset
        return float((importance * (np.logaddexp(0.0, logits) - relevant * logits)).mean())

    bounds = [(-5.0, 5.0), (-50.0, 50.0), (-20.0, 20.0)]
    solution = minimize(loss, np.zeros(3), method="L-BFGS-B", bounds=bounds).x
    log_scale, nothing, offset = map(float, solution)
    scale = float(np.exp(log_scale)) / spread
    return FinalWeights(scale, scale * weight, nothing, offset)


def cautious_weight(
    known: AnyFloatArray,
    added: AnyFloatArray,
    relevant: BoolArray,
    *,
    grid: Float64Array,
) -> float | None:
    """Return the smallest w of `grid` whose known + w * added is about as good as the best's.

    Good is the mean reciprocal rank of the first answer; about as good is not below the best by
    more than one standard error of the difference, query by query.

    Args:
        known: (queries, n) scores.
        added: (queries, n) scores to be weighed.
        relevant: (queries, n), which candidates are known answers.
        grid: weights from small to large.

    Returns:
        None where too few queries have an answer and another candidate.
    """
    useful = relevant.any(axis=1) & ~relevant.all(axis=1)
    if useful.sum() < FEWEST_QUERIES:
        return None
    is_good = about_as_good(known[useful], added[useful], relevant[useful], grid=grid)
    return float(grid[np.flatnonzero(is_good)[0]])


def about_as_good(
    known: AnyFloatArray, added: AnyFloatArray, relevant: BoolArray, *, grid: Float64Array
) -> BoolArray:
    """Return (weights,): whether each w of `grid` is about as good as the best of them.

    What that means, and the other arguments, are those of `cautious_weight`.
    """
    ranks = np.stack(  # (weights, queries)
        [reciprocal_ranks(known + w * added, relevant) for w in grid]
    )
    behind = ranks[ranks.mean(axis=1).argmax()] - ranks
    error = behind.std(axis=1) / np.sqrt(ranks.shape[1])
    result: BoolArray = behind.mean(axis=1) <= error
    return result


def reciprocal_ranks(scores: AnyFloatArray, relevant: BoolArray) -> Float64Array:
    """Return (queries,): 1 / rank of the first answer; ties count against it."""
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = (~relevant & (scores >= best)).sum(axis=1)
    result: Float64Array = 1.0 / (1 + ahead)
    return result
