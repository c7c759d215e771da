"""Denoising: restore a text from the vector of what is left of it when most tokens are deleted."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from two_tower.models.config import configuration
from two_tower.models.examples.pairs import Batch
from two_tower.models.objectives.losses import Encoded
from two_tower.models.text.tokenizer import TokenRows

DELETE_RATE = 0.6
"""How likely a token is deleted: what Wang et al. found best ("TSDAE", 2021, arXiv:2104.06979)."""


@configuration("denoising")
class DenoisingConfig:
    """Denoising, where `pretrain.method` asks for it: how long, how fast, how much noise.

    Attributes:
        epochs: passes over the corpus.
        batch_size: passages per step; their distinct tokens are what is told apart.
        learning_rate: Adam's peak rate.
        temperature: of the softmax.
    """

    epochs: int = Field(default=2, ge=0)
    batch_size: int = Field(default=512, ge=2)
    learning_rate: float = Field(default=2e-3, gt=0)
    temperature: float = Field(default=0.05, gt=0)


def delete_tokens(rows: TokenRows, rng: np.random.Generator) -> Batch:
    """Delete most tokens of each text, beside the distinct tokens of the whole batch.

    The batch's `passages` are not passages here but one row for each distinct token of its texts,
    so that the passage tower gives each token a vector; `masked` holds the cells (i, j) where
    token j belongs to text i, which is what `denoising_loss` wants to see predicted.

    Each text keeps at least one token.
    """
    stays = rng.random(len(rows.ids)) >= DELETE_RATE  # (total,)
    survivors = rows.offsets[:-1] + rng.integers(0, rows.lengths)  # (n,), one token of each row
    empty = np.add.reduceat(stays, rows.offsets[:-1]) == 0
    stays[survivors[empty]] = True
    vocabulary, columns = np.unique(rows.ids, return_inverse=True)
    tokens = TokenRows(vocabulary, np.arange(len(vocabulary) + 1))
    cells = np.unique(rows.rows * len(vocabulary) + columns)
    targets = np.stack(np.divmod(cells, len(vocabulary)), axis=1)  # (cells, 2)
    return Batch(rows.where(stays), tokens, targets)


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
    scores = encoded.queries @ encoded.passages.T / temperature  # (n, v)
    targets = encoded.masked
    total = torch.logsumexp(scores, dim=1)
    mean = (scores * targets).sum(dim=1) / targets.sum(dim=1).clamp(min=1)
    return (total - mean).mean()
