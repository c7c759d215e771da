import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from service import LAYOUTS, layout_table

ROOT = Path(__file__).parent.parent


def test_the_page_has_the_table_of_the_results() -> None:
    result = json.loads((ROOT / "tests" / "bench" / "results" / "service.json").read_text())
    table = layout_table(result["layouts"])
    assert len(table.splitlines()) == 2 + len(LAYOUTS)
    assert table in (ROOT / "docs" / "service.md").read_text()
