import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from two_tower.models.data import Qrel, Query
from two_tower.models.errors import ConfigError
from two_tower.models.text.bm25 import Ranked
from two_tower.models.training.recipe import read_config

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from ablation import RESULTS, ROOT, ROWS, Bench, Row, read_rows
from ablation_table import spread, to_brief, to_brief_engines, to_markdown
from exact import Judged, best_by_cosine, fuse, means
from recipes import calibration_error


def test_every_declared_row_can_be_trained(tmp_path: Path) -> None:
    rows = read_rows(ROWS)
    assert rows["pretrained"].config() == {"fusion": {"folds": 0}, "labelled": {"epochs": 0}}
    for row in rows.values():
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(row.config()))
        read_config(str(path), {})


@pytest.mark.parametrize(
    ("declared", "message"),
    [({"a": {"sets": {}}}, "row 'a'.*'sets'"), ({"a": {"start": "b"}}, "starts from 'b'")],
)
def test_bad_rows_are_refused(tmp_path: Path, declared: object, message: str) -> None:
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump(declared))
    with pytest.raises(ConfigError, match=message):
        read_rows(tmp_path / "rows.yaml")


def test_a_row_is_done_until_it_or_its_start_is_declared_otherwise(tmp_path: Path) -> None:
    start, row = Row("start"), Row("row", start="start", set={"labelled.epochs": 1})
    bench = Bench({"start": start, "row": row}, tmp_path / "results.json")
    assert not bench.done(row, 0)
    found = {"rows": {"row": {"0": {"settings": bench.settings(row)}}}}
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert bench.done(row, 0)
    assert not bench.done(row, 1)
    assert not bench.done(row._replace(set={"labelled.epochs": 2}), 0)
    other = {"start": start._replace(set={"tower.dim": 8}), "row": row}
    assert not Bench(other, tmp_path / "results.json").done(row, 0)


def test_the_nearest_are_what_a_full_sort_finds() -> None:
    random = np.random.default_rng(0)
    queries, passages = (random.standard_normal((n, 8)).astype(np.float32) for n in (300, 50))
    found = best_by_cosine(queries, passages, k=10)
    for i, query in enumerate(queries):
        cosines = [float(np.float32(query @ p)) for p in passages]
        assert found.rows[i].tolist() == sorted(range(50), key=lambda row: -cosines[row])[:10]
    np.testing.assert_allclose(found.scores[0, 0], (passages @ queries[0]).max(), rtol=1e-5)


def test_both_legs_are_summed_as_the_engine_does() -> None:
    passages = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], np.float32)
    queries = np.array([[1, 0], [1, 0]], np.float32)
    bm25 = Ranked(
        np.array([[2, 3], [2, -1]]),
        np.array([[20, 8], [8, 0]], np.float32),  # full: floor 8; not full: floor 0
    )
    tower = np.array([[0, 1], [0, 1]])
    # first: 8 + 15, 8 + 9, 20 + 0, 8 - 15; second: 0 + 15, 0 + 9, 8 + 0
    fused = fuse(tower, bm25, 15.0, queries=queries, passages=passages)
    assert [each.rows.tolist() for each in fused] == [[0, 2, 1, 3], [0, 1, 2]]
    assert fused[0].scores.tolist() == pytest.approx([23, 20, 17, -7])
    assert fused[0].bm25.tolist() == [0, 20, 0, 8]  # a floor is no score of its own


def test_metrics_are_means_over_the_judged_queries() -> None:
    judged = Judged(
        [Query("a", ""), Query("b", "")],
        [Qrel("a", "p0", 2, "test"), Qrel("a", "p1", 1, "test"), Qrel("b", "p2", 1, "test")],
        Ranked(np.empty((2, 0), np.int64), np.empty((2, 0), np.float32)),
    )
    found = means([np.array([1, 3, 0]), np.array([3, 3, -1])[1:]], judged, ids=list(PASSAGES))
    ideal = 2 / np.log2(2) + 1 / np.log2(3)
    assert found["ndcg@10"] == pytest.approx((1 / np.log2(2) + 2 / np.log2(4)) / ideal / 2)
    assert found["recall@1"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["mrr@10"] == pytest.approx((1 + 0) / 2)


PASSAGES = ("p0", "p1", "p2", "p3")


def test_the_table_says_mean_and_deviation() -> None:
    assert spread([0.5]) == "0.500"
    assert spread([0.4, 0.6]) == "0.500 ±0.141"  # sqrt(2 * 0.1^2 / (2 - 1))
    names = ("dev", "dl19", "nfcorpus", "npl_vaswani", "scifact", "wikiqa")
    measures = ("recall@1", "recall@3", "recall@10", "recall@100", "mrr@10", "ndcg@10")

    def seed(value: float) -> dict[str, object]:
        sets = {n: {"tower": dict.fromkeys(measures, value), "hybrid": {}} for n in names}
        for found in sets.values():
            found["hybrid"] = dict.fromkeys(measures, 1.0)
        costs = {"seconds": 10.0, "start_seconds": 5.0, "parameters": 2_000_000, "bundle_mb": 9.5}
        return {"sets": sets, **costs}

    report = {"rows": {"one": {"0": seed(0.4), "1": seed(0.6)}}}
    tower, hybrid = to_markdown(report, ["one", "not run"]).split("\n\nBM25 +")
    cells = [cell.strip() for cell in tower.splitlines()[-1].strip("| ").split("|")]
    assert cells[0] == "one"
    assert set(cells[1:-4]) == {"0.500 ±0.141"}
    assert cells[-4:] == ["2", "15", "2.00", "9.5"]
    assert "1.000 ±0.000" in hybrid
    assert "not run" not in tower
    cells = [cell.strip() for cell in to_brief(report).splitlines()[-1].strip("| ").split("|")]
    assert cells == ["one", *["0.500 ±0.141"] * 3, *["1.000 ±0.000"] * 4, "2", "15"]
    assert len(to_brief_engines(report).splitlines()) == 2  # no row learnt weights
    whole = {"one": {"0": seed(0.4)}}
    for found in whole["one"]["0"]["sets"].values():
        found["cross"] = dict.fromkeys(measures, 0.9)
    cells = to_brief_engines({"rows": whole}).splitlines()[-1].strip("| ").split("|")
    assert [cell.strip() for cell in cells] == ["one: with cross-scorer", *["0.900"] * 7, "1", "15"]
    assert "With the cross-scorer" in to_markdown({"rows": whole}, ["one"])
    assert "With the cross-scorer" not in to_markdown(report, ["one"])


def test_the_docs_have_the_table_of_what_was_measured() -> None:
    found = json.loads(RESULTS.read_text("utf-8"))
    page = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
    assert to_brief(found) in page
    assert to_brief_engines(found) in page


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    chance = np.array([0.05, 0.05, 0.95, 1.0])
    right = np.array([False, True, True, True])
    # two hits below .1: said .05, right .5; two above .9: said .975, right 1
    assert calibration_error(chance, right) == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)
