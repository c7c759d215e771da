"""Options of a collection, as the engines say that they have them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import HashEncoder, make_passages
from qdrant_client import models as qm

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.declared import require_values
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError
from two_tower.retriever.collection.options import (
    CollectionOptions,
    DiskOptions,
    HnswOptions,
    QuantizationOptions,
)
from two_tower.retriever.collection.schema import CollectionMetadata, read_metadata
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine, collection_names
from two_tower.retriever.errors import CollectionMismatch, EngineError

PASSAGES = make_passages(40)
MakeData = Callable[..., Dataset]
FIRST = CollectionOptions(
    distance="dot",
    datatype="float16",
    hnsw=HnswOptions(m=8, ef_construct=32, above_kb=5000),
    quantization=QuantizationOptions("binary", 2.0),
    on_disk=DiskOptions(vectors=True, payload=False, bm25=True),
    clusters=3,
)
SECOND = replace(
    FIRST,
    hnsw=HnswOptions(m=12, ef_construct=64, above_kb=7000),
    quantization=QuantizationOptions("scalar", always_ram=False),
    on_disk=DiskOptions(vectors=False, payload=True, bm25=False),
)


def stored(engine: Engine, collection: str) -> dict[str, Any]:
    """What the engine itself says, by the names of the options."""
    config = engine.get_collection(collection).config
    vectors = config.params.vectors
    assert isinstance(vectors, dict)
    hnsw, copies = config.hnsw_config, config.quantization_config
    (sparse,) = (config.params.sparse_vectors or {}).values()
    return {
        "datatypes": {params.datatype for params in vectors.values()},
        "bm25 on disk": sparse.index is not None and sparse.index.on_disk,
        "distances": {params.distance for params in vectors.values()},
        "hnsw": (hnsw.m, hnsw.ef_construct),
        "above_kb": config.optimizer_config.indexing_threshold,
        "quantization": copies and copies.model_dump(mode="json", exclude_none=True),
        "on_disk": ({params.on_disk for params in vectors.values()}, config.params.on_disk_payload),
    }


def test_options_are_the_engines_own_and_change_in_place(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, encoder, name=name, options=FIRST).collection
    two_bits = {"binary": {"always_ram": True, "encoding": "two_bits"}}
    first = {
        "datatypes": {qm.Datatype.FLOAT16},
        "bm25 on disk": True,
        "distances": {qm.Distance.DOT},
        "hnsw": (8, 32),
        "above_kb": 5000,
        "quantization": two_bits,
        "on_disk": ({True}, False),
    }
    assert stored(engine, collection) == first
    assert read_metadata(engine, collection).options == FIRST
    again = loader.load(engine, data, encoder, name=name)
    assert (again.sent, stored(engine, collection)) == (0, first)
    assert loader.load(engine, data, encoder, name=name, options=SECOND).sent == 0
    assert stored(engine, collection) == {
        "datatypes": {qm.Datatype.FLOAT16},
        "bm25 on disk": False,
        "distances": {qm.Distance.DOT},
        "hnsw": (12, 64),
        "above_kb": 7000,
        "quantization": {"scalar": {"type": "int8", "always_ram": False}},
        "on_disk": ({False}, True),
    }
    assert read_metadata(engine, collection).options == SECOND
    none = replace(SECOND, quantization=QuantizationOptions())
    loader.load(engine, data, encoder, name=name, options=none)
    assert stored(engine, collection)["quantization"] is None


def test_edge_itself_is_given_the_options(
    tmp_path: Path, encoder: HashEncoder, make_data: MakeData
) -> None:
    """`get_collection` is ours on the embedded engine; this file is Edge's."""
    data = make_data(PASSAGES)
    for options in (FIRST, SECOND):
        engine = connect(path=tmp_path / "edge")
        collection = loader.load(engine, data, encoder, name="x", options=options).collection
        engine.close()
        shard = tmp_path / "edge" / "collections" / collection / "shard"
        config = json.loads((shard / "edge_config.json").read_text(encoding="utf-8"))
        assert config["hnsw_config"]["m"] == options.hnsw.m
        assert config["hnsw_config"]["full_scan_threshold"] == options.hnsw.above_kb
        assert config["optimizers"]["indexing_threshold"] == options.hnsw.above_kb
        assert list(config["quantization_config"]) == [options.quantization.kind]
        assert config["vectors"]["pca_8"]["on_disk"] is options.on_disk.vectors
        assert config["vectors"]["pca_8"]["distance"] == "Dot"
        assert config["vectors"]["pca_8"]["datatype"] == "float16"
        assert config["sparse_vectors"]["bm25"]["on_disk"] is options.on_disk.bm25
        assert config["on_disk_payload"] is options.on_disk.payload


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"distance": "cosine"}, "has distance dot, the options say cosine"),
        ({"datatype": "float32"}, "has datatype float16, the options say float32"),
        ({"clusters": 4}, "has clusters 3, the options say 4"),
        ({"shards": 2}, "has shards None, the options say 2"),
        ({"replicas": 2}, "has replicas None, the options say 2"),
    ],
)
def test_what_cannot_change_in_place_is_refused(
    edge_engine: Engine,
    encoder: HashEncoder,
    make_data: MakeData,
    changed: dict[str, Any],
    message: str,
) -> None:
    data = make_data(PASSAGES)
    loaded = loader.load(edge_engine, data, encoder, name="x", options=FIRST).collection
    before = stored(edge_engine, loaded)
    other = replace(SECOND, **changed)
    with pytest.raises(CollectionMismatch, match=f"{message}.*another name with --collection"):
        loader.load(edge_engine, data, encoder, name="x", options=other)
    assert stored(edge_engine, loaded) == before


@pytest.mark.parametrize("option", ["shards", "replicas", "write_consistency"])
def test_the_embedded_engine_is_one_shard_on_one_node(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData, option: str
) -> None:
    data = make_data(PASSAGES)
    two = CollectionOptions(**{option: 2})
    with pytest.raises(EngineError, match=r"one shard on one node.*is 2; leave it out, or use"):
        loader.load(edge_engine, data, encoder, name="x", options=two)
    assert edge_engine.get_collections().collections == []
    loader.load(edge_engine, data, encoder, name="x", options=CollectionOptions(**{option: 1}))


def test_a_server_shards(
    rest_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    options = CollectionOptions(shards=3, replicas=1, write_consistency=1)
    data = make_data(PASSAGES)
    loaded = loader.load(rest_engine, data, encoder, name=name, options=options).collection
    params = rest_engine.get_collection(loaded).config.params
    found = (params.shard_number, params.replication_factor, params.write_consistency_factor)
    assert found == (3, 1, 1)


def test_indexes_are_declared_changed_and_turned_off(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    counted = {"kind": "keyword", "year": "integer", "rank": "float"}
    always = {"title": "text", "passage_id": "keyword"}

    def indexes(**declared: Any) -> dict[str, str]:
        options = CollectionOptions(indexes=declared)
        loaded = loader.load(engine, data, encoder, name=name, options=options).collection
        found = engine.get_collection(loaded).payload_schema
        return {field: index.data_type.value for field, index in found.items()}

    assert indexes() == counted | always
    assert indexes(text="text", kind="text") == counted | always | {"text": "text", "kind": "text"}
    without = {"year": "integer", "rank": "float", "text": "text"}
    assert indexes(kind="none") == without | always
    assert indexes(kind="keyword", text="none") == counted | always


def test_an_index_on_a_field_that_nothing_has_is_refused_before_anything_is_made(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData
) -> None:
    options = CollectionOptions(indexes={"kinds": "keyword"})
    with pytest.raises(ConfigError, match=r"'kinds', which.*expected some of text, url, kind, ra"):
        loader.load(edge_engine, make_data(PASSAGES), encoder, name="x", options=options)
    assert edge_engine.get_collections().collections == []


def test_an_older_collection_has_the_default_options(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData
) -> None:
    loaded = loader.load(edge_engine, make_data(PASSAGES), encoder, name="x").collection
    metadata = read_metadata(edge_engine, loaded)
    old = metadata.to_dict()
    del old["options"], old["centroids"]
    assert CollectionMetadata.from_dict(old) == metadata
    with pytest.raises(ValueError, match=r"unknown configuration key collection\.new_option"):
        CollectionMetadata.from_dict(old | {"options": {"new_option": 1}})


VALUES = {
    "date": ["01.06.2015", "06/01/2015"],
    "when": ["2015-06-01", "2015-06-01T10:00:00Z"],
    "epoch": [1433116800, 1433203200],
    "flag": ["false", "true"],
    "yes": [True, False],
    "code": ["000", "001"],
    "price": ["0.50", "1.50"],
    "weight": [1.5, 2],
    "tags": [["a", "b"], []],
}
FITTING = {
    "date": {"keyword", "text"},
    "when": {"keyword", "text", "datetime"},
    "epoch": {"integer", "float"},
    "flag": {"keyword", "text"},
    "yes": {"bool"},
    "code": {"keyword", "text"},
    "price": {"keyword", "text"},
    "weight": {"float", "integer"},
    "tags": {"keyword", "text"},
}


@pytest.mark.parametrize("field", VALUES)
@pytest.mark.parametrize("kind", ["keyword", "text", "integer", "float", "bool", "datetime"])
def test_an_index_of_a_type_that_no_value_has_is_refused(
    make_data: MakeData, field: str, kind: str
) -> None:
    passages = [
        p._replace(fields={field: v}) for p, v in zip(PASSAGES, VALUES[field], strict=False)
    ]
    data = make_data(passages)
    if kind in FITTING[field]:
        require_values(data, {field: kind})
        return
    with pytest.raises(ConfigError, match=rf"indexes has {field}: {kind}, but no value") as caught:
        require_values(data, {field: kind})
    assert "\n" not in str(caught.value)


def test_a_wrong_index_is_refused_before_anything_is_made(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    options = CollectionOptions(indexes={"kind": "datetime"})
    with pytest.raises(ConfigError, match="expected keyword, or values that are 2024-05-01"):
        loader.load(engine, make_data(PASSAGES), encoder, name=name, options=options)
    assert not any(found.startswith(name) for found in collection_names(engine))
