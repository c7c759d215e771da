"""Checks a collection against DATA: count, every content hash, and a sample encoded anew.

In a cluster a point counts where all replicas agree. `repair` compares every passage in full
and sends again what is missing, different, or not the same on every replica.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from two_tower.ingest.loading.diff import stored_hashes
from two_tower.ingest.loading.expansion import require_expansion
from two_tower.ingest.loading.points import PassageEncoder, PointMaker, StoredVectors, chunks
from two_tower.ingest.loading.selection import Selection, select
from two_tower.models.bundle.no_tower import NoTower
from two_tower.models.config import from_mapping
from two_tower.models.data import Dataset, Passage
from two_tower.models.progress import progress
from two_tower.retriever.collection.schema import (
    LATE,
    CollectionMetadata,
    content_hash,
    point_id,
    read_metadata,
)
from two_tower.retriever.engine.protocol import POINTS_PER_PAGE, Engine, agreement
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.engine.wire import AnyPoint, Point, Record, batches, is_sparse
from two_tower.retriever.errors import CollectionMismatch, VerificationFailed

# The engine normalises once more, and a batch of another size may round otherwise.
TOLERANCE = {"float32": 1e-4, "float16": 5e-4}
EIGHT_BIT_TOLERANCE = 0.03  # of a transformer: torch, or another processor, may round otherwise
LATE_TOLERANCE = 2.0  # bytes: another processor may round a number, and then another, the other way
COMPARED = 64  # passages, in full
MEND = "run ingest load again, or ingest verify with --repair"


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification that passed.

    Attributes:
        collection: versioned name.
        points: how many it holds.
        kept: points that DATA does not have.
        compared: passages whose new vectors and payload equal the stored ones; 0 where the points
            were counted, and nothing else.
        replicas_down: whether some replica gave no answer; then only the others were compared.
    """

    collection: str
    points: int
    kept: int
    compared: int
    replicas_down: bool = False

    def __str__(self) -> str:
        kept = f", {self.kept:,} of them not in DATA (ingest load --prune deletes those)"
        down = "; a replica is down, so only the others were read: verify again when it is up"
        kept, down = kept if self.kept else "", down if self.replicas_down else ""
        if not self.compared:
            return (
                f"{self.collection}: counted {self.points:,} points{kept}, as many as its last "
                f"load meant; to compare them: ingest verify {self.collection} --data DATA{down}"
            )
        return (
            f"{self.collection}: verified {self.points:,} points{kept}; "
            f"{self.compared:,} compared in full{down}"
        )


@dataclass(frozen=True)
class RepairReport:
    """What a repair did.

    Attributes:
        collection: versioned name.
        compared: passages that were encoded anew and compared in full.
        sent: wrong points that were sent again.
    """

    collection: str
    compared: int
    sent: int

    def __str__(self) -> str:
        return f"{self.collection}: compared {self.compared:,} in full, {self.sent:,} sent again"


def verify_counts(engine: Engine, collection: str) -> VerifyReport:
    """Check a collection against its own metadata.

    Raises:
        CollectionNotFound: there is none.
        CollectionMismatch: it is not one of ours.
        VerificationFailed: it holds another number of points than its last load meant it to.
    """
    metadata = _read(engine, collection)
    return _counted(collection, metadata, engine.count(collection, exact=True).count)


def verify(
    engine: Engine, collection: str, dataset: Dataset, encoder: PassageEncoder
) -> VerifyReport:
    """Check a collection against DATA and the bundle.

    Every passage must be there with its content hash, on every replica that is up; `COMPARED` of
    them, spread evenly, are made into points again and compared, vectors and payload.

    Raises:
        CollectionNotFound: there is none.
        CollectionMismatch: it was loaded with another bundle, or by something else.
        VerificationFailed: it is not what DATA says.
    """
    metadata, dataset = _require_origin(engine, collection, dataset, encoder)
    stored = stored_hashes(engine, collection)
    report = _counted(collection, metadata, len(stored))
    step = max(1, dataset.passage_count // COMPARED)
    sample: list[Passage] = []
    wrong: list[str] = []
    passages = progress(dataset.passages(), label="Verifying", total=dataset.passage_count)
    for number, passage in enumerate(passages):
        if stored.get(point_id(passage.passage_id)) != content_hash(passage):
            wrong.append(passage.passage_id)
        elif number % step == 0 and len(sample) < COMPARED:
            sample.append(passage)
    if wrong:
        raise VerificationFailed(
            f"collection {collection!r} lacks {len(wrong):,} passages of {dataset.path} or has "
            f"another version of them, {wrong[0]!r} for one: {MEND}"
        )
    consistency = agreement(engine, collection)
    points = PointMaker(encoder, metadata).make(sample)
    rounding = _rounding(encoder, metadata)
    for point, reason in _wrong_points(engine, collection, points, consistency, rounding=rounding):
        raise VerificationFailed(
            f"collection {collection!r}, passage {point.payload['passage_id']!r}: {reason}; "
            f"run: ingest verify {collection} --data DATA --bundle BUNDLE --repair"
        )
    return replace(report, compared=len(sample), replicas_down=consistency is None)


def repair(
    engine: Engine, collection: str, dataset: Dataset, encoder: PassageEncoder
) -> RepairReport:
    """Compare every passage in full and send again those that are wrong on any replica.

    It takes longer than a load, for it also reads every point.

    Raises:
        CollectionNotFound: there is none.
        CollectionMismatch: it was loaded with another bundle, or by something else.
        VerificationFailed: it was loaded from another DATA.
        EngineError: the engine fails; run the same command again to go on.
    """
    metadata, dataset = _require_origin(engine, collection, dataset, encoder)
    maker, patient = PointMaker(encoder, metadata), engine.with_retry()
    sent, rounding = 0, _rounding(encoder, metadata)
    passages = progress(dataset.passages(), label="Repairing", total=dataset.passage_count)
    for chunk in chunks(passages):
        consistency = agreement(engine, collection)
        points = maker.make(chunk)
        compared = _wrong_points(engine, collection, points, consistency, rounding=rounding)
        wrong = [point for point, _ in compared]
        for batch in batches(wrong):
            patient.upsert(collection, batch, wait=True)
        sent += len(wrong)
    return RepairReport(collection, dataset.passage_count, sent)


def _read(engine: Engine, collection: str) -> CollectionMetadata:
    metadata = read_metadata(engine, collection)
    metadata.schema.require(engine.get_collection(collection), collection=collection)
    return metadata


def _counted(collection: str, metadata: CollectionMetadata, points: int) -> VerifyReport:
    if points != metadata.expected_points:
        raise VerificationFailed(
            f"collection {collection!r} has {points:,} points, expected "
            f"{metadata.expected_points:,}; its load was not finished, or replicas differ: {MEND}"
        )
    return VerifyReport(collection, points, int(metadata.data.get("kept", 0)), 0)


def _require_origin(
    engine: Engine, collection: str, dataset: Dataset, encoder: PassageEncoder
) -> tuple[CollectionMetadata, Dataset]:
    """Return a collection's metadata, and the part of DATA that it was loaded from."""
    metadata = _read(engine, collection)
    if metadata.bundle_fingerprint != encoder.fingerprint:
        raise CollectionMismatch(
            f"collection {collection!r} was loaded with bundle {metadata.bundle_fingerprint}, "
            f"this is bundle {encoder.fingerprint}"
        )
    has_other_queries = isinstance(encoder, StoredVectors)  # DATA of a load that was an adoption
    if metadata.data["content_hash"] != dataset.content_hash and not has_other_queries:
        raise VerificationFailed(
            f"collection {collection!r} was loaded from DATA {metadata.data['content_hash'][:12]}, "
            f"{dataset.path} is {dataset.content_hash[:12]}; run ingest load with this DATA"
        )
    require_expansion(collection, metadata.data, dataset)
    return metadata, select(dataset, from_mapping(Selection, metadata.data.get("selection") or {}))


def _wrong_points(
    engine: Engine,
    collection: str,
    expected: Iterable[Point],
    consistency: qm.ReadConsistencyType | None,
    *,
    rounding: float,
) -> Iterator[tuple[Point, str]]:
    """Yield the points that differ from the stored ones on any replica, and why."""
    for part in chunks(expected, POINTS_PER_PAGE):
        records = engine.retrieve(
            collection,
            [str(point.id) for point in part],
            with_payload=True,
            with_vectors=True,
            consistency=consistency,
        )
        stored = {str(record.id): record for record in records}
        for point in part:
            if reason := difference(stored.get(str(point.id)), point, rounding=rounding):
                yield point, reason


def _rounding(encoder: PassageEncoder, metadata: CollectionMetadata) -> float:
    """Return how far apart a number of two vectors of one text may be."""
    if not isinstance(encoder, NoTower):  # BM25 alone is loaded without what reads a bundle
        from two_tower.models.bundle.bundle import ModelBundle
        from two_tower.models.bundle.devices import reads_in_8_bits

        if isinstance(encoder, ModelBundle) and reads_in_8_bits(encoder):
            return EIGHT_BIT_TOLERANCE
    return TOLERANCE[metadata.options.datatype]


def difference(
    record: Record | None, point: AnyPoint, *, rounding: float = TOLERANCE["float32"]
) -> str:
    """Return how a stored point differs from the right one; empty where they are equal.

    `rounding` is how far apart a number of the vectors may be.
    """
    if record is None:
        return "it is missing, or replicas differ in it"
    if not _same_json(record.payload, point.payload):
        return "its payload is not what DATA says"
    stored = record.vector if isinstance(record.vector, dict) else {}
    expected = point.vector if isinstance(point.vector, dict) else {}
    if stored.keys() != expected.keys():
        return f"it has vectors {sorted(stored)}, expected {sorted(expected)}"
    for name, vector in expected.items():
        distance = _largest_difference(stored[name], vector)
        tolerance = LATE_TOLERANCE if name == LATE else rounding
        if distance > tolerance:
            return (
                f"vector {name!r} differs by {distance:.2g} from what this bundle gives, "
                f"at most {tolerance:g} is rounding"
            )
    return ""


def _same_json(stored: Any, expected: Any) -> bool:
    """Compare payloads; engines keep a float's text, which may cost its last bit."""
    if isinstance(expected, Mapping):
        return (
            isinstance(stored, Mapping)
            and stored.keys() == expected.keys()
            and all(_same_json(stored[name], value) for name, value in expected.items())
        )
    if isinstance(expected, list):
        return (
            isinstance(stored, list)
            and len(stored) == len(expected)
            and all(map(_same_json, stored, expected))
        )
    if isinstance(expected, float) and isinstance(stored, int | float):
        return math.isclose(stored, expected, rel_tol=1e-14)
    return bool(stored == expected)


def _largest_difference(stored: object, expected: object) -> float:
    """Return the largest difference in any dimension; infinite for vectors of another shape."""
    if is_sparse(stored) and is_sparse(expected):
        left, right = (dict(zip(v.indices, v.values, strict=True)) for v in (stored, expected))
        return max((abs(left.get(i, 0) - right.get(i, 0)) for i in left | right), default=0.0)
    left_array, right_array = np.asarray(stored, np.float64), np.asarray(expected, np.float64)
    if left_array.shape != right_array.shape:
        return float("inf")
    return float(np.abs(left_array - right_array).max())
