"""Which of two interleaved settings people prefer, at any moment and without waiting for a number.

The test is a mixture sequential probability ratio test of a fair coin (Robbins, "Statistical
methods related to the law of the iterated logarithm", 1970; Johari, Pekelis and Walsh, "Always
valid inference", 2022), over the searches that have a winner, in their order:

    ratio_n = integral of p^wins (1 - p)^losses dBeta(SHAPE, SHAPE)(p) / 0.5^n
    p_n     = min(p_(n-1), 1 / ratio_n)

A look after every search leaves the chance of a false alarm below 5%.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from two_tower.models.errors import DataError
from two_tower.models.progress import progress
from two_tower.retriever.behaviour.interleaving import OTHER, OWN, winner
from two_tower.retriever.behaviour.reading import (
    ANSWERS,
    CLICKS,
    RATES,
    Event,
    Search,
    log_files,
    read_events,
    read_searches,
)

SHAPE = 10.0
"""Of the Beta distribution: two of three true preferences lie between 39% and 61%."""

ALPHA = 0.05

MOST_SEARCHES = 10_000_000


class Outcome(NamedTuple):
    """How two settings compare.

    Attributes:
        own: what the service searches with.
        other: what `--against` named.
        searches: that were interleaved.
        clicked: of them, those with a click or rating.
        wins: searches that `other` won.
        losses: searches that `own` won.
        p: always valid; see the module.
        needed: how many more interleaved searches it takes to be sure at the present preference;
            0 where it is sure, None where there is no preference to go by.
        older: experiments in the log before this one, which are left out.
    """

    own: str
    other: str
    searches: int
    clicked: int
    wins: int
    losses: int
    p: float
    needed: int | None
    older: int

    @property
    def ties(self) -> int:
        """Searches with a click that neither won."""
        return self.clicked - self.wins - self.losses


def compare(folder: Path) -> Outcome:
    """Compare the two settings of the last experiment in a log.

    Raises:
        DataError: the folder holds no log, or one without an interleaved search.
    """
    files = log_files(folder)
    if not files:
        raise DataError(
            f"{folder} holds no log of searches; expected the folder of: retriever serve NAME "
            f"--log {folder}"
        )
    clicked = _clicked(
        event
        for file in progress(files, label="Reading clicks")
        for event in read_events([file], _pass_over)
    )
    searches = [
        search
        for file in progress(files, label="Reading searches")
        for search in read_searches([file], _pass_over)
        if _experiment(search)
    ]
    if not searches:
        raise DataError(
            f"{folder} has no interleaved search; run: retriever serve NAME --log {folder} "
            "--against SETTINGS --share 50%"
        )
    searches.sort(key=lambda search: search.timestamp)
    experiments = list(dict.fromkeys(filter(None, map(_experiment, searches))))
    own, other = experiments[-1]
    last = _once_a_person([s for s in searches if _experiment(s) == (own, other)], clicked)
    ended = [search for search in last if clicked.get(search.query_id)]
    winners = [
        winner(s.passage_ids, s.attributes["experiment"]["teams"], clicked[s.query_id])
        for s in ended
    ]
    decided = [team == OTHER for team in winners if team is not None]
    wins, losses, p = sum(decided), len(decided) - sum(decided), sequential_p(decided)
    needed = _needed(wins, losses, p, searches=len(last))
    older = len(experiments) - 1
    return Outcome(own, other, len(last), len(ended), wins, losses, p, needed, older)


def sequential_p(wins: Iterable[bool]) -> float:
    """Return the always valid p-value of a fair coin after these tosses, in their order."""
    p, counts = 1.0, [0, 0]
    for is_win in wins:
        counts[is_win] += 1
        p = min(p, math.exp(-_log_ratio(counts[True], counts[False])))
    return p


def _log_ratio(wins: float, losses: float) -> float:
    mixed = _log_beta(SHAPE + wins, SHAPE + losses) - _log_beta(SHAPE, SHAPE)
    return mixed + (wins + losses) * math.log(2)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _needed(wins: int, losses: int, p: float, *, searches: int) -> int | None:
    """Return the searches until p < 5%, were later ones won at the rate of those before."""
    decided = wins + losses
    if p < ALPHA:
        return 0
    if wins == losses:
        return None
    share, low, high = wins / decided, decided, decided
    while _log_ratio(share * high, (1 - share) * high) < -math.log(ALPHA):
        low, high = high, 2 * high
        if high > MOST_SEARCHES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = _log_ratio(share * middle, (1 - share) * middle) >= -math.log(ALPHA)
        low, high = (low, middle) if is_enough else (middle, high)
    return math.ceil((high - decided) * searches / decided)


def _experiment(search: Search) -> tuple[str, str] | None:
    """Return the names of what was interleaved; None where nothing was."""
    about = search.attributes.get("experiment")
    teams = about.get("teams") if isinstance(about, dict) else None
    if not isinstance(about, dict) or not isinstance(teams, list):
        return None
    if len(teams) != len(search.passage_ids) or not set(teams) <= {OWN, OTHER}:
        return None
    return str(about.get("own")), str(about.get("other"))


def _clicked(events: Iterable[Event]) -> dict[str, set[str]]:
    """Return query id -> passages that somebody took for an answer."""
    clicked: dict[str, set[str]] = {}
    for event in events:
        is_yes = event.action in CLICKS or event.action == ANSWERS
        if is_yes or (event.action == RATES and event.rating > 0):
            clicked.setdefault(event.query_id, set()).add(event.passage_id)
    return clicked


def _once_a_person(searches: Sequence[Search], clicked: dict[str, set[str]]) -> list[Search]:
    """Return the searches; the same one by the same person counts once, the first with a click."""
    firsts: dict[tuple[str, str], Search] = {}
    for search in searches:
        key = (search.client_id or search.query_id, search.query)
        if key not in firsts or (
            not clicked.get(firsts[key].query_id) and clicked.get(search.query_id)
        ):
            firsts[key] = search
    return list(firsts.values())


def _pass_over(reason: str, where: str, line: str) -> None:
    """A line that cannot be read says nothing about either."""
