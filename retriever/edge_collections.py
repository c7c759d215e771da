"""Collections of the embedded engine: open, create, describe, alias, optimize, delete."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models as qm

from two_tower.retriever import edge_config, edge_types
from two_tower.retriever.edge_folder import EdgeFolder, write_json
from two_tower.retriever.errors import CollectionNotFound, EngineError
from two_tower.retriever.snapshot_files import SnapshotFile, folder_files, write_folder

OPTIMIZE = (
    "import sys, qdrant_edge as e; s = e.EdgeShard.load(sys.argv[1]); s.optimize(); s.close()"
)


class EdgeCollections:
    """The part of `EdgeClient` that is about whole collections."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the folder, making it where it is missing unless `create` is off.

        Raises:
            EngineLocked: another client has it open.
            EngineUnavailable: it cannot be opened.
        """
        self._folder = EdgeFolder(path, create=create)
        self._shards: dict[str, edge.EdgeShard] = {}
        self._opening = threading.Lock()

    def info(self) -> qm.VersionInfo:
        """Return the version of Edge."""
        return qm.VersionInfo(title="qdrant-edge", version=version("qdrant-edge-py"))

    def close(self) -> None:
        """Flush everything and let go of the folder."""
        for name in list(self._shards):
            self._close_shard(name)
        self._folder.close()

    def _shard(self, name: str) -> edge.EdgeShard:
        home = self._folder.home(name)
        with self._opening:
            if home.name not in self._shards:
                self._shards[home.name] = edge.EdgeShard.load(str(home / "shard"))
            return self._shards[home.name]

    def _close_shard(self, name: str) -> None:
        shard = self._shards.pop(name, None)
        if shard is not None:
            shard.flush()
            shard.close()

    def optimize(self, collection_name: str) -> bool:
        """Merge segments and build HNSW graphs; the collection waits meanwhile.

        It runs in another process, for Edge would hold this one's GIL for up to minutes.
        """
        home = self._folder.home(collection_name)
        with self._opening:
            self._close_shard(home.name)
            done = subprocess.run(
                [sys.executable, "-c", OPTIMIZE, str(home / "shard")],
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise EngineError(
                f"cannot optimize {collection_name} in {self._folder.path}: {reason[0]}"
            )
        return True

    def collection_exists(self, collection_name: str) -> bool:
        """Say whether there is a collection or an alias of that name."""
        return self._folder.find(collection_name) is not None

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
        description = edge_config.describe(vectors_config, sparse_vectors_config or {}, options)
        config = edge_config.to_config(description)
        self._folder.require_space()
        draft = self._folder.draft(collection_name)
        write_json(draft / "collection.json", description | {"metadata": metadata or {}})
        edge.EdgeShard.create(str(draft / "shard"), config).close()
        self._folder.publish(collection_name)
        return True

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
                    data_type=edge_types.INDEX_TYPES[index.data_type], points=index.points
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

    def delete_collection(self, collection_name: str) -> bool:
        """Delete a collection and its aliases; False where there is none of that name."""
        if collection_name not in self._folder.names():
            return False
        with self._opening:
            self._close_shard(collection_name)
            self._folder.remove(collection_name)
        return True

    def update_collection(
        self, collection_name: str, *, metadata: dict[str, Any] | None = None, **options: Any
    ) -> bool:
        """Merge `metadata` into the collection's; let later `optimize` calls keep to `options`.

        A value of None takes its key out, as on a server.
        """
        description = self._folder.description(collection_name)
        if options:
            description = edge_config.changed(description, options)
            self._configure(collection_name, edge_config.to_config(description))
        merged = description["metadata"] | (metadata or {})
        description["metadata"] = {k: value for k, value in merged.items() if value is not None}
        self._folder.describe(collection_name, description)
        return True

    def _configure(self, name: str, config: edge.EdgeConfig) -> None:
        home = self._folder.home(name)
        with self._opening:
            self._close_shard(home.name)
            self._shards[home.name] = edge.EdgeShard.load(str(home / "shard"), config)

    @contextmanager
    def take_snapshot(self, collection_name: str) -> Iterator[list[SnapshotFile]]:
        """Give the collection's files, which do not change while the block lasts."""
        home = self._folder.home(collection_name)
        with self._opening:
            self._close_shard(home.name)
            yield folder_files(home)

    def restore_snapshot(self, collection_name: str, files: Iterable[SnapshotFile]) -> None:
        """Make a collection of what `take_snapshot` gave."""
        self._folder.require_space()
        draft = self._folder.draft(collection_name)
        try:
            write_folder(draft, files)
            edge.EdgeShard.load(str(draft / "shard")).close()
            os.sync()
            self._folder.publish(collection_name)
        except OSError as error:
            reason = error.strerror or error
            raise EngineError(f"cannot write to {self._folder.path} ({reason})") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def get_aliases(self) -> qm.CollectionsAliasesResponse:
        """Return all aliases."""
        return qm.CollectionsAliasesResponse(
            aliases=[
                qm.AliasDescription(alias_name=alias, collection_name=name)
                for alias, name in self._folder.aliases().items()
            ]
        )

    def update_collection_aliases(self, change_aliases_operations: Sequence[Any]) -> bool:
        """Create and delete aliases, all at once."""
        aliases = self._folder.aliases()
        for operation in change_aliases_operations:
            if isinstance(operation, qm.CreateAliasOperation):
                create = operation.create_alias
                aliases[self._free(create.alias_name)] = self._existing(create.collection_name)
            elif isinstance(operation, qm.DeleteAliasOperation):
                aliases.pop(operation.delete_alias.alias_name, None)
            else:
                raise edge_types.unsupported(operation)
        self._folder.write_aliases(aliases)
        return True

    def _free(self, alias: str) -> str:
        if alias in self._folder.names():
            raise EngineError(
                f"{self._folder.path} has a collection {alias!r}; no alias can be that"
            )
        return alias

    def _existing(self, name: str) -> str:
        if name not in self._folder.names():
            raise CollectionNotFound(f"{self._folder.path} has no collection {name!r}")
        return name
