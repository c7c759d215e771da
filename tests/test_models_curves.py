import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.training.curves import (
    FORMATS,
    Curve,
    loss_curves,
    metric_curves,
    save_curves,
)

RECORDS = [
    {"phase": "pretrain", "epoch": 1, "loss": 4.0, "recall@1": 0.1, "mrr@10": 0.2, "cosine": 0.0},
    {"phase": "pretrain", "epoch": 2, "loss": 3.0, "recall@1": 0.2, "mrr@10": 0.3, "cosine": 0.0},
    {"phase": "labelled", "epoch": 1, "loss": 0.5, "recall@1": 0.4, "mrr@10": 0.5, "seconds": 1.5},
]


@pytest.fixture
def bundle(tmp_path: Path, tiny_bundle: Path) -> Path:
    """A bundle with its run folder beside it."""
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, path)
    write_metrics(tmp_path / "bundle.run", RECORDS)
    return path


def write_metrics(run: Path, records: list[dict[str, object]]) -> None:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def test_epochs_are_counted_over_all_phases() -> None:
    assert loss_curves(RECORDS) == [
        Curve("pretrain", [1, 2], [4.0, 3.0]),
        Curve("labelled", [3], [0.5]),
    ]
    assert metric_curves(RECORDS) == [
        Curve("recall@1", [1, 2, 3], [0.1, 0.2, 0.4]),
        Curve("mrr@10", [1, 2, 3], [0.2, 0.3, 0.5]),
    ]


def test_the_picture_has_lines_in_it(bundle: Path, tmp_path: Path) -> None:
    save_curves(bundle, tmp_path / "curves.png")
    pixels = imread(tmp_path / "curves.png")[..., :3]
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 800
    drawn = {tuple(colour) for colour in np.rint(pixels.reshape(-1, 3) * 255).astype(int).tolist()}
    assert {(0, 114, 178), (213, 94, 0)} <= drawn  # a line per phase and metric
    assert len(drawn) > 10


def test_one_epoch_and_a_loss_of_zero_can_be_drawn(bundle: Path, tmp_path: Path) -> None:
    write_metrics(tmp_path / "bundle.run", [{**RECORDS[0], "loss": 0.0}])
    save_curves(bundle, tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_run_gives_the_same_file(bundle: Path, tmp_path: Path, ending: str) -> None:
    for name in ("one", "two"):
        save_curves(bundle, tmp_path / f"{name}{ending}")
        time.sleep(1.1 if ending == ".pdf" and name == "one" else 0.0)  # a date has whole seconds
    one, two = (tmp_path / f"{name}{ending}" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_text_stays_text_and_a_name_is_no_formula(bundle: Path, tmp_path: Path) -> None:
    named = bundle.rename(tmp_path / "a$b_1$c, 漢字")
    (tmp_path / "bundle.run").rename(tmp_path / f"{named.name}.run")
    save_curves(named, tmp_path / "curves.svg")
    assert f">Training of {named.name}</text>" in (tmp_path / "curves.svg").read_text()


def test_what_cannot_be_drawn_says_what_to_do(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in '\.jpg', expected \.png, \.svg, \.pdf"):
        save_curves(bundle, tmp_path / "curves.jpg")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_curves(bundle, tmp_path / "nowhere" / "curves.png")
    write_metrics(tmp_path / "bundle.run", [])
    with pytest.raises(BundleError, match="records no epoch"):
        save_curves(bundle, tmp_path / "curves.png")
    shutil.rmtree(tmp_path / "bundle.run")
    with pytest.raises(BundleError, match=r"no run folder beside it .* models train DATA --out"):
        save_curves(bundle, tmp_path / "curves.png")
    assert not list(tmp_path.glob("*.png"))


def test_the_command_draws_beside_the_card(bundle: Path, tmp_path: Path) -> None:
    """In a process of its own: pyplot, which would look for a screen, is never imported."""
    program = (
        "import sys; from two_tower.models.cli import app; "
        "app(sys.argv[1:], standalone_mode=False); "
        "print('pyplot', 'matplotlib.pyplot' in sys.modules)"
    )
    words = ["show", str(bundle), "--json", "--curves", str(tmp_path / "curves.png")]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "pyplot False"
    assert (tmp_path / "curves.png").stat().st_size > 10_000
