"""Towers: modules that read token rows and return one vector per row.

A tower reads ragged rows (no padding), so padding cannot change a vector.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ConfigError
from models.tokenizer import TokenRows

ENCODE_BATCH = 8192

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TowerConfig:
    """What the towers are.

    Attributes:
        kind: how tokens become one vector.
        dim: width of that vector.
        shared: whether queries and passages are read by the same tower.
    """

    kind: Literal["mean"] = "mean"
    dim: int = 256
    shared: bool = True

    def __post_init__(self) -> None:
        if self.kind != "mean":
            raise ConfigError(f"tower.kind is {self.kind!r}, expected mean")
        if self.dim < 1:
            raise ConfigError(f"tower.dim is {self.dim}, expected 1 or more")


class Tokens(NamedTuple):
    """Token rows as tensors on a device: ids (total,) and the start of each row (n,), int64."""

    ids: Tensor
    starts: Tensor

    @classmethod
    def of(cls, rows: TokenRows, device: torch.device) -> "Tokens":
        """Copy token rows to a device."""
        ids, starts = torch.from_numpy(rows.ids), torch.from_numpy(rows.offsets[:-1])
        return cls(ids.to(device), starts.to(device))


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
        summed = functional.embedding_bag(
            tokens.ids,
            self.vectors,
            tokens.starts,
            mode="sum",  # normalising makes sum and mean the same
            # Indexing with [] would do the same, but its gradient adds up in any order on a CPU,
            # and equal seeds must give equal bundles.
            per_sample_weights=self.weights.index_select(0, tokens.ids),
        )
        return functional.normalize(summed, dim=1)


class TwoTower(nn.Module):
    """A query tower and a passage tower; the same module twice where they are shared."""

    def __init__(self, query: MeanTower, passage: MeanTower) -> None:
        super().__init__()
        self.query = query
        self.passage = passage

    @classmethod
    def start(cls, config: TowerConfig, *, vectors: FloatArray, weights: FloatArray) -> "TwoTower":
        """Make untrained towers from token vectors (vocab, dim) and token weights (vocab,)."""
        query = MeanTower(vectors, weights)
        return cls(query, query if config.shared else MeanTower(vectors, weights))

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


def encode_rows(tower: MeanTower, rows: TokenRows) -> Tensor:
    """Return (n, dim) float32, L2-normalised, on the tower's device, without gradients."""
    device = next(tower.parameters()).device
    count = len(rows.offsets) - 1
    with torch.no_grad():
        encoded = [
            tower(Tokens.of(rows.take(np.arange(i, min(i + ENCODE_BATCH, count))), device))
            for i in range(0, count, ENCODE_BATCH)
        ]
    return torch.cat(encoded)


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
    """Return (vocab_size,) float32 BM25 inverse document frequencies, scaled to mean 1.

    idf(t) = ln(1 + (N - n_t + 0.5) / (n_t + 0.5)), N rows, n_t of them with token t
    (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009).
    """
    pairs = np.unique(rows.rows * vocab_size + rows.ids)
    holding = np.bincount(pairs % vocab_size, minlength=vocab_size)
    count = len(rows.lengths)
    idf = np.log1p((count - holding + 0.5) / (holding + 0.5))
    scaled: FloatArray = (idf / idf.mean()).astype(np.float32)
    return scaled
