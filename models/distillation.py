"""Distillation: the cheap towers learn to find near what their teacher finds near."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from two_tower.models.corpus import Corpus, RowTokenizer, Say
from two_tower.models.data import Dataset
from two_tower.models.errors import TrainingError
from two_tower.models.examples import Batch
from two_tower.models.losses import Encoded
from two_tower.models.mining import Vectors
from two_tower.models.pretrain import NOTHING_MASKED
from two_tower.models.teacher import (
    PieceTokenizer,
    Teacher,
    TeacherConfig,
    kept_vectors,
    open_teacher,
    random_spans,
    token_vectors,
)
from two_tower.models.tokenizer import IntArray, TokenRows

FloatArray = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], FloatArray]


class Lesson(NamedTuple):
    """Pairs of a query and a passage, as tokens and as the teacher sees them.

    Attributes:
        queries: token rows of n queries.
        passages: token rows of n passages, each that of the query in its row.
        query_vectors: (n, teacher's dim) float32, L2-normalised.
        passage_vectors: (n, teacher's dim) float32, L2-normalised.
    """

    queries: TokenRows
    passages: TokenRows
    query_vectors: FloatArray
    passage_vectors: FloatArray


class Lessons:
    """What a teacher can do for a run; it is opened when it is first needed."""

    def __init__(self, data: Dataset, config: TeacherConfig, *, seed: int, folder: Path) -> None:
        """Keep what to read.

        Args:
            data: where the texts are.
            config: which teacher, and which spans.
            seed: of spans and random directions.
            folder: where the teacher's vectors are kept.
        """
        self._data = data
        self._config = config
        self._seed = seed
        self._folder = folder

    @cached_property
    def _teacher(self) -> Teacher:
        return open_teacher(str(self._config.model))

    def token_vectors(self, tokenizer: PieceTokenizer, *, dim: int, say: Say) -> FloatArray:
        """Return (vocab, dim) float32 token vectors to begin with."""
        say(f"{self._config.model} reads the vocabulary")
        return token_vectors(self._teacher, tokenizer, dim=dim, seed=self._seed)

    def of(self, corpus: Corpus, tokenizer: RowTokenizer, *, say: Say) -> Lesson:
        """Let the teacher read the corpus and a span of each passage.

        Labelled queries are left alone: what is learnt here must not know them, or the towers
        would seem better to the fusion than they are.

        Args:
            corpus: DATA in tokens.
            tokenizer: for the spans.
            say: gets a line of news.
        """
        say(f"{self._config.model} reads the corpus; its vectors are kept in {self._folder}")
        texts = [passage.content for passage in self._data.passages()]
        spans = random_spans(texts, self._config, seed=self._seed)
        vectors = read_once(self._teacher, spans, texts, folder=self._folder)
        return Lesson(tokenizer.encode_queries(spans), corpus.passages, *vectors)

    def scores(self, passages: list[str], queries: list[str], rows: IntArray) -> FloatArray:
        """Return (n, k) float32: what the teacher makes of each query's passages `rows` (n, k).

        Args:
            passages: all texts of the corpus.
            queries: n texts.
            rows: (n, k) int64.
        """
        asked, read = read_once(self._teacher, queries, passages, folder=self._folder)
        scored = [read[own] @ query for own, query in zip(rows, asked, strict=True)]
        return np.stack(scored)


def read_once(reader: Teacher, queries: list[str], passages: list[str], *, folder: Path) -> Vectors:
    """Return the vectors of n queries and m passages by a slow reader, kept for later runs.

    Args:
        reader: a teacher, or a bundle.
        queries: n texts.
        passages: m texts.
        folder: keeps what was read, by reader and texts.
    """

    def kept(side: str, texts: list[str], encode: Encode) -> FloatArray:
        content = hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()
        name = f"{reader.fingerprint[:16]}-{side}-{content[:16]}"
        return kept_vectors(encode, texts, folder=folder / name)

    return Vectors(
        kept("queries", queries, reader.encode_queries),
        kept("passages", passages, reader.encode_passages),
    )


class LessonSampler:
    """Batches of pairs with the teacher's similarities of all queries and passages in them."""

    def __init__(self, lesson: Lesson) -> None:
        self._lesson = lesson

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self._lesson.query_vectors)

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Collate the pairs at `index`; nothing here is random."""
        lesson = self._lesson
        return Batch(
            lesson.queries.take(index),
            lesson.passages.take(index),
            NOTHING_MASKED,
            similarities=lesson.query_vectors[index] @ lesson.passage_vectors[index].T,
        )


def similarity_loss(encoded: Encoded, *, temperature: float) -> Tensor:
    """Divergence of the towers' similarity distributions from the teacher's, both ways.

    L = (mean_i KL(t_i || s_i) + mean_j KL(t^j || s^j)) / 2 with s_i the softmax over the batch's
    passages of q_i.p / T, t_i the same of the teacher, and s^j, t^j over the batch's queries.
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, over
    the batch's similarities; as the softmax loss, with the teacher's shares for labels.

    Args:
        encoded: a batch with the teacher's similarities.
        temperature: T above.

    Raises:
        TrainingError: there are no similarities.
    """
    if encoded.similarities is None:
        raise TrainingError("the batch has no similarities of a teacher, expected (n, n)")
    ours = encoded.queries @ encoded.passages.T / temperature
    theirs = encoded.similarities / temperature
    return (_divergence(theirs, ours) + _divergence(theirs.T, ours.T)) / 2


def _divergence(theirs: Tensor, ours: Tensor) -> Tensor:
    return functional.kl_div(
        torch.log_softmax(ours, dim=1),
        torch.log_softmax(theirs, dim=1),
        reduction="batchmean",
        log_target=True,
    )
