"""How many rows of a Parquet file are taken at a time, so that they fit into memory."""

from pathlib import Path

import pyarrow.parquet as pq

ROWS_AT_ONCE = 16

LARGEST_RATIO = 64
"""Bytes, unpacked, of one in a file; above it a row may be of any size."""


def rows_at_once(path: Path, file: pq.ParquetFile) -> int:
    """Return how many rows of a file to read at a time.

    A column says each of its values once, in a dictionary, and then which one a row has; so a few
    bytes can stand for thousands of rows of megabytes.

    Raises:
        OSError: the file cannot be read.
    """
    groups = range(file.metadata.num_row_groups)
    unpacked = max((file.metadata.row_group(group).total_byte_size for group in groups), default=0)
    return 1 if unpacked > LARGEST_RATIO * path.stat().st_size else ROWS_AT_ONCE
