"""What each stage is worth: numbers against other libraries, words against constructed cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from judged import NAME, load_judged, write_judged
from scipy.stats import norm
from typer.testing import CliRunner

from two_tower.models.data import Dataset, Qrel
from two_tower.models.errors import ConfigError
from two_tower.retriever.cli import app
from two_tower.retriever.evaluation.requirements import Requirement, read_requirement
from two_tower.retriever.evaluation.verdict import (
    DETECTED,
    SMALL,
    headroom,
    split_half_agreement,
    stage_worths,
    verdict,
)

Values = dict[str, dict[str, np.ndarray]]


def values(differences: np.ndarray) -> Values:
    base = np.full(len(differences), 0.5)
    return {"bm25": {"ndcg@10": base}, "hybrid": {"ndcg@10": base + differences}}


def drawn(count: int, mean: float, deviation: float, seed: int = 0) -> np.ndarray:
    """Differences with exactly this mean and standard deviation."""
    noise = np.random.default_rng(seed).standard_normal(count)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    return mean + deviation * noise


def sentence(differences: np.ndarray) -> str:
    times = {"bm25": 1.0, "hybrid": 3.5}
    (worth,) = stage_worths(values(differences), p50_ms=times, index_mb={})
    return verdict(worth, queries=len(differences))


CLEAR = "over bm25 for 2.5 ms, in "
LESS = "worse than bm25; leave it out"
NO_GAIN = "hybrid: no gain over bm25 ("
FEW = "hybrid: no measurable gain over bm25 on "


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        *((drawn(n, 0.05, 0.2), CLEAR) for n in (200, 1000, 5000)),
        (drawn(100, 0.2, 0.2), CLEAR),
        (drawn(30, 0.3, 0.2), CLEAR),
        *((drawn(n, -0.05, 0.2), LESS) for n in (200, 1000, 5000)),
        (drawn(30, -0.3, 0.2), LESS),
        *((drawn(n, 0.05, 0.3), FEW) for n in (5, 13, 50)),
        (drawn(13, -0.05, 0.3), FEW),
        (drawn(13, 0.0, 0.3), FEW),
        (drawn(100, 0.0, 0.3), FEW),
        (np.array([0.4]), FEW),
        (np.eye(1, 40)[0], FEW),  # one query alone gains
        *((drawn(n, 0.0, 0.2), NO_GAIN) for n in (400, 2000)),
        (drawn(1000, 0.003, 0.1), NO_GAIN),
        (np.zeros(50), "hybrid: no difference from bm25 in any of 50 queries"),
    ],
)
def test_words_say_what_the_test_says(differences: np.ndarray, expected: str) -> None:
    assert expected in sentence(differences)


def test_the_queries_that_are_needed_are_those_of_a_normal_test() -> None:
    """80% power at 5%, two-sided: n = ((z_.975 + z_.8) s / gain)^2."""
    z = norm.ppf(0.975) + norm.ppf(0.8)
    assert pytest.approx(z, abs=0.005) == DETECTED
    (worth,) = stage_worths(values(drawn(13, 0.05, 0.3)), p50_ms={}, index_mb={})
    assert worth.queries_needed == pytest.approx((z * 0.3 / SMALL) ** 2, rel=0.01)
    assert worth.detectable == pytest.approx(z * 0.3 / 13**0.5, rel=0.01)
    assert "784 would show 0.03" in sentence(drawn(13, 0.05, 0.3))


def test_halves_of_noise_agree_half_of_the_time_and_halves_of_a_gain_always() -> None:
    rng = np.random.default_rng(1)
    noise = [split_half_agreement(rng.standard_normal(200)) for _ in range(60)]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.1)
    assert split_half_agreement(drawn(200, 0.5, 0.2)) == 1.0
    assert split_half_agreement(np.eye(1, 40)[0]) == 0.0


def test_stages_that_were_measured_follow_each_other() -> None:
    base = np.full(40, 0.2)
    names = ["dense", "rerank", "bm25", "cross", "rrf"]
    everything = {name: {"ndcg@10": base + 0.1 * i} for i, name in enumerate(names)}
    times = {"bm25": 1.0, "rerank": 4.0, "cross": None}
    worths = stage_worths(everything, p50_ms=times, index_mb={"bm25": 10.0, "rerank": 30.0})
    assert [(w.system, w.over) for w in worths] == [("rerank", "bm25"), ("cross", "rerank")]
    assert [(w.ms, w.mb) for w in worths] == [(3.0, 20.0), (None, None)]
    assert [w.difference for w in worths] == pytest.approx([-0.1, 0.2])
    assert stage_worths({"dense": everything["dense"]}, p50_ms={}, index_mb={}) == ()


def test_headroom_is_the_ideal_order_of_what_the_legs_found() -> None:
    qrels = [Qrel("q", "a", 1, "dev"), Qrel("q", "b", 1, "dev"), Qrel("r", "c", 1, "dev")]
    rankings = {
        "bm25": {"q": ["x", "y", "a"], "r": ["x"]},
        "dense": {"q": ["z", "b"], "r": ["y"]},
        "cross": {"q": ["a", "b"], "r": ["c"]},
    }
    assert headroom(rankings, qrels) == pytest.approx((1.0 + 0.0) / 2)
    only = {"bm25": rankings["bm25"]}
    gain = 1 / (1 + 1 / np.log2(3))  # a alone, of two answers
    assert headroom(only, qrels) == pytest.approx(gain / 2)
    assert headroom({"cross": rankings["cross"]}, qrels) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mrr@10>=.8", Requirement(None, "mrr@10", 0.8)),
        ("mrr@10 >= 0.80", Requirement(None, "mrr@10", 0.8)),
        (" bm25:recall@100>=1 ", Requirement("bm25", "recall@100", 1.0)),
    ],
)
def test_requirements(text: str, expected: Requirement) -> None:
    assert read_requirement(text, ["bm25", "dense"]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mrr@10", "expected a measure and the least it may be"),
        ("mrr@10>=80", "expected a measure and the least it may be, up to 1"),
        ("mrr@10<=.8", "expected a measure and the least"),
        ("", "expected a measure and the least"),
        ("mrr@5>=.8", "is about mrr@5, expected one of recall@1, "),
        ("cross:mrr@10>=.8", "is about cross, which is not measured; expected one of bm25, dense"),
    ],
)
def test_impossible_requirements(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_requirement(text, ["bm25", "dense"])


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> tuple[Dataset, Path]:
    folder = tmp_path_factory.mktemp("verdict")
    data = write_judged(folder / "DATA")
    load_judged(data, tiny_bundle, folder / "edge")
    return data, folder / "edge"


@pytest.mark.parametrize(
    ("required", "code", "error"),
    [
        (["recall@100>=0", "bm25:mrr@10>=0"], 0, ""),
        (["rerank:recall@100>=0", "mrr@10>=1"], 1, "Error: rerank has mrr@10 0."),
        (["mrr@11>=1"], 1, "is about mrr@11"),
    ],
)
def test_a_build_fails_where_a_requirement_is_not_met(
    judged: tuple[Dataset, Path],
    tiny_bundle: Path,
    tmp_path: Path,
    required: list[str],
    code: int,
    error: str,
) -> None:
    data, engine = judged
    words = ["--bundle", tiny_bundle, "--path", engine, "--out", tmp_path / "report"]
    words += ["--systems", "bm25,dense,hybrid,rerank"]
    flags = [word for text in required for word in ("--require", text)]
    done = CliRunner().invoke(app, ["evaluate", NAME, str(data.path), *map(str, words), *flags])
    assert done.exit_code == code, done.output
    assert error in done.stderr
    if "mrr@11" in error:
        assert not (tmp_path / "report").exists()  # known before anything is measured
        return
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [worth["system"] for worth in report["worths"]] == ["hybrid", "rerank"]
    assert "\nhybrid: " in done.stdout
    assert "\nheadroom: the candidates of the legs" in done.stdout
    assert "<h2>Verdict</h2>" in (tmp_path / "report" / "report.html").read_text()
