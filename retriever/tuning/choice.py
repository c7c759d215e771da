"""Which measured settings to keep: the front, the fusion, the recommended one, and its ties."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np

from two_tower.models.vectors import Float64Array
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.tuning.goals import COSTS, Goal
from two_tower.retriever.tuning.grid import HYBRID, LEARNT
from two_tower.retriever.tuning.measure import Row

QUALITY = "recall@10"

COST = "p95"

Z95 = 1.96

LEAST_TIME_NOISE = 0.05


class Choice(NamedTuple):
    """Which setting to keep.

    Attributes:
        row: the recommended one.
        tied: others that meet the goal as well, as far as these measurements can tell.
    """

    row: Row
    tied: tuple[Row, ...]


class Separation(NamedTuple):
    """Whether the queries tell the best settings apart.

    Attributes:
        best: the row with the highest mean.
        runner_up: the next whose mean differs.
        difference: of the means, best minus runner-up.
        half_width: of the 95% interval of that difference, query by query.
        needed: about how many queries would make the interval smaller than the difference.
        alike: how many settings cannot be told from the best.
        among: of how many.
    """

    best: Row
    runner_up: Row
    difference: float
    half_width: float
    needed: int
    alike: int
    among: int

    @property
    def is_significant(self) -> bool:
        """Whether the best is better than by chance."""
        return self.difference > self.half_width


def front(rows: Sequence[Row], quality: str, cost: str = COST) -> list[Row]:
    """Return the Pareto front, cheapest first: no other row is both as good and as cheap."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.mean(cost), -row.mean(quality))):
        if not best or row.mean(quality) > best[-1].mean(quality):
            best.append(row)
    return best


def choose_fusion(rows: Sequence[Row]) -> SearchSettings:
    """Return the default fusion, unless the best of `rows` beats it by more than chance could.

    The default is the weights that the bundle learnt, or else those that stand for none.
    """
    by_label = {row.setting.label: row for row in rows}
    default = by_label.get(LEARNT) or by_label.get("tower weight 15")
    if default is None:
        return HYBRID
    best = max(rows, key=lambda row: row.mean(QUALITY))
    gap, half_width = difference(best, default)
    return best.setting.search if gap > half_width else HYBRID


def recommend(rows: Sequence[Row], goal: Goal) -> Choice:
    """Return the row that meets the goal best, or misses it least.

    Where noise may have put it before others, those are tied with it, and the one that takes the
    least memory is kept, then the one with the fewest changes from the defaults, then the first.
    Only searches by both legs with the chosen fusion are asked: a goal of time and of exactness
    alone would else always leave a leg out, or take the weights that chance favours.
    """
    pool = [row for row in rows if row.setting.is_hybrid and row.setting.sweep != "fusion"]
    best = min(pool, key=lambda row: goal.order(row.mean))
    missed = goal.shortfall(best.mean)
    tied = [
        row
        for row in pool
        if goal.shortfall(row.mean) == missed and is_tied(row, best, measure=goal.aim)
    ]
    plainest = min(tied, key=_memory_and_changes)
    return Choice(plainest, tuple(row for row in tied if row is not plainest))


def is_tied(row: Row, best: Row, *, measure: str) -> bool:
    """Return whether noise can explain that `best` is ahead; memory is computed and has none."""
    if measure == "memory":
        return row.memory_mb == best.memory_mb
    if measure not in COSTS:
        gap, half_width = difference(best, row, measure)
        return gap <= half_width
    noise = np.hypot(*(getattr(each.latency, measure).noise for each in (row, best)))
    return row.mean(measure) <= best.mean(measure) * (1 + max(LEAST_TIME_NOISE, float(noise)))


def _memory_and_changes(row: Row) -> tuple[float, int]:
    setting = row.setting
    changes = count_changes(setting.options, CollectionOptions())
    return row.memory_mb, changes + count_changes(setting.search, SearchSettings())


def changes(value: Any, default: Any) -> dict[str, Any]:
    """Return the fields of a configuration that differ from another's, as plain values."""
    changed: dict[str, Any] = {}
    for name in (field.name for field in fields(value)):
        own, other = getattr(value, name), getattr(default, name)
        if own != other and is_dataclass(own):
            changed[name] = changes(own, other)
        elif own != other:
            changed[name] = dict(own) if isinstance(own, Mapping) else own
    return changed


def count_changes(value: Any, default: Any) -> int:
    """Return how many fields differ, each one of a section by itself."""
    if not is_dataclass(value):
        return int(value != default)
    names = (field.name for field in fields(value))
    return sum(count_changes(getattr(value, name), getattr(default, name)) for name in names)


def separate(rows: Sequence[Row]) -> Separation | None:
    """Return how well the queries tell the best search by both legs from the others, by qrels.

    None where all answer alike.
    """
    hybrid = [row for row in rows if row.setting.is_hybrid]
    best, *others = sorted(hybrid, key=lambda row: -row.mean(QUALITY))
    gaps = [difference(best, row) for row in others]
    place = next((place for place, (gap, _) in enumerate(gaps) if gap > 0), None)
    if place is None:
        return None
    gap, half_width = gaps[place]
    return Separation(
        best=best,
        runner_up=others[place],
        difference=gap,
        half_width=half_width,
        needed=int(np.ceil(len(best.values[QUALITY]) * (half_width / gap) ** 2)),
        alike=sum(each <= half for each, half in gaps),
        among=len(others),
    )


def difference(better: Row, other: Row, measure: str = QUALITY) -> tuple[float, float]:
    """Return by how much a mean recall is above another's, and half of the 95% interval of that.

    The interval is paired by query.
    """
    half_width = half_interval(better.values[measure] - other.values[measure])
    return better.mean(measure) - other.mean(measure), half_width


def half_interval(values: Float64Array) -> float:
    """Return half of the 95% interval of the mean of one value per query."""
    if len(values) < 2:
        return float("inf")
    return float(Z95 * values.std(ddof=1) / np.sqrt(len(values)))
