"""Chances for one collection, learnt from its judged queries.

That a hit answers is learnt from the judgements of the first 50 candidates, each as important as
the inverse of its rank: people act on the first ones. That anything answers
is learnt from two kinds of queries: the judged ones, which have an answer, and made ones, which
have none: 4 to 12 words that were each drawn from another passage, and words of random letters.
Each kind has half of the weight.
"""

import math
import string
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from two_tower.models.bundle.fusion import FEWEST_QUERIES, calibrated
from two_tower.models.data import Qrel, Query
from two_tower.models.progress import progress
from two_tower.models.vectors import BoolArray, Float64Array, IntArray
from two_tower.retriever.calibration.examples import SEARCHED_AT_ONCE, scanned_passages
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.schema import BM25
from two_tower.retriever.records import Hit
from two_tower.retriever.search.chances import (
    SIGNS,
    WEIGHED,
    AnswerableWeights,
    Chances,
    CollectionChances,
    query_signs,
)
from two_tower.retriever.search.fusion import CROSS, RERANK
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings

MOST_QUERIES = 1000

MIXED_QUERIES, LETTER_QUERIES = 200, 100

MIXED_WORDS, LETTER_WORDS, LETTERS = (4, 12), (1, 4), (3, 10)

UNLIKELY = 0.2

FOLDS = 5

SEED = 0

RIDGE = 1.0
"""Of the logistic regression, over signs of unit spread; the cost of log loss is summed."""

FARTHEST = -1e4
"""The worth of a place without a candidate."""


class Read(NamedTuple):
    """The first candidates of n queries, m places each, as one way to rank orders them.

    Attributes:
        worth: (n, m) float64, what they are ranked by before any calibration.
        relevant: (n, m), which of them are answers.
        signs: (n, 4) float64, see `query_signs`.
        weight: of the cross-scorer's logit in the worth.
    """

    worth: Float64Array
    relevant: BoolArray
    signs: Float64Array
    weight: float = 0.0

    def take(self, rows: IntArray) -> "Read":
        """Return the queries at `rows`."""
        return self._replace(
            worth=self.worth[rows], relevant=self.relevant[rows], signs=self.signs[rows]
        )


class Check(NamedTuple):
    """How far the chances hold, each query by the numbers that four fifths of the others give.

    Attributes:
        queries: judged ones.
        said: mean chance of their first hits.
        right: share of these that answer.
        doubted: share of the judged queries whose chance of any answer is below .2.
        refused: the same of made queries, which have none.
    """

    queries: int
    said: float
    right: float
    doubted: float
    refused: float


def store_chances(
    retriever: Retriever, queries: Sequence[Query], qrels: Sequence[Qrel]
) -> Check | None:
    """Learn the chances of a collection by the weights that are stored, and keep them with it.

    Args:
        retriever: of the collection.
        queries: judged ones; 1,000 at most are read.
        qrels: their judgements.

    Returns:
        None, and nothing is kept, where fewer than 30 queries have an answer among their first 50.
    """
    fresh = Retriever(
        retriever.engine, retriever.collection, retriever.bundle, settings=SearchSettings()
    )
    answers = {(qrel.query_id, qrel.passage_id) for qrel in qrels if qrel.relevance > 0}
    rng = np.random.default_rng(SEED)
    judged = [queries[row] for row in np.sort(rng.permutation(len(queries))[:MOST_QUERIES])]
    ways = read_ways(fresh, judged, made_queries(fresh, rng=rng), answers=answers)
    if ways[0].relevant.any(axis=1).sum() < FEWEST_QUERIES:
        return None
    hybrid, *crossed = [fitted(way, len(judged)) for way in ways]
    chances = CollectionChances(hybrid, *crossed)
    kept = {**fresh.metadata.fusion, "chances": asdict(chances)}
    fresh.engine.update_collection(fresh.collection, metadata={"fusion": kept})
    return check(ways[-1], len(judged))


def read_ways(
    retriever: Retriever,
    judged: Sequence[Query],
    made: Sequence[str],
    *,
    answers: set[tuple[str, str]],
) -> list[Read]:
    """Return what the hybrid reads and, where there is one, what the cross-scorer does."""
    everything = [*judged, *(Query("", text) for text in made)]
    terms = _term_counts(retriever, everything)
    plain = _search(retriever, everything, cross=False)
    ways = [_read(everything, plain, terms=terms, answers=answers)]
    final = retriever.fusion.final if retriever.fusion else None
    if final and retriever.bundle.has_cross_scorer:
        weight = final.cross / final.hybrid
        crossed = _search(retriever, everything, cross=True)
        ranked = [_by_worth(*pair, weight=weight) for pair in zip(plain, crossed, strict=True)]
        hits = [[hit for hit, _ in each] for each in ranked]
        read = _read(everything, hits, terms=terms, answers=answers)
        worth = _padded([[worth for _, worth in each] for each in ranked])
        ways.append(read._replace(worth=worth, weight=weight))
    return ways


def made_queries(retriever: Retriever, *, rng: np.random.Generator) -> list[str]:
    """Return queries that no passage answers."""
    passages = [words for p in scanned_passages(retriever) if (words := p.text.split())]
    made = []
    for _ in range(MIXED_QUERIES):
        texts = [passages[n] for n in rng.integers(len(passages), size=_between(rng, MIXED_WORDS))]
        made.append(" ".join(words[rng.integers(len(words))] for words in texts))
    letters = list(string.ascii_lowercase)
    for _ in range(LETTER_QUERIES):
        count = _between(rng, LETTER_WORDS)
        made.append(
            " ".join("".join(rng.choice(letters, rng.integers(3, 10))) for _ in range(count))
        )
    return made


def _between(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    low, high = limits
    return int(rng.integers(low, high + 1))


def fit_answerable(signs: Float64Array, has_answer: BoolArray) -> AnswerableWeights:
    """Return the logistic regression of `has_answer` (n,) on signs (n, 4), both kinds alike.

    Its penalty is that of signs over their spread, so that no unit counts more than another.
    """
    from scipy.optimize import minimize

    mean, spread = signs.mean(axis=0), signs.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    z = (signs - mean) / spread
    count = max(1, int(has_answer.sum()))
    weights = np.where(has_answer, 1.0, count / max(1, int((~has_answer).sum())))

    def loss(numbers: Float64Array) -> tuple[float, Float64Array]:
        logits = z @ numbers[1:] + numbers[0]
        errors = weights * (0.5 + 0.5 * np.tanh(logits / 2) - has_answer)
        value = weights @ (np.logaddexp(0.0, logits) - has_answer * logits)
        penalty = numbers[1:] @ numbers[1:] / 2 * RIDGE
        gradient = np.concatenate([[errors.sum()], errors @ z + RIDGE * numbers[1:]])
        return float(value + penalty), gradient

    found = minimize(loss, np.zeros(SIGNS + 1), jac=True, method="L-BFGS-B").x
    slopes = found[1:] / spread
    return AnswerableWeights(float(found[0] - slopes @ mean), *map(float, slopes))


def fitted(read: Read, judged: int) -> Chances:
    """Return the chances of one way to rank; the first `judged` queries are those with labels."""
    worth, relevant = without_gaps(read.worth[:judged]), read.relevant[:judged]
    importance = 1.0 / np.arange(1, worth.shape[1] + 1)
    hits = calibrated(worth, read.weight, relevant, importance=importance)
    return Chances(hits, fit_answerable(read.signs, np.arange(len(read.signs)) < judged))


def check(read: Read, judged: int) -> Check:
    """Return how far chances hold that were learnt from other queries."""
    size = len(read.worth)
    parts = [np.arange(size)[n::FOLDS] for n in range(FOLDS)]
    said, answerable = np.zeros(size), np.zeros(size)
    for part in parts:
        rest = np.setdiff1d(np.arange(size), part)
        chances = fitted(read.take(rest), int((rest < judged).sum()))
        worth = without_gaps(read.worth[part]) * chances.hits.hybrid
        said[part] = chances.hits.log_odds(worth)[:, 0]
        answerable[part] = chances.answerable.log_odds(read.signs[part])
    unlikely = answerable < math.log(UNLIKELY / (1 - UNLIKELY))
    return Check(
        queries=judged,
        said=float((0.5 + 0.5 * np.tanh(said[:judged] / 2)).mean()),
        right=float(read.relevant[:judged, 0].mean()),
        doubted=float(unlikely[:judged].mean()),
        refused=float(unlikely[judged:].mean()),
    )


def without_gaps(worth: Float64Array) -> Float64Array:
    """Return worths in which a place without a candidate is worth as little as the least."""
    return np.where(worth > FARTHEST, worth, worth[worth > FARTHEST].min(initial=0.0))


def _search(retriever: Retriever, queries: Sequence[Query], *, cross: bool) -> list[list[Hit]]:
    settings = replace(SearchSettings(), cross=cross)
    k = min(WEIGHED, retriever.size)
    texts = [query.text for query in queries]
    starts = range(0, len(texts), SEARCHED_AT_ONCE)
    return [
        hits
        for start in progress(starts, label="Cross-scoring" if cross else "Searching")
        for hits in retriever.search_many(
            texts[start : start + SEARCHED_AT_ONCE], k=k, settings=settings
        )
    ]


def _by_worth(
    plain: Sequence[Hit], crossed: Sequence[Hit], *, weight: float
) -> list[tuple[Hit, float]]:
    """Return what the cross-scorer read, best first, each with hybrid + weight * logit."""
    hybrid = {hit.passage_id: hit.score for hit in plain}
    return [
        (hit, hybrid[hit.passage_id] + weight * hit.stages[CROSS].score)
        for hit in crossed
        if CROSS in hit.stages and hit.passage_id in hybrid
    ]


def _term_counts(retriever: Retriever, queries: Sequence[Query]) -> list[int]:
    encoder = Bm25Encoder.of(retriever.metadata.bm25, retriever.bundle)
    return [len(encoder.encode_query(query.text).indices) for query in queries]


def _read(
    queries: Sequence[Query],
    hits: Sequence[Sequence[Hit]],
    *,
    terms: Sequence[int],
    answers: set[tuple[str, str]],
) -> Read:
    relevant = [
        [(query.query_id, hit.passage_id) in answers for hit in each]
        for query, each in zip(queries, hits, strict=True)
    ]
    signs = []
    for each, count in zip(hits, terms, strict=True):
        bm25, cosine = (
            np.array([hit.stages[s].score if s in hit.stages else np.nan for hit in each])
            for s in (BM25, RERANK)
        )
        logit = each[0].stages[CROSS].score if each and CROSS in each[0].stages else 0.0
        signs.append(query_signs(bm25, cosine, terms=count, logit=logit))
    worth = _padded([[hit.score for hit in each] for each in hits])
    return Read(worth, _padded(relevant, fill=0.0) > 0, np.stack(signs))


def _padded(rows: Sequence[Sequence[float]], *, fill: float = FARTHEST) -> Float64Array:
    """Return rows of one length, filled up at their ends."""
    result = np.full((len(rows), max(1, *map(len, rows))), fill)
    for place, row in enumerate(rows):
        result[place, : len(row)] = row
    return result
