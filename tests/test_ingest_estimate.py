"""Estimates of `ingest load --dry-run` against files and processes that are really there."""

import re
from pathlib import Path

import pytest
from cluster import Node
from conftest import HashEncoder, make_passages, write_data
from qdrant_client import models as qm
from typer.testing import CliRunner

from ingest import loader
from ingest.cli import app
from ingest.estimate import Estimate, estimate
from models.data import Dataset
from retriever.engine import Engine, connect
from retriever.options import CollectionOptions, DiskOptions, QuantizationOptions

COUNT = 6000
ENCODER = HashEncoder(dim=256, pca_dims=(64,))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_data(tmp_path_factory.mktemp("estimate") / "DATA", make_passages(COUNT))


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def expected(data: Dataset, options: CollectionOptions | None = None) -> Estimate:
    return estimate(data, ENCODER, options=options or CollectionOptions(), points=COUNT)


def test_the_embedded_engine_needs_what_was_estimated(data: Dataset, tmp_path: Path) -> None:
    engine = connect(path=tmp_path / "edge")
    loader.load(engine, data, ENCODER, name="c")
    engine.close()
    assert expected(data).disk == pytest.approx(on_disk(tmp_path / "edge"), rel=0.25)


def search(engine: Engine, collection: str, data: Dataset) -> None:
    vectors = ENCODER.encode_passages([p.content for p in data.passages()][:100])
    for vector in vectors:
        engine.query_points(collection, vector.tolist(), using="dense", limit=10)


def test_a_server_needs_what_was_estimated(data: Dataset, tmp_path: Path) -> None:
    node = Node("one", tmp_path, [])
    node.start({})
    try:
        node.wait_until_ready()
        with node.connected() as engine:
            collection = loader.load(engine, data, ENCODER, name="c").collection
            search(engine, collection, data)
            assert engine.get_collection(collection).status is qm.CollectionStatus.GREEN
        assert expected(data).disk == pytest.approx(on_disk(tmp_path / "storage"), rel=0.25)
        assert node.process
        status = Path(f"/proc/{node.process.pid}/status").read_text()
        held = int(status.split("VmRSS:")[1].split()[0]) * 1024
        assert expected(data).memory == pytest.approx(held, rel=0.25)
    finally:
        node.kill()


def test_options_change_what_they_should(data: Dataset) -> None:
    plain = expected(data)
    away = expected(data, CollectionOptions(on_disk=DiskOptions(vectors=True)))
    assert (plain.disk, plain.memory - away.memory) == (away.disk, COUNT * 4 * 320)
    twice = expected(data, CollectionOptions(replicas=2))
    assert (twice.disk, twice.memory) == (2 * plain.disk, 2 * plain.memory)
    scalar = CollectionOptions(quantization=QuantizationOptions(kind="scalar"))
    many = 100_000
    copies = [
        estimate(data, ENCODER, options=o, points=many) for o in (CollectionOptions(), scalar)
    ]
    assert copies[1].disk - copies[0].disk == pytest.approx(many * 320)


def test_a_dry_run_makes_nothing(data: Dataset, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    words = ["load", data.path, "--bundle", tiny_bundle, "--collection", "c", "--path", folder]
    command = [*map(str, words)]
    done = CliRunner().invoke(app, [*command, "--dry-run", "--where", "kind=note"])
    assert done.exit_code == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(
        r"c--[0-9a-f]{8} would have 2,000 added, 0 replaced, 0 payload only, 0 unchanged, "
        r"0 pruned, 0 kept",
        first,
    )
    assert re.fullmatch(r"2,000 points: about \d+ MB on disk, \d+ MB of memory", second)
    assert not folder.exists()
    assert CliRunner().invoke(app, [*command, "--limit", "20"]).exit_code == 0
    done = CliRunner().invoke(app, [*command, "--dry-run", "--limit", "30"])
    assert " 10 added, 0 replaced, 0 payload only, 20 unchanged" in done.stdout
    done = CliRunner().invoke(app, [*command, "--prune", "--limit", "30"])
    assert done.exit_code == 1
    assert "would delete what was not selected" in done.stderr
