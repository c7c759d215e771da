"""What a bundle folder holds: which files, their fingerprint, their card.

The kind of tower says which files decide a vector. Beside them a bundle may hold extra files,
which decide a rank but no vector: the fingerprint leaves them out, the card has their hashes.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from two_tower.models.errors import BundleError
from two_tower.models.text.transformer_tokenizer import (
    CROSS_GRAPH,
    CROSS_TEXT,
    GRAPH,
    SETTINGS,
    TEXT,
)
from two_tower.models.vectors import FloatArray

BUNDLE_FORMAT = 1

CARD = "card.json"

CONFIG, PCA = "config.json", "pca.safetensors"

TOKENIZER, TOWERS = "tokenizer.model", "towers.safetensors"

DECIDING_FILES = (CONFIG, PCA, TOKENIZER, TOWERS)  # of towers that read SentencePiece tokens

DECIDING_BY_KIND: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("mean", "gru", "lstm"), DECIDING_FILES),
    "transformer": (CONFIG, PCA, TEXT, SETTINGS, GRAPH),
}

DOCUMENTS = "documents.safetensors"
"""Vectors of `probes.PROBES` by the encoder of the documents, where the bundle has none itself."""

LATE = "late.safetensors"
"""Projection of token vectors, and weights of query tokens, where config.json has `late`."""

CROSS_SCORER, FUSION = "cross_scorer.safetensors", "fusion.json"

EXTRA_FILES = (CROSS_SCORER, CROSS_GRAPH, CROSS_TEXT, FUSION)


def read_card(path: Path) -> dict[str, Any]:
    """Return the card of a complete bundle.

    Raises:
        BundleError: there is no bundle, or one that is unfinished or of another format.
    """
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
    except OSError:
        if (path / "manifest.json").is_file():
            what, command = "a DATA folder", f"models train {path} --out BUNDLE"
        else:
            what = f"unfinished: no {CARD}" if path.is_dir() else "no such folder"
            command = f"models train DATA --out {path}"
        raise BundleError(f"{path} is not a bundle ({what}); make one with: {command}") from None
    except ValueError as error:
        raise BundleError(f"{path / CARD} is not JSON ({error}); train the bundle again") from None
    version = card.get("format") if isinstance(card, dict) else None
    if version != BUNDLE_FORMAT:
        raise BundleError(
            f"{path} has bundle format {version}, expected {BUNDLE_FORMAT}; train it again"
        )
    return dict(card)


def read_deciding(path: Path, card: Mapping[str, Any]) -> dict[str, bytes]:
    """Return name -> content of the files that decide a vector.

    Raises:
        BundleError: one is missing or was changed.
    """
    files = {CONFIG: _read(path, CONFIG)}
    names: tuple[str, ...] = ()
    with contextlib.suppress(BundleError):  # a changed config.json is worse news than its content
        names = deciding_files(parse_config(files[CONFIG]))
    files |= {name: _read(path, name) for name in names if name != CONFIG}
    if (digest := fingerprint(files)) != card.get("fingerprint"):
        raise BundleError(
            f"{path} has fingerprint {digest[:8]}, its card says "
            f"{str(card.get('fingerprint'))[:8]}: a file was changed; train it again"
        )
    return files


def read_extras(path: Path, card: Mapping[str, Any]) -> dict[str, bytes]:
    """Return name -> content of the files that decide no vector.

    Raises:
        BundleError: one is missing, was changed or is not in the card.
    """
    recorded = dict(card.get("extras", {}))
    if unknown := sorted(recorded.keys() - set(EXTRA_FILES)):
        raise BundleError(f"{path / CARD} names {unknown[0]!r}, expected {', '.join(EXTRA_FILES)}")
    present = {name for name in EXTRA_FILES if (path / name).exists()}
    extras = {name: _read(path, name) for name in sorted(recorded.keys() | present)}
    for name, digest in digests(extras).items():
        if digest != recorded.get(name):
            raise BundleError(
                f"{path / name} has hash {digest[:8]}, {CARD} says "
                f"{str(recorded.get(name))[:8]}: the file was changed; train it again"
            )
    return extras


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}: {error.filename}); train it again"
        ) from None


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 (64 hex digits) of each file, by name."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def fingerprint(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 (64 hex digits) over names and contents of the deciding files."""
    total = hashlib.sha256()
    for name, digest in sorted(digests(files).items()):
        total.update(f"{name} {digest}\n".encode())
    return total.hexdigest()


def deciding_files(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which files decide a vector, by the content of config.json.

    Raises:
        BundleError: the kind of tower is unknown.
    """
    kind = config["tower"]["kind"]
    if kind not in DECIDING_BY_KIND:
        known = ", ".join(DECIDING_BY_KIND)
        raise BundleError(f"{CONFIG} names tower {kind!r}, expected {known}; update this package")
    names = DECIDING_BY_KIND[kind]
    if config.get("late") is not None:
        names = (*names, LATE)
    if config.get("documents") is None:
        return names
    if config.get("tokenizer", {}).get("vocabulary") == "documents":
        names = tuple(TEXT if name == TOKENIZER else name for name in names)
    return (*names, DOCUMENTS)


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
    ours = {CARD, DOCUMENTS, LATE, *EXTRA_FILES}
    if strangers := names.difference(ours, *DECIDING_BY_KIND.values()):
        found = min(strangers)
        raise BundleError(f"{path} is not a bundle alone (found {found}); choose another --out")
    if names and not force:
        raise BundleError(f"{path} already holds a bundle; replace it with --force")


def parse_config(content: bytes) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        BundleError: it is not JSON, or lacks what every bundle must say.
    """
    try:
        config = json.loads(content)
        prefixes = config.get("prefixes", {})
        required = config["tower"]["kind"], config["tower"]["shared"], config["pca_dims"]
        texts = [required[0], prefixes.get("query", ""), prefixes.get("passage", "")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{CONFIG} is broken ({error!r}); train the bundle again") from None
    if not all(isinstance(text, str) for text in texts):
        raise BundleError(f"{CONFIG} is broken (kind or prefixes: {texts}); train the bundle again")
    return dict(config)


def parse_arrays(name: str, content: bytes) -> dict[str, FloatArray]:
    """Return the arrays of a safetensors file.

    Raises:
        BundleError: it is broken, or a number is not finite float32.
    """
    try:
        arrays = load_arrays(content)
    except SafetensorError as error:
        raise BundleError(f"{name} is broken ({error}); train the bundle again") from None
    if any(a.dtype != np.float32 or not np.isfinite(a).all() for a in arrays.values()):
        raise BundleError(f"{name} holds numbers that are not finite float32; train again")
    return arrays


def check_shapes(
    arrays: Mapping[str, FloatArray], shapes: Mapping[str, tuple[int, ...]], *, problem: str
) -> None:
    """Refuse arrays of other names or shapes than expected.

    Args:
        arrays: by name.
        shapes: the expected ones.
        problem: how the message begins.

    Raises:
        BundleError: an array is missing, too many or of another shape.
    """
    for name in (*shapes, *sorted(arrays.keys() - shapes.keys())):
        expected = shapes.get(name, "nothing")
        found = arrays[name].shape if name in arrays else "nothing"
        if found != expected:
            raise BundleError(
                f"{problem} at {name} (found {found}, expected {expected}); train again"
            )
