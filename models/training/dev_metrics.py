"""How well vectors find the known answers: exact search over the whole corpus."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from two_tower.models.vectors import BoolArray, IntArray

CUTOFFS = (1, 3, 10, 100)

BLOCK = 256


def ranking_metrics(
    queries: Tensor, passages: Tensor, *, relevant: sparse.csr_matrix
) -> dict[str, float]:
    """Return recall@1, @3, @10, @100 and mrr@10, means over the queries.

    recall@k: share of a query's answers among its first k; mrr@10: 1 / rank of the first answer,
    0 beyond rank 10.

    Args:
        queries: (n, dim) float32.
        passages: (m, dim) float32, the whole corpus.
        relevant: (n, m) sparse bool.
    """
    deepest = min(max(CUTOFFS), len(passages))
    blocks = [
        (queries[start : start + BLOCK] @ passages.T).topk(deepest).indices.cpu()
        for start in range(0, len(queries), BLOCK)
    ]
    hits = _hits(torch.cat(blocks).numpy(), relevant)
    answers = np.asarray(relevant.sum(axis=1)).ravel()
    metrics = {f"recall@{k}": float((hits[:, :k].sum(axis=1) / answers).mean()) for k in CUTOFFS}
    first = np.where(hits[:, :10].any(axis=1), 1 / (1 + hits[:, :10].argmax(axis=1)), 0.0)
    return {**metrics, "mrr@10": float(first.mean())}


def _hits(ranked: IntArray, relevant: sparse.csr_matrix) -> BoolArray:
    """Return (n, k) bool: whether the passage at that rank answers the query."""
    width = relevant.shape[1]
    rows, columns = relevant.nonzero()
    found = np.arange(len(ranked))[:, None] * width + ranked
    return np.isin(found, rows.astype(np.int64) * width + columns)
