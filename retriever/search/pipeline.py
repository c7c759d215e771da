"""The way of a batch of queries through the stages, top to bottom in `Pipeline.run`.

    (rewrite) -> encode -> candidates of every leg, rescored by the query tower, by (late)
           interaction -> fusion -> (cross) -> (groups) -> (diversity) -> payload of the best k

Candidates and rescoring are one engine request; the payloads of the k winners a second, small one,
or before it those of all that the cross-scorer reads. What a query asks the engine stands in
`queries`, what the scores add up to in `fusion`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from two_tower.models.data import Passage
from two_tower.retriever.collection.clusters import Centroids
from two_tower.retriever.collection.schema import BM25, DENSE, LATE, RESERVED
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import Request
from two_tower.retriever.errors import QueryError
from two_tower.retriever.records import Hit, SearchResult, Stage
from two_tower.retriever.search.chances import (
    CollectionChances,
    is_sure,
    require_chances,
    with_chances,
)
from two_tower.retriever.search.diversity import at_most_per_group, mmr
from two_tower.retriever.search.endpoint import ask_endpoint, compare_model
from two_tower.retriever.search.fusion import (
    CROSS,
    LEXICAL,
    RERANK,
    Candidates,
    Ranking,
    fuse,
    gather,
    is_learnt,
    likely_rows,
    point_ids,
    reorder,
    stage_ranks,
)
from two_tower.retriever.search.queries import (
    QueryEncoder,
    plan,
    search_params,
    searched_vectors,
)
from two_tower.retriever.search.rewriting import Answers, AnswerWriter, Rewriting
from two_tower.retriever.search.settings import (
    AnnSettings,
    RewriteSettings,
    SearchSettings,
    without_tower,
)

if TYPE_CHECKING:
    from two_tower.models.bundle.fusion import Fusion
    from two_tower.retriever.engine.qdrant_models import qm

DIVERSITY, GROUPS, REWRITE, LAST_STEP = "diversity", "groups", "rewrite", "payload"

POOL_PER_HIT, SMALLEST_POOL = 4, 50

LATEST_WEIGHT, DECAY = 0.2, 0.9

Payloads = dict[str, Mapping[str, Any]]
"""point id -> everything that the collection holds about it."""


class Pipeline:
    """Answers batches of queries on one collection; safe to share between threads.

    Attributes:
        encoder: of the queries.
        has_late: whether late interaction can score candidates.
        own_rewriting: what imagines passages for every query, whatever the settings say.
    """

    def __init__(
        self,
        engine: Engine,
        collection: str,
        encoder: QueryEncoder,
        *,
        fusion: Fusion | None = None,
        chances: CollectionChances | None = None,
        centroids: Centroids | None = None,
        has_late: bool = False,
        rewriting: Rewriting | None = None,
        oversampling: float | None = None,
    ) -> None:
        """Load the cross-scorer where the bundle brings one, so that no search has to wait for it.

        `fusion` has the learnt weights, `chances` what was calibrated; `has_late` says whether the
        collection has token vectors. `rewriting` comes before the one that settings name, and what
        they say of `oversampling` before this.

        Raises:
            BundleError: the bundle's scorer is broken, or the model another one.
        """
        compare_model(encoder.bundle)
        self._engine = engine
        self._collection = collection
        self.encoder = encoder
        self._centroids = centroids
        self._oversampling = oversampling
        self._bundle = encoder.bundle
        self._has_tower = encoder.bundle.dim > 0
        self._learnt = fusion.hybrid if fusion else None
        self._final = fusion.final if fusion and self._bundle.has_cross_scorer else None
        self._chances = chances
        self.has_late = has_late and self._learnt is not None and self._learnt.late > 0
        self._costs = Costs()
        self.own_rewriting = rewriting
        self._rewritings: dict[RewriteSettings, Rewriting] = {}
        self._lock = threading.Lock()
        if self._final:
            nothing = np.zeros(1, dtype=np.float32)
            self._bundle.cross_scores(["warm"], [["up"]], bm25=[nothing], cosine=[nothing])

    def run(
        self,
        queries: Sequence[str],
        *,
        k: int,
        settings: SearchSettings,
        filter: qm.Filter | None = None,
        budget_ms: float | None = None,
    ) -> list[SearchResult]:
        """Return one result per query, in their order.

        Args:
            queries: checked by `check_query`.
            k: number of hits.
            settings: how to answer.
            filter: which passages may be hits; None for all.
            budget_ms: time per query; optional stages that do not fit are skipped, and so is a
                tower behind a URL that does not answer in time.

        Raises:
            ConfigError: the settings want chances of hits, and nothing gives any.
            EndpointError: such a tower does not answer, and without a budget, or without BM25
                among the legs, nothing can take its place.
        """
        if settings.at_least or settings.escalate is not None:
            require_chances(settings, self._chances, has_cross=self._final is not None)
        watch = Stopwatch(self._costs, queries=len(queries), budget_ms=budget_ms)
        if not self._has_tower:
            settings = without_tower(settings)
        # Rerank and late interaction travel with the candidates: whether to pay is decided before.
        late = self.has_late and settings.late and is_learnt(settings) and watch.affords(LATE)
        names = searched_vectors(settings) | ({LATE} if late else frozenset())
        answers: Sequence[Answers | None] = ()
        if self.own_rewriting or settings.rewrite:
            answers = self._imagine(queries, settings, watch)
        if self._bundle.asks_endpoint:
            left_s, skipped = watch.left_s, watch.skipped
            vectors, settings = ask_endpoint(
                self.encoder, queries, names, answers, settings, left_s=left_s, skipped=skipped
            )
        else:
            vectors = self.encoder.encode(queries, names, answers, spelling=settings.spelling)
        read = [v.reading.text if v.reading else q for v, q in zip(vectors, queries, strict=True)]
        watch.lap("encode")

        if settings.rerank and not watch.affords(RERANK):
            settings = replace(settings, rerank=False)
        planned = partial(plan, centroids=self._centroids, oversampling=self._oversampling)
        plans = [planned(settings, each, k=k, filter=filter) for each in vectors]
        candidates = ask(self._engine, self._collection, plans)
        watch.lap("candidates", cost_of=LATE if late else RERANK if settings.rerank else None)

        rankings = [fuse(settings, each, learnt=self._learnt) for each in candidates]
        watch.lap("fusion")
        payloads: Payloads = {}
        rankings = self._cross(read, rankings, payloads=payloads, settings=settings, watch=watch)
        if self._chances:
            terms = [each.term_count for each in vectors]
            rankings = [
                with_chances(*pair, self._chances) for pair in zip(rankings, terms, strict=True)
            ]
        rows: list[list[int]] = [ranking.order.tolist() for ranking in rankings]
        last_stages: list[str] = []
        if settings.at_least or settings.group_by is not None or settings.diversity > 0:
            rows, last_stages = self._choose(rankings, k=k, settings=settings, watch=watch)
        rows = [best[:k] for best in rows]
        payloads |= self._payloads(point_ids(rankings, rows) - payloads.keys())
        watch.lap(LAST_STEP)

        results = [
            SearchResult(
                query,
                top_hits(ranking, best, payloads),
                watch.laps_ms,
                (*ranking.candidates.stages, *last_stages),
                tuple(watch.skipped),
                ranking.answerable,
                vector.reading.words if vector.reading else {},
            )
            for query, ranking, best, vector in zip(queries, rankings, rows, vectors, strict=True)
        ]
        if not answers:
            return results
        return [rewritten(*each) for each in zip(results, answers, strict=True)]

    def rewriting(self, settings: RewriteSettings) -> Rewriting:
        """Return the language model that imagines passages, opened at its first use.

        Raises:
            ConfigError: its URL or prompt cannot be used.
        """
        with self._lock:
            if settings not in self._rewritings:
                writer = AnswerWriter(settings)
                self._rewritings[settings] = Rewriting(writer, within_s=settings.within_s)
            return self._rewritings[settings]

    def close(self) -> None:
        """Close the language models."""
        with self._lock:
            for rewriting in self._rewritings.values():
                rewriting.close()
            self._rewritings.clear()

    def _imagine(
        self, queries: Sequence[str], settings: SearchSettings, watch: Stopwatch
    ) -> list[Answers | None]:
        """Return the passages imagined for each query; nothing where no vector would be moved."""
        moves = settings.rerank or not LEXICAL.issuperset(settings.legs)
        if not moves or not watch.affords(REWRITE):
            return []
        rewriting = self.own_rewriting
        if rewriting is None:
            assert settings.rewrite is not None
            rewriting = self.rewriting(settings.rewrite)
        answers = rewriting.answers(queries, most_s=watch.left_s)
        watch.lap(REWRITE)
        return answers

    def similar(
        self, vector: list[float], *, k: int, filter: qm.Filter, ann: AnnSettings
    ) -> list[Hit]:
        """Return the nearest passages by the full vectors alone."""
        answer = self._engine.query_points(
            self._collection,
            vector,
            using=DENSE,
            query_filter=filter,
            search_params=search_params(ann, self._oversampling).to_client(),
            limit=k,
        )
        return [
            _hit(rank, str(p.id), p.score, {DENSE: Stage(p.score, rank)}, p.payload or {})
            for rank, p in enumerate(answer.points, 1)
        ]

    def _cross(
        self,
        queries: Sequence[str],
        rankings: list[Ranking],
        *,
        payloads: Payloads,
        settings: SearchSettings,
        watch: Stopwatch,
    ) -> list[Ranking]:
        """Let the cross-scorer put the best of each ranking in order, where it is to and can.

        It was weighed against the learnt fusion, and so reads only where that ran. `payloads`
        receives those of all that it reads: most hits will be among them, and a whole payload is
        fetched as fast as its text alone.
        """
        if self._final is None or not settings.cross:
            return rankings
        size = settings.cross_candidates or self._bundle.cross_candidates
        windows = [r.order[: 0 if r.cosines is None else size] for r in rankings]
        if self._chances and settings.escalate is not None:
            unread = [is_sure(ranking, self._chances, settings.escalate) for ranking in rankings]
            windows = [w[: 0 if u else size] for w, u in zip(windows, unread, strict=True)]
        if not any(map(len, windows)):
            return rankings
        later = {GROUPS: settings.group_by is not None, DIVERSITY: settings.diversity > 0}
        if not watch.affords(CROSS, before=[s for s, runs in later.items() if runs], after=RERANK):
            return rankings
        payloads |= self._payloads(point_ids(rankings, windows))
        read = [at for at, window in enumerate(windows) if len(window)]
        texts, bm25, cosines = [], [], []
        for at in read:
            window, known, near = windows[at], rankings[at].candidates, rankings[at].cosines
            assert near is not None
            own = [payloads.get(known.point_ids[row], {}) for row in window]
            texts.append([Passage("", p.get("text", ""), p.get("title", "")).content for p in own])
            scores = np.nan_to_num(known.scores[window, known.stages.index(BM25)])
            bm25.append(scores.astype(np.float32))
            cosines.append(near[window].astype(np.float32))
        asked, crossed = [queries[at] for at in read], list(rankings)
        logits = self._bundle.cross_scores(asked, texts, bm25=bm25, cosine=cosines)
        for at, scores in zip(read, logits, strict=True):
            crossed[at] = reorder(rankings[at], scores, self._final)
        watch.lap(CROSS)
        return crossed

    def _choose(
        self, rankings: Sequence[Ranking], *, k: int, settings: SearchSettings, watch: Stopwatch
    ) -> tuple[list[list[int]], list[str]]:
        """Return the rows of each ranking that may become hits, and the stages that chose them."""
        stages = []
        rows: list[list[int]] = [ranking.order.tolist() for ranking in rankings]
        if settings.at_least:
            rows = [likely_rows(ranking, settings.at_least) for ranking in rankings]
        if settings.group_by is not None:
            rows = self._group(rankings, rows, settings.group_by, size=settings.group_size)
            watch.lap(GROUPS)
            stages.append(GROUPS)
        if settings.diversity > 0 and watch.affords(DIVERSITY):
            rows = self._diversify(rankings, rows, settings.diversity, k=k)
            watch.lap(DIVERSITY)
            stages.append(DIVERSITY)
        return rows, stages

    def _group(
        self, rankings: Sequence[Ranking], rows: list[list[int]], field: str, *, size: int
    ) -> list[list[int]]:
        """Return the rows of each ranking that are among the first `size` of their group."""
        payloads = self._payloads(point_ids(rankings, rows), fields=[field])
        grouped = []
        for ranking, best in zip(rankings, rows, strict=True):
            ids = ranking.candidates.point_ids
            groups = [payloads.get(ids[row], {}) for row in best]
            if groups and not any(field in payload for payload in groups):
                self._require_field(field, ids[best[0]])
            grouped.append([best[at] for at in at_most_per_group(groups, field, size=size)])
        return grouped

    def _require_field(self, field: str, point_id: str) -> None:
        """Refuse a field that neither an index nor a hit knows."""
        indexed = self._engine.overview(self._collection).fields
        if field not in indexed:
            found = self._payloads([point_id]).get(point_id, {})
            names = ", ".join(sorted({*indexed, *found}.difference(RESERVED)))
            raise QueryError(f"group_by is {field!r}, which no hit has; its fields: {names}")

    def _diversify(
        self, rankings: Sequence[Ranking], rows: list[list[int]], diversity: float, *, k: int
    ) -> list[list[int]]:
        """Return the `k` rows of each ranking that are relevant and unlike those before them."""
        pools = [best[: max(SMALLEST_POOL, POOL_PER_HIT * k)] for best in rows]
        vectors: dict[str, Any] = {}
        if pooled := sorted(point_ids(rankings, pools)):
            records = self._engine.retrieve(
                self._collection, pooled, with_payload=False, with_vectors=[DENSE]
            )
            vectors = {str(r.id): r.vector[DENSE] for r in records if isinstance(r.vector, dict)}
        diverse = []
        for ranking, pool in zip(rankings, pools, strict=True):
            ids = ranking.candidates.point_ids
            pool = [row for row in pool if ids[row] in vectors]
            matrix = np.array([vectors[ids[row]] for row in pool], dtype=np.float32)  # (n, dim)
            places = mmr(ranking.scores[pool], matrix, diversity=diversity, k=k) if pool else []
            diverse.append([pool[place] for place in places])
        return diverse

    def _payloads(self, ids: Iterable[str], *, fields: list[str] | None = None) -> Payloads:
        ids = sorted(ids)
        if not ids:
            return {}
        records = self._engine.retrieve(self._collection, ids, with_payload=fields or True)
        return {str(record.id): record.payload or {} for record in records}


def rewritten(result: SearchResult, answers: Answers | None) -> SearchResult:
    """Return a result that says whether the query was searched with imagined passages."""
    if answers is None:
        return replace(result, skipped=(REWRITE, *result.skipped))
    return replace(result, stages_run=(REWRITE, *result.stages_run))


def ask(
    engine: Engine, collection: str, plans: Sequence[Mapping[str, Request]]
) -> list[Candidates]:
    """Send the requests of some queries as one batch; return the candidates of each query."""
    requests = [request for stages in plans for request in stages.values()]
    answers = iter(engine.query_scores(collection, requests) if requests else [])
    return [gather(stages, [next(answers) for _ in stages]) for stages in plans]


def top_hits(ranking: Ranking, rows: Sequence[int], payloads: Payloads) -> list[Hit]:
    """Return hits in the order of `rows`, with what each stage says about them."""
    if not rows:
        return []
    known = ranking.candidates
    ranks = stage_ranks(known.scores)[rows].tolist()
    scores, totals = known.scores[rows].tolist(), ranking.scores[rows].tolist()
    hits = []
    for place, row in enumerate(rows):
        columns = zip(known.stages, scores[place], ranks[place], strict=True)
        stages = {stage: Stage(score, rank) for stage, score, rank in columns if score == score}
        point_id = known.point_ids[row]
        hits.append(_hit(place + 1, point_id, totals[place], stages, payloads.get(point_id, {})))
    return hits


def _hit(
    rank: int, point_id: str, score: float, stages: dict[str, Stage], payload: Mapping[str, Any]
) -> Hit:
    return Hit(
        rank=rank,
        passage_id=payload.get("passage_id", point_id),
        score=score,
        title=payload.get("title", ""),
        text=payload.get("text", ""),
        url=payload.get("url", ""),
        stages=stages,
        payload=payload,
    )


class Costs:
    """A running mean of what each step costs a query, in milliseconds; safe between threads."""

    def __init__(self) -> None:
        self._mean_ms: dict[str, float] = {}
        self._lock = threading.Lock()

    def expect_ms(self, step: str) -> float:
        """Return the mean, 0 for what never ran: it is then tried."""
        return self._mean_ms.get(step, 0.0)

    def record(self, step: str, ms: float) -> None:
        """Take one more measurement into the mean."""
        with self._lock:
            mean = self._mean_ms.get(step, ms)
            self._mean_ms[step] = mean + LATEST_WEIGHT * (ms - mean)

    def forgive(self, step: str) -> None:
        """Lower the mean of a step that is skipped, or one slow call would rule it out forever."""
        with self._lock:
            self._mean_ms[step] = DECAY * self._mean_ms.get(step, 0.0)


class Stopwatch:
    """Milliseconds per step, shared evenly by the queries that go through it together.

    Attributes:
        laps_ms: step -> milliseconds per query.
        skipped: stages that did not fit the budget, in the order in which they were refused.
    """

    def __init__(self, costs: Costs, *, queries: int, budget_ms: float | None) -> None:
        self._costs = costs
        self._queries = queries
        self._budget_ms = budget_ms
        self._start = self._last = time.perf_counter()
        self.laps_ms: dict[str, float] = {}
        self.skipped: list[str] = []

    @property
    def left_s(self) -> float | None:
        """Seconds that the budget of all queries leaves; None without a budget."""
        if self._budget_ms is None:
            return None
        spent_s = time.perf_counter() - self._start
        return max(0.001, self._budget_ms * self._queries / 1000.0 - spent_s)

    def lap(self, step: str, *, cost_of: str | None = None) -> None:
        """End a step; `cost_of` is the optional stage that ran in it under another name."""
        now = time.perf_counter()
        self.laps_ms[step] = ms = (now - self._last) * 1000.0 / self._queries
        self._last = now
        self._costs.record(cost_of or step, ms)

    def affords(self, stage: str, *, before: Sequence[str] = (), after: str | None = None) -> bool:
        """Say whether an optional stage, and the last step, probably end within the budget.

        If not, the stage counts as skipped.

        Args:
            stage: its name.
            before: stages that have to fit as well.
            after: a stage without which this one is not worth its time.
        """
        if self._budget_ms is None:
            return True
        spent = (time.perf_counter() - self._start) * 1000.0 / self._queries
        expected = sum(self._costs.expect_ms(step) for step in (stage, *before, LAST_STEP))
        if spent + expected <= self._budget_ms and after not in self.skipped:
            return True
        self._costs.forgive(stage)
        self.skipped.append(stage)
        return False
