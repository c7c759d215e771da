"""A collection that somebody else filled, opened for reading; nothing in it is ever changed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np

from two_tower.ingest.adoption.payloads import (
    PayloadFields,
    find_fields,
    id_at,
    id_paths,
    to_passage,
)
from two_tower.ingest.loading.points import chunks
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import DataError
from two_tower.models.progress import progress
from two_tower.models.vectors import FloatArray, normalized
from two_tower.retriever.collection.options import CollectionOptions, DiskOptions
from two_tower.retriever.collection.schema import FORMAT, base_name
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import (
    HASHES_PER_PAGE,
    POINTS_PER_PAGE,
    Engine,
    collection_names,
    scroll_all,
    stored_metadata,
)
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.engine.wire import Record
from two_tower.retriever.errors import CollectionMismatch

KIND = "collection"  # of the source, in DATA's manifest
LOOKED_AT = 256  # payloads that say where the text stands


class DenseVector(NamedTuple):
    """One of a collection's dense vectors; the name is empty where it has none."""

    name: str
    dim: int
    distance: str
    on_disk: bool


@dataclass(frozen=True)
class ForeignCollection:
    """Passages and vectors of a collection that is none of ours.

    Attributes:
        engine: that holds it.
        collection: its name.
        vector: the dense vector that is read.
        fields: where the parts of a passage stand in a payload.
        points: how many it holds.
    """

    engine: Engine
    collection: str
    vector: DenseVector
    fields: PayloadFields
    points: int

    @classmethod
    def open(
        cls,
        engine: Engine,
        address: str,
        *,
        text: str | None = None,
        title: str | None = None,
        passage_id: str | None = None,
    ) -> "ForeignCollection":
        """Look at a collection.

        Args:
            engine: that holds it.
            address: name or alias, with `:VECTOR` behind it where there are several.
            text: path of the text in a payload; a usual name otherwise.
            title: path of the title, likewise.
            passage_id: path of the passage id; empty for the point's own id; otherwise the first
                of the usual names under which every point has another id, else the point's own.

        Raises:
            CollectionNotFound: there is none.
            CollectionMismatch: it is one of ours, or has none or several such vectors.
            DataError: it is empty, or has no text, or no such ids.
        """
        engine = engine.with_retry()
        name, vector_name = _parts(engine, address)
        collection = engine.resolve(name)
        if stored_metadata(engine, collection).get("format") == FORMAT:
            raise CollectionMismatch(
                f"{name!r} was made by ingest load and can be searched as it is; for another "
                f"bundle run: ingest load DATA --bundle BUNDLE --collection {base_name(collection)}"
            )
        vector = _choose(_dense_vectors(engine, collection), name, vector_name)
        points = engine.count(collection, exact=True).count
        if not points:
            raise DataError(f"collection {name!r} is empty; expected points with a text")
        _require_vectors(engine, collection, vector, points)
        records, _ = engine.scroll(collection, limit=LOOKED_AT, with_payload=True)
        sample = [record.payload or {} for record in records]
        fields = find_fields(sample, where=f"collection {name!r}", text=text, title=title)
        opened = cls(engine, collection, vector, fields, points)
        if passage_id is None:
            return opened._with_ids(id_paths(sample))
        found = opened._with_ids([passage_id] if passage_id else [])
        if passage_id and found.fields.passage_id is None:
            raise DataError(
                f"collection {name!r} has points without an id of their own at {passage_id!r}; "
                "name another field with --id, or leave it out"
            )
        return found

    @classmethod
    def reopen(
        cls, engine: Engine, source: Mapping[str, Any], address: str = ""
    ) -> "ForeignCollection":
        """Open a collection again and read it as DATA's manifest says that it was read.

        Args:
            engine: that holds it.
            source: of a manifest; one of another kind says nothing.
            address: as `open` takes it; what the manifest says otherwise.

        Raises:
            TwoTowerError: as `open`.
        """
        if source.get("kind") != KIND:
            return cls.open(engine, address)
        told = source["fields"]
        address = address or source["name"] + (f":{source['vector']}" if source["vector"] else "")
        ids = told["passage_id"] or ""
        return cls.open(engine, address, text=told["text"], title=told["title"], passage_id=ids)

    @property
    def address(self) -> str:
        """Its name, with that of the vector."""
        return f"{self.collection}:{self.vector.name}" if self.vector.name else self.collection

    @property
    def about(self) -> dict[str, Any]:
        """What DATA's manifest says about it."""
        return {"kind": KIND, "vector": self.vector.name, "fields": self.fields._asdict()}

    @property
    def options(self) -> CollectionOptions:
        """How a copy is stored: in as many shards and replicas, and on disk what is there."""
        params = self.engine.get_collection(self.collection).config.params
        stored = CollectionOptions(
            on_disk=DiskOptions(self.vector.on_disk, payload=params.on_disk_payload is not False)
        )
        if self.engine.is_embedded:
            return stored
        return replace(
            stored,
            shards=params.shard_number,
            replicas=params.replication_factor,
            write_consistency=params.write_consistency_factor,
        )

    def passages(self) -> Iterator[Passage]:
        """Stream the passages in the order of the points' ids."""
        records = scroll_all(self.engine, self.collection, page=POINTS_PER_PAGE)
        for record in progress(records, label="Reading", total=self.points):
            yield to_passage(record.id, record.payload or {}, self.fields)

    def vectors(self, passage_ids: Sequence[str]) -> FloatArray:
        """Return (n, dim) float32, L2-normalised: the vectors of n passages.

        Raises:
            DataError: the collection lacks one of them.
        """
        points = [self._point_id(passage_id) for passage_id in passage_ids]
        rows = np.zeros((len(points), self.vector.dim), dtype=np.float32)
        row_of = {str(point): row for row, point in enumerate(points) if point is not None}
        selector: bool | list[str] = [self.vector.name] if self.vector.name else True
        known = [point for point in points if point is not None]
        missing = set(range(len(points)))
        for part in chunks(known, POINTS_PER_PAGE):
            for record in self.engine.retrieve(
                self.collection, part, with_payload=False, with_vectors=selector
            ):
                stored: Any = record.vector
                row = row_of[str(record.id)]
                rows[row] = stored[self.vector.name] if isinstance(stored, dict) else stored
                missing.discard(row)
        if missing:
            ids = f"field {self.fields.passage_id!r}" if self.fields.passage_id else "point ids"
            raise DataError(
                f"collection {self.collection!r} has no passage {passage_ids[min(missing)]!r} "
                f"(its {ids} are the passage ids); make DATA of it with: "
                f"ingest adopt {self.address} --out DATA"
            )
        return normalized(rows)

    def _point_id(self, passage_id: str) -> int | str | None:
        if self.fields.passage_id:
            return self._points_by_id.get(passage_id)
        if passage_id.isdecimal():
            return int(passage_id)
        try:
            return str(UUID(passage_id))
        except ValueError:
            return None

    @cached_property
    def _points_by_id(self) -> dict[str, int | str]:
        """The point of each passage id, where these are not the points' own."""
        path = str(self.fields.passage_id)
        records = self._id_records([path])
        return {id_at(record.payload or {}, path): _plain(record.id) for record in records}

    def _with_ids(self, paths: Sequence[str]) -> "ForeignCollection":
        """Return the collection with the first path at which every point has another id."""
        ids: dict[str, set[str]] = {path: set() for path in paths}
        for number, record in enumerate(self._id_records(paths) if paths else (), 1):
            payload = record.payload or {}
            for path in [*ids]:
                value = id_at(payload, path)
                ids[path].add(value)
                if not value or len(ids[path]) != number:
                    del ids[path]
            if not ids:
                break
        fields = self.fields._replace(passage_id=next(iter(ids), None))
        return replace(self, fields=fields)

    def _id_records(self, paths: Sequence[str]) -> Iterator[Record]:
        heads = [*dict.fromkeys(part for path in paths for part in (path, path.split(".")[0]))]
        return scroll_all(self.engine, self.collection, page=HASHES_PER_PAGE, with_payload=heads)


def document_vectors(
    dataset: Dataset, address: str, *, url: str | None = None, path: Any = None
) -> tuple[FloatArray, str, str]:
    """Return the vectors that a collection has for DATA's passages, and what to call them.

    Returns:
        (n, dim) float32, L2-normalised, in DATA's order; the collection, with its vector's name;
        a hash of the vectors.

    Raises:
        EngineError: no engine, or no such collection.
        CollectionMismatch: it is one of ours, or has none or several dense vectors.
        DataError: it is empty, or lacks a passage of DATA.
    """
    engine = connect(url=url, path=path, create=False)
    try:
        foreign = ForeignCollection.reopen(engine, dataset.manifest.get("source", {}), address)
        passages = progress(dataset.passages(), label="Vectors", total=dataset.passage_count)
        vectors = np.concatenate(
            [foreign.vectors([p.passage_id for p in chunk]) for chunk in chunks(passages)]
        )
        digest = hashlib.sha256(vectors.tobytes()).hexdigest()
        return vectors, foreign.address, digest
    finally:
        engine.close()


def _parts(engine: Engine, address: str) -> tuple[str, str]:
    """Return collection and vector; the latter is empty where the address names none."""
    aliases = {alias.alias_name for alias in engine.get_aliases().aliases}
    name, colon, vector = address.rpartition(":")
    if not colon or address in collection_names(engine) | aliases:
        return address, ""
    return name, vector


def _dense_vectors(engine: Engine, collection: str) -> list[DenseVector]:
    """Return the vectors that are one row of numbers a point; sparse ones and matrices are none."""
    params = engine.get_collection(collection).config.params.vectors
    named = params if isinstance(params, dict) else {"": params} if params else {}
    return [
        DenseVector(name, one.size, one.distance.value, on_disk=bool(one.on_disk))
        for name, one in named.items()
        if one.multivector_config is None
    ]


def _choose(vectors: Sequence[DenseVector], collection: str, name: str) -> DenseVector:
    candidates = [vector for vector in vectors if name in ("", vector.name)]
    if len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(
        f"{vector.name or 'one without a name'} ({vector.dim})" for vector in vectors
    )
    if not vectors:
        raise CollectionMismatch(
            f"collection {collection!r} has no dense vector; expected one to search by"
        )
    first = f"{collection}:{vectors[0].name}" if vectors[0].name else collection
    raise CollectionMismatch(
        f"collection {collection!r} has the dense vectors {listed}; say which, as in {first}"
    )


def _require_vectors(engine: Engine, collection: str, vector: DenseVector, points: int) -> None:
    if not vector.name:
        return  # every point has it
    has = qm.HasVectorCondition(has_vector=vector.name)
    without = engine.count(collection, count_filter=qm.Filter(must_not=[has])).count
    if without:
        raise DataError(
            f"{without:,} of the {points:,} points of {collection!r} have no vector "
            f"{vector.name!r}; give them one, or delete them"
        )


def _plain(point_id: Any) -> int | str:
    return point_id if isinstance(point_id, int) else str(point_id)
