"""The cross-scorer's configuration, and the numbers that training and inference share; no torch."""

from typing import Annotated

from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.errors import ConfigError
from two_tower.models.text.tokenizer import TokenizerConfig

KERNEL_CENTRES = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, -0.1, -0.3)

EXACT_WIDTH, KERNEL_WIDTH = 0.001, 0.1

WINDOWS = (8, 24)

STAGE_FEATURES = 4

MEETING, VERDICTS = 32, 8

ABSENT = -2.0  # below every cosine: padding matches nothing

LARGEST_CORRECTION = 2.0

ATTENTION_SHARPNESS = 8.0

RNN_READS = 50

COSINES, LOGITS = 0.05, 1.0  # temperatures of a teacher's scores

RNN_RATE, ENCODER_RATE = 3e-3, 5e-5


@configuration("cross")
class CrossConfig:
    """The reranker that reads query and passage together, and how it learns.

    It is the RNN cross-scorer with `epochs` above 0, or with a `model` a cross-encoder.

    Attributes:
        model: folder of a cross-encoder of sentence-transformers, an installed package that brings
            one, or a hub id; to be fine-tuned, a model that gives vectors will do. null for the
            RNN.
        int8: keep the cross-encoder's matrices as 8-bit integers.
        candidates: a search lets the cross-encoder read so many; the RNN reads 50.
        epochs: passes over the labelled queries; 0 leaves the RNN out, and runs a cross-encoder as
            it comes.
        negatives: candidates beside the answer, per query and step.
        pool: they are drawn from so many best candidates.
        batch_size: queries per step.
        learning_rate: Adam's peak rate; null for 3e-3, or 5e-5 for a cross-encoder.
        recurrent: whether a GRU reads the tokens in context.
        dim: width of its token vectors, which are the towers' before any label, reduced.
        hidden: width of the GRU's state in each direction.
        dropout: share of the features that a training step does not see.
        passage_tokens: a passage keeps its first so many tokens.
        query_tokens: a query keeps its first so many tokens.
        teacher: a bundle, a cross-encoder or a model that gives vectors, from whose scores
            (beside BM25) the RNN learns; null for the cosines of `teacher.model`, if there is one.
        teacher_weight: share of a teacher's opinion in the loss, where there is a teacher.
        teacher_temperature: of the softmax over the teacher's scores; null for 0.05 with cosines
            and 1 with `teacher`.
    """

    model: str | None = None
    int8: bool = True
    candidates: int = Field(default=20, ge=1, le=200)
    epochs: int = Field(default=0, ge=0)
    negatives: int = Field(default=7, ge=1)
    pool: int = 30
    batch_size: int = Field(default=32, ge=1)
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    recurrent: bool = True
    dim: int = Field(default=128, ge=1)
    hidden: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    passage_tokens: int = Field(default=128, ge=1)
    query_tokens: int = Field(default=32, ge=1)
    teacher: str | None = None
    teacher_weight: float = Field(default=0.5, ge=0, le=1)
    teacher_temperature: Annotated[float, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        if self.pool < self.negatives:
            raise ConfigError(f"cross.pool is {self.pool}, expected {self.negatives} or more")
        if self.model is not None and self.teacher is not None:
            raise ConfigError(
                f"cross.teacher is {self.teacher!r} beside cross.model, expected one of the two: "
                "only the RNN has a teacher"
            )

    @property
    def limits(self) -> TokenizerConfig:
        """How a cross-encoder's tokenizer cuts."""
        return TokenizerConfig(
            max_passage_tokens=self.passage_tokens, max_query_tokens=self.query_tokens
        )

    @property
    def takes_part(self) -> bool:
        """Whether there is a reranker at all."""
        return self.epochs > 0 or self.model is not None

    @property
    def reads(self) -> int:
        """How many candidates a search lets it read by default."""
        return RNN_READS if self.model is None else self.candidates

    @property
    def temperature(self) -> float:
        """Of the softmax over a teacher's scores."""
        return self.teacher_temperature or (COSINES if self.teacher is None else LOGITS)

    @property
    def rate(self) -> float:
        """Adam's peak rate."""
        return self.learning_rate or (RNN_RATE if self.model is None else ENCODER_RATE)
