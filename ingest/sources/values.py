"""What the cells of foreign files mean: ids, texts, whole numbers, marks; what is missing."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

_WORDS = {"true": 1, "false": 0}


def is_missing(value: Any) -> bool:
    """Say whether a cell holds nothing: None, or the NaN or NaT that a library writes for it."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError, ArithmeticError):  # arrays; a NaN that signals
        return isinstance(value, Decimal)


def is_blank(value: Any) -> bool:
    """Say whether a cell is missing or holds white space alone."""
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def as_id(value: Any) -> str:
    """Return an id as a string: 7, 7.0 and "7" are the same id, a missing one is empty."""
    value = as_content(value)
    if value is None:
        return ""
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    return str(value)


def as_text(value: Any) -> str:
    """Return a title or URL as a string, empty for a missing one."""
    value = as_content(value)
    return "" if value is None else str(value)


def as_content(value: Any) -> Any:
    """Return a cell as Python has it: None for a missing one, UTF-8 bytes as a string."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return None if is_missing(value) else value


def as_integer(value: Any) -> Any:
    """Return True, 1.0, "1" and "true" as the int 1, likewise others; anything else as it is."""
    value = as_content(value)
    if isinstance(value, str):
        word = value.strip().lower()
        try:
            value = _WORDS[word] if word in _WORDS else float(word)
        except ValueError:
            return value
    if isinstance(value, bool) or (
        isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value)
    ):
        return int(value)
    return value


def as_mark(value: Any) -> bool | None:
    """Return whether something is marked; None where the mark is hidden (-1) or missing.

    Raises:
        ValueError: it is no mark.
    """
    if is_blank(value):
        return None
    number = as_integer(value)
    if not isinstance(number, int):
        raise ValueError(f"{value!r} is no mark")
    return None if number < 0 else number > 0


def first_of(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first value that is there under one of `names`, None for none."""
    return next((v for v in map(values.get, names) if not is_missing(v)), None)
