import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from topics import QUICK, write_topics
from typer.testing import CliRunner, Result

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.cli import app
from two_tower.models.training.recipe import recipe_names


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_topics(folder / "DATA")
    (folder / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    return folder


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def train(workplace: Path, out: Path, *flags: str) -> Result:
    config = workplace / "quick.yaml"
    return invoke("train", workplace / "DATA", "--out", out, "--config", config, *flags)


def test_train_then_show(workplace: Path, tmp_path: Path) -> None:
    done = train(workplace, tmp_path / "bundle")
    assert done.exit_code == 0, done.stderr
    fingerprint = ModelBundle.load(tmp_path / "bundle").fingerprint
    first, second = done.stdout.splitlines()
    assert first == f"{tmp_path / 'bundle'} {fingerprint}"
    assert second.startswith("recall@1=")
    assert "learning the vocabulary" in done.stderr

    shown = invoke("show", tmp_path / "bundle")
    assert shown.exit_code == 0
    for part in (fingerprint, "mean, shared", "dense 64, pca_8, pca_4", "60 passages", "40 train"):
        assert part in shown.stdout
    table = shown.stdout[shown.stdout.index("dev  ") :].splitlines()
    assert [line.split()[0] for line in table] == ["dev", "dense", "pca_8", "pca_4"]

    card = json.loads(invoke("show", tmp_path / "bundle", "--json").stdout)
    assert card["fingerprint"] == fingerprint


def test_flags_win_over_the_configuration(workplace: Path, tmp_path: Path) -> None:
    flags = "--separate-towers --cbow --loss triplet --epochs 1 --pretrain-epochs 1 --seed 4"
    done = train(workplace, tmp_path / "bundle", *flags.split(), "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    config = ModelBundle.load(tmp_path / "bundle").card["config"]
    tower = {"kind": "mean", "dim": 64, "shared": False}
    assert config["tower"].items() >= tower.items()
    assert config["word2vec"]["cbow"] is True
    assert (config["labelled"]["loss"], config["labelled"]["epochs"]) == ("triplet", 1)
    assert (config["pretrain"]["epochs"], config["seed"]) == (1, 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tower", "gpt"], "tower.kind is 'gpt', expected 'mean'"),
        (["--loss", "hinge"], "labelled.loss is 'hinge', expected 'in_batch' or 'triplet'"),
        (["--epochs", "-1"], "labelled.epochs is -1"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--wandb", "on"], "wandb is 'on'"),
        (["--config", "nothing.yaml"], "no configuration file at nothing.yaml"),
        (["--config", "slow"], "no recipe is named 'slow'"),
    ],
)
def test_bad_settings_end_in_one_line(
    workplace: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    done = train(workplace, tmp_path / "bundle", *flags)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_names_the_nearest(workplace: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("labelled: {epoch: 3}")
    done = invoke("train", workplace / "DATA", "--out", tmp_path / "out", "--config", path)
    assert done.exit_code == 1
    assert "labelled.epoch; did you mean labelled.epochs?" in done.stderr


def test_missing_data_and_bundles_say_what_to_run(tmp_path: Path) -> None:
    done = invoke("train", tmp_path / "DATA", "--out", tmp_path / "bundle")
    assert done.exit_code == 1
    assert "ingest prepare SOURCE --out" in done.stderr
    shown = invoke("show", tmp_path / "bundle")
    assert shown.exit_code == 1
    assert "models train DATA --out" in shown.stderr
    assert not list(tmp_path.iterdir())


def test_every_command_has_help() -> None:
    assert invoke("--help").exit_code == 0
    for command in ("train", "sweep", "show"):
        done = invoke(command, "--help")
        assert done.exit_code == 0
        assert "Usage" in done.stdout
    assert invoke("train").exit_code == 2


def test_the_help_names_the_recipes_and_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = invoke("train", "--help").stdout
    assert ", ".join(recipe_names()) in text
    assert text.count("[default: (the recipe's)]") >= 7
    assert "[default: auto]" in text


def test_the_command_line_needs_no_torch_before_it_trains() -> None:
    program = "import sys, models.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_some_parts_alone(workplace: Path, tmp_path: Path) -> None:
    config = tmp_path / "all.yaml"
    config.write_text(yaml.safe_dump({**QUICK, "fusion": {"folds": 2}, "cross": {"epochs": 1}}))

    def learn(data: Path, name: str, *flags: str | Path) -> Result:
        return invoke("train", data, "--out", tmp_path / name, "--config", config, *flags)

    assert learn(workplace / "DATA", "towers", "--only", "query").exit_code == 0
    towers = ModelBundle.load(tmp_path / "towers")
    assert not towers.extras
    other = write_topics(tmp_path / "DATA", topics=60, seed=1, source="others").path
    done = learn(other, "fusion", "--only", "fusion", "--start", tmp_path / "towers")
    assert done.exit_code == 0, done.stderr
    fusion = ModelBundle.load(tmp_path / "fusion")
    assert (fusion.fingerprint, set(fusion.extras)) == (towers.fingerprint, {"fusion.json"})
    for flags, message in (
        (["--only", "fusion"], "needs towers: add --start BUNDLE or query"),
        (["--only", "query,fusions"], "expected some of query,fusion,cross"),
    ):
        refused = learn(workplace / "DATA", "x", *flags)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert message in refused.stderr
