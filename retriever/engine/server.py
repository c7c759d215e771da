"""A Qdrant server or cluster: `QdrantClient` over REST, with one-line failures and patience.

Points, records and scores bypass the client's models: it looks through every vector in case it is
text to be embedded, which in a search takes as long as the search itself, and checks every number.
"""

# ruff: noqa: D102 (`Engine` says what the methods do)

from __future__ import annotations

import copy
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException

from two_tower.retriever.engine.failures import AGAIN, unknown_name
from two_tower.retriever.engine.machine import Machine
from two_tower.retriever.engine.protocol import (
    RETRY_FOR_S,
    AliasOperation,
    Counted,
    Engine,
    Kind,
    Overview,
    PayloadIndex,
    PointSelector,
)
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.engine.server_failures import engine_errors
from two_tower.retriever.engine.snapshot_file import SnapshotFile
from two_tower.retriever.engine.snapshots import restore_to_server, server_snapshot
from two_tower.retriever.engine.wire import (
    AnyPoint,
    PayloadChange,
    Record,
    Request,
    Scored,
    SparseVector,
    dumped,
    filter_to_json,
    searches_to_json,
    to_json,
)
from two_tower.retriever.errors import (
    CertificateRefused,
    EngineBusy,
    EngineError,
    EngineUnavailable,
    KeyRefused,
)

LONGEST_PAUSE_S = 5.0
JSON = {"Content-Type": "application/json"}

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

INHERITED: list[QdrantClient] = []
"""Clients of the process that this one was forked from. One that is dropped closes itself, and
would wait for ever for a lock that a thread of that process held."""


class ServerEngine(Engine):
    """The `Engine` that is a server or cluster."""

    is_embedded = False

    def __init__(self, connect: Callable[[], QdrantClient], where: str) -> None:
        """Connect; a process that is forked later connects by itself with its first request.

        Two processes on one connection would read each other's answers.
        """
        self.where = where
        self._connect = connect
        self._connected, self._pid = connect(), os.getpid()
        self._retry_for_s: float | None = None

    @property
    def _client(self) -> QdrantClient:
        if os.getpid() != self._pid:
            INHERITED.append(self._connected)
            self._connected, self._pid = self._connect(), os.getpid()
        return self._connected

    def with_retry(self, seconds: float = RETRY_FOR_S) -> ServerEngine:
        """Return this engine with requests that outlive a restart of the server.

        Every request can be made twice, so one whose answer is lost is made again.
        """
        patient = copy.copy(self)
        patient._retry_for_s = seconds
        return patient

    def _call(self, request: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a request; while the server is away or busy, make it again if asked to."""
        start = time.monotonic()
        attempt = 0
        while True:
            try:
                with engine_errors(self.where):
                    answer = request(*args, **kwargs)
            except (EngineUnavailable, EngineBusy) as error:
                if self._retry_for_s is None or isinstance(error, KeyRefused | CertificateRefused):
                    raise
                waited_s = time.monotonic() - start
                if waited_s >= self._retry_for_s:
                    gave_up = f"{error}; gave up after {waited_s:.0f} s: {AGAIN}"
                    raise type(error)(gave_up) from None
                if not attempt:
                    log.warning("%s; trying again for %.0f s", error, self._retry_for_s)
                # Twice as long each time; never quite the same for two loaders of one server.
                pause_s = min(LONGEST_PAUSE_S, 0.1 * 2.0**attempt) * random.uniform(0.75, 1.25)
                time.sleep(min(pause_s, self._retry_for_s - waited_s))
                attempt += 1
            else:
                if attempt:
                    log.warning("Going on after %.1f s", time.monotonic() - start)
                return answer

    def _request(
        self, method: str, path: str, *, content: bytes | str, read: Callable[[Any], T]
    ) -> T:
        """Send JSON with the client's own connection and key; read the result as plain JSON.

        Raises:
            ResponseHandlingException: the answer is JSON, but not Qdrant's.
        """
        answer: Any = self._client.http.client.request(
            type_=Any,  # leaves the JSON as it was read
            method=method,
            url=path,
            headers=JSON,
            content=content,
        )
        try:
            return read(answer["result"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ResponseHandlingException(error) from None

    def info(self) -> qm.VersionInfo:
        return self._call(self._client.info)

    def machine(self) -> Machine | None:
        def read(said: Any) -> Machine | None:
            system = said["app"]["system"]
            if said["cluster"]["enabled"]:
                return None
            return Machine(1024.0 * system["disk_size"], 1024.0 * system["ram_size"])

        # The client's models refuse what a server of another minor version says.
        path = "/telemetry?details_level=3"
        try:
            return self._call(self._request, "GET", path, content=b"", read=read)
        except EngineError:  # the key may be too weak, or the answer lack what was asked for
            return None

    def close(self) -> None:
        self._connected.close()

    def resolve(self, name: str) -> str:
        aliases = {a.alias_name: a.collection_name for a in self.get_aliases().aliases}
        if name in aliases:
            return aliases[name]
        if self.collection_exists(name):
            return name
        raise unknown_name(name, self.where, aliases)

    def optimize(self, collection_name: str) -> bool:
        """Do nothing: a server optimizes by itself."""
        return False

    def collection_exists(self, collection_name: str) -> bool:
        return self._call(self._client.collection_exists, collection_name)

    def create_collection(self, collection_name: str, **options: Any) -> bool:
        return self._call(self._client.create_collection, collection_name, **options)

    def get_collection(self, collection_name: str) -> qm.CollectionInfo:
        return self._call(self._client.get_collection, collection_name)

    def overview(self, collection_name: str) -> Overview:
        info = self.get_collection(collection_name)
        fields = {name: Kind(index.data_type.value) for name, index in info.payload_schema.items()}
        return Overview(info.points_count, dict(sorted(fields.items())), info.config.metadata or {})

    def get_collections(self) -> qm.CollectionsResponse:
        return self._call(self._client.get_collections)

    def delete_collection(self, collection_name: str) -> bool:
        return self._call(self._client.delete_collection, collection_name)

    def update_collection(self, collection_name: str, **options: Any) -> bool:
        return self._call(self._client.update_collection, collection_name, **options)

    @contextmanager
    def take_snapshot(self, collection_name: str) -> Iterator[list[SnapshotFile]]:
        """Give the one file of a snapshot, which is deleted from the server when the block ends."""
        with engine_errors(self.where), server_snapshot(self._client, collection_name) as files:
            yield files

    def restore_snapshot(self, collection_name: str, files: Iterable[SnapshotFile]) -> None:
        with engine_errors(self.where):
            restore_to_server(self._client, collection_name, files)

    def get_aliases(self) -> qm.CollectionsAliasesResponse:
        return self._call(self._client.get_aliases)

    def update_collection_aliases(
        self, change_aliases_operations: Sequence[AliasOperation]
    ) -> bool:
        return self._call(self._client.update_collection_aliases, change_aliases_operations)

    def create_payload_index(
        self, collection_name: str, field_name: str, field_schema: PayloadIndex
    ) -> qm.UpdateResult:
        return self._call(
            self._client.create_payload_index, collection_name, field_name, field_schema
        )

    def delete_payload_index(self, collection_name: str, field_name: str) -> qm.UpdateResult:
        return self._call(self._client.delete_payload_index, collection_name, field_name)

    def upsert(
        self, collection_name: str, points: Sequence[AnyPoint], *, wait: bool = True
    ) -> qm.UpdateResult:
        def read(result: Any) -> qm.UpdateResult:
            number = result.get("operation_id")
            return qm.UpdateResult(status=result["status"], operation_id=number)

        path = f"{_points(collection_name, '')}?wait={str(wait).lower()}"
        return self._call(self._request, "PUT", path, content=to_json(points), read=read)

    def batch_update_points(
        self, collection_name: str, update_operations: Sequence[PayloadChange], *, wait: bool = True
    ) -> list[qm.UpdateResult]:
        return self._call(
            self._client.batch_update_points, collection_name, update_operations, wait=wait
        )

    def delete(
        self, collection_name: str, points_selector: PointSelector, *, wait: bool = True
    ) -> qm.UpdateResult:
        return self._call(
            self._client.delete,
            collection_name,
            [*points_selector] if isinstance(points_selector, list) else points_selector,
            wait=wait,
        )

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
        def read(result: Any) -> tuple[list[Record], int | str | None]:
            return [_record(point) for point in result["points"]], result.get("next_page_offset")

        body: dict[str, Any] = {"limit": limit, "offset": offset}
        body |= {"with_payload": with_payload, "with_vector": with_vectors}
        body |= {"filter": scroll_filter and filter_to_json(scroll_filter)}
        path = _points(collection_name, "scroll", consistency)
        return self._call(self._request, "POST", path, content=dumped(body), read=read)

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[int | str],
        *,
        with_payload: bool | list[str] = True,
        with_vectors: bool | list[str] = False,
        consistency: qm.ReadConsistencyType | None = None,
    ) -> list[Record]:
        def read(result: Any) -> list[Record]:
            return [_record(point) for point in result]

        body = {"ids": [*ids], "with_payload": with_payload, "with_vector": with_vectors}
        path = _points(collection_name, "", consistency)
        return self._call(self._request, "POST", path, content=dumped(body), read=read)

    def count(self, collection_name: str, **options: Any) -> Counted:
        return Counted(self._call(self._client.count, collection_name, **options).count)

    def facet(self, collection_name: str, key: str, **options: Any) -> qm.FacetResponse:
        return self._call(self._client.facet, collection_name, key, **options)

    def query_points(
        self, collection_name: str, query: Any = None, **options: Any
    ) -> qm.QueryResponse:
        return self._call(self._client.query_points, collection_name, query, **options)

    def query_scores(
        self, collection_name: str, requests: Sequence[Request | qm.QueryRequest]
    ) -> list[Scored]:
        def read(result: Any) -> list[Scored]:
            if len(result) != len(requests):
                raise ValueError(f"{len(result)} answers to {len(requests)} queries")
            return [
                Scored([str(hit["id"]) for hit in hits], [hit["score"] for hit in hits])
                for hits in (answer["points"] for answer in result)
            ]

        content = searches_to_json(requests)
        path = _points(collection_name, "query/batch")
        return self._call(self._request, "POST", path, content=content, read=read)


def _points(collection_name: str, action: str, consistency: str | None = None) -> str:
    """Return the path of what is done with the points of a collection."""
    path = f"/collections/{quote(collection_name, safe='')}/points"
    wanted = "" if consistency is None else f"?consistency={consistency}"
    return f"{path}/{action}{wanted}" if action else f"{path}{wanted}"


def _record(point: Mapping[str, Any]) -> Record:
    vector = point.get("vector")
    if isinstance(vector, dict):
        vector = {
            name: SparseVector(each["indices"], each["values"]) if isinstance(each, dict) else each
            for name, each in vector.items()
        }
    return Record(point["id"], point.get("payload"), vector)
