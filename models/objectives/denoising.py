"""Denoising: restore a text from the vector of what is left of it when most tokens are deleted."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from two_tower.models.config import check_least, check_positive
from two_tower.models.errors import ConfigError
from two_tower.models.examples.pairs import Batch
from two_tower.models.objectives.losses import Encoded
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import IntArray


@dataclass(frozen=True)
class DenoisingConfig:
    """Denoising, where `pretrain.method` asks for it: how long, how fast, how much noise.

    Attributes:
        epochs: passes over the corpus.
        batch_size: passages per step; their distinct tokens are what is told apart.
        learning_rate: Adam's peak rate.
        temperature: of the softmax.
        delete_rate: how likely a token is deleted.
    """

    epochs: int = 2
    batch_size: int = 512
    learning_rate: float = 2e-3
    temperature: float = 0.05
    delete_rate: float = 0.6

    def __post_init__(self) -> None:
        check_least("denoising", self, epochs=0, batch_size=2)
        check_positive("denoising", self, "learning_rate", "temperature")
        if not 0 < self.delete_rate < 1:
            raise ConfigError(
                f"denoising.delete_rate is {self.delete_rate}, expected between 0 and 1"
            )


class NoisySampler:
    """Texts with most tokens deleted, beside the distinct tokens of the whole batch.

    The batch's `passages` are not passages here but one row for each distinct token of its texts,
    so that the passage tower gives each token a vector; `masked` holds the cells (i, j) where
    token j belongs to text i, which is what `denoising_loss` wants to see predicted.

    Deleting .6 of the tokens is what Wang et al. found best ("TSDAE", 2021, arXiv:2104.06979).
    """

    def __init__(self, passages: TokenRows, *, delete_rate: float) -> None:
        """Use the passages of at least two tokens."""
        self._passages = passages
        self._delete_rate = delete_rate
        self._usable = np.flatnonzero(passages.lengths >= 2)

    @property
    def size(self) -> int:
        """Number of passages that can lose a token."""
        return len(self._usable)

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Delete afresh from each of the passages at `index`; each keeps at least one token."""
        rows = self._passages.take(self._usable[index])
        kept = rng.random(len(rows.ids)) >= self._delete_rate
        lucky = rows.offsets[:-1] + rng.integers(0, rows.lengths)
        empty = np.add.reduceat(kept, rows.offsets[:-1]) == 0
        kept[lucky[empty]] = True
        vocabulary, columns = np.unique(rows.ids, return_inverse=True)
        tokens = TokenRows(vocabulary, np.arange(len(vocabulary) + 1))
        cells = np.unique(rows.rows * len(vocabulary) + columns)
        own = np.stack([cells // len(vocabulary), cells % len(vocabulary)], axis=1)
        return Batch(rows.where(kept), tokens, own)


def denoising_loss(encoded: Encoded, *, temperature: float) -> Tensor:
    """Cross-entropy of finding a text's tokens among those of the batch, from its noisy vector.

    L = mean_i mean_{t in text i} -log( exp(v_i.e_t / T) / sum_{t' in batch} exp(v_i.e_t' / T) ),
    v_i the vector of the noisy text i, e_t that of the text which is token t alone, both by the
    towers themselves: for a mean tower, its normalised token vector, tied.

    The idea is that of TSDAE (Wang, Reimers and Gurevych, 2021, arXiv:2104.06979): one vector
    must hold the text. The decoder is not. Theirs is a transformer with cross-attention to that
    vector, which writes the tokens in their order, over the whole vocabulary, and counts each
    occurrence; this one has no parameters, says which tokens there are and not in what order,
    counts each once, and competes over the batch's tokens alone. A tower that ignores order
    could not use more, and a CPU could not afford it.

    Args:
        encoded: noisy texts (n, dim), tokens (v, dim), and in `masked` (n, v) which belong where.
        temperature: T above.
    """
    scores = encoded.queries @ encoded.passages.T / temperature
    own = encoded.masked
    total = torch.logsumexp(scores, dim=1)
    mean = (scores * own).sum(dim=1) / own.sum(dim=1).clamp(min=1)
    return (total - mean).mean()
