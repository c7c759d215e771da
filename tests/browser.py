"""Headless Chromium, Debian's package, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from conftest import unavailable
from playwright.sync_api import Browser, sync_playwright

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
