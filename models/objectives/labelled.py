"""The phases that learn from labelled pairs: their configuration and their loss."""

from dataclasses import dataclass, field
from typing import Literal

from two_tower.models.config import check_least, check_positive
from two_tower.models.examples.negatives import MiningConfig
from two_tower.models.objectives.losses import (
    Loss,
    cosine_triplet,
    in_batch_softmax,
    margin_mse,
    sum_loss,
)


@dataclass(frozen=True)
class LabelledConfig:
    """The phase that learns from labelled pairs.

    Attributes:
        loss: `in_batch` (softmax over the batch), `triplet` (cosine, with a margin) or
            `margin_mse` (a teacher's margins; needs mined negatives with teacher scores).
        epochs: passes over the pairs at most.
        patience: stop after so many epochs without a better recall@10 on dev.
        batch_size: pairs per step, each the others' negative.
        learning_rate: Adam's peak rate.
        temperature: of the in-batch softmax.
        symmetric: also let passages find their queries (in-batch softmax).
        margin: of the triplet loss.
        hardest: triplet against the hardest negative of the batch instead of a semi-hard one.
        hard_negatives: mined negatives per pair, drawn afresh each epoch; 0 for none. They come
            from `models train --negatives FILE`, and without a file there are none.
        distil_weight: of margin-MSE beside the loss; 0 for none.
        distil_temperature: divides cosines to bring them to the size of the teacher's scores: 1 for
            a teacher whose scores are cosines, about .05 for a cross-encoder's logits.
        chunk_size: texts encoded at a time, to fit a large batch into memory; 0 for all at once.
    """

    loss: Literal["in_batch", "triplet", "margin_mse"] = "in_batch"
    epochs: int = 12
    patience: int = 3
    batch_size: int = 2048
    learning_rate: float = 3e-3
    temperature: float = 0.05
    symmetric: bool = True
    margin: float = 0.2
    hardest: bool = False
    hard_negatives: int = 1
    distil_weight: float = 0.0
    distil_temperature: float = 1.0
    chunk_size: int = 0

    def __post_init__(self) -> None:
        check_least("labelled", self, batch_size=2, epochs=0, patience=1)
        check_positive(
            "labelled", self, "learning_rate", "temperature", "margin", "distil_temperature"
        )
        check_least("labelled", self, hard_negatives=0, distil_weight=0, chunk_size=0)

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss reads a teacher's scores."""
        return self.loss == "margin_mse" or self.distil_weight > 0


@dataclass(frozen=True)
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

    epochs: int = 0
    patience: int = 3
    batch_size: int = 2048
    learning_rate: float = 1e-3
    negatives: int = 1
    mining: MiningConfig = field(default_factory=MiningConfig)

    def __post_init__(self) -> None:
        check_least("hard", self, batch_size=2, epochs=0, patience=1, negatives=1)
        check_positive("hard", self, "learning_rate")


def labelled_loss(config: LabelledConfig) -> Loss:
    """Return the loss that the configuration names, its parameters set."""
    if config.loss == "margin_mse":
        return _distilled(config)
    loss = _softmax(config) if config.loss == "in_batch" else _triplet(config)
    if not config.distil_weight:
        return loss
    return sum_loss(loss, _distilled(config), weight=config.distil_weight)


def _softmax(config: LabelledConfig) -> Loss:
    return lambda encoded: in_batch_softmax(
        encoded, temperature=config.temperature, symmetric=config.symmetric
    )


def _triplet(config: LabelledConfig) -> Loss:
    return lambda encoded: cosine_triplet(encoded, margin=config.margin, hardest=config.hardest)


def _distilled(config: LabelledConfig) -> Loss:
    return lambda encoded: margin_mse(encoded, temperature=config.distil_temperature)
