"""What stands where a bundle would, for a collection of BM25 alone: an encoder of no vectors."""

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from two_tower.models.vectors import ByteArray, FloatArray


class NoTower:
    """The part of `ModelBundle` that loading and searching need, with vectors of no dimension.

    Attributes:
        fingerprint: 64 hex digits, as a bundle has; no bundle has these.
        dim: width of its vectors.
        card: empty, for it was not trained.
    """

    fingerprint = hashlib.sha256(b"BM25 without a tower").hexdigest()
    dim = late_dim = cross_candidates = 0
    pca_dims: tuple[int, ...] = ()
    has_cross_scorer = asks_endpoint = False
    fusion = documents = None
    card: Mapping[str, Any] = MappingProxyType({})
    extras: Mapping[str, bytes] = MappingProxyType({})

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return `(n, 0) float32`."""
        return np.zeros((len(texts), 0), dtype=np.float32)

    def encode_queries(self, texts: Sequence[str], *, limit_s: float | None = None) -> FloatArray:
        """Return `(n, 0) float32`."""
        return self.encode_passages(texts)

    def encode_queries_late(self, texts: Sequence[str]) -> tuple[FloatArray, list[ByteArray]]:
        """Return vectors as `encode_queries` does, and no token vectors."""
        return self.encode_queries(texts), []

    def reduce(self, vectors: FloatArray) -> dict[int, FloatArray]:
        """Return nothing: there is no shorter vector."""
        return {}

    def cross_scores(
        self,
        queries: Sequence[str],
        passages: Sequence[Sequence[str]],
        *,
        bm25: Sequence[FloatArray],
        cosine: Sequence[FloatArray],
    ) -> list[FloatArray]:
        """Return zeros: nothing reads the passages."""
        return [np.zeros(len(texts), dtype=np.float32) for texts in passages]
