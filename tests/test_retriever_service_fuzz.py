"""Throws anything at the service: it answers below 500, in its own form, and never a traceback.

For longer: SERVICE_FUZZ_SECONDS=300 pytest -s tests/test_retriever_service_fuzz.py
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, urlencode

import pytest
from conftest import make_passages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services import Answer, Service, load, running_qdrant, running_service

SECONDS = float(os.environ.get("SERVICE_FUZZ_SECONDS", "0"))
FIELDS = ("kind", "year", "rank", "title", "passage_id", "nope", "")
BOUNDS = ("gte", "gt", "lte", "lt", "text", "match")
LEGS = ("dense", "bm25", "pca_8", "pca_4", "nope")

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30]),
    st.floats(),
    st.text(),
    st.sampled_from(
        ["note", "2005", "2024-01-31", "storm on the river bank", "p7", "\ud800", "\0"]
    ),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
conditions = st.one_of(
    scalars,
    st.lists(scalars, max_size=3),
    st.dictionaries(st.sampled_from(BOUNDS), scalars, max_size=3),
    anything,
)
filters = st.dictionaries(st.sampled_from(FIELDS) | st.text(), conditions, max_size=3)
legs = st.dictionaries(st.sampled_from(LEGS), st.integers(-1, 1100) | scalars, max_size=3)
options = st.fixed_dictionaries(
    {},
    optional={
        "legs": legs | anything,
        "fusion": st.sampled_from(["learnt", "weighted", "rrf", "dbsf"]) | anything,
        "tower_weight": scalars,
        "rerank": scalars,
        "cross": scalars,
        "cross_candidates": st.integers(-1, 210) | scalars,
        "diversity": st.floats(0, 1) | scalars,
        "group_by": st.sampled_from(FIELDS) | scalars,
        "group_size": st.integers(0, 5) | scalars,
        "other": anything,
    },
)
queries = st.sampled_from(["storm on the river bank", "p7", "the"]) | st.text() | anything
bodies = st.fixed_dictionaries(
    {},
    optional={
        "query": queries,
        "passage_id": queries,
        "k": st.integers(-1, 120) | scalars,
        "filter": filters | anything,
        "settings": options | anything,
        "budget_ms": st.floats(0, 100) | scalars,
    },
)
good_bodies = st.fixed_dictionaries(
    {"query": st.sampled_from(["storm", "bread oven"]) | st.text(min_size=1)},
    optional={
        "k": st.integers(1, 100),
        "filter": st.dictionaries(st.sampled_from(FIELDS[:5]), conditions, max_size=2),
        "settings": options,
        "budget_ms": st.floats(1e-3, 100),
    },
)
words = st.sampled_from(["kind=note", "year>=2005", "title~river", "year=x", "=", "rank<1e400"])
parameters = st.dictionaries(
    st.sampled_from(["q", "k", "filter", "budget_ms", "passage_id", "x"]),
    st.lists(words | st.text(), max_size=3) | st.text() | st.integers(),
    max_size=5,
)


@pytest.fixture(scope="module", params=["server", "edge"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("fuzz")
    if request.param == "edge":
        load(folder, tiny_bundle, make_passages(60), path=folder / "edge")
        with running_service(folder, tiny_bundle, "--path", folder / "edge") as running:
            yield running
        return
    with running_qdrant(folder / "qdrant") as qdrant:
        load(folder, tiny_bundle, make_passages(60), url=qdrant.url)
        with running_service(folder, tiny_bundle, "--url", qdrant.url) as running:
            yield running


def check(service: Service, answer: Answer) -> None:
    assert answer.status < 500, answer.text
    assert "Traceback" not in answer.text
    shown = json.loads(answer.text, parse_constant=refuse)
    if answer.status == 200:
        assert isinstance(shown["hits"], list)
    else:
        assert set(shown) == {"error"}
        assert set(shown["error"]) == {"code", "message"}
        assert "\n" not in shown["error"]["message"]
        assert "Input should" not in shown["error"]["message"]
    assert service.process.poll() is None


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


def ask(service: Service, way: int, body: Any) -> Answer:
    if way == 0:
        return service.get(f"/search?{urlencode(body, doseq=True, errors='replace')}")
    if way == 1:
        return service.get(f"/similar?{urlencode(body, doseq=True, errors='replace')}")
    path = ("/search", "/similar")[way % 2]
    return service.post(path, body if isinstance(body, bytes) else json.dumps(body).encode())


requests = st.one_of(
    st.tuples(st.sampled_from([0, 1]), parameters),
    st.tuples(st.sampled_from([2, 3]), bodies),
    st.tuples(st.just(2), good_bodies),
    st.tuples(st.sampled_from([2, 3]), anything),
    st.tuples(st.sampled_from([2, 3]), st.binary(max_size=200)),
)
quick = settings(
    max_examples=700,
    deadline=None,
    derandomize=not SECONDS,
    suppress_health_check=list(HealthCheck),
    database=None,
)


def test_no_request_breaks_it(service: Service) -> None:
    end = time.monotonic() + SECONDS / 2  # two engines
    seen: dict[int, int] = {}

    @quick
    @given(thrown=requests)
    def throw(thrown: tuple[int, Any]) -> None:
        answer = ask(service, *thrown)
        seen[answer.status] = seen.get(answer.status, 0) + 1
        check(service, answer)

    throw()
    while time.monotonic() < end:
        throw()
    print(f"{sum(seen.values()):,} requests, by status: {dict(sorted(seen.items()))}")
    assert {200, 400, 422} <= set(seen), seen
    assert seen[200] > 40, seen
    assert "Traceback" not in service.log.read_text()


@settings(quick, max_examples=100)
@given(st.binary(max_size=100))
def test_no_address_breaks_it(service: Service, raw: bytes) -> None:
    answer = service.get(f"/{quote_from_bytes(raw, safe='/?&=')}")
    assert answer.status < 500
    assert "Traceback" not in answer.text
