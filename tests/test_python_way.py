"""Everything that the commands do, as calls: from a table to an evaluated collection."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import two_tower
from two_tower import Collection, Passage, Retriever
from two_tower.ingest.cli import app as ingest
from two_tower.models.cli import app as models
from two_tower.models.errors import ConfigError, DataError

ROWS = [
    ("how long does a kite stay up", "Kites", "A kite flies for as long as the wind blows."),
    ("what do lanterns burn", "Lanterns", "Lanterns burn paraffin, whale oil or candles."),
    ("who invented the barometer", "Barometers", "Torricelli built the first barometer."),
    ("where does cork grow", "Cork", "Cork is the bark of an oak from Portugal and Spain."),
    ("how deep is a well", "Wells", "A dug well is ten metres deep, a drilled one a hundred."),
]
CHANGES = {"labelled.epochs": 1, "pretrain.epochs": 1, "tower.dim": 16}


def test_the_calls_do_what_the_commands_do(tmp_path: Path) -> None:
    table = tmp_path / "rows.tsv"
    lines = ["query\ttitle\tpassage", *("\t".join(row) for row in ROWS)]
    table.write_text("\n".join(lines) + "\n")

    data = two_tower.prepare(table, tmp_path / "DATA", dev_fraction=0.0)
    assert data.manifest["counts"]["passages"] == 5
    bundle = two_tower.train(data, tmp_path / "bundle", changes=CHANGES)
    with Collection.load("things", data, bundle=bundle, path=tmp_path / "edge") as collection:
        collection.add([Passage("note", "A zeppelin moors at the mast.", fields={"kind": "note"})])
    with Retriever.open("things", path=tmp_path / "edge") as engine:
        assert engine.search("zeppelin mast", filter={"kind": "note"})[0].passage_id == "note"
        report = two_tower.evaluate(
            engine, tmp_path / "DATA", tmp_path / "report", split="train", systems=["bm25"]
        )
    assert report.systems[0].metrics["recall@10"] == 1.0
    assert json.loads((tmp_path / "report/report.json").read_text())["split"] == "train"

    def run(app: object, *words: str) -> None:
        done = CliRunner().invoke(app, words)  # type: ignore[arg-type]
        assert done.exit_code == 0, done.output

    run(ingest, "prepare", str(table), "--out", str(tmp_path / "D2"), "--dev-fraction", "0")
    assert two_tower.Dataset.open(tmp_path / "D2").content_hash == data.content_hash
    (tmp_path / "same.yaml").write_text(
        "labelled: {epochs: 1}\npretrain: {epochs: 1}\ntower: {dim: 16}\n"
    )
    same = ["--config", str(tmp_path / "same.yaml")]
    run(models, "train", str(tmp_path / "D2"), "--out", str(tmp_path / "b2"), *same)
    assert two_tower.ModelBundle.load(tmp_path / "b2").fingerprint == bundle.fingerprint


def test_a_start_without_labels_has_learnt_from_none(tmp_path: Path) -> None:
    table, labels = tmp_path / "rows.tsv", tmp_path / "labels.tsv"
    table.write_text("id\ttext\n" + "".join(f"p{n}\t{row[2]}\n" for n, row in enumerate(ROWS)))
    rows = "".join(f"{row[0]}\tp{n}\n" for n, row in enumerate(ROWS))
    labels.write_text("query\tpassage_id\n" + rows)
    bare = two_tower.prepare(table, tmp_path / "bare")
    first = two_tower.train(bare, tmp_path / "first", changes=CHANGES)
    assert first.card["labels"] == []
    data = two_tower.prepare(table, tmp_path / "data", queries=labels, dev_fraction=0.0)
    for start in (first, tmp_path / "first"):
        said: list[str] = []
        out = tmp_path / f"second-{len(list(tmp_path.iterdir()))}"
        second = two_tower.train(data, out, start=start, changes=CHANGES, notify=said.append)
        assert not any("has learnt from these labels" in line for line in said)
        assert data.content_hash in second.card["labels"]
    two_tower.train(data, tmp_path / "third", start=second, changes=CHANGES, notify=said.append)
    assert any("has learnt from these labels" in line for line in said)


def test_wrong_arguments_are_refused_in_one_line(tmp_path: Path) -> None:
    for call, error in (
        (lambda: two_tower.prepare(tmp_path / "no.csv", tmp_path / "D"), DataError),
        (lambda: two_tower.train(tmp_path / "no", tmp_path / "b"), DataError),
        (lambda: Collection.load("x", tmp_path / "no", bundle=3), ConfigError),  # type: ignore[arg-type]
        (lambda: Retriever.open("x", bundle=[]), ConfigError),  # type: ignore[arg-type]
    ):
        with pytest.raises(error) as failure:
            call()
        assert "\n" not in str(failure.value)
    assert not (tmp_path / "D").exists()
