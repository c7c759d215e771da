import time
from pathlib import Path

import ir_measures
import pytest
from ir_measures import RR, nDCG

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.models.errors import DataError
from two_tower.retriever.evaluation.measures import per_query
from two_tower.retriever.evaluation.systems import run_system
from two_tower.retriever.evaluation.trec import read_run, write_run

RANKINGS = {"q1": ["b", "a", "c"], "q2": ["d"], "q3": ["e f", "%20"]}
QRELS = [Qrel("q1", "a", 1, "dev"), Qrel("q1", "c", 2, "dev"), Qrel("q2", "x", 1, "dev")]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "ours.trec", RANKINGS, tag="ours")
    assert read_run(tmp_path / "ours.trec") == RANKINGS
    first = (tmp_path / "ours.trec").read_text().split("\n")[0]
    assert first == "q1\tQ0\tb\t1\t3\tours"


def test_another_reader_finds_the_same_values(tmp_path: Path) -> None:
    rankings = {name: ids for name, ids in RANKINGS.items() if name != "q3"}
    write_run(tmp_path / "ours.trec", rankings, tag="ours")
    run = list(ir_measures.read_trec_run(str(tmp_path / "ours.trec")))
    qrels = [ir_measures.Qrel(q.query_id, q.passage_id, q.relevance) for q in QRELS]
    ours = per_query(rankings, QRELS)
    theirs = ir_measures.calc_aggregate([nDCG @ 10, RR @ 10], qrels, run)
    assert theirs[nDCG @ 10] == pytest.approx(ours["ndcg@10"].mean())
    assert theirs[RR @ 10] == pytest.approx(ours["mrr@10"].mean())


def test_order_is_by_score_then_by_rank(tmp_path: Path) -> None:
    lines = ["q1 Q0 a 3 0.5 x", "q1 Q0 b 2 0.5 x", "", "q1 Q0 c 1 -1e3 x", "q1 Q0 d 9 7.25 x\r"]
    (tmp_path / "run").write_text("\n".join(lines))
    assert read_run(tmp_path / "run") == {"q1": ["d", "b", "a", "c"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no line; expected: query_id Q0 passage_id rank score tag"),
        ("q1 Q0 a 1 0.5 x\nq1 Q0 b 2 0.4\n", "run:2 holds 'q1 Q0 b 2 0.4'; expected: query_id"),
        ("q1 Q0 a one 0.5 x\n", "run:1 holds"),
        ("q1 Q0 a 1 nan x\n", "run:1 has the score nan"),
        (f"q1 Q0 a 1 {'9' * 5000} x\n", f"run:1 has the score {'9' * 40}; expected a number"),
        ("q1 Q0 a 1 2 x\nq1 Q0 a 2 1 x\n", "lists passage 'a' more than once for query 'q1'"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run").write_text(content)
    with pytest.raises(DataError) as caught:
        read_run(tmp_path / "run")
    assert message in str(caught.value)


def test_a_repeated_passage_is_named_in_time_that_is_linear_in_the_run(tmp_path: Path) -> None:
    lines = [f"q Q0 d{n} 1 {n} x\n" for n in range(50_000)]
    (tmp_path / "run").write_text("".join([*lines, lines[-1]]))
    start = time.process_time()
    with pytest.raises(DataError, match="lists passage 'd49999' more than once"):
        read_run(tmp_path / "run")
    assert time.process_time() - start < 5


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a TREC run"):
        read_run(tmp_path / "absent")
    with pytest.raises(DataError, match="no tab and no line break"):
        write_run(tmp_path / "run", {"q\t1": ["a"]}, tag="x")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_any_line_end(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "run").write_bytes(
        end.join(["q1 Q0 a 1 2.0 x", "q2 Q0 b 1 1 x", ""]).encode(encoding)
    )
    assert read_run(tmp_path / "run") == {"q1": ["a"], "q2": ["b"]}


def judged(path: Path, *, merge: bool) -> Dataset:
    with DatasetWriter(path, source="test", merge=merge) as writer:
        for number in range(4):
            writer.add_passage(Passage(f"d{number}", f"text {number // 2}"))
        for number in range(3):
            writer.add_query(Query(f"q{number}", f"question {number}"))
            writer.add_qrel(Qrel(f"q{number}", "d1", 1, "dev"))
    return Dataset.open(path)


def test_a_run_names_merged_passages(tmp_path: Path) -> None:
    data = judged(tmp_path / "data", merge=True)
    assert [p.passage_id for p in data.passages()] == ["d0", "d2"]
    assert data.merged_ids() == {"d1": "d0", "d3": "d2"}
    write_run(tmp_path / "other.trec", {f"q{n}": ["d3", "d1", "d2"] for n in range(3)}, tag="x")
    ranker = run_system(tmp_path / "other.trec", data, split="dev").start()
    assert ranker.rank(data.queries("dev"), 10) == [["d2", "d0"]] * 3


def test_queries_in_common_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = judged(tmp_path / "data", merge=False)
    write_run(tmp_path / "some.trec", {"q0": ["d1"], "other": ["d0"]}, tag="x")
    run_system(tmp_path / "some.trec", data, split="dev")
    assert "some.trec ranks 1 of the 3 queries of split 'dev'" in caplog.text
    write_run(tmp_path / "none.trec", {"other": ["d0"]}, tag="x")
    with pytest.raises(DataError, match=r"ranks 1 queries, none of the 3 of split 'dev'"):
        run_system(tmp_path / "none.trec", data, split="dev")
