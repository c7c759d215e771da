"""Systems by name: what can be measured, and how each ranks the corpus for a query."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from two_tower.models.data import Dataset, Passage, Query
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.language import ENGLISH
from two_tower.models.progress import progress, working
from two_tower.models.text.bm25 import Analyzer, Bm25Config
from two_tower.models.vectors import Float64Array
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder, EngineAnalyzer
from two_tower.retriever.collection.options import VECTOR_BYTES, CollectionOptions
from two_tower.retriever.collection.schema import BM25, DENSE, LATE
from two_tower.retriever.evaluation.measures import DEPTH
from two_tower.retriever.evaluation.trec import read_run
from two_tower.retriever.search.chances import collection_chances, first_chance
from two_tower.retriever.search.fusion import CROSS
from two_tower.retriever.search.queries import searched_vectors
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings, read_settings

log = logging.getLogger(__name__)

HYDE, ESCALATE = "hyde", "escalate"

ESCALATE_BELOW = 0.8
"""The chance of a first hit below which the cross-scorer reads, where settings name none."""

SAMPLE = 1000

POSTING_BYTES = 8

SIZE_NOTE = (
    "index MB is computed, for what a system holds in memory: "
    "4 bytes per dimension (2 for float16) of vectors that are not on disk and what quantized "
    f"copies add, {POSTING_BYTES} per BM25 posting (counted on up to {SAMPLE:,} passages), without "
    "graphs and payloads; tfidf is its matrix"
)

_NEEDS = {
    CROSS: "this bundle has no cross-scorer; train one with: models train DATA --config fast",
    LATE: "bundle and collection have no late interaction; train with late.dim, and load again",
    ESCALATE: "it needs a cross-scorer and calibrated chances; run: retriever calibrate NAME DATA",
    "weighted": "this bundle has learnt no weights of fusion, and `rerank` is the fixed weight",
    "settings": "it is what --settings FILE says, and there is none",
}
"""System that not every collection has -> what it is for want of."""

FROM_RUN = "run "
"""Beginning of the source of a system whose rankings come from a file."""


class Ranker(NamedTuple):
    """A system that is ready to rank.

    Attributes:
        rank: (queries, k) -> for each the ids of its `k` best passages, best first.
        index_mb: size of its vectors or terms; None where that is not known.
        is_timed: whether a time of `rank` means anything; not where a file has the rankings.
        remark: gives what is to be known of times and rankings; empty for nothing.
        chances: query_id -> the chance of its first hit, of those ranked so far that have one.
        crossed: query_id -> whether a cross-scorer read its candidates, where that was decided.
    """

    rank: Callable[[Sequence[Query], int], list[list[str]]]
    index_mb: float | None
    is_timed: bool = True
    remark: Callable[[], str] = str
    chances: Mapping[str, float] = MappingProxyType({})
    crossed: Mapping[str, bool] = MappingProxyType({})


class System(NamedTuple):
    """One row of a report, not started yet: an index in memory may be large.

    Attributes:
        name: in tables and file names.
        source: file or collection; empty for a system of the retriever's collection.
        start: returns its ranker.
    """

    name: str
    source: str
    start: Callable[[], Ranker]


def system_names(retriever: Retriever) -> list[str]:
    """Return the names of all systems in the order of the table; the default engine comes last.

    `hybrid` and `rerank` fuse with the weights that the bundle learnt; where it has any, `weighted`
    is `rerank` with the fixed weight. `late` is `rerank` and late interaction, where bundle and
    collection have it. `cross` needs a bundle with a cross-scorer, `settings` a retriever that was
    opened with settings of its own, `hyde` one whose settings rewrite the query: it is all of them
    together, and the others leave that out. A collection of BM25 alone has nothing beside it.
    """
    lexical = ["tfidf", "rank_bm25", BM25]
    own = ["settings"] if replace(retriever.settings, rewrite=None) != SearchSettings() else []
    own += [HYDE] if retriever.settings.rewrite else []
    if not retriever.metadata.has_tower:
        return lexical + own
    reduced = [f"pca_{dim}" for dim in retriever.metadata.pca_dims]
    names = [*lexical, DENSE, *reduced, "rrf", "dbsf"]
    names += ["weighted"] if retriever.fusion else []
    names += ["hybrid", "rerank"]
    names += [LATE] if retriever.has_late else []
    if retriever.bundle.has_cross_scorer:
        names += [ESCALATE] if collection_chances(retriever.metadata) else []
        names += [CROSS]
    return names + own


def default_systems(retriever: Retriever) -> list[str]:
    """Return all but rank_bm25, which takes seconds per query on a large corpus."""
    return [name for name in system_names(retriever) if name != "rank_bm25"]


def choose_systems(
    retriever: Retriever, words: Sequence[str] | None, *, others: Mapping[str, Retriever]
) -> list[System]:
    """Return the systems of a report: those of others first, then the retriever's in table order.

    Args:
        retriever: opened on the collection of the report.
        words: `bm25`, `OTHER/bm25` for a system of another collection, or `name=FILE` for a
            settings file; None for `default_systems`.
        others: name -> another collection; its default engine where `words` name none of its
            systems.

    Raises:
        ConfigError: a word names nothing that is here, or a settings file is wrong.
    """
    words = default_systems(retriever) if words is None else words
    own = system_names(retriever)
    systems: dict[str, System] = {}
    for name, other in others.items():
        if not any(word.startswith(f"{name}/") for word in words):
            systems[name] = _stage_system(name, system_names(other)[-1], other)
    for word in words:
        name, _, file = word.partition("=")
        owner, _, stage = name.partition("/")
        if name and file:
            systems[name] = _settings_system(name, Path(file), retriever)
        elif stage and owner in others and stage in system_names(others[owner]):
            systems[name] = _stage_system(name, stage, others[owner])
        elif name in _NEEDS and name not in own:
            raise ConfigError(f"system {word!r} is not here: {_NEEDS[name]}")
        elif name not in own:
            raise ConfigError(f"unknown system {word!r}; expected some of {', '.join(own)}")
    ours = [_stage_system(name, name, retriever) for name in own if name in words]
    return [*systems.values(), *ours]


def _stage_system(name: str, stage: str, retriever: Retriever) -> System:
    source = "" if name == stage else f"{stage} of {retriever.collection}"
    return System(name, source, lambda: start(stage, retriever))


def _settings_system(name: str, file: Path, retriever: Retriever) -> System:
    settings = read_settings(file)
    retriever.with_settings(settings)  # an unknown leg is refused before the first system runs
    return System(name, f"settings {file}", lambda: _start_engine(retriever, settings))


def read_ahead(retriever: Retriever, queries: Sequence[Query]) -> None:
    """Let a model behind a URL read queries patiently; searches then find them in the cache.

    Without such a model nothing is done.

    Raises:
        EndpointError: it does not answer, or not in time.
    """
    if retriever.bundle.asks_endpoint:
        retriever.bundle.encode_queries([query.text for query in queries])


def run_system(path: Path, dataset: Dataset, *, split: str) -> System:
    """Return the system of a TREC run file, named after the file.

    It may name passages that DATA has merged with equal ones: those stand for them. Queries of the
    split that the file lacks are counted in a warning.

    Raises:
        DataError: the file is not a TREC run, or it has none of the split's queries.
    """
    rankings = read_run(path, merged=dataset.merged_ids())
    judged = {qrel.query_id for qrel in dataset.qrels(split) if qrel.relevance > 0}
    common = len(judged & rankings.keys())
    if judged and not common:
        raise DataError(
            f"{path} ranks {len(rankings):,} queries, none of the {len(judged):,} of split "
            f"{split!r}; expected a run of that split: choose another with --split"
        )
    if common < len(judged):
        log.warning(
            "%s ranks %s of the %s queries of split %r; nothing is found for the others",
            path,
            f"{common:,}",
            f"{len(judged):,}",
            split,
        )

    def rank(queries: Sequence[Query], k: int) -> list[list[str]]:
        return [rankings.get(query.query_id, [])[:k] for query in queries]

    return System(path.stem, f"{FROM_RUN}{path}", lambda: Ranker(rank, None, is_timed=False))


def start(system: str, retriever: Retriever) -> Ranker:
    """Make a system ready: build the index of an in-memory baseline, set the engine's settings."""
    if system not in ("tfidf", "rank_bm25"):
        return _start_engine(retriever, _system_settings(system, retriever.settings))
    reading = progress(retriever.passages(), label=f"{system}: reading", total=retriever.size)
    passages = list(reading)
    with working(f"{system}: indexing"):
        if system == "tfidf":
            return tfidf_ranker(passages, retriever.metadata.language)
        bm25 = Bm25Encoder.of(retriever.metadata.bm25, retriever.bundle)
        return rank_bm25_ranker(passages, bm25.config, bm25.analyzer)


def _start_engine(retriever: Retriever, settings: SearchSettings) -> Ranker:
    """Return the engine with other settings, and with an empty cache of queries."""
    variant = retriever.with_rewriter(None).with_settings(settings)

    chances: dict[str, float] = {}
    crossed: dict[str, bool] = {}

    def rank(queries: Sequence[Query], k: int) -> list[list[str]]:
        texts = [query.text for query in queries]
        results = variant.explain_many(texts, k=min(k, variant.size))
        for query, result in zip(queries, results, strict=True):
            if (chance := first_chance(result)) is not None:
                chances[query.query_id] = chance
            if settings.escalate is not None:
                crossed[query.query_id] = CROSS in result.stages_run
        return [[hit.passage_id for hit in result.hits] for result in results]

    rewriting = variant.rewriting
    remark = rewriting.remark if rewriting else str
    size = index_mb(retriever, settings)
    return Ranker(rank, size, remark=remark, chances=chances, crossed=crossed)


def _system_settings(system: str, default: SearchSettings) -> SearchSettings:
    """Return the settings that make the engine behave as `system`."""
    if system == HYDE:
        return default
    default = replace(default, rewrite=None)
    if system == "settings":
        return default
    if system in (CROSS, ESCALATE):
        below = None if system == CROSS else default.escalate or ESCALATE_BELOW
        return replace(default, rerank=True, late=True, cross=True, escalate=below)
    uncrossed = replace(default, cross=False, late=False, escalate=None)
    hybrids = {
        "rrf": replace(uncrossed, fusion="rrf", rerank=False),
        "dbsf": replace(uncrossed, fusion="dbsf", rerank=False),
        "weighted": replace(uncrossed, fusion="weighted", rerank=True),
        "hybrid": replace(uncrossed, rerank=False),
        "rerank": replace(uncrossed, rerank=True),
        LATE: replace(uncrossed, rerank=True, late=True),
    }
    return hybrids.get(system) or replace(uncrossed, legs={system: DEPTH}, rerank=False)


def index_mb(
    retriever: Retriever,
    search: SearchSettings,
    *,
    options: CollectionOptions | None = None,
    posting_bytes: float | None = None,
) -> float:
    """Return the megabytes of the vectors in memory that a query with these settings reads.

    As it is stored, or as it would be with `options`; `posting_bytes` are counted if not given.
    """
    names = searched_vectors(search) | ({DENSE} if search.rerank else set())
    widths = retriever.metadata.schema.widths
    dimensions = sum(widths[name] for name in names if name in widths)
    options = options or retriever.metadata.options
    per_passage = dimensions * bytes_per_dimension(options)
    if BM25 in names and not options.on_disk.bm25:
        if posting_bytes is None:
            posting_bytes = count_posting_bytes(retriever)
        per_passage += posting_bytes
    return float(retriever.size * per_passage / 1e6)


def count_posting_bytes(retriever: Retriever) -> float:
    """Return what the BM25 postings of a passage take, on average."""
    encoder = Bm25Encoder.of(retriever.metadata.bm25, retriever.bundle)
    sample = list(islice(retriever.passages(), SAMPLE))
    postings = sum(len(vector.indices) for vector in encoder.encode_passages(sample))
    return POSTING_BYTES * postings / max(1, len(sample))


def bytes_per_dimension(options: CollectionOptions) -> float:
    """Return what one dimension of one dense vector takes in memory, quantized copy included."""
    kind, bits = options.quantization.kind, options.quantization.bits
    copies = {"none": 0.0, "scalar": 1.0, "binary": bits / 8}
    vectors = 0 if options.on_disk.vectors else VECTOR_BYTES[options.datatype]
    return vectors + copies[kind]


def tfidf_ranker(passages: Sequence[Passage], language: str = ENGLISH) -> Ranker:
    """Return TF-IDF in memory: scikit-learn, sublinear tf, cosine; it has English stop words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        sublinear_tf=True, stop_words=ENGLISH if language == ENGLISH else None
    )
    contents = [passage.content for passage in passages]
    try:
        matrix = vectorizer.fit_transform(contents).T.tocsr()  # (terms, passages)
    except ValueError:  # no text has a word
        return Ranker(lambda queries, k: [[] for _ in queries], 0.0)

    def score(query: str) -> Float64Array:
        scores: Float64Array = (vectorizer.transform([query]) @ matrix).toarray()[0]
        return scores

    size = sum(part.nbytes for part in (matrix.data, matrix.indices, matrix.indptr))
    return _scoring_ranker(passages, score, index_mb=size / 1e6)


def rank_bm25_ranker(
    passages: Sequence[Passage], config: Bm25Config, analyzer: Analyzer | None = None
) -> Ranker:
    """Return Okapi BM25 by the rank-bm25 package, over the analyzed terms of the engine's leg.

    Exact and independent of the engine; it scores every passage in Python, so it is slow.
    """
    from rank_bm25 import BM25Okapi

    words = analyzer or EngineAnalyzer(config.language)

    def terms(text: str) -> list[int]:
        counts = words.term_counts(text)
        return [term for term, count in counts.items() for _ in range(count)]

    index = BM25Okapi([terms(p.content) for p in passages], k1=config.k, b=config.b)
    return _scoring_ranker(passages, lambda query: index.get_scores(terms(query)), index_mb=None)


def _scoring_ranker(
    passages: Sequence[Passage], score: Callable[[str], Float64Array], *, index_mb: float | None
) -> Ranker:
    """Return a ranker of the passages that score above 0, which share a term with the query."""
    ids = [passage.passage_id for passage in passages]

    def best(query: str, k: int) -> list[str]:
        scores = score(query)  # (passages,)
        return [ids[row] for row in np.argsort(-scores, kind="stable")[:k] if scores[row] > 0]

    return Ranker(lambda queries, k: [best(query.text, k) for query in queries], index_mb)
