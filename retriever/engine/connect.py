"""The one seam to the vector engine: nothing else in this project makes a client.

`connect()` gives embedded Qdrant Edge by default and a Qdrant server or cluster for a URL. Both
answer the same calls (`Engine`: the part of `QdrantClient` that is used here, with the types of
`qdrant_client.models` in and out) and fail with the same one-line errors.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import httpx
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.models import QueryResponse

from two_tower.retriever.engine.address import DEFAULT_PATH, EngineAddress, authorities
from two_tower.retriever.engine.edge import EdgeClient
from two_tower.retriever.engine.failures import engine_errors
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.snapshots import SnapshotFile, restore_to_server, server_snapshot
from two_tower.retriever.engine.wire import (
    AnyPoint,
    Scored,
    rest_scores,
    scored,
    to_structs,
    upsert_over_rest,
)
from two_tower.retriever.errors import CollectionNotFound, EngineTooOld, EngineUnavailable

__all__ = ["DEFAULT_PATH", "Engine", "EngineAddress", "connect"]

OLDEST_SERVER = (1, 16)
# A server sends a compressed answer in pieces, and over a kept connection the second piece waits
# 40 ms for an acknowledgement of the first; so no compression. Qdrant drops an idle connection
# after 5 s; ours is given up before, lest a request meets the closing.
QUICK_REST: Mapping[str, Any] = MappingProxyType(
    {
        "headers": {"Accept-Encoding": "identity"},
        "limits": httpx.Limits(max_keepalive_connections=32, keepalive_expiry=2.0),
    }
)


def connect(
    *,
    url: str | None = None,
    path: str | Path | None = None,
    api_key: str | None = None,
    prefer_grpc: bool = False,
    grpc_port: int = 6334,
    timeout_s: int = 30,
    create: bool = True,
) -> Engine:
    """Open the engine that `EngineAddress.find` chooses.

    Args:
        url: a Qdrant server or cluster.
        path: folder of the embedded engine; one process at a time can hold it.
        api_key: for the server; never printed.
        prefer_grpc: talk gRPC at `grpc_port` for everything but the version check.
        grpc_port: where the server listens for gRPC.
        create: make the embedded folder where it is missing; otherwise that is `EngineUnavailable`.
        timeout_s: for each request; at least 10, for a cluster's leader election can take 5.

    Raises:
        ConfigError: both `url` and `path`, something that is not a URL, or no usable key or CA.
        EngineUnavailable: no answer, not Qdrant, or the key or the server's certificate is refused.
        EngineTooOld: the server is older than 1.16.
        EngineLocked: another process holds the folder.
    """
    address = EngineAddress.find(url=url, path=path, api_key=api_key)
    if address.path is not None:
        return _guarded(EdgeClient(address.path, create=create), str(address))
    options: dict[str, Any] = {} if prefer_grpc else {**QUICK_REST}
    if trusted := authorities():
        options["verify"] = trusted
    options |= {"prefer_grpc": prefer_grpc, "grpc_port": grpc_port, "timeout": timeout_s}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a key over plain HTTP is the caller's to judge
        client = QdrantClient(
            url=address.url, api_key=address.api_key, check_compatibility=False, **options
        )
    engine = _guarded(client, str(address), rest=not prefer_grpc)
    try:
        _check_server(engine, str(address))
    except BaseException:
        engine.close()
        raise
    return engine


def _check_server(engine: Engine, where: str) -> None:
    version = engine.info().version
    found = re.match(r"(\d+)\.(\d+)", version)
    if not found:
        raise EngineUnavailable(f"{where} gives version {version!r}; expected a Qdrant server")
    if (int(found[1]), int(found[2])) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise EngineTooOld(
            f"{where} runs Qdrant {version}, expected {oldest} or newer; upgrade the server"
        )
    engine.get_aliases()  # the version is public; this call needs the key


def _guarded(client: EdgeClient | QdrantClient, where: str, *, rest: bool = False) -> Engine:
    if isinstance(client, EdgeClient):
        return cast(Engine, _Guarded(client, where))
    return cast(Engine, (_GuardedRest if rest else _GuardedGrpc)(client, where))


class _Guarded:
    """Passes calls on to a client and turns its failures into `EngineError`s."""

    def __init__(self, client: EdgeClient | QdrantClient, where: str) -> None:
        self._client = client
        self._where = where

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with engine_errors(self._where):
                return method(*args, **kwargs)

        self.__dict__[name] = call
        return call

    def resolve(self, name: str) -> str:
        with engine_errors(self._where):
            aliases = self._client.get_aliases().aliases
            for alias in aliases:
                if alias.alias_name == name:
                    return alias.collection_name
            if self._client.collection_exists(name):
                return name
        known = ", ".join(sorted(alias.alias_name for alias in aliases)) or "none"
        raise CollectionNotFound(
            f"no collection {name!r} at {self._where} (aliases there: {known}); "
            f"run: ingest load DATA --bundle BUNDLE --collection {name}"
        )

    def optimize(self, collection_name: str) -> bool:
        if not isinstance(self._client, EdgeClient):
            return False
        with engine_errors(self._where):
            return self._client.optimize(collection_name)

    @contextmanager
    def take_snapshot(self, collection_name: str) -> Iterator[list[SnapshotFile]]:
        client = self._client
        with engine_errors(self._where):
            if isinstance(client, EdgeClient):
                taken = client.take_snapshot(collection_name)
            else:
                taken = server_snapshot(client, collection_name)
            with taken as files:
                yield files

    def restore_snapshot(self, collection_name: str, files: Iterable[SnapshotFile]) -> None:
        with engine_errors(self._where):
            if isinstance(self._client, EdgeClient):
                self._client.restore_snapshot(collection_name, files)
            else:
                restore_to_server(self._client, collection_name, files)


class _GuardedGrpc(_Guarded):
    """Has what the other engines have beyond `QdrantClient`."""

    def query_scores(
        self, collection_name: str, requests: Sequence[qm.QueryRequest]
    ) -> list[Scored]:
        return [scored(answer) for answer in self.query_batch_points(collection_name, requests)]

    def upsert(
        self, collection_name: str, points: Sequence[AnyPoint], *, wait: bool = True
    ) -> qm.UpdateResult:
        with engine_errors(self._where):
            client = cast(QdrantClient, self._client)
            return client.upsert(collection_name, to_structs(points), wait=wait)


class _GuardedRest(_Guarded):
    """Leaves out that the client looks through every vector in case it is text to be embedded.

    In a search that takes as long as the search itself.
    """

    def upsert(
        self, collection_name: str, points: Sequence[AnyPoint], *, wait: bool = True
    ) -> qm.UpdateResult:
        with engine_errors(self._where):
            client = cast(QdrantClient, self._client)
            return upsert_over_rest(client, collection_name, points, wait=wait)

    def query_batch_points(
        self, collection_name: str, requests: Sequence[qm.QueryRequest]
    ) -> list[QueryResponse]:
        batch = qm.QueryRequestBatch(searches=list(requests))
        with engine_errors(self._where):
            answer = cast(QdrantClient, self._client).http.search_api.query_batch_points(
                collection_name=collection_name, query_request_batch=batch
            )
        return answer.result or []

    def query_scores(
        self, collection_name: str, requests: Sequence[qm.QueryRequest]
    ) -> list[Scored]:
        with engine_errors(self._where):
            return rest_scores(cast(QdrantClient, self._client), collection_name, requests)
