"""Passages to points: dense vectors by the bundle, BM25 weights, payload, cluster."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from two_tower.models.data import Passage
from two_tower.models.errors import BundleError
from two_tower.models.vectors import ByteArray, FloatArray
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.clusters import Centroids
from two_tower.retriever.collection.schema import (
    BM25,
    CLUSTER,
    DENSE,
    LATE,
    CollectionMetadata,
    pca_name,
    point_id,
    to_payload,
)
from two_tower.retriever.engine.wire import Point, Vector

ENCODE_SIZE = 1024

T = TypeVar("T")


class PassageEncoder(Protocol):
    """The part of `ModelBundle` that loading needs."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits: the hash of what decides a vector."""

    @property
    def dim(self) -> int:
        """Width of a passage vector; 0 for none: BM25 alone."""

    @property
    def pca_dims(self) -> tuple[int, ...]:
        """Widths that `reduce` gives."""

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return `(n, dim) float32, L2-normalised`."""

    @property
    def late_dim(self) -> int:
        """Width of each vector of late interaction; 0 for none."""

    def reduce(self, vectors: FloatArray) -> dict[int, FloatArray]:
        """Return `(n, d) float32, L2-normalised` for each d of `pca_dims`."""


@runtime_checkable
class LateEncoder(Protocol):
    """What encoders with a `late_dim` above 0 can do beside that."""

    def encode_passages_late(self, texts: Sequence[str]) -> tuple[FloatArray, list[ByteArray]]:
        """Return what `encode_passages` does, and `(m, late_dim) uint8` for each passage."""


@runtime_checkable
class StoredVectors(Protocol):
    """An encoder that knows the vectors of passages already."""

    def passage_vectors(self, passages: Sequence[Passage]) -> FloatArray:
        """Return `(n, dim) float32, L2-normalised`."""


def dense_vectors(encoder: PassageEncoder, passages: Sequence[Passage]) -> FloatArray:
    """Return the vectors of passages: those that are stored somewhere, or made of their texts."""
    if isinstance(encoder, StoredVectors):
        return encoder.passage_vectors(passages)
    return encoder.encode_passages([passage.content for passage in passages])


class PointMaker:
    """Makes the points of one collection; the same passage always gives the same point."""

    def __init__(self, encoder: PassageEncoder, metadata: CollectionMetadata) -> None:
        self._encoder = encoder
        self._bm25 = Bm25Encoder.of(metadata.bm25, encoder)
        self._centroids = Centroids.from_metadata(metadata)
        self._has_late = metadata.late_dim > 0
        self._expansion = metadata.options.expansion

    def make(self, passages: Sequence[Passage]) -> Iterator[Point]:
        """Yield the point of each passage.

        Raises:
            BundleError: the encoder gives vectors of another shape than it says.
        """
        if not passages:
            return
        dense, late = self._encode(passages)
        sparse = self._bm25.encode_passages(passages, expansion=self._expansion)
        clusters = self._centroids.assign(dense[DENSE]) if self._centroids else None
        for row, passage in enumerate(passages):
            vector: dict[str, Vector] = {name: part[row] for name, part in dense.items()}
            vector[BM25] = sparse[row]
            if late:
                vector[LATE] = late[row]
            payload = to_payload(passage)
            if clusters is not None:
                payload[CLUSTER] = clusters[row]
            yield Point(point_id(passage.passage_id), vector, payload)

    def _encode(self, passages: Sequence[Passage]) -> tuple[dict[str, FloatArray], list[ByteArray]]:
        late: list[ByteArray] = []
        if self._has_late and isinstance(self._encoder, LateEncoder):
            texts = [passage.content for passage in passages]
            full, late = self._encoder.encode_passages_late(texts)
        else:
            full = dense_vectors(self._encoder, passages)
        if not self._encoder.dim:
            return {}, []
        vectors = {DENSE: full}
        vectors |= {pca_name(dim): part for dim, part in self._encoder.reduce(full).items()}
        expected = {DENSE: self._encoder.dim} | {pca_name(d): d for d in self._encoder.pca_dims}
        shapes = {name: part.shape for name, part in vectors.items()}
        if shapes != {name: (len(passages), dim) for name, dim in expected.items()}:
            raise BundleError(
                f"the bundle gives vectors of shapes {shapes} for {len(passages)} passages, "
                f"expected widths {expected}; train it again with: models train"
            )
        if not all(np.isfinite(part).all() for part in vectors.values()):
            raise BundleError("the bundle gives vectors that are not finite; train it again")
        return vectors, late


def chunks(items: Iterable[T], size: int = ENCODE_SIZE) -> Iterator[list[T]]:
    """Yield lists of up to `size` items."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
