"""Array types, and normalisation to unit length."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
AnyFloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]


def normalized(vectors: FloatArray) -> FloatArray:
    """Return rows of length 1; a row of zeros becomes the first axis, which is valid and finite."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    result = np.asarray(scaled, dtype=np.float32)
    result[lengths[:, 0] == 0, 0] = 1.0
    return result


class Vectors(NamedTuple):
    """Vectors of labelled queries (n, dim) and of all passages (m, dim)."""

    queries: FloatArray
    passages: FloatArray
