"""Estimates of `ingest load --dry-run` against files and processes that are really there."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cluster import Node, until
from conftest import HashEncoder, Server, make_passages, write_data
from qdrant_client import models as qm
from typer.testing import CliRunner

from two_tower.ingest.cli import app
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.estimate import Estimate, PointSize, estimate, estimate_points
from two_tower.models.data import Dataset, Passage
from two_tower.retriever.collection.options import (
    CollectionOptions,
    DiskOptions,
    HnswOptions,
    QuantizationOptions,
)
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine

SMALL, LARGE = 1_000, 9_000
ENCODER = HashEncoder(dim=256, pca_dims=(64, 32))
DEFAULT = CollectionOptions()
BUILT = CollectionOptions(
    hnsw=HnswOptions(above_kb=100), quantization=QuantizationOptions(kind="scalar")
)
CASES = [(SMALL, BUILT), (LARGE, DEFAULT)]
WITHIN = 0.25


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_data(tmp_path_factory.mktemp("estimate") / "LARGE", wordy(LARGE))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_data(tmp_path_factory.mktemp("estimate") / "SMALL", wordy(SMALL))


def wordy(count: int) -> list[Passage]:
    """Passages of as many different words as real ones have."""
    random = np.random.default_rng(0)
    numbers = random.zipf(1.3, (count, 45)) % 20_000
    return [
        passage._replace(text=f"{passage.text} {' '.join(f'word{n}' for n in row)}")
        for passage, row in zip(make_passages(count), numbers, strict=True)
    ]


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def resident(process: int | str) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def search(engine: Engine, collection: str, data: Dataset) -> None:
    vectors = ENCODER.encode_passages([p.content for p in data.passages()][:200])
    for vector in vectors:
        engine.query_points(collection, vector.tolist(), using="dense", limit=100)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node("one", tmp_path, [])
    yield node
    if node.alive:
        node.kill()


def start(node: Node) -> None:
    # As many segments as on the five cores or fewer that the estimate is for.
    node.start({"QDRANT__STORAGE__OPTIMIZERS__DEFAULT_SEGMENT_NUMBER": "2"})
    node.wait_until_ready()


@pytest.mark.parametrize(("size", "options"), CASES)
def test_a_server_needs_what_was_estimated(
    request: pytest.FixtureRequest, node: Node, size: int, options: CollectionOptions
) -> None:
    data = request.getfixturevalue("few" if size == SMALL else "data")
    expected = estimate(data, ENCODER, options=options, points=size)
    start(node)
    with node.connected() as engine:
        collection = loader.load(engine, data, ENCODER, name="c", options=options).collection
        until(
            lambda: engine.get_collection(collection).status is qm.CollectionStatus.GREEN,
            seconds=120,
        )
        search(engine, collection, data)
    assert node.process
    process = node.process.pid
    # The allocator gives back what a load needed in the ten seconds after it.
    until(lambda: resident(process) < (1 + WITHIN) * expected.memory, seconds=20)
    assert expected.memory == pytest.approx(resident(process), rel=WITHIN)
    node.process.terminate()
    node.process.wait()
    start(node)
    with node.connected() as engine:
        search(engine, collection, data)
    assert expected.restarted == pytest.approx(resident(node.process.pid), rel=WITHIN)
    assert expected.disk == pytest.approx(on_disk(node.folder / "storage"), rel=WITHIN)


OPEN = """
import sys
from pathlib import Path
from two_tower.retriever.engine.connect import connect
sys.path.append(sys.argv[1])
from test_ingest_estimate import Dataset, resident, search
connect(path=Path(sys.argv[2], "none")).close()
before = resident("self")
engine = connect(path=Path(sys.argv[2], "edge"))
data = Dataset.open(sys.argv[3])
search(engine, engine.get_collections().collections[0].name, data)
print(resident("self") - before)
"""


@pytest.mark.parametrize(("size", "options"), CASES)
def test_the_embedded_engine_needs_what_was_estimated(
    request: pytest.FixtureRequest, tmp_path: Path, size: int, options: CollectionOptions
) -> None:
    data = request.getfixturevalue("few" if size == SMALL else "data")
    expected = estimate(data, ENCODER, options=options, points=size, embedded=True)
    engine = connect(path=tmp_path / "edge")
    loader.load(engine, data, ENCODER, name="c", options=options)
    engine.close()
    command = [sys.executable, "-c", OPEN, Path(__file__).parent, tmp_path, data.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert expected.disk == pytest.approx(on_disk(tmp_path / "edge"), rel=WITHIN)
    assert expected.memory == expected.restarted == pytest.approx(int(done.stdout), rel=WITHIN)


POINT = PointSize(widths=(256, 64, 32), terms=32.0, payload=467.0, indexes=3)


@pytest.mark.parametrize(
    ("points", "memory_mb", "disk_mb"),
    [(10_000, 162, 52), (30_000, 290, 121), (100_000, 509, 349), (300_000, 907, 919)],
)
def test_what_the_growth_benchmark_found_was_estimated(
    points: int, memory_mb: int, disk_mb: int
) -> None:
    """docs/experiments.md has the table: VmRSS of the server and its files, at rest."""
    expected = estimate_points(POINT, points, options=DEFAULT)
    assert expected.memory == pytest.approx(memory_mb * 1e6, rel=WITHIN)
    assert expected.disk == pytest.approx(disk_mb * 1e6, rel=WITHIN)


def of(options: CollectionOptions, points: int, *, embedded: bool = False) -> Estimate:
    return estimate_points(POINT, points, options=options, embedded=embedded)


@pytest.mark.parametrize("embedded", [False, True])
def test_options_change_what_they_should(embedded: bool) -> None:
    many = 1_000_000
    plain = of(DEFAULT, many, embedded=embedded)
    away = of(CollectionOptions(on_disk=DiskOptions(vectors=True)), many, embedded=embedded)
    assert away.disk == plain.disk
    assert plain.memory - away.memory >= many * 4 * sum(POINT.widths)
    payload = CollectionOptions(on_disk=DiskOptions(payload=False))
    held = of(payload, many, embedded=embedded)
    assert held.memory - plain.memory == pytest.approx(many * POINT.payload)
    half = of(CollectionOptions(datatype="float16"), many, embedded=embedded)
    assert plain.disk - half.disk == pytest.approx(many * 2 * sum(POINT.widths), rel=0.01)
    postings = of(CollectionOptions(on_disk=DiskOptions(bm25=True)), many, embedded=embedded)
    assert plain.memory - postings.memory == pytest.approx(many * POINT.terms * 7.4)
    assert of(CollectionOptions(hnsw=HnswOptions(m=0)), many).disk < plain.disk
    scalar = CollectionOptions(quantization=QuantizationOptions(kind="scalar"))
    for change in ("disk", "memory", "restarted"):
        copies = getattr(of(scalar, many, embedded=embedded), change) - getattr(plain, change)
        assert copies == pytest.approx(many * 352)


def test_replicas_and_shards_multiply_what_they_should() -> None:
    one, two = of(DEFAULT, SMALL), of(CollectionOptions(replicas=2), SMALL)
    assert two[1:4] == tuple(2 * size for size in one[1:4])
    six = of(CollectionOptions(shards=6), SMALL)
    assert six.disk == pytest.approx(one.disk)
    assert one.memory < six.memory < 6 * one.memory  # one process, six times the segments


def test_a_dry_run_makes_nothing(data: Dataset, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    words = ["load", data.path, "--bundle", tiny_bundle, "--collection", "c", "--path", folder]
    command = [*map(str, words)]
    done = CliRunner().invoke(app, [*command, "--dry-run", "--where", "kind=note"])
    assert done.exit_code == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(
        r"c--[0-9a-f]{8} would have 3,000 added, 0 replaced, 0 payload only, 0 unchanged, "
        r"0 pruned, 0 kept",
        first,
    )
    assert re.fullmatch(
        r"3,000 points: about \d+ MB on disk, \d+ MB of memory in a process that opens it "
        r"\(resident, at rest, mapped files included, what the options leave on disk not\)",
        second,
    )
    assert not folder.exists()
    assert CliRunner().invoke(app, [*command, "--limit", "20"]).exit_code == 0
    done = CliRunner().invoke(app, [*command, "--dry-run", "--limit", "30"])
    assert " 10 added, 0 replaced, 0 payload only, 20 unchanged" in done.stdout
    done = CliRunner().invoke(app, [*command, "--prune", "--limit", "30"])
    assert done.exit_code == 1
    assert "would delete what was not selected" in done.stderr


def test_a_dry_run_for_a_server_says_what_a_restart_takes(
    server: Server, few: Dataset, tiny_bundle: Path
) -> None:
    words = ["load", few.path, "--bundle", tiny_bundle, "--collection", "dry", "--dry-run"]
    done = CliRunner().invoke(app, [*map(str, words), "--url", server.url])
    assert re.search(
        r"1,000 points: about \d+ MB on disk, \d+ MB of memory in the server's process, \d+ MB "
        r"after a restart \(resident",
        done.stdout,
    )
