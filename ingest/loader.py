"""DATA to a collection: streaming, resumable, verified.

There is no checkpoint file. A load asks the engine which points it has, by the content hash in
their payload, and sends the others; being stopped at any instant and run again ends in the same
collection. A point depends on its passage, the bundle and the BM25 parameters in the collection's
metadata alone, never on the order or the number of attempts.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qdrant_client import models as qm

from ingest.opening import describe, open_collection
from ingest.points import PassageEncoder, PointMaker, chunks, pack
from models.console import progress
from models.data import Dataset, Passage
from retriever.engine import Engine
from retriever.errors import DataError
from retriever.replicas import agreement
from retriever.schema import (
    CONTENT_HASH,
    collection_name,
    content_hash,
    point_id,
)

SCROLL_SIZE = 4096
# Every so many batches one is waited for, so that the engine's queue and the last wait stay short.
WAIT_EVERY = 16
OPTIMIZE_ABOVE = 100_000


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        collection: versioned name.
        sent: passages that were missing or had changed.
        unchanged: passages that were there already.
        pruned: points deleted because DATA does not have them.
        kept: points that DATA does not have and that were left in.
        seconds: wall time.
    """

    collection: str
    sent: int
    unchanged: int
    pruned: int
    kept: int
    seconds: float

    def __str__(self) -> str:
        rate = self.sent / self.seconds if self.seconds else 0.0
        return (
            f"{self.collection}: {self.sent:,} sent, {self.unchanged:,} unchanged, "
            f"{self.pruned:,} pruned, {self.kept:,} kept beside DATA; "
            f"{self.seconds:.1f} s, {rate:,.0f} passages/s"
        )


def load(
    engine: Engine, dataset: Dataset, encoder: PassageEncoder, *, name: str, prune: bool = False
) -> LoadReport:
    """Bring the collection that `name` has for this encoder to what DATA says.

    Args:
        engine: where to.
        dataset: the passages.
        encoder: makes the vectors; another fingerprint means another collection.
        name: the alias that will stand for the collection; it is not touched here.
        prune: delete points that DATA does not have; otherwise they stay searchable, and the
            collection's metadata says how many there are.

    Raises:
        DataError: there is no passage.
        CollectionMismatch: something else has a collection of that name.
        EngineError: the engine fails; run the same command again to go on.
    """
    start = time.perf_counter()
    if not dataset.passage_count:
        raise DataError(f"{dataset.path} has no passages; nothing to load")
    metadata = open_collection(engine, dataset, encoder, name=name)
    collection = collection_name(name, encoder.fingerprint)
    stored = stored_hashes(engine, collection)
    maker = PointMaker.of(encoder, metadata)
    passages = progress(dataset.passages(), label=f"Loading {name}", total=dataset.passage_count)
    sent = _send(engine, collection, maker, _changed(passages, stored))
    stale = list(stored)
    if prune:
        _delete(engine, collection, stale)
    kept = 0 if prune else len(stale)
    engine.update_collection(collection, metadata={"data": describe(dataset, kept=kept)})
    if dataset.passage_count + kept > OPTIMIZE_ABOVE:
        engine.optimize(collection)
    return LoadReport(
        collection=collection,
        sent=sent,
        unchanged=dataset.passage_count - sent,
        pruned=len(stale) - kept,
        kept=kept,
        seconds=time.perf_counter() - start,
    )


def stored_hashes(engine: Engine, collection: str) -> dict[str, str]:
    """Return the content hash of every point in the collection by point id.

    A point that replicas differ in counts as missing.
    """
    consistency = agreement(engine, collection)
    hashes: dict[str, str] = {}
    offset: int | str | None = None
    while True:
        records, offset = engine.scroll(
            collection,
            limit=SCROLL_SIZE,
            offset=offset,
            with_payload=[CONTENT_HASH],
            consistency=consistency,
        )
        for record in records:
            hashes[str(record.id)] = (record.payload or {}).get(CONTENT_HASH, "")
        if offset is None:
            return hashes


def _changed(passages: Iterable[Passage], stored: dict[str, str]) -> Iterator[Passage]:
    """Yield what must be sent; what is left in `stored` after that, DATA does not have."""
    for passage in passages:
        if stored.pop(point_id(passage.passage_id), None) != content_hash(passage):
            yield passage


def _send(engine: Engine, collection: str, maker: PointMaker, passages: Iterable[Passage]) -> int:
    points = (point for chunk in chunks(passages) for point in maker.make(chunk))
    sent = 0
    waiting: list[qm.PointStruct] = []
    for number, batch in enumerate(pack(points)):
        if waiting:
            engine.upsert(collection, waiting, wait=number % WAIT_EVERY == 0)
        waiting = batch
        sent += len(batch)
    if waiting:
        engine.upsert(collection, waiting, wait=True)
    return sent


def _delete(engine: Engine, collection: str, point_ids: list[str]) -> None:
    for start in range(0, len(point_ids), SCROLL_SIZE):
        ids: list[int | str] = [*point_ids[start : start + SCROLL_SIZE]]
        engine.delete(collection, ids, wait=True)
