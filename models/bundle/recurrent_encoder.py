"""What encodes with recurrent towers once training is over."""

from collections.abc import Mapping
from typing import Any

import torch

from two_tower.models.bundle.files import CONFIG, TOWERS
from two_tower.models.config import from_mapping
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.networks.recurrent import RnnTower
from two_tower.models.networks.towers import TowerConfig, encode_rows, make_tower
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import FloatArray, normalized


class RnnEncoder:
    """A recurrent tower that only encodes, rows of like length side by side."""

    def __init__(self, tower: RnnTower) -> None:
        self._tower = tower.eval().requires_grad_(False)

    @property
    def vocab_size(self) -> int:
        """Number of tokens that have a vector."""
        return self._tower.vectors.shape[0]

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._tower.vectors.shape[1]

    def encode(self, rows: TokenRows) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, one per row of tokens."""
        with torch.inference_mode():
            return normalized(encode_rows(self._tower, rows).numpy())


def open_rnn_encoder(
    config: Mapping[str, Any], arrays: Mapping[str, FloatArray], *, tower: str
) -> RnnEncoder:
    """Rebuild a recurrent tower.

    Args:
        config: the content of config.json.
        arrays: the content of towers.safetensors.
        tower: `query` or `passage`.

    Raises:
        BundleError: a parameter is missing or of another shape than the configuration says.
    """
    try:
        settings = from_mapping(TowerConfig, config["tower"], where="tower.")
    except (ConfigError, TypeError, AttributeError) as error:
        raise BundleError(f"{CONFIG} is broken ({error}); train the bundle again") from None
    own = {
        name.removeprefix(f"{tower}."): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if name.startswith(f"{tower}.")
    }
    try:
        made = make_tower(settings, vectors=own["vectors"].numpy(), weights=own["weights"].numpy())
        made.load_state_dict(own)
    except (KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{TOWERS} does not fit {CONFIG} ({reason}); train again") from None
    if not isinstance(made, RnnTower):
        raise BundleError(f"{CONFIG} names tower {settings.kind!r}, expected gru or lstm")
    return RnnEncoder(made)
