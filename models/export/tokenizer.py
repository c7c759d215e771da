"""Our tokenizers as a tokenizer.json of the Hugging Face kind.

SentencePiece and what it becomes here give the same tokens but for three corners: text that spells
a byte token, as in `<0x41>`, where the vocabulary has no `<`; marks stacked on one letter out of
their canonical order; and a blank text, which has no token there and the unknown token here. Of
paths with equal scores the other may win, which is the same tokens in another order.
"""

import json
from typing import Any

from two_tower.models.errors import ConfigError
from two_tower.models.text.tokenizer import UNKNOWN_ID
from two_tower.models.text.transformer_tokenizer import MISSING

NORMAL = 1  # the type of pieces that text is split into; others are the unknown token and bytes

# Case folding leaves no capital letter, so no text can spell this.
UNKNOWN = "<UNK>"

# Lower than any path of pieces over the same characters: text cannot spell a byte token either.
UNSPELLABLE = 1000.0

# The other library maps characters by grapheme, and drops a mark behind a short letter. A control
# character, which the map removes, makes each mark a grapheme of its own.
BEFORE_MARKS = "(?<=.)(?=[\\p{M}\u200c\u200d\U0001f3fb-\U0001f3ff])"
REMOVED = "\x01"

SPACE = "▁"


def fast_tokenizer(model: bytes, *, limit: int) -> Any:
    """Return a `tokenizers.Tokenizer` that gives the ids of a SentencePiece unigram model.

    Args:
        model: the content of tokenizer.model.
        limit: a text keeps its first so many tokens.

    Raises:
        ConfigError: a package of the extra is not installed.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2 as formats
        from tokenizers import Regex, Tokenizer, normalizers
        from tokenizers.models import Unigram
    except ImportError as error:
        raise ConfigError(MISSING.format(name=error.name or "tokenizers")) from None
    proto: Any = formats.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    floor = min(piece.score for piece in proto.pieces) - UNSPELLABLE
    vocabulary = [
        (piece.piece, piece.score if piece.type == NORMAL else floor) for piece in proto.pieces
    ]
    vocabulary[UNKNOWN_ID] = (UNKNOWN, floor)
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=UNKNOWN_ID, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("\x00", " "),  # as `clean` does
            normalizers.NFC(),  # letters and marks first become what the map knows them as
            normalizers.Replace(Regex(BEFORE_MARKS), REMOVED),
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(r"\A | \z"), ""),
            normalizers.Replace(" ", SPACE),
            normalizers.Prepend(SPACE),
        ]
    )
    tokenizer.enable_truncation(limit)
    return tokenizer


def without_ends(model: bytes, *, limit: int) -> Any:
    """Return the `tokenizers.Tokenizer` of a table that shares a transformer's vocabulary.

    Args:
        model: the content of tokenizer.json, which adds tokens that begin and end a text.
        limit: a text keeps its first so many tokens.

    Raises:
        ConfigError: a package of the extra is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(MISSING.format(name=error.name or "tokenizers")) from None
    content = {**json.loads(model), "post_processor": None, "padding": None}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.enable_truncation(limit)
    return tokenizer
