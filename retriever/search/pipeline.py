"""The way of a batch of queries through the stages.

    encode -> candidates of every leg, rescored by the query tower -> fusion
           -> (cross) -> (groups) -> (diversity) -> payload of the best k

Candidates and rescoring are one engine request; the payloads of the k winners a second, small one,
or before it those of all that the cross-scorer reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from qdrant_client import models as qm

from two_tower.retriever.collection.clusters import Centroids
from two_tower.retriever.collection.schema import DENSE
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import scored
from two_tower.retriever.records import Hit, SearchResult
from two_tower.retriever.search.budget import LAST_STEP, Costs, Stopwatch
from two_tower.retriever.search.cross import CROSS, CrossReader, readable, window_ids
from two_tower.retriever.search.diversity import at_most_per_group, mmr
from two_tower.retriever.search.queries import QueryEncoder
from two_tower.retriever.search.settings import AnnSettings, SearchSettings
from two_tower.retriever.search.stages import (
    RERANK,
    Candidates,
    Ranking,
    Winner,
    Within,
    choose,
    fuse,
    gather,
    plan,
)

DIVERSITY, GROUPS, REWRITE = "diversity", "groups", "rewrite"

POOL_PER_HIT, SMALLEST_POOL = 4, 50

Payloads = dict[str, Mapping[str, Any]]
"""point id -> everything that the collection holds about it."""


class Order(NamedTuple):
    """What is wanted of every query of a batch.

    Attributes:
        k: number of hits.
        settings: how to answer.
        filter: which passages may be hits; None for all.
        budget_ms: time per query; optional stages that do not fit are skipped.
    """

    k: int
    settings: SearchSettings
    filter: qm.Filter | None = None
    budget_ms: float | None = None


class Pipeline:
    """Answers batches of queries on one collection; safe to share between threads."""

    def __init__(
        self,
        engine: Engine,
        collection: str,
        encoder: QueryEncoder,
        *,
        centroids: Centroids | None = None,
    ) -> None:
        self._engine = engine
        self._collection = collection
        self.encoder = encoder
        self._centroids = centroids
        self._fusion = encoder.bundle.fusion
        self._reader = CrossReader.of(encoder.bundle)
        self._costs = Costs()

    def run(self, queries: Sequence[str], order: Order) -> list[SearchResult]:
        """Return one result per query, in their order."""
        watch = Stopwatch(self._costs, queries=len(queries), budget_ms=order.budget_ms)
        encoded = self.encoder.encode(queries, order.settings.vectors)
        watch.lap("encode")
        settings = self._affordable(order.settings, watch)
        within = Within(order.filter, self._centroids)
        plans = [plan(settings, v, k=order.k, within=within) for v in encoded]
        gathered = self._candidates(plans)
        watch.lap("candidates", cost_of=RERANK if settings.rerank else None)
        learnt = self._fusion.hybrid if self._fusion else None
        rankings = [fuse(settings, candidates, learnt=learnt) for candidates in gathered]
        watch.lap("fusion")
        payloads: Payloads = {}
        rankings = self._crossed(
            queries, rankings, payloads=payloads, settings=settings, watch=watch
        )
        wide = settings.group_by is not None or settings.diversity > 0
        ranked = [choose(r, k=len(r.order) if wide else order.k) for r in rankings]
        ran = self._thin_out(ranked, order.k, settings, watch) if wide else ()
        chosen = {winner.point_id for winners in ranked for winner in winners}
        payloads |= self._payloads(chosen - payloads.keys())
        watch.lap(LAST_STEP)
        rewritten = (REWRITE,) if self.encoder.rewriter else ()
        return [
            SearchResult(
                query,
                [_hit(winner, payloads) for winner in winners],
                watch.laps_ms,
                (*rewritten, *ranking.candidates.stages, *ran),
                tuple(watch.skipped),
            )
            for query, winners, ranking in zip(queries, ranked, rankings, strict=True)
        ]

    def similar(
        self, vector: list[float], *, k: int, query_filter: qm.Filter, ann: AnnSettings
    ) -> list[Hit]:
        """Return the nearest passages by the full vectors alone."""
        found = self._engine.query_points(
            self._collection,
            vector,
            using=DENSE,
            query_filter=query_filter,
            search_params=ann.params,
            limit=k,
        )
        plans = {DENSE: qm.QueryRequest(limit=k)}
        ranking = fuse(SearchSettings(legs={DENSE: k}), gather(plans, [scored(found)]))
        winners = choose(ranking, k=k)
        return [_hit(w, {str(p.id): p.payload or {} for p in found.points}) for w in winners]

    @staticmethod
    def _affordable(settings: SearchSettings, watch: Stopwatch) -> SearchSettings:
        """Rerank travels with the candidates, so whether to pay for it is decided before."""
        if settings.rerank and not watch.affords(RERANK):
            return replace(settings, rerank=False)
        return settings

    def _candidates(self, plans: Sequence[Mapping[str, qm.QueryRequest]]) -> list[Candidates]:
        requests = [request for requests in plans for request in requests.values()]
        answers = iter(self._engine.query_scores(self._collection, requests) if requests else [])
        return [gather(requests, [next(answers) for _ in requests]) for requests in plans]

    def _crossed(
        self,
        queries: Sequence[str],
        rankings: list[Ranking],
        *,
        payloads: Payloads,
        settings: SearchSettings,
        watch: Stopwatch,
    ) -> list[Ranking]:
        """Let the cross-scorer put the best of each ranking in order, where it is to and can.

        `payloads` receives those of all that it reads: most hits will be among them, and a whole
        payload is fetched as fast as its text alone.
        """
        can_read = [readable(ranking, settings) for ranking in rankings]
        reader, size = self._reader, settings.cross_candidates
        if reader is None or not any(can_read):
            return rankings
        later = {GROUPS: settings.group_by is not None, DIVERSITY: settings.diversity > 0}
        if not watch.affords(CROSS, before=[s for s, runs in later.items() if runs], after=RERANK):
            return rankings
        pairs = zip(rankings, can_read, strict=True)
        payloads |= self._payloads(
            i for ranking, is_read in pairs if is_read for i in window_ids(ranking, size)
        )
        result = [
            reader.read(query, ranking, payloads, size=size) if is_read else ranking
            for query, ranking, is_read in zip(queries, rankings, can_read, strict=True)
        ]
        watch.lap(CROSS)
        return result

    def _thin_out(
        self, ranked: list[list[Winner]], k: int, settings: SearchSettings, watch: Stopwatch
    ) -> tuple[str, ...]:
        """Cut each ranking to k hits that differ; return the stages that ran."""
        ran = []
        if settings.group_by is not None:
            ranked[:] = self._grouped(ranked, settings.group_by, settings.group_size)
            watch.lap(GROUPS)
            ran.append(GROUPS)
        if settings.diversity > 0 and watch.affords(DIVERSITY):
            ranked[:] = self._diverse(ranked, k, settings.diversity)
            watch.lap(DIVERSITY)
            ran.append(DIVERSITY)
        ranked[:] = [
            [winner._replace(rank=rank) for rank, winner in enumerate(winners[:k], 1)]
            for winners in ranked
        ]
        return tuple(ran)

    def _grouped(self, ranked: list[list[Winner]], field: str, size: int) -> list[list[Winner]]:
        payloads = self._payloads((w.point_id for ws in ranked for w in ws), fields=[field])
        kept = (
            at_most_per_group([payloads.get(w.point_id, {}) for w in ws], field, size=size)
            for ws in ranked
        )
        return [[ws[row] for row in rows] for ws, rows in zip(ranked, kept, strict=True)]

    def _diverse(self, ranked: list[list[Winner]], k: int, diversity: float) -> list[list[Winner]]:
        pools = [winners[: max(SMALLEST_POOL, POOL_PER_HIT * k)] for winners in ranked]
        vectors = self._vectors({w.point_id for pool in pools for w in pool})
        chosen = []
        for pool in pools:
            pool = [winner for winner in pool if winner.point_id in vectors]
            scores = np.array([winner.score for winner in pool])
            matrix = np.array([vectors[w.point_id] for w in pool], dtype=np.float32)
            rows = mmr(scores, matrix, diversity=diversity, k=k) if pool else []
            chosen.append([pool[row] for row in rows])
        return chosen

    def _vectors(self, point_ids: set[str]) -> dict[str, Any]:
        if not point_ids:
            return {}
        records = self._engine.retrieve(
            self._collection, sorted(point_ids), with_payload=False, with_vectors=[DENSE]
        )
        return {str(r.id): r.vector[DENSE] for r in records if isinstance(r.vector, dict)}

    def _payloads(self, point_ids: Iterable[str], *, fields: list[str] | None = None) -> Payloads:
        wanted = sorted(set(point_ids))
        if not wanted:
            return {}
        records = self._engine.retrieve(self._collection, wanted, with_payload=fields or True)
        return {str(record.id): record.payload or {} for record in records}


def _hit(winner: Winner, payloads: Mapping[str, Mapping[str, Any]]) -> Hit:
    payload = payloads.get(winner.point_id, {})
    return Hit(
        rank=winner.rank,
        passage_id=payload.get("passage_id", winner.point_id),
        score=winner.score,
        title=payload.get("title", ""),
        text=payload.get("text", ""),
        url=payload.get("url", ""),
        stages=winner.stages,
        payload=payload,
    )
