"""REPORT of `retriever tune`: its files, the page among them, which needs nothing else.

tune.csv       every setting: what decides it, what was measured
tune.html      plots and tables; no script, no request; light and dark
*.png          the plots
settings.yaml  the recommended setting, for `ingest load --options` and `--settings`
"""

from pathlib import Path

from two_tower.models.files import write_bytes
from two_tower.models.provenance import commit
from two_tower.retriever.evaluation.page import COLOURS, PAGE, STYLE, escaped, table
from two_tower.retriever.evaluation.plots import front_plot, line_legend, line_plot
from two_tower.retriever.tuning.report import (
    LEGEND,
    Chart,
    charts,
    doubts,
    remark,
    save_png,
    table_rows,
    ties,
    to_csv,
    to_yaml,
    verdict,
)
from two_tower.retriever.tuning.tune import Tuning

MARKS = """
.front { fill: none; stroke: var(--soft); stroke-width: 1.2; }
.ring { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.said { background: var(--card); border-radius: .5rem; padding: .6rem .9rem; color: var(--ink); }
.said p { margin: .3rem 0; color: var(--ink); }
pre { background: var(--card); border-radius: .5rem; padding: .6rem .9rem; overflow-x: auto;
  font-size: .85rem; }
"""

SHOWN = {
    "fusion": "Fusion weights, both legs",
    "candidates": "Candidates per leg, both legs",
    "ef": "HNSW ef, and exact search",
    "pca": "PCA vectors, alone and rescored",
    "clusters": "Clusters and how many are looked into",
    "quantization": "Quantized copies and what of them is rescored",
}


def write_tuning(tuning: Tuning, folder: Path, *, data: str, split: str) -> None:
    """Write all files of a report into `folder`, making it where needed."""
    folder.mkdir(parents=True, exist_ok=True)
    source = f"{data} {split}, commit {commit()}"
    settings = to_yaml(tuning, source=source)
    texts = {
        "tune.csv": to_csv(tuning),
        "tune.html": to_html(tuning, source=source, settings=settings),
        "settings.yaml": settings,
    }
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())
    for chart in charts(tuning):
        save_png(chart, folder / f"{chart.name}.png")


def to_html(tuning: Tuning, *, source: str, settings: str) -> str:
    """Return the whole page.

    Args:
        tuning: what was measured.
        source: data, split and commit that it was measured with.
        settings: the text of settings.yaml.
    """
    counts = f"{tuning.queries:,} queries of {source}, over {tuning.passages:,} passages"
    tied = [f"<p>{escaped(said)}.</p>" for said in [ties(tuning)] if said]
    notes = [f'<div class="said"><p>{escaped(verdict(tuning))}.</p>{"".join(tied)}</div>']
    notes += [f'<p class="said">Warning: {escaped(doubt)}.</p>' for doubt in doubts(tuning)]
    if said := remark(tuning):
        notes.append(f"<p>{escaped(said)}.</p>")
    figures = "".join(_figure(chart) for chart in charts(tuning))
    parts = [
        f"<p>{len(tuning.rows)} settings on {escaped(counts)}.</p>",
        *notes,
        f'<h2>Plots</h2><div class="plots">{figures}</div>',
        f"<h2>Settings</h2><p>{escaped(LEGEND)}</p>",
    ]
    measured = {row.setting.sweep for row in tuning.rows}
    for sweep in (name for name in SHOWN if name in measured):
        rows = [row[1:] for row in table_rows(tuning, sweep)]
        parts.append(f"<h3>{escaped(SHOWN[sweep])}</h3>{table(rows)}")
    lines = "\n".join(_indented(line) for line in settings.split("\n"))
    parts.append(f'<h2>settings.yaml</h2><pre tabindex="0">{lines}</pre>')
    title = f"{tuning.collection}: {len(tuning.rows)} settings tried"
    return PAGE.format(title=escaped(title), style=STYLE + COLOURS + MARKS, body="\n".join(parts))


def _indented(line: str) -> str:
    """Return a line of YAML, where spaces at the start say what belongs to what."""
    return " " * (len(line) - len(line.lstrip(" "))) + escaped(line)


def _figure(chart: Chart) -> str:
    labels = {"x_label": chart.x_label, "y_label": chart.y_label}
    if chart.is_line:
        points = {name: [(p.x, p.y) for p in found] for name, found in chart.series.items()}
        plot = line_plot(points, **labels)
    else:
        plot = front_plot(chart.series, front=chart.front, marked=chart.marked, **labels)
    ring = " The ring is the recommended setting." if chart.marked else ""
    said = f"<figcaption>{escaped(chart.caption + ring)}</figcaption>"
    return f"<figure>{plot}{line_legend(list(chart.series))}{said}</figure>"
