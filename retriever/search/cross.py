"""The cross-scorer's stage: the best candidates are read together with their query."""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from two_tower.models.bundle.fusion import FinalWeights
from two_tower.models.data import Passage
from two_tower.models.vectors import FloatArray
from two_tower.retriever.collection.schema import BM25
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.search.stages import Ranking, hybrid_scores

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle


CROSS = "cross"


class CrossReader:
    """Reads candidates with a bundle's cross-scorer; safe to share between threads."""

    def __init__(self, bundle: "ModelBundle", weights: FinalWeights) -> None:
        """Load torch and the scorer, so that no search has to wait for them.

        Raises:
            BundleError: the bundle's scorer is broken.
        """
        self._bundle = bundle
        self._weights = weights
        nothing = np.zeros(1, dtype=np.float32)
        bundle.cross_scores("warm", ["up"], bm25=nothing, cosine=nothing)

    @classmethod
    def of(cls, bundle: "ModelBundle") -> "CrossReader | None":
        """Return the reader of a bundle, None where it brings no cross-scorer."""
        final = bundle.fusion.final if bundle.fusion else None
        return cls(bundle, final) if final and bundle.has_cross_scorer else None

    def read(
        self, query: str, ranking: Ranking, payloads: Mapping[str, Mapping[str, Any]], *, size: int
    ) -> Ranking:
        """Return the ranking with its best `size` candidates put in the order of their final score.

        Args:
            query: as typed.
            ranking: by the learnt fusion.
            payloads: point id -> title and text at least, of those candidates.
            size: how many to read.
        """
        both = hybrid_scores(ranking.candidates)
        window = ranking.order[:size]
        if both is None or not len(window):
            return ranking
        column = ranking.candidates.stages.index(BM25)
        bm25 = np.nan_to_num(ranking.candidates.scores[window, column])
        with _one_torch_thread:
            logits = self._bundle.cross_scores(
                query,
                [_content(payloads.get(ranking.candidates.point_ids[row], {})) for row in window],
                bm25=bm25.astype(np.float32),
                cosine=both.cosine[window].astype(np.float32),
            )
        return reordered(ranking, logits, self._weights)


def readable(ranking: Ranking, settings: SearchSettings) -> bool:
    """Say whether there is something to read that the final weights fit."""
    return settings.cross and ranking.is_learnt and len(ranking.order) > 0


def window_ids(ranking: Ranking, size: int) -> list[str]:
    """Return the point ids of the best `size` candidates."""
    return [ranking.candidates.point_ids[row] for row in ranking.order[:size]]


def reordered(ranking: Ranking, logits: FloatArray, weights: FinalWeights) -> Ranking:
    """Rank the first candidates by the final score; the others stay as they are, behind those.

    One that was not read is as far below the lowest that was as their hybrid scores are apart.

    Args:
        ranking: `n` candidates by their hybrid score.
        logits: `(m,)`, m <= n, of the first m.
        weights: hybrid score and logit to worth and log-odds.
    """
    window, rest = ranking.order[: len(logits)], ranking.order[len(logits) :]
    worth = weights.worth(ranking.scores[window], logits.astype(np.float64))
    final = weights.log_odds(worth)
    scores = np.empty_like(ranking.scores)
    scores[window] = final
    behind = ranking.scores[window[-1]] - ranking.scores[rest]
    scores[rest] = final.min() - abs(weights.hybrid) * behind
    cross = np.full((len(scores), 1), np.nan)
    cross[window, 0] = logits
    known = ranking.candidates
    candidates = known._replace(
        stages=[*known.stages, CROSS],
        scores=np.hstack([known.scores, cross]),
        floors=np.append(known.floors, np.nan),
    )
    order = np.concatenate([window[np.argsort(-worth, kind="stable")], rest])
    return ranking._replace(candidates=candidates, order=order, scores=scores)


class _OneTorchThread:
    """Keeps torch from splitting a reading among threads, which wait for each other at every step.

    On idle cores that would save a few milliseconds; on busy ones it costs seconds. Each thread has
    a number of its own and a new one takes that of the latest to set it, so what all are given
    back is what the first of those that read at once had.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._threads = 1

    def __enter__(self) -> None:
        import torch

        with self._lock:
            if not self._readers:
                self._threads = torch.get_num_threads()
            self._readers += 1
            torch.set_num_threads(1)

    def __exit__(self, *exc_info: object) -> None:
        import torch

        with self._lock:
            self._readers -= 1
            torch.set_num_threads(self._threads)


_one_torch_thread = _OneTorchThread()


def _content(payload: Mapping[str, Any]) -> str:
    """Return what the towers read of this passage."""
    return Passage("", payload.get("text", ""), payload.get("title", "")).content
