"""What encodes once training is over: the seam for all kinds, and the mean tower without torch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from two_tower.models.tokenizer import Tokenizer, TokenRows

FloatArray = npt.NDArray[np.float32]


class RowTokenizer(Protocol):
    """Texts in, token rows out; each side has its own limit."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    def encode_passages(self, texts: Sequence[str], *, threads: int = 0) -> TokenRows:
        """Tokenise passages on `threads` cores (0: all)."""
        ...

    def encode_queries(self, texts: Sequence[str], *, threads: int = 0) -> TokenRows:
        """Tokenise queries on `threads` cores (0: all)."""
        ...


class Encoder(Protocol):
    """Texts in, vectors out; at least one text, prefixes already in place."""

    @property
    def tokenizer(self) -> RowTokenizer:
        """What makes the tokens."""
        ...

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        ...

    def encode_passages(self, texts: Sequence[str], *, threads: int) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all)."""
        ...

    def encode_queries(self, texts: Sequence[str], *, threads: int) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all)."""
        ...


class RowEncoder(Protocol):
    """SentencePiece tokens in, vectors out."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens that have a vector."""
        ...

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        ...

    def encode(self, rows: TokenRows) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, one per row of tokens."""
        ...


class TokenEncoder:
    """The `Encoder` of towers that read SentencePiece tokens."""

    def __init__(self, tokenizer: Tokenizer, query: RowEncoder, passage: RowEncoder) -> None:
        self._tokenizer = tokenizer
        self._query = query
        self._passage = passage

    @property
    def tokenizer(self) -> Tokenizer:
        """The SentencePiece tokenizer."""
        return self._tokenizer

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._query.dim

    def encode_passages(self, texts: Sequence[str], *, threads: int) -> FloatArray:
        """Tokenise on `threads` cores (0: all) and read with the passage tower."""
        return self._passage.encode(self.tokenizer.encode_passages(texts, threads=threads))

    def encode_queries(self, texts: Sequence[str], *, threads: int) -> FloatArray:
        """Tokenise on `threads` cores (0: all) and read with the query tower."""
        return self._query.encode(self.tokenizer.encode_queries(texts, threads=threads))


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
