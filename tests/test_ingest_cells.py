"""CSV has no types: a field is a number, or true and false, where all of its column is one."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import HashEncoder, make_passages
from typer.testing import CliRunner

import two_tower
from two_tower import Retriever, SearchSettings
from two_tower.ingest.cli import app
from two_tower.ingest.loading import loader
from two_tower.ingest.versions.versions import promote
from two_tower.models.data import Dataset
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.engine.protocol import Engine

MakeData = Callable[..., Dataset]

COLUMNS: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "integers": (["7", "-3", "0", ""], [7, -3, 0]),
    "prices": (["18.50", "7", "0.25", "-1.0"], [18.5, 7.0, 0.25, -1.0]),
    "spaces": ([" 7", "8 "], [7, 8]),
    "words": (["true", "false", ""], [True, False]),
    "pandas": (["True", "False"], [True, False]),
    "capitals": (["TRUE", "FALSE"], [True, False]),
    "marks": (["1", "0", "1"], [1, 0, 1]),
    "postcodes": (["01234", "98765"], ["01234", "98765"]),
    "versions": (["1.10", "1.2.3"], ["1.10", "1.2.3"]),
    "dates": (["2025-01-31", "2025-02-01"], ["2025-01-31", "2025-02-01"]),
    "one is a word": (["1", "2", "unknown"], ["1", "2", "unknown"]),
    "true and 1": (["true", "1"], ["true", "1"]),
    "yes and no": (["yes", "no"], ["yes", "no"]),
    "signs": (["+1", "2"], ["+1", "2"]),
    "not finite": (["nan", "inf", "1"], ["nan", "inf", "1"]),
    "thousands": (["1,000", "2"], ["1,000", "2"]),
    "underscores": (["1_000", "2"], ["1_000", "2"]),
    "digits of other scripts": (["١٢", "2"], ["١٢", "2"]),
    "past 64 bits": (["1" * 25, "2"], ["1" * 25, "2"]),
    "blank": (["", " "], []),
}


def as_table(rows: Sequence[Sequence[str]], delimiter: str) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


def write(file: Path, cells: Sequence[str], *, first: int = 0) -> None:
    """One passage a cell, whose field `x` it is."""
    file.parent.mkdir(exist_ok=True)
    rows = [(f"p{n}", f"text {n}", cell) for n, cell in enumerate(cells, first)]
    delimiter = "\t" if file.suffix == ".tsv" else ","
    file.write_text(as_table([("_id", "text", "x"), *rows], delimiter))


def values(data: Dataset) -> list[Any]:
    return [p.fields["x"] for p in data.passages() if "x" in p.fields]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "beir/corpus.tsv", "beir/corpus.csv"])
def test_cells_have_the_type_of_their_column(tmp_path: Path, column: str, name: str) -> None:
    cells, expected = COLUMNS[column]
    write(tmp_path / name, cells)
    data = two_tower.prepare(tmp_path / name.split("/")[0], tmp_path / "data")
    found = values(data)
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]
    assert data.passage_count == len(cells)


def test_all_files_of_a_folder_decide_together(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.csv", ["1", "2"])
    write(tmp_path / "in" / "b.csv", ["3", "unknown"], first=2)
    assert values(two_tower.prepare(tmp_path / "in", tmp_path / "d")) == ["1", "2", "3", "unknown"]


def test_ids_texts_and_what_jsonl_says_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,title,text\n7,1984,42\n8,true,43\n")
    data = two_tower.prepare(tmp_path / "x.csv", tmp_path / "d")
    assert [p[:3] for p in data.passages()] == [("7", "42", "1984"), ("8", "43", "true")]
    (tmp_path / "x.jsonl").write_text('{"_id": "a", "text": "t", "x": "7"}\n')
    assert values(two_tower.prepare(tmp_path / "x.jsonl", tmp_path / "d2")) == ["7"]


def test_an_added_file_keeps_to_the_types_of_the_collection(tmp_path: Path) -> None:
    def run(*words: str | Path) -> None:
        done = CliRunner().invoke(app, list(map(str, words)))
        assert done.exit_code == 0, done.output

    rows = [("_id", "text", "code", "price", "day"), ("a", "one shirt", "A7", "2", "2025-01-01")]
    rows += [("b", "two shirts", "12", "3.5", "2025-02-01")]
    (tmp_path / "x.csv").write_text(as_table(rows, ","))
    run("prepare", tmp_path / "x.csv", "--out", tmp_path / "data")
    run("load", tmp_path / "data", "--collection", "shop", "--path", tmp_path / "edge")
    (tmp_path / "y.csv").write_text(as_table([rows[0], ("c", "a shirt", "12", "4", "2025")], ","))
    run("add", "shop", tmp_path / "y.csv", "--path", tmp_path / "edge")
    with Retriever.open("shop", path=tmp_path / "edge") as engine:
        for condition in ({"code": "12"}, {"price": {"gt": 3}}):
            hits = engine.search("shirt", filter=condition)
            assert {hit.passage_id for hit in hits} == {"b", "c"}
        assert [h.passage_id for h in engine.search("shirt", filter={"day": "2025"})] == ["c"]


def test_an_index_follows_the_type_of_the_values(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    words = [p._replace(fields={"size": str(n)}) for n, p in enumerate(make_passages(20))]
    numbers = [p._replace(fields={"size": n}) for n, p in enumerate(words)]
    parts = [p._replace(fields={"size": n / 2}) for n, p in enumerate(words)]
    for passages, condition in ((words, "17"), (numbers, 17), (parts, 8.5)):
        report = loader.load(engine, make_data(passages), encoder, name=name)
        promote(engine, name, report.collection)
        retriever = Retriever(engine, name, encoder, settings=SearchSettings())  # type: ignore[arg-type]
        hits = retriever.search(words[17].text, filter={"size": condition})
        assert [hit.passage_id for hit in hits] == ["p17"]


def test_a_version_has_the_indexes_that_were_declared_for_the_one_before(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    days = [
        p._replace(fields={"day": f"2025-01-{n + 1:02}"}) for n, p in enumerate(make_passages(9))
    ]
    data = make_data(days)

    def kinds(seed: int, **declared: Any) -> dict[str, str]:
        options = CollectionOptions(indexes=declared) if declared else None
        encoder = HashEncoder(seed=seed)
        loaded = loader.load(engine, data, encoder, name=name, options=options).collection
        promote(engine, name, loaded)
        schema = engine.get_collection(loaded).payload_schema
        return {field: index.data_type.value for field, index in schema.items()}

    assert kinds(1)["day"] == "keyword"
    assert kinds(2)["day"] == "keyword"
    assert kinds(3, day="datetime", url="keyword")["day"] == "datetime"
    assert kinds(4)["day"] == "datetime"
    assert kinds(4)["url"] == "keyword"
    assert kinds(5, day="keyword")["day"] == "keyword"
    assert kinds(6)["day"] == "keyword"
