"""The settings that `retriever tune` measures, sweep by sweep.

Sweeps of the tower's leg alone show what approximation costs; the others search by both legs, as
an app does. Only `quantization` and `clusters` need a copy that is stored in another way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from two_tower.models.errors import ConfigError
from two_tower.retriever.collection.clusters import PER_CLUSTER
from two_tower.retriever.collection.options import CollectionOptions, QuantizationOptions
from two_tower.retriever.collection.schema import BM25, DENSE, pca_name
from two_tower.retriever.search.settings import AnnSettings, SearchSettings

SWEEPS = ("ef", "pca", "candidates", "fusion", "quantization", "clusters")

EFS = (10, 16, 32, 64, 128, 256, 512)

FIRST_STAGE = (100, 200, 400)

CANDIDATES = (10, 20, 50, 100, 200, 400)

DEFAULT_CANDIDATES = 100

TOWER_WEIGHTS = (5.0, 10.0, 15.0, 20.0, 30.0)

LEARNT = "learnt weights"

OVERSAMPLING = (None, 2.0, 4.0)

QUANTIZATIONS = {
    "int8": QuantizationOptions(kind="scalar"),
    "2 bits": QuantizationOptions(kind="binary", bits=2.0),
    "1.5 bits": QuantizationOptions(kind="binary", bits=1.5),
    "1 bit": QuantizationOptions(kind="binary", bits=1.0),
}

CLUSTERS = (16, 64, 256)

PROBES = (1, 2, 4, 8, 16)

SEGMENTS = 16  # more than an engine makes of a collection at rest

BITS = {"none": 32.0, "scalar": 8.0}

DENSE_ONLY = SearchSettings(legs={DENSE: 100}, rerank=False, cross=False)

HYBRID = SearchSettings(cross=False)


@dataclass(frozen=True)
class Setting:
    """One way to store and search.

    Attributes:
        sweep: one of `SWEEPS`.
        label: in tables and plots; no two settings share one.
        options: how the points are stored.
        search: how they are searched.
    """

    sweep: str
    label: str
    options: CollectionOptions
    search: SearchSettings

    @property
    def is_hybrid(self) -> bool:
        """Whether it searches by both legs."""
        return BM25 in self.search.legs

    def bits(self, widths: Mapping[str, int]) -> float:
        """Return the bits per passage of the vectors that the tower's leg is searched by."""
        ann, options = self.search.ann, self.options
        tower = ann.first_stage or next(leg for leg in self.search.legs if leg != BM25)
        uses_copies = not (ann.exact or ann.ignore_quantized)
        kind = options.quantization.kind if uses_copies else "none"
        return widths[tower] * BITS.get(kind, options.quantization.bits)


def parse_sweeps(words: str | None) -> tuple[str, ...]:
    """Return the sweeps that a comma-separated list names, all for None.

    Raises:
        ConfigError: one is unknown.
    """
    if words is None:
        return SWEEPS
    sweeps = tuple(word.strip() for word in words.split(","))
    if unknown := [sweep for sweep in sweeps if sweep not in SWEEPS]:
        raise ConfigError(f"unknown sweep {unknown[0]!r}; expected some of {', '.join(SWEEPS)}")
    return sweeps


def ef_settings(options: CollectionOptions) -> list[Setting]:
    """Return exact search, then graph searches with a larger and larger ef, for 10 hits."""
    few = replace(DENSE_ONLY, legs={DENSE: 10})
    anns = {"exact": AnnSettings(exact=True)} | {f"ef {ef}": AnnSettings(ef=ef) for ef in EFS}
    return [Setting("ef", name, options, replace(few, ann=ann)) for name, ann in anns.items()]


def pca_settings(options: CollectionOptions, pca_dims: Sequence[int]) -> list[Setting]:
    """Return each reduced vector alone, and as the first stage of the full one."""
    settings = []
    for name in map(pca_name, pca_dims):
        alone = replace(DENSE_ONLY, legs={name: 100})
        settings.append(Setting("pca", f"{name} alone", options, alone))
        for count in FIRST_STAGE:
            ann = AnnSettings(first_stage=name, first_stage_candidates=count)
            staged = replace(DENSE_ONLY, ann=ann)
            settings.append(Setting("pca", f"{name}, {count} rescored", options, staged))
    return settings


def fusion_settings(options: CollectionOptions, *, has_learnt: bool) -> list[Setting]:
    """Return the weights that the bundle learnt, if any, fixed ones, and reciprocal ranks."""
    searches = {LEARNT: HYBRID} if has_learnt else {}
    searches |= {f"tower weight {w:g}": replace(HYBRID, tower_weight=w) for w in TOWER_WEIGHTS}
    searches["rrf"] = replace(HYBRID, fusion="rrf")
    return [Setting("fusion", label, options, search) for label, search in searches.items()]


def candidate_settings(
    options: CollectionOptions, hybrid: SearchSettings, counts: Sequence[int]
) -> list[Setting]:
    """Return more and more candidates of both legs, with the fusion of `hybrid`."""
    legs = {f"both legs {count}": {DENSE: count, BM25: count} for count in counts}
    return [
        Setting("candidates", label, options, replace(hybrid, legs=each))
        for label, each in legs.items()
    ]


def quantization_options(
    options: CollectionOptions, *, points: int, dim: int
) -> dict[str, CollectionOptions]:
    """Return name -> options with quantized copies, and a limit that builds them for `points`."""
    share_kb = points * dim * 4 // 1000 // SEGMENTS
    hnsw = replace(options.hnsw, above_kb=max(10, min(options.hnsw.above_kb, share_kb)))
    return {
        name: replace(options, hnsw=hnsw, quantization=quantization, clusters=0)
        for name, quantization in QUANTIZATIONS.items()
    }


def quantization_settings(name: str, options: CollectionOptions) -> list[Setting]:
    """Return scores of the copies alone, then more and more of their candidates rescored."""
    anns = {"scores of the copies": AnnSettings(rescore=False)}
    anns |= {f"x{x or 1:g} rescored": AnnSettings(oversampling=x) for x in OVERSAMPLING}
    return [
        Setting("quantization", f"{name}, {words}", options, replace(DENSE_ONLY, ann=ann))
        for words, ann in anns.items()
    ]


def cluster_counts(points: int) -> list[int]:
    """Return numbers of clusters that so many points can fill."""
    return [count for count in CLUSTERS if points >= PER_CLUSTER * count]


def cluster_settings(options: CollectionOptions) -> list[Setting]:
    """Return searches in more and more of the clusters."""
    clusters = options.clusters
    anns = {
        f"{probes} of {clusters} clusters": AnnSettings(n_probe=probes)
        for probes in PROBES
        if probes < clusters
    }
    return [
        Setting("clusters", label, options, replace(DENSE_ONLY, ann=ann))
        for label, ann in anns.items()
    ]


def hybrid_setting(alone: Setting, hybrid: SearchSettings) -> Setting:
    """Return the search by both legs whose tower's leg is searched as in `alone`."""
    label = f"{alone.label}; both legs {hybrid.legs[DENSE]}"
    return replace(alone, label=label, search=replace(hybrid, ann=alone.search.ann))
