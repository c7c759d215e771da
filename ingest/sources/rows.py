"""Rows of one file: JSONL, a JSON array, CSV, TSV (each plain or gzipped), Parquet or Arrow."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from two_tower.ingest.sources.columnar import read_arrow, read_parquet, stored_names
from two_tower.ingest.sources.csv_rows import CsvRecords
from two_tower.ingest.sources.text_lines import read_lines
from two_tower.models.errors import DataError

_TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab")

SUFFIXES = (*_TEXT, *(f"{end}.gz" for end in _TEXT), ".parquet", ".arrow")

_PEEKED_ROWS = 100

_LARGEST_ARRAY = 200_000_000  # characters


class Row(NamedTuple):
    """One row of a source and where it stands, as `file:line`."""

    where: str
    values: dict[str, Any]


Reject = Callable[..., None]
"""Takes the rows that cannot be used: `DatasetWriter.reject`."""


def is_table(file: Path) -> bool:
    """Say whether a file's name is that of a table, in capitals or not."""
    return file.name.lower().endswith(SUFFIXES)


def ending(file: Path) -> str:
    """Return the end of a table's name that says its format, without `.gz`; empty for none."""
    name = file.name.lower().removesuffix(".gz")
    return next((end for end in SUFFIXES if name.endswith(end)), "")


def is_csv(file: Path) -> bool:
    """Say whether a table's cells are texts alone."""
    return ending(file) in (".csv", ".tsv", ".tab")


def read_rows(file: Path, reject: Reject, *, header: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a table; those that cannot be read go to `reject`.

    Args:
        file: its name ends with one of `SUFFIXES`.
        reject: takes the others.
        header: names of the columns where a CSV or TSV file has no header.

    Raises:
        DataError: the file cannot be read, or is not what its name says.
    """
    match ending(file):
        case ".parquet":
            return _numbered(file, read_parquet(file))
        case ".arrow":
            return _numbered(file, read_arrow(file))
        case ".jsonl" | ".ndjson" | ".json":
            return read_objects(file, reject)
    return _read_csv(file, reject, header)


def column_names(file: Path) -> list[str]:
    """Return the names of a table's columns (of a JSON file: those in its first rows).

    Raises:
        DataError: the file cannot be read, or is not what its name says.
    """
    kind = ending(file)
    if kind in (".parquet", ".arrow"):
        return stored_names(file)
    if kind not in (".jsonl", ".ndjson", ".json"):
        return [*CsvRecords(file).header]
    names = dict.fromkeys(name for row in first_rows(file) for name in row.values)
    if not names:
        raise DataError(f"{file} holds no JSON object; expected one per line (JSONL)")
    return list(names)


def first_rows(file: Path) -> list[Row]:
    """Return some rows for a first look; what it rejects is rejected again by the reading."""
    return list(islice(read_rows(file, lambda **_: None), _PEEKED_ROWS))


def read_objects(path: Path, reject: Reject) -> Iterator[Row]:
    """Yield the JSON objects of a JSONL file or of one array; what is no object goes to `reject`.

    Raises:
        DataError: the file cannot be read, or holds an array that is too large.
    """
    lines: Iterator[tuple[int, str]] = enumerate(read_lines(path), 1)
    for number, line in lines:
        if line.lstrip().startswith("["):
            items, rest = _read_array(path, line, lines)
            if items is not None:
                yield from _objects(
                    path, ((f"item {n}", v) for n, v in enumerate(items, 1)), reject
                )
                return
            lines = chain([(number, line)], rest, lines)
        else:
            lines = chain([(number, line)], lines)
        break
    yield from _objects(path, _parsed(path, lines, reject), reject)


def _objects(path: Path, values: Iterator[tuple[str, Any]], reject: Reject) -> Iterator[Row]:
    for place, value in values:
        where = f"{path.name}:{place}"
        if isinstance(value, dict):
            yield Row(where, value)
        else:
            reject(reason="row: not a JSON object", where=where, row=value)


def _parsed(
    path: Path, lines: Iterator[tuple[int, str]], reject: Reject
) -> Iterator[tuple[str, Any]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            is_deep = isinstance(error, RecursionError)
            reason = "row: nested too deep to be read" if is_deep else "row: not JSON"
            reject(reason=reason, where=f"{path.name}:{number}", row=line.rstrip("\r\n"))
            continue
        yield str(number), value


def _read_array(
    path: Path, first: str, lines: Iterator[tuple[int, str]]
) -> tuple[list[Any] | None, list[tuple[int, str]]]:
    """Return the items of a file that is one array, None where it is not; and the lines read."""
    try:
        if not isinstance(json.loads(first), list):
            return None, []
        if (following := next((pair for pair in lines if pair[1].strip()), None)) is not None:
            return None, [following]  # an array a line
        return json.loads(first), []
    except RecursionError:
        return None, []
    except ValueError:
        pass
    rest, size = [], len(first)
    for pair in lines:
        rest.append(pair)
        size += len(pair[1])
        if size > _LARGEST_ARRAY:
            raise DataError(
                f"{path} is one array of more than {_LARGEST_ARRAY:,} characters; write one object "
                f"a line, e.g. jq -c '.[]' {path.name} > rows.jsonl"
            )
    try:
        items = json.loads(first + "".join(line for _, line in rest))
    except (ValueError, RecursionError):
        return None, rest
    return (items, rest) if isinstance(items, list) else (None, rest)


def _read_csv(path: Path, reject: Reject, header: Sequence[str] | None) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file; ragged rows go to `reject`."""
    records = CsvRecords(path, header=header)
    for cells in records:
        where = f"{path.name}:{records.line}"
        if len(cells) != len(records.header):
            reason = "row: number of cells differs from the header"
            reject(reason=reason, where=where, row=cells)
        else:
            yield Row(where, dict(zip(records.header, cells, strict=True)))


def _numbered(file: Path, rows: Iterator[dict[str, Any]]) -> Iterator[Row]:
    return (Row(f"{file.name}:row {number}", values) for number, values in enumerate(rows, 1))
