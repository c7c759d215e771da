"""What a bundle folder holds: which files, their fingerprint, their card.

The kind of tower says which files decide a vector. Beside them a bundle may hold extra files,
which decide a rank but no vector: the fingerprint leaves them out, the card has their hashes.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from safetensors.numpy import load as load_arrays

from two_tower.models.errors import BundleError, is_panic
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

ENDPOINT = "endpoint"
"""The kind of tower of a bundle whose texts are read behind a URL, queries and passages alike."""

DECIDING_FILES = (CONFIG, PCA, TOKENIZER, TOWERS)  # of towers that read SentencePiece tokens

DECIDING_BY_KIND: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("mean", "gru", "lstm"), DECIDING_FILES),
    "transformer": (CONFIG, PCA, TEXT, SETTINGS, GRAPH),
    ENDPOINT: (CONFIG, PCA, TOKENIZER),  # the cross-scorer's tokens
}

DOCUMENTS = "documents.safetensors"
"""Vectors of `probes.PROBES` by the encoder of the documents, where the bundle has none itself."""

LARGEST_NUMBER = 1e6
"""Products and sums of what a bundle holds stay finite below it."""

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
        content = read_inside(path, CARD)
    except (FileNotFoundError, NotADirectoryError):
        if (path / "manifest.json").is_file():
            what, command = "a DATA folder", f"models train {path} --out BUNDLE"
        else:
            what = f"unfinished: no {CARD}" if path.is_dir() else "no such folder"
            command = f"models train DATA --out {path}"
        raise BundleError(f"{path} is not a bundle ({what}); make one with: {command}") from None
    except OSError as error:
        raise BundleError(f"{path / CARD} cannot be read ({error.strerror or error})") from None
    try:
        card = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path / CARD} is not JSON ({error}); train the bundle again") from None
    version = card.get("format") if isinstance(card, dict) else None
    if version != BUNDLE_FORMAT:
        raise BundleError(
            f"{path} has bundle format {version!r:.40}, expected {BUNDLE_FORMAT}; train it again"
        )
    try:
        _Card.model_validate(card, strict=True)
    except ValidationError as error:
        raise _broken(path / CARD, error) from None
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
        raise BundleError(
            f"{path / CARD} names {unknown[0]!r:.80}, expected {', '.join(EXTRA_FILES)}"
        )
    present = {name for name in EXTRA_FILES if os.path.lexists(path / name)}
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
        return read_inside(path, name)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror or error}: {path / name}); train it again"
        ) from None


def read_inside(path: Path, name: str) -> bytes:
    """Return the content of a plain file of a bundle folder.

    Raises:
        OSError: there is none, or it is a link that leads elsewhere, a pipe, a device.
    """
    try:
        target = (path / name).resolve(strict=True)
    except RuntimeError:
        raise OSError("a link in a circle") from None
    if not target.is_relative_to(path.resolve()):
        raise OSError("a link that leads out of the folder")
    file = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(file, "rb") as content:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError("no plain file")
        return content.read()


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
        BundleError: the kind of tower is unknown, or its endpoint.
    """
    kind = config["tower"]["kind"]
    if kind not in DECIDING_BY_KIND:
        known = ", ".join(DECIDING_BY_KIND)
        raise BundleError(
            f"{CONFIG} names tower {kind!r:.80}, expected {known}; update this package"
        )
    names = DECIDING_BY_KIND[kind]
    if config.get("late") is not None:
        names = (*names, LATE)
    if config.get("documents") is None:
        if kind == ENDPOINT:
            raise BundleError(f"{CONFIG} names no model at an endpoint; train the bundle again")
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
        _Config.model_validate(config, strict=True)
    except ValidationError as error:
        raise _broken(CONFIG, error) from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{CONFIG} is broken ({error!r}); train the bundle again") from None
    return dict(config)


def _broken(what: object, error: ValidationError) -> BundleError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))[:80]
    return BundleError(f"{what} is broken at {where} ({first['msg']}); train the bundle again")


class _Card(BaseModel):
    """What readers of a card rely on, where it is there; see `card.make_card`."""

    fingerprint: str | None = None
    data: dict[str, Any] = {}
    queries: dict[str, int] = {}
    seconds: dict[str, float] = {}
    dev: dict[str, dict[str, float]] = {}
    extras: dict[str, str] = {}


class _Tower(BaseModel):
    """What every tower says of itself."""

    kind: str
    shared: bool


class _Prefixes(BaseModel):
    """What stands before every text."""

    query: str = ""
    passage: str = ""


class _Config(BaseModel):
    """What every config.json must say; kinds of towers have more."""

    tower: _Tower
    pca_dims: list[Annotated[int, Field(gt=0)]]
    prefixes: _Prefixes = _Prefixes()
    tokenizer: dict[str, Any] = {}
    late: dict[str, Any] | None = None
    documents: dict[str, Any] | None = None


def parse_arrays(name: str, content: bytes) -> dict[str, FloatArray]:
    """Return the arrays of a safetensors file.

    Raises:
        BundleError: it is broken, or a number is not float32, not finite or absurd.
    """
    try:
        arrays = load_arrays(content)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"{name} is broken ({reason}); train the bundle again") from None
    if not all(a.dtype == np.float32 and _largest(a) <= LARGEST_NUMBER for a in arrays.values()):
        raise BundleError(
            f"{name} holds numbers that are not finite float32 of at most {LARGEST_NUMBER:,.0f}; "
            "train the bundle again"
        )
    return arrays


def _largest(array: FloatArray) -> float:
    """Return the largest distance from 0; NaN where one of the numbers is."""
    return float(np.maximum(array.max(initial=0.0), -array.min(initial=0.0)))


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
