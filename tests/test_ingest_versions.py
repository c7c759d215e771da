"""Verify, promote and drop: what stands between a load and the searches."""

from collections.abc import Callable

import pytest
from conftest import HashEncoder, make_passages

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify
from two_tower.ingest.versions.versions import drop, promote, versions
from two_tower.models.data import Dataset
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import Point, Record
from two_tower.retriever.errors import CollectionNotFound, EngineError, VerificationFailed

MakeData = Callable[..., Dataset]
PASSAGES = make_passages(300)


def record_of(engine: Engine, collection: str, passage_id: str) -> Record:
    return engine.retrieve(collection, [point_id(passage_id)], with_vectors=True)[0]


def test_verify_finds_a_wrong_vector(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:20])
    collection = loader.load(engine, data, encoder, name=name).collection
    verify(engine, collection, data, encoder)
    victim = record_of(engine, collection, "p7")
    assert isinstance(victim.vector, dict)
    turned = {**victim.vector, "pca_4": [1.0, 0.0, 0.0, 0.0]}
    point = Point(victim.id, turned, victim.payload or {})
    engine.upsert(collection, [point])
    with pytest.raises(VerificationFailed, match="'p7': vector 'pca_4' differs by"):
        verify(engine, collection, data, encoder)


def test_verify_finds_a_wrong_payload_and_a_wrong_hash(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:20])
    collection = loader.load(engine, data, encoder, name=name).collection
    victim = record_of(engine, collection, "p7")
    payload = {**(victim.payload or {}), "text": "not what DATA says"}
    engine.upsert(collection, [Point(victim.id, victim.vector or {}, payload=payload)])
    with pytest.raises(VerificationFailed, match="'p7': its payload is not what DATA says"):
        verify(engine, collection, data, encoder)
    payload["content_hash"] = "0" * 32
    engine.upsert(collection, [Point(victim.id, victim.vector or {}, payload=payload)])
    with pytest.raises(VerificationFailed, match=r"lacks 1 passages .* 'p7'"):
        verify(engine, collection, data, encoder)


def test_verify_refuses_other_data(
    edge_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    collection = loader.load(edge_engine, make_data(PASSAGES), encoder, name=name).collection
    other = make_data(PASSAGES[:10], name="OTHER")
    with pytest.raises(VerificationFailed, match=other.content_hash[:12]):
        verify(edge_engine, collection, other, encoder)


def test_promote_refuses_a_load_that_was_not_finished(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    collection = loader.load(engine, make_data(PASSAGES), encoder, name=name).collection
    engine.delete(collection, [point_id("p0")])
    with pytest.raises(VerificationFailed, match="299 points, expected 300"):
        promote(engine, name)
    with pytest.raises(CollectionNotFound):
        engine.resolve(name)
    with pytest.raises(CollectionNotFound, match="no version other"):
        promote(engine, name, "other")


def test_drop_refuses_what_is_in_use(engine: Engine, name: str, make_data: MakeData) -> None:
    data = make_data(PASSAGES[:20])
    first = loader.load(engine, data, HashEncoder(seed=1), name=name).collection
    second = loader.load(engine, data, HashEncoder(seed=2), name=name).collection
    promote(engine, name, second)
    for used in (second, name):
        with pytest.raises(EngineError, match=f"{name} -> {second}"):
            drop(engine, used)
    assert drop(engine, first) == [first]
    assert drop(engine, name, yes=True) == [second]
    assert not versions(engine, name)
    assert not [a for a in engine.get_aliases().aliases if a.alias_name == name]
    with pytest.raises(CollectionNotFound):
        drop(engine, name, yes=True)
