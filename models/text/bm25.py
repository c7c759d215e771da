"""BM25: the engine's analyzer, sparse vectors for its lexical leg, and an exact index in memory.

The analyzer is Qdrant's own (`qdrant_edge.Bm25`: lower case, stop words, Snowball stemming), used
for Edge and server alike. A document's weights saturate term frequency; the IDF is applied by the
engine (`Modifier.IDF`), so that score = sum over query terms of idf(t) * weight(t, d).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import qdrant_edge
from scipy import sparse

from two_tower.models.vectors import Float64Array, FloatArray, IntArray

SEARCH_BLOCK = 256


@dataclass(frozen=True)
class Bm25Config:
    """BM25 parameters; a collection's metadata records the ones it was loaded with.

    k and b are the values tuned for short passages (Lin et al., Anserini: k1=0.9, b=0.4).
    """

    avg_len: float
    k: float = 0.9
    b: float = 0.4
    language: str = "english"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    def model(self) -> qdrant_edge.Bm25:
        """Return the engine's analyzer with these parameters."""
        config = qdrant_edge.Bm25Config(
            k=self.k, b=self.b, avg_len=self.avg_len, language=self.language
        )
        return qdrant_edge.Bm25(config)


class Analyzer:
    """Text to term ids by the engine's analyzer, with repetitions, in no particular order."""

    def __init__(self, language: str = "english") -> None:
        # With b=0 and k=1 a term's weight is 2tf/(tf+1), which gives tf back exactly.
        self._model = Bm25Config(avg_len=1.0, k=1.0, b=0.0, language=language).model()

    def terms(self, text: str) -> list[int]:
        """Return one id per term occurrence."""
        vector = self._model.embed_document(text)
        counts = map(_count, vector.values)
        return [i for i, tf in zip(vector.indices, counts, strict=True) for _ in range(tf)]

    def length(self, text: str) -> int:
        """Return the number of term occurrences."""
        return sum(map(_count, self._model.embed_document(text).values))


def _count(weight: float) -> int:
    return round(weight / (2.0 - weight))


def average_length(texts: Iterable[str], *, language: str = "english") -> float:
    """Return the mean number of terms per text after analysis (at least 1.0)."""
    analyzer = Analyzer(language)
    terms = count = 0
    for text in texts:
        terms += analyzer.length(text)
        count += 1
    return max(1.0, terms / count) if count else 1.0


class Ranked(NamedTuple):
    """The best passages of n queries, best first.

    Attributes:
        rows: (n, k) int64 passage rows, -1 where there are fewer than k.
        scores: (n, k) float32, 0 there.
    """

    rows: IntArray
    scores: FloatArray


class Bm25Index:
    """Exact BM25 over passages in memory, scored as the engine scores its `bm25` leg.

    score(q, d) = sum over t in q of idf(t) tf (k + 1) / (tf + k (1 - b + b |d| / avg_len)),
    idf(t) = ln(1 + (N - n_t + 0.5) / (n_t + 0.5)), N passages, n_t of them with term t
    (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009).
    """

    def __init__(self, texts: Sequence[str], config: Bm25Config | None = None) -> None:
        """Index `Passage.content` of all passages.

        Args:
            texts: one per passage.
            config: the parameters; by default the usual ones and the texts' own mean length.
        """
        self.config = config or Bm25Config(avg_len=average_length(texts))
        self._model = self.config.model()
        weights = _sparse_rows([self._model.embed_document(text) for text in texts])
        self._terms, columns = np.unique(weights.indices, return_inverse=True)
        shape = (len(texts), len(self._terms))
        counted = sparse.csr_matrix((weights.values, columns, weights.offsets), shape=shape)
        holding = np.bincount(columns, minlength=len(self._terms))
        idf = np.log1p((len(texts) - holding + 0.5) / (holding + 0.5))
        self._passages = counted.multiply(idf[None, :]).tocsr()
        self._postings = self._passages.T.tocsr()

    def __len__(self) -> int:
        return int(self._passages.shape[0])

    def search(self, queries: Sequence[str], k: int) -> Ranked:
        """Return the `k` best passages that share a term with each query; ties by row."""
        found = Ranked(
            np.full((len(queries), k), -1, dtype=np.int64),
            np.zeros((len(queries), k), dtype=np.float32),
        )
        terms = self._query_matrix(queries)
        for start in range(0, len(queries), SEARCH_BLOCK):
            scores = (terms[start : start + SEARCH_BLOCK] @ self._postings).tocsr()
            for i in range(scores.shape[0]):
                hit = slice(scores.indptr[i], scores.indptr[i + 1])
                best = _best(scores.indices[hit], scores.data[hit], k)
                found.rows[start + i, : len(best)] = scores.indices[hit][best]
                found.scores[start + i, : len(best)] = scores.data[hit][best]
        return found

    def scores(self, queries: Sequence[str], rows: IntArray) -> FloatArray:
        """Return (n, k) float32: the score of each query for its passages `rows` (n, k).

        A row of -1 scores 0.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        left = self._query_matrix(queries)[np.repeat(np.arange(len(queries)), wanted.shape[1])]
        right = self._passages[np.maximum(wanted, 0).ravel()]
        flat = np.asarray(left.multiply(right).sum(axis=1)).reshape(wanted.shape)
        return np.where(wanted >= 0, flat, 0.0).astype(np.float32)

    def _query_matrix(self, queries: Sequence[str]) -> sparse.csr_matrix:
        """Return (n, terms) sparse weights of the query terms that some passage has."""
        rows = _sparse_rows([self._model.embed_query(text) for text in queries])
        columns = np.searchsorted(self._terms, rows.indices)
        known = columns < len(self._terms)
        known[known] = self._terms[columns[known]] == rows.indices[known]
        offsets = np.concatenate([[0], np.cumsum(known)])[rows.offsets]
        shape = (len(queries), len(self._terms))
        return sparse.csr_matrix((rows.values[known], columns[known], offsets), shape=shape)


class _SparseRows(NamedTuple):
    """Sparse vectors end to end; vector i is the slice `offsets[i]:offsets[i + 1]`."""

    indices: IntArray
    values: Float64Array
    offsets: IntArray


def _sparse_rows(vectors: Sequence[qdrant_edge.SparseVector]) -> _SparseRows:
    offsets = np.cumsum([0, *(len(vector.indices) for vector in vectors)])
    indices = [index for vector in vectors for index in vector.indices]
    values = [value for vector in vectors for value in vector.values]
    return _SparseRows(np.array(indices, np.int64), np.array(values, np.float64), offsets)


def _best(rows: IntArray, scores: Float64Array, k: int) -> IntArray:
    """Return where the `k` best of one query's hits are, best first, ties by row."""
    near = np.arange(len(scores))
    if len(scores) > k:
        worst = np.partition(scores, len(scores) - k)[len(scores) - k]
        near = np.flatnonzero(scores >= worst)
    best: IntArray = near[np.lexsort((rows[near], -scores[near]))][:k]
    return best
