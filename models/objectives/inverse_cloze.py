"""Label-free objectives: learn from the corpus before any pair is seen."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from two_tower.models.config import check_least, check_positive
from two_tower.models.errors import ConfigError
from two_tower.models.examples.pairs import Batch
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import IntArray

NOTHING_MASKED = np.zeros((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class PretrainConfig:
    """Learning without labels; but for `method`, all of it is about inverse cloze.

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
    epochs: int = 10
    batch_size: int = 2048
    learning_rate: float = 0.01
    temperature: float = 0.05
    min_span: int = 3
    max_span: int = 12
    keep_rate: float = 0.1

    def __post_init__(self) -> None:
        check_least("pretrain", self, epochs=0, batch_size=2)
        check_positive("pretrain", self, "learning_rate", "temperature")
        if not 1 <= self.min_span <= self.max_span:
            raise ConfigError(
                f"pretrain.min_span and max_span are {self.min_span} and {self.max_span}, "
                "expected 1 <= min_span <= max_span"
            )
        if not 0 <= self.keep_rate <= 1:
            raise ConfigError(f"pretrain.keep_rate is {self.keep_rate}, expected 0 to 1")


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
        kept = rng.random(len(index)) < self._config.keep_rate
        return Batch(rows.where(spans), rows.where(~spans | kept[rows.rows]), NOTHING_MASKED)

    def _in_span(self, rows: TokenRows, rng: np.random.Generator) -> np.ndarray:
        """Return (total,) bool: whether a token is in its row's span."""
        lengths, config = rows.lengths, self._config
        wanted = rng.integers(config.min_span, config.max_span + 1, size=len(lengths))
        size = np.minimum(wanted, lengths // 2)
        start = rng.integers(0, lengths - size + 1)
        position = np.arange(len(rows.ids)) - rows.offsets[:-1][rows.rows]
        offset = position - start[rows.rows]
        return (offset >= 0) & (offset < size[rows.rows])
