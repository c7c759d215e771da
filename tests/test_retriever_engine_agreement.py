"""The embedded engine and the server give the same answers about the same data."""

from collections.abc import Callable

import numpy as np
from conftest import HashEncoder, Server, make_passages
from qdrant_client import models as qm

from two_tower.ingest.loading import loader
from two_tower.models.data import Dataset
from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.engine.protocol import Engine

ENCODER = HashEncoder()


def test_the_engines_agree(
    edge_engine: Engine, server: Server, name: str, make_data: Callable[..., Dataset]
) -> None:
    data = make_data(make_passages(700, seed=9), name="MORE")
    other = server.connect()
    try:
        collection = loader.load(other, data, ENCODER, name=name).collection
        loader.load(edge_engine, data, ENCODER, name=name)
        bm25 = Bm25Encoder(Bm25Config(avg_len=10.0))
        for text in [passage.text for passage in make_passages(25, seed=4)]:
            vector = ENCODER.encode_queries([text])
            requests = [
                qm.QueryRequest(query=vector[0].tolist(), using="dense", limit=50),
                qm.QueryRequest(query=bm25.encode_query(text).to_client(), using="bm25", limit=50),
                qm.QueryRequest(
                    query=ENCODER.reduce(vector)[8][0].tolist(), using="pca_8", limit=50
                ),
            ]
            ours = edge_engine.query_scores(collection, requests)
            theirs = other.query_scores(collection, requests)
            for dense in (0, 2):
                assert ours[dense].ids == theirs[dense].ids
            np.testing.assert_allclose(ours[1].scores, theirs[1].scores, atol=1e-4)
            clear = ours[1].scores[-1] + 1e-3
            above = [
                {i for i, score in zip(*leg, strict=True) if score > clear}
                for leg in (ours[1], theirs[1])
            ]
            assert above[0] == above[1]
    finally:
        other.delete_collection(collection)
        other.close()
