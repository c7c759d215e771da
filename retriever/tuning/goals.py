"""The goal of a tuning: `recall@10>=0.99 of exact, min p95`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from two_tower.models.errors import ConfigError

DEFAULT_GOAL = "recall@10>=0.99 of exact, min p95"

EXAMPLE = f"{DEFAULT_GOAL!r} or 'max recall@10, p95<=20 ms, memory<=500 MB'"

OF_EXACT = " of exact"

RECALLS = ("recall@1", "recall@10", "recall@100")

COSTS = ("p50", "p95", "memory")

MEASURE_NAME = r"(?P<measure>[a-z@0-9]+)"

CONDITION = re.compile(
    MEASURE_NAME
    + r"\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>[0-9.]+)\s*(?:ms|mb)?(?P<exact>\s+of\s+exact)?"
)

AIM = re.compile(r"(?P<which>min|max)\s+" + MEASURE_NAME + r"(?P<exact>\s+of\s+exact)?")

Means = Callable[[str], float]
"""Name of a measure -> its value for one setting."""


class Condition(NamedTuple):
    """One bound on a measure.

    Attributes:
        measure: `recall@10`, `recall@10 of exact`, `p95` in ms, `memory` in MB …
        is_least: whether `bound` is a least value; a most otherwise.
        bound: the least or most that is allowed.
    """

    measure: str
    is_least: bool
    bound: float

    def shortfall(self, value: float) -> float:
        """Return by what share of the bound a value misses it; 0 where it holds."""
        missing = self.bound - value if self.is_least else value - self.bound
        return max(0.0, missing) / (self.bound or 1.0)


@dataclass(frozen=True)
class Goal:
    """Conditions, and what is best among the settings that meet them.

    Attributes:
        text: as given.
        conditions: all must hold.
        aim: measure that decides among those.
        is_max: whether more of it is better.
    """

    text: str
    conditions: tuple[Condition, ...]
    aim: str
    is_max: bool

    def shortfall(self, means: Means) -> float:
        """Return the sum of what the conditions miss, each as a share of its bound."""
        return sum(c.shortfall(means(c.measure)) for c in self.conditions)

    def order(self, means: Means) -> tuple[float, float]:
        """Return what sorts settings, the best first: those that miss least, then by the aim."""
        aim = means(self.aim)
        return self.shortfall(means), -aim if self.is_max else aim


def parse_goal(text: str) -> Goal:
    """Read conditions and one `min` or `max`, separated by commas.

    Raises:
        ConfigError: it is something else.
    """
    conditions: list[Condition] = []
    aims: list[tuple[str, bool]] = []
    for clause in (clause.strip() for clause in text.lower().split(",")):
        if match := AIM.fullmatch(clause):
            aims.append((_measure_of(match, text), match["which"] == "max"))
        elif match := CONDITION.fullmatch(clause):
            bound = _bound(match, text)
            conditions.append(Condition(_measure_of(match, text), match["sign"][0] == ">", bound))
        else:
            raise _refused(text, f"cannot read {clause!r}")
    if len(aims) != 1:
        raise _refused(text, f"found {len(aims)} of min and max, expected one")
    aim, is_max = aims[0]
    if is_max == (aim in COSTS):
        raise _refused(text, f"{'max' if is_max else 'min'} {aim} is the worst there is")
    return Goal(text, tuple(conditions), aim, is_max)


def _measure_of(match: re.Match[str], text: str) -> str:
    name, exact = match["measure"], match["exact"]
    known = RECALLS if exact else RECALLS + COSTS
    if name not in known:
        raise _refused(text, f"unknown measure {name!r}, expected one of {', '.join(known)}")
    return name + OF_EXACT if exact else name


def _bound(match: re.Match[str], text: str) -> float:
    try:
        bound = float(match["bound"])
    except ValueError:
        raise _refused(text, f"{match['bound']!r} is no number") from None
    if match["measure"] in RECALLS and not 0 < bound <= 1:
        raise _refused(text, f"a recall of {bound:g} is none, expected above 0, at most 1")
    return bound


def _refused(text: str, reason: str) -> ConfigError:
    return ConfigError(f"goal {text!r}: {reason}; expected e.g. {EXAMPLE}")
