"""Rescoring candidates: what runs after the legs have proposed and before the final order."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from qdrant_client import models as qm

from retriever.schema import DENSE

RERANK = "rerank"


def query_tower_request(
    legs: Sequence[qm.Prefetch], query_vector: npt.NDArray[np.float32]
) -> qm.QueryRequest:
    """Ask the engine for the exact cosine of every candidate that `legs` propose.

    The legs go in as prefetches, so candidates and rerank travel in one request, no vector leaves
    the engine, and a candidate found by BM25 or by a short PCA vector alone is judged by the full
    one. Quantized copies are ignored: a final score must come from the vectors themselves.

    Args:
        legs: the requests that propose candidates.
        query_vector: `(dim,) float32`, from the query tower.
    """
    return qm.QueryRequest(
        prefetch=list(legs),
        query=query_vector.tolist(),
        using=DENSE,
        limit=sum(leg.limit or 0 for leg in legs),
        params=qm.SearchParams(quantization=qm.QuantizationSearchParams(ignore=True)),
        with_payload=False,
    )
