# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that use them)
import json
from pathlib import Path
from urllib.parse import quote

from conftest import make_passages
from page import (
    ATTACK,
    IMAGE,
    OPENED,
    QUERY,
    browser,
    expected,
    hits,
    page,
    page_folder,
    qdrant,
    search,
    service,
    wait_for_hits,
)
from playwright.sync_api import Browser, Page, expect
from services import Qdrant, Service, load, running_service, until


def test_typing_shows_hits_with_marks_bars_and_times(page: Page, service: Service) -> None:
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type(QUERY)
    wait_for_hits(page, expected(service))
    first = page.locator(".hit").first
    assert set(first.locator("mark").all_inner_texts()) <= {"storm", "river", "bank"}
    assert first.locator(".stages dt").all_inner_texts() == ["Tower", "BM25", "Rerank", "Score"]
    widths = [
        bar.bounding_box()["width"]  # type: ignore[index]
        for bar in page.locator(".stage-bm25 .bar i").all()
    ]
    assert max(widths) > 20
    assert min(widths) < max(widths)
    expect(page.locator(".timings strong")).to_contain_text("ms")
    assert page.locator(".step-name").count() >= 3
    expect(page.locator("#status")).to_contain_text("Reranked: 10 hits in")
    assert "q=storm" in page.url
    page.reload()
    wait_for_hits(page, expected(service))


def test_the_start_offers_examples(page: Page, service: Service) -> None:
    expect(page.locator("#examples button")).to_have_text(["a sunny river", "bread <oven>"])
    page.click("text=bread <oven>")
    wait_for_hits(page, expected(service, query="bread <oven>"))
    expect(page.locator("#welcome")).to_be_hidden()
    page.press("#query", "Escape")
    expect(page.locator("#welcome")).to_be_visible()
    assert page.locator(".hit").count() == 0


def test_two_ways_side_by_side(page: Page, service: Service) -> None:
    search(page)
    page.check("text=BM25", force=True)
    page.check("#compare")
    page.select_option("#other", "reranked")
    expect(page.locator(".column")).to_have_count(2)
    lexical = {"legs": {"bm25": 100}, "rerank": False}
    lists = [expected(service, settings=lexical), expected(service)]
    wait_for_hits(page, lists[0])
    wait_for_hits(page, lists[1], column=1)
    assert page.locator(".column h2").all_inner_texts() == ["BM25 10 hits", "Reranked 10 hits"]
    only = page.locator(".column").nth(1).locator(".hit", has_text="only here").count()
    assert only == len(set(lists[1]) - set(lists[0]))
    boxes = [column.bounding_box() for column in page.locator(".column").all()]
    assert boxes[0]
    assert boxes[1]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_filters(page: Page, service: Service) -> None:
    search(page)
    page.click("#show-filter")
    for field, value in (("kind", "note"), ("kind", "manual"), ("year", "2005..2012")):
        page.select_option("#field", field)
        page.fill("#value", value)
        with page.expect_response("**/search"):
            page.click("#filter button")
    wanted = {"kind": ["note", "manual"], "year": {"gte": 2005, "lte": 2012}}
    expect(page.locator(".chips li")).to_have_count(2)
    wait_for_hits(page, expected(service, filter=wanted))
    page.select_option("#field", "year")
    page.fill("#value", "not a year")
    page.click("#filter button")
    expect(page.locator("#value")).to_have_attribute("aria-invalid", "true")
    with page.expect_response("**/search"):
        page.click("button[aria-label='Remove filter kind']")
    with page.expect_response("**/search"):
        page.click("button[aria-label='Remove filter year']")
    wait_for_hits(page, expected(service))


def test_a_field_of_a_hit_is_a_filter_and_similar_is_a_search(page: Page, service: Service) -> None:
    search(page)
    first = hits(page)[0]
    page.locator(".hit").first.locator("text=Similar").click()
    expect(page.locator(".column h2")).to_contain_text("Similar to")
    answer = service.get(f"/similar?passage_id={first}").json
    wait_for_hits(page, [hit["passage_id"] for hit in answer["hits"]])
    page.click("text=← Back")
    expect(page.locator(".column h2")).to_contain_text("Reranked")
    button = page.locator(".hit .field", has_text="kind").first
    kind = button.inner_text().removeprefix("kind").strip()
    button.click()
    expect(page.locator(".chips")).to_contain_text(kind)
    wait_for_hits(page, expected(service, filter={"kind": [kind]}))


def test_what_a_passage_holds_is_text(page: Page) -> None:
    page.goto("/?q=hostile&mode=bm25")
    assert {"h1", "h2", "h3", "<b>h4</b>"} == set(hits(page))
    for summary in page.locator("summary").all():
        summary.click()
    script = page.locator('[data-passage="h1"]')
    assert ATTACK in script.locator("h3").inner_text()
    assert IMAGE in script.locator(".text").inner_text()
    assert IMAGE in page.locator('[data-passage="h3"] .field').inner_text()
    assert page.locator("main img, main script, main b:not(.timings b)").count() == 0
    links = [str(link.get_attribute("href")) for link in page.locator(".hit h3 a").all()]
    assert all(link.startswith(("http://", "https://")) for link in links)
    assert page.locator('[data-passage="h1"] h3 a').count() == 0
    assert "<" not in "".join(links)
    page.locator('[data-passage="h3"] h3').hover()
    assert page.title() == "Search service_test"


def test_the_dashboard_is_one_click_away(page: Page, qdrant: Qdrant, service: Service) -> None:
    search(page)
    page.locator("summary").first.click()
    collection = service.get("/collection").json["collection"]
    link = page.locator(".dashboard").first
    assert link.get_attribute("href") == f"{qdrant.url}/dashboard#/collections/{collection}"
    hit = service.post("/search", {"query": QUERY}).json["hits"][0]
    assert page.locator(".point code").first.inner_text() == hit["point_id"]


def test_nothing_found_and_mistakes_are_said(page: Page) -> None:
    page.goto("/?q=river&filter=" + quote(json.dumps({"kind": ["none of these"]})))
    expect(page.locator(".none")).to_contain_text("No passage passes")
    page.goto("/?q=river&filter=" + quote(json.dumps({"nope": ["x"]})))
    expect(page.locator("#problem")).to_contain_text("cannot filter by 'nope'")
    page.click("button[aria-label='Remove filter nope']")
    expect(page.locator("#problem")).to_be_hidden()
    assert hits(page)


def test_the_page_waits_for_the_engine(page: Page, qdrant: Qdrant) -> None:
    search(page)
    qdrant.kill()
    page.fill("#query", "river")
    expect(page.locator("#problem")).to_contain_text("the vector engine does not answer")
    assert page.locator(".hit").count() == 0
    qdrant.start()
    expect(page.locator(".hit").first).to_be_visible(timeout=15_000)
    expect(page.locator("#problem")).to_be_hidden()


def test_the_page_asks_for_the_key(browser: Browser, page_folder: Path, tiny_bundle: Path) -> None:
    load(page_folder, tiny_bundle, make_passages(10), path=page_folder / "edge")
    key = {"TWO_TOWER_SERVICE_KEY": "open-sesame"}
    with running_service(
        page_folder, tiny_bundle, "--path", page_folder / "edge", **key
    ) as service:
        page = browser.new_page(base_url=service.url)
        page.goto("/?q=river")
        expect(page.locator("#problem")).to_contain_text("Authorization: Bearer")
        page.fill("#key", "wrong-sesame")
        page.click("#key-form button")
        expect(page.locator("#problem")).to_be_visible()
        page.fill("#key", "open-sesame")
        page.click("#key-form button")
        assert len(hits(page)) == 10
        expect(page.locator("#key-form")).to_be_hidden()
        page.close()


def test_what_answers_is_one_click_away(
    browser: Browser, qdrant: Qdrant, page_folder: Path, tiny_bundle: Path
) -> None:
    """Only where a log is kept, and the page says so; a link, an opened passage are clicks."""
    log = page_folder / "log"

    def events() -> list[tuple[str, str, int]]:
        rows = [
            json.loads(line) for p in log.glob("events-*") for line in p.read_text().splitlines()
        ]
        return [
            (row["action_name"], about["object"]["object_id"], about["position"]["ordinal"])
            for row in rows
            for about in [row["event_attributes"]]
        ]

    flags = ("--url", qdrant.url, "--log", log)
    with running_service(page_folder, tiny_bundle, *flags) as service:
        page = browser.new_page(base_url=service.url)
        page.goto("/")
        expect(page.locator("#kept")).to_be_visible()
        search(page)
        second = page.locator(".hit").nth(1)
        passage_id = str(second.get_attribute("data-passage"))
        second.get_by_text("This answers it").click()
        expect(second.get_by_text("Thank you")).to_be_disabled()
        second.get_by_text("Whole passage").click()
        until(lambda: len(events()) == 2)
        assert events() == [("answers", passage_id, 2), ("click", passage_id, 2)]
        page.close()
        searched = [
            json.loads(line) for p in log.glob("queries-*") for line in p.read_text().splitlines()
        ]
        assert {row["user_query"] for row in searched} == {QUERY}
        assert len({row["client_id"] for row in searched}) == 1
