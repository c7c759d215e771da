"""What embedded engine and server have in common: the part of `QdrantClient` we use."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from qdrant_client import models as qm
from qdrant_client.conversions.common_types import AliasOperations
from qdrant_client.http.models import QueryResponse

from two_tower.retriever.engine.snapshots import SnapshotFile
from two_tower.retriever.engine.wire import AnyPoint, Scored
from two_tower.retriever.errors import EngineError

PayloadIndex = qm.PayloadSchemaType | qm.TextIndexParams

Vectors = Mapping[str, qm.VectorParams]

Quantization = qm.ScalarQuantization | qm.BinaryQuantization

SparseVectors = Mapping[str, qm.SparseVectorParams]


class Engine(Protocol):
    """What embedded engine and server have in common; semantics are `QdrantClient`'s.

    Every method raises an `EngineError` in one line where the engine fails.
    """

    def info(self) -> qm.VersionInfo: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102

    def resolve(self, name: str) -> str:
        """Return the collection that alias `name` points to, or `name` if it is a collection.

        Raises:
            CollectionNotFound: neither exists.
        """

    def optimize(self, collection_name: str) -> bool:
        """Build the indexes that a server builds by itself; True where there was work to do."""

    def collection_exists(self, collection_name: str) -> bool: ...  # noqa: D102
    def create_collection(  # noqa: D102
        self,
        collection_name: str,
        *,
        vectors_config: Vectors,
        sparse_vectors_config: SparseVectors | None = None,
        hnsw_config: qm.HnswConfigDiff | None = None,
        quantization_config: Quantization | None = None,
        optimizers_config: qm.OptimizersConfigDiff | None = None,
        on_disk_payload: bool | None = None,
        shard_number: int | None = None,
        replication_factor: int | None = None,
        write_consistency_factor: int | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> bool: ...
    def get_collection(self, collection_name: str) -> qm.CollectionInfo: ...  # noqa: D102
    def get_collections(self) -> qm.CollectionsResponse: ...  # noqa: D102
    def delete_collection(self, collection_name: str) -> bool: ...  # noqa: D102
    def update_collection(  # noqa: D102
        self,
        collection_name: str,
        *,
        vectors_config: Mapping[str, qm.VectorParamsDiff] | None = None,
        hnsw_config: qm.HnswConfigDiff | None = None,
        quantization_config: Quantization | qm.Disabled | None = None,
        optimizers_config: qm.OptimizersConfigDiff | None = None,
        collection_params: qm.CollectionParamsDiff | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> bool: ...
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

    def get_aliases(self) -> qm.CollectionsAliasesResponse: ...  # noqa: D102
    def update_collection_aliases(  # noqa: D102
        self, change_aliases_operations: Sequence[AliasOperations]
    ) -> bool: ...
    def create_payload_index(  # noqa: D102
        self, collection_name: str, field_name: str, field_schema: PayloadIndex
    ) -> qm.UpdateResult: ...
    def delete_payload_index(  # noqa: D102
        self, collection_name: str, field_name: str
    ) -> qm.UpdateResult: ...
    def upsert(  # noqa: D102
        self, collection_name: str, points: Sequence[AnyPoint], *, wait: bool = True
    ) -> qm.UpdateResult: ...
    def batch_update_points(  # noqa: D102
        self,
        collection_name: str,
        update_operations: Sequence[qm.OverwritePayloadOperation | qm.SetPayloadOperation],
        *,
        wait: bool = True,
    ) -> list[qm.UpdateResult]: ...
    def delete(  # noqa: D102
        self,
        collection_name: str,
        points_selector: list[int | str] | qm.Filter,
        *,
        wait: bool = True,
    ) -> qm.UpdateResult: ...
    def scroll(  # noqa: D102
        self,
        collection_name: str,
        *,
        scroll_filter: qm.Filter | None = None,
        limit: int = 10,
        offset: int | str | None = None,
        with_payload: bool | list[str] = True,
        with_vectors: bool | list[str] = False,
        consistency: qm.ReadConsistencyType | None = None,
    ) -> tuple[list[qm.Record], int | str | None]: ...
    def retrieve(  # noqa: D102
        self,
        collection_name: str,
        ids: Sequence[int | str],
        *,
        with_payload: bool | list[str] = True,
        with_vectors: bool | list[str] = False,
        consistency: qm.ReadConsistencyType | None = None,
    ) -> list[qm.Record]: ...
    def count(  # noqa: D102
        self, collection_name: str, *, count_filter: qm.Filter | None = None, exact: bool = True
    ) -> qm.CountResult: ...
    def query_points(  # noqa: D102
        self,
        collection_name: str,
        query: Any = None,
        *,
        using: str | None = None,
        prefetch: qm.Prefetch | list[qm.Prefetch] | None = None,
        query_filter: qm.Filter | None = None,
        search_params: qm.SearchParams | None = None,
        limit: int = 10,
        offset: int | None = None,
        with_payload: bool | list[str] = True,
        with_vectors: bool | list[str] = False,
        score_threshold: float | None = None,
    ) -> QueryResponse: ...
    def query_batch_points(  # noqa: D102
        self, collection_name: str, requests: Sequence[qm.QueryRequest]
    ) -> list[QueryResponse]: ...

    def query_scores(
        self, collection_name: str, requests: Sequence[qm.QueryRequest]
    ) -> list[Scored]:
        """Return what `query_batch_points` finds, ids and scores alone; much quicker."""


def is_embedded(engine: Engine) -> bool:
    """Say whether this is Qdrant Edge in a folder, and not a server."""
    return engine.info().title == "qdrant-edge"


ALL = qm.ReadConsistencyType.ALL


def agreement(engine: Engine, collection: str) -> qm.ReadConsistencyType | None:
    """Return how to read what every replica has; a point that they differ in is then left out.

    Returns:
        `ALL`; None where a replica is down, so that the others are all there is to read.
    """
    try:
        engine.scroll(collection, limit=1, with_payload=False, consistency=ALL)
    except EngineError:
        return None
    return ALL
