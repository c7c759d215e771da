"""Values of fields with their counts, and what a filter takes of arrays and tables."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HashEncoder, make_passages
from typer.testing import CliRunner

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.data import Dataset, Passage
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.cli import app
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine, Kind
from two_tower.retriever.errors import QueryError
from two_tower.retriever.search.filters import to_filter

PASSAGES = [
    passage._replace(fields={**passage.fields, "is_new": number % 3 == 0})
    for number, passage in enumerate(make_passages(60))
]


@pytest.fixture
def retriever(
    engine: Engine, name: str, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> Retriever:
    report = loader.load(engine, make_data(PASSAGES), encoder, name=name)
    collections.promote(engine, name, report.collection)
    return Retriever(engine, name, encoder, settings=SearchSettings())


def counted(field: str, keep: Callable[[Passage], bool] = lambda _: True) -> dict[Any, int]:
    return dict(Counter(passage.fields[field] for passage in PASSAGES if keep(passage)))


def test_values_are_what_a_loop_counts(retriever: Retriever) -> None:
    for field in ("kind", "year", "is_new"):
        values = retriever.values(field, k=100)
        assert dict(values) == counted(field), field
        assert {type(value.value) for value in values} == {type(PASSAGES[0].fields[field])}
        assert [v.passages for v in values] == sorted((v.passages for v in values), reverse=True)
    notes = retriever.values("year", k=100, filter={"kind": "note"})
    assert dict(notes) == counted("year", lambda p: p.fields["kind"] == "note")
    assert retriever.values("kind", k=1) == retriever.values("kind")[:1]


@pytest.mark.parametrize("field", ["title", "rank", "nothing", None, 3])
def test_values_that_are_not_counted_are_refused(retriever: Retriever, field: Any) -> None:
    with pytest.raises(QueryError, match=r"expected one of: .*kind") as failure:
        retriever.values(field)
    assert "\n" not in str(failure.value)
    for k in (0, "5", True, 10**9):
        with pytest.raises(QueryError, match="number of values"):
            retriever.values("kind", k=k)


def test_the_commands_show_the_same(
    tmp_path: Path, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> None:
    engine = connect(path=tmp_path / "edge")
    report = loader.load(engine, make_data(PASSAGES), encoder, name="pages")
    collections.promote(engine, "pages", report.collection)
    engine.close()

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, "--path", str(tmp_path / "edge")])
        assert done.exit_code == 0, done.output
        return done.output

    listed = json.loads(run("fields", "pages", "--json"))
    assert listed["title"] == {"type": "text", "values": []}
    assert {v["value"]: v["passages"] for v in listed["kind"]["values"]} == counted("kind")
    years = json.loads(run("fields", "pages", "year", "--json", "--filter", "kind=note"))["year"]
    notes = counted("year", lambda p: p.fields["kind"] == "note")
    assert {v["value"]: v["passages"] for v in years} == notes
    shown = run("fields", "pages", "is_new").splitlines()
    assert shown == ["is_new\tPASSAGES", "false\t40", "true\t20"]
    about = json.loads(run("info", "pages", "--json"))
    assert (about["collection"], about["aliases"]) == (report.collection, ["pages"])
    assert (about["passages"], about["bundle"]) == (60, encoder.fingerprint)
    assert about["fields"]["kind"] == "keyword"
    assert report.collection in run("info", "pages")


def test_help_and_version_of_every_command() -> None:
    for words in (["-h"], ["similar", "-h"], ["fields", "--help"]):
        assert CliRunner().invoke(app, words).exit_code == 0
    done = CliRunner().invoke(app, ["--version"])
    assert done.output.startswith("two-tower-search ")


KINDS = {
    "kind": Kind.KEYWORD,
    "year": Kind.INTEGER,
    "rank": Kind.FLOAT,
    "good": Kind.BOOL,
    "when": Kind.DATETIME,
}


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"year": np.int64(2005)}, {"year": 2005}),
        ({"year": np.uint8(7)}, {"year": 7}),
        ({"year": 2005.0}, {"year": 2005}),
        ({"year": np.float32(2005)}, {"year": 2005}),
        ({"year": np.array([2005, 2006])}, {"year": [2005, 2006]}),
        ({"year": range(2005, 2007)}, {"year": [2005, 2006]}),
        ({"year": {"gte": np.int32(1), "lt": 9.0}}, {"year": {"gte": 1, "lt": 9}}),
        ({"rank": np.float64(2.5)}, {"rank": 2.5}),
        ({"rank": np.float32(2.5)}, {"rank": 2.5}),
        ({"rank": np.int64(2)}, {"rank": 2}),
        ({"good": np.bool_(True)}, {"good": True}),
        ({"kind": np.str_("note")}, {"kind": "note"}),
        ({"kind": np.array(["note", "manual"])}, {"kind": ["note", "manual"]}),
        ({"kind": np.array(["note"], dtype=object)}, {"kind": ["note"]}),
        ({"kind": {"note": 1}.keys()}, {"kind": ["note"]}),
        ({"when": np.datetime64("2024-01-31")}, {"when": datetime(2024, 1, 31)}),
        ({"when": np.datetime64("2024-01-31T00:00:00", "ns")}, {"when": datetime(2024, 1, 31)}),
        (
            {"when": {"gte": np.datetime64("2024-01-31T10:00")}},
            {"when": {"gte": datetime(2024, 1, 31, 10)}},
        ),
    ],
    ids=str,
)
def test_what_a_table_gives_is_what_plain_values_are(given: Any, plain: Any) -> None:
    assert to_filter(given, KINDS) == to_filter(plain, KINDS)


@pytest.mark.parametrize(
    "given",
    [
        {"year": 2005.5},
        {"year": np.float64("nan")},
        {"year": float("inf")},
        {"year": np.bool_(True)},
        {"rank": np.float64("nan")},
        {"good": np.int64(1)},
        {"good": 1},
        {"kind": b"note"},
        {"kind": np.int64(3)},
        {"when": np.datetime64("NaT")},
        {"when": np.datetime64("30000-01-01")},
        {"year": np.array([])},
        {"year": np.array([True])},
        {"kind": np.array(["note", None], dtype=object)},
    ],
    ids=str,
)
def test_values_of_another_type_are_refused_in_one_line(given: Any) -> None:
    with pytest.raises(QueryError) as failure:
        to_filter(given, KINDS)
    assert "\n" not in str(failure.value)


def test_columns_of_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"kind": ["note", "manual"], "year": [2005, 2006], "when": ["2024-01-31", "2024-02-01"]}
    )
    frame["when"] = pandas.to_datetime(frame["when"])
    expected = {
        "kind": ["note", "manual"],
        "year": [2005, 2006],
        "when": [datetime(2024, 1, 31), datetime(2024, 2, 1)],
    }
    assert to_filter({name: frame[name] for name in frame}, KINDS) == to_filter(expected, KINDS)
    row = frame.iloc[0]
    first = {name: values[0] for name, values in expected.items()}
    assert to_filter(dict(row), KINDS) == to_filter(first, KINDS)
