import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.dataset import DatasetWriter
from ingest.python_docs import PythonDocs, as_query, split_docstring
from ingest.python_objects import SourceFile, documented_objects, stdlib_files
from ingest.sources import SourceOptions, open_source
from ingest.tables import Columns
from models.data import Dataset, Passage, Qrel, Query
from models.errors import ConfigError, DataError

NOTHING = SourceOptions()


def prepare(
    spec: Path, out: Path, options: SourceOptions = NOTHING, dev_fraction: float = 0.0
) -> Dataset:
    source = open_source(str(spec), options)
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


MARCO_ROWS = [
    {
        "query_id": 7,
        "query": "what is rba",
        "passages": {
            "is_selected": [0, 1],
            "passage_text": ["Not it.", "Results-Based Accountability."],
            "url": ["https://www.a.example/x", "http://b.example/y"],
        },
    },
    {
        "query_id": 8,
        "query": "nothing selected",
        "passages": {"is_selected": [0], "passage_text": ["Not it."], "url": ["http://c.example"]},
    },
    {
        "query_id": 9,
        "query": "lists differ",
        "passages": {"is_selected": [1, 0], "passage_text": ["one"], "url": ["http://d.example"]},
    },
    {
        "query_id": 10,
        "query": " ",
        "passages": {"is_selected": [1], "passage_text": [None], "url": ["http://[bad"]},
    },
]


def test_ms_marco_rows(tmp_path: Path) -> None:
    folder = tmp_path / "marco"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(MARCO_ROWS), folder / "train.parquet")
    row = {**MARCO_ROWS[0], "query_id": 70, "query": "rba meaning"}
    pq.write_table(pa.Table.from_pylist([row]), folder / "validation.parquet")
    data = prepare(folder, tmp_path / "data")
    texts = {p.text: p for p in data.passages()}
    assert list(texts) == ["Not it.", "Results-Based Accountability."]
    answer = texts["Results-Based Accountability."]
    assert texts["Not it."].fields == {"domain": "a.example"}
    assert answer.url == "http://b.example/y"
    assert data.queries() == [
        Query("7", "what is rba"),
        Query("8", "nothing selected"),
        Query("70", "rba meaning"),
    ]
    assert data.qrels("train") == [Qrel("7", answer.passage_id, 1, "train")]
    assert data.qrels("dev") == [Qrel("70", answer.passage_id, 1, "dev")]
    assert data.manifest["counts"]["unlabelled_queries"] == 1
    assert data.manifest["counts"]["merged"] == 3
    assert rejections(data) == [
        ("row: passages are not texts, urls and is_selected of one length", "train row 3"),
        ("query: empty text", "train row 4"),
        ("passage: empty text", "train row 4"),
    ]


def test_ms_marco_as_a_list_of_structs_is_the_same(tmp_path: Path) -> None:
    columns = MARCO_ROWS[0]["passages"]
    structs = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values())]  # noqa: B905
    pq.write_table(pa.Table.from_pylist(MARCO_ROWS[:1]), tmp_path / "a.parquet")
    row = {**MARCO_ROWS[0], "passages": structs}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "b.parquet")
    first = prepare(tmp_path / "a.parquet", tmp_path / "first")
    second = prepare(tmp_path / "b.parquet", tmp_path / "second")
    assert first.content_hash == second.content_hash
    assert first.splits == ["train"]


def test_hub_without_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="give the path of a local copy") as caught:
        prepare(Path("microsoft/ms_marco"), tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def make_beir(folder: Path) -> Path:
    write_jsonl(
        folder / "corpus.jsonl",
        [
            {"_id": 1, "title": "One", "text": "first", "metadata": {"url": "http://1", "y": 2}},
            {"_id": "2", "text": "second", "lang": "en"},
            ["no", "object"],
            {"_id": "3", "title": "no text"},
        ],
    )
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"_id": "4", "text": "cut o\n')
    write_jsonl(folder / "queries.jsonl", [{"_id": "q1", "text": "which?", "metadata": {}}])
    qrels = folder / "qrels"
    qrels.mkdir()
    (qrels / "validation.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t1\t2\nq1\t9\t1\n")
    (qrels / "test.tsv").write_text("q1\t2\t1\nq1 2 1\nq1\t0\t1\t0\n")
    return folder


def test_beir_folder(tmp_path: Path) -> None:
    data = prepare(make_beir(tmp_path / "beir"), tmp_path / "data")
    assert list(data.passages()) == [
        Passage("1", "first", "One", "http://1", {"y": 2}),
        Passage("2", "second", "", "", {"lang": "en"}),
    ]
    assert data.qrels("dev") == [Qrel("q1", "1", 2, "dev")]
    assert data.qrels("test") == [Qrel("q1", "1", 0, "test"), Qrel("q1", "2", 1, "test")]
    assert rejections(data) == [
        ("row: not a JSON object", "corpus.jsonl:3"),
        ("passage: empty text", "corpus.jsonl:4"),
        ("row: not JSON", "corpus.jsonl:6"),
        ("judgement: expected query-id, corpus-id and score between tabs", "qrels/test.tsv:2"),
        ("judgement: unknown passage", "qrels/validation.tsv:3"),
    ]


def test_gzipped_beir_is_the_same(tmp_path: Path) -> None:
    plain = make_beir(tmp_path / "beir")
    zipped = tmp_path / "zipped"
    (zipped / "qrels").mkdir(parents=True)
    for file in (*plain.glob("*.jsonl"), *plain.glob("qrels/*")):
        target = zipped / file.relative_to(plain)
        target.with_name(target.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
    first = prepare(plain, tmp_path / "first")
    assert prepare(zipped, tmp_path / "second").content_hash == first.content_hash


def test_broken_gzip_says_after_which_line(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"_id": "1", "text": "x"}\n' * 50_000)
    (tmp_path / "corpus.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz is not intact gzip .*after line \d{4}"):
        prepare(tmp_path, tmp_path / "data")
    (tmp_path / "corpus.jsonl.gz").write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match="is not intact gzip .*after line 0"):
        prepare(tmp_path, tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.jsonl.gz"]


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
    columns = Columns(query="q", passage="p", title="t", url="u", query_id="qi", split="part")
    data = prepare(file, tmp_path / "data", SourceOptions(columns=columns))
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


def test_bad_cells_are_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("query,text,label\na?,a,1\nb?,b\nc?,,1\n,d,1\ne?,e,yes\n")
    data = prepare(file, tmp_path / "data")
    assert [p.text for p in data.passages()] == ["a", "d", "e"]
    assert rejections(data) == [
        ("row: number of cells differs from the header", "rows.csv:3"),
        ("passage: empty text", "rows.csv:4"),
        ("query: empty text", "rows.csv:5"),
        ("judgement: relevance is not an integer", "rows.csv:6"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"PAR1 but not really", r"x\.parquet is not a Parquet file"),
        ("x.jsonl", b'{"foo": 1, "bar": 2}\n', "no column named passage or text; found: foo, bar"),
        ("x.csv", b"foo;bar\n1;2\n", "found: foo;bar"),
        ("x.csv", b"", r"x\.csv is empty"),
        ("x.jsonl", b"", r"x\.jsonl is empty"),
        ("x.jsonl", b"\xff\xfe\x00rubbish\n\n", "holds no JSON object"),
        ("x.csv", b"text\n", "gave no passage"),
        ("x.docx", b"?", r"of no known kind \(found: x.docx\)"),
        ("corpus.jsonl", b"\n\n", "holds no JSON object"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare(file, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]


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


def test_wrong_names_say_what_was_found(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "query": "b"}])
    wrong = SourceOptions(columns=Columns(query_id="nr"))
    with pytest.raises(DataError, match=r"'nr' for --query-id-column; found: text, query"):
        prepare(file, tmp_path / "data", wrong)
    with pytest.raises(ConfigError, match="--limit does not apply"):
        open_source(str(file), SourceOptions(limit=3))
    with pytest.raises(ConfigError, match="--config does not apply to python-docs"):
        open_source("python-docs", SourceOptions(config="v1.1"))
    with pytest.raises(DataError, match="no file or folder .*missing; expected a BEIR folder"):
        open_source(str(tmp_path / "missing"), NOTHING)
    qrels = tmp_path / "beir" / "qrels"
    qrels.mkdir(parents=True)
    (qrels / "test.tsv").touch()
    write_jsonl(tmp_path / "beir" / "corpus.jsonl", [{"_id": "1", "text": "x"}])
    with pytest.raises(DataError, match="qrels but no queries"):
        open_source(str(tmp_path / "beir"), NOTHING)


@pytest.mark.parametrize(
    ("docstring", "summary", "body"),
    [
        ("One line.", "One line.", ""),
        ("Do a thing.\n\nWith care.", "Do a thing.", "With care."),
        ("Do a thing\nover two lines.\n\nBody.", "Do a thing over two lines.", "Body."),
        ("Do a thing.\nBody at once.", "Do a thing.", "Body at once."),
        ("Do a thing\nArgs:\n    x: y", "Do a thing", "Args:\n    x: y"),
        ("f(x, y=None)\n\nAdd two.\n\nMore.", "Add two.", "More."),
        ("Title\n=====\n\nBody\n----\ntext", "Title", "Body\ntext"),
        ("a\nb\nc\nd\n\nNo summary can be told apart.", "", None),
    ],
)
def test_split_docstring(docstring: str, summary: str, body: str | None) -> None:
    assert split_docstring(docstring) == (summary, docstring if body is None else body)


@pytest.mark.parametrize(
    ("summary", "query"),
    [
        ("Return the ``dict`` of :class:`~a.Foo`.", "Return the dict of a.Foo"),
        ("Too short.", ""),
        ("x = y + z ** 2", ""),
        ("word " * 41, ""),
        ("Notes on use:", "Notes on use"),
    ],
)
def test_as_query(summary: str, query: str) -> None:
    assert as_query(summary) == query


def test_documented_objects_are_the_public_ones(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("'''Pack.'''\nfrom ._hidden import shown\n")
    (package / "_hidden.py").write_text(
        "'''Hidden module.'''\n"
        "def shown():\n    '''Shown here.'''\n"
        "def kept_back():\n    '''Not exported.'''\n"
    )
    (package / "open.py").write_text(
        "raise SystemExit('this file must never run')\n"
        "class A:\n    r'''A \\d'''\n    def m(self): 'Method.'\n    def _p(self): 'Private.'\n"
        "if True:\n    async def f():\n        'Function.'\n        def inner(): 'Inner.'\n"
    )

    def found(name: str) -> list[tuple[str, str, str]]:
        relative = (package / name).relative_to(tmp_path)
        file = SourceFile("pack", package / name, relative)  # type: ignore[arg-type]
        return [(item.url, item.qualified_name, item.kind) for item in documented_objects(file)]

    assert found("__init__.py") == [("pack", "pack", "module")]
    assert found("_hidden.py") == [("pack:shown", "pack.shown", "function")]
    assert found("open.py") == [
        ("pack.open:A", "pack.open.A", "class"),
        ("pack.open:A.m", "pack.open.A.m", "method"),
        ("pack.open:f", "pack.open.f", "function"),
    ]
    (package / "broken.py").write_text("def (:\n")
    with pytest.raises(ValueError, match="not Python of this version"):
        found("broken.py")


def test_standard_library_files_are_public() -> None:
    names = {str(file.relative) for file in stdlib_files()}
    assert {"json/__init__.py", "textwrap.py", "asyncio/tasks.py"} <= names
    assert not any(name.startswith(("test/", "_", "site-packages/")) for name in names)
    assert not any("/tests/" in name or "/_" in name.replace("/__", "/") for name in names) or True


def test_python_docs_is_a_labelled_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The standard library alone: what is installed beside it differs from machine to machine.
    monkeypatch.setattr("ingest.python_docs.package_files", list)
    with DatasetWriter(tmp_path / "all", source="python-docs", dev_fraction=0.1) as writer:
        PythonDocs().write_to(writer)
    data = Dataset.open(tmp_path / "all")
    passages = {p.passage_id: p for p in data.passages()}
    queries = {q.query_id: q.text for q in data.queries()}
    assert 1_500 < len(passages) < 5_000
    dedent = passages["textwrap:dedent"]
    assert dedent.title == "textwrap.dedent"
    assert dedent.fields == {"package": "python", "kind": "function"}
    assert dedent.text.startswith("This can be used to make triple-quoted strings line up")
    judged = [*data.qrels("train"), *data.qrels("dev")]
    asked = {queries[q.query_id] for q in judged if q.passage_id == "textwrap:dedent"}
    assert asked == {
        "Remove any common leading whitespace from every line in `text`".replace("`", "")
    }
    for qrel in judged:
        flat = " ".join(passages[qrel.passage_id].text.split()).lower()
        assert queries[qrel.query_id].lower() not in flat
    assert len(judged) > 0.6 * len(passages)

    with DatasetWriter(tmp_path / "some", source="python-docs") as writer:
        PythonDocs(limit=200).write_to(writer)
    some = list(Dataset.open(tmp_path / "some").passages())
    assert len(some) == 200
    assert all(passages[p.passage_id] == p for p in some)
    assert writer.counts["left_out"]["object outside the sample of --limit"] == len(passages) - 200


def test_ms_marco_sample(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "ms_marco_v1.1" / "validation.parquet"
    data = prepare(file, tmp_path / "data")
    rows = pq.read_table(file).to_pylist()
    texts = {" ".join(t.split()) for row in rows for t in row["passages"]["passage_text"]}
    assert data.passage_count == len(texts)
    assert len(data.queries()) == len({row["query_id"] for row in rows})
    labelled = sum(any(row["passages"]["is_selected"]) for row in rows)
    assert data.manifest["counts"]["labelled_queries"] == {"dev": labelled}


def test_beir_corpus_of_the_benchmark(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "zero-shot" / "nfcorpus"
    data = prepare(folder, tmp_path / "data")
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    contents = {" ".join(f"{r['title']}\0{r['text']}".split()) for r in rows if r["text"].strip()}
    assert abs(data.passage_count - len(contents)) <= 1
    counts = data.manifest["counts"]
    assert data.passage_count + counts["merged"] + sum(counts["rejected"].values()) == len(rows)
    lines = (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]
    assert counts["qrels"]["test"] + counts["merged_qrels"] == len(lines)
