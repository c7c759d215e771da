"""Rows of text files, plain or gzipped, with errors that say where, and what their cells mean."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from two_tower.ingest.dataset.cleaning import one_line
from two_tower.models.errors import DataError

_MAX_CELL = 16_000_000

_SPLITS = {
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "training": "train",
    "testing": "test",
}


class Row(NamedTuple):
    """One row of a source and where it stands, as `file:line`."""

    where: str
    values: dict[str, Any]


Reject = Callable[..., None]
"""Takes the rows that cannot be used: `DatasetWriter.reject`."""


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, `.gz` or not, with line ends, without byte order mark.

    Raises:
        DataError: the file is missing, empty, unreadable, broken gzip or not UTF-8.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode()
                yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number} is not UTF-8 (byte 0x{error.object[error.start]:02x} at column "
            f"{error.start + 1}); convert the file, e.g. iconv -f latin1 -t utf-8"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not intact gzip ({one_line(str(error))}) after line {number}; "
            "fetch the file again"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    if not number:
        raise DataError(f"{path} is empty; expected at least one row")


def read_objects(path: Path, reject: Reject) -> Iterator[Row]:
    """Yield the JSON objects of a JSONL file; lines that are none go to `reject`."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            reject(reason="row: not JSON", where=where, row=line.rstrip("\r\n"))
            continue
        if isinstance(value, dict):
            yield Row(where, value)
        else:
            reject(reason="row: not a JSON object", where=where, row=value)


def read_csv(path: Path, reject: Reject) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file with a header; ragged rows go to `reject`.

    Raises:
        DataError: the quoting is broken.
    """
    reader = _csv_reader(path)
    try:
        header = next(reader)
        for cells in filter(None, reader):
            where = f"{path.name}:{reader.line_num}"
            if len(cells) != len(header):
                reason = "row: number of cells differs from the header"
                reject(reason=reason, where=where, row=cells)
            else:
                yield Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{path.name}:{reader.line_num} is not CSV ({error}); is a quote left open?"
        ) from None


def csv_header(path: Path) -> list[str]:
    """Return the cells of the first row."""
    return next(_csv_reader(path))


def _csv_reader(path: Path) -> Any:
    csv.field_size_limit(_MAX_CELL)
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    return csv.reader(read_lines(path), delimiter=delimiter)


def as_id(value: Any) -> str:
    """Return an id as a string: 7, 7.0 and "7" are the same id, None is an empty one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def as_text(value: Any) -> str:
    """Return a title or URL as a string, empty for None."""
    return "" if value is None else str(value)


def as_integer(value: Any) -> Any:
    """Return True, 1.0 and "1" as the int 1, likewise other integers; anything else as it is."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if isinstance(value, str):
        try:
            number = float(value)
            return int(number) if number.is_integer() else value
        except (ValueError, OverflowError):
            return value
    return value


def split_name(name: str) -> str:
    """Return DATA's name of a split: validation is dev there."""
    return _SPLITS.get(name.lower(), name)
