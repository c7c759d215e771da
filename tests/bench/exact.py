"""Rank a whole corpus in memory, without an engine: the tower, BM25, both, the cross-scorer."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.fusion import TOWER_WEIGHT
from two_tower.models.data import Dataset, Qrel, Query
from two_tower.models.text.bm25 import Bm25Index, Ranked
from two_tower.models.vectors import FloatArray
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer
from two_tower.retriever.evaluation.measures import answerable, per_query

DEPTH = 100
BLOCK = 256

Metrics = dict[str, float]


class Judged(NamedTuple):
    """The answerable queries of a split and what BM25 finds for them.

    Attributes:
        queries: those with a relevant passage.
        qrels: their judgements; what is not judged counts as irrelevant.
        bm25: their best passages.
    """

    queries: list[Query]
    qrels: list[Qrel]
    bm25: Ranked


class Fused(NamedTuple):
    """The candidates of both legs for one query, best first.

    Attributes:
        rows: (n,) passages.
        bm25: (n,) float32, 0 where BM25 did not find them.
        cosine: (n,) float32.
        scores: (n,) what they are ranked by.
    """

    rows: npt.NDArray[np.int64]
    bm25: FloatArray
    cosine: FloatArray
    scores: npt.NDArray[np.float64]


class Collection(NamedTuple):
    """A corpus and its judged splits.

    Attributes:
        ids: one per passage.
        contents: what towers and BM25 read.
        splits: name -> queries.
    """

    ids: list[str]
    contents: list[str]
    splits: dict[str, Judged]


def read_collection(path: Path, splits: Sequence[str]) -> Collection:
    """Read a DATA folder and rank its passages for the queries of `splits` by BM25."""
    data = Dataset.open(path)
    passages = list(data.passages())
    contents = [passage.content for passage in passages]
    index = Bm25Index(contents, EngineAnalyzer(), titles=[each.title for each in passages])
    judged = {}
    for split in splits:
        queries, qrels = answerable(data.queries(split), data.qrels(split))
        ranked = index.search([query.text for query in queries], min(DEPTH, len(contents)))
        judged[split] = Judged(queries, qrels, ranked)
    return Collection([passage.passage_id for passage in passages], contents, judged)


def measure(bundle: ModelBundle, collection: Collection) -> dict[str, dict[str, Metrics]]:
    """Return split -> {"tower": metrics, "hybrid": metrics}, means over its queries.

    "learnt" and "cross" are beside them where the bundle brings weights and a cross-scorer.
    """
    passages = bundle.encode_passages(collection.contents)
    return {
        split: {
            system: means([rows[:DEPTH] for rows in ranked], judged, ids=collection.ids)
            for system, ranked in rankings(bundle, passages, judged, collection.contents).items()
        }
        for split, judged in collection.splits.items()
    }


def rankings(
    bundle: ModelBundle, passages: FloatArray, judged: Judged, contents: Sequence[str]
) -> dict[str, list[npt.NDArray[np.int64]]]:
    """Return system -> the passages that it finds for each query, best first."""
    texts = [query.text for query in judged.queries]
    queries = bundle.encode_queries(texts)
    tower = best_by_cosine(queries, passages, k=min(DEPTH, len(passages))).rows
    summed = partial(fuse, tower, judged.bm25, queries=queries, passages=passages)
    found = {"tower": list(tower), "hybrid": [each.rows for each in summed(TOWER_WEIGHT)]}
    if bundle.fusion:
        learnt = summed(bundle.fusion.hybrid.tower)
        found["learnt"] = [each.rows for each in learnt]
        if bundle.has_cross_scorer:
            pairs = zip(texts, learnt, strict=True)
            found["cross"] = [read(bundle, text, each, contents) for text, each in pairs]
    return found


def bm25_metrics(collection: Collection) -> dict[str, Metrics]:
    """Return split -> metrics of BM25 alone."""
    return {
        split: means(judged.bm25.rows, judged, ids=collection.ids)
        for split, judged in collection.splits.items()
    }


def best_by_cosine(queries: FloatArray, passages: FloatArray, *, k: int) -> Ranked:
    """Return the k nearest passages (m, dim) of each query (n, dim), best first."""
    rows = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), BLOCK):
        cosines = queries[start : start + BLOCK] @ passages.T
        near = np.sort(np.argpartition(-cosines, k - 1, axis=1)[:, :k], axis=1)
        values = np.take_along_axis(cosines, near, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        rows[start : start + BLOCK] = np.take_along_axis(near, order, axis=1)
        scores[start : start + BLOCK] = np.take_along_axis(values, order, axis=1)
    return Ranked(rows, scores)


def fuse(
    tower: npt.NDArray[np.int64],
    bm25: Ranked,
    weight: float,
    *,
    queries: FloatArray,
    passages: FloatArray,
) -> list[Fused]:
    """Return the candidates of both legs by BM25 + weight * cosine, best first, for each query.

    As `Retriever.search` does it: every candidate's cosine is exact, and what BM25 left out has
    the last BM25 score, or 0 where BM25 had no more to give.
    """
    fused = []
    for i, vector in enumerate(queries):
        found = bm25.rows[i] >= 0
        floor = float(bm25.scores[i, -1]) if found.all() else 0.0
        candidates = np.union1d(tower[i], bm25.rows[i][found])
        known = np.zeros(len(candidates), dtype=np.float32)
        places = np.searchsorted(candidates, bm25.rows[i][found])
        known[places] = bm25.scores[i][found]
        lexical = np.full(len(candidates), floor)
        lexical[places] = known[places]
        cosine = passages[candidates] @ vector
        scores = lexical + weight * cosine
        best = np.argsort(-scores, kind="stable")
        fused.append(Fused(candidates[best], known[best], cosine[best], scores[best]))
    return fused


def read(
    bundle: ModelBundle, query: str, fused: Fused, contents: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Return the rows with the best of them in the order that the cross-scorer gives them."""
    count, weights = bundle.cross_candidates, bundle.fusion and bundle.fusion.final
    assert weights, "asked of bundles with a cross-scorer"
    first = slice(count)
    (logits,) = bundle.cross_scores(
        [query],
        [[contents[row] for row in fused.rows[first]]],
        bm25=[fused.bm25[first]],
        cosine=[fused.cosine[first]],
    )
    worth = weights.worth(fused.scores[first], logits.astype(np.float64))
    order = np.argsort(-worth, kind="stable")
    return np.concatenate([fused.rows[first][order], fused.rows[count:]])


def means(ranked: Iterable[npt.NDArray[np.int64]], judged: Judged, *, ids: list[str]) -> Metrics:
    """Return every measure of `retriever.evaluate`, its mean over the queries."""
    rankings = {
        query.query_id: [ids[row] for row in rows if row >= 0]
        for query, rows in zip(judged.queries, ranked, strict=True)
    }
    values = per_query(rankings, judged.qrels)
    return {name: float(column.mean()) for name, column in values.items()}
