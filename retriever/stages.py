"""The stages of one query as data: what to ask the engine, and what its answers add up to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from qdrant_client import models as qm
from qdrant_client.http.models import QueryResponse

from retriever import fusion
from retriever.errors import ConfigError
from retriever.records import Stage
from retriever.rerank import RERANK, query_tower_request
from retriever.schema import DENSE

LEXICAL = frozenset({"bm25", "tfidf"})
DEFAULT_LEGS: Mapping[str, int] = MappingProxyType({"dense": 100, "bm25": 100})


@dataclass(frozen=True)
class SearchSettings:
    """How a query is answered.

    Attributes:
        legs: which vectors propose candidates, and how many each.
        fusion: `weighted` is BM25 + tower_weight * cosine; `rrf` sums reciprocal ranks instead.
        tower_weight: how many points of BM25 a cosine of 1 is worth.
        rerank: whether the query tower scores every candidate over the full vectors.
    """

    legs: Mapping[str, int] = field(default_factory=lambda: DEFAULT_LEGS)
    fusion: Literal["weighted", "rrf"] = "weighted"
    tower_weight: float = 15.0
    rerank: bool = True

    def __post_init__(self) -> None:
        if not self.legs:
            raise ConfigError("search settings name no leg; expected e.g. dense, bm25")
        for name, limit in self.legs.items():
            if limit < 1:
                raise ConfigError(f"leg {name!r} asks for {limit} candidates; expected 1 or more")
        if self.fusion not in ("weighted", "rrf"):
            raise ConfigError(f"fusion is {self.fusion!r}; expected weighted or rrf")
        if not self.tower_weight >= 0.0:
            raise ConfigError(f"tower_weight is {self.tower_weight}; expected 0 or more")


class QueryVectors(NamedTuple):
    """One encoded query.

    Attributes:
        tower: `(dim,) float32`, L2-normalised, from the query tower.
        by_name: vector name -> what that vector is searched with; no entry for an empty one.
    """

    tower: npt.NDArray[np.float32]
    by_name: Mapping[str, list[float] | qm.SparseVector]


class Candidates(NamedTuple):
    """The union of what the stages returned for one query.

    Attributes:
        point_ids: `n` ids.
        stages: `m` stage names, the columns of `scores`.
        scores: `(n, m) float64`, NaN where a stage did not return the point.
        floors: `(m,) float64`, what a missing score counts as.
    """

    point_ids: list[str]
    stages: list[str]
    scores: fusion.Floats
    floors: fusion.Floats


class Winner(NamedTuple):
    """A candidate that made it into the result, before its payload is fetched."""

    rank: int
    point_id: str
    score: float
    stages: Mapping[str, Stage]


def plan(settings: SearchSettings, vectors: QueryVectors, *, k: int) -> dict[str, qm.QueryRequest]:
    """Return the engine requests of one query by stage; they travel as one batch.

    A query of stop words alone has no BM25 term; that leg is then left out. The dense leg scores
    by the full vectors itself, so only what the other legs propose is left to rerank.
    """
    legs = {
        name: qm.Prefetch(query=vectors.by_name[name], using=name, limit=max(limit, k))
        for name, limit in settings.legs.items()
        if name in vectors.by_name
    }
    requests = {
        name: qm.QueryRequest(query=leg.query, using=name, limit=leg.limit, with_payload=False)
        for name, leg in legs.items()
    }
    others = [leg for name, leg in legs.items() if name != DENSE]
    if settings.rerank and others:
        requests[RERANK] = query_tower_request(others, vectors.tower)
    return requests


def gather(
    requests: Mapping[str, qm.QueryRequest], responses: Sequence[QueryResponse]
) -> Candidates:
    """Line up the answers of one query's stages in one matrix."""
    found = {
        stage: {str(point.id): point.score for point in response.points}
        for stage, response in zip(requests, responses, strict=True)
    }
    if RERANK in found:
        found[RERANK] = found.get(DENSE, {}) | found[RERANK]
    point_ids = list(dict.fromkeys(point_id for scores in found.values() for point_id in scores))
    matrix = np.array([[scores.get(i, np.nan) for scores in found.values()] for i in point_ids])
    floors = [
        _floor(stage, list(scores.values()), requests[stage].limit or 0)
        for stage, scores in found.items()
    ]
    return Candidates(
        point_ids, list(found), matrix.reshape(len(point_ids), len(found)), np.array(floors)
    )


def _floor(stage: str, scores: list[float], limit: int) -> float:
    """A full list leaves out what scores less than its last; a short BM25 list what matches not."""
    if stage in LEXICAL and len(scores) < limit:
        return 0.0
    return min(scores, default=0.0)


def choose(settings: SearchSettings, candidates: Candidates, *, k: int) -> list[Winner]:
    """Fuse the stages and return the best `k`, with what each stage thought of them."""
    if not candidates.point_ids:
        return []
    final = final_scores(settings, candidates)
    by_stage = fusion.ranks(candidates.scores)
    winners = []
    for rank, row in enumerate(np.argsort(-final, kind="stable")[:k], 1):
        stages = {
            name: Stage(float(candidates.scores[row, column]), int(by_stage[row, column]))
            for column, name in enumerate(candidates.stages)
            if not np.isnan(candidates.scores[row, column])
        }
        winners.append(Winner(rank, candidates.point_ids[row], float(final[row]), stages))
    return winners


def final_scores(settings: SearchSettings, candidates: Candidates) -> fusion.Floats:
    """Return `(n,)`: one stage's own score where only one counts, else the fused one."""
    weights = stage_weights(settings, candidates.stages)
    scores = fusion.fill_missing(candidates.scores, candidates.floors)
    if np.count_nonzero(weights) == 1:
        only: fusion.Floats = scores[:, int(np.argmax(weights))]
        return only
    if settings.fusion == "rrf":
        return fusion.reciprocal_rank_fusion(candidates.scores, (weights > 0).astype(float))
    return fusion.weighted_sum(scores, weights)


def stage_weights(settings: SearchSettings, stages: Sequence[str]) -> fusion.Floats:
    """Return `(m,)`: 1 for a lexical stage, `tower_weight` for the tower's.

    Where rerank ran, it alone speaks for the tower; else its legs share the weight.
    """
    lexical = np.array([name in LEXICAL for name in stages], dtype=bool)
    tower = ~lexical
    if RERANK in stages:
        tower = np.array([name == RERANK for name in stages])
    weights: fusion.Floats = lexical + settings.tower_weight * tower / max(1, tower.sum())
    return weights
