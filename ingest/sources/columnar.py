"""Rows of Parquet files and of Arrow files (`data-00000-of-00001.arrow` of `save_to_disk`)."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from two_tower.ingest.dataset.cleaning import one_line
from two_tower.models.errors import DataError
from two_tower.models.parquet import DAMAGE, row_batches

_BATCH_ROWS, _LARGEST_BATCH = 1024, 128 * 2**20

_SHARED = ("dictionary<", "_view", "run_end_encoded<")
"""Types of columns of which many rows can stand for the same bytes."""


def stored_names(file: Path) -> list[str]:
    """Return the names of the columns.

    Raises:
        DataError: the file is not what its name says, or two columns have the same name.
    """
    try:
        if file.suffix.lower() == ".parquet":
            with _open_parquet(file) as table:
                names = list(table.schema_arrow.names)
        else:
            with closing(_open_arrow(file)) as reader:
                names = list(reader.schema.names)
    except UnicodeDecodeError:
        raise DataError(f"{file} has names of columns that are not UTF-8; fetch it again") from None
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(
            f"{file} has two columns named {repeated[:80]!r}; give each a name of its own"
        )
    return names


def read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file.

    Raises:
        DataError: it is none, or breaks on the way.
    """
    with _open_parquet(file) as table:
        yield from _rows(file, row_batches(file, table))


def read_arrow(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow file or stream.

    Raises:
        DataError: it is none, or breaks on the way.
    """
    with closing(_open_arrow(file)) as reader:
        yield from _rows(file, _arrow_batches(reader))


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except DAMAGE as error:
        raise DataError(f"{file} is not a Parquet file ({one_line(str(error))})") from None


class _ArrowReader:
    """A file or a stream, with the schema and batches of either."""

    def __init__(self, file: Path) -> None:
        self._source = pa.memory_map(str(file))
        try:
            self._reader: Any = pa.ipc.open_file(self._source)
            self._count = self._reader.num_record_batches
        except pa.ArrowInvalid:
            self._source.seek(0)
            self._reader, self._count = pa.ipc.open_stream(self._source), None
        self.schema: pa.Schema = self._reader.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        if self._count is None:
            yield from self._reader
        else:
            yield from map(self._reader.get_batch, range(self._count))

    def close(self) -> None:
        self._source.close()


def _open_arrow(file: Path) -> _ArrowReader:
    try:
        return _ArrowReader(file)
    except DAMAGE as error:
        raise DataError(f"{file} is not an Arrow file ({one_line(str(error))})") from None


def _arrow_batches(reader: _ArrowReader) -> Iterator[pa.RecordBatch]:
    for batch in reader.batches():
        shared = [c for c in batch.columns if any(word in str(c.type) for word in _SHARED)]
        largest = max(1, sum(column.get_total_buffer_size() for column in shared))
        rows = max(1, min(_BATCH_ROWS, _LARGEST_BATCH // largest))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def _rows(file: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    count = 0
    try:
        for batch in batches:
            batch.validate(full=True)  # lengths that lie would be read beyond the memory
            columns = [_values(column) for column in batch.columns]
            for cells in zip(*columns, strict=True):
                count += 1
                yield dict(zip(batch.schema.names, cells, strict=True))
    except DAMAGE as error:
        raise DataError(f"{file} breaks after row {count} ({one_line(str(error))})") from None


def _values(column: pa.Array) -> list[Any]:
    """Return a column's values; those that Python cannot hold, as dates after 9999, as text."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError) as error:
        if isinstance(error, UnicodeDecodeError | pa.ArrowException):
            raise
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        if isinstance(scalar, pa.StructScalar):
            return {name: _value(part) for name, part in scalar.items()}
        if isinstance(scalar, pa.ListScalar):
            return [_value(part) for part in scalar.values or ()]
        try:
            return str(scalar.cast(pa.string()))
        except (pa.ArrowException, ValueError):
            return None
