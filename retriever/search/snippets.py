"""Marks what a query has in common with a text, and cuts the part that says most.

A word matches when the engine's own analyzer gives it a term of the query, so that "run" marks
"running" exactly where BM25 counts it.
"""

import re
import unicodedata
from collections import Counter, deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from two_tower.models.language import NONE, PIECES
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer

WORD = re.compile(r"\w[\w\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]*")
"""A word and the accents that stand as characters of their own."""

WIDTH = 180

LOOKED_AT = 40_000
"""Characters of a text that are looked at: what takes longer than a search is not worth a mark."""

MOST_WORDS, LONGEST_WORD = 32_768, 50
"""Whose terms are remembered, some 10 MB of them; and characters of one."""

ELLIPSIS = "…"


class Segment(NamedTuple):
    """A piece of text, all of which matches the query or does not."""

    text: str
    is_match: bool


class _Span(NamedTuple):
    """Where a matching word stands, and its terms."""

    start: int
    end: int
    terms: frozenset[int]


def printable(text: str) -> str:
    """Return text on one line without control characters: a passage must not steer the terminal."""
    folded = " ".join(text.split())
    return "".join(c for c in folded if unicodedata.category(c) != "Cc")


def highlight(text: str, query: str, *, language: str = "english") -> list[Segment]:
    """Return the whole text in pieces; joined they are the text itself.

    Words behind the first `LOOKED_AT` characters are not marked.
    """
    return _cut(text, _matches(text[:LOOKED_AT], query, language), 0, len(text))


def snippet(
    text: str,
    query: str,
    *,
    width: int = WIDTH,
    language: str = "english",
    looked_at: int = LOOKED_AT,
) -> list[Segment]:
    """Return the stretch of at most `width` characters with the most different query terms.

    White space is folded to single spaces. The stretch begins and ends between words, with "…"
    where text is left out; where nothing matches it is the beginning.

    Args:
        text: a passage.
        query: what was searched.
        width: characters at most, "…" included; 20 or more.
        language: the analyzer's.
        looked_at: the stretch is one of the text's first so many characters.

    Raises:
        ValueError: `width` is below 20.
    """
    if width < 20:
        raise ValueError(f"width is {width}; expected 20 or more")
    whole, text = text, " ".join(text[:looked_at].split())
    if whole[looked_at:].strip():
        # The last word may be a part of one.
        text = f"{text.rpartition(' ')[0] or text} {ELLIPSIS}"
    spans = _matches(text, query, language)
    if len(text) <= width:
        return _cut(text, spans, 0, len(text))
    start, end = _window(text, spans, width - 2 * (len(ELLIPSIS) + 1))
    segments = _cut(text, spans, start, end)
    head = [Segment(f"{ELLIPSIS} ", False)] if start else []
    tail = [Segment(f" {ELLIPSIS}", False)] if end < len(text) else []
    return _merge([*head, *segments, *tail])


def _matches(text: str, query: str, language: str) -> list[_Span]:
    query_terms = _terms_of_query(query, language)
    if not query_terms:
        return []
    # Most words match nothing: look each different one up once and make spans of the others only.
    known = _known_words(language)
    words = set(WORD.findall(text))
    terms = {w: ids for w in words if not query_terms.isdisjoint(ids := known[w])}
    if not terms:
        return []
    return [
        _Span(word.start(), word.end(), terms[word[0]])
        for word in WORD.finditer(text)
        if word[0] in terms
    ]


def _window(text: str, spans: Sequence[_Span], room: int) -> tuple[int, int]:
    """Return where the best stretch begins and ends: most different terms, then most matches."""
    best_score = (0, 0)
    first = last = 0
    window: deque[_Span] = deque()
    counts: Counter[int] = Counter()
    different = 0
    for span in spans:
        window.append(span)
        for term in span.terms:
            different += not counts[term]
            counts[term] += 1
        while window and span.end - window[0].start > room:
            for term in window.popleft().terms:
                counts[term] -= 1
                different -= not counts[term]
        score = (different, len(window))
        if window and score > best_score:
            best_score, first, last = score, window[0].start, window[-1].end
    # Widen it to `room` characters around its middle, then shrink it to whole words.
    start = max(0, min(first - (room - (last - first)) // 2, len(text) - room))
    end = min(len(text), start + room)
    if start and text[start - 1] != " ":
        space = text.find(" ", start, first)
        start = start if space < 0 else space + 1
    if end < len(text):
        space = text.rfind(" ", max(start, last), end + 1)
        end = space if space > start else end
    return start, end


def _cut(text: str, spans: Sequence[_Span], start: int, end: int) -> list[Segment]:
    segments, at = [], start
    for span in spans:
        if start <= span.start and span.end <= end:
            segments += [
                Segment(text[at : span.start], False),
                Segment(text[span.start : span.end], True),
            ]
            at = span.end
    return _merge([*segments, Segment(text[at:end], False)])


def _merge(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighbours of one kind and drop empty ones."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and merged[-1].is_match == segment.is_match:
            merged[-1] = Segment(merged[-1].text + segment.text, segment.is_match)
        elif segment.text:
            merged.append(segment)
    return merged


@lru_cache(maxsize=8)
def _analyzer(language: str) -> EngineAnalyzer:
    return EngineAnalyzer(NONE if language == PIECES else language)  # a mark is a word


@lru_cache(maxsize=64)  # one query is asked of every hit's title and text
def _terms_of_query(query: str, language: str) -> frozenset[int]:
    return frozenset(_analyzer(language).term_counts(query))


class _KnownWords(dict[str, frozenset[int]]):
    """The terms of words that were met; a look costs less than one into an `lru_cache`."""

    def __init__(self, analyzer: EngineAnalyzer) -> None:
        super().__init__()
        self._analyzer = analyzer

    def __missing__(self, word: str) -> frozenset[int]:
        if len(self) >= MOST_WORDS:
            self.clear()
        terms = frozenset(self._analyzer.term_counts(word))
        if len(word) <= LONGEST_WORD:
            self[word] = terms
        return terms


@lru_cache(maxsize=8)
def _known_words(language: str) -> _KnownWords:
    return _KnownWords(_analyzer(language))
