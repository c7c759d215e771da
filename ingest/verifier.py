"""Is a collection what DATA says? Count, every content hash, and a sample encoded anew."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import models as qm

from ingest.loader import stored_hashes
from ingest.opening import describe
from ingest.points import PassageEncoder, PointMaker
from models.console import progress
from models.data import Dataset, Passage
from models.lexical import Bm25Config, Bm25Encoder
from retriever.engine import Engine
from retriever.errors import CollectionMismatch, VerificationFailed
from retriever.schema import CollectionMetadata, content_hash, point_id, read_metadata

SAMPLE = 64
# The engine normalises once more, and a batch of another size may round otherwise.
TOLERANCE = 1e-4
AGAIN = "run ingest load again"


@dataclass(frozen=True)
class VerifyReport:
    """What was found to be right.

    Attributes:
        collection: versioned name.
        points: how many it holds.
        kept: those of them that DATA does not have.
        compared: passages whose vectors and payload were made anew and found equal.
    """

    collection: str
    points: int
    kept: int
    compared: int

    def __str__(self) -> str:
        kept = f", {self.kept:,} of them not in DATA (ingest load --prune deletes those)"
        return (
            f"{self.collection}: verified {self.points:,} points{kept if self.kept else ''}; "
            f"{self.compared:,} compared in full"
        )


def verify_counts(engine: Engine, collection: str) -> VerifyReport:
    """Check a collection against its own metadata.

    Raises:
        CollectionNotFound: there is none.
        CollectionMismatch: it is not one of ours.
        VerificationFailed: it holds another number of points than its last load meant it to.
    """
    metadata = read_metadata(engine, collection)
    metadata.schema.require(engine.get_collection(collection), collection=collection)
    points = engine.count(collection, exact=True).count
    if points != metadata.expected_points:
        raise VerificationFailed(
            f"collection {collection!r} has {points:,} points, expected "
            f"{metadata.expected_points:,}; its load was not finished: {AGAIN}"
        )
    return VerifyReport(collection, points, int(metadata.data.get("kept", 0)), 0)


def verify(
    engine: Engine, collection: str, dataset: Dataset, encoder: PassageEncoder
) -> VerifyReport:
    """Check a collection against DATA and the bundle.

    Every passage must be there with its content hash; `SAMPLE` of them, spread evenly, are made
    into points again and compared, vectors and payload.

    Raises:
        CollectionNotFound: there is none.
        CollectionMismatch: it was loaded with another bundle, or by something else.
        VerificationFailed: it is not what DATA says.
    """
    metadata = read_metadata(engine, collection)
    _require_same_origin(metadata, dataset, encoder, collection)
    report = verify_counts(engine, collection)
    sample = _check_hashes(engine, collection, dataset)
    maker = PointMaker(encoder, Bm25Encoder(Bm25Config(**metadata.bm25)))
    _compare(engine, collection, [sized.point for sized in maker.make(sample)])
    return VerifyReport(collection, report.points, report.kept, len(sample))


def _require_same_origin(
    metadata: CollectionMetadata, dataset: Dataset, encoder: PassageEncoder, collection: str
) -> None:
    if metadata.bundle_fingerprint != encoder.fingerprint:
        raise CollectionMismatch(
            f"collection {collection!r} was loaded with bundle {metadata.bundle_fingerprint}, "
            f"this is bundle {encoder.fingerprint}"
        )
    expected = describe(dataset, kept=0)["content_hash"]
    if metadata.data["content_hash"] != expected:
        raise VerificationFailed(
            f"collection {collection!r} was loaded from DATA {metadata.data['content_hash'][:12]}, "
            f"{dataset.path} is {expected[:12]}; run ingest load with this DATA"
        )


def _check_hashes(engine: Engine, collection: str, dataset: Dataset) -> list[Passage]:
    """Check that every passage is there; return a sample of them."""
    stored = stored_hashes(engine, collection)
    step = max(1, dataset.passage_count // SAMPLE)
    sample: list[Passage] = []
    wrong: list[str] = []
    passages = progress(dataset.passages(), label="Verifying", total=dataset.passage_count)
    for number, passage in enumerate(passages):
        if stored.get(point_id(passage.passage_id)) != content_hash(passage):
            wrong.append(passage.passage_id)
        elif number % step == 0 and len(sample) < SAMPLE:
            sample.append(passage)
    if wrong:
        raise VerificationFailed(
            f"collection {collection!r} lacks {len(wrong):,} passages of {dataset.path} or has "
            f"another version of them, {wrong[0]!r} for one: {AGAIN}"
        )
    return sample


def _compare(engine: Engine, collection: str, expected: Sequence[qm.PointStruct]) -> None:
    ids = [point.id for point in expected]
    records = engine.retrieve(
        collection, [str(i) for i in ids], with_payload=True, with_vectors=True
    )
    found = {str(record.id): record for record in records}
    for point in expected:
        record = found[str(point.id)]
        passage_id = (point.payload or {})["passage_id"]
        if not _same_json(record.payload, point.payload):
            raise VerificationFailed(
                f"collection {collection!r}: the payload of passage {passage_id!r} is not what "
                f"DATA says; drop the collection and {AGAIN}"
            )
        _compare_vectors(record, point, f"collection {collection!r}: passage {passage_id!r}")


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


def _compare_vectors(record: qm.Record, point: qm.PointStruct, where: str) -> None:
    stored = record.vector if isinstance(record.vector, dict) else {}
    expected = point.vector if isinstance(point.vector, dict) else {}
    if stored.keys() != expected.keys():
        raise VerificationFailed(
            f"{where} has vectors {sorted(stored)}, expected {sorted(expected)}; {AGAIN}"
        )
    for name, vector in expected.items():
        difference = _difference(stored[name], vector)
        if difference > TOLERANCE:
            raise VerificationFailed(
                f"{where}: vector {name!r} differs by {difference:.2g} from what this bundle "
                f"gives, at most {TOLERANCE:g} is rounding; drop the collection and {AGAIN}"
            )


def _difference(stored: object, expected: object) -> float:
    """Return the largest difference in any dimension; infinite for vectors of another shape."""
    if isinstance(stored, qm.SparseVector) and isinstance(expected, qm.SparseVector):
        left, right = (dict(zip(v.indices, v.values, strict=True)) for v in (stored, expected))
        return max((abs(left.get(i, 0) - right.get(i, 0)) for i in left | right), default=0.0)
    left_array, right_array = np.asarray(stored), np.asarray(expected)
    if left_array.shape != right_array.shape:
        return float("inf")
    return float(np.abs(left_array - right_array).max())
