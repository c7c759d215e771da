"""Is a stored point the one that was meant?"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from qdrant_client import models as qm

from two_tower.retriever.engine.wire import SPARSE, AnyPoint

# The engine normalises once more, and a batch of another size may round otherwise.
TOLERANCE = 1e-4


def difference(record: qm.Record | None, point: AnyPoint) -> str:
    """Say in what a stored point differs from the right one; nothing where they are equal."""
    if record is None:
        return "it is missing, or replicas differ in it"
    if not _same_json(record.payload, point.payload):
        return "its payload is not what DATA says"
    return _vector_difference(record, point)


def _vector_difference(record: qm.Record, point: AnyPoint) -> str:
    stored = record.vector if isinstance(record.vector, dict) else {}
    expected = point.vector if isinstance(point.vector, dict) else {}
    if stored.keys() != expected.keys():
        return f"it has vectors {sorted(stored)}, expected {sorted(expected)}"
    for name, vector in expected.items():
        distance = _largest_difference(stored[name], vector)
        if distance > TOLERANCE:
            return (
                f"vector {name!r} differs by {distance:.2g} from what this bundle gives, "
                f"at most {TOLERANCE:g} is rounding"
            )
    return ""


def _same_json(stored: Any, expected: Any) -> bool:
    """Compare payloads; engines keep a float's text, which may cost its last bit."""
    if isinstance(expected, Mapping):
        return (
            isinstance(stored, Mapping)
            and stored.keys() == expected.keys()
            and all(_same_json(stored[name], value) for name, value in expected.items())
        )
    if isinstance(expected, list):
        return (
            isinstance(stored, list)
            and len(stored) == len(expected)
            and all(map(_same_json, stored, expected))
        )
    if isinstance(expected, float) and isinstance(stored, int | float):
        return math.isclose(stored, expected, rel_tol=1e-14)
    return bool(stored == expected)


def _largest_difference(stored: object, expected: object) -> float:
    """Return the largest difference in any dimension; infinite for vectors of another shape."""
    if isinstance(stored, SPARSE) and isinstance(expected, SPARSE):
        left, right = (dict(zip(v.indices, v.values, strict=True)) for v in (stored, expected))
        return max((abs(left.get(i, 0) - right.get(i, 0)) for i in left | right), default=0.0)
    left_array, right_array = np.asarray(stored), np.asarray(expected)
    if left_array.shape != right_array.shape:
        return float("inf")
    return float(np.abs(left_array - right_array).max())
