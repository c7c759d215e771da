"""Loading: what ends in the collection, idempotence, updates, resuming, refusals."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from conftest import HashEncoder, make_passages
from qdrant_client import models as qm

from ingest import loader
from ingest.collections import drop, promote, versions
from ingest.points import PointMaker, chunks, pack
from ingest.verifier import verify, verify_counts
from models.data import Dataset, Passage
from retriever.engine import Engine
from retriever.errors import (
    BundleError,
    CollectionMismatch,
    CollectionNotFound,
    ConfigError,
    DataError,
    EngineError,
    VerificationFailed,
)
from retriever.lexical import Bm25Config, Bm25Encoder, average_length
from retriever.schema import collection_name, point_id, read_metadata

MakeData = Callable[..., Dataset]
PASSAGES = make_passages(300)


def everything(engine: Engine, collection: str) -> dict[str, qm.Record]:
    records, offset = engine.scroll(collection, limit=10_000, with_payload=True, with_vectors=True)
    assert offset is None
    return {str(record.id): record for record in records}


def test_every_passage_becomes_the_right_point(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    report = loader.load(engine, make_data(PASSAGES), encoder, name=name)

    assert report.collection == collection_name(name, encoder.fingerprint)
    assert (report.sent, report.unchanged, report.pruned, report.kept) == (300, 0, 0, 0)
    found = everything(engine, report.collection)
    assert found.keys() == {point_id(passage.passage_id) for passage in PASSAGES}
    texts = [f"{passage.title}\n{passage.text}" for passage in PASSAGES]
    bm25 = Bm25Encoder(Bm25Config(avg_len=average_length(texts)))
    dense = encoder.encode_passages(texts)
    for row, passage in enumerate(PASSAGES):
        record = found[point_id(passage.passage_id)]
        payload = dict(record.payload or {})
        assert len(payload.pop("content_hash")) == 32
        assert payload == {
            "title": passage.title,
            "text": passage.text,
            "url": passage.url,
            "passage_id": passage.passage_id,
            **passage.fields,
        }
        assert isinstance(record.vector, dict)
        assert record.vector.keys() == {"dense", "pca_8", "pca_4", "bm25"}
        np.testing.assert_allclose(record.vector["dense"], dense[row], atol=1e-6)
        half = dense[row][:8] / np.linalg.norm(dense[row][:8])
        np.testing.assert_allclose(record.vector["pca_8"], half, atol=1e-6)
        expected = bm25.encode_passages([texts[row]])[0]
        stored = record.vector["bm25"]
        assert isinstance(stored, qm.SparseVector)
        weights = dict(zip(stored.indices, stored.values, strict=True))
        assert weights == pytest.approx(dict(zip(expected.indices, expected.values, strict=True)))


def test_metadata_says_what_is_in_it(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, encoder, name=name).collection
    metadata = read_metadata(engine, collection)
    assert metadata.bundle_fingerprint == encoder.fingerprint
    assert (metadata.dim, metadata.pca_dims) == (16, (8, 4))
    assert metadata.data["content_hash"] == data.content_hash
    assert metadata.data["counts"]["passages"] == metadata.expected_points == 300
    assert metadata.bm25["avg_len"] == pytest.approx(average_length(p.content for p in PASSAGES))


def test_payload_indexes_cover_what_users_filter_by(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    collection = loader.load(engine, make_data(PASSAGES), encoder, name=name).collection
    indexes = engine.get_collection(collection).payload_schema
    assert {field: index.data_type.value for field, index in indexes.items()} == {
        "title": "text",
        "passage_id": "keyword",
        "kind": "keyword",
        "year": "integer",
        "rank": "float",
    }
    assert indexes["kind"].points == 300


def test_second_load_sends_nothing(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, encoder, name=name).collection
    before = everything(engine, collection)
    again = loader.load(engine, data, encoder, name=name)
    assert (again.sent, again.unchanged, again.kept) == (0, 300, 0)
    assert everything(engine, collection) == before


def test_only_what_changed_is_sent_and_the_rest_is_kept_or_pruned(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    collection = loader.load(engine, make_data(PASSAGES), encoder, name=name).collection
    bm25 = read_metadata(engine, collection).bm25
    changed = PASSAGES[0]._replace(text="quite another text")
    added = Passage("new", "a passage that was not there")
    newer = make_data([changed, *PASSAGES[1:290], added], name="NEWER")

    report = loader.load(engine, newer, encoder, name=name)
    assert (report.sent, report.unchanged, report.kept) == (2, 289, 10)
    assert read_metadata(engine, collection).bm25 == bm25
    assert verify(engine, collection, newer, encoder).kept == 10
    assert verify_counts(engine, collection).points == 301

    report = loader.load(engine, newer, encoder, name=name, prune=True)
    assert (report.sent, report.unchanged, report.pruned, report.kept) == (0, 291, 10, 0)
    assert everything(engine, collection).keys() == {
        point_id(p.passage_id) for p in newer.passages()
    }
    assert verify(engine, collection, newer, encoder).points == 291


def test_a_load_that_stops_anywhere_goes_on(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, encoder, name=name).collection
    whole = everything(engine, collection)
    lost = [point_id(passage.passage_id) for passage in PASSAGES[100:250]]
    engine.delete(collection, [*lost])
    with pytest.raises(VerificationFailed, match="150 points, expected 300"):
        verify_counts(engine, collection)
    assert loader.load(engine, data, encoder, name=name).sent == 150
    assert everything(engine, collection) == whole


def test_indexes_missing_after_a_stop_are_made_good(
    edge_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    metadata = loader._new_metadata(data, encoder)
    schema = metadata.schema
    edge_engine.create_collection(
        collection_name(name, encoder.fingerprint),
        vectors_config=schema.vectors_config,
        sparse_vectors_config=schema.sparse_vectors_config,
        metadata=metadata.to_dict(),
    )
    collection = loader.load(edge_engine, data, encoder, name=name).collection
    assert set(edge_engine.get_collection(collection).payload_schema) >= {"title", "kind"}


def test_another_bundle_makes_another_collection(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    old, new = HashEncoder(seed=1), HashEncoder(seed=2)
    first = loader.load(engine, data, old, name=name).collection
    promote(engine, name, first)
    second = loader.load(engine, data, new, name=name).collection
    assert engine.resolve(name) == first
    promote(engine, name, second)
    assert engine.resolve(name) == second
    assert {version.collection for version in versions(engine, name)} == {first, second}
    assert [v.aliases for v in versions(engine, name) if v.collection == first] == [()]
    with pytest.raises(CollectionMismatch, match=old.fingerprint) as failure:
        verify(engine, first, data, new)
    assert new.fingerprint in str(failure.value)


def test_verify_finds_a_wrong_vector(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:20])
    collection = loader.load(engine, data, encoder, name=name).collection
    verify(engine, collection, data, encoder)
    victim = everything(engine, collection)[point_id("p7")]
    assert isinstance(victim.vector, dict)
    turned = {**victim.vector, "pca_4": [1.0, 0.0, 0.0, 0.0]}
    point = qm.PointStruct(id=victim.id, vector=turned, payload=victim.payload)
    engine.upsert(collection, [point])
    with pytest.raises(VerificationFailed, match="'p7': vector 'pca_4' differs by"):
        verify(engine, collection, data, encoder)


def test_verify_finds_a_wrong_payload_and_a_wrong_hash(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:20])
    collection = loader.load(engine, data, encoder, name=name).collection
    victim = everything(engine, collection)[point_id("p7")]
    payload = {**(victim.payload or {}), "text": "not what DATA says"}
    engine.upsert(
        collection, [qm.PointStruct(id=victim.id, vector=victim.vector or {}, payload=payload)]
    )
    with pytest.raises(VerificationFailed, match="payload of passage 'p7'"):
        verify(engine, collection, data, encoder)
    payload["content_hash"] = "0" * 32
    engine.upsert(
        collection, [qm.PointStruct(id=victim.id, vector=victim.vector or {}, payload=payload)]
    )
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


def test_collections_of_others_are_left_alone(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:5])
    foreign = collection_name(name, encoder.fingerprint)
    vectors = {"dense": qm.VectorParams(size=16, distance=qm.Distance.COSINE)}
    engine.create_collection(foreign, vectors_config=vectors)
    with pytest.raises(CollectionMismatch, match="was not made by ingest load"):
        loader.load(engine, data, encoder, name=name)
    assert not versions(engine, name)
    with pytest.raises(EngineError, match="--yes"):
        drop(engine, foreign)
    engine.create_collection(name, vectors_config=vectors)
    with pytest.raises(CollectionMismatch, match="is a collection itself"):
        loader.load(engine, data, encoder, name=name)


def test_a_collection_of_other_widths_is_refused(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:5])
    loader.load(engine, data, HashEncoder(dim=16), name=name)
    liar = HashEncoder(dim=12)
    liar.fingerprint = HashEncoder(dim=16).fingerprint
    with pytest.raises(CollectionMismatch, match=r"'dense': 16.*expected.*'dense': 12"):
        loader.load(engine, data, liar, name=name)


def test_two_bundles_with_the_same_short_fingerprint_are_told_apart(
    edge_engine: Engine, name: str, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:5])
    first, second = HashEncoder(seed=1), HashEncoder(seed=2)
    second.fingerprint = first.fingerprint[:8] + second.fingerprint[8:]
    loader.load(edge_engine, data, first, name=name)
    with pytest.raises(CollectionMismatch, match=second.fingerprint):
        loader.load(edge_engine, data, second, name=name)


def test_vectors_of_the_wrong_width_are_refused(
    edge_engine: Engine, name: str, make_data: MakeData
) -> None:
    encoder = HashEncoder(dim=16)
    encoder.dim = 20
    with pytest.raises(BundleError, match=r"\(5, 16\).*'dense': 20"):
        loader.load(edge_engine, make_data(PASSAGES[:5]), encoder, name=name)


def test_names_that_no_engine_takes_are_refused(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:5])
    for bad in ("", "a/b", "../up", "a b", "x" * 101, "-x", "a--b", "né"):
        with pytest.raises(ConfigError, match="cannot name a collection"):
            loader.load(edge_engine, data, encoder, name=bad)
    assert not edge_engine.get_collections().collections


def test_data_without_passages_is_refused(
    edge_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:1])
    data.manifest["counts"]["passages"] = 0
    with pytest.raises(DataError, match="no passages"):
        loader.load(edge_engine, data, encoder, name=name)


def test_odd_text_survives(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    odd = [
        Passage("nul\u2028id", 'tab\tline\nquote" back\\slash \u200b zero width', "ünicode 💡"),
        Passage("..", "only stop words: the of and", ""),
        Passage("long", "word " * 200_000, "a megabyte"),
        Passage("punctuation", "?!...", fields={"a.b": 1, "list": ["x", "y"], "nested": {"c": 1}}),
    ]
    data = make_data(odd)
    collection = loader.load(engine, data, encoder, name=name).collection
    assert verify(engine, collection, data, encoder).compared == 4
    texts = {
        (r.payload or {})["passage_id"]: (r.payload or {})["text"]
        for r in everything(engine, collection).values()
    }
    assert texts == {passage.passage_id: passage.text for passage in data.passages()}


def test_batches_are_bounded_by_count_and_by_bytes(encoder: HashEncoder) -> None:
    maker = PointMaker(encoder, Bm25Encoder(Bm25Config(avg_len=10.0)))
    points = [sized for chunk in chunks(PASSAGES, 64) for sized in maker.make(chunk)]
    by_count = list(pack(points, max_points=7))
    assert [len(batch) for batch in by_count] == [7] * 42 + [6]
    assert [p.id for batch in by_count for p in batch] == [s.point.id for s in points]
    limit = 3 * max(sized.size for sized in points)
    sizes = {sized.point.id: sized.size for sized in points}
    by_bytes = list(pack(points, max_bytes=limit))
    assert all(sum(sizes[p.id] for p in batch) <= limit for batch in by_bytes)
    assert all(
        sum(sizes[p.id] for p in batch) + sizes[following[0].id] > limit
        for batch, following in pairwise(by_bytes)
    )
    assert [len(b) for b in pack(points[:3], max_bytes=1)] == [1, 1, 1]
    assert list(pack([])) == []


def test_the_size_of_a_point_is_never_underrated(encoder: HashEncoder) -> None:
    maker = PointMaker(encoder, Bm25Encoder(Bm25Config(avg_len=10.0)))
    odd = Passage("p", "\x01\x02 é 💡 " * 100, fields={"x": [1, 2, 3]})
    for sized in maker.make([odd, *PASSAGES[:20]]):
        assert sized.size >= len(sized.point.model_dump_json().encode())


def test_a_passage_too_large_for_a_request_is_named(encoder: HashEncoder) -> None:
    maker = PointMaker(encoder, Bm25Encoder(Bm25Config(avg_len=10.0)))
    with pytest.raises(DataError, match="'giant' takes 3"):
        list(maker.make([Passage("giant", "x" * 31 * 2**20)]))


def test_a_field_with_a_reserved_name_is_refused(encoder: HashEncoder) -> None:
    maker = PointMaker(encoder, Bm25Encoder(Bm25Config(avg_len=10.0)))
    with pytest.raises(DataError, match="field 'url'"):
        list(maker.make([Passage("p", "text", fields={"url": "x"})]))
