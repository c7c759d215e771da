"""How an embedded collection is configured: as JSON beside the shard, and as Edge has it.

The JSON holds the client's types, by the names of `QdrantClient`'s arguments.
"""

from collections.abc import Mapping
from typing import Any

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models as qm

from two_tower.retriever.engine.edge_types import EDGE_DISTANCES, allow_only, unsupported
from two_tower.retriever.errors import EngineError

HNSW = qm.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000)
OPTIMIZERS = qm.OptimizersConfig(default_segment_number=0, flush_interval_sec=0)

SINGLE = ("shard_number", "replication_factor", "write_consistency_factor")
STORED = ("hnsw_config", "quantization_config", "optimizers_config", "on_disk_payload")

EDGE_ENCODINGS = {
    qm.BinaryQuantizationEncoding.ONE_BIT: edge.BinaryQuantizationEncoding.OneBit,
    qm.BinaryQuantizationEncoding.ONE_AND_HALF_BITS: edge.BinaryQuantizationEncoding.OneAndHalfBits,
    qm.BinaryQuantizationEncoding.TWO_BITS: edge.BinaryQuantizationEncoding.TwoBits,
}

Description = dict[str, Any]


def new_description(
    vectors: Mapping[str, qm.VectorParams],
    sparse_vectors: Mapping[str, qm.SparseVectorParams],
    options: Mapping[str, Any],
) -> Description:
    """Return what is stored about a new collection; `options` are of `create_collection`."""
    description: Description = {
        "vectors": {name: _as_json(params) for name, params in vectors.items()},
        "sparse_vectors": {name: _as_json(params) for name, params in sparse_vectors.items()},
    }
    return changed(description, options)


def changed(description: Description, options: Mapping[str, Any]) -> Description:
    """Return the description with these options of `update_collection` in it.

    Raises:
        EngineError: more than one shard or replica, or an option that Edge does not have.
    """
    result = {**description, "vectors": {k: dict(v) for k, v in description["vectors"].items()}}
    changes = {name: value for name, value in options.items() if value is not None}
    for name, diff in changes.pop("vectors_config", {}).items():
        allow_only(diff, "on_disk")
        result["vectors"][name] |= _as_json(diff)
    if (params := changes.pop("collection_params", None)) is not None:
        allow_only(params, "on_disk_payload", *SINGLE)
        changes |= _as_json(params)
    for name in SINGLE:
        if (count := changes.pop(name, 1)) != 1:
            raise EngineError(
                f"the embedded engine is one shard on one node, {name} is {count}; "
                "leave it out, or use a server with --url"
            )
    for name, value in changes.items():
        if name not in STORED:
            raise unsupported(name)
        result[name] = None if value == qm.Disabled.DISABLED else _as_json(value)
    return result


def to_config(description: Description) -> edge.EdgeConfig:
    """Return the configuration of a shard with its write-ahead log on.

    Raises:
        EngineError: it asks for something that Edge does not have.
    """
    vectors, sparse = _vectors(description), _sparse_vectors(description)
    optimizers = None
    if stored := description.get("optimizers_config"):
        diff = qm.OptimizersConfigDiff(**stored)
        allow_only(diff, "indexing_threshold")
        optimizers = edge.EdgeOptimizersConfig(indexing_threshold=diff.indexing_threshold)
    return edge.EdgeConfig(
        vectors={name: _vector_params(params) for name, params in vectors.items()},
        sparse_vectors={name: _sparse_params(params) for name, params in sparse.items()},
        hnsw_config=_hnsw(description.get("hnsw_config")),
        quantization_config=_quantization(description.get("quantization_config")),
        optimizers=optimizers,
        on_disk_payload=description.get("on_disk_payload"),
        wal_enabled=True,
    )


def to_collection_config(description: Description) -> qm.CollectionConfig:
    """Return what `get_collection` says about the configuration."""
    return qm.CollectionConfig(
        params=qm.CollectionParams(
            vectors=_vectors(description),
            sparse_vectors=_sparse_vectors(description),
            on_disk_payload=description.get("on_disk_payload"),
        ),
        hnsw_config=HNSW.model_copy(update=description.get("hnsw_config") or {}),
        quantization_config=_quantized(description.get("quantization_config")),
        optimizer_config=OPTIMIZERS.model_copy(update=description.get("optimizers_config") or {}),
        metadata=description["metadata"],
    )


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    return value


def _vectors(description: Description) -> dict[str, qm.VectorParams]:
    return {name: qm.VectorParams(**params) for name, params in description["vectors"].items()}


def _sparse_vectors(description: Description) -> dict[str, qm.SparseVectorParams]:
    stored = description["sparse_vectors"]
    return {name: qm.SparseVectorParams(**params) for name, params in stored.items()}


def _vector_params(params: qm.VectorParams) -> edge.EdgeVectorParams:
    allow_only(params, "size", "distance", "on_disk")
    return edge.EdgeVectorParams(
        size=params.size, distance=EDGE_DISTANCES[params.distance], on_disk=params.on_disk
    )


def _sparse_params(params: qm.SparseVectorParams) -> edge.EdgeSparseVectorParams:
    allow_only(params, "modifier")
    idf = params.modifier is qm.Modifier.IDF
    return edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if idf else None)


def _hnsw(stored: Mapping[str, Any] | None) -> edge.HnswIndexConfig | None:
    if not stored:
        return None
    allow_only(qm.HnswConfigDiff(**stored), "m", "ef_construct", "full_scan_threshold")
    config = HNSW.model_copy(update=dict(stored))
    return edge.HnswIndexConfig(
        m=config.m,
        ef_construct=config.ef_construct,
        full_scan_threshold=config.full_scan_threshold,
    )


def _quantized(stored: Mapping[str, Any] | None) -> Any:
    if not stored:
        return None
    if "scalar" in stored:
        return qm.ScalarQuantization(**stored)
    if "binary" in stored:
        return qm.BinaryQuantization(**stored)
    raise unsupported(f"quantization {', '.join(stored)}")


def _quantization(
    stored: Mapping[str, Any] | None,
) -> edge.ScalarQuantizationConfig | edge.BinaryQuantizationConfig | None:
    config = _quantized(stored)
    if isinstance(config, qm.ScalarQuantization):
        allow_only(config.scalar, "type", "always_ram", "quantile")
        return edge.ScalarQuantizationConfig(
            type=edge.ScalarType.Int8,
            quantile=config.scalar.quantile,
            always_ram=config.scalar.always_ram,
        )
    if isinstance(config, qm.BinaryQuantization):
        allow_only(config.binary, "always_ram", "encoding")
        encoding = config.binary.encoding
        return edge.BinaryQuantizationConfig(
            always_ram=config.binary.always_ram,
            encoding=None if encoding is None else EDGE_ENCODINGS[encoding],
        )
    return None
