"""How far a model's judgements agree with those of people, and which way they err."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from two_tower.ingest.judging.grading import Pair

FEWEST = 50
"""Judgements of people below which nothing is said about agreement."""

LITTLE = 0.2

WORDS = ((0.2, "slight"), (0.4, "fair"), (0.6, "moderate"), (0.8, "substantial"))
"""Upper ends of kappa, and their names by Landis and Koch, 1977; above, it is almost perfect."""


class Agreement(NamedTuple):
    """Pairs by what both say of them: whether the passage is relevant to the query.

    Attributes:
        both: relevant to people and to the model.
        missed: to people alone.
        added: to the model alone.
        neither: to nobody.
        by_people: pairs that people judged; the others are in pools, and count as not relevant,
            as they do in an evaluation.
        queries: number of queries.
    """

    both: int
    missed: int
    added: int
    neither: int
    by_people: int
    queries: int

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.both + self.missed + self.added + self.neither

    @property
    def kappa(self) -> float:
        """Cohen's kappa: (p_o - p_e) / (1 - p_e), p_o the share of equal judgements, p_e by chance.

        Cohen, "A coefficient of agreement for nominal scales", 1960. It is 0 where both say the
        same of all pairs, for then nothing tells them from chance.
        """
        pairs = self.pairs
        observed = (self.both + self.neither) / pairs
        people, model = (self.both + self.missed) / pairs, (self.both + self.added) / pairs
        expected = people * model + (1 - people) * (1 - model)
        return (observed - expected) / (1 - expected) if expected < 1 else 0.0

    def lines(self) -> list[str]:
        """Return it in words."""
        name = next((word for end, word in WORDS if self.kappa <= end), "almost perfect")
        relevant, others = self.both + self.missed, self.added + self.neither
        lines = [
            f"kappa {self.kappa:.2f} ({name}) with people over {self.pairs:,} pairs of "
            f"{self.queries:,} queries; people judged {self.by_people:,} of them, and the others "
            "count as not relevant",
            f"{self._way}: it misses {self.missed:,} of {relevant:,} relevant passages "
            f"({_share(self.missed, relevant)}) and takes {self.added:,} of {others:,} others for "
            f"relevant ({_share(self.added, others)})",
        ]
        if self.kappa <= LITTLE:
            lines.append("that is little better than chance: do not compare systems by it")
        return lines

    @property
    def _way(self) -> str:
        if self.added == self.missed:
            return "it errs both ways alike"
        return f"it errs towards {'relevant' if self.added > self.missed else 'not relevant'}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, kappa among them."""
        return {"kappa": self.kappa, **self._asdict()}


def agreement(
    people: Mapping[Pair, int], model: Mapping[Pair, int], *, people_from: int, model_from: int
) -> Agreement:
    """Compare the grades of a model with those of people; a pair without an answer is left out.

    Args:
        people: the grades of those pairs that people judged.
        model: the grades of the pools of the same queries.
        people_from: people's grade from which a passage is relevant.
        model_from: the model's.
    """
    counts = {(told, said): 0 for told in (True, False) for said in (True, False)}
    for pair, grade in model.items():
        counts[people.get(pair, 0) >= people_from, grade >= model_from] += 1
    return Agreement(
        both=counts[True, True],
        missed=counts[True, False],
        added=counts[False, True],
        neither=counts[False, False],
        by_people=len(model.keys() & people.keys()),
        queries=len({query_id for query_id, _ in model}),
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"
