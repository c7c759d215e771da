"""A transformer once training is over: its tokenizer and its ONNX graph, no torch.

Each text is read alone, on a thread of its own. So nothing is padded, and a vector does not depend
on what else is encoded: an 8-bit graph scales its activations by their range, and in a batch that
range would be the batch's.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.text.tokenizer import TokenizerConfig, TokenRows
from two_tower.models.text.transformer_tokenizer import INPUT, MISSING, TransformerTokenizer
from two_tower.models.vectors import FloatArray, IntArray, normalized


class OnnxRows:
    """Token rows in, vectors out, by a graph of one input and one output."""

    def __init__(self, graph: bytes) -> None:
        """Open a graph: `input_ids` (1, tokens) int64 -> (1, dim) float32.

        Raises:
            BundleError: it is no such graph.
            ConfigError: ONNX Runtime is not installed.
        """
        self._session = _session(graph)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [i.name for i in inputs] != [INPUT] or len(outputs) != 1:
            raise BundleError(
                f"the transformer's graph reads {[i.name for i in inputs]}, expected "
                f"[{INPUT!r}]; train the bundle again"
            )
        self.dim = int(outputs[0].shape[1])

    def encode(self, rows: TokenRows, *, threads: int = 0) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all)."""
        texts = np.split(rows.ids, rows.offsets[1:-1])
        if len(texts) == 1:
            return normalized(self._vector(texts[0])[None])
        # Long ones first, so that no thread is left with a long one at the end.
        order = np.argsort(-rows.lengths, kind="stable")
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
            found = pool.map(self._vector, [texts[i] for i in order])
            for row, vector in zip(order, found, strict=True):
                vectors[row] = vector
        return normalized(vectors)

    def _vector(self, ids: IntArray) -> FloatArray:
        vector: FloatArray = self._session.run(None, {INPUT: ids[None]})[0][0]
        return vector


class TransformerEncoder:
    """The `Encoder` of the transformer tower, which is one for both sides."""

    def __init__(self, tokenizer: TransformerTokenizer, rows: OnnxRows) -> None:
        self._tokenizer = tokenizer
        self._rows = rows

    @property
    def tokenizer(self) -> TransformerTokenizer:
        """What makes its tokens."""
        return self._tokenizer

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._rows.dim

    def encode_passages(self, texts: Sequence[str], *, threads: int) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all)."""
        return self._rows.encode(self.tokenizer.encode_passages(texts), threads=threads)

    def encode_queries(self, texts: Sequence[str], *, threads: int) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all)."""
        return self._rows.encode(self.tokenizer.encode_queries(texts), threads=threads)


def _session(graph: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(MISSING.format(name="onnxruntime")) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the threads are spent on texts
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the package's errors have no common class
        reason = " ".join(str(error).split())
        raise BundleError(
            f"the transformer's graph cannot be opened ({reason}); train the bundle again"
        ) from None


def open_transformer_encoder(tokenizer: bytes, graph: bytes, settings: bytes) -> TransformerEncoder:
    """Return the encoder of a transformer bundle from the content of its files.

    Raises:
        BundleError: one of them is broken.
        ConfigError: a package of the extra is not installed.
    """
    try:
        limits = json.loads(settings)
        config = TokenizerConfig(
            max_passage_tokens=limits["max_passage_tokens"],
            max_query_tokens=limits["max_query_tokens"],
        )
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise BundleError(f"transformer.json is broken ({error!r}); train again") from None
    return TransformerEncoder(TransformerTokenizer(tokenizer, config), OnnxRows(graph))
