"""Queries with a known answer and their candidates: judged ones, or cut from the passages."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from two_tower.models.data import Passage, Qrel, Query
from two_tower.models.language import word_spans
from two_tower.models.progress import progress
from two_tower.models.text.bm25 import inverse_frequency
from two_tower.models.vectors import BoolArray, Float64Array, IntArray
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.schema import BM25, DENSE
from two_tower.retriever.records import Hit
from two_tower.retriever.search.fusion import RERANK
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings

DEPTH = 200
"""Candidates of a query, and of each leg."""

BOTH_LEGS = SearchSettings(legs={DENSE: DEPTH, BM25: DEPTH}, cross=False, late=False)

SEARCHED_AT_ONCE = 50

SCANNED = 20_000
"""Passages are drawn from so many, which also tell how rare a word is."""

SHORTEST_WORDS = 16

SPAN_WORDS = (4, 12)


class Examples(NamedTuple):
    """The candidates of n queries, m each; a place without a candidate has -inf for BM25.

    Attributes:
        bm25: (n, m) float64, what the engine scores by words.
        cosine: (n, m) float64, of the query tower.
        relevant: (n, m), which candidates are answers.
    """

    bm25: Float64Array
    cosine: Float64Array
    relevant: BoolArray

    def take(self, rows: IntArray) -> "Examples":
        """Return the queries at `rows`."""
        return Examples(self.bm25[rows], self.cosine[rows], self.relevant[rows])


class Candidate(NamedTuple):
    """One candidate of a query."""

    bm25: float
    cosine: float
    is_answer: bool


def judged_examples(
    retriever: Retriever, queries: Sequence[Query], qrels: Sequence[Qrel]
) -> Examples:
    """Return what both legs find for judged queries."""
    answers = {(qrel.query_id, qrel.passage_id) for qrel in qrels if qrel.relevance > 0}
    found = _search(retriever, [query.text for query in queries])
    return _aligned(
        [
            [Candidate(bm25, cosine, (q.query_id, id_) in answers) for id_, bm25, cosine in each]
            for q, each in zip(queries, found, strict=True)
        ]
    )


def cut_examples(retriever: Retriever, *, count: int, seed: int) -> Examples:
    """Return what both legs find for runs of words that were cut out of passages.

    Each run is the query, and what is left of its passage the answer, so that neither leg is
    helped by words that stand in both (the inverse cloze task: Lee, Chang and Toutanova, "Latent
    Retrieval for Weakly Supervised Open Domain Question Answering", ACL 2019).

    Args:
        retriever: its collection gives the passages, its bundle reads what is left of them.
        count: at most so many queries; passages of fewer than 16 words give none.
        seed: of the draw.

    Raises:
        ConfigError: the model that reads the passages is not installed.
    """
    passages = scanned_passages(retriever)
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    rests: list[Passage] = []
    for row in rng.permutation(len(passages)).tolist():
        text = " ".join(passages[row].text.split())
        words = word_spans(text)
        if len(words) >= SHORTEST_WORDS and len(texts) < count:
            size = int(rng.integers(SPAN_WORDS[0], min(SPAN_WORDS[1], len(words) // 3) + 1))
            start = int(rng.integers(len(words) - size + 1))
            first, last = words[start][0], words[start + size - 1][1]
            texts.append(text[first:last])
            left = f"{text[:first].rstrip()} {text[last:].lstrip()}".strip()
            rests.append(passages[row]._replace(text=left))
    found = _search(retriever, texts)
    bm25 = _bm25_of_pairs(retriever, passages, texts, rests)
    queries = retriever.bundle.encode_queries(texts)
    read = retriever.bundle.encode_passages([rest.content for rest in rests])
    cosine = np.einsum("ij,ij->i", queries, read)
    lists = []
    for rest, each, words_score, tower_score in zip(
        rests, found, bm25, cosine.tolist(), strict=True
    ):
        others = [Candidate(b, c, False) for id_, b, c in each if id_ != rest.passage_id]
        lists.append([Candidate(words_score, tower_score, True), *others])
    return _aligned(lists)


def scanned_passages(retriever: Retriever) -> list[Passage]:
    """Return the first 20,000 passages of the collection."""
    scanned = islice(retriever.passages(), SCANNED)
    total = min(SCANNED, retriever.size)
    return list(progress(scanned, label="Reading passages", total=total))


def _search(retriever: Retriever, texts: Sequence[str]) -> list[list[tuple[str, float, float]]]:
    """Return passage id, BM25 and cosine of each query's candidates."""
    both = retriever.with_settings(BOTH_LEGS)
    k = min(DEPTH, retriever.size)
    starts = range(0, len(texts), SEARCHED_AT_ONCE)
    return [
        _scores(hits)
        for start in progress(starts, label="Searching")
        for hits in both.search_many(texts[start : start + SEARCHED_AT_ONCE], k=k)
    ]


def _scores(hits: Sequence[Hit]) -> list[tuple[str, float, float]]:
    """Return both scores; one that is missing is as good as the least of a full list, or 0.

    A cosine is missing where passages of equal BM25 scores end the list that rerank reads.
    """
    bm25 = [hit.stages[BM25].score for hit in hits if BM25 in hit.stages]
    cosines = [hit.stages[RERANK].score for hit in hits if RERANK in hit.stages]
    words, tower = min(bm25) if len(bm25) >= DEPTH else 0.0, min(cosines, default=0.0)
    return [
        (
            hit.passage_id,
            hit.stages[BM25].score if BM25 in hit.stages else words,
            hit.stages[RERANK].score if RERANK in hit.stages else tower,
        )
        for hit in hits
    ]


def _bm25_of_pairs(
    retriever: Retriever,
    passages: Sequence[Passage],
    texts: Sequence[str],
    rests: Sequence[Passage],
) -> list[float]:
    """Return the BM25 score of each query for its own passage without the query."""
    encoder = Bm25Encoder.of(retriever.metadata.bm25, retriever.bundle)
    holding: Counter[int] = Counter()
    for vector in encoder.encode_passages(passages):
        holding.update(vector.indices)
    scores = []
    for text, vector in zip(texts, encoder.encode_passages(rests), strict=True):
        weights = dict(zip(vector.indices, vector.values, strict=True))
        terms = encoder.encode_query(text).indices
        idf = inverse_frequency(len(passages), np.array([holding[term] for term in terms]))
        each = zip(idf.tolist(), terms, strict=True)
        scores.append(sum(value * weights.get(term, 0.0) for value, term in each))
    return scores


def _aligned(lists: Sequence[Sequence[Candidate]]) -> Examples:
    shape = len(lists), max(map(len, lists), default=0)
    bm25, cosine = np.full(shape, -np.inf), np.zeros(shape)
    relevant = np.zeros(shape, dtype=bool)
    for row, candidates in enumerate(lists):
        for column, candidate in enumerate(candidates):
            bm25[row, column], cosine[row, column], relevant[row, column] = candidate
    return Examples(bm25, cosine, relevant)
