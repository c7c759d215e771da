"""How a query is answered: `SearchSettings`, the section `search:` of a settings file."""

from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from two_tower.models.config import configuration, from_mapping
from two_tower.models.errors import ConfigError
from two_tower.retriever.collection.options import CollectionOptions

DEFAULT_LEGS = {"dense": 100, "bm25": 100}


@configuration("search.ann")
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
        rescore: score what quantized copies find by the vectors themselves; without it, scores
            are those of the copies, and come faster.
        oversampling: how many times the candidates are taken from quantized copies before that.
        ignore_quantized: do not use the copies.
    """

    ef: int | None = Field(default=None, ge=1)
    exact: bool = False
    first_stage: str | None = Field(default=None, pattern="^pca_", description="e.g. pca_64")
    first_stage_candidates: int = Field(default=200, ge=1)
    n_probe: int | None = Field(default=None, ge=1)
    rescore: bool = True
    oversampling: float | None = Field(default=None, ge=1)
    ignore_quantized: bool = False

    def __post_init__(self) -> None:
        if self.oversampling is not None and not self.rescore:
            raise ConfigError(
                f"search.ann.oversampling is {self.oversampling} without rescore, which alone can "
                "choose among more candidates; expected rescore: true"
            )


@configuration("search.rewrite")
class RewriteSettings:
    """Who imagines passages that could answer a query, for the tower's stages (HyDE).

    Attributes:
        llm: URL of a language model, as OpenAI's: `http://localhost:8000/v1`. Its key comes from
            TWO_TOWER_API_KEY alone.
        model: the model's name there.
        passages: how many are imagined.
        prompt: file of a text in which {query} stands for the query; None for the one that ships.
        within_s: seconds after which a search goes on without them.
    """

    llm: str
    model: str
    passages: int = Field(default=1, ge=1, le=16)
    prompt: str | None = None
    within_s: float = Field(default=5.0, gt=0, le=120)


@configuration("search")
class SearchSettings:
    """How a query is answered.

    Attributes:
        legs: which vectors propose candidates, and how many each.
        fusion: `learnt` takes the weights that the bundle brings for a query with both BM25 and
            tower scores, and is `weighted` where it brings none; `weighted` is BM25 +
            tower_weight * cosine; `rrf` sums reciprocal ranks instead, `dbsf` the scores of each
            stage over their own spread.
        tower_weight: how many points of BM25 a cosine of 1 is worth, 15 where it is not given;
            where it is, nothing learnt takes its place.
        rerank: whether the query tower scores every candidate over the full vectors.
        late: whether late interaction scores every candidate by its tokens, where the bundle and
            the collection have it. Its weight was learnt beside the learnt fusion, and so it runs
            only where that does.
        cross: whether the bundle's cross-scorer, if it brings one, reads the best candidates. It
            was weighed against the learnt fusion, and so runs only where that did.
        cross_candidates: how many it reads, 1 to 200, and what the bundle says where it is not
            given: 50 by default for the RNN, 20 for a cross-encoder; the others stay behind those.
        escalate: the cross-scorer reads only where the first hit's chance without it is less; None
            for every query. `retriever calibrate NAME DATA` gives those chances. Late interaction
            travels with the candidates and is not held back.
        at_least: hits whose chance to answer is lower are left out, and a query may get none; only
            where a cross-scorer runs, or chances were calibrated, are there any.
        diversity: 0 for the order of the scores; up to 1, the more so, hits unlike those before
            them (maximal marginal relevance over the full vectors).
        group_by: payload field of which each value gives at most `group_size` hits, e.g. a
            document's id or `title`; a passage without it is in no group.
        group_size: see there.
        spelling: whether a word that no passage has is read as the near ones that some have.
        rewrite: who imagines passages for the query; see `RewriteSettings`. None for nobody.
        ann: how the tower's legs are searched; see `AnnSettings`.
    """

    legs: Annotated[
        Mapping[str, Annotated[int, Field(ge=1)]],
        Field(description="Vector name -> candidates.", examples=[DEFAULT_LEGS]),
    ] = field(default_factory=DEFAULT_LEGS.copy)
    fusion: Literal["learnt", "weighted", "rrf", "dbsf"] = "learnt"
    tower_weight: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    rerank: bool = True
    late: bool = True
    cross: bool = True
    cross_candidates: Annotated[int, Field(ge=1, le=200)] | None = None
    escalate: Annotated[float, Field(ge=0, le=1)] | None = None
    at_least: Annotated[float, Field(ge=0, le=1)] = 0.0
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    group_by: Annotated[
        str | None,
        Field(
            pattern="^[A-Za-z0-9_-]+$", max_length=100, description="the name of a payload field"
        ),
    ] = None
    group_size: Annotated[int, Field(ge=1, le=1000)] = 1
    spelling: bool = True
    rewrite: RewriteSettings | None = None
    ann: AnnSettings = field(default_factory=AnnSettings)

    def __post_init__(self) -> None:
        if not self.legs:
            raise ConfigError("search settings name no leg; expected e.g. dense, bm25")


def without_tower(settings: SearchSettings) -> SearchSettings:
    """Return the settings for BM25 alone: its one leg, and what follows it."""
    legs = {"bm25": settings.legs.get("bm25", DEFAULT_LEGS["bm25"])}
    return replace(
        settings, legs=legs, rerank=False, late=False, cross=False, rewrite=None, ann=AnnSettings()
    )


@configuration()
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
    from two_tower.models.yaml_file import read_yaml

    mapping = read_yaml(path)
    try:
        return from_mapping(SettingsFile, mapping)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_settings(path: str | Path) -> SearchSettings:
    """Return the section `search:`; see `read_file`."""
    return read_file(path).search
