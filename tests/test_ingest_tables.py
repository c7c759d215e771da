import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.choose import open_source
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.models.errors import DataError


def prepare(spec: Path, out: Path, *, dev_fraction: float = 0.0, **options: Any) -> Dataset:
    source = open_source(str(spec), **options)
    with DatasetWriter(
        out, source=source.name, details=source.details, dev_fraction=dev_fraction
    ) as writer:
        source.write_to(writer)
    return Dataset.open(out)


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rejections(data: Dataset) -> list[tuple[str, str]]:
    lines = (data.path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["reason"], row["where"]) for row in map(json.loads, lines)]


PAIRS = [
    {"question": "what is a?", "answer": "a is a letter", "lang": "en", "label": 1},
    {"question": "what is a?", "answer": "b is a letter", "lang": "en", "label": 0},
    {"question": "was ist b?", "answer": "b is a letter", "lang": "de", "label": 1},
]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "tsv", "csv.gz", "parquet"])
def test_tables_of_each_kind_are_the_same(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"pairs.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(PAIRS), file)
    elif kind.startswith("jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()
        file.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    else:
        with gzip.open(file, "wt") if kind.endswith("gz") else file.open("w") as out:
            dialect = "excel-tab" if kind == "tsv" else "excel"
            table = csv.DictWriter(out, list(PAIRS[0]), dialect=dialect)
            table.writeheader()
            table.writerows(PAIRS)
    data = prepare(file, tmp_path / "data")
    assert [(p.text, p.fields) for p in data.passages()] == [
        ("a is a letter", {"lang": "en"}),
        ("b is a letter", {"lang": "en"}),
    ]
    queries = {q.query_id: q.text for q in data.queries()}
    texts = {p.passage_id: p.text for p in data.passages()}
    found = {(queries[q.query_id], texts[q.passage_id], q.relevance) for q in data.qrels("train")}
    assert found == {(row["question"], row["answer"], row["label"]) for row in PAIRS}


def test_named_columns_and_splits(tmp_path: Path) -> None:
    rows = [
        {"q": "one?", "p": "one", "t": "T", "u": "http://u", "pid": 5, "qi": 1.0, "part": "valid"},
        {"q": "two?", "p": "two", "t": None, "u": None, "pid": 6, "qi": 2.0, "part": "test"},
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    columns = {"query": "q", "passage": "p", "title": "t", "url": "u", "query_id": "qi"}
    data = prepare(file, tmp_path / "data", columns={**columns, "split": "part"})
    assert list(data.passages()) == [Passage("5", "one", "T", "http://u"), Passage("6", "two")]
    assert data.queries() == [Query("1", "one?"), Query("2", "two?")]
    assert data.qrels("dev") == [Qrel("1", "5", 1, "dev")]
    assert data.qrels("test") == [Qrel("2", "6", 1, "test")]


def test_a_folder_of_tables_takes_splits_from_file_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "train.jsonl", [{"query": "a?", "text": "a"}])
    write_jsonl(tmp_path / "in" / "validation.jsonl", [{"query": "b?", "text": "b"}])
    data = prepare(tmp_path / "in", tmp_path / "data")
    assert data.manifest["counts"]["qrels"] == {"dev": 1, "train": 1}


def test_a_table_without_queries_is_a_corpus(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "sports"}, {"text": "b", "label": "news"}]
    data = prepare(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "data")
    assert data.manifest["counts"]["queries"] == 0
    assert [p.fields for p in data.passages()] == [{"label": "sports"}, {"label": "news"}]


UNNAMED = [{"": n, "title": f"t{n}", "text": text} for n, text in enumerate(("one", "two"))]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "arrow"])
def test_a_column_without_a_name_is_no_query(tmp_path: Path, kind: str) -> None:
    """It is there where pandas writes its index."""
    file = tmp_path / f"x.{kind}"
    table = pa.Table.from_pylist(UNNAMED)
    if kind == "parquet":
        pq.write_table(table, file)
    elif kind == "arrow":
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    elif kind.startswith("json"):
        lines = "".join(json.dumps(row) + "\n" for row in UNNAMED)
        file.write_text(json.dumps(UNNAMED) if kind == "json" else lines)
    else:
        rows = [[*UNNAMED[0]], *([str(v) for v in row.values()] for row in UNNAMED)]
        file.write_text("".join(("\t" if kind == "tsv" else ",").join(r) + "\n" for r in rows))
    data = prepare(file, tmp_path / "data")
    assert [(p.title, p.text) for p in data.passages()] == [("t0", "one"), ("t1", "two")]
    assert data.manifest["counts"]["queries"] == 0


def test_bad_cells_are_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("query,text,label\na?,a,1\nb?,b\n,,1\n,d,1\nc?,,1\ne?,e,yes\n")
    data = prepare(file, tmp_path / "data")
    assert [p.text for p in data.passages()] == ["a", "d", "e"]
    assert rejections(data) == [
        ("row: number of cells differs from the header", "rows.csv:3"),
        ("passage: empty text", "rows.csv:4"),
        ("judgement: relevance is not an integer", "rows.csv:7"),
    ]
    assert [q.text for q in data.queries()] == ["a?", "c?", "e?"]


def test_an_open_quote_is_found(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text('text\nfine\n"never closed\n' + "word " * 4_000_000)
    with pytest.raises(DataError, match=r"x\.csv:\d+ is not CSV .*quote left open"):
        prepare(file, tmp_path / "data")


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    rows = [{"text": f"passage number {n}"} for n in range(5000)]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=500, compression="gzip")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"\xff" * 200
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet breaks after row \d+ \("):
        prepare(file, tmp_path / "data")
