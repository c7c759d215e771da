"""`python-docs`: a real corpus that is on every machine, made of docstrings.

One passage per public object (title: its qualified name, text: its docstring without the summary
line), and the summary line as a query whose relevant passage is that object's. The summary never
stands in the passage it asks for.
"""

import platform
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from two_tower.ingest.cleaning import one_line, order_key
from two_tower.ingest.dataset import DatasetWriter
from two_tower.ingest.python_objects import (
    DocObject,
    documented_objects,
    installed_versions,
    package_files,
    stdlib_files,
)
from two_tower.models.console import progress
from two_tower.models.data import Passage, Qrel, Query

MIN_BODY_WORDS = 8
MIN_QUERY_WORDS = 3
MAX_QUERY_WORDS = 40
MAX_SHARED = 5
_MAX_SUMMARY_LINES = 3

_SIGNATURE = re.compile(r"[\w.]+\(.*\)(\s*(->|:).*)?", re.DOTALL)
_ROLE = re.compile(r":[\w:+-]+:`[~!]?([^`<]*?)(\s*<[^`>]*>)?`")
_MARKUP = re.compile(r"`+|\*\*|\|(?=\w)|(?<=\w)\||(?<=\w)_(?=\s|$)")
_UNDERLINE = re.compile(r"^[ \t]*([-=~^\"*#+])\1{2,}[ \t]*\n?", re.MULTILINE)
_SECTION = re.compile(r"[A-Z]\w*( \w+)?:$|:\w+.*:|@\w+|\.\. |>>> |[-*+] |\d+[.)] ")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")


class Documented(NamedTuple):
    """A docstring cut in two; `query` is empty where the summary is no query."""

    item: DocObject
    query: str
    body: str


class PythonDocs:
    """The docstrings of this environment as a source.

    Attributes:
        name: `python-docs`.
        details: the Python version and the packages, for the manifest.
    """

    name = "python-docs"

    def __init__(self, *, limit: int | None = None) -> None:
        """Say how many passages at most; which ones is decided by a hash of their names."""
        self._limit = limit
        self.details: Mapping[str, Any] = {
            "python": platform.python_version(),
            "limit": limit,
            "packages": installed_versions(),
        }

    def write_to(self, writer: DatasetWriter) -> None:
        """Write passages, queries and judgements (split `train`)."""
        documented = self._sample(list(_documented(writer)), writer)
        for entry in documented:
            item = entry.item
            fields = {"package": item.package, "kind": item.kind}
            writer.add_passage(
                Passage(item.url, entry.body, item.qualified_name, item.url, fields),
                where=item.url,
            )
        for query, answers in _by_query(documented).items():
            if len(answers) > MAX_SHARED:
                writer.leave_out("summary shared by many objects: no query", len(answers))
                continue
            query_id = writer.add_query(Query("", query), where=answers[0])
            for url in answers:
                writer.add_qrel(Qrel(str(query_id), url, 1, "train"), where=url)

    def _sample(self, documented: list[Documented], writer: DatasetWriter) -> list[Documented]:
        if self._limit is None or len(documented) <= self._limit:
            return documented
        writer.leave_out("object outside the sample of --limit", len(documented) - self._limit)
        ranked = sorted(documented, key=lambda entry: order_key(entry.item.url))
        chosen = {entry.item.url for entry in ranked[: self._limit]}
        return [entry for entry in documented if entry.item.url in chosen]


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
    taken = _summary_length(lines)
    if not 0 < taken <= _MAX_SUMMARY_LINES:
        return "", docstring
    summary = " ".join(line.strip() for line in lines[:taken])
    body = "\n".join(lines[taken:]) + "\n\n" + rest
    return summary, body.strip()


def prose_words(body: str) -> int:
    """Return the number of words outside doctests and literals."""
    lines = (line for line in body.split("\n") if not line.lstrip().startswith((">>>", "...")))
    return sum(bool(_WORD.fullmatch(word.strip("`,.;:()\"'*"))) for word in " ".join(lines).split())


def as_query(summary: str) -> str:
    """Return a summary as somebody would type it, empty where nobody would."""
    plain = _MARKUP.sub("", _ROLE.sub(r"\1", summary))
    plain = one_line(plain, limit=1000).rstrip(".:")
    words = plain.split()
    if not MIN_QUERY_WORDS <= len(words) <= MAX_QUERY_WORDS:
        return ""
    natural = sum(bool(_WORD.fullmatch(word.strip(",;()\"'"))) for word in words)
    return plain if natural >= max(MIN_QUERY_WORDS, len(words) // 2) else ""


def _summary_length(lines: list[str]) -> int:
    for number, line in enumerate(lines):
        if _SECTION.match(line.strip()):
            return number
        if line.rstrip()[-1:] in tuple(".!?:"):
            return number + 1
    return len(lines)


def _documented(writer: DatasetWriter) -> Iterator[Documented]:
    seen: set[str] = set()
    for item in _objects(writer):
        summary, body = split_docstring(item.docstring)
        if item.url in seen:
            writer.leave_out("object defined a second time")
        elif prose_words(body) < MIN_BODY_WORDS:
            writer.leave_out(f"docstring body under {MIN_BODY_WORDS} words of prose")
        else:
            seen.add(item.url)
            yield Documented(item, _query(summary, body, writer), body)


def _objects(writer: DatasetWriter) -> Iterator[DocObject]:
    files = stdlib_files() + package_files()
    for file in progress(files, label="reading docstrings"):
        try:
            yield from documented_objects(file)
        except (OSError, ValueError) as error:
            reason = "file: not Python of this version or not readable"
            writer.reject(reason=reason, where=str(file.relative), row=str(error))


def _query(summary: str, body: str, writer: DatasetWriter) -> str:
    query = as_query(summary)
    if not query:
        writer.leave_out("summary too short, too long or not prose: no query")
    elif query.lower() in one_line(_MARKUP.sub("", body), limit=len(body)).lower():
        writer.leave_out("summary repeated in the body: no query")
        return ""
    return query


def _by_query(documented: list[Documented]) -> dict[str, list[str]]:
    urls: dict[str, list[str]] = defaultdict(list)
    spelling: dict[str, str] = {}
    for entry in documented:
        if entry.query:
            query = spelling.setdefault(entry.query.lower(), entry.query)
            urls[query].append(entry.item.url)
    return urls
