"""Filters in plain Python: `{"kind": "note", "year": {"gte": 2010}}`.

    "kind": "note"                  equals
    "kind": ["note", "manual"]      any of
    "year": {"gte": 2010, "lt": 2020}   a range: gte, gt, lte, lt
    "title": {"text": "river bank"}     has all of these words, on a field with a full-text index

All fields must hold. Only fields with a payload index may be named: without one the engine reads
every payload, which is slow on any corpus that needs a search engine.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from types import MappingProxyType
from typing import Any

from qdrant_client import models as qm

from two_tower.retriever.errors import QueryError
from two_tower.retriever.ready_filters import no_index, require_declared

FilterLike = Mapping[str, Any] | qm.Filter
Fields = Mapping[str, qm.PayloadSchemaType]
"""Field -> type of its payload index, as `Retriever.fields` gives it."""

Kind = qm.PayloadSchemaType
BOUNDS = ("gte", "gt", "lte", "lt")
MOST_VALUES = 1_000
SMALLEST, LARGEST = -(2**63), 2**63 - 1
EXAMPLES: Mapping[Kind, str] = MappingProxyType(
    {
        Kind.KEYWORD: "a string",
        Kind.UUID: "a string",
        Kind.INTEGER: "an integer",
        Kind.FLOAT: "a number",
        Kind.BOOL: "true or false",
        Kind.DATETIME: "a date in ISO 8601",
    }
)


def to_filter(given: FilterLike | None, fields: Fields) -> qm.Filter | None:
    """Return the engine's filter, None where nothing is filtered.

    Args:
        given: field -> condition, see the module; or a ready `qm.Filter`, which is only checked.
        fields: the fields that have a payload index.

    Raises:
        QueryError: a field without index, or a condition that its type does not have.
    """
    if given is None:
        return None
    if isinstance(given, qm.Filter):
        require_declared(given, fields)
        return given
    if not isinstance(given, Mapping):
        raise QueryError(f"the filter is {_show(given)}; expected a mapping of field to value")
    conditions = [_condition(field, wanted, fields) for field, wanted in given.items()]
    return qm.Filter(must=conditions) if conditions else None


def both(first: qm.Filter | None, second: qm.Filter | None) -> qm.Filter | None:
    """Return a filter that holds where both do."""
    if first is None or second is None:
        return first or second
    return qm.Filter(must=[first, second])


def field_types(info: qm.CollectionInfo) -> dict[str, Kind]:
    """Return the indexed payload fields of a collection and their types."""
    return {name: index.data_type for name, index in sorted(info.payload_schema.items())}


def _condition(field: object, wanted: object, fields: Fields) -> qm.Condition:
    if not isinstance(field, str) or field not in fields:
        raise QueryError(no_index(_show(field), fields))
    kind = fields[field]
    if isinstance(wanted, Mapping):
        return _text(field, wanted, kind) if "text" in wanted else _range(field, wanted, kind)
    if kind not in EXAMPLES:
        form = '{"text": "…"}' if kind is Kind.TEXT else "a ready qm.Filter"
        raise QueryError(f"field {field!r} has a {kind.value} index; filter it with {form}")
    if isinstance(wanted, list | tuple | set | frozenset):
        return _any_of(field, [*wanted], kind)
    return _equals(field, _value(field, wanted, kind), kind)


def _text(field: str, wanted: Mapping[Any, Any], kind: Kind) -> qm.FieldCondition:
    words = wanted["text"]
    if kind is not Kind.TEXT:
        raise QueryError(f"field {field!r} has a {kind.value} index; full text needs a text index")
    if len(wanted) > 1 or not isinstance(words, str) or not words.strip():
        raise QueryError(f'field {field!r} has {_show(wanted)}; expected {{"text": "some words"}}')
    return qm.FieldCondition(key=field, match=qm.MatchText(text=_clean(field, words)))


def _range(field: str, wanted: Mapping[Any, Any], kind: Kind) -> qm.FieldCondition:
    if kind not in RANGES:
        raise QueryError(f"field {field!r} has a {kind.value} index, which has no ranges")
    if not wanted or not set(wanted) <= {*BOUNDS}:
        raise QueryError(
            f"field {field!r} has {_show(wanted)}; expected some of {', '.join(BOUNDS)}"
        )
    bounds = {name: _value(field, value, kind) for name, value in wanted.items()}
    return qm.FieldCondition(key=field, range=RANGES[kind](**bounds))


def _any_of(field: str, wanted: Sequence[object], kind: Kind) -> qm.Condition:
    if not 1 <= len(wanted) <= MOST_VALUES:
        raise QueryError(
            f"field {field!r} has a list of {len(wanted):,} values; expected 1 to {MOST_VALUES:,}"
        )
    values = [_value(field, value, kind) for value in wanted]
    if kind in (Kind.KEYWORD, Kind.UUID, Kind.INTEGER):
        return qm.FieldCondition(key=field, match=qm.MatchAny(any=values))
    return qm.Filter(should=[_equals(field, value, kind) for value in values])


def _equals(field: str, value: Any, kind: Kind) -> qm.FieldCondition:
    if kind in RANGES and kind is not Kind.INTEGER:  # the engine matches no float or date exactly
        return qm.FieldCondition(key=field, range=RANGES[kind](gte=value, lte=value))
    return qm.FieldCondition(key=field, match=qm.MatchValue(value=value))


def _value(field: str, value: object, kind: Kind) -> Any:
    """Return a value as the field's index takes it."""
    if isinstance(value, str) and kind in (Kind.KEYWORD, Kind.UUID):
        return _clean(field, value)
    if isinstance(value, bool) and kind is Kind.BOOL:
        return value
    if kind is Kind.DATETIME:
        return _moment(field, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        whole = isinstance(value, int) and SMALLEST <= value <= LARGEST
        if kind is Kind.INTEGER and whole:
            return value
        if kind is Kind.FLOAT and (whole or (isinstance(value, float) and math.isfinite(value))):
            return float(value)
    raise QueryError(f"field {field!r} has {_show(value)}; expected {EXAMPLES[kind]}")


def _moment(field: str, value: object) -> datetime:
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value)
    except ValueError:
        pass
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    raise QueryError(f"field {field!r} has {_show(value)}; expected {EXAMPLES[Kind.DATETIME]}")


def _clean(field: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise QueryError(f"field {field!r} has {_show(text)}, which is not text") from None
    return text


def _show(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


RANGES: Mapping[Kind, Callable[..., Any]] = MappingProxyType(
    {Kind.INTEGER: qm.Range, Kind.FLOAT: qm.Range, Kind.DATETIME: qm.DatetimeRange}
)
