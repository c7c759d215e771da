"""Plots as SVG text that sits in a page: no script, no font, colours from the page's CSS.

Widths are in units of a phone's pixels; the page scales the whole. Classes: `axis` lines, `grid`
lines, `c0` to `c7` colours of series, `zero` the line of no difference.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

WIDTH = 360

ROW = 22

RIGHT, TOP = 14, 8

PLOT_HEIGHT = 200

AXIS = 40

TICKS = 5

LABEL_GAP, LABEL_STEPS = 12, 16

CHAR = 6.2  # width of a character at the size of labels

COLOURS = 8

DASHES = ("", "6 3", "2 3")


class Interval(NamedTuple):
    """One row of an interval plot."""

    label: str
    value: float
    low: float
    high: float


class Point(NamedTuple):
    """One labelled point."""

    label: str
    x: float
    y: float


class Scale(NamedTuple):
    """Where values lie on an axis: `start` and `end` are the places of `low` and `high`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value."""
        low, high, value = (
            (math.log(v) if self.is_log else v) for v in (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def interval_plot(rows: Sequence[Interval], *, label: str, is_difference: bool = False) -> str:
    """Return a dot with its interval per row, over an axis named `label`."""
    ends = [end for row in rows for end in (row.low, row.high)] + [0.0] * is_difference
    ticks = nice_ticks(min(ends), max(ends))
    left = min(WIDTH / 2, max(30.0, 8 + CHAR * max(len(row.label) for row in rows)))
    scale = Scale(ticks[0], ticks[-1], left, WIDTH - RIGHT)
    bottom = TOP + ROW * len(rows)
    parts = [_x_axis(scale, ticks, bottom=bottom, label=label)]
    if is_difference:
        parts.append(_line(scale.at(0), TOP, scale.at(0), bottom, "zero"))
    for number, row in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        parts.append(_text(left - 6, y + 4, row.label, anchor="end"))
        parts.append(_line(scale.at(row.low), y, scale.at(row.high), y, "whisker"))
        said = f"{row.label}: {row.value:.3f}, 95% interval {row.low:.3f} to {row.high:.3f}"
        parts.append(_dot(scale.at(row.value), y, "c0", said))
    return _svg(parts, height=bottom + AXIS, said=label)


def line_plot(
    series: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str
) -> str:
    """Return one line per series over a logarithmic x axis; the page needs a `line_legend`."""
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points]
    ticks = share_ticks(ys)
    x_scale = Scale(xs[0], xs[-1], 40, WIDTH - RIGHT, is_log=True)
    y_scale = Scale(ticks[0], ticks[-1], TOP + ROW + PLOT_HEIGHT, TOP + ROW)
    parts = [_x_axis(x_scale, xs, bottom=y_scale.start, label=x_label, top=y_scale.end)]
    parts.append(_y_axis(y_scale, ticks, label=y_label))
    for number, (name, points) in enumerate(series.items()):
        places = [(x_scale.at(x), y_scale.at(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{_colour(number)}" {_dash(number)} points="{path}"/>')
        for (x, y), (place_x, place_y) in zip(points, places, strict=True):
            parts.append(_dot(place_x, place_y, _colour(number), f"{name} at {x:g}: {y:.3f}"))
    return _svg(parts, height=y_scale.start + AXIS, said=f"{y_label} against {x_label}")


def line_legend(names: Sequence[str]) -> str:
    """Return the colours of a line plot as a list."""
    items = (
        f'<li><svg viewBox="0 0 28 10" width="28" height="10" aria-hidden="true">'
        f'<line class="{_colour(number)}" {_dash(number)} x1="0" x2="28" y1="5" y2="5"/></svg> '
        f"{html.escape(name)}</li>"
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def scatter_plot(points: Sequence[Point], *, x_label: str, y_label: str) -> str:
    """Return labelled points over a logarithmic x axis."""
    x_scale, y_scale = _point_scales(points)
    parts = _point_axes(points, x_label=x_label, y_label=y_label)
    parts += _labelled([p._replace(x=x_scale.at(p.x), y=y_scale.at(p.y)) for p in points], points)
    return _svg(parts, height=y_scale.start + AXIS, said=f"{y_label} against {x_label}")


def front_plot(
    groups: Mapping[str, Sequence[Point]],
    *,
    front: Sequence[Point],
    marked: Sequence[Point],
    x_label: str,
    y_label: str,
) -> str:
    """Return groups of points over a logarithmic x axis; the page needs a `line_legend`.

    Args:
        groups: name -> points; their labels are shown where the mouse rests.
        front: what the line `front` goes through.
        marked: what has a ring around it.
        x_label: name and unit of the x axis.
        y_label: of the y axis.
    """
    points = [point for group in groups.values() for point in group]
    x_scale, y_scale = _point_scales(points)
    parts = _point_axes(points, x_label=x_label, y_label=y_label)
    path = " ".join(f"{x_scale.at(p.x):.1f},{y_scale.at(p.y):.1f}" for p in front)
    parts.append(f'<polyline class="front" points="{path}"/>')
    for number, group in enumerate(groups.values()):
        for p in group:
            said = f"{p.label}: {p.y:.3f} at {p.x:.3g}"
            parts.append(_dot(x_scale.at(p.x), y_scale.at(p.y), _colour(number), said))
    for p in marked:
        x, y = x_scale.at(p.x), y_scale.at(p.y)
        parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="7"/>')
    return _svg(parts, height=y_scale.start + AXIS, said=f"{y_label} against {x_label}")


def _point_scales(points: Sequence[Point]) -> tuple[Scale, Scale]:
    """Return the x and the y scale that all points fit into."""
    xs, ys = [p.x for p in points], [p.y for p in points]
    x_ticks, y_ticks = log_ticks(min(xs), max(xs)), share_ticks(ys)
    return (
        Scale(x_ticks[0], x_ticks[-1], 40, WIDTH - RIGHT, is_log=True),
        Scale(y_ticks[0], y_ticks[-1], TOP + ROW + PLOT_HEIGHT, TOP + ROW),
    )


def _point_axes(points: Sequence[Point], *, x_label: str, y_label: str) -> list[str]:
    x_scale, y_scale = _point_scales(points)
    xs, ys = [p.x for p in points], [p.y for p in points]
    x_ticks, y_ticks = log_ticks(min(xs), max(xs)), share_ticks(ys)
    return [
        _x_axis(x_scale, x_ticks, bottom=y_scale.start, label=x_label, top=y_scale.end),
        _y_axis(y_scale, y_ticks, label=y_label),
    ]


def nice_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, about `TICKS` of them."""
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def share_ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers around values of which none can be above 1."""
    return [tick for tick in nice_ticks(min(values), max(values)) if tick <= 1.0]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, from at most `low` to at least `high`."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    numbers = [round(m * 10.0**d, 10) for d in decades for m in (1, 2, 5)]
    first = max(i for i, n in enumerate(numbers) if n <= low)
    last = min(i for i, n in enumerate(numbers) if n >= high and i > first)
    return numbers[first : last + 1]


class _Box(NamedTuple):
    """What a label or a dot covers."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        apart = self.right < other.left or other.right < self.left
        return not (apart or self.bottom < other.top or other.bottom < self.top)


def _labelled(places: Sequence[Point], points: Sequence[Point]) -> list[str]:
    """Dots at `places` with names beside them, on no other name or dot where there is room."""
    taken = [_Box(p.x - 4, p.y - 4, p.x + 4, p.y + 4) for p in places]
    parts: list[str] = []
    for place, point in zip(places, points, strict=True):
        box = _free_box(place, taken)
        taken.append(box)
        middle = (box.top + box.bottom) / 2
        near = box.left if box.left > place.x else box.right
        parts.append(_line(place.x, place.y, near, middle, "leader"))
        parts.append(_text(box.left + 2, middle + 4, point.label, anchor="start"))
        parts.append(_dot(place.x, place.y, "c0", f"{point.label}: {point.y:.3f} at {point.x:.3g}"))
    return parts


def _free_box(place: Point, taken: Sequence[_Box]) -> _Box:
    """Return where a label fits: beside its dot, else higher or lower, as near as can be."""
    width = CHAR * len(place.label) + 4
    boxes = []
    for step in range(LABEL_STEPS):
        for sign in (1, -1):
            middle = place.y + sign * step * LABEL_GAP / 2
            for left in (place.x + 9, place.x - 9 - width):
                box = _Box(left, middle - 6, left + width, middle + 6)
                if left >= 0 and box.right <= WIDTH and box.top >= TOP:
                    boxes.append(box)
    free = (box for box in boxes if not any(box.meets(other) for other in taken))
    return next(free, boxes[0] if boxes else _Box(0, place.y - 6, width, place.y + 6))


def _x_axis(
    scale: Scale, ticks: Sequence[float], *, bottom: float, label: str, top: float = TOP
) -> str:
    parts = [_line(scale.start, bottom, scale.end, bottom, "axis")]
    room = -math.inf
    for tick in ticks:
        x = scale.at(tick)
        parts.append(_line(x, top, x, bottom, "grid"))
        if x > room:  # no number over another
            parts.append(_text(x, bottom + 14, f"{tick:g}", anchor="middle"))
            room = x + CHAR * (len(f"{tick:g}") + 2)
    parts.append(_text(WIDTH - 2, bottom + 32, label, anchor="end"))
    return "".join(parts)


def _y_axis(scale: Scale, ticks: Sequence[float], *, label: str) -> str:
    parts = [_text(4, TOP + 8, label, anchor="start")]
    for tick in ticks:
        y = scale.at(tick)
        parts.append(_line(40, y, WIDTH - RIGHT, y, "grid"))
        parts.append(_text(34, y + 4, f"{tick:g}", anchor="end"))
    return "".join(parts)


def _svg(parts: Sequence[str], *, height: float, said: str) -> str:
    name = html.escape(said)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{name}">'
        f"{''.join(parts)}</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(x: float, y: float, kind: str, said: str) -> str:
    title = f"<title>{html.escape(said)}</title>"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{title}</circle>'


def _text(x: float, y: float, text: str, *, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _colour(number: int) -> str:
    return f"c{number % COLOURS}"


def _dash(number: int) -> str:
    pattern = DASHES[number // COLOURS % len(DASHES)]
    return f'stroke-dasharray="{pattern}"' if pattern else ""
