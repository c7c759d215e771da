"""What a payload of somebody else's holds, and where: text, title, URL and id of a passage.

A path is the name of a field, or several joined by dots for what stands in a mapping, as in
`metadata.source`. `_node_content`, where LlamaIndex keeps a node as JSON in a string, counts as
the mapping that it holds.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from two_tower.ingest.sources.values import as_id
from two_tower.models.data import Passage
from two_tower.models.errors import DataError

Payload = Mapping[str, Any]

NODE = "_node_content"
TEXTS = (
    *("text", "page_content", "content", "document", "chunk_text", "chunk", "body", "passage"),
    *(f"{NODE}.text", f"{NODE}.text_resource.text"),
)
TITLES = ("title", "heading", "headline")
URLS = ("url", "link", "source_url", "source")
IDS = ("passage_id", "_id", "doc_id", "id")
INSIDE = ("", "metadata.", "meta.")  # where titles, URLs and ids stand

SHOWN = 12  # fields in a message

_URL = re.compile(r"https?://\S+")


class PayloadFields(NamedTuple):
    """Where the parts of a passage stand; None for a part that there is not.

    Without a `passage_id` a passage is called as its point is.
    """

    text: str
    title: str | None = None
    url: str | None = None
    passage_id: str | None = None


def value_at(payload: Payload, path: str) -> Any:
    """Return what stands at a path, None where nothing does."""
    if path in payload:
        return payload[path]
    head, dot, rest = path.partition(".")
    inner = payload.get(head)
    if head == NODE and isinstance(inner, str):
        try:
            inner = json.loads(inner)
        except ValueError:
            return None
    return value_at(inner, rest) if dot and isinstance(inner, Mapping) else None


def find_fields(
    payloads: Sequence[Payload], *, where: str, text: str | None = None, title: str | None = None
) -> PayloadFields:
    """Return where text, title and URL stand, by the usual names; a part may be told.

    Args:
        payloads: some of the collection's, not empty.
        where: what they are of, for the message.
        text: path of the text.
        title: path of the title.

    Raises:
        DataError: no payload has a text there, or under a usual name.
    """
    names = (text,) if text else TEXTS
    found = _most_frequent(payloads, names, _is_text, least=1)
    if found is None:
        fields = [*dict.fromkeys(name for payload in payloads for name, _ in leaves(payload))]
        listed = ", ".join(fields[:SHOWN]) or "none"
        more = ", …" if len(fields) > SHOWN else ""
        expected = f"at {text!r}" if text else f"in any of {', '.join(TEXTS[:3])}, …"
        raise DataError(
            f"{where} has no text {expected} (fields: {listed}{more}); name the field with --text"
        )
    half = (len(payloads) + 1) // 2
    titles = (title,) if title else _inside(TITLES)
    return PayloadFields(
        found,
        _most_frequent(payloads, titles, _is_text, least=1 if title else half),
        _most_frequent(payloads, _inside(URLS), _is_url, least=half),
    )


def id_paths(payloads: Sequence[Payload]) -> list[str]:
    """Return the usual paths of ids at which each of these payloads has another id."""
    return [
        path
        for path in _inside(IDS)
        if "" not in (ids := {id_at(payload, path) for payload in payloads})
        and len(ids) == len(payloads)
    ]


def id_at(payload: Payload, path: str) -> str:
    """Return the id at a path as a string, empty where there is none."""
    value = value_at(payload, path)
    return as_id(value) if isinstance(value, str | int | float) else ""


def to_passage(point_id: Any, payload: Payload, fields: PayloadFields) -> Passage:
    """Return a point's passage; all that is not its text, title or URL becomes its fields.

    A mapping stays whole, so what is read from within one stays in it as well.
    """
    text: Any = value_at(payload, fields.text)  # the writer of DATA judges its type
    title, url = (path and value_at(payload, path) for path in (fields.title, fields.url))
    repeated = {fields.text.split(".")[0] if fields.text.startswith(NODE) else fields.text}
    repeated |= {path for path in (fields.title, fields.url) if path}
    if fields.passage_id == "passage_id":
        repeated.add("passage_id")
    return Passage(
        id_at(payload, fields.passage_id) if fields.passage_id else str(point_id),
        text,
        title if isinstance(title, str) else "",
        url if isinstance(url, str) else "",
        {name: value for name, value in payload.items() if name not in repeated},
    )


def leaves(payload: Payload, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of all that is no mapping."""
    for name, value in payload.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _inside(names: Sequence[str]) -> list[str]:
    return [container + name for container in INSIDE for name in names]


def _most_frequent(
    payloads: Sequence[Payload],
    paths: Sequence[str],
    test: Callable[[Any], bool],
    *,
    least: int,
) -> str | None:
    """Return the path at which most payloads have such a value, the first of equals."""
    counts = {path: sum(test(value_at(payload, path)) for payload in payloads) for path in paths}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] >= least else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and _URL.fullmatch(value) is not None
