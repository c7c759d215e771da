import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from two_tower.ingest.cli import app
from two_tower.ingest.sources.long_documents import (
    SplitConfig,
    most_like,
    split_passage,
    split_text,
)
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import ConfigError
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer

STORY = (
    "Cats sleep for most of the day. They wake at dusk.\n\n"
    "A cat lives for twelve to fifteen years. Some reach twenty! "
    "Dogs are another matter altogether and need walks, food and company every single day."
)


def test_pieces_end_where_sentences_do() -> None:
    assert split_text(STORY, SplitConfig(14)) == [
        "Cats sleep for most of the day. They wake at dusk.",
        "A cat lives for twelve to fifteen years. Some reach twenty!",
        "Dogs are another matter altogether and need walks, food and company every single day.",
    ]
    assert split_text(STORY, SplitConfig(100)) == [STORY]


def test_without_sentences_pieces_are_of_about_equal_length() -> None:
    words = [f"w{n}" for n in range(25)]
    pieces = split_text(" ".join(words), SplitConfig(10))
    assert [len(piece.split()) for piece in pieces] == [9, 8, 8]
    assert " ".join(pieces).split() == words


def test_pieces_overlap() -> None:
    words = [f"w{n}" for n in range(25)]
    pieces = [p.split() for p in split_text(" ".join(words), SplitConfig(10, overlap=3))]
    for before, after in itertools.pairwise(pieces):
        assert before[-3:] == after[:3]
    assert [*pieces[0], *(w for piece in pieces[1:] for w in piece[3:])] == words


@given(
    st.text(alphabet="ab. \n!\t", max_size=400).map(str.strip),
    st.integers(1, 30),
    st.integers(0, 15),
)
def test_nothing_is_lost_or_too_long(text: str, words: int, overlap: int) -> None:
    config = SplitConfig(words, min(overlap, words // 2))
    pieces = [piece.split() for piece in split_text(text, config)]
    assert all(len(piece) <= words for piece in pieces)
    rest = [word for piece in pieces[1:] for word in piece[config.overlap :]]
    assert [*pieces[0], *rest] == text.split()


def test_parts_say_where_they_come_from() -> None:
    document = Passage("d1", STORY, "Cats", "http://cats", {"topic": "pets"})
    parts = split_passage(document, SplitConfig(14))
    assert [part.passage_id for part in parts] == ["d1#1", "d1#2", "d1#3"]
    assert parts[1].fields == {"topic": "pets", "document_id": "d1", "part": 2}
    assert {(part.title, part.url) for part in parts} == {("Cats", "http://cats")}
    (whole,) = split_passage(document, SplitConfig(200))
    assert whole == document._replace(fields=document.fields | {"document_id": "d1", "part": 1})
    best = most_like("how long do cats live, how many years?", parts, EngineAnalyzer())
    assert best.passage_id == "d1#2"
    assert most_like("unrelated", parts, EngineAnalyzer()).passage_id == "d1#1"


@pytest.mark.parametrize(("words", "overlap"), [(0, 0), (10, 6), (10, -1)])
def test_impossible_lengths_are_refused(words: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=r"--(passage|overlap)-words is -?\d+, expected"):
        SplitConfig(words, overlap)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    rows = [
        {"query": "how many years do cats live", "_id": "d1", "text": STORY, "title": "Cats"},
        {"query": "what is short", "_id": "d2", "text": "This is short.", "title": ""},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "documents"
    prepared = CliRunner().invoke(
        app, ["prepare", str(tmp_path / "rows.jsonl"), "--out", str(out), "--dev-fraction", "0"]
    )
    assert prepared.exit_code == 0, prepared.output
    return out


def test_a_folder_of_documents_becomes_one_of_passages(documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    command = ["prepare", str(documents), "--out", str(out), "--passage-words", "14"]
    done = CliRunner().invoke(app, [*command, "--dev-fraction", "0"])
    assert done.exit_code == 0, done.output
    data = Dataset.open(out)
    assert [p.passage_id for p in data.passages()] == ["d1#1", "d1#2", "d1#3", "d2"]
    judged = {
        (q.text, r.passage_id)
        for q in data.queries()
        for r in data.qrels("train")
        if r.query_id == q.query_id
    }
    assert judged == {("how many years do cats live", "d1#2"), ("what is short", "d2")}
    kept = data.manifest["source"]
    assert (kept["kind"], kept["words"], kept["overlap"]) == ("split", 14, 0)
    assert kept["documents"] == Dataset.open(documents).content_hash


def test_a_folder_of_tables_with_some_manifest_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "rows.jsonl").write_text('{"text": "alone"}\n')
    (tmp_path / "tables" / "manifest.json").write_text("{}")
    command = ["prepare", str(tmp_path / "tables"), "--out", str(tmp_path / "data")]
    assert CliRunner().invoke(app, command).exit_code == 0


def test_flags_that_do_not_fit_are_refused_in_one_line(documents: Path, tmp_path: Path) -> None:
    cases = {
        "is DATA already": [documents],
        "make DATA of it first": [tmp_path / "rows.jsonl", "--passage-words", "20"],
        "expected 0 to 10": [documents, "--passage-words", "20", "--overlap-words", "11"],
        "--passage-words is 0, expected 1": [documents, "--overlap-words", "11"],
        "--limit does not apply": [documents, "--passage-words", "20", "--limit", "3"],
    }
    for message, words in cases.items():
        command = ["prepare", *map(str, words), "--out", str(tmp_path / "data")]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1, done.output
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_texts_without_spaces_are_cut_by_their_characters() -> None:
    text = "時刻を設定する。現在の時刻を表示する。端末を調べる。"  # 8, 11 and 7 characters
    pieces = split_text(text, SplitConfig(12))
    assert pieces == ["時刻を設定する。", "現在の時刻を表示する。", "端末を調べる。"]
    assert split_text("a bc 時刻", SplitConfig(3, 1)) == ["a bc 時", "時刻"]
