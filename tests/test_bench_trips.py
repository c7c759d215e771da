import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, make_passages
from crossing import crossed, fused

from two_tower.ingest.loading import loader
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.engine.protocol import Engine

sys.path.insert(0, str(ROOT / "tests" / "bench"))

import trips


def outer() -> list[int]:
    return [inner(number) for number in range(3)]


def inner(number: int) -> int:
    return number


def test_only_functions_of_the_project_are_in_a_trip() -> None:
    with trips.traced("nothing") as trip:
        outer()
        sorted([3, 1, 2])
    assert trip == ("nothing", {}, {})


@pytest.mark.parametrize(
    ("make", "name", "functions", "files", "borders"),
    [(fused, "One query", 48, 12, 6), (crossed, "One query with a cross-scorer", 80, 17, 12)],
)
def test_a_query_takes_the_short_way(
    edge_engine: Engine,
    tiny_bundle: Path,
    make_data: Callable[..., Dataset],
    make: Callable[[ModelBundle], ModelBundle],
    name: str,
    functions: int,
    files: int,
    borders: int,
) -> None:
    bundle = make(ModelBundle.load(tiny_bundle))
    report = loader.load(edge_engine, make_data(make_passages(60)), bundle, name="c")
    retriever = Retriever(edge_engine, report.collection, bundle, settings=SearchSettings())
    trip = trips.trace_query(retriever)
    assert trip.name == name
    assert next(iter(trip.functions.items())) == (
        "retriever/search/retriever.py",
        ["Retriever.search", "Retriever.explain_many", "Retriever._checked_k"],
    )
    assert len(trip.borders) <= borders
    assert len(trip.functions) <= files, list(trip.functions)
    assert sum(map(len, trip.functions.values())) <= functions, trip.functions
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split(f"### {name}\n")[1].split("###")[0]
    assert f"{functions} functions in {files} files, {borders} borders between folders" in section
    assert re.findall(r"^\|\s*\d+ \| `(\S+)`", section, flags=re.MULTILINE) == list(trip.functions)
    own = {file: names for file, names in trip.functions.items() if "/search/" in file}
    assert len(own) <= 4, list(own)
    assert sum(map(len, own.values())) <= 26, own
    shown = trips.to_markdown(trip)
    assert shown.startswith(f"### {name}\n")
    assert "| 1 | `retriever/search/retriever.py` | 3 | `Retriever.search`" in shown
