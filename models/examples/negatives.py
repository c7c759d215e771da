"""Hard negatives: passages that a search ranks high for a query and that do not answer it.

Labels are sparse, so the best-ranked passages without a label are often answers all the same.
The guards leave out what looks like one: Qu et al., "RocketQA", 2021, arXiv:2010.08191, find 70%
of the top passages without a label to be answers; Moreira et al., "NV-Retriever", 2024,
arXiv:2407.15831, cut at a share of the positive's score.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from two_tower.models.errors import ConfigError
from two_tower.models.examples.pairs import Labelled
from two_tower.models.text.bm25 import Analyzer, Bm25Index
from two_tower.models.vectors import BoolArray, FloatArray, IntArray

DENSE_BLOCK = 128

SOURCES = ("bm25", "dense")

OUTCOMES = (
    "kept",
    "left over (enough are kept, or the other source had it first)",
    "a known answer",
    "the same text as an answer",
    "above max_share of the answer's score",
    "within margin of the answer's score",
    "above max_score",
    "refused by another source's guard",
)

KEPT, SPARE, KNOWN, TWIN, SHARE, MARGIN, HIGH, ELSEWHERE = range(len(OUTCOMES))

NOTHING = -1


AnyArray = npt.NDArray[Any]


@dataclass(frozen=True)
class MiningConfig:
    """Which passages count as hard negatives.

    Attributes:
        source: who ranks: BM25, the towers, or both in turn.
        per_query: negatives kept for each query at most, best-ranked first.
        first_rank: ranks before this one are left out, from 1: the very top is full of answers
            that nobody has labelled.
        last_rank: the deepest rank to look at.
        max_share: leave out what scores above this share of the query's best answer; a large
            number lets everything through.
        margin: leave out what scores less than this below the query's best answer.
        max_score: leave out what scores above this.
    """

    source: Literal["bm25", "dense", "both"] = "both"
    per_query: int = 8
    first_rank: int = 10
    last_rank: int = 100
    max_share: float | None = 0.95
    margin: float | None = None
    max_score: float | None = None

    def __post_init__(self) -> None:
        if self.per_query < 1:
            raise ConfigError(f"mining.per_query is {self.per_query}, expected 1 or more")
        if not 1 <= self.first_rank <= self.last_rank:
            raise ConfigError(
                f"mining ranks are {self.first_rank} to {self.last_rank}, expected "
                "1 <= first_rank <= last_rank"
            )
        if self.max_share is not None and self.max_share <= 0:
            raise ConfigError(f"mining.max_share is {self.max_share}, expected above 0")
        if self.margin is not None and self.margin < 0:
            raise ConfigError(f"mining.margin is {self.margin}, expected 0 or more")

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources."""
        return SOURCES if self.source == "both" else (self.source,)


class Candidates(NamedTuple):
    """What one source finds for n queries.

    Attributes:
        source: its name.
        rows: (n, depth) int64 passage rows, best first, -1 where there are fewer.
        scores: (n, depth) float32.
        answers: (n,) float32, the source's score of the query's best known answer.
    """

    source: str
    rows: IntArray
    scores: FloatArray
    answers: FloatArray


class Mined(NamedTuple):
    """Hard negatives of n queries.

    Attributes:
        rows: (n, width) int64 passage rows, padded with -1.
        sources: (n, width) int64, which of the candidates' sources found it.
        ranks: (n, width) int64, its rank there, from 1.
        scores: (n, width) float32, its score there.
        counts: source -> what became of its candidates -> how many.
    """

    rows: IntArray
    sources: IntArray
    ranks: IntArray
    scores: FloatArray
    counts: dict[str, dict[str, int]]


def bm25_candidates(
    texts: Sequence[str], labelled: Labelled, *, analyzer: Analyzer, depth: int
) -> Candidates:
    """Rank the passages `texts` by BM25 for each labelled query, `depth` deep."""
    index = Bm25Index(texts, analyzer)
    found = index.search(labelled.texts, depth)
    answers = index.scores(labelled.texts, _answer_rows(labelled.relevant)).max(axis=1)
    return Candidates("bm25", found.rows, found.scores, answers)


def dense_candidates(
    queries: FloatArray, passages: FloatArray, *, relevant: sparse.csr_matrix, depth: int
) -> Candidates:
    """Rank the passages by cosine for each query, exactly, `depth` deep.

    Args:
        queries: (n, dim) float32, L2-normalised.
        passages: (m, dim) float32, L2-normalised.
        relevant: (n, m) sparse bool, known answers.
        depth: how many to return.
    """
    rows = np.full((len(queries), depth), NOTHING, dtype=np.int64)
    scores = np.zeros((len(queries), depth), dtype=np.float32)
    depth = min(depth, len(passages))
    for start in range(0, len(queries), DENSE_BLOCK):
        part = slice(start, start + DENSE_BLOCK)
        block = queries[part] @ passages.T
        near = np.argpartition(-block, depth - 1, axis=1)[:, :depth]
        found = np.take_along_axis(block, near, axis=1)
        order = np.lexsort((near, -found), axis=1)
        rows[part, :depth] = np.take_along_axis(near, order, axis=1)
        scores[part, :depth] = np.take_along_axis(found, order, axis=1)
    answers = _answer_rows(relevant)
    cosines = (passages[np.maximum(answers, 0)] * queries[:, None]).sum(axis=2)
    best = np.where(answers >= 0, cosines, -np.inf).max(axis=1).astype(np.float32)
    return Candidates("dense", rows, scores, best)


def mine(
    labelled: Labelled,
    candidates: Sequence[Candidates],
    config: MiningConfig,
    *,
    same_text: IntArray,
) -> Mined:
    """Choose hard negatives from what the sources found.

    What one source holds for an answer by its scores is left out for all of them.

    Args:
        labelled: the queries, with at least one known answer each.
        candidates: one per source, of those queries.
        config: how many and which guards.
        same_text: (m,) int64, equal numbers for passages of the same text (`text_groups`).
    """
    rows = [_in_range(found.rows, config) for found in candidates]
    cells = [np.arange(len(part))[:, None] * len(same_text) + part for part in rows]
    verdicts = [_verdicts(labelled, found, config, same_text=same_text) for found in candidates]
    refused = np.concatenate(
        [cell[verdict >= SHARE] for cell, verdict in zip(cells, verdicts, strict=True)]
    )
    for cell, verdict in zip(cells, verdicts, strict=True):
        verdict[(verdict == KEPT) & np.isin(cell, refused)] = ELSEWHERE
    turns = _in_turn(rows)
    allowed = _in_turn(verdicts) == KEPT
    places = _first_different(turns, allowed, limit=config.per_query)
    scores = _in_turn([_in_range(found.scores, config) for found in candidates])
    inside = np.maximum(places, 0)
    return Mined(
        np.where(places >= 0, np.take_along_axis(turns, inside, axis=1), NOTHING),
        inside % len(candidates),
        inside // len(candidates) + config.first_rank,
        np.take_along_axis(scores, inside, axis=1),
        _counts([found.source for found in candidates], verdicts, places=places),
    )


def text_groups(texts: Iterable[str]) -> IntArray:
    """Return (n,) int64, equal numbers for texts that differ in case and white space only."""
    seen: dict[str, int] = {}
    folded = (" ".join(text.casefold().split()) for text in texts)
    return np.array([seen.setdefault(text, len(seen)) for text in folded], dtype=np.int64)


def report_lines(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say in lines what became of each source's candidates."""
    lines = []
    for source, outcomes in counts.items():
        lines.append(f"{source:<6} {sum(outcomes.values()):>12,} considered")
        lines += [f"{'':<6} {count:>12,} {outcome}" for outcome, count in outcomes.items()]
    return lines


def _verdicts(
    labelled: Labelled, found: Candidates, config: MiningConfig, *, same_text: IntArray
) -> IntArray:
    """Return (n, ranks) int64: `KEPT`, the first reason to leave a candidate out, or `NOTHING`."""
    rows, scores = _in_range(found.rows, config), _in_range(found.scores, config)
    query = text_groups(labelled.texts)  # a query that was asked twice shares its answers
    owners, columns = labelled.relevant.nonzero()
    answers, width = query[owners] * len(same_text), query[:, None] * len(same_text)
    refused: dict[int, BoolArray] = {
        NOTHING: rows < 0,
        KNOWN: np.isin(width + rows, answers + columns),
        TWIN: np.isin(width + same_text[rows], answers + same_text[columns]),
    }
    best = found.answers[:, None]
    if config.max_share is not None:
        refused[SHARE] = scores > config.max_share * best
    if config.margin is not None:
        refused[MARGIN] = scores > best - config.margin
    if config.max_score is not None:
        refused[HIGH] = scores > config.max_score
    verdicts: IntArray = np.select(list(refused.values()), list(refused), default=KEPT)
    return verdicts


def _counts(
    sources: Sequence[str], verdicts: Sequence[IntArray], *, places: IntArray
) -> dict[str, dict[str, int]]:
    counts = {}
    for number, (source, verdict) in enumerate(zip(sources, verdicts, strict=True)):
        found = np.bincount(verdict[verdict >= 0], minlength=len(OUTCOMES))
        kept = int(((places >= 0) & (places % len(sources) == number)).sum())
        found[SPARE], found[KEPT] = found[KEPT] - kept, kept
        counts[source] = {name: int(n) for name, n in zip(OUTCOMES, found, strict=True) if n}
    return counts


def _first_different(rows: IntArray, allowed: BoolArray, *, limit: int) -> IntArray:
    """Return (n, limit) places of each row's first different allowed values, padded with -1."""
    places = np.full((len(rows), limit), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        candidates = np.flatnonzero(allowed[i])
        _, first = np.unique(row[candidates], return_index=True)
        chosen = candidates[np.sort(first)[:limit]]
        places[i, : len(chosen)] = chosen
    return places


def _in_range(values: AnyArray, config: MiningConfig) -> AnyArray:
    return values[:, config.first_rank - 1 : config.last_rank]


def _in_turn(arrays: Sequence[AnyArray]) -> AnyArray:
    """Lay k arrays (n, ranks) side by side as (n, ranks * k): first all the first ranks."""
    return np.stack(arrays, axis=2).reshape(len(arrays[0]), -1)


def _answer_rows(relevant: sparse.csr_matrix) -> IntArray:
    """Return (n, most answers) int64: the columns of each row's answers, padded with -1."""
    counts = np.diff(relevant.indptr)
    rows = np.full((relevant.shape[0], counts.max(initial=1)), -1, dtype=np.int64)
    place = np.arange(len(relevant.indices)) - np.repeat(relevant.indptr[:-1], counts)
    rows[np.repeat(np.arange(len(counts)), counts), place] = relevant.indices
    return rows
