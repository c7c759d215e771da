"""Candidate lists of labelled queries, with both scores, as the engine hands them to rerankers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from two_tower.models.bundle.fusion import TOWER_WEIGHT
from two_tower.models.examples.negatives import dense_candidates
from two_tower.models.examples.pairs import Labelled
from two_tower.models.progress import progress
from two_tower.models.text.bm25 import Bm25Index
from two_tower.models.vectors import BoolArray, FloatArray, IntArray, Vectors

DEPTH = 100
QUERY_BLOCK = 256


class CandidateLists(NamedTuple):
    """The best candidates of n queries, best first.

    Attributes:
        rows: (n, k) int64 passage rows.
        bm25: (n, k) float32, 0 where no term matches.
        cosine: (n, k) float32.
        relevant: (n, k) bool, which are known answers.
    """

    rows: IntArray
    bm25: FloatArray
    cosine: FloatArray
    relevant: BoolArray

    def take(self, index: IntArray) -> "CandidateLists":
        """Return the lists of the queries at `index`."""
        return self._at(index)

    def first(self, count: int) -> "CandidateLists":
        """Return the beginning of each list, `count` candidates or all."""
        return self._at((slice(None), slice(count)))

    def ordered(self, scores: FloatArray) -> "CandidateLists":
        """Return each list in the order of its scores (n, k), the highest first."""
        order = np.argsort(-scores, axis=1, kind="stable")
        return self._at((np.arange(len(order))[:, None], order))

    def _at(self, index: Any) -> "CandidateLists":
        return CandidateLists(
            self.rows[index], self.bm25[index], self.cosine[index], self.relevant[index]
        )


def candidate_lists(
    labelled: Labelled, vectors: Vectors, index: Bm25Index, *, size: int
) -> CandidateLists:
    """Return the `size` best of what BM25 and the towers propose, by a plain weighted sum.

    Lists are shorter where the corpus is smaller; `vectors` are of these queries and all passages.
    """
    queries = np.arange(len(labelled.texts))
    parts = np.split(queries, range(QUERY_BLOCK, len(queries), QUERY_BLOCK))
    blocks = [
        _block_lists(
            labelled.take(part),
            vectors._replace(queries=vectors.queries[part]),
            index,
            size=min(size, len(index)),
        )
        for part in progress(parts, label="candidates")
    ]
    return joined(blocks)


def joined(parts: Sequence[CandidateLists]) -> CandidateLists:
    """Put the lists of several parts one after the other."""
    return CandidateLists(*map(np.concatenate, zip(*parts, strict=True)))


def _block_lists(
    labelled: Labelled, vectors: Vectors, index: Bm25Index, *, size: int
) -> CandidateLists:
    depth, total = min(DEPTH, len(index)), len(index)
    lexical = index.search(labelled.texts, depth).rows
    dense = dense_candidates(*vectors, relevant=labelled.relevant, depth=depth).rows
    pairs = zip(lexical, dense, strict=True)
    proposed = [_union(*pair, fewest=size, total=total) for pair in pairs]
    # Lists of different lengths are filled up with repetitions, which rank last.
    lengths = np.array([len(rows) for rows in proposed])
    width = lengths.max()
    rows = np.stack([np.pad(rows, (0, width - len(rows)), mode="wrap") for rows in proposed])
    # rows, bm25, cosine: (n, width)
    bm25 = index.scores(labelled.texts, rows)
    cosine = np.einsum("nd,nkd->nk", vectors.queries, vectors.passages[rows])
    weighted = np.where(np.arange(width) < lengths[:, None], bm25 + TOWER_WEIGHT * cosine, -np.inf)
    best = np.argsort(-weighted, axis=1, kind="stable")[:, :size]  # (n, size)
    rows, bm25, cosine = (np.take_along_axis(a, best, axis=1) for a in (rows, bm25, cosine))
    queries, answers = labelled.relevant.nonzero()
    known = queries.astype(np.int64) * total + answers
    relevant = np.isin(np.arange(len(rows))[:, None] * total + rows, known)
    return CandidateLists(rows, bm25, cosine, relevant)


def _union(lexical: IntArray, dense: IntArray, *, fewest: int, total: int) -> IntArray:
    """Return the passages that a leg proposes, and others where both together give too few."""
    proposed: IntArray = np.unique(np.concatenate([lexical, dense]))
    proposed = proposed[proposed >= 0]
    if len(proposed) < fewest:
        others = np.setdiff1d(np.arange(total), proposed)[: fewest - len(proposed)]
        proposed = np.concatenate([proposed, others])
    return proposed
