"""How well vectors find the known answers: exact search over the whole corpus."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from two_tower.models.bundle.reduction import Reduction
from two_tower.models.networks.towers import TwoTower, encode_rows
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import Vectors

CUTOFFS = (1, 3, 10, 100)
METRIC_NAMES = (*(f"recall@{k}" for k in CUTOFFS), "mrr@10")
RANKED_AT_ONCE = 256


def tower_vectors(towers: TwoTower, *, queries: TokenRows, passages: TokenRows) -> Vectors:
    """Return the towers' vectors of queries (n, dim) and passages (m, dim)."""
    return Vectors(
        encode_rows(towers.query, queries).cpu().numpy(),
        encode_rows(towers.passage, passages).cpu().numpy(),
    )


def reduced_metrics(
    vectors: Vectors, reduction: Reduction, *, relevant: sparse.csr_matrix
) -> dict[str, dict[str, float]]:
    """Return `ranking_metrics` of the full and of each reduced vector, by its name."""
    if not len(vectors.queries):
        return {}
    queries, passages = reduction.apply(vectors.queries), reduction.apply(vectors.passages)
    pairs = {"dense": vectors} | {
        f"pca_{dim}": Vectors(queries[dim], passages[dim]) for dim in reduction.dims
    }
    return {
        name: ranking_metrics(*map(torch.from_numpy, pair), relevant=relevant)
        for name, pair in pairs.items()
    }


def ranking_metrics(
    queries: Tensor, passages: Tensor, *, relevant: sparse.csr_matrix
) -> dict[str, float]:
    """Return recall@1, @3, @10, @100 and mrr@10, means over queries (n, dim).

    recall@k: share of a query's answers among its first k; mrr@10: 1 / rank of the first answer,
    0 beyond rank 10. Passages are (m, dim), the whole corpus; `relevant` is (n, m). Without a
    query there is no metric.
    """
    if not len(queries):
        return {}
    deepest = min(max(CUTOFFS), len(passages))
    blocks = [
        (queries[start : start + RANKED_AT_ONCE] @ passages.T).topk(deepest).indices.cpu()
        for start in range(0, len(queries), RANKED_AT_ONCE)
    ]
    ranked = torch.cat(blocks).numpy()  # (n, deepest)
    rows, columns = relevant.nonzero()
    cells, width = np.arange(len(ranked))[:, None], relevant.shape[1]
    hits = np.isin(cells * width + ranked, rows.astype(np.int64) * width + columns)
    answers = np.asarray(relevant.sum(axis=1)).ravel()
    metrics = {f"recall@{k}": float((hits[:, :k].sum(axis=1) / answers).mean()) for k in CUTOFFS}
    first = np.where(hits[:, :10].any(axis=1), 1 / (1 + hits[:, :10].argmax(axis=1)), 0.0)
    return {**metrics, "mrr@10": float(first.mean())}
