"""Which encoder a bundle has: chosen by the kind of its tower, made of its deciding files.

A kind's heavy packages are imported only when a bundle of that kind is opened.
"""

from collections.abc import Mapping
from typing import Any

from two_tower.models.bundle_files import CONFIG, TOKENIZER, TOWERS, FloatArray, parse_arrays
from two_tower.models.config import from_mapping
from two_tower.models.encoding import Encoder, MeanEncoder, RowEncoder, TokenEncoder
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.tokenizer import Tokenizer, TokenizerConfig


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
        from two_tower.models.transformer_encoding import open_transformer_encoder

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
    from two_tower.models.recurrent_encoding import open_rnn_encoder

    return open_rnn_encoder(config, arrays, tower=tower)


def _mean_encoder(arrays: Mapping[str, FloatArray], tower: str) -> MeanEncoder:
    try:
        vectors, weights = arrays[f"{tower}.vectors"], arrays[f"{tower}.weights"]
    except KeyError as error:
        raise BundleError(f"{TOWERS} lacks {error}; train the bundle again") from None
    if vectors.ndim != 2 or weights.shape != vectors.shape[:1]:
        raise BundleError(f"{TOWERS} has {vectors.shape} vectors for {weights.shape} weights")
    return MeanEncoder(vectors, weights)
