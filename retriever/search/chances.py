"""The chance that a hit answers and that anything does, as calibrated for one collection.

    hit        = worth beside its rivals and beside `nothing` (`models.bundle.fusion.FinalWeights`)
    answerable = logistic(bias + cosine * c + bm25 * b / t + terms * log t + cross * l)

c and b are the best cosine and BM25 score among the candidates, t is the number of the query's
terms, and l the cross-scorer's logit of the first hit. A query about something else may find a hit
that stands far above its rivals; that it is about something else shows in these four numbers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from two_tower.models.bundle.fusion import FinalWeights, Finite
from two_tower.models.config import configuration, from_mapping
from two_tower.models.errors import ConfigError
from two_tower.models.vectors import AnyFloatArray, Float64Array
from two_tower.retriever.collection.schema import BM25
from two_tower.retriever.errors import CollectionMismatch
from two_tower.retriever.records import Hit, SearchResult
from two_tower.retriever.search.fusion import CROSS, Ranking, is_learnt
from two_tower.retriever.search.settings import SearchSettings

if TYPE_CHECKING:
    from two_tower.models.data import Dataset
    from two_tower.retriever.collection.schema import CollectionMetadata

CHANCE = "chance"

JUDGEMENTS = "judgements"
"""In what calibration keeps with a collection: which judgements it learnt from."""

WEIGHED = 50
"""The first so many candidates are each other's rivals; no chance is given to those behind."""

SIGNS = 4


@configuration()
class AnswerableWeights:
    """How the signs of a query become the log-odds that anything answers it.

    The odds are those of a stream of queries half of which have no answer here.
    """

    bias: Finite
    cosine: Finite
    bm25: Finite
    terms: Finite
    cross: Finite

    def log_odds(self, signs: AnyFloatArray) -> Float64Array:
        """Return (n,) of signs (n, 4) as `query_signs` makes them."""
        weights = np.array([self.cosine, self.bm25, self.terms, self.cross])
        result: Float64Array = signs @ weights + self.bias
        return result


@configuration()
class Chances:
    """The chances of one way to rank: the hybrid's, or the cross-scorer's behind it."""

    hits: FinalWeights
    answerable: AnswerableWeights


@configuration()
class CollectionChances:
    """What `retriever calibrate` learnt; `cross` is None without a cross-scorer."""

    hybrid: Chances
    cross: Chances | None = None


def judgements_of(dataset: "Dataset", split: str) -> str:
    """Return what stands for the judgements that a collection was calibrated on."""
    return f"{dataset.content_hash} {split}"


def collection_chances(metadata: "CollectionMetadata") -> CollectionChances | None:
    """Return the chances that were calibrated for a collection, if they were.

    Raises:
        CollectionMismatch: those in the metadata are broken.
    """
    stored = metadata.fusion.get("chances")
    if stored is None:
        return None
    try:
        return from_mapping(CollectionChances, stored)
    except (TypeError, ValueError, ConfigError) as error:
        raise CollectionMismatch(
            f"the chances that were calibrated for this collection are broken ({error}); run: "
            "retriever calibrate NAME DATA"
        ) from None


def query_signs(
    bm25: AnyFloatArray, cosine: AnyFloatArray, *, terms: float, logit: float = 0.0
) -> Float64Array:
    """Return (4,), what the first candidates of a query say about the query.

    Args:
        bm25: (m,) of the first `WEIGHED` candidates; NaN where BM25 did not find one.
        cosine: (m,) of the same; NaN where it is not known.
        terms: of the query.
        logit: the cross-scorer's of the first hit.
    """
    if not len(bm25):
        return np.zeros(SIGNS)
    best = [float(np.nan_to_num(scores, nan=-np.inf).max()) for scores in (cosine, bm25)]
    near, words = (score if np.isfinite(score) else 0.0 for score in best)
    size = max(1.0, terms)
    return np.array([near, words / size, np.log(size), logit])


def hit_log_odds(ranking: Ranking, weights: FinalWeights) -> Float64Array:
    """Return (n,) log-odds that the hits of a hybrid ranking answer; -inf behind the first 50."""
    first = ranking.order[:WEIGHED]
    result = np.full(len(ranking.scores), -np.inf)
    if len(first):
        worth = weights.worth(ranking.scores[first], np.zeros(len(first)))
        result[first] = weights.log_odds(worth)
    return result


def is_sure(ranking: Ranking, chances: CollectionChances, escalate: float) -> bool:
    """Say whether the first hit's chance is so high that no cross-scorer has to read."""
    best = float(hit_log_odds(ranking, chances.hybrid.hits).max(initial=-np.inf))
    return logistic(best) >= escalate


def require_chances(
    settings: SearchSettings, chances: CollectionChances | None, *, has_cross: bool
) -> None:
    """Refuse settings that want chances where nothing gives any.

    Raises:
        ConfigError: they do.
    """
    has_any = is_learnt(settings) and (chances is not None or (has_cross and settings.cross))
    if settings.at_least and not has_any:
        raise ConfigError(
            f"at_least is {settings.at_least:g}, but these scores are no chances; expected "
            "cross: true, the learnt fusion of both legs, and a bundle with a cross-scorer: "
            "models train --config fast, or retriever calibrate NAME DATA"
        )
    may_cross = has_cross and settings.cross and is_learnt(settings)
    if settings.escalate is not None and may_cross and chances is None:
        raise ConfigError(
            f"escalate is {settings.escalate:g}, but nothing says the chance of a first hit before "
            "the cross-scorer reads; run: retriever calibrate NAME DATA"
        )


def with_chances(ranking: Ranking, terms: float, chances: CollectionChances) -> Ranking:
    """Return the ranking with the chance of each hit and of the query, where fusion was learnt.

    Args:
        ranking: of a query, after the cross-scorer where one ran.
        terms: how many the query has.
        chances: of the collection.
    """
    if ranking.cosines is None:
        return ranking
    known, first = ranking.candidates, ranking.order[:WEIGHED]
    bm25 = known.scores[first, known.stages.index(BM25)]
    if CROSS in known.stages:
        if chances.cross is None:
            return ranking
        logit = float(known.scores[first[0], known.stages.index(CROSS)])
        signs = query_signs(bm25, ranking.cosines[first], terms=terms, logit=logit)
        answerable = chances.cross.answerable.log_odds(signs[None])[0]
        return ranking._replace(answerable=logistic(answerable))
    signs = query_signs(bm25, ranking.cosines[first], terms=terms)
    log_odds = hit_log_odds(ranking, chances.hybrid.hits)
    shares = 0.5 + 0.5 * np.tanh(log_odds / 2)
    candidates = known._replace(
        stages=[*known.stages, CHANCE],
        scores=np.column_stack([known.scores, np.where(log_odds > -np.inf, shares, np.nan)]),
        floors=np.append(known.floors, np.nan),
    )
    answerable = chances.hybrid.answerable.log_odds(signs[None])[0]
    return ranking._replace(
        candidates=candidates, log_odds=log_odds, answerable=logistic(answerable)
    )


def hit_chance(hit: Hit, stages_run: Sequence[str]) -> float | None:
    """Return the chance that a hit answers, where the cross-scorer or a calibration says it."""
    if CROSS in stages_run:
        return logistic(hit.score)
    return hit.stages[CHANCE].score if CHANCE in hit.stages else None


def first_chance(result: SearchResult) -> float | None:
    """Return the chance that the first hit answers; None where there is none, or no hit."""
    return hit_chance(result.hits[0], result.stages_run) if result.hits else None


def logistic(log_odds: float) -> float:
    """Return the chance that log-odds stand for; they may be infinite."""
    return float(0.5 + 0.5 * np.tanh(log_odds / 2))
