"""What has to be written so that a collection holds what DATA says."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from qdrant_client import models as qm

from two_tower.ingest.points import chunks
from two_tower.ingest.stored import StoredHashes
from two_tower.models.data import Passage
from two_tower.retriever.collection.schema import (
    RESERVED,
    content_hash,
    from_payload,
    point_id,
    to_payload,
)
from two_tower.retriever.engine.protocol import Engine


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
