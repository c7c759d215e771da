"""The search page in a real browser, over a real service, with hostile passages among the rest."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import running_browser
from conftest import make_passages
from playwright.sync_api import Browser, Page, expect
from services import Qdrant, Service, load, running_qdrant, running_service, until

from two_tower.models.data import Passage

QUERY = "storm on the river bank"
ATTACK = "<script>document.title='owned'</script>"
IMAGE = "<img src=x onerror=\"document.title='owned'\">"
HOSTILE = [
    Passage("h1", f"hostile {ATTACK} words {IMAGE}", f"hostile {ATTACK}", "javascript:alert(1)"),
    Passage("h2", f"hostile {IMAGE}", f"hostile {IMAGE}", "data:text/html,<script>1</script>"),
    Passage(
        "h3",
        "hostile link",
        "hostile link",
        'https://example.org/"onmouseover="document.title=1',
        {"kind": IMAGE},
    ),
    Passage("<b>h4</b>", f"hostile {'x' * 400} without a space", "", " JaVaScRiPt:alert(1)"),
]
OPENED = {"width": 1200, "height": 800}


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def qdrant(page_folder: Path, tiny_bundle: Path) -> Iterator[Qdrant]:
    with running_qdrant(page_folder / "qdrant") as running:
        load(page_folder, tiny_bundle, [*make_passages(80), *HOSTILE], url=running.url)
        yield running


@pytest.fixture(scope="module")
def service(qdrant: Qdrant, page_folder: Path, tiny_bundle: Path) -> Iterator[Service]:
    flags = ("--url", qdrant.url, "--example", "a sunny river", "--example", "bread <oven>")
    with running_service(page_folder, tiny_bundle, *flags) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    """The page, opened; any script error or refused resource fails the test."""
    context = browser.new_context(viewport=OPENED, base_url=service.url)
    context.set_default_timeout(10_000)
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "console",
        lambda message: (
            problems.append(message.text) if "Content Security Policy" in message.text else None
        ),
    )
    opened.on(
        "request",
        lambda request: (
            problems.append(request.url) if not request.url.startswith(service.url) else None
        ),
    )
    opened.goto("/")
    yield opened
    context.close()
    assert problems == []


def hits(page: Page, column: int = 0) -> list[str]:
    """The passages in a column, read at one moment."""
    expect(page.locator(".hit").first).to_be_visible()
    found: list[str] = page.evaluate(
        """(at) => [...document.querySelectorAll(".column")[at]?.querySelectorAll(".hit") ?? []]
          .map((hit) => hit.dataset.passage)""",
        column,
    )
    return found


def wait_for_hits(page: Page, passage_ids: list[str], column: int = 0) -> None:
    until(lambda: hits(page, column) == passage_ids, seconds=10)


def expected(service: Service, **body: object) -> list[str]:
    answer = service.post("/search", {"query": QUERY, **body})
    return [hit["passage_id"] for hit in answer.json["hits"]]


def search(page: Page, words: str = QUERY) -> None:
    with page.expect_response("**/search"):
        page.fill("#query", words)
    expect(page.locator("body")).not_to_have_class("busy")
