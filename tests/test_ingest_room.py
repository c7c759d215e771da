"""A load that the machine has no room for is refused before anything is made."""

import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import HashEncoder, make_passages, write_data

from two_tower.ingest.loading import loader, room
from two_tower.ingest.loading.estimate import GROWING_POSTING_BYTES, STORED_TERM_BYTES
from two_tower.models.data import Dataset
from two_tower.retriever.collection.options import CollectionOptions, DiskOptions
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.engine import edge
from two_tower.retriever.engine.edge_folder import LEAST_FREE
from two_tower.retriever.engine.machine import machine_memory
from two_tower.retriever.engine.protocol import Engine, collection_names
from two_tower.retriever.errors import EngineError

COUNT = 3000
ENCODER = HashEncoder(dim=256, pca_dims=(64, 32))
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_data(tmp_path_factory.mktemp("room") / "DATA", make_passages(COUNT))


def with_disk(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Let the disk have so many bytes that a load may use."""
    free = int(size) + LEAST_FREE
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * free, free, free))


def refusal(engine: Engine, data: Dataset, options: CollectionOptions | None = None) -> str:
    with pytest.raises(EngineError) as caught:
        loader.load(engine, data, ENCODER, name="c", options=options)
    assert not collection_names(engine)
    return str(caught.value)


def test_too_small_a_disk(
    edge_engine: Engine, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_disk(monkeypatch, 1e6)
    message = refusal(edge_engine, data)
    assert message.count("\n") == 0
    whole = re.search(r"3,000 points of c--\w{8} take about (\d+) MB on disk", message)
    assert whole
    assert "room for 1 MB; about" in message
    fitting = re.search(r"about ([\d,]+) would fit \(--limit (\d+)\)", message)
    assert fitting
    few = int(fitting[2])
    assert f"{few:,}" == fitting[1]
    assert few == pytest.approx(COUNT / int(whole[1]), rel=0.05)
    smaller = write_data(tmp_path / "smaller", make_passages(int(few * 0.95)))
    larger = write_data(tmp_path / "larger", make_passages(int(few * 1.1)))
    refusal(edge_engine, larger)
    assert loader.load(edge_engine, smaller, ENCODER, name="c").points == smaller.passage_count
    edge_engine.delete_collection(collection_names(edge_engine).pop())
    with_disk(monkeypatch, 0)
    assert "none would fit" in refusal(edge_engine, data)


def test_too_little_memory(
    edge_engine: Engine, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PLENTY", 2**20)
    monkeypatch.setattr(edge, "machine_memory", lambda: 205e6)
    message = refusal(edge_engine, data)
    assert re.search(r"take about \d+ MB of memory, and this machine has 205 MB; about", message)
    on_disk = CollectionOptions(on_disk=DiskOptions(vectors=True, payload=True, bm25=True))
    monkeypatch.setattr(edge, "machine_memory", lambda: 1e6)
    assert "none would fit" in refusal(edge_engine, data, on_disk)


def test_what_is_there_already_needs_no_room(
    edge_engine: Engine, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = loader.load(edge_engine, data, ENCODER, name="c").collection
    with_disk(monkeypatch, 0)
    assert loader.load(edge_engine, data, ENCODER, name="c").unchanged == COUNT
    edge_engine.delete(collection, [point_id(p.passage_id) for p in make_passages(20)])
    with_disk(monkeypatch, 1e6)  # enough for twenty
    assert loader.load(edge_engine, data, ENCODER, name="c").added == 20


def test_a_machine_has_no_more_memory_than_it_says() -> None:
    total = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line
    )
    assert 2**28 < machine_memory() <= int(total.split()[1]) * 1024


def test_a_server_says_what_it_has(rest_engine: Engine) -> None:
    said = rest_engine.machine()
    assert said
    assert said.memory == pytest.approx(machine_memory(), rel=0.1)
    assert said.disk >= shutil.disk_usage("/").total * 0.9


@pytest.mark.parametrize(
    ("field", "lack"), [("payload", "on disk, and http"), ("terms", "of memory, and the server's")]
)
def test_too_large_for_a_server(
    rest_engine: Engine, data: Dataset, monkeypatch: pytest.MonkeyPatch, field: str, lack: str
) -> None:
    said = rest_engine.machine()
    assert said
    size = room.point_size(data, ENCODER, options=CollectionOptions())
    term_bytes = GROWING_POSTING_BYTES + STORED_TERM_BYTES
    half = (said.disk if field == "payload" else said.memory / term_bytes) / COUNT
    monkeypatch.setattr(room, "PLENTY", said.disk)
    monkeypatch.setattr(room, "point_size", lambda *a, **k: size._replace(**{field: 2 * half}))
    on_disk = CollectionOptions(on_disk=DiskOptions(payload=True))
    message = refusal(rest_engine, data, on_disk)
    assert lack in message
    assert re.search(r"about 1,4\d\d would fit .*, or use a larger one$", message)
