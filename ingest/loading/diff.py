"""The difference between DATA and a collection: what a load has to write."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from uuid import UUID

from two_tower.ingest.loading.points import chunks
from two_tower.models.data import Passage
from two_tower.models.errors import DataError
from two_tower.models.progress import progress
from two_tower.retriever.collection.schema import (
    CONTENT_HASH,
    RESERVED,
    content_hash,
    from_payload,
    point_id,
    to_payload,
)
from two_tower.retriever.engine.protocol import HASHES_PER_PAGE, Engine, agreement, scroll_all
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.engine.wire import Record


class StoredHashes:
    """Point id -> content hash, both as bytes: text takes twice the memory.

    Iterating gives the point ids.
    """

    def __init__(self) -> None:
        self._hashes: dict[bytes, bytes] = {}

    def add(self, record: Record) -> None:
        """Record a point; an unreadable hash is one that no passage has."""
        key = _pack(record.id)
        try:
            self._hashes[key] = bytes.fromhex((record.payload or {})[CONTENT_HASH])
        except (KeyError, TypeError, ValueError):
            self._hashes[key] = b""

    def get(self, point_id: str) -> str | None:
        """Return the content hash of a point, None where there is no such point."""
        stored = self._hashes.get(_pack(point_id))
        return None if stored is None else stored.hex()

    def pop(self, point_id: str) -> str | None:
        """Return the content hash of a point and forget it, None where there is no such point."""
        stored = self._hashes.pop(_pack(point_id), None)
        return None if stored is None else stored.hex()

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
    engine: Engine, collection: str, *, patient: Engine | None = None
) -> StoredHashes:
    """Return the content hash of every point in the collection.

    A point counts as missing where the replicas that are up differ. `engine` tells which are up;
    `patient`, where given, reads the points.
    """
    hashes = StoredHashes()
    records = scroll_all(
        patient or engine,
        collection,
        page=HASHES_PER_PAGE,
        with_payload=[CONTENT_HASH],
        consistency=agreement(engine, collection),
    )
    total = engine.count(collection, exact=False).count
    for record in progress(records, label="Reading what is there", total=total):
        hashes.add(record)
    return hashes


class Changes(NamedTuple):
    """Differences of some passages.

    Attributes:
        added: passages without a point.
        replaced: passages with another title or text, and so with other vectors.
        payloads: new payloads of passages whose url or fields alone differ.
    """

    added: list[Passage]
    replaced: list[Passage]
    payloads: list[qm.OverwritePayloadOperation]


def find_changes(
    engine: Engine,
    collection: str,
    passages: Iterable[Passage],
    stored: StoredHashes,
    *,
    is_expanded: bool = False,
) -> Iterator[Changes]:
    """Yield the changes in DATA's order; `stored` keeps only the points that DATA lacks.

    Where BM25 reads queries beside the texts, a payload does not tell whether its vectors hold, and
    every passage that changed is replaced.
    """
    for chunk in chunks(_changed_passages(passages, stored)):
        changes = Changes([passage for passage, is_new in chunk if is_new], [], [])
        known = {point_id(passage.passage_id): passage for passage, is_new in chunk if not is_new}
        records = engine.retrieve(collection, [*known], with_payload=True) if known else []
        payloads = {str(record.id): record.payload or {} for record in records}
        for point, passage in known.items():
            old = payloads.get(point, {})
            if not is_expanded and _has_content(old, passage):
                # Reserved keys, such as the cluster, belong to the vectors, which stay.
                new = {name: old[name] for name in RESERVED if name in old} | to_payload(passage)
                change = qm.SetPayload(payload=new, points=[point])
                changes.payloads.append(qm.OverwritePayloadOperation(overwrite_payload=change))
            else:
                changes.replaced.append(passage)
        yield changes


def _changed_passages(
    passages: Iterable[Passage], stored: StoredHashes
) -> Iterator[tuple[Passage, bool]]:
    """Yield passages without a stored point of the same content, and whether they have none.

    Raises:
        DataError: two passages have the same id; one point cannot be both.
    """
    seen: set[int] = set()  # numbers take a third of the memory of the ids
    for count, passage in enumerate(passages, 1):
        seen.add(hash(passage.passage_id))
        if len(seen) < count:
            raise DataError(
                f"DATA has passage {passage.passage_id[:80]!r} twice; run ingest prepare again"
            )
        old = stored.pop(point_id(passage.passage_id)) if stored else None
        if old is None or old != content_hash(passage):
            yield passage, old is None


def _has_content(payload: qm.Payload, passage: Passage) -> bool:
    try:
        return from_payload(payload).content == passage.content
    except KeyError:
        return False
