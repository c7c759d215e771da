"""The one loop that all phases of a training run go through."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from two_tower.models.console import progress as progress_bar
from two_tower.models.errors import TrainingError
from two_tower.models.examples.corpus import Notify
from two_tower.models.examples.pairs import Batch, Sampler, batches_per_epoch, epoch_batches
from two_tower.models.networks.tokens import Tokens
from two_tower.models.networks.towers import TwoTower
from two_tower.models.objectives.losses import Encoded, Loss
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
    """Takes towers through phases, checkpointing after every epoch.

    Attributes:
        towers: what is trained, in place.
        evaluate: gives the towers' metrics on dev, and the passages' mean pairwise `cosine`.
        folder: where checkpoints go.
        tracker: where records go.
        seed: of the shuffles and spans.
        notify: gets a line of news after every epoch.
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
            checkpoint = resumed if number == start.phase else None
            if phases[number].epochs:  # ranking dev can take minutes
                self._run_phase(number, phases[number], resumed=checkpoint)

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
            recall = metrics["recall@10"]
            self.notify(
                f"{phase.name} {state.epoch}/{phase.epochs}: loss {loss:.3f}, "
                f"dev recall@10 {recall:.3f}"
            )
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
        total += backward(towers, batch, loss=phase.loss, chunk_size=phase.chunk_size)
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


def backward(towers: TwoTower, batch: Batch, *, loss: Loss, chunk_size: int = 0) -> float:
    """Add the gradients of a batch's loss to the towers' parameters and return the loss.

    With a `chunk_size`, at most so many texts of each side are in a tower at a time, and the
    gradients are the same up to rounding: encode all chunks without gradients, take the loss's
    gradient with respect to the vectors, then encode each chunk again and pass its part back.
    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"
    (GradCache), 2021, arXiv:2101.06983.
    """
    if not chunk_size:
        total = batch_loss(towers, batch, loss=loss)
        total.backward()  # type: ignore[no-untyped-call]
        return total.item()
    sides = [
        _ChunkedSide(towers.query, batch.queries, chunk_size),
        _ChunkedSide(towers.passage, batch.passages, chunk_size),
    ]
    queries, passages = (side.encode().requires_grad_() for side in sides)
    total = loss(_encoded_batch(batch, queries, passages))
    total.backward()  # type: ignore[no-untyped-call]
    for side, vectors in zip(sides, (queries, passages), strict=True):
        if vectors.grad is not None:
            side.backward(vectors.grad)
    return total.item()


def batch_loss(towers: TwoTower, batch: Batch, *, loss: Loss) -> Tensor:
    """Encode a batch with both towers and return its scalar loss."""
    device = next(towers.parameters()).device
    queries = _encode(towers.query, batch.queries, device=device)
    passages = _encode(towers.passage, batch.passages, device=device)
    return loss(_encoded_batch(batch, queries, passages))


def _encode(tower: nn.Module, rows: TokenRows, *, device: torch.device) -> Tensor:
    """Return (n, dim) float32 with gradients; on CUDA the tower itself computes in bfloat16."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        vectors: Tensor = tower(Tokens.of(rows, device))
    return vectors.float()


def _encoded_batch(batch: Batch, queries: Tensor, passages: Tensor) -> Encoded:
    """Put a batch's masked cells, margins and similarities beside its vectors."""
    device = queries.device
    masked = torch.zeros(len(queries), len(passages), dtype=torch.bool, device=device)
    if len(batch.masked):
        rows, columns = torch.from_numpy(batch.masked.T).to(device)
        masked[rows, columns] = True
    margins, similarities = (
        None if array is None else torch.from_numpy(array).to(device)
        for array in (batch.margins, batch.similarities)
    )
    return Encoded(queries, passages, masked, margins, similarities)


class _ChunkedSide:
    """One tower over one side of a batch, in chunks; dropout is the same both times."""

    def __init__(self, tower: nn.Module, rows: TokenRows, chunk_size: int) -> None:
        self._tower = tower
        self._device = next(tower.parameters()).device
        count = len(rows.offsets) - 1
        starts = range(0, count, chunk_size)
        self._chunks = [rows.take(np.arange(i, min(i + chunk_size, count))) for i in starts]
        self._states: list[_RandomState] = []

    def encode(self) -> Tensor:
        """Return all vectors, without gradients."""
        encoded = []
        with torch.no_grad():
            for chunk in self._chunks:
                self._states.append(_RandomState.now(self._device))
                encoded.append(_encode(self._tower, chunk, device=self._device))
        return torch.cat(encoded)

    def backward(self, gradients: Tensor) -> None:
        """Pass (n, dim) gradients of the vectors on to the tower's parameters."""
        after = _RandomState.now(self._device)
        start = 0
        for chunk, state in zip(self._chunks, self._states, strict=True):
            state.restore(self._device)
            vectors = _encode(self._tower, chunk, device=self._device)
            vectors.backward(gradients[start : start + len(vectors)])  # type: ignore[no-untyped-call]
            start += len(vectors)
        after.restore(self._device)


class _RandomState(NamedTuple):
    """Torch's random generators, on the CPU and on the device."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "_RandomState":
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda)

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


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
