"""A bundle or a version is taken where a paired test says what was asked of it."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from conftest import make_passages
from topics import QUICK, write_aliases, write_topics
from typer.testing import CliRunner

import two_tower
from two_tower.ingest.cli import app as ingest
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.versions.conditions import BETTER, NOT_WORSE, Condition, judge, read_condition
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.cli import app as models
from two_tower.models.data import Dataset, Qrel, Query
from two_tower.models.errors import ConfigError, TrainingError
from two_tower.retriever.evaluation.evaluate import Report, SystemResult
from two_tower.retriever.evaluation.significance import Comparison


def run(app: object, *words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*map(str, words)])  # type: ignore[arg-type]
    assert result.exit_code == code, result.output + result.stderr
    return result


def report(difference: float, p: float) -> Report:
    interval = (difference - 0.02, difference + 0.02)
    compared = {"mrr@10": Comparison(difference, interval, p, p)}
    metrics = {"mrr@10": 0.5}
    now = SystemResult("now", 90, metrics, {}, None, None)
    new = SystemResult("rerank", 90, {"mrr@10": 0.5 + difference}, {}, None, None)
    rows = (now, SystemResult(**{**vars(new), "comparisons": compared}))
    return Report("c", 9, "D", "dev", "b", "", rows, baseline="now")


@pytest.mark.parametrize(
    ("difference", "p", "is_better", "is_not_worse"),
    [
        (0.10, 0.001, True, True),
        (0.01, 0.4, False, True),
        (0.0, 1.0, False, True),
        (-0.01, 0.4, False, True),
        (-0.10, 0.001, False, False),
    ],
)
def test_what_the_paired_test_says(
    difference: float, p: float, is_better: bool, is_not_worse: bool
) -> None:
    assert judge(report(difference, p), Condition("mrr@10", BETTER)).holds == is_better
    outcome = judge(report(difference, p), Condition("mrr@10", NOT_WORSE))
    assert outcome.holds == is_not_worse
    assert outcome.says == (
        f"rerank has mrr@10 {0.5 + difference:.4f}, now 0.5000: {difference:+.4f} "
        f"[{difference - 0.02:+.4f}, {difference + 0.02:+.4f}] on 90 queries, p={p:.3f}"
    )


def test_conditions_are_read() -> None:
    assert read_condition(" mrr@10 not worse ") == ("mrr@10", NOT_WORSE)
    assert read_condition("ndcg@10 better") == ("ndcg@10", BETTER)
    for text in ("", "mrr@10", "mrr@10>=.8", "mrr@11 better", "better mrr@10", "mrr@10 worse"):
        with pytest.raises(ConfigError, match=r"the condition is .* expected a measure"):
            read_condition(text)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "quick.yaml"
    file.write_text(yaml.safe_dump(QUICK))
    return file


def test_a_bundle_that_beats_bm25_is_taken(tmp_path: Path, config: Path) -> None:
    write_aliases(tmp_path / "DATA")
    words = ("train", tmp_path / "DATA", "--out", tmp_path / "bundle", "--config", config)
    result = run(models, *words, "--must-beat", "bm25")
    assert "has ndcg@10" in result.stderr
    assert ", bm25 0.0000: +" in result.stderr
    plain = tmp_path / "plain"
    run(models, "train", tmp_path / "DATA", "--out", plain, "--config", config)
    assert ModelBundle.load(tmp_path / "bundle").fingerprint == ModelBundle.load(plain).fingerprint
    assert not (tmp_path / "bundle.candidate").exists()


def write_numbers(path: Path) -> Dataset:
    """DATA where BM25 finds every answer first, so that nothing is better."""
    with DatasetWriter(path, source="numbers") as writer:
        for number, passage in enumerate(make_passages(40)):
            writer.add_passage(passage)
            query_id = writer.add_query(Query(f"q{number}", f"which is number{number}"))
            split = "train" if number % 2 else "dev"
            writer.add_qrel(Qrel(str(query_id), passage.passage_id, 1, split))
    return Dataset.open(path)


def test_one_that_does_not_changes_nothing(tmp_path: Path, config: Path) -> None:
    data = write_numbers(tmp_path / "DATA")
    out = tmp_path / "bundle"
    two_tower.train(data, out, config=str(config), changes={"seed": 9})
    before = ModelBundle.load(out).fingerprint
    with pytest.raises(TrainingError, match=r"does not beat bm25 .*p=") as refused:
        two_tower.train(data, out, config=str(config), must_beat="bm25", force=True)
    assert "\n" not in str(refused.value)
    assert ModelBundle.load(out).fingerprint == before
    assert ModelBundle.load(tmp_path / "bundle.candidate").fingerprint != before
    words = ("train", tmp_path / "DATA", "--out", tmp_path / "other", "--config", config)
    assert "does not beat bm25" in run(models, *words, "--must-beat", "bm25", code=1).stderr
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_beaten_is_refused_before_training(tmp_path: Path) -> None:
    data = write_topics(tmp_path / "DATA")
    with pytest.raises(ConfigError, match="must-beat is 'rrf', expected bm25 or tfidf"):
        two_tower.train(data, tmp_path / "b", must_beat="rrf")
    assert not list(tmp_path.glob("b*"))


def test_a_version_is_promoted_where_the_condition_holds(tmp_path: Path, config: Path) -> None:
    write_aliases(tmp_path / "DATA")
    data, bundle, where = tmp_path / "DATA", tmp_path / "bundle", ("--path", tmp_path / "edge")
    run(models, "train", data, "--out", bundle, "--config", config)
    load = ("load", data, "--collection", "things", *where)
    run(ingest, *load)
    run(ingest, *load, "--bundle", bundle, "--no-promote")

    def versions() -> dict[str, bool]:
        listed = json.loads(run(ingest, "list", "--json", *where).stdout)
        return {version["collection"]: "things" in version["aliases"] for version in listed}

    (old,) = (name for name, in_use in versions().items() if in_use)
    (new,) = (name for name, in_use in versions().items() if not in_use)
    asked = ("promote", "things", "--to", new, "--data", data, *where)
    better = run(ingest, *asked, "--if", "ndcg@10 better")
    assert ", now 0.0000: +" in better.stderr
    assert better.stdout == f"things -> {new}\n"

    asked = ("promote", "things", "--to", old, "--data", data, *where)
    refused = run(ingest, *asked, "--if", "mrr@10 not worse", code=1)
    assert refused.stdout == ""
    assert f"'mrr@10 not worse' does not hold for {old}; things stays {new}" in refused.stderr
    assert versions()[new]

    same = run(
        ingest, "promote", "things", "--to", new, "--data", data, "--if", "map@100 better", *where
    )
    assert "nothing to compare with" in same.stderr
    alone = run(ingest, "promote", "things", "--if", "mrr@10 better", *where, code=1)
    assert "--if and --data belong together" in alone.stderr
