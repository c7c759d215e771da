"""Points of arrays are stored as the same points of the client's models are, to the last bit."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import to_structs
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.server import ServerEngine
from two_tower.retriever.engine.wire import Point, to_json
from two_tower.retriever.errors import EngineError, EngineUnavailable

# Subnormal, smallest and largest; what 1e9 neighbours is told by nine digits; random bits.
ODD = [1e-45, -1.1754944e-38, 3.4028235e38, 0.0, -0.0, 1 / 3, 1e9, 16777217.0]
RANDOM = np.random.default_rng(3).integers(0, 2**31, 56, dtype=np.uint32).view(np.float32)
ROWS = np.stack([np.array(ODD, np.float32), *np.nan_to_num(RANDOM, nan=0.5).reshape(7, 8)])
TEXTS = [f"rivers and banks of passage{number} " * (number + 1) for number in range(len(ROWS))]
PAYLOADS: list[dict[str, Any]] = [
    {"t": 'nul \x00 quote " 💡', "n": None, "l": [1, "a"], "d": {"e": 0.1}, "b": False, "i": 2**53},
    *({"number": number} for number in range(1, len(ROWS))),
]
VECTORS = {"dense": qm.VectorParams(size=8, distance=qm.Distance.DOT)}
SPARSE = {"bm25": qm.SparseVectorParams()}


def points() -> list[Point]:
    sparse = Bm25Encoder(Bm25Config(avg_len=10.0)).encode_texts(TEXTS)
    return [
        Point(number, {"dense": row, "bm25": sparse[number]}, PAYLOADS[number])
        for number, row in enumerate(ROWS)
    ]


def by_term(vector: Any) -> dict[int, np.float32]:
    return dict(zip(vector.indices, map(np.float32, vector.values), strict=True))


def test_stored_as_they_are(engine: Engine, name: str) -> None:
    engine.create_collection(name, vectors_config=VECTORS, sparse_vectors_config=SPARSE)
    engine.upsert(name, points())
    weights = Bm25Encoder(Bm25Config(avg_len=10.0)).encode_texts(TEXTS)
    found = engine.retrieve(name, range(len(ROWS)), with_vectors=True)
    for record in found:
        number = int(record.id)
        stored: Any = record.vector
        assert np.array(stored["dense"], np.float32).tobytes() == ROWS[number].tobytes()
        assert by_term(stored["bm25"]) == by_term(weights[number])
        assert record.payload == PAYLOADS[number]
    assert len(found) == len(ROWS)


def test_arrays_of_another_width_are_refused(engine: Engine, name: str) -> None:
    engine.create_collection(name, vectors_config=VECTORS, sparse_vectors_config=SPARSE)
    with pytest.raises(EngineError, match="8"):
        engine.upsert(name, [Point(1, {"dense": ROWS[0][:5]}, {})])
    assert engine.count(name).count == 0


def test_the_body_is_what_the_client_would_send() -> None:
    ours = json.loads(to_json(points()))["points"]
    structs = qm.PointsList(points=to_structs(points()))
    theirs = json.loads(structs.model_dump_json(exclude_none=True))["points"]
    for left, right in zip(ours, theirs, strict=True):
        assert np.array_equal(
            np.array(left["vector"].pop("dense"), np.float32),
            np.array(right["vector"].pop("dense"), np.float32),
        )
        assert left == right


@pytest.mark.parametrize(
    "body",
    ["[]", "{}", '{"result": null}', '{"result": [1]}', '{"result": {"status": "odd"}}', "<"],
)
def test_an_answer_that_is_not_qdrants_is_no_answer(body: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=body))
    client = QdrantClient(url="http://other", check_compatibility=False, transport=transport)
    engine = ServerEngine(lambda: client, "other")
    with pytest.raises(EngineUnavailable, match="no Qdrant answers at other"):
        engine.upsert("c", points())
    engine.close()


def test_what_is_not_plain_json_is_sent_none_the_less() -> None:
    wide = np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2]  # not contiguous
    body = json.loads(to_json([Point(1, {"dense": wide[1]}, {"long": 2**80})]))
    assert body["points"] == [
        {"id": 1, "vector": {"dense": [4.0, 6.0]}, "payload": {"long": 2**80}}
    ]
    with pytest.raises(TypeError, match="set is not JSON"):
        to_json([Point(1, {}, {"odd": {1, 2}})])
