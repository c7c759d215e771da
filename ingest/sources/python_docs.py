"""`python-docs`: a real corpus that is on every machine, made of docstrings.

One passage per public object (title: its qualified name, text: its docstring without the summary
line), and the summary line as a query whose relevant passage is that object's. The summary never
stands in the passage it asks for.
"""

import ast
import importlib.metadata
import platform
import re
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from two_tower.ingest.dataset.cleaning import one_line, order_key
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.data import Passage, Qrel, Query
from two_tower.models.progress import progress

STDLIB = "python"

_OWN = "two-tower-search"

MIN_BODY_WORDS = 8

MIN_QUERY_WORDS, MAX_QUERY_WORDS = 3, 40

# More objects than that with one summary make a query that asks for nothing.
MAX_SHARED = 5

_MAX_SUMMARY_LINES = 3

_SKIPPED_FOLDERS = frozenset(
    {"tests", "test", "testing", "idlelib", "site-packages", "dist-packages", "__pycache__"}
    | {"vendor", "vendored", "extern", "externals", "third_party"}
)

_TEST_FILE = re.compile(r"test_.*\.py|.*_test\.py|conftest\.py")

# "name(arguments) -> result" in front of a docstring, as extension modules have it
_SIGNATURE = re.compile(r"[\w.]+\(.*\)(\s*(->|:).*)?", re.DOTALL)

# :func:`~json.loads`
_ROLE = re.compile(r":[\w:+-]+:`[~!]?([^`<]*?)(\s*<[^`>]*>)?`")

_MARKUP = re.compile(r"`+|\*\*|\|(?=\w)|(?<=\w)\||(?<=\w)_(?=\s|$)")

_UNDERLINE = re.compile(r"^[ \t]*([-=~^\"*#+])\1{2,}[ \t]*\n?", re.MULTILINE)

# What ends a summary: "Returns:", ":param x:", "@param", a directive, a doctest, a list
_SECTION = re.compile(r"[A-Z]\w*( \w+)?:$|:\w+.*:|@\w+|\.\. |>>> |[-*+] |\d+[.)] ")

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")

_Documentable = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class SourceFile(NamedTuple):
    """One module on disk; `relative` is its path below the folder that is on sys.path."""

    package: str
    path: Path
    relative: PurePosixPath


class DocObject(NamedTuple):
    """A module, class, function or method and its docstring (indentation removed)."""

    package: str
    module: str
    name: str
    kind: str
    docstring: str

    @property
    def qualified_name(self) -> str:
        """Such as `json.JSONEncoder.encode`."""
        return f"{self.module}.{self.name}" if self.name else self.module

    @property
    def url(self) -> str:
        """Such as `json:JSONEncoder.encode`."""
        return f"{self.module}:{self.name}" if self.name else self.module


class Entry(NamedTuple):
    """An object, its docstring cut in two; `query` is empty where the summary is no query."""

    item: DocObject
    query: str
    body: str


class PythonDocs:
    """The docstrings of this environment as a source."""

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
        entries = self._sample(list(_entries(writer)), writer)
        urls: dict[str, list[str]] = defaultdict(list)
        spelling: dict[str, str] = {}
        for item, query, body in entries:
            fields = {"package": item.package, "kind": item.kind}
            passage = Passage(item.url, body, item.qualified_name, item.url, fields)
            writer.add_passage(passage, where=item.url)
            if query:
                urls[spelling.setdefault(query.lower(), query)].append(item.url)
        for query, answers in urls.items():
            if len(answers) > MAX_SHARED:
                writer.leave_out("summary shared by many objects: no query", len(answers))
                continue
            query_id = writer.add_query(Query("", query), where=answers[0])
            for url in answers:
                writer.add_qrel(Qrel(str(query_id), url, 1, "train"), where=url)

    def _sample(self, entries: list[Entry], writer: DatasetWriter) -> list[Entry]:
        if self._limit is None or len(entries) <= self._limit:
            return entries
        writer.leave_out("object outside the sample of --limit", len(entries) - self._limit)
        ranked = sorted((entry.item.url for entry in entries), key=order_key)
        sample = set(ranked[: self._limit])
        return [entry for entry in entries if entry.item.url in sample]


def _entries(writer: DatasetWriter) -> Iterator[Entry]:
    seen: set[str] = set()
    for item in _objects(writer):
        summary, body = split_docstring(item.docstring)
        if item.url in seen:
            writer.leave_out("object defined a second time")
        elif prose_words(body) < MIN_BODY_WORDS:
            writer.leave_out(f"docstring body under {MIN_BODY_WORDS} words of prose")
        else:
            seen.add(item.url)
            query = as_query(summary)
            if not query:
                writer.leave_out("summary too short, too long or not prose: no query")
            elif query.lower() in one_line(_MARKUP.sub("", body), limit=len(body)).lower():
                writer.leave_out("summary repeated in the body: no query")
                query = ""
            yield Entry(item, query, body)


def _objects(writer: DatasetWriter) -> Iterator[DocObject]:
    for file in progress(stdlib_files() + package_files(), label="reading docstrings"):
        try:
            yield from documented_objects(file)
        except (OSError, ValueError) as error:
            reason = "file: not Python of this version or not readable"
            writer.reject(reason=reason, where=str(file.relative), row=str(error))


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
    plain = _MARKUP.sub("", _ROLE.sub(r"\1", summary))
    plain = one_line(plain, limit=1000).rstrip(".:")
    words = plain.split()
    if not MIN_QUERY_WORDS <= len(words) <= MAX_QUERY_WORDS:
        return ""
    natural = sum(bool(_WORD.fullmatch(word.strip(",;()\"'"))) for word in words)
    return plain if natural >= max(MIN_QUERY_WORDS, len(words) // 2) else ""


def installed_versions() -> dict[str, str]:
    """Return package -> version, sorted by package, for each installed package but this one."""
    return {name: dist.version for name, dist in _distributions().items()}


def stdlib_files() -> list[SourceFile]:
    """Return the public modules of the standard library, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    files = (
        SourceFile(STDLIB, path, PurePosixPath(path.relative_to(root).as_posix()))
        for path in sorted(root.rglob("*.py"))
    )
    return [file for file in files if _is_public(file.relative)]


def package_files() -> list[SourceFile]:
    """Return the public modules of the installed packages, sorted by package and path."""
    files: dict[PurePosixPath, SourceFile] = {}
    for name, dist in _distributions().items():
        for entry in sorted(dist.files or (), key=str):
            relative = PurePosixPath(entry)
            if _is_public(relative):
                path = Path(str(dist.locate_file(entry)))
                files.setdefault(relative, SourceFile(name, path, relative))
    return list(files.values())


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    distributions: dict[str, importlib.metadata.Distribution] = {}
    for dist in importlib.metadata.distributions():
        distributions.setdefault((dist.name or "").lower(), dist)
    names = sorted(name for name in distributions if name and name != _OWN)
    return {name: distributions[name] for name in names}


def _is_public(relative: PurePosixPath) -> bool:
    *folders, name = relative.parts
    return (
        name.endswith(".py")
        and not _TEST_FILE.fullmatch(name)
        and all(folder.isidentifier() for folder in folders)
        and not any(folder in _SKIPPED_FOLDERS or folder[0] == "_" for folder in folders)
        and (bool(folders) or not name.startswith("_"))
    )


def documented_objects(file: SourceFile) -> list[DocObject]:
    """Return the public objects of one file that have a docstring, in source order.

    Of a private module they are what its package exports of it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not Python of this version.
    """
    tree = _parse(file.path)
    module = ".".join(file.relative.with_suffix("").parts).removesuffix(".__init__")
    parent, _, leaf = module.rpartition(".")
    definitions = list(_definitions(tree, ""))
    if leaf.startswith("_"):
        exports = _exports(file.path.parent).get(leaf, frozenset())
        module = parent
        if "*" not in exports:
            definitions = [d for d in definitions if d[0].partition(".")[0] in exports]
    else:
        definitions.insert(0, ("", "module", tree))
    return [
        DocObject(file.package, module, name, kind, docstring)
        for name, kind, node in definitions
        if (docstring := ast.get_docstring(node))
    ]


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"not Python of this version ({error})") from None


def _definitions(
    scope: ast.Module | ast.ClassDef | ast.If | ast.Try, prefix: str
) -> Iterator[tuple[str, str, _Documentable]]:
    """Yield name, kind and node of all public classes, functions and methods."""
    for node in scope.body:
        if isinstance(node, ast.If | ast.Try):
            yield from _definitions(node, prefix)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_"):
                continue
            name = prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield name, "class", node
                yield from _definitions(node, name + ".")
            else:
                yield name, "method" if prefix else "function", node


@lru_cache(maxsize=256)
def _exports(package: Path) -> Mapping[str, frozenset[str]]:
    """Return private module -> names that its package's `__init__.py` imports from it.

    `scipy/stats/_stats_py.py` is where `scipy.stats.pearsonr` lives: many packages keep all they
    have in such files.
    """
    try:
        tree = _parse(package / "__init__.py")
    except (OSError, ValueError):
        return {}
    names: dict[str, frozenset[str]] = defaultdict(frozenset)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names[node.module.rpartition(".")[2]] |= {alias.name for alias in node.names}
    return names
