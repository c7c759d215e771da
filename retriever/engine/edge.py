"""The embedded engine: Qdrant Edge behind the part of `QdrantClient` that this project uses.

Edge is Qdrant's own Rust engine in this process. It knows shards; collections, aliases and
metadata are files beside them (`edge_folder`), and `edge_types` translates the client's types.
The write-ahead log stays on: without it a crash loses data.
"""

# ruff: noqa: D102 (`Engine` says what the methods do)

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import qdrant_edge as edge
from pydantic import ValidationError

from two_tower.models.errors import is_panic, of_panic
from two_tower.models.files import write_json
from two_tower.models.progress import working
from two_tower.retriever.engine import edge_types
from two_tower.retriever.engine.edge_check import check_shard
from two_tower.retriever.engine.edge_folder import (
    DESCRIPTION,
    SHARD,
    EdgeFolder,
    folder_files,
    write_folder,
)
from two_tower.retriever.engine.edge_store import EdgeStore, share_store
from two_tower.retriever.engine.failures import one_line, unknown_name
from two_tower.retriever.engine.machine import Machine, machine_memory
from two_tower.retriever.engine.protocol import (
    RETRY_FOR_S,
    AliasOperation,
    Counted,
    Engine,
    Overview,
    PayloadIndex,
    PointSelector,
)
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.engine.snapshot_file import SnapshotFile
from two_tower.retriever.engine.wire import (
    AnyPoint,
    PayloadChange,
    Record,
    Request,
    Scored,
)
from two_tower.retriever.errors import (
    CollectionDamaged,
    CollectionNotFound,
    EngineClosed,
    EngineError,
)

if TYPE_CHECKING:
    from two_tower.retriever.engine.edge_config import Description

OPTIMIZE = (
    "import sys, qdrant_edge as e; s = e.EdgeShard.load(sys.argv[1]); s.optimize(); s.close()"
)

P = ParamSpec("P")
T = TypeVar("T")


def _translated(method: Callable[P, T]) -> Callable[P, T]:
    """Make a method of the engine raise `EngineError`s that name its folder."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        engine: Any = args[0]
        try:
            return method(*args, **kwargs)
        except OSError as error:
            reason = error.strerror or error
            raise EngineError(f"cannot write to {engine.where} ({reason})") from None
        except RecursionError:
            raise EngineError(f"{engine.where}: the request is nested too deep") from None
        except BaseException as error:
            if type(error) is not Exception:  # that, or a panic, is all that Edge ever raises
                raise of_panic(error, EngineError, f"{engine.where}: the engine") from None
            raise EngineError(f"{engine.where}: {one_line(error)}") from None

    return call


class EdgeEngine(Engine):
    """The `Engine` that is a folder, which one process can have open at a time.

    Engines of one process on the same folder share it (`edge_store`).

    Edge holds the GIL during a call. Writes are in the write-ahead log when a call returns, and
    with `wait=True` flushed to disk. There is one replica, so every read is consistent.
    """

    is_embedded = True

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the folder, making it where it is missing unless `create` is off.

        Raises:
            EngineLocked: another process has it open.
            EngineUnavailable: it cannot be opened.
        """
        self.where = str(path)
        self._is_closed = False
        self._shared, self._leave = share_store(path, create=create, user=self)

    @property
    def _store(self) -> EdgeStore:
        if self._is_closed:
            raise EngineClosed(f"{self.where} was closed; open it again to search")
        if os.getpid() != self._shared.pid:
            raise EngineClosed(
                f"{self.where} was opened by process {self._shared.pid}, of which this is a fork; "
                "open it after the fork, in one process alone, or run a Qdrant server and give "
                "--url"
            )
        return self._shared

    @property
    def _folder(self) -> EdgeFolder:
        return self._store.folder

    def with_retry(self, seconds: float = RETRY_FOR_S) -> EdgeEngine:
        """Return this engine: it is never away."""
        return self

    def info(self) -> qm.VersionInfo:
        return qm.VersionInfo(title="qdrant-edge", version=version("qdrant-edge-py"))

    def machine(self) -> Machine:
        return Machine(disk=self._folder.free(), memory=machine_memory())

    @_translated
    def close(self) -> None:
        self._is_closed = True
        self._leave()

    def _shard(self, name: str) -> edge.EdgeShard:
        """Return the shard of a collection or an alias; that of a collection stays open."""
        is_here = os.getpid() == self._shared.pid and not self._is_closed
        store = self._shared if is_here else self._store  # which says why it is not
        with store.opening:
            if name not in store.shards:
                home = store.folder.home(name)
                name = home.name
            if name not in store.shards:
                store.shards[name] = self._loaded(home)
            return store.shards[name]

    def _loaded(self, home: Path) -> edge.EdgeShard:
        """Open the shard in a collection's folder.

        Raises:
            CollectionDamaged: it cannot be read.
            EngineError: there is no room to open it.
        """
        self._folder.require_room(home.name)
        try:
            with working(f"Opening {home.name}"):
                return edge.EdgeShard.load(str(home / SHARD))
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise CollectionDamaged(
                f"{self.where}: collection {home.name!r} is damaged and cannot be opened "
                f"({one_line(error)}); the others can be used. Restore a snapshot of it, or run "
                f"ingest drop {home.name} --yes and load it again"
            ) from None

    def _description(self, name: str) -> Description:
        from two_tower.retriever.engine.edge_config import Description

        try:
            return Description(**self._folder.description(name))
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"]))
            raise CollectionDamaged(
                f"{self.where}: {name} is broken at {field}; load it again"
            ) from None

    def resolve(self, name: str) -> str:
        collection = self._folder.find(name)
        if collection is None:
            raise unknown_name(name, self.where, self._folder.aliases())
        return collection

    @_translated
    def optimize(self, collection_name: str) -> bool:
        """Merge segments and build HNSW graphs; the collection waits meanwhile.

        It runs in another process, for Edge would hold this one's GIL for up to minutes.
        """
        home = self._folder.home(collection_name)
        command = [sys.executable, "-c", OPTIMIZE, str(home / SHARD)]
        with self._store.opening:
            self._store.close_shard(home.name)
            with working(f"Building graphs of {home.name}"):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise EngineError(f"cannot optimize {collection_name} in {self.where}: {reason[0]}")
        return True

    def collection_exists(self, collection_name: str) -> bool:
        return self._folder.find(collection_name) is not None

    @_translated
    def create_collection(
        self,
        collection_name: str,
        *,
        vectors_config: Mapping[str, qm.VectorParams],
        sparse_vectors_config: Mapping[str, qm.SparseVectorParams] | None = None,
        metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> bool:
        from two_tower.retriever.engine.edge_config import Description

        empty = Description(
            vectors=dict(vectors_config),
            sparse_vectors=dict(sparse_vectors_config or {}),
            metadata=metadata or {},
        )
        description = empty.changed(options)
        config = description.to_edge()
        with self._folder.new_collection(collection_name) as draft:
            write_json(draft / DESCRIPTION, description.to_json())
            edge.EdgeShard.create(str(draft / SHARD), config).close()
        return True

    @_translated
    def get_collection(self, collection_name: str) -> qm.CollectionInfo:
        try:
            info = self._shard(collection_name).info()
        except CollectionDamaged:
            info = None
        return self._description(collection_name).to_client(info)

    @_translated
    def overview(self, collection_name: str) -> Overview:
        metadata = self._folder.description(collection_name).get("metadata") or {}
        try:
            info = self._shard(collection_name).info()
        except CollectionDamaged:
            return Overview(None, {}, metadata)
        fields = {n: edge_types.KINDS[index.data_type] for n, index in info.payload_schema.items()}
        return Overview(info.points_count, dict(sorted(fields.items())), metadata)

    def get_collections(self) -> qm.CollectionsResponse:
        names = self._folder.names()
        return qm.CollectionsResponse(
            collections=[qm.CollectionDescription(name=name) for name in names]
        )

    @_translated
    def delete_collection(self, collection_name: str) -> bool:
        if collection_name not in self._folder.names():
            return False
        with self._store.opening:
            self._store.close_shard(collection_name)
            self._folder.remove(collection_name)
        return True

    @_translated
    def update_collection(
        self, collection_name: str, *, metadata: dict[str, Any] | None = None, **options: Any
    ) -> bool:
        store, home = self._store, self._folder.home(collection_name)
        with store.describing:
            description = self._description(collection_name).changed(options)
            if options:
                with store.opening:
                    store.close_shard(home.name)
                    shard = edge.EdgeShard.load(str(home / SHARD), description.to_edge())
                    store.shards[home.name] = shard
            merged = description.metadata | (metadata or {})
            description.metadata = {k: value for k, value in merged.items() if value is not None}
            write_json(home / DESCRIPTION, description.to_json())
        return True

    @contextmanager
    def take_snapshot(self, collection_name: str) -> Iterator[list[SnapshotFile]]:
        """Give the collection's files, which do not change while the block lasts."""
        home = self._folder.home(collection_name)
        with self._store.opening:
            self._store.close_shard(home.name)
            yield folder_files(home)

    @_translated
    def restore_snapshot(self, collection_name: str, files: Iterable[SnapshotFile]) -> None:
        with self._folder.new_collection(collection_name) as draft:
            write_folder(draft, files)
            with working(f"Reading {collection_name}"):
                check_shard(draft / SHARD, collection_name)
                os.sync()

    def get_aliases(self) -> qm.CollectionsAliasesResponse:
        return qm.CollectionsAliasesResponse(
            aliases=[
                qm.AliasDescription(alias_name=alias, collection_name=name)
                for alias, name in self._folder.aliases().items()
            ]
        )

    def update_collection_aliases(
        self, change_aliases_operations: Sequence[AliasOperation]
    ) -> bool:
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

    def create_payload_index(
        self, collection_name: str, field_name: str, field_schema: PayloadIndex
    ) -> qm.UpdateResult:
        index = edge_types.to_index(field_schema)
        operation = edge.UpdateOperation.create_field_index(field_name, index)
        return self._update(collection_name, operation, wait=False)

    def delete_payload_index(self, collection_name: str, field_name: str) -> qm.UpdateResult:
        operation = edge.UpdateOperation.delete_field_index(field_name)
        return self._update(collection_name, operation, wait=False)

    @_translated
    def upsert(
        self, collection_name: str, points: Sequence[AnyPoint], *, wait: bool = True
    ) -> qm.UpdateResult:
        self._description(collection_name).check(points, of=collection_name)
        operation = edge.UpdateOperation.upsert_points(edge_types.to_points(points))
        return self._update(collection_name, operation, wait=wait)

    @_translated
    def batch_update_points(
        self, collection_name: str, update_operations: Sequence[PayloadChange], *, wait: bool = True
    ) -> list[qm.UpdateResult]:
        converted = [edge_types.to_payload_change(operation) for operation in update_operations]
        last = len(converted) - 1
        return [
            self._update(collection_name, operation, wait=wait and number == last)
            for number, operation in enumerate(converted)
        ]

    @_translated
    def delete(
        self, collection_name: str, points_selector: PointSelector, *, wait: bool = True
    ) -> qm.UpdateResult:
        if isinstance(points_selector, qm.Filter):
            filter = edge_types.to_edge_filter(points_selector)
            operation = edge.UpdateOperation.delete_points_by_filter(filter)
        else:
            operation = edge.UpdateOperation.delete_points([*points_selector])
        return self._update(collection_name, operation, wait=wait)

    @_translated
    def _update(
        self, collection_name: str, operation: edge.UpdateOperation, *, wait: bool
    ) -> qm.UpdateResult:
        shard = self._shard(collection_name)
        self._folder.require_space()
        self._store.is_changed = True
        shard.update(operation)
        if wait:
            shard.flush()
        return qm.UpdateResult.model_construct(status=qm.UpdateStatus.COMPLETED)

    @_translated
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
    ) -> tuple[list[Record], int | str | None]:
        request = edge.ScrollRequest(
            offset=offset,
            limit=limit,
            filter=edge_types.to_edge_filter(scroll_filter) if scroll_filter else None,
            with_payload=edge_types.to_selector(with_payload),
            with_vector=edge_types.to_selector(with_vectors),
        )
        records, following = self._shard(collection_name).scroll(request)
        offset = following if following is None or isinstance(following, int) else str(following)
        return [edge_types.from_record(record) for record in records], offset

    @_translated
    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[int | str],
        *,
        with_payload: bool | list[str] = True,
        with_vectors: bool | list[str] = False,
        consistency: qm.ReadConsistencyType | None = None,
    ) -> list[Record]:
        payload, vector = map(edge_types.to_selector, (with_payload, with_vectors))
        records = self._shard(collection_name).retrieve(list(ids), payload, vector)
        return [edge_types.from_record(record) for record in records]

    @_translated
    def count(
        self, collection_name: str, *, count_filter: qm.Filter | None = None, exact: bool = True
    ) -> Counted:
        passing = edge_types.to_edge_filter(count_filter) if count_filter else None
        request = edge.CountRequest(exact=exact, filter=passing)
        return Counted(self._shard(collection_name).count(request))

    @_translated
    def facet(
        self,
        collection_name: str,
        key: str,
        *,
        facet_filter: qm.Filter | None = None,
        limit: int = 10,
        exact: bool = True,
    ) -> qm.FacetResponse:
        passing = edge_types.to_edge_filter(facet_filter) if facet_filter else None
        request = edge.FacetRequest(key, limit=limit, exact=exact, filter=passing)
        hits = self._shard(collection_name).facet(request).hits
        return qm.FacetResponse(
            hits=[qm.FacetValueHit(value=hit.value, count=hit.count) for hit in hits]
        )

    @_translated
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
    ) -> qm.QueryResponse:
        request = qm.QueryRequest(
            query=query,
            filter=query_filter,
            params=search_params,
            with_payload=with_payload,
            with_vector=with_vectors,
            **options,
        )
        points = self._shard(collection_name).query(edge_types.to_request(request))
        return qm.QueryResponse(points=[edge_types.from_scored(point) for point in points])

    @_translated
    def query_scores(
        self, collection_name: str, requests: Sequence[Request | qm.QueryRequest]
    ) -> list[Scored]:
        batch = edge.QueryBatchRequest([edge_types.to_search(request) for request in requests])
        answers = self._shard(collection_name).query_batch(batch)
        return [edge_types.to_scored(points) for points in answers]
