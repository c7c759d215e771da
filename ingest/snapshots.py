"""Snapshots of collections: one file, made by one command and taken back by another."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from two_tower.ingest.archive import Archive, Manifest, open_archive, write_archive
from two_tower.ingest.collections import PREVIOUS
from two_tower.ingest.lease import LEASE
from two_tower.ingest.verifier import verify_counts
from two_tower.models.errors import DataError
from two_tower.retriever.collection.schema import CollectionMetadata, base_name, collection_name
from two_tower.retriever.engine.protocol import Engine, is_embedded
from two_tower.retriever.errors import CollectionMismatch, EngineError, VerificationFailed


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
