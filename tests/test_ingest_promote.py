"""Promote and roll back: what a name stands for, whatever happens meanwhile."""

import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import HashEncoder, Server, make_bundle, make_passages
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.models import QueryResponse  # the name in qm is fastembed's

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify_counts
from two_tower.ingest.versions.versions import drop, promote, rollback, versions
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset, Passage
from two_tower.retriever import Retriever
from two_tower.retriever.collection.schema import DENSE, point_id
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import (
    CollectionMismatch,
    CollectionNotFound,
    EngineError,
    VerificationFailed,
)
from two_tower.retriever.search.settings import SearchSettings

MakeData = Callable[..., Dataset]
SWITCHES = 20


def pair(engine: Engine, name: str, data: Dataset) -> tuple[str, str]:
    """Two versions of `name`, the first promoted before the second."""
    made = []
    for seed in (1, 2):
        made.append(loader.load(engine, data, HashEncoder(seed=seed), name=name).collection)
        promote(engine, name, made[-1])
    return made[0], made[1]


def test_rollback_returns_to_the_version_before(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    first, second = pair(engine, name, make_data(make_passages(20)))
    assert engine.resolve(name) == second
    assert promote(engine, name, second) == second  # again, as a repeated load does
    assert rollback(engine, name) == first == engine.resolve(name)
    assert rollback(engine, name) == second == engine.resolve(name)
    third = loader.load(engine, make_data(make_passages(20)), HashEncoder(seed=3), name=name)
    assert promote(engine, name, third.collection) == third.collection
    assert rollback(engine, name) == second


def test_rollback_survives_a_restart(tmp_path: Path, name: str, make_data: MakeData) -> None:
    engine = connect(path=tmp_path / "edge")
    first, _ = pair(engine, name, make_data(make_passages(20)))
    engine.close()
    again = connect(path=tmp_path / "edge")
    assert rollback(again, name) == first
    again.close()


def test_rollback_refuses_what_it_cannot_keep(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    data = make_data(make_passages(20))
    with pytest.raises(CollectionNotFound, match=f"'{name}' stands for no version of ours"):
        rollback(engine, name)
    only = loader.load(engine, data, HashEncoder(seed=1), name=name).collection
    promote(engine, name, only)
    with pytest.raises(EngineError, match=f"pointed to nothing before {only}"):
        rollback(engine, name)
    second = loader.load(engine, data, HashEncoder(seed=2), name=name).collection
    promote(engine, name, second)
    engine.delete(only, [point_id("p0")])
    with pytest.raises(VerificationFailed, match="19 points, expected 20"):
        rollback(engine, name)
    drop(engine, only)
    with pytest.raises(CollectionNotFound, match=f"{only} before, which has been dropped"):
        rollback(engine, name)
    assert engine.resolve(name) == second


def test_promote_leaves_an_alias_of_others_alone(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    collection = loader.load(engine, make_data(make_passages(20)), HashEncoder(), name=name)
    foreign = f"{name}_foreign"
    engine.create_collection(
        foreign, vectors_config={"v": qm.VectorParams(size=2, distance=qm.Distance.DOT)}
    )
    create = qm.CreateAlias(collection_name=foreign, alias_name=name)
    engine.update_collection_aliases([qm.CreateAliasOperation(create_alias=create)])
    with pytest.raises(CollectionMismatch, match=f"points to '{foreign}', expected one of"):
        promote(engine, name)
    with pytest.raises(CollectionNotFound, match="stands for no version of ours"):
        rollback(engine, name)
    assert engine.resolve(name) == foreign
    assert [v.collection for v in versions(engine, name)] == [collection.collection]
    with pytest.raises(EngineError, match="--yes"):
        drop(engine, foreign)


class Dies(BaseException):
    """The process is gone."""


class DiesAfter:
    """An engine whose caller is gone after so many writes; the last of them still arrives."""

    def __init__(self, engine: Engine, writes: int) -> None:
        self._engine = engine
        self._left = writes

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._engine, name)

        def call(*arguments: Any, **options: Any) -> Any:
            answer = method(*arguments, **options)
            self._left -= name.startswith("update")
            if self._left == 0:
                raise Dies
            return answer

        return call


def test_no_step_of_a_switch_leaves_the_name_without_a_version(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    first, second = pair(engine, name, make_data(make_passages(20)))
    third = loader.load(engine, make_data(make_passages(20)), HashEncoder(seed=3), name=name)
    for writes, expected in ((1, second), (2, third.collection)):
        dying: Any = DiesAfter(engine, writes)
        with pytest.raises(Dies):
            promote(dying, name, third.collection)
        assert engine.resolve(name) == expected
        assert verify_counts(engine, expected).points == 20
    assert rollback(engine, name) == second
    assert promote(DiesAfter(engine, 3), name, first) == first  # type: ignore[arg-type]


SWITCHING = """
import sys
from two_tower.ingest.versions.versions import rollback
from two_tower.retriever.engine.connect import connect
engine = connect(**{sys.argv[1]: sys.argv[2]})
print("ready", flush=True)
while True:
    rollback(engine, sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["path", "url"])
def test_a_killed_promote_leaves_one_complete_version(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, make_data: MakeData, kind: str
) -> None:
    if kind == "url":
        request.getfixturevalue("rest_engine")  # deletes what is left
    where = str(tmp_path / "edge")
    if kind == "url":
        where = request.getfixturevalue("server").url
    engine = connect(**{kind: where})
    both = pair(engine, name, make_data(make_passages(20)))
    engine.close()
    moments = random.Random(0)
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", SWITCHING, kind, where, name], stdout=subprocess.PIPE
        )
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0.005, 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        engine = connect(**{kind: where})
        try:
            aliases = [a for a in engine.get_aliases().aliases if a.alias_name == name]
            assert [a.collection_name in both for a in aliases] == [True]
            current = engine.resolve(name)
            assert verify_counts(engine, current).points == 20
            assert rollback(engine, name) == next(v for v in both if v != current)
        finally:
            engine.close()


class Versions(NamedTuple):
    """Two versions under one name; every passage of each says which it belongs to."""

    name: str
    bundles: Mapping[str, ModelBundle]  # collection -> the bundle it was loaded with
    query: list[float]


@pytest.fixture
def both(engine: Engine, name: str, make_data: MakeData, tmp_path: Path) -> Versions:
    bundles = {}
    for seed in (1, 2):
        passages = [marked(passage, f"version{seed}") for passage in make_passages(60)]
        bundle = ModelBundle.load(make_bundle(tmp_path / f"bundle{seed}", seed=seed))
        report = loader.load(engine, make_data(passages, name=f"DATA{seed}"), bundle, name=name)
        promote(engine, name, report.collection)
        bundles[report.collection] = bundle
    query = bundle.encode_queries(["river bank"])[0].tolist()
    return Versions(name, bundles, query)


def marked(passage: Passage, version: str) -> Passage:
    return passage._replace(fields={**passage.fields, "version": version})


def seen(payloads: Iterator[Mapping[str, object] | None]) -> set[object]:
    return {(payload or {})["version"] for payload in payloads}


def pinned(engine: Engine, both: Versions, position: int) -> Callable[[], set[object]]:
    """Search with a retriever that stays open: always the version it was opened on."""
    collection, bundle = list(both.bundles.items())[position]
    retriever = Retriever(engine, collection, bundle, settings=SearchSettings())

    def search() -> set[object]:
        found = seen(hit.payload for hit in retriever.search("river bank money", k=20))
        assert found == {f"version{position + 1}"}
        return found

    return search


def reopening(engine: Engine, both: Versions) -> Callable[[], set[object]]:
    """Resolve the name for each search and open what it stands for with its own bundle."""

    def search() -> set[object]:
        collection = engine.resolve(both.name)
        bundle = both.bundles[collection]
        retriever = Retriever(engine, collection, bundle, settings=SearchSettings())
        return seen(hit.payload for hit in retriever.search("river bank money", k=20))

    return search


def by_alias(query: Callable[..., QueryResponse], both: Versions) -> Callable[[], set[object]]:
    """Ask the engine by the name itself, as an app without our library does."""

    def search() -> set[object]:
        answer = query(both.name, both.query, using=DENSE, limit=20, with_payload=True)
        return seen(point.payload for point in answer.points)

    return search


def wait_for_one_more(
    answers: Sequence[Sequence[object]], failures: Sequence[BaseException]
) -> None:
    """Return when every thread has had an answer to a search that began after this call."""
    wanted = [len(found) + 2 for found in answers]
    deadline = time.monotonic() + 20
    while not failures and time.monotonic() < deadline:
        if all(len(found) >= count for found, count in zip(answers, wanted, strict=True)):
            return
        time.sleep(0.005)


def test_four_threads_search_through_twenty_switches(
    request: pytest.FixtureRequest, engine: Engine, both: Versions
) -> None:
    raw: QdrantClient | Engine = engine
    if "edge" not in request.node.name:
        server: Server = request.getfixturevalue("server")
        raw = QdrantClient(url=server.url, api_key=server.api_key, check_compatibility=False)
    searches = [
        pinned(engine, both, 0),
        pinned(engine, both, 1),
        reopening(engine, both),
        by_alias(raw.query_points, both),
    ]
    done = threading.Event()
    answers: list[list[set[object]]] = [[] for _ in searches]
    failures: list[BaseException] = []

    def work(search: Callable[[], set[object]], found: list[set[object]]) -> None:
        try:
            while not done.is_set():
                found.append(search())
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(searches, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    first, second = both.bundles
    for switch in range(SWITCHES):
        expected = (first, second)[switch % 2]
        if switch % 2:
            assert rollback(engine, both.name) == expected
        else:
            promote(engine, both.name, expected)
        wait_for_one_more(answers, failures)
    done.set()
    for thread in threads:
        thread.join()
    raw.close()
    assert not failures
    for found in answers:
        assert len(found) >= SWITCHES
        assert all(len(versions_seen) == 1 for versions_seen in found), "a mixed result"
    for moving in answers[2:]:
        assert {*itertools.chain(*moving)} == {"version1", "version2"}
