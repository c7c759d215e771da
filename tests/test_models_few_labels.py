"""DATA with no label, one, or a handful: what is learnt, said, and measured with."""

import json
from pathlib import Path

import pytest
from conftest import make_passages
from typer.testing import CliRunner, Result

from two_tower.ingest.cli import app as ingest_app
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.cli import app
from two_tower.models.data import Qrel, Query
from two_tower.retriever.cli import app as retriever_app

QUICK = (
    "tower: {dim: 16}\nword2vec: {epochs: 1}\npretrain: {epochs: 1}\nlabelled: {epochs: 2}\n"
    "pca_dims: [8]\n"
)


def run(which: object, *words: object) -> Result:
    result = CliRunner().invoke(which, [*map(str, words)])  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output + result.stderr
    return result


def train(path: Path, labels: int) -> tuple[Result, ModelBundle, list[str]]:
    """Train on 60 passages with so many labelled queries, all in split train."""
    with DatasetWriter(path / "DATA", source="few") as writer:
        for passage in make_passages(60):
            writer.add_passage(passage)
        for number in range(labels):
            writer.add_query(Query(f"q{number}", f"number{number}"))
            writer.add_qrel(Qrel(f"q{number}", f"p{number}", 1, "train"))
    (path / "quick.yaml").write_text(QUICK)
    words = ("train", path / "DATA", "--out", path / "bundle", "--config", path / "quick.yaml")
    done = run(app, *words)
    phases = [
        json.loads(line)["phase"]
        for line in (path / "bundle.run" / "metrics.jsonl").read_text().splitlines()
        if "epoch" in json.loads(line)
    ]
    return done, ModelBundle.load(path / "bundle"), phases


@pytest.mark.parametrize("labels", [0, 1])
def test_none_or_a_single_label_teaches_and_measures_nothing(labels: int, tmp_path: Path) -> None:
    done, bundle, phases = train(tmp_path, labels)
    assert set(phases) == {"pretrain"}
    assert bundle.card["queries"] == {"train": 0, "dev": 0}
    assert not bundle.card["dev"].get("dense")
    assert "what is learnt comes from the passages alone" in done.stderr
    *_, said, next_command = done.stderr.splitlines()
    assert said.startswith("not learnt, for want of labelled queries: ")
    assert "nothing was measured" in said
    assert next_command.startswith("Next: ingest load ")


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_a_handful_is_never_measured_with_what_taught(labels: int, tmp_path: Path) -> None:
    done, bundle, phases = train(tmp_path, labels)
    assert "labelled" in phases
    queries = bundle.card["queries"]
    assert queries == {"train": labels - 1, "dev": 1}
    assert f"1 of {labels} train queries are held out" in done.stderr
    assert f"only {labels - 1} labelled pairs to learn from" in done.stderr


def test_evaluate_says_that_it_measures_with_what_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path, 3)
    run(ingest_app, "load", "DATA", "--bundle", "bundle", "--collection", "few")
    words = ("evaluate", "few", "DATA", "--split", "train", "--systems", "bm25,dense", "--out", "r")
    done = run(retriever_app, *words, "--bundle", "bundle")
    assert "the bundle learnt from these very queries" in done.stderr
    run(ingest_app, "load", "DATA", "--collection", "words")
    done = run(retriever_app, "evaluate", "words", "DATA", "--split", "train", "--out", "r")
    assert "learnt from these" not in done.stderr


def test_evaluate_without_judged_queries_says_what_to_do(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "DATA", source="none") as writer:
        for passage in make_passages(5):
            writer.add_passage(passage)
    where = ("--path", tmp_path / "edge")
    run(ingest_app, "load", tmp_path / "DATA", "--collection", "words", *where)
    words = ("evaluate", "words", tmp_path / "DATA", "--out", tmp_path / "report", *where)
    refused = CliRunner().invoke(retriever_app, [*map(str, words)])
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert "run: ingest prepare SOURCE --out DATA --queries FILE" in refused.stderr
    assert not (tmp_path / "report").exists()
