"""The phases of a training run: which there are, in which order, with which sampler and loss."""

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np

from two_tower.models.errors import ConfigError
from two_tower.models.examples.corpus import Corpus
from two_tower.models.examples.pairs import (
    Batch,
    HardNegatives,
    PairSampler,
    PassageSampler,
    Sampler,
)
from two_tower.models.objectives.alignment import AlignConfig, alignment_loss
from two_tower.models.objectives.denoising import DenoisingConfig, delete_tokens, denoising_loss
from two_tower.models.objectives.distillation import TeacherConfig, similarity_loss
from two_tower.models.objectives.inverse_cloze import PretrainConfig, cut_spans
from two_tower.models.objectives.labelled import LabelledConfig, labelled_loss
from two_tower.models.objectives.losses import Loss, in_batch_softmax, matryoshka_loss
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.loop import Phase
from two_tower.models.vectors import IntArray

ALIGN, QUERIES, LABELLED, HARD = "align", "queries", "labelled", "hard"

QUERY_RATE = 1 / 3  # of the rate at which spans were learnt

Align = Callable[[Corpus, bool], Sampler]
"""Corpus and whether its train queries join the spans -> what a query tower is aligned with."""


def make_phases(
    config: TrainConfig,
    corpus: Corpus,
    *,
    negatives: HardNegatives | None,
    mine: Callable[[], HardNegatives],
    teach: Callable[[], Sampler] | None,
    align: Align | None,
) -> list[Phase]:
    """Return the phases of a run in order.

    `negatives` are those of `corpus.train` for the labelled phase. `mine` finds those of the hard
    phase, and `teach` (None without a teacher) lets the teacher read for the taught phase, each
    when that phase begins. With `align` the documents are frozen.
    """
    spans, noise, teacher = config.pretrain, config.denoising, config.teacher
    phases = []
    sampler: Sampler
    if align is not None:
        sampler = _LazySampler(lambda: align(corpus, False))
        phases.append(_align_phase(ALIGN, config, sampler))
    elif spans.method != "denoising":
        sampler = PassageSampler(corpus.passages, partial(cut_spans, config=spans))
        loss = partial(in_batch_softmax, temperature=spans.temperature)
        phases.append(_phase("pretrain", config, spans, sampler=sampler, loss=loss))
    if spans.method != "inverse_cloze" and align is None:
        sampler = PassageSampler(corpus.passages, delete_tokens)
        loss = partial(denoising_loss, temperature=noise.temperature)
        phases.append(_phase("denoising", config, noise, sampler=sampler, loss=loss))
    if config.tower.is_rnn and not config.tower.rnn.pretrain:
        phases = [phase._replace(skip_only=True) for phase in phases]
    if teach is not None and teacher.epochs:
        loss = partial(similarity_loss, temperature=teacher.temperature)
        phases.append(_phase("taught", config, teacher, sampler=_LazySampler(teach), loss=loss))
    phases += query_phases(config, corpus, negatives=negatives, align=align)
    if config.hard.epochs and len(corpus.train.texts):
        phases.append(_hard_phase(config, corpus, mine=mine))
    return phases


def query_phases(
    config: TrainConfig, corpus: Corpus, *, negatives: HardNegatives | None, align: Align | None
) -> list[Phase]:
    """Return the phases that learn from train queries, but for the hard one."""
    if not corpus.train.texts:
        return []
    phases = []
    if align is not None:
        phase = _align_phase(QUERIES, config, _LazySampler(lambda: align(corpus, True)))
        rate = QUERY_RATE * phase.learning_rate
        phases.append(phase._replace(epochs=config.align.query_epochs, learning_rate=rate))
    return [*phases, labelled_phase(config, corpus, negatives=negatives)]


def _align_phase(name: str, config: TrainConfig, sampler: Sampler) -> Phase:
    loss = partial(alignment_loss, temperature=config.align.temperature)
    return _phase(name, config, config.align, sampler=sampler, loss=loss)


def check_negatives(config: TrainConfig, negatives: HardNegatives | None) -> None:
    """Refuse a loss that lacks its teacher, and negatives that would not be used.

    Raises:
        ConfigError: the labelled or the hard phase does not fit the negatives.
    """
    labelled = config.labelled
    if negatives is not None and not labelled.hard_negatives:
        raise ConfigError("labelled.hard_negatives is 0, expected 1 or more with --negatives FILE")
    if labelled.loss != "margin_mse":
        return
    if negatives is None or negatives.scores is None:
        raise ConfigError(
            "labelled.loss margin_mse needs a teacher's scores: models mine DATA --teacher MODEL "
            "--out FILE, then --negatives FILE"
        )
    if config.hard.epochs:
        raise ConfigError(
            f"hard.epochs is {config.hard.epochs}, expected 0 with a teacher: it has not scored "
            "what the run itself mines"
        )


def labelled_phase(
    config: TrainConfig, corpus: Corpus, *, negatives: HardNegatives | None
) -> Phase:
    """Return the phase over the labelled pairs, with hard negatives where there are any."""
    labelled = config.labelled
    sampler = _pair_sampler(corpus, negatives, per_query=labelled.hard_negatives)
    phase = _phase(LABELLED, config, labelled, sampler=sampler, loss=labelled_loss(labelled))
    margin = labelled.margin if labelled.loss == "triplet" else None
    patience = labelled.patience or None
    return phase._replace(patience=patience, margin=margin, chunk_size=labelled.chunk_size)


def _hard_phase(config: TrainConfig, corpus: Corpus, *, mine: Callable[[], HardNegatives]) -> Phase:
    """Return the phase over the labelled pairs whose negatives are mined when it begins."""
    hard = config.hard
    return labelled_phase(config, corpus, negatives=None)._replace(
        name=HARD,
        sampler=_LazySampler(lambda: _pair_sampler(corpus, mine(), per_query=hard.negatives)),
        epochs=hard.epochs,
        batch_size=hard.batch_size,
        learning_rate=hard.learning_rate,
        patience=hard.patience,
    )


def _phase(
    name: str,
    config: TrainConfig,
    section: AlignConfig | PretrainConfig | DenoisingConfig | TeacherConfig | LabelledConfig,
    *,
    sampler: Sampler,
    loss: Loss,
) -> Phase:
    loss = matryoshka_loss(loss, config.matryoshka_dims)
    return Phase(name, sampler, loss, section.epochs, section.batch_size, section.learning_rate)


def _pair_sampler(
    corpus: Corpus, negatives: HardNegatives | None, *, per_query: int
) -> PairSampler:
    return PairSampler(
        corpus.train_queries,
        corpus.passages,
        relevant=corpus.train.relevant,
        negatives=negatives,
        per_query=per_query,
    )


class _LazySampler:
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
