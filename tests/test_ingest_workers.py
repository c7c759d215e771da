"""Points made by worker processes: the same to the last bit, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge
from conftest import make_passages, write_data

from two_tower.ingest.loading import loader, workers
from two_tower.ingest.loading.diff import Changes
from two_tower.ingest.loading.points import PassageEncoder, PointMaker, chunks
from two_tower.ingest.loading.setup import open_collection
from two_tower.ingest.loading.verify import verify
from two_tower.ingest.loading.workers import BatchMaker, worker_count
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.no_tower import NoTower
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import DataError
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine, scroll_all
from two_tower.retriever.engine.wire import PackedPoints, Point, batches
from two_tower.retriever.errors import EngineError

PASSAGES = [
    Passage("quote", 'a "quoted" text'),
    Passage("long", "many words " * 3000, "Café", fields={"year": 3, "tags": ["ä", "ö"]}),
    Passage("without words", "\u200b …"),
    Passage("expanded", "an elephant", expansion=("how large is an elephant", "trunk")),
    *make_passages(600),
]


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return write_data(tmp_path / "DATA", make_passages(1100))


@pytest.fixture(autouse=True)
def _workers_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WAIT_S", 60.0)
    monkeypatch.setattr(workers, "FIRST_HERE", 0)


def plain(points: Iterable[Point]) -> list[tuple[Any, ...]]:
    """Points as values that are equal where every bit is."""

    def bits(vector: Any) -> object:
        if isinstance(vector, qdrant_edge.SparseVector):
            return vector.indices, vector.values
        assert vector.dtype == np.float32
        return vector.tobytes()

    return [
        (p.id, [(name, bits(v)) for name, v in p.vector.items()], list(p.payload.items()))
        for p in points
    ]


@pytest.mark.parametrize(
    ("kind", "count"), [("bundle", 1), ("clusters", 2), ("without a tower", 1)]
)
def test_workers_make_the_same_points_to_the_last_bit(
    edge_engine: Engine, tiny_bundle: Path, data: Dataset, kind: str, count: int
) -> None:
    encoder = NoTower() if kind == "without a tower" else ModelBundle.load(tiny_bundle)
    options = CollectionOptions(clusters=3 if kind == "clusters" else 0)
    metadata = open_collection(edge_engine, data, encoder, name="c", options=options)
    changes = [Changes(part[1:], part[:1], []) for part in chunks(PASSAGES, 100)]
    with BatchMaker(encoder, metadata, batch_points=64, workers=count) as maker:
        made = [(each, [*points]) for each, points in maker.run(changes)]
        assert len(maker._workers) == count
    assert [each for each, _ in made] == changes
    here = PointMaker(encoder, metadata)
    for each, found in made:
        expected = [*batches(here.make([*each.added, *each.replaced]), max_points=64)]
        assert [plain(batch) for batch in found] == [plain(batch) for batch in expected]


@pytest.mark.parametrize("value", [float("nan"), 2**64, "\ud800"])
def test_what_no_engine_stores_is_not_packed(value: object) -> None:
    vector = {"bm25": qdrant_edge.SparseVector([1], [0.5])}
    points = [Point(1, vector, {"year": 2000}), Point(2, vector, {"year": value})]
    with pytest.raises(EngineError, match=r"the payload of point 2 holds .* keeps no such value"):
        PackedPoints.of(points)
    (same,) = PackedPoints.of(points[:1])
    assert (same.id, same.payload) == (1, {"year": 2000})
    assert same.vector["bm25"].values == [0.5]


def loaded(path: Path, data: Dataset, encoder: PassageEncoder) -> list[str]:
    """Load, and return all that the engine holds, in its order."""
    engine = connect(path=path)
    collection = loader.load(engine, data, encoder, name="c").collection
    records = [*scroll_all(engine, collection, with_vectors=True)]
    engine.close()
    return [f"{each.id} {each.payload} {sorted(each.vector.items())}" for each in records]


def test_a_collection_does_not_depend_on_the_workers(
    tmp_path: Path, tiny_bundle: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ModelBundle.load(tiny_bundle)
    expected = loaded(tmp_path / "0", data, encoder)
    monkeypatch.setattr(loader, "worker_count", lambda *_: 1)
    assert loaded(tmp_path / "1", data, encoder) == expected
    assert len(expected) == 1100


def test_a_worker_that_dies_ends_the_load_in_one_line_and_the_next_load_goes_on(
    edge_engine: Engine, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ModelBundle.load(tiny_bundle)
    data = write_data(tmp_path / "LARGER", make_passages(2100))
    monkeypatch.setattr(loader, "worker_count", lambda *_: 1)
    killed: list[int] = []
    take = workers._Worker.take

    def take_and_kill(worker: workers._Worker) -> list[PackedPoints]:
        points = take(worker)
        if not killed:
            killed.append(worker._process.pid)
            os.kill(worker._process.pid, signal.SIGKILL)
        return points

    monkeypatch.setattr(workers._Worker, "take", take_and_kill)
    with pytest.raises(EngineError, match=r"process .* ended \(signal 9\).*run the same command"):
        loader.load(edge_engine, data, encoder, name="c")
    assert not is_running(killed[0])
    report = loader.load(edge_engine, data, encoder, name="c")
    assert 0 < report.unchanged < report.points == 2100
    assert verify(edge_engine, report.collection, data, encoder).points == 2100


def test_a_load_goes_on_without_a_worker_that_cannot_start(
    edge_engine: Engine,
    tiny_bundle: Path,
    data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(workers, "START", "raise SystemExit(3)")
    monkeypatch.setattr(loader, "worker_count", lambda *_: 2)
    report = loader.load(edge_engine, data, ModelBundle.load(tiny_bundle), name="c")
    assert report.added == 1100
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "a process that makes points could not start (exit code 3); the load goes on without"
    ]


def test_what_a_worker_refuses_is_refused_as_without_it(
    edge_engine: Engine, tiny_bundle: Path, data: Dataset
) -> None:
    encoder = ModelBundle.load(tiny_bundle)
    metadata = open_collection(edge_engine, data, encoder, name="c")
    changes = [Changes([Passage("large", "x" * 31 * 2**20)], [], [])]
    messages = []
    for count in (0, 1):
        maker = BatchMaker(encoder, metadata, batch_points=64, workers=count)
        with maker, pytest.raises(DataError) as caught:
            [list(points) for _, points in maker.run(changes)]
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_small_loads_one_core_and_other_encoders_have_no_workers(
    tiny_bundle: Path, encoder: PassageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = ModelBundle.load(tiny_bundle)
    for cores, expected in ((1, 0), (2, 1), (3, 2), (64, workers.MOST_WORKERS)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        assert worker_count(bundle, 10_000) == worker_count(NoTower(), 10_000) == expected
    assert worker_count(bundle, 9_999) == worker_count(encoder, 10_000) == 0
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # sys.executable is the application
    assert worker_count(bundle, 10_000) == 0


# An application without `if __name__ == "__main__"`: nothing of it may run a second time.
PROGRAM = """
import sys
from two_tower.ingest.loading import loader, workers
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset
from two_tower.retriever.engine.connect import connect

print("begins", flush=True)
data, bundle, path, rate = sys.argv[1:]
loader.worker_count = lambda *_: 1
workers.FIRST_HERE, workers.WAIT_S = 0, 60.0
start = workers._Worker.__init__
def started(self, needs):
    start(self, needs)
    print("worker", self._process.pid, flush=True)
workers._Worker.__init__ = started
settings = loader.LoadSettings(rate_limit=float(rate))
engine = connect(path=path)
print(loader.load(engine, Dataset.open(data), ModelBundle.load(bundle), name="c",
                  settings=settings).sent)
"""


@pytest.fixture
def program(tmp_path: Path, tiny_bundle: Path, data: Dataset) -> Callable[[int], Any]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    def start(rate: int) -> "subprocess.Popen[str]":
        words = [sys.executable, script, data.path, tiny_bundle, tmp_path / "edge", str(rate)]
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )

    return start


def test_a_program_without_a_main_guard_loads_with_workers(program: Callable[[int], Any]) -> None:
    output, complaint = program(100_000).communicate(timeout=60)
    begins, worker, sent = output.splitlines()
    assert (begins, worker.split()[0], sent, complaint) == ("begins", "worker", "1100", "")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_load(program: Callable[[int], Any], sent: signal.Signals) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    process = program(100)
    signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout.readline() == "begins\n"
        worker = int(process.stdout.readline().split()[1])
        time.sleep(0.1)  # anywhere in its start, or in its work
        os.killpg(process.pid, sent)
        process.communicate(timeout=60)
    assert process.returncode != 0
    for _ in range(100):
        if not is_running(worker):
            return
        time.sleep(0.1)
    raise AssertionError(f"worker {worker} is still there")


def is_running(process: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
