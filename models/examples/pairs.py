"""Labelled pairs: reading, splitting, sampling and collation into batches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from two_tower.models.data import Dataset
from two_tower.models.errors import TrainingError
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import FloatArray, IntArray

NOTHING = -1
"""Stands for no passage where rows of different lengths share an array."""


class Labelled(NamedTuple):
    """Queries of a split and which passages answer them.

    Attributes:
        texts: n queries.
        relevant: (n, passages) sparse bool, rows of known answers.
        query_ids: n ids.
    """

    texts: list[str]
    relevant: sparse.csr_matrix
    query_ids: list[str]

    def take(self, index: IntArray) -> "Labelled":
        """Return the queries at `index`."""
        return Labelled(
            [self.texts[i] for i in index],
            self.relevant[index],
            [self.query_ids[i] for i in index],
        )


class Split(NamedTuple):
    """Two parts of labelled queries."""

    train: Labelled
    dev: Labelled


def read_labelled(data: Dataset, split: str, *, row_of: Mapping[str, int]) -> Labelled:
    """Read the queries of a split that have an answer: a judgement above 0.

    `row_of` gives the row of the corpus for each passage id.

    Raises:
        TrainingError: no judgement is positive, or one names an unknown passage.
    """
    answers: dict[str, list[int]] = {}
    for qrel in data.qrels(split):
        if qrel.relevance <= 0:
            continue
        if qrel.passage_id not in row_of:
            raise TrainingError(
                f"{data.path} judges passage {qrel.passage_id!r}, which it does not hold; "
                "run ingest prepare again"
            )
        answers.setdefault(qrel.query_id, []).append(row_of[qrel.passage_id])
    queries = [query for query in data.queries(split) if query.query_id in answers]
    if not queries:
        raise TrainingError(f"{data.path} has no labelled query with an answer in {split!r}")
    columns = [sorted(set(answers[query.query_id])) for query in queries]
    flat = np.concatenate(columns).astype(np.int64)
    offsets = np.cumsum([0, *map(len, columns)])
    shape = (len(queries), len(row_of))
    relevant = sparse.csr_matrix((np.ones(len(flat), dtype=bool), flat, offsets), shape=shape)
    return Labelled([q.text for q in queries], relevant, [q.query_id for q in queries])


def no_queries(passages: int) -> Labelled:
    """Return the queries of a split that is not there, for a corpus of so many passages."""
    return Labelled([], sparse.csr_matrix((0, passages), dtype=bool), [])


def hold_out(labelled: Labelled, *, share: float, seed: int) -> Split:
    """Set a seeded share of the queries aside: one at least, where another one is left."""
    count = len(labelled.texts)
    order = np.random.default_rng(seed).permutation(count)
    size = min(max(1, round(count * share)), count - 1)
    return Split(labelled.take(np.sort(order[size:])), labelled.take(np.sort(order[:size])))


class HardNegatives(NamedTuple):
    """Passages that look like answers and are none, for each of n queries.

    Attributes:
        rows: (n, width) int64 passage rows, padded with -1.
        scores: (n, width) float32, a teacher's scores of them, NaN where unknown; None where
            there is no teacher.
        positives: (pairs,) float32, a teacher's scores of the known answers, NaN where unknown, in
            the order of `Labelled.relevant.nonzero()`.
    """

    rows: IntArray
    scores: FloatArray | None = None
    positives: FloatArray | None = None

    def take(self, index: IntArray, *, labelled: Labelled) -> "HardNegatives":
        """Return those of the queries at `index` of `labelled`, whose negatives these are."""
        scores = None if self.scores is None else self.scores[index]
        if self.positives is None:
            return HardNegatives(self.rows[index], scores)
        starts = labelled.relevant.indptr
        pairs = [np.arange(starts[query], starts[query + 1]) for query in index]
        return HardNegatives(self.rows[index], scores, self.positives[np.concatenate(pairs)])


class Batch(NamedTuple):
    """Pairs ready for the towers: row i of `queries` belongs to row i of `passages`.

    Attributes:
        queries: n token rows.
        passages: n * (1 + m) token rows: the n positives, then hard negative j of query i at row
            n + i * m + j.
        masked: (cells, 2) int64, (i, column) with i != column, where that passage answers query i
            as well.
        margins: (n, m) float32, a teacher's score of the positive minus that of hard negative j,
            NaN where unknown; None where there is no teacher.
        similarities: (n, n * (1 + m)) float32, a teacher's cosine of each query and passage.
        targets: (n, dim) float32, the vectors that the queries are to have.
    """

    queries: TokenRows
    passages: TokenRows
    masked: IntArray
    margins: FloatArray | None = None
    similarities: FloatArray | None = None
    targets: FloatArray | None = None


class Sampler(Protocol):
    """Where a training phase gets its batches from."""

    @property
    def size(self) -> int:
        """Number of examples in an epoch."""
        ...

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Collate the examples at `index` (n,); all randomness comes from `rng`."""
        ...


class PassageSampler:
    """Batches made of passages alone, those of at least two tokens."""

    def __init__(
        self, passages: TokenRows, make: Callable[[TokenRows, np.random.Generator], Batch]
    ) -> None:
        """Use `make` to turn passages into a batch, afresh each time."""
        self._passages = passages
        self._make = make
        self._usable = np.flatnonzero(passages.lengths >= 2)

    @property
    def size(self) -> int:
        """Number of passages that have two tokens."""
        return len(self._usable)

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Make a batch of the passages at `index`; all randomness comes from `rng`."""
        return self._make(self._passages.take(self._usable[index]), rng)


@dataclass(frozen=True)
class PairSampler:
    """Batches of labelled (query, passage) pairs, each with hard negatives where there are any.

    Attributes:
        queries: n token rows.
        passages: the corpus.
        relevant: as in `Labelled`.
        negatives: of the n queries.
        per_query: hard negatives drawn for each pair, afresh each time.
    """

    queries: TokenRows
    passages: TokenRows
    relevant: sparse.csr_matrix
    negatives: HardNegatives | None = None
    per_query: int = 0

    @cached_property
    def _pairs(self) -> IntArray:
        return np.stack(self.relevant.nonzero(), axis=1).astype(np.int64)  # (pairs, 2)

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self._pairs)

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Collate the pairs at `index`; which hard negatives they get is drawn from `rng`."""
        queries, passages = self._pairs[index].T
        margins = None
        if self.negatives is not None and self.per_query:
            rows = self.negatives.rows[queries]
            places = draw_places(rows, self.per_query, rng=rng)  # (n, m)
            # A random passage stands in where a query has too few.
            others = rng.integers(0, len(self.passages.offsets) - 1, size=places.shape)
            hard = np.where(places >= 0, _take_places(rows, places), others)
            passages = np.concatenate([passages, hard.ravel()])  # (n * (1 + m),)
            margins = _margins(self.negatives, index, queries=queries, places=places)
        return Batch(
            self.queries.take(queries),
            self.passages.take(passages),
            known_answers(self.relevant, queries=queries, passages=passages),
            margins,
        )


def draw_places(rows: IntArray, count: int, *, rng: np.random.Generator) -> IntArray:
    """Draw `count` different filled places of each row (n, width); -1 beyond their number."""
    width = max(count, rows.shape[1])
    padded = np.full((len(rows), width), NOTHING, dtype=np.int64)
    padded[:, : rows.shape[1]] = rows
    keys = np.where(padded >= 0, rng.random(padded.shape), 2.0)
    places = np.argsort(keys, axis=1)[:, :count]
    drawn: IntArray = np.where(np.take_along_axis(keys, places, axis=1) < 2.0, places, NOTHING)
    return drawn


def _margins(
    negatives: HardNegatives, pairs: IntArray, *, queries: IntArray, places: IntArray
) -> FloatArray | None:
    """Return the (n, m) margins of a `Batch`: pairs (n,), their queries (n,), places (n, m)."""
    if negatives.scores is None or negatives.positives is None:
        return None
    scores = _take_places(negatives.scores[queries], places)
    margins = negatives.positives[pairs][:, None] - scores
    return np.where(places >= 0, margins, np.nan).astype(np.float32)


def _take_places(values: npt.NDArray[Any], places: IntArray) -> npt.NDArray[Any]:
    """Return (n, m) values at places (n, m) of (n, width); an arbitrary one where that is -1."""
    return np.take_along_axis(values, np.clip(places, 0, values.shape[1] - 1), axis=1)


def known_answers(
    relevant: sparse.csr_matrix, *, queries: IntArray, passages: IntArray
) -> IntArray:
    """Return the (cells, 2) int64 (i, j), i != j, where passages[j] answers queries[i].

    The first `len(queries)` passages are the positives, so (i, i) is a query's own.
    """
    rows, columns = relevant[queries][:, passages].nonzero()
    cells = np.stack([rows, columns], axis=1).astype(np.int64)
    others: IntArray = cells[rows != columns]
    return others


def epoch_batches(
    sampler: Sampler, *, batch_size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Shuffle an epoch and yield it in batches of nearly equal size, at most `batch_size`."""
    order = rng.permutation(sampler.size)
    for index in np.array_split(order, batches_per_epoch(sampler.size, batch_size)):
        yield sampler.batch(index, rng)


def batches_per_epoch(size: int, batch_size: int) -> int:
    """Return the number of batches that `epoch_batches` gives."""
    return -(-size // batch_size)
