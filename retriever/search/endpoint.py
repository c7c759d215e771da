"""A tower behind a URL: how long a search waits for it, and when BM25 goes on alone."""

import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from two_tower.models.errors import EndpointError
from two_tower.retriever.collection.schema import BM25, DENSE
from two_tower.retriever.search.queries import QueryEncoder, QueryVectors
from two_tower.retriever.search.rewriting import Answers
from two_tower.retriever.search.settings import SearchSettings, without_tower

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.bundle.no_tower import NoTower

LONGEST_S = 10.0  # for queries to be read

log = logging.getLogger(__name__)


def compare_model(bundle: "ModelBundle | NoTower") -> None:
    """Compare the model behind a URL, if there is one, with that of the training.

    One that is away now is compared before the first query that it reads.

    Raises:
        BundleError: it is another one.
    """
    if bundle.asks_endpoint and bundle.documents is not None:
        with contextlib.suppress(EndpointError):
            bundle.documents.open(limit_s=LONGEST_S)


def ask_endpoint(
    encoder: QueryEncoder,
    queries: Sequence[str],
    names: frozenset[str],
    answers: Sequence[Answers | None],
    settings: SearchSettings,
    *,
    left_s: float | None,
    skipped: list[str],
) -> tuple[list[QueryVectors], SearchSettings]:
    """Return the queries' vectors, and the settings without what they cannot be used for.

    Args:
        encoder: of the queries.
        queries: to be read.
        names: of the vectors that they are searched with.
        answers: what was imagined for each, if anything.
        settings: how to search.
        left_s: of the queries' time; None where that has no limit.
        skipped: gets `dense` where the search goes on without the tower.

    Raises:
        EndpointError: it does not answer in time, and there is no limit, or no leg of BM25.
    """
    names |= {DENSE} if settings.rerank else frozenset()
    try:
        limit_s = min(left_s or LONGEST_S, LONGEST_S)
        vectors = encoder.encode(
            queries, names, answers, limit_s=limit_s, spelling=settings.spelling
        )
        return vectors, settings
    except EndpointError as error:
        if left_s is None or BM25 not in settings.legs:
            raise
        log.warning("searched by BM25 alone: %s", error)
        skipped.append(DENSE)
        vectors = encoder.encode(queries, [BM25], spelling=settings.spelling)
        return vectors, without_tower(settings)
