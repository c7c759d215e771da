"""Scratch copies: a collection's own points under another name, to be stored in other ways.

A copy is named `<name>--tune-<8 digits>` and says in its metadata which process made it. It is
dropped when its block ends, however it ends; what a killed process left, the next one removes.
"""

import math
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from qdrant_client import models as qm

from two_tower.models.console import progress
from two_tower.models.files import is_alive
from two_tower.retriever.collection.clusters import Centroids, sample_size
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import BM25, CLUSTER, DENSE, base_name, read_metadata
from two_tower.retriever.engine.protocol import POINTS_PER_PAGE, Engine, scroll_all
from two_tower.retriever.engine.wire import batches
from two_tower.retriever.errors import EngineError, EngineLocked


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
    size = math.ceil(sample_size(max(counts)) / POINTS_PER_PAGE) * POINTS_PER_PAGE
    records = scroll_all(engine, source, with_payload=False, with_vectors=[DENSE])
    vectors = [named(record.vector)[DENSE] for record in islice(records, size)]
    sample = np.array(vectors, dtype=np.float32)
    return {count: Centroids.fit(sample, count) for count in counts}


def read_points(engine: Engine, source: str, contents: Contents) -> Iterator[qm.Record]:
    """Yield what goes into a copy, with payload and vectors."""
    reduced = read_metadata(engine, source).schema.widths if contents.has_reduced else {DENSE: 0}
    names = [*reduced, BM25]
    left = contents.points if contents.points is not None else engine.count(source).count
    first = list(dict.fromkeys(contents.first))[:left]
    for start in range(0, len(first), POINTS_PER_PAGE):
        ids = first[start : start + POINTS_PER_PAGE]
        found = engine.retrieve(source, ids, with_payload=True, with_vectors=names)
        left -= len(found)
        yield from found
    seen = set(first)
    for record in scroll_all(engine, source, with_vectors=names):
        if left and str(record.id) not in seen:
            left -= 1
            yield record
        if not left:
            return


def named(vector: Any) -> dict[str, Any]:
    """Return the vectors of a point by name."""
    assert isinstance(vector, dict)  # all of ours have names
    return vector


MARK = "--tune-"

OWNER = "tune"  # in the metadata: who made the copy, and when it was last heard of

SILENT_S = 3600.0

WAIT_EVERY = 16

POLL_S, STEADY_POLLS = 0.2, 5


class Scratch:
    """A copy, and what is known of its clusters.

    Attributes:
        collection: its name.
    """

    def __init__(self, engine: Engine, collection: str, centroids: Mapping[int, Centroids]) -> None:
        self._engine = engine
        self.collection = collection
        self._centroids = centroids
        self._ids: list[str] = []
        self._assigned: dict[int, list[int]] = {count: [] for count in centroids}

    def fill(self, source: str, contents: Contents) -> None:
        """Copy the points, noting which clusters they belong to."""
        total = contents.points or self._engine.count(source, exact=True).count
        records = read_points(self._engine, source, contents)
        shown = progress(records, label=f"Copying to {self.collection}", total=total)
        waiting: list[qm.Record] = []
        for number, batch in enumerate(batches(shown)):
            if waiting:
                self._engine.upsert(self.collection, waiting, wait=number % WAIT_EVERY == 0)
            self._assign(batch)
            waiting = batch
        self._engine.upsert(self.collection, waiting, wait=True)

    def store(self, options: CollectionOptions) -> None:
        """Have the engine store the points otherwise, and wait until it has."""
        metadata = read_metadata(self._engine, self.collection)
        packed = ""
        if options.clusters:
            self._write_clusters(options.clusters)
            packed = self._centroids[options.clusters].pack()
        stored = {"options": options.to_dict(), "centroids": packed, OWNER: _owner()}
        changes = on_one_node(options).changes(metadata.schema.vectors_config)
        self._engine.update_collection(self.collection, **changes, metadata=stored)
        if not self._engine.optimize(self.collection):
            wait_until_green(self._engine, self.collection)

    def _assign(self, batch: Sequence[qm.Record]) -> None:
        if not self._centroids:
            return
        vectors = np.array([named(point.vector)[DENSE] for point in batch], dtype=np.float32)
        self._ids += [str(point.id) for point in batch]
        for count, centroids in self._centroids.items():
            self._assigned[count] += centroids.assign(vectors)

    def _write_clusters(self, count: int) -> None:
        members: dict[int, list[Any]] = {}
        for point, cluster in zip(self._ids, self._assigned[count], strict=True):
            members.setdefault(cluster, []).append(point)
        for cluster, points in members.items():
            change = qm.SetPayload(payload={CLUSTER: cluster}, points=points)
            operation = qm.SetPayloadOperation(set_payload=change)
            self._engine.batch_update_points(self.collection, [operation])


@contextmanager
def scratch_copy(engine: Engine, source: str, contents: Contents) -> Iterator[Scratch]:
    """Give a copy of a collection; it is gone when the block ends.

    Raises:
        EngineLocked: another run has a copy of the same collection.
    """
    clear_leftovers(engine, source)
    metadata = read_metadata(engine, source)
    options = replace(metadata.options, clusters=0)
    reduced = metadata.pca_dims if contents.has_reduced else ()
    fresh = replace(metadata, pca_dims=reduced, centroids="", options=on_one_node(options))
    name = f"{base_name(source)}{MARK}{secrets.token_hex(4)}"
    centroids = fit_centroids(engine, source, contents.clusters)
    stored = fresh.to_dict() | {OWNER: _owner()}
    try:
        engine.create_collection(name, **fresh.schema.creation, metadata=stored)
        engine.create_payload_index(name, CLUSTER, qm.PayloadSchemaType.INTEGER)
        scratch = Scratch(engine, name, centroids)
        scratch.fill(source, contents)
        yield scratch
    finally:
        engine.delete_collection(name)


def clear_leftovers(engine: Engine, source: str) -> list[str]:
    """Drop copies whose process is gone, and return their names.

    Raises:
        EngineLocked: one is in use.
    """
    mark = base_name(source) + MARK
    names = [found.name for found in engine.get_collections().collections]
    leftovers = [name for name in names if name.startswith(mark)]
    for name in leftovers:
        owner = (engine.get_collection(name).config.metadata or {}).get(OWNER, {})
        if _is_alive(owner):
            raise EngineLocked(
                f"process {owner['pid']} on {owner['host']} tunes {base_name(source)!r} and has "
                f"the copy {name}; wait for it, or stop it and run: ingest drop {name} --yes"
            )
        engine.delete_collection(name)
    return leftovers


def wait_until_green(engine: Engine, collection: str) -> None:
    """Wait for a server to finish graphs and copies of vectors.

    Raises:
        EngineError: it gives up on them.
    """
    steady = 0
    while steady < STEADY_POLLS:  # a change may take a moment to begin
        status = engine.get_collection(collection).status
        if status == qm.CollectionStatus.RED:
            raise EngineError(f"the server cannot optimize {collection}; see its log")
        steady = steady + 1 if status == qm.CollectionStatus.GREEN else 0
        time.sleep(POLL_S)


def on_one_node(options: CollectionOptions) -> CollectionOptions:
    """Return options without shards and replicas: one of each measures a setting as well."""
    return replace(options, shards=None, replicas=None, write_consistency=None)


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "seen_at": time.time()}


def _is_alive(owner: Mapping[str, Any]) -> bool:
    """A process elsewhere counts as gone when it was not heard of for an hour."""
    if not owner or (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid()):
        return False
    if owner["host"] != socket.gethostname():
        return bool(time.time() - owner["seen_at"] < SILENT_S)
    return is_alive(owner["pid"])
