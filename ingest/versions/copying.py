"""Copies of a collection from one engine to another: embedded, server or cluster."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from two_tower.ingest.loading.lease import LEASE, Lease
from two_tower.ingest.loading.points import chunks
from two_tower.ingest.loading.sending import Sender
from two_tower.ingest.loading.verify import COMPARED, TOLERANCE, difference, verify_counts
from two_tower.ingest.versions.versions import PREVIOUS
from two_tower.models.progress import progress
from two_tower.retriever.collection.options import (
    CollectionOptions,
    HnswOptions,
    QuantizationOptions,
    fixed_differences,
    payload_index,
)
from two_tower.retriever.collection.schema import CONTENT_HASH, CollectionMetadata, read_metadata
from two_tower.retriever.engine.failures import AGAIN
from two_tower.retriever.engine.protocol import (
    HASHES_PER_PAGE,
    OPTIMIZE_ABOVE,
    POINTS_PER_PAGE,
    Engine,
    scroll_all,
    stored_metadata,
)
from two_tower.retriever.engine.wire import Record, batches
from two_tower.retriever.errors import CollectionMismatch, VerificationFailed

NOT_COPIED = (PREVIOUS, LEASE, "options")  # keys of the metadata that belong to one engine
ORIGIN = ("bundle_fingerprint", "dim", "pca_dims", "bm25", "centroids", "late_dim")


@dataclass(frozen=True)
class CopyReport:
    """What a copy did.

    Attributes:
        collection: versioned name, the same in both places.
        sent: points that the target lacked or held in another form.
        unchanged: points that the target had already.
        compared: points whose vectors and payload are equal in both engines.
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
    """Copy a collection to another engine: ids, vectors, payload, indexes and metadata.

    It keeps its versioned name, and no alias changes. A copy that was stopped goes on when it runs
    again. Nothing may write to the collection in `source` meanwhile.

    `name` is its alias or versioned name in `source`; `options` say how to store it in `target`, by
    default as in `source`.

    Raises:
        CollectionNotFound: `source` has no such collection.
        CollectionMismatch: `target` has one of that name that is another, or was not made so.
        VerificationFailed: it is incomplete in `source`, or `target` does not have what was sent.
        EngineLocked: something else writes to it in `target`.
    """
    collection = source.resolve(name)
    total = verify_counts(source, collection).points
    _open(source, target, collection, options, total=total)
    patient = target.with_retry()
    with Lease(target, collection):
        with Sender(is_embedded=target.is_embedded) as sender:
            for batch in batches(_missing(source, patient, collection, total)):
                sender.put(partial(patient.upsert, collection, batch), len(batch))
        patient.update_collection(collection, metadata=_metadata(source, collection))
        if total > OPTIMIZE_ABOVE or read_metadata(target, collection).options.wants_index:
            patient.optimize(collection)
        compared = _verify(source, patient, collection, total)
    return CopyReport(collection, sender.sent, total - sender.sent, compared)


def _metadata(engine: Engine, collection: str) -> dict[str, Any]:
    stored = stored_metadata(engine, collection)
    return {key: value for key, value in stored.items() if key not in NOT_COPIED}


def of_server(options: CollectionOptions, *, points: int, dim: int) -> CollectionOptions:
    """Return the options without what an embedded engine has by default: a server builds graphs."""
    own = CollectionOptions.of_embedded(points, dim)
    if (options.hnsw, options.quantization) != (own.hnsw, own.quantization):
        return options
    return replace(options, hnsw=HnswOptions(), quantization=QuantizationOptions())


def _open(
    source: Engine,
    target: Engine,
    collection: str,
    options: CollectionOptions | None,
    *,
    total: int,
) -> None:
    """Make the collection in `target`, or check that the existing one is the same; index it."""
    metadata = read_metadata(source, collection)
    if target.collection_exists(collection):
        existing = read_metadata(target, collection)
        _require_same(metadata, existing, collection, options)
        stored_as = existing.options
    else:
        stored_as = options or metadata.options
        if options is None and target.is_embedded:
            stored_as = replace(stored_as, shards=None, replicas=None, write_consistency=None)
        elif options is None and source.is_embedded:
            stored_as = of_server(stored_as, points=total, dim=metadata.dim)
        fixed = fixed_differences(metadata.options, stored_as)
        for name in fixed.keys() & {"distance", "late", "clusters"}:
            raise CollectionMismatch(
                f"the collection has {name} {fixed[name]}; a copy keeps that, only ingest load "
                "makes it otherwise"
            )
        schema = replace(metadata.schema, options=stored_as)
        described = {**_metadata(source, collection), "options": stored_as.to_dict()}
        target.create_collection(collection, **schema.creation, metadata=described)
    indexed = target.overview(collection).fields
    indexes = {field: kind.value for field, kind in source.overview(collection).fields.items()}
    for field, kind in (indexes | dict(stored_as.indexes)).items():
        if kind != "none" and field not in indexed:
            target.create_payload_index(collection, field, payload_index(kind))


def _require_same(
    metadata: CollectionMetadata,
    existing: CollectionMetadata,
    collection: str,
    options: CollectionOptions | None,
) -> None:
    """Refuse to mix points of different bundles or parameters."""
    for name in ORIGIN:
        if getattr(metadata, name) != getattr(existing, name):
            raise CollectionMismatch(
                f"the target has a collection {collection!r} of its own, with another {name}; "
                f"if it is not needed, drop it there with: ingest drop {collection}"
            )
    if options not in (None, existing.options):
        raise CollectionMismatch(
            f"the target has {collection!r} with other options already; leave --options out, or "
            f"drop it there with: ingest drop {collection}"
        )


def _missing(source: Engine, target: Engine, collection: str, total: int) -> Iterator[Record]:
    """Yield the points of `source` that `target` lacks or has with another content hash."""
    is_fresh = target.count(collection).count == 0
    records = scroll_all(source, collection, with_payload=True, with_vectors=True)
    for page in chunks(progress(records, label="Copying", total=total), POINTS_PER_PAGE):
        yield from page if is_fresh else _differing(page, target, collection)


def _differing(records: list[Record], target: Engine, collection: str) -> list[Record]:
    """Return the records that `target` lacks or has with another content hash."""
    ids = [str(record.id) for record in records]
    stored = target.retrieve(collection, ids, with_payload=[CONTENT_HASH])
    hashes = {str(record.id): _hash(record) for record in stored}
    return [record for record in records if hashes.get(str(record.id)) != _hash(record)]


def _hash(record: Record) -> str:
    return str((record.payload or {})[CONTENT_HASH])


def _verify(source: Engine, target: Engine, collection: str, total: int) -> int:
    """Compare all content hashes and a sample of whole points; return the size of the sample."""
    wrong = seen = 0
    sample: list[int | str] = []
    step = max(1, math.ceil(total / COMPARED))
    records = scroll_all(source, collection, page=HASHES_PER_PAGE, with_payload=[CONTENT_HASH])
    for page in chunks(progress(records, label="Verifying", total=total), HASHES_PER_PAGE):
        wrong += len(_differing(page, target, collection))
        sample += [str(record.id) for record in page[-seen % step :: step]]
        seen += len(page)
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
    originals, copies = (
        engine.retrieve(collection, sample, with_payload=True, with_vectors=True)
        for engine in (source, target)
    )
    by_id = {str(record.id): record for record in copies}
    datatype = read_metadata(target, collection).options.datatype
    for record in originals:
        if difference(by_id.get(str(record.id)), record, rounding=TOLERANCE[datatype]):
            raise VerificationFailed(
                f"the copy of {collection!r} has point {record.id} with the right content hash "
                f"but other vectors or payload; drop it there with ingest drop {collection}, and "
                f"{AGAIN}"
            )
    return len(sample)
