"""Which payload fields are indexed, and how: by what they hold, or as declared."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qdrant_client import models as qm

from two_tower.models.errors import ConfigError

if TYPE_CHECKING:
    from two_tower.retriever.engine_protocol import PayloadIndex

PLAIN_FIELD = re.compile(r"[A-Za-z0-9_\-]+")
ALWAYS = ("text", "url")
INDEX_TYPES = {
    "keyword": qm.PayloadSchemaType.KEYWORD,
    "integer": qm.PayloadSchemaType.INTEGER,
    "float": qm.PayloadSchemaType.FLOAT,
    "bool": qm.PayloadSchemaType.BOOL,
}
TEXT_INDEX = qm.TextIndexParams(
    type=qm.TextIndexType.TEXT, tokenizer=qm.TokenizerType.WORD, lowercase=True
)
DECLARED: "Mapping[str, PayloadIndex]" = {
    **INDEX_TYPES,
    "datetime": qm.PayloadSchemaType.DATETIME,
    "text": TEXT_INDEX,
}


def indexable_fields(
    census: Mapping[str, Any], declared: Mapping[str, str] = MappingProxyType({})
) -> "dict[str, PayloadIndex]":
    """Return the payload indexes for the fields that a DATA manifest describes.

    Every field of one plain type gets one, except long text, fields with thousands of different
    strings (ids, mostly) and names that a filter would read as a path.

    Args:
        census: of the manifest.
        declared: field -> type of its index, or `none`; these come before what the census says.

    Raises:
        ConfigError: an index is declared on a field that no passage has, or that has such a name.
    """
    plain = [name for name in census if PLAIN_FIELD.fullmatch(name)]
    if unknown := [name for name in declared if name not in (*ALWAYS, *plain)]:
        raise ConfigError(
            f"collection.indexes has {unknown[0]!r}, which is no field of DATA that can be "
            f"indexed; expected some of {', '.join([*ALWAYS, *plain])}"
        )
    counted: dict[str, PayloadIndex] = {
        name: INDEX_TYPES[field["type"]]
        for name, field in ((name, census[name]) for name in plain)
        if field["type"] in INDEX_TYPES
        and not (field["type"] == "keyword" and field.get("more"))
        and name not in declared
    }
    return counted | {n: DECLARED[kind] for n, kind in declared.items() if kind != "none"}
