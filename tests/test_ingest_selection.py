"""Parts of DATA: --where and --limit."""

import json
from collections.abc import Callable

import pytest
from conftest import HashEncoder, make_passages

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.loader import LoadSettings
from two_tower.ingest.loading.selection import Selection, select
from two_tower.ingest.loading.verify import verify, verify_counts
from two_tower.models.config import from_mapping
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.text.bm25 import average_length
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer
from two_tower.retriever.collection.schema import read_metadata
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import QueryError

MakeData = Callable[..., Dataset]
PASSAGES = make_passages(300)


def test_a_selection_is_loaded_verified_and_grows(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    notes = select(data, Selection(where=("kind=note", "year>=2010"), limit=12))
    chosen = [p for p in PASSAGES if p.fields["kind"] == "note" and p.fields["year"] >= 2010][:12]
    assert [*notes.passages()] == chosen
    report = loader.load(engine, notes, encoder, name=name)
    assert (report.added, report.kept) == (12, 0)
    assert verify_counts(engine, report.collection).points == 12
    assert verify(engine, report.collection, data, encoder).compared == 12
    whole = average_length((passage.content for passage in PASSAGES), EngineAnalyzer())
    assert read_metadata(engine, report.collection).bm25["avg_len"] == pytest.approx(whole)
    selection = read_metadata(engine, report.collection).data["selection"]
    assert select(data, from_mapping(Selection, selection)).passage_count == 12
    grown = loader.load(engine, data, encoder, name=name)
    assert (grown.added, grown.unchanged) == (288, 12)
    assert verify(engine, report.collection, data, encoder).points == 300
    shrunk = loader.load(engine, notes, encoder, name=name)
    assert (shrunk.unchanged, shrunk.kept) == (12, 288)


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        (["kind=note", "kind=manual"], lambda p: p.fields["kind"] in ("note", "manual")),
        (["year>2003", "year<=2005"], lambda p: 2003 < p.fields["year"] <= 2005),
        (["rank=1.5"], lambda p: p.fields["rank"] == 1.5),
        (["title~RIVER title"], lambda p: {"river", "title"} <= {*p.title.lower().split()}),
        (["passage_id=p3"], lambda p: p.passage_id == "p3"),
        (["tags=b"], lambda p: "b" in p.fields.get("tags", [])),
    ],
)
def test_where_selects(
    where: list[str], wanted: Callable[[Passage], bool], make_data: MakeData
) -> None:
    tagged = [p._replace(fields={**p.fields, "tags": ["a", "b"]}) for p in PASSAGES[:5]]
    passages = [*tagged, *PASSAGES[5:]]
    selected = select(make_data(passages), Selection(tuple(where)))
    assert [p.passage_id for p in selected.passages()] == [
        p.passage_id for p in passages if wanted(p)
    ]


def test_selections_that_cannot_be_are_refused(make_data: MakeData) -> None:
    data = make_data(PASSAGES[:9])
    assert select(data, Selection()) is data
    with pytest.raises(DataError, match=r"no field 'author'.*kind, rank, year"):
        select(data, Selection(("author=me",)))
    with pytest.raises(DataError, match="no passage with kind=song"):
        select(data, Selection(("kind=song",)))
    with pytest.raises(QueryError, match="not understood"):
        select(data, Selection(("kind",)))
    with pytest.raises(ConfigError, match="limit is 0"):
        Selection(limit=0)
    with pytest.raises(ConfigError, match="delete what was not selected"):
        Selection(limit=5).require_no_prune()
    for bad in ({"rate_limit": 0.0}, {"rate_limit": float("nan")}, {"retry_for_s": -1.0}):
        with pytest.raises(ConfigError, match="expected"):
            LoadSettings(**bad)


def test_metadata_of_a_selection_is_json(make_data: MakeData) -> None:
    selected = select(make_data(PASSAGES), Selection(("kind=note",), 3))
    assert json.loads(json.dumps(selected.manifest))["selection"] == {
        "where": ["kind=note"],
        "limit": 3,
    }
