"""The collection of a load: made where it is missing, checked where it exists."""

import logging
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np

from two_tower.ingest.loading.declared import require_values
from two_tower.ingest.loading.expansion import average_expanded_length, require_expansion
from two_tower.ingest.loading.points import PassageEncoder, chunks, dense_vectors
from two_tower.ingest.loading.selection import SelectedData
from two_tower.models.config import flatten
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError
from two_tower.models.progress import progress
from two_tower.models.text.bm25 import Bm25Config, average_length
from two_tower.retriever.collection.bm25_vectors import analyzer_of
from two_tower.retriever.collection.clusters import PER_CLUSTER, Centroids, sample_size
from two_tower.retriever.collection.options import (
    ALWAYS,
    CollectionOptions,
    fixed_differences,
    indexable_fields,
)
from two_tower.retriever.collection.schema import (
    EXAMPLES,
    LONGEST_EXAMPLE,
    MOST_EXAMPLES,
    CollectionMetadata,
    CollectionSchema,
    base_name,
    collection_name,
    read_metadata,
)
from two_tower.retriever.engine.protocol import Engine, PayloadIndex, collection_names
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.errors import CollectionMismatch, EngineError

LENGTHS = 1_000_000  # passages whose mean length is that of all

log = logging.getLogger(__name__)


def open_collection(
    engine: Engine,
    dataset: Dataset,
    encoder: PassageEncoder,
    *,
    name: str,
    options: CollectionOptions | None = None,
) -> CollectionMetadata:
    """Make the collection, or check the existing one; then bring its indexes up to date.

    Returns:
        Its metadata; the BM25 parameters and centroids in it are those of the first load.

    Raises:
        CollectionMismatch: something else has a collection of that name, or it has options that
            cannot be changed in place.
        ConfigError: the options do not fit DATA.
    """
    collection = collection_name(name, encoder.fingerprint)
    _fields(dataset, options or CollectionOptions())  # wrong options are refused first
    existing = collection_names(engine)
    if name in existing:
        raise CollectionMismatch(
            f"{name!r} is a collection itself and cannot be the alias of one; load into another "
            "name with --collection"
        )
    target = {a.alias_name: a.collection_name for a in engine.get_aliases().aliases}.get(name)
    if target is not None and base_name(target) != name:
        raise CollectionMismatch(
            f"{name!r} is an alias of {target!r}, which something else made; load into another "
            "name with --collection"
        )
    if options is not None:
        require_values(dataset, options.indexes)
    if collection not in existing:
        first = options or _first_options(engine, target, dataset, encoder)
        fresh = _new_metadata(dataset, encoder, first)
        try:
            engine.create_collection(collection, **fresh.schema.creation, metadata=fresh.to_dict())
        except EngineError:
            if not engine.collection_exists(collection):  # another load may have made it
                raise
    metadata = read_metadata(engine, collection)
    if metadata.bundle_fingerprint != encoder.fingerprint:
        raise CollectionMismatch(
            f"collection {collection!r} was loaded with bundle {metadata.bundle_fingerprint}, "
            f"this is bundle {encoder.fingerprint}; load into another name with --collection"
        )
    _require_language(collection, metadata, dataset)
    require_expansion(collection, metadata.data, dataset)
    expected = CollectionSchema(
        encoder.dim, tuple(encoder.pca_dims), late_dim=metadata.options.late * encoder.late_dim
    )
    expected.require(engine.get_collection(collection), collection=collection)
    if options is not None and options != metadata.options:
        metadata = _change(engine, collection, metadata, options)
    bundle_path = _bundle_path(encoder)
    if bundle_path and bundle_path != metadata.bundle_path:  # it has moved
        engine.update_collection(collection, metadata={"bundle_path": bundle_path})
    _index(engine, collection, dataset, metadata)
    return metadata


def _require_language(collection: str, metadata: CollectionMetadata, dataset: Dataset) -> None:
    if metadata.language != dataset.language:
        raise CollectionMismatch(
            f"collection {collection!r} has terms of {metadata.language}, and {dataset.path} is "
            f"of language {dataset.language}; load into another name with --collection, or run "
            f"ingest drop {collection} and load again"
        )


def _first_options(
    engine: Engine, target: str | None, dataset: Dataset, encoder: PassageEncoder
) -> CollectionOptions:
    """Return the default options with the indexes that were declared for what a name stands for.

    Indexes are about the passages; all else is about vectors, which another bundle makes anew.
    """
    default = default_options(engine, dataset, encoder)
    if target is None:
        return default
    known = {*ALWAYS, *dataset.manifest.get("fields", {})}
    try:
        declared = read_metadata(engine, target).options.indexes
    except EngineError:  # it is damaged, which is no reason not to load another
        return default
    return replace(default, indexes={f: kind for f, kind in declared.items() if f in known})


def default_options(engine: Engine, dataset: Dataset, encoder: PassageEncoder) -> CollectionOptions:
    """Return how a new collection of all of DATA is stored where nobody says."""
    if not engine.is_embedded:
        return CollectionOptions()
    all_data = dataset.all_data if isinstance(dataset, SelectedData) else dataset
    return CollectionOptions.of_embedded(all_data.passage_count, encoder.dim)


def _new_metadata(
    dataset: Dataset, encoder: PassageEncoder, options: CollectionOptions
) -> CollectionMetadata:
    """Return what decides the points of this load and of every later one.

    BM25's mean length is that of all of DATA, even where a part is loaded first; of more than
    `LENGTHS` that of so many and more, evenly spaced.
    """
    all_data = dataset.all_data if isinstance(dataset, SelectedData) else dataset
    count = all_data.passage_count
    step = max(1, count // LENGTHS)
    spaced = islice(all_data.passages(), 0, None, step)
    passages = progress(spaced, label="Measuring", total=-(-count // step))
    analyzer = analyzer_of(dataset.language, encoder)
    if dataset.manifest.get("expansion"):
        avg_len = average_expanded_length(passages, analyzer, options.expansion)
    else:
        avg_len = average_length((passage.content for passage in passages), analyzer)
    return CollectionMetadata(
        bundle_fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        pca_dims=tuple(encoder.pca_dims),
        data=describe(dataset, kept=0),
        bm25=asdict(Bm25Config(avg_len=avg_len, language=dataset.language)),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        options=options,
        late_dim=options.late * encoder.late_dim,
        centroids=fit_centroids(dataset, encoder, clusters=options.clusters),
        bundle_path=_bundle_path(encoder),
    )


def _bundle_path(encoder: PassageEncoder) -> str:
    return str(getattr(encoder, "folder", None) or "")


def fit_centroids(dataset: Dataset, encoder: PassageEncoder, *, clusters: int) -> str:
    """Return the packed centroids of evenly spaced passages; empty for no clusters.

    Raises:
        ConfigError: DATA has fewer passages than there are to be clusters.
    """
    if not clusters:
        return ""
    if not encoder.dim:
        raise ConfigError(
            f"clusters is {clusters:,}, but they are of a bundle's vectors, and none is named; "
            "add --bundle BUNDLE"
        )
    if dataset.passage_count < clusters:
        raise ConfigError(
            f"clusters is {clusters:,}, but {dataset.path} has {dataset.passage_count:,} passages; "
            f"expected at most as many, and better {PER_CLUSTER} passages per cluster"
        )
    step = max(1, dataset.passage_count // sample_size(clusters))
    sample = islice(dataset.passages(), 0, None, step)
    shown = progress(sample, label="Clustering", total=-(-dataset.passage_count // step))
    vectors = np.concatenate([dense_vectors(encoder, chunk) for chunk in chunks(shown)])
    return Centroids.fit(vectors, clusters).pack()


def _change(
    engine: Engine, collection: str, metadata: CollectionMetadata, options: CollectionOptions
) -> CollectionMetadata:
    """Change the options in place, and log the changes.

    Raises:
        CollectionMismatch: an option cannot change in place.
    """
    changes = option_changes(collection, metadata.options, options)
    changed = replace(metadata, options=options)
    engine.update_collection(
        collection,
        **changed.schema.changes,
        metadata={"options": options.to_dict()},
    )
    log.info("%s now has %s", collection, ", ".join(changes))
    engine.optimize(collection)
    return changed


def option_changes(
    collection: str, stored: CollectionOptions, options: CollectionOptions
) -> list[str]:
    """Return what changes in place from `stored` to `options`, as in "hnsw.m 32 (was 16)".

    Raises:
        CollectionMismatch: some of it cannot.
    """
    if fixed := fixed_differences(stored, options):
        name, values = next(iter(fixed.items()))
        raise CollectionMismatch(
            f"collection {collection!r} has {name} {values}, which cannot change in place; load "
            f"into another name with --collection, or run ingest drop {collection} and load again"
        )
    before, after = flatten(stored.to_dict()), flatten(options.to_dict())
    return [
        f"{name} {_as_yaml(after.get(name))} (was {_as_yaml(before.get(name))})"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _as_yaml(value: object) -> str:
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _index(engine: Engine, collection: str, dataset: Dataset, metadata: CollectionMetadata) -> None:
    """Make the payload indexes that DATA and the options ask for; leave all others alone.

    An index of another type than the values are now would find none of them: it is made again.
    """
    fields = _fields(dataset, metadata.options)
    schema = replace(metadata.schema, fields=fields)
    indexed = engine.overview(collection).fields
    by_values = {f: i.value for f, i in fields.items() if isinstance(i, qm.PayloadSchemaType)}
    for field, kind in (by_values | {**metadata.options.indexes}).items():
        if field in indexed and indexed[field].value != kind:  # "none" differs from any
            engine.delete_payload_index(collection, field)
            del indexed[field]
    for field, index in schema.payload_indexes.items():
        if field not in indexed:
            engine.create_payload_index(collection, field, index)


def _fields(dataset: Dataset, options: CollectionOptions) -> dict[str, PayloadIndex]:
    return indexable_fields(dataset.manifest.get("fields", {}), options.indexes)


def stored_options(
    engine: Engine, collection: str, dataset: Dataset, encoder: PassageEncoder
) -> CollectionOptions:
    """Return how a collection is stored, or would be where there is none yet."""
    if not engine.collection_exists(collection):
        return default_options(engine, dataset, encoder)
    return read_metadata(engine, collection).options


def describe(dataset: Dataset, *, kept: int) -> dict[str, Any]:
    """Return the `data` part of a collection's metadata."""
    return {
        "source": dataset.manifest.get("source", {}),
        "content_hash": dataset.content_hash,
        "counts": dataset.manifest["counts"],
        "kept": kept,
        "selection": dataset.manifest.get("selection"),
        "expansion": dataset.manifest.get("expansion"),
        EXAMPLES: dataset.some_queries(MOST_EXAMPLES, longest=LONGEST_EXAMPLE),
    }
