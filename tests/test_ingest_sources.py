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
from two_tower.models.errors import ConfigError, DataError


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
        ("row: passages are not texts, urls and is_selected of one length", "train.parquet:row 3"),
        ("query: empty text", "train.parquet:row 4"),
        ("passage: empty text", "train.parquet:row 4"),
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


def test_ms_marco_as_jsonl_is_the_same(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(MARCO_ROWS[:2]), tmp_path / "train.parquet")
    write_jsonl(tmp_path / "train.jsonl", MARCO_ROWS[:2])
    first = prepare(tmp_path / "train.parquet", tmp_path / "first")
    second = prepare(tmp_path / "train.jsonl", tmp_path / "second")
    assert first.content_hash == second.content_hash
    assert first.manifest["source"]["kind"] == second.manifest["source"]["kind"] == "ms_marco"


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
            {"_id": "5"},
        ],
    )
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"_id": "4", "text": "cut o\n')
    write_jsonl(folder / "queries.jsonl", [{"_id": "q1", "text": "which?", "metadata": {}}])
    qrels = folder / "qrels"
    qrels.mkdir()
    (qrels / "validation.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t1\t2\nq1\t9\t1\n")
    (qrels / "test.tsv").write_text("q1\t2\t1\nq1 2\nq1\t0\t1\t0\n")
    return folder


def test_beir_folder(tmp_path: Path) -> None:
    data = prepare(make_beir(tmp_path / "beir"), tmp_path / "data")
    assert list(data.passages()) == [
        Passage("1", "first", "One", "http://1", {"y": 2}),
        Passage("2", "second", "", "", {"lang": "en"}),
        Passage("3", "", "no text"),
    ]
    assert data.qrels("dev") == [Qrel("q1", "1", 2, "dev")]
    assert data.qrels("test") == [Qrel("q1", "1", 0, "test"), Qrel("q1", "2", 1, "test")]
    assert rejections(data) == [
        ("row: not a JSON object", "corpus.jsonl:3"),
        ("passage: empty text", "corpus.jsonl:5"),
        ("row: not JSON", "corpus.jsonl:7"),
        ("judgement: expected query-id, corpus-id and score", "qrels/test.tsv:2"),
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
    with pytest.raises(DataError, match=r"is not intact gzip .*after line 0"):
        prepare(tmp_path, tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.jsonl.gz"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"PAR1 but not really", r"x\.parquet is not a Parquet file"),
        ("x.jsonl", b'{"foo": 1, "bar": 2}\n', "or content; found: foo, bar"),
        ("x.csv", b"foo;bar\n1;2\n", "found: foo, bar"),
        ("x.csv", b"", r"x\.csv is empty"),
        ("x.jsonl", b"", r"x\.jsonl is empty"),
        ("x.jsonl", b"\xff rubbish\n\n", r"x\.jsonl:1 is not UTF-8 \(byte 0xff at column 1\)"),
        ("x.jsonl", b"\xff\xfe\x00rubbish\n\n", "holds no JSON object"),
        ("x.csv", b"text\ncaf\xe9 is nice\n", r"x\.csv:2 is not UTF-8 \(byte 0xe9 at column 4\)"),
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


def test_wrong_names_say_what_was_found(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "query": "b"}])
    with pytest.raises(DataError, match=r"'nr' for --query-id-column; found: text, query"):
        prepare(file, tmp_path / "data", columns={"query_id": "nr"})
    with pytest.raises(ConfigError, match="--limit does not apply"):
        open_source(str(file), limit=3)
    with pytest.raises(ConfigError, match="--config does not apply to python-docs"):
        open_source("python-docs", config="v1.1")
    with pytest.raises(DataError, match=r"no file or folder .*missing; expected a BEIR folder"):
        open_source(str(tmp_path / "missing"))
    qrels = tmp_path / "beir" / "qrels"
    qrels.mkdir(parents=True)
    (qrels / "test.tsv").touch()
    write_jsonl(tmp_path / "beir" / "corpus.jsonl", [{"_id": "1", "text": "x"}])
    with pytest.raises(DataError, match="qrels but no queries"):
        open_source(str(tmp_path / "beir"))


def test_ms_marco_sample(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "ms_marco_v1.1" / "validation.parquet"
    data = prepare(file, tmp_path / "data")
    rows = pq.read_table(file).to_pylist()
    texts = {t.strip() for row in rows for t in row["passages"]["passage_text"]}
    assert data.passage_count == len(texts)
    assert len(data.queries()) == len({row["query_id"] for row in rows})
    labelled = sum(any(row["passages"]["is_selected"]) for row in rows)
    assert data.manifest["counts"]["labelled_queries"] == {"dev": labelled}


def test_beir_corpus_of_the_benchmark(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "zero-shot" / "nfcorpus"
    data = prepare(folder, tmp_path / "data")
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert data.passage_count == len({r["_id"] for r in rows if (r["title"] + r["text"]).strip()})
    counts = data.manifest["counts"]
    assert data.passage_count + counts["merged"] + sum(counts["rejected"].values()) == len(rows)
    lines = (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]
    assert counts["qrels"]["test"] + counts["merged_qrels"] == len(lines)
