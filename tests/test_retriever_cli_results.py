import json
from pathlib import Path

import pytest
from conftest import make_bundle, make_passages, write_data
from typer.testing import CliRunner, Result

from two_tower.ingest.cli import app as ingest_app
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.data import Passage, Qrel, Query
from two_tower.retriever.cli import app

PASSAGES = make_passages(60)
ASKED = PASSAGES[7]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> list[str]:
    """An embedded collection `things`; returns the options that reach it."""
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder / "data", PASSAGES)
    where = ["--bundle", str(tiny_bundle), "--path", str(folder / "edge")]
    words = ["load", str(folder / "data"), "--collection", "things", *where]
    result = CliRunner().invoke(ingest_app, words)
    assert result.exit_code == 0, result.stderr
    return where


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_search_prints_hits(loaded: list[str]) -> None:
    result = run("search", "things", ASKED.content, "-k", "2", *loaded)
    assert result.exit_code == 0, result.stderr
    assert f"1. {ASKED.title}" in result.stdout
    assert ASKED.url in result.stdout
    assert "rerank" not in result.stdout


def test_search_explains(loaded: list[str]) -> None:
    result = run("search", "things", ASKED.content, "-k", "2", "--explain", *loaded)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["rank", "score", "dense", "bm25", "rerank", "title"] in lines
    assert " ms: encode " in result.stdout


def test_search_json_is_one_object_per_query(loaded: list[str]) -> None:
    result = run("search", "things", ASKED.content, "bridge of steel", "-k", "3", "--json", *loaded)
    first, second = map(json.loads, result.stdout.splitlines())
    assert list(first)[:3] == ["query", "hits", "timings_ms"]
    assert second["query"] == "bridge of steel"
    hit = first["hits"][0]
    assert list(hit) == ["rank", "passage_id", "score", "title", "text", "url", "stages", "payload"]
    assert (hit["rank"], hit["passage_id"]) == (1, ASKED.passage_id)
    assert hit["stages"]["dense"]["rank"] == 1
    assert set(first["timings_ms"]) == {"encode", "candidates", "fusion", "payload"}


def test_evaluate_writes_the_report(loaded: list[str], tmp_path: Path) -> None:
    out = tmp_path / "report"
    data = judged(tmp_path / "judged")
    result = run("evaluate", "things", data, "--out", out, "--split", "test", *loaded)
    assert result.exit_code == 0, result.stderr
    assert f"Next: retriever tune things {data} --split test --out TUNED" in result.stderr
    report = json.loads((out / "report.json").read_text())
    assert list(report) == [
        *("collection", "passages", "data", "split", "bundle", "commit", "systems"),
        *("baseline", "relevant_from", "highest_grade", "answers", "missing_answers"),
        *("own_left_out", "worths", "headroom", "judge", "read_by", "check", "checked_queries"),
    ]
    systems = {row["system"]: row for row in report["systems"]}
    fused = ["rrf", "dbsf", "hybrid", "rerank"]
    assert list(systems) == ["tfidf", "bm25", "dense", "pca_8", "pca_4", *fused]
    for row in systems.values():
        assert row["queries"] == 20
        assert list(row["metrics"]) == [
            *("recall@1", "recall@3", "recall@10", "recall@100", "mrr@10", "ndcg@10", "map@100")
        ]
        assert row["metrics"]["recall@100"] == 1.0  # 60 passages, all of them ranked
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        for measure, (low, high) in row["intervals"].items():
            assert low <= row["metrics"][measure] <= high
    # A passage's own words find it.
    assert systems["bm25"]["metrics"]["recall@1"] == 1.0
    rows = (out / "report.md").read_text().count("\n| ")
    # 9 systems; 8 beside bm25; hybrid and rerank beside the stage before; two lines of head each
    assert rows == 11 + 10 + 4
    assert "| rerank |" in result.stdout


def test_evaluate_takes_the_queries_of_another_data(loaded: list[str], tmp_path: Path) -> None:
    """DATA has two passages only; ranked is what the collection holds."""
    data = judged(tmp_path / "other", passages=PASSAGES[:2])
    words = ["--out", tmp_path / "report", "--split", "test", "--systems", "rank_bm25,tfidf,rerank"]
    result = run("evaluate", "things", data, *words, *loaded)
    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["system"] for row in report["systems"]] == ["tfidf", "rank_bm25", "rerank"]
    assert report["passages"] == 60
    assert {row["metrics"]["recall@1"] for row in report["systems"]} == {1.0}


def judged(path: Path, passages: list[Passage] = PASSAGES[:20]) -> Path:
    """DATA whose queries are the texts of passages."""
    with DatasetWriter(path, source="test") as writer:
        for passage in passages:
            writer.add_passage(passage)
            writer.add_query(Query(f"q{passage.passage_id}", passage.text))
            writer.add_qrel(Qrel(f"q{passage.passage_id}", passage.passage_id, 1, "test"))
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "things", ""], "the query is empty"),
        (["search", "things", "a" * 1_000_000], "1,000,000 characters; expected at most"),
        (["search", "things", "a\udc80b"], "U+DC80 at position 1"),
        (["search", "things", "\0"], "U+0000 at position 0"),
        (["search", "things", "x", "-k", "0"], "k is 0"),
        (["search", "nothing", "x"], "no collection 'nothing'"),
    ],
)
def test_bad_queries_end_in_one_line(loaded: list[str], words: list[str], message: str) -> None:
    one_line(run(*words, *loaded), message)


def test_bad_evaluations_end_in_one_line(loaded: list[str], tmp_path: Path) -> None:
    data, out = judged(tmp_path / "data"), tmp_path / "report"
    words = ["evaluate", "things", data, "--out", out, *loaded]
    one_line(run(*words), "no labelled query in split 'dev'; its splits: test")
    one_line(run(*words, "--split", "test", "--systems", "nope"), "unknown system 'nope'")
    missing = ["evaluate", "things", tmp_path / "missing", "--out", out, *loaded]
    one_line(run(*missing), "is not a DATA folder (there is no such folder)")
    assert not out.exists()
    (tmp_path / "file").touch()
    words[words.index("--out") + 1] = tmp_path / "file" / "report"
    one_line(run(*words, "--split", "test"), "cannot write a report into")


def test_another_bundle_is_refused_with_both_fingerprints(
    loaded: list[str], tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other", seed=1)
    result = run("search", "things", "x", "--bundle", other, *loaded[2:])
    one_line(result, "was loaded with bundle")
    assert "run: ingest load DATA" in result.stderr


def one_line(result: Result, message: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_wrong_usage_is_exit_code_2(loaded: list[str]) -> None:
    assert run("search").exit_code == 2
    assert run("search", "things", "x", "-k").exit_code == 2
    assert run("search", "things", "x", "--nope", *loaded).exit_code == 2
