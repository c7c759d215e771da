"""Vectors that a slow encoder made, kept for every later use: by encoder and text.

One file an encoder and side. Where it cannot be written, texts are encoded again.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from two_tower.models.cache import Cache, cache_folder, cache_key, parts
from two_tower.models.progress import progress
from two_tower.models.vectors import FloatArray

ENCODED_AT_ONCE = 1024

Encode = Callable[[Sequence[str]], FloatArray]
EncodeRows = Callable[[Sequence[str]], Iterable[FloatArray]]

log = logging.getLogger(__name__)


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
        label: of the progress bar; empty for none.
    """
    keys = list(map(cache_key, texts))
    text_of = dict(zip(keys, texts, strict=True))
    try:
        with Cache("vectors", encoder) as cache:
            stored = cache.read(list(text_of))
            vectors = {key: np.frombuffer(row, dtype=np.float32) for key, row in stored.items()}
            missing = [key for key in text_of if key not in vectors]
            batches = list(parts(missing, ENCODED_AT_ONCE))
            for batch in progress(batches, label=label) if batches and label else batches:
                encoded = list(encode([text_of[key] for key in batch]))
                rows = [vector.astype(np.float32).tobytes() for vector in encoded]
                cache.write(dict(zip(batch, rows, strict=True)))
                vectors |= dict(zip(batch, encoded, strict=True))
    except (OSError, sqlite3.Error) as error:
        log.warning("vectors are not kept in %s (%s)", cache_folder(), error)
        return list(encode(texts))
    return [vectors[key] for key in keys]
