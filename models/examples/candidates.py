"""What the engine would hand to the rerankers, for labelled queries: lists with both scores."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from two_tower.models.bundle.fusion import TOWER_WEIGHT
from two_tower.models.examples.negatives import dense_candidates
from two_tower.models.examples.pairs import Labelled
from two_tower.models.text.bm25 import Bm25Index
from two_tower.models.vectors import BoolArray, FloatArray, IntArray, Vectors

DEPTH = 100

BLOCK = 256


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
        return CandidateLists(
            self.rows[index], self.bm25[index], self.cosine[index], self.relevant[index]
        )


def candidate_lists(
    labelled: Labelled, vectors: Vectors, index: Bm25Index, *, size: int
) -> CandidateLists:
    """Return the `size` best of what BM25 and the towers propose, by a plain weighted sum.

    Args:
        labelled: n queries.
        vectors: of these queries and of all passages.
        index: BM25 over all passages.
        size: k above; less where the corpus is smaller.
    """
    count = len(labelled.texts)
    starts = range(0, count, BLOCK)
    parts = [np.arange(start, min(start + BLOCK, count)) for start in starts]
    blocks = [
        _block(labelled.take(p), Vectors(vectors.queries[p], vectors.passages), index, size=size)
        for p in parts
    ]
    return joined(blocks)


def _block(labelled: Labelled, vectors: Vectors, index: Bm25Index, *, size: int) -> CandidateLists:
    size = min(size, len(index))
    lexical = index.search(labelled.texts, min(DEPTH, len(index))).rows
    dense = dense_candidates(*vectors, relevant=labelled.relevant, depth=min(DEPTH, len(index)))
    proposed = [
        _union(*pair, fewest=size, total=len(index))
        for pair in zip(lexical, dense.rows, strict=True)
    ]
    width = max(map(len, proposed))
    rows = np.stack([np.pad(found, (0, width - len(found)), mode="wrap") for found in proposed])
    is_first = np.arange(width) < np.array([[len(found)] for found in proposed])
    bm25 = index.scores(labelled.texts, rows)
    cosine = np.einsum("nd,nkd->nk", vectors.queries, vectors.passages[rows])
    total = np.where(is_first, bm25 + TOWER_WEIGHT * cosine, -np.inf)
    best = np.argsort(-total, axis=1, kind="stable")[:, :size]
    rows, bm25, cosine = (np.take_along_axis(a, best, axis=1) for a in (rows, bm25, cosine))
    return CandidateLists(rows, bm25, cosine, _known(labelled, rows))


def _union(lexical: IntArray, dense: IntArray, *, fewest: int, total: int) -> IntArray:
    """Return the passages that a leg proposes, and others where both together give too few."""
    proposed: IntArray = np.unique(np.concatenate([lexical, dense]))
    proposed = proposed[proposed >= 0]
    if len(proposed) < fewest:
        others = np.setdiff1d(np.arange(total), proposed)[: fewest - len(proposed)]
        proposed = np.concatenate([proposed, others])
    return proposed


def _known(labelled: Labelled, rows: IntArray) -> BoolArray:
    width = labelled.relevant.shape[1]
    queries, answers = labelled.relevant.nonzero()
    known = queries.astype(np.int64) * width + answers
    return np.isin(np.arange(len(rows))[:, None] * width + rows, known)


def joined(parts: Sequence[CandidateLists]) -> CandidateLists:
    """Put the lists of several parts one after the other."""
    return CandidateLists(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.bm25 for part in parts]),
        np.concatenate([part.cosine for part in parts]),
        np.concatenate([part.relevant for part in parts]),
    )
