"""Recurrent towers once training is over; importing this loads torch."""

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


class RecurrentEncoder:
    """A recurrent tower that only encodes, rows of like length side by side."""

    def __init__(self, tower: RnnTower) -> None:
        self.tower = tower.eval().requires_grad_(False)
        self.dim = int(tower.vectors.shape[1])

    def encode(self, rows: TokenRows, *, threads: int = 0) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on as many cores as torch takes."""
        with torch.inference_mode():
            return normalized(encode_rows(self.tower, rows).numpy())


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
    prefix = f"{side}."
    own = {
        name.removeprefix(prefix): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    try:
        tower = make_tower(settings, vectors=own["vectors"].numpy(), weights=own["weights"].numpy())
        tower.load_state_dict(own)
    except (KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{TOWERS} does not fit {CONFIG} ({reason}); train again") from None
    assert isinstance(tower, RnnTower), "only bundles of recurrent towers are read here"
    return RecurrentEncoder(tower)
