"""How large a collection will be, from a sample of DATA and measurements of the engines.

Measured on Qdrant 1.16.3 and Edge 0.9.0, two cores, 1,000 to 100,000 passages, made up and real
(`tests/test_ingest_estimate.py` compares with the engines themselves). Memory is the resident set
of the process, as `ps` shows it. In it are

    the process itself         its program and what it allocates before there is a collection
    each segment               a MiB for flags of each vector and two of each payload index
    the write-ahead log        what was written last, up to two files
    each point                 ids, postings and values of indexes, vectors, graphs
    the allocator              after a load, about three quarters of the log again

Vectors are in files of 32 MiB per segment and vector. A load touches the part of a file that it
fills; an engine that opens a file, or has just built a segment with graphs, reads all of it. So a
small collection takes more memory after a restart than after its load.
"""

import json
import math
from itertools import islice
from statistics import fmean
from typing import NamedTuple

from two_tower.ingest.loading.points import LateEncoder, PassageEncoder
from two_tower.models.data import Dataset, Passage
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.collection.options import (
    VECTOR_BYTES,
    CollectionOptions,
    indexable_fields,
)
from two_tower.retriever.collection.schema import to_payload
from two_tower.retriever.engine.protocol import OPTIMIZE_ABOVE

MEASURED = 1000  # passages
READ = 64  # of these for late interaction: a transformer reads some hundred a second

FLOAT_BYTES = 4  # of a number as it is sent, and in a vector of bm25
LINK_BYTES = 3  # of a graph, per point, vector and m
STORED_TERM_BYTES = 11.3  # of bm25, the stored vector
POSTING_BYTES = 7.4  # of bm25 in an index that is complete, in a segment with graphs
GROWING_POSTING_BYTES = 16  # of the same in an index that still grows, and is in memory alone
HEAP_BYTES = 260  # of a point in memory beside these
GROWING_HEAP_BYTES = 600
ID_BYTES = 30
INDEX_BYTES = 45  # of a payload index, per point
LOG_BYTES = 60e6  # of the write-ahead log at most
SLACK = 0.75  # of the log's bytes: what a load leaves with the allocator
CHUNK_BYTES = 2**25  # a file of vectors
FLAGS_BYTES = 2**20  # a file of flags


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


class PointSize(NamedTuple):
    """What one point of a collection brings.

    Attributes:
        widths: of its dense vectors, the full one first; none where there is BM25 alone.
        terms: different words for bm25.
        payload: bytes of its payload.
        indexes: payload indexes that it is in.
        late: numbers of its vectors of late interaction, a byte each, read from disk.
    """

    widths: tuple[int, ...]
    terms: float
    payload: float
    indexes: int
    late: float = 0.0


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
            f"{readable(self.memory)} of memory in a process that opens it"
            if self.embedded
            else f"{readable(self.memory)} of memory in the server's process, "
            f"{readable(self.restarted)} after a restart"
        )
        return (
            f"{self.points:,} points: about {readable(self.disk)} on disk, {whose} (resident, at "
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
    """Return how large the collection of `points` passages like a sample of DATA's will be."""
    size = point_size(dataset, encoder, options=options)
    return estimate_points(size, points, options=options, embedded=embedded)


def point_size(
    dataset: Dataset, encoder: PassageEncoder, *, options: CollectionOptions
) -> PointSize:
    """Return what a point of DATA brings in the mean, from a sample."""
    step = max(1, dataset.passage_count // MEASURED)
    sample = list(islice(dataset.passages(), 0, None, step))
    bm25 = Bm25Encoder.of({"avg_len": 1.0, "language": dataset.language}, encoder)
    terms = bm25.encode_passages(sample)
    return PointSize(
        widths=(encoder.dim, *encoder.pca_dims) if encoder.dim else (),
        terms=fmean(len(vector.indices) for vector in terms),
        payload=fmean(len(json.dumps(to_payload(p)).encode()) for p in sample),
        indexes=2 + len(indexable_fields(dataset.manifest.get("fields", {}), options.indexes)),
        late=_late_numbers(encoder, sample) if options.late * encoder.late_dim else 0.0,
    )


def _late_numbers(encoder: PassageEncoder, sample: list[Passage]) -> float:
    """Return how many numbers of late interaction a passage has in the mean."""
    if not isinstance(encoder, LateEncoder):
        return 0.0
    some = sample[:: max(1, len(sample) // READ)]
    _, late = encoder.encode_passages_late([passage.content for passage in some])
    return fmean(vectors.size for vectors in late)


def estimate_points(
    point: PointSize,
    points: int,
    *,
    options: CollectionOptions,
    embedded: bool = False,
) -> Estimate:
    """Return how large a collection of `points` such points will be."""
    shards, replicas = options.shards or 1, options.replicas or 1
    process = EDGE if embedded else SERVER
    size = _shard_size(point, points / shards, options, process)
    disk, loaded, restarted = (shards * each for each in size)
    opened = replicas * (process.bytes + restarted)
    return Estimate(
        points,
        disk=replicas * disk,
        memory=opened if embedded else replicas * (process.bytes + loaded),
        restarted=opened,
        embedded=embedded,
    )


def _shard_size(
    point: PointSize, points: float, options: CollectionOptions, process: Process
) -> tuple[float, float, float]:
    """Return bytes of one copy of one shard: on disk, in memory after a load, after a restart."""
    is_edge, widths = process is EDGE, point.widths
    number = VECTOR_BYTES[options.datatype]
    vectors = number * points * sum(widths)
    widest = points * max(number * max(widths, default=0), point.late)
    names = len(widths) + (point.late > 0)

    # Graphs and quantized copies are built in segments above a size alone; small ones are merged.
    is_left = is_edge and points <= OPTIMIZE_ABOVE and not options.wants_index
    built = not is_left and widest / process.segments > 1024 * options.hnsw.above_kb
    segments = 1 if built and widest < CHUNK_BYTES else process.segments
    copies = options.quantization
    bits = {"none": 0.0, "scalar": 8.0, "binary": copies.bits}[copies.kind]
    links = LINK_BYTES * options.hnsw.m * len(widths)
    graphs = points * (links + bits / 8 * (sum(widths) + point.late)) if built else 0.0

    logged = 1.25 * FLOAT_BYTES * (sum(widths) + point.late) + 10 * point.terms + point.payload
    log = min(LOG_BYTES, points * logged)
    lexical = point.terms * (STORED_TERM_BYTES + POSTING_BYTES * built)
    stored = lexical + point.payload + INDEX_BYTES * point.indexes + ID_BYTES
    disk = vectors + points * (stored + point.late) + graphs + log

    # What is in memory whatever happened before; segments with graphs take no more points.
    flags = FLAGS_BYTES * (segments + built) * (names + 2 * point.indexes)
    growing = GROWING_HEAP_BYTES + (GROWING_POSTING_BYTES + STORED_TERM_BYTES) * point.terms
    complete = HEAP_BYTES + POSTING_BYTES * point.terms * (not options.on_disk.bm25)
    each = (complete if built else growing) + INDEX_BYTES * point.indexes
    each += 0 if options.on_disk.payload else point.payload
    held = flags + log + process.index_bytes * point.indexes + graphs + points * each

    # Full vectors that are scanned are mapped a second time. A load touches only the filled part of
    # the vector files, opening reads all of them. Edge cuts the files of built segments to size.
    scanned = 0.0 if built else number * points * sum(widths[:1])
    share = number * points / segments / CHUNK_BYTES
    whole_files = CHUNK_BYTES * segments * sum(math.ceil(share * width) for width in widths)
    files = vectors if built and is_edge else whole_files
    touched = files if built else vectors + scanned
    in_memory = not options.on_disk.vectors
    loaded = held + SLACK * log + in_memory * touched
    return disk, loaded, held + in_memory * (files + scanned)


def readable(size: float) -> str:
    """Return a size in GB or MB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
