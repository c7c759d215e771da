"""Text to token rows: SentencePiece, trained or loaded, and the truncation rule of all tokenizers.

SentencePiece normalises by its own `nmt_nfkc_cf` (NFKC and case folding). NULs and lone surrogates
become spaces first. Characters outside the vocabulary fall back to their UTF-8 bytes, so that every
text that is not blank has a token of its own.
"""

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import sentencepiece as spm
from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.errors import BundleError, TrainingError
from two_tower.models.progress import working
from two_tower.models.vectors import BoolArray, IntArray

UNKNOWN_ID = 0

SMALLEST_VOCABULARY = 256 + 64  # every byte is a token

SAMPLE_SIZE = 50_000  # texts that a vocabulary is learnt from

CHARS_PER_TOKEN = 16

MOST_BYTES = 18  # of a character, when it is normalised

BROKEN_CHARS = re.compile("[\x00\ud800-\udfff]")


@configuration("tokenizer")
class TokenizerConfig:
    """How text becomes tokens.

    Attributes:
        vocab_size: upper bound; a small corpus gets a smaller vocabulary by itself.
        vocabulary: `own` is learnt from the corpus; `documents` is that of the transformer that
            reads the documents, whose name is `documents.model`.
        max_passage_tokens: a passage keeps its first so many tokens.
        max_query_tokens: a query keeps its first so many tokens.
    """

    vocab_size: int = Field(default=32_000, ge=SMALLEST_VOCABULARY)
    vocabulary: Literal["own", "documents"] = "own"
    max_passage_tokens: int = Field(default=256, ge=1)
    max_query_tokens: int = Field(default=64, ge=1)


class TokenRows(NamedTuple):
    """Token lists of many texts, end to end; row i is `ids[offsets[i]:offsets[i + 1]]`.

    Attributes:
        ids: (total,) int64.
        offsets: (n + 1,) int64, from 0 to total.
    """

    ids: IntArray
    offsets: IntArray

    @property
    def lengths(self) -> IntArray:
        """(n,) int64, tokens per row."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> IntArray:
        """(total,) int64, the row that each token belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)

    def part(self, first: int, last: int) -> "TokenRows":
        """Return the rows from `first` until before `last`; the ids are not copied."""
        ends = self.offsets[first : last + 1]
        return TokenRows(self.ids[ends[0] : ends[-1]], ends - ends[0])

    def take(self, index: IntArray) -> "TokenRows":
        """Return the rows at `index` (n,) int64, in that order."""
        lengths = self.lengths[index]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.offsets[index] - offsets[:-1], lengths)
        return TokenRows(self.ids[np.arange(offsets[-1]) + shift], offsets)

    def where(self, mask: BoolArray) -> "TokenRows":
        """Return all rows with only the tokens that are true in `mask` (total,)."""
        ends = np.concatenate([[0], np.cumsum(mask)])
        return TokenRows(self.ids[mask], ends[self.offsets])


def token_rows(lists: Sequence[Sequence[int]]) -> TokenRows:
    """Lay lists of ids end to end; an empty list becomes one unknown token."""
    full = [ids if len(ids) else (UNKNOWN_ID,) for ids in lists]
    offsets = np.zeros(len(full) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in full], out=offsets[1:])
    total = int(offsets[-1])
    flat = np.fromiter((i for ids in full for i in ids), dtype=np.int64, count=total)
    return TokenRows(flat, offsets)


def concat_rows(parts: Sequence[TokenRows]) -> TokenRows:
    """Put the rows of several batches one after the other."""
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenRows(np.concatenate([part.ids for part in parts]), offsets)


class RowTokenizer(ABC):
    """Texts in, token rows out; queries and passages each have their limit.

    Attributes:
        model: the serialised tokenizer.
        config: the truncation rule.
    """

    def __init__(self, model: bytes, config: TokenizerConfig) -> None:
        self.model = model
        self.config = config

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens."""

    @abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the readable form of tokens."""

    @abstractmethod
    def _token_ids(
        self, texts: Sequence[str], *, limit: int, threads: int
    ) -> Sequence[Sequence[int]]:
        """Return at most `limit` ids for each text."""

    def encode_passages(self, texts: Sequence[str], *, threads: int = 0) -> TokenRows:
        """Tokenise passages on `threads` cores (0: all), cut to `max_passage_tokens`."""
        return self._rows(texts, limit=self.config.max_passage_tokens, threads=threads)

    def encode_queries(self, texts: Sequence[str], *, threads: int = 0) -> TokenRows:
        """Tokenise queries on `threads` cores (0: all), cut to `max_query_tokens`."""
        return self._rows(texts, limit=self.config.max_query_tokens, threads=threads)

    def all_ids(self, text: str) -> Sequence[int]:
        """Return every token of a text, however long it is."""
        (ids,) = self._token_ids([clean(text)], limit=len(text) * MOST_BYTES + 2, threads=1)
        return ids

    def _rows(self, texts: Sequence[str], *, limit: int, threads: int) -> TokenRows:
        # A megabyte of text is cut before it is tokenised; what a text can lose by that lies
        # beyond `limit` tokens unless its tokens are longer than 16 characters on average,
        # which is SentencePiece's longest piece.
        ready = [clean(text[: limit * CHARS_PER_TOKEN]) for text in texts]
        return token_rows(self._token_ids(ready, limit=limit, threads=threads))


class Tokenizer(RowTokenizer):
    """A trained SentencePiece unigram model."""

    def __init__(self, model: bytes, config: TokenizerConfig) -> None:
        super().__init__(model, config)
        self._processor = spm.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise BundleError(
                f"the tokenizer is not a SentencePiece model ({error}); train the bundle again"
            ) from None

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenizerConfig, *, seed: int) -> "Tokenizer":
        """Learn a vocabulary from a stream of texts, from what a tower reads of each.

        SentencePiece takes the square of a stretch that two texts share; so the cost is that of
        the number of texts.

        Raises:
            TrainingError: there is nothing to learn from.
        """
        most = config.max_passage_tokens * CHARS_PER_TOKEN
        heads = (text[:most] for text in texts)
        sample = [clean(text) for text in sample_texts(heads, size=SAMPLE_SIZE, seed=seed)]
        sample = [text for text in sample if text.strip()]
        if not sample:
            raise TrainingError("no text to learn a vocabulary from: all texts are blank")
        model = io.BytesIO()
        try:
            with working("vocabulary"):
                spm.SentencePieceTrainer.Train(
                    sentence_iterator=iter(sample),
                    model_writer=model,
                    model_type="unigram",
                    vocab_size=config.vocab_size,
                    hard_vocab_limit=False,  # a small corpus ends with fewer
                    byte_fallback=True,
                    character_coverage=0.9995,
                    normalization_rule_name="nmt_nfkc_cf",
                    max_sentence_length=1_000_000,
                    unk_id=UNKNOWN_ID,
                    bos_id=-1,
                    eos_id=-1,
                    minloglevel=2,
                )
        except RuntimeError as error:
            raise TrainingError(
                f"SentencePiece could not learn a vocabulary of {config.vocab_size} "
                f"from {len(sample)} texts ({error})"
            ) from None
        return cls(model.getvalue(), config)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the unknown token (id 0) and the bytes among them."""
        return int(self._processor.GetPieceSize())

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the readable form of tokens."""
        return [str(self._processor.IdToPiece(int(i))) for i in ids]

    def _token_ids(self, texts: Sequence[str], *, limit: int, threads: int) -> list[list[int]]:
        if len(texts) == 1:
            return [self._processor.EncodeAsIds(texts[0])[:limit]]
        lists = self._processor.Encode(texts, num_threads=threads or -1)
        return [ids[:limit] for ids in lists]


def clean(text: str) -> str:
    """Replace NULs and lone surrogates, which SentencePiece cannot carry, by spaces."""
    return BROKEN_CHARS.sub(" ", text)


def sample_texts(texts: Iterable[str], *, size: int, seed: int) -> list[str]:
    """Draw at most `size` texts evenly from a stream of unknown length, in stream order.

    Reservoir sampling (Vitter, 1985, algorithm R).
    """
    rng = np.random.default_rng(seed)
    sample: list[tuple[int, str]] = []
    for i, text in enumerate(texts):
        if i < size:
            sample.append((i, text))
        elif (slot := int(rng.integers(i + 1))) < size:
            sample[slot] = (i, text)
    return [text for _, text in sorted(sample)]
