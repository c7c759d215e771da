"""Hard negatives: passages that a search ranks high for a query and that do not answer it.

Labels are sparse, so the best-ranked passages without a label are often answers all the same.
The guards leave out what looks like one: Qu et al., "RocketQA", 2021, arXiv:2010.08191, find 70%
of the top passages without a label to be answers; Moreira et al., "NV-Retriever", 2024,
arXiv:2407.15831, cut at a share of the positive's score.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy import sparse

from two_tower.models.config import configuration
from two_tower.models.errors import ConfigError
from two_tower.models.examples.pairs import NOTHING, Labelled
from two_tower.models.progress import progress
from two_tower.models.text.bm25 import Analyzer, Bm25Index
from two_tower.models.vectors import BoolArray, FloatArray, IntArray

SOURCES = ("bm25", "dense")
DENSE_BLOCK = 128
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


@configuration("mining")
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
    per_query: int = Field(default=8, ge=1)
    first_rank: int = 10
    last_rank: int = 100
    max_share: float | None = Field(default=0.95, gt=0)
    margin: float | None = Field(default=None, ge=0)
    max_score: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.first_rank <= self.last_rank:
            raise ConfigError(
                f"mining ranks are {self.first_rank} to {self.last_rank}, expected "
                "1 <= first_rank <= last_rank"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources."""
        return SOURCES if self.source == "both" else (self.source,)


class Candidates(NamedTuple):
    """What one source ranks for n queries.

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
        sources: (n, width) int64, which of the candidates' sources ranks it.
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
    texts: Sequence[str],
    labelled: Labelled,
    *,
    analyzer: Analyzer,
    depth: int,
    titles: Sequence[str] = (),
) -> Candidates:
    """Rank the passages `texts` by BM25 for each labelled query, `depth` deep."""
    index = Bm25Index(texts, analyzer, titles=titles)
    ranked = index.search(labelled.texts, depth)
    answers = index.scores(labelled.texts, _answer_rows(labelled.relevant)).max(axis=1)
    return Candidates("bm25", ranked.rows, ranked.scores, answers)


def dense_candidates(
    queries: FloatArray, passages: FloatArray, *, relevant: sparse.csr_matrix, depth: int
) -> Candidates:
    """Rank passages (m, dim) by cosine for queries (n, dim), exactly, `depth` deep.

    `relevant` is (n, m), the known answers; the vectors are L2-normalised.
    """
    rows = np.full((len(queries), depth), NOTHING, dtype=np.int64)
    scores = np.zeros((len(queries), depth), dtype=np.float32)
    depth = min(depth, len(passages))
    for start in progress(range(0, len(queries), DENSE_BLOCK), label="nearest passages"):
        block = slice(start, start + DENSE_BLOCK)
        cosines = queries[block] @ passages.T  # (block, m)
        near = np.argpartition(-cosines, depth - 1, axis=1)[:, :depth]
        best = np.take_along_axis(cosines, near, axis=1)
        order = np.lexsort((near, -best), axis=1)
        rows[block, :depth] = np.take_along_axis(near, order, axis=1)
        scores[block, :depth] = np.take_along_axis(best, order, axis=1)
    answers = _answer_rows(relevant)
    cosines = (passages[np.maximum(answers, 0)] * queries[:, None]).sum(axis=2)  # (n, answers)
    best = np.where(answers >= 0, cosines, -np.inf).max(axis=1).astype(np.float32)
    return Candidates("dense", rows, scores, best)


def choose_negatives(
    labelled: Labelled,
    candidates: Sequence[Candidates],
    config: MiningConfig,
    *,
    same_text: IntArray,
) -> Mined:
    """Choose hard negatives from what the sources rank for n queries with known answers.

    A passage that one source's guards take for an answer is left out for all sources.
    `same_text` is (m,) int64, equal numbers for passages of the same text (`text_groups`).
    """
    ranks = slice(config.first_rank - 1, config.last_rank)
    ranked = [c._replace(rows=c.rows[:, ranks], scores=c.scores[:, ranks]) for c in candidates]
    cells = [np.arange(len(c.rows))[:, None] * len(same_text) + c.rows for c in ranked]
    verdicts = [_verdicts(labelled, each, config, same_text=same_text) for each in ranked]
    refused = np.concatenate(
        [cell[verdict >= SHARE] for cell, verdict in zip(cells, verdicts, strict=True)]
    )
    for cell, verdict in zip(cells, verdicts, strict=True):
        verdict[(verdict == KEPT) & np.isin(cell, refused)] = ELSEWHERE
    # (n, ranks * sources): rank by rank, the sources in turn.
    rows, scores = _in_turn([c.rows for c in ranked]), _in_turn([c.scores for c in ranked])
    allowed = _in_turn(verdicts) == KEPT
    places = _first_different(rows, allowed, limit=config.per_query)  # (n, per_query)
    filled = np.maximum(places, 0)
    return Mined(
        np.where(places >= 0, np.take_along_axis(rows, filled, axis=1), NOTHING),
        filled % len(candidates),
        filled // len(candidates) + config.first_rank,
        np.take_along_axis(scores, filled, axis=1),
        _counts([each.source for each in candidates], verdicts, places=places),
    )


def text_groups(texts: Iterable[str]) -> IntArray:
    """Return (n,) int64, equal numbers for texts that differ in case and white space only."""
    seen: dict[str, int] = {}
    folded = (" ".join(text.casefold().split()) for text in texts)
    return np.array([seen.setdefault(text, len(seen)) for text in folded], dtype=np.int64)


def report_lines(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return in lines what became of each source's candidates."""
    lines = []
    for source, outcomes in counts.items():
        lines.append(f"{source:<6} {sum(outcomes.values()):>12,} considered")
        lines += [f"{'':<6} {count:>12,} {outcome}" for outcome, count in outcomes.items()]
    return lines


def _verdicts(
    labelled: Labelled, candidates: Candidates, config: MiningConfig, *, same_text: IntArray
) -> IntArray:
    """Return (n, ranks) int64: `KEPT`, the first reason to leave a candidate out, or `NOTHING`."""
    rows, scores = candidates.rows, candidates.scores
    query = text_groups(labelled.texts)  # a query that was asked twice shares its answers
    owners, columns = labelled.relevant.nonzero()
    # Cells (query, passage) as single numbers: query * m + passage.
    answers, cells = query[owners] * len(same_text), query[:, None] * len(same_text)
    refused: dict[int, BoolArray] = {
        NOTHING: rows < 0,
        KNOWN: np.isin(cells + rows, answers + columns),
        TWIN: np.isin(cells + same_text[rows], answers + same_text[columns]),
    }
    best = candidates.answers[:, None]
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
        numbers = np.bincount(verdict[verdict >= 0], minlength=len(OUTCOMES))
        used = int(((places >= 0) & (places % len(sources) == number)).sum())
        numbers[SPARE], numbers[KEPT] = numbers[KEPT] - used, used
        counts[source] = {name: int(n) for name, n in zip(OUTCOMES, numbers, strict=True) if n}
    return counts


def _first_different(rows: IntArray, allowed: BoolArray, *, limit: int) -> IntArray:
    """Return (n, limit) places of each row's first different allowed values, padded with -1."""
    places = np.full((len(rows), limit), NOTHING, dtype=np.int64)
    for i, row in enumerate(rows):
        candidates = np.flatnonzero(allowed[i])
        _, first = np.unique(row[candidates], return_index=True)
        different = candidates[np.sort(first)[:limit]]
        places[i, : len(different)] = different
    return places


def _in_turn(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Lay k arrays (n, ranks) side by side as (n, ranks * k): first all the first ranks."""
    return np.stack(arrays, axis=2).reshape(len(arrays[0]), -1)


def _answer_rows(relevant: sparse.csr_matrix) -> IntArray:
    """Return (n, most answers) int64: the columns of each row's answers, padded with -1."""
    counts = np.diff(relevant.indptr)
    rows = np.full((relevant.shape[0], counts.max(initial=1)), NOTHING, dtype=np.int64)
    place = np.arange(len(relevant.indices)) - np.repeat(relevant.indptr[:-1], counts)
    rows[np.repeat(np.arange(len(counts)), counts), place] = relevant.indices
    return rows
