"""Loads and searches while nodes of a real cluster of three die, return, or are lost for good."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import pytest
from cluster import Cluster, Node, running_cluster, until
from conftest import HashEncoder, make_passages, write_data

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.diff import stored_hashes
from two_tower.ingest.loading.points import PointMaker
from two_tower.ingest.loading.setup import open_collection
from two_tower.ingest.loading.verify import repair, verify
from two_tower.models.data import Dataset
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import collection_name, point_id, read_metadata
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import AnyPoint, Point, batches
from two_tower.retriever.errors import EngineError, VerificationFailed
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings

pytestmark = pytest.mark.cluster

PASSAGES = make_passages(3000)
IDS = {point_id(passage.passage_id) for passage in PASSAGES}
ENCODER = HashEncoder()
TWICE = CollectionOptions(shards=6, replicas=2, write_consistency=1)
THRICE = CollectionOptions(shards=3, replicas=3, write_consistency=2)
STRICT = CollectionOptions(shards=6, replicas=2, write_consistency=2)
COPIES = 2, 3  # of TWICE and of THRICE


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_data(tmp_path_factory.mktemp("data") / "DATA", PASSAGES)


class Recording:
    """An engine that keeps which points were acknowledged."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.acknowledged: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def with_retry(self, seconds: float) -> "Recording":
        self._engine = self._engine.with_retry(seconds)
        return self

    def upsert(self, collection: str, points: Sequence[AnyPoint], **options: Any) -> Any:
        done = self._engine.upsert(collection, points, **options)
        self.acknowledged |= {str(point.id) for point in points}
        return done


class Searches(NamedTuple):
    """What threads that never stop searching saw."""

    seconds: list[float]
    failures: list[str]


@contextmanager
def searching(node: Node, *collections: str) -> Iterator[Searches]:
    """Search through one node, as an app does, until the block ends: a thread per collection."""
    seen = Searches([], [])
    over = threading.Event()

    def search(retriever: Retriever) -> None:
        while not over.is_set():
            start = time.perf_counter()
            try:
                assert len(retriever.search("river bank", k=10)) == 10
            except (EngineError, AssertionError) as error:
                seen.failures.append(str(error))
            seen.seconds.append(time.perf_counter() - start)

    with node.connected() as engine:
        retrievers = [
            Retriever(engine, name, ENCODER, settings=SearchSettings())  # type: ignore[arg-type]
            for name in collections
        ]
        threads = [threading.Thread(target=search, args=(r,), daemon=True) for r in retrievers]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            over.set()
            for thread in threads:
                thread.join()


def make(engine: Engine, data: Dataset, name: str, options: CollectionOptions) -> str:
    open_collection(engine, data, ENCODER, name=name, options=options)
    return collection_name(name, ENCODER.fingerprint)


def points_of(engine: Engine, collection: str, data: Dataset, count: int) -> list[Point]:
    maker = PointMaker(ENCODER, read_metadata(engine, collection))
    return list(maker.make(list(islice(data.passages(), count))))


def send(engine: Engine, collection: str, points: list[Point]) -> list[str]:
    """Send points in batches; return the errors of those that failed."""
    failures = []
    for batch in batches(points):
        try:
            engine.upsert(collection, batch, wait=True)
        except EngineError as error:
            failures.append(str(error))
    return failures


def stored_ids(engine: Engine, collection: str) -> set[str]:
    return {str(point_id) for point_id in stored_hashes(engine, collection)}


def load(engine: Any, data: Dataset, name: str) -> None:
    loader.load(engine, data, ENCODER, name=name)


@pytest.mark.parametrize("role", ["follower", "leader"])
def test_a_node_dies_in_mid_load_and_comes_back(
    cluster: Cluster, data: Dataset, name: str, role: str
) -> None:
    victim = cluster.leader() if role == "leader" else cluster.follower()
    survivor = next(node for node in cluster.living if node is not victim)
    names = (f"{name}-twice", f"{name}-thrice")
    with survivor.connected() as engine:
        collections = [
            make(engine, data, n, o) for n, o in zip(names, (TWICE, THRICE), strict=True)
        ]
        for collection in collections:
            assert not send(engine, collection, points_of(engine, collection, data, 20))
        records = [Recording(engine) for _ in names]
        loads = [
            threading.Thread(target=load, args=(record, data, n), daemon=True)
            for record, n in zip(records, names, strict=True)
        ]
        with searching(survivor, *collections) as searches:
            for one in loads:
                one.start()
            until(lambda: all(len(record.acknowledged) > 500 for record in records))
            victim.kill()
            acknowledged = [set(record.acknowledged) for record in records]
            until(
                lambda: all(
                    early <= stored_ids(engine, collection)
                    for early, collection in zip(acknowledged, collections, strict=True)
                )
            )
            for one in loads:
                one.join()
        assert all(len(early) < len(PASSAGES) for early in acknowledged)
        assert not searches.failures
        for collection in collections:
            assert stored_ids(engine, collection) == IDS
            assert verify(engine, collection, data, ENCODER).replicas_down
        cluster.start(victim)
        for collection, copies in zip(collections, COPIES, strict=True):
            cluster.wait_until_whole(collection, copies)
            assert not verify(engine, collection, data, ENCODER).replicas_down
            assert repair(engine, collection, data, ENCODER).sent == 0
            engine.delete_collection(collection)


def test_writes_need_their_replicas_and_searches_need_one(
    cluster: Cluster, data: Dataset, name: str
) -> None:
    survivor, first, second = cluster.nodes
    with survivor.connected() as engine:
        strict = make(engine, data, f"{name}-strict", STRICT)
        thrice = make(engine, data, f"{name}-thrice", THRICE)
        points = points_of(engine, strict, data, len(PASSAGES))
        assert not send(engine, strict, points[:1500]) + send(engine, thrice, points)
        first.kill()
        refused = send(engine, strict, points)
        second.kill()
        with searching(survivor, thrice) as searches:
            refused += send(engine, thrice, points[:10])
            until(lambda: len(searches.seconds) > 50)
        assert not searches.failures
        assert len(refused) > 1
        assert all("\n" not in line and survivor.url in line for line in refused)

        cluster.start(first, second)
        cluster.wait_until_whole(strict, 2)
        cluster.wait_until_whole(thrice, 3)
        assert not verify(engine, thrice, data, ENCODER).replicas_down
        with pytest.raises(VerificationFailed, match="replicas differ"):
            verify(engine, strict, data, ENCODER)
        assert 0 < repair(engine, strict, data, ENCODER).sent < len(PASSAGES)
        assert not verify(engine, strict, data, ENCODER).replicas_down
        assert repair(engine, strict, data, ENCODER).sent == 0
        patient = engine.with_retry(60)  # nodes that have just come back agree slowly
        for collection in (strict, thrice):
            patient.delete_collection(collection)


def test_a_node_that_is_lost_for_good_is_replaced(
    cluster: Cluster, data: Dataset, name: str
) -> None:
    lost, survivor, _ = cluster.nodes  # the one that the others were told to join
    with survivor.connected() as engine:
        collection = make(engine, data, name, TWICE)
        load(engine, data, name)
        with searching(survivor, collection) as searches:
            cluster.lose(lost)
            assert stored_ids(engine, collection) == IDS
            cluster.replace(lost)
            cluster.replicate(collection, lost, 2)
            cluster.wait_until_whole(collection, 2)
        assert not searches.failures
        assert repair(engine, collection, data, ENCODER).sent == 0
    with lost.connected() as engine:
        assert not verify(engine, collection, data, ENCODER).replicas_down
