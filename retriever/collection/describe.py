"""What there is to know about a collection without its bundle."""

from typing import Any

from two_tower.retriever.collection.schema import BM25, LATE, base_name, read_metadata
from two_tower.retriever.engine.protocol import Engine


def describe(engine: Engine, name: str) -> dict[str, Any]:
    """Return what a collection holds and where it came from, ready for JSON.

    Args:
        engine: that holds it.
        name: alias or versioned name.

    Raises:
        CollectionNotFound: there is none.
        CollectionMismatch: it was made by something else.
    """
    collection = engine.resolve(name)
    metadata, fields = read_metadata(engine, collection), engine.overview(collection).fields
    late = {LATE: metadata.late_dim} if metadata.late_dim else {}
    vectors = {**metadata.schema.widths, **late, BM25: "sparse"}
    aliases = engine.get_aliases().aliases
    return {
        "name": base_name(collection),
        "collection": collection,
        "at": engine.where,
        "aliases": sorted(a.alias_name for a in aliases if a.collection_name == collection),
        "passages": engine.count(collection, exact=True).count,
        "expected_passages": metadata.expected_points,
        "bundle": metadata.bundle_fingerprint if metadata.has_tower else None,
        "created_at": metadata.created_at,
        "source": metadata.data.get("source"),
        "data": metadata.data.get("content_hash"),
        "vectors": vectors,
        "language": metadata.language,
        "fields": {name: kind.value for name, kind in fields.items()},
    }
