"""The cross-scorer's configuration, and the numbers that training and inference share; no torch."""

from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.errors import ConfigError

KERNEL_CENTRES = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, -0.1, -0.3)

EXACT_WIDTH, KERNEL_WIDTH = 0.001, 0.1

WINDOWS = (8, 24)

STAGE_FEATURES = 4

MEETING, VERDICTS = 32, 8

ABSENT = -2.0  # below every cosine: padding matches nothing

LARGEST_CORRECTION = 2.0

ATTENTION_SHARPNESS = 8.0


@configuration("cross")
class CrossConfig:
    """The cross-scorer and how it learns; `epochs` 0 leaves it out.

    Attributes:
        epochs: passes over the labelled queries.
        negatives: candidates beside the answer, per query and step.
        pool: they are drawn from so many best candidates.
        batch_size: queries per step.
        learning_rate: Adam's peak rate.
        recurrent: whether a GRU reads the tokens in context.
        dim: width of its token vectors, which are the towers' before any label, reduced.
        hidden: width of the GRU's state in each direction.
        dropout: share of the features that a training step does not see.
        passage_tokens: a passage keeps its first so many tokens.
        query_tokens: a query keeps its first so many tokens.
        teacher_weight: share of a teacher's opinion in the loss, where there is a teacher.
        teacher_temperature: of the softmax over the teacher's scores.
    """

    epochs: int = Field(default=0, ge=0)
    negatives: int = Field(default=7, ge=1)
    pool: int = 30
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    recurrent: bool = True
    dim: int = Field(default=128, ge=1)
    hidden: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    passage_tokens: int = Field(default=128, ge=1)
    query_tokens: int = Field(default=32, ge=1)
    teacher_weight: float = Field(default=0.5, ge=0, le=1)
    teacher_temperature: float = Field(default=0.05, gt=0)

    def __post_init__(self) -> None:
        if self.pool < self.negatives:
            raise ConfigError(f"cross.pool is {self.pool}, expected {self.negatives} or more")
