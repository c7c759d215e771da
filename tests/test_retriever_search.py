import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import HashEncoder, make_passages

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import ConfigError
from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import CollectionMismatch, CollectionNotFound, QueryError
from two_tower.retriever.search.queries import MAX_QUERY_CHARS, check_query

PASSAGES = make_passages(120)
QUERY = "storm on the river bank"
EVERYTHING = {"dense": 120, "bm25": 120}


@pytest.fixture
def retriever(
    engine: Engine, name: str, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> Retriever:
    return load(engine, name, encoder, make_data(PASSAGES))


def load(engine: Engine, name: str, encoder: HashEncoder, data: Dataset) -> Retriever:
    report = loader.load(engine, data, encoder, name=name)
    collections.promote(engine, name, report.collection)
    return Retriever(engine, name, encoder, settings=SearchSettings())


def cosines(encoder: HashEncoder, query: str) -> dict[str, float]:
    vectors = encoder.encode_passages([p.content for p in PASSAGES])
    scores = vectors @ encoder.encode_queries([query])[0]
    return {p.passage_id: float(s) for p, s in zip(PASSAGES, scores, strict=True)}


def bm25_scores(config: Bm25Config, query: str) -> dict[str, float]:
    """Only passages that share a term with the query, as the engine returns them."""
    encoder = Bm25Encoder(config)
    documents = [
        dict(zip(v.indices, v.values, strict=True)) for v in encoder.encode_passages(PASSAGES)
    ]
    df = Counter(term for document in documents for term in document)
    terms = encoder.encode_query(query).indices
    n = len(PASSAGES)
    scores = {
        passage.passage_id: sum(
            math.log(1 + (n - df[t] + 0.5) / (df[t] + 0.5)) * document[t]
            for t in terms
            if t in document
        )
        for passage, document in zip(PASSAGES, documents, strict=True)
    }
    return {passage_id: score for passage_id, score in scores.items() if score > 0}


def test_search_is_the_weighted_sum_of_exact_cosine_and_bm25(
    retriever: Retriever, encoder: HashEncoder
) -> None:
    settings = SearchSettings(legs=EVERYTHING, tower_weight=7.0)
    hits = retriever.with_settings(settings).search(QUERY, k=20)
    dense = cosines(encoder, QUERY)
    lexical = bm25_scores(Bm25Config(**retriever.metadata.bm25), QUERY)
    expected = {i: 7.0 * cosine + lexical.get(i, 0.0) for i, cosine in dense.items()}
    assert [h.rank for h in hits] == list(range(1, 21))
    assert [h.score for h in hits] == pytest.approx(
        sorted(expected.values(), reverse=True)[:20], abs=1e-4
    )
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.passage_id], abs=1e-4)
        assert hit.stages["dense"].score == pytest.approx(dense[hit.passage_id], abs=1e-5)
        assert hit.stages["rerank"].score == pytest.approx(dense[hit.passage_id], abs=1e-5)
        if hit.passage_id in lexical:
            assert hit.stages["bm25"].score == pytest.approx(lexical[hit.passage_id], abs=1e-4)
        else:
            assert "bm25" not in hit.stages


def test_stage_ranks_are_those_of_each_stage(retriever: Retriever, encoder: HashEncoder) -> None:
    hits = retriever.with_settings(SearchSettings(legs=EVERYTHING)).search(QUERY, k=120)
    by_cosine = sorted(hits, key=lambda hit: -hit.stages["dense"].score)
    assert [hit.stages["dense"].rank for hit in by_cosine] == list(range(1, 121))


def test_rerank_scores_candidates_of_a_short_vector_by_the_full_one(
    retriever: Retriever, encoder: HashEncoder
) -> None:
    dense = cosines(encoder, QUERY)
    short = SearchSettings(legs={"pca_4": 15}, rerank=False)
    candidates = retriever.with_settings(short).search(QUERY, k=15)
    hits = retriever.with_settings(SearchSettings(legs={"pca_4": 15})).search(QUERY, k=15)
    assert {h.passage_id for h in hits} == {h.passage_id for h in candidates}
    assert [h.passage_id for h in hits] != [h.passage_id for h in candidates]
    assert [h.score for h in hits] == pytest.approx(
        sorted((dense[h.passage_id] for h in candidates), reverse=True), abs=1e-5
    )


def test_a_hit_carries_what_was_loaded(retriever: Retriever) -> None:
    by_id = {p.passage_id: p for p in PASSAGES}
    for hit in retriever.search(QUERY, k=5):
        passage = by_id[hit.passage_id]
        assert (hit.title, hit.text, hit.url) == (passage.title, passage.text, passage.url)
        assert hit.payload["kind"] == passage.fields["kind"]


def test_search_many_is_search_for_each(retriever: Retriever) -> None:
    queries = [f"{p.text} {p.title}" for p in PASSAGES[:40]]
    many = retriever.search_many(queries, k=7)
    for query, hits in zip(queries, many, strict=True):
        single = retriever.search(query, k=7)
        assert [h.passage_id for h in hits] == [h.passage_id for h in single]
        assert [h.score for h in hits] == pytest.approx([h.score for h in single], abs=1e-6)
    assert retriever.search_many([], k=3) == []


def test_a_passage_finds_itself(retriever: Retriever) -> None:
    many = retriever.search_many([p.content for p in PASSAGES], k=1)
    assert [hits[0].passage_id for hits in many] == [p.passage_id for p in PASSAGES]


def test_a_query_of_stop_words_is_answered_by_the_tower(retriever: Retriever) -> None:
    hits = retriever.search("the of and to", k=3)
    assert len(hits) == 3
    assert set(hits[0].stages) == {"dense"}
    bm25 = retriever.with_settings(SearchSettings(legs={"bm25": 10}, rerank=False))
    assert bm25.search("the of and to", k=3) == []


def test_passages_streams_the_collection(retriever: Retriever) -> None:
    assert sorted(retriever.passages()) == sorted(PASSAGES)


def test_explain_times_every_step(retriever: Retriever) -> None:
    result = retriever.explain(QUERY, k=2)
    assert result.query == QUERY
    assert list(result.timings_ms) == ["encode", "candidates", "fusion", "payload"]
    assert all(ms >= 0 for ms in result.timings_ms.values())
    assert result.hits == retriever.search(QUERY, k=2)


@pytest.mark.parametrize("k", [0, -1, "5", 2.5, True, None.__class__])
def test_k_is_a_whole_number_from_1(retriever: Retriever, k: Any) -> None:
    with pytest.raises(QueryError, match=r"k is .*expected a whole number from 1"):
        retriever.search(QUERY, k=k)


def test_k_above_the_size_gives_what_there_is(retriever: Retriever) -> None:
    assert retriever.search(QUERY, k=10**9) == retriever.search(QUERY, k=120)
    assert len(retriever.search(QUERY, k=np.int64(3))) == 3


@pytest.mark.parametrize("query", [None, 5, b"river", ["river"]])
def test_a_query_is_text(retriever: Retriever, query: Any) -> None:
    with pytest.raises(QueryError, match=r"the query is .*expected text"):
        retriever.search(query)
    with pytest.raises(QueryError, match=r"the query is .*expected text"):
        retriever.search_many(["river", query])


@pytest.mark.parametrize("queries", ["river", None, 5])
def test_many_queries_are_a_list(retriever: Retriever, queries: Any) -> None:
    with pytest.raises(QueryError, match=r"the queries are .*expected a list of texts"):
        retriever.search_many(queries)


def test_queries_may_come_from_anywhere(retriever: Retriever) -> None:
    expected = retriever.search_many([QUERY, "storm"])
    assert retriever.search_many(iter([QUERY, "storm"])) == expected
    assert retriever.search_many(np.array([QUERY, "storm"])) == expected


@pytest.mark.parametrize("budget_ms", ["5", 0, float("nan"), [1]])
def test_a_budget_is_a_number(retriever: Retriever, budget_ms: Any) -> None:
    with pytest.raises(QueryError, match=r"budget_ms is .*expected more than 0"):
        retriever.search(QUERY, budget_ms=budget_ms)


@pytest.mark.parametrize("settings", [{"legs": {"dense": 5}}, "fast", ["dense"]])
def test_settings_are_search_settings(retriever: Retriever, settings: Any) -> None:
    with pytest.raises(ConfigError, match=r"the settings are .*expected SearchSettings"):
        retriever.search(QUERY, settings=settings)
    with pytest.raises(ConfigError, match=r"the settings are .*expected SearchSettings"):
        retriever.with_settings(settings)


def test_k_may_be_the_whole_corpus(retriever: Retriever) -> None:
    assert {h.passage_id for h in retriever.search(QUERY, k=120)} == {
        p.passage_id for p in PASSAGES
    }


def test_an_open_retriever_stays_with_its_collection(
    retriever: Retriever,
    engine: Engine,
    name: str,
    make_data: Callable[..., Dataset],
) -> None:
    before = retriever.search(QUERY, k=5)
    other = HashEncoder(seed=9)
    newer = load(engine, name, other, make_data([Passage("x", "another text")], name="other"))
    assert newer.collection != retriever.collection
    assert retriever.search(QUERY, k=5) == before
    assert newer.search("another text", k=1)[0].passage_id == "x"


def test_a_bundle_that_does_not_match_is_refused(
    retriever: Retriever, engine: Engine, name: str
) -> None:
    other = HashEncoder(seed=9)
    with pytest.raises(CollectionMismatch) as caught:
        Retriever(engine, name, other, settings=SearchSettings())
    message = str(caught.value)
    assert retriever.metadata.bundle_fingerprint[:12] in message
    assert other.fingerprint[:12] in message
    assert f"ingest load DATA --bundle BUNDLE --collection {name}" in message


def test_unknown_names_are_refused(retriever: Retriever, engine: Engine, encoder: HashEncoder):
    with pytest.raises(ConfigError, match=r"unknown leg 'pca_7'.*dense, pca_8, pca_4, bm25"):
        retriever.with_settings(SearchSettings(legs={"pca_7": 10}))
    with pytest.raises(CollectionNotFound, match="no collection 'nope'"):
        Retriever(engine, "nope", encoder, settings=SearchSettings())


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "the query is empty"),
        (" \n\t", "the query is empty"),
        ("a" * 1_048_576, f"1,048,576 characters; expected at most {MAX_QUERY_CHARS:,}"),
        ("\0\0\0", r"U\+0000 at position 0"),
        ("ab\udcffc", r"U\+DCFF at position 2"),
    ],
)
def test_what_is_not_a_query(query: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        check_query(query)


@pytest.mark.parametrize("query", ["naïve café", "日本語", "😀", "a" * MAX_QUERY_CHARS])
def test_what_is_a_query(query: str) -> None:
    check_query(query)


def test_engines_agree(
    rest_engine: Engine,
    edge_engine: Engine,
    name: str,
    encoder: HashEncoder,
    make_data: Callable[..., Dataset],
) -> None:
    data = make_data(PASSAGES)
    on_server = load(rest_engine, name, encoder, data)
    on_edge = load(edge_engine, name, encoder, data)
    for passage in PASSAGES[:20]:
        ours, theirs = (r.search(passage.text, k=10) for r in (on_edge, on_server))
        assert [h.passage_id for h in ours] == [h.passage_id for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)
