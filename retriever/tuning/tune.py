"""Trade-offs of a collection, measured in its own engine, and the setting that meets a goal.

in place   ef and PCA of the tower's leg; fusion, then candidates, of both legs
in a copy  clusters and quantization of the tower's leg
in both    the best of each sweep again, by both legs: only such searches are recommended
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from two_tower.models.data import Qrel, Query
from two_tower.models.errors import ConfigError
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import DENSE, point_id
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.evaluation.systems import read_ahead
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.tuning.choice import QUALITY, choose_fusion, front, recommend
from two_tower.retriever.tuning.copies import TemporaryCopy, clear_leftovers, wait_until_green
from two_tower.retriever.tuning.goals import OF_EXACT, Goal
from two_tower.retriever.tuning.grid import (
    CANDIDATES,
    DEFAULT_CANDIDATES,
    SWEEPS,
    Setting,
    candidate_settings,
    cluster_counts,
    cluster_settings,
    ef_settings,
    fusion_settings,
    hybrid_setting,
    pca_settings,
    quantization_options,
    quantization_settings,
)
from two_tower.retriever.tuning.measure import Benchmark, Row, rewritten_row

HYBRIDS_PER_GROUP = 2


@dataclass(frozen=True)
class Tuning:
    """All that `retriever tune` measured.

    Attributes:
        collection: its versioned name.
        passages: number of passages that were searched.
        queries: number of queries that were asked.
        goal: what the recommended setting should meet.
        rows: every setting, in the order of measurement.
        recommended: the row that meets the goal best, or misses it least.
        tied: rows that meet it as well, as far as these measurements can tell.
    """

    collection: str
    passages: int
    queries: int
    goal: Goal
    rows: tuple[Row, ...]
    recommended: Row
    tied: tuple[Row, ...]

    @property
    def alone(self) -> list[Row]:
        """Searches by the tower's leg alone."""
        return [row for row in self.rows if not row.setting.is_hybrid]

    @property
    def hybrid(self) -> list[Row]:
        """Searches by both legs."""
        return [row for row in self.rows if row.setting.is_hybrid]

    @property
    def is_met(self) -> bool:
        """Whether the recommended setting meets every condition of the goal."""
        return self.goal.shortfall(self.recommended.mean) == 0.0


def tune(
    engine: Engine,
    retriever: Retriever,
    queries: Sequence[Query],
    qrels: Sequence[Qrel],
    *,
    goal: Goal,
    sweeps: Sequence[str] = SWEEPS,
    passages: int | None = None,
    say: Callable[[str], None],
) -> Tuning:
    """Measure every setting of the sweeps, some of `SWEEPS`, and recommend one for the goal.

    `qrels` are in the order of `queries`. `passages` measures on a copy of so many, all answers
    among them. `say` receives one line for each long step. Where the retriever's settings rewrite
    the query, that is measured beside the best search without it.

    Raises:
        ConfigError: the collection has BM25 alone.
        EndpointError: the language model of the settings does not answer.
        EngineLocked: another run has a copy of the collection.
        EngineError: the engine fails; copies are dropped all the same.
    """
    if not retriever.metadata.has_tower:
        raise ConfigError(
            f"{retriever.collection} has BM25 alone, which is exact: there is nothing to tune; "
            "load it with ingest load --bundle BUNDLE"
        )
    rewrite = retriever.settings.rewrite
    if rewrite and retriever.rewriting:
        retriever.rewriting.check()
    clear_leftovers(engine, retriever.collection)
    read_ahead(retriever, queries)
    points = min(passages or retriever.size, retriever.size)
    qrels = [qrel._replace(passage_id=point_id(qrel.passage_id)) for qrel in qrels]
    with TemporaryCopy(
        engine,
        retriever,
        points=points,
        answers=[qrel.passage_id for qrel in qrels if qrel.relevance > 0],
        clusters=cluster_counts(points) if "clusters" in sweeps else [],
        say=say,
    ) as copy:
        source = retriever
        if points < retriever.size:
            source = copy.store(replace(retriever.metadata.options, clusters=0))
        elif not engine.is_embedded:
            wait_until_green(engine, retriever.collection)
        say(f"Measuring on {len(queries):,} queries over {source.size:,} passages")
        benchmark = Benchmark(engine, source, queries, qrels)
        hybrid = _measure_in_place(benchmark, source, goal, sweeps)
        for options, settings in _storage_settings(source, sweeps):
            _measure_dense(benchmark, copy.store(options), settings, hybrid=hybrid)
        rows = benchmark.levelled_rows()
        if rewrite:
            label = f"rewritten by {rewrite.model}, both legs {hybrid.legs[DENSE]}"
            search = replace(hybrid, rewrite=rewrite)
            setting = Setting("rewrite", label, source.metadata.options, search)
            asking = source.with_settings(search)
            rows.append(rewritten_row(engine, asking, queries, qrels, setting=setting))
            if asking.rewriting and (note := asking.rewriting.remark()):
                say(f"Note: {label}: {note}")
        recommended, tied = recommend(rows, goal)
        return Tuning(
            collection=retriever.collection,
            passages=source.size,
            queries=len(queries),
            goal=goal,
            rows=tuple(rows),
            recommended=recommended,
            tied=tied,
        )


def _measure_in_place(
    benchmark: Benchmark, source: Retriever, goal: Goal, sweeps: Sequence[str]
) -> SearchSettings:
    """Measure the settings that search the points as they are stored.

    Returns:
        The search by both legs whose fusion and number of candidates meet the goal.
    """
    options = source.metadata.options
    rows: list[Row] = []
    if "fusion" in sweeps:
        settings = fusion_settings(options, has_learnt=source.fusion is not None)
        rows = benchmark.measure(source, settings, label="fusion")
    counts = CANDIDATES if "candidates" in sweeps else (DEFAULT_CANDIDATES,)
    settings = candidate_settings(options, choose_fusion(rows), counts)
    rows = benchmark.measure(source, settings, label="candidates")
    hybrid = recommend(rows, goal)[0].setting.search
    settings = ef_settings(options) if "ef" in sweeps else []
    if "pca" in sweeps:
        settings += pca_settings(options, source.metadata.pca_dims)
    if settings:
        _measure_dense(benchmark, source, settings, hybrid=hybrid)
    return hybrid


def _measure_dense(
    benchmark: Benchmark,
    retriever: Retriever,
    settings: Sequence[Setting],
    *,
    hybrid: SearchSettings,
) -> None:
    """Measure the tower's leg alone; then, of its front, the most exact by both legs."""
    sweep = settings[0].sweep
    rows = benchmark.measure(retriever, settings, label=sweep)
    # A PCA vector has no cosine of the full one to add to BM25; quantized copies have none.
    fusible = [row for row in rows if DENSE in row.setting.search.legs]
    fusible = [row for row in fusible if row.setting.search.ann.rescore]
    best = front(fusible, QUALITY + OF_EXACT)[-HYBRIDS_PER_GROUP:]
    hybrids = [hybrid_setting(row.setting, hybrid) for row in best]
    benchmark.measure(retriever, hybrids, label=f"{sweep}, both legs")


def _storage_settings(
    source: Retriever, sweeps: Sequence[str]
) -> Iterator[tuple[CollectionOptions, list[Setting]]]:
    """Yield options and the settings to measure with them; those without a new graph come first."""
    options = source.metadata.options
    if "clusters" in sweeps:
        for count in cluster_counts(source.size):
            clustered = replace(options, clusters=count)
            yield clustered, cluster_settings(clustered)
    if "quantization" in sweeps:
        dim = source.metadata.dim
        variants = quantization_options(options, points=source.size, dim=dim)
        for name, quantized in variants.items():
            yield quantized, quantization_settings(name, quantized)
