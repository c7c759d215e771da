"""What `retriever tune` found, as CSV, tables, sentences and a settings file."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import DENSE
from two_tower.retriever.evaluation.plots import Point
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.tuning.choice import COST, QUALITY, departures, front, half_interval
from two_tower.retriever.tuning.goals import COSTS, OF_EXACT, RECALLS
from two_tower.retriever.tuning.measure import Row
from two_tower.retriever.tuning.tune import Tuning

if TYPE_CHECKING:
    from matplotlib.axes import Axes


RECOMMENDED, TIED, ON_FRONT = "★", "≈", "•"

MOST_SHOWN = 4

NOISY = 0.25

HEAD = (
    *("sweep", "setting", "recall@1", "@10", "@100", "of exact @1", "@10", "@100"),
    *("p50 ms", "p95 ms", "MB", ""),
)

LEGEND = (
    f"{RECOMMENDED} recommended, {TIED} tied with it, {ON_FRONT} on a Pareto front of recall@10 "
    "and p95. recall@k is against the qrels; of exact, against exact search: of the tower's leg, "
    "or of both legs with 500 candidates each. Times are medians over rounds in which the default "
    "search was timed too. MB is computed: vectors in memory that a query reads, quantized copies "
    "and BM25 postings included, graphs and payloads not."
)


def to_csv(tuning: Tuning) -> str:
    """Return one line per setting with all that decides it and all that was measured."""
    text = io.StringIO()
    rows = [_record(row, tuning) for row in tuning.rows]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table_rows(tuning: Tuning, sweep: str | None = None) -> list[list[str]]:
    """Return the table of all settings, or those of one sweep, the head first."""
    best = fronts(tuning)
    found = [list(HEAD)]
    for row in tuning.rows:
        if sweep in (None, row.setting.sweep):
            recalls = [name + of for of in ("", OF_EXACT) for name in RECALLS]
            mark = _mark(row, tuning) + (ON_FRONT if row in best else "")
            numbers = [f"{row.mean(name):.3f}" for name in recalls]
            times = [f"{pace.ms:.1f}" for pace in row.times]
            costs = [*times, f"{row.memory_mb:,.1f}", mark]
            found.append([row.setting.sweep, row.setting.label, *numbers, *costs])
    return found


def _mark(row: Row, tuning: Tuning) -> str:
    if row is tuning.recommended:
        return RECOMMENDED
    return TIED if row in tuning.choice.tied else ""


def fronts(tuning: Tuning) -> list[Row]:
    """Return what is on a front: of the tower's leg by exactness, of both legs by the qrels."""
    alone = [row for row in tuning.rows if not row.setting.is_whole]
    whole = [row for row in tuning.rows if row.setting.is_whole]
    return [*front(alone, QUALITY + OF_EXACT), *front(whole, QUALITY)]


def verdict(tuning: Tuning) -> str:
    """Return in one line what is recommended, or that nothing meets the goal."""
    row = tuning.recommended
    names = dict.fromkeys(
        [c.measure for c in tuning.goal.conditions] + [tuning.goal.aim, QUALITY, "p95"]
    )
    said = f"{row.setting.label} ({', '.join(f'{name} {_value(row, name)}' for name in names)})"
    if tuning.is_met:
        return f"Recommended for {tuning.goal.text!r}: {said}"
    return f"no setting meets {tuning.goal.text!r}; the nearest is {said}"


def ties(tuning: Tuning) -> str | None:
    """Return what noise cannot tell from the recommended setting, and why that one is kept."""
    tied, aim = tuning.choice.tied, tuning.goal.aim
    if not tied:
        return None
    shown = [f"{row.setting.label} ({_value(row, aim)})" for row in tied[:MOST_SHOWN]]
    more = [f"{len(tied) - MOST_SHOWN} more, marked {TIED}"] if len(tied) > MOST_SHOWN else []
    return (
        f"Tied with it in {aim}, as far as these measurements can tell: "
        f"{', '.join([*shown, *more])}. Of all these it takes the least memory, then departs least "
        "from the defaults"
    )


def doubts(tuning: Tuning) -> list[str]:
    """Return what may be chance, for there are too few queries; nothing where all is settled."""
    return [*_doubt_of_best(tuning), *_doubts_of_goal(tuning), *_doubt_of_times(tuning)]


def _doubt_of_best(tuning: Tuning) -> Iterator[str]:
    found = tuning.separation
    whole = [row for row in tuning.rows if row.setting.is_whole]
    if found is None and len(whole) > 1:
        yield (
            f"too few queries to separate the settings: {QUALITY} of all {len(whole)} searches by "
            f"both legs is {whole[0].mean(QUALITY):.4f} on these {tuning.queries:,}"
        )
    if found is None or found.is_settled:
        return
    best, runner_up = found.best.setting.label, found.runner_up.setting.label
    yield (
        f"too few queries to separate the settings: {QUALITY} of the best two ({best}, "
        f"{runner_up}) differs by {found.difference:.4f} ± {found.half_width:.4f}, and "
        f"{found.alike} of {found.among} others cannot be told from the best; about "
        f"{found.needed:,} queries would separate these two"
    )


def _doubts_of_goal(tuning: Tuning) -> Iterator[str]:
    """Conditions on a recall that is nearer to its bound than its interval is wide."""
    row = tuning.recommended
    for measure, _, bound in tuning.goal.conditions:
        if measure in COSTS:
            continue
        half, gap = half_interval(row.values[measure]), abs(row.mean(measure) - bound)
        if gap < half:
            needed = (
                f"about {int(np.ceil(tuning.queries * (half / gap) ** 2)):,}" if gap else "more"
            )
            yield (
                f"too few queries to be sure of {bound:g} for {measure}, which is "
                f"{_value(row, measure)}; {needed} would tell"
            )


def _doubt_of_times(tuning: Tuning) -> Iterator[str]:
    row, goal = tuning.recommended, tuning.goal
    for measure in dict.fromkeys([goal.aim, *(c.measure for c in goal.conditions)]):
        if measure in ("p50", "p95") and getattr(row.times, measure).noise > NOISY:
            yield (
                f"{measure} of the recommended setting is {_value(row, measure)}: the machine was "
                "busy; measure again when it is not"
            )


def _value(row: Row, measure: str) -> str:
    """Return a value with its unit, or with half of its 95% interval."""
    if measure == "memory":
        return f"{row.memory_mb:,.1f} MB"
    if measure in COSTS:
        noise = getattr(row.times, measure).noise
        return f"{row.mean(measure):.1f} ms ± {min(noise, 9.99):.0%}"
    return f"{row.mean(measure):.4f} ± {half_interval(row.values[measure]):.4f}"


def remark(tuning: Tuning) -> str | None:
    """Return why the graph's ef makes no difference, where it makes none."""
    graph = [row for row in tuning.rows if row.setting.search.ann.ef and not row.setting.is_whole]
    if not graph or any(row.mean(RECALLS[-1] + OF_EXACT) < 1.0 for row in graph):
        return None
    above_kb = graph[0].setting.options.hnsw.above_kb
    return (
        "ef makes no difference here: segments with less than "
        f"{above_kb:,} kB of a vector (hnsw.above_kb) are searched exactly, without a graph"
    )


def to_yaml(tuning: Tuning, *, source: str) -> str:
    """Return the recommended setting for `ingest load --options` and `--settings`.

    Args:
        tuning: what was measured.
        source: data, split and commit that it was measured with.
    """
    row = tuning.recommended
    found = {
        "collection": departures(row.setting.options, CollectionOptions()),
        "search": {"legs": dict(row.setting.search.legs)}
        | departures(row.setting.search, SearchSettings()),
    }
    measured = ", ".join(f"{name} {row.mean(name):.4f}" for name in row.values)
    comments = [
        verdict(tuning),
        f"Measured on {tuning.queries:,} queries of {source}",
        f"over {tuning.passages:,} passages of {tuning.collection}:",
        measured,
        ", ".join(f"{name} {_value(row, name)}" for name in COSTS) + " of vectors and postings.",
        *([f"{tied}."] if (tied := ties(tuning)) else []),
        "A cross-scorer took no part; where the bundle has one, `cross: true` lets it read.",
    ]
    text = yaml.safe_dump(found, sort_keys=False)
    return "".join(f"# {line}\n" for line in comments) + text


def _record(row: Row, tuning: Tuning) -> dict[str, Any]:
    search, options = row.setting.search, row.setting.options
    ann, copies = search.ann, options.quantization
    return {
        "sweep": row.setting.sweep,
        "setting": row.setting.label,
        "legs": " ".join(f"{name}:{limit}" for name, limit in search.legs.items()),
        "fusion": search.fusion,
        "tower_weight": search.tower_weight,
        "exact": ann.exact,
        "ef": ann.ef,
        "first_stage": ann.first_stage,
        "first_stage_candidates": ann.first_stage_candidates if ann.first_stage else None,
        "quantization": copies.kind,
        "quantization_bits": copies.bits if copies.kind == "binary" else None,
        "rescore": ann.rescore,
        "oversampling": ann.oversampling,
        "clusters": options.clusters,
        "n_probe": ann.n_probe,
        "above_kb": options.hnsw.above_kb,
        "queries": tuning.queries,
        "passages": tuning.passages,
        **{f"{name}_qrels": f"{row.mean(name):.6f}" for name in RECALLS},
        **{f"{name}_exact": f"{row.mean(name + OF_EXACT):.6f}" for name in RECALLS},
        "p50_ms": f"{row.times.p50.ms:.3f}",
        "p95_ms": f"{row.times.p95.ms:.3f}",
        "p50_noise": f"{row.times.p50.noise:.3f}",
        "p95_noise": f"{row.times.p95.noise:.3f}",
        "memory_mb_computed": f"{row.memory_mb:.3f}",
        "memory_mb_if_vectors_were_on_disk_computed": f"{row.on_disk_mb:.3f}",
        "bits_per_passage_searched": f"{row.bits:g}",
        "on_front": row in fronts(tuning),
        "recommended": row is tuning.recommended,
        "tied_with_recommended": row in tuning.choice.tied,
    }


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
