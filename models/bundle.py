"""A trained model on disk: text in, vectors out, no pickle and, for the mean tower, no torch.

    BUNDLE/tokenizer.model      SentencePiece
    BUNDLE/towers.safetensors   query.vectors, query.weights (and passage.* where separate)
    BUNDLE/pca.safetensors      mean, components
    BUNDLE/config.json          what else decides a vector: tower kind, dims, truncation
    BUNDLE/card.json            where it came from: data, commit, seed, versions, metrics

The card is written last, so that its presence means complete. The fingerprint is a hash of the
other four files.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from models.config import from_mapping
from models.encoding import MeanEncoder
from models.errors import BundleError, ConfigError
from models.files import new_folder, write_bytes, write_json
from models.reduction import Reduction
from models.tokenizer import Tokenizer, TokenizerConfig

FORMAT = 1
CARD = "card.json"
CONFIG, TOKENIZER, TOWERS, PCA = (
    "config.json",
    "tokenizer.model",
    "towers.safetensors",
    "pca.safetensors",
)
DECIDING_FILES = (CONFIG, PCA, TOKENIZER, TOWERS)

FloatArray = npt.NDArray[np.float32]


class ModelBundle:
    """A tokenizer, two towers and a PCA.

    An empty or blank text is read as the unknown token: its vector is valid, and the same for
    all such texts.

    Attributes:
        config: the content of config.json.
        card: the content of card.json.
        fingerprint: 64 hex digits; equal fingerprints mean equal vectors.
    """

    def __init__(
        self, files: Mapping[str, bytes], card: Mapping[str, Any], *, threads: int = 0
    ) -> None:
        """Read the four deciding files (`DECIDING_FILES`, name -> content).

        Args:
            files: their content by name.
            card: what else to know about the bundle.
            threads: cores for tokenising batches (0: all).

        Raises:
            BundleError: a file is broken, or they do not fit each other.
        """
        self._files = {name: files[name] for name in DECIDING_FILES}
        self._threads = threads
        self.fingerprint = fingerprint(self._files)
        self.config = _parse_config(files[CONFIG])
        self.card = {**card, "fingerprint": self.fingerprint}
        self.tokenizer = Tokenizer(files[TOKENIZER], _tokenizer_config(self.config))
        arrays = _parse_arrays(TOWERS, files[TOWERS])
        shared = self.config["tower"]["shared"]
        self._query = _encoder(arrays, "query")
        self._passage = self._query if shared else _encoder(arrays, "passage")
        self._reduction = Reduction.of_arrays(
            _parse_arrays(PCA, files[PCA]), self.config["pca_dims"]
        )
        self._check_shapes()

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        *,
        towers: dict[str, FloatArray],
        reduction: Reduction,
        card: Mapping[str, Any],
    ) -> "ModelBundle":
        """Make a bundle of trained parts; `towers` as `models.towers.TwoTower.arrays` gives it."""
        files = {
            CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
            TOKENIZER: tokenizer.model,
            TOWERS: save_arrays(towers),
            PCA: save_arrays(reduction.arrays()),
        }
        return cls(files, card)

    @classmethod
    def load(cls, path: str | Path, *, threads: int = 0) -> "ModelBundle":
        """Read a bundle folder.

        Args:
            path: the folder.
            threads: cores for tokenising batches (0: all).

        Raises:
            BundleError: the folder is missing, unfinished, changed or broken.
        """
        path = Path(path)
        card = read_card(path)
        try:
            files = {name: (path / name).read_bytes() for name in DECIDING_FILES}
        except OSError as error:
            raise BundleError(
                f"{path} cannot be read ({error.strerror}: {error.filename}); train it again"
            ) from None
        found = fingerprint(files)
        if found != card.get("fingerprint"):
            raise BundleError(
                f"{path} has fingerprint {found[:8]}, its card says "
                f"{str(card.get('fingerprint'))[:8]}: a file was changed; train it again"
            )
        return cls(files, card, threads=threads)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the folder in one step.

        Args:
            path: the folder to make.
            force: replace a complete bundle.

        Raises:
            BundleError: the path holds a bundle and `force` is off, or something else.
        """
        path = Path(path)
        check_target(path, force=force)
        try:
            with new_folder(path) as work:
                for name, content in self._files.items():
                    write_bytes(work / name, content)
                write_json(work / CARD, {"format": FORMAT, **self.card})
        except OSError as error:
            raise BundleError(f"{path} cannot be written ({error.strerror})") from None

    @property
    def dim(self) -> int:
        """Width of the full vectors."""
        return self._query.dim

    @property
    def pca_dims(self) -> tuple[int, ...]:
        """Widths of the reduced vectors, largest first."""
        return self._reduction.dims

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, for `Passage.content` of n passages."""
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        rows = self.tokenizer.encode_passages(texts, threads=self._threads)
        return self._passage.encode(rows)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, for n queries."""
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        rows = self.tokenizer.encode_queries(texts, threads=self._threads)
        return self._query.encode(rows)

    def reduce(self, vectors: FloatArray) -> dict[int, FloatArray]:
        """Project (n, dim) vectors to {d: (n, d) float32, L2-normalised} for d in `pca_dims`.

        Raises:
            ValueError: the vectors are of another width.
        """
        return self._reduction.apply(vectors)

    def _check_shapes(self) -> None:
        vocabulary = self.tokenizer.vocab_size
        for tower in (self._query, self._passage):
            if (tower.vocab_size, tower.dim) != (vocabulary, self.dim):
                raise BundleError(
                    f"{TOWERS} has vectors of ({tower.vocab_size}, {tower.dim}), expected "
                    f"({vocabulary}, {self.dim}); train the bundle again"
                )
        if len(self._reduction.mean) != self.dim:
            raise BundleError(
                f"{PCA} is for {len(self._reduction.mean)} dims, the towers have {self.dim}; "
                "train the bundle again"
            )


def fingerprint(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 (64 hex digits) over names and contents of the deciding files."""
    total = hashlib.sha256()
    for name in DECIDING_FILES:
        total.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return total.hexdigest()


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of a complete bundle.

    Raises:
        BundleError: there is no bundle, or one that is unfinished or of another format.
    """
    path = Path(path)
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
    except OSError:
        what = "unfinished" if path.is_dir() and any(path.iterdir()) else "missing"
        raise BundleError(
            f"{path} is not a bundle ({what}: no {CARD}); "
            f"make one with: models train DATA --out {path}"
        ) from None
    except ValueError as error:
        raise BundleError(f"{path / CARD} is not JSON ({error}); train the bundle again") from None
    found = card.get("format") if isinstance(card, dict) else None
    if found != FORMAT:
        raise BundleError(f"{path} has bundle format {found}, expected {FORMAT}; train it again")
    return dict(card)


def check_target(path: Path, *, force: bool) -> None:
    """Refuse to write a bundle over something.

    Raises:
        BundleError: the path is a file, another folder, or a bundle and `force` is off.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise BundleError(f"{path} is a file, expected a folder or a new name")
    names = {entry.name for entry in path.iterdir()}
    if names and not names <= {*DECIDING_FILES, CARD}:
        odd = min(names - {*DECIDING_FILES, CARD})
        raise BundleError(f"{path} is not a bundle alone (found {odd}); choose another --out")
    if names and not force:
        raise BundleError(f"{path} already holds a bundle; replace it with --force")


def _parse_config(content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
        known = config["tower"]["kind"], config["tower"]["shared"], config["pca_dims"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{CONFIG} is broken ({error!r}); train the bundle again") from None
    if known[0] != "mean":
        raise BundleError(f"{CONFIG} names tower {known[0]!r}, expected mean; update this package")
    return dict(config)


def _tokenizer_config(config: Mapping[str, Any]) -> TokenizerConfig:
    try:
        return from_mapping(TokenizerConfig, config["tokenizer"], where="tokenizer.")
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{CONFIG} is broken ({error}); train the bundle again") from None


def _parse_arrays(name: str, content: bytes) -> dict[str, FloatArray]:
    try:
        arrays = load_arrays(content)
    except SafetensorError as error:
        raise BundleError(f"{name} is broken ({error}); train the bundle again") from None
    if any(a.dtype != np.float32 or not np.isfinite(a).all() for a in arrays.values()):
        raise BundleError(f"{name} holds numbers that are not finite float32; train again")
    return arrays


def _encoder(arrays: Mapping[str, FloatArray], tower: str) -> MeanEncoder:
    try:
        vectors, weights = arrays[f"{tower}.vectors"], arrays[f"{tower}.weights"]
    except KeyError as error:
        raise BundleError(f"{TOWERS} lacks {error}; train the bundle again") from None
    if vectors.ndim != 2 or weights.shape != vectors.shape[:1]:
        raise BundleError(f"{TOWERS} has {vectors.shape} vectors for {weights.shape} weights")
    return MeanEncoder(vectors, weights)
