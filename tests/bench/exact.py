"""Rank a whole corpus in memory, without an engine: the tower alone, BM25, and both together."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.bundle import ModelBundle
from models.data import Dataset, Qrel, Query
from models.lexical import Bm25Index, Ranked
from retriever.measures import answerable, per_query
from retriever.stages import TOWER_WEIGHT

DEPTH = 100
BLOCK = 256

FloatArray = npt.NDArray[np.float32]
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
    index = Bm25Index(contents)
    judged = {}
    for split in splits:
        queries, qrels = answerable(data.queries(split), data.qrels(split))
        ranked = index.search([query.text for query in queries], min(DEPTH, len(contents)))
        judged[split] = Judged(queries, qrels, ranked)
    return Collection([passage.passage_id for passage in passages], contents, judged)


def measure(bundle: ModelBundle, collection: Collection) -> dict[str, dict[str, Metrics]]:
    """Return split -> {"tower": metrics, "hybrid": metrics}, means over its queries."""
    passages = bundle.encode_passages(collection.contents)
    results = {}
    for split, judged in collection.splits.items():
        queries = bundle.encode_queries([query.text for query in judged.queries])
        tower = best_by_cosine(queries, passages, k=min(DEPTH, len(passages)))
        hybrid = fuse(tower.rows, judged.bm25, queries=queries, passages=passages)
        results[split] = {
            "tower": means(tower.rows, judged, ids=collection.ids),
            "hybrid": means(hybrid, judged, ids=collection.ids),
        }
    return results


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
    tower: npt.NDArray[np.int64], bm25: Ranked, *, queries: FloatArray, passages: FloatArray
) -> list[npt.NDArray[np.int64]]:
    """Return the candidates of both legs by BM25 + w * cosine, best first, for each query.

    As `Retriever.search` does it: every candidate's cosine is exact, and what BM25 left out has
    the last BM25 score, or 0 where BM25 had no more to give.
    """
    fused = []
    for i, vector in enumerate(queries):
        found = bm25.rows[i] >= 0
        floor = float(bm25.scores[i, -1]) if found.all() else 0.0
        candidates = np.union1d(tower[i], bm25.rows[i][found])
        lexical = np.full(len(candidates), floor)
        lexical[np.searchsorted(candidates, bm25.rows[i][found])] = bm25.scores[i][found]
        scores = lexical + TOWER_WEIGHT * (passages[candidates] @ vector)
        fused.append(candidates[np.argsort(-scores, kind="stable")[:DEPTH]])
    return fused


def means(
    ranked: npt.NDArray[np.int64] | list[npt.NDArray[np.int64]], judged: Judged, *, ids: list[str]
) -> Metrics:
    """Return every measure of `retriever.evaluate`, its mean over the queries."""
    rankings = {
        query.query_id: [ids[row] for row in rows if row >= 0]
        for query, rows in zip(judged.queries, ranked, strict=True)
    }
    values = per_query(rankings, judged.qrels)
    return {name: float(column.mean()) for name, column in values.items()}
