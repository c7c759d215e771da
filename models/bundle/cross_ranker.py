"""The cross-scorer of a bundle at work: texts in, logits out."""

import torch

from two_tower.models.bundle.files import CROSS_SCORER, FUSION, parse_arrays
from two_tower.models.bundle.fusion import Fusion
from two_tower.models.config import from_mapping
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.networks.cross_scorer import CrossConfig, Padded, load_scorer, stage_features
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import FloatArray


class CrossRanker:
    """Scores candidates of one query at a time; safe to share between threads."""

    def __init__(self, arrays: bytes, fusion: Fusion) -> None:
        """Load the scorer.

        Args:
            arrays: the content of cross_scorer.safetensors.
            fusion: says how the scorer is configured.

        Raises:
            BundleError: a file is broken, or they do not fit each other.
        """
        if fusion.cross is None:
            raise BundleError(f"{FUSION} does not say how to read {CROSS_SCORER}; train again")
        try:
            self.config = from_mapping(CrossConfig, fusion.cross, where="cross.")
        except ConfigError as error:
            raise BundleError(f"{FUSION} is broken ({error}); train again") from None
        self._scorer = load_scorer(parse_arrays(CROSS_SCORER, arrays), self.config)

    def score(
        self, query: TokenRows, passages: TokenRows, *, bm25: FloatArray, cosine: FloatArray
    ) -> FloatArray:
        """Return (n,) float32 logits, comparable within one query.

        Args:
            query: one row.
            passages: n rows.
            bm25: (n,) what BM25 gave them, 0 where no term matches.
            cosine: (n,) what the towers gave them.
        """
        read = Padded.of(query, limit=self.config.query_tokens)
        candidates = Padded.of(passages, limit=self.config.passage_tokens)
        with torch.inference_mode():
            logits = self._scorer(read, candidates, stage_features(bm25, cosine))
        scores: FloatArray = logits[0].numpy()
        return scores
