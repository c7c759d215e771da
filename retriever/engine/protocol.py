"""What embedded engine and server have in common, and what is done with either alike."""

# ruff: noqa: D102 (a method without a docstring is `QdrantClient`'s, and does what it does there)

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

from two_tower.retriever.engine.machine import Machine
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.engine.snapshot_file import SnapshotFile
from two_tower.retriever.engine.wire import AnyPoint, PayloadChange, Record, Request, Scored
from two_tower.retriever.errors import EngineError

PayloadIndex: TypeAlias = "qm.PayloadSchemaType | qm.TextIndexParams"
Quantization: TypeAlias = "qm.ScalarQuantization | qm.BinaryQuantization"
AliasOperation: TypeAlias = "qm.CreateAliasOperation | qm.DeleteAliasOperation"
PointSelector: TypeAlias = "list[int | str] | qm.Filter"

RETRY_FOR_S = 120.0
POINTS_PER_PAGE = 256
HASHES_PER_PAGE = 4096
OPTIMIZE_ABOVE = 100_000  # points; smaller collections Edge scans quickly enough


class Kind(StrEnum):
    """Types of a payload index, as `qm.PayloadSchemaType` has them."""

    KEYWORD = "keyword"
    INTEGER = "integer"
    FLOAT = "float"
    BOOL = "bool"
    GEO = "geo"
    DATETIME = "datetime"
    TEXT = "text"
    UUID = "uuid"


class Overview(NamedTuple):
    """What a search has to know of a collection.

    Attributes:
        points: about how many it has; None where that is not known.
        fields: payload field -> type of its index.
        metadata: what was stored about it; empty where it has none.
    """

    points: int | None
    fields: dict[str, Kind]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Counted:
    """How many points there are, as `qm.CountResult` says it."""

    count: int


class Engine(Protocol):
    """The part of `QdrantClient` that is used here, by name and meaning, and a little more.

    Safe to share between threads. Every method raises an `EngineError` in one line where the
    engine fails.

    Attributes:
        where: URL without credentials, or folder.
        is_embedded: whether this is Qdrant Edge in a folder, and not a server.
    """

    where: str
    is_embedded: bool

    def with_retry(self, seconds: float = RETRY_FOR_S) -> Engine:
        """Return this engine with requests that are made again while a server is away.

        Args:
            seconds: how long one request waits in all before its failure is final.
        """

    def info(self) -> qm.VersionInfo: ...

    def machine(self) -> Machine | None:
        """Return what it has; None for a cluster, and for a server that does not say."""

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def resolve(self, name: str) -> str:
        """Return the collection that alias `name` points to, or `name` if it is a collection.

        Raises:
            CollectionNotFound: neither exists.
        """

    def optimize(self, collection_name: str) -> bool:
        """Build the indexes that a server builds by itself; True where there was work to do."""

    def collection_exists(self, collection_name: str) -> bool: ...
    def create_collection(
        self,
        collection_name: str,
        *,
        vectors_config: Mapping[str, qm.VectorParams],
        sparse_vectors_config: Mapping[str, qm.SparseVectorParams] | None = None,
        metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> bool: ...
    def get_collection(self, collection_name: str) -> qm.CollectionInfo: ...
    def overview(self, collection_name: str) -> Overview:
        """Return the part of `get_collection` that a search needs, sorted by field."""

    def get_collections(self) -> qm.CollectionsResponse: ...
    def delete_collection(self, collection_name: str) -> bool:
        """Delete a collection and its aliases; False where there is none of that name."""

    def update_collection(
        self, collection_name: str, *, metadata: dict[str, Any] | None = None, **options: Any
    ) -> bool:
        """Change how a collection is stored; merge `metadata`, in which None takes its key out."""

    def take_snapshot(self, collection_name: str) -> AbstractContextManager[list[SnapshotFile]]:
        """Give the files of a snapshot; call nothing else of the engine before the block ends.

        Raises:
            EngineError: other nodes have shards of the collection.
        """

    def restore_snapshot(self, collection_name: str, files: Iterable[SnapshotFile]) -> None:
        """Make a collection, which must not exist, of what `take_snapshot` gave.

        Raises:
            DataError: these are not the files of a snapshot of such an engine.
            EngineError: the engine cannot use them; nothing is left of the attempt.
        """

    def get_aliases(self) -> qm.CollectionsAliasesResponse: ...
    def update_collection_aliases(
        self, change_aliases_operations: Sequence[AliasOperation]
    ) -> bool: ...
    def create_payload_index(
        self, collection_name: str, field_name: str, field_schema: PayloadIndex
    ) -> qm.UpdateResult: ...
    def delete_payload_index(self, collection_name: str, field_name: str) -> qm.UpdateResult: ...
    def upsert(
        self, collection_name: str, points: Sequence[AnyPoint], *, wait: bool = True
    ) -> qm.UpdateResult: ...
    def batch_update_points(
        self, collection_name: str, update_operations: Sequence[PayloadChange], *, wait: bool = True
    ) -> list[qm.UpdateResult]: ...
    def delete(
        self, collection_name: str, points_selector: PointSelector, *, wait: bool = True
    ) -> qm.UpdateResult: ...
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
    ) -> tuple[list[Record], int | str | None]: ...
    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[int | str],
        *,
        with_payload: bool | list[str] = True,
        with_vectors: bool | list[str] = False,
        consistency: qm.ReadConsistencyType | None = None,
    ) -> list[Record]: ...
    def count(
        self, collection_name: str, *, count_filter: qm.Filter | None = None, exact: bool = True
    ) -> Counted: ...
    def facet(
        self,
        collection_name: str,
        key: str,
        *,
        facet_filter: qm.Filter | None = None,
        limit: int = 10,
        exact: bool = True,
    ) -> qm.FacetResponse:
        """Return the most frequent values of an indexed field, and in how many points they are."""

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
        """Answer one query; `options` are the other fields of a `QueryRequest`."""

    def query_scores(
        self, collection_name: str, requests: Sequence[Request | qm.QueryRequest]
    ) -> list[Scored]:
        """Answer many queries in one request, with ids and scores alone: much quicker."""


def scroll_all(
    engine: Engine,
    collection: str,
    *,
    page: int = POINTS_PER_PAGE,
    with_payload: bool | list[str] = True,
    with_vectors: bool | list[str] = False,
    consistency: qm.ReadConsistencyType | None = None,
) -> Iterator[Record]:
    """Yield every point in the order of their ids, asking for `page` of them at a time."""
    offset: int | str | None = None
    while True:
        records, offset = engine.scroll(
            collection,
            limit=page,
            offset=offset,
            with_payload=with_payload,
            with_vectors=with_vectors,
            consistency=consistency,
        )
        yield from records
        if offset is None:
            return


def collection_names(engine: Engine) -> set[str]:
    """Return the names of all collections, those of others among them."""
    return {described.name for described in engine.get_collections().collections}


def stored_metadata(engine: Engine, collection: str) -> dict[str, Any]:
    """Return the metadata of a collection as it is stored, empty where it has none."""
    return engine.overview(collection).metadata


def agreement(engine: Engine, collection: str) -> qm.ReadConsistencyType | None:
    """Return how to read what every replica has; a point that they differ in is then left out.

    Returns:
        `ALL`; None where a replica is down, so that the others are all there is to read.
    """
    try:
        engine.scroll(
            collection, limit=1, with_payload=False, consistency=qm.ReadConsistencyType.ALL
        )
    except EngineError:
        return None
    return qm.ReadConsistencyType.ALL
