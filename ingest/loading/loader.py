"""DATA to a collection: streaming, resumable, verified.

    read -> what differs -> encode -> queue -> send         memory is bounded by the queue

`workers` says which process encodes.

There is no checkpoint file. A load asks the engine which points it has, by the content hash in
their payload, and sends the others; a load that was stopped at any instant and runs again ends in
the same collection. A point depends on its passage, the bundle and the collection's metadata, never
on the order or the number of attempts.

The first load of a collection goes through DATA twice, for every BM25 weight depends on the mean
length of all passages; a third time where it has clusters, whose centres must be known too. Later
loads go through it once, and so does `verify`. DATA that `selection.cache` keeps in memory is read
from disk once for all of that.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pydantic import Field

from two_tower.ingest.loading.diff import Changes, StoredHashes, find_changes, stored_hashes
from two_tower.ingest.loading.expansion import require_expansion
from two_tower.ingest.loading.lease import PART, Lease
from two_tower.ingest.loading.points import PassageEncoder, chunks
from two_tower.ingest.loading.room import require_room
from two_tower.ingest.loading.selection import cache
from two_tower.ingest.loading.sending import Sender
from two_tower.ingest.loading.setup import describe, open_collection
from two_tower.ingest.loading.workers import BatchMaker, worker_count
from two_tower.models.config import configuration
from two_tower.models.data import Dataset
from two_tower.models.errors import DataError
from two_tower.models.progress import progress
from two_tower.models.threads import one_blas_thread
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import collection_name, read_metadata
from two_tower.retriever.engine.protocol import (
    OPTIMIZE_ABOVE,
    RETRY_FOR_S,
    Engine,
    stored_metadata,
)
from two_tower.retriever.engine.wire import BATCH_POINTS, Point

DELETED_AT_ONCE = 1024


@dataclass(frozen=True)
class LoadReport:
    """What a load did, or would do.

    Attributes:
        collection: versioned name.
        added: passages that were not there.
        replaced: passages with another title or text; encoded again.
        payload_only: passages with another url or other fields alone; not encoded.
        unchanged: passages that the collection had already.
        pruned: points deleted because DATA does not have them.
        kept: points that DATA does not have and that stay.
        seconds: wall time.
    """

    collection: str
    added: int = 0
    replaced: int = 0
    payload_only: int = 0
    unchanged: int = 0
    pruned: int = 0
    kept: int = 0
    seconds: float = 0.0

    @property
    def sent(self) -> int:
        """Passages that were encoded and sent."""
        return self.added + self.replaced

    @property
    def points(self) -> int:
        """How many the collection holds after the load."""
        return self.sent + self.payload_only + self.unchanged + self.kept

    @property
    def outcomes(self) -> str:
        """The counts in words."""
        return (
            f"{self.added:,} added, {self.replaced:,} replaced, {self.payload_only:,} payload "
            f"only, {self.unchanged:,} unchanged, {self.pruned:,} pruned, {self.kept:,} kept"
        )

    def __str__(self) -> str:
        rate = (self.sent + self.payload_only) / self.seconds if self.seconds else 0.0
        return f"{self.collection}: {self.outcomes}; {self.seconds:.1f} s, {rate:,.0f} passages/s"

    def plus(self, changes: Changes) -> "LoadReport":
        """Return the report with the counts of some more changes."""
        return replace(
            self,
            added=self.added + len(changes.added),
            replaced=self.replaced + len(changes.replaced),
            payload_only=self.payload_only + len(changes.payloads),
        )

    def ended(self, passages: int, *, beside: int, prune: bool) -> "LoadReport":
        """Return the report of all `passages` of DATA, with `beside` points that DATA lacks."""
        return replace(
            self,
            unchanged=passages - self.sent - self.payload_only,
            pruned=beside if prune else 0,
            kept=0 if prune else beside,
        )


@configuration()
class LoadSettings:
    """How to load.

    Attributes:
        prune: delete points that DATA does not have; otherwise they stay searchable, and the
            collection's metadata says how many there are.
        rate_limit: passages per second, at most; None for no limit.
        retry_for_s: how long to wait for a server that does not answer.
        take_over: take the lease from another loader, which will stop.
    """

    prune: bool = False
    rate_limit: float | None = Field(default=None, gt=0)
    retry_for_s: float = Field(default=RETRY_FOR_S, ge=0)
    take_over: bool = False

    @property
    def batch_points(self) -> int:
        """Points per request; fewer under a low rate limit, so that requests stay frequent."""
        if self.rate_limit is None:
            return BATCH_POINTS
        return min(BATCH_POINTS, math.ceil(self.rate_limit / 4))


@one_blas_thread()
def load(
    engine: Engine,
    dataset: Dataset,
    encoder: PassageEncoder,
    *,
    name: str,
    options: CollectionOptions | None = None,
    settings: LoadSettings | None = None,
) -> LoadReport:
    """Make the collection of `name` and this encoder equal to DATA.

    `name` is the alias that the collection is for; it does not move here. Another fingerprint of
    `encoder` means another collection. Without `options` an existing collection keeps its own.

    Raises:
        DataError: there is no passage, or one is too large for a request.
        CollectionMismatch: something else has a collection of that name.
        EngineLocked: another process loads it.
        EngineError: the engine fails, run the same command again to go on; or there is no room.
    """
    start = time.perf_counter()
    if not dataset.passage_count:
        raise DataError(f"{dataset.path} has no passages; nothing to load")
    settings, dataset = settings or LoadSettings(), cache(dataset)
    patient = engine.with_retry(settings.retry_for_s)
    collection = collection_name(name, encoder.fingerprint)
    require_room(engine, dataset, encoder, collection=collection, options=options)
    metadata = open_collection(patient, dataset, encoder, name=name, options=options)
    with Lease(engine, collection, take_over=settings.take_over) as lease:
        patient.update_collection(collection, metadata={"data": describe(dataset, kept=0)})
        stored = stored_hashes(engine, collection, patient=patient)
        report = LoadReport(collection)
        size, is_embedded = settings.batch_points, engine.is_embedded
        workers = worker_count(encoder, dataset.passage_count) if is_embedded else 0
        with (
            Sender(rate_limit=settings.rate_limit, is_embedded=is_embedded) as sender,
            BatchMaker(encoder, metadata, batch_points=size, workers=workers) as maker,
        ):
            for changes, points in maker.run(_changes(patient, collection, dataset, stored)):
                lease.check()
                report = report.plus(changes)
                send_changes(patient, collection, changes, points, sender, settings=settings)
            if settings.prune:
                for ids in chunks(stored, DELETED_AT_ONCE):
                    sender.put(partial(patient.delete, collection, ids), len(ids))
        report = report.ended(dataset.passage_count, beside=len(stored), prune=settings.prune)
        parts = [key for key in stored_metadata(patient, collection) if PART.fullmatch(key)]
        described = {"data": describe(dataset, kept=report.kept), **dict.fromkeys(parts)}
        patient.update_collection(collection, metadata=described)
        if report.points > OPTIMIZE_ABOVE or metadata.options.wants_index:
            patient.optimize(collection)
    return replace(report, seconds=time.perf_counter() - start)


def send_changes(
    engine: Engine,
    collection: str,
    changes: Changes,
    points: Iterable[Sequence[Point]],
    sender: Sender,
    *,
    settings: LoadSettings,
) -> None:
    """Hand the points and the payloads of some changes to the sender, batch by batch."""
    for batch in points:
        sender.put(partial(engine.upsert, collection, batch), len(batch))
    for part in chunks(changes.payloads, settings.batch_points):
        sender.put(partial(engine.batch_update_points, collection, part), len(part))


def plan(
    engine: Engine, dataset: Dataset, encoder: PassageEncoder, *, name: str, prune: bool = False
) -> LoadReport:
    """Return what `load` would do, without doing any of it.

    Raises:
        CollectionMismatch: something else has a collection of that name.
    """
    collection = collection_name(name, encoder.fingerprint)
    stored = StoredHashes()
    if engine.collection_exists(collection):
        require_expansion(collection, read_metadata(engine, collection).data, dataset)
        stored = stored_hashes(engine, collection)
    report = LoadReport(collection)
    for changes in _changes(engine, collection, dataset, stored):
        report = report.plus(changes)
    return report.ended(dataset.passage_count, beside=len(stored), prune=prune)


def _changes(
    engine: Engine, collection: str, dataset: Dataset, stored: StoredHashes
) -> Iterator[Changes]:
    passages = progress(dataset.passages(), label="Loading", total=dataset.passage_count)
    is_expanded = bool(dataset.manifest.get("expansion"))
    return find_changes(engine, collection, passages, stored, is_expanded=is_expanded)
