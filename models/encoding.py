"""The mean tower without torch: what encodes once training is over."""

import numpy as np
import numpy.typing as npt
from scipy import sparse

from models.tokenizer import TokenRows

FloatArray = npt.NDArray[np.float32]


class MeanEncoder:
    """Weighted mean of token vectors, L2-normalised, as `models.towers.MeanTower` computes it."""

    def __init__(self, vectors: FloatArray, weights: FloatArray) -> None:
        """Keep the weighted token vectors.

        Args:
            vectors: (vocab, dim) float32.
            weights: (vocab,) float32.
        """
        self._weighted = vectors * weights[:, None]

    @property
    def vocab_size(self) -> int:
        """Number of tokens that have a vector."""
        return int(self._weighted.shape[0])

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._weighted.shape[1])

    def encode(self, rows: TokenRows) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, one per row of tokens."""
        if len(rows.offsets) == 2:
            summed = self._weighted[rows.ids].sum(axis=0, keepdims=True)
        else:
            ones = np.ones(len(rows.ids), dtype=np.float32)
            shape = (len(rows.offsets) - 1, self.vocab_size)
            summed = sparse.csr_matrix((ones, rows.ids, rows.offsets), shape=shape) @ self._weighted
        return normalized(summed)


def normalized(vectors: FloatArray) -> FloatArray:
    """Return rows of length 1; a row of zeros becomes the first axis, which is valid and finite."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    result = np.asarray(scaled, dtype=np.float32)
    result[lengths[:, 0] == 0, 0] = 1.0
    return result
