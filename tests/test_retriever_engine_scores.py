"""Ids and scores alone are those of the full answers, on every engine."""

import uuid

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.models import QueryResponse

from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.server import ServerEngine
from two_tower.retriever.engine.wire import Request, Scored, SearchParams, SparseVector
from two_tower.retriever.errors import CollectionNotFound, EngineError, EngineUnavailable

RANDOM = np.random.default_rng(5)
NEAREST = [1.0, 0.5, -0.25, 0.125]
TERMS = qm.SparseVector(indices=[1, 4], values=[1.0, 0.5])


def filled(engine: Engine, name: str) -> None:
    """A collection of 60 points, every other one with a number for an id."""
    engine.create_collection(
        name,
        vectors_config={"dense": qm.VectorParams(size=4, distance=qm.Distance.COSINE)},
        sparse_vectors_config={"bm25": qm.SparseVectorParams()},
    )
    engine.create_payload_index(name, "kind", qm.PayloadSchemaType.INTEGER)
    points = [
        qm.PointStruct(
            id=number if number % 2 else str(uuid.uuid5(uuid.NAMESPACE_URL, str(number))),
            vector={
                "dense": RANDOM.standard_normal(4).tolist(),
                "bm25": qm.SparseVector(indices=[number % 7], values=[1.0 + number]),
            },
            payload={"kind": number % 3},
        )
        for number in range(60)
    ]
    engine.upsert(name, points)


def whole(engine: Engine, name: str, request: qm.QueryRequest) -> QueryResponse:
    return engine.query_points(
        name,
        request.query,
        using=request.using,
        prefetch=request.prefetch,
        query_filter=request.filter,
        limit=request.limit or 10,
    )


def scored(response: QueryResponse) -> Scored:
    """An answer's ids and scores."""
    points = response.points
    return Scored([str(point.id) for point in points], [point.score for point in points])


def test_scores_are_those_of_the_full_answers(engine: Engine, name: str) -> None:
    filled(engine, name)
    leg = qm.Prefetch(query=TERMS, using="bm25", limit=9)
    kind = qm.FieldCondition(key="kind", match=qm.MatchValue(value=1))
    requests = [
        qm.QueryRequest(query=NEAREST, using="dense", limit=25, with_payload=False),
        qm.QueryRequest(query=TERMS, using="bm25", limit=5),
        qm.QueryRequest(prefetch=[leg], query=NEAREST, using="dense", limit=9),
        qm.QueryRequest(query=NEAREST, using="dense", filter=qm.Filter(must=[kind]), limit=50),
        qm.QueryRequest(query=qm.SparseVector(indices=[99], values=[1.0]), using="bm25"),
    ]
    found = engine.query_scores(name, requests)
    assert found == [scored(whole(engine, name, request)) for request in requests]
    assert [len(one.ids) for one in found] == [25, 5, 9, 20, 0]
    assert {len(point_id) for point_id in found[0].ids} > {36}  # UUIDs, and numbers as text
    assert found[0].scores == sorted(found[0].scores, reverse=True)
    assert engine.query_scores(name, []) == []


def test_requests_of_our_own_are_the_clients(engine: Engine, name: str) -> None:
    filled(engine, name)
    kind = qm.Filter(must=[qm.FieldCondition(key="kind", match=qm.MatchValue(value=1))])
    params = SearchParams(hnsw_ef=40, exact=True, ignore=True, rescore=False, oversampling=2.0)
    copies = qm.QuantizationSearchParams(ignore=True, rescore=False, oversampling=2.0)
    theirs = qm.SearchParams(hnsw_ef=40, exact=True, quantization=copies)
    assert params.to_client() == theirs
    assert SearchParams().to_client() == qm.SearchParams()
    terms = SparseVector([1, 4], [1.0, 0.5])
    leg = Request(terms, "bm25", 9, filter=kind)
    nested = Request(NEAREST, "dense", 9, params=params, prefetch=[leg])
    client_leg = qm.Prefetch(query=TERMS, using="bm25", limit=9, filter=kind)
    pairs = [
        (Request(NEAREST, "dense", 25), qm.QueryRequest(query=NEAREST, using="dense", limit=25)),
        (Request(terms, "bm25", 5), qm.QueryRequest(query=TERMS, using="bm25", limit=5)),
        (leg, qm.QueryRequest(**dict(client_leg))),
        (
            nested,
            qm.QueryRequest(
                query=NEAREST, using="dense", limit=9, params=theirs, prefetch=[client_leg]
            ),
        ),
    ]
    answers = engine.query_scores(name, [ours for ours, _ in pairs])
    assert answers == engine.query_scores(name, [client for _, client in pairs])
    assert 0 < len(answers[2].ids) < len(answers[1].ids) + 9
    assert set(answers[3].ids) == set(answers[2].ids)


def test_what_an_engine_refuses_is_told_in_one_line(engine: Engine, name: str) -> None:
    with pytest.raises(CollectionNotFound, match=name):
        engine.query_scores(name, [qm.QueryRequest(limit=1)])
    filled(engine, name)
    for wrong in (
        qm.QueryRequest(query=[1.0, 2.0], using="dense"),
        qm.QueryRequest(query=NEAREST, using="none"),
    ):
        with pytest.raises(EngineError) as failure:
            engine.query_scores(name, [wrong])
        assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "{}",
        '{"result": null}',
        '{"result": []}',
        '{"result": [{"points": [{"id": 1}]}]}',
        "<",
    ],
)
def test_an_answer_that_is_not_qdrants_is_no_answer(body: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=body))
    client = QdrantClient(url="http://other", check_compatibility=False, transport=transport)
    engine = ServerEngine(lambda: client, "other")
    with pytest.raises(EngineUnavailable, match="no Qdrant answers at other"):
        engine.query_scores("c", [qm.QueryRequest(limit=1)])
    engine.close()
