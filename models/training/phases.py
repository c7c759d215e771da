"""What a training run consists of: the list of its phases."""

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np

from two_tower.models.errors import ConfigError
from two_tower.models.examples.corpus import Corpus
from two_tower.models.examples.pairs import Batch, HardNegatives, PairSampler, Sampler
from two_tower.models.objectives.denoising import NoisySampler, denoising_loss
from two_tower.models.objectives.distillation import Lesson, LessonSampler, similarity_loss
from two_tower.models.objectives.inverse_cloze import SpanSampler
from two_tower.models.objectives.labelled import LabelledConfig, labelled_loss
from two_tower.models.objectives.losses import in_batch_softmax, matryoshka_loss
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.loop import Phase
from two_tower.models.vectors import IntArray

LABELLED, HARD = "labelled", "hard"


def make_phases(
    config: TrainConfig,
    corpus: Corpus,
    *,
    given: HardNegatives | None,
    mine: Callable[[], HardNegatives],
    teach: Callable[[], Lesson],
) -> list[Phase]:
    """Return the phases of a run in order.

    Args:
        config: of the run.
        corpus: what to learn from.
        given: hard negatives for the labelled phase, of `corpus.train`.
        mine: finds hard negatives for the hard phase, called when that phase begins.
        teach: lets the teacher read for the taught phase, called when that phase begins.
    """
    method = config.pretrain.method
    phases = [] if method == "denoising" else [pretrain_phase(config, corpus)]
    if method != "inverse_cloze":
        phases.append(denoising_phase(config, corpus))
    if config.teacher.model and config.teacher.epochs:
        phases.append(taught_phase(config, teach))
    phases.append(labelled_phase(config, corpus, given))
    return [*phases, hard_phase(config, corpus, mine)] if config.hard.epochs else phases


def check_negatives(config: TrainConfig, given: HardNegatives | None) -> None:
    """Refuse a loss that lacks its teacher, and negatives that would not be used.

    Raises:
        ConfigError: so it is.
    """
    pairs = config.labelled
    if given is not None and not pairs.hard_negatives:
        raise ConfigError("labelled.hard_negatives is 0, expected 1 or more with --negatives FILE")
    if not pairs.needs_teacher:
        return
    if given is None or given.scores is None:
        raise ConfigError(
            f"labelled.loss {pairs.loss} with distil_weight {pairs.distil_weight} needs a "
            "teacher's scores: models mine DATA --teacher MODEL --out FILE, then --negatives FILE"
        )
    if config.hard.epochs:
        raise ConfigError(
            f"hard.epochs is {config.hard.epochs}, expected 0 with a teacher: it has not scored "
            "what the run itself mines"
        )


def pretrain_phase(config: TrainConfig, corpus: Corpus) -> Phase:
    """Return the phase that finds passages by spans of them."""
    spans = config.pretrain
    loss = partial(in_batch_softmax, temperature=spans.temperature)
    return Phase(
        "pretrain",
        SpanSampler(corpus.passages, spans),
        matryoshka_loss(loss, config.matryoshka_dims),
        spans.epochs,
        spans.batch_size,
        spans.learning_rate,
        skip_only=config.tower.is_rnn and not config.tower.rnn.pretrain,
    )


def denoising_phase(config: TrainConfig, corpus: Corpus) -> Phase:
    """Return the phase that restores noisy passages."""
    noise = config.denoising
    loss = partial(denoising_loss, temperature=noise.temperature)
    return Phase(
        "denoising",
        NoisySampler(corpus.passages, delete_rate=noise.delete_rate),
        matryoshka_loss(loss, config.matryoshka_dims),
        noise.epochs,
        noise.batch_size,
        noise.learning_rate,
        skip_only=config.tower.is_rnn and not config.tower.rnn.pretrain,
    )


def labelled_phase(config: TrainConfig, corpus: Corpus, given: HardNegatives | None) -> Phase:
    """Return the phase over the labelled pairs, with hard negatives where some are given."""
    pairs = config.labelled
    return Phase(
        LABELLED,
        _pair_sampler(corpus, given, pairs.hard_negatives),
        matryoshka_loss(labelled_loss(pairs), config.matryoshka_dims),
        pairs.epochs,
        pairs.batch_size,
        pairs.learning_rate,
        pairs.patience,
        _collapse_margin(pairs),
        pairs.chunk_size,
    )


def taught_phase(config: TrainConfig, teach: Callable[[], Lesson]) -> Phase:
    """Return the phase that follows a teacher."""
    teacher = config.teacher
    return Phase(
        "taught",
        _LaterSampler(lambda: LessonSampler(teach())),
        matryoshka_loss(
            lambda encoded: similarity_loss(encoded, temperature=teacher.temperature),
            config.matryoshka_dims,
        ),
        teacher.epochs,
        teacher.batch_size,
        teacher.learning_rate,
    )


def hard_phase(config: TrainConfig, corpus: Corpus, mine: Callable[[], HardNegatives]) -> Phase:
    """Return the phase whose negatives are mined when it begins."""
    pairs, hard = config.labelled, config.hard
    return Phase(
        HARD,
        _LaterSampler(lambda: _pair_sampler(corpus, mine(), hard.negatives)),
        matryoshka_loss(labelled_loss(pairs), config.matryoshka_dims),
        hard.epochs,
        hard.batch_size,
        hard.learning_rate,
        hard.patience,
        _collapse_margin(pairs),
        pairs.chunk_size,
    )


def _pair_sampler(corpus: Corpus, negatives: HardNegatives | None, per_query: int) -> PairSampler:
    return PairSampler(
        corpus.train_queries,
        corpus.passages,
        relevant=corpus.train.relevant,
        negatives=negatives,
        per_query=per_query,
    )


def _collapse_margin(config: LabelledConfig) -> float | None:
    return config.margin if config.loss == "triplet" else None


class _LaterSampler:
    """A sampler that is made when it is first used: it depends on the towers of that moment."""

    def __init__(self, make: Callable[[], Sampler]) -> None:
        self._make = make

    @cached_property
    def _sampler(self) -> Sampler:
        return self._make()

    @property
    def size(self) -> int:
        """Number of examples in an epoch."""
        return self._sampler.size

    def batch(self, index: IntArray, rng: np.random.Generator) -> Batch:
        """Collate the examples at `index`."""
        return self._sampler.batch(index, rng)
