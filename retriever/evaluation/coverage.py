"""How far the chances of first hits can be trusted: said against right, and risk against coverage.

An engine that may stay silent answers only the queries it is surest of; the curve says how often
the first hit is right among those (El-Yaniv and Wiener, "On the Foundations of Noise-free Selective
Classification", JMLR 11, 2010).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from two_tower.retriever.evaluation.measures import Rankings

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class FirstHits:
    """The first hits of a system, and their chances.

    Attributes:
        said: mean chance.
        right: share that answers.
        curve: share of the queries, those with the surest first hits -> share of these that is
            right, for 100%, 90% … 10%.
    """

    said: float
    right: float
    curve: tuple[tuple[float, float], ...]

    def right_at(self, share: float) -> float:
        """Return how often the first hit is right for a share of the queries, one of `SHARES`."""
        return dict(self.curve)[share]


def first_hits(
    chances: Mapping[str, float], rankings: Rankings, answers: Collection[tuple[str, str]]
) -> FirstHits | None:
    """Compare chances with judgements; None where some query has no chance.

    Args:
        chances: query_id -> chance of its first hit.
        rankings: query_id -> passage ids, best first.
        answers: query and passage ids that belong together.
    """
    if not rankings or not chances.keys() >= rankings.keys():
        return None
    said = np.array([chances[query_id] for query_id in rankings])
    right = np.array([(query_id, *ids[:1]) in answers for query_id, ids in rankings.items()])
    surest = right[np.argsort(-said, kind="stable")]
    curve = [(share, float(surest[: max(1, round(share * len(said)))].mean())) for share in SHARES]
    return FirstHits(float(said.mean()), float(right.mean()), tuple(curve))
