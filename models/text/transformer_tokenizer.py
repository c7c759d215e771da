"""The tokenizer of a transformer tower, and the names of its files."""

from collections.abc import Sequence
from typing import Any

from two_tower.models.errors import BundleError, ConfigError, is_panic, of_panic
from two_tower.models.text.tokenizer import RowTokenizer, TokenizerConfig

TEXT, SETTINGS, GRAPH = "tokenizer.json", "transformer.json", "transformer.onnx"

CROSS_TEXT, CROSS_GRAPH = "cross_encoder.json", "cross_encoder.onnx"

INPUT, TYPES = "input_ids", "token_type_ids"

MISSING = "the transformer tower needs {name}; pip install 'two-tower-search[transformer]'"

NOT_HERE = "this bundle needs {name}; pip install 'two-tower-search[onnx]'"


class TransformerTokenizer(RowTokenizer):
    """A tokenizer of the Hugging Face kind, which chooses its threads by itself.

    Its model is the content of a tokenizer.json. With `special_tokens`, those that begin and end a
    text are there and count too.
    """

    def __init__(
        self, model: bytes, config: TokenizerConfig, *, special_tokens: bool = True
    ) -> None:
        super().__init__(model, config)
        self._special_tokens = special_tokens
        limits = {config.max_passage_tokens, config.max_query_tokens}
        self._by_limit = {limit: rust_tokenizer(model, limit=limit) for limit in limits}

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self._any.get_vocab_size())

    @property
    def special_ids(self) -> list[int]:
        """The tokens that begin and end a text."""
        return [int(i) for i in self._any.encode("").ids]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the readable form of tokens."""
        return [str(self._any.id_to_token(int(i))) for i in ids]

    def _token_ids(self, texts: Sequence[str], *, limit: int, threads: int) -> list[list[int]]:
        encode = self._by_limit[limit].encode_batch
        try:
            return [e.ids for e in encode(texts, add_special_tokens=self._special_tokens)]
        except BaseException as error:
            raise of_panic(error, BundleError, TEXT) from None

    @property
    def _any(self) -> Any:
        return self._by_limit[self.config.max_passage_tokens]


def rust_tokenizer(model: bytes, *, limit: int) -> Any:
    """Return the tokenizer of the package `tokenizers`, which cuts texts at `limit` tokens.

    Raises:
        BundleError: `model` is no tokenizer.json.
        ConfigError: the package is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ConfigError(NOT_HERE.format(name="tokenizers")) from None
    try:
        tokenizer = Tokenizer.from_str(model.decode())
    except BaseException as error:  # the package raises nothing more precise, or panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise BundleError(
            f"tokenizer.json is broken ({' '.join(str(error).split())}); train the bundle again"
        ) from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return tokenizer
