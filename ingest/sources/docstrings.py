"""A docstring taken apart: the summary, which somebody may ask, and the text below it."""

import re
from typing import NamedTuple

from two_tower.ingest.dataset.cleaning import one_line

BUILTINS = "builtins"

MIN_QUERY_WORDS, MAX_QUERY_WORDS = 3, 40

_MAX_SUMMARY_LINES = 3

# "name(arguments) -> result" in front of a docstring, as extension modules have it
_SIGNATURE = re.compile(r"[\w.]+\(.*\)(\s*(->|:).*)?", re.DOTALL)

# :func:`~json.loads`
_ROLE = re.compile(r":[\w:+-]+:`[~!]?([^`<]*?)(\s*<[^`>]*>)?`")

MARKUP = re.compile(r"`+|\*\*|\|(?=\w)|(?<=\w)\||(?<=\w)_(?=\s|$)")

_UNDERLINE = re.compile(r"^[ \t]*([-=~^\"*#+])\1{2,}[ \t]*\n?", re.MULTILINE)

# What ends a summary: "Returns:", ":param x:", "@param", a directive, a doctest, a list
_SECTION = re.compile(r"[A-Z]\w*( \w+)?:$|:\w+.*:|@\w+|\.\. |>>> |[-*+] |\d+[.)] ")

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")


class DocObject(NamedTuple):
    """A module, class, function or method and its docstring (indentation removed)."""

    package: str
    module: str
    name: str
    kind: str
    docstring: str

    @property
    def qualified_name(self) -> str:
        """Such as `json.JSONEncoder.encode`, and `str.split` for a built-in."""
        module = "" if self.module == BUILTINS and self.name else self.module
        return ".".join(part for part in (module, self.name) if part)

    @property
    def url(self) -> str:
        """Such as `json:JSONEncoder.encode`."""
        return f"{self.module}:{self.name}" if self.name else self.module


def split_docstring(docstring: str) -> tuple[str, str]:
    """Cut a docstring into (summary, body); the summary is empty where none can be told apart.

    The summary is the first line, or as many lines (at most 3) as its first sentence takes. A
    signature in front of it, as extension modules have, stays out of both.
    """
    docstring = _UNDERLINE.sub("", docstring).strip()
    paragraph, _, rest = docstring.partition("\n\n")
    if _SIGNATURE.fullmatch(paragraph.strip()):
        paragraph, _, rest = rest.strip().partition("\n\n")
    lines = paragraph.strip().split("\n")
    length = _summary_length(lines)
    if not 0 < length <= _MAX_SUMMARY_LINES:
        return "", docstring
    summary = " ".join(line.strip() for line in lines[:length])
    body = "\n".join(lines[length:]) + "\n\n" + rest
    return summary, body.strip()


def _summary_length(lines: list[str]) -> int:
    for number, line in enumerate(lines):
        if _SECTION.match(line.strip()):
            return number
        if line.rstrip()[-1:] in tuple(".!?:"):
            return number + 1
    return len(lines)


def prose_words(body: str) -> int:
    """Return the number of words outside doctests and literals."""
    lines = (line for line in body.split("\n") if not line.lstrip().startswith((">>>", "...")))
    return sum(bool(_WORD.fullmatch(word.strip("`,.;:()\"'*"))) for word in " ".join(lines).split())


def as_query(summary: str) -> str:
    """Return a summary as somebody would type it, empty where nobody would."""
    plain = MARKUP.sub("", _ROLE.sub(r"\1", summary))
    plain = one_line(plain, limit=1000).rstrip(".:")
    words = plain.split()
    if not MIN_QUERY_WORDS <= len(words) <= MAX_QUERY_WORDS:
        return ""
    natural = sum(bool(_WORD.fullmatch(word.strip(",;()\"'"))) for word in words)
    return plain if natural >= max(MIN_QUERY_WORDS, len(words) // 2) else ""
