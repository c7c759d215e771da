"""DATA to a collection: streaming, resumable, verified.

    read -> what differs -> encode -> queue -> send         memory is bounded by the queue

There is no checkpoint file. A load asks the engine which points it has, by the content hash in
their payload, and sends the others; being stopped at any instant and run again ends in the same
collection. A point depends on its passage, the bundle and what the collection's metadata says,
never on the order or the number of attempts.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from qdrant_client import models as qm

from two_tower.ingest.loading.diff import Changes, StoredHashes, find_changes, stored_hashes
from two_tower.ingest.loading.lease import Lease
from two_tower.ingest.loading.points import (
    BATCH_POINTS,
    PassageEncoder,
    PointMaker,
    SizedPoint,
    chunks,
    pack,
)
from two_tower.ingest.loading.retry import RETRY_FOR_S, patient
from two_tower.ingest.loading.sending import Sender, one_blas_thread
from two_tower.ingest.loading.setup import describe, open_collection
from two_tower.models.console import progress
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError, DataError
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import collection_name, read_metadata
from two_tower.retriever.engine.protocol import Engine, agreement


@dataclass(frozen=True)
class LoadReport:
    """What a load did, or would do.

    Attributes:
        collection: versioned name.
        added: passages that were not there.
        replaced: passages whose title or text is another; encoded again.
        payload_only: passages of which only url or fields differ; not encoded.
        unchanged: passages that were there already.
        pruned: points deleted because DATA does not have them.
        kept: points that DATA does not have and that were left in.
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

    def plus(self, changes: Changes) -> "LoadReport":
        """Return the report with some more changes in it."""
        return replace(
            self,
            added=self.added + len(changes.added),
            replaced=self.replaced + len(changes.replaced),
            payload_only=self.payload_only + len(changes.payloads),
        )

    def ended(self, passages: int, *, beside: int, prune: bool) -> "LoadReport":
        """Return the report of a walk through all `passages` that met `beside` other points."""
        return replace(
            self,
            unchanged=passages - self.sent - self.payload_only,
            pruned=beside if prune else 0,
            kept=0 if prune else beside,
        )

    @property
    def points(self) -> int:
        """How many the collection holds in the end."""
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


DELETED_AT_ONCE = 1024

OPTIMIZE_ABOVE = 100_000


@dataclass(frozen=True)
class LoadSettings:
    """How to load.

    Attributes:
        prune: delete points that DATA does not have; otherwise they stay searchable, and the
            collection's metadata says how many there are.
        rate_limit: passages per second, at most; None for no limit.
        retry_for_s: how long to wait for a server that does not answer.
        take_over: load although another loader seems to be at it; that one will stop.
    """

    prune: bool = False
    rate_limit: float | None = None
    retry_for_s: float = RETRY_FOR_S
    take_over: bool = False

    def __post_init__(self) -> None:
        if self.rate_limit is not None and not self.rate_limit > 0:
            raise ConfigError(f"the rate limit is {self.rate_limit}, expected more than 0")
        if not self.retry_for_s >= 0:
            raise ConfigError(f"the time to retry is {self.retry_for_s} s, expected 0 or more")

    @property
    def batch_points(self) -> int:
        """Points per request; fewer where a rate limit would make the requests seldom."""
        if self.rate_limit is None:
            return BATCH_POINTS
        return min(BATCH_POINTS, math.ceil(self.rate_limit / 4))


PLAINLY = LoadSettings()


@one_blas_thread()
def load(
    engine: Engine,
    dataset: Dataset,
    encoder: PassageEncoder,
    *,
    name: str,
    options: CollectionOptions | None = None,
    settings: LoadSettings = PLAINLY,
) -> LoadReport:
    """Bring the collection that `name` has for this encoder to what DATA says.

    Args:
        engine: where to.
        dataset: the passages, or a selection of them.
        encoder: makes the vectors; another fingerprint means another collection.
        name: the alias that will stand for the collection; it is not touched here.
        options: how to store it; None for the default, or what the collection has already.
        settings: how to load.

    Raises:
        DataError: there is no passage.
        CollectionMismatch: something else has a collection of that name.
        EngineLocked: another process loads it.
        EngineError: the engine fails; run the same command again to go on.
    """
    start = time.perf_counter()
    if not dataset.passage_count:
        raise DataError(f"{dataset.path} has no passages; nothing to load")
    lasting = patient(engine, retry_for_s=settings.retry_for_s)
    metadata = open_collection(lasting, dataset, encoder, name=name, options=options)
    collection = collection_name(name, encoder.fingerprint)
    with Lease(engine, collection, take_over=settings.take_over) as lease:
        _describe(lasting, collection, dataset, kept=0)
        stored = stored_hashes(lasting, collection, consistency=agreement(engine, collection))
        report = LoadReport(collection)
        with Sender(rate_limit=settings.rate_limit) as sender:
            outbox = _Outbox(lasting, collection, sender, settings.batch_points)
            maker = PointMaker.of(encoder, metadata)
            for changes in _changes(lasting, collection, dataset, stored):
                lease.check()
                report = report.plus(changes)
                outbox.write(maker.make([*changes.added, *changes.replaced]), changes.payloads)
            if settings.prune:
                outbox.delete(stored)
        report = report.ended(dataset.passage_count, beside=len(stored), prune=settings.prune)
        _describe(lasting, collection, dataset, kept=report.kept)
        many = dataset.passage_count + report.kept > OPTIMIZE_ABOVE
        if many or metadata.options.wants_index:
            lasting.optimize(collection)
    return replace(report, seconds=time.perf_counter() - start)


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
        read_metadata(engine, collection)
        stored = stored_hashes(engine, collection)
    report = LoadReport(collection)
    for changes in _changes(engine, collection, dataset, stored):
        report = report.plus(changes)
    return report.ended(dataset.passage_count, beside=len(stored), prune=prune)


def _describe(engine: Engine, collection: str, dataset: Dataset, *, kept: int) -> None:
    engine.update_collection(collection, metadata={"data": describe(dataset, kept=kept)})


def _changes(
    engine: Engine, collection: str, dataset: Dataset, stored: StoredHashes
) -> Iterator[Changes]:
    passages = progress(dataset.passages(), label="Loading", total=dataset.passage_count)
    return find_changes(engine, collection, passages, stored)


class _Outbox:
    """Writes to one collection in requests that the engine takes."""

    def __init__(self, engine: Engine, collection: str, sender: Sender, batch_points: int) -> None:
        self._engine = engine
        self._collection = collection
        self._sender = sender
        self._batch_points = batch_points

    def write(
        self, points: Iterable[SizedPoint], payloads: Iterable[qm.OverwritePayloadOperation]
    ) -> None:
        """Send points in batches of a bounded number and size; replace payloads."""
        for batch in pack(points, max_points=self._batch_points):
            self._put(partial(self._engine.upsert, points=batch), len(batch))
        for changed in chunks(payloads, self._batch_points):
            write = partial(self._engine.batch_update_points, update_operations=changed)
            self._put(write, len(changed))

    def delete(self, point_ids: Iterable[int | str]) -> None:
        """Delete points."""
        for batch in chunks(point_ids, DELETED_AT_ONCE):
            self._put(partial(self._engine.delete, points_selector=batch), len(batch))

    def _put(self, write: Callable[..., object], passages: int) -> None:
        self._sender.put(partial(write, self._collection), passages)
