"""Points on their way to an engine: arrays and the analyzer's own vectors, no model objects.

To make the client's models of a point, and lists of its 350 floats, takes longer than sending it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson
import qdrant_edge as edge
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import ResponseHandlingException
from qdrant_client.http.models import QueryResponse

from two_tower.models.vectors import FloatArray

SPARSE = (qm.SparseVector, edge.SparseVector)

Sparse = qm.SparseVector | edge.SparseVector

Vector = FloatArray | list[float] | Sparse


class Point(NamedTuple):
    """A point as `qm.PointStruct` is one.

    Attributes:
        id: a UUID in text, or an integer.
        vector: name -> (d,) float32, or the same as a list, or a sparse vector.
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


def upsert_over_rest(
    client: QdrantClient, collection_name: str, points: Sequence[AnyPoint], *, wait: bool
) -> qm.UpdateResult:
    """Send points with the client's own connection, key and errors.

    The client's `upsert` would look through every vector in case it is text to be embedded.

    Raises:
        ResponseHandlingException: the answer is JSON, but not Qdrant's.
    """
    answer: Any = client.http.points_api.api_client.request(
        type_=Any,  # leaves the JSON as it was read
        method="PUT",
        url="/collections/{collection_name}/points",
        path_params={"collection_name": collection_name},
        params={"wait": str(wait).lower()},
        headers={"Content-Type": "application/json"},
        content=to_json(points),
    )
    try:
        done = answer["result"]
        return qm.UpdateResult(status=done["status"], operation_id=done.get("operation_id"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResponseHandlingException(error) from None


def to_json(points: Sequence[AnyPoint]) -> bytes:
    """Return the body of an upsert; a float32 takes as many digits as tell it from the others."""
    body = {"points": [{"id": p.id, "vector": p.vector, "payload": p.payload} for p in points]}
    try:
        return orjson.dumps(body, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits
        return json.dumps(body, default=_plain).encode()


def to_structs(points: Sequence[AnyPoint]) -> list[qm.PointStruct]:
    """Return the points as the client's own models."""
    return [
        qm.PointStruct.model_construct(
            id=point.id,
            vector={name: _model(vector) for name, vector in point.vector.items()},
            payload=point.payload,
        )
        for point in points
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, SPARSE):
        return {"indices": value.indices, "values": value.values}
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _model(vector: Vector) -> list[float] | qm.SparseVector:
    if isinstance(vector, np.ndarray):
        return [float(value) for value in vector.tolist()]
    if isinstance(vector, edge.SparseVector):
        return qm.SparseVector.model_construct(indices=vector.indices, values=vector.values)
    return vector


class Scored(NamedTuple):
    """What one query found.

    Attributes:
        ids: point ids as text, best first.
        scores: one for each.
    """

    ids: list[str]
    scores: list[float]


def scored(response: QueryResponse) -> Scored:
    """Return an answer's ids and scores."""
    points = response.points
    return Scored([str(point.id) for point in points], [point.score for point in points])


def rest_scores(
    client: QdrantClient, collection_name: str, requests: Sequence[qm.QueryRequest]
) -> list[Scored]:
    """Ask a server over REST; with the client's own connection, key and errors.

    Raises:
        ResponseHandlingException: the answer is JSON, but not Qdrant's.
    """
    batch = qm.QueryRequestBatch(searches=list(requests))
    answer: Any = client.http.search_api.api_client.request(
        type_=Any,  # leaves the JSON as it was read
        method="POST",
        url="/collections/{collection_name}/points/query/batch",
        path_params={"collection_name": collection_name},
        headers={"Content-Type": "application/json"},
        content=batch.model_dump_json(exclude_unset=True, exclude_none=True, by_alias=True),
    )
    try:
        found = [_read(one["points"]) for one in answer["result"]]
    except (KeyError, TypeError) as error:
        raise ResponseHandlingException(error) from None
    if len(found) != len(requests):
        count = ValueError(f"{len(found)} answers to {len(requests)} queries")
        raise ResponseHandlingException(count)
    return found


def _read(points: list[dict[str, Any]]) -> Scored:
    return Scored([str(point["id"]) for point in points], [point["score"] for point in points])
