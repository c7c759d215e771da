"""Keeps near-duplicates out of the result: MMR over the vectors, or so many hits per field value.

Both choose among ranked candidates and work the same on every engine.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from two_tower.models.vectors import Float64Array, FloatArray

MISSING = object()


def mmr(scores: Float64Array, vectors: FloatArray, *, diversity: float, k: int) -> list[int]:
    """Return the rows of the `k` candidates that are relevant and unlike those before them.

    Each step takes the row with the largest
    `(1 - diversity) * relevance - diversity * max(cosine with a chosen one)`, where relevance is
    the score scaled to [0, 1] over the candidates. Carbonell and Goldstein, "The Use of MMR,
    Diversity-Based Reranking for Reordering Documents and Producing Summaries", SIGIR 1998.

    Args:
        scores: `(n,)`, best first.
        vectors: `(n, dim) float32`, L2-normalised.
        diversity: 0 keeps the order, 1 looks at the vectors alone after the first.
        k: how many.
    """
    relevance = (1.0 - diversity) * _scaled(scores)
    cosines = vectors @ vectors.T  # (n, n)
    is_open = np.ones(len(scores), dtype=bool)
    chosen: list[int] = []
    for _ in range(min(k, len(scores))):
        nearest = cosines[chosen].max(axis=0) if chosen else np.zeros(len(scores))
        gain = np.where(is_open, relevance - diversity * nearest, -np.inf)
        chosen.append(int(np.argmax(gain)))
        is_open[chosen[-1]] = False
    return chosen


def at_most_per_group(payloads: Sequence[Mapping[str, Any]], field: str, *, size: int) -> list[int]:
    """Return the rows that are among the first `size` with their value of `field`.

    A passage without the field is in no group and stays.
    """
    seen: Counter[str] = Counter()
    kept = []
    for row, payload in enumerate(payloads):
        value = payload.get(field, MISSING)
        group = None if value is MISSING else json.dumps(value, sort_keys=True)
        if group is None or seen[group] < size:
            kept.append(row)
        if group is not None:
            seen[group] += 1
    return kept


def _scaled(scores: Float64Array) -> Float64Array:
    low, high = float(scores.min()), float(scores.max())
    if high == low:
        return np.ones(len(scores))
    scaled: Float64Array = (scores - low) / (high - low)
    return scaled
