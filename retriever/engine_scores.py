"""Ids and scores of found points, read without a model object for each.

A hybrid query brings 300 points; to make models of them takes longer than the search itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import ResponseHandlingException
from qdrant_client.http.models import QueryResponse  # the name in qm is fastembed's


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
