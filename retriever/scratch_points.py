"""The points of a scratch copy: read from its source, clustered, in batches."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from qdrant_client import models as qm

from two_tower.retriever.clusters import Centroids, sample_size
from two_tower.retriever.engine_protocol import Engine
from two_tower.retriever.schema import BM25, DENSE, read_metadata

PAGE = 256
BATCH_BYTES = 8 * 2**20
FLOAT_BYTES = 24  # one float in JSON, at most


class Contents(NamedTuple):
    """What goes into a copy.

    Attributes:
        points: at most that many; None for all.
        first: ids of points that are to be in it before any other.
        has_reduced: whether the PCA vectors are copied too.
        clusters: numbers of clusters that will be asked of it.
    """

    points: int | None = None
    first: Sequence[str] = ()
    has_reduced: bool = False
    clusters: Sequence[int] = ()


def fit_centroids(engine: Engine, source: str, counts: Sequence[int]) -> dict[int, Centroids]:
    """Return the centres of k-means over points that lie first by id, which is at random."""
    if not counts:
        return {}
    size = sample_size(max(counts))
    pages = _pages(engine, source, vectors=[DENSE], payload=False)
    vectors: list[Any] = []
    for page in pages:
        vectors += [named(record.vector)[DENSE] for record in page]
        if len(vectors) >= size:
            break
    sample = np.array(vectors, dtype=np.float32)
    return {count: Centroids.fit(sample, count) for count in counts}


def read_points(engine: Engine, source: str, contents: Contents) -> Iterator[qm.Record]:
    """Yield what goes into a copy, with payload and vectors."""
    reduced = read_metadata(engine, source).schema.widths if contents.has_reduced else {DENSE: 0}
    names = [*reduced, BM25]
    left = contents.points if contents.points is not None else engine.count(source).count
    first = list(dict.fromkeys(contents.first))[:left]
    for start in range(0, len(first), PAGE):
        ids = first[start : start + PAGE]
        found = engine.retrieve(source, ids, with_payload=True, with_vectors=names)
        left -= len(found)
        yield from found
    seen = set(first)
    for page in _pages(engine, source, vectors=names, payload=True):
        for record in page:
            if left and str(record.id) not in seen:
                left -= 1
                yield record
        if not left:
            return


def _pages(
    engine: Engine, source: str, *, vectors: list[str], payload: bool
) -> Iterator[list[qm.Record]]:
    offset: Any = None
    while True:
        page, offset = engine.scroll(
            source, limit=PAGE, offset=offset, with_payload=payload, with_vectors=vectors
        )
        yield page
        if offset is None:
            return


def in_batches(records: Iterator[qm.Record]) -> Iterator[list[qm.PointStruct]]:
    """Yield points in batches that fit into a request."""
    batch: list[qm.PointStruct] = []
    size = 0
    for record in records:
        vector = named(record.vector)
        floats = sum(
            2 * len(v.values) if isinstance(v, qm.SparseVector) else len(v) for v in vector.values()
        )
        bytes_needed = len(json.dumps(record.payload)) + FLOAT_BYTES * floats
        if batch and (len(batch) == PAGE or size + bytes_needed > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        payload = record.payload or {}
        batch.append(qm.PointStruct.model_construct(id=record.id, vector=vector, payload=payload))
        size += bytes_needed
    if batch:
        yield batch


def named(vector: Any) -> dict[str, Any]:
    """Return the vectors of a point by name."""
    assert isinstance(vector, dict)  # all of ours have names
    return vector
