"""DATA's tables in Parquet: their schemas, and how their rows are read within bounded memory.

What reads and writes DATA imports this when it does, for pyarrow takes longer to import than a
query to answer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from two_tower.models.errors import DataError
from two_tower.models.files import require_plain

DAMAGE = (OSError, SystemError, MemoryError, pa.ArrowException, UnicodeDecodeError)
"""What a damaged file makes of Arrow; a length that is negative is Python's SystemError."""

PASSAGES = pa.schema(
    [(name, pa.string()) for name in ("passage_id", "title", "text", "url", "fields")]
)
QUERIES = pa.schema([("query_id", pa.string()), ("text", pa.string())])
QRELS = pa.schema(
    [
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("relevance", pa.int32()),
        ("split", pa.string()),
    ]
)
SCHEMAS = {"passages.parquet": PASSAGES, "queries.parquet": QUERIES, "qrels.parquet": QRELS}

ROWS_AT_ONCE = 16

LARGEST_RATIO = 64
"""Bytes, unpacked, of one in a file; above it a row may be of any size."""


def row_batches(path: Path, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, some at a time.

    A column says each of its values once, in a dictionary, and then which one a row has; so a few
    bytes can stand for thousands of rows of megabytes, which are then read one at a time. Groups
    of rows are read one after the other: over all of them pyarrow keeps what it has read.
    """
    groups = range(file.metadata.num_row_groups)
    unpacked = max((file.metadata.row_group(group).total_byte_size for group in groups), default=0)
    rows = 1 if unpacked > LARGEST_RATIO * path.stat().st_size else ROWS_AT_ONCE
    for group in groups:
        yield from file.iter_batches(batch_size=rows, row_groups=[group])


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one of DATA's tables.

    Raises:
        DataError: it is damaged, or has other columns.
    """
    schema = SCHEMAS[path.name]
    try:
        require_plain(path)
        file = pq.ParquetFile(path)
        stored = file.schema_arrow
    except DAMAGE as error:
        raise _damaged(path, error) from None
    with file:
        if (stored.names, stored.types) != (schema.names, schema.types):
            raise DataError(
                f"{path} has columns {_columns(stored)}, expected {_columns(schema)}; "
                "run ingest prepare again"
            )
        batches = row_batches(path, file)
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
                rows = batch.to_pylist()
            except DAMAGE as error:
                raise _damaged(path, error) from None
            if nulls := [column.name for column in schema if batch[column.name].null_count]:
                raise DataError(f"{path} has a row without {nulls[0]}; run ingest prepare again")
            yield from rows


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{path} cannot be read as Parquet ({reason}); run ingest prepare again")


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name} {column.type}" for column in schema)
