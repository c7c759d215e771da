# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that use them)
import json
from urllib.parse import quote

import pytest
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
from playwright.sync_api import Browser, Page
from services import Service


def test_everything_works_with_the_keyboard(page: Page) -> None:
    search(page)
    focused = "document.activeElement.dataset.passage ?? document.activeElement.id"
    order = hits(page)
    page.locator("#query").blur()
    page.keyboard.press("/")
    assert page.evaluate(focused) == "query"
    assert page.input_value("#query") == QUERY
    for passage_id in order[:3]:
        page.keyboard.press("ArrowDown")
        assert page.evaluate(focused) == passage_id
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == order[1]
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "query"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == "query"
    page.keyboard.press("ArrowDown")
    page.route("http://example.org/**", lambda route: route.fulfill(body="there"))
    page.evaluate(
        """document.addEventListener("click", (event) => {
          event.preventDefault();
          window.went = event.target.href;
        })"""
    )
    page.keyboard.press("Enter")
    assert page.evaluate("window.went") == f"http://example.org/{order[0][1:]}"


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, service: Service) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 700}, base_url=service.url)
    page = context.new_page()
    for address in ("/", f"/?q={QUERY}", f"/?q={QUERY}&compare=bm25", "/?q=hostile"):
        page.goto(address)
        page.wait_for_load_state("networkidle")
        page.click("#show-filter")
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true;")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: Browser, service: Service, scheme: str) -> None:
    """Every visible text has the contrast that WCAG 2.1 AA asks for (4.5 to 1)."""
    context = browser.new_context(
        viewport=OPENED,
        base_url=service.url,
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.goto(f"/?q={QUERY}&compare=bm25&filter=" + quote(json.dumps({"kind": ["note"]})))
    assert hits(page)
    colours = page.evaluate(COLOURS)
    assert len(colours) > 20
    for text, background, words in colours:
        assert contrast(text, background) >= 4.5, (words, text, background)
    context.close()


COLOURS = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const opaque = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour.slice(0, 3);
    }
  };
  return [...document.querySelectorAll("body *")]
    .filter((e) => [...e.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim()))
    .filter((e) => e.checkVisibility({ opacityProperty: true }) && e.tagName !== "OPTION")
    .map((e) => [parts(getComputedStyle(e).color).slice(0, 3), opaque(e), e.textContent]);
}"""


def contrast(one: list[float], other: list[float]) -> float:
    """The contrast ratio of WCAG 2.1."""

    def luminance(colour: list[float]) -> float:
        shares = [part / 255 for part in colour]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_everything_that_can_be_used_has_a_name(page: Page) -> None:
    search(page)
    page.click("#show-filter")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, a")]
          .filter((e) => e.checkVisibility())
          .filter((e) => !e.textContent.trim() && !e.ariaLabel && !(e.labels && e.labels.length))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("[role=status][aria-live=polite]").count() == 1
    assert page.locator("html[lang=en]").count() == 1
