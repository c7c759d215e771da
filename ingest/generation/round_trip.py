"""The round trip: a query is kept where a search with it finds the passage it was written for."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.fusion import TOWER_WEIGHT, HybridWeights
from two_tower.models.examples.candidates import DEPTH, candidate_lists
from two_tower.models.examples.pairs import Labelled
from two_tower.models.progress import working
from two_tower.models.text.bm25 import Analyzer, Bm25Index
from two_tower.models.vectors import BoolArray, IntArray, Vectors


def finds_its_passage(
    queries: Sequence[str],
    rows: IntArray,
    texts: Sequence[str],
    *,
    within: int,
    analyzer: Analyzer,
    titles: Sequence[str] = (),
    bundle: ModelBundle | None = None,
) -> BoolArray:
    """Return (n,) bool: whether each query has its passage among the best `within`.

    All passages are ranked, exactly: by BM25, or by the bundle's hybrid of BM25 and tower.

    Args:
        queries: n of them.
        rows: (n,) int64, the passage that each was written for.
        texts: `Passage.content` of all passages.
        within: how high the passage must stand.
        analyzer: gives BM25 its terms.
        titles: of all passages; by default none has one.
        bundle: ranks, where it is given.
    """
    if not len(queries):
        return np.zeros(0, dtype=bool)
    index = Bm25Index(texts, analyzer, titles=titles)
    if bundle is None:
        best = index.search(queries, within).rows
        return np.asarray((best == rows[:, None]).any(axis=1))
    pairs = (np.ones(len(rows), dtype=bool), (np.arange(len(rows)), rows))
    relevant = sparse.csr_matrix(pairs, shape=(len(rows), len(texts)))
    labelled = Labelled(list(queries), relevant, [str(number) for number in range(len(queries))])
    with working("encoding"):
        vectors = Vectors(bundle.encode_queries(queries), bundle.encode_passages(texts))
    lists = candidate_lists(labelled, vectors, index, size=max(DEPTH, within))
    weights = bundle.fusion.hybrid if bundle.fusion else HybridWeights(TOWER_WEIGHT)
    ranked = lists.ordered(np.asarray(weights.scores(lists.bm25, lists.cosine), np.float32))
    return np.asarray(ranked.first(within).relevant.any(axis=1))
