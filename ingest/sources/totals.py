"""How many rows a file has, for whoever waits: known of Parquet, else reckoned from its start."""

import gzip
import zlib
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from two_tower.ingest.sources.rows import ending

_SAMPLE = 2**20  # bytes

_GZIP = b"\x1f\x8b"


def row_total(file: Path) -> int | None:
    """Return about how many rows a file has; None where that cannot be told.

    It fails at nothing: what is wrong with a file is said by whoever reads it.
    """
    kind = ending(file)
    if kind in (".json", ".arrow") or not file.is_file():
        return None
    try:
        if kind == ".parquet":
            return int(pq.read_metadata(file).num_rows)
        with file.open("rb") as stored:
            is_packed = stored.peek(2).startswith(_GZIP)
            text = cast(IO[bytes], gzip.GzipFile(fileobj=stored) if is_packed else stored)
            lines = text.read(_SAMPLE).count(b"\n")
            return lines * file.stat().st_size // stored.tell() or None
    except (OSError, EOFError, ZeroDivisionError, zlib.error, pa.ArrowException):
        return None
