"""Points on their way to an engine: arrays and the analyzer's own vectors, no model objects.

To make the client's models of a point, and lists of its 350 floats, takes longer than sending it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import orjson
import qdrant_edge as edge

from two_tower.models.errors import DataError
from two_tower.models.vectors import ByteArray, FloatArray
from two_tower.retriever.engine.qdrant_models import qm

SPARSE = (qm.SparseVector, edge.SparseVector)

BATCH_POINTS = 256
BATCH_BYTES = 8 * 2**20
LARGEST_POINT_BYTES = 30 * 2**20  # a server refuses requests over 32 MB
JSON_FLOAT_BYTES = 24  # one float in JSON, at most
JSON_BYTE_BYTES = 4  # one of uint8
LARGEST_CHARACTER = 6  # bytes in JSON, where it must be escaped

PayloadChange = qm.OverwritePayloadOperation | qm.SetPayloadOperation
Vector = FloatArray | ByteArray | list[float] | qm.SparseVector | edge.SparseVector


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
    if isinstance(vector, SPARSE):
        return JSON_FLOAT_BYTES * 2 * len(vector.values)
    if isinstance(vector, np.ndarray):
        return (JSON_BYTE_BYTES if vector.dtype == np.uint8 else JSON_FLOAT_BYTES) * vector.size
    if len(vector) and isinstance(vector[0], list):
        return JSON_FLOAT_BYTES * len(vector) * len(vector[0])
    return JSON_FLOAT_BYTES * len(vector)


def to_json(points: Sequence[AnyPoint]) -> bytes:
    """Return the body of an upsert; a float32 takes as many digits as tell it from the others."""
    body = {"points": [{"id": p.id, "vector": p.vector, "payload": p.payload} for p in points]}
    try:
        return orjson.dumps(body, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits
        return json.dumps(body, default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, SPARSE):
        return {"indices": value.indices, "values": value.values}
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
