"""Filters as words of a command line: `kind=note`, `year>=2010`, `title~river`."""

import re
from collections.abc import Sequence
from typing import Any

from qdrant_client import models as qm

from two_tower.retriever.errors import QueryError
from two_tower.retriever.filters import Fields

WORD = re.compile(r"(?P<field>[^=<>~]+)(?P<sign>>=|<=|=|>|<|~)(?P<value>.*)", re.DOTALL)
BOUNDS = {">=": "gte", ">": "gt", "<=": "lte", "<": "lt"}
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
        [value] if sign == "=" else {"text": value} if sign == "~" else {BOUNDS[sign]: value}
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
