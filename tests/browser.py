"""Headless Chromium, Debian's package, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from conftest import unavailable
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Start the Chromium at CHROMIUM_BINARY, else the one on the path."""
    binary = os.environ.get("CHROMIUM_BINARY") or shutil.which("chromium")
    if not binary:
        unavailable("no chromium here; install Debian's package, or set CHROMIUM_BINARY")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=list(FLAGS))
        yield browser
        browser.close()


def assert_nothing_is_cut_off(page: Page) -> None:
    """The page never scrolls sideways; a table does by itself, and only where there is no room."""
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    boxes = "[...document.querySelectorAll('.wide')]"
    hidden = page.evaluate(f"{boxes}.map((box) => box.scrollWidth - box.clientWidth)")
    if page.evaluate("innerWidth") >= 1200:
        assert max(hidden) <= 0
    reachable = page.evaluate(f"{boxes}.every((box) => box.tabIndex === 0)")
    assert reachable  # by keyboard
    first = page.evaluate(
        f"{boxes}.map((box) => box.querySelector('td').offsetWidth / box.clientWidth)"
    )
    assert max(first) < 0.6  # the column that stays leaves room for the others
