"""The embedded engine: Qdrant Edge behind the part of `QdrantClient` that this project uses.

Edge is Qdrant's own Rust engine in this process. It knows shards; collections, aliases and
metadata are `EdgeCollections`', the translation of types `edge_types`'. The write-ahead log stays
on: without it a crash loses data.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import qdrant_edge as edge
from qdrant_client import models as qm
from qdrant_client.http.models import QueryResponse

from two_tower.retriever import edge_types
from two_tower.retriever.edge_collections import EdgeCollections
from two_tower.retriever.engine_points import AnyPoint
from two_tower.retriever.engine_scores import Scored
from two_tower.retriever.errors import EngineError

DONE = qm.UpdateResult(status=qm.UpdateStatus.COMPLETED)


class EdgeClient(EdgeCollections):
    """Collections in one folder, which one process can have open at a time.

    Methods are `QdrantClient`'s, by name and meaning. Safe to share between threads; Edge holds
    the GIL during a call. Writes are in the write-ahead log when a call returns, and with
    `wait=True` flushed to disk.
    """

    def create_payload_index(
        self,
        collection_name: str,
        field_name: str,
        field_schema: qm.PayloadSchemaType | qm.TextIndexParams,
    ) -> qm.UpdateResult:
        """Index a payload field, so that filters on it are quick."""
        index = edge_types.to_index(field_schema)
        operation = edge.UpdateOperation.create_field_index(field_name, index)
        return self._update(collection_name, operation, wait=False)

    def delete_payload_index(self, collection_name: str, field_name: str) -> qm.UpdateResult:
        """Drop the index of a payload field."""
        operation = edge.UpdateOperation.delete_field_index(field_name)
        return self._update(collection_name, operation, wait=False)

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
                dense = isinstance(vector, list | np.ndarray)
                if dense and len(vector) != widths.get(name):
                    raise EngineError(
                        f"vector {name!r} of point {point.id} has {len(vector)} dimensions; "
                        f"collection {collection_name!r} expects {widths.get(name, 'a sparse one')}"
                    )

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
                edge_types.to_filter(points_selector)
            )
        else:
            operation = edge.UpdateOperation.delete_points([*points_selector])
        return self._update(collection_name, operation, wait=wait)

    def _update(
        self, collection_name: str, operation: edge.UpdateOperation, *, wait: bool
    ) -> qm.UpdateResult:
        shard = self._shard(collection_name)
        self._folder.require_space()
        shard.update(operation)
        if wait:
            shard.flush()
        return DONE

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
            filter=edge_types.to_filter_if_any(scroll_filter),
            with_payload=edge_types.to_selector(with_payload),
            with_vector=edge_types.to_selector(with_vectors),
        )
        records, following = self._shard(collection_name).scroll(request)
        return [_record(r) for r in records], None if following is None else edge_types.from_id(
            following
        )

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
        return [
            _record(r) for r in self._shard(collection_name).retrieve(list(ids), payload, vector)
        ]

    def count(
        self, collection_name: str, *, count_filter: qm.Filter | None = None, exact: bool = True
    ) -> qm.CountResult:
        """Return the number of points that pass a filter."""
        request = edge.CountRequest(exact=exact, filter=edge_types.to_filter_if_any(count_filter))
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
        return self.query_batch_points(collection_name, [request])[0]

    def query_batch_points(
        self, collection_name: str, requests: Sequence[qm.QueryRequest]
    ) -> list[QueryResponse]:
        """Answer many queries in one pass over the segments."""
        answers = self._query_batch(collection_name, requests)
        return [QueryResponse(points=[_scored(point) for point in points]) for points in answers]

    def query_scores(
        self, collection_name: str, requests: Sequence[qm.QueryRequest]
    ) -> list[Scored]:
        """Return what `query_batch_points` finds, ids and scores alone."""
        answers = self._query_batch(collection_name, requests)
        return [
            Scored([str(point.id) for point in points], [point.score for point in points])
            for points in answers
        ]

    def _query_batch(
        self, collection_name: str, requests: Sequence[qm.QueryRequest]
    ) -> list[list[edge.ScoredPoint]]:
        batch = edge.QueryBatchRequest([edge_types.to_request(request) for request in requests])
        return self._shard(collection_name).query_batch(batch)


def _record(record: edge.Record) -> qm.Record:
    return qm.Record.model_construct(
        id=edge_types.from_id(record.id),
        payload=record.payload,
        vector=edge_types.from_vector(record.vector),
    )


def _scored(point: edge.ScoredPoint) -> qm.ScoredPoint:
    return qm.ScoredPoint.model_construct(
        id=edge_types.from_id(point.id),
        version=point.version,
        score=point.score,
        payload=point.payload,
        vector=edge_types.from_vector(point.vector),
    )
