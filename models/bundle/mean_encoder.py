"""The mean tower once training is over."""

import numpy as np

from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import FloatArray, normalized


class MeanEncoder:
    """Weighted mean of token vectors, L2-normalised, as `networks.towers.MeanTower` computes it."""

    def __init__(self, vectors: FloatArray, weights: FloatArray) -> None:
        """Keep the weighted token vectors; (vocab, dim) vectors, (vocab,) weights."""
        self.weighted = vectors * weights[:, None]
        self.dim = int(vectors.shape[1])

    def encode(self, rows: TokenRows, *, threads: int = 0) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on one core."""
        return normalized(self.sums(rows))

    def sums(self, rows: TokenRows) -> FloatArray:
        """Return (n, dim) float32, the sum of each row's weighted token vectors."""
        if len(rows.offsets) == 2:
            result: FloatArray = self.weighted[rows.ids].sum(axis=0, keepdims=True)
            return result
        from scipy import sparse  # a search of one query does without

        ones = np.ones(len(rows.ids), dtype=np.float32)
        shape = (len(rows.offsets) - 1, len(self.weighted))
        counts = sparse.csr_matrix((ones, rows.ids, rows.offsets), shape=shape)
        many: FloatArray = counts @ self.weighted
        return many
