"""The collection that a load goes into: made where it is missing, checked where it is there."""

from datetime import UTC, datetime
from typing import Any

from ingest.points import PassageEncoder
from models.console import progress
from models.data import Dataset
from models.lexical import Bm25Config, average_length
from retriever.engine import Engine
from retriever.errors import CollectionMismatch
from retriever.schema import (
    CollectionMetadata,
    CollectionSchema,
    collection_name,
    indexable_fields,
    read_metadata,
)


def open_collection(
    engine: Engine, dataset: Dataset, encoder: PassageEncoder, *, name: str
) -> CollectionMetadata:
    """Make the collection, or check that the one that is there is right, indexes included.

    Returns:
        Its metadata; the BM25 parameters in it are those of the first load.

    Raises:
        CollectionMismatch: something else has a collection of that name.
    """
    collection = collection_name(name, encoder.fingerprint)
    fields = indexable_fields(dataset.manifest.get("fields", {}))
    schema = CollectionSchema(encoder.dim, encoder.pca_dims, fields)
    existing = {found.name for found in engine.get_collections().collections}
    if name in existing:
        raise CollectionMismatch(
            f"{name!r} is a collection itself and cannot be the alias of one; load into another "
            f"name with --collection, or run: ingest drop {name} --yes"
        )
    if collection not in existing:
        engine.create_collection(
            collection,
            vectors_config=schema.vectors_config,
            sparse_vectors_config=schema.sparse_vectors_config,
            metadata=_new_metadata(dataset, encoder).to_dict(),
        )
    info = engine.get_collection(collection)
    metadata = read_metadata(engine, collection)
    if metadata.bundle_fingerprint != encoder.fingerprint:
        raise CollectionMismatch(
            f"collection {collection!r} was loaded with bundle {metadata.bundle_fingerprint}, "
            f"this is bundle {encoder.fingerprint}; load into another name with --collection"
        )
    schema.require(info, collection=collection)
    for field, index in schema.payload_indexes.items():
        if field not in info.payload_schema:
            engine.create_payload_index(collection, field, index)
    engine.update_collection(collection, metadata={"data": describe(dataset, kept=0)})
    return metadata


def _new_metadata(dataset: Dataset, encoder: PassageEncoder) -> CollectionMetadata:
    passages = progress(dataset.passages(), label="Measuring", total=dataset.passage_count)
    avg_len = average_length(passage.content for passage in passages)
    return CollectionMetadata(
        bundle_fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        pca_dims=tuple(encoder.pca_dims),
        data=describe(dataset, kept=0),
        bm25=Bm25Config(avg_len=avg_len).to_dict(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def describe(dataset: Dataset, *, kept: int) -> dict[str, Any]:
    """Return the `data` part of a collection's metadata."""
    return {
        "source": dataset.manifest.get("source", {}),
        "content_hash": dataset.content_hash,
        "counts": dataset.manifest["counts"],
        "kept": kept,
    }
