import math
from collections import Counter

import numpy as np
import pytest
from rank_bm25 import BM25Okapi

from models.data import Passage
from retriever.lexical import (
    Analyzer,
    Bm25Config,
    Bm25Encoder,
    RankBm25Index,
    TfidfIndex,
    average_length,
)

TEXTS = [
    "the cat sat on the mat",
    "dogs run and a dog ran after running cats",
    "a treaty between two kingdoms ended the war of the two kingdoms",
    "quantum mechanics describes nature",
    "mats are woven from straw",
]
PASSAGES = [Passage(str(i), text) for i, text in enumerate(TEXTS)]


def bm25_scores(query: str, config: Bm25Config) -> np.ndarray:
    """Sparse dot product with the engine's IDF: ln(1 + (N - n + 0.5) / (n + 0.5))."""
    encoder = Bm25Encoder(config)
    documents = [
        dict(zip(v.indices, v.values, strict=True)) for v in encoder.encode_passages(TEXTS)
    ]
    df = Counter(term for document in documents for term in document)
    n = len(documents)

    def idf(term: int) -> float:
        return math.log(1 + (n - df[term] + 0.5) / (df[term] + 0.5))

    terms = encoder.encode_query(query).indices
    return np.array([sum(idf(t) * d.get(t, 0.0) for t in terms) for d in documents])


def test_analyzer_stems_drops_stop_words_and_keeps_repetitions() -> None:
    analyzer = Analyzer()
    assert analyzer.terms("the of and") == []
    assert len(analyzer.terms("running runs run")) == 3
    assert len(set(analyzer.terms("running runs run"))) == 1


def test_average_length_counts_terms() -> None:
    assert average_length(TEXTS) == np.mean([len(Analyzer().terms(t)) for t in TEXTS])
    assert average_length(["cat mat mat", "dog"]) == 2.0
    assert average_length([]) == 1.0


def test_document_weight_by_hand() -> None:
    config = Bm25Config(avg_len=2.5, k=0.9, b=0.4)
    vector = Bm25Encoder(config).encode_passages(["mat mat mat cat"])[0]
    norm = 0.9 * (1 - 0.4 + 0.4 * 4 / 2.5)
    assert sorted(vector.values) == pytest.approx(sorted([3 * 1.9 / (3 + norm), 1.9 / (1 + norm)]))


def test_sparse_vectors_agree_with_rank_bm25() -> None:
    config = Bm25Config(avg_len=average_length(TEXTS))
    analyzer = Analyzer()
    reference = BM25Okapi([analyzer.terms(t) for t in TEXTS], k1=config.k, b=config.b)
    for query in ("treaty of kingdoms", "quantum nature", "woven straw"):
        # rank-bm25 leaves the 1 + out of the logarithm; compare term by term through its own idf.
        encoder = Bm25Encoder(config)
        terms = encoder.encode_query(query).indices
        documents = [
            dict(zip(v.indices, v.values, strict=True)) for v in encoder.encode_passages(TEXTS)
        ]
        ours = [sum(reference.idf[t] * d.get(t, 0.0) for t in terms) for d in documents]
        assert ours == pytest.approx(reference.get_scores(terms).tolist(), abs=1e-5)


def test_baselines_rank_the_passage_that_answers_first() -> None:
    config = Bm25Config(avg_len=average_length(TEXTS))
    tfidf, bm25 = TfidfIndex(PASSAGES), RankBm25Index(PASSAGES, config)
    assert tfidf.rank("treaty of kingdoms", k=3) == ["2"]
    assert bm25.rank("woven mats", k=1) == ["4"]
    assert tfidf.rank("zzz", k=3) == bm25.rank("zzz", k=3) == []
    assert int(np.argmax(bm25_scores("woven mats", config))) == 4
