"""From clicks to judgements: the simplified dynamic Bayesian network.

Chapelle and Zhang, "A dynamic Bayesian network click model for web search ranking", WWW 2009, with
perseverance 1: somebody reads from the top, clicks what looks like an answer, and goes on until one
is. So all hits down to the last click were read, and none below it; that a hit stands low costs it
no click that it could have had. Over the searches for one query

    attractive_d = clicks_d / read_d
    satisfying_d = last clicks_d / clicks_d
    relevance_d  = attractive_d * satisfying_d = last clicks_d / read_d

A search without a click says nothing. What few of the searchers read down to is left alone: those
who click everything get there, and each of their searches ends with a click somewhere.
"""

from collections import Counter
from collections.abc import Collection, Sequence

FEWEST_ENDS = 2
"""Searches of different people that must have ended at a passage before it is an answer."""

LEAST_RELEVANCE = 0.2

LEAST_READERS = 0.7
"""Of all searches for the query with a click, the share that read down to the passage."""


class ClickModel:
    """What the searches for one query say about their passages."""

    def __init__(self) -> None:
        self._searches = 0
        self._read: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()
        self._people: dict[str, set[str]] = {}
        self._said: Counter[str] = Counter()

    def add(self, hits: Sequence[str], clicked: Collection[str], *, person: str) -> None:
        """Count one search.

        Args:
            hits: passage ids as they were shown.
            clicked: some of them.
            person: who searched; for a passage as the end of a search each counts once.
        """
        last = max((place for place, hit in enumerate(hits) if hit in clicked), default=None)
        if last is None or person in self._people.setdefault(hits[last], set()):
            return
        self._people[hits[last]].add(person)
        self._searches += 1
        self._read.update(set(hits[: last + 1]))
        self._ends[hits[last]] += 1

    def say(self, passage_id: str, *, is_answer: bool) -> None:
        """Count what somebody said of a passage in so many words, which needs no support."""
        self._said[passage_id] += 1 if is_answer else -1

    def answers(self) -> list[str]:
        """Return the passages that answer the query, the surest first."""
        relevance = {
            passage_id: ends / self._read[passage_id]
            for passage_id, ends in self._ends.items()
            if ends >= FEWEST_ENDS
            and self._read[passage_id] >= LEAST_READERS * self._searches
            and ends >= LEAST_RELEVANCE * self._read[passage_id]
        }
        said = self._said
        answers = {p for p in relevance if said[p] >= 0} | {p for p in said if said[p] > 0}
        return sorted(answers, key=lambda p: (-said[p], -relevance.get(p, 0.0), p))
