"""Reads a log of searches and events back, whoever wrote it after User Behavior Insights."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from two_tower.models.errors import DataError
from two_tower.models.files import require_plain

ANSWERS = "answers"
"""The action of somebody who says that a passage answers the query."""

RATES = "rate"
"""The action of somebody who grades a passage: `event_attributes.rating`, above 0 for an answer."""

CLICKS = frozenset({"click", "click_through"})

LONGEST_LINE = 2**22

Reject = Callable[[str, str, str], None]
"""(reason, `file:line`, the line)."""


class Search(NamedTuple):
    """One search as it was answered.

    Attributes:
        query_id: names it.
        query: what was searched.
        client_id: what stands for who searched; empty where nobody said.
        timestamp: as written.
        collection: what was searched, empty where the log does not say.
        passage_ids: the hits, in their order.
        attributes: what else the log says, `query_attributes`.
    """

    query_id: str
    query: str
    client_id: str
    timestamp: str
    collection: str
    passage_ids: tuple[str, ...]
    attributes: Mapping[str, Any]


class Event(NamedTuple):
    """What somebody did with a hit.

    Attributes:
        query_id: of the search.
        action: `click`, `answers`, `rate`, or another, which nothing here reads.
        passage_id: the hit.
        rating: with `rate`; above 0 for an answer.
        where: `file:line`.
    """

    query_id: str
    action: str
    passage_id: str
    rating: int
    where: str


def log_files(folder: Path) -> list[Path]:
    """Return the files of a log; none where the folder holds something else.

    The first line of one of them is a search with its hits.
    """
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    return files if any(_begins_with_a_search(path) for path in files) else []


def read_events(files: Collection[Path], reject: Reject) -> list[Event]:
    """Return all events of a log that are about a hit.

    Raises:
        DataError: a file cannot be read.
    """
    return [event for where, row in _rows(files, reject) if (event := _event(row, where))]


def read_searches(
    files: Collection[Path], reject: Reject, *, ids: Collection[str] | None = None
) -> Iterator[Search]:
    """Yield the searches of a log, or those with one of `ids`.

    Raises:
        DataError: a file cannot be read.
    """
    for where, row in _rows(files, reject):
        if "user_query" not in row or (ids is not None and row.get("query_id") not in ids):
            continue
        if (search := _search(row)) is not None:
            yield search
        else:
            reject("search: no query, id or hits", where, json.dumps(row))


def _begins_with_a_search(path: Path) -> bool:
    try:
        require_plain(path)
        with path.open("rb") as file:
            first = json.loads(file.readline(LONGEST_LINE))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and _search(first) is not None


def _rows(files: Collection[Path], reject: Reject) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in files:
        try:
            require_plain(path)
            with path.open("rb") as file:
                for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                    where = f"{path.name}:{number}"
                    try:
                        row = json.loads(line)
                    except (ValueError, RecursionError):
                        row = None
                    if isinstance(row, dict):
                        yield where, row
                    elif line.strip():
                        cut = not line.endswith(b"\n")
                        reason = "line: cut off" if cut else "line: no JSON object"
                        reject(reason, where, line.decode(errors="backslashreplace"))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


def _search(row: Mapping[str, Any]) -> Search | None:
    query, query_id = row.get("user_query"), row.get("query_id")
    hits, attributes = row.get("query_response_hit_ids"), row.get("query_attributes")
    if not isinstance(query, str) or not isinstance(query_id, str) or not isinstance(hits, list):
        return None
    attributes = attributes if isinstance(attributes, dict) else {}
    return Search(
        query_id,
        query,
        str(row.get("client_id") or ""),
        str(row.get("timestamp") or ""),
        str(attributes.get("collection") or row.get("application") or ""),
        tuple(str(hit) for hit in hits),
        attributes,
    )


def _event(row: Mapping[str, Any], where: str) -> Event | None:
    attributes = row.get("event_attributes")
    thing = attributes.get("object") if isinstance(attributes, dict) else None
    passage_id = thing.get("object_id") if isinstance(thing, dict) else None
    action, query_id = row.get("action_name"), row.get("query_id")
    if not isinstance(action, str) or not isinstance(query_id, str) or passage_id is None:
        return None
    rating = attributes.get("rating", 0) if isinstance(attributes, dict) else 0
    grade = rating if isinstance(rating, int) and not isinstance(rating, bool) else 0
    return Event(query_id, action, str(passage_id), grade, where)
