"""k-means clusters of a collection: the same at every attempt, and part of what is verified."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from conftest import HashEncoder, make_passages
from qdrant_client import models as qm

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.points import PointMaker
from two_tower.ingest.loading.setup import fit_centroids
from two_tower.ingest.loading.verify import verify
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError
from two_tower.retriever.collection.clusters import Centroids
from two_tower.retriever.collection.options import MOST_CLUSTERS, CollectionOptions
from two_tower.retriever.collection.schema import point_id, read_metadata
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import CollectionMismatch, VerificationFailed

PASSAGES = make_passages(300)
MakeData = Callable[..., Dataset]
OPTIONS = CollectionOptions(clusters=6)


def clusters(engine: Engine, collection: str) -> dict[str, int]:
    records, _ = engine.scroll(collection, limit=1000, with_payload=["cluster"])
    return {str(record.id): (record.payload or {})["cluster"] for record in records}


def test_every_point_knows_the_nearest_centroid(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, encoder, name=name, options=OPTIONS).collection
    verify(engine, collection, data, encoder)
    centroids = Centroids.from_metadata(read_metadata(engine, collection))
    assert centroids is not None
    assert len(centroids) == 6
    vectors = encoder.encode_passages([p.content for p in PASSAGES])
    expected = {
        point_id(passage.passage_id): centroids.nearest(vector, 1)[0]
        for passage, vector in zip(PASSAGES, vectors, strict=True)
    }
    assert clusters(engine, collection) == expected
    assert len(set(expected.values())) == 6
    index = engine.get_collection(collection).payload_schema["cluster"]
    assert index.data_type is qm.PayloadSchemaType.INTEGER


def test_a_load_that_stopped_goes_on_with_the_same_clusters(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(edge_engine, data, encoder, name="x", options=OPTIONS).collection
    whole = clusters(edge_engine, collection)
    edge_engine.delete(collection, [point_id(p.passage_id) for p in PASSAGES[::2]])
    assert loader.load(edge_engine, data, encoder, name="x").sent == 150
    assert clusters(edge_engine, collection) == whole


def test_changed_fields_leave_the_cluster(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(edge_engine, data, encoder, name="x", options=OPTIONS).collection
    whole = clusters(edge_engine, collection)
    changed = [p._replace(fields={**p.fields, "kind": "other"}) for p in PASSAGES]
    later = make_data(changed, name="LATER")
    loader.load(edge_engine, later, encoder, name="x")
    assert clusters(edge_engine, collection) == whole
    verify(edge_engine, collection, later, encoder)


def test_verify_sees_a_wrong_cluster(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(edge_engine, data, encoder, name="x", options=OPTIONS).collection
    metadata = read_metadata(edge_engine, collection)
    point = next(PointMaker(encoder, metadata).make(PASSAGES[:1]))
    payload = {**point.payload, "cluster": -1}
    edge_engine.upsert(collection, [point._replace(payload=payload)])
    with pytest.raises(VerificationFailed, match=r"'p0'.*payload"):
        verify(edge_engine, collection, data, encoder)


def test_centroids_do_not_depend_on_the_attempt(encoder: HashEncoder, make_data: MakeData) -> None:
    data = make_data(PASSAGES)
    packed = {fit_centroids(data, encoder, clusters=6) for _ in range(2)}
    assert len(packed) == 1
    assert fit_centroids(data, encoder, clusters=0) == ""


def test_a_cluster_does_not_depend_on_the_batch() -> None:
    random = np.random.default_rng(5)
    centroids = Centroids(random.standard_normal((MOST_CLUSTERS, 64)))
    vectors = random.standard_normal((2000, 64)).astype(np.float32)
    whole = centroids.assign(vectors)
    assert [centroids.assign(vectors[at : at + 1])[0] for at in range(2000)] == whole


def test_the_largest_centroids_fit_into_the_metadata(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    """1,024 centroids of 384 dimensions: a megabyte of text."""
    collection = loader.load(engine, make_data(PASSAGES), encoder, name=name).collection
    packed = Centroids(np.random.default_rng(0).standard_normal((MOST_CLUSTERS, 384))).pack()
    engine.update_collection(collection, metadata={"centroids": packed})
    assert read_metadata(engine, collection).centroids == packed


def test_more_clusters_than_passages(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData
) -> None:
    many = CollectionOptions(clusters=301)
    with pytest.raises(ConfigError, match=r"clusters is 301, but .* has 300 passages"):
        loader.load(edge_engine, make_data(PASSAGES), encoder, name="x", options=many)
    assert edge_engine.get_collections().collections == []


@pytest.mark.parametrize("packed", ["", "AAAA", "no base64!"])
def test_broken_centroids_are_refused(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData, packed: str
) -> None:
    data = make_data(PASSAGES[:20])
    collection = loader.load(edge_engine, data, encoder, name="x", options=OPTIONS).collection
    broken = replace(read_metadata(edge_engine, collection), centroids=packed)
    with pytest.raises(CollectionMismatch, match="which are not 6 of 16 dimensions; drop"):
        Centroids.from_metadata(broken)
