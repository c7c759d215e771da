import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from two_tower.models.errors import ConfigError
from two_tower.models.training.tracking import (
    METRICS,
    Tracker,
    WandbOptions,
    read_metrics,
    wandb_options,
)


def test_records_are_lines_of_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, config={}, wandb=WandbOptions()) as tracker:
        tracker.log({"epoch": 1, "loss": 0.5})
        assert read_metrics(tmp_path) == [{"epoch": 1, "loss": 0.5}]  # at once, not at the end
        tracker.log({"epoch": 2, "loss": 0.25})
        assert tracker.count == 2
    assert read_metrics(tmp_path)[1] == {"epoch": 2, "loss": 0.25}
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_a_resumed_run_drops_records_of_work_that_is_done_again(tmp_path: Path) -> None:
    with Tracker(tmp_path, config={}, wandb=WandbOptions()) as tracker:
        for epoch in range(3):
            tracker.log({"epoch": epoch})
    with Tracker(tmp_path, config={}, wandb=WandbOptions(), resumed=1) as tracker:
        tracker.log({"epoch": "again"})
    assert read_metrics(tmp_path) == [{"epoch": 0}, {"epoch": "again"}]


def test_a_fresh_run_starts_an_empty_record(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"old": 1}\n')
    with Tracker(tmp_path, config={}, wandb=WandbOptions()):
        pass
    assert read_metrics(tmp_path) == []


def test_wandb_offline_needs_no_account_and_keeps_to_the_run_folder(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, run = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    run.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.chdir(home)
    with Tracker(run, config={"seed": 7}, wandb=WandbOptions("offline", group="g")) as tracker:
        tracker.log({"loss": 0.5})
        tracker.keep_bundle(tiny_bundle, about={"fingerprint": "f" * 64})
    written = list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(written) == 1
    deadline = time.monotonic() + 20  # W&B's own process writes the file
    while not {b"loss", b"towers.safetensors"} <= found_in(written[0]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found_in(written[0]) == set(WORDS)
    staged = {
        path.read_bytes() for path in (run / "wandb").glob("artifacts/**/*") if path.is_file()
    }
    assert {path.read_bytes() for path in tiny_bundle.iterdir()} <= staged
    assert {path.suffix for path in home.rglob("*") if path.is_file()} <= {".log"}  # its own logs


WORDS = (b"loss", b"towers.safetensors", b"fingerprint")


def found_in(path: Path) -> set[bytes]:
    content = path.read_bytes()
    return {word for word in WORDS if word in content}


def test_modes() -> None:
    assert wandb_options("offline") == WandbOptions("offline")
    with pytest.raises(
        ConfigError, match="wandb is 'on', expected one of: disabled, offline, online"
    ):
        wandb_options("on")


def test_metrics_are_plain_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, config={}, wandb=WandbOptions()) as tracker:
        tracker.log({"phase": "labelled", "recall@10": 1 / 3})
    line = (tmp_path / METRICS).read_text()
    assert json.loads(line) == {"phase": "labelled", "recall@10": 1 / 3}


class Unreachable:
    """A W&B run whose every call fails."""

    def __getattr__(self, name: str) -> object:
        raise ConnectionError("no route\nto host")


def test_a_failing_wandb_costs_a_line_and_nothing_else(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("two_tower.models.training.tracking._start_wandb", lambda *_: Unreachable())
    said: list[str] = []
    with Tracker(tmp_path, config={}, wandb=WandbOptions(), notify=said.append) as tracker:
        tracker.log({"epoch": 1})
        tracker.keep_bundle(tiny_bundle, about={})
    assert read_metrics(tmp_path) == [{"epoch": 1}]
    assert said == ["W&B failed and is left out from here (no route to host)"]


def test_a_run_that_goes_on_is_told_to_wandb_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Tracker(tmp_path, config={}, wandb=WandbOptions()) as tracker:
        tracker.log({"epoch": 1})
        tracker.log({"epoch": 2})
    told: list[object] = []
    run = SimpleNamespace(log=told.append, finish=lambda exit_code: None)
    monkeypatch.setattr("two_tower.models.training.tracking._start_wandb", lambda *_: run)
    with Tracker(tmp_path, config={}, wandb=WandbOptions(), resumed=1) as tracker:
        tracker.log({"epoch": "again"})
    assert told == [{"epoch": 1}, {"epoch": "again"}]
