"""Labelled pairs: reading, sampling and collation into batches."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from models.data import Dataset
from models.errors import TrainingError
from models.tokenizer import IntArray, TokenRows


class Batch(NamedTuple):
    """Pairs ready for the towers: row i of `queries` belongs to row i of `passages`.

    Attributes:
        queries: n token rows.
        passages: n token rows.
        masked: (m, 2) int64, cells (i, j), i != j, where passage j answers query i as well.
    """

    queries: TokenRows
    passages: TokenRows
    masked: IntArray


class Sampler(Protocol):
    """Where a training phase gets its batches from."""

    @property
    def size(self) -> int:
        """Number of examples in an epoch."""
        ...

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Collate the examples at `index` (n,); all randomness comes from `rng`."""
        ...


class Labelled(NamedTuple):
    """Queries of a split and which passages answer them.

    Attributes:
        texts: n queries.
        relevant: (n, passages) sparse bool, rows of known answers.
    """

    texts: list[str]
    relevant: sparse.csr_matrix

    def take(self, index: IntArray) -> "Labelled":
        """Return the queries at `index`."""
        return Labelled([self.texts[i] for i in index], self.relevant[index])


def read_labelled(data: Dataset, split: str, *, row_of: Mapping[str, int]) -> Labelled:
    """Read the queries of a split that have an answer.

    Args:
        data: an open DATA folder.
        split: which judgements to use; relevance 0 does not count.
        row_of: passage id -> row of the corpus.

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
    return Labelled([q.text for q in queries], _bool_rows(columns, width=len(row_of)))


class Split(NamedTuple):
    """Two parts of labelled queries."""

    train: Labelled
    dev: Labelled


def hold_out(labelled: Labelled, *, share: float, seed: int) -> Split:
    """Set a seeded share of the queries aside; a single query serves as both parts."""
    count = len(labelled.texts)
    if count < 2:
        return Split(labelled, labelled)
    order = np.random.default_rng(seed).permutation(count)
    held = min(max(1, round(count * share)), count - 1)
    return Split(labelled.take(np.sort(order[held:])), labelled.take(np.sort(order[:held])))


class PairSampler:
    """Batches of labelled (query, passage) pairs."""

    def __init__(
        self, queries: TokenRows, passages: TokenRows, *, relevant: sparse.csr_matrix
    ) -> None:
        """Keep token rows of the queries and the corpus; `relevant` as in `Labelled`."""
        self._queries = queries
        self._passages = passages
        self._relevant = relevant
        rows, columns = relevant.nonzero()
        self._pairs = np.stack([rows, columns], axis=1).astype(np.int64)

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self._pairs)

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Collate the pairs at `index`; nothing here is random."""
        queries, passages = self._pairs[index].T
        masked = known_answers(self._relevant, queries=queries, passages=passages)
        return Batch(self._queries.take(queries), self._passages.take(passages), masked)


def known_answers(
    relevant: sparse.csr_matrix, *, queries: IntArray, passages: IntArray
) -> IntArray:
    """Return the (m, 2) off-diagonal cells (i, j) where passages[j] answers queries[i]."""
    rows, columns = relevant[queries][:, passages].nonzero()
    cells = np.stack([rows, columns], axis=1).astype(np.int64)
    off_diagonal: IntArray = cells[rows != columns]
    return off_diagonal


def epoch_batches(
    sampler: Sampler, *, batch_size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Shuffle an epoch and yield it in batches of nearly equal size, at most `batch_size`."""
    order = rng.permutation(sampler.size)
    for index in np.array_split(order, batches_per_epoch(sampler.size, batch_size)):
        yield sampler.batch(index, rng)


def batches_per_epoch(size: int, batch_size: int) -> int:
    """Number of batches that `epoch_batches` gives."""
    return -(-size // batch_size)


def _bool_rows(columns: list[list[int]], *, width: int) -> sparse.csr_matrix:
    offsets = np.cumsum([0, *map(len, columns)])
    flat: npt.NDArray[np.int64] = np.array([c for row in columns for c in row], dtype=np.int64)
    values = np.ones(len(flat), dtype=bool)
    return sparse.csr_matrix((values, flat, offsets), shape=(len(columns), width))
