"""How near neighbours are looked for, against a search of every vector in numpy."""

import base64
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from conftest import HashEncoder, Server, server_engine, write_data
from qdrant_client import models as qm

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify
from two_tower.models.data import Passage
from two_tower.models.errors import ConfigError
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.collection.options import (
    CollectionOptions,
    HnswOptions,
    QuantizationOptions,
)
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.search.settings import AnnSettings

DIM, POINTS, QUERIES, K, CLUSTERS = 32, 2000, 20, 10, 12


def clustered(random: np.random.Generator, count: int, centres: np.ndarray) -> np.ndarray:
    vectors = centres[random.integers(0, len(centres), count)]
    vectors = vectors + 0.6 * random.standard_normal((count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


RANDOM = np.random.default_rng(11)
CENTRES = RANDOM.standard_normal((30, DIM))
PASSAGES = clustered(RANDOM, POINTS, CENTRES)
ASKED = clustered(RANDOM, QUERIES, CENTRES)


class TableEncoder(HashEncoder):
    """Passage `p7` has row 7 of one table, query `7` row 7 of another."""

    def __init__(self) -> None:
        super().__init__(dim=DIM, pca_dims=(8,))

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        return PASSAGES[[int(text.split()[-1].removeprefix("p")) for text in texts]]

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return ASKED[[int(text) for text in texts]]


ENCODER = TableEncoder()
SHORT = {"passages": ENCODER.reduce(PASSAGES)[8], "queries": ENCODER.reduce(ASKED)[8]}
KINDS = {
    "plain": QuantizationOptions(),
    "scalar": QuantizationOptions("scalar"),
    "binary": QuantizationOptions("binary", 2.0),
}


class Loaded(NamedTuple):
    engine: Engine
    retriever: Retriever
    kind: str


@pytest.fixture(scope="module", params=["edge", "rest"])
def module_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    if request.param == "rest":
        server: Server = request.getfixturevalue("server")
        with server_engine(server, "test_ann") as engine:
            yield engine
    else:
        engine = connect(path=tmp_path_factory.mktemp("edge"))
        yield engine
        engine.close()


@pytest.fixture(scope="module", params=list(KINDS))
def loaded(
    request: pytest.FixtureRequest, module_engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Loaded:
    """A graph over 2,000 points, and quantized copies of them; small segments are indexed too."""
    data = write_data(
        tmp_path_factory.mktemp("data") / "DATA",
        (Passage(f"p{n}", f"word{n % 100} p{n}", "", "") for n in range(POINTS)),
    )
    options = CollectionOptions(
        hnsw=HnswOptions(m=16, ef_construct=100, above_kb=10),
        quantization=KINDS[request.param],
        clusters=CLUSTERS,
    )
    name = f"test_ann_{request.param}"
    collection = loader.load(module_engine, data, ENCODER, name=name, options=options).collection
    wait_until_indexed(module_engine, collection)
    verify(module_engine, collection, data, ENCODER)
    retriever = Retriever(module_engine, collection, ENCODER, settings=SearchSettings())  # type: ignore[arg-type]
    return Loaded(module_engine, retriever, request.param)


def wait_until_indexed(engine: Engine, collection: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        info = engine.get_collection(collection)
        indexed = info.indexed_vectors_count or 0
        if info.status == qm.CollectionStatus.GREEN and indexed >= 2 * 0.9 * POINTS:
            return
        time.sleep(0.05)
    pytest.fail(f"{collection} was not indexed within 60 s: {indexed} vectors")


def search(loaded: Loaded, ann: AnnSettings, *, candidates: int = K) -> list[dict[str, float]]:
    """Passage -> score for each query, by the dense leg alone."""
    settings = SearchSettings(legs={"dense": candidates}, rerank=False, ann=ann)
    queries = [str(number) for number in range(QUERIES)]
    found = loaded.retriever.search_many(queries, k=K, settings=settings)
    return [{hit.passage_id: hit.score for hit in hits} for hits in found]


def best(scores: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    order = rows[np.argsort(-scores[rows], kind="stable")][:K]
    return {f"p{row}": float(scores[row]) for row in order}


def exact() -> list[dict[str, float]]:
    return [best(PASSAGES @ query, np.arange(POINTS)) for query in ASKED]


def recall(found: list[dict[str, float]]) -> float:
    shared = [len(f.keys() & e.keys()) for f, e in zip(found, exact(), strict=True)]
    return sum(shared) / (K * QUERIES)


def same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> bool:
    return all(f == pytest.approx(e, abs=2e-6) for f, e in zip(found, expected, strict=True))


def true_scores(found: list[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {p: float(PASSAGES[int(p[1:])] @ query) for p in hits}
        for hits, query in zip(found, ASKED, strict=True)
    ]


def test_exact_search_is_exact(loaded: Loaded) -> None:
    assert same(search(loaded, AnnSettings(exact=True)), exact())


def test_the_graph_finds_nearly_all_and_more_with_a_larger_ef(loaded: Loaded) -> None:
    wide, narrow = (
        recall(search(loaded, AnnSettings(ef=ef, ignore_quantized=True))) for ef in (200, 10)
    )
    assert wide >= 0.97
    assert wide >= narrow


def test_rescored_copies_score_as_the_vectors_do(loaded: Loaded) -> None:
    copies = search(loaded, AnnSettings(ef=200, rescore=False))
    rescored = search(loaded, AnnSettings(ef=200))
    oversampled = search(loaded, AnnSettings(ef=200, oversampling=4))
    assert same(rescored, true_scores(rescored))
    assert same(oversampled, true_scores(oversampled))
    assert same(copies, true_scores(copies)) == (loaded.kind == "plain")
    assert recall(oversampled) >= {"plain": 0.97, "scalar": 0.97, "binary": 0.85}[loaded.kind]
    assert recall(oversampled) >= recall(rescored) >= recall(copies)


def test_ignored_copies_change_nothing(loaded: Loaded) -> None:
    found = search(loaded, AnnSettings(ef=200, ignore_quantized=True))
    assert same(found, true_scores(found))
    assert recall(found) >= 0.97


@pytest.mark.parametrize("first", [20, 200])
def test_a_first_stage_is_two_stages_in_one_request(loaded: Loaded, first: int) -> None:
    ann = AnnSettings(exact=True, first_stage="pca_8", first_stage_candidates=first)
    expected = []
    for query, short in zip(ASKED, SHORT["queries"], strict=True):
        rows = np.argsort(-(SHORT["passages"] @ short), kind="stable")[:first]
        expected.append(best(PASSAGES @ query, rows))
    assert same(search(loaded, ann), expected)
    assert (recall(expected) > 0.9) == (first == 200)


def centroids(retriever: Retriever) -> np.ndarray:
    stored = np.frombuffer(base64.b64decode(retriever.metadata.centroids), np.float16)
    vectors = stored.astype(np.float64).reshape(CLUSTERS, DIM)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("n_probe", [1, 3, CLUSTERS])
def test_probing_looks_into_the_nearest_clusters_alone(loaded: Loaded, n_probe: int) -> None:
    centres = centroids(loaded.retriever)
    own = np.argmax(PASSAGES @ centres.T, axis=1)
    expected = []
    for query in ASKED:
        near = np.argsort(-(centres @ query))[:n_probe]
        expected.append(best(PASSAGES @ query, np.flatnonzero(np.isin(own, near))))
    found = search(loaded, AnnSettings(exact=True, n_probe=n_probe))
    assert same(found, expected)
    least, most = {1: (0.5, 0.99), 3: (0.95, 1.0), CLUSTERS: (1.0, 1.0)}[n_probe]
    assert least <= recall(found) <= most


def test_probing_all_clusters_is_not_probing(loaded: Loaded) -> None:
    every, none = (search(loaded, AnnSettings(ef=200, n_probe=n)) for n in (CLUSTERS, None))
    assert recall(every) == pytest.approx(recall(none), abs=0.03)


def test_a_filter_holds_within_the_probed_clusters(loaded: Loaded) -> None:
    settings = SearchSettings(legs={"dense": K}, ann=AnnSettings(n_probe=3, exact=True))
    hits = loaded.retriever.search(
        "0", filter={"passage_id": [f"p{n}" for n in range(300)]}, settings=settings
    )
    near = np.argsort(-(centroids(loaded.retriever) @ ASKED[0]))[:3]
    assert hits
    assert all(int(hit.passage_id[1:]) < 300 for hit in hits)
    assert {hit.payload["cluster"] for hit in hits} <= set(near.tolist())


def test_bm25_finds_in_every_cluster(loaded: Loaded) -> None:
    settings = SearchSettings(legs={"dense": K, "bm25": 50}, ann=AnnSettings(n_probe=1))
    request = loaded.retriever.explain("7", k=40, settings=settings)
    assert {hit.payload["cluster"] for hit in request.hits if "bm25" not in hit.stages} == {
        int(np.argmax(centroids(loaded.retriever) @ ASKED[7]))
    }


def test_more_clusters_or_vectors_than_there_are(loaded: Loaded) -> None:
    for ann, message in (
        (AnnSettings(n_probe=CLUSTERS + 1), f"n_probe is 13, but the collection has {CLUSTERS}"),
        (AnnSettings(first_stage="pca_9"), "unknown leg 'pca_9'; this bundle has dense, pca_8"),
    ):
        with pytest.raises(ConfigError, match=message):
            loaded.retriever.with_settings(SearchSettings(ann=ann))


def test_neighbours_of_a_passage_are_rescored_too(loaded: Loaded) -> None:
    retriever = loaded.retriever.with_settings(SearchSettings(ann=AnnSettings(ef=200)))
    hits = retriever.similar("p5", k=K)
    assert {hit.passage_id: hit.score for hit in hits} == pytest.approx(
        {hit.passage_id: float(PASSAGES[int(hit.passage_id[1:])] @ PASSAGES[5]) for hit in hits},
        abs=2e-6,
    )
