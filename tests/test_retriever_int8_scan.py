"""The embedded engine's own default: many vectors are scanned by int8 copies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import HashEncoder, make_passages, write_data

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify
from two_tower.ingest.versions.copying import of_server
from two_tower.models.data import Passage
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.collection.options import (
    CollectionOptions,
    DiskOptions,
    HnswOptions,
    QuantizationOptions,
)
from two_tower.retriever.collection.schema import read_metadata
from two_tower.retriever.engine.protocol import OPTIMIZE_ABOVE, Engine

POINTS, DIM, K = 600, 9000, 10
COPIES = CollectionOptions(
    hnsw=HnswOptions(m=0, above_kb=1_000), quantization=QuantizationOptions("scalar")
)
RANDOM = np.random.default_rng(5)
VECTORS = RANDOM.standard_normal((POINTS + 20, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


class WideEncoder(HashEncoder):
    """Passage `p7` has row 7; query `7` row 607."""

    def __init__(self) -> None:
        super().__init__(dim=DIM, pca_dims=())

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        return VECTORS[[int(text.split()[-1].removeprefix("p")) for text in texts]]

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return VECTORS[[POINTS + int(text) for text in texts]]


@pytest.mark.parametrize(
    ("points", "dim", "options"),
    [
        (0, 0, CollectionOptions()),
        (20_000, 256, CollectionOptions()),  # 20,000 kB
        (20_001, 256, COPIES),
        (94_590, 384, COPIES),
        (94_590, 0, CollectionOptions()),  # BM25 alone
        (OPTIMIZE_ABOVE, 128, COPIES),
        (OPTIMIZE_ABOVE + 1, 128, CollectionOptions()),  # a graph
    ],
)
def test_what_so_many_vectors_get(points: int, dim: int, options: CollectionOptions) -> None:
    assert CollectionOptions.of_embedded(points, dim) == options


def test_only_a_scan_of_int8_copies_in_memory_takes_more_candidates() -> None:
    assert COPIES.oversampling == 2.0
    others = (
        CollectionOptions(),
        CollectionOptions(quantization=QuantizationOptions("scalar")),  # with a graph
        CollectionOptions(hnsw=HnswOptions(m=0), quantization=QuantizationOptions("binary")),
        CollectionOptions(
            hnsw=COPIES.hnsw, quantization=COPIES.quantization, on_disk=DiskOptions(vectors=True)
        ),
    )
    assert [options.oversampling for options in others] == [None] * len(others)


def test_a_small_collection_has_no_copies(edge_engine: Engine, tmp_path: Path) -> None:
    data = write_data(tmp_path / "DATA", make_passages(30))
    collection = loader.load(edge_engine, data, HashEncoder(), name="small").collection
    assert read_metadata(edge_engine, collection).options == CollectionOptions()


def test_the_nearest_are_those_of_numpy(edge_engine: Engine, tmp_path: Path) -> None:
    encoder = WideEncoder()
    passages = [Passage(f"p{n}", f"word{n % 9} p{n}", "", "") for n in range(POINTS)]
    data = write_data(tmp_path / "DATA", passages)
    collection = loader.load(edge_engine, data, encoder, name="wide").collection
    assert read_metadata(edge_engine, collection).options == COPIES
    verify(edge_engine, collection, data, encoder)
    settings = SearchSettings(legs={"dense": K}, rerank=False)
    retriever = Retriever(edge_engine, collection, encoder, settings=settings)  # type: ignore[arg-type]
    scores = VECTORS[POINTS:] @ VECTORS[:POINTS].T
    for query, row in enumerate(scores):
        hits = retriever.search(str(query), k=K)
        assert [hit.passage_id for hit in hits] == [f"p{n}" for n in np.argsort(-row)[:K]]
        assert [hit.score for hit in hits] == pytest.approx(np.sort(row)[::-1][:K], abs=1e-5)
    row = VECTORS[:POINTS] @ VECTORS[7]
    nearest = [f"p{n}" for n in np.argsort(-row)[1 : K + 1]]  # the first is itself
    assert [hit.passage_id for hit in retriever.similar("p7", k=K)] == nearest
    assert loader.load(edge_engine, data, encoder, name="wide").unchanged == POINTS
    # Explicit options change it in place.
    loader.load(edge_engine, data, encoder, name="wide", options=CollectionOptions())
    assert read_metadata(edge_engine, collection).options == CollectionOptions()


def test_a_server_gets_its_own_default_and_keeps_what_somebody_asked_for() -> None:
    assert of_server(COPIES, points=94_590, dim=384) == CollectionOptions()
    assert of_server(COPIES, points=500, dim=384) == COPIES
    binary = CollectionOptions(quantization=QuantizationOptions("binary"))
    assert of_server(binary, points=94_590, dim=384) == binary
