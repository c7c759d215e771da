"""How much memory a system's vectors need, computed from what the collection says about itself."""

from itertools import islice
from typing import Any

from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.options import CollectionOptions
from two_tower.retriever.schema import BM25, DENSE
from two_tower.retriever.search import Retriever
from two_tower.retriever.settings import SearchSettings

SAMPLE = 1000
FLOAT_BYTES = 4
POSTING_BYTES = 8
HOW = (
    "index MB is computed, for what a system holds in memory: "
    f"{FLOAT_BYTES} bytes per dimension of vectors that are not on disk and what quantized copies "
    f"add, {POSTING_BYTES} per BM25 posting (counted on up to {SAMPLE:,} passages), without graphs "
    "and payloads; tfidf is its matrix"
)


def index_mb(retriever: Retriever, settings: SearchSettings) -> float:
    """Return the megabytes of the vectors in memory that a query with these settings reads."""
    names = set(settings.legs) | ({DENSE} if settings.rerank else set())
    if settings.ann.first_stage and DENSE in settings.legs:
        names.add(settings.ann.first_stage)
    widths = retriever.metadata.schema.widths
    per_dimension = bytes_per_dimension(retriever.metadata.options)
    per_passage = sum(per_dimension * widths[name] for name in names if name in widths)
    if BM25 in names:
        per_passage += POSTING_BYTES * _postings_per_passage(retriever)
    return float(retriever.size * per_passage / 1e6)


def bytes_per_dimension(options: CollectionOptions) -> float:
    """Return what one dimension of one dense vector takes in memory, quantized copy included."""
    kind, bits = options.quantization.kind, options.quantization.bits
    copies = {"none": 0.0, "scalar": 1.0, "binary": bits / 8}
    return (0 if options.on_disk.vectors else FLOAT_BYTES) + copies[kind]


def matrix_mb(matrix: Any) -> float:
    """Return the megabytes of a sparse matrix (CSR) in memory."""
    return float((matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes) / 1e6)


def _postings_per_passage(retriever: Retriever) -> float:
    encoder = Bm25Encoder(Bm25Config(**retriever.metadata.bm25))
    contents = [passage.content for passage in islice(retriever.passages(), SAMPLE)]
    vectors = encoder.encode_passages(contents)
    return sum(len(vector.indices) for vector in vectors) / max(1, len(vectors))
