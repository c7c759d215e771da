"""Updates by the smallest number of writes; a plan that says so before."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from conftest import HashEncoder, make_passages

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.loader import LoadSettings
from two_tower.ingest.loading.verify import verify
from two_tower.models.data import Dataset, Passage
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import Point

MakeData = Callable[..., Dataset]
PASSAGES = make_passages(300)


class CountingEncoder(HashEncoder):
    """Remembers what it was asked to encode."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        return super().encode_passages(texts)


class CountingEngine:
    """Passes calls on to a real engine and counts them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self._engine, name)

    def with_retry(self, _: float) -> "CountingEngine":
        return self

    @property
    def writes(self) -> list[str]:
        return [c for c in self.calls if c in ("upsert", "delete", "batch_update_points")]


def edited(passage: Passage) -> Passage:
    return passage._replace(url="http://example.org/moved", fields={"kind": "moved", "year": 1})


def test_each_kind_of_change_costs_what_it_must(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    encoder = CountingEncoder()
    collection = loader.load(engine, make_data(PASSAGES), encoder, name=name).collection
    vectors = engine.retrieve(collection, [point_id("p7")], with_vectors=True)[0].vector
    new = Passage("new", "never seen before")
    moved = [edited(passage) for passage in PASSAGES[:20]]
    rewritten = [p._replace(text=f"{p.text} more") for p in PASSAGES[20:25]]
    retitled = PASSAGES[25]._replace(title="Another title")
    newer = make_data([*moved, *rewritten, retitled, *PASSAGES[26:290], new], name="NEWER")

    encoder.texts.clear()
    counting: Any = CountingEngine(engine)
    settings = LoadSettings(prune=True)
    report = loader.load(counting, newer, encoder, name=name, settings=settings)
    assert replace(report, seconds=0.0) == loader.LoadReport(
        collection, added=1, replaced=6, payload_only=20, unchanged=264, pruned=10
    )
    assert encoder.texts == [new.content, *(p.content for p in [*rewritten, retitled])]
    assert sorted(counting.writes) == ["batch_update_points", "delete", "upsert"]
    verify(engine, collection, newer, encoder)
    for passage in moved:
        (record,) = engine.retrieve(collection, [point_id(passage.passage_id)], with_vectors=True)
        payload = dict(record.payload or {})
        assert len(payload.pop("content_hash")) == 32
        assert payload == {
            "title": passage.title,
            "text": passage.text,
            "url": "http://example.org/moved",
            "passage_id": passage.passage_id,
            "kind": "moved",
            "year": 1,
        }
    assert engine.retrieve(collection, [point_id("p7")], with_vectors=True)[0].vector == vectors

    encoder.texts.clear()
    counting.calls.clear()
    again = loader.load(counting, newer, encoder, name=name, settings=settings)
    assert (again.unchanged, again.sent, again.payload_only) == (291, 0, 0)
    assert encoder.texts == counting.writes == []


def test_a_payload_alone_keeps_the_cluster_of_its_vectors(
    edge_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    options = CollectionOptions(clusters=4)
    data = make_data(PASSAGES)
    collection = loader.load(edge_engine, data, encoder, name=name, options=options).collection
    before = edge_engine.retrieve(collection, [point_id("p3")])[0].payload or {}
    newer = make_data([*PASSAGES[:3], edited(PASSAGES[3]), *PASSAGES[4:]], name="NEWER")
    assert loader.load(edge_engine, newer, encoder, name=name).payload_only == 1
    after = edge_engine.retrieve(collection, [point_id("p3")])[0].payload or {}
    assert after["kind"] == "moved"
    assert after["cluster"] == before["cluster"]
    verify(edge_engine, collection, newer, encoder)


def test_points_of_others_are_kept_or_pruned(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:10])
    collection = loader.load(engine, data, encoder, name=name).collection
    (record,) = engine.retrieve(collection, [point_id("p1")], with_vectors=True)
    odd = Point(7, record.vector or {}, payload={"content_hash": 3})
    engine.upsert(collection, [odd])
    assert loader.load(engine, data, encoder, name=name).kept == 1
    pruned = loader.load(engine, data, encoder, name=name, settings=LoadSettings(prune=True))
    assert pruned.pruned == 1
    assert engine.count(collection).count == 10


def test_a_plan_says_what_a_load_then_does(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    plan = loader.plan(engine, data, encoder, name=name)
    assert not engine.collection_exists(plan.collection)
    assert plan == replace(loader.load(engine, data, encoder, name=name), seconds=0.0)
    newer = make_data([edited(PASSAGES[0]), *PASSAGES[1:100], Passage("new", "new")], name="NEWER")
    counting: Any = CountingEngine(engine)
    plan = loader.plan(counting, newer, encoder, name=name, prune=True)
    assert not {*counting.calls} & {"upsert", "delete", "batch_update_points", "update_collection"}
    assert plan.points == 101
    settings = LoadSettings(prune=True)
    done = loader.load(engine, newer, encoder, name=name, settings=settings)
    assert plan == replace(done, seconds=0.0)
    assert engine.count(done.collection).count == plan.points


def test_the_rate_is_limited(
    edge_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    settings = LoadSettings(rate_limit=200)
    report = loader.load(edge_engine, data, encoder, name=name, settings=settings)
    assert report.seconds >= 250 / 200  # the last 50 of 300 leave when 250 had their time
    assert verify(edge_engine, report.collection, data, encoder).points == 300
