"""From a batch to gradients: at once, or in chunks where the batch does not fit into memory."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from two_tower.models.examples import Batch
from two_tower.models.losses import Encoded, Loss
from two_tower.models.tokenizer import TokenRows
from two_tower.models.tokens import Tokens
from two_tower.models.towers import TwoTower


def batch_loss(towers: TwoTower, batch: Batch, *, loss: Loss) -> Tensor:
    """Encode a batch with both towers and return its scalar loss."""
    device = next(towers.parameters()).device
    queries = encode(towers.query, batch.queries, device=device)
    passages = encode(towers.passage, batch.passages, device=device)
    return loss(encoded_batch(batch, queries, passages))


def encode(tower: nn.Module, rows: TokenRows, *, device: torch.device) -> Tensor:
    """Return (n, dim) float32 with gradients; on CUDA the tower itself computes in bfloat16."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        vectors: Tensor = tower(Tokens.of(rows, device))
    return vectors.float()


def encoded_batch(batch: Batch, queries: Tensor, passages: Tensor) -> Encoded:
    """Put a batch's masked cells and margins beside its vectors."""
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
    total = loss(encoded_batch(batch, queries, passages))
    total.backward()  # type: ignore[no-untyped-call]
    for side, vectors in zip(sides, (queries, passages), strict=True):
        if vectors.grad is not None:
            side.backward(vectors.grad)
    return total.item()


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
                encoded.append(encode(self._tower, chunk, device=self._device))
        return torch.cat(encoded)

    def backward(self, gradients: Tensor) -> None:
        """Pass (n, dim) gradients of the vectors on to the tower's parameters."""
        after = _RandomState.now(self._device)
        start = 0
        for chunk, state in zip(self._chunks, self._states, strict=True):
            state.restore(self._device)
            vectors = encode(self._tower, chunk, device=self._device)
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
