import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import guide
import queries_needed
import reproduce

ROOT = Path(__file__).parent.parent


def test_the_guide_is_what_the_result_files_say() -> None:
    written = guide.TARGET.read_text(encoding="utf-8")
    assert written == guide.render(), "run: python tests/bench/guide.py"


def test_no_number_of_the_guide_is_typed() -> None:
    template = guide.TEMPLATE.read_text(encoding="utf-8")
    assert re.findall(r"\d+[.,]\d+|\.\d+", template) == []


def test_every_command_and_file_of_the_guide_exists() -> None:
    text = guide.TARGET.read_text(encoding="utf-8")
    for name in re.findall(r"`([\w-]+\.json)`", text):
        assert (guide.RESULTS / name).is_file(), name
    for path in re.findall(r"`python (\S+)`", text):
        assert (ROOT / path).is_file(), path


def test_the_engines_bm25_is_within_a_hundredth_of_others() -> None:
    for name, row in guide.read("reproductions.json")["zero_shot"].items():
        ours = row["systems"]["bm25"]["ndcg@10"]
        assert abs(ours - row["systems"][reproduce.SAME]["ndcg@10"]) < 0.01, name
        if row["published"]:
            assert abs(ours - row["published"]) < 0.01, name


def test_what_the_guide_says_in_words_is_so() -> None:
    rows = {row["system"]: row["metrics"] for row in guide.read("msmarco-95k-dev.json")["systems"]}
    mrr = {name: metrics["mrr@10"] for name, metrics in rows.items()}
    assert mrr["dense"] < mrr["rrf"] < mrr["bm25"] < mrr["hybrid"] < mrr["cross"]
    assert rows["rrf"]["recall@100"] > rows["bm25"]["recall@100"]
    assert abs(mrr["rerank"] - mrr["hybrid"]) < 0.005
    reproduced = guide.read("reproductions.json")
    for row in reproduced["zero_shot"].values():
        same, other = (
            row["systems"][name]["ndcg@10"] for name in (reproduce.SAME, reproduce.ANSERINI)
        )
        assert same >= other
    assert 2 * min(guide.analyzer_ps(reproduced)) > 0.05  # two systems were compared with ours


def test_half_widths_are_those_of_the_bootstrap() -> None:
    """The formula, at the number of queries there are, against the interval of the report."""
    needed, dev = guide.read("queries-needed.json"), guide.read("msmarco-95k-dev.json")
    (row,) = [r for r in dev["systems"] if r["system"] == needed["baseline"]]
    low, high = row["intervals"][needed["measure"]]
    by_root = [each["half_width"] * each["queries"] ** 0.5 for each in needed["rows"]]
    for constant in by_root:
        assert abs(constant / needed["queries"] ** 0.5 - (high - low) / 2) < 0.001


def test_smallest_difference_is_seen_four_times_in_five() -> None:
    differences = np.random.default_rng(2).normal(0.0, 0.4, size=20_000)
    differences -= differences.mean()
    smallest = queries_needed.smallest_difference(differences, 200)
    assert abs(queries_needed.share_seen(differences + smallest, 200) - 0.8) < 0.05
    assert queries_needed.share_seen(differences, 200) < 0.08
