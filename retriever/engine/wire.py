"""What goes to an engine and comes back, without the client's models.

To make those of a point, and lists of its 350 floats, takes longer than sending it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard, TypeVar

import numpy as np
import orjson
import qdrant_edge as edge

from two_tower.models.errors import DataError
from two_tower.models.storable import storage_fault
from two_tower.models.vectors import ByteArray, FloatArray, IntArray
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.errors import EngineError

BATCH_POINTS = 256
BATCH_BYTES = 8 * 2**20
LARGEST_POINT_BYTES = 30 * 2**20  # a server refuses requests over 32 MB
JSON_FLOAT_BYTES = 24  # one float in JSON, at most
JSON_BYTE_BYTES = 4  # one of uint8
LARGEST_CHARACTER = 6  # bytes in JSON, where it must be escaped

PayloadChange: TypeAlias = "qm.OverwritePayloadOperation | qm.SetPayloadOperation"


@dataclass(frozen=True, slots=True)
class SparseVector:
    """A sparse vector as `qm.SparseVector` is one.

    Attributes:
        indices: terms, each once.
        values: one for each.
    """

    indices: list[int]
    values: list[float]

    def to_client(self) -> qm.SparseVector:
        """Return the same as the client has it."""
        return qm.SparseVector(indices=self.indices, values=self.values)


AnySparse: TypeAlias = "SparseVector | qm.SparseVector | edge.SparseVector"
Vector: TypeAlias = "FloatArray | ByteArray | list[float] | AnySparse"


def is_sparse(vector: object) -> TypeGuard[AnySparse]:
    """Say whether a vector is a sparse one, whoever made it."""
    # By the name of its type, for the client's may not be loaded.
    return type(vector).__name__ == "SparseVector"


class SearchParams(NamedTuple):
    """How vectors are searched, as `qm.SearchParams` says it; None for the engine's default.

    Attributes:
        hnsw_ef: candidates of the graph.
        exact: compare with every vector.
        ignore: the vectors themselves, and not their quantized copies.
        rescore: score what the copies find by the vectors.
        oversampling: how many times the candidates the copies propose.
    """

    hnsw_ef: int | None = None
    exact: bool | None = None
    ignore: bool | None = None
    rescore: bool | None = None
    oversampling: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what a server reads."""
        copies = _known(ignore=self.ignore, rescore=self.rescore, oversampling=self.oversampling)
        return _known(hnsw_ef=self.hnsw_ef, exact=self.exact, quantization=copies or None)

    def to_client(self) -> qm.SearchParams:
        """Return the same as the client has it."""
        return qm.SearchParams.model_validate(self.to_json())


class Request(NamedTuple):
    """A search for ids and scores, or a part of one: `qm.QueryRequest` and `qm.Prefetch`.

    Attributes:
        query: a vector, several of late interaction, or a sparse one.
        using: the name of the vectors that it is compared with.
        limit: hits at most.
        filter: which points may be hits.
        params: how to search.
        prefetch: whose hits alone are compared; all points where there are none.
    """

    query: list[float] | list[list[float]] | SparseVector
    using: str
    limit: int
    filter: qm.Filter | None = None
    params: SearchParams | None = None
    prefetch: Sequence[Request] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what a server reads."""
        return _known(
            query=self.query,
            using=self.using,
            limit=self.limit,
            filter=self.filter and filter_to_json(self.filter),
            params=self.params and self.params.to_json(),
            prefetch=[part.to_json() for part in self.prefetch] or None,
        )


class Record(NamedTuple):
    """A stored point as `qm.Record` is one.

    Attributes:
        id: a number, or a UUID in text.
        payload: what is stored beside the vectors; None where it was not asked for.
        vector: name -> vector; None where none was asked for.
    """

    id: int | str
    payload: dict[str, Any] | None = None
    vector: Any = None


def filter_to_json(filter: qm.Filter) -> dict[str, Any]:
    """Return what a server reads."""
    return filter.model_dump(mode="json", exclude_unset=True, exclude_none=True, by_alias=True)


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class Point(NamedTuple):
    """A point as `qm.PointStruct` is one.

    Attributes:
        id: a UUID in text, or an integer.
        vector: name -> (d,) float32, or the same as a list, or a sparse vector, or (n, d) uint8:
            several vectors under one name.
        payload: what JSON can hold.
    """

    id: int | str
    vector: Mapping[str, Vector]
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class PackedPoints(Sequence[Point]):
    """Points of one collection as columns: quick to pass between processes, and to the engine.

    Attributes:
        ids: of the points.
        dense: name -> (n, dim) float32.
        sparse: name of the only sparse vector.
        terms: (n + 1,), where the terms of each point begin.
        indices: (terms,) uint32.
        values: (terms,) float32.
        payloads: of the points; every engine can store them.
    """

    ids: list[int | str]
    dense: dict[str, FloatArray]
    sparse: str
    terms: list[int]
    indices: IntArray
    values: FloatArray
    payloads: list[dict[str, Any]]

    @classmethod
    def of(cls, points: Sequence[Point]) -> PackedPoints:
        """Pack points with one sparse vector, and dense ones.

        Raises:
            EngineError: an engine could not store a payload.
        """
        for point in points:
            require_storable(point.payload, of=f"point {point.id}")
        (sparse,) = (n for n, each in points[0].vector.items() if is_sparse(each))
        vectors: list[dict[str, Any]] = [dict(point.vector) for point in points]
        terms = [vector.pop(sparse) for vector in vectors]
        indices, values = [each.indices for each in terms], [each.values for each in terms]
        return cls(
            ids=[point.id for point in points],
            dense={name: np.stack([vector[name] for vector in vectors]) for name in vectors[0]},
            sparse=sparse,
            terms=[0, *np.cumsum(list(map(len, indices))).tolist()],
            indices=np.concatenate(indices).astype(np.uint32),
            values=np.concatenate(values).astype(np.float32),
            payloads=[dict(point.payload) for point in points],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: Any) -> Any:
        """Return one point."""
        terms = slice(self.terms[row], self.terms[row + 1])
        vector: dict[str, Vector] = {name: part[row] for name, part in self.dense.items()}
        vector[self.sparse] = edge.SparseVector(
            self.indices[terms].tolist(), self.values[terms].tolist()
        )
        return Point(self.ids[row], vector, self.payloads[row])


def require_storable(payload: Any, *, of: str) -> None:
    """Refuse a payload that the engine would write but could not read from its own log again.

    Raises:
        EngineError: it holds such a value.
    """
    if fault := storage_fault(payload):
        raise EngineError(f"the payload of {of} {fault}; the embedded engine keeps no such value")


class AnyPoint(Protocol):
    """What can be upserted: a `Point` or a `qm.PointStruct`."""

    @property
    def id(self) -> Any:
        """Integer, UUID, or that in text."""

    @property
    def vector(self) -> Any:
        """Vectors by their name."""

    @property
    def payload(self) -> Any:
        """What JSON can hold, or None."""


class Scored(NamedTuple):
    """The hits of one query.

    Attributes:
        ids: point ids as text, best first.
        scores: one for each.
    """

    ids: list[str]
    scores: list[float]


PointT = TypeVar("PointT", bound=AnyPoint)


def batches(
    points: Iterable[PointT], *, max_points: int = BATCH_POINTS, max_bytes: int = BATCH_BYTES
) -> Iterator[list[PointT]]:
    """Yield points in order, in batches as large as both limits allow and never empty.

    Raises:
        DataError: a point is too large for one request.
    """
    batch: list[PointT] = []
    batch_bytes = 0
    for point in points:
        size = most_bytes(point)
        if batch and (len(batch) == max_points or batch_bytes + size > max_bytes):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(point)
        batch_bytes += size
    if batch:
        yield batch


def most_bytes(point: AnyPoint) -> int:
    """Bound a point's size in a request; writing it down to see would double the work.

    Raises:
        DataError: it is too large for one request.
    """
    payload = point.payload or {}
    floats = sum(map(_number_bytes, point.vector.values()))
    texts = sum(
        LARGEST_CHARACTER * len(value) if isinstance(value, str) else len(json.dumps(value))
        for value in payload.values()
    )
    size = floats + texts + LARGEST_CHARACTER * sum(map(len, payload))
    if size > LARGEST_POINT_BYTES:  # or so it seems
        size = floats + len(json.dumps(payload))
    if size > LARGEST_POINT_BYTES:
        raise DataError(
            f"passage {payload.get('passage_id', point.id)!r} takes {size:,} bytes as a point, at "
            f"most {LARGEST_POINT_BYTES:,} fit in a request; split it and run: ingest prepare"
        )
    return size


def _number_bytes(vector: Any) -> int:
    """Bound the size of a vector's numbers in JSON."""
    if is_sparse(vector):
        return JSON_FLOAT_BYTES * 2 * len(vector.values)
    if isinstance(vector, np.ndarray):
        return (JSON_BYTE_BYTES if vector.dtype == np.uint8 else JSON_FLOAT_BYTES) * vector.size
    if len(vector) and isinstance(vector[0], list):
        return JSON_FLOAT_BYTES * len(vector) * len(vector[0])
    return JSON_FLOAT_BYTES * len(vector)


def to_json(points: Sequence[AnyPoint]) -> bytes:
    """Return the body of an upsert; a float32 takes as many digits as tell it from the others."""
    return dumped(
        {"points": [{"id": p.id, "vector": p.vector, "payload": p.payload} for p in points]}
    )


def searches_to_json(requests: Sequence[Request | qm.QueryRequest]) -> bytes:
    """Return the body of a batch of searches."""
    return dumped(
        {
            "searches": [
                request.to_json()
                if isinstance(request, Request)
                else request.model_dump(
                    mode="json", exclude_unset=True, exclude_none=True, by_alias=True
                )
                for request in requests
            ]
        }
    )


def dumped(body: Mapping[str, Any]) -> bytes:
    """Return JSON of what a body holds, arrays and vectors among it."""
    try:
        return orjson.dumps(body, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits
        return json.dumps(body, default=_plain).encode()


def _plain(value: Any) -> Any:
    if is_sparse(value):
        return {"indices": value.indices, "values": value.values}
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
