"""Cells of foreign rows as the types of our records."""

from collections.abc import Mapping
from typing import Any

_SPLITS = {
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "training": "train",
    "testing": "test",
}


def raw(row: Mapping[str, Any], name: str) -> Any:
    """Return a cell as it came, None where there is none: the writer judges its type."""
    return row.get(name)


def as_id(value: Any) -> str:
    """Return an id as a string: 7, 7.0 and "7" are the same id, None is an empty one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def as_text(value: Any) -> str:
    """Return a title or URL as a string, empty for None."""
    return "" if value is None else str(value)


def as_integer(value: Any) -> Any:
    """Return `value` as an int where it is one in other clothes (True, 1.0, "1"), else as it is."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if isinstance(value, str):
        try:
            number = float(value)
            return int(number) if number.is_integer() else value
        except (ValueError, OverflowError):
            return value
    return value


def split_name(name: str) -> str:
    """Return our name of a split: validation is dev here."""
    return _SPLITS.get(name.lower(), name)
