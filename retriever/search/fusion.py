"""The scores that the stages give the candidates of a query, and the order they add up to.

    gather -> fuse -> reorder, where a cross-scorer reads the best

The learnt weights come from the bundle (`models.bundle.fusion`); without them a fixed weight or
reciprocal ranks decide.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from two_tower.models.bundle.fusion import TOWER_WEIGHT, FinalWeights, Fusion, HybridWeights
from two_tower.models.bundle.late import to_scores
from two_tower.models.config import from_mapping
from two_tower.models.errors import ConfigError
from two_tower.models.vectors import Float64Array, FloatArray, IntArray
from two_tower.retriever.collection.schema import BM25, DENSE, LATE
from two_tower.retriever.engine.wire import Request, Scored
from two_tower.retriever.errors import CollectionMismatch
from two_tower.retriever.search.settings import SearchSettings

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.bundle.no_tower import NoTower
    from two_tower.retriever.collection.schema import CollectionMetadata

RERANK, CROSS = "rerank", "cross"

LEXICAL = frozenset({"bm25", "tfidf"})

RRF_K = 60


def collection_fusion(
    metadata: "CollectionMetadata", bundle: "ModelBundle | NoTower"
) -> "Fusion | None":
    """Return the weights that a search uses.

    Raises:
        CollectionMismatch: those in the metadata are broken.
    """
    if not metadata.fusion:
        return bundle.fusion
    try:
        hybrid = from_mapping(HybridWeights, metadata.fusion["hybrid"])
        crossed = (metadata.fusion.get("chances") or {}).get("cross")
        final = from_mapping(FinalWeights, crossed["hits"]) if crossed else None
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise CollectionMismatch(
            f"the weights that were calibrated for this collection are broken ({error}); run: "
            "retriever calibrate NAME"
        ) from None
    brought = bundle.fusion or Fusion(hybrid)
    return replace(brought, hybrid=hybrid, final=brought.final and (final or brought.final))


class Candidates(NamedTuple):
    """The union of what the stages return for one query.

    Attributes:
        point_ids: `n` ids.
        stages: `m` stage names, the columns of `scores`.
        scores: `(n, m) float64`, NaN where a stage does not return the point.
        floors: `(m,) float64`, what a missing score counts as: the most it can be.
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
        cosines: `(n,)`, what a learnt fusion read beside BM25; None where none is used.
        answerable: the chance of the likeliest answer, or as calibrated for the collection; None
            where neither a cross-scorer read them nor a calibration says it.
        log_odds: `(n,)`, that each row answers; None where nothing says it.
    """

    candidates: Candidates
    order: IntArray
    scores: Float64Array
    cosines: Float64Array | None = None
    answerable: float | None = None
    log_odds: Float64Array | None = None


def gather(requests: Mapping[str, Request], answers: Sequence[Scored]) -> Candidates:
    """Line up the answers of one query's stages in one matrix."""
    seen = dict.fromkeys(chain.from_iterable(answer.ids for answer in answers))
    rows = dict(zip(seen, range(len(seen)), strict=True))  # in the order of first sight
    places = [list(map(rows.__getitem__, answer.ids)) for answer in answers]
    scores = np.full((len(rows), len(answers)), np.nan)
    for column, (place, answer) in enumerate(zip(places, answers, strict=True)):
        scores[place, column] = answer.scores
    stages = list(requests)
    if LATE in stages:  # the engine multiplies bytes
        late = stages.index(LATE)
        scores[:, late] = to_scores(scores[:, late], np.array(requests[LATE].query))
    if RERANK in stages and DENSE in stages:  # the dense leg scores by the full vectors itself
        rerank, dense = stages.index(RERANK), stages.index(DENSE)
        missing = np.isnan(scores[:, rerank])
        scores[missing, rerank] = scores[missing, dense]
    floors = np.zeros(len(stages))
    for column, (stage, request) in enumerate(requests.items()):
        known = scores[~np.isnan(scores[:, column]), column]
        # A full list leaves out lower scores than its last; a short BM25 list, what has no term.
        if len(known) and not (stage in LEXICAL and len(known) < request.limit):
            floors[column] = known.min()
    return Candidates(list(rows), stages, scores, floors)


def fuse(
    settings: SearchSettings, candidates: Candidates, *, learnt: "HybridWeights | None" = None
) -> Ranking:
    """Rank by what the scores of all stages add up to.

    Args:
        settings: which fusion.
        candidates: of one query.
        learnt: the weights that the bundle brings.
    """
    stages = candidates.stages
    scores = np.where(np.isnan(candidates.scores), candidates.floors, candidates.scores)
    tower = RERANK if RERANK in stages else DENSE
    has_both = BM25 in stages and tower in stages
    cosines = None
    if learnt and has_both and is_learnt(settings):
        cosines = scores[:, stages.index(tower)]
        late = scores[:, stages.index(LATE)] if LATE in stages else None
        total = learnt.scores(scores[:, stages.index(BM25)], cosines, late).astype(np.float64)
    else:
        total = fixed_fusion(settings, candidates, scores)
    return Ranking(candidates, np.argsort(-total, kind="stable"), total, cosines)


def is_learnt(settings: SearchSettings) -> bool:
    """Say whether the learnt weights, where there are any, put BM25 and the tower together."""
    has_tower = DENSE in settings.legs or settings.rerank
    is_asked = settings.fusion == "learnt" and settings.tower_weight is None
    return is_asked and BM25 in settings.legs and has_tower


def fixed_fusion(
    settings: SearchSettings, candidates: Candidates, scores: Float64Array
) -> Float64Array:
    """Return `(n,)` scores without anything learnt: one stage's own where only one counts.

    The weighted sum is in the stages' own units. A convex combination beats reciprocal ranks, and
    needs no normalisation per query once the weight suits the units: Bruch, Gai and Ingber, "An
    Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023.

    Args:
        settings: which fusion.
        candidates: of one query.
        scores: `(n, m)`, theirs without gaps.
    """
    weights = stage_weights(settings, candidates.stages)
    if np.count_nonzero(weights) == 1:
        own: Float64Array = scores[:, int(np.argmax(weights))]
        return own
    if settings.fusion == "rrf":
        return reciprocal_rank_fusion(candidates.scores, (weights > 0).astype(float))
    if settings.fusion == "dbsf":
        return distribution_based_fusion(candidates.scores, (weights > 0).astype(float))
    total: Float64Array = scores @ weights
    return total


def stage_weights(settings: SearchSettings, stages: Sequence[str]) -> Float64Array:
    """Return `(m,)`: 1 for a lexical stage, `tower_weight` for the tower's, 0 for `late`.

    Where rerank ran, it alone speaks for the tower; else its legs share the weight.
    """
    lexical = np.array([name in LEXICAL for name in stages], dtype=bool)
    tower = ~lexical & (np.array(stages) != LATE)
    if RERANK in stages:
        tower = np.array([name == RERANK for name in stages])
    worth = TOWER_WEIGHT if settings.tower_weight is None else settings.tower_weight
    weights: Float64Array = lexical + worth * tower / max(1, tower.sum())
    return weights


def reciprocal_rank_fusion(scores: Float64Array, weights: Float64Array) -> Float64Array:
    """Return sum over stages of weight / (60 + rank); a missing candidate adds nothing.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet", SIGIR 2009.
    """
    gains = np.where(np.isnan(scores), 0.0, weights / (RRF_K + stage_ranks(scores)))
    total: Float64Array = gains.sum(axis=1)
    return total


def distribution_based_fusion(scores: Float64Array, weights: Float64Array) -> Float64Array:
    """Return sum over stages of weight * (score - mean + 3 s) / (6 s), s the standard deviation.

    Mean and deviation are over what a stage returns for the query; a missing candidate adds
    nothing, and equal scores count .5. Mazzeschi, "Distribution-Based Score Fusion (DBSF), a new
    approach to Vector Search Ranking", 2023; Qdrant's `dbsf` is the same.
    """
    known = ~np.isnan(scores)
    counts = known.sum(axis=0)
    means = np.where(known, scores, 0.0).sum(axis=0) / np.maximum(counts, 1)
    differences = np.where(known, scores - means, 0.0)
    deviations = np.sqrt((differences**2).sum(axis=0) / np.maximum(counts - 1, 1))
    places = 0.5 + differences / np.where(deviations > 0, 6 * deviations, 1.0)
    total: Float64Array = np.where(known, weights * places, 0.0).sum(axis=1)
    return total


def stage_ranks(scores: Float64Array) -> IntArray:
    """Return each stage's ranks from 1, best first, ties in the order given; missing ones last."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=0, kind="stable")
    result = np.empty_like(order)
    np.put_along_axis(result, order, np.arange(1, len(scores) + 1)[:, None], axis=0)
    return result


def reorder(ranking: Ranking, logits: FloatArray, weights: FinalWeights) -> Ranking:
    """Rank the first candidates by the final score; the others stay as they are, behind those.

    A candidate that was not read is as far below the lowest that was as their hybrid scores are
    apart.

    Args:
        ranking: `n` candidates by their hybrid score.
        logits: `(m,)`, m <= n, the cross-scorer's of the first m.
        weights: of the hybrid score and the logit.
    """
    window, rest = ranking.order[: len(logits)], ranking.order[len(logits) :]
    worth = weights.worth(ranking.scores[window], logits.astype(np.float64))
    final = weights.log_odds(worth)
    scores = np.empty_like(ranking.scores)
    scores[window] = final
    behind = ranking.scores[window[-1]] - ranking.scores[rest]
    scores[rest] = final.min() - abs(weights.hybrid) * behind
    cross = np.full((len(scores), 1), np.nan)
    cross[window, 0] = logits
    known = ranking.candidates
    candidates = known._replace(
        stages=[*known.stages, CROSS],
        scores=np.hstack([known.scores, cross]),
        floors=np.append(known.floors, np.nan),
    )
    order = np.concatenate([window[np.argsort(-worth, kind="stable")], rest])
    answerable = float(0.5 + 0.5 * np.tanh(final.max() / 2))  # the logistic function
    return ranking._replace(
        candidates=candidates, order=order, scores=scores, answerable=answerable, log_odds=scores
    )


def likely_rows(ranking: Ranking, at_least: float) -> list[int]:
    """Return the rows of a ranking, best first, whose chance to answer is `at_least` so much.

    None does where the chance that anything answers is less, or where the query has no word that
    BM25 reads. Where the budget left no time for the cross-scorer, there may be no chances, and all
    stay.
    """
    rows: list[int] = ranking.order.tolist()
    if ranking.answerable is None or ranking.log_odds is None:
        return rows if BM25 in ranking.candidates.stages else []
    if ranking.answerable < at_least:
        return []
    least = math.log(at_least / (1 - at_least)) if at_least < 1 else math.inf
    return [row for row in rows if ranking.log_odds[row] >= least]


def point_ids(rankings: Sequence[Ranking], rows: Sequence[Iterable[int]]) -> set[str]:
    """Return the points that stand in some rows of each ranking."""
    pairs = zip(rankings, rows, strict=True)
    return {ranking.candidates.point_ids[row] for ranking, part in pairs for row in part}
