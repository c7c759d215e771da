"""The configuration of a training run and the one loop that all its phases go through."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from two_tower.models.checkpoint import Arrays, Checkpoint, Progress, RunFolder, parts
from two_tower.models.console import progress as progress_bar
from two_tower.models.corpus import PrefixConfig
from two_tower.models.cross_scorer import CrossConfig
from two_tower.models.denoising import DenoisingConfig
from two_tower.models.errors import ConfigError, TrainingError
from two_tower.models.examples import Sampler, batches_per_epoch, epoch_batches
from two_tower.models.fusion import FusionConfig
from two_tower.models.gradients import backward
from two_tower.models.labelled import HardConfig, LabelledConfig
from two_tower.models.losses import Loss
from two_tower.models.optimizer import (
    MAX_GRADIENT_NORM,
    optimizer_arrays,
    rate_factor,
    restore_optimizer,
)
from two_tower.models.pretrain import PretrainConfig
from two_tower.models.teacher import TeacherConfig
from two_tower.models.tokenizer import TokenizerConfig
from two_tower.models.towers import TowerConfig, TwoTower
from two_tower.models.tracking import Tracker
from two_tower.models.transformer import TransformerConfig
from two_tower.models.word2vec import Word2VecConfig

COLLAPSED_COSINE = 0.95


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a bundle, beside the data.

    Attributes:
        seed: of every random choice.
        dev_share: queries held out for early stopping where DATA has no dev split.
        dev_passages: rank so many passages for dev (its answers, and others drawn with the seed)
            and fit the PCA to them; 0 for the whole corpus.
        pca_dims: widths of the reduced vectors.
        matryoshka_dims: lengths at which a vector's beginning is trained to do on its own.
    """

    seed: int = 0
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    word2vec: Word2VecConfig = field(default_factory=Word2VecConfig)
    tower: TowerConfig = field(default_factory=TowerConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    labelled: LabelledConfig = field(default_factory=LabelledConfig)
    hard: HardConfig = field(default_factory=HardConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    cross: CrossConfig = field(default_factory=CrossConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    prefixes: PrefixConfig = field(default_factory=PrefixConfig)
    dev_share: float = 0.1
    dev_passages: int = 0
    pca_dims: tuple[int, ...] = (64, 32)
    matryoshka_dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected 0 or more")
        if not 0 < self.dev_share < 1:
            raise ConfigError(f"dev_share is {self.dev_share}, expected between 0 and 1")
        if self.dev_passages < 0:
            raise ConfigError(f"dev_passages is {self.dev_passages}, expected 0 or more")
        restores = self.pretrain.method != "inverse_cloze" and self.denoising.epochs > 0
        if self.tower.kind == "transformer" and (self.pretrain.epochs or restores):
            raise ConfigError(
                f"pretrain.epochs is {self.pretrain.epochs} by {self.pretrain.method}, expected 0 "
                "by inverse_cloze: a transformer's tokens cannot be cut; use --config transformer"
            )
        for name, dims in self._all_dims.items():
            if any(d < 1 for d in dims):
                raise ConfigError(f"{name} are {dims}, expected 1 or more each")
        if max(self.matryoshka_dims, default=0) > self.tower.dim:
            raise ConfigError(
                f"matryoshka_dims are {list(self.matryoshka_dims)}, expected at most tower.dim "
                f"({self.tower.dim})"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values."""
        return {**asdict(self), **self._all_dims}

    @property
    def _all_dims(self) -> dict[str, list[int]]:
        return {name: list(getattr(self, name)) for name in ("pca_dims", "matryoshka_dims")}


class Phase(NamedTuple):
    """One objective and how long to follow it.

    Attributes:
        name: for logs.
        sampler: where batches come from.
        loss: of a batch in vectors.
        epochs: at most.
        batch_size: at most.
        learning_rate: the peak.
        patience: epochs without a better recall@10 before stopping and going back to the best;
            None never stops and keeps the last.
        margin: of a triplet loss, for the collapse check.
        chunk_size: texts in a tower at a time; 0 for the whole batch.
        skip_only: recurrent towers learn their skip path alone.
    """

    name: str
    sampler: Sampler
    loss: Loss
    epochs: int
    batch_size: int
    learning_rate: float
    patience: int | None = None
    margin: float | None = None
    chunk_size: int = 0
    skip_only: bool = False


class DevResult(NamedTuple):
    """What evaluation says: metrics by name, and the passages' mean pairwise cosine."""

    metrics: dict[str, float]
    cosine: float


@dataclass
class Trainer:
    """Takes towers through phases, checkpointing after every epoch.

    Attributes:
        towers: what is trained, in place.
        evaluate: says how good the towers are on dev.
        folder: where checkpoints go.
        tracker: where records go.
        seed: of the shuffles and spans.
        say: gets a line of news after every epoch.
    """

    towers: TwoTower
    evaluate: Callable[[], DevResult]
    folder: RunFolder
    tracker: Tracker
    seed: int
    say: Callable[[str], None] = lambda line: None

    def run(self, phases: list[Phase], resumed: Checkpoint | None = None) -> None:
        """Train through all phases, from the start or from where a checkpoint stopped."""
        start = resumed.progress if resumed else Progress()
        for number in range(start.phase, len(phases)):
            checkpoint = resumed if number == start.phase else None
            if phases[number].epochs:  # ranking dev can take minutes
                self._run_phase(number, phases[number], resumed=checkpoint)

    def _run_phase(self, number: int, phase: Phase, *, resumed: Checkpoint | None) -> None:
        self.towers.skip_only(phase.skip_only)
        optimizer = torch.optim.Adam(self.towers.parameters(), lr=phase.learning_rate, fused=True)
        state, best = self._begin(number, phase, optimizer=optimizer, resumed=resumed)
        while state.epoch < phase.epochs and not _is_stale(state, phase):
            started = time.perf_counter()
            rng = np.random.default_rng([self.seed, number, state.epoch])
            loss = run_epoch(self.towers, phase, optimizer, epoch=state.epoch, rng=rng)
            seconds = round(time.perf_counter() - started, 3)
            result = self.evaluate()
            _check_collapse(phase, loss=loss, cosine=result.cosine)
            record = {"phase": phase.name, "epoch": state.epoch + 1, "loss": round(loss, 6)}
            measured = {**result.metrics, "cosine": result.cosine, "seconds": seconds}
            self.tracker.log({**record, **measured})
            state = state._replace(epoch=state.epoch + 1, records=self.tracker.count)
            self.say(
                f"{phase.name} {state.epoch}/{phase.epochs}: loss {loss:.3f}, "
                f"dev recall@10 {result.metrics['recall@10']:.3f}"
            )
            if phase.patience is None or result.metrics["recall@10"] > state.best:
                state = state._replace(best=result.metrics["recall@10"], best_epoch=state.epoch)
                best = self.towers.arrays()
            self._save(state, optimizer=optimizer, best=best if phase.patience is not None else {})
        self.towers.load_arrays(best)
        self._save(Progress(phase=number + 1, records=self.tracker.count), optimizer=None, best={})

    def _begin(
        self,
        number: int,
        phase: Phase,
        *,
        optimizer: torch.optim.Adam,
        resumed: Checkpoint | None,
    ) -> "_Begun":
        if resumed is None or resumed.progress.epoch == 0:
            best = self.evaluate().metrics["recall@10"] if phase.patience is not None else -1.0
            return _Begun(Progress(phase=number, best=best), self.towers.arrays())
        restore_optimizer(optimizer, self.towers, arrays=resumed.part("adam"))
        return _Begun(resumed.progress, resumed.part("best") or self.towers.arrays())

    def _save(self, state: Progress, *, optimizer: torch.optim.Adam | None, best: Arrays) -> None:
        adam = optimizer_arrays(optimizer, self.towers) if optimizer else {}
        arrays = parts(towers=self.towers.arrays(), best=best, adam=adam)
        self.folder.save(Checkpoint(state, arrays))


class _Begun(NamedTuple):
    """Progress at the start of a phase and the best towers so far."""

    state: Progress
    best: Arrays


def run_epoch(
    towers: TwoTower,
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    *,
    epoch: int,
    rng: np.random.Generator,
) -> float:
    """Take the towers once through a phase's examples and return the mean loss.

    Args:
        towers: what is trained, in place.
        phase: the objective.
        optimizer: of the towers' parameters.
        epoch: which of the phase's epochs this is, from 0; it decides the rate.
        rng: of the order and of what the sampler draws.
    """
    per_epoch = batches_per_epoch(phase.sampler.size, phase.batch_size)
    batches = epoch_batches(phase.sampler, batch_size=phase.batch_size, rng=rng)
    label = f"{phase.name} {epoch + 1}/{phase.epochs}"
    total = 0.0
    for i, batch in enumerate(progress_bar(batches, label=label, total=per_epoch)):
        step = epoch * per_epoch + i
        rate = rate_factor(step, per_epoch * phase.epochs) * phase.learning_rate
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        total += backward(towers, batch, loss=phase.loss, chunk_size=phase.chunk_size)
        torch.nn.utils.clip_grad_norm_(towers.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
    return total / per_epoch


def train_quietly(towers: TwoTower, phase: Phase, *, seed: int) -> None:
    """Take the towers through all epochs of a phase, without evaluation or checkpoints."""
    towers.skip_only(phase.skip_only)
    optimizer = torch.optim.Adam(towers.parameters(), lr=phase.learning_rate, fused=True)
    for epoch in range(phase.epochs):
        rng = np.random.default_rng([seed, epoch])
        run_epoch(towers, phase, optimizer, epoch=epoch, rng=rng)


def _is_stale(state: Progress, phase: Phase) -> bool:
    return phase.patience is not None and state.epoch - state.best_epoch >= phase.patience


def _check_collapse(phase: Phase, *, loss: float, cosine: float) -> None:
    """Stop when all vectors point one way, the classic failure of the triplet loss.

    A loss at the margin means that positive and negative score alike.
    """
    if not np.isfinite(loss):
        raise TrainingError(
            f"{phase.name}: the loss is {loss}; lower {phase.name}.learning_rate "
            f"(now {phase.learning_rate})"
        )
    at_margin = phase.margin is not None and abs(loss - phase.margin) <= 0.01 * phase.margin
    if cosine < COLLAPSED_COSINE and not (at_margin and cosine > COLLAPSED_COSINE / 2):
        return
    raise TrainingError(
        f"{phase.name} collapsed: loss {loss:.4f}, mean cosine between passages {cosine:.3f} "
        f"(all vectors are nearly the same); use labelled.loss in_batch, lower "
        f"{phase.name}.learning_rate (now {phase.learning_rate}) or a larger batch_size"
    )
