"""A cross-encoder once training is over: ONNX Runtime, and no torch."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from two_tower.models.bundle.onnx_session import open_session, run_session
from two_tower.models.errors import BundleError
from two_tower.models.text.pair_tokenizer import Pair, PairTokenizer
from two_tower.models.text.tokenizer import TokenizerConfig, TokenRows
from two_tower.models.text.transformer_tokenizer import INPUT, TYPES
from two_tower.models.vectors import FloatArray


class CrossEncoderScorer:
    """A cross-encoder's graph and tokenizer: each pair is read alone, on a thread of its own.

    So nothing is padded, as `encoders.OnnxEncoder` explains. Equal fingerprints mean equal logits.
    """

    def __init__(self, graph: bytes, tokenizer: bytes, limits: TokenizerConfig) -> None:
        """Open both.

        Args:
            graph: `input_ids` and, where the model reads them, `token_type_ids`, (1, tokens) int64
                each -> (1,) float32.
            tokenizer: the content of a tokenizer.json.
            limits: how many tokens of a query and of a passage are read.

        Raises:
            BundleError: one is broken.
            ConfigError: a package of the extra is not installed.
        """
        self._session = open_session(graph, inputs=(INPUT, TYPES))
        self._reads_types = len(self._session.get_inputs()) > 1
        self.tokenizer = PairTokenizer(tokenizer, limits)
        content = graph + tokenizer + repr(limits).encode()
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def score(
        self, queries: Sequence[str], passages: Sequence[str], *, threads: int = 0
    ) -> FloatArray:
        """Return (n,) float32 logits of n queries, each with the passage in its row."""
        asked = self.tokenizer.encode_queries(queries)
        return self.score_rows(asked, self.tokenizer.encode_passages(passages), threads=threads)

    def score_rows(
        self, queries: TokenRows, passages: TokenRows, *, threads: int = 0
    ) -> FloatArray:
        """Return (n,) float32 logits of n pairs, in rows of `tokenizer`, on `threads` (0: all)."""
        texts = (np.split(rows.ids, rows.offsets[1:-1]) for rows in (queries, passages))
        pairs = [self.tokenizer.join(*pair) for pair in zip(*texts, strict=True)]
        # Long ones first, so that no thread is left with a long one at the end.
        order = np.argsort([-len(pair.ids) for pair in pairs], kind="stable")
        logits = np.zeros(len(pairs), dtype=np.float32)
        with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
            logits[order] = list(pool.map(self._logit, [pairs[row] for row in order]))
        return logits

    def _logit(self, pair: Pair) -> float:
        inputs = {INPUT: pair.ids[None]}
        if self._reads_types:
            inputs[TYPES] = pair.types[None]
        logit = run_session(self._session, None, inputs)[0]
        if logit.shape != (1,):
            raise BundleError(
                f"the cross-encoder's graph gives {logit.shape}, expected (1,); train it again"
            )
        return float(logit[0])
