"""The weight of the cosine for one collection, kept in its metadata.

How many points of BM25 a cosine is worth differs tenfold between corpora, and a wrong weight costs
more than the tower gains. Judged queries of the collection say it: the smallest weight that is
about as good for them as the best, or its geometric mean with the bundle's where that is as good,
for a hundred queries say little and the rule leans to BM25. Without them, two things that
are each wrong in their own way say it together: the weight that labels of another corpus taught
the bundle, and the one that queries cut from the passages ask for, which favour BM25. Their
geometric mean is taken: both are estimates of the same factor, and neither is trusted more. Where
it is more than the bundle's weight, that stays: a tower that learnt from cuts of the same texts
finds these too well.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from two_tower.models.bundle.fusion import (
    FEWEST_QUERIES,
    SMALLEST_SPREAD,
    TOWER_GRID,
    TOWER_WEIGHT,
    HybridWeights,
    about_as_good,
    cautious_weight,
    reciprocal_ranks,
)
from two_tower.models.data import Qrel, Query
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.progress import progress
from two_tower.models.vectors import Float64Array
from two_tower.retriever.calibration.examples import Examples, cut_examples, judged_examples
from two_tower.retriever.search.chances import JUDGEMENTS
from two_tower.retriever.search.retriever import Retriever

CUT_QUERIES = 400

FOLDS = 10

SEED = 0


@dataclass(frozen=True)
class Calibration:
    """What was learnt for a collection.

    Attributes:
        source: `judged` queries, or `cut` from its passages.
        queries: how many of them had an answer among their candidates.
        before: the bundle's weight, in points of BM25 for a cosine of 1.
        after: the new one.
        bm25_mrr: mean reciprocal rank of the answers by BM25 alone, over these queries.
        before_mrr: the same with the weight before.
        after_mrr: with the new one; of judged queries each with a weight that the others chose.
    """

    source: Literal["judged", "cut"]
    queries: int
    before: float
    after: float
    bm25_mrr: float
    before_mrr: float
    after_mrr: float


def calibrate(
    retriever: Retriever,
    queries: Sequence[Query] = (),
    qrels: Sequence[Qrel] = (),
    *,
    most: int = CUT_QUERIES,
) -> Calibration:
    """Learn the weight from judged queries, or where there are too few from the passages.

    Args:
        retriever: of the collection.
        queries: judged ones.
        qrels: their judgements.
        most: queries that are cut from the passages, at most.

    Raises:
        ConfigError: the model that reads the passages is not installed.
        DataError: too few passages that queries can be cut from.
    """
    if not retriever.metadata.has_tower:
        raise ConfigError(
            f"{retriever.collection} has BM25 alone: there is no cosine to weigh; load it with "
            "ingest load --bundle BUNDLE"
        )
    judged = _answered(judged_examples(retriever, queries, qrels)) if queries else None
    if judged is not None and len(judged.relevant) >= FEWEST_QUERIES:
        return _from_judged(judged, _weights_before(retriever))
    examples = _answered(cut_examples(retriever, count=most, seed=SEED))
    if len(examples.relevant) < FEWEST_QUERIES:
        judged_too = (
            f"{len(queries)} judged queries are too few ({FEWEST_QUERIES} expected), and "
            if queries
            else ""
        )
        raise DataError(
            f"{judged_too}{len(examples.relevant)} passages of {retriever.collection} are long "
            f"enough to cut a query from, expected {FEWEST_QUERIES} or more; give DATA with so "
            "many judged queries in a split, and name it with --split"
        )
    return _from_cuts(examples, _weights_before(retriever))


def _from_judged(examples: Examples, before: HybridWeights) -> Calibration:
    """Each query is ranked by the weight that the other nine tenths of them choose."""
    points = _in_points(before, examples)
    weight = _judged_weight(examples, points)
    order = np.random.default_rng(SEED).permutation(len(examples.relevant))
    ranks = np.zeros(len(order))
    for part in progress(np.array_split(order, FOLDS), label="Weighing"):
        others = examples.take(np.setdiff1d(order, part))
        ranks[part] = _ranks(examples.take(part), _judged_weight(others, points, default=weight))
    return _calibration("judged", examples, before=before, after=weight, ranks=ranks)


def _from_cuts(examples: Examples, before: HybridWeights) -> Calibration:
    """Lower the weight, or leave it: towers learn from such cuts, and are flattered by them."""
    points = _in_points(before, examples)
    weight = min(points, math.sqrt(points * _weight(examples)))
    ranks = _ranks(examples, weight)
    return _calibration("cut", examples, before=before, after=weight, ranks=ranks)


def _calibration(
    source: Literal["judged", "cut"],
    examples: Examples,
    *,
    before: HybridWeights,
    after: float,
    ranks: Float64Array,
) -> Calibration:
    points = _in_points(before, examples)
    return Calibration(
        source=source,
        queries=len(ranks),
        before=points,
        after=after,
        bm25_mrr=float(_ranks(examples, 0.0).mean()),
        before_mrr=float(_ranks(examples, points).mean()),
        after_mrr=float(ranks.mean()),
    )


def store(retriever: Retriever, calibration: Calibration, *, judgements: str = "") -> None:
    """Keep the weight in the collection's metadata; retrievers that are opened later use it.

    `judgements` says which they were, as `judgements_of` does, so that an evaluation knows them.
    """
    before = _weights_before(retriever)  # what it says about late interaction stays
    kept = {
        "hybrid": asdict(replace(before, tower=calibration.after, normalised=False)),
        "source": calibration.source,
        "queries": calibration.queries,
        JUDGEMENTS: judgements,
    }
    retriever.engine.update_collection(retriever.collection, metadata={"fusion": kept})


def forget(retriever: Retriever) -> None:
    """Go back to the weights of the bundle."""
    retriever.engine.update_collection(retriever.collection, metadata={"fusion": None})


def _weights_before(retriever: Retriever) -> HybridWeights:
    """Return those of the bundle: a second calibration starts where the first one did."""
    fusion = retriever.bundle.fusion
    return fusion.hybrid if fusion else HybridWeights(TOWER_WEIGHT)


def _in_points(weights: HybridWeights, examples: Examples) -> float:
    """Return the weight in points of BM25; a normalised one by the median spread of queries."""
    if not weights.normalised:
        return weights.tower
    ratios = [
        bm25[found].std() / max(float(cosine[found].std()), SMALLEST_SPREAD)
        for bm25, cosine, found in zip(
            examples.bm25, examples.cosine, np.isfinite(examples.bm25), strict=True
        )
    ]
    return weights.tower * float(np.median(ratios))


def _answered(examples: Examples) -> Examples:
    return examples.take(np.flatnonzero(examples.relevant.any(axis=1)))


def _weight(examples: Examples, *, default: float = TOWER_WEIGHT) -> float:
    weight = cautious_weight(examples.bm25, examples.cosine, examples.relevant, grid=TOWER_GRID)
    return default if weight is None else weight


def _judged_weight(examples: Examples, before: float, *, default: float = TOWER_WEIGHT) -> float:
    """Return the cautious weight, or its mean with the one before where that is about as good."""
    weight = _weight(examples, default=default)
    mean = math.sqrt(weight * before)
    grid = np.append(TOWER_GRID, mean)
    is_good = about_as_good(examples.bm25, examples.cosine, examples.relevant, grid=grid)
    return mean if is_good[-1] else weight


def _ranks(examples: Examples, weight: float) -> Float64Array:
    return reciprocal_ranks(examples.bm25 + weight * examples.cosine, examples.relevant)
