"""One slice of DATA at a time: many loaders, each with a part of its own, fill one collection.

    lease 3/8   who loads that part now, as in `lease.py`
    part 3/8    {"data": …, "passages": …}, when all of it has been sent

Each is a key of its own in the collection's metadata, so that loaders never write over each other.
A part asks the engine for the points of its own passages alone. Points depend on the passage, the
bundle and what is stored of all of DATA, so parts may come in any order, and again after a stop.
"""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from two_tower.ingest.loading.diff import Changes, StoredHashes, find_changes
from two_tower.ingest.loading.lease import LEASE, PART, Lease
from two_tower.ingest.loading.loader import LoadReport, LoadSettings, send_changes
from two_tower.ingest.loading.points import PassageEncoder, chunks
from two_tower.ingest.loading.sending import Sender
from two_tower.ingest.loading.setup import describe, open_collection
from two_tower.ingest.loading.workers import BatchMaker
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.progress import progress
from two_tower.models.threads import one_blas_thread
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import (
    CONTENT_HASH,
    base_name,
    collection_name,
    point_id,
    read_metadata,
)
from two_tower.retriever.engine.protocol import (
    Engine,
    agreement,
    collection_names,
    stored_metadata,
)
from two_tower.retriever.errors import CollectionMismatch


class Part(NamedTuple):
    """One of some parts of DATA, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def note(self) -> str:
        """The key that says that it has been loaded."""
        return f"part {self}"

    def bounds(self, count: int) -> tuple[int, int]:
        """Return which of `count` passages it holds; parts differ by one passage at most."""
        return count * (self.number - 1) // self.of, count * self.number // self.of

    def of_passages(self, dataset: Dataset, *, label: str = "") -> Iterator[Passage]:
        """Yield its passages in DATA's order."""
        first, end = self.bounds(dataset.passage_count)
        passages = islice(dataset.passages(), first, end)
        return iter(progress(passages, label=label, total=end - first) if label else passages)


def read_part(text: str) -> Part:
    """Return the part that `3/8` is.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--part is {text!r}; expected a number and how many: 1/8 to 8/8")
    return Part(int(match[1]), int(match[2]))


@one_blas_thread()
def load_part(
    engine: Engine,
    dataset: Dataset,
    encoder: PassageEncoder,
    part: Part,
    *,
    name: str,
    options: CollectionOptions | None = None,
    settings: LoadSettings | None = None,
) -> LoadReport | None:
    """Load one part of DATA into the collection of `name`; `finish` ends it when all are there.

    Returns:
        What was done; None where this part, or all of DATA, had been loaded.

    Raises:
        DataError: the part holds no passage, or the collection has parts of other DATA.
        CollectionMismatch: parts of `name` are being loaded with another bundle.
        EngineLocked: another process loads this part.
        EngineError: the engine fails; run the same command again to go on.
    """
    start = time.perf_counter()
    first, end = part.bounds(dataset.passage_count)
    if first == end:
        raise DataError(
            f"part {part} of {dataset.path} is empty: it has {dataset.passage_count:,} passages; "
            "expected no more parts than passages"
        )
    settings = settings or LoadSettings()
    patient = engine.with_retry(settings.retry_for_s)
    collection = collection_name(name, encoder.fingerprint)
    _require_one_bundle(patient, collection, encoder)
    if patient.collection_exists(collection):
        _require_same(collection, loaded_parts(patient, collection), dataset, part)
    metadata = open_collection(patient, dataset, encoder, name=name, options=options)
    with Lease(engine, collection, take_over=settings.take_over, key=f"{LEASE} {part}") as lease:
        notes = loaded_parts(patient, collection)
        _require_same(collection, notes, dataset, part)
        if part in notes or (not notes and _is_complete(patient, name, collection, dataset)):
            return None
        patient.update_collection(collection, metadata={"data": describe(dataset, kept=0)})
        report = LoadReport(collection)
        passages = part.of_passages(dataset, label="Loading")
        size, is_embedded = settings.batch_points, engine.is_embedded
        with (
            Sender(rate_limit=settings.rate_limit, is_embedded=is_embedded) as sender,
            BatchMaker(encoder, metadata, batch_points=size) as maker,
        ):
            for changes, points in maker.run(_changes(patient, collection, dataset, passages)):
                lease.check()
                report = report.plus(changes)
                send_changes(patient, collection, changes, points, sender, settings=settings)
        lease.check()
        note = {"data": dataset.content_hash, "passages": end - first}
        patient.update_collection(collection, metadata={part.note: note})
    report = report.ended(end - first, beside=0, prune=False)
    return replace(report, seconds=time.perf_counter() - start)


def loaded_parts(engine: Engine, collection: str) -> dict[Part, dict[str, Any]]:
    """Return what is known of the parts that have been loaded and wait for the others."""
    return parts_in(stored_metadata(engine, collection))


def parts_in(metadata: Mapping[str, Any]) -> dict[Part, dict[str, Any]]:
    """Return the same of a collection's metadata."""
    notes = {}
    for key, note in metadata.items():
        if (match := PART.fullmatch(key)) and note:
            notes[Part(int(match["number"]), int(match["of"]))] = note
    return notes


def _require_same(
    collection: str, notes: dict[Part, dict[str, Any]], dataset: Dataset, part: Part
) -> None:
    for other, note in notes.items():
        end = f"finish with those, or run: ingest drop {collection}"
        if note["data"] != dataset.content_hash:
            raise DataError(
                f"collection {collection!r} has part {other} of DATA {note['data'][:12]}, "
                f"{dataset.path} is {dataset.content_hash[:12]}; {end}"
            )
        if other.of != part.of:
            raise DataError(
                f"collection {collection!r} is being loaded in {other.of} parts, this is one of "
                f"{part.of}; {end}"
            )


def _is_complete(engine: Engine, name: str, collection: str, dataset: Dataset) -> bool:
    """Whether searches by `name` find all of DATA there: its load, in parts or not, has ended."""
    aliases = {alias.alias_name: alias.collection_name for alias in engine.get_aliases().aliases}
    metadata = read_metadata(engine, collection)
    return (
        aliases.get(name) == collection
        and metadata.data["content_hash"] == dataset.content_hash
        and engine.count(collection, exact=True).count == metadata.expected_points
    )


def _require_one_bundle(engine: Engine, collection: str, encoder: PassageEncoder) -> None:
    """Refuse another bundle while parts of the same name wait to be finished."""
    for other in collection_names(engine):
        if other == collection or base_name(other) != base_name(collection):
            continue
        if loaded_parts(engine, other):
            raise CollectionMismatch(
                f"parts of {base_name(collection)!r} are being loaded with another bundle, into "
                f"{other}; this bundle is {encoder.fingerprint[:12]}: finish those, or run: "
                f"ingest drop {other}"
            )


def _changes(
    engine: Engine, collection: str, dataset: Dataset, passages: Iterator[Passage]
) -> Iterator[Changes]:
    """Yield what has to be written of some passages; the engine is asked for these alone."""
    stored = StoredHashes()
    consistency = agreement(engine, collection)

    def with_stored() -> Iterator[Passage]:
        for chunk in chunks(passages):
            ids: list[int | str] = [point_id(passage.passage_id) for passage in chunk]
            for record in engine.retrieve(
                collection, ids, with_payload=[CONTENT_HASH], consistency=consistency
            ):
                stored.add(record)
            yield from chunk

    is_expanded = bool(dataset.manifest.get("expansion"))
    return find_changes(engine, collection, with_stored(), stored, is_expanded=is_expanded)
