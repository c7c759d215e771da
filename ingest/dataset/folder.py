"""One folder that appears complete or not at all."""

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from two_tower.models.errors import DataError
from two_tower.models.files import put_in_place

MANIFEST = "manifest.json"

FILES = frozenset(
    {
        *(f"{name}.parquet" for name in ("passages", "queries", "qrels")),
        *(f"{name}.jsonl" for name in ("rejected", "merged")),
        MANIFEST,
    }
)


class WorkFolder:
    """A hidden folder beside `path` that takes its place at the end.

    Attributes:
        path: where the folder will be.
        work: where it is made.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Refuse a path that must not be written.

        Raises:
            DataError: the path holds DATA and `overwrite` is off, or something that is not DATA.
        """
        self.path = path.resolve()
        self.work = self.path.with_name(f".{self.path.name}.partial")
        self._refuse(overwrite)

    def open(self) -> Path:
        """Make the hidden folder; what a killed run left in it goes.

        Raises:
            DataError: the place cannot be written, or another process is writing the same folder.
        """
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.work, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in self.work.iterdir():
                left.unlink()
        except BlockingIOError:
            os.close(self._lock)
            raise DataError(
                f"another process is writing {self.path}; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise DataError(f"{self.path} cannot be written ({error.strerror})") from None
        return self.work

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write what makes the folder complete."""
        text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n"
        (self.work / MANIFEST).write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Remove the hidden folder after the block, unless `replace` moved it to its place.

        Raises:
            DataError: the block's `OSError` or database error, in one line.
        """
        try:
            yield
        except (OSError, sqlite3.Error) as failure:
            raise DataError(f"{self.path} cannot be written ({failure})") from failure
        finally:
            shutil.rmtree(self.work, ignore_errors=True)
            os.close(self._lock)

    def replace(self) -> None:
        """Put the hidden folder in its place."""
        put_in_place(self.work, self.path)

    def _refuse(self, overwrite: bool) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise DataError(f"{self.path} is a file, expected a folder or a new name")
        names = {entry.name for entry in self.path.iterdir()}
        if names and (MANIFEST not in names or not names <= FILES):
            others = ", ".join(sorted(names - FILES)[:3]) or f"no {MANIFEST}"
            raise DataError(
                f"{self.path} holds something else than DATA (found: {others}); "
                "choose another --out"
            )
        if names and not overwrite:
            raise DataError(f"{self.path} already holds DATA; replace it with --force")
