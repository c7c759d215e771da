"""How a collection is stored: `CollectionOptions`, and the same as the engine's own arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from two_tower.models.config import configuration, from_mapping
from two_tower.models.errors import ConfigError
from two_tower.retriever.engine.protocol import OPTIMIZE_ABOVE
from two_tower.retriever.engine.qdrant_models import qm

if TYPE_CHECKING:
    from two_tower.retriever.engine.protocol import PayloadIndex, Quantization


IndexKind = Literal["keyword", "integer", "float", "bool", "datetime", "text", "none"]

DISTANCES = {"cosine": "Cosine", "dot": "Dot"}
VECTOR_BYTES = {"float32": 4, "float16": 2}  # of a number
ENCODINGS = {
    1.0: "one_bit",
    1.5: "one_and_half_bits",
    2.0: "two_bits",
}
MOST_CLUSTERS = 1024
FULL_SCAN_KB = 10_000
SMALLEST_SCAN_KB = 10
COPIES_ABOVE_KB = 20_000
"""Of dense vectors: the embedded engine scans int8 copies of more, in half the time."""


@configuration("collection.hnsw")
class HnswOptions:
    """The graph that dense vectors are searched by.

    Malkov and Yashunin, "Efficient and Robust Approximate Nearest Neighbor Search Using
    Hierarchical Navigable Small World Graphs", 2018.

    Attributes:
        m: edges per point; more find more, and take 8 bytes each per point and vector. 0 for no
            graph: vectors are scanned, or their quantized copies.
        ef_construct: candidates per point while the graph is built; more find more, built slower.
        above_kb: segments with more kB of one vector than this get a graph and quantized copies;
            smaller ones are scanned, and so is what a filter leaves less than 10,000 kB of.
    """

    m: int = Field(default=16, ge=0, le=256)
    ef_construct: int = Field(default=100, ge=4, le=10_000)
    above_kb: int = Field(default=20_000, ge=10, le=100_000_000)

    def __post_init__(self) -> None:
        if self.m == 1:
            raise ConfigError("collection.hnsw.m is 1, expected 2 to 256, or 0 for no graph")


@configuration("collection.quantization")
class QuantizationOptions:
    """Smaller copies of every dense vector, searched in place of the vectors themselves.

    Attributes:
        kind: `scalar` is one byte per dimension, `binary` as many bits as `bits` says.
        bits: 1, 1.5 or 2; for `binary` alone.
        always_ram: whether the copies stay in memory also where the vectors are on disk.
    """

    kind: Literal["none", "scalar", "binary"] = "none"
    bits: float = 1.0
    always_ram: bool = True

    def __post_init__(self) -> None:
        if self.bits not in ENCODINGS:
            raise ConfigError(f"collection.quantization.bits is {self.bits}, expected 1, 1.5 or 2")
        if self.bits != 1.0 and self.kind != "binary":
            raise ConfigError(
                f"collection.quantization.bits is {self.bits} with kind {self.kind}; "
                "it is for kind: binary"
            )

    @property
    def config(self) -> Quantization | None:
        """The engine's form; None for none."""
        if self.kind == "none":
            return None
        if self.kind == "scalar":
            scalar = qm.ScalarQuantizationConfig(
                type=qm.ScalarType.INT8, always_ram=self.always_ram
            )
            return qm.ScalarQuantization(scalar=scalar)
        binary = qm.BinaryQuantizationConfig(
            encoding=qm.BinaryQuantizationEncoding(ENCODINGS[self.bits]), always_ram=self.always_ram
        )
        return qm.BinaryQuantization(binary=binary)


@configuration("collection.on_disk")
class DiskOptions:
    """What is read from disk when it is needed, instead of being held in memory.

    Attributes:
        vectors: the dense vectors.
        payload: titles, texts and the other fields.
        bm25: the postings of BM25.
    """

    vectors: bool = False
    payload: bool = True
    bm25: bool = False


@configuration("collection.expansion")
class ExpansionOptions:
    """The generated queries that BM25 reads beside a text, where a load brings them (`--expand`).

    Nogueira et al., "Document Expansion by Query Prediction", 2019, arXiv:1904.08375.

    Attributes:
        queries: of a passage, at most.
        weight: how often each of their terms counts.
    """

    queries: int = Field(default=5, ge=1, le=1000)
    weight: float = Field(default=1.0, gt=0, le=100)


@configuration("collection")
class CollectionOptions:
    """How a collection is stored; the section `collection:` of an options file.

    Attributes:
        distance: `cosine`, or `dot`: the same for vectors of length 1, which these are, and kept
            by the engine as sent. Euclidean distance would give the same order again, in a unit
            that cannot be added to BM25, and is not offered.
        datatype: of the dense vectors' numbers: float32, or float16 in half the room, which is
            exact to three digits.
        hnsw: see `HnswOptions`.
        quantization: see `QuantizationOptions`.
        on_disk: see `DiskOptions`.
        shards: parts that the nodes of a cluster share; None: as the server is configured.
        replicas: nodes that have each part; None: as the server is configured.
        write_consistency: replicas that must have a write before it counts; None likewise.
        late: whether the token vectors of late interaction are stored, where the bundle has it.
        clusters: k-means clusters of the dense vectors, 2 to 1,024, for `ann.n_probe`; 0 for none.
        expansion: see `ExpansionOptions`.
        indexes: payload field -> type of its index, `none` for no index; other fields are
            indexed by what they hold.
    """

    distance: str = "cosine"
    datatype: Literal["float32", "float16"] = "float32"
    hnsw: HnswOptions = field(default_factory=HnswOptions)
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    on_disk: DiskOptions = field(default_factory=DiskOptions)
    shards: int | None = Field(default=None, ge=1, le=1_000)
    replicas: int | None = Field(default=None, ge=1, le=1_000)
    write_consistency: int | None = Field(default=None, ge=1, le=1_000)
    late: bool = True
    clusters: int = 0
    expansion: ExpansionOptions = field(default_factory=ExpansionOptions)
    indexes: Mapping[str, IndexKind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ConfigError(
                f"collection.distance is {self.distance!r}, expected cosine or dot (vectors have "
                "length 1: any other would give the same order, in scores that fusion cannot add)"
            )
        if self.clusters and not 2 <= self.clusters <= MOST_CLUSTERS:
            raise ConfigError(
                f"collection.clusters is {self.clusters}, expected 0 or 2 to {MOST_CLUSTERS}"
            )
        if (self.write_consistency or 1) > (self.replicas or self.write_consistency or 1):
            raise ConfigError(
                f"collection.write_consistency is {self.write_consistency} of {self.replicas} "
                "replicas; no write could succeed"
            )

    @property
    def wants_index(self) -> bool:
        """Whether graph or copies are wanted otherwise than by default, in small collections too.

        Servers build them by themselves; the embedded engine must be told to.
        """
        return self.hnsw != HnswOptions() or self.quantization != QuantizationOptions()

    @property
    def oversampling(self) -> float | None:
        """How many times the candidates a scan of int8 copies takes where a search does not say.

        At twice as many none of the best 100 is missed, in the same time. Vectors on disk are read
        for each: there it stays at once.
        """
        scans = self.hnsw.m == 0 and self.quantization.kind == "scalar"
        return 2.0 if scans and not self.on_disk.vectors else None

    @property
    def creation(self) -> dict[str, Any]:
        """Arguments of the engine's `create_collection`, beside vectors and metadata."""
        return {
            "hnsw_config": self._graph,
            "quantization_config": self.quantization.config,
            "optimizers_config": self._optimizers,
            "on_disk_payload": self.on_disk.payload,
            "shard_number": self.shards,
            "replication_factor": self.replicas,
            "write_consistency_factor": self.write_consistency,
        }

    def changes(
        self,
        vectors: Mapping[str, qm.VectorParams],
        sparse_vectors: Mapping[str, qm.SparseVectorParams],
    ) -> dict[str, Any]:
        """Arguments of the engine's `update_collection` for all that it can change in place."""
        on_disk = qm.VectorParamsDiff(on_disk=self.on_disk.vectors)
        return {
            "vectors_config": dict.fromkeys(vectors, on_disk),
            "sparse_vectors_config": sparse_vectors,
            "hnsw_config": self._graph,
            "quantization_config": self.quantization.config or qm.Disabled.DISABLED,
            "optimizers_config": self._optimizers,
            "collection_params": qm.CollectionParamsDiff(
                on_disk_payload=self.on_disk.payload,
                write_consistency_factor=self.write_consistency,
            ),
        }

    @property
    def _graph(self) -> qm.HnswConfigDiff:
        scanned = max(SMALLEST_SCAN_KB, min(FULL_SCAN_KB, self.hnsw.above_kb))
        return qm.HnswConfigDiff(
            m=self.hnsw.m, ef_construct=self.hnsw.ef_construct, full_scan_threshold=scanned
        )

    @property
    def _optimizers(self) -> qm.OptimizersConfigDiff:
        return qm.OptimizersConfigDiff(indexing_threshold=self.hnsw.above_kb)

    @classmethod
    def of_embedded(cls, points: int, dim: int) -> CollectionOptions:
        """Return the default of the embedded engine for so many vectors.

        Few are scanned, more by int8 copies, and above `OPTIMIZE_ABOVE` points a graph pays.
        """
        if (
            points > OPTIMIZE_ABOVE
            or points * dim * VECTOR_BYTES["float32"] <= COPIES_ABOVE_KB * 1024
        ):
            return cls()
        copies = QuantizationOptions(kind="scalar")
        return cls(hnsw=HnswOptions(m=0, above_kb=1_000), quantization=copies)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> CollectionOptions:
        """Return what `to_dict` gave.

        Raises:
            ConfigError: it is something else.
        """
        return from_mapping(cls, stored, where="collection.")


FIXED = ("distance", "datatype", "shards", "replicas", "late", "clusters", "expansion")
"""What a collection keeps for life; all the rest the engine changes in place."""


def fixed_differences(stored: CollectionOptions, options: CollectionOptions) -> dict[str, str]:
    """Return option -> "stored, the options say …" for those that cannot change in place."""
    return {
        name: f"{getattr(stored, name)}, the options say {getattr(options, name)}"
        for name in FIXED
        if getattr(stored, name) != getattr(options, name)
    }


PLAIN_FIELD = re.compile(r"[A-Za-z0-9_\-]+")
ALWAYS = ("text", "url")
PLAIN_KINDS = ("keyword", "integer", "float", "bool")
"""Types of field that a census tells from the values; they are those of an index as well."""


def payload_index(kind: str) -> PayloadIndex:
    """Return the engine's index of a kind; ours of words are in small letters."""
    if kind != "text":
        return qm.PayloadSchemaType(kind)
    words = qm.TokenizerType.WORD
    return qm.TextIndexParams(type=qm.TextIndexType.TEXT, tokenizer=words, lowercase=True)


def indexable_fields(
    census: Mapping[str, Any], declared: Mapping[str, str] = MappingProxyType({})
) -> dict[str, PayloadIndex]:
    """Return the payload indexes for the fields that a DATA manifest describes.

    Every field of one plain type gets one, except long text, fields with thousands of different
    strings (ids, mostly) and names that a filter would read as a path.

    Args:
        census: of the manifest.
        declared: field -> type of its index, or `none`; these come before what the census says.

    Raises:
        ConfigError: an index is declared on a field that no passage has, or that has such a name.
    """
    plain = [name for name in census if PLAIN_FIELD.fullmatch(name)]
    if unknown := [name for name in declared if name not in (*ALWAYS, *plain)]:
        raise ConfigError(
            f"collection.indexes has {unknown[0]!r}, which is no field of DATA that can be "
            f"indexed; expected some of {', '.join([*ALWAYS, *plain])}"
        )
    indexes: dict[str, PayloadIndex] = {
        name: payload_index(kind)
        for name, kind in ((name, census[name]["type"]) for name in plain)
        if kind in PLAIN_KINDS
        and not (kind == "keyword" and census[name].get("more"))
        and name not in declared
    }
    return indexes | {n: payload_index(kind) for n, kind in declared.items() if kind != "none"}
