"""One JSON form of a hit, wherever it is shown, and what it looks like in a notebook."""

import json

import pytest
from pydantic import TypeAdapter

from two_tower.retriever.records import Hit, SearchResult, Stage

TEXT = "A hamster sleeps by day and stuffs its cheeks, and all that at some length."
HIT = Hit(
    rank=1,
    passage_id="p1",
    score=1.5,
    title="Hamsters",
    text=TEXT,
    url="http://example.org",
    stages={"bm25": Stage(1.5, 2)},
    payload={"title": "Hamsters", "text": TEXT, "year": 2001, "tags": ["a", "b"]},
)
FORM = {
    "rank": 1,
    "passage_id": "p1",
    "score": 1.5,
    "title": "Hamsters",
    "text": TEXT,
    "url": "http://example.org",
    "stages": {"bm25": {"score": 1.5, "rank": 2}},
    "payload": {"title": "Hamsters", "text": TEXT, "year": 2001, "tags": ["a", "b"]},
}


def test_a_hit_has_one_json_form() -> None:
    assert HIT.to_dict() == FORM
    assert json.loads(json.dumps(HIT.to_dict())) == FORM
    assert json.loads(TypeAdapter(Hit).dump_json(HIT)) == FORM
    result = SearchResult("q", [HIT], {"encode": 0.12345}, ("bm25",))
    assert result.to_dict()["hits"] == [FORM]
    assert json.loads(TypeAdapter(SearchResult).dump_json(result))["hits"] == [FORM]
    with pytest.raises(TypeError, match="not JSON serializable"):  # and never an array
        json.dumps(HIT)


def test_a_fastapi_endpoint_answers_it() -> None:
    fastapi = pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    app = fastapi.FastAPI()

    @app.get("/typed")
    def typed() -> list[Hit]:
        return [HIT]

    @app.get("/untyped")
    def untyped():  # type: ignore[no-untyped-def]
        return {"hits": [HIT]}

    client = TestClient(app)
    assert client.get("/typed").json() == [FORM]
    assert client.get("/untyped").json() == {"hits": [FORM]}


def test_a_hit_shows_what_it_is_in_one_short_line() -> None:
    shown = repr(HIT)
    assert shown.startswith("Hit(rank=1, passage_id='p1', score=1.5, title='Hamsters', text='A ha")
    assert shown.endswith(", …)")
    assert len(shown) < 200
    assert "\n" not in repr(Hit(1, "p", 0.0, "a\nb", "c\nd" * 100, "", {}, {}))
