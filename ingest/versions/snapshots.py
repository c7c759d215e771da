"""Snapshots: a collection in one archive, and its way back into an engine."""

import hashlib
import json
import math
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from two_tower.ingest.loading.lease import LEASE
from two_tower.ingest.loading.verify import verify_counts
from two_tower.ingest.versions.versions import PREVIOUS
from two_tower.models.config import configuration, from_mapping
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.files import new_file, remove_leftovers, require_plain
from two_tower.models.progress import progress
from two_tower.retriever.collection.schema import CollectionMetadata, base_name, collection_name
from two_tower.retriever.engine.protocol import Engine, stored_metadata
from two_tower.retriever.engine.snapshot_file import CHUNK, SnapshotFile
from two_tower.retriever.errors import CollectionMismatch, EngineError, VerificationFailed

FORMAT = "two-tower-search-snapshot/1"
ARCHIVE_MANIFEST = "manifest.json"
LARGEST_MANIFEST = 64 * 2**20
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)  # what zipfile raises
LARGEST_CONTENT, LARGEST_RATIO = 16 * 2**30, 64
"""An archive may unpack to so many bytes, or so many times its own size, whichever is more."""

QUICK = 1  # zeros shrink at the lowest level of deflate, and the rest at none


@dataclass(frozen=True)
class SnapshotReport:
    """The collection, by its versioned name, that was saved to or restored from an archive."""

    collection: str
    points: int
    file: Path


@configuration()
class StoredFile:
    """One file of an archive, as its manifest has it."""

    name: str
    size: int
    sha256: str


@configuration()
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
    metadata: dict[str, Any]
    files: tuple[StoredFile, ...] = ()


def snapshot(engine: Engine, name: str, out: Path) -> SnapshotReport:
    """Save a collection to a file in the folder `out`.

    A snapshot of the embedded engine is exact, for nothing else writes meanwhile. One of a server
    shows one instant, and may hold part of a load that runs at the same time. The file is named
    after the collection and the time.

    Raises:
        CollectionNotFound: there is none.
        CollectionMismatch: it was made by something else.
        VerificationFailed: its load was not finished.
        EngineError: it is spread over a cluster.
        DataError: the file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)  # a wrong folder is refused before the work
        remove_leftovers(out, "*--*.zip")
    except OSError as error:
        raise DataError(
            f"cannot make the folder {out} ({error.strerror or error}); give another --out"
        ) from None
    collection = engine.resolve(name)
    points = verify_counts(engine, collection).points
    now = datetime.now(UTC)
    manifest = Manifest(
        collection=collection,
        points=points,
        embedded=engine.is_embedded,
        engine_version=engine.info().version,
        created_at=now.isoformat(timespec="seconds"),
        metadata=stored_metadata(engine, collection),
    )
    target = out / f"{collection}.{now:%Y%m%dT%H%M%SZ}.zip"
    with engine.take_snapshot(collection) as files:
        _write_archive(target, manifest, files)
    return SnapshotReport(collection, points, target)


def restore(
    engine: Engine, file: Path, *, name: str | None = None, again: bool = False
) -> SnapshotReport:
    """Make a collection from a file that `snapshot` wrote, for its old alias or for `name`.

    No alias changes. With `again`, a collection that is there already is good enough where it has
    the metadata and the number of points that the file has: an earlier call was stopped after it.

    Raises:
        DataError: the file is incomplete, altered, or of the other kind of engine.
        EngineError: there is such a collection already, or the engine cannot use the file.
        VerificationFailed: what came out is not what went in; it was removed again.
    """
    with open_archive(file) as (manifest, files):
        if engine.is_embedded != manifest.embedded:
            kinds = {True: "the embedded engine (--path)", False: "a server (--url)"}
            raise DataError(
                f"{file} is a snapshot of {kinds[manifest.embedded]} and cannot be restored to "
                f"{kinds[engine.is_embedded]}; restore it to its own kind, then run: ingest copy"
            )
        collection = _versioned(manifest, file, name)
        if engine.collection_exists(collection):
            if again and _is_restored(engine, collection, manifest):
                return SnapshotReport(collection, manifest.points, file)
            raise EngineError(
                f"there is a collection {collection!r} already; if it is the one that you want, "
                f"run: ingest promote {base_name(collection)} --to {collection}. Or restore {file} "
                f"beside it with --collection NAME, or first run: ingest drop {collection}"
            )
        engine.restore_snapshot(collection, files)
        try:
            _check(engine, collection, manifest)
        except BaseException:
            engine.delete_collection(collection)
            raise
    engine.update_collection(collection, metadata={PREVIOUS: None, LEASE: None})
    return SnapshotReport(collection, manifest.points, file)


def _versioned(manifest: Manifest, file: Path, name: str | None) -> str:
    try:
        metadata = CollectionMetadata.from_dict(manifest.metadata)
    except ValueError as error:
        raise DataError(f"{file} is of no collection that ingest load made ({error})") from None
    return collection_name(name or base_name(manifest.collection), metadata.bundle_fingerprint)


def _is_restored(engine: Engine, collection: str, manifest: Manifest) -> bool:
    """Return whether a collection is what an earlier restore of the same file made."""

    def described(metadata: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in metadata.items() if key not in (PREVIOUS, LEASE)}

    return (
        described(stored_metadata(engine, collection)) == described(manifest.metadata)
        and engine.count(collection, exact=True).count == manifest.points
    )


def _check(engine: Engine, collection: str, manifest: Manifest) -> None:
    if stored_metadata(engine, collection) != manifest.metadata:
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


def _write_archive(target: Path, manifest: Manifest, files: Iterable[SnapshotFile]) -> None:
    """Write an archive, the manifest last; `target` appears when it is complete.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        with (
            new_file(target) as out,
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=QUICK) as archive,
        ):
            complete = replace(manifest, files=tuple(_store(archive, file) for file in files))
            described = {"format": FORMAT, **asdict(complete)}
            archive.writestr(ARCHIVE_MANIFEST, json.dumps(described, indent=1, ensure_ascii=False))
    except OSError as error:
        raise DataError(
            f"cannot write {target} ({error.strerror or error}); give another --out"
        ) from None
    except _UnusableError as error:
        raise DataError(f"cannot write {target}: {error}") from None


def _store(archive: zipfile.ZipFile, file: SnapshotFile) -> StoredFile:
    """Write one file; a server's, the only kind with a known checksum, is not compressed."""
    name = _checked_name(file.name)
    digest, size = hashlib.sha256(), 0
    with archive.open(zipfile.ZipInfo(name) if file.sha256 else name, "w", force_zip64=True) as to:
        for chunk in progress(file.chunks, label=name[-40:], total=math.ceil(file.size / CHUNK)):
            to.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return StoredFile(name, size, digest.hexdigest())


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[Manifest, Iterator[SnapshotFile]]]:
    """Open an archive and check all of it; give its manifest and its files as streams.

    Raises:
        DataError: it is missing, incomplete, altered or not one of ours.
    """
    with ExitStack() as stack:
        try:
            require_plain(path)
            source = stack.enter_context(zipfile.ZipFile(path))
            manifest = _read_manifest(source)
            _check_entries(source, manifest)
            chunks = sum(math.ceil(file.size / CHUNK) for file in manifest.files)
            contents = chain.from_iterable(_checked(source, file) for file in manifest.files)
            for _ in progress(contents, label="Checking", total=chunks):
                pass
        except OSError as error:
            raise DataError(f"cannot read {path} ({error.strerror or error})") from None
        except (_UnusableError, *DAMAGE) as error:
            raise DataError(
                f"{path} is no complete archive of ingest snapshot ({error}); nothing was "
                "restored, take another copy of it"
            ) from None
        yield manifest, (_snapshot_file(source, file) for file in manifest.files)


def _snapshot_file(source: zipfile.ZipFile, file: StoredFile) -> SnapshotFile:
    total = math.ceil(file.size / CHUNK)
    chunks = progress(_content(source, file.name), label=file.name[-40:], total=total)
    return SnapshotFile(file.name, file.size, file.sha256, chunks)


class _UnusableError(Exception):
    """What is wrong with an archive."""


def _read_manifest(source: zipfile.ZipFile) -> Manifest:
    try:
        info = source.getinfo(ARCHIVE_MANIFEST)
    except KeyError:
        raise _UnusableError(f"it has no {ARCHIVE_MANIFEST}") from None
    if info.file_size > LARGEST_MANIFEST:
        raise _UnusableError(f"its {ARCHIVE_MANIFEST} has {info.file_size:,} bytes")
    try:
        stored = json.loads(source.read(info))
        if (form := stored.pop("format")) != FORMAT:
            raise _UnusableError(f"found format {form!r:.40}, expected {FORMAT!r}")
        return from_mapping(Manifest, stored)
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _UnusableError(f"its {ARCHIVE_MANIFEST} cannot be read: {str(error)[:300]}") from None


def _check_entries(source: zipfile.ZipFile, manifest: Manifest) -> None:
    """Refuse names that lead elsewhere, entries that are no files, and any that is not declared."""
    limit = max(LARGEST_CONTENT, LARGEST_RATIO * sum(i.compress_size for i in source.infolist()))
    if (size := sum(info.file_size for info in source.infolist())) > limit:
        raise _UnusableError(f"it would unpack to {size:,} bytes, at most {limit:,} are taken")
    declared = {ARCHIVE_MANIFEST, *(file.name for file in manifest.files)}
    if len(declared) != len(manifest.files) + 1:
        raise _UnusableError(f"its {ARCHIVE_MANIFEST} has a file twice")
    for info in source.infolist():
        _checked_name(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _UnusableError(f"{info.filename!r} is no plain file")
        if info.flag_bits & 1:
            raise _UnusableError(f"{info.filename!r} is encrypted")
    if (names := sorted(source.namelist())) != sorted(declared):
        odd = sorted(declared.symmetric_difference(names)) or names
        raise _UnusableError(f"{odd[0]!r} is not both in it and in its {ARCHIVE_MANIFEST}, once")


def _checked(source: zipfile.ZipFile, file: StoredFile) -> Iterator[bytes]:
    """Yield the content of a file, which fails in the end where it is not what it should be."""
    digest, size = hashlib.sha256(), 0
    if source.getinfo(file.name).file_size != file.size:
        raise _UnusableError(f"{file.name!r} is not what its {ARCHIVE_MANIFEST} says")
    for chunk in _content(source, file.name):
        digest.update(chunk)
        size += len(chunk)
        yield chunk
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise _UnusableError(f"{file.name!r} is not what its {ARCHIVE_MANIFEST} says")


def _content(source: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with source.open(name) as entry:
        while chunk := entry.read(CHUNK):
            yield chunk


def _checked_name(name: str) -> str:
    if not all(PART.fullmatch(part) for part in name.split("/")):
        raise _UnusableError(f"{name!r} is no name of a file in an archive")
    return name
