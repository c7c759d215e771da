"""The clusters of a collection: each point knows its own, each query the nearest few.

A query that looks into the `n_probe` nearest of k clusters compares itself with about n_probe / k
of the points. The engine does that as a filter on an indexed payload field.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np

from two_tower.models.vectors import AnyFloatArray, FloatArray
from two_tower.retriever.collection.schema import CLUSTER
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.errors import CollectionMismatch

if TYPE_CHECKING:
    from two_tower.retriever.collection.schema import CollectionMetadata


PER_CLUSTER = 64
SMALLEST_SAMPLE = 10_000
SEED = 0


def sample_size(clusters: int) -> int:
    """Return how many vectors k-means is to be fitted to."""
    return max(SMALLEST_SAMPLE, PER_CLUSTER * clusters)


class Centroids:
    """The centres of k clusters; a vector belongs to the one at the smallest angle."""

    def __init__(self, vectors: AnyFloatArray) -> None:
        """Take `(k, dim)` centres, rounded to float16 as they are stored."""
        self._half = vectors.astype("<f2")
        # In float64, lest a batch of another size rounds a point into another cluster.
        full = self._half.astype(np.float64)
        self._vectors = full / np.maximum(np.linalg.norm(full, axis=1, keepdims=True), 1e-9)

    @classmethod
    def fit(cls, vectors: FloatArray, clusters: int) -> Centroids:
        """Return the centres of k-means over `(n, dim) float32`, n at least `clusters`.

        Sculley, "Web-Scale K-Means Clustering", 2010, from k-means++ beginnings.
        """
        from sklearn.cluster import MiniBatchKMeans

        kmeans = MiniBatchKMeans(clusters, random_state=SEED, batch_size=4096, n_init=1)
        return cls(kmeans.fit(vectors).cluster_centers_)

    def __len__(self) -> int:
        return len(self._half)

    @classmethod
    def from_metadata(cls, metadata: CollectionMetadata) -> Centroids | None:
        """Return the centroids of a collection, None where it has no clusters.

        Raises:
            CollectionMismatch: they are not what its options say.
        """
        if not metadata.options.clusters:
            return None
        try:
            stored = np.frombuffer(base64.b64decode(metadata.centroids, validate=True), "<f2")
            return cls(stored.reshape(metadata.options.clusters, metadata.dim))
        except ValueError:
            raise CollectionMismatch(
                f"the metadata has centroids of {len(metadata.centroids):,} characters, which are "
                f"not {metadata.options.clusters} of {metadata.dim} dimensions; "
                "drop the collection and run ingest load again"
            ) from None

    def pack(self) -> str:
        """Return them as text for a collection's metadata: 2.7 bytes per dimension."""
        return base64.b64encode(self._half.tobytes()).decode("ascii")

    def assign(self, vectors: FloatArray) -> list[int]:
        """Return the cluster of each of `(n, dim) float32`."""
        nearest: list[int] = np.argmax(
            vectors.astype(np.float64) @ self._vectors.T, axis=1
        ).tolist()
        return nearest

    def nearest(self, query: FloatArray, count: int) -> list[int]:
        """Return the `count` clusters nearest to `(dim,) float32`, nearest first."""
        order: list[int] = np.argsort(-(self._vectors @ query), kind="stable")[:count].tolist()
        return order

    def probe(self, query: FloatArray, count: int) -> qm.Filter:
        """Return a filter that leaves the points of the nearest `count` clusters."""
        clusters = self.nearest(query, count)
        return qm.Filter(must=[qm.FieldCondition(key=CLUSTER, match=qm.MatchAny(any=clusters))])
