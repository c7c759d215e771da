"""The files of a folder that was given as a source, and which of them nothing reads."""

from collections.abc import Collection
from pathlib import Path

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.rows import ending, is_table
from two_tower.ingest.sources.text_lines import read_lines
from two_tower.models.errors import DataError

_ABOUT = frozenset({"dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json"})
"""What `save_to_disk` and the Hub say about a dataset; it holds no rows."""

_NAMED = 5


def source_files(folder: Path) -> list[Path]:
    """Return all files in a folder and below, sorted by path; hidden ones are none of a source."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)
        and file.is_file()
    ]


def table_files(path: Path) -> list[Path]:
    """Return the tables of a folder, or the file itself where it is one.

    In a folder, a `.json` file that is no array is about the others: `config.json`.
    """
    if not path.is_dir():
        return [path] if is_table(path) else []
    files = [file for file in source_files(path) if is_table(file)]
    return [file for file in files if ending(file) != ".json" or _is_array(file)]


def _is_array(file: Path) -> bool:
    try:
        return next(read_lines(file)).lstrip().startswith("[")
    except DataError:
        return False


def tell_unread(path: Path, read: Collection[Path], writer: DatasetWriter) -> None:
    """Note which files of a folder were not read."""
    if path.is_dir():
        unread = [file for file in source_files(path) if file not in set(read)]
        if names := [str(f.relative_to(path)) for f in unread if f.name not in _ABOUT]:
            writer.note(f"not read: {listing(names)}")


def listing(names: list[str]) -> str:
    """Return some names for a message."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
