"""Which passages are judged: the best of several systems for each query, each passage once."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from two_tower.retriever.evaluation.measures import Rankings


class Pool(NamedTuple):
    """What is judged for each query.

    Attributes:
        passages: query_id -> passage ids, in the order in which systems bring them.
        unknown: passages that a system ranks and DATA does not have.
    """

    passages: Mapping[str, Sequence[str]]
    unknown: int

    @property
    def pairs(self) -> int:
        """Number of queries with a passage."""
        return sum(map(len, self.passages.values()))


def pool(
    systems: Iterable[Rankings],
    query_ids: Iterable[str],
    *,
    depth: int,
    known: frozenset[str],
    judged: Mapping[str, Iterable[str]],
) -> Pool:
    """Return the best `depth` of every system for each query, and what is `judged` already.

    Sparck Jones and van Rijsbergen, "Report on the need for and provision of an 'ideal'
    information retrieval test collection", 1975.

    Args:
        systems: query_id -> passage ids, best first, of each.
        query_ids: of the queries.
        depth: how many of each.
        known: ids of the passages that DATA has.
        judged: query_id -> passages that join the pool, whoever ranks them.
    """
    rankings = list(systems)
    passages, unknown = {}, set()
    for query_id in query_ids:
        best = [each.get(query_id, ())[:depth] for each in rankings]
        turns = [id_ for rank in range(depth) for ids in best for id_ in ids[rank : rank + 1]]
        ids = dict.fromkeys([*turns, *judged.get(query_id, ())])
        unknown |= ids.keys() - known
        passages[query_id] = [id_ for id_ in ids if id_ in known]
    return Pool({query_id: ids for query_id, ids in passages.items() if ids}, len(unknown))
