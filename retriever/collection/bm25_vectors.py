"""The engine's own BM25 analyzer: terms of a text, and sparse vectors of term weights.

It folds case, drops stop words and stems (Snowball), for Edge and server alike; texts are in NFKC
before that, as the towers' tokenizer has them. The inverse document frequency is the engine's part
(`Modifier.IDF`).
"""

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import qdrant_edge

from two_tower.models.config import SHORT
from two_tower.models.data import Passage
from two_tower.models.errors import ConfigError, of_panic
from two_tower.models.language import ENGLISH, NONE, PIECES
from two_tower.models.text.bm25 import Analyzer, Bm25Config
from two_tower.models.text.pieces import PieceAnalyzer
from two_tower.retriever.collection.options import ExpansionOptions
from two_tower.retriever.engine.wire import SparseVector
from two_tower.retriever.errors import EngineError

ANALYZER = "the engine's analyzer"

LANGUAGES = (
    *("arabic", "azerbaijani", "basque", "bengali", "catalan", "danish", "dutch", ENGLISH),
    *("finnish", "french", "german", "greek", "hebrew", "hinglish", "hungarian", "indonesian"),
    *("italian", "kazakh", "nepali", "norwegian", "portuguese", "romanian", "russian", "slovene"),
    *("spanish", "swedish", "tajik", "turkish"),
)
"""Those that the engine has stop words or stems of, and that put spaces between words."""

# With b=0 a term's weight is tf (k + 1) / (tf + k); so large a k keeps all of tf's digits in it.
COUNTING_K = 2.0**20


class EngineAnalyzer:
    """Text to terms, as the engine's `bm25` vectors have them: a `models.text.bm25.Analyzer`."""

    def __init__(self, language: str = ENGLISH) -> None:
        self.language = check_language(language)
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

    def __init__(self, config: Bm25Config, analyzer: Analyzer | None = None) -> None:
        """Take the engine's analyzer of the language, or `analyzer` where it has none."""
        self.config = config
        self._model = _engine_model(config)
        self._has_words = analyzer is None or isinstance(analyzer, EngineAnalyzer)
        self.analyzer = analyzer or EngineAnalyzer(config.language)

    @classmethod
    def of(cls, bm25: Mapping[str, Any], bundle: object) -> "Bm25Encoder":
        """Return the encoder of a collection.

        Args:
            bm25: the parameters, as its metadata has them.
            bundle: that it was loaded with; its pieces are the terms where those are asked for.

        Raises:
            ConfigError: they are, and it has none.
        """
        config = Bm25Config(**bm25)
        return cls(config, analyzer_of(config.language, bundle))

    def encode_passages(
        self, passages: Sequence[Passage], *, expansion: ExpansionOptions | None = None
    ) -> list[qdrant_edge.SparseVector]:
        """Return one sparse vector of term weights per passage.

        `expansion` says how many of the queries beside a text are read, and how much.
        """
        if not self._has_words or any(
            p.expansion or (p.title and self.config.title_weight) for p in passages
        ):
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
    ) -> SparseVector:
        """Return the query's sparse vector: weight 1 for each of its terms and exact names.

        `weights` are of terms that weigh otherwise, and of further ones.
        """
        if not text.isascii():
            text = self.config.normalized(text)
        if not self._has_words:
            terms = [*self.analyzer.term_counts(text), *self.config.name_terms(text)]
            ones = dict.fromkeys(terms, 1.0) | dict(weights)
            return SparseVector(list(ones), list(ones.values()))
        try:
            vector = self._model.embed_query(text)
        except BaseException as error:
            raise of_panic(error, EngineError, ANALYZER) from None
        has_marks = not text.replace(" ", "").isalnum()  # as every name has one
        names = self.config.name_terms(text) if has_marks else []
        indices, values = [*vector.indices, *names], [*vector.values, *[1.0] * len(names)]
        if weights:
            weighted = dict(zip(indices, values, strict=True)) | dict(weights)
            indices, values = list(weighted), list(weighted.values())
        return SparseVector(indices, values)


def expanded_counts(
    analyzer: Analyzer, text: str, queries: Sequence[str], *, weight: float
) -> dict[int, float]:
    """Return term id -> how often the term occurs; in a query it counts `weight` times."""
    counts: dict[int, float] = dict(analyzer.term_counts(text))
    for query in queries:
        for term, count in analyzer.term_counts(query).items():
            counts[term] = counts.get(term, 0.0) + weight * count
    return counts


def check_language(language: str) -> str:
    """Return what can stand in the place of a language.

    Raises:
        ConfigError: the engine's analyzer does not have it.
    """
    known = [*LANGUAGES, NONE, PIECES]
    if language not in known:
        nearest = difflib.get_close_matches(language.lower(), known, n=1, cutoff=0.4)
        advice = f"did you mean {nearest[0]}? " if nearest else ""
        raise ConfigError(
            f"language is {SHORT.repr(language)}; {advice}expected one of {', '.join(LANGUAGES)}; "
            f"{NONE} for words as they stand, {PIECES} for texts without spaces"
        )
    return language


def analyzer_of(language: str, bundle: object = None) -> Analyzer:
    """Return what makes terms of texts in a language.

    Args:
        language: see `check_language`.
        bundle: whose pieces are the terms where those are asked for.

    Raises:
        ConfigError: they are, and it has none.
    """
    if language != PIECES:
        return EngineAnalyzer(language)
    tokenizer = getattr(bundle, "row_tokenizer", None)
    if tokenizer is None:
        raise ConfigError(
            f"the language is {PIECES}, those of a bundle, and there is none; add --bundle BUNDLE, "
            f"or prepare DATA with --language {NONE}"
        )
    return PieceAnalyzer(tokenizer)


def words_or_pieces(language: str, bundle: object = None) -> Analyzer:
    """Return what `analyzer_of` does; words for pieces where there is no bundle."""
    return (
        EngineAnalyzer(NONE) if language == PIECES and not bundle else analyzer_of(language, bundle)
    )


def _engine_model(config: Bm25Config) -> qdrant_edge.Bm25:
    words: dict[str, Any] = {"language": config.language}
    if config.language in (NONE, PIECES):
        words = {
            "stopwords": qdrant_edge.StopwordsSet(),
            "stemmer": qdrant_edge.DisabledStemmer(),
        }
    made = qdrant_edge.Bm25Config(k=config.k, b=config.b, avg_len=config.avg_len, **words)
    return qdrant_edge.Bm25(made)
