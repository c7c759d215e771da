"""Inverse cloze: learn from the corpus before any pair is seen."""

from typing import Literal

import numpy as np
from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.errors import ConfigError
from two_tower.models.examples.pairs import Batch
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import BoolArray

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


def cut_spans(rows: TokenRows, rng: np.random.Generator, *, config: PretrainConfig) -> Batch:
    """Cut a random span out of each passage: it plays the query, the rest its answer.

    Lee et al., "Latent Retrieval for Weakly Supervised Open Domain Question Answering", 2019,
    https://arxiv.org/abs/1906.00300; like there, the span sometimes stays in the passage.
    """
    lengths = rows.lengths
    drawn = rng.integers(config.min_span, config.max_span + 1, size=len(lengths))
    size = np.minimum(drawn, lengths // 2)  # (n,)
    start = rng.integers(0, lengths - size + 1)
    position = np.arange(len(rows.ids)) - rows.offsets[:-1][rows.rows]  # (total,), in its row
    offset = position - start[rows.rows]
    in_span: BoolArray = (offset >= 0) & (offset < size[rows.rows])
    stays = rng.random(len(lengths)) < config.keep_rate  # (n,)
    return Batch(rows.where(in_span), rows.where(~in_span | stays[rows.rows]), NOTHING_MASKED)
