"""Take the README's screenshots of the search page, on the Python docs and a real server.

    python tests/bench/screenshots.py DATA BUNDLE

DATA and BUNDLE are what `make demo` leaves in demo/. Writes docs/img/*.png.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import running_browser  # noqa: E402
from playwright.sync_api import Browser  # noqa: E402
from services import running_qdrant, running_service  # noqa: E402

from two_tower.ingest.loading import loader  # noqa: E402
from two_tower.ingest.versions import versions as collections  # noqa: E402
from two_tower.models.bundle.bundle import ModelBundle  # noqa: E402
from two_tower.models.data import Dataset  # noqa: E402
from two_tower.retriever.engine.connect import connect  # noqa: E402

CORPUS = "python-docs"
LARGEST = 150 * 1024
EXAMPLES = (
    "split a string into words",
    "how do I run a command and read its output",
    "remove duplicate rows",
    "parse a date from text",
)
QUERY = "read a file line by line"


class Shot(NamedTuple):
    """One picture."""

    name: str
    asked: dict[str, str]
    width: int
    height: int
    scheme: str = "light"


SHOTS = (
    Shot("search", {"q": QUERY}, 1160, 720),
    Shot("compare", {"q": QUERY, "mode": "bm25", "compare": "reranked"}, 1160, 720, "dark"),
    Shot("phone", {"q": QUERY, "filter": '{"kind":["function"]}'}, 390, 780),
)


def take(browser: Browser, url: str, shot: Shot) -> None:
    page = browser.new_page(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme=shot.scheme,  # type: ignore[arg-type]
    )
    for _ in range(3):  # the first searches warm the engine; the picture shows its usual times
        page.goto(f"{url}/?{urlencode(shot.asked)}")
        page.locator(".hit").first.wait_for()
    target = ROOT / "docs" / "img" / f"{shot.name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=target)
    page.close()
    if target.stat().st_size > LARGEST:
        sys.exit(f"{target} has {target.stat().st_size:,} bytes; expected at most {LARGEST:,}")
    print(f"Wrote {target.relative_to(ROOT)}")


def main() -> None:
    data, bundle = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder, running_qdrant(Path(folder, "qdrant")) as qdrant:
        engine = connect(url=qdrant.url)
        report = loader.load(engine, Dataset.open(data), ModelBundle.load(bundle), name=CORPUS)
        collections.promote(engine, CORPUS, report.collection)
        engine.close()
        flags = ["--url", qdrant.url]
        flags += [word for text in EXAMPLES for word in ("--example", text)]
        with (
            running_service(Path(folder), bundle, *flags, name=CORPUS) as service,
            running_browser() as browser,
        ):
            for shot in SHOTS:
                take(browser, service.url, shot)


if __name__ == "__main__":
    main()
