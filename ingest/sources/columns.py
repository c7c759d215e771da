"""Which column of a table is the query, the passage, its id: by the names that people give them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from two_tower.ingest.dataset.cleaning import one_line
from two_tower.ingest.sources.rows import Row, column_names, first_rows
from two_tower.ingest.sources.values import as_integer, is_blank
from two_tower.models.errors import DataError

POSITIVES = ("positive", "positives", "pos", "positive_passages", "positive_ctxs")

QUERY_IDS = ("query_id", "qid", "question_id", "topic_id")

PASSAGE_IDS = ("passage_id", "doc_id", "docid", "pid", "_id", "corpus_id", "document_id")

USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "question", "query_text", "question_text", "anchor"),
    "passage": (
        *("passage", "text", "passage_text", "answer", "answer_text", "document", "context"),
        *("body", "contents", *POSITIVES, "content"),
    ),
    "title": ("title",),
    "url": ("url", "link", "uri", "href"),
    "passage_id": (*PASSAGE_IDS, "id"),
    "query_id": QUERY_IDS,
    "relevance": ("relevance", "label", "score", "is_relevant"),
    "split": ("split",),
}
"""Role of a column -> its usual names, the likelier first; capitals, `-` and spaces are as `_`."""

_QUERY_ROLES = ("query_id", "relevance", "split")
"""They say nothing without a query."""

_NEGATIVE = re.compile(r"(hard_?)?neg(ative)?s?(_(passages?|ctxs|texts?))?(_?\d+)?")


def plain(name: str) -> str:
    """Return a column's name as `USUAL_NAMES` has it."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def is_negative(name: str) -> bool:
    """Say whether a column's name is that of passages that do not answer."""
    return bool(_NEGATIVE.fullmatch(plain(name)))


def resolve_columns(
    asked: Mapping[str, str],
    file: Path,
    *,
    header: Sequence[str] | None = None,
    needed: Sequence[str] = ("passage",),
) -> dict[str, str]:
    """Return role -> column for the columns that a table has.

    A column of scores that are no whole numbers judges nothing: it stays a field.

    Args:
        asked: role -> column, where the user has said it.
        file: the table.
        header: names of its columns, where it has none itself.
        needed: roles that there must be a column for.

    Raises:
        DataError: the table has no column that was asked for, or none for a role that is needed.
    """
    names = header or column_names(file)
    shown = [one_line(name, limit=40) for name in names[:20]]
    listed = ", ".join(shown) + (", …" if len(names) > 20 else "") or "none"
    for role, name in asked.items():
        if name not in names:
            flag = f"--{role.replace('_', '-')}-column"
            raise DataError(f"{file} has no column {name!r} for {flag}; found: {listed}")
    columns = dict(asked)
    by_plain_name = {plain(name): name for name in reversed(names)}
    for role, usual in USUAL_NAMES.items():
        known = [by_plain_name[name] for name in usual if name in by_plain_name]
        free = (name for name in known if name not in columns.values())
        if role not in columns and (guess := next(free, None)):
            columns[role] = guess
    for role in needed:
        if role not in columns:
            advice = "; name one with --passage-column" if role == "passage" else ""
            raise DataError(
                f"{file} has no column named {' or '.join(USUAL_NAMES[role])}; "
                f"found: {listed}{advice}"
            )
    if "query" not in columns:
        columns = {r: c for r, c in columns.items() if r not in _QUERY_ROLES or r in asked}
    score = columns.get("relevance")
    is_guessed = score and "relevance" not in asked and plain(score) == "score"
    if score and is_guessed and not _are_whole(first_rows(file), score):
        del columns["relevance"]
    return columns


def negative_columns(columns: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Return the columns with passages that do not answer, beside one of `POSITIVES`."""
    if "query" not in columns or plain(columns["passage"]) not in POSITIVES:
        return []
    return [name for name in names if is_negative(name)]


def _are_whole(rows: Sequence[Row], column: str) -> bool:
    values = (row.values.get(column) for row in rows)
    return all(is_blank(value) or isinstance(as_integer(value), int) for value in values)
