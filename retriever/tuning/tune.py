"""Trade-offs of a collection, measured in its own engine, and the setting that meets a goal.

in place   ef and PCA of the tower's leg; fusion, then candidates, of both legs
in a copy  clusters and quantization of the tower's leg
in both    the best of each as a search by both legs, for that is what is recommended
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace

from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import DENSE
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.tuning.choice import (
    QUALITY,
    Choice,
    Separation,
    choose_fusion,
    front,
    recommend,
    separate,
)
from two_tower.retriever.tuning.copies import (
    Contents,
    Scratch,
    clear_leftovers,
    scratch_copy,
    wait_until_green,
)
from two_tower.retriever.tuning.goals import OF_EXACT, Goal
from two_tower.retriever.tuning.grid import (
    CANDIDATES,
    DEFAULT_CANDIDATES,
    SWEEPS,
    Setting,
    as_whole,
    candidate_settings,
    cluster_counts,
    cluster_settings,
    ef_settings,
    fusion_settings,
    pca_settings,
    quantization_options,
    quantization_settings,
)
from two_tower.retriever.tuning.measure import Bench, Judged, Row

WHOLE_PER_STATE = 2


@dataclass(frozen=True)
class Extent:
    """How much is tried.

    Attributes:
        sweeps: some of `SWEEPS`.
        passages: measure on a copy of so many passages, all answers among them; None for all.
    """

    sweeps: tuple[str, ...] = SWEEPS
    passages: int | None = None


@dataclass(frozen=True)
class Tuning:
    """What was measured.

    Attributes:
        collection: that was tuned.
        passages: that were searched.
        queries: that were asked.
        goal: what the recommended setting is wanted for.
        rows: every setting, in the order in which it was measured.
        choice: the one that meets the goal best, or misses it least, and what is tied with it.
        separation: whether the queries tell the best settings apart; None where all answer alike.
    """

    collection: str
    passages: int
    queries: int
    goal: Goal
    rows: tuple[Row, ...]
    choice: Choice
    separation: Separation | None

    @property
    def recommended(self) -> Row:
        """The chosen setting."""
        return self.choice.row

    @property
    def is_met(self) -> bool:
        """Whether the recommended setting meets every condition of the goal."""
        return self.goal.shortfall(self.recommended.mean) == 0.0


def tune(
    engine: Engine,
    retriever: Retriever,
    judged: Judged,
    *,
    goal: Goal,
    extent: Extent,
    say: Callable[[str], None],
) -> Tuning:
    """Measure every setting of the sweeps.

    Args:
        engine: that holds the collection.
        retriever: opened on it.
        judged: queries and answers.
        goal: what is wanted.
        extent: how much to try.
        say: told in a line each what takes long.

    Raises:
        EngineLocked: another run has a copy of the collection.
        EngineError: the engine fails; copies are dropped all the same.
    """
    clear_leftovers(engine, retriever.collection)
    with ExitStack() as until_done:
        copies = Copies(engine, retriever, judged, extent, say=say, until_done=until_done)
        source = copies.source()
        say(f"Measuring on {len(judged.queries):,} queries over {source.size:,} passages")
        bench = Bench(engine, source, judged)
        _measure(bench, source, copies, goal=goal, sweeps=extent.sweeps)
        rows = bench.levelled()
        return Tuning(
            collection=retriever.collection,
            passages=source.size,
            queries=len(judged.queries),
            goal=goal,
            rows=tuple(rows),
            choice=recommend(rows, goal),
            separation=separate(rows),
        )


class Copies:
    """The collection itself, or a copy of some of its passages; and one copy stored in turns."""

    def __init__(
        self,
        engine: Engine,
        retriever: Retriever,
        judged: Judged,
        extent: Extent,
        *,
        say: Callable[[str], None],
        until_done: ExitStack,
    ) -> None:
        """Copy nothing yet; copies are dropped when `until_done` closes."""
        self._engine = engine
        self._retriever = retriever
        self._answers = judged.answers
        self._extent = extent
        self._say = say
        self._until_done = until_done
        self._copy: Scratch | None = None

    def source(self) -> Retriever:
        """Return what is measured as it is stored: the collection, unless passages are limited."""
        if self._extent.passages is not None and self._extent.passages < self._retriever.size:
            return self.stored(replace(self._retriever.metadata.options, clusters=0))
        if not self._engine.is_embedded:
            wait_until_green(self._engine, self._retriever.collection)
        return self._retriever

    def stored(self, options: CollectionOptions) -> Retriever:
        """Return a retriever of the copy, which is made now or stored otherwise."""
        if self._copy is None:
            self._copy = self._until_done.enter_context(self._new())
        copies, clusters = options.quantization, options.clusters
        bits = f" {copies.bits:g} bits" if copies.kind == "binary" else ""
        self._say(f"Storing the copy with {clusters} clusters, quantization {copies.kind}{bits}")
        self._copy.store(options)
        bundle, name = self._retriever.bundle, self._copy.collection
        return Retriever(self._engine, name, bundle, settings=SearchSettings())

    def _new(self) -> AbstractContextManager[Scratch]:
        size = self._retriever.size
        points = min(size, self._extent.passages or size)
        widths = self._retriever.metadata.schema.widths
        is_part = points < size
        floats = sum(widths.values()) if is_part else widths[DENSE]
        self._say(
            f"Copying {points:,} of {size:,} passages, about {points * floats * 8 / 1e6:,.0f} MB "
            "with their graph while this runs; --passages copies fewer"
        )
        contents = Contents(
            points=points,
            first=self._answers if is_part else (),
            has_reduced=is_part,
            clusters=cluster_counts(points) if "clusters" in self._extent.sweeps else (),
        )
        return scratch_copy(self._engine, self._retriever.collection, contents)


def _measure(
    bench: Bench, source: Retriever, copies: Copies, *, goal: Goal, sweeps: Sequence[str]
) -> None:
    """Measure what needs no other storage, then every other storage by itself."""
    fused = _fused(_in_place(bench, source, goal, sweeps), goal)
    for options, alone in _stored_otherwise(source, sweeps):
        _state(bench, copies.stored(options), alone, fused=fused)


def _in_place(bench: Bench, source: Retriever, goal: Goal, sweeps: Sequence[str]) -> list[Row]:
    """Measure what needs no other storage; return fusion and candidates of both legs."""
    options = source.metadata.options
    rows: list[Row] = []
    if "fusion" in sweeps:
        settings = fusion_settings(options, has_learnt=source.bundle.fusion is not None)
        rows += bench.rows(source, settings, label="fusion")
    counts = CANDIDATES if "candidates" in sweeps else (DEFAULT_CANDIDATES,)
    settings = candidate_settings(options, choose_fusion(rows), counts)
    rows += bench.rows(source, settings, label="candidates")
    alone = ef_settings(options) if "ef" in sweeps else []
    if "pca" in sweeps:
        alone += pca_settings(options, source.metadata.pca_dims)
    if alone:
        _state(bench, source, alone, fused=_fused(rows, goal))
    return rows


def _state(
    bench: Bench, retriever: Retriever, alone: Sequence[Setting], *, fused: SearchSettings
) -> None:
    """Measure the tower's leg alone; then, of its front, the most exact by both legs."""
    rows = bench.rows(retriever, alone, label=alone[0].sweep)
    able = [row for row in rows if _can_join(row.setting)]
    best = front(able, QUALITY + OF_EXACT)[-WHOLE_PER_STATE:]
    whole = [as_whole(row.setting, fused) for row in best]
    bench.rows(retriever, whole, label=f"{alone[0].sweep}, both legs")


def _can_join(alone: Setting) -> bool:
    """A PCA vector has no cosine of the full one to add to BM25; quantized copies have none."""
    return DENSE in alone.search.legs and alone.search.ann.rescore


def _fused(rows: Sequence[Row], goal: Goal) -> SearchSettings:
    """Return how both legs are put together, and how many candidates of each meet the goal."""
    counted = [row for row in rows if row.setting.sweep == "candidates"]
    return recommend(counted, goal).row.setting.search


def _stored_otherwise(
    source: Retriever, sweeps: Sequence[str]
) -> Iterator[tuple[CollectionOptions, list[Setting]]]:
    """Yield options and the settings to measure with them; what needs no new graph comes first."""
    options = source.metadata.options
    if "clusters" in sweeps:
        for count in cluster_counts(source.size):
            clustered = replace(options, clusters=count)
            yield clustered, cluster_settings(clustered)
    if "quantization" in sweeps:
        dim = source.metadata.dim
        found = quantization_options(options, points=source.size, dim=dim)
        for name, quantized in found.items():
            yield quantized, quantization_settings(name, quantized)
