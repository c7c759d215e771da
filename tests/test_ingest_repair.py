"""`ingest verify --repair`: what is missing or different is sent again, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import HashEncoder, make_passages, write_data
from typer.testing import CliRunner

from two_tower.ingest.cli import app
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import repair, verify
from two_tower.models.data import Dataset
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import Point, Record

MakeData = Callable[..., Dataset]
PASSAGES = make_passages(300)


def everything(engine: Engine, collection: str) -> dict[str, Record]:
    records, _ = engine.scroll(collection, limit=10_000, with_payload=True, with_vectors=True)
    return {str(record.id): record for record in records}


def change(engine: Engine, collection: str, record: Record, **parts: Any) -> None:
    whole = {"id": record.id, "vector": record.vector, "payload": record.payload} | parts
    engine.upsert(collection, [Point(**whole)])


def test_all_that_is_wrong_is_sent_again_and_only_that(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, encoder, name=name).collection
    right = everything(engine, collection)
    assert repair(engine, collection, data, encoder).sent == 0

    turned, renamed, unsorted = (right[point_id(f"p{number}")] for number in (11, 12, 13))
    assert isinstance(turned.vector, dict)
    change(engine, collection, turned, vector={**turned.vector, "pca_4": [1.0, 0.0, 0.0, 0.0]})
    change(engine, collection, renamed, payload={**(renamed.payload or {}), "title": "another"})
    change(engine, collection, unsorted, vector={**turned.vector, "bm25": turned.vector["bm25"]})
    engine.delete(collection, [point_id("p270"), point_id("p299")])

    report = repair(engine, collection, data, encoder)
    assert (report.compared, report.sent) == (300, 5)
    assert everything(engine, collection) == right
    verify(engine, collection, data, encoder)


def test_the_command(tmp_path: Path, tiny_bundle: Path) -> None:
    data = write_data(tmp_path / "DATA", PASSAGES[:50]).path
    where = ["--path", str(tmp_path / "engine")]
    full = ["--data", str(data), "--bundle", str(tiny_bundle)]
    run = CliRunner().invoke
    load = ["load", str(data), "--bundle", str(tiny_bundle), "--collection", "c", *where]
    assert run(app, load).exit_code == 0
    engine = connect(path=tmp_path / "engine")
    (victim,) = engine.retrieve("c", [point_id("p7")], with_vectors=True)
    change(engine, "c", victim, payload={**(victim.payload or {}), "text": "not what DATA says"})
    engine.close()

    found = run(app, ["verify", "c", *full, *where])
    assert found.exit_code == 1
    collection = found.stderr.split("'")[1]
    assert f"run: ingest verify {collection} --data DATA --bundle BUNDLE --repair" in found.stderr
    mended = run(app, ["verify", "c", *full, "--repair", *where])
    assert mended.exit_code == 0, mended.stderr
    assert mended.stdout.splitlines() == [
        f"{collection}: compared 50 in full, 1 sent again",
        f"{collection}: verified 50 points; 50 compared in full",
    ]
    assert run(app, ["verify", "c", *full, *where]).exit_code == 0
    alone = run(app, ["verify", "c", "--repair", *where])
    assert alone.exit_code == 2
    assert "--repair needs --data and --bundle" in alone.stderr
