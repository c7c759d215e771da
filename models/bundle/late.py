"""Late interaction: a passage is as good as its best token for each token of the query.

    late(q, d) = sum_i w_i max_j q_i . d_j / sum_i w_i        q_i, d_j of length 1

Khattab and Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized Late
Interaction over BERT", SIGIR 2020, https://arxiv.org/abs/2004.12832, over the token vectors of a
transformer: neighbouring tokens of a passage are averaged, all are projected, and each query token
has a weight of its own.

Engines keep unsigned bytes, so 128 is added to the signed ones. The numbers of a vector sum to 0,
before and after rounding, and so the sum over them is that of the signed ones and a constant:

    (a + 128) . (b + 128) = a . b + 128 (sum a + sum b) + 128^2 dim = a . b + 128^2 dim
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from two_tower.models.bundle.files import LATE
from two_tower.models.config import configuration
from two_tower.models.errors import BundleError
from two_tower.models.vectors import (
    AnyFloatArray,
    ByteArray,
    Float64Array,
    FloatArray,
    IntArray,
    normalized,
)

ZERO = 128
ONE = 127


@configuration("late")
class LateConfig:
    """Whether and how token vectors of passages are kept beside their vectors.

    Attributes:
        dim: width of each, a multiple of 4; 0 for none, and no late interaction.
        pool: neighbouring tokens of a passage that share a vector.
        queries: most labelled train queries to learn from.
        epochs: passes over them.
    """

    dim: int = Field(default=0, ge=0, le=1024, multiple_of=4)
    pool: int = Field(default=2, ge=1, le=16)
    queries: int = Field(default=5000, ge=0)
    epochs: int = Field(default=2, ge=0)


def centred(vectors: FloatArray) -> FloatArray:
    """Return (n, dim) float32, L2-normalised, whose numbers sum to 0."""
    return normalized(vectors - vectors.mean(axis=1, keepdims=True))


def pooled(vectors: FloatArray, *, size: int) -> FloatArray:
    """Return (ceil(n / size), dim) float32: the means of `size` neighbours, the last of the rest.

    Args:
        vectors: (n, dim) float32, at least one.
        size: tokens a mean.
    """
    starts = np.arange(0, len(vectors), size)
    counts = np.diff([*starts, len(vectors)])
    means = np.add.reduceat(vectors, starts, axis=0) / counts[:, None]
    return np.asarray(means, dtype=np.float32)


def to_bytes(vectors: AnyFloatArray) -> ByteArray:
    """Return (n, dim) uint8 of vectors up to length 1 that sum to 0; the bytes sum to 128 dim.

    Numbers are rounded to the nearest; where a sum is not 0 then, those that rounding moved
    furthest in its direction go one back.
    """
    scaled = np.asarray(vectors, dtype=np.float64) * ONE
    rounded = np.round(scaled)
    excess = rounded.sum(axis=1, keepdims=True)
    moved = (rounded - scaled) * np.sign(excess)
    place = np.argsort(np.argsort(-moved, axis=1, kind="stable"), axis=1, kind="stable")
    rounded -= np.sign(excess) * (place < np.abs(excess))
    return (rounded + ZERO).astype(np.uint8)


def to_scores(products: Float64Array, query: Sequence[Sequence[int]] | ByteArray) -> Float64Array:
    """Return (m,) late scores of what an engine makes of the bytes: sums of largest products.

    A query token is as long as its weight, so the lengths say what to divide by.

    Args:
        products: (m,), of m passages.
        query: (n, dim) bytes.
    """
    signed = np.asarray(query, dtype=np.float64) - ZERO
    total = np.linalg.norm(signed, axis=1).sum()
    result: Float64Array = (products - ZERO**2 * signed.size) / (ONE * max(1.0, total))
    return result


class LateInteraction:
    """What makes bytes of token vectors: a projection, a weight a token, perhaps a table.

    Attributes:
        dim: width of each vector.
        has_table: whether queries are read by the table alone, without a transformer.
        vocab_size: number of query tokens.
    """

    def __init__(self, arrays: Mapping[str, FloatArray], *, pool: int) -> None:
        """Keep what was learnt.

        Args:
            arrays: `projection` (hidden, dim) and `offset` (dim,) of token vectors of length 1,
                `weights` (vocab,) of query tokens, above 0; where a table reads the queries,
                `table` (vocab, dim) in place of their token vectors.
            pool: tokens of a passage that share a vector.

        Raises:
            BundleError: they are something else.
        """
        try:
            self._projection, self._offset = arrays["projection"], arrays["offset"]
            self._weights, self._table = arrays["weights"], arrays.get("table")
        except KeyError as error:
            raise BundleError(f"{LATE} lacks {error}; train the bundle again") from None
        self.dim = int(self._projection.shape[-1])
        self.has_table = self._table is not None
        self.vocab_size = len(self._weights)
        self._pool = pool
        expected = (self.vocab_size, self.dim)
        table = expected if self._table is None else self._table.shape
        if self._offset.shape != (self.dim,) or table != expected:
            raise BundleError(f"{LATE} has parts that do not fit each other; train again")
        if self._table is not None:
            self._table = centred(self._table)

    def projected(self, tokens: FloatArray) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, sums of 0, of token vectors (n, hidden)."""
        return centred(normalized(tokens) @ self._projection + self._offset)

    def passage(self, tokens: FloatArray) -> ByteArray:
        """Return (m, dim) uint8 of a passage's token vectors (n, hidden)."""
        return to_bytes(self.projected(pooled(normalized(tokens), size=self._pool)))

    def query(self, ids: IntArray, tokens: FloatArray | None = None) -> ByteArray:
        """Return (n, dim) uint8 of a query's token ids (n,), and vectors (n, hidden) if need be."""
        if self._table is None:
            assert tokens is not None, "without a table a transformer reads queries"
            vectors = self.projected(tokens)
        else:
            vectors = self._table[ids]
        weights = self._weights[ids]
        return to_bytes(vectors * (weights / weights.max())[:, None])
