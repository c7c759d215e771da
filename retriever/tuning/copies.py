"""Temporary copies: a collection's own points under another name, to be stored in other ways.

A copy is named `<name>--tune-<8 digits>` and says in its metadata which process made it. It is
dropped when its block ends, however it ends; what a killed process left, the next one removes.
"""

import os
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Self

import numpy as np

from two_tower.models.files import is_alive
from two_tower.models.progress import progress, working
from two_tower.retriever.collection.clusters import Centroids, sample_size
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import BM25, CLUSTER, DENSE, LATE, base_name
from two_tower.retriever.engine.protocol import (
    POINTS_PER_PAGE,
    Engine,
    collection_names,
    scroll_all,
    stored_metadata,
)
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.engine.wire import Record, batches
from two_tower.retriever.errors import EngineError, EngineLocked
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings

MARK = "--tune-"

OWNER = "tune"  # key in the metadata: the process that made the copy, and its last sign of life

SILENT_S = 3600.0

WAIT_EVERY = 16

POLL_S, STEADY_POLLS = 0.2, 5


class TemporaryCopy:
    """A copy, made when it is first needed and dropped when its block ends.

    A copy of a part has all vectors, for it replaces the collection in every measurement; a copy of
    the whole has no PCA vectors.
    """

    def __init__(
        self,
        engine: Engine,
        source: Retriever,
        *,
        points: int,
        answers: Sequence[str],
        clusters: Sequence[int],
        say: Callable[[str], None],
    ) -> None:
        """Copy nothing yet.

        The copy has `points` points, those of `answers` first. `clusters` are the numbers of
        clusters that `store` may ask for. `say` receives one line for each long step.
        """
        self._engine, self._source, self._say = engine, source, say
        self._points, self._answers, self._clusters = points, answers, clusters
        self._is_part = points < source.size
        self._metadata = replace(
            source.metadata,
            pca_dims=source.metadata.pca_dims if self._is_part else (),
            late_dim=source.metadata.late_dim if self._is_part else 0,
            centroids="",
            options=on_one_node(replace(source.metadata.options, clusters=0)),
        )
        self._name: str | None = None
        self._centroids: dict[int, Centroids] = {}
        self._members: dict[int, dict[int, list[Any]]] = {}  # clusters -> cluster -> points

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._name is not None:
            self._engine.delete_collection(self._name)

    def store(self, options: CollectionOptions) -> Retriever:
        """Store the points of the copy with other options and return a retriever over it."""
        name = self._name or self._make()
        copies, clusters = options.quantization, options.clusters
        bits = f" {copies.bits:g} bits" if copies.kind == "binary" else ""
        self._say(f"Storing the copy with {clusters} clusters, quantization {copies.kind}{bits}")
        for cluster, points in self._members[clusters].items() if clusters else ():
            change = qm.SetPayload(payload={CLUSTER: cluster}, points=points)
            operation = qm.SetPayloadOperation(set_payload=change)
            self._engine.batch_update_points(name, [operation])
        centroids = self._centroids[clusters].pack() if clusters else ""
        metadata = {"options": options.to_dict(), "centroids": centroids, OWNER: _owner()}
        schema = replace(self._metadata, options=on_one_node(options)).schema
        self._engine.update_collection(name, **schema.changes, metadata=metadata)
        if not self._engine.optimize(name):
            wait_until_green(self._engine, name)
        return Retriever(self._engine, name, self._source.bundle, settings=SearchSettings())

    def _make(self) -> str:
        """Copy the points, noting which clusters they belong to; return the name of the copy."""
        source, engine = self._source.collection, self._engine
        widths = self._metadata.schema.widths
        clear_leftovers(engine, source)
        self._say(
            f"Copying {self._points:,} of {self._source.size:,} passages, about "
            f"{self._points * sum(widths.values()) * 8 / 1e6:,.0f} MB with their graph while this "
            "runs; --passages copies fewer"
        )
        if self._clusters:
            records = scroll_all(engine, source, with_payload=False, with_vectors=[DENSE])
            size = sample_size(max(self._clusters))  # ids, and so their order, are random
            sample = np.array([_named_vectors(r)[DENSE] for r in islice(records, size)], np.float32)
            self._centroids = {
                count: Centroids.fit(sample, count)
                for count in progress(self._clusters, label="Clustering")
            }
        self._name = name = f"{base_name(source)}{MARK}{secrets.token_hex(4)}"
        metadata = self._metadata.to_dict() | {OWNER: _owner()}
        engine.create_collection(name, **self._metadata.schema.creation, metadata=metadata)
        engine.create_payload_index(name, CLUSTER, qm.PayloadSchemaType.INTEGER)
        late = [LATE] if self._metadata.late_dim else []
        records = self._records([*widths, *late, BM25])
        shown = progress(records, label=f"Copying to {name}", total=self._points)
        unsent: list[Record] = []
        for number, batch in enumerate(batches(shown)):
            if unsent:
                engine.upsert(name, unsent, wait=number % WAIT_EVERY == 0)
            self._assign(batch)
            unsent = batch
        engine.upsert(name, unsent, wait=True)
        return name

    def _records(self, vectors: list[str]) -> Iterator[Record]:
        """Yield what goes into the copy, with payload and vectors."""
        left, collection = self._points, self._source.collection
        first = list(dict.fromkeys(self._answers))[:left] if self._is_part else []
        for start in range(0, len(first), POINTS_PER_PAGE):
            ids = first[start : start + POINTS_PER_PAGE]
            records = self._engine.retrieve(
                collection, ids, with_payload=True, with_vectors=vectors
            )
            left -= len(records)
            yield from records
        seen = set(first)
        others = scroll_all(self._engine, collection, with_payload=True, with_vectors=vectors)
        yield from islice((record for record in others if str(record.id) not in seen), left)

    def _assign(self, batch: Sequence[Record]) -> None:
        if not self._centroids:
            return
        vectors = np.array([_named_vectors(point)[DENSE] for point in batch], dtype=np.float32)
        for count, centroids in self._centroids.items():
            members = self._members.setdefault(count, defaultdict(list))
            for point, cluster in zip(batch, centroids.assign(vectors), strict=True):
                members[cluster].append(point.id)


def _named_vectors(point: Record) -> dict[str, Any]:
    """Return the vectors of a point by name."""
    assert isinstance(point.vector, dict)  # all of ours have names
    return point.vector


def clear_leftovers(engine: Engine, source: str) -> None:
    """Drop copies whose process is gone.

    Raises:
        EngineLocked: one is in use.
    """
    mark = base_name(source) + MARK
    for name in sorted(name for name in collection_names(engine) if name.startswith(mark)):
        owner = stored_metadata(engine, name).get(OWNER, {})
        if _is_in_use(owner):
            raise EngineLocked(
                f"process {owner['pid']} on {owner['host']} tunes {base_name(source)!r} and has "
                f"the copy {name}; wait for it, or stop it and run: ingest drop {name} --yes"
            )
        engine.delete_collection(name)


def wait_until_green(engine: Engine, collection: str) -> None:
    """Wait for a server to finish graphs and copies of vectors.

    Raises:
        EngineError: it gives up on them.
    """
    steady = 0
    with working(f"Building graphs of {collection}"):
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


def _is_in_use(owner: Mapping[str, Any]) -> bool:
    """Say whether the process lives; one on another host counts as gone after an hour's silence."""
    if not owner or (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid()):
        return False
    if owner["host"] != socket.gethostname():
        return bool(time.time() - owner["seen_at"] < SILENT_S)
    return is_alive(owner["pid"])
