"""One settings file from `ingest load` to `retriever search` and `evaluate`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_passages
from typer.testing import CliRunner, Result

from two_tower.ingest.cli import app as ingest
from two_tower.models.data import Dataset
from two_tower.retriever.cli import app as retriever
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import read_metadata
from two_tower.retriever.engine.connect import connect

FILE = """
collection: {clusters: 4, quantization: {kind: scalar}, indexes: {text: text}}
search:
  legs: {dense: 20}
  rerank: false
  ann: {first_stage: pca_8, n_probe: 1}
"""
PASSAGES = make_passages(80)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture
def place(tmp_path: Path, tiny_bundle: Path, make_data: Callable[..., Dataset], file: Path) -> Path:
    data = make_data(PASSAGES)
    words = ["load", str(data.path), "--collection", "pages", "--options", str(file)]
    done = CliRunner().invoke(ingest, [*words, *at(tmp_path, tiny_bundle)])
    assert done.exit_code == 0, done.stderr
    return tmp_path


def at(place: Path, bundle: Path) -> list[str]:
    return ["--bundle", str(bundle), "--path", str(place / "edge")]


def search(place: Path, bundle: Path, *words: str) -> Result:
    return CliRunner().invoke(retriever, ["search", "pages", *words, "--json", *at(place, bundle)])


def test_the_file_says_how_to_store_and_how_to_search(
    place: Path, tiny_bundle: Path, file: Path
) -> None:
    engine = connect(path=place / "edge")
    options = read_metadata(engine, engine.resolve("pages")).options
    found = engine.get_collection("pages")
    engine.close()
    assert options.clusters == 4
    assert options != CollectionOptions()
    assert found.config.quantization_config is not None
    assert found.payload_schema["text"].data_type.value == "text"
    done = search(place, tiny_bundle, "storm on the river", "-k", "40", "--settings", str(file))
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["stages_run"] == ["dense"]
    assert 0 < len(answer["hits"]) < 40  # one cluster of four
    plain = json.loads(search(place, tiny_bundle, "storm on the river", "-k", "40").stdout)
    assert plain["stages_run"] == ["dense", "bm25", "rerank"]
    assert len(plain["hits"]) == 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {ann: {n_probe: 5}}", "ann.n_probe is 5, but the collection has 4 clusters"),
        ("search: {ann: {first_stage: pca_7}}", "unknown leg 'pca_7'; this bundle has dense, pca_"),
        ("search: {legz: {dense: 1}}", "did you mean search.legs?"),
    ],
)
def test_a_wrong_file_is_one_line(place: Path, tiny_bundle: Path, text: str, message: str) -> None:
    wrong = place / "wrong.yaml"
    wrong.write_text(text, encoding="utf-8")
    done = search(place, tiny_bundle, "storm", "--settings", str(wrong))
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_command_that_searches_takes_the_file() -> None:
    for command in ("search", "evaluate", "serve"):
        shown = CliRunner().invoke(retriever, [command, "--help"], env={"COLUMNS": "200"})
        assert "--settings" in shown.stdout, command


def test_a_service_checks_the_file_before_it_listens(tmp_path: Path, tiny_bundle: Path) -> None:
    missing = str(tmp_path / "nowhere.yaml")
    words = ["serve", "pages", "--settings", missing, *at(tmp_path, tiny_bundle)]
    done = CliRunner().invoke(retriever, words)
    assert done.exit_code == 1
    assert "there is no configuration file at" in done.stderr
