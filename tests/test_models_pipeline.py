import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from topics import QUICK, train_bundle, write_aliases, write_topics

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.config import from_mapping, with_values
from two_tower.models.data import Dataset
from two_tower.models.errors import BundleError, DataError, TrainingError
from two_tower.models.training.checkpoint import RunFolder, run_path
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.run import RunOptions
from two_tower.models.training.tracking import read_metrics


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_topics(tmp_path_factory.mktemp("topics") / "DATA")


RECORD = {"environment.json", "metrics.jsonl"}


def quick(**dotted: object) -> TrainConfig:
    named = {key.replace("__", "."): value for key, value in dotted.items()}
    return from_mapping(TrainConfig, with_values(QUICK, named))


def test_the_same_seed_gives_the_same_bundle(data: Dataset, tmp_path: Path) -> None:
    first, second, other = (
        train_bundle(data, tmp_path / name, config=quick(seed=seed))
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert ModelBundle.load(tmp_path / "a").fingerprint == first.fingerprint


def test_the_same_seed_gives_the_same_bundle_on_two_threads(tmp_path: Path) -> None:
    data = write_topics(tmp_path / "DATA", topics=300)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:  # a batch has 256 x 256 scores, enough for torch to share them out
        sizes = {"pretrain__batch_size": 256, "labelled__batch_size": 256, "tower__dim": 256}
        config = quick(**sizes, fusion__folds=2)
        runs = [train_bundle(data, tmp_path / name, config=config) for name in ("a", "b")]
    finally:
        torch.set_num_threads(before)
    assert runs[0].fingerprint == runs[1].fingerprint
    assert runs[0].extras == runs[1].extras
    environment = json.loads((run_path(tmp_path / "a") / "environment.json").read_text())
    assert environment["threads"] == 2


@pytest.mark.parametrize("flags", [{}, {"labelled__loss": "triplet"}, {"tower__shared": False}])
def test_labels_teach_what_words_do_not_say(tmp_path: Path, flags: dict[str, object]) -> None:
    data = write_aliases(tmp_path / "DATA")
    before = train_bundle(data, tmp_path / "before", config=quick(**flags, labelled__epochs=0))
    longer = {"labelled__epochs": 40, "labelled__patience": 40, "labelled__learning_rate": 0.02}
    after = train_bundle(data, tmp_path / "after", config=quick(**flags, **longer))
    assert before.card["dev"]["dense"]["recall@1"] < 0.3
    assert after.card["dev"]["dense"]["recall@1"] > 0.9


def test_the_cards_metrics_are_what_the_bundles_vectors_give(data: Dataset, tmp_path: Path) -> None:
    bundle = train_bundle(data, tmp_path / "bundle", config=quick())
    dev = bundle.card["dev"]["dense"]
    assert dev["recall@3"] > 0.8
    queries = bundle.encode_queries([q.text for q in data.queries("dev")])
    passages = list(data.passages())
    vectors = bundle.encode_passages([p.content for p in passages])
    best = [passages[i].passage_id for i in (queries @ vectors.T).argmax(axis=1)]
    answers = {q.query_id: q.passage_id for q in data.qrels("dev")}
    hits = [best[i] == answers[q.query_id] for i, q in enumerate(data.queries("dev"))]
    assert np.mean(hits) == pytest.approx(dev["recall@1"])


def test_the_card_says_where_a_bundle_came_from(data: Dataset, tmp_path: Path) -> None:
    bundle = train_bundle(data, tmp_path / "bundle", config=quick())
    card = json.loads((tmp_path / "bundle" / "card.json").read_text())
    assert card["data"]["content_hash"] == data.content_hash
    assert card["data"]["counts"] == data.manifest["counts"]
    assert card["queries"] == {"train": 40, "dev": 20}
    assert card["fingerprint"] == bundle.fingerprint
    assert from_mapping(TrainConfig, card["config"]) == quick()
    assert set(card["dev"]) == {"dense", "pca_8", "pca_4"}
    assert card["versions"]["numpy"] == np.__version__


def test_a_finished_run_leaves_its_record_and_nothing_else(data: Dataset, tmp_path: Path) -> None:
    train_bundle(data, tmp_path / "bundle", config=quick())
    assert {p.name for p in tmp_path.iterdir()} == {"bundle", "bundle.run"}
    run = tmp_path / "bundle.run"
    assert {p.name for p in run.iterdir()} == RECORD | {"finished.json"}
    phases = [record["phase"] for record in read_metrics(run)]
    assert phases[:2] == ["pretrain"] * 2
    assert set(phases[2:]) == {"labelled"}


def test_the_run_folder_says_where_a_run_was_done(data: Dataset, tmp_path: Path) -> None:
    said: list[str] = []
    options = RunOptions(device="cpu")
    out = tmp_path / "bundle"
    train_bundle(data, out, config=quick(), options=options, notify=said.append)
    found = json.loads((run_path(out) / "environment.json").read_text())
    assert (found["device"], found["cores"]) == ("cpu", os.cpu_count())
    assert found["versions"]["torch"] == torch.__version__
    assert all(record["seconds"] >= 0 for record in read_metrics(run_path(out)))
    assert said[0].startswith("only 40 labelled pairs to learn from")


def test_phases_can_be_left_out(data: Dataset, tmp_path: Path) -> None:
    none = quick(pretrain__epochs=0, labelled__epochs=0, word2vec__epochs=0)
    train_bundle(data, tmp_path / "bundle", config=none)
    assert read_metrics(tmp_path / "bundle.run") == []


@pytest.mark.parametrize("idf", [True, False])
def test_token_weights_start_as_their_idf_or_all_alike(
    data: Dataset, tmp_path: Path, idf: bool
) -> None:
    untrained = quick(pretrain__epochs=0, labelled__epochs=0, tower__idf=idf)
    train_bundle(data, tmp_path / "bundle", config=untrained)
    weights = load_file(tmp_path / "bundle" / "towers.safetensors")["query.weights"]
    assert bool((weights == 1).all()) is not idf


def test_without_a_dev_split_some_train_queries_are_held_out(tmp_path: Path) -> None:
    said: list[str] = []
    data = write_topics(tmp_path / "DATA", dev=False)
    bundle = train_bundle(
        data, tmp_path / "bundle", config=quick(dev_share=0.25), notify=said.append
    )
    assert bundle.card["queries"] == {"train": 45, "dev": 15}
    assert "no dev split: 15 of 60 train queries are held out" in said[0]


def test_a_tiny_corpus_gets_the_reductions_that_are_possible(tmp_path: Path) -> None:
    said: list[str] = []
    data = write_topics(tmp_path / "DATA", topics=3)
    bundle = train_bundle(
        data, tmp_path / "bundle", config=quick(pca_dims=[64, 4]), notify=said.append
    )
    assert bundle.pca_dims == (4,)
    assert "pca_64 is left out: it needs more than 64 passages and dims" in said


def train_command(data: Dataset, out: Path, config: TrainConfig) -> list[str]:
    path = out.with_name(f"{out.name}.yaml")
    path.write_text(yaml.safe_dump(config.to_dict()))
    command = [sys.executable, "-m", "two_tower.models.cli", "train", str(data.path)]
    return [*command, "--out", str(out), "--config", str(path)]


def kill_after(records: int, command: list[str], run: Path) -> None:
    """Start a training and kill -9 it once so many epochs are recorded."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < records:
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def finish(command: list[str]) -> str:
    """Let a training end; return what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def untimed_metrics(run: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(run)]


def test_a_killed_run_goes_on_and_ends_in_the_same_bundle(data: Dataset, tmp_path: Path) -> None:
    config = quick(pretrain__epochs=12, labelled__epochs=12, labelled__patience=12, tower__dim=128)
    finish(train_command(data, tmp_path / "unbroken", config))  # with as many threads as the other
    unbroken = ModelBundle.load(tmp_path / "unbroken")
    out, run = tmp_path / "killed", run_path(tmp_path / "killed")
    command = train_command(data, out, config)
    for records in (4, 12, 16):
        kill_after(records, command, run)
        assert not out.exists()
        assert RunFolder(run).load().progress.records >= records - 1
    assert "going on with an unfinished run" in finish(command)
    assert ModelBundle.load(out).fingerprint == unbroken.fingerprint
    assert untimed_metrics(run) == untimed_metrics(run_path(tmp_path / "unbroken"))
    assert {p.name for p in run.iterdir()} == RECORD | {"finished.json"}


FORCE = RunOptions(force=True)


class Stop(Exception):  # noqa: N818
    """Ends a training from outside."""


def stop_early(data: Dataset, out: Path, config: TrainConfig) -> None:
    """Leave an unfinished run behind."""

    def save(*_: object, **__: object) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelBundle, "save", save)
        with pytest.raises(Stop):
            train_bundle(data, out, config=config)


def test_going_on_with_other_settings_is_refused_with_both_values(
    data: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    stop_early(data, out, quick())
    with pytest.raises(
        TrainingError, match=r"config\.labelled\.epochs = 3 \(asked for: 5\); .* --force"
    ):
        train_bundle(data, out, config=quick(labelled__epochs=5))
    other = write_topics(tmp_path / "OTHER", seed=1)
    both = rf"data = {data.content_hash} \(asked for: {other.content_hash}\)"
    with pytest.raises(TrainingError, match=both):
        train_bundle(other, out, config=quick())
    assert train_bundle(data, out, config=quick(labelled__epochs=5), options=FORCE).config[
        "pca_dims"
    ]


def test_a_finished_bundle_is_replaced_on_demand_only(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    first = train_bundle(data, out, config=quick())
    with pytest.raises(BundleError, match="already holds a bundle; replace it with --force"):
        train_bundle(data, out, config=quick(seed=1))
    second = train_bundle(data, out, config=quick(seed=1), options=FORCE)
    assert ModelBundle.load(out).fingerprint == second.fingerprint != first.fingerprint


def test_the_old_bundle_stays_until_the_new_one_is_complete(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    first = train_bundle(data, out, config=quick())
    flat = quick(labelled__learning_rate=1e30)
    with pytest.raises(TrainingError):
        train_bundle(data, out, config=flat, options=FORCE)
    assert ModelBundle.load(out).fingerprint == first.fingerprint
    assert {p.name for p in tmp_path.iterdir()} == {"bundle", "bundle.run"}


def test_a_failed_run_keeps_its_record_and_is_not_gone_on_with(
    data: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingError, match="learning_rate"):
        train_bundle(data, out, config=quick(labelled__learning_rate=1e30))
    run = run_path(out)
    assert {p.name for p in run.iterdir()} == RECORD | {"failed.json"}
    assert len(read_metrics(run)) >= 2
    train_bundle(data, out, config=quick())  # other settings, no --force needed


def test_nothing_to_learn_from_leaves_nothing_behind(tmp_path: Path) -> None:
    unanswered = write_topics(tmp_path / "DATA", relevance=0)
    with pytest.raises(TrainingError, match="no labelled query with an answer"):
        train_bundle(unanswered, tmp_path / "bundle", config=quick())
    (tmp_path / "EMPTY").mkdir()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        train_bundle(Dataset.open(tmp_path / "EMPTY"), tmp_path / "bundle", config=quick())
    assert {p.name for p in tmp_path.iterdir()} == {"DATA", "EMPTY"}


def test_two_trainings_do_not_share_a_run_folder(data: Dataset, tmp_path: Path) -> None:
    with (
        RunFolder(run_path(tmp_path / "bundle")).held(),
        pytest.raises(TrainingError, match="another process is training"),
    ):
        train_bundle(data, tmp_path / "bundle", config=quick())


def test_one_query_and_one_passage_are_enough_to_run(tmp_path: Path) -> None:
    data = write_topics(tmp_path / "DATA", topics=1, dev=False)
    bundle = train_bundle(data, tmp_path / "bundle", config=quick())
    assert np.isfinite(bundle.encode_queries(["anything"])).all()
