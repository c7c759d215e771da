"""Late interaction as a stage: both engines against MaxSim in numpy, loads, copies, settings."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import HashEncoder, make_passages, write_data

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.estimate import estimate
from two_tower.ingest.loading.verify import repair, verify
from two_tower.ingest.versions.copying import copy
from two_tower.models.bundle.fusion import Fusion, HybridWeights
from two_tower.models.bundle.late import centred, pooled, to_bytes, to_scores
from two_tower.models.data import Dataset
from two_tower.retriever.collection.options import CollectionOptions, QuantizationOptions
from two_tower.retriever.collection.schema import BM25, DENSE, LATE, point_id, read_metadata
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import CollectionMismatch, VerificationFailed
from two_tower.retriever.evaluation.systems import choose_systems, system_names
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings

DIM = 8
WORDS = centred(np.random.default_rng(5).standard_normal((4096, DIM)).astype(np.float32))
QUERY = "water bank number7"
WEIGHTS = HybridWeights(tower=15.0, late=40.0, late_mean=0.25)


def words(text: str) -> np.ndarray:
    return WORDS[[zlib.crc32(word.encode()) % 4096 for word in text.split()]]


def word_weights(text: str) -> np.ndarray:
    return np.array([1.0 / len(word) for word in text.split()], dtype=np.float32)


def exact(query: str, passage: str) -> float:
    """The definition, without bytes: the weighted mean of each query word's best cosine."""
    weights, asked, there = word_weights(query), words(query), words(passage)
    return float(
        sum(w * max(float(q @ d) for d in there) for w, q in zip(weights, asked, strict=True))
        / weights.sum()
    )


class LateEncoder(HashEncoder):
    """A `HashEncoder` with one more vector per word, for late interaction."""

    late_dim = DIM
    fusion = Fusion(WEIGHTS)

    def encode_passages_late(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        return self.encode_passages(texts), [to_bytes(words(text)) for text in texts]

    def encode_queries_late(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        weights = [word_weights(text)[:, None] for text in texts]
        tokens = [to_bytes(words(t) * w / w.max()) for t, w in zip(texts, weights, strict=True)]
        return self.encode_queries(texts), tokens


ENCODER = LateEncoder()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_data(tmp_path_factory.mktemp("late") / "DATA", make_passages(300))


@pytest.fixture
def retriever(engine: Engine, name: str, data: Dataset) -> Retriever:
    return opened(engine, name, data)


def opened(engine: Engine, name: str, data: Dataset, *, late: bool = True) -> Retriever:
    options = CollectionOptions(late=late)
    report = loader.load(engine, data, ENCODER, name=name, options=options)
    return Retriever(engine, report.collection, ENCODER, settings=SearchSettings())


def test_bytes_sum_to_the_same_and_are_the_nearest_that_do() -> None:
    vectors = WORDS * np.linspace(0.05, 1.0, len(WORDS), dtype=np.float32)[:, None]
    signed = to_bytes(vectors).astype(int) - 128
    assert not signed.sum(axis=1).any()
    assert np.abs(signed - 127 * vectors).max() < 1.0


def test_an_engines_product_of_bytes_is_the_late_score() -> None:
    weights = np.array([[1.0], [0.5], [0.25]], dtype=np.float32)
    query, passage = to_bytes(WORDS[:3] * weights), to_bytes(WORDS[10:30])
    product = (query.astype(float) @ passage.astype(float).T).max(axis=1).sum()
    cosines = (WORDS[:3] @ WORDS[10:30].T).max(axis=1)
    expected = (1.0 * cosines[0] + 0.5 * cosines[1] + 0.25 * cosines[2]) / 1.75
    assert to_scores(np.array([product]), query)[0] == pytest.approx(expected, abs=0.02)


def test_neighbours_are_averaged_and_the_last_stands_alone() -> None:
    vectors = np.arange(10, dtype=np.float32).reshape(5, 2)
    expected = [[1.0, 2.0], [5.0, 6.0], [8.0, 9.0]]
    assert pooled(vectors, size=2).tolist() == expected
    assert pooled(vectors, size=1).tolist() == vectors.tolist()


def test_every_candidate_gets_the_score_of_its_words(retriever: Retriever, data: Dataset) -> None:
    contents = {p.passage_id: p.content for p in data.passages()}
    hits = retriever.search(QUERY, k=50)
    for hit in hits:
        assert hit.stages[LATE].score == pytest.approx(
            exact(QUERY, contents[hit.passage_id]), abs=0.02
        )


def test_the_sum_is_that_of_the_learnt_weights(retriever: Retriever) -> None:
    hits = retriever.search(QUERY, k=50)
    both = [hit for hit in hits if BM25 in hit.stages]
    assert len(both) > 20
    for hit in both:
        bm25, late = hit.stages[BM25].score, hit.stages[LATE].score
        cosine = hit.stages.get("rerank", hit.stages.get(DENSE))
        assert cosine is not None
        expected = bm25 + 15.0 * cosine.score + 40.0 * (late - 0.25)
        assert hit.score == pytest.approx(expected, abs=1e-4)
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_many_queries_at_once_are_as_one_by_one(retriever: Retriever) -> None:
    queries = [QUERY, "storm", "wheat bread number12 oven"]
    many = retriever.search_many(queries, k=5)
    assert [[h.passage_id for h in hits] for hits in many] == [
        [h.passage_id for h in retriever.search(query, k=5)] for query in queries
    ]


@pytest.mark.parametrize(
    "settings",
    [
        SearchSettings(late=False),
        SearchSettings(fusion="rrf"),
        SearchSettings(tower_weight=5.0),
        SearchSettings(legs={"bm25": 50}, rerank=False),
    ],
)
def test_it_runs_beside_the_learnt_fusion_alone(
    retriever: Retriever, settings: SearchSettings
) -> None:
    result = retriever.explain(QUERY, settings=settings)
    assert LATE not in result.stages_run
    assert LATE not in result.skipped


def test_it_is_skipped_where_the_budget_is_too_small(retriever: Retriever) -> None:
    result = retriever.explain(QUERY, budget_ms=1e-6)
    assert LATE in result.skipped
    assert LATE not in result.stages_run


def test_a_collection_may_be_without(engine: Engine, name: str, data: Dataset) -> None:
    retriever = opened(engine, name, data, late=False)
    assert not retriever.has_late
    assert LATE not in retriever.explain(QUERY).stages_run
    assert LATE not in system_names(retriever)
    with pytest.raises(CollectionMismatch, match="late False, the options say True"):
        loader.load(engine, data, ENCODER, name=name, options=CollectionOptions())


def test_it_has_a_row_of_its_own(retriever: Retriever, data: Dataset) -> None:
    (system,) = choose_systems(retriever, ["late"], others={})
    queries = list(data.queries()) or [type("Q", (), {"query_id": "q", "text": QUERY})()]
    ranked = system.start().rank(queries, 5)
    assert ranked == [[h.passage_id for h in retriever.search(q.text, k=5)] for q in queries]


def test_verify_sees_a_change_beyond_rounding_and_repair_mends_it(
    engine: Engine, name: str, data: Dataset
) -> None:
    retriever = opened(engine, name, data)
    collection = retriever.collection
    assert verify(engine, collection, data, ENCODER).compared > 0
    first = next(iter(data.passages()))
    (record,) = engine.retrieve(
        collection, [point_id(first.passage_id)], with_payload=True, with_vectors=True
    )
    assert isinstance(record.vector, dict)
    record.vector[LATE][0][0] += 2  # type: ignore[index]
    engine.upsert(collection, [record], wait=True)
    verify(engine, collection, data, ENCODER)  # what another processor might round to
    record.vector[LATE][0][0] += 1  # type: ignore[index]
    engine.upsert(collection, [record], wait=True)
    with pytest.raises(VerificationFailed, match="'late' differs"):
        verify(engine, collection, data, ENCODER)
    assert repair(engine, collection, data, ENCODER).sent == 1
    verify(engine, collection, data, ENCODER)


def test_a_copy_searches_alike(
    edge_engine: Engine, rest_engine: Engine, name: str, data: Dataset
) -> None:
    source = opened(edge_engine, name, data)
    copy(edge_engine, rest_engine, source.collection)
    target = Retriever(rest_engine, source.collection, ENCODER, settings=SearchSettings())
    assert read_metadata(rest_engine, target.collection).late_dim == DIM
    for query in (QUERY, "rain wind boat"):
        scores = [
            {h.passage_id: h.stages[LATE].score for h in r.search(query, k=50)}
            for r in (source, target)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_quantized_copies_of_the_others_change_nothing_here(
    engine: Engine, name: str, data: Dataset
) -> None:
    options = CollectionOptions(quantization=QuantizationOptions(kind="scalar"))
    options = replace(options, hnsw=replace(options.hnsw, above_kb=10))
    report = loader.load(engine, data, ENCODER, name=name, options=options)
    engine.optimize(report.collection)
    retriever = Retriever(engine, report.collection, ENCODER, settings=SearchSettings())
    contents = {p.passage_id: p.content for p in data.passages()}
    for hit in retriever.search(QUERY, k=50):
        assert hit.stages[LATE].score == pytest.approx(
            exact(QUERY, contents[hit.passage_id]), abs=0.02
        )


def test_the_estimate_counts_its_bytes(data: Dataset, tmp_path: Path) -> None:
    points, options = 1_000_000, CollectionOptions()  # the log is as long in both
    with_late = estimate(data, ENCODER, options=options, points=points)
    without = estimate(data, ENCODER, options=replace(options, late=False), points=points)
    vectors = np.mean([len(p.content.split()) for p in data.passages()])
    assert with_late.disk - without.disk == pytest.approx(points * vectors * DIM, rel=0.2)


class WideEncoder(LateEncoder):
    """As wide as real ones."""

    late_dim = 64

    def encode_passages_late(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        full, late = super().encode_passages_late(texts)
        return full, [np.tile(each, 8) for each in late]


@pytest.mark.parametrize("size", [500, 4000])
def test_the_embedded_engine_takes_what_was_estimated(tmp_path: Path, size: int) -> None:
    data = write_data(tmp_path / "DATA", make_passages(size))
    encoder, options = WideEncoder(dim=256), CollectionOptions()
    expected = estimate(data, encoder, options=options, points=size, embedded=True)
    engine = connect(path=tmp_path / "edge")
    loader.load(engine, data, encoder, name="c", options=options)
    engine.close()
    files = [file for file in (tmp_path / "edge").rglob("*") if file.is_file()]
    assert expected.disk == pytest.approx(sum(f.stat().st_blocks * 512 for f in files), rel=0.25)
