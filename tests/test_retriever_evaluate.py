import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import ir_measures
import numpy as np
import pytest
from conftest import WIDE, make_bundle
from ir_measures import AP, RR, R, nDCG
from judged import NAME, load_judged, write_judged
from typer.testing import CliRunner, Result

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever.cli import app
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.options import (
    CollectionOptions,
    DiskOptions,
    QuantizationOptions,
)
from two_tower.retriever.evaluation.contrast import find_contrasts
from two_tower.retriever.evaluation.evaluate import Report, SystemResult, measure_all
from two_tower.retriever.evaluation.measures import MEASURES
from two_tower.retriever.evaluation.report import to_markdown
from two_tower.retriever.evaluation.significance import Comparison
from two_tower.retriever.evaluation.systems import bytes_per_dimension, choose_systems, index_mb
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import AnnSettings, SearchSettings


class Place(NamedTuple):
    """A loaded collection with judged queries."""

    data: Dataset
    bundle: Path
    engine: Path

    def retriever(self) -> Retriever:
        return Retriever.open(NAME, bundle=self.bundle, path=self.engine)

    def run(self, out: Path, *words: str) -> Result:
        where = ["--bundle", str(self.bundle), "--path", str(self.engine), "--out", str(out)]
        return CliRunner(env=WIDE).invoke(
            app, ["evaluate", NAME, str(self.data.path), *where, *words]
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Place:
    folder = tmp_path_factory.mktemp("judged")
    data = write_judged(folder / "DATA")
    load_judged(data, tiny_bundle, folder / "edge")
    return Place(data, tiny_bundle, folder / "edge")


def test_a_report_keeps_its_contract(place: Place, tmp_path: Path) -> None:
    done = place.run(tmp_path / "report", "--systems", "bm25,dense,rerank,tfidf")
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {"collection", "data", "split", "bundle", "commit", "systems"} <= report.keys()
    assert [row["system"] for row in report["systems"]] == ["tfidf", "bm25", "dense", "rerank"]
    for row in report["systems"]:
        assert {"system", "queries", "metrics", "p50_ms", "p95_ms"} <= row.keys()
        assert list(row["metrics"]) == list(MEASURES)
        assert row["queries"] == 30
        assert row["index_mb"] > 0
    stored = Report.from_dict(report)
    assert to_markdown(stored) == done.stdout.rstrip("\n")
    assert (tmp_path / "report" / "report.md").read_text() == done.stdout
    made = {path.name for path in (tmp_path / "report").iterdir()}
    assert made == {"report.json", "report.md", "report.html", "per_query.tsv", "runs"}


def test_run_files_and_the_per_query_file_give_the_means_again(
    place: Place, tmp_path: Path
) -> None:
    assert place.run(tmp_path, "--systems", "bm25,rerank", "--relevant-from", "2").exit_code == 0
    rows = {r["system"]: r for r in json.loads((tmp_path / "report.json").read_text())["systems"]}
    qrels = [
        ir_measures.Qrel(q.query_id, q.passage_id, q.relevance) for q in place.data.qrels("dev")
    ]
    theirs = {"recall@10": R(rel=2) @ 10, "mrr@10": RR(rel=2) @ 10, "ndcg@10": nDCG @ 10}
    theirs["map@100"] = AP(rel=2) @ 100
    lines = [line.split("\t") for line in (tmp_path / "per_query.tsv").read_text().splitlines()]
    for system, row in rows.items():
        run = list(ir_measures.read_trec_run(str(tmp_path / "runs" / f"{system}.trec")))
        found = ir_measures.calc_aggregate(list(theirs.values()), qrels, run)
        for name, measure in theirs.items():
            assert row["metrics"][name] == pytest.approx(found[measure]), name
            column = lines[0].index(name)
            values = [float(line[column]) for line in lines[1:] if line[1] == system]
            assert np.mean(values) == pytest.approx(row["metrics"][name], abs=1e-6)


def test_a_run_file_is_a_system_and_equals_what_it_was_written_from(
    place: Place, tmp_path: Path
) -> None:
    assert place.run(tmp_path / "first", "--systems", "dense,bm25").exit_code == 0
    copy = tmp_path / "copy.trec"
    copy.write_bytes((tmp_path / "first" / "runs" / "dense.trec").read_bytes())
    done = place.run(tmp_path / "second", "--systems", "dense,bm25", "--run", str(copy))
    rows = json.loads((tmp_path / "second" / "report.json").read_text())["systems"]
    assert [row["system"] for row in rows] == ["copy", "bm25", "dense"]
    assert rows[0]["metrics"] == rows[2]["metrics"]
    assert rows[0]["comparisons"]["ndcg@10"] == rows[2]["comparisons"]["ndcg@10"]
    assert rows[0]["p50_ms"] is rows[0]["index_mb"] is None
    assert rows[0]["source"] == f"run {copy}"
    assert f"copy: run {copy}." in done.stdout
    clash = copy.rename(tmp_path / "bm25.trec")
    done = place.run(tmp_path / "third", "--systems", "dense,bm25", "--run", str(clash))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "two systems are called 'bm25'" in done.stderr


def test_other_collections_of_the_engine(place: Place, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", seed=9)
    load_judged(place.data, other, place.engine, name="other")
    also = ["--also", f"other={other}"]
    done = place.run(tmp_path / "a", *also, "--systems", "bm25,dense")
    assert done.exit_code == 0, done.stderr
    rows = json.loads((tmp_path / "a" / "report.json").read_text())["systems"]
    assert [row["system"] for row in rows] == ["other", "bm25", "dense"]
    assert rows[0]["source"].startswith("rerank of other--")
    done = place.run(tmp_path / "b", *also, "--systems", "other/dense,other/bm25,dense,bm25")
    rows = json.loads((tmp_path / "b" / "report.json").read_text())["systems"]
    metrics = {row["system"]: row["metrics"] for row in rows}
    assert list(metrics) == ["other/dense", "other/bm25", "bm25", "dense"]
    assert metrics["other/bm25"] == pytest.approx(metrics["bm25"], abs=0.02)  # ties fall apart
    assert metrics["other/dense"] != metrics["dense"]
    assert (tmp_path / "b" / "runs" / "other-dense.trec").is_file()
    found = place.run(tmp_path / "c", "--also", "other", "--systems", "bm25")  # by its fingerprint
    assert found.exit_code == 0, found.stderr
    shutil.rmtree(other)
    assert place.run(tmp_path / "c", "--also", "other", "--systems", "bm25").exit_code == 1


def test_a_report_that_cannot_be_written_fails_before_the_work(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/report")):
        done = place.run(out, "--systems", "bm25")
        assert done.exit_code == 1
        assert done.stderr.startswith(f"Error: cannot write a report into {out} (")
        assert len(done.stderr.splitlines()) == 1
    out = tmp_path / "new" / "report"
    assert place.run(out, "--split", "nope").exit_code == 1
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--systems", "bm25,sense"], "unknown system 'sense'; expected some of tfidf,"),
        (["--systems", "nowhere/bm25"], "unknown system 'nowhere/bm25'"),
        (["--systems", "dense,bm25", "--baseline", "tfidf"], "baseline 'tfidf' is not measured"),
        (["--systems", "bm25,cross"], "'cross' is not here: this bundle has no cross-scorer"),
        (["--systems", "late"], "'late' is not here: bundle and collection have no late"),
        (["--split", "test"], "no labelled query in split 'test'; its splits: dev"),
        (["--relevant-from", "3"], "no query with a relevant passage of grade 3 or more"),
        (["--run", "absent.trec"], "absent.trec cannot be read as a TREC run"),
    ],
)
def test_failures_are_one_line(
    place: Place, tmp_path: Path, words: list[str], message: str
) -> None:
    done = place.run(tmp_path / "report", *words)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr
    assert not (tmp_path / "report").exists()


def test_data_of_another_corpus_is_refused_and_missing_answers_are_counted(
    place: Place, tmp_path: Path
) -> None:
    with DatasetWriter(tmp_path / "other", source="other") as writer:
        for number in range(3):
            writer.add_passage(Passage(f"elsewhere {number}", f"text {number}"))
            writer.add_query(Query(f"q{number}", f"question {number}"))
            writer.add_qrel(Qrel(f"q{number}", f"elsewhere {number}", 1, "dev"))
    other = place._replace(data=Dataset.open(tmp_path / "other"))
    done = other.run(tmp_path / "report")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "holds none of the 3 relevant passages" in done.stderr
    assert not (tmp_path / "report").exists()
    known = next(iter(place.data.passages()))
    with DatasetWriter(tmp_path / "half", source="half") as writer:
        for passage in (known, Passage("elsewhere", "text")):
            writer.add_passage(passage)
            writer.add_query(Query(f"q {passage.passage_id}", "question"))
            writer.add_qrel(Qrel(f"q {passage.passage_id}", passage.passage_id, 1, "dev"))
    half = place._replace(data=Dataset.open(tmp_path / "half"))
    done = half.run(tmp_path / "report", "--systems", "bm25")
    assert done.exit_code == 0, done.stderr
    assert "Warning: 1 of 2 relevant passages are not in the collection" in done.stderr
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (stored["answers"], stored["missing_answers"]) == (2, 1)


def test_a_report_that_is_written_again_keeps_no_ranking_of_the_last(
    place: Place, tmp_path: Path
) -> None:
    assert place.run(tmp_path, "--systems", "bm25,dense").exit_code == 0
    own = tmp_path / "runs" / "own.trec"
    (tmp_path / "runs" / "dense.trec").rename(own)
    assert place.run(tmp_path, "--systems", "bm25,dense", "--run", str(own)).exit_code == 0
    assert place.run(tmp_path, "--systems", "bm25").exit_code == 0
    left = {path.name for path in (tmp_path / "runs").iterdir()}
    assert left == {"bm25.trec", "own.trec"}  # what was given is not ours to delete


def test_own_settings_are_the_last_row(place: Place) -> None:
    with place.retriever() as retriever:
        own = retriever.with_settings(SearchSettings(legs={"bm25": 10}, rerank=False))
        names = [s.name for s in choose_systems(own, None, others={})]
        assert names[-2:] == ["rerank", "settings"]
        systems = choose_systems(own, ["settings"], others={})
        evaluation = measure_all(own, place.data, systems=systems)
        for query in evaluation.queries:
            expected = [hit.passage_id for hit in own.search(query.text, k=100)]
            assert evaluation.rankings["settings"][query.query_id] == expected


def test_settings_files(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "lexical.yaml"
    file.write_text("search: {legs: {bm25: 10}, rerank: false}\n")
    words = ["--systems", f"dense,ten={file},settings", "--settings", str(file)]
    done = place.run(tmp_path / "report", *words, "--baseline", "ten")
    assert done.exit_code == 0, done.stderr
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["systems"]
    assert [row["system"] for row in rows] == ["ten", "dense", "settings"]
    assert rows[0]["source"] == f"settings {file}"
    assert rows[0]["index_mb"] == rows[2]["index_mb"] != rows[1]["index_mb"]
    assert rows[0]["metrics"]["recall@10"] == pytest.approx(rows[2]["metrics"]["recall@10"])
    file.write_text("search: {legs: {pca_7: 10}}\n")
    done = place.run(tmp_path / "report", "--systems", f"ten={file}")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "pca_7" in done.stderr


def test_contrasts_are_the_ends_of_the_differences(place: Place) -> None:
    with place.retriever() as retriever:
        systems = choose_systems(retriever, ["bm25", "dense"], others={})
        evaluation = measure_all(retriever, place.data, systems=systems)
        contrasts = find_contrasts(evaluation, retriever.passages())
        texts = {p.passage_id: p.text for p in retriever.passages()}
    gaps = evaluation.values["dense"]["ndcg@10"] - evaluation.values["bm25"]["ndcg@10"]
    worst = evaluation.queries[int(np.argmin(gaps))]
    first = contrasts.worst[0]
    assert first.query == worst
    assert [column.system for column in first.columns] == ["dense", "bm25"]
    assert first.columns[0].value - first.columns[1].value == pytest.approx(gaps.min())
    for column in first.columns:
        ranking = evaluation.rankings[column.system][worst.query_id]
        assert [found.passage.passage_id for found in column.best] == ranking[:3]
        answers = {q.passage_id for q in evaluation.qrels if q.query_id == worst.query_id}
        for found in column.lower:
            assert found.passage.passage_id in answers
            assert found.passage.text == texts[found.passage.passage_id]
            assert found.rank is None or ranking[found.rank - 1] == found.passage.passage_id


def test_one_system_alone_has_nothing_to_be_compared_with(place: Place, tmp_path: Path) -> None:
    done = place.run(tmp_path, "--systems", "dense")
    assert done.exit_code == 0, done.stderr
    assert "±" in done.stdout
    assert "Holm" not in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["baseline"] is None
    page = (tmp_path / "report.html").read_text()
    assert page.index("Answered best") < page.index("Answered worst")


def test_index_size_by_hand(place: Place) -> None:
    """24 dimensions of 4 bytes and, for a first stage, 8 more; 8 bytes per posting."""
    with place.retriever() as retriever:
        encoder = Bm25Encoder(Bm25Config(**retriever.metadata.bm25))
        vectors = encoder.encode_passages(list(retriever.passages()))
        postings = sum(len(vector.indices) for vector in vectors)
        wide, lexical = 120 * 24 * 4, postings * 8
        dense = SearchSettings(legs={"dense": 10}, rerank=False)
        staged = replace(dense, ann=AnnSettings(first_stage="pca_8"))
        bm25 = SearchSettings(legs={"bm25": 10}, rerank=False)
        for settings, expected in (
            (dense, wide),
            (staged, wide + 120 * 8 * 4),
            (bm25, lexical),
            (SearchSettings(), wide + lexical),
        ):
            assert index_mb(retriever, settings) == pytest.approx(expected / 1e6)


def test_bytes_per_dimension() -> None:
    plain = CollectionOptions()
    assert bytes_per_dimension(plain) == 4
    scalar = CollectionOptions(
        quantization=QuantizationOptions("scalar"), on_disk=DiskOptions(vectors=True)
    )
    assert bytes_per_dimension(scalar) == 1
    binary = CollectionOptions(quantization=QuantizationOptions("binary", bits=2))
    assert bytes_per_dimension(binary) == 4 + 2 / 8


def result(system: str, **changes: object) -> SystemResult:
    plain = {
        "queries": 1794,
        "metrics": dict.fromkeys(MEASURES, 0.69),
        "intervals": dict.fromkeys(MEASURES, (0.67, 0.71)),
        "p50_ms": 1.234,
        "p95_ms": 5.678,
    }
    return SystemResult(system=system, **plain | changes)


def test_markdown_has_a_row_per_system_and_the_counts() -> None:
    report = Report("c--1", 94590, "DATA", "dev", "f" * 64, "abc1234", (result("bm25"),))
    lines = to_markdown(report).split("\n")
    assert "1,794 queries over 94,590 passages" in lines[0]
    assert lines[2].startswith("| system | ")
    assert [cell.strip() for cell in lines[4].strip("|").split("|")] == [
        "bm25",
        *["0.690 ±0.020"] * len(MEASURES),
        "1.2",
        "5.7",
    ]
    assert len({len(line) for line in lines[2:]}) == 1


def test_markdown_marks_what_is_better_or_worse_than_the_baseline() -> None:
    better, worse, alike = (
        dict.fromkeys(MEASURES, Comparison(gap, (gap - 0.01, gap + 0.01), p, p))
        for gap, p in ((0.02, 0.0004), (-0.03, 0.04), (0.04, 0.06))
    )
    rows = (
        result("bm25"),
        result("up", comparisons=better, p50_ms=None, index_mb=12.34),
        result("down", comparisons=worse),
        result("same", comparisons=alike),
    )
    report = Report("c", 10, "DATA", "dev", "f", "abc", rows, baseline="bm25")
    _, table, legend, differences, note = to_markdown(report).split("\n\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")]
    assert [row[1] for row in cells[2:]] == [
        *("0.690 ±0.020", "0.690 ±0.020 ▲", "0.690 ±0.020 ▼", "0.690 ±0.020")
    ]
    assert cells[3][-3:] == ["-", "5.7", "12.3"]
    assert "Holm's correction for 3 systems" in legend
    assert "+0.020 [+0.010, +0.030] p<.001" in differences
    assert "-0.030 [-0.040, -0.020] p=0.040" in differences
    assert note.startswith("index MB is computed")


def test_a_query_that_is_a_passage_does_not_find_itself(tmp_path: Path, tiny_bundle: Path) -> None:
    texts = {"a": "river bank boat", "b": "river bank loan", "c": "storm and wind"}
    with DatasetWriter(tmp_path / "DATA", source="arguments") as writer:
        for passage_id, text in texts.items():
            writer.add_passage(Passage(passage_id, text))
        for query_id, answer in (("a", "b"), ("c", "c")):  # the second is judged to answer itself
            writer.add_query(Query(query_id, texts[query_id]))
            writer.add_qrel(Qrel(query_id, answer, 1, "dev"))
    data = Dataset.open(tmp_path / "DATA")
    load_judged(data, tiny_bundle, tmp_path / "edge")
    with Retriever.open(NAME, bundle=tiny_bundle, path=tmp_path / "edge") as retriever:
        systems = choose_systems(retriever, ["bm25"], others={})
        without = measure_all(retriever, data, systems=systems)
        keeping = measure_all(retriever, data, systems=systems, keep_own=True)
    assert [r.report.systems[0].metrics["recall@1"] for r in (without, keeping)] == [1.0, 0.5]
    assert without.rankings["bm25"] == {"a": ["b"], "c": ["c"]}
    assert keeping.rankings["bm25"]["a"] == ["a", "b"]
    assert (without.report.own_left_out, keeping.report.own_left_out) == (2, 0)
    assert "2 queries are passages themselves" in to_markdown(without.report)
