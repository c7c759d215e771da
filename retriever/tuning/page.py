"""REPORT of `retriever tune`: a folder of files, and a page that stands alone.

tune.csv       every setting: what decides it, what was measured
tune.html      plots and tables; no script, no request; light and dark
*.png          the plots
settings.yaml  the recommended setting, for `ingest load --options` and `--settings`
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import escape

from two_tower.models.drawing import drawing, save
from two_tower.models.files import write_bytes
from two_tower.models.provenance import commit
from two_tower.retriever.collection.schema import DENSE
from two_tower.retriever.evaluation.page import render
from two_tower.retriever.evaluation.plots import Dot, line_chart, point_chart, to_svg
from two_tower.retriever.tuning.choice import COST, QUALITY, front
from two_tower.retriever.tuning.goals import OF_EXACT, RECALLS
from two_tower.retriever.tuning.grid import Setting
from two_tower.retriever.tuning.measure import Row
from two_tower.retriever.tuning.report import (
    LEGEND,
    doubts,
    remark,
    table_rows,
    ties,
    to_csv,
    to_yaml,
    verdict,
)
from two_tower.retriever.tuning.tune import Tuning

if TYPE_CHECKING:
    from matplotlib.figure import Figure


TITLES = {
    "fusion": "Fusion weights, both legs",
    "candidates": "Candidates per leg, both legs",
    "rewrite": "A language model imagines an answer first (HyDE), both legs",
    "ef": "HNSW ef, and exact search",
    "pca": "PCA vectors, alone and rescored",
    "clusters": "Clusters and how many are looked into",
    "quantization": "Quantized copies and what of them is rescored",
}

X_LABELS = {
    COST: "p95 of one query, ms",
    "memory": "memory of the vectors that are read, computed, MB",
    "bits": "bits per passage of the vectors searched",
    "clusters": "clusters",
    "ef": "HNSW ef, candidates that the graph search keeps",
    "candidates": "candidates of each leg",
    "tower weight": "tower weight, points of BM25 that a cosine of 1 is worth",
}

PNG_DPI, CAPTION_WIDTH = 200, 70

Series = dict[str, list[Dot]]
"""Name in the legend -> points."""


class Chart(NamedTuple):
    """One plot: recall against something; `name` is that of its file."""

    name: str
    caption: str
    figure: "Figure"


def write_tuning(tuning: Tuning, folder: Path, *, data: str, split: str) -> None:
    """Write all files of a report into `folder`, making it where needed."""
    folder.mkdir(parents=True, exist_ok=True)
    source = f"{data} {split}, commit {commit()}"
    settings = to_yaml(tuning, source=source)
    charts = _charts(tuning)
    texts = {
        "tune.csv": to_csv(tuning),
        "tune.html": _to_html(tuning, charts, source=source, settings=settings),
        "settings.yaml": settings,
    }
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())
    for chart in charts:
        _save_png(chart, folder / f"{chart.name}.png")


def _to_html(tuning: Tuning, charts: Sequence[Chart], *, source: str, settings: str) -> str:
    sweeps = {row.setting.sweep for row in tuning.rows}
    tables = [
        (title, [row[1:] for row in table_rows(tuning, sweep)])
        for sweep, title in TITLES.items()
        if sweep in sweeps
    ]
    return render(
        "tuning/page.html.jinja",
        title=f"{tuning.collection}: {len(tuning.rows)} settings tried",
        tuning=tuning,
        source=source,
        verdict=verdict(tuning),
        ties=ties(tuning),
        doubts=doubts(tuning),
        remark=remark(tuning),
        figures=[(to_svg(chart.figure), chart.caption) for chart in charts],
        legend=LEGEND,
        tables=tables,
        settings=escape(settings),  # of more than one line
    )


@drawing()
def _save_png(chart: Chart, path: Path) -> None:
    """Write a chart with its caption above it."""
    chart.figure.suptitle(fill(chart.caption, CAPTION_WIDTH), x=0.02, ha="left", fontsize="small")
    chart.figure.set_figheight(chart.figure.get_figheight() + 0.5)
    save(chart.figure, path, dpi=PNG_DPI)


def _charts(tuning: Tuning) -> list[Chart]:
    """Return the plots that there are measurements for."""

    def in_sweep(sweep: str, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if row.setting.sweep == sweep]

    alone, hybrid = tuning.alone, tuning.hybrid
    ef, clustered = in_sweep("ef", alone), in_sweep("clusters", alone)
    candidates, fusion = in_sweep("candidates", hybrid), in_sweep("fusion", hybrid)
    by_bits = sorted(
        in_sweep("pca", alone) + in_sweep("quantization", alone), key=lambda row: row.bits
    )
    exact = [name + OF_EXACT for name in RECALLS]
    every = [name + suffix for name in RECALLS for suffix in ("", OF_EXACT)]
    recall = QUALITY + OF_EXACT
    bits = ((_rescoring(row.setting), row, row.bits, recall) for row in by_bits)
    clusters = (
        (f"n_probe {row.setting.search.ann.n_probe}", row, row.setting.options.clusters, recall)
        for row in clustered
    )
    efs = ((name, row, row.setting.search.ann.ef, name) for name in exact for row in ef)
    counts = (
        (name, row, row.setting.search.legs[DENSE], name) for name in every for row in candidates
    )
    weights = (
        (name, row, row.setting.search.tower_weight, name) for name in RECALLS for row in fusion
    )
    charts = [
        _front_chart(tuning, alone, "exactness", quality=recall, cost=COST),
        _front_chart(tuning, hybrid, "quality", quality=QUALITY, cost=COST),
        _front_chart(tuning, alone, "memory", quality=recall, cost="memory"),
        _line_chart(tuning, "bits", _series(bits), measure=recall),
        _line_chart(tuning, "clusters", _series(clusters), measure=recall),
        _line_chart(tuning, "ef", _series(efs)),
        _line_chart(tuning, "candidates", _series(counts), legs="both legs"),
        _line_chart(tuning, "tower weight", _series(weights), legs="both legs"),
    ]
    return [chart for chart in charts if chart is not None]


def _front_chart(
    tuning: Tuning, rows: Sequence[Row], name: str, *, quality: str, cost: str
) -> Chart | None:
    """Return settings by sweep, their Pareto front and the recommended one, if there is width."""

    def point(row: Row) -> Dot:
        return Dot(row.setting.label, row.mean(cost), row.mean(quality))

    series = _series((row.setting.sweep, row, row.mean(cost), quality) for row in rows)
    if not _has_width(series):
        return None
    best = [point(row) for row in front(rows, quality, cost)]
    marked = [point(row) for row in rows if row is tuning.recommended]
    searches = "both legs against the qrels"
    if quality != QUALITY:
        searches = "the tower's leg alone against exact search"
    caption = (
        f"Searches by {searches}: {len(rows)} settings, {_counts(tuning)}; the line is the Pareto "
        f"front, {len(best)} of them.{' The ring is the recommended setting.' if marked else ''}"
    )
    y_label = f"{quality}, mean of {tuning.queries:,} queries"
    figure = point_chart(series, front=best, marked=marked, x_label=X_LABELS[cost], y_label=y_label)
    return Chart(name, caption, figure)


def _line_chart(
    tuning: Tuning,
    name: str,
    series: Series,
    *,
    measure: str = "recall",
    legs: str = "the tower's leg alone",
) -> Chart | None:
    """Return one line per series, if there is width."""
    if not _has_width(series):
        return None
    settings = len({point.label for points in series.values() for point in points})
    caption = f"{measure} against {name}, {legs}: {settings} settings, {_counts(tuning)}."
    y_label = f"{measure}, mean of {tuning.queries:,} queries"
    figure = line_chart(series, x_label=X_LABELS[name], y_label=y_label)
    return Chart(name.replace(" ", "_"), caption, figure)


def _counts(tuning: Tuning) -> str:
    return f"{tuning.queries:,} queries, {tuning.passages:,} passages"


def _has_width(series: Series) -> bool:
    return len({point.x for points in series.values() for point in points}) > 1


def _rescoring(setting: Setting) -> str:
    """Return how the candidates of quantized or reduced vectors are rescored."""
    words = setting.label.split(", ")[-1]
    if setting.sweep == "quantization":
        return words
    return "PCA, alone" if words.endswith(" alone") else f"PCA, {words}"


def _series(entries: Iterable[tuple[str, Row, float | None, str]]) -> Series:
    """Group (series, row, x, measure); rows without a place on the axis are left out."""
    series: Series = {}
    for name, row, x, measure in entries:
        if x is not None:
            series.setdefault(name, []).append(Dot(row.setting.label, x, row.mean(measure)))
    return series
