"""Filters in plain Python: `{"kind": "note", "year": {"gte": 2010}}`.

    "kind": "note"                  equals
    "kind": ["note", "manual"]      any of
    "year": {"gte": 2010, "lt": 2020}   a range: gte, gt, lte, lt
    "title": {"text": "river bank"}     has all of these words, on a field with a full-text index

All fields must hold. Only fields with a payload index may be named: without one the engine reads
every payload, which is slow on any corpus that needs a search engine.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from types import MappingProxyType
from typing import Any

from qdrant_client import models as qm

from two_tower.retriever.errors import QueryError

Kind = qm.PayloadSchemaType

EXACT = frozenset({Kind.KEYWORD, Kind.UUID, Kind.INTEGER, Kind.BOOL})

TEXT = frozenset({Kind.TEXT})

ANSWERED_BY: Mapping[type, frozenset[Kind]] = MappingProxyType(
    {
        qm.MatchValue: EXACT,
        qm.MatchAny: EXACT,
        qm.MatchExcept: EXACT,
        qm.MatchText: TEXT,
        qm.MatchTextAny: TEXT,
        qm.MatchPhrase: TEXT,
        qm.Range: frozenset({Kind.INTEGER, Kind.FLOAT}),
        qm.DatetimeRange: frozenset({Kind.DATETIME}),
        qm.GeoBoundingBox: frozenset({Kind.GEO}),
        qm.GeoRadius: frozenset({Kind.GEO}),
        qm.GeoPolygon: frozenset({Kind.GEO}),
    }
)

PARTS = ("match", "range", "geo_bounding_box", "geo_radius", "geo_polygon")


def require_declared(given: qm.Filter, fields: Mapping[str, Kind], *, inside: str = "") -> None:
    """Refuse a filter that an index cannot answer.

    Args:
        given: the filter.
        fields: field -> type of its payload index.
        inside: path of the objects that a nested filter is about.

    Raises:
        QueryError: it names a field without index, or with one of another kind.
    """
    for condition in _conditions(given):
        if isinstance(condition, qm.Filter):
            require_declared(condition, fields, inside=inside)
        elif isinstance(condition, qm.NestedCondition):
            nested = condition.nested
            path = f"{inside}{nested.key.removesuffix('[]')}[]."
            require_declared(nested.filter, fields, inside=path)
        elif isinstance(condition, qm.FieldCondition):
            kind = _kind(inside + condition.key, fields)
            _require_answer(condition, kind, path=inside + condition.key)
        elif isinstance(condition, qm.IsEmptyCondition):
            _kind(inside + condition.is_empty.key, fields)
        elif isinstance(condition, qm.IsNullCondition):
            _kind(inside + condition.is_null.key, fields)
        elif not isinstance(condition, qm.HasIdCondition | qm.HasVectorCondition):
            raise QueryError(
                f"the filter has a {type(condition).__name__}, which not every engine knows; "
                "expected conditions on fields, ids or vectors"
            )


def _conditions(given: qm.Filter) -> Iterator[Any]:
    for part in (given.must, given.should, given.must_not):
        if part is not None:
            yield from part if isinstance(part, list) else [part]
    if given.min_should is not None:
        yield from given.min_should.conditions


def _kind(path: str, fields: Mapping[str, Kind]) -> Kind:
    if (kind := fields.get(path.removesuffix("[]"))) is None:
        raise QueryError(no_index(repr(path), fields))
    return kind


def no_index(shown: str, fields: Mapping[str, Kind]) -> str:
    """Say that a field has no payload index, and which have one."""
    return (
        f"cannot filter by {shown}: it has no payload index here; "
        f"fields that have one: {', '.join(fields) or 'none'}"
    )


def _require_answer(condition: qm.FieldCondition, kind: Kind, *, path: str) -> None:
    for name in PARTS:
        part = getattr(condition, name)
        if part is None:
            continue
        kinds = ANSWERED_BY.get(type(part), frozenset())
        if kind not in kinds:
            expected = " or ".join(sorted(k.value for k in kinds)) or "another condition"
            raise QueryError(
                f"field {path!r} has a {kind.value} index, which cannot answer "
                f"{type(part).__name__}; expected {expected}"
            )


FilterLike = Mapping[str, Any] | qm.Filter

Fields = Mapping[str, qm.PayloadSchemaType]
"""Field -> type of its payload index, as `Retriever.fields` gives it."""

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

WORD = re.compile(r"(?P<field>[^=<>~]+)(?P<sign>>=|<=|=|>|<|~)(?P<value>.*)", re.DOTALL)

SIGNS = {">=": "gte", ">": "gt", "<=": "lte", "<": "lt"}

TRUTH = {"true": True, "false": False}


def parse_filters(words: Sequence[str], fields: Fields) -> dict[str, Any]:
    """Return the mapping that `retriever.filters.to_filter` takes.

    A field may come again: its `=` values are alternatives, its bounds hold together.

    Args:
        words: `field=value`, `field>=value` (also `>`, `<=`, `<`), or `field~words` for full text.
        fields: as in `to_filter`; a value is read as the type of its field's index.

    Raises:
        QueryError: a word of another form, or two forms for one field.
    """
    parsed: dict[str, Any] = {}
    for word in words:
        found = WORD.fullmatch(word)
        if not found:
            raise QueryError(
                f"filter {word!r} is not understood; expected field=value, field>=value or "
                "field~words"
            )
        field, sign = found["field"].strip(), found["sign"]
        _add(parsed, field, sign, _read(found["value"].strip(), fields.get(field)))
    return parsed


def _add(parsed: dict[str, Any], field: str, sign: str, value: object) -> None:
    wanted: Any = (
        [value] if sign == "=" else {"text": value} if sign == "~" else {SIGNS[sign]: value}
    )
    before = parsed.get(field, type(wanted)())
    if type(before) is not type(wanted) or (before and "text" in {*before, *wanted}):
        raise QueryError(f"filter on {field!r} is given in two forms; expected one")
    parsed[field] = before + wanted if isinstance(wanted, list) else before | wanted


def _read(value: str, kind: qm.PayloadSchemaType | None) -> object:
    """Return a value in its field's type; as a string where it is not one, to be refused later."""
    try:
        if kind is qm.PayloadSchemaType.INTEGER:
            return int(value)
        if kind is qm.PayloadSchemaType.FLOAT:
            return float(value)
    except ValueError:
        return value
    if kind is qm.PayloadSchemaType.BOOL:
        return TRUTH.get(value.lower(), value)
    return value
