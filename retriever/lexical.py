"""Lexical baselines in memory: TF-IDF, and BM25 by an independent package."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from two_tower.models.data import Passage
from two_tower.models.text.bm25 import Analyzer, Bm25Config


class TfidfIndex:
    """TF-IDF over passages in memory: scikit-learn, sublinear tf, English stop words, cosine.

    Attributes:
        matrix: (terms, passages) sparse weights.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._ids = [passage.passage_id for passage in passages]
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
        self.matrix = self._vectorizer.fit_transform([p.content for p in passages]).T.tocsr()

    def rank(self, query: str, *, k: int) -> list[str]:
        """Return the ids of the `k` best passages that share a term with the query."""
        scores = (self._vectorizer.transform([query]) @ self.matrix).toarray()[0]
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


def _best(ids: Sequence[str], scores: npt.NDArray[np.float64], k: int) -> list[str]:
    order = np.argsort(-scores, kind="stable")[:k]
    return [ids[row] for row in order if scores[row] > 0]
