"""`Retriever`: one query in, hits out.

    text -> query tower and BM25 -> candidates of every leg, rescored by the query tower
         -> fusion -> payload of the best k

Candidates and rescoring are one engine request; the payloads of the k winners a second, small one.
"""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdrant_client import models as qm

from retriever.engine import Engine, connect
from retriever.errors import CollectionMismatch, ConfigError, QueryError
from retriever.lexical import Bm25Config, Bm25Encoder
from retriever.records import Hit, Passage, SearchResult
from retriever.schema import from_payload, read_metadata
from retriever.stages import Candidates, QueryVectors, SearchSettings, Winner, choose, gather, plan

if TYPE_CHECKING:
    from models.bundle import ModelBundle

MAX_QUERY_CHARS = 10_000
QUERIES_PER_REQUEST = 16
SCROLL_PAGE = 1000


class Retriever:
    """Searches one collection with the bundle it was loaded with.

    Attributes:
        collection: the versioned collection that the name stood for when this was opened; a later
            `ingest promote` does not change what an open retriever searches.
        metadata: what `ingest load` recorded about it.
        size: number of passages in it when this was opened.
        settings: how queries are answered.
    """

    def __init__(
        self, engine: Engine, name: str, bundle: "ModelBundle", *, settings: SearchSettings
    ) -> None:
        self._engine = engine
        self._bundle = bundle
        self.settings = settings
        self.collection = engine.resolve(name)
        self.metadata = read_metadata(engine, self.collection)
        self.size = engine.count(self.collection, exact=True).count
        _require_match(self.metadata.bundle_fingerprint, bundle, name=name)
        _require_legs(settings, bundle)
        self._bm25 = Bm25Encoder(Bm25Config(**self.metadata.bm25))

    @classmethod
    def open(
        cls,
        name: str,
        *,
        bundle: "str | Path | ModelBundle",
        url: str | None = None,
        path: str | Path | None = None,
        api_key: str | None = None,
        settings: SearchSettings | None = None,
    ) -> "Retriever":
        """Connect, and check that bundle and collection belong together.

        Args:
            name: alias or versioned name of a collection.
            bundle: the folder that `models train` wrote, or a bundle already loaded.
            url: a Qdrant server; without it the embedded engine at `path` is used.
            path: folder of the embedded engine, `.qdrant` by default.
            api_key: for the server.
            settings: how to search; the measured default otherwise.

        Raises:
            BundleError: no complete bundle there.
            EngineError: no engine, no such collection, or one loaded with another bundle.
        """
        from models.bundle import ModelBundle

        loaded = bundle if isinstance(bundle, ModelBundle) else ModelBundle.load(bundle)
        engine = connect(url=url, path=path, api_key=api_key, create=False)
        try:
            return cls(engine, name, loaded, settings=settings or SearchSettings())
        except BaseException:
            engine.close()
            raise

    def search(self, query: str, *, k: int = 10) -> list[Hit]:
        """Return the `k` best passages for `query`, best first.

        Raises:
            QueryError: the query is empty, too long or not text, or `k` is out of range.
            EngineError: the engine does not answer.
        """
        return self.explain(query, k=k).hits

    def search_many(self, queries: Sequence[str], *, k: int = 10) -> list[list[Hit]]:
        """Return the hits of each query, in order; faster than one call per query."""
        return [
            result.hits
            for start in range(0, len(queries), QUERIES_PER_REQUEST)
            for result in self._answer(queries[start : start + QUERIES_PER_REQUEST], k)
        ]

    def explain(self, query: str, *, k: int = 10) -> SearchResult:
        """Return what `search` returns, with the time that each step took."""
        return self._answer([query], k)[0]

    def with_settings(self, settings: SearchSettings) -> "Retriever":
        """Return a retriever that shares this one's engine and answers by other settings."""
        _require_legs(settings, self._bundle)
        twin = copy.copy(self)
        twin.settings = settings
        return twin

    def passages(self) -> Iterator[Passage]:
        """Stream everything that the collection holds, in the engine's order."""
        offset: Any = None
        while True:
            records, offset = self._engine.scroll(
                self.collection, limit=SCROLL_PAGE, offset=offset, with_payload=True
            )
            yield from (from_payload(record.payload or {}) for record in records)
            if offset is None:
                return

    def close(self) -> None:
        """Release the engine; the embedded folder can then be opened by another process."""
        self._engine.close()

    def __enter__(self) -> "Retriever":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _answer(self, queries: Sequence[str], k: int) -> list[SearchResult]:
        self._check(queries, k)
        watch = _Stopwatch(len(queries))
        encoded = self._encode(queries)
        watch.lap("encode")
        gathered = self._candidates(encoded, k)
        watch.lap("candidates")
        chosen = [choose(self.settings, candidates, k=k) for candidates in gathered]
        watch.lap("fusion")
        payloads = self._payloads({winner.point_id for winners in chosen for winner in winners})
        watch.lap("payload")
        return [
            SearchResult(query, [_hit(winner, payloads) for winner in winners], watch.laps_ms)
            for query, winners in zip(queries, chosen, strict=True)
        ]

    def _check(self, queries: Sequence[str], k: int) -> None:
        for query in queries:
            check_query(query)
        if not 1 <= k <= self.size:
            raise QueryError(
                f"k is {k}, but {self.collection} holds {self.size:,} passages; "
                f"use a k from 1 to {self.size}"
            )

    def _encode(self, queries: Sequence[str]) -> list[QueryVectors]:
        tower = self._bundle.encode_queries(list(queries))  # (n, dim)
        reduced = self._bundle.reduce(tower)  # dim -> (n, dim)
        encoded = []
        for row, query in enumerate(queries):
            by_name: dict[str, list[float] | qm.SparseVector] = {
                f"pca_{dim}": matrix[row].tolist() for dim, matrix in reduced.items()
            }
            by_name["dense"] = tower[row].tolist()
            terms = self._bm25.encode_query(query)
            if terms.indices:
                by_name["bm25"] = terms
            encoded.append(QueryVectors(tower[row], by_name))
        return encoded

    def _candidates(self, encoded: Sequence[QueryVectors], k: int) -> list[Candidates]:
        plans = [plan(self.settings, vectors, k=k) for vectors in encoded]
        requests = [request for requests in plans for request in requests.values()]
        responses = iter(
            self._engine.query_batch_points(self.collection, requests) if requests else []
        )
        return [gather(requests, [next(responses) for _ in requests]) for requests in plans]

    def _payloads(self, point_ids: set[str]) -> dict[str, Mapping[str, Any]]:
        if not point_ids:
            return {}
        records = self._engine.retrieve(self.collection, sorted(point_ids), with_payload=True)
        return {str(record.id): record.payload or {} for record in records}


def check_query(query: str) -> None:
    """Refuse what cannot be searched.

    Raises:
        QueryError: empty, longer than `MAX_QUERY_CHARS`, or with characters that are not text.
    """
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


def _require_match(loaded_with: str, bundle: "ModelBundle", *, name: str) -> None:
    if loaded_with != bundle.fingerprint:
        raise CollectionMismatch(
            f"collection {name!r} was loaded with bundle {loaded_with[:12]}, this is bundle "
            f"{bundle.fingerprint[:12]}; run: ingest load DATA --bundle BUNDLE --collection {name}"
        )


def _require_legs(settings: SearchSettings, bundle: "ModelBundle") -> None:
    known = ["dense", *(f"pca_{dim}" for dim in bundle.pca_dims), "bm25"]
    for leg in settings.legs:
        if leg not in known:
            raise ConfigError(f"unknown leg {leg!r}; this bundle has {', '.join(known)}")


class _Stopwatch:
    """Milliseconds per step, shared evenly by the queries that went through it together."""

    def __init__(self, queries: int) -> None:
        self._queries = queries
        self._last = time.perf_counter()
        self.laps_ms: dict[str, float] = {}

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.laps_ms[step] = (now - self._last) * 1000.0 / self._queries
        self._last = now
