"""`Retriever`: queries in, hits out; `Pipeline.run` says how."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from two_tower.models.config import SHORT
from two_tower.models.data import Passage
from two_tower.models.errors import TwoTowerError
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.clusters import Centroids
from two_tower.retriever.collection.schema import (
    DENSE,
    base_name,
    from_payload,
    point_id,
    read_metadata,
)
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine, scroll_all
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.errors import (
    CollectionMismatch,
    CollectionNotFound,
    PassageNotFound,
    QueryError,
)
from two_tower.retriever.records import Hit, SearchResult
from two_tower.retriever.search.abilities import require_possible
from two_tower.retriever.search.bundles import find_bundle, load_bundle
from two_tower.retriever.search.chances import collection_chances
from two_tower.retriever.search.facets import FieldValue, field_values
from two_tower.retriever.search.filters import FilterLike, to_filter
from two_tower.retriever.search.fusion import collection_fusion
from two_tower.retriever.search.pipeline import Pipeline
from two_tower.retriever.search.queries import QueryEncoder, check_query
from two_tower.retriever.search.rewriting import Rewriter, Rewriting
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.search.spelling import Speller

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.bundle.fusion import Fusion
    from two_tower.models.bundle.no_tower import NoTower

DEFAULT_K, DEFAULT_VALUES = 10, 20
QUERIES_PER_REQUEST = 32
REQUESTS_IN_FLIGHT = 3  # two are searched for while the answer to the third is read

SCROLL_PAGE, FOLLOW_S = 1000, 5.0

log = logging.getLogger(__name__)


class Retriever:
    """Searches one collection with the bundle it was loaded with.

    Threads may share one. Every method that searches raises `QueryError` for what cannot be
    searched and `EngineError` where the engine does not answer.

    Attributes:
        engine: that holds the collection.
        bundle: encodes queries, and may bring a learnt fusion and a cross-scorer; `NoTower` where
            the collection has BM25 alone.
        name: by which it was opened.
        collection: the versioned collection that the name stands for; see `open` and `refresh`.
        metadata: what `ingest load` recorded about it.
        size: number of passages in it when this was last looked at.
        fields: payload field -> type of its index; what a filter may name.
        settings: how queries are answered where a call does not say.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        bundle: ModelBundle | NoTower,
        *,
        settings: SearchSettings,
    ) -> None:
        self.engine = engine
        self.name = name
        self.bundle = bundle
        self.settings = settings
        self._follow_s, self._next_look, self._device = math.inf, math.inf, "cpu"
        self._is_closed = False
        self.collection = engine.resolve(name)
        self.metadata = read_metadata(engine, self.collection)
        self.size = engine.count(self.collection, exact=True).count
        self._rough_size, self.fields, _ = engine.overview(self.collection)
        self._require_match(bundle, name=name)
        self._require_possible(settings)
        bm25 = Bm25Encoder.of(self.metadata.bm25, bundle)
        encoder = QueryEncoder(bundle, bm25, Speller(engine, self.collection, bm25.analyzer))
        self._centroids = Centroids.from_metadata(self.metadata)
        self._pipeline = self._make_pipeline(encoder)

    @classmethod
    def open(
        cls,
        name: str,
        *,
        bundle: str | Path | ModelBundle | None = None,
        url: str | None = None,
        path: str | Path | None = None,
        api_key: str | None = None,
        settings: SearchSettings | None = None,
        follow_s: float = FOLLOW_S,
        device: str = "cpu",
    ) -> Retriever:
        """Connect, and check that bundle and collection belong together.

        Where `ingest promote` or `rollback` points the name to another version, searches go there
        at most `follow_s` later, with the bundle of that version. A version whose bundle is not
        found is not followed, and logged.

        Args:
            name: alias or versioned name of a collection.
            bundle: the folder that `models train` wrote, or a bundle already loaded; otherwise it
                is found by its fingerprint: where TWO_TOWER_BUNDLE says, in the folder `bundles`
                of an embedded engine, or where `ingest load` took it from. BM25 alone needs none.
            url: a Qdrant server; QDRANT_URL where neither this nor `path` is given.
            path: folder of the embedded engine; `.qdrant` where nothing names an engine.
            api_key: for the server; QDRANT_API_KEY otherwise.
            settings: how to search; the measured default otherwise.
            follow_s: how often a search first looks what the name stands for; `math.inf`: never.
            device: where a transformer reads queries: cpu, cuda, cuda:1; auto for a GPU if any.

        Raises:
            BundleError: no complete bundle there.
            ConfigError: no bundle is named and none is found, or both `url` and `path`.
            EngineError: no engine, no such collection, or one loaded with another bundle.
        """
        given = load_bundle(bundle, device=device)
        engine = connect(url=url, path=path, api_key=api_key, create=False)
        try:
            loaded = given or find_bundle(engine, name, device=device)
            retriever = cls(engine, name, loaded, settings=settings or SearchSettings())
            retriever._follow_s, retriever._device = follow_s, device
            retriever._next_look = time.monotonic() + follow_s
            return retriever
        except BaseException:
            engine.close()
            raise

    def search(
        self,
        query: str,
        *,
        k: int | None = None,
        filter: FilterLike | None = None,
        settings: SearchSettings | None = None,
        budget_ms: float | None = None,
    ) -> list[Hit]:
        """Return the `k` best passages for `query`, best first.

        Args:
            query: what to look for.
            k: number of hits, 10 by default; a small collection, filter, legs and groups may leave
                less.
            filter: which passages may be hits: `{"kind": "note", "year": {"gte": 2010}}`, with a
                list for any of several values and `{"text": "words"}` on a full-text field; or a
                ready `qm.Filter`.
            settings: for this call alone; the retriever's own otherwise.
            budget_ms: optional stages (cross, diversity, rerank) that would probably end later
                are skipped; `explain` says which. Legs and payload are never skipped, but for the
                legs of a tower behind a URL that does not answer in time: BM25 goes on alone.

        Raises:
            QueryError: the query is empty, too long or not text, `k` is out of range, or the
                filter names a field without index.
            ConfigError: the settings name an unknown leg.
            EndpointError: a model behind a URL reads queries, and does not answer in time.
            EngineError: the engine does not answer.
        """
        (result,) = self.explain_many(
            [query], k=k, filter=filter, settings=settings, budget_ms=budget_ms
        )
        return result.hits

    def search_many(
        self,
        queries: Sequence[str],
        *,
        k: int | None = None,
        filter: FilterLike | None = None,
        settings: SearchSettings | None = None,
        budget_ms: float | None = None,
    ) -> list[list[Hit]]:
        """Return the hits of each query, in order; several times faster than one call each.

        Arguments are those of `search`, `budget_ms` for each query.
        """
        results = self.explain_many(
            queries, k=k, filter=filter, settings=settings, budget_ms=budget_ms
        )
        return [result.hits for result in results]

    def explain(
        self,
        query: str,
        *,
        k: int | None = None,
        filter: FilterLike | None = None,
        settings: SearchSettings | None = None,
        budget_ms: float | None = None,
    ) -> SearchResult:
        """Return what `search` does, with the stages that ran and their times; same arguments."""
        (result,) = self.explain_many(
            [query], k=k, filter=filter, settings=settings, budget_ms=budget_ms
        )
        return result

    def explain_many(
        self,
        queries: Sequence[str],
        *,
        k: int | None = None,
        filter: FilterLike | None = None,
        settings: SearchSettings | None = None,
        budget_ms: float | None = None,
    ) -> list[SearchResult]:
        """Return what `search_many` does, each as `explain` does; same arguments."""
        if time.monotonic() >= self._next_look:
            self._look()
        k = self._checked_k(k)
        if settings is not None:
            self._require_possible(settings)
        if budget_ms is not None and not (
            isinstance(budget_ms, Real) and budget_ms > 0 and math.isfinite(budget_ms)
        ):
            raise QueryError(f"budget_ms is {SHORT.repr(budget_ms)}; expected more than 0")
        if isinstance(queries, str) or not isinstance(queries, Iterable):
            raise QueryError(
                f"the queries are {SHORT.repr(queries)}; expected a list of texts, or `search` for "
                "a single one"
            )
        queries = list(queries)
        run = partial(
            self._pipeline.run,
            k=k,
            settings=settings or self.settings,
            filter=None if filter is None else to_filter(filter, self.fields),
            budget_ms=budget_ms,
        )
        for query in queries:
            check_query(query)
        starts = range(0, len(queries), QUERIES_PER_REQUEST)
        batches = [queries[start : start + QUERIES_PER_REQUEST] for start in starts]
        try:
            if len(batches) <= 1 or self.engine.is_embedded:  # that one holds the GIL
                return [result for batch in batches for result in run(batch)]
            with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
                return [result for results in pool.map(run, batches) for result in results]
        except CollectionNotFound:  # it was dropped since the last look
            if self._follow_s == math.inf or not self.refresh():
                raise
        return self.explain_many(
            queries, k=k, filter=filter, settings=settings, budget_ms=budget_ms
        )

    def similar(
        self, passage_id: str, *, k: int | None = None, filter: FilterLike | None = None
    ) -> list[Hit]:
        """Return the passages nearest to one of the collection, by the full vectors.

        Args:
            passage_id: whose neighbours; it is not among them itself.
            k: number of hits.
            filter: as in `search`.

        Raises:
            PassageNotFound: no such passage.
            QueryError: what `search` refuses, or the collection has BM25 alone.
        """
        if time.monotonic() >= self._next_look:
            self._look()
        if not self.metadata.has_tower:
            raise QueryError(
                f"{self.collection} has BM25 alone, and neighbours are those of a bundle's "
                "vectors; load it with ingest load --bundle BUNDLE"
            )
        k = self._checked_k(k)
        condition = None if filter is None else to_filter(filter, self.fields)
        if not isinstance(passage_id, str):
            raise QueryError(f"the passage id is {SHORT.repr(passage_id)}; expected text")
        own = _point_id(passage_id)
        records = self.engine.retrieve(
            self.collection, [own], with_payload=False, with_vectors=[DENSE]
        )
        if not records or not isinstance(vectors := records[0].vector, dict):
            raise PassageNotFound(f"no passage {passage_id[:100]!r} in {self.collection}")
        vector: Any = vectors[DENSE]
        others = qm.Filter(must_not=[qm.HasIdCondition(has_id=[own])])
        if condition:
            others = qm.Filter(must=[others, condition])
        return self._pipeline.similar(vector, k=k, filter=others, ann=self.settings.ann)

    def with_settings(self, settings: SearchSettings) -> Retriever:
        """Return a retriever on the same engine with other settings."""
        self._require_possible(settings)
        twin = self.__copy__()
        twin.settings = settings
        return twin

    @property
    def fusion(self) -> Fusion | None:
        """The learnt weights: those of the bundle, or what was calibrated for the collection."""
        return collection_fusion(self.metadata, self.bundle)

    @property
    def has_late(self) -> bool:
        """Whether late interaction can score candidates: bundle and collection have it."""
        return self._pipeline.has_late

    def with_rewriter(
        self, rewriter: Rewriter | None, *, within_s: float | None = None
    ) -> Retriever:
        """Return a retriever on the same engine that searches with imagined answers (HyDE).

        `SearchSettings.rewrite` does the same by a language model.

        Args:
            rewriter: query -> passages that could answer it. The tower's stages search with the
                mean of their vectors and the query's; BM25 keeps to the query. Answers to the
                latest queries are remembered. None ends it.
            within_s: seconds after which a search goes on without them; None waits.
        """
        twin = self.__copy__()
        rewriting = Rewriting(rewriter, within_s=within_s) if rewriter else None
        twin._pipeline = self._make_pipeline(self._pipeline.encoder.fresh(), rewriting)
        return twin

    @property
    def rewriting(self) -> Rewriting | None:
        """What imagines passages by the retriever's own settings; None where nothing does."""
        if self.settings.rewrite is None or not self.metadata.has_tower:
            return None
        return self._pipeline.rewriting(self.settings.rewrite)

    def passages(self) -> Iterator[Passage]:
        """Stream everything that the collection holds, in the engine's order."""
        for record in scroll_all(self.engine, self.collection, page=SCROLL_PAGE):
            yield from_payload(record.payload or {})

    def values(
        self, field: str, *, k: int = DEFAULT_VALUES, filter: FilterLike | None = None
    ) -> list[FieldValue]:
        """Return the most frequent values of a field and in how many passages each is.

        Args:
            field: one of `fields` with a keyword, integer, bool or uuid index.
            k: number of values at most.
            filter: as in `search`; only such passages are counted.

        Raises:
            QueryError: the values of that field are not counted, or the filter cannot be.
        """
        condition = None if filter is None else to_filter(filter, self.fields)
        return field_values(
            self.engine, self.collection, field, fields=self.fields, limit=k, filter=condition
        )

    def count(self, passage_ids: Iterable[str]) -> int:
        """Return how many of these passages the collection holds."""
        points = sorted({_point_id(passage_id) for passage_id in passage_ids})
        count = 0
        for start in range(0, len(points), SCROLL_PAGE):
            page = points[start : start + SCROLL_PAGE]
            count += len(self.engine.retrieve(self.collection, page, with_payload=False))
        return count

    def refresh(self) -> bool:
        """Search what the name stands for now, with the bundle of that version.

        Searches that have begun in other threads end with the version that they began with.

        Returns:
            Whether it is another version than before.

        Raises:
            BundleError: the bundle of the new version is not complete.
            ConfigError: it is not found.
            EngineError: the engine does not answer, or the name stands for nothing.
        """
        if self.engine.resolve(self.name) == self.collection:
            overview = self.engine.overview(self.collection)
            if overview.points != self._rough_size:  # counting a large collection takes time
                self.size = self.engine.count(self.collection, exact=True).count
                self._rough_size = overview.points
            self.fields = overview.fields
            return False
        bundle = find_bundle(self.engine, self.name, device=self._device)
        fresh = type(self)(self.engine, self.name, bundle, settings=self.settings)
        own = self._pipeline.own_rewriting
        fresh._pipeline = fresh._make_pipeline(fresh._pipeline.encoder, own)
        fresh._follow_s, fresh._next_look = self._follow_s, self._next_look
        fresh._device = self._device
        self.__dict__ = fresh.__dict__  # in one step: other threads see all of it or nothing
        log.info("searching %s", self.collection)
        return True

    def _look(self) -> None:
        """Refresh, and go on with what there is where that fails; other threads do not wait."""
        self._next_look = time.monotonic() + self._follow_s
        try:
            self.refresh()
        except TwoTowerError as error:
            log.warning("still searching %s: %s", self.collection, error)

    def close(self) -> None:
        """Release the engine; searches end with `EngineClosed` from then on.

        An embedded folder can be opened by another process when all retrievers of this one that
        share it are closed or dropped.
        """
        self._is_closed = True
        self._pipeline.close()
        self.engine.close()

    def __repr__(self) -> str:
        kind = self.metadata.has_tower and f"bundle {self.metadata.bundle_fingerprint[:8]}"
        kind, fields = kind or "BM25 alone", ", ".join(self.fields) or "none"
        about = "closed" if self._is_closed else f"{self.size:,} passages, {kind}, fields {fields}"
        return f"<Retriever of {self.collection!r} at {self.engine.where}: {about}>"

    def __copy__(self) -> Retriever:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the Retriever of {self.collection!r} holds an open engine and cannot be sent to "
            "another process; open it there: Retriever.open(…)"
        )

    def __enter__(self) -> Retriever:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _make_pipeline(self, encoder: QueryEncoder, rewriting: Rewriting | None = None) -> Pipeline:
        return Pipeline(
            self.engine,
            self.collection,
            encoder,
            fusion=self.fusion,
            chances=collection_chances(self.metadata),
            centroids=self._centroids,
            has_late=self.metadata.late_dim > 0,
            rewriting=rewriting,
            oversampling=self.metadata.options.oversampling,
        )

    def _require_possible(self, settings: SearchSettings) -> None:
        has_tower = self.metadata.has_tower
        require_possible(settings, self.bundle.pca_dims, self.metadata.options, has_tower=has_tower)

    def _require_match(self, bundle: ModelBundle | NoTower, *, name: str) -> None:
        loaded_with = self.metadata.bundle_fingerprint
        if loaded_with == bundle.fingerprint:
            return
        own = f"{base_name(self.collection)}--{bundle.fingerprint[:8]}"
        mend = f"ingest load DATA --bundle BUNDLE --collection {base_name(self.collection)}"
        if self.engine.collection_exists(own):
            mend = f"ingest promote {base_name(self.collection)} --to {own}, or search {own}"
        if not self.metadata.has_tower:
            raise CollectionMismatch(
                f"collection {name!r} was loaded without a bundle and has BM25 alone; leave the "
                f"bundle out, or run: {mend}"
            )
        raise CollectionMismatch(
            f"collection {name!r} was loaded with bundle {loaded_with[:12]}, this is bundle "
            f"{bundle.fingerprint[:12]}; name the other bundle, or run: {mend}"
        )

    def _checked_k(self, k: int | None) -> int:
        """Return how many hits to give; a small collection has no ten."""
        if k is None:
            k = DEFAULT_K
        if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
            raise QueryError(f"k is {SHORT.repr(k)}; expected a whole number from 1")
        return min(int(k), self.size) or 1


def _point_id(passage_id: str) -> str:
    try:
        return point_id(passage_id)
    except UnicodeEncodeError:
        raise QueryError(f"passage id {ascii(passage_id)[:100]} is not text") from None
