"""Keeps near-duplicates out of the result: MMR over the vectors, or so many hits per field value.

Both choose among ranked candidates and work the same on every engine.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from two_tower.models.vectors import Float64Array, FloatArray


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
    low, high = float(scores.min()), float(scores.max())
    scaled = np.ones(len(scores)) if high == low else (scores - low) / (high - low)
    relevance = (1.0 - diversity) * scaled
    cosines = vectors @ vectors.T  # (n, n)
    is_open = np.ones(len(scores), dtype=bool)
    rows: list[int] = []
    for _ in range(min(k, len(scores))):
        nearest = cosines[rows].max(axis=0) if rows else np.zeros(len(scores))
        gain = np.where(is_open, relevance - diversity * nearest, -np.inf)
        rows.append(int(np.argmax(gain)))
        is_open[rows[-1]] = False
    return rows


def at_most_per_group(payloads: Sequence[Mapping[str, Any]], field: str, *, size: int) -> list[int]:
    """Return the rows that are among the first `size` with their value of `field`.

    A passage without the field is in no group and stays.
    """
    sizes: Counter[str] = Counter()
    rows = []
    for row, payload in enumerate(payloads):
        if field in payload:
            group = json.dumps(payload[field], sort_keys=True)
            sizes[group] += 1
            if sizes[group] > size:
                continue
        rows.append(row)
    return rows
