"""Token rows as tensors: what towers read."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from two_tower.models.text.tokenizer import TokenRows


class Tokens(NamedTuple):
    """Token rows as tensors on a device: ids (total,) and the start of each row (n,), int64."""

    ids: Tensor
    starts: Tensor

    @classmethod
    def of(cls, rows: TokenRows, device: torch.device) -> "Tokens":
        """Copy token rows to a device."""
        ids, starts = torch.from_numpy(rows.ids), torch.from_numpy(rows.offsets[:-1])
        return cls(ids.to(device), starts.to(device))

    @property
    def lengths(self) -> Tensor:
        """(n,) int64, tokens per row."""
        return torch.diff(self.starts, append=self.starts.new_tensor([len(self.ids)]))

    def take(self, index: Tensor) -> "Tokens":
        """Return the rows at `index` (n,) int64, in that order."""
        lengths = self.lengths[index]
        starts = lengths.cumsum(0) - lengths
        shift = torch.repeat_interleave(self.starts[index] - starts, lengths)
        return Tokens(self.ids[torch.arange(len(shift), device=shift.device) + shift], starts)

    def weighted_sums(self, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return (n, dim): sum_t w_t e_t per row; vectors (vocab, dim), weights (vocab,)."""
        return functional.embedding_bag(
            self.ids,
            vectors,
            self.starts,
            mode="sum",
            # Indexing with [] would do the same, but its gradient adds up in any order on a CPU,
            # and equal seeds must give equal bundles.
            per_sample_weights=weights.index_select(0, self.ids),
        )
