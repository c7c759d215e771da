"""Recurrent towers: a GRU or LSTM reads the tokens in order.

Rows are sorted by length, cut into buckets and padded on the right within a bucket. A network that
reads left to right has seen no padding when it reaches a row's last token, and the second direction
reads each row reversed, so padding never changes a vector.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from two_tower.models.networks.tokens import Tokens
from two_tower.models.networks.tower_config import Pooling, RnnConfig
from two_tower.models.vectors import FloatArray

BUCKET = 64
"""Rows that are read side by side; on a CPU 64 trains faster than 256 and wastes less padding."""


class RnnTower(nn.Module):
    """Pooled states of a GRU or LSTM over weighted token vectors, projected and L2-normalised.

    Without skip v = n(P pool(h)), with it v = n(n(sum_t w_t e_t) + P pool(h)), where n divides by
    the length and h are the states after w_1 e_1, w_2 e_2, ... GRU: Cho et al., "Learning Phrase
    Representations using RNN Encoder-Decoder", 2014, arXiv:1406.1078. LSTM: Hochreiter and
    Schmidhuber, "Long Short-Term Memory", 1997.

    Attributes:
        skip_only: be the mean tower for now, as if P were zero.
    """

    def __init__(
        self,
        cell: Literal["gru", "lstm"],
        config: RnnConfig,
        *,
        vectors: FloatArray,
        weights: FloatArray,
        seed: int,
    ) -> None:
        """Make a network of `seed` over token vectors (vocab, dim) and token weights (vocab,)."""
        super().__init__()
        self.config = config
        self.skip_only = False
        dim = vectors.shape[1]
        self.vectors = nn.Parameter(torch.from_numpy(vectors.copy()))
        self.weights = nn.Parameter(torch.from_numpy(weights.copy()))
        make = nn.GRU if cell == "gru" else nn.LSTM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.onward = make(dim, config.hidden)
            self.back = make(dim, config.hidden) if config.bidirectional else None
            self.projection = (
                nn.Linear(config.width, dim, bias=False) if config.projection else None
            )
        for name, parameter in self.named_parameters():
            if ".bias_" in name:
                # Random biases would give all rows nearly one vector, as if they had collapsed.
                nn.init.zeros_(parameter)
        if config.skip and self.projection is not None:
            nn.init.zeros_(self.projection.weight)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (n, dim) float32, L2-normalised, one per row of `tokens`."""
        if not self.config.skip:
            return functional.normalize(self._states(tokens), dim=1)
        mean = functional.normalize(tokens.weighted_sums(self.vectors, self.weights), dim=1)
        if self.skip_only:
            return mean
        return functional.normalize(mean + self._states(tokens), dim=1)

    def _states(self, tokens: Tokens) -> Tensor:
        """Return (n, dim), the pooled and projected states of each row."""
        order = torch.argsort(tokens.lengths, stable=True)
        tokens = tokens.take(order)
        scale = self.weights.index_select(0, tokens.ids)[:, None]
        inputs = self.vectors.index_select(0, tokens.ids) * scale  # (total, dim)
        lengths = torch.split(tokens.lengths, BUCKET)
        # Splitting once keeps the backward pass linear; slices would each fill a whole gradient.
        parts = torch.split(inputs, [int(part.sum()) for part in lengths])
        pooled = torch.cat([self._read(x, n) for x, n in zip(parts, lengths, strict=True)])
        states = pooled.index_select(0, torch.argsort(order))
        return states if self.projection is None else self.projection(states)

    def _read(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return (rows, width), the pooled states of one bucket with inputs (total, dim)."""
        layout = Layout.of(lengths)
        pooled = []
        for network, places in ((self.onward, layout.onward), (self.back, layout.reversed)):
            if network is not None:
                padded = inputs.index_select(0, places.flatten()).view(*places.shape, -1)
                states: Tensor = network(padded)[0]  # (longest, rows, hidden)
                pooled.append(pool(states, layout, self.config.pooling))
        return torch.cat(pooled, dim=1)


class Layout(NamedTuple):
    """Where the tokens of a bucket stand when its rows are padded to the longest.

    Attributes:
        inside: (longest, rows) bool, false for padding.
        last: (rows,) int64, the place of each row's last token.
        onward: (longest, rows) int64, which input stands there; any one for padding.
        reversed: the same with each row read from its end.
    """

    inside: Tensor
    last: Tensor
    onward: Tensor
    reversed: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> "Layout":
        """Lay out rows of these lengths (rows,) int64, which stand end to end.

        Raises:
            ValueError: a row has no token.
        """
        if not bool((lengths > 0).all()):
            raise ValueError("a row has no token, expected at least one in each")
        step = torch.arange(int(lengths.max()), device=lengths.device)[:, None]
        inside, starts, last = step < lengths, lengths.cumsum(0) - lengths, lengths - 1
        onward = starts + torch.where(inside, step, 0)
        return cls(inside, last, onward, starts + torch.where(inside, last - step, 0))


def pool(states: Tensor, layout: Layout, pooling: Pooling) -> Tensor:
    """Return (rows, hidden) of (longest, rows, hidden) states, blind to padding."""
    if pooling == "last":
        place = layout.last[None, :, None].expand(1, -1, states.shape[2])
        return states.gather(0, place)[0]
    padding = ~layout.inside[:, :, None]
    if pooling == "max":
        return states.masked_fill(padding, -torch.inf).amax(dim=0)
    return states.masked_fill(padding, 0).sum(dim=0) / (layout.last + 1)[:, None]
