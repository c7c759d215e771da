"""The phases that learn from labelled pairs: their configuration and their loss."""

from dataclasses import field
from functools import partial
from typing import Literal

from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.examples.negatives import MiningConfig
from two_tower.models.objectives.losses import (
    Loss,
    cosine_triplet,
    in_batch_softmax,
    margin_mse,
)


@configuration("labelled")
class LabelledConfig:
    """The phase that learns from labelled pairs.

    Attributes:
        loss: `in_batch` (softmax over the batch), `triplet` (cosine, with a margin) or
            `margin_mse` (a teacher's margins; needs mined negatives with teacher scores).
        epochs: passes over the pairs at most.
        patience: stop after so many epochs without a better recall@10 on dev, and go back to the
            best; 0 never stops, and keeps the last.
        batch_size: pairs per step, each the others' negative.
        learning_rate: Adam's peak rate.
        temperature: of the in-batch softmax.
        symmetric: also let passages find their queries (in-batch softmax).
        margin: of the triplet loss.
        hardest: triplet against the hardest negative of the batch instead of a semi-hard one.
        hard_negatives: mined negatives per pair, drawn afresh each epoch; 0 for none. They come
            from `models train --negatives FILE`, and without a file there are none.
        distil_temperature: divides cosines to bring them to the size of the teacher's scores: 1 for
            a teacher whose scores are cosines, about .05 for a cross-encoder's logits.
        chunk_size: texts encoded at a time, to fit a large batch into memory; 0 for all at once.
    """

    loss: Literal["in_batch", "triplet", "margin_mse"] = "in_batch"
    epochs: int = Field(default=12, ge=0)
    patience: int = Field(default=3, ge=0)
    batch_size: int = Field(default=2048, ge=2)
    learning_rate: float = Field(default=3e-3, gt=0)
    temperature: float = Field(default=0.05, gt=0)
    symmetric: bool = True
    margin: float = Field(default=0.2, gt=0)
    hardest: bool = False
    hard_negatives: int = Field(default=1, ge=0)
    distil_temperature: float = Field(default=1.0, gt=0)
    chunk_size: int = Field(default=0, ge=0)


@configuration("hard")
class HardConfig:
    """A further phase over the labelled pairs, with negatives mined by the towers so far.

    Loss, temperature and the like are those of `labelled`.

    Attributes:
        epochs: passes over the pairs at most; 0 leaves this phase out.
        patience: stop after so many epochs without a better recall@10 on dev.
        batch_size: pairs per step.
        learning_rate: Adam's peak rate.
        negatives: mined negatives per pair, drawn afresh each epoch.
        mining: which passages count as hard negatives.
    """

    epochs: int = Field(default=0, ge=0)
    patience: int = Field(default=3, ge=1)
    batch_size: int = Field(default=2048, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    negatives: int = Field(default=1, ge=1)
    mining: MiningConfig = field(default_factory=MiningConfig)


def labelled_loss(config: LabelledConfig) -> Loss:
    """Return the loss that the configuration names, its parameters set."""
    temperature, symmetric = config.temperature, config.symmetric
    losses: dict[str, Loss] = {
        "in_batch": partial(in_batch_softmax, temperature=temperature, symmetric=symmetric),
        "triplet": partial(cosine_triplet, margin=config.margin, hardest=config.hardest),
        "margin_mse": partial(margin_mse, temperature=config.distil_temperature),
    }
    return losses[config.loss]
