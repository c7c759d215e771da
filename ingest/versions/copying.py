"""A collection from one engine to another: embedded to server, server to cluster, and back."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from qdrant_client import models as qm

from two_tower.ingest.loading.diff import SCROLL_SIZE
from two_tower.ingest.loading.lease import LEASE, Lease
from two_tower.ingest.loading.points import SizedPoint, chunks, pack, sized_point
from two_tower.ingest.loading.retry import patient
from two_tower.ingest.loading.sending import Sender
from two_tower.ingest.loading.verify import RETRIEVE_SIZE, SAMPLE, difference, verify_counts
from two_tower.ingest.versions.versions import PREVIOUS
from two_tower.models.console import progress
from two_tower.retriever.collection.options import DECLARED, CollectionOptions, fixed_differences
from two_tower.retriever.collection.schema import CONTENT_HASH, CollectionMetadata, read_metadata
from two_tower.retriever.engine.protocol import Engine, is_embedded
from two_tower.retriever.errors import CollectionMismatch, VerificationFailed
from two_tower.retriever.search.filters import field_types

OWN = (PREVIOUS, LEASE, "options")  # in the metadata: of one place alone, never copied

ORIGIN = ("bundle_fingerprint", "dim", "pca_dims", "bm25", "centroids")

OPTIMIZE_ABOVE = 100_000

AGAIN = "run the same command again"


@dataclass(frozen=True)
class CopyReport:
    """What a copy did.

    Attributes:
        collection: versioned name, the same in both places.
        sent: points that the target lacked or had otherwise.
        unchanged: points that it had already.
        compared: points whose vectors and payload were read back from both and found equal.
    """

    collection: str
    sent: int
    unchanged: int
    compared: int

    def __str__(self) -> str:
        return (
            f"{self.collection}: {self.sent:,} points sent, {self.unchanged:,} were there; "
            f"verified {self.sent + self.unchanged:,} content hashes, "
            f"{self.compared:,} points in full"
        )


def copy(
    source: Engine, target: Engine, name: str, *, options: CollectionOptions | None = None
) -> CopyReport:
    """Bring a collection to another engine: ids, vectors, payload, indexes and metadata.

    It keeps its versioned name. A copy that was stopped goes on where it was; no alias is
    changed. The collection in `source` must not be written to meanwhile.

    Args:
        source: where it is.
        target: where it is to be.
        name: its alias or versioned name in `source`.
        options: how to store it in `target`, shards and replicas for instance; as in `source` by
            default.

    Raises:
        CollectionNotFound: `source` has no such collection.
        CollectionMismatch: `target` has one of that name that is another, or was not made so.
        VerificationFailed: it is incomplete in `source`, or `target` does not have what was sent.
        EngineLocked: something else writes to it in `target`.
    """
    collection = source.resolve(name)
    total = verify_counts(source, collection).points
    _open(source, target, collection, options)
    lasting = patient(target)
    with Lease(target, collection):
        sent = _send(source, lasting, collection, total)
        lasting.update_collection(collection, metadata=_metadata(source, collection))
        if total > OPTIMIZE_ABOVE:
            lasting.optimize(collection)
        compared = _verify(source, lasting, collection, total)
    return CopyReport(collection, sent, total - sent, compared)


def _metadata(engine: Engine, collection: str) -> dict[str, Any]:
    stored = engine.get_collection(collection).config.metadata or {}
    return {key: value for key, value in stored.items() if key not in OWN}


def _open(
    source: Engine, target: Engine, collection: str, options: CollectionOptions | None
) -> None:
    """Make the collection in `target`, or check that the one that is there is the same."""
    metadata = read_metadata(source, collection)
    if target.collection_exists(collection):
        here = read_metadata(target, collection)
        _require_same(metadata, here, collection, options)
        wanted = here.options
    else:
        wanted = options or metadata.options
        if options is None and is_embedded(target):
            wanted = replace(wanted, shards=None, replicas=None, write_consistency=None)
        _require_alike(metadata.options, wanted)
        schema = replace(metadata.schema, options=wanted)
        stored = {**_metadata(source, collection), "options": wanted.to_dict()}
        target.create_collection(collection, **schema.creation, metadata=stored)
    found = field_types(target.get_collection(collection))
    for field, kind in _indexes(source, collection, wanted).items():
        if kind != "none" and field not in found:
            index = DECLARED.get(kind) or qm.PayloadSchemaType(kind)  # made by hand
            target.create_payload_index(collection, field, index)


def _indexes(source: Engine, collection: str, options: CollectionOptions) -> Mapping[str, str]:
    found = field_types(source.get_collection(collection))
    return {field: kind.value for field, kind in found.items()} | dict(options.indexes)


def _require_alike(found: CollectionOptions, wanted: CollectionOptions) -> None:
    """Refuse options that would make other points of the same passages."""
    for name in fixed_differences(found, wanted).keys() & {"distance", "clusters"}:
        raise CollectionMismatch(
            f"the collection has {name} {getattr(found, name)}, the options say "
            f"{getattr(wanted, name)}; a copy keeps both, only ingest load makes it otherwise"
        )


def _require_same(
    there: CollectionMetadata,
    here: CollectionMetadata,
    collection: str,
    options: CollectionOptions | None,
) -> None:
    """Refuse to mix points that were made in different ways."""
    for name in ORIGIN:
        if getattr(there, name) != getattr(here, name):
            raise CollectionMismatch(
                f"the target has a collection {collection!r} of its own, with another {name}; "
                f"if it is not needed, drop it there with: ingest drop {collection}"
            )
    if options not in (None, here.options):
        raise CollectionMismatch(
            f"the target has {collection!r} with other options already; leave --options out, or "
            f"drop it there with: ingest drop {collection}"
        )


def _send(source: Engine, target: Engine, collection: str, total: int) -> int:
    fresh = target.count(collection).count == 0
    with Sender() as sender:
        points = _missing(source, None if fresh else target, collection, total)
        for batch in pack(points):
            sender.put(partial(target.upsert, collection, batch), len(batch))
    return sender.sent


def _missing(
    source: Engine, target: Engine | None, collection: str, total: int
) -> Iterator[SizedPoint]:
    """Yield the points of `source` that `target`, unless it is None, does not have like this."""
    stored = progress(_records(source, collection, whole=True), label="Copying", total=total)
    for records in chunks(stored, RETRIEVE_SIZE):
        wanted = _differing(records, target, collection) if target else records
        for record in wanted:
            payload: Any = record.payload
            vector: Any = record.vector
            yield sized_point(payload["passage_id"], vector, payload)


def _records(engine: Engine, collection: str, *, whole: bool) -> Iterator[qm.Record]:
    """Yield the points in the order of their ids, whole or with their content hash alone."""
    offset: int | str | None = None
    while True:
        records, offset = engine.scroll(
            collection,
            limit=RETRIEVE_SIZE if whole else SCROLL_SIZE,
            offset=offset,
            with_payload=True if whole else [CONTENT_HASH],
            with_vectors=whole,
        )
        yield from records
        if offset is None:
            return


def _differing(records: list[qm.Record], target: Engine, collection: str) -> list[qm.Record]:
    """Return those that `target` lacks or has with another content hash."""
    ids = [str(record.id) for record in records]
    found = target.retrieve(collection, ids, with_payload=[CONTENT_HASH])
    hashes = {str(record.id): _hash(record) for record in found}
    return [record for record in records if hashes.get(str(record.id)) != _hash(record)]


def _hash(record: qm.Record) -> str:
    return str((record.payload or {})[CONTENT_HASH])


def _verify(source: Engine, target: Engine, collection: str, total: int) -> int:
    """Compare all content hashes and a sample of whole points; return how many that was."""
    wrong = seen = 0
    sample: list[str] = []
    step = max(1, math.ceil(total / SAMPLE))
    stored = progress(_records(source, collection, whole=False), label="Verifying", total=total)
    for records in chunks(stored, SCROLL_SIZE):
        wrong += len(_differing(records, target, collection))
        sample += [str(record.id) for record in records[-seen % step :: step]]
        seen += len(records)
    if wrong or seen != total:
        raise VerificationFailed(
            f"the copy of {collection!r} lacks {wrong:,} of the {seen:,} points that the source "
            f"has now ({total:,} when it began), or has others; {AGAIN}"
        )
    points = target.count(collection).count
    if points != total:
        raise VerificationFailed(
            f"the copy of {collection!r} has {points:,} points, the source {total:,}; "
            f"drop it there with ingest drop {collection}, and {AGAIN}"
        )
    _compare(source, target, collection, sample)
    return len(sample)


def _compare(source: Engine, target: Engine, collection: str, sample: list[str]) -> None:
    there, here = (
        engine.retrieve(collection, [*sample], with_payload=True, with_vectors=True)
        for engine in (source, target)
    )
    found = {str(record.id): record for record in here}
    for record in there:
        vector: Any = record.vector
        point = qm.PointStruct(id=record.id, vector=vector, payload=record.payload)
        if difference(found.get(str(record.id)), point):
            raise VerificationFailed(
                f"the copy of {collection!r} has point {record.id} with the right content hash "
                f"but other vectors or payload; drop it there with ingest drop {collection}, and "
                f"{AGAIN}"
            )
