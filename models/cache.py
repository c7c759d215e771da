"""What was made at some cost, kept for every later use: keys and contents in SQLite files.

The files stand in the user's cache folder: `TWO_TOWER_CACHE`, else the system's place for caches.
They may be deleted at any time.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

READ_AT_ONCE = 500  # keys; SQLite limits the variables of a statement
WAIT_S = 60.0  # for another process that writes


def cache_folder() -> Path:
    """Return the folder of what can be made again."""
    if folder := os.environ.get("TWO_TOWER_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "two-tower-search"


def cache_key(text: str) -> bytes:
    """Return 16 bytes that only this text has."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


class Cache:
    """One file of keys and contents; several processes may use it at once."""

    def __init__(self, kind: str, name: str) -> None:
        """Open or make `<cache folder>/<kind>/<name>.sqlite`.

        Raises:
            OSError, sqlite3.Error: it cannot be written.
        """
        path = cache_folder() / kind / f"{name}.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._kind = kind
        self._file = sqlite3.connect(path, timeout=WAIT_S, check_same_thread=False)
        try:
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            columns = "(key BLOB PRIMARY KEY, content BLOB)"
            self._file.execute(f"CREATE TABLE IF NOT EXISTS {kind} {columns}")
        except sqlite3.Error:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the contents of those keys that are there."""
        contents: dict[bytes, bytes] = {}
        for part in parts(keys, READ_AT_ONCE):
            places = ",".join("?" * len(part))
            query = f"SELECT * FROM {self._kind} WHERE key IN ({places})"
            contents |= dict(self._file.execute(query, part))
        return contents

    def write(self, contents: Mapping[bytes, bytes]) -> None:
        """Add contents; what a key already has stays."""
        with self._file:
            self._file.executemany(
                f"INSERT OR IGNORE INTO {self._kind} VALUES (?, ?)", contents.items()
            )


def parts(keys: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    """Yield the keys in runs of at most `size`."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
