"""From the text of a query to what each leg is searched with."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from two_tower.models.vectors import FloatArray
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.schema import BM25, DENSE, pca_name, point_id
from two_tower.retriever.errors import QueryError
from two_tower.retriever.search.stages import QueryVectors

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle


MAX_QUERY_CHARS = 10_000

REMEMBERED = 512

Rewriter = Callable[[str], Sequence[str]]
"""query -> hypothetical passages that answer it."""

Key = tuple[str, tuple[str, ...]]


class QueryEncoder:
    """Encodes queries; remembers the latest ones. Safe to share between threads.

    Attributes:
        bundle: what encodes them.
        rewriter: what imagines answers to them, if anything.
    """

    def __init__(
        self, bundle: "ModelBundle", bm25: Bm25Encoder, *, rewriter: Rewriter | None = None
    ) -> None:
        self.bundle = bundle
        self._bm25 = bm25
        self.rewriter = rewriter
        self._remembered = RecentVectors(REMEMBERED)

    def with_rewriter(self, rewriter: Rewriter | None) -> "QueryEncoder":
        """Return an encoder that rewrites otherwise; what was remembered is not shared."""
        return QueryEncoder(self.bundle, self._bm25, rewriter=rewriter)

    def encode(self, queries: Sequence[str], legs: Iterable[str]) -> list[QueryVectors]:
        """Return the vectors that `legs` and the query-tower stage need.

        Raises:
            QueryError: the rewriter gives something else than passages.
        """
        names = tuple(sorted(legs))
        found = {
            query: vectors
            for query in queries
            if (vectors := self._remembered.get((query, names))) is not None
        }
        missing = [query for query in dict.fromkeys(queries) if query not in found]
        if missing:
            for query, vectors in zip(missing, self._encode(missing, names), strict=True):
                self._remembered.put((query, names), vectors)
                found[query] = vectors
        return [found[query] for query in queries]

    def _encode(self, queries: list[str], names: Sequence[str]) -> list[QueryVectors]:
        tower = self._tower(queries)  # (n, dim)
        dense = {DENSE: tower}
        if any(name not in (DENSE, BM25) for name in names):
            dense |= {pca_name(dim): part for dim, part in self.bundle.reduce(tower).items()}
        encoded = [
            QueryVectors(row, {name: dense[name][at].tolist() for name in names if name in dense})
            for at, row in enumerate(tower)
        ]
        if BM25 in names:
            return [self._add_terms(*pair) for pair in zip(queries, encoded, strict=True)]
        return encoded

    def _add_terms(self, query: str, vectors: QueryVectors) -> QueryVectors:
        terms = self._bm25.encode_query(query)
        return vectors._replace(
            by_name={**vectors.by_name, **({BM25: terms} if terms.indices else {})}
        )

    def _tower(self, queries: list[str]) -> FloatArray:
        vectors: FloatArray = self.bundle.encode_queries(queries)
        if self.rewriter is None:
            return vectors
        imagined = [_passages(self.rewriter, query) for query in queries]
        flat = self.bundle.encode_passages([text for texts in imagined for text in texts])
        ends = np.cumsum([len(texts) for texts in imagined])
        parts = np.split(flat, ends[:-1])
        return np.stack([average(*pair) for pair in zip(vectors, parts, strict=True)])


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


def _passages(rewriter: Rewriter, query: str) -> list[str]:
    texts = rewriter(query)
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise QueryError(
            f"the rewriter returned {type(texts).__name__}; expected a list of passages"
        )
    return [text for text in texts if text.strip()]


class RecentVectors:
    """The vectors of the latest queries, at most `capacity`; safe between threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[Key, QueryVectors] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> QueryVectors | None:
        """Return what was put in, if it is still there; it then is the latest again."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Key, vectors: QueryVectors) -> None:
        """Remember, and forget what was not asked for the longest."""
        with self._lock:
            self._kept[key] = vectors
            self._kept.move_to_end(key)
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)


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


def point_of(passage_id: str) -> str:
    """Return the id of a passage's point.

    Raises:
        QueryError: it is no valid text.
    """
    try:
        return point_id(passage_id)
    except UnicodeEncodeError:
        raise QueryError(f"passage id {ascii(passage_id)[:100]} is not text") from None
