"""The page of a report in a real browser: from a file, offline, narrow, dark, hostile texts."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from browser import assert_nothing_is_cut_off, running_browser
from judged import NAME, load_judged, write_judged
from playwright.sync_api import Browser, Page
from typer.testing import CliRunner

from two_tower.models.data import Passage
from two_tower.retriever.cli import app
from two_tower.retriever.evaluation.plots import (
    Dot,
    line_chart,
    log_ticks,
    point_chart,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
HOSTILE = (
    Passage("<b>h1</b>", f"storm {ATTACK} {'x' * 400}", f"title {ATTACK}", "javascript:alert(1)"),
    Passage("h2", "\u202eriver 'quoted' \"twice\" &amp; </style></title></body> bank"),
)
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("report")
    data = write_judged(folder / "DATA", more=HOSTILE, words=f"storm {ATTACK} {'y' * 300}")
    load_judged(data, tiny_bundle, folder / "edge")
    where = ["--bundle", str(tiny_bundle), "--path", str(folder / "edge")]
    words = ["evaluate", NAME, str(data.path), *where, "--out", str(folder / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    """The page at a phone's width; an error or any request but its own file fails the test."""
    context = browser.new_context(viewport=PHONE, color_scheme=request.param, offline=True)
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("request", lambda request: problems.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert problems == [report.as_uri()]


def test_it_is_readable_at_every_width(page: Page) -> None:
    for size in (PHONE, {"width": 320, "height": 600}, DESK):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= size["width"]
        smallest = page.evaluate(
            """Math.min(...[...document.querySelectorAll("figure svg text, td, li, p")]
              .map((e) => e.getBoundingClientRect().height))"""
        )
        assert smallest >= 9


def test_the_columns_of_costs_are_in_sight(page: Page) -> None:
    for width in (360, 1200, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        assert_nothing_is_cut_off(page)


def test_numbers_marks_and_intervals_are_those_of_the_markdown(page: Page, report: Path) -> None:
    lines = (report.parent / "report.md").read_text(encoding="utf-8").splitlines()
    told = [line.replace("|", " ").split() for line in lines if line.startswith("| ")]
    shown = [text.split() for text in page.locator("table tr").all_inner_texts()]
    expected = [sorted(words) for words in told if words[0] != "------"]
    assert [sorted(words) for words in shown] == expected
    assert len(shown) > 10


def test_hostile_texts_are_texts(page: Page) -> None:
    assert page.title().startswith(f"{NAME}--")
    assert page.locator("script, img, iframe, link").count() == 0
    shown = page.locator("body").inner_text()
    assert "<script>document.title='owned'</script>" in shown
    assert "<b>h1</b>" in shown
    assert "</style></title></body> bank" in shown


def test_plots_have_units_and_counts_and_stay_inside(page: Page) -> None:
    plots = page.locator("figure > svg")
    assert plots.count() == 4
    words = [" ".join(plots.nth(i).locator("text").all_text_contents()) for i in range(4)]
    for text in words:
        assert "30 queries" in text
    assert "0 to 1" in words[0]
    assert "minus that of bm25" in words[1]
    assert "passages" in words[2]
    assert ", ms" in words[3]
    outside = page.evaluate(
        """[...document.querySelectorAll("figure > svg")].flatMap((svg) => {
          const box = svg.getBoundingClientRect();
          return [...svg.querySelectorAll("text, use, :not(defs) > path")].filter((e) => {
            const b = e.getBoundingClientRect();
            return b.left < box.left - 1 || b.right > box.right + 1
              || b.top < box.top - 1 || b.bottom > box.bottom + 1;
          }).map((e) => e.outerHTML);
        })"""
    )
    assert outside == []


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of `rgb(r, g, b)`."""
    parts = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_is_enough_in_light_and_dark(page: Page) -> None:
    style = "getComputedStyle(document.querySelector({!r})).{}"
    paper = luminance(page.evaluate(style.format("body", "backgroundColor")))
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (paper < 0.1) == is_dark
    parts = {"body": "color", "p": "color", "figure svg text": "fill", ".answer": "color"}
    for selector, name in parts.items():
        ink = luminance(page.evaluate(style.format(selector, name)))
        high, low = max(ink, paper), min(ink, paper)
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector


def shown(figure: "Figure") -> list[tuple[float, float, str]]:
    """The texts of a figure as a page has it, and where they are."""
    svg = to_svg(figure)
    assert svg == to_svg(figure)
    texts = re.findall(r'<text [^>]*?x="([-\d.]+)" y="([-\d.]+)"[^>]*>([^<]*)', svg)
    return [(float(x), float(y), html.unescape(text)) for x, y, text in texts]


def numbers(figure: "Figure") -> list[float]:
    return [float(text) for _, _, text in shown(figure) if re.fullmatch(r"[\d.]+", text)]


@pytest.mark.parametrize("shares", [[1.0, 1.0], [0.31, 0.99], [0.5, 0.5], [0.0, 1.0]])
def test_no_share_is_above_one(shares: list[float]) -> None:
    points = [Dot("a", x, y) for x, y in enumerate(shares, 3)]
    for figure in (
        line_chart({"a": points}, x_label="k", y_label="share"),
        point_chart({"": points}, is_named=True, x_label="ms", y_label="share"),
    ):
        ticks = [number for number in numbers(figure) if number < 2]
        assert 3 <= len(ticks) <= 12
        assert max(ticks) <= 1.0


def test_logarithmic_ticks_enclose() -> None:
    assert log_ticks(0.9, 14.9) == [0.5, 1, 2, 5, 10, 20]
    assert log_ticks(3, 3) == [2, 5]


def test_a_line_has_its_places_as_ticks_and_no_number_over_another() -> None:
    points = [Dot("", x, 0.5) for x in (16, 24, 25, 26, 48, 64)]
    figure = line_chart({"a": points}, x_label="bits", y_label="share")
    assert [number for number in numbers(figure) if number > 2] == [16, 24, 48, 64]


def test_names_and_ticks_of_a_scatter_plot_keep_apart_and_inside() -> None:
    """Four systems at nearly one place, and a range whose ticks are not nice ends themselves."""
    near = [Dot(name, 9.0 + i / 50, 0.843 - i / 1000) for i, name in enumerate("abcd")]
    points = [Dot("far", 1.3, 0.353), *near]
    texts = shown(point_chart({"": points}, is_named=True, x_label="ms", y_label="quality"))
    assert {"0.4", "0.6", "0.8", "1", "2", "5", "10"} <= {text for _, _, text in texts}
    assert all(0 <= y <= 230 and 0 <= x <= 330 for x, y, _ in texts)
    places = [(x, y) for x, y, text in texts if text in "abcd" and text]
    assert len(places) == 4
    for i, (x, y) in enumerate(places):
        for other_x, other_y in places[:i]:
            assert abs(x - other_x) > 8 or abs(y - other_y) > 11


def test_names_from_outside_are_text_in_a_plot() -> None:
    """Neither markup nor formulas; what is cut short is whole where the mouse rests."""
    names = ["$x_1^2$", "<b> & \"c\" 'd'", "漢字", "a long name " * 9]
    points = [Dot(name, 1.0 + i, i / 9) for i, name in enumerate(names)]
    svg = to_svg(point_chart({"": points}, is_named=True, x_label="ms", y_label="quality"))
    root = ElementTree.fromstring(svg)
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert [title.rpartition(": ")[0] for title in titles] == names
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {*names[:3], "a long name a long …"} <= texts
