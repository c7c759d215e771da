"""The one loop that all phases of a training run go through."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from two_tower.models.errors import TrainingError
from two_tower.models.examples.corpus import Notify
from two_tower.models.examples.pairs import Batch, Sampler, batches_per_epoch, epoch_batches
from two_tower.models.networks.tokens import Tokens
from two_tower.models.networks.towers import TwoTower, device_of
from two_tower.models.networks.transformer import TransformerTower, transformer_autocast
from two_tower.models.objectives.losses import Encoded, Loss
from two_tower.models.progress import progress as progress_bar
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.training.checkpoint import Arrays, Checkpoint, Progress, RunFolder, parts
from two_tower.models.training.tracking import Tracker

WARMUP_SHARE = 0.05
MAX_GRADIENT_NORM = 1.0
COLLAPSED_COSINE = 0.95


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


@dataclass
class Trainer:
    """Takes towers through phases, in place, with a checkpoint after every epoch.

    `evaluate` gives the towers' metrics on dev, and the passages' mean pairwise `cosine`.
    """

    towers: TwoTower
    evaluate: Callable[[], dict[str, float]]
    folder: RunFolder
    tracker: Tracker
    seed: int
    notify: Notify = lambda line: None

    def run(self, phases: list[Phase], resumed: Checkpoint | None = None) -> None:
        """Train through all phases, from the start or from where a checkpoint stopped."""
        start = resumed.progress if resumed else Progress()
        for number in range(start.phase, len(phases)):
            saved = resumed if number == start.phase else None
            if phases[number].epochs:  # else not even dev is ranked, which can take minutes
                self._run_phase(number, phases[number], resumed=saved)

    def _run_phase(self, number: int, phase: Phase, *, resumed: Checkpoint | None) -> None:
        self.towers.skip_only(phase.skip_only)
        optimizer = torch.optim.Adam(self.towers.parameters(), lr=phase.learning_rate, fused=True)
        stops_early = phase.patience is not None
        if resumed is None or resumed.progress.epoch == 0:
            recall = self.evaluate()["recall@10"] if stops_early else -1.0
            state, best = Progress(phase=number, best=recall), self.towers.arrays()
        else:
            restore_optimizer(optimizer, self.towers, arrays=resumed.part("adam"))
            state, best = resumed.progress, resumed.part("best") or self.towers.arrays()
        while state.epoch < phase.epochs and not _is_stale(state, phase):
            started = time.perf_counter()
            rng = np.random.default_rng([self.seed, number, state.epoch])
            loss = run_epoch(self.towers, phase, optimizer=optimizer, epoch=state.epoch, rng=rng)
            seconds = round(time.perf_counter() - started, 3)
            metrics = self.evaluate()
            _check_collapse(phase, loss=loss, cosine=metrics["cosine"])
            record = {"phase": phase.name, "epoch": state.epoch + 1, "loss": round(loss, 6)}
            self.tracker.log({**record, **metrics, "seconds": seconds})
            state = state._replace(epoch=state.epoch + 1, records=self.tracker.count)
            recall = metrics.get("recall@10", np.nan)  # without a dev query there is none
            shown = "" if np.isnan(recall) else f", dev recall@10 {recall:.3f}"
            self.notify(f"{phase.name} {state.epoch}/{phase.epochs}: loss {loss:.3f}{shown}")
            if not stops_early or recall > state.best:
                state = state._replace(best=recall, best_epoch=state.epoch)
                best = self.towers.arrays()
            self._save(state, optimizer=optimizer, best=best if stops_early else {})
        self.towers.load_arrays(best)
        self._save(Progress(phase=number + 1, records=self.tracker.count), optimizer=None, best={})

    def _save(self, state: Progress, *, optimizer: torch.optim.Adam | None, best: Arrays) -> None:
        adam = optimizer_arrays(optimizer, self.towers) if optimizer else {}
        arrays = parts(towers=self.towers.arrays(), best=best, adam=adam)
        self.folder.save(Checkpoint(state, arrays))


def train_quietly(towers: TwoTower, phase: Phase, *, seed: int) -> None:
    """Take the towers through all epochs of a phase, without evaluation or checkpoints."""
    towers.skip_only(phase.skip_only)
    optimizer = torch.optim.Adam(towers.parameters(), lr=phase.learning_rate, fused=True)
    for epoch in range(phase.epochs):
        rng = np.random.default_rng([seed, epoch])
        run_epoch(towers, phase, optimizer=optimizer, epoch=epoch, rng=rng)


def run_epoch(
    towers: TwoTower,
    phase: Phase,
    *,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    rng: np.random.Generator,
) -> float:
    """Take the towers once through a phase's examples and return the mean loss.

    The epoch, from 0, decides the rate; the order and all draws come from `rng`.
    """
    per_epoch = batches_per_epoch(phase.sampler.size, phase.batch_size)
    batches = epoch_batches(phase.sampler, batch_size=phase.batch_size, rng=rng)
    label = f"{phase.name} {epoch + 1}/{phase.epochs}"
    total = 0.0
    for i, batch in enumerate(progress_bar(batches, label=label, total=per_epoch)):
        share = rate_factor(epoch * per_epoch + i, per_epoch * phase.epochs)
        prepare_step(optimizer, rate=share * phase.learning_rate)
        loss = batch_loss(towers, batch, loss=phase.loss, chunk_size=phase.chunk_size)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        finish_step(optimizer, towers)
    return total / per_epoch


def prepare_step(optimizer: torch.optim.Optimizer, *, rate: float) -> None:
    """Set the learning rate and forget the last gradients."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()


def finish_step(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Clip the gradients of the module's parameters and change them."""
    torch.nn.utils.clip_grad_norm_(module.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()


def rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak rate at `step` of `steps`: linear warm-up, then linear decay."""
    warmup = max(1, round(steps * WARMUP_SHARE))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup + 1))


def optimizer_arrays(optimizer: torch.optim.Optimizer, module: nn.Module) -> Arrays:
    """Return Adam's state as plain arrays."""
    return {
        f"{name}.{key}": value.detach().cpu().numpy().copy()
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, *, arrays: Arrays
) -> None:
    """Set Adam's state to what `optimizer_arrays` returned."""
    for name, parameter in module.named_parameters():
        if f"{name}.step" not in arrays:
            continue  # it took no part in the phase so far
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = torch.from_numpy(np.array(arrays[f"{name}.{key}"]))
            optimizer.state[parameter][key] = value.to(parameter.device)


def batch_loss(towers: TwoTower, batch: Batch, *, loss: Loss, chunk_size: int = 0) -> Tensor:
    """Encode a batch with both towers and return its scalar loss.

    With a `chunk_size`, the gradients need memory for so many texts at a time only: each chunk is
    encoded again, with the same dropout, when its gradients are due (Chen et al., "Training Deep
    Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174). They are the same up to rounding.
    """
    queries = _encode(towers.query, batch.queries, chunk_size=chunk_size)
    passages = _encode(towers.passage, batch.passages, chunk_size=chunk_size)
    return loss(_encoded_batch(batch, queries, passages))


def _encode(tower: nn.Module, rows: TokenRows, *, chunk_size: int) -> Tensor:
    """Return (n, dim) float32 with gradients.

    On CUDA the tower itself computes in bfloat16, a transformer also on a CPU that can.
    """
    device, count = device_of(tower), len(rows.offsets) - 1
    half = device.type == "cuda" or isinstance(tower, TransformerTower)
    with transformer_autocast(device) if half else nullcontext():
        if not chunk_size:
            vectors: Tensor = tower(Tokens.of(rows, device))
            return vectors.float()
        starts = range(0, count, chunk_size)
        chunks = [rows.take(np.arange(i, min(i + chunk_size, count))) for i in starts]
        encoded = [
            checkpoint(tower, Tokens.of(chunk, device), use_reentrant=False) for chunk in chunks
        ]
    return torch.cat(encoded).float()


def _encoded_batch(batch: Batch, queries: Tensor, passages: Tensor) -> Encoded:
    """Put what a batch brings beside its vectors."""
    device = queries.device
    masked = torch.zeros(len(queries), len(passages), dtype=torch.bool, device=device)
    if len(batch.masked):
        rows, columns = torch.from_numpy(batch.masked.T).to(device)
        masked[rows, columns] = True
    margins, similarities, targets = (
        None if array is None else torch.from_numpy(array).to(device)
        for array in (batch.margins, batch.similarities, batch.targets)
    )
    return Encoded(queries, passages, masked, margins, similarities, targets)


def _is_stale(state: Progress, phase: Phase) -> bool:
    return phase.patience is not None and state.epoch - state.best_epoch >= phase.patience


def _check_collapse(phase: Phase, *, loss: float, cosine: float) -> None:
    """Stop when all vectors point one way, the classic failure of the triplet loss.

    A loss at the margin means that positive and negative score alike.

    Raises:
        TrainingError: they do, or the loss is no number.
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
