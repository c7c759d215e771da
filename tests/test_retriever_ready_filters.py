"""Ready filters: only what an index answers, and the same answer from every engine."""

from collections.abc import Callable

import pytest
from conftest import HashEncoder, make_passages
from qdrant_client import models as qm

from two_tower.ingest.loading import loader
from two_tower.models.data import Dataset, Passage
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.engine.protocol import Engine, Kind
from two_tower.retriever.errors import EngineError, QueryError
from two_tower.retriever.search.filters import to_filter

PASSAGES = make_passages(60)

FIELDS = {"kind": Kind.KEYWORD, "year": Kind.INTEGER, "title": Kind.TEXT, "when": Kind.DATETIME}
DECLARED = "fields that have one: kind, year, title, when"


def equals(field: str, value: str | int = "note") -> qm.FieldCondition:
    return qm.FieldCondition(key=field, match=qm.MatchValue(value=value))


def since(year: int, field: str = "year") -> qm.FieldCondition:
    return qm.FieldCondition(key=field, range=qm.Range(gte=year))


def nested(key: str, *conditions: qm.Condition) -> qm.NestedCondition:
    return qm.NestedCondition(nested=qm.Nested(key=key, filter=qm.Filter(must=[*conditions])))


@pytest.mark.parametrize(
    "given",
    [
        qm.Filter(must=equals("secret")),
        qm.Filter(must=[equals("kind"), equals("secret")]),
        qm.Filter(should=[equals("secret")]),
        qm.Filter(must_not=[equals("secret")]),
        qm.Filter(min_should=qm.MinShould(conditions=[equals("secret")], min_count=1)),
        qm.Filter(must=[qm.Filter(should=[qm.Filter(must_not=equals("secret"))])]),
        qm.Filter(must=[qm.IsEmptyCondition(is_empty=qm.PayloadField(key="secret"))]),
        qm.Filter(must=[qm.IsNullCondition(is_null=qm.PayloadField(key="secret"))]),
        qm.Filter(must=[qm.FieldCondition(key="secret", values_count=qm.ValuesCount(gt=1))]),
        qm.Filter(must=[qm.FieldCondition(key="secret", is_empty=True)]),
    ],
)
def test_an_undeclared_field_is_found_wherever_it_hides(given: qm.Filter) -> None:
    with pytest.raises(QueryError, match=f"cannot filter by 'secret': .*{DECLARED}$"):
        to_filter(given, FIELDS)


def test_a_field_of_nested_objects_is_another_field() -> None:
    inside = qm.Filter(must=[nested("authors", equals("kind"))])
    with pytest.raises(QueryError, match=r"by 'authors\[\]\.kind'"):
        to_filter(inside, FIELDS)
    declared = FIELDS | {"authors[].kind": Kind.KEYWORD}
    assert to_filter(inside, declared) is inside
    deeper = qm.Filter(must=[nested("a[]", nested("b", equals("c")))])
    assert to_filter(deeper, {"a[].b[].c": Kind.KEYWORD}) is deeper


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (equals("title"), "'title' has a text index, which cannot answer MatchValue"),
        (since(2000, "kind"), "'kind' has a keyword index, which cannot answer Range; expected fl"),
        (
            qm.FieldCondition(key="kind", match=qm.MatchText(text="note")),
            "cannot answer MatchText; expected text",
        ),
        (
            qm.FieldCondition(key="year", range=qm.DatetimeRange(gte="2020-01-01T00:00:00Z")),  # type: ignore[arg-type]
            "cannot answer DatetimeRange; expected datetime",
        ),
        (
            qm.FieldCondition(
                key="kind", geo_radius=qm.GeoRadius(center=qm.GeoPoint(lon=0, lat=0), radius=1)
            ),
            "cannot answer GeoRadius; expected geo",
        ),
    ],
)
def test_an_index_of_another_kind_does_not_do(condition: qm.FieldCondition, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        to_filter(qm.Filter(must_not=[condition]), FIELDS)


def test_what_not_every_engine_knows_is_refused() -> None:
    part = qm.SliceCondition(slice=qm.Slice(total=2, index=0))
    with pytest.raises(QueryError, match="SliceCondition, which not every engine knows"):
        to_filter(qm.Filter(must=[part]), FIELDS)


Test = Callable[[Passage], bool]
OWN = [point_id(f"p{number}") for number in range(20)]
CASES: list[tuple[qm.Filter, Test]] = [
    (qm.Filter(must=equals("kind")), lambda p: p.fields["kind"] == "note"),
    (
        qm.Filter(
            min_should=qm.MinShould(
                conditions=[equals("kind"), since(2010), equals("year", 2003)], min_count=2
            )
        ),
        lambda p: (
            sum([p.fields["kind"] == "note", p.fields["year"] >= 2010, p.fields["year"] == 2003])
            >= 2
        ),
    ),
    (
        qm.Filter(must=[qm.HasIdCondition(has_id=[*OWN])], must_not=[equals("kind")]),
        lambda p: int(p.passage_id[1:]) < 20 and p.fields["kind"] != "note",
    ),
    (qm.Filter(must=[qm.HasVectorCondition(has_vector="dense")]), lambda p: True),
    (
        qm.Filter(must=[qm.IsEmptyCondition(is_empty=qm.PayloadField(key="kind"))]),
        lambda p: False,
    ),
    (
        qm.Filter(should=[qm.Filter(must=[equals("kind"), since(2015)]), equals("year", 2001)]),
        lambda p: (
            (p.fields["kind"] == "note" and p.fields["year"] >= 2015) or p.fields["year"] == 2001
        ),
    ),
    (
        qm.Filter(
            must=[qm.FieldCondition(key="title", match=qm.MatchTextAny(text_any="river boat"))]
        ),
        lambda p: bool({"river", "boat"} & {*p.title.split()}),
    ),
]


def test_every_engine_answers_alike(
    engine: Engine, name: str, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> None:
    collection = loader.load(engine, make_data(PASSAGES), encoder, name=name).collection
    retriever = Retriever(engine, collection, encoder, settings=SearchSettings())  # type: ignore[arg-type]
    for given, test in CASES:
        settings = SearchSettings(legs={"dense": 60}, rerank=False)
        hits = retriever.search("river bank", k=60, filter=given, settings=settings)
        assert {h.passage_id for h in hits} == {p.passage_id for p in PASSAGES if test(p)}
    with pytest.raises(QueryError, match=r"cannot filter by 'url': .*: kind, passage_id, rank, "):
        retriever.similar("p1", filter=qm.Filter(must=equals("url")))


def test_what_the_embedded_engine_cannot_filter_is_one_line(
    edge_engine: Engine, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> None:
    collection = loader.load(edge_engine, make_data(PASSAGES), encoder, name="x").collection
    retriever = Retriever(edge_engine, collection, encoder, settings=SearchSettings())  # type: ignore[arg-type]
    counts = qm.FieldCondition(key="kind", values_count=qm.ValuesCount(gte=1))
    with pytest.raises(EngineError, match=r"embedded engine does not support .*; a server may"):
        retriever.search("river", filter=qm.Filter(must=[counts]))


def test_a_declared_text_field_takes_words(
    engine: Engine, name: str, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> None:
    options = CollectionOptions(indexes={"text": "text"})
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, encoder, name=name, options=options).collection
    retriever = Retriever(engine, collection, encoder, settings=SearchSettings())  # type: ignore[arg-type]
    settings = SearchSettings(legs={"dense": 60}, rerank=False)
    wanted = {"text": {"text": "river"}}
    hits = retriever.search("bank", k=60, filter=wanted, settings=settings)
    assert {h.passage_id for h in hits} == {
        p.passage_id for p in PASSAGES if "river" in p.text.split()
    }
