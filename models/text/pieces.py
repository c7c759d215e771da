"""BM25 over the pieces of a tokenizer, for texts that no analyzer cuts into words."""

from collections import Counter
from typing import TYPE_CHECKING

from two_tower.models.language import PIECES

if TYPE_CHECKING:
    from two_tower.models.text.tokenizer import RowTokenizer


class PieceAnalyzer:
    """Text to the pieces of a bundle's tokenizer: a `models.text.bm25.Analyzer`.

    Nothing is a stop word: what is in every text weighs nothing.
    """

    language = PIECES

    def __init__(self, tokenizer: "RowTokenizer") -> None:
        self._tokenizer = tokenizer

    def term_counts(self, text: str) -> dict[int, int]:
        """Return piece id -> how often the piece occurs, in the order of the text."""
        return dict(Counter(self._tokenizer.all_ids(text)))
