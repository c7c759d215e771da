"""The charts of a report, and how one becomes a part of a page: its text and colours are CSS's."""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from two_tower.models.drawing import COLOURS, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType


POINTS = 72  # in an inch; figures have that many dots, so that a dot is a point

FIGURE_WIDTH = 330  # points, near a phone's pixels; the page scales the whole

FIGURE_HEIGHT = 230

ROW, AXIS, LEGEND_ROW = 20, 50, 15

CHAR = 6.0  # width of a character, about

LONGEST_NAME = 20  # a name then fits beside its dot, wherever that is

SOFT, RULE, INK = "#61676e", "#d9dce0", "#1a1c1f"

VARIABLES = {colour: f"c{number}" for number, colour in enumerate(COLOURS)} | {
    SOFT: "soft",
    RULE: "rule",
    INK: "ink",
}
"""Colour in a figure -> CSS variable in a page, which has a light and a dark value."""

TITLE = "title-"


class Interval(NamedTuple):
    """One row of an interval chart."""

    label: str
    value: float
    low: float
    high: float


class Dot(NamedTuple):
    """One labelled dot."""

    label: str
    x: float
    y: float


@drawing()
def interval_chart(
    rows: Sequence[Interval], *, x_label: str, is_difference: bool = False
) -> "Figure":
    """Return a dot with its interval per row."""
    figure, axes = _new_figure(ROW * len(rows) + AXIS)
    if is_difference:
        axes.axvline(0, color=SOFT, linewidth=1.5)
    for number, row in enumerate(rows):
        title = f"{row.label}: {row.value:.3f}, 95% interval {row.low:.3f} to {row.high:.3f}"
        axes.plot([row.low, row.high], [number, number], "-", color=COLOURS[0], linewidth=2)
        _dot(axes, row.value, number, color=COLOURS[0], title=title)
    axes.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(x_label, loc="right")
    return figure


@drawing()
def line_chart(series: Mapping[str, Sequence[Dot]], *, x_label: str, y_label: str) -> "Figure":
    """Return one line per series over a logarithmic x axis."""
    figure, axes = _new_figure(FIGURE_HEIGHT)
    for name, points in series.items():
        xs, ys = [p.x for p in points], [p.y for p in points]
        (line,) = axes.plot(xs, ys, label=_short(name), linewidth=2)
        for p in points:
            title = f"{name} at {p.x:g}: {p.y:.3f}"
            _dot(axes, p.x, p.y, color=line.get_color(), title=title)
    xs = sorted({p.x for points in series.values() for p in points})
    _name_axes(axes, xs, x_label=x_label, y_label=y_label)
    _add_legend(figure, axes)
    return figure


@drawing()
def share_chart(series: Mapping[str, Sequence[Dot]], *, x_label: str, y_label: str) -> "Figure":
    """Return one line per series over an x axis from 0 to 1."""
    figure, axes = _new_figure(FIGURE_HEIGHT)
    for name, points in series.items():
        (line,) = axes.plot([p.x for p in points], [p.y for p in points], label=_short(name))
        for p in points:
            _dot(axes, p.x, p.y, color=line.get_color(), title=f"{name} at {p.x:.0%}: {p.y:.3f}")
    axes.set_xlim(0, 1.02)
    axes.set_xlabel(x_label, loc="right")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(y_label, loc="left", fontsize="medium")
    _add_legend(figure, axes)
    return figure


@drawing()
def point_chart(
    groups: Mapping[str, Sequence[Dot]],
    *,
    front: Sequence[Dot] = (),
    marked: Sequence[Dot] = (),
    is_named: bool = False,
    x_label: str,
    y_label: str,
) -> "Figure":
    """Return points over a logarithmic x axis: `front` in a line, rings around those `marked`.

    A legend names the groups, or each point has its name beside it. A page shows the names of all
    points where the mouse rests.
    """
    figure, axes = _new_figure(FIGURE_HEIGHT)
    axes.plot([p.x for p in front], [p.y for p in front], "-", color=SOFT, linewidth=1.2)
    for (name, group), color in zip(groups.items(), COLOURS, strict=False):
        axes.plot([], [], "o", color=color, label=_short(name))
        for p in group:
            _dot(axes, p.x, p.y, color=color, title=f"{p.label}: {p.y:.3f} at {p.x:.3g}")
    for p in marked:
        axes.plot(p.x, p.y, "o", color=INK, markersize=12, fillstyle="none", clip_on=False)
    points = [point for group in groups.values() for point in group]
    ticks = log_ticks(min(p.x for p in points), max(p.x for p in points))
    _name_axes(axes, ticks, x_label=x_label, y_label=y_label)
    if is_named:
        _name_points(figure, axes, points)
    else:
        _add_legend(figure, axes)
    return figure


@drawing()
def to_svg(figure: "Figure") -> Markup:
    """Return a figure as a part of a page, named by its axes for who cannot see it."""
    text = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    _, _, svg = text.getvalue().partition("<svg ")
    svg = re.sub(f'<g id="{TITLE}([0-9a-f]*)">', _title, svg)
    svg = re.sub(r'<g id="[^"]*"(/?)>', r"<g\1>", svg)  # ids must not repeat within a page
    for colour, variable in VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var(--{variable})")
    (axes,) = figure.axes
    label = " against ".join(filter(None, [axes.get_title(loc="left"), axes.get_xlabel()]))
    return Markup(f'<svg role="img" aria-label="{html.escape(label)}" {svg}')


def _title(group: re.Match[str]) -> str:
    """Return the start of a group whose id says what is shown where the mouse rests."""
    return f"<g><title>{html.escape(bytes.fromhex(group[1]).decode())}</title>"


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, from at most `low` to at least `high`."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    numbers = [round(m * 10.0**d, 10) for d in decades for m in (1, 2, 5)]
    first = max(i for i, n in enumerate(numbers) if n <= low)
    last = min(i for i, n in enumerate(numbers) if n >= high and i > first)
    return numbers[first : last + 1]


def _new_figure(height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure((FIGURE_WIDTH / POINTS, height / POINTS), dpi=POINTS, layout="constrained")
    axes = figure.subplots()
    axes.grid(color=RULE, linewidth=1)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.tick_params(length=0)
    return figure, axes


def _dot(axes: "Axes", x: float, y: float, *, color: "ColorType", title: str) -> None:
    """Draw a dot of its own, with an id that `to_svg` makes a title of."""
    named = TITLE + title.encode().hex()
    axes.plot(x, y, "o", color=color, markersize=6, clip_on=False, gid=named)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _name_axes(axes: "Axes", ticks: Sequence[float], *, x_label: str, y_label: str) -> None:
    """Name the axes of shares (y, none above 1) over a logarithmic x axis."""
    places = [math.log(x / ticks[0]) / math.log(ticks[-1] / ticks[0]) for x in ticks]
    names, room = [], 0.0
    for x, place in zip(ticks, places, strict=True):
        names.append(f"{x:g}" if place >= room else "")  # no number over another
        room = place + 0.08 if names[-1] else room
    span = ticks[-1] / ticks[0]
    axes.set_xscale("log")
    axes.set_xlim(ticks[0] * span**-0.04, ticks[-1] * span**0.04)
    axes.set_xticks(ticks, names)
    axes.minorticks_off()
    axes.set_xlabel(x_label, loc="right")
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 1 + (1 - low) / 50))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(y_label, loc="left", fontsize="medium")


def _name_points(figure: "Figure", axes: "Axes", points: Sequence[Dot]) -> None:
    """Write names beside dots, on no other name or dot where there is room, as near as can be."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    places = axes.transData.transform([(p.x, p.y) for p in points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    leader = {"arrowstyle": "-", "color": SOFT, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
    style: dict[str, Any] = {"va": "center", "arrowprops": leader, "in_layout": False}
    for point, (x, y) in zip(points, places, strict=True):
        name = _short(point.label)
        width = CHAR * len(name)
        offsets = [
            (left, up)
            for step in range(16)
            for up in (6.0 * step, -6.0 * step)
            for left in (9.0, -9.0 - width)
            if axes.bbox.x0 <= x + left <= FIGURE_WIDTH - width
            and axes.bbox.y0 <= y + up <= FIGURE_HEIGHT - 6
        ]
        boxes = [Bbox.from_bounds(x + left, y + up - 6, width, 12) for left, up in offsets]
        free = [number for number, box in enumerate(boxes) if not box.count_overlaps(taken)]
        best = free[0] if free else 0
        taken.append(boxes[best])
        axes.annotate(name, (point.x, point.y), offsets[best], textcoords="offset points", **style)


def _add_legend(figure: "Figure", axes: "Axes") -> None:
    """Name the series in as many columns as fit, and make the figure higher by their rows."""
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, int(FIGURE_WIDTH / (CHAR * max(map(len, names)) + 36)))
    rows = math.ceil(len(names) / columns)
    figure.set_figheight(figure.get_figheight() + rows * LEGEND_ROW / POINTS)
    spacing: dict[str, Any] = {"labelspacing": 0.2, "columnspacing": 1.2, "handlelength": 1.8}
    style: dict[str, Any] = {"loc": "outside lower left", "frameon": False, "fontsize": "small"}
    figure.legend(handles, names, ncols=columns, **style, **spacing)
