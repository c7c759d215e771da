"""Which passages a collection has, by their content hash, in about 250 bytes of memory a point."""

from collections.abc import Iterator
from uuid import UUID

from qdrant_client import models as qm

from two_tower.retriever.collection.schema import CONTENT_HASH
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
