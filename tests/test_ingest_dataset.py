import hashlib
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from two_tower.ingest.dataset.cleaning import clean
from two_tower.ingest.dataset.fields import RESERVED
from two_tower.ingest.dataset.writer import DatasetWriter, is_dev
from two_tower.ingest.sources.columnar import read_parquet
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.models.errors import DataError
from two_tower.models.parquet import PASSAGES, read_rows
from two_tower.retriever.collection import schema


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, *records: Passage | Query | Qrel, **options: Any) -> Dataset:
    with DatasetWriter(path, source="test", **options) as writer:
        for number, record in enumerate(records, 1):
            where = f"test:{number}"
            if isinstance(record, Passage):
                writer.add_passage(record, where=where)
            elif isinstance(record, Query):
                writer.add_query(record, where=where)
            else:
                writer.add_qrel(record, where=where)
    return Dataset.open(path)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    passages = [
        Passage("a", "one\ntwo", "Title", "http://x/a", {"lang": "en", "year": 1999}),
        Passage("b", "drei “vier”"),
    ]
    data = write(
        tmp_path / "data",
        Qrel("q1", "b", 2, "dev"),  # before its query and passage
        *passages,
        Query("q1", "what is two?"),
        Query("q2", "nobody judged me"),
        Qrel("q1", "a", 0, "dev"),
    )
    assert list(data.passages()) == passages
    assert data.queries() == [Query("q1", "what is two?"), Query("q2", "nobody judged me")]
    assert data.qrels("dev") == [Qrel("q1", "a", 0, "dev"), Qrel("q1", "b", 2, "dev")]
    counts = data.manifest["counts"]
    assert counts["passages"] == 2
    assert counts["qrels"] == {"dev": 2}
    assert counts["labelled_queries"] == {"dev": 1}
    assert counts["unlabelled_queries"] == 1
    assert data.manifest["source"] == {"name": "test"}
    assert data.manifest["fields"] == {
        "lang": {"type": "keyword", "values": 1},
        "year": {"type": "integer", "values": 1},
    }
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "manifest.json",
        "merged.jsonl",
        "passages.parquet",
        "qrels.parquet",
        "queries.parquet",
        "rejected.jsonl",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_identical_passages_are_merged_and_judgements_follow(tmp_path: Path) -> None:
    data = write(
        tmp_path / "data",
        Passage("first", "the  same\ttext", "T"),
        Passage("second", " the  same\ttext\n", "T", "http://second"),
        Passage("third", "the  same\ttext", "another title"),
        Passage("fourth", "the same text", "T"),
        Query("q", "same?"),
        Qrel("q", "second", 1, "train"),
        Qrel("q", "first", 3, "train"),
    )
    assert [p.passage_id for p in data.passages()] == ["first", "third", "fourth"]
    assert data.qrels("train") == [Qrel("q", "first", 3, "train")]
    assert data.manifest["counts"]["merged"] == 1
    assert data.manifest["counts"]["merged_qrels"] == 1
    merged = jsonl(data.path / "merged.jsonl")
    assert merged[0] == {
        "merged": "second",
        "into": "first",
        "where": "test:2",
        "url": "http://second",
        "fields": {},
    }
    assert (merged[1]["merged"], merged[1]["into"]) == ("q first", "q first")


def test_what_cannot_be_used_is_set_aside_with_reason_and_place(tmp_path: Path) -> None:
    data = write(
        tmp_path / "data",
        Passage("a", "kept"),
        Passage("b", " \0 \n"),
        Passage("c", 7),  # type: ignore[arg-type]
        Passage("a", "other text under the same id"),
        Passage("d", None),  # type: ignore[arg-type]
        Query("q", "kept"),
        Query("r", "   "),
        Query("q", "other query under the same id"),
        Qrel("q", "a", 1, "train"),
        Qrel("q", "b", 1, "train"),
        Qrel("r", "a", 1, "train"),
        Qrel("q", "a", "high", "train"),  # type: ignore[arg-type]
        Qrel("q", "a", 2**40, "train"),
    )
    rejected = [(row["reason"], row["where"]) for row in jsonl(data.path / "rejected.jsonl")]
    assert rejected == [
        ("passage: empty text", "test:2"),
        ("passage: text is not a string", "test:3"),
        ("passage: its id belongs to another passage", "test:4"),
        ("passage: empty text", "test:5"),
        ("query: empty text", "test:7"),
        ("query: its id belongs to another query", "test:8"),
        ("judgement: relevance is not an integer", "test:12"),
        ("judgement: relevance out of range", "test:13"),
        ("judgement: unknown passage", "test:10"),
        ("judgement: unknown query", "test:11"),
    ]
    assert sum(data.manifest["counts"]["rejected"].values()) == 10
    assert data.manifest["counts"]["rejected"]["passage: empty text"] == 2
    assert jsonl(data.path / "rejected.jsonl")[2]["row"]["text"] == "other text under the same id"
    assert data.qrels("train") == [Qrel("q", "a", 1, "train")]


def test_passages_and_queries_without_id_get_a_stable_one(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "data", source="test") as writer:
        first = writer.add_passage(Passage("", "some text"))
        assert writer.add_passage(Passage("", "some text ")) == first
        assert writer.add_passage(Passage("", "some other text")) != first
        query = writer.add_query(Query("", "some query"))
        assert writer.add_query(Query("", "some query")) == query
        assert writer.add_passage(Passage("", "")) is None
        assert writer.add_query(Query("", "")) is None
    # Title, NUL, text: ids must not change from one version to the next.
    assert first == "p" + hashlib.blake2b(b"\0some text", digest_size=16).hexdigest()[:20]
    assert writer.counts["queries"] == 1


def test_nul_and_lone_surrogates_are_cleaned(tmp_path: Path) -> None:
    hostile = Passage(
        "i\0d", "a\0b \ud800 c", "\udfff", "u\0", {"k\0": "\ud83d", "n": float("nan")}
    )
    data = write(tmp_path / "data", hostile, Query("q\0", "\ud83d\ude00?"), Qrel("q", "id", 1, "t"))
    assert list(data.passages()) == [Passage("id", "ab \ufffd c", "\ufffd", "u", {"k": "\ufffd"})]
    assert data.queries("t") == [Query("q", "😀?")]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=[])), min_size=1, max_size=8))
def test_any_text_survives_the_round_trip(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        records = [Passage(str(n), text) for n, text in enumerate(texts)]
        data = write(Path(folder) / "data", Passage("x", "never empty, never drawn"), *records)
        stored = {p.passage_id: p.text for p in data.passages()}
        merged = {row["merged"]: row["into"] for row in jsonl(data.path / "merged.jsonl")}
        rejected = {row["row"]["passage_id"] for row in jsonl(data.path / "rejected.jsonl")}
        assert len(stored) + len(merged) + len(rejected) == len(texts) + 1
        for number, text in enumerate(texts):
            name, plain = str(number), text.replace("\0", "").strip()
            if name in merged:
                other = texts[int(merged[name])].replace("\0", "")
                assert clean(other).split() == clean(plain).split()
            elif name in rejected:
                assert not plain
            elif not any("\ud800" <= char <= "\udfff" for char in plain):
                assert stored[name] == plain


def test_reserved_names_and_odd_values_in_fields(tmp_path: Path) -> None:
    fields = {"text": "x", "tags": ["a", "b"], "deep": {"k": (1, 2)}, "empty": "", "none": None}
    data = write(tmp_path / "data", Passage("a", "t", fields=fields), Passage("b", "u"))
    assert [dict(p.fields) for p in data.passages()] == [
        {"deep": {"k": [1, 2]}, "source_text": "x", "tags": ["a", "b"]},
        {},
    ]
    assert data.manifest["fields"]["tags"] == {"type": "keyword", "values": 2}
    assert data.manifest["fields"]["deep"]["type"] == "object"


def test_reserved_names_are_those_of_the_payload() -> None:
    assert set(schema.RESERVED) == RESERVED


def test_hash_depends_on_content_only(tmp_path: Path) -> None:
    records = (Passage("a", "x"), Query("q", "y"), Qrel("q", "a", 1, "t"))
    first = write(tmp_path / "one", *records)
    again = write(tmp_path / "two", *reversed(records))
    assert first.content_hash == again.content_hash
    changed = [
        (Passage("a", "x."), *records[1:]),
        (Passage("a", "x", url="u"), *records[1:]),
        (Passage("a", "x", fields={"k": 1}), *records[1:]),
        (*records[:2], Qrel("q", "a", 2, "t")),
        (*records[:2], Qrel("q", "a", 1, "u")),
        (records[0], Query("q", "z"), records[2]),
    ]
    hashes = {write(tmp_path / str(n), *c).content_hash for n, c in enumerate(changed)}
    assert len(hashes | {first.content_hash}) == 7


def test_dev_is_cut_from_train_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    queries = [Query(str(n), f"query {n}") for n in range(1000)]
    qrels = [Qrel(str(n), "a", 1, "train") for n in range(1000)]
    base = (Passage("a", "x"), *queries, *qrels)
    cut = write(tmp_path / "cut", *base, dev_fraction=0.1)
    dev = {q.query_id for q in cut.queries("dev")}
    # Binomial(1000, 0.1): mean 100, standard deviation 9.5.
    assert 60 < len(dev) < 140
    assert dev == {str(n) for n in range(1000) if is_dev(str(n), 0.1)}
    assert cut.manifest["counts"]["qrels"] == {"dev": len(dev), "train": 1000 - len(dev)}
    assert dev < {q for q in map(str, range(1000)) if is_dev(q, 0.2)}
    has_test = write(tmp_path / "test", *base, Qrel("1", "a", 1, "test"), dev_fraction=0.1)
    assert has_test.splits == ["test", "train"]
    assert write(tmp_path / "whole", *base).splits == ["train"]


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "deep" / "data", source="test")
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt(writer.add_passage(Passage("a", "x")))
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"cannot be written .*No space"),
        DatasetWriter(tmp_path / "data", source="test"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_no_passage_and_no_usable_judgement_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gave no passage \(1 x passage: empty.*test:1\)"):
        write(tmp_path / "data", Passage("a", ""))
    with pytest.raises(DataError, match=r"no judgement .*1 x judgement: unknown passage"):
        write(tmp_path / "data", Passage("a", "x"), Query("q", "y"), Qrel("q", "z", 1, "t"))
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_replace_what_is_there(tmp_path: Path) -> None:
    data = write(tmp_path / "data", Passage("a", "old"))
    with pytest.raises(DataError, match="already holds DATA; replace it with --force"):
        DatasetWriter(data.path, source="test")
    write(data.path, Passage("a", "new"), overwrite=True)
    assert [p.text for p in Dataset.open(data.path).passages()] == ["new"]

    (data.path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"something else than DATA .*notes\.txt"):
        DatasetWriter(data.path, source="test", overwrite=True)
    home = tmp_path / "home"
    home.mkdir()
    (home / "passages.parquet").touch()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        DatasetWriter(home, source="test", overwrite=True)
    with pytest.raises(DataError, match="is a file"):
        DatasetWriter(home / "passages.parquet", source="test", overwrite=True)
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", Passage("a", "x")).passage_count == 1


def test_a_failed_replacement_keeps_the_old(tmp_path: Path) -> None:
    data = write(tmp_path / "data", Passage("a", "old"))
    with pytest.raises(DataError):
        write(data.path, Passage("a", ""), overwrite=True)
    assert [p.text for p in Dataset.open(data.path).passages()] == ["old"]


def test_a_second_writer_is_refused_and_a_killed_one_is_cleaned_up(tmp_path: Path) -> None:
    program = (
        "import sys, time; from two_tower.ingest.dataset.writer import DatasetWriter; "
        "writer = DatasetWriter(sys.argv[1], source='test').__enter__(); "
        "print('open', flush=True); time.sleep(60)"
    )
    path = tmp_path / "data"
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(DataError, match="another process is writing"):
            write(path, Passage("a", "x"))
        other.send_signal(signal.SIGKILL)
    assert [p.name for p in tmp_path.iterdir()] == [".data.partial"]
    assert write(path, Passage("a", "x")).passage_count == 1
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_large_texts_are_cut_into_row_groups(tmp_path: Path) -> None:
    texts = [f"{n} " + "x" * 3_000_000 for n in range(12)]
    data = write(tmp_path / "data", *(Passage(str(n), text) for n, text in enumerate(texts)))
    assert [p.text for p in data.passages()] == texts
    # 16 million characters close a group: 6 texts of 3 million.
    assert pq.ParquetFile(data.path / "passages.parquet").num_row_groups == 2


@pytest.mark.parametrize("name", ["passages.parquet", "foreign.parquet"])
def test_what_was_read_is_let_go(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = 1000
    with pq.ParquetWriter(path, PASSAGES, compression="none", use_dictionary=False) as writer:
        for group in range(20):
            columns = [[f"{c}-{group}-{row}" for row in range(rows)] for c in PASSAGES.names]
            columns[2] = [f"{value} " * 50 for value in columns[2]]
            writer.write_table(pa.table(columns, schema=PASSAGES))
    read = read_rows if name == "passages.parquet" else read_parquet
    before = pa.total_allocated_bytes()
    for number, _ in enumerate(read(path)):
        if number == 18 * rows:
            assert pa.total_allocated_bytes() - before < path.stat().st_size / 5
    assert number == 20 * rows - 1
