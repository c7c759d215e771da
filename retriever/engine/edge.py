"""The embedded engine: Qdrant Edge behind the part of `QdrantClient` that this project uses.

Edge is Qdrant's own Rust engine in this process. It knows shards; collections, aliases and
metadata are files beside them (`edge_folder`), and `edge_types` translates the client's types.
The write-ahead log stays on: without it a crash loses data.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from qdrant_client import models as qm
from qdrant_client.http.models import QueryResponse

from two_tower.retriever.engine import edge_config, edge_types
from two_tower.retriever.engine.edge_folder import (
    SHARD,
    EdgeFolder,
    folder_files,
    write_description,
    write_folder,
)
from two_tower.retriever.engine.failures import engine_errors, translated, unknown_name
from two_tower.retriever.engine.protocol import RETRY_FOR_S, AliasOperation, PayloadIndex
from two_tower.retriever.engine.snapshots import SnapshotFile
from two_tower.retriever.engine.wire import AnyPoint, Scored
from two_tower.retriever.errors import CollectionNotFound, EngineError

OPTIMIZE = (
    "import sys, qdrant_edge as e; s = e.EdgeShard.load(sys.argv[1]); s.optimize(); s.close()"
)

DONE = qm.UpdateResult(status=qm.UpdateStatus.COMPLETED)


class EdgeEngine:
    """The `Engine` that is a folder, which one process can have open at a time.

    Safe to share between threads; Edge holds the GIL during a call. Writes are in the write-ahead
    log when a call returns, and with `wait=True` flushed to disk.

    Attributes:
        where: the folder.
    """

    is_embedded = True

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the folder, making it where it is missing unless `create` is off.

        Raises:
            EngineLocked: another engine has it open.
            EngineUnavailable: it cannot be opened.
        """
        self.where = str(path)
        self._folder = EdgeFolder(path, create=create)
        self._shards: dict[str, edge.EdgeShard] = {}
        self._opening = threading.Lock()

    def with_retry(self, seconds: float = RETRY_FOR_S) -> "EdgeEngine":
        """Return this engine: it is never away."""
        return self

    def info(self) -> qm.VersionInfo:
        """Return the version of Edge."""
        return qm.VersionInfo(title="qdrant-edge", version=version("qdrant-edge-py"))

    @translated
    def close(self) -> None:
        """Flush everything and let go of the folder."""
        for name in list(self._shards):
            self._close_shard(name)
        self._folder.close()

    def _shard(self, name: str) -> edge.EdgeShard:
        home = self._folder.home(name)
        with self._opening:
            if home.name not in self._shards:
                self._shards[home.name] = edge.EdgeShard.load(str(home / SHARD))
            return self._shards[home.name]

    def _close_shard(self, name: str) -> None:
        shard = self._shards.pop(name, None)
        if shard is not None:
            shard.flush()
            shard.close()

    @translated
    def resolve(self, name: str) -> str:
        """Return the collection that alias `name` points to, or `name` if it is a collection."""
        collection = self._folder.find(name)
        if collection is None:
            raise unknown_name(name, self.where, self._folder.aliases())
        return collection

    @translated
    def optimize(self, collection_name: str) -> bool:
        """Merge segments and build HNSW graphs; the collection waits meanwhile.

        It runs in another process, for Edge would hold this one's GIL for up to minutes.
        """
        home = self._folder.home(collection_name)
        with self._opening:
            self._close_shard(home.name)
            done = subprocess.run(
                [sys.executable, "-c", OPTIMIZE, str(home / SHARD)],
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise EngineError(f"cannot optimize {collection_name} in {self.where}: {reason[0]}")
        return True

    @translated
    def collection_exists(self, collection_name: str) -> bool:
        """Say whether there is a collection or an alias of that name."""
        return self._folder.find(collection_name) is not None

    @translated
    def create_collection(
        self,
        collection_name: str,
        *,
        vectors_config: Mapping[str, qm.VectorParams],
        sparse_vectors_config: Mapping[str, qm.SparseVectorParams] | None = None,
        metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> bool:
        """Create an empty collection with named vectors; `options` as `edge_config` has them."""
        sparse = sparse_vectors_config or {}
        description = edge_config.new_description(vectors_config, sparse, options)
        config = edge_config.to_config(description)
        with self._folder.new_collection(collection_name) as draft:
            write_description(draft, description | {"metadata": metadata or {}})
            edge.EdgeShard.create(str(draft / SHARD), config).close()
        return True

    @translated
    def get_collection(self, collection_name: str) -> qm.CollectionInfo:
        """Return counts, vector parameters, payload indexes and metadata."""
        info = self._shard(collection_name).info()
        description = self._folder.description(collection_name)
        return qm.CollectionInfo(
            status=qm.CollectionStatus.GREEN,
            optimizer_status=qm.OptimizersStatusOneOf.OK,
            points_count=info.points_count,
            indexed_vectors_count=info.indexed_vectors_count,
            segments_count=info.segments_count,
            config=edge_config.to_collection_config(description),
            payload_schema={
                name: qm.PayloadIndexInfo(
                    data_type=edge_types.CLIENT_INDEXES[index.data_type], points=index.points
                )
                for name, index in info.payload_schema.items()
            },
        )

    def get_collections(self) -> qm.CollectionsResponse:
        """Return the names of all collections."""
        names = self._folder.names()
        return qm.CollectionsResponse(
            collections=[qm.CollectionDescription(name=name) for name in names]
        )

    @translated
    def delete_collection(self, collection_name: str) -> bool:
        """Delete a collection and its aliases; False where there is none of that name."""
        if collection_name not in self._folder.names():
            return False
        with self._opening:
            self._close_shard(collection_name)
            self._folder.remove(collection_name)
        return True

    @translated
    def update_collection(
        self, collection_name: str, *, metadata: dict[str, Any] | None = None, **options: Any
    ) -> bool:
        """Merge `metadata` into the collection's; let later `optimize` calls keep to `options`.

        A value of None takes its key out, as on a server.
        """
        home = self._folder.home(collection_name)
        description = self._folder.description(collection_name)
        if options:
            description = edge_config.changed(description, options)
            config = edge_config.to_config(description)
            with self._opening:
                self._close_shard(home.name)
                self._shards[home.name] = edge.EdgeShard.load(str(home / SHARD), config)
        merged = description["metadata"] | (metadata or {})
        description["metadata"] = {k: value for k, value in merged.items() if value is not None}
        write_description(home, description)
        return True

    @contextmanager
    def take_snapshot(self, collection_name: str) -> Iterator[list[SnapshotFile]]:
        """Give the collection's files, which do not change while the block lasts."""
        with engine_errors(self.where):
            home = self._folder.home(collection_name)
            with self._opening:
                self._close_shard(home.name)
                yield folder_files(home)

    @translated
    def restore_snapshot(self, collection_name: str, files: Iterable[SnapshotFile]) -> None:
        """Make a collection of what `take_snapshot` gave."""
        try:
            with self._folder.new_collection(collection_name) as draft:
                write_folder(draft, files)
                edge.EdgeShard.load(str(draft / SHARD)).close()
                os.sync()
        except OSError as error:
            reason = error.strerror or error
            raise EngineError(f"cannot write to {self.where} ({reason})") from None

    @translated
    def get_aliases(self) -> qm.CollectionsAliasesResponse:
        """Return all aliases."""
        return qm.CollectionsAliasesResponse(
            aliases=[
                qm.AliasDescription(alias_name=alias, collection_name=name)
                for alias, name in self._folder.aliases().items()
            ]
        )

    @translated
    def update_collection_aliases(
        self, change_aliases_operations: Sequence[AliasOperation]
    ) -> bool:
        """Create and delete aliases, all at once."""
        aliases, names = self._folder.aliases(), self._folder.names()
        for operation in change_aliases_operations:
            if isinstance(operation, qm.CreateAliasOperation):
                alias = operation.create_alias.alias_name
                collection = operation.create_alias.collection_name
                if collection not in names:
                    raise CollectionNotFound(f"{self.where} has no collection {collection!r}")
                if alias in names:
                    raise EngineError(
                        f"{self.where} has a collection {alias!r}; no alias can be that"
                    )
                aliases[alias] = collection
            elif isinstance(operation, qm.DeleteAliasOperation):
                aliases.pop(operation.delete_alias.alias_name, None)
            else:
                raise edge_types.unsupported(operation)
        self._folder.write_aliases(aliases)
        return True

    @translated
    def create_payload_index(
        self, collection_name: str, field_name: str, field_schema: PayloadIndex
    ) -> qm.UpdateResult:
        """Index a payload field, so that filters on it are quick."""
        index = edge_types.to_index(field_schema)
        operation = edge.UpdateOperation.create_field_index(field_name, index)
        return self._update(collection_name, operation, wait=False)

    @translated
    def delete_payload_index(self, collection_name: str, field_name: str) -> qm.UpdateResult:
        """Drop the index of a payload field."""
        operation = edge.UpdateOperation.delete_field_index(field_name)
        return self._update(collection_name, operation, wait=False)

    @translated
    def upsert(
        self, collection_name: str, points: Sequence[AnyPoint], *, wait: bool = True
    ) -> qm.UpdateResult:
        """Insert or replace points."""
        self._check_widths(collection_name, points)
        converted = [edge_types.to_point(point) for point in points]
        return self._update(
            collection_name, edge.UpdateOperation.upsert_points(converted), wait=wait
        )

    def _check_widths(self, collection_name: str, points: Sequence[AnyPoint]) -> None:
        """Refuse a batch before any of it is written; Edge would stop halfway through a point."""
        description = self._folder.description(collection_name)
        widths = {name: params["size"] for name, params in description["vectors"].items()}
        known = widths.keys() | description["sparse_vectors"].keys()
        for point in points:
            for name, vector in (point.vector if isinstance(point.vector, dict) else {}).items():
                if name not in known:
                    raise EngineError(
                        f"collection {collection_name!r} has no vector {name!r}; "
                        f"it has {', '.join(sorted(known))}"
                    )
                is_dense = isinstance(vector, list | np.ndarray)
                if is_dense and len(vector) != widths.get(name):
                    raise EngineError(
                        f"vector {name!r} of point {point.id} has {len(vector)} dimensions; "
                        f"collection {collection_name!r} expects {widths.get(name, 'a sparse one')}"
                    )

    @translated
    def batch_update_points(
        self,
        collection_name: str,
        update_operations: Sequence[qm.OverwritePayloadOperation | qm.SetPayloadOperation],
        *,
        wait: bool = True,
    ) -> list[qm.UpdateResult]:
        """Replace payloads, or add to them, one after the other."""
        converted = [edge_types.to_payload_change(operation) for operation in update_operations]
        last = len(converted) - 1
        return [
            self._update(collection_name, operation, wait=wait and number == last)
            for number, operation in enumerate(converted)
        ]

    @translated
    def delete(
        self,
        collection_name: str,
        points_selector: list[int | str] | qm.Filter,
        *,
        wait: bool = True,
    ) -> qm.UpdateResult:
        """Delete points by id or by filter."""
        if isinstance(points_selector, qm.Filter):
            operation = edge.UpdateOperation.delete_points_by_filter(
                edge_types.to_edge_filter(points_selector)
            )
        else:
            operation = edge.UpdateOperation.delete_points([*points_selector])
        return self._update(collection_name, operation, wait=wait)

    @translated
    def _update(
        self, collection_name: str, operation: edge.UpdateOperation, *, wait: bool
    ) -> qm.UpdateResult:
        shard = self._shard(collection_name)
        self._folder.require_space()
        shard.update(operation)
        if wait:
            shard.flush()
        return DONE

    @translated
    def scroll(
        self,
        collection_name: str,
        *,
        scroll_filter: qm.Filter | None = None,
        limit: int = 10,
        offset: int | str | None = None,
        with_payload: bool | list[str] = True,
        with_vectors: bool | list[str] = False,
        consistency: qm.ReadConsistencyType | None = None,
    ) -> tuple[list[qm.Record], int | str | None]:
        """Return points in the order of their ids, and where to go on; there is one replica."""
        request = edge.ScrollRequest(
            offset=offset,
            limit=limit,
            filter=edge_types.to_optional_filter(scroll_filter),
            with_payload=edge_types.to_selector(with_payload),
            with_vector=edge_types.to_selector(with_vectors),
        )
        records, following = self._shard(collection_name).scroll(request)
        return [edge_types.from_record(record) for record in records], (
            None if following is None else edge_types.from_id(following)
        )

    @translated
    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[int | str],
        *,
        with_payload: bool | list[str] = True,
        with_vectors: bool | list[str] = False,
        consistency: qm.ReadConsistencyType | None = None,
    ) -> list[qm.Record]:
        """Return the points of `ids` that exist; there is one replica."""
        payload, vector = map(edge_types.to_selector, (with_payload, with_vectors))
        records = self._shard(collection_name).retrieve(list(ids), payload, vector)
        return [edge_types.from_record(record) for record in records]

    @translated
    def count(
        self, collection_name: str, *, count_filter: qm.Filter | None = None, exact: bool = True
    ) -> qm.CountResult:
        """Return the number of points that pass a filter."""
        request = edge.CountRequest(exact=exact, filter=edge_types.to_optional_filter(count_filter))
        return qm.CountResult(count=self._shard(collection_name).count(request))

    def query_points(
        self,
        collection_name: str,
        query: Any = None,
        *,
        query_filter: qm.Filter | None = None,
        search_params: qm.SearchParams | None = None,
        with_payload: bool | list[str] = True,
        with_vectors: bool | list[str] = False,
        **options: Any,
    ) -> QueryResponse:
        """Answer one query; `options` are the other fields of a `QueryRequest`."""
        request = qm.QueryRequest(
            query=query,
            filter=query_filter,
            params=search_params,
            with_payload=with_payload,
            with_vector=with_vectors,
            **options,
        )
        (points,) = self._query_batch(collection_name, [request])
        return QueryResponse(points=[edge_types.from_scored(point) for point in points])

    def query_scores(
        self, collection_name: str, requests: Sequence[qm.QueryRequest]
    ) -> list[Scored]:
        """Answer many queries in one pass over the segments, with ids and scores alone."""
        return [
            Scored([str(point.id) for point in points], [point.score for point in points])
            for points in self._query_batch(collection_name, requests)
        ]

    @translated
    def _query_batch(
        self, collection_name: str, requests: Sequence[qm.QueryRequest]
    ) -> list[list[edge.ScoredPoint]]:
        batch = edge.QueryBatchRequest([edge_types.to_request(request) for request in requests])
        return self._shard(collection_name).query_batch(batch)
