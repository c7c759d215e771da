"""Vectors that a slow encoder made, kept for every later use: by encoder and text.

One SQLite file an encoder and side, in the user's cache folder: `TWO_TOWER_CACHE`, else the
system's place for caches. It may be deleted at any time; where it cannot be written, texts are
encoded again.
"""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from two_tower.models.console import progress
from two_tower.models.vectors import FloatArray

READ_AT_ONCE = 500  # keys; SQLite limits the variables of a statement
ENCODED_AT_ONCE = 1024
WAIT_S = 60.0  # for another process that writes

TABLE = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB)"

Encode = Callable[[Sequence[str]], FloatArray]
EncodeRows = Callable[[Sequence[str]], Iterable[FloatArray]]

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
    """Return (n, dim) float32 of n texts, at least one; see `cached_rows`."""
    return np.stack(cached_rows(encode, texts, encoder=encoder, label=label))


def cached_rows(
    encode: EncodeRows, texts: Sequence[str], *, encoder: str, label: str = "encoding"
) -> list[FloatArray]:
    """Return what n texts are encoded to; only texts that are new are encoded.

    What is encoded is kept batch by batch: a run that was killed pays for the rest alone.

    Args:
        encode: gives each text (numbers,) float32 that depend on nothing but the text.
        texts: in any order; equal ones are encoded once.
        encoder: names what `encode` does, in a file name; equal names mean equal vectors.
        label: of the progress bar.
    """
    keys = list(map(_key, texts))
    text_of = dict(zip(keys, texts, strict=True))
    try:
        with closing(_open(encoder)) as cache:
            vectors = _read(cache, list(text_of))
            missing = [key for key in text_of if key not in vectors]
            parts = list(_parts(missing, ENCODED_AT_ONCE))
            for part in progress(parts, label=label) if parts else ():
                encoded = list(encode([text_of[key] for key in part]))
                _write(cache, part, encoded)
                vectors |= dict(zip(part, encoded, strict=True))
    except (OSError, sqlite3.Error) as error:
        log.warning("vectors are not kept in %s (%s)", cache_folder(), error)
        return list(encode(texts))
    return [vectors[key] for key in keys]


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _open(encoder: str) -> sqlite3.Connection:
    path = cache_folder() / "vectors" / f"{encoder}.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = sqlite3.connect(path, timeout=WAIT_S)
    cache.execute("PRAGMA journal_mode = WAL")
    cache.execute("PRAGMA synchronous = NORMAL")
    cache.execute(TABLE)
    return cache


def _read(cache: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, FloatArray]:
    vectors: dict[bytes, FloatArray] = {}
    for part in _parts(keys, READ_AT_ONCE):
        places = ",".join("?" * len(part))
        rows = cache.execute(f"SELECT key, vector FROM vectors WHERE key IN ({places})", part)
        vectors |= {key: np.frombuffer(vector, dtype=np.float32) for key, vector in rows}
    return vectors


def _write(cache: sqlite3.Connection, keys: Sequence[bytes], vectors: Sequence[FloatArray]) -> None:
    contents = (vector.astype(np.float32).tobytes() for vector in vectors)
    with cache:
        cache.executemany(
            "INSERT OR IGNORE INTO vectors VALUES (?, ?)", zip(keys, contents, strict=True)
        )


def _parts(keys: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
