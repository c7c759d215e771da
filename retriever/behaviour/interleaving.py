"""Two rankings as one, so that clicks say which is better.

Team draft: Radlinski, Kurup and Joachims, "How does clickthrough data reflect retrieval quality?",
CIKM 2008.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

OWN, OTHER = "own", "other"


class Draft(NamedTuple):
    """An interleaved ranking.

    Attributes:
        ids: passage ids, best first.
        teams: `own` or `other` for each: which ranking put it there.
    """

    ids: list[str]
    teams: list[str]


def team_draft(own: Sequence[str], other: Sequence[str], *, k: int, seed: bytes) -> Draft:
    """Interleave two rankings: a coin says who picks first, each picks the best that is left.

    Every round has a coin of its own. Where one ranking has nothing left, the other goes on.
    """
    coin = random.Random(seed)
    rankings: Mapping[str, Sequence[str]] = {OWN: own, OTHER: other}
    draft = Draft([], [])
    while len(draft.ids) < k:
        before = len(draft.ids)
        for team in coin.sample([OWN, OTHER], 2):
            best = next((p for p in rankings[team] if p not in draft.ids), None)
            if best is not None and len(draft.ids) < k:
                draft.ids.append(best)
                draft.teams.append(team)
        if len(draft.ids) == before:
            break
    return draft


def winner(ids: Sequence[str], teams: Sequence[str], clicked: Collection[str]) -> str | None:
    """Return the team with more clicks on what it put there; None for a tie."""
    clicks = [team for passage_id, team in zip(ids, teams, strict=True) if passage_id in clicked]
    own, other = clicks.count(OWN), clicks.count(OTHER)
    return None if own == other else OWN if own > other else OTHER
