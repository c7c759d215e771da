"""The curves of `retriever tune` as data, and as PNG files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from two_tower.retriever.goals import OF_EXACT, RECALLS
from two_tower.retriever.plots import Point
from two_tower.retriever.schema import DENSE
from two_tower.retriever.tune import Tuning
from two_tower.retriever.tune_choice import COST, QUALITY, front
from two_tower.retriever.tune_measure import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
X_LABELS = {
    COST: "p95 of one query, ms",
    "memory": "memory of the vectors that are read, computed, MB",
    "bits": "bits per passage of the vectors searched",
    "clusters": "clusters",
    "ef": "HNSW ef, candidates that the graph search keeps",
    "candidates": "candidates of each leg",
    "tower weight": "tower weight, points of BM25 that a cosine of 1 is worth",
}
Series = dict[str, list[Point]]


@dataclass(frozen=True)
class Chart:
    """One plot: recall against something, over a logarithmic axis.

    Attributes:
        name: of its file.
        caption: what it shows, with counts.
        x_label: name and unit.
        y_label: name and unit.
        series: name -> points.
        is_line: whether the points of a series belong in a row; else the front is drawn.
        front: points that no other is better than in both respects, in order of x.
        marked: the recommended setting, where it is one of the points.
    """

    name: str
    caption: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]
    is_line: bool
    front: Sequence[Point] = ()
    marked: Sequence[Point] = ()


def charts(tuning: Tuning) -> list[Chart]:
    """Return the plots that there are measurements for."""
    alone = [row for row in tuning.rows if not row.setting.is_whole]
    whole = [row for row in tuning.rows if row.setting.is_whole]
    exact = QUALITY + OF_EXACT
    found = [
        _front_chart(tuning, alone, "exactness", quality=exact, cost=COST),
        _front_chart(tuning, whole, "quality", quality=QUALITY, cost=COST),
        _front_chart(tuning, alone, "memory", quality=exact, cost="memory"),
        _line_chart(tuning, "bits", _by_bits(alone)),
        _line_chart(tuning, "clusters", _by_clusters(alone)),
        _line_chart(tuning, "ef", _by_ef(alone)),
        _line_chart(tuning, "candidates", _by_candidates(whole)),
        _line_chart(tuning, "tower weight", _by_weight(whole)),
    ]
    return [chart for chart in found if _has_width(chart)]


def save_png(chart: Chart, path: Path) -> None:
    """Draw a chart into a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(chart.series.items()):
        style = "o-" if chart.is_line else "o"
        colour = COLOURS[number % len(COLOURS)]
        xs, ys = [p.x for p in points], [p.y for p in points]
        axes.plot(xs, ys, style, color=colour, markersize=5, label=name)
    if chart.front:
        xs, ys = [p.x for p in chart.front], [p.y for p in chart.front]
        axes.plot(xs, ys, "-", color="0.3", linewidth=1, zorder=1, label="Pareto front")
    for point in chart.marked:
        (ring,) = axes.plot([point.x], [point.y], "o", color="0.1", label="recommended")
        ring.set(markersize=13, fillstyle="none")
    _label_x(axes, sorted({p.x for points in chart.series.values() for p in points}), chart)
    axes.set_ylabel(chart.y_label)
    axes.set_title(chart.caption, fontsize=9, wrap=True)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path)


def _label_x(axes: "Axes", xs: Sequence[float], chart: Chart) -> None:
    """Number the places of the points of lines, elsewhere round places."""
    axes.set_xscale("log")
    axes.set_xlabel(chart.x_label)
    if chart.is_line:
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.set_xticks([], minor=True)
    else:
        axes.xaxis.set_major_formatter(_plain_number(xs))
        axes.xaxis.set_minor_formatter(_plain_number(xs))


def _plain_number(values: Sequence[float]) -> Callable[[float, float], str]:
    """Number 1, 2 and 5 of each decade; 3 and 7 as well where values span less than one."""
    digits = "12357" if values[-1] < 10 * values[0] else "125"
    return lambda value, _: f"{value:g}" if f"{value:e}"[0] in digits else ""


def _front_chart(
    tuning: Tuning, rows: Sequence[Row], name: str, *, quality: str, cost: str
) -> Chart:
    series: Series = {}
    for row in rows:
        series.setdefault(row.setting.sweep, []).append(_point(row, cost, quality))
    best = front(rows, quality, cost)
    chosen = [row for row in rows if row is tuning.recommended]
    what = "Searches by the tower's leg alone" if quality != QUALITY else "Searches by both legs"
    against = "exact search" if quality != QUALITY else "the qrels"
    return Chart(
        name=name,
        caption=(
            f"{what} against {against}: {len(rows)} settings, {tuning.queries:,} queries, "
            f"{tuning.passages:,} passages; the line is the Pareto front, {len(best)} of them."
        ),
        x_label=X_LABELS[cost],
        y_label=f"{quality}, mean of {tuning.queries:,} queries",
        series=series,
        is_line=False,
        front=[_point(row, cost, quality) for row in best],
        marked=[_point(row, cost, quality) for row in chosen],
    )


def _line_chart(tuning: Tuning, name: str, series: Series) -> Chart:
    count = len({point.label for points in series.values() for point in points})
    where = "both legs" if name in ("candidates", "tower weight") else "the tower's leg alone"
    what = QUALITY + OF_EXACT if name in ("bits", "clusters") else "recall"
    return Chart(
        name=name.replace(" ", "_"),
        caption=(
            f"{what} against {name}, {where}: {count} settings, {tuning.queries:,} queries, "
            f"{tuning.passages:,} passages."
        ),
        x_label=X_LABELS[name],
        y_label=f"{what}, mean of {tuning.queries:,} queries",
        series=series,
        is_line=True,
    )


def _by_bits(rows: Iterable[Row]) -> Series:
    """Group quantized and reduced vectors by how what they find is rescored."""
    series: Series = {}
    for row in sorted(rows, key=lambda row: row.bits):
        if row.setting.sweep in ("quantization", "pca"):
            kind = "" if row.setting.sweep == "quantization" else "PCA, "
            words = row.setting.label.split(", ")[-1].replace(" alone", "")
            how = "alone" if words.startswith("pca_") else words
            point = Point(row.setting.label, row.bits, row.mean(QUALITY + OF_EXACT))
            series.setdefault(kind + how, []).append(point)
    return series


def _by_clusters(rows: Iterable[Row]) -> Series:
    series: Series = {}
    for row in rows:
        if row.setting.sweep == "clusters":
            probes, clusters = row.setting.search.ann.n_probe, row.setting.options.clusters
            point = Point(row.setting.label, clusters, row.mean(QUALITY + OF_EXACT))
            series.setdefault(f"n_probe {probes}", []).append(point)
    return series


def _by_ef(rows: Iterable[Row]) -> Series:
    places = [(row, row.setting.search.ann.ef) for row in rows if row.setting.sweep == "ef"]
    return _by_measure(places, [name + OF_EXACT for name in RECALLS])


def _by_candidates(rows: Iterable[Row]) -> Series:
    counted = [row for row in rows if row.setting.sweep == "candidates"]
    places = [(row, row.setting.search.legs[DENSE]) for row in counted]
    return _by_measure(places, [name + of for name in RECALLS for of in ("", OF_EXACT)])


def _by_weight(rows: Iterable[Row]) -> Series:
    fused = [row for row in rows if row.setting.sweep == "fusion"]
    return _by_measure([(row, row.setting.search.tower_weight) for row in fused], RECALLS)


def _by_measure(places: Sequence[tuple[Row, float | None]], names: Sequence[str]) -> Series:
    """Return a series per measure; rows without a place on the axis are left out."""
    return {
        name: [Point(row.setting.label, x, row.mean(name)) for row, x in places if x is not None]
        for name in names
    }


def _point(row: Row, cost: str, quality: str) -> Point:
    return Point(row.setting.label, row.mean(cost), row.mean(quality))


def _has_width(chart: Chart) -> bool:
    return len({point.x for points in chart.series.values() for point in points}) > 1
