"""Exact names: words such as `os.walk`, `read_csv` or `XR-2210/B`, which an analyzer takes apart.

BM25 keeps those of a title whole beside their parts, so that whoever types a name finds what
carries it before what merely mentions it.
"""

import re
import zlib
from collections.abc import Iterator

LONGEST = 100  # characters of a name

_WORD = re.compile(r"\w[\w.:/+#-]*\w")

_NAME = re.compile(r"[^\W_][\W_]+[^\W_]")  # something between two letters or digits

_SEPARATOR = re.compile(r"[.:/]+")

_FIRST_TERM = 1 << 31  # the engine's analyzer numbers words below it


def exact_names(text: str) -> set[str]:
    """Return the names in a query, in lower case: `pandas.read_csv` is `read_csv`, too."""
    return {tail for word in _words(text) for tail in _tails(word) if _NAME.search(tail)}


def title_names(title: str) -> set[str]:
    """Return what a title can be called by: also by the two ends of a path.

    `pandas.io.readers.read_csv` is `readers.read_csv`, `read_csv` and `pandas.read_csv`.
    """
    ends = set()
    for word in _words(title):
        steps = list(_SEPARATOR.finditer(word))
        if len(steps) > 1:
            ends.add(word[: steps[0].end()] + word[steps[-1].end() :])
    return exact_names(title) | ends


def name_term(name: str) -> int:
    """Return the term id of a name, which no word has."""
    return _FIRST_TERM | zlib.crc32(name.encode("utf-8", "surrogatepass"))


def _words(text: str) -> list[str]:
    words = _WORD.findall(text.casefold())
    return [word for word in words if len(word) <= LONGEST]


def _tails(word: str) -> Iterator[str]:
    yield word
    for step in _SEPARATOR.finditer(word):
        yield word[step.end() :]
