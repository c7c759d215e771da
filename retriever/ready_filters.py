"""Ready `qm.Filter`s: they may name only what has an index that answers them.

Without one the engine reads every payload, or refuses in strict mode; and a condition that an
older server does not know it may leave out without a word.
"""

from collections.abc import Iterator, Mapping
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
