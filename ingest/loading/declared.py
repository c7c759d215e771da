"""Payload indexes that somebody declares, against the values that DATA has for them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError, DataError
from two_tower.retriever.collection.options import ALWAYS

_DATE = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?", re.IGNORECASE
)

_INT64 = range(-(2**63), 2**63)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in _INT64


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "keyword": _is_text,
    "text": _is_text,
    "integer": _is_integer,
    "float": lambda value: isinstance(value, float) or _is_integer(value),
    "bool": lambda value: isinstance(value, bool),
    "datetime": lambda value: isinstance(value, str) and _DATE.fullmatch(value) is not None,
}
"""Type of an index -> whether the engine puts a value into it."""


def require_values(dataset: Dataset, declared: Mapping[str, str]) -> None:
    """Refuse an index that would stay empty: a filter on its field would find nothing.

    Raises:
        ConfigError: an index is declared with a type that none of the field's values has.
    """
    open_fields = {f: kind for f, kind in declared.items() if kind in _FITS and f not in ALWAYS}
    examples: dict[str, Any] = {}
    for passage in dataset.passages() if open_fields else ():
        for field, kind in list(open_fields.items()):
            value = passage.fields.get(field)
            values = value if isinstance(value, list) else [value]
            if any(map(_FITS[kind], values)):
                del open_fields[field]
            elif value is not None:
                examples.setdefault(field, values[0] if values else value)
        if not open_fields:
            return
    for field, kind in open_fields.items():
        if field in examples:
            raise ConfigError(
                f"collection.indexes has {field}: {kind}, but no value of DATA is one (the first "
                f"is {ascii(examples[field])[:60]}); {_advice(kind, examples[field])}"
            )


def require_found(dataset: Dataset, kinds: Mapping[str, str]) -> None:
    """Refuse values that the indexes of a collection do not take: no filter would find them.

    Args:
        dataset: what is to be added.
        kinds: field -> type of its index. One of dates takes any text.

    Raises:
        DataError: there is such a value.
    """
    fits = {field: _FITS[kind] for field, kind in kinds.items() if kind in _FITS}
    fits |= {field: _is_text for field, kind in kinds.items() if kind == "datetime"}
    for passage in dataset.passages() if fits else ():
        for field, value in passage.fields.items():
            for item in value if isinstance(value, list) else [value]:
                if field in fits and item is not None and not fits[field](item):
                    raise DataError(
                        f"passage {ascii(passage.passage_id)[:60]}: {field} is {ascii(item)[:60]}, "
                        f"and the collection's index takes {kinds[field]} alone, so that no filter "
                        "would find it; nothing was written. To change the type of a field, load "
                        "all passages anew: ingest load"
                    )


def _advice(kind: str, value: Any) -> str:
    fitting = [name for name in ("bool", "integer", "float", "keyword") if _FITS[name](value)]
    other = f"{fitting[0]}, or " if fitting else ""
    form = "2024-05-01 or 2024-05-01T12:00:00Z" if kind == "datetime" else f"a real {kind}"
    return f"expected {other}values that are {form}"
