"""A server's own snapshot API.

The client library reads a whole snapshot into memory; here it is streamed both ways, over the
connection that the client has, with its key and certificates.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import httpx
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from two_tower.models.errors import DataError
from two_tower.models.progress import working
from two_tower.retriever.engine.server_failures import reason_of
from two_tower.retriever.engine.snapshot_file import CHUNK, SnapshotFile
from two_tower.retriever.errors import EngineError

SNAPSHOT = "collection.snapshot"
LONG_S = 3600.0  # a server may take minutes to write a snapshot or to take one in
ELSEWHERE = "the way in and out of a cluster is: ingest copy"


@contextmanager
def server_snapshot(client: QdrantClient, collection: str) -> Iterator[list[SnapshotFile]]:
    """Make a snapshot and delete it from the server when the block ends.

    Reading its one file fails where what has arrived does not have the server's own checksum.

    Raises:
        EngineError: other nodes have shards of the collection.
    """
    shards = _ask(client, "GET", f"/collections/{quote(collection, safe='')}/cluster")
    if elsewhere := {shard["peer_id"] for shard in shards["remote_shards"]}:
        raise EngineError(
            f"collection {collection!r} is spread over {len(elsewhere) + 1} nodes, and a snapshot "
            f"holds those shards alone that one node has; {ELSEWHERE}"
        )
    with working(f"The server saves {collection}"):
        made = _ask(client, "POST", _path(collection), {"wait": "true"})
    own = _path(collection, made["name"])
    try:
        chunks = _download(client, own, made["checksum"])
        yield [SnapshotFile(SNAPSHOT, made["size"], made["checksum"], chunks)]
    finally:
        _ask(client, "DELETE", own, {"wait": "true"})


def restore_to_server(client: QdrantClient, collection: str, files: Iterable[SnapshotFile]) -> None:
    """Make a collection, which must not exist, from a server's snapshot.

    Raises:
        DataError: it is no snapshot of a server.
        EngineError: the server is a cluster, or cannot use the snapshot; nothing is left of it.
    """
    file = next(iter(files), None)
    if file is None or file.name != SNAPSHOT:
        raise DataError(f"the snapshot lacks {SNAPSHOT}, the file that a server needs")
    peers = _ask(client, "GET", "/cluster").get("peers", {})
    if len(peers) > 1:
        raise EngineError(
            f"a snapshot can be restored to a single server, this is a cluster of {len(peers)} "
            f"nodes; {ELSEWHERE}"
        )
    upload = f"{secrets.token_hex(8)}.snapshot"
    query = {"priority": "snapshot", "wait": "true", "checksum": file.sha256}
    try:
        _upload(client, _path(collection, "upload"), query, file._replace(name=upload))
    except BaseException as error:
        _clear(client, collection, upload)
        if isinstance(error, UnexpectedResponse) and error.status_code in (400, 500):
            raise EngineError(
                f"the server cannot use the snapshot ({reason_of(error)}); a snapshot fits a "
                "server of its own version or the next one"
            ) from None
        raise
    _ask(client, "DELETE", _path(collection, upload), {"wait": "true"})


def _path(collection: str, *parts: str) -> str:
    return "/".join(
        ["/collections", *(quote(p, safe="") for p in (collection, "snapshots", *parts))]
    )


@contextmanager
def _answer(
    client: QdrantClient, method: str, path: str, **options: Any
) -> Iterator[httpx.Response]:
    rest = client.http.client
    try:
        with rest._client.stream(method, rest.host + path, timeout=LONG_S, **options) as response:
            if response.is_error:
                response.read()
                raise UnexpectedResponse.for_response(response)
            yield response
    except httpx.HTTPError as error:
        raise ResponseHandlingException(error) from error


def _ask(
    client: QdrantClient, method: str, path: str, query: dict[str, str] | None = None
) -> dict[str, Any]:
    with _answer(client, method, path, params=query) as response:
        result = json.loads(response.read())["result"]
    return result if isinstance(result, dict) else {}


def _download(client: QdrantClient, path: str, expected: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with _answer(client, "GET", path) as response:
        for chunk in response.iter_bytes(CHUNK):
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != expected:
        raise EngineError(
            f"the snapshot arrived with checksum {digest.hexdigest()[:12]}, the server's has "
            f"{expected[:12]}; run the same command again"
        )


def _upload(client: QdrantClient, path: str, query: dict[str, str], file: SnapshotFile) -> None:
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="snapshot"; '
        f'filename="{file.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        yield from file.chunks
        yield tail

    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(len(head) + file.size + len(tail)),
    }
    with _answer(client, "POST", path, params=query, content=body(), headers=headers) as response:
        response.read()


def _clear(client: QdrantClient, collection: str, upload: str) -> None:
    """Remove what a failed restore left.

    The server keeps the uploaded file, and lets go of it by way of a collection alone.
    """
    with suppress(Exception):
        if not client.collection_exists(collection):
            client.create_collection(collection, vectors_config={})
        _ask(client, "DELETE", _path(collection, upload), {"wait": "true"})
    with suppress(Exception):
        client.delete_collection(collection)
