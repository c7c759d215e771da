"""One contract for every engine: search, against numpy and BM25 by hand."""

import math
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import HashEncoder, make_passages, server_engine, write_data
from qdrant_client import models as qm
from rank_bm25 import BM25Okapi

from two_tower.ingest.loading import loader
from two_tower.models.data import Dataset
from two_tower.models.text.bm25 import Bm25Config, average_length
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder, EngineAnalyzer
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine

PASSAGES = make_passages(120, seed=3)
TEXTS = [passage.content for passage in PASSAGES]
IDS = [point_id(passage.passage_id) for passage in PASSAGES]
QUERIES = ["river boat", "iron steel oven", "light", "wheat bread farm soil", "number7 cloud"]
ENCODER = HashEncoder()
DENSE = ENCODER.encode_passages(TEXTS).astype(np.float64)
BM25 = Bm25Encoder(Bm25Config(avg_len=average_length(TEXTS, EngineAnalyzer())))


class Loaded(NamedTuple):
    """A collection that tests read and do not change."""

    engine: Engine
    collection: str


@pytest.fixture(scope="module", params=["edge", "rest"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Loaded]:
    folder = tmp_path_factory.mktemp("loaded")
    data = write_data(folder / "DATA", PASSAGES)
    name = f"test_{uuid.uuid4().hex[:12]}"
    if request.param == "edge":
        engine = connect(path=folder / "edge")
        yield load(engine, data, name)
        engine.close()
    else:
        server = request.getfixturevalue("server")
        with server_engine(server, name) as engine:
            yield load(engine, data, name)


def load(engine: Engine, data: Dataset, name: str) -> Loaded:
    collection = loader.load(engine, data, ENCODER, name=name).collection
    # qdrant.yaml lets filters name indexed fields only, even such as no passage has.
    engine.create_payload_index(collection, "nothing", qm.PayloadSchemaType.KEYWORD)
    return Loaded(engine, collection)


def cosines(query: str) -> np.ndarray:
    return DENSE @ ENCODER.encode_queries([query])[0].astype(np.float64)


def bm25_by_hand(
    query: str, *, k: float = 0.9, b: float = 0.4, title_weight: float = 20.0
) -> np.ndarray:
    """BM25 with Lucene's IDF over lower-cased words; no word here is a stop word.

    A word counts in the title, besides, by its share of it.
    """
    documents = [text.lower().split() for text in TEXTS]
    titles = [passage.title.lower().split() for passage in PASSAGES]
    mean = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(documents))
    for word in query.lower().split():
        containing = sum(word in document for document in documents)
        idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        for row, document in enumerate(documents):
            tf = document.count(word)
            share = titles[row].count(word) / len(titles[row])
            frequency = tf / (1 - b + b * len(document) / mean) + title_weight * share
            scores[row] += idf * frequency * (k + 1) / (frequency + k)
    return scores


def ranking(scores: np.ndarray) -> list[str]:
    return [IDS[row] for row in np.argsort(-scores, kind="stable")]


def dense_leg(query: str, limit: int) -> qm.Prefetch:
    vector = ENCODER.encode_queries([query])[0].tolist()
    return qm.Prefetch(query=vector, using="dense", limit=limit)


def bm25_leg(query: str, limit: int) -> qm.Prefetch:
    return qm.Prefetch(query=BM25.encode_query(query).to_client(), using="bm25", limit=limit)


def test_scroll_pages_through_everything_once(loaded: Loaded) -> None:
    engine, collection = loaded
    seen: list[str] = []
    offset: int | str | None = None
    for _ in range(18):
        records, offset = engine.scroll(collection, limit=7, offset=offset, with_payload=False)
        seen += [str(record.id) for record in records]
        assert all(not record.payload and not record.vector for record in records)
        if offset is None:
            break
    assert seen == sorted(IDS)


def field(key: str, **condition: Any) -> qm.FieldCondition:
    return qm.FieldCondition(key=key, **condition)


KIND = field("kind", match=qm.MatchValue(value="note"))
FILTERS: list[tuple[qm.Filter, Callable[[Any], bool]]] = [
    (qm.Filter(must=[KIND]), lambda p: p.fields["kind"] == "note"),
    (qm.Filter(must_not=[KIND]), lambda p: p.fields["kind"] != "note"),
    (qm.Filter(must=KIND), lambda p: p.fields["kind"] == "note"),
    (
        qm.Filter(should=[KIND, field("year", match=qm.MatchValue(value=2003))]),
        lambda p: p.fields["kind"] == "note" or p.fields["year"] == 2003,
    ),
    (
        qm.Filter(must=[field("kind", match=qm.MatchAny(any=["note", "manual"]))]),
        lambda p: p.fields["kind"] in ("note", "manual"),
    ),
    (
        qm.Filter(must=[field("kind", match=qm.MatchExcept(**{"except": ["note"]}))]),
        lambda p: p.fields["kind"] != "note",
    ),
    (
        qm.Filter(must=[field("year", range=qm.Range(gte=2003, lt=2007))]),
        lambda p: 2003 <= p.fields["year"] < 2007,
    ),
    (
        qm.Filter(must=[field("rank", range=qm.Range(gt=1.0, lte=4.0))]),
        lambda p: 1.0 < p.fields["rank"] <= 4.0,
    ),
    (
        qm.Filter(must=[field("title", match=qm.MatchText(text="title RIVER"))]),
        lambda p: "river" in p.title,
    ),
    (
        qm.Filter(must=[qm.HasIdCondition(has_id=[*IDS[4:9]])]),
        lambda p: p in PASSAGES[4:9],
    ),
    (
        qm.Filter(must=[qm.Filter(should=[KIND]), qm.Filter(must_not=[KIND])]),
        lambda p: False,
    ),
    (
        qm.Filter(must=[qm.IsEmptyCondition(is_empty=qm.PayloadField(key="nothing")), KIND]),
        lambda p: p.fields["kind"] == "note",
    ),
    (qm.Filter(must=[qm.IsNullCondition(is_null=qm.PayloadField(key="kind"))]), lambda p: False),
    (qm.Filter(must=[qm.HasVectorCondition(has_vector="bm25")]), lambda p: True),
]


@pytest.mark.parametrize(("condition", "accepts"), FILTERS)
def test_filters(loaded: Loaded, condition: qm.Filter, accepts: Callable[[Any], bool]) -> None:
    engine, collection = loaded
    expected = {IDS[row] for row, passage in enumerate(PASSAGES) if accepts(passage)}
    assert engine.count(collection, count_filter=condition).count == len(expected)
    records, _ = engine.scroll(collection, scroll_filter=condition, limit=1000)
    assert {record.id for record in records} == expected
    hits = engine.query_points(
        collection, DENSE[0].tolist(), using="dense", query_filter=condition, limit=1000
    ).points
    assert {hit.id for hit in hits} == expected


def test_dense_search_is_cosine(loaded: Loaded) -> None:
    engine, collection = loaded
    for query in QUERIES:
        vector = ENCODER.encode_queries([query])[0].tolist()
        hits = engine.query_points(collection, vector, using="dense", limit=20).points
        expected = cosines(query)
        assert [hit.id for hit in hits] == ranking(expected)[:20]
        top = np.sort(expected)[::-1][:20]
        np.testing.assert_allclose([hit.score for hit in hits], top, atol=1e-5)
        assert hits[0].payload is not None
        assert hits[0].vector is None


def test_search_options(loaded: Loaded) -> None:
    engine, collection = loaded
    vector = ENCODER.encode_queries(["river"])[0].tolist()
    scores = cosines("river")
    order = ranking(scores)
    options = {"using": "dense", "with_payload": ["title"], "with_vectors": ["pca_4"]}
    hits = engine.query_points(collection, vector, offset=3, limit=4, **options).points
    assert [hit.id for hit in hits] == order[3:7]
    assert list(hits[0].payload or {}) == ["title"]
    assert isinstance(hits[0].vector, dict)
    assert list(hits[0].vector) == ["pca_4"]
    threshold = float(np.sort(scores)[-5]) - 1e-4
    above = engine.query_points(
        collection, vector, using="dense", limit=100, score_threshold=threshold
    ).points
    assert [hit.id for hit in above] == order[:5]
    exact = qm.SearchParams(exact=True, hnsw_ef=64, indexed_only=False)
    found = engine.query_points(collection, vector, using="dense", limit=5, search_params=exact)
    assert [hit.id for hit in found.points] == order[:5]
    everything = engine.query_points(collection, vector, using="dense", limit=1000).points
    assert len(everything) == len(PASSAGES)


def test_bm25_is_bm25(loaded: Loaded) -> None:
    engine, collection = loaded
    for query in QUERIES:
        leg = BM25.encode_query(query).to_client()
        hits = engine.query_points(collection, leg, using="bm25", limit=1000).points
        expected = bm25_by_hand(query)
        assert {hit.id for hit in hits} == {i for i, s in zip(IDS, expected, strict=True) if s > 0}
        for hit in hits:
            assert hit.score == pytest.approx(expected[IDS.index(str(hit.id))], abs=1e-4)


def test_bm25_by_hand_is_rank_bm25() -> None:
    index = BM25Okapi([text.lower().split() for text in TEXTS], k1=0.9, b=0.4)
    documents = [set(text.lower().split()) for text in TEXTS]
    for word in index.idf:  # rank_bm25 has Robertson's IDF, which turns negative; Lucene adds 1
        df = sum(word in document for document in documents)
        index.idf[word] = math.log(1 + (len(TEXTS) - df + 0.5) / (df + 0.5))
    for query in QUERIES:
        by_hand = bm25_by_hand(query, title_weight=0)
        np.testing.assert_allclose(index.get_scores(query.split()), by_hand, atol=1e-9)


def test_reciprocal_rank_fusion(loaded: Loaded) -> None:
    engine, collection = loaded
    query = "iron steel oven"
    legs = [dense_leg(query, 10), bm25_leg(query, 10)]
    ranks = [
        [str(hit.id) for hit in engine.query_points(collection, leg.query, using=leg.using).points]
        for leg in legs
    ]
    for fusion, k in (
        (qm.RrfQuery(rrf=qm.Rrf(k=60)), 60),
        (qm.FusionQuery(fusion=qm.Fusion.RRF), 2),
    ):
        expected: dict[str, float] = {}
        for ids in ranks:
            for rank, found in enumerate(ids):
                expected[found] = expected.get(found, 0.0) + 1 / (k + rank)
        hits = engine.query_points(collection, fusion, prefetch=legs, limit=20).points
        assert {str(hit.id): hit.score for hit in hits} == pytest.approx(expected, abs=1e-6)


def test_candidates_of_both_legs_are_rescored_in_one_request(loaded: Loaded) -> None:
    engine, collection = loaded
    query = "wheat bread farm soil"
    vector = ENCODER.encode_queries([query])[0].tolist()
    nested = qm.Prefetch(
        prefetch=[dense_leg(query, 8), bm25_leg(query, 8)],
        query=qm.RrfQuery(rrf=qm.Rrf(k=60)),
        limit=16,
    )
    ignore = qm.SearchParams(quantization=qm.QuantizationSearchParams(ignore=True))
    hits = engine.query_points(
        collection, vector, using="dense", prefetch=nested, limit=100, search_params=ignore
    ).points
    scores = cosines(query)
    lexical = engine.query_points(
        collection, BM25.encode_query(query).to_client(), using="bm25", limit=8
    )
    union = {*ranking(scores)[:8], *(str(hit.id) for hit in lexical.points)}
    assert [hit.id for hit in hits] == [i for i in ranking(scores) if i in union]


def test_a_filter_inside_a_prefetch(loaded: Loaded) -> None:
    engine, collection = loaded
    few = qm.Filter(must=[qm.HasIdCondition(has_id=[*IDS[:6]])])
    leg = dense_leg("river", 100)
    leg.filter = few
    hits = engine.query_points(
        collection, leg.query, using="dense", prefetch=[leg], limit=100
    ).points
    assert [hit.id for hit in hits] == [i for i in ranking(cosines("river")) if i in IDS[:6]]


def test_a_batch_answers_each_query_in_order(loaded: Loaded) -> None:
    engine, collection = loaded
    requests = [
        request
        for query in QUERIES
        for request in (
            qm.QueryRequest(
                query=ENCODER.encode_queries([query])[0].tolist(), using="dense", limit=5
            ),
            qm.QueryRequest(query=BM25.encode_query(query).to_client(), using="bm25", limit=3),
        )
    ]
    answers = engine.query_scores(collection, requests)
    assert len(answers) == len(requests)
    for request, answer in zip(requests, answers, strict=True):
        alone = engine.query_points(
            collection, request.query, using=request.using, limit=request.limit or 0
        ).points
        assert answer.ids == [h.id for h in alone]
        np.testing.assert_allclose(answer.scores, [h.score for h in alone], atol=1e-6)
    assert engine.query_scores(collection, []) == []


def test_hits_bring_what_was_asked_for(loaded: Loaded) -> None:
    engine, collection = loaded
    leg: dict[str, Any] = {
        "query": BM25.encode_query("river boat").to_client(),
        "using": "bm25",
        "limit": 1,
    }
    (bare,) = engine.query_points(collection, **leg, with_payload=False).points
    assert not bare.payload
    assert bare.vector is None
    (hit,) = engine.query_points(
        collection, **leg, with_payload=["passage_id"], with_vectors=["pca_8"]
    ).points
    assert list(hit.payload or {}) == ["passage_id"]
    assert isinstance(hit.vector, dict)
    assert list(hit.vector) == ["pca_8"]


def test_a_query_without_terms_finds_nothing(loaded: Loaded) -> None:
    engine, collection = loaded
    empty = BM25.encode_query("the of and").to_client()
    assert not empty.indices
    assert engine.query_points(collection, empty, using="bm25").points == []
