"""Inverse cloze: learn from the corpus before any pair is seen."""

from typing import Literal

import numpy as np
from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.errors import ConfigError
from two_tower.models.examples.pairs import Batch
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import BoolArray, IntArray

NOTHING_MASKED = np.zeros((0, 2), dtype=np.int64)


@configuration("pretrain")
class PretrainConfig:
    """Learning without labels; every setting but `method` is of inverse cloze.

    Attributes:
        method: `inverse_cloze` (find the passage that a span was cut from), `denoising` (restore
            a passage from the vector of what is left of it) or `both`, in this order.
        epochs: passes over the corpus; 0 leaves this phase out.
        batch_size: passages per step, each the others' negative.
        learning_rate: Adam's peak rate.
        temperature: of the in-batch softmax.
        min_span: shortest span in tokens.
        max_span: longest span in tokens; never more than half of a passage.
        keep_rate: how often the span stays in its passage, so that exact matches count too.
    """

    method: Literal["inverse_cloze", "denoising", "both"] = "inverse_cloze"
    epochs: int = Field(default=10, ge=0)
    batch_size: int = Field(default=2048, ge=2)
    learning_rate: float = Field(default=0.01, gt=0)
    temperature: float = Field(default=0.05, gt=0)
    min_span: int = 3
    max_span: int = 12
    keep_rate: float = Field(default=0.1, ge=0, le=1)

    def __post_init__(self) -> None:
        if not 1 <= self.min_span <= self.max_span:
            raise ConfigError(
                f"pretrain.min_span and max_span are {self.min_span} and {self.max_span}, "
                "expected 1 <= min_span <= max_span"
            )


class SpanSampler:
    """Inverse cloze: a random span of a passage plays the query, the rest its answer.

    Lee et al., "Latent Retrieval for Weakly Supervised Open Domain Question Answering", 2019,
    https://arxiv.org/abs/1906.00300; like there, the span sometimes stays in the passage.
    """

    def __init__(self, passages: TokenRows, config: PretrainConfig) -> None:
        """Use the passages of at least two tokens."""
        self._passages = passages
        self._config = config
        self._usable = np.flatnonzero(passages.lengths >= 2)

    @property
    def size(self) -> int:
        """Number of passages that can be split."""
        return len(self._usable)

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Cut a fresh span out of each of the passages at `index`."""
        rows = self._passages.take(self._usable[index])
        spans = self._in_span(rows, rng)
        stays = rng.random(len(index)) < self._config.keep_rate
        return Batch(rows.where(spans), rows.where(~spans | stays[rows.rows]), NOTHING_MASKED)

    def _in_span(self, rows: TokenRows, rng: np.random.Generator) -> BoolArray:
        """Return (total,) bool: whether a token is in its row's span."""
        lengths, config = rows.lengths, self._config
        drawn = rng.integers(config.min_span, config.max_span + 1, size=len(lengths))
        size = np.minimum(drawn, lengths // 2)  # (n,)
        start = rng.integers(0, lengths - size + 1)
        position = np.arange(len(rows.ids)) - rows.offsets[:-1][rows.rows]  # (total,), in its row
        offset = position - start[rows.rows]
        inside: BoolArray = (offset >= 0) & (offset < size[rows.rows])
        return inside
