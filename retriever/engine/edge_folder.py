"""The folder of the embedded engine: its lock, its collections and its aliases.

    LOCK                       held by the one process that has the folder open
    aliases.json               {alias: collection}
    collections/<name>/        collection.json (vector params and metadata) and shard/

Edge itself knows one shard and no names. Every change here is one rename, so that a process that
is killed leaves either the old state or the new one.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from two_tower.models.errors import DataError
from two_tower.models.files import new_folder, write_json
from two_tower.retriever.engine.snapshot_file import SnapshotFile, chunks_of
from two_tower.retriever.errors import (
    CollectionDamaged,
    CollectionNotFound,
    EngineError,
    EngineLocked,
    EngineUnavailable,
)

DESCRIPTION = "collection.json"
SHARD = "shard"
LOCK = "LOCK"
LEAST_FREE = 64_000_000
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


class EdgeFolder:
    """An embedded engine's folder, held by this object until `close`."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Take the folder.

        Raises:
            EngineLocked: another process has it open.
            EngineUnavailable: it cannot be opened, is something else, or is missing and not to be
                made.
        """
        self.path = path  # as it was given, for messages
        self._root = path.absolute()  # stays right where the process changes its folder
        self._collections = self._root / "collections"
        if not (create or path.exists()):
            raise EngineUnavailable(
                f"there is no embedded engine at {path}; give its --path or a server's --url, or "
                "run: ingest load DATA --bundle BUNDLE --collection NAME"
            )
        try:
            if path.exists() and not path.is_dir():
                raise EngineUnavailable(f"{path} is a file, expected a folder; give another --path")
            if path.is_dir() and any(path.iterdir()) and not (path / LOCK).exists():
                raise EngineUnavailable(
                    f"{path} holds other files; expected a new folder or one of the embedded engine"
                )
            path.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._collections.mkdir(exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise EngineUnavailable(
                f"cannot open {path} as the embedded engine's folder ({reason}); "
                "give another --path"
            ) from None
        for leftover in self._collections.glob(".*"):  # of a killed create or delete
            shutil.rmtree(leftover, ignore_errors=True)
        for part in (*path.glob(".*.partial"), *self._collections.glob("*/.*.partial")):
            part.unlink(missing_ok=True)  # of a killed change of names or metadata

    def _take_lock(self) -> int:
        lock = os.open(self._root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise EngineLocked(
                f"{self.path} is in use by process {holder} and can be open in one process only; "
                "wait for it or stop it, or run a Qdrant server and give --url"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def free(self) -> float:
        """Return the bytes that may be written yet."""
        return shutil.disk_usage(self._root).free - LEAST_FREE

    def require_space(self) -> None:
        """Refuse to write to a disk that is nearly full: in a mapped file that ends the process.

        Raises:
            EngineError: there is less than `LEAST_FREE` left.
        """
        if (free := self.free()) < 0:
            raise EngineError(
                f"the disk of {self.path} has {(free + LEAST_FREE) / 1e6:,.0f} MB left, expected "
                f"{LEAST_FREE / 1e6:,.0f} or more; free some space and run the same command again"
            )

    def require_room(self, name: str) -> None:
        """Refuse to open a collection whose files cannot all be in memory where the disk is memory.

        The engine allots its files far ahead and maps them. On such a disk opening fills the holes
        in those of vectors and payload indexes, and a hole that finds no room ends the process.

        Raises:
            EngineError: there is less room than they have holes.
        """
        home = self._home(name)
        if not _is_memory(home):
            return
        files = [*home.rglob("vectors/*.mmap"), *home.rglob("payload_index/*/*")]
        stats = [path.stat() for path in files]
        holes = sum(max(0, stat.st_size - stat.st_blocks * 512) for stat in stats)
        free = shutil.disk_usage(home).free
        if free < holes:
            raise EngineError(
                f"to open {name} takes {holes / 1e6:,.0f} MB more of {self.path}, which is in "
                f"memory (tmpfs) and has {free / 1e6:,.0f} MB left; give it more, or put the "
                "folder on a disk"
            )

    def names(self) -> list[str]:
        """Return the names of the collections, sorted."""
        return sorted(p.name for p in self._collections.iterdir() if FOLDER_NAME.fullmatch(p.name))

    def aliases(self) -> dict[str, str]:
        """Return what each alias points to; one whose collection was deleted is no more."""
        path = self._root / "aliases.json"
        stored = _read_json(path) if path.exists() else {}
        return {alias: name for alias, name in stored.items() if self._home(name).is_dir()}

    def write_aliases(self, aliases: dict[str, str]) -> None:
        """Replace all aliases at once."""
        write_json(self._root / "aliases.json", aliases)

    def find(self, name: str) -> str | None:
        """Return the collection that `name`, a collection or an alias, stands for."""
        if FOLDER_NAME.fullmatch(name) and self._home(name).is_dir():
            return name
        return self.aliases().get(name)

    def home(self, name: str) -> Path:
        """Return the folder of the collection that `name` stands for.

        Raises:
            CollectionNotFound: there is none.
        """
        collection = self.find(name)
        if collection is None:
            raise CollectionNotFound(f"{self.path} has no collection {name!r}; see: ingest list")
        return self._home(collection)

    def description(self, name: str) -> dict[str, Any]:
        """Return what is stored about the collection `name` beside its shard."""
        home = self.home(name)
        try:
            return _read_json(home / DESCRIPTION)
        except (OSError, EngineError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CollectionDamaged(
                f"collection {home.name!r} is damaged: {DESCRIPTION} cannot be read ({reason}); "
                f"run ingest drop {home.name} --yes and load it again"
            ) from None

    @contextmanager
    def new_collection(self, name: str) -> Iterator[Path]:
        """Give an empty folder that becomes the collection `name` when the block ends well.

        Raises:
            EngineError: the name is taken or cannot be a folder's, or the disk is nearly full.
        """
        self.require_space()
        if not FOLDER_NAME.fullmatch(name):
            raise EngineError(f"{name!r} cannot name a collection; use letters, digits, . _ and -")
        if self.find(name) is not None:
            raise EngineError(f"{self.path} already has a collection or alias {name!r}")
        with new_folder(self._home(name)) as draft:
            yield draft

    def remove(self, name: str) -> None:
        """Delete the collection `name` and, with it, the aliases that point to it."""
        doomed = self._collections / f".old-{name}"
        os.rename(self._home(name), doomed)
        self.write_aliases(self.aliases())
        shutil.rmtree(doomed, ignore_errors=True)

    def _home(self, name: str) -> Path:
        return self._collections / name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise EngineError(
            f"{path} is not JSON ({error}); mend it, or load the collections into a new folder"
        ) from None


def _is_memory(path: Path) -> bool:
    """Return whether a path is on a disk that is memory."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == number:
            return source.split()[0] in ("tmpfs", "ramfs")
    return False


def folder_files(home: Path) -> list[SnapshotFile]:
    """Return every file of a collection, in the order of the names."""
    return [
        SnapshotFile(path.relative_to(home).as_posix(), path.stat().st_size, "", chunks_of(path))
        for path in sorted(home.rglob("*"))
        if path.is_file()
    ]


def write_folder(home: Path, files: Iterable[SnapshotFile]) -> None:
    """Write the files of a collection into an empty folder; what is all zeros takes no space.

    Raises:
        DataError: they are not the files of an embedded collection.
        EngineError: the disk is nearly full.
    """
    names = set()
    for file in files:
        if file.name != DESCRIPTION and not file.name.startswith(f"{SHARD}/"):
            raise DataError(f"the snapshot holds {file.name!r}, no file of the embedded engine")
        names.add(file.name)
        path = home / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            for chunk in file.chunks:
                if shutil.disk_usage(home).free < LEAST_FREE:
                    raise EngineError(f"the disk of {home.parent} is full; free some space")
                # The engine allots its files far ahead; written out they would be 200 times as
                # large as what is in them.
                if chunk.count(0) < len(chunk):
                    target.write(chunk)
                else:
                    target.seek(len(chunk), 1)
            target.truncate()
    if DESCRIPTION not in names:
        raise DataError(f"the snapshot lacks {DESCRIPTION}, without which there is no collection")
