"""Alignment: a query tower learns to meet the vectors that another encoder gave the documents.

Runs of words cut from the passages play queries, and real queries join them. Where that encoder is
at hand, each has a target: what the encoder itself makes of it. The documents' vectors stay as they
are. Labels are not needed. After LEAF (Vujanic and Rueckstiess, "LEAF: Knowledge Distillation of
Text Embedding Models with Teacher-Aligned Representations", 2025, arXiv:2509.12539) and
LightRetriever (Ma et al., 2025, arXiv:2505.12260), whose query side is a table as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from two_tower.models.bundle.documents import (
    DocumentReader,
    DocumentsConfig,
    open_reader,
    passages_of,
    queries_of,
)
from two_tower.models.config import configuration
from two_tower.models.errors import ConfigError
from two_tower.models.examples.corpus import Corpus, PrefixConfig
from two_tower.models.examples.pairs import Batch
from two_tower.models.networks.word2vec import random_vectors
from two_tower.models.objectives.distillation import random_spans, token_texts
from two_tower.models.objectives.losses import Encoded, in_batch_softmax
from two_tower.models.text.tokenizer import RowTokenizer, TokenRows, concat_rows
from two_tower.models.vector_cache import cached_vectors
from two_tower.models.vectors import FloatArray, IntArray, Vectors

SHORTEST_SPAN, LONGEST_SPAN = 3, 10  # words

QUERY_SHARE = 3  # times that a query is seen in an epoch; a span is seen once

MOST_SPANS = 12  # of a passage

LIKENESS = 2.0  # weight of the cosine beside the divergence

ORIGIN_TEXTS = 16  # of which an encoder must make about the vectors that are stored

ORIGIN_COSINE = 0.5

RANDOM_LENGTH = 0.1  # of where a token starts that no span holds and no encoder can read


@configuration("align")
class AlignConfig:
    """How a query tower learns to meet the documents' vectors.

    Attributes:
        spans: about how many runs of words play queries, cut evenly from all passages: 1 to 12 of
            each.
        epochs: passes over the spans.
        query_epochs: further passes over spans and train queries, at a third of the rate.
        batch_size: of them per step.
        learning_rate: Adam's peak rate.
        temperature: of both similarity distributions.
    """

    spans: int = Field(default=600_000, ge=1)
    epochs: int = Field(default=6, ge=0)
    query_epochs: int = Field(default=3, ge=0)
    batch_size: int = Field(default=1024, ge=2)
    learning_rate: float = Field(default=0.01, gt=0)
    temperature: float = Field(default=0.05, gt=0)


class DocumentVectors(NamedTuple):
    """Documents that somebody else encoded.

    Attributes:
        vectors: (n, dim) float32, L2-normalised, in the order of DATA's passages.
        source: where they are from, for people.
        fingerprint: 64 hex digits that change with them.
    """

    vectors: FloatArray
    source: str
    fingerprint: str


@dataclass(frozen=True)
class FrozenDocuments:
    """The documents of a run as its query tower meets them.

    Attributes:
        vectors: (n, dim) float32, L2-normalised, in the order of DATA's passages.
        about: what the bundle says of their encoder, see `bundle.documents.Documents`.
        reader: the encoder, None where it is unknown.
        query_prefix: what it reads before each query.
    """

    vectors: FloatArray
    about: Mapping[str, str | None]
    reader: DocumentReader | None
    query_prefix: str

    @property
    def probes(self) -> FloatArray:
        """What the bundle keeps to know the encoder again: (10, dim), (0, dim) without one."""
        return self.vectors[:0] if self.reader is None else self.reader.probes

    @property
    def tokenizer(self) -> RowTokenizer | None:
        """The encoder's own, None where it is unknown or elsewhere."""
        return getattr(self.reader, "tokenizer", None)

    def vectors_with(self, queries: Sequence[str], *, rows: IntArray) -> Vectors:
        """Return what the encoder makes of some queries, beside the documents at `rows`."""
        read = self.read_queries(queries) if queries else self.vectors[:0]
        assert read is not None, "asked of documents whose encoder is at hand"
        return Vectors(read, self.vectors[rows])

    def read_queries(self, texts: Sequence[str]) -> FloatArray | None:
        """Return (n, dim) float32, what the encoder makes of queries; None without one."""
        if self.reader is None:
            return None
        return cached_vectors(
            self.reader.encode_queries,
            [self.query_prefix + text for text in texts],
            encoder=queries_of(self.reader.fingerprint),
            label="encoding spans and queries",
        )


def open_documents(
    config: DocumentsConfig,
    texts: Sequence[str],
    *,
    prefixes: PrefixConfig,
    stored: DocumentVectors | None,
    reads_queries: bool = False,
) -> FrozenDocuments:
    """Open the encoder of the documents, and let it read those that it never read before.

    Args:
        config: which encoder, if it is known.
        texts: `Passage.content` of n passages.
        prefixes: what the encoder reads before each text.
        stored: their vectors, where somebody else made them.
        reads_queries: whether the encoder is the query tower as well, so that the bundle names it
            beside vectors that somebody else made with it.

    Raises:
        BundleError: a file of the encoder is broken.
        ConfigError: there is no such encoder, or it did not make `stored`.
    """
    reader = None if config.model is None else open_reader(config.model, config.url)
    if stored is not None:
        if reader is not None:
            check_origin(config.model, reader, stored, texts)
        about = {"model": None, "url": None, "fingerprint": stored.fingerprint}
        if reader is not None and reads_queries:
            about = {"model": config.model, "url": config.url, "fingerprint": reader.fingerprint}
        return FrozenDocuments(
            stored.vectors, {**about, "source": stored.source}, reader, prefixes.query
        )
    if reader is None:
        raise ConfigError("documents.model is missing: it names the encoder of the documents")
    vectors = cached_vectors(
        reader.encode_passages,
        [prefixes.passage + text for text in texts],
        encoder=passages_of(reader.fingerprint),
        label="encoding documents",
    )
    about = {"model": config.model, "url": config.url, "fingerprint": reader.fingerprint}
    return FrozenDocuments(vectors, {**about, "source": config.model}, reader, prefixes.query)


def check_origin(
    model: str | None, reader: DocumentReader, stored: DocumentVectors, texts: Sequence[str]
) -> None:
    """Refuse an encoder that did not make the stored vectors: its queries would not meet them.

    What was encoded may have been a text without its title; that changes a cosine by little.

    Raises:
        ConfigError: they have another width, or other directions.
    """
    rows = np.unique(np.linspace(0, len(texts) - 1, ORIGIN_TEXTS).astype(int))
    made, vectors = reader.encode_passages([texts[row] for row in rows]), stored.vectors[rows]
    advice = "name the model that encoded the collection, or none"
    if made.shape != vectors.shape:
        raise ConfigError(
            f"{model} makes vectors of {made.shape[1]} dims, {stored.source} holds "
            f"{vectors.shape[1]}; {advice}"
        )
    cosine = float((made * vectors).sum(axis=1).mean())
    if cosine < ORIGIN_COSINE:
        raise ConfigError(
            f"{model} did not make the vectors of {stored.source}: {len(rows)} passages have a "
            f"mean cosine of {cosine:.2f} with what it makes of them; {advice}"
        )


@dataclass(frozen=True)
class AlignmentSampler:
    """Batches of spans and queries with the documents that they belong to.

    Attributes:
        queries: m token rows.
        rows: (m,) int64, the document of each.
        documents: what the passage tower reads of all documents.
        targets: (m, dim) float32, what the encoder of the documents makes of each; None where
            that is unknown.
    """

    queries: TokenRows
    rows: IntArray
    documents: TokenRows
    targets: FloatArray | None

    @property
    def size(self) -> int:
        """Number of spans and queries."""
        return len(self.rows)

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Collate those at `index`; nothing here is random."""
        rows = self.rows[index]
        same = np.argwhere(rows[:, None] == rows).astype(np.int64)  # (cells, 2)
        return Batch(
            self.queries.take(index),
            self.documents.take(rows),
            same[same[:, 0] != same[:, 1]],
            targets=None if self.targets is None else self.targets[index],
        )


class Spans(NamedTuple):
    """Runs of words that play queries.

    Attributes:
        texts: m of them.
        rows: (m,) int64, the passage that each was cut from.
    """

    texts: list[str]
    rows: IntArray


def cut_word_spans(texts: Sequence[str], *, total: int, seed: int) -> Spans:
    """Cut about `total` runs of 3 to 10 words, as many from each text, all of a shorter one."""
    lengths = (SHORTEST_SPAN, LONGEST_SPAN)
    count = min(max(1, round(total / len(texts))), MOST_SPANS)
    spans = [s for n in range(count) for s in random_spans(texts, seed=[seed, n], lengths=lengths)]
    return Spans(spans, np.tile(np.arange(len(texts)), count))


@dataclass
class Alignment:
    """What a query tower is aligned with; spans are cut and read once.

    `texts` are all passages, `total` is about how many spans there are to be.
    """

    documents: FrozenDocuments
    tokenizer: RowTokenizer
    texts: list[str]
    total: int
    seed: int

    @cached_property
    def spans(self) -> AlignmentSampler:
        """A sampler of spans alone."""
        spans = cut_word_spans(self.texts, total=self.total, seed=self.seed)
        places = np.arange(len(self.texts) + 1)
        return AlignmentSampler(
            self.tokenizer.encode_queries(spans.texts),
            spans.rows,
            TokenRows(places[:-1], places),
            self.documents.read_queries(spans.texts),
        )

    def sampler(self, corpus: Corpus, with_queries: bool) -> AlignmentSampler:
        """Return a sampler of spans and, `QUERY_SHARE` times each, of the train queries."""
        if not with_queries:
            return self.spans
        answers = corpus.train.relevant  # a query's first answer is its document
        first = answers.indices[answers.indptr[:-1]].astype(np.int64)
        spans, targets = self.spans, self.documents.read_queries(corpus.train.texts)
        if spans.targets is not None and targets is not None:
            targets = np.concatenate([spans.targets, *[targets] * QUERY_SHARE])
        return AlignmentSampler(
            concat_rows([spans.queries, *[corpus.train_queries] * QUERY_SHARE]),
            np.concatenate([spans.rows, *[first] * QUERY_SHARE]),
            spans.documents,
            targets,
        )


def token_means(
    sampler: AlignmentSampler, documents: FrozenDocuments, tokenizer: RowTokenizer, *, seed: int
) -> FloatArray:
    """Return (vocab, dim) float32: where the token vectors of a query tower start.

    The mean of what the encoder makes of the spans that hold a token, less the mean of all spans;
    what it makes of the token alone counts as one more span. Where the encoder is unknown, the
    documents' own vectors stand for what it makes of the spans cut from them.
    """
    targets = documents.vectors[sampler.rows] if sampler.targets is None else sampler.targets
    alone = documents.read_queries(token_texts(tokenizer))
    size, common = tokenizer.vocab_size, targets.mean(axis=0)
    if alone is None:
        prior = RANDOM_LENGTH * random_vectors(size, targets.shape[1], seed=seed)
    else:
        prior = alone - common
    ids, offsets = sampler.queries
    shape = (len(offsets) - 1, size)
    holds = sparse.csr_matrix((np.ones(len(ids), dtype=np.float32), ids, offsets), shape=shape)
    counts = np.bincount(ids, minlength=size)[:, None]
    means: FloatArray = ((holds.T @ (targets - common) + prior) / (counts + 1)).astype(np.float32)
    return means


def alignment_loss(encoded: Encoded, *, temperature: float) -> Tensor:
    """Distance to the targets, and divergence from how the targets see the batch's documents.

    L = mean_i( 2 (1 - q_i.t_i) + KL(t_i || s_i) ) with t_i the target of query i, s_i the softmax
    over the batch's documents of q_i.d / T and in the divergence t_i the same of the target.
    Without targets it is the one-way softmax of finding the own document.
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
    """
    if encoded.targets is None:
        return in_batch_softmax(encoded, temperature=temperature, symmetric=False)
    likeness = (encoded.queries * encoded.targets).sum(dim=1).mean()
    ours = encoded.queries @ encoded.passages.T / temperature  # (n, n)
    theirs = encoded.targets @ encoded.passages.T / temperature
    divergence = functional.kl_div(
        torch.log_softmax(ours, dim=1),
        torch.log_softmax(theirs, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return LIKENESS * (1 - likeness) + divergence
