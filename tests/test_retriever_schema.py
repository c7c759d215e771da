import dataclasses
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models as qm

from two_tower.models.data import Passage
from two_tower.models.errors import ConfigError, DataError
from two_tower.retriever.collection.options import (
    CollectionOptions,
    DiskOptions,
    indexable_fields,
)
from two_tower.retriever.collection.schema import (
    CollectionMetadata,
    CollectionSchema,
    base_name,
    check_name,
    collection_name,
    content_hash,
    from_payload,
    point_id,
    read_metadata,
    to_payload,
)
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import CollectionMismatch

PASSAGE = Passage("id", "text", "title", "url", {"kind": "note", "list": [1, {"a": None}]})
METADATA = CollectionMetadata(
    bundle_fingerprint="ab" * 32,
    dim=24,
    pca_dims=(8, 4),
    data={"source": {"name": "x"}, "content_hash": "c", "counts": {"passages": 5}, "kept": 2},
    bm25={
        **{"normalization": "nfkc", "title_weight": 20.0, "avg_len": 7.5},
        **{"k": 0.9, "b": 0.4, "language": "english"},
    },
    created_at="2026-01-01T00:00:00+00:00",
)


def test_collection_names() -> None:
    assert collection_name("docs", "0123456789abcdef") == "docs--01234567"
    assert base_name("docs--01234567") == "docs"
    assert base_name("docs") == "docs"
    assert base_name("docs--not-hex!") == "docs--not-hex!"
    assert check_name("a_b-c.d9") == "a_b-c.d9"
    for bad in ("", "a b", "a/b", "..", "-a", "a--b", "x" * 101, "a\n", "ü"):
        with pytest.raises(ConfigError, match="cannot name a collection"):
            check_name(bad)


def test_point_ids_are_uuid5_and_never_change() -> None:
    """The literal is what earlier loads wrote: another value would orphan every collection."""
    assert point_id("p1") == "22ae1c9f-e3b1-5a00-a86a-431e29076837"
    assert uuid.UUID(point_id("p1")).version == 5
    assert len({point_id(f"p{n}") for n in range(1000)}) == 1000


def test_the_content_hash_sees_everything() -> None:
    changed = [
        PASSAGE._replace(passage_id="other"),
        PASSAGE._replace(text="text "),
        PASSAGE._replace(title=""),
        PASSAGE._replace(url="urls"),
        PASSAGE._replace(fields={}),
        PASSAGE._replace(fields={"kind": "note", "list": [1, {"a": 0}]}),
        PASSAGE._replace(title="", text="title\ntext"),
    ]
    assert len({content_hash(passage) for passage in [PASSAGE, *changed]}) == 8
    turned = dict(reversed(PASSAGE.fields.items()))
    assert content_hash(PASSAGE._replace(fields=turned)) == content_hash(PASSAGE)


def test_the_content_hash_never_changes() -> None:
    """The literal is what earlier loads wrote: another value would send every passage again."""
    fields = {"b": [1, {"z": 0.1}], "a": None}
    passage = Passage("p1", "text é", "title", "u", fields)
    assert content_hash(passage) == "9f9d37525bc539fc325060991e15f807"


def test_the_payload_reads_well_from_the_top() -> None:
    payload = to_payload(PASSAGE)
    assert list(payload) == [
        *("title", "text", "url", "passage_id"),
        *("kind", "list"),
        "content_hash",
    ]
    with pytest.raises(DataError, match="field 'title'"):
        to_payload(PASSAGE._replace(fields={"title": "x"}))


@given(st.text(), st.text(), st.dictionaries(st.sampled_from("abc"), st.integers() | st.text()))
def test_a_passage_survives_its_payload(text: str, title: str, fields: dict[str, object]) -> None:
    passage = Passage("p", text, title, "u", fields)
    assert from_payload(to_payload(passage)) == passage


def test_indexes_for_what_a_manifest_describes() -> None:
    census = {
        "kind": {"type": "keyword", "values": 3},
        "id": {"type": "keyword", "values": 10_000, "more": True},
        "year": {"type": "integer", "values": 10_000, "more": True},
        "price": {"type": "float", "values": 5},
        "open": {"type": "bool", "values": 2},
        "body": {"type": "text", "values": 9},
        "any": {"type": "mixed", "values": 9},
        "deep": {"type": "object", "values": 9},
        "a.b": {"type": "keyword", "values": 2},
    }
    assert {name: index.value for name, index in indexable_fields(census).items()} == {
        "kind": "keyword",
        "year": "integer",
        "price": "float",
        "open": "bool",
    }


def test_schema() -> None:
    schema = CollectionSchema(24, (8, 4))
    assert {n: (p.size, p.distance) for n, p in schema.vectors_config.items()} == {
        "dense": (24, qm.Distance.COSINE),
        "pca_8": (8, qm.Distance.COSINE),
        "pca_4": (4, qm.Distance.COSINE),
    }
    for on_disk in (False, True):
        options = CollectionOptions(on_disk=DiskOptions(bm25=on_disk))
        (bm25,) = CollectionSchema(24, (8, 4), options=options).sparse_vectors_config.values()
        assert bm25.modifier is qm.Modifier.IDF
        assert bm25.index == qm.SparseIndexParams(on_disk=on_disk)


def test_metadata_round_trip(engine: Engine, name: str) -> None:
    assert CollectionMetadata.from_dict(METADATA.to_dict()) == METADATA
    assert METADATA.expected_points == 7
    schema = METADATA.schema
    engine.create_collection(
        name,
        vectors_config=schema.vectors_config,
        sparse_vectors_config=schema.sparse_vectors_config,
        metadata=METADATA.to_dict(),
    )
    assert read_metadata(engine, name) == METADATA
    schema.require(engine.get_collection(name), collection=name)
    with pytest.raises(CollectionMismatch, match=r"'pca_4': 4.*expected.*'pca_2': 2") as failure:
        CollectionSchema(24, (8, 2)).require(engine.get_collection(name), collection=name)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("stored", [None, {}, {"format": "x"}, {"format": "two-tower-search/1"}])
def test_metadata_of_others(engine: Engine, name: str, stored: dict[str, str] | None) -> None:
    vectors = METADATA.schema.vectors_config
    engine.create_collection(name, vectors_config=vectors, metadata=stored)
    with pytest.raises(CollectionMismatch, match="was not made by ingest load"):
        read_metadata(engine, name)


def test_age_is_measured_from_creation() -> None:
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    aged = dataclasses.replace(METADATA, created_at=an_hour_ago.isoformat())
    assert aged.age_s == pytest.approx(3600, abs=60)
