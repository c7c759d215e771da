"""Which measured settings to keep: the front, the fusion, the recommended one, and its ties."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

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


def recommend(rows: Sequence[Row], goal: Goal) -> tuple[Row, tuple[Row, ...]]:
    """Return the row that meets the goal best or misses it least, and the rows tied with it.

    Rows are tied where noise can explain their order. Of those the one that takes the least memory
    is recommended, then the one with the fewest changes from the defaults, then the first. Only
    searches by both legs with the chosen fusion are candidates: by time and exactness alone a
    search by one leg would always win, and by recall the weights that chance favours.
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
    return plainest, tuple(row for row in tied if row is not plainest)


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
        if own != other and is_dataclass(own) and other is not None:
            changed[name] = changes(own, other)
        elif own != other:
            plain = asdict(own) if is_dataclass(own) and not isinstance(own, type) else own
            changed[name] = dict(plain) if isinstance(plain, Mapping) else plain
    return changed


def count_changes(value: Any, default: Any) -> int:
    """Return how many fields differ, each one of a section by itself."""
    if not is_dataclass(value) or default is None:
        return int(value != default)
    names = (field.name for field in fields(value))
    return sum(count_changes(getattr(value, name), getattr(default, name)) for name in names)


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
