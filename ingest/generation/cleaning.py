"""What a language model wrote, made into queries; what is none is dropped for a reason."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from two_tower.ingest.dataset.cleaning import clean
from two_tower.models.data import Passage
from two_tower.models.text.bm25 import Analyzer

COPIED_WORDS = 8  # so many words in the passage's own order are a copy
FEWEST_TERMS = 2  # one term names a topic, and asks nothing

EMPTY, REFUSED, GENERIC = "empty", "refused", "generic"
COPY, SCRIPT, DUPLICATE = "copy of the passage", "another script", "duplicate"

LABEL = re.compile(
    r"^\s*(?:[-*•>]+\s*|\(?\d{1,2}[.):]\s+|(?:query|question|claim|answer|q)\s*\d*\s*[:.]\s*)+",
    re.IGNORECASE,
)
QUOTES = "\"'`\u201c\u201d\u2018\u2019«» \t"
APOLOGY = re.compile(
    r"^(?:i'?m sorry|sorry,|i (?:cannot|can'?t|am unable)|as an ai|unfortunately, i)", re.IGNORECASE
)
ABOUT_THE_TEXT = re.compile(
    r"\b(?:(?:this|the (?:above|given|following))\s+"
    r"(?:passage|text|article|paragraph|document|abstract|page|study|paper|author)"
    r"|the (?:passage|text|article|paragraph|author)s?)\b",
    re.IGNORECASE,
)
WORDS = re.compile(r"\w+")


class Written(NamedTuple):
    """A text that a model wrote for a passage, cleaned; `reason` says why it is no query."""

    passage_id: str
    text: str
    reason: str = ""


class Cleaner:
    """Turns texts into queries; a query that was met before, for any passage, is a duplicate."""

    def __init__(self, analyzer: Analyzer) -> None:
        """Compare queries by their terms, as `analyzer` gives them."""
        self._analyzer = analyzer
        self._terms: set[frozenset[tuple[int, int]]] = set()

    def clean(self, passage: Passage, texts: Iterable[str]) -> list[Written]:
        """Return the texts as queries of the passage, in their order."""
        content = _words(passage.content)
        script = _script(passage.content)
        return [self._written(passage.passage_id, text, content, script) for text in texts]

    def _written(self, passage_id: str, text: str, content: str, script: str) -> Written:
        query = to_query(text)
        return Written(passage_id, query, self._reason(query, content, script))

    def _reason(self, query: str, content: str, script: str) -> str:
        words = _words(query)
        if not words:
            return EMPTY
        if APOLOGY.search(query):
            return REFUSED
        if script and (own := _script(query)) and own != script:
            return SCRIPT
        terms = self._analyzer.term_counts(query)
        if len(terms) < FEWEST_TERMS or ABOUT_THE_TEXT.search(query):
            return GENERIC
        if words.count(" ") + 1 >= COPIED_WORDS and f" {words} " in f" {content} ":
            return COPY
        key = frozenset(terms.items())
        if key in self._terms:
            return DUPLICATE
        self._terms.add(key)
        return ""


def to_query(text: str) -> str:
    """Return a text on one line, without a number, a label or quotes around it."""
    line = next((line for line in clean(text).splitlines() if line.strip()), "")
    return " ".join(LABEL.sub("", line).strip(QUOTES).split())


def _words(text: str) -> str:
    return " ".join(WORDS.findall(text.casefold()))


def _script(text: str) -> str:
    """Return the script that most letters are of, as LATIN or CYRILLIC; empty for no letter."""
    scripts = Counter(
        unicodedata.name(letter, "").partition(" ")[0] for letter in text[:500] if letter.isalpha()
    )
    return scripts.most_common(1)[0][0] if scripts else ""
