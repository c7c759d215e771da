"""Learnt fusion: how much the scores of the stages are worth beside each other, as plain numbers.

Two steps. The hybrid score puts BM25 and the towers' cosine together. How far the tower can be
trusted depends on how much BM25 has to say, so that both weights may move with its best score:

    hybrid = a bm25 + b cosine,   a = a0 + a1 s,  b = b0 + b1 s,  s = ln(1 + best bm25 of the query)

Where a cross-scorer read a candidate, the final score adds its logit:

    final = c hybrid + d cross + e

Weights come from pairs: logistic regression on the difference between an answer and another
candidate of the same query (a linear RankNet: Burges et al., ICML 2005). The last step is
calibrated, so that 1 / (1 + exp(-final)) estimates the chance that the passage answers.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import BundleError

FloatArray = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]

FEWEST_QUERIES = 30
"""Fewer labelled queries than this say nothing about weights."""
PAIRS_PER_QUERY = 6


@dataclass(frozen=True)
class HybridWeights:
    """hybrid = max(0, bm25 + bm25_slope s) BM25 + max(0, cosine + cosine_slope s) cosine."""

    bm25: float
    bm25_slope: float
    cosine: float
    cosine_slope: float

    def scores(self, bm25: Floats, cosine: Floats) -> Floats:
        """Return (n,) for the candidates of one query, or (queries, n) for many.

        Args:
            bm25: of every candidate, 0 where no term matches.
            cosine: of every candidate.
        """
        if not bm25.size:
            return np.zeros_like(bm25)
        s = strength(bm25)
        lexical = np.maximum(0.0, self.bm25 + self.bm25_slope * s)
        tower = np.maximum(0.0, self.cosine + self.cosine_slope * s)
        result: Floats = lexical * bm25 + tower * cosine
        return result


@dataclass(frozen=True)
class FinalWeights:
    """final = hybrid * `hybrid` + cross * `cross` + `offset`, a log-odds."""

    hybrid: float
    cross: float
    offset: float

    def scores(self, hybrid: Floats, cross: Floats) -> Floats:
        """Return the final scores, of the same shape as both."""
        result: Floats = self.hybrid * hybrid + self.cross * cross + self.offset
        return result


@dataclass(frozen=True)
class Fusion:
    """The content of fusion.json; `final` and `cross` are None where there is no cross-scorer.

    Attributes:
        hybrid: puts BM25 and cosine together.
        final: adds the cross-scorer.
        cross: the configuration of the cross-scorer (`models.cross_scorer.CrossConfig`).
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
            found = json.loads(content)
            final = found["final"]
            return cls(
                HybridWeights(**_numbers(found["hybrid"])),
                FinalWeights(**_numbers(final)) if final is not None else None,
                dict(found["cross"]) if final is not None else None,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"fusion.json is broken ({error!r}); train again") from None


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in values.items()}
    if not np.isfinite(list(numbers.values())).all():
        raise ValueError(f"{numbers} are not finite")
    return numbers


def strength(bm25: Floats) -> Floats:
    """Return ln(1 + best score) over the last axis, which stays as one column."""
    best: Floats = np.log1p(np.maximum(bm25.max(axis=-1, keepdims=True), 0.0))
    return best


def fit_hybrid(
    bm25: FloatArray, cosine: FloatArray, relevant: npt.NDArray[np.bool_], *, seed: int
) -> HybridWeights | None:
    """Learn the hybrid's weights from the candidates of labelled queries.

    Args:
        bm25: (queries, n) scores.
        cosine: (queries, n), of towers that did not learn from these queries.
        relevant: (queries, n), which candidates are known answers.
        seed: of the draw of pairs.

    Returns:
        None where too few queries have an answer among their candidates.
    """
    s = strength(bm25)
    features = np.stack([bm25, bm25 * s, cosine, cosine * s], axis=-1)
    weights = _pairwise(features, relevant, seed=seed)
    return None if weights is None else HybridWeights(*map(float, weights))


def fit_final(
    hybrid: FloatArray, cross: FloatArray, relevant: npt.NDArray[np.bool_], *, seed: int
) -> FinalWeights | None:
    """Learn the final weights from queries that the cross-scorer did not learn from.

    Arguments are those of `fit_hybrid`, with the hybrid's scores and the cross-scorer's logits.
    """
    weights = _pairwise(np.stack([hybrid, cross], axis=-1), relevant, seed=seed)
    if weights is None:
        return None
    from sklearn.linear_model import LogisticRegression

    combined = (weights[0] * hybrid + weights[1] * cross).reshape(-1, 1)
    scaled = LogisticRegression(C=1e6).fit(combined, relevant.ravel())  # Platt, 1999
    slope, offset = float(scaled.coef_[0, 0]), float(scaled.intercept_[0])
    return FinalWeights(float(weights[0]) * slope, float(weights[1]) * slope, offset)


def _pairwise(
    features: Floats, relevant: npt.NDArray[np.bool_], *, seed: int
) -> npt.NDArray[np.float64] | None:
    """Return one weight per feature (queries, n, features), or None with too little to learn."""
    rng = np.random.default_rng(seed)
    differences = []
    for values, answers in zip(features, relevant, strict=True):
        positive, negative = np.flatnonzero(answers), np.flatnonzero(~answers)
        if len(positive) and len(negative):
            drawn = rng.choice(negative, min(PAIRS_PER_QUERY, len(negative)), replace=False)
            differences.append(values[rng.choice(positive)] - values[drawn])
    if len(differences) < FEWEST_QUERIES:
        return None
    from sklearn.linear_model import LogisticRegression

    rows = np.concatenate(differences)
    signs = np.where(rng.random(len(rows)) < 0.5, 1, -1)  # both classes, or there is no fit
    spread = np.maximum(rows.std(axis=0), 1e-9)
    model = LogisticRegression(fit_intercept=False).fit(rows / spread * signs[:, None], signs)
    weights: npt.NDArray[np.float64] = model.coef_[0] / spread
    return weights
