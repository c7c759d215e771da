"""The teacher of the RNN cross-scorer: another engine, or a cross-encoder, scores its candidates.

The scores are the target of the listwise softmax (`training.cross_training`), so that the RNN
learns how much better one candidate is than another, and not only which is labelled. Scores of
different kinds have different sizes; the factor under which they predict the labels best makes
them alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.cross_encoder import CrossEncoderScorer
from two_tower.models.bundle.files import CARD
from two_tower.models.bundle.fusion import TOWER_WEIGHT, Fusion, HybridWeights, fit_hybrid
from two_tower.models.examples.candidates import CandidateLists
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.networks.cross_encoder import (
    cross_encoder_files,
    open_cross_encoder,
    scores_pairs,
)
from two_tower.models.objectives.distillation import Reader, open_teacher, read_both
from two_tower.models.text.transformer_tokenizer import CROSS_GRAPH, CROSS_TEXT
from two_tower.models.training.cross_training import likeliest_scale
from two_tower.models.vector_cache import cached_vectors
from two_tower.models.vectors import BoolArray, FloatArray, IntArray

BETWEEN = "\0"  # of a query and a passage in the key of a cached score


@dataclass(frozen=True)
class RerankingTeacher:
    """An engine that scores candidates: BM25 beside vectors, a cross-encoder, or both.

    Attributes:
        reader: gives the vectors.
        fusion: what its cosines are worth; None where that is to be learnt.
        encoder: the cross-encoder.
    """

    reader: Reader | None
    fusion: Fusion | None
    encoder: CrossEncoderScorer | None

    def scores(
        self, queries: Sequence[str], passages: Sequence[str], *, lists: CandidateLists, pool: int
    ) -> FloatArray:
        """Return (n, k) float32 log-odds of all candidates.

        A cross-encoder reads the first `pool` of each list and the answers; the others get the
        lowest score of their list.

        Args:
            queries: n texts.
            passages: the whole corpus.
            lists: the candidates of the n queries.
            pool: how many are read.
        """
        scores = self._hybrid(queries, passages, lists)
        if self.encoder is not None:
            read = lists.relevant.copy()
            read[:, :pool] = True
            logits = self._read(queries, passages, rows=lists.rows, places=read)
            final = self.fusion.final if self.fusion else None
            worth = final.worth(scores, logits) if final else logits
            scores = np.where(read, worth, np.where(read, worth, np.inf).min(axis=1, keepdims=True))
        return (likeliest_scale(scores, lists.relevant) * scores).astype(np.float32)

    def _hybrid(
        self, queries: Sequence[str], passages: Sequence[str], lists: CandidateLists
    ) -> FloatArray:
        """Return (n, k) BM25 and cosine together, 0 where there are no vectors."""
        if self.reader is None:
            return np.zeros(lists.rows.shape, dtype=np.float32)
        vectors = read_both(self.reader, list(queries), list(passages))
        pairs = zip(lists.rows, vectors.queries, strict=True)
        cosine = np.stack([vectors.passages[rows] @ query for rows, query in pairs])
        learnt = self.fusion.hybrid if self.fusion else None
        learnt = learnt or fit_hybrid(lists.bm25, cosine, lists.relevant)
        weights = learnt or HybridWeights(TOWER_WEIGHT)
        return weights.scores(lists.bm25, cosine).astype(np.float32)

    def _read(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        rows: IntArray,
        places: BoolArray,
    ) -> FloatArray:
        """Return (n, k) logits where `places` is true, 0 elsewhere; later runs find them again."""
        assert self.encoder is not None
        pairs = [
            queries[query] + BETWEEN + passages[rows[query, place]]
            for query, place in zip(*places.nonzero(), strict=True)
        ]
        logits = np.zeros(rows.shape, dtype=np.float32)
        name, label = f"{self.encoder.fingerprint[:32]}-pairs", "the teacher reads"
        logits[places] = cached_vectors(self._logits, pairs, encoder=name, label=label)[:, 0]
        return logits

    def _logits(self, pairs: Sequence[str]) -> FloatArray:
        assert self.encoder is not None
        queries, passages = zip(*(pair.split(BETWEEN, 1) for pair in pairs), strict=True)
        return self.encoder.score(queries, passages)[:, None]


def open_reranking_teacher(name: str, config: CrossConfig) -> RerankingTeacher:
    """Open a bundle, a cross-encoder, or a model that gives vectors.

    Raises:
        BundleError: the bundle is broken.
        ConfigError: there is no such model, or a package is not installed.
    """
    if (Path(name) / CARD).is_file():
        bundle = ModelBundle.load(name)
        encoder = bundle.cross_encoder if CROSS_GRAPH in bundle.extras else None
        return RerankingTeacher(bundle, bundle.fusion, encoder)
    if not scores_pairs(name):
        return RerankingTeacher(open_teacher(name), None, None)
    module = open_cross_encoder(name, config.limits, fresh_head=False)
    files = cross_encoder_files(module, int8=config.int8)
    scorer = CrossEncoderScorer(files[CROSS_GRAPH], files[CROSS_TEXT], config.limits)
    return RerankingTeacher(None, None, scorer)
