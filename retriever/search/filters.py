"""Filters in plain Python: `{"kind": "note", "year": {"gte": 2010}}`.

    "kind": "note"                  equals
    "kind": ["note", "manual"]      any of
    "year": {"gte": 2010, "lt": 2020}   a range: gte, gt, lte, lt
    "title": {"text": "river bank"}     has all of these words, on a field with a full-text index

All fields must hold. Only fields with a payload index may be named: without one the engine reads
every payload, which is slow on any corpus that needs a search engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any, TypeAlias

import numpy as np

from two_tower.retriever.engine.protocol import Kind
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.errors import QueryError

FilterLike: TypeAlias = "Mapping[str, Any] | qm.Filter"

Fields = Mapping[str, Kind]
"""Field -> type of its payload index, as `Retriever.fields` gives it."""

BOUNDS = ("gte", "gt", "lte", "lt")

RANGES = {Kind.INTEGER: "Range", Kind.FLOAT: "Range", Kind.DATETIME: "DatetimeRange"}
"""Type of an index -> the client's type of a range in it."""

MOST_VALUES = 1_000

SMALLEST, LARGEST = -(2**63), 2**63 - 1

EXAMPLES: Mapping[Kind, str] = {
    Kind.KEYWORD: "a string",
    Kind.UUID: "a string",
    Kind.INTEGER: "an integer",
    Kind.FLOAT: "a number",
    Kind.BOOL: "true or false",
    Kind.DATETIME: "a date in ISO 8601",
}


def to_filter(filter: FilterLike, fields: Fields) -> qm.Filter | None:
    """Return the engine's filter, None where nothing is filtered.

    Args:
        filter: field -> condition, see the module; or a ready `qm.Filter`, which is only checked.
        fields: the fields that have a payload index.

    Raises:
        QueryError: a field without index, or a condition that its type does not have.
    """
    if isinstance(filter, qm.Filter):
        require_indexes(filter, fields)
        return filter
    if not isinstance(filter, Mapping):
        raise QueryError(f"the filter is {_show(filter)}; expected a mapping of field to value")
    conditions = [_condition(field, value, fields) for field, value in filter.items()]
    return qm.Filter(must=conditions) if conditions else None


def _condition(field: object, value: object, fields: Fields) -> qm.Condition:
    if not isinstance(field, str) or field not in fields:
        raise QueryError(_no_index(_show(field), fields))
    kind = fields[field]
    if isinstance(value, Mapping):
        return _text(field, value, kind) if "text" in value else _range(field, value, kind)
    if kind not in EXAMPLES:
        form = '{"text": "…"}' if kind is Kind.TEXT else "a ready qm.Filter"
        raise QueryError(f"field {field!r} has a {kind.value} index; filter it with {form}")
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | np.ndarray):
        return _any_of(field, [*value], kind)
    if isinstance(value, np.ndarray):
        return _any_of(field, [*np.ravel(np.asarray(value))], kind)
    return _equals(field, _typed(field, value, kind), kind)


def _text(field: str, value: Mapping[Any, Any], kind: Kind) -> qm.FieldCondition:
    words = value["text"]
    if kind is not Kind.TEXT:
        raise QueryError(
            f"field {field!r} has a {kind.value} index; full text needs a text index: load again "
            f"with --options FILE, in which collection: has indexes: {{{field}: text}}"
        )
    if len(value) > 1 or not isinstance(words, str) or not words.strip():
        raise QueryError(f'field {field!r} has {_show(value)}; expected {{"text": "some words"}}')
    return qm.FieldCondition(key=field, match=qm.MatchText(text=_require_text(field, words)))


def _range(field: str, value: Mapping[Any, Any], kind: Kind) -> qm.FieldCondition:
    if kind not in RANGES:
        raise QueryError(
            f"field {field!r} has a {kind.value} index, which has no ranges; for dates load again "
            f"with --options FILE, in which collection: has indexes: {{{field}: datetime}}"
        )
    if not value or not set(value) <= {*BOUNDS}:
        raise QueryError(
            f"field {field!r} has {_show(value)}; expected some of {', '.join(BOUNDS)}"
        )
    bounds = {name: _typed(field, bound, kind) for name, bound in value.items()}
    return qm.FieldCondition(key=field, range=_range_of(kind, **bounds))


def _range_of(kind: Kind, **bounds: Any) -> Any:
    return getattr(qm, RANGES[kind])(**bounds)


def _any_of(field: str, values: Sequence[object], kind: Kind) -> qm.Condition:
    if not 1 <= len(values) <= MOST_VALUES:
        raise QueryError(
            f"field {field!r} has a list of {len(values):,} values; expected 1 to {MOST_VALUES:,}"
        )
    typed = [_typed(field, value, kind) for value in values]
    if kind in (Kind.KEYWORD, Kind.UUID, Kind.INTEGER):
        return qm.FieldCondition(key=field, match=qm.MatchAny(any=typed))
    return qm.Filter(should=[_equals(field, value, kind) for value in typed])


def _equals(field: str, value: Any, kind: Kind) -> qm.FieldCondition:
    if kind in RANGES and kind is not Kind.INTEGER:  # the engine matches no float or date exactly
        return qm.FieldCondition(key=field, range=_range_of(kind, gte=value, lte=value))
    return qm.FieldCondition(key=field, match=qm.MatchValue(value=value))


def _typed(field: str, value: object, kind: Kind) -> Any:
    """Return a value as the field's index takes it; 2005.0 and numpy's 2005 are 2005."""
    if isinstance(value, np.generic):
        value = _plain(value)
    if kind is Kind.INTEGER and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and kind in (Kind.KEYWORD, Kind.UUID):
        return _require_text(field, value)
    if isinstance(value, bool) and kind is Kind.BOOL:
        return value
    if kind is Kind.DATETIME:
        return _moment(field, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        is_int64 = isinstance(value, int) and SMALLEST <= value <= LARGEST
        if kind is Kind.INTEGER and is_int64:
            return value
        if kind is Kind.FLOAT and (is_int64 or (isinstance(value, float) and math.isfinite(value))):
            return float(value)
    raise QueryError(f"field {field!r} has {_show(value)}; expected {EXAMPLES[kind]}")


def _plain(value: np.generic[Any]) -> object:
    """Return a scalar of numpy as Python has it; dates finer than microseconds are cut."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")
    plain: object = value.item()
    return plain


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


def _require_text(field: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise QueryError(f"field {field!r} has {_show(text)}, which is not text") from None
    return text


def _show(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _no_index(field: str, fields: Fields) -> str:
    return (
        f"cannot filter by {field}: it has no payload index here (ingest load --options FILE makes "
        "one, by collection: {indexes: {FIELD: TYPE}}, where TYPE is text for words); "
        f"fields that have one: {', '.join(fields) or 'none'}"
    )


_EXACT, _TEXT, _GEO = {Kind.KEYWORD, Kind.UUID, Kind.INTEGER, Kind.BOOL}, {Kind.TEXT}, {Kind.GEO}

ANSWERED_BY: Mapping[str, set[Kind]] = {
    "MatchValue": _EXACT,
    "MatchAny": _EXACT,
    "MatchExcept": _EXACT,
    "MatchText": _TEXT,
    "MatchTextAny": _TEXT,
    "MatchPhrase": _TEXT,
    "Range": {Kind.INTEGER, Kind.FLOAT},
    "DatetimeRange": {Kind.DATETIME},
    "GeoBoundingBox": _GEO,
    "GeoRadius": _GEO,
    "GeoPolygon": _GEO,
}
"""Type of a part of a condition -> types of the indexes that can answer it."""


def require_indexes(filter: qm.Filter, fields: Fields, *, inside: str = "") -> None:
    """Refuse a filter that the indexes cannot answer.

    Args:
        filter: the engine's own form.
        fields: the fields that have a payload index.
        inside: path of the objects that a nested filter is about.

    Raises:
        QueryError: it names a field without index, or with one of another kind.
    """
    for condition in _conditions(filter):
        if isinstance(condition, qm.Filter):
            require_indexes(condition, fields, inside=inside)
        elif isinstance(condition, qm.NestedCondition):
            nested = condition.nested
            path = f"{inside}{nested.key.removesuffix('[]')}[]."
            require_indexes(nested.filter, fields, inside=path)
        elif isinstance(condition, qm.FieldCondition):
            path = inside + condition.key
            _require_answer(condition, _kind(path, fields), path=path)
        elif isinstance(condition, qm.IsEmptyCondition):
            _kind(inside + condition.is_empty.key, fields)
        elif isinstance(condition, qm.IsNullCondition):
            _kind(inside + condition.is_null.key, fields)
        elif not isinstance(condition, qm.HasIdCondition | qm.HasVectorCondition):
            raise QueryError(
                f"the filter has a {type(condition).__name__}, which not every engine knows; "
                "expected conditions on fields, ids or vectors"
            )


def _conditions(filter: qm.Filter) -> Iterator[Any]:
    for part in (filter.must, filter.should, filter.must_not):
        if part is not None:
            yield from part if isinstance(part, list) else [part]
    if filter.min_should is not None:
        yield from filter.min_should.conditions


def _kind(path: str, fields: Fields) -> Kind:
    if (kind := fields.get(path.removesuffix("[]"))) is None:
        raise QueryError(_no_index(repr(path), fields))
    return kind


def _require_answer(condition: qm.FieldCondition, kind: Kind, *, path: str) -> None:
    for name in ("match", "range", "geo_bounding_box", "geo_radius", "geo_polygon"):
        part = getattr(condition, name)
        if part is None or kind in (kinds := ANSWERED_BY.get(type(part).__name__, set())):
            continue
        expected = " or ".join(sorted(k.value for k in kinds)) or "another condition"
        raise QueryError(
            f"field {path!r} has a {kind.value} index, which cannot answer "
            f"{type(part).__name__}; expected {expected}"
        )


FILTER_WORD = re.compile(r"(?P<field>[^=<>~]+)(?P<sign>>=|<=|=|>|<|~)(?P<value>.*)", re.DOTALL)

SIGNS = {">=": "gte", ">": "gt", "<=": "lte", "<": "lt"}


def parse_filters(words: Sequence[str], fields: Fields) -> dict[str, Any]:
    """Return the mapping that `to_filter` takes.

    A field may come again: its `=` values are alternatives, its bounds hold together.

    Args:
        words: `field=value`, `field>=value` (also `>`, `<=`, `<`), or `field~words` for full text.
        fields: as in `to_filter`; a value is read as the type of its field's index.

    Raises:
        QueryError: a word of another form, or two forms for one field.
    """
    filter: dict[str, Any] = {}
    for word in words:
        match = FILTER_WORD.fullmatch(word)
        if not match:
            raise QueryError(
                f"filter {word!r} is not understood; expected field=value, field>=value or "
                "field~words"
            )
        field, sign = match["field"].strip(), match["sign"]
        value = _read(match["value"].strip(), fields.get(field))
        condition: Any = (
            [value] if sign == "=" else {"text": value} if sign == "~" else {SIGNS[sign]: value}
        )
        before = filter.get(field, type(condition)())
        if type(before) is not type(condition) or (before and "text" in {*before, *condition}):
            raise QueryError(f"filter on {field!r} is given in two forms; expected one")
        filter[field] = before + condition if sign == "=" else before | condition
    return filter


def _read(value: str, kind: Kind | None) -> object:
    """Return a value in its field's type; as a string where it is not one, to be refused later."""
    try:
        if kind is Kind.INTEGER:
            return int(value)
        if kind is Kind.FLOAT:
            return float(value)
    except ValueError:
        return value
    if kind is Kind.BOOL:
        return {"true": True, "false": False}.get(value.lower(), value)
    return value
