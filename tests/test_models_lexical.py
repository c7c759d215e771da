import math
from collections import Counter

import numpy as np
import pytest
from conftest import make_passages
from qdrant_client import models as qm
from rank_bm25 import BM25Okapi

from two_tower.models.text.bm25 import Bm25Config, Bm25Index, average_length
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder, EngineAnalyzer
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import Point

TEXTS = [
    "the cat sat on the mat",
    "dogs run and a dog ran after running cats",
    "a treaty between two kingdoms ended the war of the two kingdoms",
    "quantum mechanics describes nature",
    "mats are woven from straw",
]

ANALYZER = EngineAnalyzer()


def occurrences(text: str) -> list[int]:
    """One id per occurrence."""
    return [term for term, count in ANALYZER.term_counts(text).items() for _ in range(count)]


def bm25_scores(query: str, config: Bm25Config) -> np.ndarray:
    """Sparse dot product with the engine's IDF: ln(1 + (N - n + 0.5) / (n + 0.5))."""
    encoder = Bm25Encoder(config)
    documents = [dict(zip(v.indices, v.values, strict=True)) for v in encoder.encode_texts(TEXTS)]
    df = Counter(term for document in documents for term in document)
    n = len(documents)

    def idf(term: int) -> float:
        return math.log(1 + (n - df[term] + 0.5) / (df[term] + 0.5))

    terms = encoder.encode_query(query).indices
    return np.array([sum(idf(t) * d.get(t, 0.0) for t in terms) for d in documents])


def test_analyzer_stems_drops_stop_words_and_keeps_repetitions() -> None:
    assert ANALYZER.term_counts("the of and") == {}
    assert list(ANALYZER.term_counts("running runs run").values()) == [3]
    assert sorted(ANALYZER.term_counts("cats and a dog and a cat").values()) == [1, 2]
    assert list(ANALYZER.term_counts("cat " * 100_000).values()) == [100_000]
    assert EngineAnalyzer("german").term_counts("der und das") == {}


def test_average_length_counts_terms() -> None:
    assert average_length(TEXTS, ANALYZER) == np.mean([len(occurrences(t)) for t in TEXTS])
    assert average_length(["cat mat mat", "dog"], ANALYZER) == 2.0
    assert average_length([], ANALYZER) == 1.0


def test_document_weight_by_hand() -> None:
    config = Bm25Config(avg_len=2.5, k=0.9, b=0.4)
    vector = Bm25Encoder(config).encode_texts(["mat mat mat cat"])[0]
    norm = 0.9 * (1 - 0.4 + 0.4 * 4 / 2.5)
    assert sorted(vector.values) == pytest.approx(sorted([3 * 1.9 / (3 + norm), 1.9 / (1 + norm)]))


def test_sparse_vectors_agree_with_rank_bm25() -> None:
    config = Bm25Config(avg_len=average_length(TEXTS, ANALYZER))
    reference = BM25Okapi([occurrences(t) for t in TEXTS], k1=config.k, b=config.b)
    for query in ("treaty of kingdoms", "quantum nature", "woven straw"):
        # rank-bm25 leaves the 1 + out of the logarithm; compare term by term through its own idf.
        encoder = Bm25Encoder(config)
        terms = encoder.encode_query(query).indices
        documents = [
            dict(zip(v.indices, v.values, strict=True)) for v in encoder.encode_texts(TEXTS)
        ]
        ours = [sum(reference.idf[t] * d.get(t, 0.0) for t in terms) for d in documents]
        assert ours == pytest.approx(reference.get_scores(terms).tolist(), abs=1e-5)


def test_the_index_scores_as_the_sum_over_terms_says() -> None:
    index = Bm25Index(TEXTS, ANALYZER)
    queries = ["woven mats", "the cat and the dogs", "zzz", "treaty of kingdoms and cats", ""]
    found = index.search(queries, 3)
    everything = np.tile(np.arange(len(TEXTS)), (len(queries), 1))
    for i, query in enumerate(queries):
        expected = bm25_scores(query, index.config)
        assert index.scores(queries, everything)[i] == pytest.approx(expected, rel=1e-5)
        best = [row for row in np.argsort(-expected, kind="stable")[:3] if expected[row] > 0]
        assert found.rows[i].tolist() == best + [-1] * (3 - len(best))
        assert found.scores[i, : len(best)] == pytest.approx(expected[best], rel=1e-5)
        assert not found.scores[i, len(best) :].any()


def test_the_index_weighs_as_the_engine_does_to_the_last_bit() -> None:
    texts = [passage.content for passage in make_passages(200)] + ["river " * 5000]
    index = Bm25Index(texts, ANALYZER)
    vectors = Bm25Encoder(index.config).encode_texts(texts)
    (river,) = ANALYZER.term_counts("river")
    weights = np.array([dict(zip(v.indices, v.values, strict=True)).get(river, 0) for v in vectors])
    idf = np.log1p((201 - (weights > 0).sum() + 0.5) / ((weights > 0).sum() + 0.5))
    scores = index.scores(["river"], np.arange(201)[None])[0]
    assert scores.tolist() == (weights * idf).astype(np.float32).tolist()


def test_equal_scores_come_in_the_order_of_the_passages() -> None:
    index = Bm25Index(["cat", "dog", "cat", "cat", "dog", "bird"], ANALYZER)
    assert index.search(["cat dog"], 2).rows.tolist() == [[1, 4]]
    assert index.search(["cat"], 2).rows.tolist() == [[0, 2]]
    assert index.scores(["cat", "bird"], np.array([[2, -1], [-1, 5]]))[:, 0].tolist()[1] == 0


def test_the_index_agrees_with_the_engine(edge_engine: Engine) -> None:
    passages = make_passages(300)
    texts = [passage.content for passage in passages]
    index = Bm25Index(texts, ANALYZER)
    encoder = Bm25Encoder(index.config)
    edge_engine.create_collection(
        "c",
        vectors_config={},
        sparse_vectors_config={"bm25": qm.SparseVectorParams(modifier=qm.Modifier.IDF)},
    )
    vectors = encoder.encode_texts(texts)
    points = [Point(i, {"bm25": vector}, {}) for i, vector in enumerate(vectors)]
    edge_engine.upsert("c", points, wait=True)
    queries = ["river bank", "iron steel bridge", "number7 cloud", "lamp light sun rain"]
    found = index.search(queries, 20)
    for i, query in enumerate(queries):
        hits = edge_engine.query_points(
            "c", query=encoder.encode_query(query).to_client(), using="bm25", limit=20
        ).points
        assert [hit.score for hit in hits] == pytest.approx(
            found.scores[i, : len(hits)].tolist(), abs=1e-4
        )
        exact = index.scores([query], np.array([[int(hit.id) for hit in hits]]))[0]
        assert exact.tolist() == pytest.approx([hit.score for hit in hits], abs=1e-4)
