"""How much memory a system's vectors need, computed from what the collection says about itself."""

from itertools import islice
from typing import Any

from models.lexical import Bm25Config, Bm25Encoder
from retriever.schema import BM25, DENSE
from retriever.search import Retriever
from retriever.stages import SearchSettings

SAMPLE = 1000
FLOAT_BYTES = 4
POSTING_BYTES = 8
HOW = (
    f"index MB is computed: {FLOAT_BYTES} bytes per dimension of the vectors that a system reads, "
    f"{POSTING_BYTES} per BM25 posting (counted on up to {SAMPLE:,} passages), without graphs and "
    "payloads; tfidf is its matrix in memory"
)


def index_mb(retriever: Retriever, settings: SearchSettings) -> float:
    """Return the megabytes of the vectors that a query with these settings reads."""
    names = set(settings.legs) | ({DENSE} if settings.rerank else set())
    widths = retriever.metadata.schema.widths
    per_passage: float = sum(FLOAT_BYTES * widths[name] for name in names if name in widths)
    if BM25 in names:
        per_passage += POSTING_BYTES * _postings_per_passage(retriever)
    return float(retriever.size * per_passage / 1e6)


def matrix_mb(matrix: Any) -> float:
    """Return the megabytes of a sparse matrix (CSR) in memory."""
    return float((matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes) / 1e6)


def _postings_per_passage(retriever: Retriever) -> float:
    encoder = Bm25Encoder(Bm25Config(**retriever.metadata.bm25))
    contents = [passage.content for passage in islice(retriever.passages(), SAMPLE)]
    vectors = encoder.encode_passages(contents)
    return sum(len(vector.indices) for vector in vectors) / max(1, len(vectors))
