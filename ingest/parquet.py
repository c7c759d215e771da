"""Rows to a Parquet file, a row group at a time."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_GROUP_ROWS = 16_384
_GROUP_CHARS = 16_000_000


class ParquetStream:
    """Write rows in groups that are bounded in rows and in characters.

    Attributes:
        row_count: rows added so far.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._columns: list[list[str | int]] = [[] for _ in schema]
        self._chars = 0
        self._hash = hashlib.sha256()
        self.row_count = 0

    @property
    def digest(self) -> bytes:
        """SHA-256 of all rows in their order (the values hold no NUL: it ends each of them)."""
        return self._hash.digest()

    def add(self, row: Sequence[str | int]) -> None:
        """Add one row, its values in the order of the schema."""
        line = "\0".join(map(str, row))
        self._hash.update(line.encode() + b"\0")
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        self.row_count += 1
        self._chars += len(line)
        if len(self._columns[0]) >= _GROUP_ROWS or self._chars >= _GROUP_CHARS:
            self._flush()

    def close(self) -> None:
        """Write what is left and end the file; a second call does nothing."""
        if self._writer.is_open:
            self._flush()
            self._writer.close()

    def _flush(self) -> None:
        if self._columns[0]:
            self._writer.write_table(pa.table(self._columns, schema=self._schema))
        for column in self._columns:
            column.clear()
        self._chars = 0
