"""How large a collection will be, from a sample of DATA and what the engine was seen to take.

Measured on Qdrant 1.16.3 and Edge 0.9.0, two cores, 1,000 to 100,000 passages, made up and real
(`tests/test_ingest_estimate.py` compares with the engines themselves). Memory is the resident set
of the process, as `ps` shows it. In it are

    the process itself         its program and what it allocates before there is a collection
    each segment               a MiB for flags of each vector and two of each payload index
    the write-ahead log        what was written last, up to two files
    each point                 ids, postings and values of indexes, vectors, graphs
    the allocator              after a load, about three quarters of the log again

Vectors are in files of 32 MiB per segment and vector. A load touches what it fills of them; an
engine that opens them reads them whole, and so does one that has just built a segment with graphs.
So a small collection takes more after a restart than after its load.
"""

import json
import math
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from two_tower.ingest.loading.points import PassageEncoder
from two_tower.models.data import Dataset, Passage
from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.options import CollectionOptions, indexable_fields
from two_tower.retriever.collection.schema import to_payload

SAMPLE = 1000

FLOAT_BYTES = 4

LINK_BYTES = 3  # of a graph, per point, vector and m

STORED_TERM_BYTES = 11.3  # of bm25, as it came

POSTING_BYTES = 7.4  # of bm25 in an index that is complete, in a segment with graphs

GROWING_POSTING_BYTES = 16  # of the same in an index that still grows, and is in memory alone

HEAP_BYTES = 260  # of a point in memory beside these

GROWING_HEAP_BYTES = 600

ID_BYTES = 30

INDEX_BYTES = 45  # of a payload index, per point

LOG_BYTES = 60e6  # of the log that a crash is recovered from; fewer where less was written

SLACK = 0.75  # of the log's bytes: what a load leaves with the allocator

CHUNK_BYTES = 2**25  # a file of vectors

FLAGS_BYTES = 2**20  # a file of flags

BITS = {"none": 0.0, "scalar": 8.0}


class Process(NamedTuple):
    """What an engine takes beside its points.

    Attributes:
        bytes: of the process before there is a collection; of Edge, what its first use adds.
        segments: that it begins with, on up to five cores; on more there are more.
        index_bytes: that it reads of each payload index, however few points there are.
    """

    bytes: float
    segments: int
    index_bytes: float


SERVER = Process(53e6, segments=2, index_bytes=0.0)

EDGE = Process(20e6, segments=1, index_bytes=13e6)

EDGE_BUILDS_ABOVE = 100_000  # points; below that a load leaves it at scanning


class PointSize(NamedTuple):
    """What one point of a collection brings.

    Attributes:
        widths: of its dense vectors, the full one first.
        terms: different words for bm25.
        payload: bytes of its payload.
        indexes: payload indexes that it is in.
    """

    widths: tuple[int, ...]
    terms: float
    payload: float
    indexes: int

    @property
    def vectors(self) -> float:
        """Bytes of its dense vectors."""
        return FLOAT_BYTES * sum(self.widths)

    @property
    def logged(self) -> float:
        """Bytes that it takes in the log."""
        return 1.25 * self.vectors + 10 * self.terms + self.payload


class Estimate(NamedTuple):
    """How large a collection will be, all replicas together.

    Attributes:
        points: how many it holds.
        disk: bytes of its files.
        memory: bytes that the server's process holds at rest after the load, indexes built:
            its resident set, mapped files included. What options leave on disk is not in it,
            though the system keeps it in memory while there is room.
        restarted: the same after a restart. Of the embedded engine both are what a process that
            opens the folder and searches takes more than before.
        embedded: whether it is the embedded engine's.
    """

    points: int
    disk: float
    memory: float
    restarted: float
    embedded: bool = False

    def __str__(self) -> str:
        whose = (
            f"{_readable(self.memory)} of memory in a process that opens it"
            if self.embedded
            else f"{_readable(self.memory)} of memory in the server's process, "
            f"{_readable(self.restarted)} after a restart"
        )
        return (
            f"{self.points:,} points: about {_readable(self.disk)} on disk, {whose} (resident, at "
            "rest, mapped files included, what the options leave on disk not)"
        )


def estimate(
    dataset: Dataset,
    encoder: PassageEncoder,
    *,
    options: CollectionOptions,
    points: int,
    embedded: bool = False,
) -> Estimate:
    """Return how large the collection of `points` passages like those of DATA will be.

    Args:
        dataset: `SAMPLE` of its passages are measured.
        encoder: its widths decide most.
        options: how the collection is stored.
        points: how many it will hold.
        embedded: whether it will be in the embedded engine.
    """
    step = max(1, dataset.passage_count // SAMPLE)
    sample = list(islice(dataset.passages(), 0, None, step))
    fields = indexable_fields(dataset.manifest.get("fields", {}), options.indexes)
    point = PointSize(
        widths=(encoder.dim, *encoder.pca_dims),
        terms=_terms(sample),
        payload=_payload_bytes(sample),
        indexes=2 + len(fields),
    )
    return estimate_points(point, points, options=options, embedded=embedded)


def estimate_points(
    point: PointSize,
    points: int,
    *,
    options: CollectionOptions,
    embedded: bool = False,
) -> Estimate:
    """Return how large a collection of `points` such points will be."""
    shards, replicas = options.shards or 1, options.replicas or 1
    shard = _Shard(point, points / shards, options, embedded)
    process = shard.process.bytes
    restarted = replicas * (process + shards * shard.reopened)
    return Estimate(
        points,
        disk=replicas * shards * shard.disk,
        memory=restarted if embedded else replicas * (process + shards * shard.loaded),
        restarted=restarted,
        embedded=embedded,
    )


class _Shard(NamedTuple):
    """One copy of one shard."""

    point: PointSize
    points: float
    options: CollectionOptions
    embedded: bool

    @property
    def process(self) -> Process:
        return EDGE if self.embedded else SERVER

    @property
    def built(self) -> bool:
        """Whether there are graphs and quantized copies: in segments above a size alone."""
        if self.embedded and self.points <= EDGE_BUILDS_ABOVE and not self.options.wants_index:
            return False
        widest = FLOAT_BYTES * max(self.point.widths) * self.points / self.process.segments
        return widest > 1024 * self.options.hnsw.above_kb

    @property
    def segments(self) -> int:
        """Segments that hold points at rest; small ones with graphs have been merged into one."""
        small = FLOAT_BYTES * max(self.point.widths) * self.points < CHUNK_BYTES
        return 1 if self.built and small else self.process.segments

    @property
    def graphs(self) -> float:
        """Bytes of graphs and quantized copies."""
        if not self.built:
            return 0.0
        links = LINK_BYTES * self.options.hnsw.m * len(self.point.widths)
        return self.points * (links + _bits(self.options) / 8 * sum(self.point.widths))

    @property
    def log(self) -> float:
        return min(LOG_BYTES, self.points * self.point.logged)

    @property
    def disk(self) -> float:
        point = self.point
        lexical = point.terms * (STORED_TERM_BYTES + POSTING_BYTES * self.built)
        each = point.vectors + lexical + point.payload + INDEX_BYTES * point.indexes + ID_BYTES
        return self.points * each + self.graphs + self.log

    @property
    def held(self) -> float:
        """Bytes in memory, vectors aside, whatever happened before."""
        point, process = self.point, self.process
        segments = self.segments + self.built  # those with graphs take no more points
        flags = FLAGS_BYTES * segments * (len(point.widths) + 2 * point.indexes)
        growing = GROWING_HEAP_BYTES + (GROWING_POSTING_BYTES + STORED_TERM_BYTES) * point.terms
        complete = HEAP_BYTES + POSTING_BYTES * point.terms
        each = (complete if self.built else growing) + INDEX_BYTES * point.indexes
        each += 0 if self.options.on_disk.payload else point.payload
        fixed = flags + self.log + process.index_bytes * point.indexes
        return fixed + self.graphs + self.points * each

    @property
    def loaded(self) -> float:
        """Bytes after a load; it has touched what it has filled of the files of vectors."""
        filled = self.points * self.point.vectors + self.scanned
        vectors = self.files if self.built else filled
        return self.held + SLACK * self.log + (0.0 if self.options.on_disk.vectors else vectors)

    @property
    def reopened(self) -> float:
        """Bytes after a restart and some searches."""
        whole = self.files + self.scanned
        return self.held + (0.0 if self.options.on_disk.vectors else whole)

    @property
    def files(self) -> float:
        """Bytes of the files that hold vectors, to the end of each."""
        if self.built and self.embedded:  # Edge makes these as long as they must be
            return self.points * self.point.vectors
        share = FLOAT_BYTES * self.points / self.segments / CHUNK_BYTES
        return (
            CHUNK_BYTES
            * self.segments
            * sum(math.ceil(share * width) for width in self.point.widths)
        )

    @property
    def scanned(self) -> float:
        """Bytes of what is mapped a second time: full vectors that are scanned."""
        return 0.0 if self.built else self.points * FLOAT_BYTES * self.point.widths[0]


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
