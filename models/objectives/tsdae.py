"""TSDAE: a transformer learns a corpus without a label, by restoring texts from their one vector.

Most words of a text are deleted; a decoder that sees nothing but the vector of what is left writes
the whole text again. Wang, Reimers and Gurevych, "TSDAE: Using Transformer-based Sequential
Denoising Auto-Encoder for Unsupervised Sentence Embedding Learning", 2021, arXiv:2104.06979. The
loss, with its decoder, is that of sentence-transformers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.errors import ConfigError
from two_tower.models.networks.transformer import no_bars, quiet
from two_tower.models.objectives.denoising import DELETE_RATE
from two_tower.models.progress import progress
from two_tower.models.text.transformer_tokenizer import MISSING

MAX_GRADIENT_NORM = 1.0

LONGEST_WORDS = 100  # of a text: the decoder writes every one of them


@configuration("tsdae")
class TsdaeConfig:
    """How a transformer tower gets to know the corpus before it sees a query.

    Attributes:
        epochs: passes over the passages; 0 leaves this phase out.
        batch_size: passages per step.
        learning_rate: Adam's, constant, as the paper has it.
        passages: at most so many, drawn with the seed; 0 for all.
    """

    epochs: int = Field(default=0, ge=0)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=3e-5, gt=0)
    passages: int = Field(default=0, ge=0)


def restore_texts(model: Any, texts: Sequence[str], config: TsdaeConfig, *, seed: int) -> float:
    """Train a sentence-transformers model in place; return the mean loss of its last epoch.

    Raises:
        ConfigError: the extra is not installed, or no decoder fits the model.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of the decoder's new parts
        loss_of = _loss(model)
    rng = np.random.default_rng([seed, 3])
    usable = [i for i, text in enumerate(texts) if len(text.split()) > 1]
    drawn = rng.permutation(usable)[: config.passages or None]
    optimizer = torch.optim.AdamW(loss_of.parameters(), lr=config.learning_rate)
    mean = float("nan")
    for epoch in range(config.epochs):
        order = rng.permutation(drawn)
        batches = [
            order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)
        ]
        total = 0.0
        for rows in progress(batches, label=f"tsdae {epoch + 1}/{config.epochs}"):
            whole = [" ".join(texts[row].split()[:LONGEST_WORDS]) for row in rows]
            noisy = [delete_words(text, rng) for text in whole]
            features = [_features(model, part) for part in (noisy, whole)]
            optimizer.zero_grad()
            loss = loss_of(features, None)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(loss_of.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            total += loss.item()
        mean = total / max(1, len(batches))
    return mean


def delete_words(text: str, rng: np.random.Generator) -> str:
    """Return a text without most of its words, but with one at least."""
    words = text.split()
    stays = rng.random(len(words)) >= DELETE_RATE
    if not stays.any():
        stays[rng.integers(len(words))] = True
    return " ".join(word for word, is_kept in zip(words, stays, strict=True) if is_kept)


def _loss(model: Any) -> Any:
    try:
        with quiet():
            from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss
    except ImportError:
        raise ConfigError(MISSING.format(name="sentence-transformers")) from None
    try:
        with quiet(), no_bars():
            return DenoisingAutoEncoderLoss(model, tie_encoder_decoder=True)
    except (ValueError, AssertionError, OSError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"tsdae.epochs is above 0, but no decoder fits this model ({reason}); expected 0, or a "
            "model of BERT's kind"
        ) from None


def _features(model: Any, texts: Sequence[str]) -> dict[str, Any]:
    features: dict[str, Any] = model.preprocess(list(texts))
    return {
        name: value.to(model.device) for name, value in features.items() if hasattr(value, "to")
    }
