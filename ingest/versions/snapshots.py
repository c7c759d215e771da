"""Snapshots of collections: one file, made by one command and taken back by another."""

import hashlib
import json
import math
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from two_tower.ingest.loading.lease import LEASE
from two_tower.ingest.loading.verify import verify_counts
from two_tower.ingest.versions.versions import PREVIOUS
from two_tower.models.console import progress
from two_tower.models.errors import DataError
from two_tower.retriever.collection.schema import CollectionMetadata, base_name, collection_name
from two_tower.retriever.engine.protocol import Engine, is_embedded
from two_tower.retriever.engine.snapshots import CHUNK, SnapshotFile
from two_tower.retriever.errors import CollectionMismatch, EngineError, VerificationFailed

FORMAT = "two-tower-search-snapshot/1"

MANIFEST = "manifest.json"

LARGEST_MANIFEST = 64 * 2**20

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")

KINDS = {"collection": str, "points": int, "embedded": bool, "metadata": dict}

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)  # what zipfile raises

QUICK = 1  # deflate takes the zeros out; what is left hardly gets smaller


class StoredFile(NamedTuple):
    """One file of an archive, as its manifest has it."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an archive is of.

    Attributes:
        collection: the versioned name that it had.
        points: how many it held.
        embedded: whether it was in the embedded engine; a server's otherwise.
        engine_version: of that engine.
        created_at: when, in ISO 8601 with time zone.
        metadata: the collection's.
        files: what is in the archive beside the manifest.
    """

    collection: str
    points: int
    embedded: bool
    engine_version: str
    created_at: str
    metadata: Mapping[str, Any]
    files: tuple[StoredFile, ...] = ()


class Archive:
    """An archive that is open, and whose files have all been found as the manifest says."""

    def __init__(self, manifest: Manifest, source: zipfile.ZipFile) -> None:
        self.manifest = manifest
        self._source = source

    def files(self) -> Iterator[SnapshotFile]:
        """Yield its files, each as a stream."""
        for file in self.manifest.files:
            yield SnapshotFile(*file, _chunks(self._source, file.name))


def write_archive(target: Path, manifest: Manifest, files: Iterable[SnapshotFile]) -> Manifest:
    """Write an archive; `target` appears when it is complete.

    Returns:
        The manifest with the files in it.

    Raises:
        DataError: the file cannot be written.
    """
    draft = target.with_name(f".{target.name}.part")
    try:
        with draft.open("wb") as out:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=QUICK) as archive:
                stored = tuple(_store(archive, file) for file in files)
                complete = Manifest(**{**vars(manifest), "files": stored})
                described = {"format": FORMAT, **asdict(complete)}
                described["files"] = [file._asdict() for file in stored]
                archive.writestr(MANIFEST, json.dumps(described, indent=1, ensure_ascii=False))
            out.flush()
            os.fsync(out.fileno())
        os.replace(draft, target)
    except OSError as error:
        raise DataError(
            f"cannot write {target} ({error.strerror or error}); give another --out"
        ) from None
    except _UnusableError as error:
        raise DataError(f"cannot write {target}: {error}") from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return complete


def _store(archive: zipfile.ZipFile, file: SnapshotFile) -> StoredFile:
    """Write one file; a server's, which is the one whose checksum is known, as it is."""
    name = _checked_name(file.name)
    digest, size = hashlib.sha256(), 0
    with archive.open(zipfile.ZipInfo(name) if file.sha256 else name, "w", force_zip64=True) as to:
        for chunk in progress(file.chunks, label=name[-40:], total=math.ceil(file.size / CHUNK)):
            to.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return StoredFile(name, size, digest.hexdigest())


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive and check all of it.

    Raises:
        DataError: it is missing, incomplete, altered or not one of ours.
    """
    with ExitStack() as stack:
        try:
            source = stack.enter_context(zipfile.ZipFile(path))
            manifest = _read_manifest(source)
            _check_entries(source, manifest)
            for file in progress(manifest.files, label="Checking"):
                _check_content(source, file)
        except OSError as error:
            raise DataError(f"cannot read {path} ({error.strerror or error})") from None
        except (_UnusableError, *DAMAGE) as error:
            raise DataError(
                f"{path} is no complete archive of ingest snapshot ({error}); nothing was "
                "restored, take another copy of it"
            ) from None
        yield Archive(manifest, source)


class _UnusableError(Exception):
    """What is wrong with an archive."""


def _read_manifest(source: zipfile.ZipFile) -> Manifest:
    try:
        info = source.getinfo(MANIFEST)
    except KeyError:
        raise _UnusableError(f"it has no {MANIFEST}") from None
    if info.file_size > LARGEST_MANIFEST:
        raise _UnusableError(f"its {MANIFEST} has {info.file_size:,} bytes")
    try:
        stored = json.loads(source.read(info))
        found = stored.pop("format")
        if found != FORMAT:
            raise _UnusableError(f"found format {found!r}, expected {FORMAT!r}")
        files = tuple(StoredFile(**file) for file in stored.pop("files"))
        manifest = Manifest(**stored, files=files)
        for name, kind in KINDS.items():
            if not isinstance(value := getattr(manifest, name), kind):
                raise TypeError(f"{name} is {value!r}")
        return manifest
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _UnusableError(f"its {MANIFEST} cannot be read: {error}") from None


def _check_entries(source: zipfile.ZipFile, manifest: Manifest) -> None:
    """Refuse names that lead elsewhere, entries that are no files, and any that is not declared."""
    declared = {MANIFEST, *(file.name for file in manifest.files)}
    if len(declared) != len(manifest.files) + 1:
        raise _UnusableError(f"its {MANIFEST} has a file twice")
    for info in source.infolist():
        _checked_name(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _UnusableError(f"{info.filename!r} is no plain file")
        if info.flag_bits & 1:
            raise _UnusableError(f"{info.filename!r} is encrypted")
    if (found := sorted(source.namelist())) != sorted(declared):
        odd = sorted(declared.symmetric_difference(found)) or found
        raise _UnusableError(f"{odd[0]!r} is not both in it and in its {MANIFEST}, once")


def _check_content(source: zipfile.ZipFile, file: StoredFile) -> None:
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(source, file.name):
        digest.update(chunk)
        size += len(chunk)
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise _UnusableError(f"{file.name!r} is not what its {MANIFEST} says")


def _chunks(source: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with source.open(name) as entry:
        while chunk := entry.read(CHUNK):
            yield chunk


def _checked_name(name: str) -> str:
    if not all(PART.fullmatch(part) for part in name.split("/")):
        raise _UnusableError(f"{name!r} is no name of a file in an archive")
    return name


@dataclass(frozen=True)
class SnapshotReport:
    """What was saved or restored.

    Attributes:
        collection: versioned name.
        points: how many it holds.
        file: the archive.
    """

    collection: str
    points: int
    file: Path


def snapshot(engine: Engine, name: str, out: Path) -> SnapshotReport:
    """Save a collection to a file in the folder `out`.

    The embedded engine's is exactly what is in it, for nothing else can write meanwhile. A
    server's is of one instant; a load that runs beside it may be in it in part.

    Args:
        engine: where the collection is.
        name: its alias or versioned name.
        out: folder for the file, which is named after the collection and the time.

    Raises:
        CollectionNotFound: there is none.
        CollectionMismatch: it was made by something else.
        VerificationFailed: its load was not finished.
        EngineError: it is spread over a cluster.
        DataError: the file cannot be written.
    """
    _make_folder(out)  # what is wrong with it must not come after the work
    collection = engine.resolve(name)
    points = verify_counts(engine, collection).points
    now = datetime.now(UTC)
    manifest = Manifest(
        collection=collection,
        points=points,
        embedded=is_embedded(engine),
        engine_version=engine.info().version,
        created_at=now.isoformat(timespec="seconds"),
        metadata=engine.get_collection(collection).config.metadata or {},
    )
    target = out / f"{collection}.{now:%Y%m%dT%H%M%SZ}.zip"
    with engine.take_snapshot(collection) as files:
        write_archive(target, manifest, files)
    return SnapshotReport(collection, points, target)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the folder {out} ({error.strerror or error}); give another --out"
        ) from None


def restore(engine: Engine, file: Path, *, name: str | None = None) -> SnapshotReport:
    """Make a collection of a file that `snapshot` wrote; no alias is changed.

    Args:
        engine: where to; of the same kind as the one that the file was made with.
        file: the archive.
        name: what the alias of it will be called; as it was by default.

    Raises:
        DataError: the file is incomplete, altered, or of the other kind of engine.
        EngineError: there is such a collection already, or the engine cannot use the file.
        VerificationFailed: what came out is not what went in; it was removed again.
    """
    with open_archive(file) as archive:
        _require_same_kind(engine, archive, file)
        collection = _free_name(engine, archive, file, name)
        engine.restore_snapshot(collection, archive.files())
        try:
            _check(engine, collection, archive)
        except BaseException:
            engine.delete_collection(collection)
            raise
    engine.update_collection(collection, metadata={PREVIOUS: None, LEASE: None})
    return SnapshotReport(collection, archive.manifest.points, file)


def _require_same_kind(engine: Engine, archive: Archive, file: Path) -> None:
    kinds = {True: "the embedded engine (--path)", False: "a server (--url)"}
    here, there = is_embedded(engine), archive.manifest.embedded
    if here != there:
        raise DataError(
            f"{file} is a snapshot of {kinds[there]} and cannot be restored to {kinds[here]}; "
            "restore it to its own kind, then run: ingest copy"
        )


def _free_name(engine: Engine, archive: Archive, file: Path, name: str | None) -> str:
    try:
        metadata = CollectionMetadata.from_dict(archive.manifest.metadata)
    except ValueError as error:
        raise DataError(f"{file} is of no collection that ingest load made ({error})") from None
    wanted = name or base_name(archive.manifest.collection)
    collection = collection_name(wanted, metadata.bundle_fingerprint)
    if engine.collection_exists(collection):
        raise EngineError(
            f"there is a collection {collection!r} already; restore {file} beside it with "
            f"--collection NAME, or first run: ingest drop {collection}"
        )
    return collection


def _check(engine: Engine, collection: str, archive: Archive) -> None:
    manifest = archive.manifest
    stored: Any = engine.get_collection(collection).config.metadata or {}
    if stored != manifest.metadata:
        raise CollectionMismatch(
            f"the metadata in the snapshot is not that of its manifest ({manifest.collection}); "
            "it was put together from two; take another copy of the file"
        )
    points = verify_counts(engine, collection).points
    if points != manifest.points:
        raise VerificationFailed(
            f"the snapshot gave {points:,} points, its manifest says {manifest.points:,}; "
            "take another copy of the file"
        )
