"""What encodes once training is over: a tokenizer, and a tower for each side.

A transformer needs ONNX Runtime, all other towers numpy alone.
"""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from two_tower.models.bundle.files import (
    CONFIG,
    DOCUMENTS,
    ENDPOINT,
    TOKENIZER,
    TOWERS,
    parse_arrays,
)
from two_tower.models.bundle.onnx_session import open_session, run_session
from two_tower.models.bundle.recurrent_encoder import open_recurrent_encoder
from two_tower.models.config import from_mapping
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.text.tokenizer import RowTokenizer, Tokenizer, TokenizerConfig, TokenRows
from two_tower.models.text.transformer_tokenizer import (
    GRAPH,
    INPUT,
    MISSING,
    SETTINGS,
    TEXT,
    TransformerTokenizer,
)
from two_tower.models.vectors import FloatArray, IntArray, normalized


class RowEncoder(Protocol):
    """Token rows in, vectors out."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        ...

    def encode(self, rows: TokenRows, *, threads: int = 0) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all)."""
        ...


@dataclass(frozen=True)
class Encoder:
    """Texts in, vectors out; at least one text, prefixes already in place."""

    tokenizer: RowTokenizer
    query: RowEncoder
    passage: RowEncoder | None  # None where another encoder reads the documents

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.query.dim

    def encode_passages(self, texts: Sequence[str], *, threads: int = 0) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all).

        Raises:
            ValueError: another encoder reads the documents.
        """
        if self.passage is None:
            raise ValueError("there is no passage tower; see bundle.documents")
        rows = self.tokenizer.encode_passages(texts, threads=threads)
        return self.passage.encode(rows, threads=threads)

    def encode_queries(self, texts: Sequence[str], *, threads: int = 0) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all)."""
        rows = self.tokenizer.encode_queries(texts, threads=threads)
        return self.query.encode(rows, threads=threads)


def open_encoder(
    config: Mapping[str, Any], files: Mapping[str, bytes], *, device: str | None = None
) -> Encoder:
    """Return the encoder of a bundle.

    Args:
        config: the content of config.json.
        files: name -> content of the deciding files.
        device: where torch computes a transformer; None for ONNX Runtime.

    Raises:
        BundleError: a file is broken, or they do not fit each other.
        ConfigError: a package that a transformer needs is not installed.
    """
    own_documents = DOCUMENTS not in files
    if config["tower"]["kind"] == "transformer":
        encoder = open_transformer_encoder(files, device=device)
        return encoder if own_documents else replace(encoder, passage=None)
    try:
        limits = from_mapping(TokenizerConfig, config["tokenizer"], where="tokenizer.")
    except (ConfigError, KeyError) as error:
        raise BundleError(f"{CONFIG} is broken ({error}); train the bundle again") from None
    tokenizer: RowTokenizer
    if config["tower"]["kind"] == ENDPOINT:
        return Encoder(
            Tokenizer(files[TOKENIZER], limits), RemoteTower(config["tower"]["dim"]), None
        )
    arrays = parse_arrays(TOWERS, files[TOWERS])
    if TEXT in files:
        tokenizer = TransformerTokenizer(files[TEXT], limits, special_tokens=False)
    else:
        tokenizer = Tokenizer(files[TOKENIZER], limits)
    query = _tower(config, arrays, side="query")
    sides = {"query": query}
    if own_documents and not config["tower"]["shared"]:
        sides["passage"] = _tower(config, arrays, side="passage")
    expected = (tokenizer.vocab_size, query.dim)
    for side in sides:
        if (shape := arrays[f"{side}.vectors"].shape) != expected:
            raise BundleError(
                f"{TOWERS} has vectors of {shape}, expected {expected}; train the bundle again"
            )
    return Encoder(tokenizer, query, sides.get("passage", query) if own_documents else None)


def open_transformer_encoder(files: Mapping[str, bytes], *, device: str | None = None) -> Encoder:
    """Return the encoder of a transformer by the content of its files.

    `device` is where torch computes it; None for ONNX Runtime.

    Raises:
        BundleError: one of them is broken.
        ConfigError: a package of the extra is not installed.
    """
    tower = OnnxEncoder(files[GRAPH], device=device)
    return Encoder(_transformer_tokenizer(files), tower, tower)


def _transformer_tokenizer(files: Mapping[str, bytes]) -> TransformerTokenizer:
    try:
        limits = json.loads(files[SETTINGS])
        config = TokenizerConfig(
            max_passage_tokens=limits["max_passage_tokens"],
            max_query_tokens=limits["max_query_tokens"],
        )
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise BundleError(f"transformer.json is broken ({error!r}); train again") from None
    return TransformerTokenizer(files[TEXT], config)


def _tower(config: Mapping[str, Any], arrays: Mapping[str, FloatArray], *, side: str) -> RowEncoder:
    if config["tower"]["kind"] != "mean":
        return open_recurrent_encoder(config, arrays, side=side)
    try:
        vectors, weights = arrays[f"{side}.vectors"], arrays[f"{side}.weights"]
    except KeyError as error:
        raise BundleError(f"{TOWERS} lacks {error}; train the bundle again") from None
    if vectors.ndim != 2 or weights.shape != vectors.shape[:1]:
        raise BundleError(f"{TOWERS} has {vectors.shape} vectors for {weights.shape} weights")
    return MeanEncoder(vectors, weights)


class RemoteTower(NamedTuple):
    """Stands where an endpoint reads the queries: `bundle.documents` encodes them.

    Attributes:
        dim: width of the vectors.
    """

    dim: int

    def encode(self, rows: TokenRows, *, threads: int = 0) -> FloatArray:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError("there is no query tower; see bundle.documents")


class MeanEncoder:
    """Weighted mean of token vectors, L2-normalised, as `networks.towers.MeanTower` computes it."""

    def __init__(self, vectors: FloatArray, weights: FloatArray) -> None:
        """Keep the weighted token vectors; (vocab, dim) vectors, (vocab,) weights."""
        self._weighted = vectors * weights[:, None]
        self.dim = int(vectors.shape[1])

    def encode(self, rows: TokenRows, *, threads: int = 0) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on one core."""
        if len(rows.offsets) == 2:
            summed = self._weighted[rows.ids].sum(axis=0, keepdims=True)
        else:
            summed = self._sums(rows)
        return normalized(summed)

    def _sums(self, rows: TokenRows) -> FloatArray:
        """Return each row's sum: the first tokens of all rows, then the second ones, and so on.

        Adding in the order of a row's tokens gives the bits that a row encoded alone has.
        """
        order = np.argsort(-rows.lengths, kind="stable")  # long ones first
        starts, lengths = rows.offsets[:-1][order], rows.lengths[order]
        sums = np.zeros((len(order), self.dim), dtype=np.float32)
        vectors = np.empty_like(sums)
        longer = np.searchsorted(-lengths, -np.arange(lengths.max(initial=0)))  # rows with a token
        for position, count in enumerate(longer.tolist()):
            ids = rows.ids[starts[:count] + position]
            self._weighted.take(ids, axis=0, out=vectors[:count], mode="clip")
            sums[:count] += vectors[:count]
        in_order = np.empty_like(sums)
        in_order[order] = sums
        return in_order


class OnnxEncoder:
    """A transformer's graph: token rows in, vectors out.

    Each text is read alone, on a thread of its own. So nothing is padded, and a vector does not
    depend on what else is encoded: an 8-bit graph scales its activations by their range, and in a
    batch that range would be the batch's. On a device, `TorchGraph` reads texts of equal length.
    """

    def __init__(
        self, graph: bytes, *, with_tokens: bool = False, device: str | None = None
    ) -> None:
        """Open a graph: `input_ids` (1, tokens) int64 -> (1, dim) float32.

        Args:
            graph: ONNX.
            with_tokens: whether token vectors will be asked for, too.
            device: where torch computes it; None for ONNX Runtime.

        Raises:
            BundleError: it is no such graph.
            ConfigError: ONNX Runtime is not installed.
        """
        content = token_graph(graph) if with_tokens else graph
        self._session = open_session(content, inputs=(INPUT,), outputs=1 + with_tokens)
        outputs = self._session.get_outputs()
        self._names = [output.name for output in outputs]
        shape = outputs[0].shape
        if len(shape) != 2 or not isinstance(shape[1], int):
            raise BundleError(
                f"the transformer's graph gives {shape}, expected (1, dim); train the bundle again"
            )
        self.dim = shape[1]
        self._torch = None
        if device is not None:
            from two_tower.models.bundle.torch_graph import TorchGraph

            self._torch = TorchGraph(content, device)

    def encode(self, rows: TokenRows, *, threads: int = 0) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all)."""
        return normalized(np.stack([out[0] for out in self._run(rows, self._names[:1], threads)]))

    def encode_with_tokens(
        self, rows: TokenRows, *, threads: int = 0
    ) -> tuple[FloatArray, list[FloatArray]]:
        """Return what `encode` does, and for each text the (tokens, hidden) float32 of its tokens.

        The encoder must have been opened with tokens.
        """
        vectors, tokens = zip(*self._run(rows, self._names, threads), strict=True)
        return normalized(np.stack(vectors)), list(tokens)

    def _run(self, rows: TokenRows, names: list[str], threads: int) -> list[list[FloatArray]]:
        """Return the outputs of each text by these names."""

        def run(ids: IntArray) -> list[FloatArray]:
            outputs = run_session(self._session, names, {INPUT: ids[None]})
            if (shape := outputs[0].shape) != (1, self.dim):
                raise BundleError(
                    f"the transformer's graph gives {shape}, expected (1, {self.dim}); train the "
                    "bundle again"
                )
            return [output[0] for output in outputs]

        texts = np.split(rows.ids, rows.offsets[1:-1])
        if self._torch is not None:
            return self._torch.run_texts(texts)
        if len(texts) == 1:
            return [run(texts[0])]
        # Long ones first, so that no thread is left with a long one at the end.
        order = np.argsort(-rows.lengths, kind="stable")
        with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
            in_order = dict(
                zip(order.tolist(), pool.map(run, [texts[i] for i in order]), strict=True)
            )
        return [in_order[row] for row in range(len(texts))]


class TextTokens(NamedTuple):
    """Texts and their tokens.

    Attributes:
        vectors: (n, dim) float32, L2-normalised.
        ids: n of (tokens,).
        tokens: n of (tokens, hidden) float32; empty for queries that no transformer reads.
    """

    vectors: FloatArray
    ids: list[IntArray]
    tokens: list[FloatArray]


class TokenEncoder:
    """A transformer that gives the vector of each token beside that of the text.

    The tokens that begin and end a text are left out, but where there is no other.
    """

    def __init__(self, files: Mapping[str, bytes], *, device: str | None = None) -> None:
        """Open it by the content of its files, as `open_transformer_encoder` does."""
        self._tokenizer = _transformer_tokenizer(files)
        self._tower = OnnxEncoder(files[GRAPH], with_tokens=True, device=device)
        self._special = self._tokenizer.special_ids

    def passages_with_tokens(self, texts: Sequence[str], *, threads: int = 0) -> TextTokens:
        """Return the vectors of passages and of their tokens."""
        return self._read(self._tokenizer.encode_passages(texts, threads=threads), threads=threads)

    def queries_with_tokens(self, texts: Sequence[str], *, threads: int = 0) -> TextTokens:
        """Return the vectors of queries and of their tokens."""
        return self._read(self._tokenizer.encode_queries(texts, threads=threads), threads=threads)

    def _read(self, rows: TokenRows, *, threads: int) -> TextTokens:
        vectors, tokens = self._tower.encode_with_tokens(rows, threads=threads)
        ids = np.split(rows.ids, rows.offsets[1:-1])
        inner = [~np.isin(each, self._special) for each in ids]
        inner = [each if each.any() else ~each for each in inner]
        return TextTokens(
            vectors,
            [each[part] for each, part in zip(ids, inner, strict=True)],
            [each[part] for each, part in zip(tokens, inner, strict=True)],
        )


def token_graph(graph: bytes) -> bytes:
    """Return a transformer's graph with its token vectors as one more output.

    They are what its last layer normalisation gives, before they are pooled. What the graph
    computes stays the same to the last bit.

    Raises:
        BundleError: there is no such layer.
        ConfigError: the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise ConfigError(MISSING.format(name="onnx")) from None
    model = onnx.load_from_string(graph)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    if not norms:
        raise BundleError(
            "the transformer has no layer normalisation at its end, whose output would be the "
            "token vectors; train with late.dim 0"
        )
    tokens = onnx.helper.make_tensor_value_info(norms[-1].output[0], onnx.TensorProto.FLOAT, None)
    model.graph.output.append(tokens)
    content: bytes = model.SerializeToString()
    return content
