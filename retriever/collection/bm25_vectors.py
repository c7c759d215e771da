"""The engine's own BM25 analyzer: terms of a text, and sparse vectors of term weights.

It folds case, drops stop words and stems (Snowball), for Edge and server alike; texts are in NFKC
before that, as the towers' tokenizer has them. The inverse document frequency is the engine's part
(`Modifier.IDF`).
"""

from collections.abc import Sequence

import qdrant_edge
from qdrant_client import models as qm

from two_tower.models.errors import of_panic
from two_tower.models.text.bm25 import Analyzer, Bm25Config
from two_tower.retriever.errors import EngineError

ANALYZER = "the engine's analyzer"

# With b=0 a term's weight is tf (k + 1) / (tf + k); so large a k keeps all of tf's digits in it.
COUNTING_K = 2.0**20


class EngineAnalyzer:
    """Text to terms, as the engine's `bm25` vectors have them: a `models.text.bm25.Analyzer`."""

    def __init__(self, language: str = "english") -> None:
        self.language = language
        self._config = Bm25Config(avg_len=1.0, k=COUNTING_K, b=0.0, language=language)
        self._model = _engine_model(self._config)

    def term_counts(self, text: str) -> dict[int, int]:
        """Return term id -> how often the term occurs, in the order of the engine's vectors."""
        try:
            vector = self._model.embed_document(self._config.normalized(text))
        except BaseException as error:
            raise of_panic(error, EngineError, ANALYZER) from None
        return {
            term: round(weight * COUNTING_K / (COUNTING_K + 1.0 - weight))
            for term, weight in zip(vector.indices, vector.values, strict=True)
        }


class Bm25Encoder:
    """Turns text into BM25 sparse vectors."""

    def __init__(self, config: Bm25Config) -> None:
        self.config = config
        self._model = _engine_model(config)

    def encode_passages(self, texts: Sequence[str]) -> list[qdrant_edge.SparseVector]:
        """Return one sparse vector of saturated term frequencies per text, as the engine has it."""
        try:
            return [self._model.embed_document(self.config.normalized(text)) for text in texts]
        except BaseException as error:
            raise of_panic(error, EngineError, ANALYZER) from None

    def encode_expanded(
        self, texts: Sequence[str], expansions: Sequence[Sequence[str]], *, weight: float
    ) -> list[qdrant_edge.SparseVector]:
        """Return the same for texts with queries beside them, whose terms count `weight` times."""
        analyzer, config = EngineAnalyzer(self.config.language), self.config
        vectors = []
        for text, queries in zip(texts, expansions, strict=True):
            counts = expanded_counts(analyzer, text, queries, weight=weight)
            norm = config.k * (1 - config.b + config.b * sum(counts.values()) / config.avg_len)
            weights = [tf * (config.k + 1) / (tf + norm) for tf in counts.values()]
            vectors.append(qdrant_edge.SparseVector(list(counts), weights))
        return vectors

    def encode_query(self, text: str) -> qm.SparseVector:
        """Return the query's sparse vector: weight 1 for each of its terms."""
        if not text.isascii():
            text = self.config.normalized(text)
        try:
            vector = self._model.embed_query(text)
        except BaseException as error:
            raise of_panic(error, EngineError, ANALYZER) from None
        # Valid as it comes from the engine; checking it again would double the time.
        return qm.SparseVector.model_construct(
            indices=list(vector.indices), values=list(vector.values)
        )


def expanded_counts(
    analyzer: Analyzer, text: str, queries: Sequence[str], *, weight: float
) -> dict[int, float]:
    """Return term id -> how often the term occurs; in a query it counts `weight` times."""
    counts: dict[int, float] = dict(analyzer.term_counts(text))
    for query in queries:
        for term, count in analyzer.term_counts(query).items():
            counts[term] = counts.get(term, 0.0) + weight * count
    return counts


def _engine_model(config: Bm25Config) -> qdrant_edge.Bm25:
    return qdrant_edge.Bm25(
        qdrant_edge.Bm25Config(
            k=config.k, b=config.b, avg_len=config.avg_len, language=config.language
        )
    )
