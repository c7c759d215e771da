"""The two kinds of reranker as a training run sees them: the RNN cross-scorer, a cross-encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from safetensors.numpy import save as save_arrays

from two_tower.models.bundle.cross_encoder import CrossEncoderScorer
from two_tower.models.bundle.files import CROSS_SCORER
from two_tower.models.examples.candidates import CandidateLists
from two_tower.models.examples.corpus import Corpus
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.networks.cross_encoder import (
    CrossEncoder,
    cross_encoder_files,
    open_cross_encoder,
)
from two_tower.models.networks.cross_scorer import CrossScorer, scorer_arrays
from two_tower.models.progress import progress
from two_tower.models.text.transformer_tokenizer import CROSS_GRAPH, CROSS_TEXT
from two_tower.models.training.cross_training import (
    RankingExamples,
    Scorer,
    likeliest_scale,
    score_lists,
)
from two_tower.models.training.reranking_teacher import open_reranking_teacher
from two_tower.models.vectors import FloatArray

WEIGHED_AT_ONCE = 32


class Reranker(Protocol):
    """What reads queries and passages together."""

    @property
    def module(self) -> Scorer:
        """What is trained."""
        ...

    def examples(
        self, lists: CandidateLists, hybrid: FloatArray, teacher: FloatArray | None
    ) -> RankingExamples:
        """Return the train queries and the corpus in its tokens, beside their candidates.

        `hybrid` (n, k) are the candidates' scores before, `teacher` what a teacher says of them.
        """
        ...

    def scores(self, examples: RankingExamples) -> FloatArray:
        """Return (n, k) float32 logits of all candidates, as a bundle will give them."""
        ...

    def files(self) -> dict[str, bytes]:
        """Return the files of the bundle that hold it."""
        ...


@dataclass(frozen=True)
class RnnReranker:
    """The RNN cross-scorer; it reads the towers' tokens."""

    module: CrossScorer
    corpus: Corpus

    def examples(
        self, lists: CandidateLists, hybrid: FloatArray, teacher: FloatArray | None
    ) -> RankingExamples:
        """Return the corpus as it is."""
        return RankingExamples(
            self.corpus.train_queries, self.corpus.passage_tokens, lists, teacher
        )

    def scores(self, examples: RankingExamples) -> FloatArray:
        """Return (n, k) float32 logits."""
        return score_lists(self.module, examples)

    def files(self) -> dict[str, bytes]:
        """Return its parameters."""
        return {CROSS_SCORER: save_arrays(scorer_arrays(self.module))}


class EncoderReranker:
    """A cross-encoder; it reads texts in tokens of its own."""

    def __init__(
        self, module: CrossEncoder, *, int8: bool, queries: Sequence[str], passages: Sequence[str]
    ) -> None:
        self.module = module
        self._int8 = int8
        self._queries = queries
        self._passages = passages

    def examples(
        self, lists: CandidateLists, hybrid: FloatArray, teacher: FloatArray | None
    ) -> RankingExamples:
        """Tokenise the queries, and the passages that are a candidate."""
        known = likeliest_scale(hybrid, lists.relevant) * hybrid
        rows, places = np.unique(lists.rows, return_inverse=True)
        tokenizer = self.module.tokenizer
        return RankingExamples(
            tokenizer.encode_queries(self._queries),
            tokenizer.encode_passages([self._passages[row] for row in rows]),
            lists._replace(rows=places.reshape(lists.rows.shape)),
            teacher,
            known.astype(np.float32),
        )

    def scores(self, examples: RankingExamples) -> FloatArray:
        """Return (n, k) float32 logits by the graph that goes into the bundle."""
        files = self._files
        limits = self.module.tokenizer.config
        scorer = CrossEncoderScorer(files[CROSS_GRAPH], files[CROSS_TEXT], limits)
        count, k = examples.lists.rows.shape
        logits = [np.zeros((0, k), dtype=np.float32)]
        starts = range(0, count, WEIGHED_AT_ONCE)
        for start in progress(starts, label="weighing the cross-encoder", total=len(starts)):
            part = np.arange(start, min(start + WEIGHED_AT_ONCE, count))
            queries = examples.queries.take(part.repeat(k))
            passages = examples.passages.take(examples.lists.rows[part].ravel())
            logits.append(scorer.score_rows(queries, passages).reshape(-1, k))
        return np.concatenate(logits)

    def files(self) -> dict[str, bytes]:
        """Return its graph and its tokenizer."""
        return self._files

    @cached_property
    def _files(self) -> dict[str, bytes]:
        return cross_encoder_files(self.module, int8=self._int8)


def check_reranker(config: CrossConfig) -> None:
    """Open what the end of a run needs, so that a mistake is known at its beginning.

    Raises:
        BundleError: the teacher is a broken bundle.
        ConfigError: a model is not there or scores no pairs.
    """
    if config.model is not None:
        open_cross_encoder(config.model, config.limits, fresh_head=config.epochs > 0)
    if config.teacher is not None and config.epochs:
        open_reranking_teacher(config.teacher, config)
