"""Recurrent towers once training is over: what `networks.recurrent` computes, with numpy alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from two_tower.models.bundle.files import CONFIG, TOWERS, check_shapes
from two_tower.models.bundle.recurrence import (
    PARAMETERS,
    Cell,
    Recurrence,
    distinct,
    read_order,
    recurrence_shapes,
)
from two_tower.models.config import from_mapping
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.networks.tower_config import RnnConfig, TowerConfig
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.threads import one_blas_thread
from two_tower.models.vectors import FloatArray, normalized

READ_AT_ONCE = 512
"""Rows of like length, whose tokens' part in the gates is computed together."""


class RecurrentEncoder:
    """A recurrent tower that only encodes, rows of like length side by side."""

    def __init__(self, cell: Cell, config: RnnConfig, arrays: Mapping[str, FloatArray]) -> None:
        """Keep a tower's parameters, by the names that `networks.recurrent.RnnTower` gives them."""
        self._config = config
        self._weighted = arrays["vectors"] * arrays["weights"][:, None]  # (vocab, dim)
        self._projection = arrays.get("projection.weight")
        directions = ("onward", "back") if config.bidirectional else ("onward",)
        parameters = [{name: arrays[f"{d}.{name}"] for name in PARAMETERS} for d in directions]
        self._network = Recurrence(cell, parameters)
        self.dim = int(self._weighted.shape[1])

    def encode(self, rows: TokenRows, *, threads: int = 0) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on one core."""
        order = np.argsort(rows.lengths, kind="stable")
        vectors = np.empty((len(order), self.dim), np.float32)
        with one_blas_thread():
            for start in range(0, len(order), READ_AT_ONCE):
                index = order[start : start + READ_AT_ONCE]
                vectors[index] = self._encode(rows.take(index))
        return normalized(vectors)

    def _encode(self, rows: TokenRows) -> FloatArray:
        states = self._pooled(rows)
        if self._projection is not None:
            states = states @ self._projection.T
        if not self._config.skip:
            return states
        texts = np.split(rows.ids, rows.offsets[1:-1])
        sums = np.stack([self._weighted[ids].sum(axis=0) for ids in texts])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        result: FloatArray = sums / np.maximum(lengths, np.float32(1e-12)) + states
        return result

    def _pooled(self, rows: TokenRows) -> FloatArray:
        """Return (n, width), the pooled states of each row."""
        occurring, tokens = distinct(rows.ids, count=len(self._weighted))
        table = self._network.table(self._weighted[occurring])
        _, directions, _, hidden = table.shape
        pooled = np.empty((len(rows.lengths), self._config.width), np.float32)
        pooling = self._config.pooling
        for steps in read_order(rows.lengths, directions=directions):
            shape = (directions, len(steps.order), hidden)
            best = np.full(shape, -np.inf if pooling == "max" else 0, np.float32)
            for count, state in self._network.read(table, tokens, steps):
                part = best[:, :count]
                if pooling == "max":
                    np.maximum(part, state, out=part)
                elif pooling == "mean":
                    part += state
                else:
                    part[...] = state  # a row's last state is the last one written
            pooled[steps.order] = best.swapaxes(0, 1).reshape(len(steps.order), -1)
        if pooling == "mean":
            pooled /= rows.lengths[:, None]
        return pooled


def open_recurrent_encoder(
    config: Mapping[str, Any], arrays: Mapping[str, FloatArray], *, side: str
) -> RecurrentEncoder:
    """Rebuild a recurrent tower.

    Args:
        config: the content of config.json.
        arrays: the content of towers.safetensors.
        side: `query` or `passage`.

    Raises:
        BundleError: a parameter is missing or of another shape than the configuration says.
    """
    try:
        settings = from_mapping(TowerConfig, config["tower"], where="tower.")
    except ConfigError as error:
        raise BundleError(f"{CONFIG} is broken ({error}); train the bundle again") from None
    assert settings.kind in ("gru", "lstm"), "only bundles of recurrent towers are read here"
    prefix = f"{side}."
    own = {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}
    vocab_size = len(own["vectors"]) if "vectors" in own and own["vectors"].ndim else 0
    shapes = expected_shapes(settings, vocab_size=vocab_size)
    check_shapes(own, shapes, problem=f"the {side} tower in {TOWERS} does not fit {CONFIG}")
    return RecurrentEncoder(settings.kind, settings.rnn, own)


def expected_shapes(config: TowerConfig, *, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of one tower, by name."""
    assert config.kind in ("gru", "lstm")
    rnn = config.rnn
    shapes: dict[str, tuple[int, ...]] = {
        "vectors": (vocab_size, config.dim),
        "weights": (vocab_size,),
    }
    for direction in ("onward", "back") if rnn.bidirectional else ("onward",):
        of_network = recurrence_shapes(config.kind, width=config.dim, hidden=rnn.hidden)
        shapes |= {f"{direction}.{name}": shape for name, shape in of_network.items()}
    if rnn.projection:
        shapes["projection.weight"] = (config.dim, rnn.width)
    return shapes
