"""Vectors that a slow encoder made, kept for every later use: by encoder and text.

One SQLite file an encoder, in the cache folder of the user (`TWO_TOWER_CACHE`, else the system's
place for caches). Nothing else depends on it: it may be deleted at any time, and where it cannot be
written, texts are simply encoded again.
"""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from two_tower.models.console import progress
from two_tower.models.vectors import FloatArray

KEYS_AT_ONCE = 500  # below SQLite's limit of variables in a statement
ENCODED_AT_ONCE = 1024
KEY_BYTES = 16
WAIT_S = 60.0

Encode = Callable[[Sequence[str]], FloatArray]

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of what can be made again."""
    if folder := os.environ.get("TWO_TOWER_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "two-tower-search"


def cached_vectors(
    encode: Encode, texts: Sequence[str], *, encoder: str, label: str = "encoding"
) -> FloatArray:
    """Return (n, dim) float32 of n texts, at least one; only what was never seen is encoded.

    Args:
        encode: gives each text a vector that depends on nothing else.
        texts: in any order, equal ones as often as they come.
        encoder: fingerprint of what `encode` does; equal ones mean equal vectors.
        label: of the progress bar.
    """
    keys = [
        hashlib.blake2b(t.encode(errors="replace"), digest_size=KEY_BYTES).digest() for t in texts
    ]
    text_of = dict(zip(keys, texts, strict=True))
    try:
        with closing(_open(encoder)) as cache:
            vectors = _read(cache, list(text_of))
            missing = [key for key in text_of if key not in vectors]
            for part in progress(
                _chunks(missing, ENCODED_AT_ONCE),
                label=label,
                total=-(-len(missing) // ENCODED_AT_ONCE),
            ):
                encoded = encode([text_of[key] for key in part])
                _write(cache, part, encoded)
                vectors |= dict(zip(part, encoded, strict=True))
    except (OSError, sqlite3.Error) as error:
        log.warning("vectors are not cached (%s: %s)", cache_folder(), error)
        return encode(texts)
    return np.stack([vectors[key] for key in keys])


def _open(encoder: str) -> sqlite3.Connection:
    path = cache_folder() / "vectors" / f"{encoder[:32]}.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = sqlite3.connect(path, timeout=WAIT_S)
    cache.execute("PRAGMA journal_mode = WAL")
    cache.execute("PRAGMA synchronous = NORMAL")
    cache.execute(
        "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
    )
    return cache


def _read(cache: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, FloatArray]:
    vectors: dict[bytes, FloatArray] = {}
    for part in _chunks(keys, KEYS_AT_ONCE):
        places = ",".join("?" * len(part))
        rows = cache.execute(f"SELECT key, vector FROM vectors WHERE key IN ({places})", part)
        vectors |= {key: np.frombuffer(vector, dtype="<f4") for key, vector in rows}
    return vectors


def _write(cache: sqlite3.Connection, keys: Sequence[bytes], vectors: FloatArray) -> None:
    rows = zip(keys, (v.astype("<f4").tobytes() for v in vectors), strict=True)
    with cache:
        cache.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)


def _chunks(keys: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
