"""Rescoring candidates: what runs after the legs have proposed and before the final order."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from qdrant_client import models as qm

from two_tower.retriever.schema import DENSE

RERANK = "rerank"


def rescored(
    legs: Sequence[qm.Prefetch], query_vector: npt.NDArray[np.float32], *, limit: int
) -> qm.Prefetch:
    """Ask for the `limit` best of what `legs` find, by the full vectors.

    Quantized copies are ignored: a final score must come from the vectors themselves.
    """
    return qm.Prefetch(
        prefetch=list(legs),
        query=query_vector.tolist(),
        using=DENSE,
        limit=limit,
        params=qm.SearchParams(quantization=qm.QuantizationSearchParams(ignore=True)),
    )


def query_tower_request(
    legs: Sequence[qm.Prefetch], query_vector: npt.NDArray[np.float32]
) -> qm.QueryRequest:
    """Ask the engine for the exact cosine of every candidate that `legs` propose.

    The legs go in as prefetches, so candidates and rerank travel in one request, no vector leaves
    the engine, and a candidate found by BM25 or by a short PCA vector alone is judged by the full
    one.

    Args:
        legs: the requests that propose candidates.
        query_vector: `(dim,) float32`, from the query tower.
    """
    return request(rescored(legs, query_vector, limit=sum(leg.limit or 0 for leg in legs)))


def request(asked: qm.Prefetch) -> qm.QueryRequest:
    """Return what could be a part of a request as one of its own, for ids and scores alone."""
    return qm.QueryRequest(
        prefetch=asked.prefetch,
        query=asked.query,
        using=asked.using,
        filter=asked.filter,
        params=asked.params,
        limit=asked.limit,
        with_payload=False,
    )
