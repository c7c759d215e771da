"""The engine's own BM25 analyzer: terms of a text, and sparse vectors of term weights.

It folds case, drops stop words and stems (Snowball), for Edge and server alike; texts are in NFKC
before that, as the towers' tokenizer has them. The inverse document frequency is the engine's part
(`Modifier.IDF`).
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import qdrant_edge
from qdrant_client import models as qm

from two_tower.models.data import Passage
from two_tower.models.errors import of_panic
from two_tower.models.text.bm25 import Analyzer, Bm25Config
from two_tower.retriever.collection.options import ExpansionOptions
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
    """Turns text into BM25 sparse vectors.

    Attributes:
        config: the parameters.
        analyzer: text to terms.
    """

    def __init__(self, config: Bm25Config) -> None:
        self.config = config
        self._model = _engine_model(config)
        self.analyzer = EngineAnalyzer(config.language)

    def encode_passages(
        self, passages: Sequence[Passage], *, expansion: ExpansionOptions | None = None
    ) -> list[qdrant_edge.SparseVector]:
        """Return one sparse vector of term weights per passage.

        `expansion` says how many of the queries beside a text are read, and how much.
        """
        if any(p.expansion or (p.title and self.config.title_weight) for p in passages):
            return [self._fields_vector(each, expansion or ExpansionOptions()) for each in passages]
        return self.encode_texts([each.content for each in passages])

    def encode_texts(self, texts: Sequence[str]) -> list[qdrant_edge.SparseVector]:
        """Return one sparse vector of saturated term frequencies per text, as the engine has it."""
        try:
            return [self._model.embed_document(self.config.normalized(text)) for text in texts]
        except BaseException as error:
            raise of_panic(error, EngineError, ANALYZER) from None

    def _fields_vector(
        self, passage: Passage, expansion: ExpansionOptions
    ) -> qdrant_edge.SparseVector:
        queries, config = passage.expansion[: expansion.queries], self.config
        counts = expanded_counts(self.analyzer, passage.content, queries, weight=expansion.weight)
        norm = config.k * config.norm(sum(counts.values()))
        raised = config.with_title(counts, passage.title, self.analyzer)
        weights = [tf * (config.k + 1) / (tf + norm) for tf in raised.values()]
        return qdrant_edge.SparseVector(list(raised), weights)

    def encode_query(
        self, text: str, weights: Mapping[int, float] = MappingProxyType({})
    ) -> qm.SparseVector:
        """Return the query's sparse vector: weight 1 for each of its terms and exact names.

        `weights` are of terms that weigh otherwise, and of further ones.
        """
        if not text.isascii():
            text = self.config.normalized(text)
        try:
            vector = self._model.embed_query(text)
        except BaseException as error:
            raise of_panic(error, EngineError, ANALYZER) from None
        # Valid as it comes from the engine; checking it again would double the time.
        has_marks = not text.replace(" ", "").isalnum()  # as every name has one
        names = self.config.name_terms(text) if has_marks else []
        indices, values = [*vector.indices, *names], [*vector.values, *[1.0] * len(names)]
        if weights:
            weighted = dict(zip(indices, values, strict=True)) | dict(weights)
            indices, values = list(weighted), list(weighted.values())
        return qm.SparseVector.model_construct(indices=indices, values=values)


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
