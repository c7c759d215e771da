"""The tokenizer of a transformer tower."""

from collections.abc import Sequence
from typing import Any

from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.text.tokenizer import (
    CHARS_PER_TOKEN,
    TokenizerConfig,
    TokenRows,
    clean,
    token_rows,
)

TEXT, SETTINGS, GRAPH = "tokenizer.json", "transformer.json", "transformer.onnx"

INPUT = "input_ids"

MISSING = "the transformer tower needs {name}; pip install 'two-tower-search[transformer]'"


class TransformerTokenizer:
    """A tokenizer of the Hugging Face kind, with the interface of `models.tokenizer.Tokenizer`.

    Attributes:
        model: the content of its tokenizer.json.
        config: the truncation rule; the tokens that begin and end a text count too.
    """

    def __init__(self, model: bytes, config: TokenizerConfig) -> None:
        self.model = model
        self.config = config
        self._passages = _rust_tokenizer(model, limit=config.max_passage_tokens)
        self._queries = _rust_tokenizer(model, limit=config.max_query_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self._passages.get_vocab_size())

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the readable form of tokens."""
        return [str(self._passages.id_to_token(int(i))) for i in ids]

    def encode_passages(self, texts: Sequence[str], *, threads: int = 0) -> TokenRows:
        """Tokenise passages, cut to `max_passage_tokens`; the package chooses its threads."""
        return _encode(self._passages, texts, limit=self.config.max_passage_tokens)

    def encode_queries(self, texts: Sequence[str], *, threads: int = 0) -> TokenRows:
        """Tokenise queries, cut to `max_query_tokens`; the package chooses its threads."""
        return _encode(self._queries, texts, limit=self.config.max_query_tokens)


def _rust_tokenizer(model: bytes, *, limit: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ConfigError(MISSING.format(name="tokenizers")) from None
    try:
        tokenizer = Tokenizer.from_str(model.decode())
    except Exception as error:  # the package raises nothing more precise
        raise BundleError(
            f"tokenizer.json is broken ({' '.join(str(error).split())}); train the bundle again"
        ) from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return tokenizer


def _encode(tokenizer: Any, texts: Sequence[str], *, limit: int) -> TokenRows:
    # What a text can lose here lies beyond `limit` tokens unless they are very long on average.
    ready = [clean(text[: limit * CHARS_PER_TOKEN]) for text in texts]
    return token_rows([found.ids for found in tokenizer.encode_batch(ready)])
