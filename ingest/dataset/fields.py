"""Source fields: made safe for JSON and payloads, and described for payload indexes."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from two_tower.ingest.dataset.cleaning import clean
from two_tower.models.data import MOST_FIELDS
from two_tower.models.storable import MOST_DEPTH

# The names that a payload has for itself: `RESERVED` of the collection's schema, without its
# imports.
RESERVED = frozenset({"passage_id", "title", "text", "url", "cluster", "content_hash"})

_MAX_VALUES = 10_000

_LONG_TEXT = 128

_MISSING = frozenset({"NaT", "<NA>"})
"""What pandas shows where nothing is."""

_DIGITS = 19  # of the largest integers that an index takes

_TYPES = {bool: "bool", int: "integer", float: "float", str: "keyword", dict: "object"}


def clean_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` as plain JSON values, without the empty ones.

    A reserved name gets the prefix `source_`. What is nested too deep stays as it is:
    `storage_fault` refuses it.
    """
    cleaned = {clean(str(name)): _clean_value(value) for name, value in fields.items()}
    return {
        f"source_{name}" if name in RESERVED else name: value
        for name, value in sorted(cleaned.items())
        if name and value not in (None, "", [], {})
    }


def _clean_value(value: Any, depth: int = 1) -> Any:
    """Return a value as JSON has it, those of numpy, pandas and decimals among them."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, np.generic | Decimal):
        value = _plain(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth > MOST_DEPTH:
        return value
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return {clean(str(key)): _clean_value(item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | np.ndarray):
        return [_clean_value(item, depth + 1) for item in value]
    text = clean(str(value))
    return None if text in _MISSING else text


def _plain(value: Any) -> Any:
    """Return a scalar of numpy, or a decimal, as Python's own; what is no number as None."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None
        is_whole = value.adjusted() < _DIGITS and value == value.to_integral_value()
        return int(value) if is_whole else float(value)
    if isinstance(value, np.datetime64):  # nanoseconds would be a number
        value = value.astype("datetime64[us]")
    return float(value) if isinstance(value, np.floating) else value.item()


class FieldCensus:
    """Types and number of distinct values of each field, in bounded memory."""

    def __init__(self) -> None:
        self._types: dict[str, set[str]] = {}
        self._values: dict[str, set[str]] = {}

    def add(self, fields: Mapping[str, Any]) -> None:
        """Count the fields of one passage."""
        for name, value in fields.items():
            if name not in self._types:
                if len(self._types) >= MOST_FIELDS:
                    continue
                self._types[name], self._values[name] = set(), set()
            for item in value if isinstance(value, list) else (value,):
                kind = _TYPES.get(type(item), "object")
                if kind == "keyword" and len(item) > _LONG_TEXT:
                    kind = "text"
                self._types[name].add(kind)
                if len(self._values[name]) < _MAX_VALUES:
                    self._values[name].add(item if kind == "keyword" else repr(item))

    def report(self) -> dict[str, dict[str, Any]]:
        """Return name -> {"type", "values"}; "more": true where there are more values than that.

        Types are keyword, text (long strings), integer, float, bool, object and mixed.
        """
        return {
            name: {"type": _common_type(types), "values": len(self._values[name])}
            | ({"more": True} if len(self._values[name]) >= _MAX_VALUES else {})
            for name, types in sorted(self._types.items())
        }


def _common_type(types: set[str]) -> str:
    if len(types) == 1:
        return next(iter(types))
    if types == {"integer", "float"}:
        return "float"
    return "text" if types == {"keyword", "text"} else "mixed"
