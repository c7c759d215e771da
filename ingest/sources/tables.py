"""Tables with named columns: JSONL, CSV, TSV (plain or `.gz`) and Parquet.

A row holds a passage and, unless the table is a bare corpus, a query that it answers.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from two_tower.ingest.dataset.cleaning import one_line
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.rows import (
    Row,
    as_id,
    as_integer,
    as_text,
    csv_header,
    read_csv,
    read_objects,
    split_name,
)
from two_tower.models.console import progress
from two_tower.models.data import Passage, Qrel, Query
from two_tower.models.errors import DataError

SUFFIXES = (".jsonl", ".csv", ".tsv", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".parquet")

_PEEKED_ROWS = 100

_SPLIT_FILES = ("train", "dev", "validation", "valid", "val", "test")

# role of a column -> its usual names
_USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "question"),
    "passage": ("passage", "text", "passage_text", "answer", "document", "content"),
    "title": ("title",),
    "url": ("url",),
    "passage_id": ("passage_id", "doc_id", "docid", "pid", "_id"),
    "query_id": ("query_id", "qid"),
    "relevance": ("relevance", "label"),
    "split": ("split",),
}

# They say nothing without a query.
_QUERY_ROLES = ("query_id", "relevance", "split")


class Tables:
    """One table, or a folder of tables, as a source."""

    def __init__(self, name: str, files: list[Path], columns: Mapping[str, str]) -> None:
        """Look at the first file.

        Args:
            name: the path as it was given.
            files: the tables.
            columns: role -> name of the column; the usual names are looked for otherwise.

        Raises:
            DataError: the first file cannot be read, or lacks a column.
        """
        self.name = name
        self._files = files
        self._columns = columns
        self.details: Mapping[str, Any] = {
            "kind": "table",
            "files": [file.name for file in files],
            "columns": resolve_columns(columns, files[0]),
        }

    def write_to(self, writer: DatasetWriter) -> None:
        """Write the rows of all files.

        Raises:
            DataError: a file cannot be read, or lacks a column.
        """
        for file in self._files:
            columns = resolve_columns(self._columns, file)
            stem = file.name.partition(".")[0].lower()
            split = split_name(stem) if stem in _SPLIT_FILES else "train"
            for row in progress(_read_rows(file, writer), label=file.name):
                _write_row(row, columns, split, writer)


def write_judgements(file: Path, writer: DatasetWriter) -> None:
    """Write the judged queries of a table, one row for each query and a passage's id.

    Raises:
        DataError: the file cannot be read, or has no column for query and passage id.
    """
    if not file.name.endswith(SUFFIXES):
        raise DataError(f"{file} is no table; expected one of {', '.join(SUFFIXES)}")
    columns = resolve_columns({}, file, needed=("query", "passage_id"))
    for row in progress(_read_rows(file, writer), label=file.name):
        passage_id = as_id(row.values.get(columns["passage_id"]))
        _write_judgement(row, columns, passage_id, "train", writer)


def resolve_columns(
    asked: Mapping[str, str], file: Path, *, needed: Sequence[str] = ("passage",)
) -> dict[str, str]:
    """Return role -> column for the columns that a table has.

    Raises:
        DataError: the table has no column that was asked for, or none for a role that is needed.
    """
    names = column_names(file)
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "") or "none"
    for role, name in asked.items():
        if name not in names:
            flag = f"--{role.replace('_', '-')}-column"
            raise DataError(f"{file} has no column {name!r} for {flag}; found: {listed}")
    columns = dict(asked)
    for role, usual in _USUAL_NAMES.items():
        free = (name for name in usual if name in names and name not in columns.values())
        if role not in columns and (guess := next(free, None)):
            columns[role] = guess
    for role in needed:
        if role not in columns:
            advice = "; name one with --passage-column" if role == "passage" else ""
            raise DataError(
                f"{file} has no column named {' or '.join(_USUAL_NAMES[role])}; "
                f"found: {listed}{advice}"
            )
    if "query" not in columns:
        columns = {r: c for r, c in columns.items() if r not in _QUERY_ROLES or r in asked}
    return columns


def column_names(file: Path) -> list[str]:
    """Return the names of a table's columns (of a JSONL file: those in its first rows).

    Raises:
        DataError: the file cannot be read, or is not what its name says.
    """
    if file.suffix == ".parquet":
        with _open_parquet(file) as table:
            return list(table.schema_arrow.names)
    if ".jsonl" not in file.suffixes:
        return csv_header(file)
    # What this first look rejects is rejected again by the reading.
    rows = islice(read_objects(file, lambda **_: None), _PEEKED_ROWS)
    names = dict.fromkeys(name for row in rows for name in row.values)
    if not names:
        raise DataError(f"{file} holds no JSON object; expected one per line (JSONL)")
    return list(names)


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file} is not a Parquet file ({one_line(str(error))})") from None


def _read_rows(file: Path, writer: DatasetWriter) -> Iterator[Row]:
    if file.suffix == ".parquet":
        return _read_parquet(file)
    read = read_objects if ".jsonl" in file.suffixes else read_csv
    return read(file, writer.reject)


def _read_parquet(file: Path) -> Iterator[Row]:
    number = 0
    with _open_parquet(file) as table:
        try:
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{file.name}:row {number}", values)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{file} breaks after row {number} ({one_line(str(error))})") from None


def _write_row(row: Row, columns: dict[str, str], split: str, writer: DatasetWriter) -> None:
    where, values = row
    # As they came, None where there is none: the writer judges their types.
    cells: dict[str, Any] = {role: values.get(column) for role, column in columns.items()}
    used = set(columns.values())
    passage = Passage(
        as_id(cells.get("passage_id")),
        cells["passage"],
        as_text(cells.get("title")),
        as_text(cells.get("url")),
        {name: value for name, value in values.items() if name not in used},
    )
    passage_id = writer.add_passage(passage, where=where)
    if "query" in columns:
        _write_judgement(row, columns, passage_id, split, writer)


def _write_judgement(
    row: Row, columns: dict[str, str], passage_id: str | None, split: str, writer: DatasetWriter
) -> None:
    where, values = row
    cells: dict[str, Any] = {role: values.get(column) for role, column in columns.items()}
    query_id = writer.add_query(Query(as_id(cells.get("query_id")), cells["query"]), where=where)
    if passage_id and query_id:
        relevance = as_integer(cells["relevance"]) if "relevance" in cells else 1
        split = split_name(as_text(cells.get("split"))) or split
        writer.add_qrel(Qrel(query_id, passage_id, relevance, split), where=where)
