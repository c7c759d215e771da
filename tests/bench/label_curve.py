"""What labels of people are worth, with and without queries that a language model wrote.

    python tests/bench/label_curve.py

Reads the rows of tests/bench/results/ablation.json that learn from few labels (`100 labels`,
`genq`, `genq, 100 labels` and so on), prints their MRR@10 on dev as Markdown, and draws
docs/img/labels.png.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ablation_table import aligned, spread

from two_tower.models.drawing import COLOURS, drawing, save

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent / "results" / "ablation.json"
CHART = ROOT / "docs" / "img" / "labels.png"
LABELS = ("0", "100", "1,000", "11,992")
ROWS = {
    "people's labels alone": ("pretrained", "100 labels", "1,000 labels", "all labels"),
    "after generated queries": (
        "genq",
        "genq, 100 labels",
        "genq, 1,000 labels",
        "genq, all labels",
    ),
}
SYSTEMS = {"tower": "the tower alone", "hybrid": "with BM25"}
MEASURE = "mrr@10"


def values(report: Mapping[str, Any], row: str, system: str) -> list[float]:
    """Return the measure of every seed that all rows were measured with."""
    measured = [set(report["rows"][name]) for rows in ROWS.values() for name in rows]
    seeds = sorted(set.intersection(*measured))
    return [report["rows"][row][seed]["sets"]["dev"][system][MEASURE] for seed in seeds]


def to_markdown(report: Mapping[str, Any]) -> str:
    """Return a table: one row per number of labels."""
    heads = [f"{label}, {SYSTEMS[system]}" for system in SYSTEMS for label in ROWS]
    table = [["labels", *heads]]
    for place, labels in enumerate(LABELS):
        cells = [
            spread(values(report, rows[place], system))
            for system in SYSTEMS
            for rows in ROWS.values()
        ]
        table.append([labels, *cells])
    return "\n".join(aligned(table))


@drawing()
def draw(report: Mapping[str, Any], target: Path) -> None:
    """Draw MRR@10 against labels: a panel per system, a line with and one without."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(SYSTEMS))
    for panel, (system, caption) in zip(panels, SYSTEMS.items(), strict=True):
        for colour, (label, rows) in zip(COLOURS, ROWS.items(), strict=False):
            seeds = [values(report, row, system) for row in rows]
            panel.errorbar(
                range(len(LABELS)),
                [fmean(each) for each in seeds],
                yerr=[stdev(each) if len(each) > 1 else 0 for each in seeds],
                label=label,
                color=colour,
                marker="o",
                capsize=3,
            )
        if system == "hybrid":
            bm25 = report["bm25"]["dev"][MEASURE]
            panel.axhline(bm25, color=COLOURS[-1], linestyle=":", label="BM25 alone")
        panel.set_xticks(range(len(LABELS)), LABELS)
        panel.set_xlabel("queries that people judged")
        panel.set_ylabel(MEASURE.replace("mrr", "MRR"))
        panel.set_title(caption)
        panel.grid(alpha=0.3)
        panel.legend()
    save(figure, target, dpi=110)


def main() -> None:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(to_markdown(report))
    draw(report, CHART)


if __name__ == "__main__":
    main()
