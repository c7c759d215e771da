"""How a query is answered: `SearchSettings`, the section `search:` of a settings file."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from qdrant_client import models as qm

from two_tower.models.config import from_mapping, read_yaml
from two_tower.models.errors import ConfigError
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import BM25, DENSE, pca_name

FIELD = re.compile(r"[A-Za-z0-9_-]+")

DEFAULT_LEGS: Mapping[str, int] = MappingProxyType({"dense": 100, "bm25": 100})

MOST_CROSS_CANDIDATES = 200


@dataclass(frozen=True)
class AnnSettings:
    """How the engine looks for the nearest vectors: what is found against what it costs.

    All of it is for the legs of the tower; BM25 is exact, and stays so.

    Attributes:
        ef: candidates that the graph search keeps, as many as are asked for by default; more find
            more, slower.
        exact: compare with every vector; no graph, no quantized copy.
        first_stage: a shorter vector, `pca_64`, that finds candidates for the leg `dense`, which
            the full vectors then rescore, all in one request.
        first_stage_candidates: how many, and at least as many as the leg asks for.
        n_probe: look into that many of the collection's clusters alone, the nearest to the query;
            None for all. What BM25 finds elsewhere stays.
        rescore: score what quantized copies found by the vectors themselves; without it, scores
            are those of the copies, and come faster.
        oversampling: how many times the candidates are taken from quantized copies before that.
        ignore_quantized: do not use the copies.
    """

    ef: int | None = None
    exact: bool = False
    first_stage: str | None = None
    first_stage_candidates: int = 200
    n_probe: int | None = None
    rescore: bool = True
    oversampling: float | None = None
    ignore_quantized: bool = False

    def __post_init__(self) -> None:
        for name in ("ef", "first_stage_candidates", "n_probe", "oversampling"):
            if (value := getattr(self, name)) is not None and not value >= 1:
                raise ConfigError(f"ann.{name} is {value}; expected 1 or more")
        if self.first_stage is not None and not self.first_stage.startswith("pca_"):
            raise ConfigError(f"ann.first_stage is {self.first_stage!r}; expected e.g. pca_64")
        if self.oversampling is not None and not self.rescore:
            raise ConfigError(
                f"ann.oversampling is {self.oversampling} without rescore, which alone can choose "
                "among more candidates; expected rescore: true"
            )

    @property
    def params(self) -> qm.SearchParams:
        """The engine's form of what one request can say."""
        return qm.SearchParams(
            hnsw_ef=self.ef,
            exact=self.exact,
            quantization=qm.QuantizationSearchParams(
                ignore=self.ignore_quantized, rescore=self.rescore, oversampling=self.oversampling
            ),
        )


@dataclass(frozen=True)
class SearchSettings:
    """How a query is answered.

    Attributes:
        legs: which vectors propose candidates, and how many each.
        fusion: `learnt` takes the weights that the bundle brings for a query with both BM25 and
            tower scores, and is `weighted` where it brings none; `weighted` is BM25 +
            tower_weight * cosine; `rrf` sums reciprocal ranks instead.
        tower_weight: how many points of BM25 a cosine of 1 is worth, 15 where it is not given;
            where it is, nothing learnt takes its place.
        rerank: whether the query tower scores every candidate over the full vectors.
        cross: whether the bundle's cross-scorer, if it brings one, reads the best candidates. It
            was weighed against the learnt fusion, and so runs only where that did.
        cross_candidates: how many it reads, 1 to 200; the others stay behind those.
        diversity: 0 for the order of the scores; up to 1, the more so, hits unlike those before
            them (maximal marginal relevance over the full vectors).
        group_by: payload field of which each value gives at most `group_size` hits, e.g. a
            document's id or `title`; a passage without it is in no group.
        group_size: see there.
        ann: how the tower's legs are searched; see `AnnSettings`.
    """

    legs: Mapping[str, int] = field(default_factory=lambda: DEFAULT_LEGS)
    fusion: Literal["learnt", "weighted", "rrf"] = "learnt"
    tower_weight: float | None = None
    rerank: bool = True
    cross: bool = True
    cross_candidates: int = 50
    diversity: float = 0.0
    group_by: str | None = None
    group_size: int = 1
    ann: AnnSettings = field(default_factory=AnnSettings)

    def __post_init__(self) -> None:
        if not self.legs:
            raise ConfigError("search settings name no leg; expected e.g. dense, bm25")
        for name, limit in self.legs.items():
            if limit < 1:
                raise ConfigError(f"leg {name!r} asks for {limit} candidates; expected 1 or more")
        if self.fusion not in ("learnt", "weighted", "rrf"):
            raise ConfigError(f"fusion is {self.fusion!r}; expected learnt, weighted or rrf")
        if self.tower_weight is not None and not self.tower_weight >= 0.0:
            raise ConfigError(f"tower_weight is {self.tower_weight}; expected 0 or more")
        if not 1 <= self.cross_candidates <= MOST_CROSS_CANDIDATES:
            raise ConfigError(
                f"cross_candidates is {self.cross_candidates}; "
                f"expected 1 to {MOST_CROSS_CANDIDATES}"
            )
        if not 0.0 <= self.diversity <= 1.0:
            raise ConfigError(f"diversity is {self.diversity}; expected 0 to 1")
        if self.group_by is not None and not FIELD.fullmatch(self.group_by):
            raise ConfigError(
                f"group_by is {self.group_by!r}; expected the name of a payload field"
            )
        if self.group_size < 1:
            raise ConfigError(f"group_size is {self.group_size}; expected 1 or more")

    @property
    def vectors(self) -> frozenset[str]:
        """Names of the vectors that a query is searched with."""
        first = self.ann.first_stage if DENSE in self.legs else None
        return frozenset(self.legs) | ({first} if first else frozenset())


def require_possible(
    settings: SearchSettings, pca_dims: Iterable[int], options: CollectionOptions
) -> None:
    """Refuse what a collection cannot do.

    Args:
        settings: how to search.
        pca_dims: widths of its reduced vectors.
        options: how it is stored.

    Raises:
        ConfigError: the settings name a vector, or more clusters, than there are, or want to add
            up scores of different kinds.
    """
    known = [DENSE, *map(pca_name, pca_dims), BM25]
    for name in sorted(settings.vectors):
        if name not in known:
            raise ConfigError(f"unknown leg {name!r}; this bundle has {', '.join(known)}")
    probed = settings.ann.n_probe
    if probed is not None and probed > options.clusters:
        raise ConfigError(
            f"ann.n_probe is {probed}, but the collection has {options.clusters or 'no'} clusters; "
            "a new one has them with clusters in the file of ingest load --options"
        )
    binary = options.quantization.kind == "binary" and not settings.ann.ignore_quantized
    if binary and not settings.ann.rescore and len(settings.legs) > 1:
        raise ConfigError(
            "ann.rescore is false, but scores of the collection's binary copies are no cosines and "
            "cannot be added to BM25; expected rescore: true"
        )


@dataclass(frozen=True)
class SettingsFile:
    """The sections of a settings file; one that is not there has its defaults.

    Attributes:
        collection: how to store.
        search: how to search.
    """

    collection: CollectionOptions = field(default_factory=CollectionOptions)
    search: SearchSettings = field(default_factory=SearchSettings)


def read_file(path: str | Path) -> SettingsFile:
    """Return both sections.

    Raises:
        ConfigError: there is no such file, a key is unknown or a value impossible.
    """
    mapping = read_yaml(path)
    try:
        return from_mapping(SettingsFile, mapping)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_settings(path: str | Path) -> SearchSettings:
    """Return the section `search:`; see `read_file`."""
    return read_file(path).search
