"""Drawn filters: both engines, and a loop over the passages, agree on counts, scores and hits."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import HashEncoder, Server, make_passages, server_engine, write_data
from qdrant_client import models as qm

from two_tower.ingest.loading import loader
from two_tower.models.data import Passage
from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import Request
from two_tower.retriever.search.filters import to_filter

SIZE = 90
ENCODER = HashEncoder()
TEXT = "storm on the river bank"
START = datetime(2024, 1, 1, tzinfo=UTC)

Test = Callable[[Any], bool]


def with_fields(passage: Passage, number: int) -> Passage:
    """One field of each type; `some_…` are there in two passages of three alone."""
    values: dict[str, Any] = {
        "brand": ["acme", "bolt", "core é"][number % 3],
        "stock": number % 7 - 3,
        "price": number % 9 / 4,
        "active": number % 2 == 0,
        "when": (START + timedelta(days=number % 11)).isoformat(),
        "note": f"a {['quick brown', 'slow Brown', 'quick red'][number % 3]} fox",
        "tags": [["x", "y"], ["y"], ["z", "x"]][number % 3],
    }
    rare = {f"some_{name}": value for name, value in values.items()} if number % 3 else {}
    return passage._replace(fields={**values, **rare})


PASSAGES = [with_fields(p, n) for n, p in enumerate(make_passages(SIZE, seed=5))]
DECLARED = {
    f"{some}{n}": k for some in ("", "some_") for n, k in (("when", "datetime"), ("note", "text"))
}


class Pair(NamedTuple):
    """The same data in both engines."""

    embedded: Engine
    server: Engine
    collection: str


@pytest.fixture(scope="module")
def pair(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    data = write_data(folder / "DATA", PASSAGES)
    options = CollectionOptions(indexes=DECLARED)
    embedded = connect(path=folder / "edge")
    with server_engine(server, "test_agreement") as other:
        for engine in (embedded, other):
            report = loader.load(engine, data, ENCODER, name="test_agreement", options=options)
        yield Pair(embedded, other, report.collection)
    embedded.close()


def listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def values_of(field: str) -> list[Any]:
    found = {v: None for p in PASSAGES for v in listed(p.fields.get(field))}
    return [*found]


ABSENT = {
    "brand": "nobody", "tags": "q", "stock": 99, "price": 77.5, "when": "1999-01-01T00:00:00+00:00",
}  # fmt: skip


def draw(random: Random) -> tuple[str, dict[str, Any], Test]:
    """One condition in our own form, and the same as a test of a value."""
    field = random.choice(["brand", "stock", "price", "active", "when", "note", "tags"])
    absent = ABSENT.get(field)
    name = random.choice(["", "some_"]) + field
    here = values_of(name)
    pool = here if absent is None or random.random() < 0.8 else [absent]
    if field == "note":
        words = random.choice(["brown", "quick fox", "RED", "slow red", "nothing"])
        parts = words.lower().split()
        return (
            name,
            {"text": words},
            lambda v: v is not None and all(w in v.lower().split() for w in parts),
        )
    if field in ("stock", "price", "when") and random.random() < 0.5:
        low, high = sorted(random.choices(here, k=2))
        ends = random.choice([("gte", "lt"), ("gt", "lte"), ("gte", "lte")])
        return name, dict(zip(ends, (low, high), strict=True)), within(ends, low, high)
    if random.random() < 0.4:
        several = random.choices(pool, k=random.randint(1, 3))
        return name, several, lambda v: any(item in several for item in listed(v))  # type: ignore[return-value]
    value = random.choice(pool)
    wrapped = random.choice([value, numpy_form(value)])
    return name, wrapped, lambda v: value in listed(v)


def within(ends: tuple[str, str], low: Any, high: Any) -> Test:
    def test(value: Any) -> bool:
        if value is None:
            return False
        above = value >= low if ends[0] == "gte" else value > low
        return bool(above and (value <= high if ends[1] == "lte" else value < high))

    return test


def numpy_form(value: Any) -> Any:
    """The value as a DataFrame's column would give it."""
    if isinstance(value, str):
        return np.str_(value)
    return np.asarray([value])[0]


def combine(random: Random, fields: Any) -> tuple[qm.Filter, Callable[[Passage], bool]]:
    """One to three drawn conditions, joined by an operator of the engine."""
    parts = []
    for _ in range(random.randint(1, 3)):
        name, condition, test = draw(random)
        made = to_filter({name: condition}, fields)
        assert made is not None
        parts.append((made, lambda p, n=name, t=test: t(p.fields.get(n))))
    conditions = [made for made, _ in parts]
    count = random.randint(1, len(parts))
    operator = random.choice(["must", "should", "must_not", "min_should"])
    if operator == "min_should":
        few = qm.MinShould(conditions=conditions, min_count=count)
        return qm.Filter(min_should=few), lambda p: sum(t(p) for _, t in parts) >= count
    join = {"must": all, "should": any, "must_not": lambda tests: not any(tests)}[operator]
    return qm.Filter(**{operator: conditions}), lambda p: join(t(p) for _, t in parts)


def raw(random: Random) -> tuple[qm.Filter, Callable[[Passage], bool]]:
    """A ready condition that our own form does not have."""
    name = random.choice(["brand", "stock", "tags", "some_brand", "some_active", "some_stock"])
    kind = random.choice(["empty", "null", "except"])
    if kind == "empty":
        part: Any = qm.IsEmptyCondition(is_empty=qm.PayloadField(key=name))
        return qm.Filter(must=[part]), lambda p: not listed(p.fields.get(name))
    if kind == "null":
        part = qm.IsNullCondition(is_null=qm.PayloadField(key=name))
        return qm.Filter(must=[part]), lambda p: False
    values = [v for v in values_of(name) if not isinstance(v, bool)][:2] or ["x"]
    if "active" in name:
        name, values = "brand", ["acme"]
    part = qm.FieldCondition(key=name, match=qm.MatchExcept(**{"except": values}))
    return qm.Filter(must=[part]), lambda p: any(
        v not in values for v in listed(p.fields.get(name))
    )


@pytest.mark.parametrize("seed", range(8))
def test_both_engines_and_a_loop_agree(pair: Pair, seed: int) -> None:
    random = Random(seed)
    fields = pair.embedded.overview(pair.collection).fields
    assert fields == pair.server.overview(pair.collection).fields
    dense = ENCODER.encode_queries([TEXT])[0].tolist()
    terms = Bm25Encoder(Bm25Config(avg_len=12.0)).encode_query(TEXT)
    for _ in range(20):
        drawn, test = raw(random) if random.random() < 0.2 else combine(random, fields)
        expected = {point_id(p.passage_id) for p in PASSAGES if test(p)}
        requests = [
            Request(dense, "dense", SIZE, filter=drawn),
            Request(terms, "bm25", SIZE, filter=drawn),
        ]
        answers = []
        for engine in (pair.embedded, pair.server):
            counted = engine.count(pair.collection, count_filter=drawn)
            assert counted.count == len(expected), (engine.where, drawn)
            answers.append(engine.query_scores(pair.collection, requests))
        for leg, (ours, theirs) in enumerate(zip(*answers, strict=True)):
            assert dict(zip(ours.ids, ours.scores, strict=True)) == pytest.approx(
                dict(zip(theirs.ids, theirs.scores, strict=True)), abs=1e-5
            )
            assert set(ours.ids) == expected if leg == 0 else set(ours.ids) <= expected
