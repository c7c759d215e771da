"""What both ways of exporting need to know of a bundle's sides."""

import json
from typing import Literal, NamedTuple

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.text.transformer_tokenizer import SETTINGS
from two_tower.models.vectors import FloatArray


class Side(NamedTuple):
    """One side of a bundle.

    Attributes:
        name: `query` or `passage`.
        kind: of its tower.
        prefix: what its texts begin with.
        limit: how many tokens of a text are read, prefix included.
    """

    name: Literal["query", "passage"]
    kind: str
    prefix: str
    limit: int


def query_side(bundle: ModelBundle) -> Side:
    """Return the side that reads queries."""
    return _side(bundle, "query")


def passage_side(bundle: ModelBundle) -> Side:
    """Return the side that reads passages."""
    return _side(bundle, "passage")


def _side(bundle: ModelBundle, name: Literal["query", "passage"]) -> Side:
    kind = bundle.config["tower"]["kind"]
    limits = (
        json.loads(bundle.files[SETTINGS]) if kind == "transformer" else bundle.config["tokenizer"]
    )
    prefix = bundle.config.get("prefixes", {}).get(name, "")
    return Side(name, kind, prefix, limits[f"max_{name}_tokens"])


def weighted_vectors(bundle: ModelBundle, side: Side) -> FloatArray:
    """Return (vocab, dim) float32 of a mean tower: token vectors times their weights."""
    arrays = bundle.towers()
    owner = "query" if bundle.config["tower"]["shared"] else side.name
    weighted: FloatArray = arrays[f"{owner}.vectors"] * arrays[f"{owner}.weights"][:, None]
    return weighted
