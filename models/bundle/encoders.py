"""What encodes once training is over: the seam for all kinds, and the mean tower without torch."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from two_tower.models.bundle.files import CONFIG, TOKENIZER, TOWERS, parse_arrays
from two_tower.models.config import from_mapping
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.text.tokenizer import Tokenizer, TokenizerConfig, TokenRows
from two_tower.models.vectors import FloatArray, normalized


class RowTokenizer(Protocol):
    """Texts in, token rows out; each side has its own limit."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    def encode_passages(self, texts: Sequence[str], *, threads: int = 0) -> TokenRows:
        """Tokenise passages on `threads` cores (0: all)."""
        ...

    def encode_queries(self, texts: Sequence[str], *, threads: int = 0) -> TokenRows:
        """Tokenise queries on `threads` cores (0: all)."""
        ...


class Encoder(Protocol):
    """Texts in, vectors out; at least one text, prefixes already in place."""

    @property
    def tokenizer(self) -> RowTokenizer:
        """What makes the tokens."""
        ...

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        ...

    def encode_passages(self, texts: Sequence[str], *, threads: int) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all)."""
        ...

    def encode_queries(self, texts: Sequence[str], *, threads: int) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, on at most `threads` cores (0: all)."""
        ...


class RowEncoder(Protocol):
    """SentencePiece tokens in, vectors out."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens that have a vector."""
        ...

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        ...

    def encode(self, rows: TokenRows) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, one per row of tokens."""
        ...


class TokenEncoder:
    """The `Encoder` of towers that read SentencePiece tokens."""

    def __init__(self, tokenizer: Tokenizer, query: RowEncoder, passage: RowEncoder) -> None:
        self._tokenizer = tokenizer
        self._query = query
        self._passage = passage

    @property
    def tokenizer(self) -> Tokenizer:
        """The SentencePiece tokenizer."""
        return self._tokenizer

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._query.dim

    def encode_passages(self, texts: Sequence[str], *, threads: int) -> FloatArray:
        """Tokenise on `threads` cores (0: all) and read with the passage tower."""
        return self._passage.encode(self.tokenizer.encode_passages(texts, threads=threads))

    def encode_queries(self, texts: Sequence[str], *, threads: int) -> FloatArray:
        """Tokenise on `threads` cores (0: all) and read with the query tower."""
        return self._query.encode(self.tokenizer.encode_queries(texts, threads=threads))


class MeanEncoder:
    """Weighted mean of token vectors, L2-normalised, as `models.towers.MeanTower` computes it."""

    def __init__(self, vectors: FloatArray, weights: FloatArray) -> None:
        """Keep the weighted token vectors.

        Args:
            vectors: (vocab, dim) float32.
            weights: (vocab,) float32.
        """
        self._weighted = vectors * weights[:, None]

    @property
    def vocab_size(self) -> int:
        """Number of tokens that have a vector."""
        return int(self._weighted.shape[0])

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._weighted.shape[1])

    def encode(self, rows: TokenRows) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, one per row of tokens."""
        if len(rows.offsets) == 2:
            summed = self._weighted[rows.ids].sum(axis=0, keepdims=True)
        else:
            ones = np.ones(len(rows.ids), dtype=np.float32)
            shape = (len(rows.offsets) - 1, self.vocab_size)
            summed = sparse.csr_matrix((ones, rows.ids, rows.offsets), shape=shape) @ self._weighted
        return normalized(summed)


def open_encoder(config: Mapping[str, Any], files: Mapping[str, bytes]) -> Encoder:
    """Return the encoder of a bundle.

    Args:
        config: the content of config.json.
        files: name -> content of the deciding files.

    Raises:
        BundleError: a file is broken, or they do not fit each other.
    """
    if config["tower"]["kind"] in ("mean", "gru", "lstm"):
        return _token_encoder(config, files)
    if config["tower"]["kind"] == "transformer":
        from two_tower.models.bundle.transformer_encoder import open_transformer_encoder

        return open_transformer_encoder(
            files["tokenizer.json"], files["transformer.onnx"], files["transformer.json"]
        )
    raise BundleError(f"there is no encoder for towers of kind {config['tower']['kind']}")


def _token_encoder(config: Mapping[str, Any], files: Mapping[str, bytes]) -> TokenEncoder:
    arrays = parse_arrays(TOWERS, files[TOWERS])
    tokenizer = Tokenizer(files[TOKENIZER], _tokenizer_config(config))
    query = _row_encoder(config, arrays, tower="query")
    shared = config["tower"]["shared"]
    passage = query if shared else _row_encoder(config, arrays, tower="passage")
    expected = (tokenizer.vocab_size, query.dim)
    for side in (query, passage):
        if (side.vocab_size, side.dim) != expected:
            raise BundleError(
                f"{TOWERS} has vectors of ({side.vocab_size}, {side.dim}), expected "
                f"{expected}; train the bundle again"
            )
    return TokenEncoder(tokenizer, query, passage)


def _tokenizer_config(config: Mapping[str, Any]) -> TokenizerConfig:
    try:
        return from_mapping(TokenizerConfig, config["tokenizer"], where="tokenizer.")
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{CONFIG} is broken ({error}); train the bundle again") from None


def _row_encoder(
    config: Mapping[str, Any], arrays: Mapping[str, FloatArray], *, tower: str
) -> RowEncoder:
    if config["tower"]["kind"] == "mean":
        return _mean_encoder(arrays, tower)
    from two_tower.models.bundle.recurrent_encoder import open_rnn_encoder

    return open_rnn_encoder(config, arrays, tower=tower)


def _mean_encoder(arrays: Mapping[str, FloatArray], tower: str) -> MeanEncoder:
    try:
        vectors, weights = arrays[f"{tower}.vectors"], arrays[f"{tower}.weights"]
    except KeyError as error:
        raise BundleError(f"{TOWERS} lacks {error}; train the bundle again") from None
    if vectors.ndim != 2 or weights.shape != vectors.shape[:1]:
        raise BundleError(f"{TOWERS} has {vectors.shape} vectors for {weights.shape} weights")
    return MeanEncoder(vectors, weights)
