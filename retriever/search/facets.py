"""Which values a payload field has, and in how many passages: what a filter may name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from two_tower.models.config import SHORT
from two_tower.retriever.engine.protocol import Engine, Kind
from two_tower.retriever.errors import QueryError
from two_tower.retriever.search.filters import Fields

if TYPE_CHECKING:
    from two_tower.retriever.engine.qdrant_models import qm

COUNTED = (Kind.KEYWORD, Kind.INTEGER, Kind.BOOL, Kind.UUID)
"""Types of index whose values the engine counts."""

MOST_VALUES = 1000


class FieldValue(NamedTuple):
    """A value of a field, and how many passages have it."""

    value: str | int | bool
    passages: int


def field_values(
    engine: Engine,
    collection: str,
    field: str,
    *,
    fields: Fields,
    limit: int,
    filter: qm.Filter | None = None,
) -> list[FieldValue]:
    """Return the most frequent values of a field, the most frequent first.

    Args:
        engine: that holds the collection.
        collection: its name.
        field: whose values.
        fields: the fields that have a payload index.
        limit: how many values at most.
        filter: passages that are counted; all by default.

    Raises:
        QueryError: the field has no index, or one whose values are not counted.
    """
    counted = [name for name, kind in fields.items() if kind in COUNTED]
    if field not in counted:
        index = f"a {fields[field].value} index" if field in fields else "no index"
        raise QueryError(
            f"cannot count the values of {SHORT.repr(field)}, which has {index}; expected one of: "
            f"{', '.join(counted) or 'none here'}"
        )
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST_VALUES:
        raise QueryError(
            f"the number of values is {SHORT.repr(limit)}; expected 1 to {MOST_VALUES:,}"
        )
    hits = engine.facet(collection, field, facet_filter=filter, limit=limit, exact=True).hits
    return _sorted(FieldValue(hit.value, hit.count) for hit in hits)


def _sorted(values: Iterable[FieldValue]) -> list[FieldValue]:
    return sorted(values, key=lambda one: (-one.passages, str(one.value)))
