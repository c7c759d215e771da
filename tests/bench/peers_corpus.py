"""What ours and the peers share: the same passages, the same queries, and turns at asking them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.retriever.evaluation.measures import answerable, per_query

SPLIT = "dev"
WARM_UP = 10

Row = dict[str, Any]
Rankings = dict[str, list[str]]


class Judged(NamedTuple):
    """Queries that some passage answers, and what does."""

    queries: list[Query]
    qrels: list[Qrel]

    def among(self, passage_ids: set[str]) -> "Judged":
        """Leave out what is not answered by these passages."""
        asked = {query.query_id for query in self.queries}
        found = [q for q in self.qrels if q.query_id in asked and q.passage_id in passage_ids]
        return Judged(*answerable(self.queries, found))

    def metrics(self, rankings: Rankings, names: Sequence[str]) -> dict[str, float]:
        """Return the mean of each measure over the queries."""
        values = per_query(rankings, self.qrels)
        return {name: round(float(values[name].mean()), 6) for name in names}


class Corpus(NamedTuple):
    """Passages, the queries that are timed, all that are judged, and others to warm up with."""

    data: Dataset
    passages: list[Passage]
    timed: Judged
    judged: Judged
    warm_up: list[str]

    @property
    def contents(self) -> list[str]:
        """What every system reads of the passages."""
        return [passage.content for passage in self.passages]


class Source(NamedTuple):
    """Passages in another order: what answers the timed queries comes first, whatever the size."""

    passages: list[Passage]
    judged: Judged
    timed: int

    @classmethod
    def arrange(cls, data: Dataset, *, timed: int) -> "Source":
        """Put the passages in order; `timed` of the queries are drawn from a seed."""
        queries, qrels = answerable(data.queries(SPLIT), data.qrels(SPLIT))
        queries = [queries[i] for i in np.random.default_rng(0).permutation(len(queries))]
        places = {query.query_id: place for place, query in enumerate(queries)}
        first: dict[str, int] = {}
        for qrel in (qrel for qrel in qrels if qrel.relevance > 0):
            place = places[qrel.query_id]
            first[qrel.passage_id] = min(place, first.get(qrel.passage_id, place))
        ordered = sorted(data.passages(), key=lambda p: first.get(p.passage_id, len(queries)))
        return cls(ordered, Judged(queries, qrels), timed)

    def corpus(self, size: int, folder: Path) -> Corpus:
        """Return the first `size` passages, as a DATA of their own in `folder`.

        A part of a larger one would be weighed by the larger one's statistics.
        """
        passages = self.passages[:size]
        with DatasetWriter(folder, source="peers") as writer:
            for passage in passages:
                writer.add_passage(passage)
        ids = {passage.passage_id for passage in passages}
        timed = Judged(self.judged.queries[: self.timed], self.judged.qrels)
        warm_up = [query.text for query in self.judged.queries[self.timed :][:WARM_UP]]
        data = Dataset.open(folder)
        return Corpus(data, passages, timed.among(ids), self.judged.among(ids), warm_up)


class System(NamedTuple):
    """A way from a query's text to passage ids, best first."""

    name: str
    ask: Callable[[str], list[str]]


class Asked(NamedTuple):
    """What one system answered, and how long each answer took."""

    times_ms: list[float]
    rankings: Rankings

    @property
    def figures(self) -> Row:
        """Return the times in short."""
        p50, p95 = np.percentile(self.times_ms, [50, 95])
        return {
            "p50_ms": round(float(p50), 3),
            "p95_ms": round(float(p95), 3),
            "per_second": round(1000 / float(np.mean(self.times_ms)), 1),
        }


def ask_in_turns(
    systems: Sequence[System], queries: Sequence[Query], warm_up: Sequence[str]
) -> dict[str, Asked]:
    """Put each query to all systems before the next one, another system first each time.

    So what else the machine does meets all of them.
    """
    for system in systems:
        for text in warm_up:
            system.ask(text)
    asked = {system.name: Asked([], {}) for system in systems}
    for number, query in enumerate(queries):
        turn = number % len(systems)
        for system in (*systems[turn:], *systems[:turn]):
            start = time.perf_counter()
            ranking = system.ask(query.text)
            asked[system.name].times_ms.append((time.perf_counter() - start) * 1000)
            asked[system.name].rankings[query.query_id] = ranking
    return asked


def compare(
    section: str, corpus: Corpus, systems: Sequence[System], measures: Sequence[str]
) -> list[Row]:
    """Time all systems on the timed queries; return a row of times and measures for each."""
    asked = ask_in_turns(systems, corpus.timed.queries, corpus.warm_up)
    return [
        {"section": section, "system": name, "passages": len(corpus.passages)}
        | {"queries": len(found.times_ms), **found.figures}
        | corpus.timed.metrics(found.rankings, measures)
        for name, found in asked.items()
    ]
