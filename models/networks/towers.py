"""Towers: modules that read token rows and return one vector per row.

A tower reads ragged rows (no padding), so padding cannot change a vector.
"""

from collections.abc import Mapping
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from two_tower.models.errors import ConfigError, TrainingError
from two_tower.models.networks.recurrent import RnnTower
from two_tower.models.networks.tokens import Tokens
from two_tower.models.networks.tower_config import TowerConfig
from two_tower.models.progress import progress
from two_tower.models.text.bm25 import inverse_frequency
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import FloatArray

ENCODE_BATCH = 1024

TOKEN_PARAMETERS = ("vectors", "weights")


class MeanTower(nn.Module):
    """Weighted mean of token vectors, L2-normalised: v = sum_t w_t e_t / |sum_t w_t e_t|.

    Both the vectors e (vocab, dim) and the weights w (vocab,) are learnt; w starts as the IDF
    (Arora et al., "A Simple but Tough-to-Beat Baseline for Sentence Embeddings", 2017, weigh
    tokens by a smooth inverse frequency).
    """

    def __init__(self, vectors: FloatArray, weights: FloatArray) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.from_numpy(vectors.copy()))
        self.weights = nn.Parameter(torch.from_numpy(weights.copy()))

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (n, dim) float32, L2-normalised, one per row of `tokens`."""
        # Normalising makes sum and mean the same.
        return functional.normalize(tokens.weighted_sums(self.vectors, self.weights), dim=1)


class FrozenVectors(nn.Module):
    """A passage tower that is a table: the vectors of documents that another encoder read.

    A document is a row of one token, its place in the table; nothing is learnt.
    """

    def __init__(self, vectors: FloatArray) -> None:
        """Take (n, dim) float32, L2-normalised."""
        super().__init__()
        self.vectors: Tensor
        self.register_buffer("vectors", torch.from_numpy(vectors))

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (n, dim) float32, L2-normalised, one per row of `tokens`."""
        return self.vectors[tokens.ids]


def make_tower(
    config: TowerConfig, *, vectors: FloatArray, weights: FloatArray, seed: int = 0
) -> MeanTower | RnnTower:
    """Make an untrained tower that reads tokens.

    Args:
        config: what it is.
        vectors: (vocab, dim) float32, where the token vectors start.
        weights: (vocab,) float32, where the token weights start.
        seed: of the network's random start.
    """
    if config.kind == "gru" or config.kind == "lstm":
        return RnnTower(config.kind, config.rnn, vectors=vectors, weights=weights, seed=seed)
    return MeanTower(vectors, weights)


class TwoTower(nn.Module):
    """A query tower and a passage tower; the same module twice where they are shared."""

    def __init__(self, query: nn.Module, passage: nn.Module) -> None:
        super().__init__()
        self.query = query
        self.passage = passage

    @classmethod
    def start(
        cls, config: TowerConfig, *, vectors: FloatArray, weights: FloatArray, seed: int = 0
    ) -> "TwoTower":
        """Make untrained towers, as `make_tower` does; both sides start alike."""
        make = partial(make_tower, config, vectors=vectors, weights=weights, seed=seed)
        query = make()
        return cls(query, query if config.shared else make())

    def skip_only(self, on: bool) -> None:
        """Let recurrent towers be their skip path alone; off undoes it."""
        for tower in (self.query, self.passage):
            if isinstance(tower, RnnTower):
                tower.skip_only = on

    def arrays(self) -> dict[str, FloatArray]:
        """Return copies of all parameters by name; shared ones once, under `query.`."""
        return {
            name: parameter.detach().cpu().numpy().copy()
            for name, parameter in self.named_parameters()
        }

    def load_arrays(self, arrays: dict[str, FloatArray]) -> None:
        """Set all parameters to what `arrays` returned before."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.from_numpy(arrays[name]))

    def load_start(self, arrays: Mapping[str, FloatArray]) -> None:
        """Begin where other towers ended: all parameters where they fit, else the tokens' only.

        Args:
            arrays: what `arrays` of those towers returned. Where they are shared and these are
                not, both sides begin as the shared one.

        Raises:
            TrainingError: token vectors or weights are of another shape.
        """
        of_passages = {name.replace("query.", "passage.", 1): arrays[name] for name in arrays}
        start = {**of_passages, **arrays}
        shapes = {name: tuple(parameter.shape) for name, parameter in self.named_parameters()}
        start_shapes = {name: start[name].shape if name in start else None for name in shapes}
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if start_shapes != shapes and name.split(".", 1)[1] not in TOKEN_PARAMETERS:
                    continue
                if start_shapes[name] != shapes[name]:
                    raise TrainingError(
                        f"the bundle to start from has {name} of {start_shapes[name]}, expected "
                        f"{shapes[name]}; set tower.dim to its width"
                    )
                parameter.copy_(torch.from_numpy(start[name]))


def encode_rows(tower: nn.Module, rows: TokenRows) -> Tensor:
    """Return (n, dim) float32, L2-normalised, on the tower's device, without gradients."""
    device = device_of(tower)
    if not len(rows.lengths):
        return torch.zeros(0, 0, device=device)
    order = np.argsort(rows.lengths, kind="stable")
    with torch.no_grad():
        encoded = [
            tower(Tokens.of(rows.take(order[i : i + ENCODE_BATCH]), device))
            for i in progress(range(0, len(order), ENCODE_BATCH), label="encoding")
        ]
        return torch.cat(encoded)[torch.from_numpy(np.argsort(order)).to(device)]


def device_of(tower: nn.Module) -> torch.device:
    """Return where a tower is, whether its arrays are learnt or not."""
    return next(chain(tower.parameters(), tower.buffers())).device


def choose_device(name: str) -> torch.device:
    """Return the torch device that `auto`, `cpu`, `cuda` or `cuda:<n>` means here.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdigit() or not number):
        raise ConfigError(f"device is {name!r}, expected auto, cpu or cuda")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {name}, but torch sees {torch.cuda.device_count()} CUDA devices; "
            "use --device auto"
        )
    return torch.device(name)


def token_idf(rows: TokenRows, *, vocab_size: int) -> FloatArray:
    """Return (vocab_size,) float32: each token's inverse document frequency, scaled to mean 1."""
    pairs = np.unique(rows.rows * vocab_size + rows.ids)
    rows_with_token = np.bincount(pairs % vocab_size, minlength=vocab_size)
    idf = inverse_frequency(len(rows.lengths), rows_with_token)
    scaled: FloatArray = (idf / idf.mean()).astype(np.float32)
    return scaled
