import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import ROOT, make_bundle, make_passages
from services import NAME, Service, load, running_service, send
from typer.testing import CliRunner

from two_tower.retriever.cli import app

PASSAGES = make_passages(20)
QUERY = "storm on the river bank"
KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guards")


@pytest.fixture(scope="module")
def guarded(folder: Path, tiny_bundle: Path) -> Iterator[Service]:
    """With a key and a friendly origin, on the embedded engine."""
    load(folder, tiny_bundle, PASSAGES, path=folder / "edge")
    (folder / "key").write_text(f"{KEY}\n")
    flags = ("--key-file", folder / "key", "--cors-origin", "https://friend.example")
    with running_service(folder, tiny_bundle, "--path", folder / "edge", *flags) as running:
        yield running


@pytest.mark.parametrize("path", ["/", "/search?q=a", "/nope", "/page/app.js", "/health"])
def test_every_answer_has_the_security_headers(guarded: Service, path: str) -> None:
    right = {"Authorization": f"Bearer {KEY}"}
    headers = guarded.get(path, **right).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == ("no-cache" if path == "/" else "no-store")
    assert "Server" not in headers


def test_the_page_is_packaged_and_uses_nothing_from_elsewhere() -> None:
    page = ROOT / "retriever" / "service" / "page"
    assert '"page/*"' in (ROOT / "pyproject.toml").read_text()
    for file in page.iterdir():
        text = file.read_text(encoding="utf-8")
        assert "innerHTML" not in text
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert len(text.splitlines()) <= 300


def test_who_has_no_key_gets_nothing(guarded: Service) -> None:
    right = {"Authorization": f"Bearer {KEY}"}
    wrong = ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": KEY}, {"Authorization": ""})
    for path in ("/search?q=river", "/similar?passage_id=p1", "/collection", "/metrics", "/x"):
        for headers in wrong:
            answer = guarded.get(path, **headers)
            assert (answer.status, answer.code) == (401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert guarded.get(path, **right).status == (404 if path == "/x" else 200)
    for path in ("/", "/page/app.js", "/health", "/openapi.json"):
        assert guarded.get(path).status == 200
    assert guarded.get("/page/../search?q=river").status == 404
    assert KEY not in guarded.log.read_text()


def test_openapi_declares_the_key_where_there_is_one(guarded: Service) -> None:
    described = guarded.get("/openapi.json").json
    (name,) = described["components"]["securitySchemes"]
    scheme = described["components"]["securitySchemes"][name]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, methods in described["paths"].items():
        for method in methods.values():
            assert method.get("security") == (None if path == "/health" else [{name: []}]), path


def test_who_has_no_key_learns_nothing_about_the_body(guarded: Service) -> None:
    for body in (b"{", b"x" * 70_000, {"query": ""}):
        assert guarded.post("/search", body).status == 401
    doubled = guarded.get("/collection", Authorization=f"bearer  {KEY} ")
    assert doubled.status == 200


def test_only_named_origins_may_call(guarded: Service) -> None:
    friend = guarded.get("/health", Origin="https://friend.example").headers
    assert friend["Access-Control-Allow-Origin"] == "https://friend.example"
    stranger = guarded.get("/health", Origin="https://stranger.example").headers
    assert "Access-Control-Allow-Origin" not in stranger


def test_the_embedded_engine_has_no_dashboard(guarded: Service) -> None:
    about = guarded.get("/collection", Authorization=f"Bearer {KEY}").json
    assert about["dashboard"] is None
    assert about["passages"] == 20
    found = guarded.post("/search", {"query": QUERY, "k": 100}, Authorization=f"Bearer {KEY}")
    assert len(found.json["hits"]) == 20


def test_what_cannot_start_says_why_in_one_line(
    guarded: Service, folder: Path, tiny_bundle: Path
) -> None:
    other = make_bundle(folder / "other", seed=5)
    port = urlsplit(guarded.url).port
    load(folder, tiny_bundle, PASSAGES, path=folder / "another")
    cases = [
        ((NAME, "--bundle", other, "--path", folder / "another"), "was loaded with bundle"),
        (("nope", "--bundle", tiny_bundle, "--path", folder / "another"), "no collection 'nope'"),
        ((NAME, "--bundle", tiny_bundle, "--path", folder / "no"), "there is no embedded engine"),
        ((NAME, "--bundle", folder / "no"), "no"),
        ((NAME, "--bundle", tiny_bundle, "--path", folder / "edge"), "is in use by process"),
        (
            (NAME, "--bundle", tiny_bundle, "--port", str(port)),
            f"cannot listen at 127.0.0.1:{port}",
        ),
        (
            (NAME, "--bundle", tiny_bundle, "--key-file", folder / "absent"),
            "absent cannot be read (No such file or directory)",
        ),
    ]
    for flags, message in cases:
        words = ["serve", *map(str, flags), *([] if "--port" in flags else ["--port", "1025"])]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1, done.output
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: ")
        assert message in line


def test_passages_are_added_and_deleted_with_the_key(guarded: Service) -> None:
    right = {"Authorization": f"Bearer {KEY}"}
    new = {"passage_id": "new", "text": "A zeppelin moors at the mast.", "fields": {"wing": "none"}}
    words = {"query": "zeppelin mast", "k": 100, "filter": {"wing": ["none"]}}
    assert guarded.post("/passages", {"passages": [new]}).status == 401
    before = guarded.get("/health").json["passages"]
    answer = guarded.post("/passages", {"passages": [new]}, **right)
    assert answer.status == 200, answer.text
    assert (answer.json["added"], answer.json["replaced"]) == (1, 0)
    hits = guarded.post("/search", words, **right).json["hits"]
    assert [hit["passage_id"] for hit in hits] == ["new"]
    assert hits[0]["payload"]["wing"] == "none"
    assert guarded.get("/health").json["passages"] == before + 1
    again = guarded.post("/passages", {"passages": [new | {"text": "Another text."}]}, **right)
    assert (again.json["added"], again.json["replaced"]) == (0, 1)
    request = urllib.request.Request(
        f"{guarded.url}/passages?passage_id=new&passage_id=nobody", headers=right, method="DELETE"
    )
    assert send(request).json["deleted"] == 1
    assert send(request).json["deleted"] == 0
    assert guarded.post("/search", words, **right).json["hits"] == []
    assert guarded.get("/health").json["passages"] == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"passages": []}, 422),
        ({"passages": "text"}, 422),
        ({"passages": [{"text": "no id"}]}, 422),
        ({"passages": [{"passage_id": "", "text": "x"}]}, 422),
        ({"passages": [{"passage_id": "a", "text": "x", "kind": "not in fields"}]}, 422),
        ({"passages": [{"passage_id": "a", "text": "  "}]}, 400),
        ({"passages": [{"passage_id": "a", "text": "x"}] * 2}, 400),
    ],
    ids=str,
)
def test_passages_that_cannot_be_are_refused_in_one_line(
    guarded: Service, body: object, status: int
) -> None:
    before = guarded.get("/health").json["passages"]
    answer = guarded.post("/passages", body, Authorization=f"Bearer {KEY}")
    assert answer.status == status, answer.text
    assert "\n" not in answer.json["error"]["message"]
    assert guarded.get("/health").json["passages"] == before
