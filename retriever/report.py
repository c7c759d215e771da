"""A `Report` as text for the screen, Markdown and JSON."""

import json
from pathlib import Path

from retriever.evaluate import MEASURES, Report, SystemResult


def to_markdown(report: Report) -> str:
    """Return a heading line and one table row per system, with half-widths of the intervals."""
    head = ["system", *MEASURES, "p50 ms", "p95 ms"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)] + [_row(s) for s in report.systems]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["| " + " | ".join(_pad(row, widths)) + " |" for row in rows]
    queries = report.systems[0].queries if report.systems else 0
    caption = (
        f"{report.data} {report.split}: {queries:,} queries over {report.passages:,} passages "
        f"of {report.collection}, commit {report.commit}. ± is half of the 95% bootstrap interval."
    )
    return "\n".join([caption, "", *lines])


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.md` into `folder`, making it where needed."""
    folder.mkdir(parents=True, exist_ok=True)
    payload = json.dumps(report.to_dict(), indent=2, ensure_ascii=False)
    (folder / "report.json").write_text(payload + "\n", encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(report) + "\n", encoding="utf-8")


def _row(result: SystemResult) -> list[str]:
    cells = []
    for measure in MEASURES:
        low, high = result.intervals[measure]
        cells.append(f"{result.metrics[measure]:.3f} ±{(high - low) / 2:.3f}")
    return [result.system, *cells, f"{result.p50_ms:.1f}", f"{result.p95_ms:.1f}"]


def _pad(row: list[str], widths: list[int]) -> list[str]:
    return [
        cell.replace("---", "-" * (width - len(cell) + 3))
        if cell.startswith("---")
        else cell.ljust(width)
        if column == 0
        else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
