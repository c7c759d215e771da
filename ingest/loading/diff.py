"""What has to be written so that a collection holds what DATA says."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from qdrant_client import models as qm

from two_tower.ingest.loading.points import chunks
from two_tower.models.data import Passage
from two_tower.retriever.collection.schema import (
    CONTENT_HASH,
    RESERVED,
    content_hash,
    from_payload,
    point_id,
    to_payload,
)
from two_tower.retriever.engine.protocol import Engine, agreement

SCROLL_SIZE = 4096


class StoredHashes:
    """Point id -> content hash, kept as bytes: as text a million points would take twice as much.

    Iterating gives the point ids.
    """

    def __init__(self) -> None:
        self._hashes: dict[bytes, bytes] = {}

    def add(self, record: qm.Record) -> None:
        """Record a point; an unreadable hash is one that no passage has."""
        key = _pack(record.id)
        try:
            self._hashes[key] = bytes.fromhex((record.payload or {})[CONTENT_HASH])
        except (KeyError, TypeError, ValueError):
            self._hashes[key] = b""

    def get(self, point_id: str) -> str | None:
        """Return the content hash of a point, None where there is no such point."""
        found = self._hashes.get(_pack(point_id))
        return None if found is None else found.hex()

    def pop(self, point_id: str) -> str | None:
        """As `get`, and forget the point."""
        found = self._hashes.pop(_pack(point_id), None)
        return None if found is None else found.hex()

    def __len__(self) -> int:
        return len(self._hashes)

    def __iter__(self) -> Iterator[int | str]:
        return map(_unpack, self._hashes)


def _pack(point_id: int | str | UUID) -> bytes:
    if isinstance(point_id, int):  # not one of ours
        return point_id.to_bytes(8, "big")
    return UUID(str(point_id)).bytes


def _unpack(key: bytes) -> int | str:
    return int.from_bytes(key, "big") if len(key) == 8 else str(UUID(bytes=key))


def stored_hashes(
    engine: Engine, collection: str, *, consistency: qm.ReadConsistencyType | None = None
) -> StoredHashes:
    """Return the content hash of every point in the collection.

    Args:
        engine: where.
        collection: versioned name.
        consistency: by default what the replicas that are up agree on; a point that they differ
            in counts as missing.
    """
    consistency = consistency or agreement(engine, collection)
    hashes = StoredHashes()
    offset: int | str | None = None
    while True:
        records, offset = engine.scroll(
            collection,
            limit=SCROLL_SIZE,
            offset=offset,
            with_payload=[CONTENT_HASH],
            consistency=consistency,
        )
        for record in records:
            hashes.add(record)
        if offset is None:
            return hashes


class Changes(NamedTuple):
    """Some passages that the collection does not have as they are.

    Attributes:
        added: it has no point of theirs.
        replaced: title or text is another, so that their vectors are.
        payloads: only url or fields differ; replacing the payload is enough.
    """

    added: list[Passage]
    replaced: list[Passage]
    payloads: list[qm.OverwritePayloadOperation]


def find_changes(
    engine: Engine, collection: str, passages: Iterable[Passage], stored: StoredHashes
) -> Iterator[Changes]:
    """Yield the changes in DATA's order.

    Args:
        engine: asked for title and text of points whose content hash is another.
        collection: versioned name.
        passages: all that it should hold.
        stored: what it holds; what is left in there after the last change, DATA does not have.
    """
    for chunk in chunks(_differing(passages, stored)):
        added = [item.passage for item in chunk if item.is_new]
        known = [item.passage for item in chunk if not item.is_new]
        yield _sort(added, known, _payloads(engine, collection, known))


class _Differing(NamedTuple):
    passage: Passage
    is_new: bool


def _differing(passages: Iterable[Passage], stored: StoredHashes) -> Iterator[_Differing]:
    for passage in passages:
        found = stored.pop(point_id(passage.passage_id)) if stored else None
        if found is None or found != content_hash(passage):
            yield _Differing(passage, found is None)


def _payloads(
    engine: Engine, collection: str, passages: Sequence[Passage]
) -> dict[str, qm.Payload]:
    ids = [point_id(passage.passage_id) for passage in passages]
    records = engine.retrieve(collection, ids, with_payload=True) if ids else []
    return {str(record.id): record.payload or {} for record in records}


def _sort(
    added: list[Passage], known: Sequence[Passage], payloads: dict[str, qm.Payload]
) -> Changes:
    changes = Changes(added, [], [])
    for passage in known:
        point = point_id(passage.passage_id)
        old = payloads.get(point)
        if old and _same_content(old, passage):
            # What a passage's vectors decide stays with them.
            new = {name: old[name] for name in RESERVED if name in old} | to_payload(passage)
            change = qm.SetPayload(payload=new, points=[point])
            changes.payloads.append(qm.OverwritePayloadOperation(overwrite_payload=change))
        else:
            changes.replaced.append(passage)
    return changes


def _same_content(payload: qm.Payload, passage: Passage) -> bool:
    try:
        return from_payload(payload).content == passage.content
    except KeyError:
        return False
