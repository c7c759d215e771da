"""From the text of a query to engine requests: its vectors, then one request per stage."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from two_tower.models.config import SHORT
from two_tower.models.vectors import ByteArray, FloatArray
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.clusters import Centroids
from two_tower.retriever.collection.schema import BM25, DENSE, LATE, pca_name
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.engine.wire import Request, SearchParams, SparseVector
from two_tower.retriever.errors import QueryError
from two_tower.retriever.search.fusion import LEXICAL, RERANK
from two_tower.retriever.search.rewriting import Answers
from two_tower.retriever.search.settings import AnnSettings, SearchSettings
from two_tower.retriever.search.spelling import Reading, Speller

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.bundle.no_tower import NoTower

MAX_QUERY_CHARS = 10_000

REMEMBERED = 512  # queries

BY_THEMSELVES = SearchParams(ignore=True)
"""Score vectors by themselves, and not by quantized copies."""

Key = tuple[str, tuple[str, ...], Answers, bool]
"""A query, the names of its vectors, the passages imagined for it, whether its spelling counts."""


class QueryVectors(NamedTuple):
    """One encoded query.

    Attributes:
        tower: `(dim,) float32`, L2-normalised, from the query tower; zeros for BM25 alone.
        by_name: vector name -> what that vector is searched with; no entry for an empty one.
        reading: how it was read, where it has words that the collection does not know.
    """

    tower: FloatArray
    by_name: Mapping[str, list[float] | list[list[float]] | SparseVector]
    reading: Reading | None = None

    @property
    def term_count(self) -> float:
        """How many terms and names BM25 looks for; near words count by their chance."""
        terms = self.by_name.get(BM25)
        return sum(terms.values) if isinstance(terms, SparseVector) else 0.0


def check_query(query: object) -> None:
    """Refuse what cannot be searched.

    Raises:
        QueryError: no text, empty, longer than `MAX_QUERY_CHARS`, or with characters that are not
            text.
    """
    if not isinstance(query, str):
        raise QueryError(f"the query is {SHORT.repr(query)}; expected text")
    if not query.strip():
        raise QueryError("the query is empty; expected some words")
    if len(query) > MAX_QUERY_CHARS:
        raise QueryError(
            f"the query has {len(query):,} characters; expected at most {MAX_QUERY_CHARS:,}"
        )
    for position, character in enumerate(query):
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise QueryError(
                f"the query has U+{ord(character):04X} at position {position}, which is not text; "
                "expected valid Unicode without NUL"
            )


class QueryEncoder:
    """Encodes queries; remembers the latest ones. Safe to share between threads.

    Attributes:
        bundle: encodes them.
    """

    def __init__(
        self,
        bundle: ModelBundle | NoTower,
        bm25: Bm25Encoder,
        speller: Speller | None = None,
    ) -> None:
        self.bundle = bundle
        self._bm25 = bm25
        self._speller = speller
        self._recent: OrderedDict[Key, QueryVectors] = OrderedDict()  # used last comes last
        self._lock = threading.Lock()

    def fresh(self) -> QueryEncoder:
        """Return an encoder that remembers no query yet."""
        return QueryEncoder(self.bundle, self._bm25, self._speller)

    def encode(
        self,
        queries: Sequence[str],
        names: Iterable[str],
        answers: Sequence[Answers | None] | None = None,
        *,
        limit_s: float | None = None,
        spelling: bool = True,
    ) -> list[QueryVectors]:
        """Encode queries to the vectors of these names, and to the query tower's.

        `answers` are passages imagined for each: the tower's vectors are then the mean. For BM25
        alone no tower reads them. One behind a URL has `limit_s` for the queries. `spelling` says
        whether words that the collection does not know are read as near ones.

        Raises:
            EndpointError: a tower behind a URL does not answer in time.
        """
        names = tuple(sorted(names))
        imagined = [a or () for a in answers] if answers else [()] * len(queries)
        keys: list[Key] = [(q, names, a, spelling) for q, a in zip(queries, imagined, strict=True)]
        known = {}
        with self._lock:
            for key in keys:
                if (vectors := self._recent.get(key)) is not None:
                    self._recent.move_to_end(key)
                    known[key] = vectors
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            encoded = self._encode(missing, names, limit_s=limit_s)
            known |= dict(zip(missing, encoded, strict=True))
            with self._lock:
                for key in missing:
                    if known[key].reading:  # passages may come that have the word
                        continue
                    self._recent[key] = known[key]
                    self._recent.move_to_end(key)
                while len(self._recent) > REMEMBERED:
                    self._recent.popitem(last=False)
        return [known[key] for key in keys]

    def _encode(
        self, keys: list[Key], names: Sequence[str], *, limit_s: float | None
    ) -> list[QueryVectors]:
        queries = [query for query, *_ in keys]
        terms = [self._bm25.encode_query(query) for query in queries] if BM25 in names else []
        readings: Mapping[str, Reading] = {}
        if self._speller and any(key[-1] for key in keys):
            unsettled = [t for t in terms if not self._speller.settled.issuperset(t.indices)]
            if unsettled:
                readings = self._speller.read(
                    {q: t.indices for q, t in zip(queries, terms, strict=True)}
                )
        typed = queries
        queries = [readings[q].text if q in readings else q for q in typed]
        late: list[ByteArray] = []
        if LATE in names:
            towers, late = self.bundle.encode_queries_late(queries)
        elif set(names) <= {BM25}:
            towers = np.zeros((len(queries), self.bundle.dim), dtype=np.float32)
        elif self.bundle.asks_endpoint:
            towers = self.bundle.encode_queries(queries, limit_s=limit_s)
        else:
            towers = self.bundle.encode_queries(queries)  # (n, dim)
        if any(answers for _, _, answers, _ in keys) and not set(names) <= {BM25}:
            towers = self._mean_with_answers([answers for _, _, answers, _ in keys], towers)
        dense = {DENSE: towers}
        if any(name not in (DENSE, BM25, LATE) for name in names):
            dense |= {pca_name(dim): part for dim, part in self.bundle.reduce(towers).items()}
        encoded = []
        for row, query in enumerate(typed):
            by_name = {name: dense[name][row].tolist() for name in names if name in dense}
            reading = readings.get(query)
            if reading:
                by_name[BM25] = self._bm25.encode_query(reading.text, reading.weights)
            elif terms and terms[row].indices:
                by_name[BM25] = terms[row]  # a query of stop words has none
            if LATE in names:
                by_name[LATE] = late[row].tolist()
            encoded.append(QueryVectors(towers[row], by_name, reading))
        return encoded

    def _mean_with_answers(self, answers: list[Answers], towers: FloatArray) -> FloatArray:
        flat = self.bundle.encode_passages([text for texts in answers for text in texts])
        ends = np.cumsum([len(texts) for texts in answers])
        parts = np.split(flat, ends[:-1])  # one (answers, dim) per query
        return np.stack([average(*pair) for pair in zip(towers, parts, strict=True)])


def average(query: FloatArray, passages: FloatArray) -> FloatArray:
    """Return the mean of a query and the passages imagined for it, L2-normalised.

    Gao, Ma, Lin and Callan, "Precise Zero-Shot Dense Retrieval without Relevance Labels" (HyDE),
    2022, equation 8.

    Args:
        query: `(dim,) float32`, L2-normalised.
        passages: `(n, dim) float32`, L2-normalised; n may be 0.
    """
    total = query + passages.sum(axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-6:  # they cancel each other out and say nothing
        return query
    mean: FloatArray = (total / length).astype(np.float32)
    return mean


def searched_vectors(settings: SearchSettings) -> frozenset[str]:
    """Return the names of the vectors that a query is searched with."""
    first = settings.ann.first_stage if DENSE in settings.legs else None
    return frozenset(settings.legs) | ({first} if first else frozenset())


def plan(
    settings: SearchSettings,
    vectors: QueryVectors,
    *,
    k: int,
    filter: qm.Filter | None = None,
    centroids: Centroids | None = None,
    oversampling: float | None = None,
) -> dict[str, Request]:
    """Return the engine requests of one query by stage; they travel as one batch.

    Rerank asks for the exact cosine of every candidate that the legs propose. They go in as
    prefetches: no vector leaves the engine, and what BM25 or a short PCA vector finds is judged by
    the full one. The dense leg scores by the full vectors itself and needs no rerank. Late
    interaction asks the same of the vectors of their tokens, for the candidates of all legs.

    Args:
        settings: which legs, and how far they look.
        vectors: of the query; a leg without one, such as BM25 for stop words alone, is left out.
        k: number of hits; no leg asks for fewer candidates.
        filter: which passages may be hits; None for all.
        centroids: of the collection's clusters; None where it has none.
        oversampling: of the collection's copies, where the settings do not say.
    """
    ann = settings.ann
    params = search_params(ann, oversampling)
    near = filter  # where the tower's legs look
    if ann.n_probe is not None and centroids is not None:
        probed = centroids.probe(vectors.tower, ann.n_probe)
        near = qm.Filter(must=[filter, probed]) if filter else probed
    legs: dict[str, Request] = {}
    for name, limit in settings.legs.items():
        if name not in vectors.by_name:
            continue
        limit = max(limit, k)
        query = vectors.by_name[name]
        if name in LEXICAL:
            leg = Request(query, name, limit, filter)
        elif name == DENSE and ann.first_stage is not None:
            wider = max(limit, ann.first_stage_candidates)
            first = Request(vectors.by_name[ann.first_stage], ann.first_stage, wider, near, params)
            leg = _rescored([first], vectors.tower, limit=limit)
        else:
            leg = Request(query, name, limit, near, params)
        legs[name] = leg
    if settings.rerank and (others := [leg for name, leg in legs.items() if name != DENSE]):
        legs[RERANK] = _rescored(others, vectors.tower, limit=sum(leg.limit for leg in others))
    if settings.late and legs and LATE in vectors.by_name:
        all_legs = [leg for name, leg in legs.items() if name != RERANK]
        legs[LATE] = Request(
            vectors.by_name[LATE],
            LATE,
            limit=sum(leg.limit for leg in all_legs),
            params=BY_THEMSELVES,
            prefetch=all_legs,
        )
    return legs


def search_params(ann: AnnSettings, oversampling: float | None = None) -> SearchParams:
    """Return the engine's form of what one request can say; `oversampling` where `ann` does not."""
    if ann.oversampling is not None or not ann.rescore:
        oversampling = ann.oversampling
    return SearchParams(
        hnsw_ef=ann.ef,
        exact=ann.exact,
        ignore=ann.ignore_quantized,
        rescore=ann.rescore,
        oversampling=oversampling,
    )


def _rescored(legs: list[Request], tower: FloatArray, *, limit: int) -> Request:
    """Ask for the `limit` best of what `legs` find, by the full vectors.

    Quantized copies are ignored: a final score must come from the vectors themselves.
    """
    return Request(tower.tolist(), DENSE, limit, params=BY_THEMSELVES, prefetch=legs)
