"""What both ways of exporting need to know of a bundle's sides."""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.documents import reader_files
from two_tower.models.bundle.files import TOKENIZER, TOWERS, parse_arrays
from two_tower.models.export.tokenizer import fast_tokenizer, without_ends
from two_tower.models.text.transformer_tokenizer import SETTINGS, TEXT
from two_tower.models.vectors import FloatArray

SideName = Literal["query", "passage"]

TRANSFORMER = "transformer"


class Side(NamedTuple):
    """What reads queries, or passages.

    Attributes:
        name: of the side.
        kind: of its tower.
        prefix: what its texts begin with.
        limit: how many tokens of a text are read, prefix included.
        files: name -> content of the files that decide its vectors.
        owner: the side that its arrays are called by.
    """

    name: SideName
    kind: str
    prefix: str
    limit: int
    files: Mapping[str, bytes]
    owner: SideName

    def arrays(self) -> dict[str, FloatArray]:
        """Return the parameters of a tower of tokens, by the names that it gives them."""
        start = f"{self.owner}."
        arrays = parse_arrays(TOWERS, self.files[TOWERS])
        return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}

    def weighted_vectors(self) -> FloatArray:
        """Return (vocab, dim) float32 of a mean tower: token vectors times their weights."""
        arrays = self.arrays()
        weighted: FloatArray = arrays["vectors"] * arrays["weights"][:, None]
        return weighted

    def tokenizer(self) -> Any:
        """Return a `tokenizers.Tokenizer` that gives the tower's ids, cut at the limit."""
        if TEXT not in self.files:
            return fast_tokenizer(self.files[TOKENIZER], limit=self.limit)
        return without_ends(self.files[TEXT], limit=self.limit)


def own_side(bundle: ModelBundle, name: SideName) -> Side:
    """Return a side that the bundle has a tower for."""
    tower, files = bundle.config["tower"], bundle.files
    limits = json.loads(files[SETTINGS]) if SETTINGS in files else bundle.config["tokenizer"]
    prefix = bundle.config.get("prefixes", {}).get(name, "")
    owner: SideName = "query" if tower["shared"] else name
    return Side(name, tower["kind"], prefix, limits[f"max_{name}_tokens"], files, owner)


def named_side(bundle: ModelBundle, model: str) -> Side:
    """Return the passages' side where a model that the bundle names reads them.

    Raises:
        BundleError: a file of the model is broken.
        ConfigError: there is no such model, or the extra is not installed.
    """
    files = reader_files(model)
    prefix = bundle.config.get("prefixes", {}).get("passage", "")
    limit = json.loads(files[SETTINGS])["max_passage_tokens"]
    return Side("passage", TRANSFORMER, prefix, limit, files, "passage")


def documents_model(bundle: ModelBundle) -> str | None:
    """Return the model that reads the documents and can be opened here, None without one."""
    about = bundle.config.get("documents") or {}
    model: str | None = about.get("model")
    return None if about.get("url") else model


def documents_source(bundle: ModelBundle) -> str | None:
    """Return who reads the documents where the bundle has no tower for them."""
    about = bundle.config.get("documents")
    if about is None:
        return None
    return f"{about['model']} at {about['url']}" if about.get("url") else str(about["source"])
