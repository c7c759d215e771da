"""Words that no passage has, read as the near words that some have.

A word of a query that the collection does not know finds nothing. All words one edit away (a letter
left out, put in, taken for another, two swapped: Damerau, "A technique for computer detection and
correction of spelling errors", 1964) are looked for, as Norvig's corrector does ("How to Write a
Spelling Corrector", 2007), and the frequent ones are the likely ones.

The vocabulary is the BM25 index itself: the engine is asked for the passages of each term. A term
is a stem, which stands for words that nobody wrote as well; so some of its passages are read for
the word itself. There is nothing to store, to copy or to bring up to date, and terms that a search
met once are not asked for again.
"""

import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from two_tower.models.text.bm25 import Analyzer
from two_tower.retriever.collection.schema import BM25
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import AnyPoint, Request, SparseVector

SHORTEST, LONGEST = 4, 24  # letters of a word that is read as another

MOST_WORDS = 4  # of a query that are read as others

MOST_TERMS = 32  # of a query; a longer one does not hang on one word

NEAR_WORDS = 3

COUNTED = 100  # passages of a near word, at most

TRIED, READ = 8, 20  # terms near a word, and passages of each, that are read for the word itself

SAMPLED, MOST_LETTERS = 256, 64  # passages that the letters are taken from; letters

TERMS_PER_REQUEST = 2048

REMEMBERED = 100_000  # terms

_WORD = re.compile(r"[^\W_]+")  # as the analyzer cuts


class Reading(NamedTuple):
    """How a query with unknown words is read.

    Attributes:
        text: the query with the likeliest near word in the place of each.
        words: typed word -> that near word.
        weights: term of a near word -> the chance that it is meant.
    """

    text: str
    words: Mapping[str, str]
    weights: Mapping[int, float]


class Speller:
    """Reads queries by the vocabulary of one collection. Safe to share between threads.

    Attributes:
        settled: terms of queries that need no reading: some passage has them, or their words are
            none to be read as others.
    """

    def __init__(self, engine: Engine, collection: str, analyzer: Analyzer) -> None:
        self._engine = engine
        self._collection = collection
        self._analyzer = analyzer
        self._letters = ""
        self._lock = threading.Lock()
        self.settled: frozenset[int] = frozenset()

    def read(self, terms: Mapping[str, Iterable[int]]) -> dict[str, Reading]:
        """Return the reading of each query with an unknown word that has near words.

        Args:
            terms: query -> its terms.
        """
        words = {query: self._words(query) for query in terms}
        doubtful = {term for each in words.values() for term in each.values()} - self.settled
        known = self._passages(doubtful, most=1).keys()
        unknown = doubtful - known
        with self._lock:
            rest = self.settled if len(self.settled) < REMEMBERED else frozenset()
            self.settled = rest.union(*terms.values()) - unknown
        if not unknown:
            return {}
        typed = {
            query: [word for word, term in each.items() if term in unknown][:MOST_WORDS]
            for query, each in words.items()
        }
        near = self._near({word for each in typed.values() for word in each})
        readings = {}
        for query, each in typed.items():
            if read_words := {word: near[word] for word in each if near[word]}:
                readings[query] = _reading(query, read_words)
        return readings

    def _words(self, query: str) -> dict[str, int]:
        """Return the words of a query that can be read as others, and the term of each.

        Numbers, `RUNX1` and `mTORC` cannot: what is near them is something else.
        """
        words = set(_WORD.findall(_folded(query)))
        if len(words) > MOST_TERMS:
            return {}
        plain = (word for word in sorted(words) if word.isalpha() and word[1:] == word[1:].lower())
        return self._terms(word for word in plain if SHORTEST <= len(word) <= LONGEST)

    def _terms(self, words: Iterable[str]) -> dict[str, int]:
        """Return the term of each word that is one: a stop word has none."""
        terms = {word: list(self._analyzer.term_counts(word)) for word in words}
        return {word: term[0] for word, term in terms.items() if len(term) == 1}

    def _passages(self, terms: Iterable[int], *, most: int) -> dict[int, list[str]]:
        """Return the points that have each term, up to `most`, where there is any."""
        points = {}
        asked = sorted(terms)
        for start in range(0, len(asked), TERMS_PER_REQUEST):
            part = asked[start : start + TERMS_PER_REQUEST]
            requests = [Request(SparseVector([term], [1.0]), BM25, most) for term in part]
            scored = self._engine.query_scores(self._collection, requests)
            points.update({t: s.ids for t, s in zip(part, scored, strict=True) if s.ids})
        return points

    def _near(self, words: Iterable[str]) -> dict[str, list[tuple[str, int, float]]]:
        """Return for each word those near it: word, term and chance, the likeliest first."""
        letters = self._alphabet()
        candidates = {word: self._terms(sorted(edits(word.casefold(), letters))) for word in words}
        asked = {term for each in candidates.values() for term in each.values()}
        points = self._passages(asked, most=COUNTED) if asked else {}
        tried = {
            word: sorted(points.keys() & {*terms.values()}, key=lambda t: (-len(points[t]), t))
            for word, terms in candidates.items()
        }
        written = self._words_in(
            {term: points[term][:READ] for terms in tried.values() for term in terms[:TRIED]}
        )
        near = {}
        for word, terms in tried.items():
            found = []
            for term in terms[:TRIED]:
                forms = [form for form, other in candidates[word].items() if other == term]
                counts = {form: sum(form in each for each in written[term]) for form in forms}
                likeliest = max(forms, key=lambda form: (counts[form], form))
                share = (counts[likeliest] + 0.5) / (len(written[term]) + 1)
                found.append((likeliest, term, share * len(points[term])))
            found.sort(key=lambda each: (-each[2], each[0]))
            total = sum(weight for *_, weight in found[:NEAR_WORDS])
            near[word] = [
                (self._written_form(form, term, written[term]), term, weight / total)
                for form, term, weight in found[:NEAR_WORDS]
            ]
        return near

    def _written_form(self, form: str, term: int, passages: Sequence[set[str]]) -> str:
        """Return a form of a term that some of its passages have, the frequent one first."""
        if any(form in words for words in passages):
            return form
        counts = Counter(other for words in passages for other in words)
        forms = [other for other, its in self._terms(sorted(counts)).items() if its == term]
        return max(forms, key=lambda other: counts[other], default=form)

    def _words_in(self, points: Mapping[int, list[str]]) -> dict[int, list[set[str]]]:
        """Return for each term the words of each of its passages, in small letters."""
        ids = sorted({point for each in points.values() for point in each})
        if not ids:
            return {}
        words = {
            str(record.id): set(_WORD.findall(_text_of(record).casefold()))
            for record in self._engine.retrieve(
                self._collection, ids, with_payload=["title", "text"]
            )
        }
        return {
            term: [words[point] for point in each if point in words]
            for term, each in points.items()
        }

    def _alphabet(self) -> str:
        """Return the letters that some passages are written in."""
        if not self._letters:
            records, _ = self._engine.scroll(
                self._collection, limit=SAMPLED, with_payload=["title", "text"]
            )
            seen = Counter(
                char for record in records for char in _text_of(record).casefold() if char.isalpha()
            )
            self._letters = "".join(char for char, _ in seen.most_common(MOST_LETTERS))
        return self._letters


def _text_of(record: AnyPoint) -> str:
    payload = record.payload or {}
    return unicodedata.normalize("NFKC", f"{payload.get('title')} {payload.get('text')}")


def edits(word: str, letters: str) -> set[str]:
    """Return what is one edit away from a word: a letter out, in, another, or two swapped."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    shorter = {left + right[1:] for left, right in cuts if right}
    swapped = {left + right[1] + right[0] + right[2:] for left, right in cuts if len(right) > 1}
    replaced = {left + c + right[1:] for left, right in cuts if right for c in letters}
    longer = {left + c + right for left, right in cuts for c in letters}
    return (shorter | swapped | replaced | longer) - {word}


def _reading(query: str, near: Mapping[str, list[tuple[str, int, float]]]) -> Reading:
    words = {word: others[0][0] for word, others in near.items()}
    text = _WORD.sub(lambda match: words.get(match[0], match[0]), _folded(query))
    weights = {term: chance for others in near.values() for _, term, chance in others}
    return Reading(text, words, weights)


def _folded(query: str) -> str:
    """Return a query as it is cut into words: in small letters where several are all capital."""
    text = unicodedata.normalize("NFKC", query)
    return text.lower() if text.isupper() and len(text.split()) > 1 else text
