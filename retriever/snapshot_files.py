"""What a snapshot of a collection is made of, whichever engine it is of: files, as streams."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from two_tower.models.errors import DataError

CHUNK = 2**20
DESCRIPTION = "collection.json"
SHARD = "shard/"


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


def folder_files(folder: Path) -> list[SnapshotFile]:
    """Return every file below a folder of the embedded engine's, in the order of the names."""
    return [
        SnapshotFile(path.relative_to(folder).as_posix(), path.stat().st_size, "", read(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def write_folder(folder: Path, files: Iterable[SnapshotFile]) -> None:
    """Write files below an empty folder; what is all zeros takes no space.

    Raises:
        DataError: they are not the files of an embedded collection.
    """
    found = set()
    for file in files:
        if file.name != DESCRIPTION and not file.name.startswith(SHARD):
            raise DataError(f"the snapshot holds {file.name!r}, no file of the embedded engine")
        found.add(file.name)
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            for chunk in file.chunks:
                # The engine allots its files far ahead; written out they would be 200 times as
                # large as what is in them.
                if chunk.count(0) < len(chunk):
                    target.write(chunk)
                else:
                    target.seek(len(chunk), 1)
            target.truncate()
    if DESCRIPTION not in found:
        raise DataError(f"the snapshot lacks {DESCRIPTION}, without which there is no collection")


def read(path: Path) -> Iterator[bytes]:
    """Yield the content of a file."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
