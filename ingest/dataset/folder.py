"""A DATA folder that appears complete or not at all."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from two_tower.models.errors import DataError
from two_tower.models.files import lock_folder, put_in_place

MANIFEST = "manifest.json"

FILES = frozenset(
    {
        *(f"{name}.parquet" for name in ("passages", "queries", "qrels")),
        *(f"{name}.jsonl" for name in ("rejected", "merged")),
        MANIFEST,
    }
)


def require_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that must not be written.

    Raises:
        DataError: the path holds DATA and `overwrite` is off, or something that is not DATA.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise DataError(f"{path} is a file, expected a folder or a new name")
    names = {entry.name for entry in path.iterdir()}
    if names and (MANIFEST not in names or not names <= FILES):
        others = ", ".join(sorted(names - FILES)[:3]) or f"no {MANIFEST}"
        raise DataError(
            f"{path} holds something else than DATA (found: {others}); choose another --out"
        )
    if names and not overwrite:
        raise DataError(f"{path} already holds DATA; replace it with --force")


@contextlib.contextmanager
def data_folder(path: Path) -> Iterator[Path]:
    """Give a hidden folder beside `path` that takes its place when the block ends well.

    A lock keeps a second writer out. What a killed one left behind is removed.

    Raises:
        DataError: the place cannot be written, another process writes the same folder, or the
            block fails with an `OSError` or a database error.
    """
    work = path.with_name(f".{path.name}.partial")
    lock = _lock(work, path)
    try:
        yield work
        put_in_place(work, path)
    except (OSError, sqlite3.Error) as failure:
        raise DataError(f"{path} cannot be written ({failure})") from failure
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _lock(work: Path, path: Path) -> int:
    """Make the hidden folder, empty, and return the open file that locks it."""
    try:
        lock = lock_folder(work)
        for leftover in work.iterdir():
            leftover.unlink()
    except BlockingIOError:
        raise DataError(
            f"another process is writing {path}; wait for it or choose another --out"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from None
    return lock
