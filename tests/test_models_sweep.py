import json
import math
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from topics import QUICK, write_topics
from typer.testing import CliRunner, Result

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.cli import app
from two_tower.models.config import with_values
from two_tower.models.errors import ConfigError
from two_tower.models.training.checkpoint import run_path
from two_tower.models.training.sweep import Outcome, Range, Trial, plan, read_space, to_markdown

BASE = with_values(QUICK, {"pretrain.epochs": 1, "labelled.epochs": 1})
LISTS = {"labelled.temperature": [0.05, 0.1], "tower.dim": [16, 32, 48]}


def planned(space: dict[str, object], trials: int, *, seed: int = 0) -> list[Trial]:
    return plan(BASE, space, trials=trials, seed=seed, content_hash="x")  # type: ignore[arg-type]


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_small_space_of_lists_is_a_grid() -> None:
    trials = planned(LISTS, 6)
    assert [tuple(t.values.values()) for t in trials] == list(product([0.05, 0.1], [16, 32, 48]))
    assert [t.config.tower.dim for t in trials] == [16, 32, 48, 16, 32, 48]
    assert all(t.config.pretrain.epochs == 1 for t in trials)
    assert len({t.name for t in trials}) == 6


def test_a_larger_one_is_drawn_without_repetition() -> None:
    trials = planned(LISTS, 5)
    assert len({tuple(t.values.values()) for t in trials}) == 5
    assert trials == planned(LISTS, 5)
    assert trials[:3] == planned(LISTS, 3)  # more trials go on with the same ones
    assert trials != planned(LISTS, 5, seed=1)


def test_ranges_are_drawn_evenly_in_their_scale(tmp_path: Path) -> None:
    declared = {
        "labelled.learning_rate": {"min": 1e-4, "max": 1.0, "log": True},
        "labelled.margin": {"min": 0.1, "max": 0.5},
        "tower.dim": {"min": 16, "max": 64},
    }
    space = read_space(written(tmp_path, declared))
    assert space["tower.dim"] == Range(16, 64, integers=True)
    values = [trial.values for trial in planned(space, 300)]
    rates = [math.log10(v["labelled.learning_rate"]) for v in values]
    assert min(rates) >= -4
    assert max(rates) <= 0
    assert np.histogram(rates, bins=4, range=(-4, 0))[0].min() > 45  # of 75, evenly
    assert np.mean([v["labelled.margin"] for v in values]) == pytest.approx(0.3, abs=0.03)
    assert {type(v["tower.dim"]) for v in values} == {int}


def test_places_of_lists_and_whole_numbers_on_a_logarithmic_scale_are_drawn(tmp_path: Path) -> None:
    declared = {
        "pca_dims": [[8], [8, 4]],
        "labelled.batch_size": {"min": 8, "max": 512, "log": True},
    }
    values = [trial.values for trial in planned(read_space(written(tmp_path, declared)), 100)]
    assert {tuple(v["pca_dims"]) for v in values} == {(8,), (8, 4)}
    drawn = [v["labelled.batch_size"] for v in values]
    assert {type(size) for size in drawn} == {int}
    assert 8 <= min(drawn) < 16
    assert 256 < max(drawn) <= 512
    assert np.median(drawn) == pytest.approx(64, rel=0.5)  # the middle of the logarithms


def test_a_space_with_fewer_draws_than_trials_is_drawn_whole(tmp_path: Path) -> None:
    space = read_space(written(tmp_path, {"tower.dim": {"min": 16, "max": 18}}))
    assert sorted(trial.values["tower.dim"] for trial in planned(space, 5)) == [16, 17, 18]


def test_a_grid_needs_no_optuna_and_a_sample_names_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert len(planned(LISTS, 6)) == 6
    with pytest.raises(ConfigError, match=r"needs optuna; pip install 'two-tower-search\[sweep\]'"):
        planned(LISTS, 5)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, "is empty, expected keys"),
        ({"tower.dim": []}, r"tower.dim is \[\], expected a list or {min, max, log}"),
        ({"tower.dim": 64}, "tower.dim is 64, expected a list"),
        ({"tower.dim": {"min": 2}}, "expected a list or {min, max, log}"),
        ({"tower.dim": {"min": 2, "max": 4, "base": 2}}, "expected a list or {min, max, log}"),
        ({"tower.dim": {"min": 4, "max": 4}}, "goes from 4 to 4, expected min below max"),
        ({"tower.dim": {"min": "a", "max": 4}}, "min is 'a', expected float"),
        ({"tower.dim": {"min": 0, "max": 4, "log": True}}, "expected min above 0"),
        ({"tower.dims": [16]}, "unknown configuration key tower.dims; did you mean tower.dim?"),
        ({"labelled.margin": {"min": -1.0, "max": 1.0}}, "labelled.margin is -1.0"),
        ({"labelled.loss": ["hinge"]}, "labelled.loss is 'hinge'"),
    ],
)
def test_bad_spaces_are_refused(tmp_path: Path, declared: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(read_space(written(tmp_path, declared)), 3)


def test_what_failed_is_told_below_the_table() -> None:
    metrics = dict.fromkeys(("recall@1", "recall@3", "recall@10", "recall@100", "mrr@10"), 0.5)
    outcomes = [
        Outcome("a", {"seed": 1}, metrics, 2.0),
        Outcome("b", {"seed": 2}, {}, failure="collapsed"),
    ]
    lines = to_markdown(outcomes).splitlines()
    assert lines[2] == "| a | 1 | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 2.0 |"
    assert lines[3].startswith("| b | 2 | failed |")
    assert lines[-1] == "b: collapsed"


def sweep(folder: Path, space: object, *flags: str) -> Result:
    (folder / "quick.yaml").write_text(yaml.safe_dump(BASE))
    words = ["sweep", folder / "DATA", "--out", folder / "sweep", "--config", folder / "quick.yaml"]
    return CliRunner().invoke(
        app, [*map(str, words), "--space", str(written(folder, space)), *flags]
    )


def test_trials_are_sorted_and_not_done_again(tmp_path: Path) -> None:
    write_topics(tmp_path / "DATA")
    rates = {"labelled.learning_rate": [1e30, 0.01]}
    done = sweep(tmp_path, rates, "--metric", "mrr@10")
    assert done.exit_code == 0, done.stderr
    head, best, worst = (line.split("\t") for line in done.stdout.splitlines())
    assert head[:2] == ["trial", "labelled.learning_rate"]
    assert (best[1], worst[1], worst[2]) == ("0.01", "1e+30", "failed")
    bundle = ModelBundle.load(tmp_path / "sweep" / best[0])
    assert float(best[head.index("mrr@10")]) == pytest.approx(
        bundle.card["dev"]["dense"]["mrr@10"], abs=1e-4
    )
    kept = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert kept["metric"] == "mrr@10"
    assert [trial["trial"] for trial in kept["trials"]] == [best[0], worst[0]]
    assert "lower labelled.learning_rate" in kept["trials"][1]["failure"]
    assert best[0] in (tmp_path / "sweep" / "sweep.md").read_text()

    card = tmp_path / "sweep" / best[0] / "card.json"
    before = card.stat().st_mtime_ns
    again = sweep(tmp_path, {"labelled.learning_rate": [0.01]})
    assert again.stdout.splitlines()[1] == done.stdout.splitlines()[1]
    assert card.stat().st_mtime_ns == before


def test_with_wandb_each_trial_is_a_run_of_one_group(tmp_path: Path) -> None:
    write_topics(tmp_path / "DATA", topics=6)
    done = sweep(tmp_path, {"tower.dim": [16]}, "--wandb", "offline")
    assert done.exit_code == 0, done.stderr
    trial = done.stdout.splitlines()[1].split("\t")[0]
    run = run_path(tmp_path / "sweep" / trial)
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"sweep" in content
    assert trial.encode() in content
    assert list((run / "wandb" / "artifacts").rglob("*"))


def test_a_bad_sweep_ends_in_one_line_before_any_training(tmp_path: Path) -> None:
    write_topics(tmp_path / "DATA", topics=2)
    for flags, message in (
        (["--metric", "ndcg"], "metric is 'ndcg', expected one of: recall@1"),
        (["--trials", "0"], "trials is 0, expected 1 or more"),
        (["--wandb", "on"], "wandb is 'on'"),
    ):
        done = sweep(tmp_path, LISTS, *flags)
        assert done.exit_code == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "sweep").exists()
