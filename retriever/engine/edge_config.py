"""How an embedded collection is configured: as JSON beside the shard, and as Edge has it."""

from collections.abc import Mapping, Sequence
from typing import Any

import qdrant_edge as edge
from pydantic import BaseModel

from two_tower.retriever.engine.edge_types import KINDS, allow_only, dense_widths, unsupported
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.engine.wire import AnyPoint, PackedPoints
from two_tower.retriever.errors import EngineError

HNSW = qm.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000)
OPTIMIZERS = qm.OptimizersConfig(default_segment_number=0, flush_interval_sec=0)

SINGLE = ("shard_number", "replication_factor", "write_consistency_factor")
STORED = ("hnsw_config", "quantization_config", "optimizers_config", "on_disk_payload")

QUANTIZATIONS = (qm.ScalarQuantization, qm.BinaryQuantization)

EDGE_DISTANCES = {
    qm.Distance.COSINE: edge.Distance.Cosine,
    qm.Distance.DOT: edge.Distance.Dot,
    qm.Distance.EUCLID: edge.Distance.Euclid,
    qm.Distance.MANHATTAN: edge.Distance.Manhattan,
}

EDGE_DATATYPES = {
    qm.Datatype.FLOAT32: edge.VectorStorageDatatype.Float32,
    qm.Datatype.FLOAT16: edge.VectorStorageDatatype.Float16,
    qm.Datatype.UINT8: edge.VectorStorageDatatype.Uint8,
}

EDGE_ENCODINGS = {
    qm.BinaryQuantizationEncoding.ONE_BIT: edge.BinaryQuantizationEncoding.OneBit,
    qm.BinaryQuantizationEncoding.ONE_AND_HALF_BITS: edge.BinaryQuantizationEncoding.OneAndHalfBits,
    qm.BinaryQuantizationEncoding.TWO_BITS: edge.BinaryQuantizationEncoding.TwoBits,
}


class Description(BaseModel):
    """What is stored about a collection, by the names of `QdrantClient`'s arguments."""

    vectors: dict[str, qm.VectorParams]
    sparse_vectors: dict[str, qm.SparseVectorParams]
    hnsw_config: qm.HnswConfigDiff | None = None
    quantization_config: qm.ScalarQuantization | qm.BinaryQuantization | None = None
    optimizers_config: qm.OptimizersConfigDiff | None = None
    on_disk_payload: bool | None = None
    metadata: dict[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """Return what is stored; a None in the metadata is content, and stays."""
        stored = self.model_dump(mode="json", exclude_none=True, exclude={"metadata"})
        return stored | {"metadata": self.metadata}

    def changed(self, options: Mapping[str, Any]) -> "Description":
        """Return the description with these options of `update_collection` in it.

        Raises:
            EngineError: more than one shard or replica, or an option that Edge does not have.
        """
        changes = {name: value for name, value in options.items() if value is not None}
        vectors = dict(self.vectors)
        for name, diff in changes.pop("vectors_config", {}).items():
            allow_only(diff, "on_disk")
            vectors[name] = vectors[name].model_copy(update=_values(diff))
        sparse_vectors = dict(self.sparse_vectors) | changes.pop("sparse_vectors_config", {})
        if (params := changes.pop("collection_params", None)) is not None:
            allow_only(params, "on_disk_payload", *SINGLE)
            changes |= _values(params)
        for name in SINGLE:
            if (count := changes.pop(name, 1)) != 1:
                raise EngineError(
                    f"the embedded engine is one shard on one node, {name} is {count}; "
                    "leave it out, or use a server with --url"
                )
        for name, value in changes.items():
            if name not in STORED:
                raise unsupported(name)
            if value == qm.Disabled.DISABLED:
                changes[name] = None
            elif name == "quantization_config" and not isinstance(value, QUANTIZATIONS):
                raise unsupported(value)
        named = {"vectors": vectors, "sparse_vectors": sparse_vectors}
        return Description(**dict(self) | named | changes)

    def to_edge(self) -> edge.EdgeConfig:
        """Return the configuration of a shard with its write-ahead log on.

        Raises:
            EngineError: it asks for something that Edge does not have.
        """
        vectors = {name: _edge_vector(dense) for name, dense in self.vectors.items()}
        sparse_vectors = {}
        for name, sparse in self.sparse_vectors.items():
            allow_only(sparse, "modifier", "index")
            idf = edge.Modifier.Idf if sparse.modifier is qm.Modifier.IDF else None
            on_disk = None
            if sparse.index is not None:
                allow_only(sparse.index, "on_disk")
                on_disk = sparse.index.on_disk
            sparse_vectors[name] = edge.EdgeSparseVectorParams(modifier=idf, on_disk=on_disk)
        hnsw = optimizers = None
        if self.hnsw_config:
            hnsw = _edge_graph(self.hnsw_config)
        if self.optimizers_config:
            allow_only(self.optimizers_config, "indexing_threshold")
            threshold = self.optimizers_config.indexing_threshold
            optimizers = edge.EdgeOptimizersConfig(indexing_threshold=threshold)
        return edge.EdgeConfig(
            vectors=vectors,
            sparse_vectors=sparse_vectors,
            hnsw_config=hnsw,
            quantization_config=_edge_quantization(self.quantization_config),
            optimizers=optimizers,
            on_disk_payload=self.on_disk_payload,
            wal_enabled=True,
        )

    def to_client(self, info: Any) -> qm.CollectionInfo:
        """Return what `get_collection` says.

        Args:
            info: that of the shard; None where it cannot be opened.
        """
        config = qm.CollectionConfig(
            params=qm.CollectionParams(
                vectors=self.vectors,
                sparse_vectors=self.sparse_vectors,
                on_disk_payload=self.on_disk_payload,
            ),
            hnsw_config=HNSW.model_copy(update=_values(self.hnsw_config)),
            quantization_config=self.quantization_config,
            optimizer_config=OPTIMIZERS.model_copy(update=_values(self.optimizers_config)),
            metadata=self.metadata,
        )
        indexes = info.payload_schema.items() if info else ()
        return qm.CollectionInfo(
            status=qm.CollectionStatus.GREEN if info else qm.CollectionStatus.RED,
            optimizer_status=qm.OptimizersStatusOneOf.OK,
            points_count=info.points_count if info else None,
            indexed_vectors_count=info.indexed_vectors_count if info else None,
            segments_count=info.segments_count if info else 0,
            config=config,
            payload_schema={
                name: qm.PayloadIndexInfo(
                    data_type=qm.PayloadSchemaType(KINDS[index.data_type]), points=index.points
                )
                for name, index in indexes
            },
        )

    def check(self, points: Sequence[AnyPoint], *, of: str) -> None:
        """Refuse a batch before any of it is written; Edge would stop halfway through a point.

        Raises:
            EngineError: a vector of another name or width than the collection `of` has.
        """
        widths = {name: params.size for name, params in self.vectors.items()}
        known = widths.keys() | self.sparse_vectors.keys()
        some = [points[0]] if isinstance(points, PackedPoints) else points  # all are as wide
        for point in some:
            for name, vector in (point.vector if isinstance(point.vector, dict) else {}).items():
                if name not in known:
                    raise EngineError(
                        f"collection {of!r} has no vector {name!r}; it has "
                        f"{', '.join(sorted(known))}"
                    )
                expected = widths.get(name)
                for width in dense_widths(vector) - {expected}:
                    raise EngineError(
                        f"vector {name!r} of point {point.id} has {width} dimensions; "
                        f"collection {of!r} expects {expected or 'a sparse one'}"
                    )


def _values(model: BaseModel | None) -> dict[str, Any]:
    return model.model_dump(exclude_none=True) if model else {}


def _edge_vector(params: qm.VectorParams) -> edge.EdgeVectorParams:
    allow_only(
        params, "size", "distance", "on_disk", "datatype", "hnsw_config", "multivector_config"
    )
    multi = None
    if params.multivector_config is not None:
        multi = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    return edge.EdgeVectorParams(
        params.size,
        EDGE_DISTANCES[params.distance],
        on_disk=params.on_disk,
        datatype=None if params.datatype is None else EDGE_DATATYPES[params.datatype],
        hnsw_config=None if params.hnsw_config is None else _edge_graph(params.hnsw_config),
        multivector_config=multi,
    )


def _edge_graph(config: qm.HnswConfigDiff) -> edge.HnswIndexConfig:
    known = ("m", "ef_construct", "full_scan_threshold")
    allow_only(config, *known)
    merged = HNSW.model_copy(update=_values(config))
    return edge.HnswIndexConfig(**merged.model_dump(include={*known}))


def _edge_quantization(
    config: qm.ScalarQuantization | qm.BinaryQuantization | None,
) -> edge.ScalarQuantizationConfig | edge.BinaryQuantizationConfig | None:
    if isinstance(config, qm.ScalarQuantization):
        scalar = config.scalar
        allow_only(scalar, "type", "always_ram", "quantile")
        return edge.ScalarQuantizationConfig(
            type=edge.ScalarType.Int8, quantile=scalar.quantile, always_ram=scalar.always_ram
        )
    if isinstance(config, qm.BinaryQuantization):
        binary = config.binary
        allow_only(binary, "always_ram", "encoding")
        encoding = None if binary.encoding is None else EDGE_ENCODINGS[binary.encoding]
        return edge.BinaryQuantizationConfig(always_ram=binary.always_ram, encoding=encoding)
    return None
