import contextlib
import math
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import HashEncoder, make_passages
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models as qm

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.data import Dataset, Passage
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.engine.protocol import Engine, Kind
from two_tower.retriever.errors import QueryError
from two_tower.retriever.search.filters import parse_filters, to_filter

PASSAGES = make_passages(120)

FIELDS = {
    "kind": Kind.KEYWORD,
    "year": Kind.INTEGER,
    "rank": Kind.FLOAT,
    "good": Kind.BOOL,
    "when": Kind.DATETIME,
    "title": Kind.TEXT,
    "where": Kind.GEO,
}
Test = Callable[[Passage], bool]
CASES: list[tuple[dict[str, Any], Test]] = [
    ({"kind": "note"}, lambda p: p.fields["kind"] == "note"),
    ({"kind": ["note", "manual"]}, lambda p: p.fields["kind"] in ("note", "manual")),
    ({"kind": {"note"}}, lambda p: p.fields["kind"] == "note"),
    ({"year": 2003}, lambda p: p.fields["year"] == 2003),
    ({"year": [2003, 2004]}, lambda p: p.fields["year"] in (2003, 2004)),
    ({"year": {"gte": 2003, "lt": 2007}}, lambda p: 2003 <= p.fields["year"] < 2007),
    ({"year": {"gt": 2003, "lte": 2007}}, lambda p: 2003 < p.fields["year"] <= 2007),
    ({"rank": 2.5}, lambda p: p.fields["rank"] == 2.5),
    ({"rank": [2.5, 3]}, lambda p: p.fields["rank"] in (2.5, 3.0)),
    ({"rank": {"lt": 1}}, lambda p: p.fields["rank"] < 1),
    ({"title": {"text": "RIVER"}}, lambda p: "river" in p.title.split()),
    ({"title": {"text": "title boat"}}, lambda p: "boat" in p.title.split()),
    ({"passage_id": ["p3", "p4", "nope"]}, lambda p: p.passage_id in ("p3", "p4")),
    (
        {"kind": "note", "year": {"gte": 2010}},
        lambda p: p.fields["kind"] == "note" and p.fields["year"] >= 2010,
    ),
    ({"kind": "no such kind"}, lambda p: False),
    ({}, lambda p: True),
]


@pytest.fixture
def retriever(
    engine: Engine, name: str, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> Retriever:
    report = loader.load(engine, make_data(PASSAGES), encoder, name=name)
    collections.promote(engine, name, report.collection)
    everything = SearchSettings(legs={"dense": 120, "bm25": 120})
    return Retriever(engine, name, encoder, settings=everything)


def test_filters_keep_what_a_loop_keeps(retriever: Retriever) -> None:
    for given_filter, test in CASES:
        expected = {p.passage_id for p in PASSAGES if test(p)}
        hits = retriever.search("storm on the river bank", k=120, filter=given_filter)
        assert {h.passage_id for h in hits} == expected, given_filter
        assert [h.rank for h in hits] == list(range(1, len(hits) + 1))


def test_a_filter_leaves_scores_as_they_are(retriever: Retriever) -> None:
    scores = {h.passage_id: h.score for h in retriever.search("river boat", k=120)}
    for hit in retriever.search("river boat", k=10, filter={"kind": "note"}):
        assert hit.score == pytest.approx(scores[hit.passage_id], abs=1e-5)


def test_a_ready_filter_passes_through(retriever: Retriever) -> None:
    ready = qm.Filter(must_not=[qm.FieldCondition(key="kind", match=qm.MatchValue(value="note"))])
    hits = retriever.search("river", k=120, filter=ready)
    assert {h.passage_id for h in hits} == {
        p.passage_id for p in PASSAGES if p.fields["kind"] != "note"
    }


def test_fields_are_those_with_an_index(retriever: Retriever) -> None:
    assert retriever.fields == {
        "kind": Kind.KEYWORD,
        "passage_id": Kind.KEYWORD,
        "rank": Kind.FLOAT,
        "title": Kind.TEXT,
        "year": Kind.INTEGER,
    }
    with pytest.raises(
        QueryError, match=r"'text': it has no payload index.*kind, passage_id, rank, title, year"
    ):
        retriever.search("river", filter={"text": "river"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("kind=note", "the filter is 'kind=note'; expected a mapping"),
        ({3: "x"}, "cannot filter by 3"),
        ({"knd": "x"}, "cannot filter by 'knd'.*kind, year"),
        ({"kind": 3}, "'kind' has 3; expected a string"),
        ({"kind": None}, "'kind' has None; expected a string"),
        ({"kind": "\udc00"}, "which is not text"),
        ({"kind": []}, "a list of 0 values; expected 1 to 1,000"),
        ({"kind": ["x"] * 1001}, "a list of 1,001 values"),
        ({"kind": {"gte": "a"}}, "'kind' has a keyword index, which has no ranges"),
        ({"kind": {"text": "a"}}, "full text needs a text index: load again with --options FILE"),
        ({"year": True}, "'year' has True; expected an integer"),
        ({"year": 2**63}, "expected an integer"),
        ({"year": 3.5}, "'year' has 3.5; expected an integer"),
        ({"year": {}}, "expected some of gte, gt, lte, lt"),
        ({"year": {"min": 1}}, "expected some of gte, gt, lte, lt"),
        ({"year": {"gte": "x"}}, "'year' has 'x'; expected an integer"),
        ({"rank": math.nan}, "'rank' has nan; expected a number"),
        ({"rank": {"lt": math.inf}}, "'rank' has inf; expected a number"),
        ({"good": 1}, "'good' has 1; expected true or false"),
        ({"when": "yesterday"}, "expected a date in ISO 8601"),
        ({"title": "river"}, 'has a text index; filter it with {"text": "…"}'),
        ({"title": {"text": " "}}, 'expected {"text": "some words"}'),
        ({"title": {"text": "a", "gte": 1}}, 'expected {"text": "some words"}'),
        ({"where": 1}, "has a geo index; filter it with a ready qm.Filter"),
    ],
)
def test_what_is_not_a_filter(wrong: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message.replace("{", r"\{")) as caught:
        to_filter(wrong, FIELDS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_conditions_of_kinds_that_corpora_here_lack() -> None:
    assert to_filter({"good": [True, False]}, FIELDS) == qm.Filter(
        must=[
            qm.Filter(
                should=[
                    qm.FieldCondition(key="good", match=qm.MatchValue(value=True)),
                    qm.FieldCondition(key="good", match=qm.MatchValue(value=False)),
                ]
            )
        ]
    )
    day = datetime(2024, 5, 1)
    for value in (day, date(2024, 5, 1), "2024-05-01"):
        condition = qm.FieldCondition(key="when", range=qm.DatetimeRange(gte=day))
        assert to_filter({"when": {"gte": value}}, FIELDS) == qm.Filter(must=[condition])


@pytest.mark.parametrize(
    ("given_filter", "same"),
    [
        ({"year": 2003.0}, {"year": 2003}),
        ({"year": np.int64(2003)}, {"year": 2003}),
        ({"year": np.float32(2003)}, {"year": 2003}),
        ({"year": np.array([2003, 2004])}, {"year": [2003, 2004]}),
        ({"year": pd.Series([2003.0, 2004.0])}, {"year": [2003, 2004]}),
        ({"year": {"gte": np.int8(3), "lt": 9.0}}, {"year": {"gte": 3, "lt": 9}}),
        ({"rank": np.float64(2.5)}, {"rank": 2.5}),
        ({"good": np.bool_(False)}, {"good": False}),
        ({"good": np.array([True])}, {"good": [True]}),
        ({"kind": np.str_("note")}, {"kind": "note"}),
        ({"kind": pd.Series(["note"])}, {"kind": ["note"]}),
        ({"when": np.datetime64("2024-05-01", "ns")}, {"when": datetime(2024, 5, 1)}),
        ({"when": pd.Timestamp("2024-05-01")}, {"when": datetime(2024, 5, 1)}),
    ],
)
def test_what_a_data_frame_gives_is_taken(given_filter: Any, same: Any) -> None:
    assert to_filter(given_filter, FIELDS) == to_filter(same, FIELDS)


@pytest.mark.parametrize("value", [np.float64("nan"), np.datetime64("NaT"), pd.NA, pd.NaT, 2003.5])
@pytest.mark.parametrize("field", ["year", "kind", "good"])
def test_what_it_lacks_is_refused(field: str, value: Any) -> None:
    with pytest.raises(QueryError, match=f"'{field}' has"):
        to_filter({field: value}, FIELDS)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=3)
    | st.datetimes()
    | st.dates()
)
NAMES = st.sampled_from([*FIELDS, "text", "gte", "gt", "lte", "lt"]) | st.text(max_size=5)
CONDITIONS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(SCALARS | st.dictionaries(NAMES | SCALARS.filter(lambda v: v == v), CONDITIONS, max_size=3))
def test_anything_is_a_filter_or_a_query_error(anything: Any) -> None:
    found = filter_or_error(anything)
    if isinstance(found, QueryError):
        assert "\n" not in str(found)
        str(found).encode()
    elif found is not None:
        qm.Filter.model_validate_json(found.model_dump_json())


def filter_or_error(anything: Any) -> qm.Filter | QueryError | None:
    try:
        return to_filter(anything, FIELDS)
    except QueryError as error:
        return error


def test_words_of_a_command_line() -> None:
    words = ["kind=note", "kind=a=b", "year>=2003", "year < 2007", "title~river bank", "good=TRUE"]
    assert parse_filters(words, FIELDS) == {
        "kind": ["note", "a=b"],
        "year": {"gte": 2003, "lt": 2007},
        "title": {"text": "river bank"},
        "good": [True],
    }
    assert parse_filters(["rank=3", "year>2", "year<=5"], FIELDS) == {
        "rank": [3.0],
        "year": {"gt": 2, "lte": 5},
    }
    assert parse_filters([], FIELDS) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kind"], "'kind' is not understood; expected field=value"),
        (["=note"], "'=note' is not understood"),
        (["year=3", "year>2"], "filter on 'year' is given in two forms"),
        (["title~a", "title~b"], "filter on 'title' is given in two forms"),
        (["title~a", "title>b"], "filter on 'title' is given in two forms"),
    ],
)
def test_words_that_are_not_a_filter(words: list[str], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        parse_filters(words, FIELDS)


@given(st.lists(st.text(max_size=12) | st.from_regex(r"(kind|year|title)[=<>~]{1,2}\w*")))
def test_any_words_are_a_filter_or_a_query_error(words: list[str]) -> None:
    with contextlib.suppress(QueryError):
        to_filter(parse_filters(words, FIELDS), FIELDS)
