"""The stages of one query as data: what to ask the engine, and what its answers add up to."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from qdrant_client import models as qm

from two_tower.models.bundle.fusion import TOWER_WEIGHT
from two_tower.models.vectors import Float64Array, FloatArray, IntArray
from two_tower.retriever.collection.clusters import Centroids
from two_tower.retriever.collection.schema import BM25, DENSE
from two_tower.retriever.engine.wire import Scored
from two_tower.retriever.records import Stage
from two_tower.retriever.search.filters import both
from two_tower.retriever.search.settings import AnnSettings, SearchSettings

if TYPE_CHECKING:
    from two_tower.models.bundle.fusion import HybridWeights


def fill_missing(scores: Float64Array, floors: Float64Array) -> Float64Array:
    """Replace NaN by the stage's floor: the most that a candidate it left out can have scored.

    Args:
        scores: `(n, stages)`, NaN where missing.
        floors: `(stages,)`, e.g. the lowest score in a stage's full list, 0 for BM25 when its
            list was not full (whatever it left out matches no term).
    """
    return np.where(np.isnan(scores), floors, scores)


def weighted_sum(scores: Float64Array, weights: Float64Array) -> Float64Array:
    """Return `scores @ weights`, in the stages' own units.

    A convex combination beats reciprocal ranks, and needs no normalisation per query once the
    weight suits the units: Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid
    Retrieval", TOIS 2023.
    """
    total: Float64Array = scores @ weights
    return total


def ranks(scores: Float64Array) -> IntArray:
    """Return each stage's ranks from 1, best first, ties in the order given; missing ones last."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=0, kind="stable")
    result = np.empty_like(order)
    np.put_along_axis(result, order, np.arange(1, len(scores) + 1)[:, None], axis=0)
    return result


def reciprocal_rank_fusion(
    scores: Float64Array, weights: Float64Array, *, k: int = 60
) -> Float64Array:
    """Return sum over stages of weight / (k + rank); a missing candidate adds nothing.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet", SIGIR 2009.
    """
    gains = np.where(np.isnan(scores), 0.0, weights / (k + ranks(scores)))
    total: Float64Array = gains.sum(axis=1)
    return total


RERANK = "rerank"


def rescored(legs: Sequence[qm.Prefetch], query_vector: FloatArray, *, limit: int) -> qm.Prefetch:
    """Ask for the `limit` best of what `legs` find, by the full vectors.

    Quantized copies are ignored: a final score must come from the vectors themselves.
    """
    return qm.Prefetch(
        prefetch=list(legs),
        query=query_vector.tolist(),
        using=DENSE,
        limit=limit,
        params=qm.SearchParams(quantization=qm.QuantizationSearchParams(ignore=True)),
    )


def query_tower_request(legs: Sequence[qm.Prefetch], query_vector: FloatArray) -> qm.QueryRequest:
    """Ask the engine for the exact cosine of every candidate that `legs` propose.

    The legs go in as prefetches, so candidates and rerank travel in one request, no vector leaves
    the engine, and a candidate found by BM25 or by a short PCA vector alone is judged by the full
    one.

    Args:
        legs: the requests that propose candidates.
        query_vector: `(dim,) float32`, from the query tower.
    """
    return request(rescored(legs, query_vector, limit=sum(leg.limit or 0 for leg in legs)))


def request(asked: qm.Prefetch) -> qm.QueryRequest:
    """Return what could be a part of a request as one of its own, for ids and scores alone."""
    return qm.QueryRequest(
        prefetch=asked.prefetch,
        query=asked.query,
        using=asked.using,
        filter=asked.filter,
        params=asked.params,
        limit=asked.limit,
        with_payload=False,
    )


LEXICAL = frozenset({"bm25", "tfidf"})


class QueryVectors(NamedTuple):
    """One encoded query.

    Attributes:
        tower: `(dim,) float32`, L2-normalised, from the query tower.
        by_name: vector name -> what that vector is searched with; no entry for an empty one.
    """

    tower: FloatArray
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
    scores: Float64Array
    floors: Float64Array


class Ranking(NamedTuple):
    """The candidates of one query in an order.

    Attributes:
        candidates: `n` of them.
        order: `(n,)` rows of the candidates, best first.
        scores: `(n,)`, what each row is ranked by.
        is_learnt: whether the scores are those of a learnt fusion.
    """

    candidates: Candidates
    order: IntArray
    scores: Float64Array
    is_learnt: bool = False


class HybridScores(NamedTuple):
    """Both scores of every candidate, `(n,)` each, without gaps."""

    bm25: Float64Array
    cosine: Float64Array


class Winner(NamedTuple):
    """A candidate that made it into the result, before its payload is fetched."""

    rank: int
    point_id: str
    score: float
    stages: Mapping[str, Stage]


class Within(NamedTuple):
    """Where a query looks.

    Attributes:
        filter: which passages may be hits; None for all.
        centroids: of the collection's clusters; None where it has none.
    """

    filter: qm.Filter | None = None
    centroids: Centroids | None = None


EVERYWHERE = Within()


def plan(
    settings: SearchSettings, vectors: QueryVectors, *, k: int, within: Within = EVERYWHERE
) -> dict[str, qm.QueryRequest]:
    """Return the engine requests of one query by stage; they travel as one batch.

    A query of stop words alone has no BM25 term; that leg is then left out. The dense leg scores
    by the full vectors itself, so only what the other legs propose is left to rerank.
    """
    legs = {
        name: _leg(name, max(limit, k), settings.ann, vectors=vectors, within=within)
        for name, limit in settings.legs.items()
        if name in vectors.by_name
    }
    requests = {name: request(leg) for name, leg in legs.items()}
    others = [leg for name, leg in legs.items() if name != DENSE]
    if settings.rerank and others:
        requests[RERANK] = query_tower_request(others, vectors.tower)
    return requests


def _leg(
    name: str, limit: int, ann: AnnSettings, *, vectors: QueryVectors, within: Within
) -> qm.Prefetch:
    """Return what asks for the candidates of one leg."""
    query = vectors.by_name[name]
    if name in LEXICAL:
        return qm.Prefetch(query=query, using=name, filter=within.filter, limit=limit)
    wanted = within.filter
    if ann.n_probe is not None and within.centroids is not None:
        wanted = both(wanted, within.centroids.probe(vectors.tower, ann.n_probe))
    if name == DENSE and ann.first_stage is not None:
        found = max(limit, ann.first_stage_candidates)
        short = vectors.by_name[ann.first_stage]
        first = qm.Prefetch(
            query=short, using=ann.first_stage, filter=wanted, limit=found, params=ann.params
        )
        return rescored([first], vectors.tower, limit=limit)
    return qm.Prefetch(query=query, using=name, filter=wanted, limit=limit, params=ann.params)


def gather(requests: Mapping[str, qm.QueryRequest], answers: Sequence[Scored]) -> Candidates:
    """Line up the answers of one query's stages in one matrix."""
    found = dict(zip(requests, answers, strict=True))
    rows: dict[str, int] = {}  # point id -> its row, in the order of first sight
    places = [[rows.setdefault(i, len(rows)) for i in ids] for ids, _ in found.values()]
    scores = np.full((len(rows), len(found)), np.nan)
    for column, (place, (_, values)) in enumerate(zip(places, found.values(), strict=True)):
        scores[place, column] = values
    stages = list(found)
    if RERANK in found and DENSE in found:
        rerank, dense = stages.index(RERANK), stages.index(DENSE)
        unseen = np.isnan(scores[:, rerank])
        scores[unseen, rerank] = scores[unseen, dense]
    floors = [
        _floor(stage, scores[:, column], requests[stage].limit or 0)
        for column, stage in enumerate(stages)
    ]
    return Candidates(list(rows), stages, scores, np.array(floors))


def _floor(stage: str, scores: Float64Array, limit: int) -> float:
    """A full list leaves out what scores less than its last; a short BM25 list what matches not."""
    found = scores[~np.isnan(scores)]
    if stage in LEXICAL and len(found) < limit:
        return 0.0
    return float(found.min()) if len(found) else 0.0


def fuse(
    settings: SearchSettings, candidates: Candidates, *, learnt: "HybridWeights | None" = None
) -> Ranking:
    """Put what the stages say together.

    Args:
        settings: how.
        candidates: of one query.
        learnt: the weights that the bundle brings.
    """
    wants_learnt = settings.fusion == "learnt" and settings.tower_weight is None
    both = hybrid_scores(candidates) if learnt and wants_learnt else None
    if learnt is None or both is None:
        scores = plain_scores(settings, candidates)
    else:
        scores = learnt.scores(both.bm25, both.cosine).astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    return Ranking(candidates, order, scores, is_learnt=both is not None)


def hybrid_scores(candidates: Candidates) -> HybridScores | None:
    """Return what a learnt fusion is fed with, None where a query has not both scores."""
    tower = next((name for name in (RERANK, DENSE) if name in candidates.stages), None)
    if tower is None or BM25 not in candidates.stages:
        return None
    scores = fill_missing(candidates.scores, candidates.floors)
    bm25, cosine = (scores[:, candidates.stages.index(name)] for name in (BM25, tower))
    return HybridScores(bm25, cosine)


def plain_scores(settings: SearchSettings, candidates: Candidates) -> Float64Array:
    """Return `(n,)`: one stage's own score where only one counts, else the fused one."""
    weights = stage_weights(settings, candidates.stages)
    scores = fill_missing(candidates.scores, candidates.floors)
    if np.count_nonzero(weights) == 1:
        only: Float64Array = scores[:, int(np.argmax(weights))]
        return only
    if settings.fusion == "rrf":
        return reciprocal_rank_fusion(candidates.scores, (weights > 0).astype(float))
    return weighted_sum(scores, weights)


def choose(ranking: Ranking, *, k: int) -> list[Winner]:
    """Return the best `k`, with what each stage thought of them."""
    candidates, best = ranking.candidates, ranking.order[:k]
    if not len(best):
        return []
    by_stage = ranks(candidates.scores)[best].tolist()
    scores, totals = candidates.scores[best].tolist(), ranking.scores[best].tolist()
    winners = []
    for place, row in enumerate(best.tolist()):
        stages = {
            name: Stage(score, rank)
            for name, score, rank in zip(
                candidates.stages, scores[place], by_stage[place], strict=True
            )
            if score == score  # not NaN
        }
        winners.append(Winner(place + 1, candidates.point_ids[row], totals[place], stages))
    return winners


def stage_weights(settings: SearchSettings, stages: Sequence[str]) -> Float64Array:
    """Return `(m,)`: 1 for a lexical stage, `tower_weight` for the tower's.

    Where rerank ran, it alone speaks for the tower; else its legs share the weight.
    """
    lexical = np.array([name in LEXICAL for name in stages], dtype=bool)
    tower = ~lexical
    if RERANK in stages:
        tower = np.array([name == RERANK for name in stages])
    worth = TOWER_WEIGHT if settings.tower_weight is None else settings.tower_weight
    weights: Float64Array = lexical + worth * tower / max(1, tower.sum())
    return weights
