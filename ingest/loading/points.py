"""Passages to points: encode, pack into batches that an engine takes in one request."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from two_tower.models.data import Passage
from two_tower.models.errors import BundleError, DataError
from two_tower.models.text.bm25 import Bm25Config
from two_tower.models.vectors import FloatArray
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.clusters import Centroids
from two_tower.retriever.collection.schema import (
    BM25,
    CLUSTER,
    DENSE,
    CollectionMetadata,
    pca_name,
    point_id,
    to_payload,
)
from two_tower.retriever.engine.wire import SPARSE, Point, Vector

T = TypeVar("T")

ENCODE_SIZE = 1024

BATCH_POINTS = 256

BATCH_BYTES = 8 * 2**20

LARGEST_POINT_BYTES = 30 * 2**20  # a server refuses requests over 32 MB

FLOAT_BYTES = 24  # one float in JSON, at most

LARGEST_CHARACTER = 6  # bytes in JSON, where it must be escaped


class PassageEncoder(Protocol):
    """The part of `ModelBundle` that loading needs."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits: the hash of what decides a vector."""

    @property
    def dim(self) -> int:
        """Width of a passage vector."""

    @property
    def pca_dims(self) -> tuple[int, ...]:
        """Widths that `reduce` gives."""

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return `(n, dim) float32, L2-normalised`."""

    def reduce(self, vectors: FloatArray) -> dict[int, FloatArray]:
        """Return `(n, d) float32, L2-normalised` for each d of `pca_dims`."""


class SizedPoint(NamedTuple):
    """A point and the most bytes it takes in a request."""

    point: Point
    size: int


class PointMaker:
    """Makes the points of one collection; the same passage always gives the same point."""

    def __init__(
        self, encoder: PassageEncoder, bm25: Bm25Encoder, *, centroids: Centroids | None = None
    ) -> None:
        self._encoder = encoder
        self._bm25 = bm25
        self._centroids = centroids

    @classmethod
    def of(cls, encoder: PassageEncoder, metadata: CollectionMetadata) -> "PointMaker":
        """Return the maker of the points of one collection."""
        bm25 = Bm25Encoder(Bm25Config(**metadata.bm25))
        return cls(encoder, bm25, centroids=Centroids.of(metadata))

    def make(self, passages: Sequence[Passage]) -> Iterator[SizedPoint]:
        """Yield the point of each passage.

        Raises:
            BundleError: the encoder gives vectors of another shape than it says.
            DataError: a passage is too large for one request.
        """
        if not passages:
            return
        texts = [passage.content for passage in passages]
        dense = self._encode(texts)
        sparse = self._bm25.weigh_passages(texts)
        clusters = self._centroids.assign(dense[DENSE]) if self._centroids else None
        for row, passage in enumerate(passages):
            vector: dict[str, Vector] = {name: part[row] for name, part in dense.items()}
            vector[BM25] = sparse[row]
            payload = to_payload(passage)
            if clusters is not None:
                payload[CLUSTER] = clusters[row]
            yield sized_point(passage.passage_id, vector, payload)

    def _encode(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        full = self._encoder.encode_passages(texts)
        vectors = {DENSE: full}
        vectors |= {pca_name(dim): part for dim, part in self._encoder.reduce(full).items()}
        expected = {DENSE: self._encoder.dim} | {pca_name(d): d for d in self._encoder.pca_dims}
        found = {name: part.shape for name, part in vectors.items()}
        if found != {name: (len(texts), dim) for name, dim in expected.items()}:
            raise BundleError(
                f"the bundle gives vectors of shapes {found} for {len(texts)} passages, "
                f"expected widths {expected}; train it again with: models train"
            )
        if not all(np.isfinite(part).all() for part in vectors.values()):
            raise BundleError("the bundle gives vectors that are not finite; train it again")
        return vectors


def sized_point(
    passage_id: str, vector: Mapping[str, Vector], payload: Mapping[str, Any]
) -> SizedPoint:
    """Return the point of a passage.

    Raises:
        DataError: it is too large for one request.
    """
    floats = sum(2 * len(v.values) if isinstance(v, SPARSE) else len(v) for v in vector.values())
    size = _most_bytes(payload) + FLOAT_BYTES * floats
    if size > LARGEST_POINT_BYTES:  # or so it seems
        size = len(json.dumps(payload)) + FLOAT_BYTES * floats
    if size > LARGEST_POINT_BYTES:
        raise DataError(
            f"passage {passage_id!r} takes {size:,} bytes as a point, at most "
            f"{LARGEST_POINT_BYTES:,} fit in a request; split it and run: ingest prepare"
        )
    return SizedPoint(Point(point_id(passage_id), vector, payload), size)


def _most_bytes(payload: Mapping[str, Any]) -> int:
    """Bound a payload's size in a request; writing it down to see would double the work."""
    return sum(
        LARGEST_CHARACTER * len(value) if isinstance(value, str) else len(json.dumps(value))
        for value in payload.values()
    ) + LARGEST_CHARACTER * sum(map(len, payload))


def pack(
    points: Iterable[SizedPoint], *, max_points: int = BATCH_POINTS, max_bytes: int = BATCH_BYTES
) -> Iterator[list[Point]]:
    """Yield batches in order, each as large as both limits allow and never empty."""
    batch: list[Point] = []
    size = 0
    for item in points:
        if batch and (len(batch) == max_points or size + item.size > max_bytes):
            yield batch
            batch, size = [], 0
        batch.append(item.point)
        size += item.size
    if batch:
        yield batch


def chunks(items: Iterable[T], size: int = ENCODE_SIZE) -> Iterator[list[T]]:
    """Yield lists of up to `size` items."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
