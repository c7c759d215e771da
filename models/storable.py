"""What a field of a passage may hold, so that every engine reads back what it was given.

An engine takes deeper values than it can read from its own log, and turns larger integers into
floats without a word.
"""

from collections.abc import Mapping
from typing import Any

MOST_DEPTH = 64
"""Levels of lists and mappings; engines read 120 back."""

INTEGERS = range(-(2**63), 2**64)


def storage_fault(value: Any) -> str | None:
    """Return why no engine keeps a value as it is, in words that follow a name; None where it does.

    Deep values are walked without recursion.
    """
    rest: list[tuple[Any, int]] = [(value, 0)]
    while rest:
        item, depth = rest.pop()
        if isinstance(item, str):
            if not item.isascii() and _has_surrogate(item):
                return "holds half a character (a lone surrogate)"
        elif isinstance(item, int):
            if item not in INTEGERS:
                return "holds an integer of more than 64 bits"
        elif isinstance(item, float):
            if item - item != 0:
                return "holds a number that is not finite"
        elif isinstance(item, Mapping | list | tuple):
            if depth == MOST_DEPTH:
                return f"is nested deeper than {MOST_DEPTH} levels"
            if isinstance(item, Mapping):
                if any(not isinstance(key, str) for key in item):
                    return "holds a key that is no string"
                rest += [(key, depth + 1) for key in item]
                item = item.values()
            rest += [(inner, depth + 1) for inner in item]
        elif item is not None:
            return f"holds a {type(item).__name__}, which JSON cannot"
    return None


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
