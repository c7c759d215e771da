import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from conftest import Server, make_passages
from prometheus_client.parser import text_string_to_metric_families
from services import NAME, Service, load, running_service

from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.search.settings import AnnSettings
from two_tower.retriever.service.bodies import SettingsBody

PASSAGES = make_passages(120)
QUERY = "storm on the river bank"
KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def collection(folder: Path, tiny_bundle: Path, server: Server) -> Iterator[str]:
    loaded = load(folder, tiny_bundle, PASSAGES, url=server.url, api_key=server.api_key)
    yield loaded
    engine = server.connect()
    engine.delete_collection(loaded)
    engine.close()


@pytest.fixture(scope="module")
def service(folder: Path, tiny_bundle: Path, server: Server, collection: str) -> Iterator[Service]:
    key = {"QDRANT_API_KEY": server.api_key} if server.api_key else {}
    with running_service(folder, tiny_bundle, "--url", server.url, **key) as running:
        yield running


@pytest.fixture(scope="module")
def retriever(tiny_bundle: Path, server: Server, collection: str) -> Iterator[Retriever]:
    opened = Retriever.open(NAME, bundle=tiny_bundle, url=server.url, api_key=server.api_key)
    with opened:
        yield opened


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ({}, {}),
        ({"k": 3, "filter": {"kind": ["note"]}}, {"k": 3, "filter": {"kind": ["note"]}}),
        (
            {"filter": {"year": {"gte": 2005, "lt": 2010}}, "settings": {"rerank": False}},
            {
                "filter": {"year": {"gte": 2005, "lt": 2010}},
                "settings": SearchSettings(rerank=False),
            },
        ),
        (
            {"settings": {"legs": {"bm25": 30}, "fusion": "rrf", "rerank": False}},
            {"settings": SearchSettings(legs={"bm25": 30}, fusion="rrf", rerank=False)},
        ),
        (
            {"settings": {"group_by": "kind", "group_size": 2}},
            {"settings": SearchSettings(group_by="kind", group_size=2)},
        ),
    ],
)
def test_search_is_explain(
    service: Service,
    retriever: Retriever,
    body: dict[str, object],
    arguments: dict[str, object],
) -> None:
    answer = service.post("/search", {"query": QUERY, **body})
    assert answer.status == 200, answer.text
    expected = retriever.explain(QUERY, **arguments)  # type: ignore[arg-type]
    shown = answer.json
    assert [h["passage_id"] for h in shown["hits"]] == [h.passage_id for h in expected.hits]
    for hit, wanted in zip(shown["hits"], expected.hits, strict=True):
        assert hit["score"] == pytest.approx(wanted.score, abs=1e-5)
        assert set(hit["stages"]) == set(wanted.stages)
        assert (hit["title"], hit["text"], hit["url"]) == (wanted.title, wanted.text, wanted.url)
        assert hit["point_id"] == point_id(wanted.passage_id)
        assert hit["fields"] == {name: wanted.payload[name] for name in ("kind", "year", "rank")}
    assert tuple(shown["stages_run"]) == expected.stages_run
    assert set(shown["timings_ms"]) == set(expected.timings_ms)
    assert list(shown)[:3] == ["query", "hits", "timings_ms"]


def test_snippets_are_the_text_with_marks(service: Service) -> None:
    hit = service.post("/search", {"query": "storms at sea"}).json["hits"][0]
    assert "".join(s["text"] for s in hit["snippet"]) == hit["text"]
    assert "".join(s["text"] for s in hit["marked_title"]) == hit["title"]
    assert {s["text"] for s in hit["snippet"] if s["is_match"]} == {"storm"}


def test_get_is_post(service: Service) -> None:
    words = f"{quote(QUERY)}&k=4&filter=kind=note&filter=year%3E%3D2005"
    by_query = service.get(f"/search?q={words}")
    assert service.get(f"/search?query={words}").json["hits"] == by_query.json["hits"]
    wanted = {"kind": ["note"], "year": {"gte": 2005}}
    by_body = service.post("/search", {"query": QUERY, "k": 4, "filter": wanted})
    hits = [[h["passage_id"] for h in a.json["hits"]] for a in (by_query, by_body)]
    assert hits[0] == hits[1] != []


def test_similar(service: Service, retriever: Retriever) -> None:
    expected = [hit.passage_id for hit in retriever.similar("p7", k=5, filter={"kind": "note"})]
    by_body = service.post("/similar", {"passage_id": "p7", "k": 5, "filter": {"kind": "note"}})
    by_query = service.get("/similar?passage_id=p7&k=5&filter=kind=note")
    for answer in (by_body, by_query):
        assert [hit["passage_id"] for hit in answer.json["hits"]] == expected


def test_a_budget_of_nothing_skips_the_rerank(service: Service) -> None:
    for _ in range(3):  # what a stage costs is learnt from those before
        service.post("/search", {"query": QUERY})
    shown = service.post("/search", {"query": QUERY, "budget_ms": 1e-6}).json
    assert shown["skipped"] == ["rerank"]
    assert "rerank" not in shown["stages_run"]


LONG = json.dumps({"query": "x" * 70_000}).encode()


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "says"),
    [
        ("/search", {"query": " "}, 400, "invalid_query", "the query is empty"),
        ("/search", {"query": ""}, 422, "invalid_request", "body.query is '', expected 1 to 1"),
        ("/search", {"query": "x" * 20_000}, 422, "invalid_request", "expected 1 to 10000 chara"),
        ("/search", {"query": "a\0b"}, 400, "invalid_query", "U+0000"),
        ("/search", b'{"query": "\\ud800"}', 422, "invalid_request", "expected str"),
        ("/search", {"query": "a", "k": 101}, 400, "invalid_query", "at most 100"),
        ("/search", {"query": "a", "k": 0}, 422, "invalid_request", "body.k is 0, expected 1 or"),
        ("/search", {"query": "a", "q": 1}, 422, "invalid_request", "unknown key body.q; known:"),
        ("/search", {"query": "a", "filtr": 1}, 422, "invalid_request", "mean body.filter?"),
        ("/similar", {"passage": "a"}, 422, "invalid_request", "body.passage_id is missing"),
        ("/similar", {"passage_id": "a", "budget_ms": 1}, 422, "invalid_request", "known: pass"),
        (
            "/search",
            {"query": "a", "settings": {"grop_by": "kind"}},
            422,
            "invalid_request",
            "unknown key body.settings.grop_by; did you mean body.settings.group_by?",
        ),
        (
            "/search",
            {"query": "a", "settings": {"legs": {"dense": 0}}},
            422,
            "invalid_request",
            "body.settings.legs.dense is 0, expected 1 or more",
        ),
        ("/search", {"query": "a", "filter": {"nope": 1}}, 400, "invalid_query", "kind, "),
        ("/search", {"query": "a", "filter": {"year": 10**40}}, 400, "invalid_query", "year"),
        (
            "/search",
            {"query": "a", "filter": 5},
            422,
            "invalid_request",
            "5, expected keys and",
        ),
        ("/search", {"query": "a", "budget_ms": 0}, 422, "invalid_request", "0, expected above 0"),
        ("/search", b'{"query": "a", "budget_ms": NaN}', 422, "invalid_request", "a finite"),
        ("/search", {"query": "a", "settings": {"legs": {}}}, 400, "invalid_settings", "leg"),
        (
            "/search",
            {"query": "a", "settings": {"legs": {"pca_3": 9}}},
            400,
            "invalid_settings",
            "pca_8",
        ),
        (
            "/search",
            {"query": "a", "settings": {"legs": {"dense": 1001}}},
            400,
            "invalid_settings",
            "1000",
        ),
        ("/search", b"{", 422, "invalid_request", "the body is not JSON (Expecting"),
        ("/search", b"[" * 60_000, 400, "bad_request", "parsing"),
        ("/search", LONG, 413, "body_too_large", "65,536"),
        ("/similar", {"passage_id": "nope"}, 404, "not_found", "nope"),
        ("/nope", {}, 404, "not_found", ""),
        ("/health", {}, 405, "method_not_allowed", ""),
    ],
)
def test_bad_requests_are_told_apart(
    service: Service, path: str, body: object, status: int, code: str, says: str
) -> None:
    answer = service.post(path, body)
    assert (answer.status, answer.code) == (status, code), answer.text
    assert says in answer.json["error"]["message"]
    assert set(answer.json) == {"error"}
    assert set(answer.json["error"]) == {"code", "message"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "expected query, or q for short, and one of them alone"),
        ("q=a&query=b", "expected query, or q for short, and one of them alone"),
        ("query=", "query.query is '', expected 1 or more characters"),
        ("q=", "query.q is '', expected 1 or more characters"),
        ("q=a&k=x", "query.k is 'x', expected int"),
        ("q=a&k=0", "query.k is '0', expected 1 or more"),
        ("q=a&budget_ms=nan", "query.budget_ms is 'nan', expected a finite number"),
        (
            "q=a&filters=kind=note",
            "unknown parameter query.filters; known: query, q, k, filter, budget_ms",
        ),
        ("q=a" + "&filter=a" * 33, f"query.filter is {['a'] * 6}, expected at most 32 values"),
    ],
)
def test_bad_parameters_are_refused_in_the_words_of_a_body(
    service: Service, words: str, message: str
) -> None:
    answer = service.get(f"/search?{words}")
    assert (answer.status, answer.json["error"]["code"]) == (422, "invalid_request")
    assert answer.json["error"]["message"].replace(", ...]", "]") == message


def test_a_body_without_a_length_is_cut_off_too(service: Service) -> None:
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=10)
    chunks = (b"x" * 8192 for _ in range(9))
    connection.request("POST", "/search", chunks, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "body_too_large"
    connection.close()


def test_health_and_collection(service: Service, collection: str, retriever: Retriever) -> None:
    assert service.get("/health").json == {
        "status": "ready",
        "collection": collection,
        "fingerprint": retriever.metadata.bundle_fingerprint,
        "passages": 120,
        "is_current": True,
        "warnings": [],
    }
    about = service.get("/collection").json
    assert about["fields"]["kind"] == "keyword"
    assert about["fields"]["title"] == "text"
    assert list(about["modes"]) == ["bm25", "hybrid", "reranked"]
    assert set(about["examples"]) <= {passage.title for passage in PASSAGES}
    assert len(about["examples"]) == 4
    assert about["dashboard"].endswith("/dashboard")


def test_metrics_are_prometheus_text(service: Service) -> None:
    def read() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(service.get("/metrics").text)
        return {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}

    before = read()
    service.post("/search", {"query": QUERY})
    service.get("/some/made/up/path")
    after = read()

    def growth(*name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert growth("retriever_requests_total", "/search", "200") == 1
    assert growth("retriever_requests_total", "other", "404") == 1
    assert growth("retriever_request_seconds_count", "/search") == 1
    assert growth("retriever_stage_seconds_count", "candidates") == 1
    assert after["retriever_requests_in_flight",] == 1  # this one
    assert not any("/some/made/up/path" in name for name in after)


def test_without_a_key_nobody_changes_passages(service: Service) -> None:
    answer = service.post("/passages", {"passages": [{"passage_id": "new", "text": "x"}]})
    assert (answer.status, answer.code) == (403, "key_required")


def test_values_of_fields_are_counted(service: Service, retriever: Retriever) -> None:
    answer = service.get("/fields?field=kind&filter=year%3E%3D2005")
    expected = retriever.values("kind", filter={"year": {"gte": 2005}})
    assert answer.json == {"field": "kind", "values": [value._asdict() for value in expected]}
    for address in ("/fields?field=title", "/fields?field=nope", "/fields?field=kind&k=1000"):
        assert (service.get(address).status, service.get(address).code) == (400, "invalid_query")
    assert service.get("/fields").status == 422


def test_openapi_describes_what_is_there(service: Service) -> None:
    described = service.get("/openapi.json").json
    assert set(described["paths"]) == {
        *("/search", "/similar", "/events", "/fields", "/passages", "/collection", "/health"),
        "/metrics",
    }
    answers = described["paths"]["/search"]["post"]["responses"]
    assert {"200", "400", "413", "422", "429", "503", "504"} <= set(answers)
    schemas = described["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    assert "securitySchemes" not in described["components"]
    assert schemas["SettingsBody"]["properties"]["cross_candidates"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 200,
    }


def test_settings_of_a_request_are_those_of_the_library() -> None:
    # A stranger who may ask for exact search, or a language model, can overload the service.
    operators = {"ann", "rewrite"}
    library = set(SearchSettings.__dataclass_fields__)
    assert set(SettingsBody.model_fields) == library - operators
    default = SearchSettings(tower_weight=3.0, ann=AnnSettings(ef=77))
    assert SettingsBody().settings(default) == default
    changed = SettingsBody(legs={"bm25": 5}).settings(default)
    assert changed == replace(default, legs={"bm25": 5})


def test_searches_at_the_same_time_get_their_own_answers(
    service: Service, retriever: Retriever
) -> None:
    wishes = [{"k": 3}, {"k": 5}, {"k": 3, "filter": {"kind": ["note"]}}]
    asked = [{"query": p.content} | wishes[at % 3] for at, p in enumerate(PASSAGES[:48])]
    asked[20]["query"] = " "  # among those that are answered together with others
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda body: service.post("/search", body), asked))
    assert answers.pop(20).code == "invalid_query"
    del asked[20]
    for body, answer in zip(asked, answers, strict=True):
        arguments = {name: value for name, value in body.items() if name != "query"}
        expected = retriever.search(str(body["query"]), **arguments)
        assert answer.json["query"] == body["query"]
        assert [h["passage_id"] for h in answer.json["hits"]] == [h.passage_id for h in expected]
