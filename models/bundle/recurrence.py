"""GRU and LSTM with numpy: rows of tokens side by side, longest first, without padding.

A step reads the next token of every row that still has one. Both directions take it together: the
second reads each row from its end. What the input contributes to the gates is computed once for
every token that occurs, and looked up.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from two_tower.models.vectors import FloatArray, IntArray

Cell = Literal["gru", "lstm"]

GATES: Mapping[Cell, tuple[int, ...]] = {"gru": (0, 1, 2), "lstm": (0, 1, 3, 2)}
"""Where torch keeps each gate: sigmoids first (reset, update; input, forget, output), tanh last."""

SIDE_BY_SIDE = 128

PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class Steps(NamedTuple):
    """The order in which the tokens of some rows are read.

    Attributes:
        order: (n,) int64, the rows, longest first.
        counts: (longest,) int64, how many of them, the first so many, have a token in each step.
        places: (directions, total) int64, which token is read, step by step.
    """

    order: IntArray
    counts: IntArray
    places: IntArray


def read_order(lengths: IntArray, *, directions: int) -> Iterator[Steps]:
    """Lay out rows of `lengths` (n,) int64, which stand end to end: rows of like length together.

    Raises:
        ValueError: a row has no token.
    """
    if not lengths.all():
        raise ValueError("a row has no token, expected at least one in each")
    longest_first = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths)
    for start in range(0, len(lengths), SIDE_BY_SIDE):
        order = longest_first[start : start + SIDE_BY_SIDE]
        steps = np.arange(lengths[order[0]])[:, None]
        step, at = np.nonzero(steps < lengths[order])  # (total,) each
        onward = (ends - lengths)[order][at] + step
        back = (ends - 1)[order][at] - step
        yield Steps(order, np.bincount(step), np.stack([onward, back][:directions]))


class Recurrence:
    """The network of a trained `torch.nn.GRU` or `LSTM`, one for each direction.

    GRU: Cho et al., 2014, in torch's form. LSTM: Hochreiter and Schmidhuber, 1997, with a forget
    gate. A sigmoid is computed as (1 + tanh(x / 2)) / 2, its halves in the weights.
    """

    def __init__(self, cell: Cell, directions: Sequence[Mapping[str, FloatArray]]) -> None:
        """Keep the parameters, by torch's names; shapes are checked by whoever reads them."""
        self._cell = cell
        gates = GATES[cell]
        count = len(gates)

        def stacked(name: str) -> FloatArray:
            """Return (gates, directions, hidden, …)."""
            both = np.stack([direction[name] for direction in directions])
            shape = len(both), count, both.shape[1] // count, *both.shape[2:]
            parts = both.reshape(shape).swapaxes(0, 1)[list(gates)]
            parts[:-1] *= np.float32(0.5)
            return parts

        inputs, states, bias, state_bias = map(stacked, PARAMETERS)
        self._inputs = inputs.swapaxes(2, 3).copy()  # (gates, directions, width, hidden)
        self._states = states.swapaxes(2, 3).copy()  # (gates, directions, hidden, hidden)
        self._inner_bias = state_bias[-1, :, None].copy()  # (directions, 1, hidden)
        if cell == "gru":
            state_bias[-1] = 0  # it stands within the reset gate's product
        self._bias = (bias + state_bias)[:, :, None]  # (gates, directions, 1, hidden)

    def table(self, vectors: FloatArray) -> FloatArray:
        """Return (gates, directions, n, hidden): what inputs (n, width) contribute to the gates."""
        table: FloatArray = np.matmul(vectors, self._inputs)
        table += self._bias
        return table

    def read(
        self, table: FloatArray, tokens: IntArray, steps: Steps
    ) -> Iterator[tuple[int, FloatArray]]:
        """Yield (rows, states (directions, rows, hidden)) of every step, valid until the next.

        Args:
            table: what `table` returned for the inputs.
            tokens: (total,) int64, which input each token is.
            steps: the order of reading.
        """
        gates, directions, inputs, hidden = table.shape
        flat = table.reshape(-1, hidden)
        first = np.arange(gates * directions).reshape(gates, directions, 1) * inputs
        ids = tokens[steps.places]  # (directions, total)
        rows = len(steps.order)
        given, sums = np.empty((2, gates * directions * rows, hidden), np.float32)
        state, cell = np.zeros((2, directions, rows, hidden), np.float32)
        advance = self._gru if self._cell == "gru" else self._lstm
        at = 0
        for count in steps.counts.tolist():
            shape, size = (gates, directions, count, hidden), gates * directions * count
            known, added = given[:size].reshape(shape), sums[:size].reshape(shape)
            flat.take(first + ids[:, at : at + count], axis=0, out=known, mode="clip")
            np.matmul(state[:, :count], self._states, out=added)
            advance(known, added, state[:, :count], cell[:, :count])
            yield count, state[:, :count]
            at += count

    def _gru(self, inputs: FloatArray, sums: FloatArray, state: FloatArray, _: FloatArray) -> None:
        """Go on to z h + (1 - z) c, c = tanh(x + r (U h + b)); all arrays (…, rows, hidden)."""
        half = np.float32(0.5)
        sigmoids, (reset, update, inner) = sums[:2], sums
        sigmoids += inputs[:2]
        np.tanh(sigmoids, out=sigmoids)
        sigmoids += 1
        sigmoids *= half
        inner += self._inner_bias
        inner *= reset
        inner += inputs[2]
        np.tanh(inner, out=inner)
        state -= inner
        state *= update
        state += inner

    @staticmethod
    def _lstm(inputs: FloatArray, sums: FloatArray, state: FloatArray, cell: FloatArray) -> None:
        """Go on to c = f c + i g, h = o tanh(c); all arrays (…, rows, hidden)."""
        sums += inputs
        np.tanh(sums, out=sums)
        sums[:3] += 1
        sums[:3] *= np.float32(0.5)
        entry, forget, output, new = sums
        cell *= forget
        new *= entry
        cell += new
        np.tanh(cell, out=state)
        state *= output


def distinct(ids: IntArray, *, count: int) -> tuple[IntArray, IntArray]:
    """Return the ids that occur, ascending, and the place of each of `ids` (< `count`) there."""
    places = np.zeros(count, np.int64)
    places[ids] = 1
    occurring = np.flatnonzero(places)
    places[occurring] = np.arange(len(occurring))
    return occurring, places[ids]


def recurrence_shapes(cell: Cell, *, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one direction's parameters, by torch's names."""
    rows = len(GATES[cell]) * hidden
    shapes = (rows, width), (rows, hidden), (rows,), (rows,)
    return dict(zip(PARAMETERS, shapes, strict=True))
