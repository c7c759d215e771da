"""kill -9 of the real `ingest load` and of the real server, again and again, in mid-load.

The instants are random, from a seed. Loads are slowed by `--rate-limit`, so that kills meet the
middle: each test makes sure that they did. What is there in the end is compared point for point
with a collection that nobody disturbed.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cluster import Node
from conftest import make_passages, write_data

from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import Record, SparseVector
from two_tower.retriever.errors import EngineError

INGEST = [sys.executable, "-c", "from two_tower.ingest.cli import app; app()"]
COUNT = 1500
RATE = 250
LOADER_KILLS = 10  # on each engine, at least
SERVER_KILLS = 8  # that one load outlives, and two more that it does not
DENSE = ("dense", "pca_8", "pca_4")


class Point(NamedTuple):
    """All that a point holds."""

    payload: dict[str, Any]
    vectors: dict[str, Any]


class Whole(NamedTuple):
    """What an undisturbed load makes."""

    points: dict[str, Point]
    metadata: dict[str, Any]
    indexes: set[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("kill") / "DATA", make_passages(COUNT)).path


@pytest.fixture
def load_command(data: Path, tiny_bundle: Path) -> Callable[..., list[str]]:
    def command(*options: str | int) -> list[str]:
        words = ["load", data, "--bundle", tiny_bundle, "--collection", "c", *options]
        return [*INGEST, *map(str, words)]

    return command


def read(engine: Engine, collection: str) -> Whole:
    records, _ = engine.scroll(collection, limit=2 * COUNT, with_vectors=True)
    info = engine.get_collection(collection)
    metadata = dict(info.config.metadata or {})
    del metadata["created_at"]
    points = {str(r.id): Point(r.payload or {}, vectors(r)) for r in records}
    assert engine.count(collection).count == len(points)
    return Whole(points, metadata, set(info.payload_schema))


def vectors(record: Record) -> dict[str, Any]:
    assert isinstance(record.vector, dict)
    return {
        name: (list(v.indices), list(v.values)) if isinstance(v, SparseVector) else v
        for name, v in record.vector.items()
    }


def assert_equal(found: Whole, expected: Whole) -> None:
    assert found.metadata == expected.metadata
    assert found.indexes == expected.indexes
    assert found.points.keys() == expected.points.keys()
    for point_id, point in expected.points.items():
        other = found.points[point_id]
        assert other.payload == point.payload
        assert other.vectors.keys() == point.vectors.keys() == {*DENSE, "bm25"}
        assert other.vectors["bm25"] == point.vectors["bm25"]
        for name in DENSE:  # a batch of another size may round otherwise
            np.testing.assert_allclose(other.vectors[name], point.vectors[name], atol=1e-6)


def finish(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_when(command: list[str], begun: Callable[[int], bool], delay_s: float) -> bool:
    """Kill -9 a load `delay_s` after it has begun; False where it had ended by then."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not begun(process.pid):
            time.sleep(0.01)
        try:
            process.wait(timeout=delay_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        _, complaint = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), complaint
    return process.returncode == -signal.SIGKILL


def again_and_again(killed_after: Callable[[float], int], *, seed: int) -> list[int]:
    """Return how many points there were after each kill.

    Kills ten times, and goes on while fewer than five met a half-loaded collection: on a busy
    machine a load needs most of its time to begin.
    """
    counts: list[int] = []
    for delay_s in np.random.default_rng(seed).uniform(0.0, 0.9, 4 * LOADER_KILLS):
        if len(counts) >= LOADER_KILLS and len(halves(counts)) >= LOADER_KILLS // 2:
            break
        counts.append(killed_after(delay_s))
    return counts


def halves(counts: list[int]) -> list[int]:
    """Return those counts that are neither nothing nor everything."""
    return [count for count in counts if 0 < count < COUNT]


def test_the_loader_is_killed_on_the_embedded_engine(
    tmp_path: Path, load_command: Callable[..., list[str]]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    collection = finish(load_command("--path", whole)).split(":")[0]
    command = load_command("--path", broken, "--rate-limit", RATE)

    def has_the_folder(pid: int) -> bool:
        lock = broken / "LOCK"
        return lock.exists() and lock.read_text().strip() == str(pid)

    def killed_after(delay_s: float) -> int:
        assert kill_when(command, has_the_folder, delay_s)
        engine = connect(path=broken)
        there = engine.collection_exists(collection)
        count = engine.count(collection).count if there else 0
        engine.close()
        return count

    counts = again_and_again(killed_after, seed=1)
    assert counts == sorted(counts), "a point that was there is gone"
    assert len(halves(counts)) >= LOADER_KILLS // 2, counts

    assert f"{counts[-1]:,} unchanged" in finish(load_command("--path", broken))
    unbroken, killed = connect(path=whole), connect(path=broken)
    assert killed.resolve("c") == unbroken.resolve("c") == collection
    assert_equal(read(killed, collection), read(unbroken, collection))
    unbroken.close()
    killed.close()


class Restartable:
    """A real server that is killed and comes back on its storage."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.start()
        self.engine = connect(url=node.url)
        self.where = ("--url", node.url)

    def start(self) -> None:
        self.node.start({})
        self.node.wait_until_ready()

    def count(self, collection: str) -> int:
        try:
            return self.engine.count(collection).count
        except EngineError:
            return 0


@pytest.fixture
def restartable(tmp_path: Path) -> Iterator[Restartable]:
    node = Node("one", tmp_path / "server", [])
    try:
        running = Restartable(node)
        yield running
        running.engine.close()
    finally:
        if node.alive:
            node.kill()


@pytest.fixture
def expected(restartable: Restartable, load_command: Callable[..., list[str]]) -> Whole:
    """An undisturbed load, whose collection is gone again."""
    collection = finish(load_command(*restartable.where)).split(":")[0]
    whole = read(restartable.engine, collection)
    restartable.engine.delete_collection(collection)
    return whole


def test_the_loader_is_killed_on_the_server(
    restartable: Restartable, expected: Whole, load_command: Callable[..., list[str]]
) -> None:
    command = load_command(*restartable.where, "--rate-limit", RATE)
    collection = ""

    def has_begun(pid: int) -> bool:
        """Whether this process has the lease, or points come."""
        nonlocal collection
        found = restartable.engine.get_collections().collections
        collection = found[0].name if found else ""
        if not collection:
            return False
        metadata = restartable.engine.get_collection(collection).config.metadata or {}
        return (metadata.get("lease") or {}).get("pid") == pid

    def killed_after(delay_s: float) -> int:
        assert kill_when(command, has_begun, delay_s)
        return restartable.count(collection)

    counts = again_and_again(killed_after, seed=2)
    assert counts == sorted(counts), "a point that was there is gone"
    assert len(halves(counts)) >= LOADER_KILLS // 2, counts

    report = finish(load_command(*restartable.where))
    assert f"{restartable.engine.resolve('c')}: verified {COUNT:,} points" in report
    assert " 0 unchanged" not in report
    assert_equal(read(restartable.engine, collection), expected)


def test_the_server_is_killed_and_the_load_goes_on(
    restartable: Restartable, expected: Whole, load_command: Callable[..., list[str]]
) -> None:
    random = np.random.default_rng(3)
    goals = np.sort(random.choice(np.arange(20, COUNT - 400), SERVER_KILLS, replace=False))
    command = load_command(*restartable.where, "--rate-limit", RATE)
    hit = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for goal in goals:
            hit.append(kill_server_at(restartable, int(goal), process))
            time.sleep(random.uniform(0.0, 0.3))
            restartable.start()
        output, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    assert len(halves(hit)) == SERVER_KILLS, hit
    assert "Going on after" in complaints
    assert_equal(read(restartable.engine, output.split(":")[0]), expected)


def test_the_server_is_killed_and_the_command_is_given_again(
    restartable: Restartable, expected: Whole, load_command: Callable[..., list[str]]
) -> None:
    impatient = load_command(*restartable.where, "--rate-limit", RATE, "--retry-for", 0)
    for goal in (300, 900):
        with subprocess.Popen(
            impatient, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            hit = kill_server_at(restartable, goal, process)
            _, complaint = process.communicate(timeout=60)
        assert process.returncode == 1
        assert complaint.count("\n") == 1
        assert "run the same command again" in complaint
        assert 0 < hit < COUNT
        restartable.start()
    collection = finish(load_command(*restartable.where)).split(":")[0]
    assert_equal(read(restartable.engine, collection), expected)


def kill_server_at(running: Restartable, goal: int, load: "subprocess.Popen[str]") -> int:
    """Kill -9 the server when the collection has `goal` points; return how many it had."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert load.poll() is None, "the load has ended"
        found = running.engine.get_collections().collections
        points = running.count(found[0].name) if found else 0
        if points >= goal:
            running.node.kill()
            return points
        time.sleep(0.01)
    pytest.fail(f"the load does not reach {goal} points")
