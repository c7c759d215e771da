"""The tokenizer of a cross-encoder: query and passage become one text of two segments."""

from typing import NamedTuple

import numpy as np

from two_tower.models.text.tokenizer import TokenizerConfig
from two_tower.models.text.transformer_tokenizer import TransformerTokenizer, rust_tokenizer
from two_tower.models.vectors import IntArray

PROBE_TOKENS = 64


class Pair(NamedTuple):
    """A query and a passage as one text: token ids and their segments, both (tokens,) int64."""

    ids: IntArray
    types: IntArray


class PairTokenizer(TransformerTokenizer):
    """A tokenizer of the Hugging Face kind; its rows lack the tokens that mark a text's ends."""

    def __init__(self, model: bytes, config: TokenizerConfig) -> None:
        super().__init__(model, config, special_tokens=False)
        marked = rust_tokenizer(model, limit=PROBE_TOKENS).encode("a", "a")
        query, passage = (
            np.flatnonzero([segment == part for segment in marked.sequence_ids]) for part in (0, 1)
        )
        cuts = [query[0], query[-1] + 1, passage[0], passage[-1] + 1]
        # What stands before the query, the query, between, the passage, after it.
        parts = np.split(np.array([marked.ids, marked.type_ids], dtype=np.int64), cuts, axis=1)
        self._before, _, self._between, _, self._after = (part[0] for part in parts)
        self._kinds = [int(part[1].max(initial=0)) for part in parts]

    def join(self, query: IntArray, passage: IntArray) -> Pair:
        """Return the pair of a query's ids and a passage's, each (tokens,) int64."""
        parts = [self._before, query, self._between, passage, self._after]
        return Pair(np.concatenate(parts), np.repeat(self._kinds, [len(part) for part in parts]))
