"""Systems by name: what can be measured, and how each ranks the corpus for a query."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from two_tower.models.data import Query
from two_tower.models.errors import ConfigError
from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever.cross import CROSS
from two_tower.retriever.index_size import index_mb, matrix_mb
from two_tower.retriever.lexical import RankBm25Index, TfidfIndex
from two_tower.retriever.measures import DEPTH
from two_tower.retriever.search import Retriever
from two_tower.retriever.settings import SearchSettings
from two_tower.retriever.trec import read_run

GIVEN = "run "
"""What the source of a system begins with that was read from a file."""

Ranker = Callable[[str, int], list[str]]
"""(query text, k) -> passage ids, best first."""


class Started(NamedTuple):
    """A system that is ready to rank.

    Attributes:
        rank: (query, k) -> passage ids, best first.
        index_mb: what its vectors or terms take; None where that is not known.
        is_timed: whether `rank` does the work, and so can be timed.
        rank_many: (queries, k) -> the same for each, where that is faster than one by one.
    """

    rank: Callable[[Query, int], list[str]]
    index_mb: float | None
    is_timed: bool = True
    rank_many: Callable[[Sequence[Query], int], list[list[str]]] | None = None


class System(NamedTuple):
    """One row of a report, not started yet: an index in memory may be large.

    Attributes:
        name: in tables and file names.
        source: where it comes from, where the name does not say.
        start: makes it ready.
    """

    name: str
    source: str
    start: Callable[[], Started]


def system_names(retriever: Retriever) -> list[str]:
    """Return the names of all systems in the order of the table; the default engine comes last.

    `hybrid` and `rerank` fuse by what the bundle learnt; where it did, `weighted` is `rerank` with
    the fixed weight. `cross` is there where the bundle has a cross-scorer, `settings` where the
    retriever was opened with settings of its own.
    """
    reduced = [f"pca_{dim}" for dim in retriever.metadata.pca_dims]
    fixed = ["weighted"] if retriever.bundle.fusion else []
    last = [CROSS] if retriever.bundle.has_cross_scorer else []
    given = ["settings"] if retriever.settings != SearchSettings() else []
    baselines = ["tfidf", "rank_bm25", "bm25", "dense", *reduced, "rrf"]
    return [*baselines, *fixed, "hybrid", "rerank", *last, *given]


def default_systems(retriever: Retriever) -> list[str]:
    """Return all but rank_bm25, which takes seconds per query on a large corpus."""
    return [name for name in system_names(retriever) if name != "rank_bm25"]


def build_ranker(system: str, retriever: Retriever) -> Ranker:
    """Return the ranker of a system: an in-memory baseline or the engine with other settings."""
    started = start(system, retriever)
    return lambda text, k: started.rank(Query("", text), k)


def start(system: str, retriever: Retriever) -> Started:
    """Make a system ready: build the index of an in-memory baseline, set the engine's settings."""
    if system == "tfidf":
        tfidf = TfidfIndex(list(retriever.passages()))
        return Started(lambda query, k: tfidf.rank(query.text, k=k), matrix_mb(tfidf.matrix))
    if system == "rank_bm25":
        config = Bm25Config(**retriever.metadata.bm25)
        bm25 = RankBm25Index(list(retriever.passages()), config)
        return Started(lambda query, k: bm25.rank(query.text, k=k), None)
    return start_engine(retriever, system_settings(system, retriever.settings))


def start_engine(retriever: Retriever, settings: SearchSettings) -> Started:
    """Return the engine with other settings; it remembers no query of another system."""
    variant = retriever.with_rewriter(None).with_settings(settings)

    def rank(query: Query, k: int) -> list[str]:
        return [hit.passage_id for hit in variant.search(query.text, k=min(k, variant.size))]

    def rank_many(queries: Sequence[Query], k: int) -> list[list[str]]:
        texts = [query.text for query in queries]
        found = variant.search_many(texts, k=min(k, variant.size))
        return [[hit.passage_id for hit in hits] for hits in found]

    return Started(rank, index_mb(retriever, settings), rank_many=rank_many)


def system_settings(system: str, default: SearchSettings) -> SearchSettings:
    """Return the settings that make the engine behave as `system`."""
    if system == "settings":
        return default
    if system == CROSS:
        return replace(default, rerank=True, cross=True)
    uncrossed = replace(default, cross=False)
    hybrids = {
        "rrf": replace(uncrossed, fusion="rrf", rerank=False),
        "weighted": replace(uncrossed, fusion="weighted", rerank=True),
        "hybrid": replace(uncrossed, rerank=False),
        "rerank": replace(uncrossed, rerank=True),
    }
    return hybrids.get(system) or replace(uncrossed, legs={system: DEPTH}, rerank=False)


def choose_systems(
    retriever: Retriever, words: Sequence[str] | None, *, others: Mapping[str, Retriever]
) -> list[System]:
    """Return the systems of a report: what is given from outside first, then our own in order.

    Args:
        retriever: whose stages are measured.
        words: `bm25`, `OTHER/bm25` for a system of another collection, or `name=FILE` for a
            settings file; all our own by default.
        others: name -> another collection; its default engine where `words` name none of its
            systems.

    Raises:
        ConfigError: a word names nothing that is here, or a settings file is wrong.
    """
    words = default_systems(retriever) if words is None else words
    own = system_names(retriever)
    found: dict[str, System] = {}
    for name, other in others.items():
        if not any(word.startswith(f"{name}/") for word in words):
            found[name] = _engine_system(name, system_names(other)[-1], other)
    for word in words:
        name, _, file = word.partition("=")
        owner, _, part = name.partition("/")
        if name and file:
            found[name] = _settings_system(name, Path(file), retriever)
        elif part and owner in others and part in system_names(others[owner]):
            found[name] = _engine_system(name, part, others[owner])
        elif name not in own:
            raise ConfigError(f"unknown system {word!r}; expected some of {', '.join(own)}")
    chosen = [_engine_system(name, name, retriever) for name in own if name in words]
    return [*found.values(), *chosen]


def run_system(path: Path) -> System:
    """Return what a TREC run file ranked, under the file's name without its ending.

    Raises:
        DataError: it is no such file.
    """
    rankings = read_run(path)
    ranked = Started(lambda query, k: rankings.get(query.query_id, [])[:k], None, is_timed=False)
    return System(path.stem, f"{GIVEN}{path}", lambda: ranked)


def _engine_system(name: str, part: str, retriever: Retriever) -> System:
    source = "" if name == part else f"{part} of {retriever.collection}"
    return System(name, source, lambda: start(part, retriever))


def _settings_system(name: str, file: Path, retriever: Retriever) -> System:
    from two_tower.retriever.settings_file import read_settings

    settings = read_settings(file)
    retriever.with_settings(settings)  # unknown legs are found now, not after an hour
    return System(name, f"settings {file}", lambda: start_engine(retriever, settings))
