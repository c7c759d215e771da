"""What a snapshot consists of."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CHUNK = 2**20


class SnapshotFile(NamedTuple):
    """One file of a snapshot.

    Attributes:
        name: relative path with `/` between its parts.
        size: bytes.
        sha256: of the content, 64 hex digits; empty where it is not known before it is read.
        chunks: the content, once.
    """

    name: str
    size: int
    sha256: str
    chunks: Iterator[bytes]


def chunks_of(path: Path) -> Iterator[bytes]:
    """Yield the content of a file."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
