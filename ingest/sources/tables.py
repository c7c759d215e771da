"""Tables with named columns: JSONL, CSV, TSV (plain or `.gz`) and Parquet.

A row holds a passage and, unless the table is a bare corpus, a query that it answers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
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
    raw,
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

_GUESSES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "question"),
    "passage": ("passage", "text", "passage_text", "answer", "document", "content"),
    "title": ("title",),
    "url": ("url",),
    "passage_id": ("passage_id", "doc_id", "docid", "pid", "_id"),
    "query_id": ("query_id", "qid"),
    "relevance": ("relevance", "label"),
    "split": ("split",),
}

_OF_PAIRS = ("query_id", "relevance", "split")


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; None: look for the usual names."""

    query: str | None = None
    passage: str | None = None
    title: str | None = None
    url: str | None = None
    passage_id: str | None = None
    query_id: str | None = None
    relevance: str | None = None
    split: str | None = None

    def resolve(self, found: list[str], *, where: str) -> dict[str, str]:
        """Return role -> column for the columns that a table has.

        Raises:
            DataError: a column that was asked for, or any passage column, is not among `found`.
        """
        asked = {role: name for role, name in asdict(self).items() if name is not None}
        for role, name in asked.items():
            if name not in found:
                flag = f"--{role.replace('_', '-')}-column"
                raise DataError(
                    f"{where} has no column {name!r} for {flag}; found: {_listed(found)}"
                )
        roles = dict(asked)
        for role, names in _GUESSES.items():
            free = (name for name in names if name in found and name not in roles.values())
            if role not in roles and (guess := next(free, None)):
                roles[role] = guess
        if "passage" not in roles:
            raise DataError(
                f"{where} has no column named {' or '.join(_GUESSES['passage'])}; "
                f"found: {_listed(found)}; name one with --passage-column"
            )
        if "query" not in roles:
            roles = {r: c for r, c in roles.items() if r not in _OF_PAIRS or r in asked}
        return roles


class Tables:
    """One table, or a folder of tables, as a source.

    Attributes:
        name: the path as it was given.
        details: the kind of source and its files, for the manifest.
    """

    def __init__(self, name: str, files: list[Path], columns: Columns) -> None:
        """Say which files to read, and how their columns are called."""
        self.name = name
        self._files = files
        self._columns = columns
        self.details: Mapping[str, Any] = {
            "kind": "table",
            "files": [file.name for file in files],
            "columns": self._columns.resolve(column_names(files[0]), where=str(files[0])),
        }

    def write_to(self, writer: DatasetWriter) -> None:
        """Write the rows of all files.

        Raises:
            DataError: a file cannot be read, or lacks a column.
        """
        for file in self._files:
            roles = self._columns.resolve(column_names(file), where=str(file))
            split = _split_of(file)
            for row in progress(_rows(file, writer), label=file.name):
                _write_row(row, roles, split, writer)


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
    rows = islice(read_objects(file, _ignore), _PEEKED_ROWS)
    names = dict.fromkeys(name for row in rows for name in row.values)
    if not names:
        raise DataError(f"{file} holds no JSON object; expected one per line (JSONL)")
    return list(names)


def _ignore(*, reason: str, where: str, row: Any) -> None:
    """Take what a first look rejects: the real reading rejects it again."""


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file} is not a Parquet file ({one_line(str(error))})") from None


def _rows(file: Path, writer: DatasetWriter) -> Iterator[Row]:
    if file.suffix == ".parquet":
        return _parquet_rows(file)
    read = read_objects if ".jsonl" in file.suffixes else read_csv
    return read(file, writer.reject)


def _parquet_rows(file: Path) -> Iterator[Row]:
    number = 0
    with _open_parquet(file) as table:
        try:
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{file.name}:row {number}", values)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{file} breaks after row {number} ({one_line(str(error))})") from None


def _write_row(row: Row, roles: dict[str, str], split: str, writer: DatasetWriter) -> None:
    where, values = row
    cell = {role: raw(values, column) for role, column in roles.items()}
    used = set(roles.values())
    passage = Passage(
        as_id(cell.get("passage_id")),
        cell["passage"],
        as_text(cell.get("title")),
        as_text(cell.get("url")),
        {name: value for name, value in values.items() if name not in used},
    )
    passage_id = writer.add_passage(passage, where=where)
    if "query" not in roles:
        return
    query = Query(as_id(cell.get("query_id")), cell["query"])
    query_id = writer.add_query(query, where=where)
    if passage_id and query_id:
        relevance = as_integer(cell["relevance"]) if "relevance" in roles else 1
        split = split_name(as_text(cell.get("split"))) or split
        writer.add_qrel(Qrel(query_id, passage_id, relevance, split), where=where)


def _split_of(file: Path) -> str:
    stem = file.name.partition(".")[0].lower()
    return split_name(stem) if stem in _SPLIT_FILES else "train"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "") or "none"
