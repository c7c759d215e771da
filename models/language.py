"""Texts of any language: what BM25 takes them for, and where their words are."""

import re

ENGLISH = "english"

NONE = "none"
"""In the place of a language: words as they stand, without stop words and stems."""

PIECES = "pieces"
"""In the place of a language: the pieces of a bundle's tokenizer."""

_WITHOUT_SPACES = (
    r"\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)

_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\s{_WITHOUT_SPACES}]+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return where each word begins and ends; a character of Han or kana is one."""
    return [match.span() for match in _WORD.finditer(text)]
