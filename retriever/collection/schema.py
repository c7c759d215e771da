"""What a collection holds: names, vectors, payload, payload indexes and metadata.

collection   <name>--<first 8 digits of the bundle's fingerprint>, behind the alias <name>
vectors      dense (the tower's output), pca_<d> (reduced), bm25 (sparse, IDF in the engine),
             late (several a passage, where the bundle brings late interaction); bm25 alone where
             it was loaded without a bundle
payload      title, text, url, passage_id, the source's own fields, content_hash, cluster if asked
metadata     `CollectionMetadata`
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from two_tower.models.data import Passage
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.language import ENGLISH
from two_tower.retriever.collection.options import DISTANCES, CollectionOptions, payload_index
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.errors import CollectionMismatch

if TYPE_CHECKING:
    from two_tower.retriever.engine.protocol import Engine, PayloadIndex


FORMAT = "two-tower-search/1"
DENSE = "dense"
BM25 = "bm25"
LATE = "late"
CONTENT_HASH = "content_hash"
CLUSTER = "cluster"
RESERVED = ("title", "text", "url", "passage_id", CLUSTER, CONTENT_HASH)

EXAMPLES = "examples"  # in the metadata's `data`: queries of DATA, for a page to offer
MOST_EXAMPLES, LONGEST_EXAMPLE = 4, 60

POINT_NAMESPACE = uuid.UUID("6f6b2d0e-5a86-5d0f-9a53-2d6f0c1e7b41")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
VERSIONED = re.compile(r"(?P<name>.+)--[0-9a-f]{8}")
TO_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
NO_INDEXES: Mapping[str, PayloadIndex] = MappingProxyType({})


def check_name(name: str) -> str:
    """Return `name` if it can be an alias of ours.

    Raises:
        ConfigError: it has characters that engines refuse, or looks like a versioned name.
    """
    if not NAME.fullmatch(name) or "--" in name:
        raise ConfigError(
            f"{name!r} cannot name a collection; expected up to 100 letters, digits, _ . and "
            "single -, beginning with a letter or digit"
        )
    return name


def collection_name(name: str, fingerprint: str) -> str:
    """Return the versioned name of the collection that `name` has for a bundle."""
    return f"{check_name(name)}--{fingerprint[:8]}"


def base_name(collection: str) -> str:
    """Return the name that a versioned collection belongs to."""
    parts = VERSIONED.fullmatch(collection)
    return parts["name"] if parts else collection


def pca_name(dim: int) -> str:
    """Return the name of the vector that PCA reduces to `dim`."""
    return f"pca_{dim}"


@lru_cache(maxsize=4096)  # a load asks for each three times
def point_id(passage_id: str) -> str:
    """Return the UUIDv5 of a passage id: the same passage is always the same point."""
    return str(uuid.uuid5(POINT_NAMESPACE, passage_id))


def content_hash(passage: Passage) -> str:
    """Return 32 hex digits that change with anything in the passage."""
    content = [passage.passage_id, passage.title, passage.text, passage.url, dict(passage.fields)]
    if passage.expansion:
        content.append(list(passage.expansion))
    return hashlib.blake2b(TO_JSON(content).encode(), digest_size=16).hexdigest()


def to_payload(passage: Passage) -> dict[str, Any]:
    """Return a passage's payload in the order that reads well in the dashboard.

    Raises:
        DataError: a source field has the name of one of ours.
    """
    if clashes := [name for name in RESERVED if name in passage.fields]:
        raise DataError(
            f"passage {passage.passage_id!r} has a field {clashes[0]!r}, a name that the payload "
            "needs itself; rename it in the source and run: ingest prepare"
        )
    return {
        "title": passage.title,
        "text": passage.text,
        "url": passage.url,
        "passage_id": passage.passage_id,
        **passage.fields,
        CONTENT_HASH: content_hash(passage),
    }


def from_payload(payload: Mapping[str, Any]) -> Passage:
    """Return the passage that `to_payload` was given."""
    fields = {name: value for name, value in payload.items() if name not in RESERVED}
    passage_id, text, title, url = (payload[n] for n in ("passage_id", "text", "title", "url"))
    return Passage(passage_id, text, title, url, fields)


@dataclass(frozen=True)
class CollectionSchema:
    """Vectors and payload indexes of a collection.

    Attributes:
        dim: width of `dense`; 0 for a collection of BM25 alone, which has no such vector.
        pca_dims: widths of the reduced vectors.
        fields: payload indexes on the source's own fields.
        options: how all that is stored.
        late_dim: width of each vector of `late`; 0 for none.
    """

    dim: int
    pca_dims: tuple[int, ...]
    fields: Mapping[str, PayloadIndex] = field(default_factory=lambda: NO_INDEXES)
    options: CollectionOptions = field(default_factory=CollectionOptions)
    late_dim: int = 0

    @property
    def widths(self) -> dict[str, int]:
        """Width of each vector that can find something, by its name; `late` cannot."""
        dense = {DENSE: self.dim} if self.dim else {}
        return dense | {pca_name(dim): dim for dim in self.pca_dims}

    @property
    def dense_config(self) -> dict[str, qm.VectorParams]:
        """Dense vectors, all compared and stored alike."""
        options = self.options
        datatype = None if options.datatype == "float32" else qm.Datatype(options.datatype)
        return {
            name: qm.VectorParams(
                size=width,
                distance=qm.Distance(DISTANCES[options.distance]),
                on_disk=options.on_disk.vectors,
                datatype=datatype,
            )
            for name, width in self.widths.items()
        }

    @property
    def vectors_config(self) -> dict[str, qm.VectorParams]:
        """All but the sparse ones; `late` has no graph, for it scores what others find."""
        if not self.late_dim:
            return self.dense_config
        late = qm.VectorParams(
            size=self.late_dim,
            distance=qm.Distance.DOT,
            datatype=qm.Datatype.UINT8,
            multivector_config=qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM),
            hnsw_config=qm.HnswConfigDiff(m=0),
            on_disk=True,
        )
        return {**self.dense_config, LATE: late}

    @property
    def sparse_vectors_config(self) -> dict[str, qm.SparseVectorParams]:
        """BM25 with the IDF applied by the engine."""
        index = qm.SparseIndexParams(on_disk=self.options.on_disk.bm25)
        return {BM25: qm.SparseVectorParams(modifier=qm.Modifier.IDF, index=index)}

    @property
    def payload_indexes(self) -> dict[str, PayloadIndex]:
        """What to filter by: words of the title, the passage id, the source's fields."""
        clusters = {CLUSTER: qm.PayloadSchemaType.INTEGER} if self.options.clusters else {}
        return {
            "title": payload_index("text"),
            "passage_id": qm.PayloadSchemaType.KEYWORD,
            **clusters,
            **self.fields,
        }

    @property
    def creation(self) -> dict[str, Any]:
        """Arguments of the engine's `create_collection`, beside name and metadata."""
        return {
            "vectors_config": self.vectors_config,
            "sparse_vectors_config": self.sparse_vectors_config,
            **self.options.creation,
        }

    @property
    def changes(self) -> dict[str, Any]:
        """Arguments of the engine's `update_collection` for all that it can change in place."""
        return self.options.changes(self.dense_config, self.sparse_vectors_config)

    def require(self, info: qm.CollectionInfo, *, collection: str) -> None:
        """Check that a collection has these vectors.

        Raises:
            CollectionMismatch: it has others; the message gives both.
        """
        vectors = info.config.params.vectors
        dense = vectors if isinstance(vectors, dict) else {}
        stored: dict[str, Any] = {name: params.size for name, params in dense.items()}
        stored |= dict.fromkeys(info.config.params.sparse_vectors or {}, "sparse")
        late = {LATE: self.late_dim} if self.late_dim else {}
        expected = {**self.widths, **late, BM25: "sparse"}
        if stored != expected:
            raise CollectionMismatch(
                f"collection {collection!r} has vectors {stored}, expected {expected}; "
                f"if it is not needed, run: ingest drop {collection}"
            )


class _Stored(BaseModel):
    """What readers rely on in the metadata of a collection, whoever wrote it."""

    model_config = ConfigDict(strict=True)

    bundle_fingerprint: str = Field(min_length=8)
    dim: int = Field(ge=0)
    pca_dims: list[Annotated[int, Field(gt=0)]]
    data: dict[str, Any]
    bm25: dict[str, Any]
    created_at: str
    options: dict[str, Any] = {}
    centroids: str = ""
    late_dim: int = Field(default=0, ge=0)
    bundle_path: str = ""
    fusion: dict[str, Any] = {}

    @model_validator(mode="after")
    def _can_be_read(self) -> _Stored:
        if datetime.fromisoformat(self.created_at).tzinfo is None:
            raise ValueError(f"created_at is {self.created_at[:40]!r}, expected a time zone")
        counts = self.data.get("counts", {"passages": 0})
        numbers = (counts.get("passages") if isinstance(counts, dict) else None,)
        if not all(isinstance(n, int) for n in (*numbers, self.data.get("kept", 0))):
            raise ValueError("data.counts.passages or data.kept is no number")
        return self


@dataclass(frozen=True)
class CollectionMetadata:
    """What a collection says about itself.

    Attributes:
        bundle_fingerprint: of the bundle that made its vectors, or of `NoTower`.
        dim: width of `dense`; 0 for a collection of BM25 alone.
        pca_dims: widths of the reduced vectors.
        data: `source`, `content_hash` and `counts` of DATA, `kept`, the number of points beside it
            that an earlier DATA left, `expansion`, whose queries BM25 reads beside the texts, and
            `examples`, a few queries of DATA.
        bm25: the `Bm25Config` of its `bm25` vectors.
        created_at: when, in ISO 8601 with time zone.
        options: how it is stored.
        centroids: of its clusters, as `Centroids.pack` makes them; empty for none.
        late_dim: width of each vector of `late`; 0 for none.
        bundle_path: the folder that the bundle was loaded from; empty where that is not known.
        fusion: what `retriever calibrate` learnt for it, in place of the bundle's weights; empty
            for nothing.
    """

    bundle_fingerprint: str
    dim: int
    pca_dims: tuple[int, ...]
    data: Mapping[str, Any]
    bm25: Mapping[str, Any]
    created_at: str
    options: CollectionOptions = field(default_factory=CollectionOptions)
    centroids: str = ""
    late_dim: int = 0
    bundle_path: str = ""
    fusion: Mapping[str, Any] = field(default_factory=dict)

    @property
    def expected_points(self) -> int:
        """How many points the collection has when its last load is complete."""
        return int(self.data["counts"]["passages"]) + int(self.data.get("kept", 0))

    @property
    def has_tower(self) -> bool:
        """Whether there are vectors of a bundle beside BM25."""
        return self.dim > 0

    @property
    def language(self) -> str:
        """What BM25 takes the texts for: see `Bm25Config.language`."""
        return str(self.bm25.get("language", ENGLISH))

    @property
    def age_s(self) -> float:
        """Seconds since the collection was created."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.created_at)).total_seconds()

    @property
    def schema(self) -> CollectionSchema:
        """The vectors, without the payload indexes of source fields."""
        return CollectionSchema(
            self.dim, self.pca_dims, options=self.options, late_dim=self.late_dim
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {"format": FORMAT, **asdict(self), "pca_dims": list(self.pca_dims)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> CollectionMetadata:
        """Return what `to_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        if stored.get("format") != FORMAT:
            raise ValueError(f"found format {stored.get('format')!r:.40}, expected {FORMAT!r}")
        # What an older collection does not have.
        later: dict[str, Any] = {"options": {}, "centroids": "", "late_dim": 0, "bundle_path": ""}
        later["fusion"] = {}
        names = set(cls.__dataclass_fields__)
        if missing := names - stored.keys() - later.keys():
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        values = {name: stored.get(name, later.get(name)) for name in names}
        if not isinstance(values["bm25"], Mapping):
            raise ValueError("bm25 is no mapping")
        # Neither is in an older collection.
        values["bm25"] = {"normalization": "none", "title_weight": 0.0, **values["bm25"]}
        try:
            _Stored.model_validate(values | {"pca_dims": list(values["pca_dims"])})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]) from None
        except TypeError:
            raise ValueError("pca_dims is no list") from None
        try:
            options = CollectionOptions.from_dict(values["options"])
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return cls(**values | {"pca_dims": tuple(stored["pca_dims"]), "options": options})


def read_metadata(engine: Engine, collection: str) -> CollectionMetadata:
    """Return what `ingest load` recorded about `collection`.

    Raises:
        CollectionNotFound: there is none.
        CollectionMismatch: it was made by something else.
    """
    try:
        return CollectionMetadata.from_dict(engine.overview(collection).metadata)
    except ValueError as error:
        raise CollectionMismatch(
            f"collection {collection!r} was not made by ingest load ({error}); "
            "load into another name with --collection"
        ) from None
