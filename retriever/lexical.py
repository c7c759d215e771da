"""Lexical legs: BM25 as sparse vectors for the engine, and exact in-memory baselines.

The analyzer is Qdrant's own (`qdrant_edge.Bm25`: lower case, stop words, Snowball stemming), used
for Edge and server alike. A document's weights saturate term frequency; the IDF is applied by the
engine (`Modifier.IDF`), so that score = sum over query terms of idf(t) * weight(t, d).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import qdrant_edge
from qdrant_client import models as qm

from models.data import Passage


@dataclass(frozen=True)
class Bm25Config:
    """BM25 parameters; a collection's metadata records the ones it was loaded with.

    k and b are the values tuned for short passages (Lin et al., Anserini: k1=0.9, b=0.4).
    """

    avg_len: float
    k: float = 0.9
    b: float = 0.4
    language: str = "english"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


class Bm25Encoder:
    """Turns text into BM25 sparse vectors."""

    def __init__(self, config: Bm25Config) -> None:
        self.config = config
        self._model = qdrant_edge.Bm25(
            qdrant_edge.Bm25Config(
                k=config.k, b=config.b, avg_len=config.avg_len, language=config.language
            )
        )

    def encode_passages(self, texts: Sequence[str]) -> list[qm.SparseVector]:
        """Return one sparse vector of saturated term frequencies per text."""
        return [self._convert(self._model.embed_document(text)) for text in texts]

    def encode_query(self, text: str) -> qm.SparseVector:
        """Return the query's sparse vector: weight 1 for each of its terms."""
        return self._convert(self._model.embed_query(text))

    @staticmethod
    def _convert(vector: qdrant_edge.SparseVector) -> qm.SparseVector:
        return qm.SparseVector(indices=list(vector.indices), values=list(vector.values))


class TfidfIndex:
    """TF-IDF over passages in memory: scikit-learn, sublinear tf, English stop words, cosine."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._ids = [passage.passage_id for passage in passages]
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
        self._matrix = self._vectorizer.fit_transform([p.content for p in passages]).T.tocsr()

    def rank(self, query: str, *, k: int) -> list[str]:
        """Return the ids of the `k` best passages that share a term with the query."""
        scores = (self._vectorizer.transform([query]) @ self._matrix).toarray()[0]
        return _best(self._ids, scores, k)


class RankBm25Index:
    """BM25 by the rank-bm25 package (Okapi), over the same analyzed terms as the engine's leg.

    Exact and independent of the engine; it scores every passage in Python, so it is slow.
    """

    def __init__(self, passages: Sequence[Passage], config: Bm25Config) -> None:
        from rank_bm25 import BM25Okapi

        self._ids = [passage.passage_id for passage in passages]
        self._analyzer = Analyzer(config.language)
        corpus = [self._analyzer.terms(passage.content) for passage in passages]
        self._index = BM25Okapi(corpus, k1=config.k, b=config.b)

    def rank(self, query: str, *, k: int) -> list[str]:
        """Return the ids of the `k` best passages that share a term with the query."""
        return _best(self._ids, self._index.get_scores(self._analyzer.terms(query)), k)


class Analyzer:
    """Text to term ids by the engine's analyzer, with repetitions, in no particular order."""

    def __init__(self, language: str = "english") -> None:
        # With b=0 and k=1 a term's weight is 2tf/(tf+1), which gives tf back exactly.
        self._model = qdrant_edge.Bm25(
            qdrant_edge.Bm25Config(k=1.0, b=0.0, avg_len=1.0, language=language)
        )

    def terms(self, text: str) -> list[int]:
        """Return one id per term occurrence."""
        vector = self._model.embed_document(text)
        counts = (round(w / (2.0 - w)) for w in vector.values)
        return [i for i, tf in zip(vector.indices, counts, strict=True) for _ in range(tf)]


def average_length(texts: Iterable[str], *, language: str = "english") -> float:
    """Return the mean number of terms per text after analysis (at least 1.0)."""
    analyzer = Analyzer(language)
    terms = count = 0
    for text in texts:
        terms += len(analyzer.terms(text))
        count += 1
    return max(1.0, terms / count) if count else 1.0


def _best(ids: Sequence[str], scores: npt.NDArray[np.float64], k: int) -> list[str]:
    order = np.argsort(-scores, kind="stable")[:k]
    return [ids[row] for row in order if scores[row] > 0]
