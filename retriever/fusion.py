"""Fusing what several stages say about the same candidates.

Every function takes `scores`, a `(n_candidates, n_stages) float` matrix for one query, with NaN
where a stage did not return a candidate, and gives `(n_candidates,) float`, higher is better.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def fill_missing(scores: Floats, floors: Floats) -> Floats:
    """Replace NaN by the stage's floor: the most that a candidate it left out can have scored.

    Args:
        scores: `(n, stages)`, NaN where missing.
        floors: `(stages,)`, e.g. the lowest score in a stage's full list, 0 for BM25 when its
            list was not full (whatever it left out matches no term).
    """
    return np.where(np.isnan(scores), floors, scores)


def weighted_sum(scores: Floats, weights: Floats) -> Floats:
    """Return `scores @ weights`, in the stages' own units.

    A convex combination beats reciprocal ranks, and needs no normalisation per query once the
    weight suits the units: Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid
    Retrieval", TOIS 2023.
    """
    total: Floats = scores @ weights
    return total


def ranks(scores: Floats) -> npt.NDArray[np.int64]:
    """Return each stage's ranks from 1, best first, ties in the order given; missing ones last."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=0, kind="stable")
    result = np.empty_like(order)
    np.put_along_axis(result, order, np.arange(1, len(scores) + 1)[:, None], axis=0)
    return result


def reciprocal_rank_fusion(scores: Floats, weights: Floats, *, k: int = 60) -> Floats:
    """Return sum over stages of weight / (k + rank); a missing candidate adds nothing.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet", SIGIR 2009.
    """
    gains = np.where(np.isnan(scores), 0.0, weights / (k + ranks(scores)))
    total: Floats = gains.sum(axis=1)
    return total
