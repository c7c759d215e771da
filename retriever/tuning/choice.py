"""Which measured settings to keep: the front, the fusion, the recommended; what chance hides."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np

from two_tower.models.vectors import Float64Array
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.tuning.goals import COSTS, Goal
from two_tower.retriever.tuning.grid import BOTH
from two_tower.retriever.tuning.measure import Row


def departures(value: Any, default: Any) -> dict[str, Any]:
    """Return the fields of a configuration that are not as in another, as plain values."""
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(value)):
        one, other = getattr(value, name), getattr(default, name)
        if one == other:
            continue
        if is_dataclass(one):
            found[name] = departures(one, other)
        else:
            found[name] = dict(one) if isinstance(one, Mapping) else one
    return found


def count_departures(value: Any, default: Any) -> int:
    """Return how many fields depart, each one of a section by itself."""
    return sum(
        count_departures(getattr(value, name), getattr(default, name))
        if is_dataclass(getattr(value, name))
        else 1
        for name in departures(value, default)
    )


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
    def is_settled(self) -> bool:
        """Whether the best is better than by chance."""
        return self.difference > self.half_width


def front(rows: Sequence[Row], quality: str, cost: str = COST) -> list[Row]:
    """Return the Pareto front, cheapest first: no other row is both as good and as cheap."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.mean(cost), -row.mean(quality))):
        if not found or row.mean(quality) > found[-1].mean(quality):
            found.append(row)
    return found


def choose_fusion(rows: Sequence[Row]) -> SearchSettings:
    """Return the default fusion, unless the best of `rows` beats it by more than chance could."""
    default = next((row for row in rows if _is_default(row, rows)), None)
    if default is None:
        return BOTH
    best = max(rows, key=lambda row: row.mean(QUALITY))
    is_better = difference(best, default) > half_width(best, default)
    return best.setting.search if is_better else BOTH


def recommend(rows: Sequence[Row], goal: Goal) -> Choice:
    """Return the row that meets the goal best, or misses it least.

    Where noise may have put it before others, those are tied with it, and the one that takes the
    least memory is kept, then the one that departs least from the defaults, then the first. Only
    searches by both legs with the chosen fusion are asked: a goal of time and of exactness alone
    would else always leave a leg out, or take the weights that chance favours.
    """
    pool = [row for row in rows if row.setting.is_whole and row.setting.sweep != "fusion"]
    best = min(pool, key=lambda row: goal.order(row.mean))
    missed = goal.shortfall(best.mean)
    tied = [
        row
        for row in pool
        if goal.shortfall(row.mean) == missed and is_tied(row, best, measure=goal.aim)
    ]
    kept = min(tied, key=_plainness)
    return Choice(kept, tuple(row for row in tied if row is not kept))


def is_tied(row: Row, best: Row, *, measure: str) -> bool:
    """Return whether noise can explain that `best` is ahead; memory is computed and has none."""
    if measure == "memory":
        return row.memory_mb == best.memory_mb
    if measure in COSTS:
        return row.mean(measure) <= best.mean(measure) * (1 + time_noise(row, best, measure))
    return difference(best, row, measure) <= half_width(best, row, measure)


def time_noise(one: Row, other: Row, measure: str) -> float:
    """Return by what share two times may differ by chance: 95% of the time, by their rounds."""
    paces = [getattr(row.times, measure) for row in (one, other)]
    return max(LEAST_TIME_NOISE, float(np.hypot(*(pace.noise for pace in paces))))


def _plainness(row: Row) -> tuple[float, int]:
    setting = row.setting
    departures = count_departures(setting.options, CollectionOptions())
    return row.memory_mb, departures + count_departures(setting.search, SearchSettings())


def separate(rows: Sequence[Row]) -> Separation | None:
    """Return how well the queries tell the best search by both legs from the others, by qrels.

    None where all answer alike.
    """
    whole = [row for row in rows if row.setting.is_whole]
    ranked = sorted(whole, key=lambda row: -row.mean(QUALITY))
    if not ranked:
        return None
    best, others = ranked[0], ranked[1:]
    runner_up = next((row for row in others if difference(best, row) > 0), None)
    if runner_up is None:
        return None
    gap, half = difference(best, runner_up), half_width(best, runner_up)
    return Separation(
        best=best,
        runner_up=runner_up,
        difference=gap,
        half_width=half,
        needed=int(np.ceil(len(best.values[QUALITY]) * (half / gap) ** 2)),
        alike=sum(difference(best, row) <= half_width(best, row) for row in others),
        among=len(others),
    )


def difference(better: Row, other: Row, measure: str = QUALITY) -> float:
    """Return by how much the mean recall of one row is above another's."""
    return better.mean(measure) - other.mean(measure)


def half_width(better: Row, other: Row, measure: str = QUALITY) -> float:
    """Return half of the 95% interval of that difference, paired by query."""
    return half_interval(better.values[measure] - other.values[measure])


def half_interval(values: Float64Array) -> float:
    """Return half of the 95% interval of the mean of one value per query."""
    if len(values) < 2:
        return float("inf")
    return float(Z95 * values.std(ddof=1) / np.sqrt(len(values)))


def _is_default(row: Row, rows: Sequence[Row]) -> bool:
    """The weights that the bundle learnt, or else those that stand for none."""
    labels = [each.setting.label for each in rows]
    default = "learnt weights" if "learnt weights" in labels else "tower weight 15"
    return row.setting.label == default
