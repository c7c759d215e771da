"""One contract for every engine: collections, aliases and points.

Embedded Edge, and a real server; `test_retriever_engine_search.py` searches.
"""

from collections.abc import Callable
from typing import Any

import pytest
from conftest import HashEncoder, make_passages
from qdrant_client import models as qm

from two_tower.ingest.loading import loader
from two_tower.models.data import Dataset
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import SparseVector
from two_tower.retriever.errors import CollectionNotFound, EngineError

PASSAGES = make_passages(120, seed=3)
IDS = [point_id(passage.passage_id) for passage in PASSAGES]
ENCODER = HashEncoder()
VECTORS = {"dense": qm.VectorParams(size=4, distance=qm.Distance.COSINE)}


def test_collections_come_and_go(engine: Engine, name: str) -> None:
    assert not engine.collection_exists(name)
    assert not engine.delete_collection(name)
    engine.create_collection(name, vectors_config=VECTORS, metadata={"a": {"b": [1, 2.5, None]}})
    assert engine.collection_exists(name)
    assert name in {found.name for found in engine.get_collections().collections}
    assert engine.resolve(name) == name
    info = engine.get_collection(name)
    assert info.points_count == 0
    assert info.config.metadata == {"a": {"b": [1, 2.5, None]}}
    assert isinstance(info.config.params.vectors, dict)
    assert info.config.params.vectors["dense"].size == 4
    assert engine.delete_collection(name)
    assert not engine.collection_exists(name)
    assert name not in {found.name for found in engine.get_collections().collections}


def test_metadata_is_merged_by_key(engine: Engine, name: str) -> None:
    engine.create_collection(name, vectors_config=VECTORS, metadata={"a": {"x": 1}, "b": 2})
    engine.update_collection(name, metadata={"a": {"y": 3}, "c": "é"})
    assert engine.get_collection(name).config.metadata == {"a": {"y": 3}, "b": 2, "c": "é"}


def create_alias(alias: str, collection: str) -> qm.CreateAliasOperation:
    create = qm.CreateAlias(alias_name=alias, collection_name=collection)
    return qm.CreateAliasOperation(create_alias=create)


def delete_alias(alias: str) -> qm.DeleteAliasOperation:
    return qm.DeleteAliasOperation(delete_alias=qm.DeleteAlias(alias_name=alias))


def aliases(engine: Engine, name: str) -> dict[str, str]:
    found = engine.get_aliases().aliases
    return {a.alias_name: a.collection_name for a in found if a.alias_name.startswith(name)}


def test_aliases(engine: Engine, name: str) -> None:
    one, two, alias = f"{name}_1", f"{name}_2", f"{name}_alias"
    for collection in (one, two):
        engine.create_collection(collection, vectors_config=VECTORS)
    engine.upsert(two, [qm.PointStruct(id=1, vector={"dense": [1.0, 0, 0, 0]}, payload={})])
    engine.update_collection_aliases([create_alias(alias, one)])
    assert engine.resolve(alias) == one
    assert engine.collection_exists(alias)
    assert engine.count(alias).count == 0
    engine.update_collection_aliases([delete_alias(alias), create_alias(alias, two)])
    assert engine.resolve(alias) == two
    assert engine.count(alias).count == 1
    assert engine.get_collection(alias).points_count == 1
    assert aliases(engine, name) == {alias: two}
    assert not engine.delete_collection(alias)
    engine.delete_collection(two)
    assert aliases(engine, name) == {}
    with pytest.raises(CollectionNotFound, match="no collection"):
        engine.resolve(alias)


def test_an_alias_needs_a_collection_and_a_free_name(engine: Engine, name: str) -> None:
    engine.create_collection(name, vectors_config=VECTORS)
    with pytest.raises(CollectionNotFound):
        engine.update_collection_aliases([create_alias(f"{name}_alias", f"{name}_none")])
    with pytest.raises(EngineError, match="ollection"):
        engine.update_collection_aliases([create_alias(name, name)])
    assert aliases(engine, name) == {}
    engine.update_collection_aliases([delete_alias(f"{name}_none")])
    engine.update_collection_aliases([create_alias(f"{name}_alias", name)])
    with pytest.raises(EngineError, match="lias"):
        engine.create_collection(f"{name}_alias", vectors_config=VECTORS)


@pytest.mark.parametrize(
    "call",
    [
        lambda engine, name: engine.count(name),
        lambda engine, name: engine.get_collection(name),
        lambda engine, name: engine.scroll(name),
        lambda engine, name: engine.retrieve(name, [1]),
        lambda engine, name: engine.query_points(name, [1.0, 0, 0, 0], using="dense"),
        lambda engine, name: engine.query_scores(name, [qm.QueryRequest(limit=1)]),
        lambda engine, name: engine.upsert(name, [qm.PointStruct(id=1, vector={}, payload={})]),
        lambda engine, name: engine.delete(name, [1]),
        lambda engine, name: engine.update_collection(name, metadata={"a": 1}),
        lambda engine, name: engine.create_payload_index(name, "a", qm.PayloadSchemaType.KEYWORD),
        lambda engine, name: engine.resolve(name),
    ],
)
def test_a_missing_collection_is_named(
    engine: Engine, name: str, call: Callable[[Engine, str], Any]
) -> None:
    with pytest.raises(CollectionNotFound, match=name) as failure:
        call(engine, name)
    assert "\n" not in str(failure.value)


def test_wrong_vectors_are_refused_and_nothing_is_written(engine: Engine, name: str) -> None:
    engine.create_collection(name, vectors_config=VECTORS)
    good = qm.PointStruct(id=1, vector={"dense": [1.0, 0, 0, 0]}, payload={"a": 1})
    engine.upsert(name, [good])
    for vector in ({"dense": [1.0, 2.0]}, {"none": [1.0, 0, 0, 0]}):
        bad = qm.PointStruct(id=1, vector=vector, payload={"a": 2})
        with pytest.raises(EngineError) as failure:
            engine.upsert(name, [bad])
        assert "\n" not in str(failure.value)
    assert engine.retrieve(name, [1])[0].payload == {"a": 1}
    with pytest.raises(EngineError, match="dim"):
        engine.query_points(name, [1.0, 2.0], using="dense")
    with pytest.raises(EngineError, match="none"):
        engine.query_points(name, [1.0, 0, 0, 0], using="none")
    with pytest.raises(EngineError, match="already"):
        engine.create_collection(name, vectors_config=VECTORS)


def test_points_come_back_as_they_went_in(engine: Engine, name: str) -> None:
    sparse = {"bm25": qm.SparseVectorParams(modifier=qm.Modifier.IDF)}
    engine.create_collection(name, vectors_config=VECTORS, sparse_vectors_config=sparse)
    payload = {"t": 'nul \x00 quote " 💡', "n": None, "l": [1, "a"], "d": {"e": 1.5}, "b": False}
    vector = {"dense": [3.0, 4, 0, 0], "bm25": qm.SparseVector(indices=[7, 2**31], values=[1, 2.5])}
    points = [
        qm.PointStruct(id=5, vector=vector, payload=payload),
        qm.PointStruct(id=IDS[0], vector={"dense": [1.0, 0, 0, 0]}, payload={}),
    ]
    for _ in range(2):
        engine.upsert(name, points)
    assert engine.count(name).count == 2
    found = engine.retrieve(name, [5], with_vectors=True)[0]
    assert found.payload == payload
    assert isinstance(found.vector, dict)
    assert found.vector["dense"] == pytest.approx([0.6, 0.8, 0, 0])
    assert found.vector["bm25"] == SparseVector([7, 2**31], [1, 2.5])
    part = engine.retrieve(name, [5], with_payload=["b", "n"], with_vectors=["dense"])[0]
    assert part.payload == {"b": False, "n": None}
    assert isinstance(part.vector, dict)
    assert list(part.vector) == ["dense"]
    assert not engine.retrieve(name, [5], with_payload=False)[0].payload
    assert {record.id for record in engine.retrieve(name, [IDS[0], 5, 6])} == {5, IDS[0]}
    engine.upsert(name, [qm.PointStruct(id=5, vector={"dense": [0, 1.0, 0, 0]}, payload={"x": 1})])
    replaced = engine.retrieve(name, [5], with_vectors=True)[0]
    assert replaced.payload == {"x": 1}
    assert replaced.vector == {"dense": [0, 1, 0, 0]}


def test_delete_by_id_and_by_filter(
    engine: Engine, name: str, make_data: Callable[..., Dataset]
) -> None:
    collection = loader.load(engine, make_data(PASSAGES), ENCODER, name=name).collection
    engine.delete(collection, [*IDS[:10], point_id("not there")])
    assert engine.count(collection).count == 110
    old = qm.FieldCondition(key="year", range=qm.Range(lt=2010))
    engine.delete(collection, qm.Filter(must=[old]))
    left = [p for p in PASSAGES[10:] if p.fields["year"] >= 2010]
    records, _ = engine.scroll(collection, limit=1000, with_payload=["passage_id"])
    assert {(r.payload or {})["passage_id"] for r in records} == {p.passage_id for p in left}


def test_datetimes_can_be_filtered(engine: Engine, name: str) -> None:
    engine.create_collection(name, vectors_config=VECTORS)
    engine.create_payload_index(name, "when", qm.PayloadSchemaType.DATETIME)
    engine.upsert(
        name,
        [
            qm.PointStruct(id=n, vector={}, payload={"when": f"2024-0{n}-15T12:00:00Z"})
            for n in range(1, 6)
        ],
    )
    bounds = qm.DatetimeRange(gte="2024-02-15T12:00:00Z", lt="2024-04-15T12:00:00Z")
    condition = qm.Filter(must=[qm.FieldCondition(key="when", range=bounds)])
    assert [r.id for r in engine.scroll(name, scroll_filter=condition)[0]] == [2, 3]
