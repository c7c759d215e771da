"""How large a collection will be, from a sample of DATA and what the engine needs per point.

The figures were measured on Qdrant 1.16 and Edge 0.9 (`tests/bench/million.py` and
`tests/test_ingest_estimate.py` compare them with what is really there). Vectors, payloads and
postings are exact or nearly so; the rest is small beside them.
"""

import json
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from ingest.points import PassageEncoder
from models.data import Dataset, Passage
from models.lexical import Bm25Config, Bm25Encoder
from retriever.indexes import indexable_fields
from retriever.options import CollectionOptions
from retriever.schema import to_payload

SAMPLE = 1000
FLOAT_BYTES = 4
LINK_BYTES = 3  # of a graph, per point, vector and m
POSTING_BYTES = 7.4  # in the index of bm25
STORED_TERM_BYTES = 11.3  # of the same vectors as they came
ID_BYTES = 30
INDEX_BYTES = 25  # of a payload index, per point
HEAP_BYTES = 550  # of a point in memory beside its files
WAL_BYTES = 40e6  # of the log that a crash is recovered from; fewer where less was written
FIXED_BYTES = 110e6  # a server's own, and what it maps of files that are made larger than needed
BITS = {"none": 0.0, "scalar": 8.0}


class Estimate(NamedTuple):
    """How large a collection will be, all replicas together.

    Attributes:
        points: how many it holds.
        disk: bytes of its files.
        memory: bytes that a server holds after the load and some searches, mapped files included;
            while it builds graphs it takes more, and with less it waits for the disk.
    """

    points: int
    disk: float
    memory: float

    def __str__(self) -> str:
        return (
            f"{self.points:,} points: about {_readable(self.disk)} on disk, "
            f"{_readable(self.memory)} of memory"
        )


def estimate(
    dataset: Dataset, encoder: PassageEncoder, *, options: CollectionOptions, points: int
) -> Estimate:
    """Return how large the collection of `points` passages like those of DATA will be.

    Args:
        dataset: `SAMPLE` of its passages are measured.
        encoder: its widths decide most.
        options: how the collection is stored.
        points: how many it will hold.
    """
    step = max(1, dataset.passage_count // SAMPLE)
    sample = list(islice(dataset.passages(), 0, None, step))
    payload, terms = _payload_bytes(sample), _terms(sample)
    widths = (encoder.dim, *encoder.pca_dims)
    vectors = FLOAT_BYTES * sum(widths)
    # The engine builds graphs and quantized copies for segments above a size.
    graphs = copies = 0.0
    if points * FLOAT_BYTES * max(widths) > 1024 * options.hnsw.above_kb:
        graphs = LINK_BYTES * options.hnsw.m * len(widths)
        copies = _bits(options) / 8 * sum(widths)
    fields = indexable_fields(dataset.manifest.get("fields", {}), options.indexes)
    indexes = INDEX_BYTES * (2 + len(fields))
    lexical = terms * (POSTING_BYTES + STORED_TERM_BYTES)
    searched = graphs + copies + lexical + indexes + ID_BYTES
    log = min(WAL_BYTES, points * (1.25 * vectors + 10 * terms + payload))
    held = searched + HEAP_BYTES
    held += 0 if options.on_disk.vectors else vectors
    held += 0 if options.on_disk.payload else payload
    replicas = options.replicas or 1
    return Estimate(
        points,
        disk=replicas * (points * (searched + vectors + payload) + log),
        memory=replicas * (FIXED_BYTES + points * held + log),
    )


def _bits(options: CollectionOptions) -> float:
    """Bits per dimension of the quantized copies."""
    kind = options.quantization.kind
    return options.quantization.bits if kind == "binary" else BITS[kind]


def _payload_bytes(sample: Sequence[Passage]) -> float:
    return sum(len(json.dumps(to_payload(p)).encode()) for p in sample) / len(sample)


def _terms(sample: Sequence[Passage]) -> float:
    encoder = Bm25Encoder(Bm25Config(avg_len=1.0))
    vectors = encoder.encode_passages([passage.content for passage in sample])
    return sum(len(vector.indices) for vector in vectors) / len(sample)


def _readable(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
