"""One content in the many forms of foreign files: each reader finds the same, or says why not."""

import csv
import datetime
import gzip
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import two_tower
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.choose import open_source
from two_tower.ingest.sources.splits import split_of_file
from two_tower.ingest.sources.values import as_id, as_integer, as_mark, as_text
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.models.errors import DataError
from two_tower.retriever.evaluation.systems import run_system

ROWS = [
    {"query": "how long do cats live", "text": "A cat, an old one, lives for twenty years"},
    {"query": "où est le café", "text": 'Le café "du coin"; au bout | de la rue'},
    {"query": "猫の寿命", "text": "平均寿命は\t12年です"},
    {"query": "two lines", "text": "first line\nsecond line"},
]

Notes = list[str]


def prepare(spec: Path, out: Path, **options: Any) -> tuple[Dataset, Notes]:
    source = open_source(str(spec), **options)
    with DatasetWriter(out, source=source.name, details=source.details) as writer:
        source.write_to(writer)
    return Dataset.open(out), writer.notes


def prepare_with_queries(spec: Path, out: Path, queries: Path, *, merge: bool = False) -> Dataset:
    return two_tower.prepare(spec, out, queries=queries, merge=merge, dev_fraction=0.0)


def pairs(data: Dataset) -> list[tuple[str, str]]:
    texts = {p.passage_id: p.text for p in data.passages()}
    queries = {q.query_id: q.text for q in data.queries()}
    return sorted(
        (queries[q.query_id], texts[q.passage_id])
        for split in data.splits
        for q in data.qrels(split)
    )


def expected_pairs(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    return sorted((row["query"], row["text"].strip()) for row in rows)


def as_csv(delimiter: str, *, newline: str = "\n", quoting: int = csv.QUOTE_MINIMAL) -> str:
    out = io.StringIO(newline="")
    table = csv.writer(out, delimiter=delimiter, lineterminator=newline, quoting=quoting)  # type: ignore[arg-type]
    table.writerows([["query", "text"], *(list(row.values()) for row in ROWS)])
    return out.getvalue()


JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
FORMS: dict[str, tuple[str, bytes]] = {
    "comma": ("x.csv", as_csv(",").encode()),
    "semicolon": ("x.csv", as_csv(";").encode()),
    "tab in .csv": ("x.csv", as_csv("\t").encode()),
    "bar": ("x.csv", as_csv("|").encode()),
    "sep=": ("x.csv", ("sep=|\r\n" + as_csv("|", newline="\r\n")).encode()),
    "sep= semicolon": ("x.csv", ("sep=;\n" + as_csv(";")).encode()),
    "all quoted": ("x.csv", as_csv(",", quoting=csv.QUOTE_ALL).encode()),
    "tsv": ("x.tsv", as_csv("\t").encode()),
    "tsv all quoted": ("x.tsv", as_csv("\t", quoting=csv.QUOTE_ALL).encode()),
    "tab": ("x.tab", as_csv("\t").encode()),
    "capitals": ("X.CSV", as_csv(",").encode()),
    "capitals gz": ("X.Tsv.GZ", gzip.compress(as_csv("\t").encode())),
    "gz without suffix": ("x.csv", gzip.compress(as_csv(",").encode())),
    "cr": ("x.csv", as_csv(",", newline="\r", quoting=csv.QUOTE_ALL).encode()),
    "cr tsv": ("x.tsv", as_csv("\t", newline="\r", quoting=csv.QUOTE_ALL).encode()),
    "crlf": ("x.csv", as_csv(",", newline="\r\n").encode()),
    "bom": ("x.csv", b"\xef\xbb\xbf" + as_csv(",").encode()),
    "utf-16 csv": ("x.csv", as_csv(",").encode("utf-16")),
    "utf-16 big": ("x.tsv", b"\xfe\xff" + as_csv("\t").encode("utf-16-be")),
    "utf-16 without mark": ("x.csv", as_csv(",").encode("utf-16-le")),
    "blank lines": ("x.csv", ("\n\n" + as_csv(",") + "\n\n").encode()),
    "jsonl": ("x.jsonl", JSONL.encode()),
    "ndjson": ("x.ndjson", JSONL.encode()),
    "jsonl bom": ("x.jsonl", b"\xef\xbb\xbf" + JSONL.encode()),
    "jsonl utf-16": ("x.JSONL", JSONL.encode("utf-16")),
    "jsonl utf-16 without mark": ("x.jsonl", JSONL.encode("utf-16-be")),
    "jsonl utf-32": ("x.jsonl", JSONL.encode("utf-32")),
    "jsonl cr": ("x.jsonl", JSONL.replace("\n", "\r").encode()),
    "array": ("x.json", json.dumps(ROWS).encode()),
    "array in .jsonl": ("x.jsonl", json.dumps(ROWS, indent=2).encode()),
    "array gz": ("x.json.gz", gzip.compress(json.dumps(ROWS).encode())),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_is_the_same(tmp_path: Path, form: str) -> None:
    name, content = FORMS[form]
    (tmp_path / name).write_bytes(content)
    data, notes = prepare(tmp_path / name, tmp_path / "data")
    found = [(q, t.replace("\r\n", "\n").replace("\r", "\n")) for q, t in pairs(data)]
    assert found == expected_pairs(ROWS)
    assert not data.manifest["counts"]["rejected"]
    assert not notes


@pytest.mark.parametrize("end", ["parquet", "Parquet", "arrow"])
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_every_form_of_columns_is_the_same(tmp_path: Path, end: str, kind: str) -> None:
    file, table = tmp_path / f"x.{end}", pa.Table.from_pylist(ROWS)
    if end == "arrow":
        new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with new(str(file), table.schema) as out:
            out.write_table(table, max_chunksize=3)
    else:
        pq.write_table(table, file)
    data, _ = prepare(file, tmp_path / "data")
    assert pairs(data) == expected_pairs(ROWS)


CELLS = {  # what the cell of an unquoted TSV file may begin with or hold
    "a quote": '"The bomb" and its project',
    "an open quote": '"An open quote that never ends',
    "another": '"Second open quote here',
    "inches": '5 feet 10" tall',
    "doubled": '"quoted" start and ""double"" inside',
    "a lone quote": '"',
    "an end": 'the end"',
}


@pytest.mark.parametrize("name", ["x.tsv", "x.tab", "x.csv", "x.tsv.gz"])
@pytest.mark.parametrize("columns", [2, 3])
def test_an_unquoted_tab_separated_file_keeps_every_row(
    tmp_path: Path, name: str, columns: int
) -> None:
    rows = [
        ["query", "text", "note"],
        *([f"question {n}", cell, "n"] for n, cell in enumerate(CELLS.values())),
    ]
    text = "".join("\t".join(row[:columns]) + "\n" for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    data, _ = prepare(tmp_path / name, tmp_path / "data")
    assert pairs(data) == sorted((f"question {n}", cell) for n, cell in enumerate(CELLS.values()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('query,text\na,"open\nb,c\n', r"x\.csv:2 is not CSV .*quote left open"),
        ('query,text\na,b\nc,"open\nd,"e\n', r"x\.csv:3 is not CSV .*quote left open"),
        ("text,text\na,b\n", "two columns named 'text'"),
        ("text, text\na,b\n", "two columns named 'text'"),
        ("query\x00text\n", "no column named"),
    ],
)
def test_a_table_that_would_lose_rows_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        prepare(tmp_path / "x.csv", tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_two_columns_of_one_name_in_parquet_are_one_line(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, ["text", "text"]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="two columns named 'text'"):
        prepare(tmp_path / "x.parquet", tmp_path / "data")


SPLITS = {
    "train-00000-of-00001.parquet": "train",
    "validation-00000-of-00002.parquet": "dev",
    "test-00000-of-00001.parquet": "test",
    "my_dev.jsonl": "dev",
    "quora.test.csv": "test",
    "Training.tsv": "train",
    "val.csv.gz": "dev",
    "evaluation.jsonl": "test",
    "validation/part-1.parquet": "dev",
    "data/test/data-00000-of-00001.arrow": "test",
    "test/train.jsonl": "train",
    "latest.csv": None,
    "contest/rows.csv": None,
    "train-test.csv": None,
    "part-1.jsonl": None,
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits_of_files(tmp_path: Path, name: str) -> None:
    assert split_of_file(tmp_path / name, inside=tmp_path) == SPLITS[name]
    assert split_of_file(tmp_path / "test" / name, inside=tmp_path / "test") == SPLITS[name]


MARCO = {"passage_text": ["a {}", "b {}"], "url": ["", ""], "is_selected": [0, 1]}


@pytest.mark.parametrize("kind", ["pairs", "ms_marco"])
@pytest.mark.parametrize("end", ["jsonl", "parquet", "arrow"])
def test_a_folder_of_the_hub_and_of_save_to_disk(tmp_path: Path, kind: str, end: str) -> None:
    folder = tmp_path / "in"
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        rows: list[Any] = [
            {"question": f"{split} {n}", "answer": f"{split} a {n}"} for n in range(count)
        ]
        if kind == "ms_marco":
            texts = [
                {**MARCO, "passage_text": [t.format(f"{split}{n}") for t in MARCO["passage_text"]]}
                for n in range(count)
            ]  # type: ignore[attr-defined]
            rows = [
                {"query": f"{split} {n}", "query_id": f"{split}{n}", "passages": p}
                for n, p in enumerate(texts)
            ]
        write_table(folder / split / f"data-00000-of-00001.{end}", rows)
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (folder / "README.md").write_text("about")
    (folder / ".hidden.jsonl").write_text("rubbish")
    data, notes = prepare(folder, tmp_path / "data")
    assert data.manifest["counts"]["qrels"] == {"dev": 2, "test": 1, "train": 3}
    assert notes == ["not read: README.md"]


def write_table(file: Path, rows: list[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(file), table.schema) as out:
            out.write_table(table)


def test_a_file_without_a_split_in_its_name_is_named(tmp_path: Path) -> None:
    for name in ("test.jsonl", "part-1.jsonl", "part-2.jsonl"):
        write_table(tmp_path / "in" / name, [{"query": name, "text": name}])
    data, notes = prepare(tmp_path / "in", tmp_path / "data")
    assert data.manifest["counts"]["qrels"] == {"test": 1, "train": 2}
    assert len(notes) == 1
    assert notes[0].startswith("part-1.jsonl, part-2.jsonl say no split")


MARKS = {
    True: [1, True, "1", "true", "True", 1.0, "1.0", np.int64(1)],
    False: [0, False, "0", "false", "FALSE", 0.0],
    None: [-1, "-1", None, float("nan"), "", -1.0],
}


@pytest.mark.parametrize("mark", [(k, v) for k, values in MARKS.items() for v in values])
def test_spellings_of_a_mark(mark: tuple[bool | None, Any]) -> None:
    assert as_mark(mark[1]) is mark[0]


@pytest.mark.parametrize("value", [1, True, "1", "true", 1.0])
def test_spellings_of_a_mark_in_every_reader_of_rows(tmp_path: Path, value: Any) -> None:
    passages = {"passage_text": ["a", "b", "c"], "url": None, "is_selected": [value, 0, -1]}
    write_table(tmp_path / "m.jsonl", [{"query": "q", "query_id": 1, "passages": passages}])
    rows = [
        {"query": "q", "text": t, "label": m} for t, m in (("a", value), ("b", 0), ("c", "false"))
    ]
    write_table(tmp_path / "t.jsonl", rows)
    for name in ("m", "t"):
        data, _ = prepare(tmp_path / f"{name}.jsonl", tmp_path / name)
        (answer,) = (q for q in data.qrels("train") if q.relevance > 0)
        assert {p.passage_id: p.text for p in data.passages()}[answer.passage_id] == "a"


@pytest.mark.parametrize("hidden", [-1, "-1", None])
def test_a_split_that_hides_its_marks_says_so(tmp_path: Path, hidden: Any) -> None:
    for split, marks in (("train", [1, 0]), ("test", [hidden, hidden])):
        passages = {
            "passage_text": [f"{split} a", f"{split} b"],
            "url": ["", ""],
            "is_selected": marks,
        }
        rows = [{"query": f"{split} q", "query_id": split, "passages": passages}]
        write_table(tmp_path / "in" / f"{split}.jsonl", rows)
    data, notes = prepare(tmp_path / "in", tmp_path / "data")
    assert data.splits == ["train"]
    assert len(data.queries()) == 2
    assert notes[0].startswith("split test hides its judgements: in none of its 1 rows")


def test_a_table_whose_labels_are_all_hidden_says_so(tmp_path: Path) -> None:
    rows = [{"query": f"q{n}", "text": f"t{n}", "label": -1} for n in range(3)]
    write_table(tmp_path / "test.jsonl", rows)
    data, notes = prepare(tmp_path / "test.jsonl", tmp_path / "data")
    assert data.manifest["counts"]["labelled_queries"] == {}
    assert notes == ["split test has 3 judgements, none of them above 0: there is no answer in it"]


MISSING = [None, float("nan"), np.float64("nan"), np.datetime64("NaT")]


@pytest.mark.parametrize("value", MISSING)
def test_what_is_missing_is_empty(value: Any) -> None:
    assert (as_id(value), as_text(value)) == ("", "")
    assert not isinstance(as_integer(value), int)


@pytest.mark.parametrize("value", [None, float("nan")])
@pytest.mark.parametrize("end", ["jsonl", "parquet", "arrow"])
def test_missing_values_in_every_reader(tmp_path: Path, value: Any, end: str) -> None:
    kinds = {"title": 1.5, "url": 1.5, "pid": 2.5, "qid": 3.5, "when": 1.5}
    row = dict.fromkeys(kinds, value)
    rows = [{"query": f"q{n}", "text": f"t{n}", **row} for n in range(3)]
    if end != "jsonl":
        rows.append({"query": "q3", "text": "t3", **kinds})  # so that the columns are of floats
    write_table(tmp_path / f"x.{end}", rows)
    data, _ = prepare(tmp_path / f"x.{end}", tmp_path / "data")
    some = [p for p in data.passages() if p.text != "t3"]
    assert [(p.title, p.url, p.fields, p.passage_id[0]) for p in some] == [("", "", {}, "p")] * 3
    assert len({p.passage_id for p in some}) == 3


@pytest.mark.parametrize("end", ["parquet", "arrow"])
def test_values_that_python_cannot_hold_are_text(tmp_path: Path, end: str) -> None:
    table = pa.table(
        {
            "text": ["a", "b"],
            "day": pa.array([10**7, 0], pa.date32()),
            "time": pa.array([253_402_300_800_000_000, 0], pa.timestamp("us")),
            "days": pa.array([[10**7], None], pa.list_(pa.date32())),
            "fine": pa.array([1, 0], pa.timestamp("ns")),
        }
    )
    file = tmp_path / f"x.{end}"
    if end == "parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_file(str(file), table.schema) as out:
            out.write_table(table)
    data, _ = prepare(file, tmp_path / "data")
    first, second = data.passages()
    assert first.fields["day"] == "29349-01-26"
    assert first.fields["days"] == ["29349-01-26"]
    assert first.fields["time"].startswith("10000-01-01")
    assert second.fields["day"] == str(datetime.date(1970, 1, 1))


def corpus_rows() -> list[dict[str, Any]]:
    return [{"_id": f"d{n}", "title": "", "text": f"passage {n}"} for n in range(4)]


QUERIES = [{"_id": f"q{n}", "text": f"question {n}"} for n in range(3)]
QRELS = [("q0", "d0", 1), ("q1", "d2", 2), ("q2", "d3", 0)]
HEADER = ("query-id", "corpus-id", "score")


def lines(rows: Any, delimiter: str = "\t") -> str:
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def objects(*names: str) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in QRELS]


def write_objects(names: tuple[str, ...]) -> Callable[[Path], None]:
    return lambda file: write_table(file, objects(*names))


def write_lines(text: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)

    return write


TREC = [(q, 0, d, s) for q, d, s in QRELS]
JUDGEMENTS: Mapping[str, Callable[[Path], None]] = {
    "qrels/test.tsv": write_lines(lines([HEADER, *QRELS])),
    "qrels/test.tsv.gz": write_lines(lines(QRELS)),
    "qrels/test.txt": write_lines(lines(QRELS, " ")),
    "qrels/test.csv": write_lines(lines([HEADER, *QRELS], ",")),
    "qrels/test": write_lines(lines(TREC, " ")),
    "qrels/test.trec": write_lines(lines(TREC, "  ")),
    "qrels/test.jsonl": write_objects(HEADER),
    "qrels/test-00000-of-00001.parquet": write_objects(HEADER),
    "qrels/test/data-00000-of-00001.arrow": write_objects(("qid", "pid", "relevance")),
    "qrels.test.tsv": write_lines(lines(TREC)),
    "qrels_test.jsonl": write_objects(("query_id", "corpus_id", "score")),
    "test.qrels": write_lines(lines(TREC, " ")),
    "test.jsonl": write_objects(HEADER),
    "default/test-00000-of-00001.parquet": write_objects(("query_id", "doc_id", "label")),
    "qrels/test.tsv reordered": write_lines(
        lines([("score", *HEADER[:2]), *((s, q, d) for q, d, s in QRELS)])
    ),
}


@pytest.mark.parametrize("form", JUDGEMENTS)
def test_every_form_of_judgements(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "in"
    write_table(folder / "corpus.jsonl", corpus_rows())
    write_table(folder / "queries.jsonl", QUERIES)
    JUDGEMENTS[form](folder / form.split()[0])
    data, notes = prepare(folder, tmp_path / "data")
    assert data.qrels("test") == [Qrel(*row, "test") for row in QRELS]
    assert not data.manifest["counts"]["rejected"]
    assert not notes


def test_a_fractional_first_score_is_no_header(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_table(folder / "corpus.jsonl", corpus_rows())
    write_table(folder / "queries.jsonl", QUERIES)
    write_lines("q0\td0\t0.5\nq1\td1\t1.0\n")(folder / "qrels" / "dev.tsv")
    data, _ = prepare(folder, tmp_path / "data")
    assert data.qrels("dev") == [Qrel("q1", "d1", 1, "dev")]
    assert data.manifest["counts"]["rejected"] == {"judgement: relevance is not an integer": 1}


def test_the_files_of_ms_marco(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_lines(lines([(f"d{n}", f'"passage {n}') for n in range(4)]))(folder / "collection.tsv")
    write_lines(lines((q["_id"], q["text"]) for q in QUERIES))(folder / "queries.dev.small.tsv")
    write_lines(lines(TREC))(folder / "qrels.dev.small.tsv")
    data, notes = prepare(folder, tmp_path / "data")
    assert list(data.passages()) == [Passage(f"d{n}", f'"passage {n}') for n in range(4)]
    assert data.qrels("dev") == [Qrel(*row, "dev") for row in QRELS]
    assert not notes


@pytest.mark.parametrize("end", ["jsonl", "parquet", "arrow"])
def test_a_beir_dataset_of_the_hub(tmp_path: Path, end: str) -> None:
    folder = tmp_path / "in"
    write_table(folder / "corpus" / f"corpus-00000-of-00001.{end}", corpus_rows())
    write_table(folder / "queries" / f"queries-00000-of-00001.{end}", QUERIES)
    write_table(folder / "qrels" / f"validation.{end}", objects(*HEADER))
    data, notes = prepare(folder, tmp_path / "data")
    assert data.qrels("dev") == [Qrel(*row, "dev") for row in QRELS]
    assert not notes


def test_what_a_folder_has_beside_them_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_table(folder / "corpus.jsonl", corpus_rows())
    for number in range(7):
        (folder / f"note{number}.md").write_text("x")
    _, notes = prepare(folder, tmp_path / "data")
    assert notes == ["not read: note0.md, note1.md, note2.md, note3.md, note4.md and 2 more"]


TRIPLETS: Mapping[str, list[dict[str, Any]]] = {
    "columns": [{"anchor": "q", "positive": "yes", "negative": "no", "negative_2": "never"}],
    "lists": [{"query": "q", "pos": ["yes"], "neg": ["no", "never"]}],
    "objects": [
        {
            "question": "q",
            "positive_ctxs": [{"title": "", "text": "yes"}],
            "hard_negative_ctxs": [{"text": "no"}, {"text": "never"}],
        }
    ],
}


@pytest.mark.parametrize("form", TRIPLETS)
@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_negatives_beside_a_positive(tmp_path: Path, form: str, end: str) -> None:
    write_table(tmp_path / f"x.{end}", TRIPLETS[form])
    data, _ = prepare(tmp_path / f"x.{end}", tmp_path / "data")
    texts = {p.passage_id: p.text for p in data.passages()}
    relevances = {texts[q.passage_id]: q.relevance for q in data.qrels("train")}
    assert relevances == {"yes": 1, "no": 0, "never": 0}


MARCO_TRIPLES = [
    ("how long do cats live", "A cat lives twenty years.", '"Cats" is a musical'),
    ("how long do cats live", "A cat lives twenty years.", "Dogs bark, at times."),
    ("do dogs bark", "Dogs bark, at times.", "A cat lives twenty years."),
]


@pytest.mark.parametrize(
    "name",
    ["triples.train.small.tsv", "triples.tsv.gz", "my-triples.tab", "x/train_triplets.tsv"],
)
@pytest.mark.parametrize("has_header", [False, True])
def test_triples_of_texts_need_no_header(tmp_path: Path, name: str, has_header: bool) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    text = lines([*([("query", "positive", "negative")] if has_header else []), *MARCO_TRIPLES])
    file.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    data, notes = prepare(tmp_path / name.split("/")[0], tmp_path / "data")
    texts = {p.passage_id: p.text for p in data.passages()}
    queries = {q.query_id: q.text for q in data.queries()}
    judged = {(queries[q.query_id], texts[q.passage_id], q.relevance) for q in data.qrels("train")}
    yes = {(query, positive, 1) for query, positive, _ in MARCO_TRIPLES}
    no = {(query, negative, 0) for query, _, negative in MARCO_TRIPLES}
    assert judged == yes | no
    assert not notes


@pytest.mark.parametrize(
    "name", ["qidpidtriples.train.full.2.tsv", "qidpidtriples.tsv.gz", "triples.train.tsv"]
)
@pytest.mark.parametrize("header", ["", "qid\tpos_id\tneg_id\n"])
def test_triples_of_ids_beside_collection_and_queries(
    tmp_path: Path, name: str, header: str
) -> None:
    folder = tmp_path / "in"
    write_lines(lines([(n, f"passage {n}") for n in range(4)]))(folder / "collection.tsv")
    write_lines(lines([(n, f"query {n}") for n in range(2)]))(folder / "queries.train.tsv")
    write_lines(header + lines([(0, 0, 1), (0, 0, 2), (1, 3, 0), (1, 3, 9)]))(folder / name)
    data, notes = prepare(folder, tmp_path / "data")
    expected = {("0", "0", 1), ("0", "1", 0), ("0", "2", 0), ("1", "3", 1), ("1", "0", 0)}
    assert {qrel[:3] for qrel in data.qrels("train")} == expected
    assert data.manifest["counts"]["rejected"] == {"judgement: unknown passage": 1}
    assert not notes


@pytest.mark.parametrize("depth", [1_000_000])
def test_json_that_is_too_deep_is_called_that(tmp_path: Path, depth: int) -> None:
    row = '{"query": "q", "text": "t", "x": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / "x.jsonl").write_text(JSONL + row + "\n{\n")
    data, _ = prepare(tmp_path / "x.jsonl", tmp_path / "data")
    reasons = {"row: nested too deep to be read": 1, "row: not JSON": 1}
    assert data.manifest["counts"]["rejected"] == reasons
    assert len(pairs(data)) == len(ROWS)


def test_triples_of_ids_alone_are_one_line(tmp_path: Path) -> None:
    write_lines(lines([(1, 2, 3)]))(tmp_path / "qidpidtriples.train.small.tsv")
    with pytest.raises(DataError, match=r"ids of queries and passages .* beside collection\.tsv"):
        prepare(tmp_path / "qidpidtriples.train.small.tsv", tmp_path / "data")


@pytest.mark.parametrize("name", ["collection.tsv", "collection.tsv.gz", "corpus.part-1.tsv"])
def test_a_collection_alone_needs_no_header(tmp_path: Path, name: str) -> None:
    write_lines(lines([(n, f"passage {n}") for n in range(3)]))(tmp_path / name)
    write_lines(lines([(n, f"query {n}") for n in range(2)]))(tmp_path / "queries.dev.tsv")
    data = prepare_with_queries(tmp_path / name, tmp_path / "data", tmp_path / "queries.dev.tsv")
    assert list(data.passages()) == [Passage(f"{n}", f"passage {n}") for n in range(3)]
    assert data.queries() == [Query(f"{n}", f"query {n}") for n in range(2)]


@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
def test_pairs_alone_are_rows_too(tmp_path: Path, end: str) -> None:
    rows = [
        {"query": "q1", "title": "", "text": "t1"},
        {"query": "q2", "title": "", "text": ""},
        {"query": "", "title": "", "text": "t3"},
        {"query": "q4", "title": "only a title", "text": ""},
    ]
    if end == "csv":
        text = lines([rows[0], *(row.values() for row in rows)], ",")
        (tmp_path / "x.csv").write_text(text)
    else:
        write_table(tmp_path / f"x.{end}", rows)
    data, _ = prepare(tmp_path / f"x.{end}", tmp_path / "data")
    assert [(p.title, p.text) for p in data.passages()] == [
        ("", "t1"),
        ("", "t3"),
        ("only a title", ""),
    ]
    assert [q.text for q in data.queries()] == ["q1", "q2", "q4"]
    assert len(data.qrels("train")) == 2
    assert not data.manifest["counts"]["rejected"]


PRODUCTS = [
    {"id": f"sku{n}", "text": "Cotton shirt", "brand": brand, "price": n}
    for n, brand in enumerate(["acme", "bolt", "core"])
]


@pytest.mark.parametrize("id_name", ["id", "passage_id", "_id", "docid", "PID", "doc-id", None])
@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
def test_equal_texts_with_other_fields_stay_apart(
    tmp_path: Path, id_name: str | None, end: str
) -> None:
    rows = [
        {(id_name if k == "id" else k): v for k, v in p.items() if id_name or k != "id"}
        for p in PRODUCTS
    ]
    rows.append(dict(rows[0]))  # a row that comes again is none
    file = tmp_path / f"x.{end}"
    if end == "csv":
        file.write_text(lines([rows[0], *(row.values() for row in rows)], ","))
    else:
        write_table(file, rows)
    data, _ = prepare(file, tmp_path / "data")
    assert [p.fields["brand"] for p in data.passages()] == ["acme", "bolt", "core"]
    assert data.manifest["counts"]["merged"] == 1
    if id_name:
        assert [p.passage_id for p in data.passages()] == ["sku0", "sku1", "sku2"]


def test_an_id_beside_queries_is_a_hint(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "query": "a?", "text": "same"},
        {"id": 2, "query": "b?", "text": "same"},
        {"id": 2, "query": "c?", "text": "other"},
    ]
    write_table(tmp_path / "x.jsonl", rows)
    data, _ = prepare(tmp_path / "x.jsonl", tmp_path / "data")
    assert [p.text for p in data.passages()] == ["same", "other"]
    assert next(data.passages()).passage_id == "1"
    assert len(data.qrels("train")) == 3


def write_products(folder: Path, kind: str) -> Path:
    """The products as a source of that kind; its path."""
    if kind == "beir":
        rows = [{("_id" if k == "id" else k): v for k, v in p.items()} for p in PRODUCTS]
        write_table(folder / "corpus.jsonl", rows)
    elif kind == "texts":
        for product in PRODUCTS:
            path = folder / str(product["id"]) / "shirt.txt"
            path.parent.mkdir(parents=True)
            path.write_text(product["text"])
    else:
        write_table(folder / f"x.{kind}", PRODUCTS)
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "beir", "texts"])
def test_passages_merge_on_request(tmp_path: Path, kind: str) -> None:
    source = write_products(tmp_path / "in", kind)
    ids = ["sku0", "sku1", "sku2"]
    if kind == "texts":
        ids = [f"{name}/shirt.txt" for name in ids]
    questions = tmp_path / "questions.jsonl"
    write_table(questions, [{"query": f"what is {id_}", "passage_id": id_} for id_ in ids])
    apart = prepare_with_queries(source, tmp_path / "apart", questions)
    assert [p.passage_id for p in apart.passages()] == ids
    assert apart.merged_ids() == {}
    data = prepare_with_queries(source, tmp_path / "data", questions, merge=True)
    assert [p.passage_id for p in data.passages()] == ids[:1]
    assert data.merged_ids() == dict.fromkeys(ids[1:], ids[0])
    assert [q.passage_id for q in data.qrels("train")] == ids[:1] * 3
    run = tmp_path / "other.trec"
    queries = {q.text: q.query_id for q in data.queries()}
    run.write_text("".join(f"{queries[f'what is {i}']} Q0 {i} 1 1 x\n" for i in ids))
    ranker = run_system(run, data, split="train").start()
    assert ranker.rank(data.queries("train"), 10) == [ids[:1]] * 3


def test_what_was_merged_is_known_where_documents_are_cut(tmp_path: Path) -> None:
    long = " ".join(f"word{n}" for n in range(30))
    rows = [
        *PRODUCTS,
        *({"id": f"long{n}", "text": long, "brand": "x", "price": n} for n in range(2)),
    ]
    write_table(tmp_path / "x.jsonl", rows)
    for merge, documents in ((True, 2), (False, 5)):
        two_tower.prepare(tmp_path / "x.jsonl", tmp_path / "d", merge=merge, force=True)
        data = two_tower.prepare(tmp_path / "d", tmp_path / "p", passage_words=20, force=True)
        names = {p.fields["document_id"] for p in data.passages()}
        assert len(names) == documents
        assert data.merged_ids() == ({"sku1": "sku0", "sku2": "sku0"} if merge else {})


NAMES = {
    "query": ["query", "question", "Question", "query_text"],
    "passage": [
        *("passage", "text", "Text", "answer", "answer_text", "document", "content", "context"),
        *("body", "contents"),
    ],
    "url": ["url", "link", "URL"],
    "passage_id": ["pid", "docid", "doc_id", "_id", "id", "passage-id", "Doc ID"],
    "query_id": ["qid", "query_id", "query-id"],
    "relevance": ["label", "score", "relevance"],
}


@pytest.mark.parametrize(("role", "name"), [(r, n) for r, names in NAMES.items() for n in names])
def test_usual_names_of_columns(tmp_path: Path, role: str, name: str) -> None:
    row = {"query": "q?", "passage": "a text", "url": "http://u", "passage_id": "p7"}
    row |= {"query_id": "q9", "relevance": "2"}
    named = {(name if r == role else r): value for r, value in row.items()}
    write_table(tmp_path / "x.jsonl", [named])
    data, _ = prepare(tmp_path / "x.jsonl", tmp_path / "data")
    assert list(data.passages()) == [Passage("p7", "a text", "", "http://u")]
    assert data.qrels("train") == [Qrel("q9", "p7", 2, "train")]


def test_scores_that_are_no_judgements_stay_a_field(tmp_path: Path) -> None:
    rows = [{"query": "q?", "text": f"t{n}", "score": n / 4} for n in range(4)]
    write_table(tmp_path / "x.jsonl", rows)
    data, _ = prepare(tmp_path / "x.jsonl", tmp_path / "data")
    assert [p.fields["score"] for p in data.passages()] == [0.0, 0.25, 0.5, 0.75]
    assert {q.relevance for q in data.qrels("train")} == {1}
