"""Quality must not fall: a small fixed run against the values that tests/quality.py recorded."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import quality

from two_tower.models.data import Dataset
from two_tower.models.objectives.labelled import LabelledConfig


@pytest.fixture(scope="module")
def found(shared_data: Path) -> quality.Values:
    """What this commit reaches, with the first seed, in a process of its own on one thread."""
    done = subprocess.run(
        [sys.executable, quality.__file__, "--seed", "0"],
        env={k: v for k, v in os.environ.items() if not k.startswith("QDRANT")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    values: quality.Values = json.loads(done.stdout)
    return values


@pytest.fixture(scope="module")
def stored() -> dict[str, object]:
    content: dict[str, object] = json.loads(quality.STORED.read_text(encoding="utf-8"))
    return content


@pytest.mark.data
def test_no_metric_falls_below_its_noise(found: quality.Values, stored: dict[str, object]) -> None:
    fallen = quality.falls(stored, found)
    assert not fallen, "\n".join(fallen)


@pytest.mark.data
def test_a_worse_setting_is_noticed(found: quality.Values, stored: dict[str, object]) -> None:
    """Plain rank fusion in place of the learnt weights, and 32 dimensions in place of 128."""
    for system, worse in (("rerank", "rrf"), ("dense", "pca_32")):
        broken = copy.deepcopy(found)
        broken[system] = found[worse]
        assert any(line.startswith(f"{system} ndcg@10") for line in quality.falls(stored, broken))


@pytest.mark.data
def test_a_spoilt_labelled_phase_is_noticed(
    found: quality.Values, stored: dict[str, object], tmp_path: Path
) -> None:
    """A learning rate a hundred times too high; early stopping goes back to the start."""
    quality.prepare(tmp_path / "DATA")
    data = Dataset.open(tmp_path / "DATA")
    spoilt = {"labelled.learning_rate": 100 * LabelledConfig.learning_rate}
    broken = found | {quality.LABELS: quality.gain_of_labels(data, tmp_path, 0, spoilt)}
    assert any(line.startswith("labels recall@10") for line in quality.falls(stored, broken))


def test_a_value_may_lie_its_noise_below_and_no_further() -> None:
    stored = {"commit": "abc", "systems": {"bm25": {"mrr@10": {"value": 0.5, "noise": 0.01}}}}
    assert quality.falls(stored, {"bm25": {"mrr@10": 0.4901}}) == []
    (line,) = quality.falls(stored, {"bm25": {"mrr@10": 0.4899}})
    assert line == "bm25 mrr@10: 0.4899, recorded 0.5000 with noise 0.0100 (commit abc)"


def test_noise_is_what_seeds_are_apart() -> None:
    runs = [{"dense": dict.fromkeys(quality.MEASURES, value)} for value in (0.5, 0.51, 0.52)]
    row = quality.record(runs, "abc")["systems"]["dense"]["ndcg@10"]
    assert row == {"value": 0.51, "noise": 3 * 0.01}
    runs = [{"dense": dict.fromkeys(quality.MEASURES, 0.5)}] * 3
    assert quality.record(runs, "abc")["systems"]["dense"]["ndcg@10"]["noise"] == quality.FLOOR
