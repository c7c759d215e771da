"""BM25 over terms that an analyzer gives: parameters, mean length, an exact index in memory.

A document's weights saturate term frequency; the IDF comes from the collection, so that
score = sum over query terms of idf(t) * weight(t, d). The engine scores its `bm25` vectors alike.
A title is a field of its own (BM25F: Robertson and Zaragoza, "The Probabilistic Relevance
Framework", 2009, section 3.6), which counts by the share that a term is of it.
"""

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.language import ENGLISH
from two_tower.models.progress import progress
from two_tower.models.text.names import exact_names, name_term, title_names
from two_tower.models.vectors import Float64Array, FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SEARCH_BLOCK = 256


class Analyzer(Protocol):
    """What turns text into terms; the engine's own is `retriever.collection.bm25_vectors`."""

    @property
    def language(self) -> str:
        """The language whose stop words and stems it knows, as in `Bm25Config.language`."""
        ...

    def term_counts(self, text: str) -> Mapping[int, int]:
        """Return term id -> how often the term occurs in the text."""
        ...


@configuration("bm25")
class Bm25Config:
    """BM25 parameters; a collection's metadata records the ones it was loaded with.

    k and b are the values tuned for short passages (Lin et al., Anserini: k1=0.9, b=0.4).

    Attributes:
        avg_len: mean number of terms of a passage.
        k: how slowly repeated terms saturate.
        b: how much longer passages count less.
        language: of stop words and stems; or what `models.language` has.
        title_weight: how many times a term counts that is all of a title, beside its places in
            title and text; one of a longer title counts by its share. 0, as in collections of
            earlier versions, reads titles as text, and no exact names.
        normalization: what texts and queries become before they are cut into terms, so that
            "résumé", ligatures and full-width letters match however they are composed; `none` is
            that of collections of earlier versions.
    """

    avg_len: float = Field(gt=0)
    k: float = Field(default=0.9, ge=0)
    b: float = Field(default=0.4, ge=0, le=1)
    language: str = ENGLISH
    title_weight: float = Field(default=20.0, ge=0)
    normalization: Literal["nfkc", "none"] = "nfkc"

    def normalized(self, text: str) -> str:
        """Return a text in the form that its terms are taken from."""
        is_same = self.normalization == "none" or text.isascii()
        return text if is_same else unicodedata.normalize("NFKC", text)

    def name_terms(self, query: str) -> list[int]:
        """Return the terms of the exact names in a query."""
        if not self.title_weight:
            return []
        return [name_term(name) for name in sorted(exact_names(self.normalized(query)))]

    def norm(self, length: float) -> float:
        """Return what divides the counts of a text of so many terms: 1 at the mean length."""
        return 1.0 - self.b + self.b * length / self.avg_len

    def with_title(
        self, counts: Mapping[int, float], title: str, analyzer: Analyzer
    ) -> Mapping[int, float]:
        """Return the term counts of a content, with what its title and the names in it add.

        A name that is whole in the title counts as a word does that stands once in a text of mean
        length.
        """
        if not title or not self.title_weight:
            return counts
        norm = self.norm(sum(counts.values()))
        words = analyzer.term_counts(title)
        unit = self.title_weight * norm / max(1, sum(words.values()))
        raised = dict(counts)
        for term, count in words.items():
            raised[term] = raised.get(term, 0.0) + unit * count
        return raised | {name_term(name): norm for name in title_names(self.normalized(title))}


def average_length(texts: Iterable[str], analyzer: Analyzer) -> float:
    """Return the mean number of terms per text, repetitions included (at least 1.0)."""
    terms = count = 0
    for text in texts:
        terms += sum(analyzer.term_counts(text).values())
        count += 1
    return max(1.0, terms / count) if count else 1.0


def inverse_frequency(count: int, holding: IntArray) -> Float64Array:
    """Return (terms,) BM25's inverse document frequencies: ln(1 + (N - n + 0.5) / (n + 0.5)).

    N is the `count` of texts, n how many of them hold a term.
    """
    result: Float64Array = np.log1p((count - holding + 0.5) / (holding + 0.5))
    return result


class Ranked(NamedTuple):
    """The best passages of n queries, best first.

    Attributes:
        rows: (n, k) int64 passage rows, -1 where there are fewer than k.
        scores: (n, k) float32, 0 there.
    """

    rows: IntArray
    scores: FloatArray


class Bm25Index:
    """Exact BM25 over passages in memory, scored as the engine scores its `bm25` leg.

    score(q, d) = sum over t in q of idf(t) tf (k + 1) / (tf + k (1 - b + b |d| / avg_len))
    (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009).
    """

    def __init__(
        self,
        texts: Sequence[str],
        analyzer: Analyzer,
        config: Bm25Config | None = None,
        *,
        titles: Sequence[str] = (),
    ) -> None:
        """Index all passages.

        Args:
            texts: `Passage.content` of each.
            titles: of each, in the same order; by default none has one.
            analyzer: gives their terms, and those of queries.
            config: the parameters; by default the usual ones and the texts' own mean length.
        """
        from scipy.sparse import csr_matrix  # takes long, and no search needs it

        self._analyzer = analyzer
        shown = progress(texts, label="terms")
        counts: list[Mapping[int, float]] = [analyzer.term_counts(text) for text in shown]
        lengths = np.array([sum(terms.values()) for terms in counts], np.float64)
        mean_length = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
        self.config = config or Bm25Config(avg_len=mean_length, language=analyzer.language)
        if titles:
            pairs = zip(counts, titles, strict=True)
            counts = [self.config.with_title(each, title, analyzer) for each, title in pairs]
        terms, offsets = _end_to_end(counts)
        self._terms, columns = np.unique(terms, return_inverse=True)
        flat = chain.from_iterable(each.values() for each in counts)
        tf = np.fromiter(flat, np.float64, count=len(terms))
        k, b, avg_len = self.config.k, self.config.b, self.config.avg_len
        norms = np.repeat(k * (1 - b + b * lengths / avg_len), np.diff(offsets))
        weights = (tf * (k + 1) / (tf + norms)).astype(np.float32)  # as the engine stores them
        shape = (len(texts), len(self._terms))
        matrix = csr_matrix((weights.astype(np.float64), columns, offsets), shape=shape)
        passages_with_term = np.bincount(columns, minlength=len(self._terms))
        idf = inverse_frequency(len(texts), passages_with_term)
        self._passages = matrix.multiply(idf[None, :]).tocsr()
        self._postings = self._passages.T.tocsr()

    def __len__(self) -> int:
        return int(self._passages.shape[0])

    def search(self, queries: Sequence[str], k: int) -> Ranked:
        """Return the `k` best passages that share a term with each query; ties by row."""
        best_rows = np.full((len(queries), k), -1, dtype=np.int64)
        best_scores = np.zeros((len(queries), k), dtype=np.float32)
        terms = self._query_matrix(queries)
        for start in progress(range(0, len(queries), SEARCH_BLOCK), label="BM25"):
            scores = (terms[start : start + SEARCH_BLOCK] @ self._postings).tocsr()
            for i in range(scores.shape[0]):
                hits = slice(scores.indptr[i], scores.indptr[i + 1])
                best = _best(scores.indices[hits], scores.data[hits], k)
                best_rows[start + i, : len(best)] = scores.indices[hits][best]
                best_scores[start + i, : len(best)] = scores.data[hits][best]
        return Ranked(best_rows, best_scores)

    def scores(self, queries: Sequence[str], rows: IntArray) -> FloatArray:
        """Return (n, k) float32: the score of each query for its passages `rows` (n, k).

        A row of -1 scores 0.
        """
        queries_of_rows = np.repeat(np.arange(len(queries)), rows.shape[1])
        left = self._query_matrix(queries)[queries_of_rows]  # (n * k, terms)
        right = self._passages[np.maximum(rows, 0).ravel()]
        flat = np.asarray(left.multiply(right).sum(axis=1)).reshape(rows.shape)
        return np.where(rows >= 0, flat, 0.0).astype(np.float32)

    def _query_terms(self, query: str) -> Sequence[int]:
        return [*self._analyzer.term_counts(query), *self.config.name_terms(query)]

    def _query_matrix(self, queries: Sequence[str]) -> "csr_matrix":
        """Return (n, terms) sparse, 1 for each query term that some passage has."""
        from scipy.sparse import csr_matrix

        terms, offsets = _end_to_end([self._query_terms(text) for text in queries])
        columns = np.searchsorted(self._terms, terms)
        known = columns < len(self._terms)
        known[known] = self._terms[columns[known]] == terms[known]
        offsets = np.concatenate([[0], np.cumsum(known)])[offsets]
        columns = columns[known]
        shape = (len(queries), len(self._terms))
        return csr_matrix((np.ones(len(columns)), columns, offsets), shape=shape)


def _end_to_end(counts: Sequence[Collection[int]]) -> tuple[IntArray, IntArray]:
    """Return the terms (total,) of n texts, and where each text's begin and end (n + 1,)."""
    offsets = np.cumsum([0, *map(len, counts)])
    return np.fromiter(chain.from_iterable(counts), np.int64, count=int(offsets[-1])), offsets


def _best(rows: IntArray, scores: Float64Array, k: int) -> IntArray:
    """Return where the `k` best of one query's hits are, best first, ties by row."""
    candidates = np.arange(len(scores))
    if len(scores) > k:
        worst = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= worst)
    best: IntArray = candidates[np.lexsort((rows[candidates], -scores[candidates]))][:k]
    return best
