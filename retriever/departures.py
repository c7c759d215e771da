"""Where a configuration departs from another: what a settings file has to say."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def departures(value: Any, default: Any) -> dict[str, Any]:
    """Return the fields of a configuration that are not as in another, as plain values."""
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(value)):
        one, other = getattr(value, name), getattr(default, name)
        if one == other:
            continue
        if is_dataclass(one):
            found[name] = departures(one, other)
        else:
            found[name] = dict(one) if isinstance(one, Mapping) else one
    return found


def count_departures(value: Any, default: Any) -> int:
    """Return how many fields depart, each one of a section by itself."""
    return sum(
        count_departures(getattr(value, name), getattr(default, name))
        if is_dataclass(getattr(value, name))
        else 1
        for name in departures(value, default)
    )
