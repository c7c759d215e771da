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
from two_tower.models.console import progress
from two_tower.models.data import Passage, Qrel, Query

STDLIB = "python"

_OWN = "two-tower-search"

_SKIPPED_FOLDERS = frozenset(
    {"tests", "test", "testing", "idlelib", "site-packages", "dist-packages", "__pycache__"}
    | {"vendor", "vendored", "extern", "externals", "third_party"}
)

_TEST_FILE = re.compile(r"test_.*\.py|.*_test\.py|conftest\.py")


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
    return [file for file in files if _is_wanted(file.relative)]


def package_files() -> list[SourceFile]:
    """Return the public modules of the installed packages, sorted by package and path."""
    found: dict[PurePosixPath, SourceFile] = {}
    for name, dist in _distributions().items():
        for entry in sorted(dist.files or (), key=str):
            relative = PurePosixPath(entry)
            if _is_wanted(relative):
                path = Path(str(dist.locate_file(entry)))
                found.setdefault(relative, SourceFile(name, path, relative))
    return list(found.values())


def documented_objects(file: SourceFile) -> list[DocObject]:
    """Return the public objects of one file that have a docstring, in source order.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not Python of this version.
    """
    tree = _parse(file.path)
    module = ".".join(file.relative.with_suffix("").parts).removesuffix(".__init__")
    parent, _, leaf = module.rpartition(".")
    exported = None
    if leaf.startswith("_"):
        exported = _exports(file.path.parent).get(leaf, frozenset())
        module = parent
    objects = _walk(tree, "") if exported is None else _public(tree, exported)
    top = [("", "module", tree)] if exported is None else []
    return [
        DocObject(file.package, module, name, kind, docstring)
        for name, kind, node in (*top, *objects)
        if (docstring := ast.get_docstring(node))
    ]


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_Found = tuple[str, str, _Documented]


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    found: dict[str, importlib.metadata.Distribution] = {}
    for dist in importlib.metadata.distributions():
        found.setdefault((dist.name or "").lower(), dist)
    return {name: found[name] for name in sorted(found) if name and name != _OWN}


def _is_wanted(relative: PurePosixPath) -> bool:
    *folders, name = relative.parts
    return (
        name.endswith(".py")
        and not _TEST_FILE.fullmatch(name)
        and all(folder.isidentifier() for folder in folders)
        and not any(folder in _SKIPPED_FOLDERS or folder[0] == "_" for folder in folders)
        and (bool(folders) or not name.startswith("_"))
    )


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"not Python of this version ({error})") from None


def _walk(scope: ast.Module | ast.ClassDef | ast.If | ast.Try, prefix: str) -> Iterator[_Found]:
    for node in scope.body:
        if isinstance(node, ast.If | ast.Try):
            yield from _walk(node, prefix)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_"):
                continue
            name = prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield name, "class", node
                yield from _walk(node, name + ".")
            else:
                yield name, "method" if prefix else "function", node


def _public(tree: ast.Module, exported: frozenset[str]) -> Iterator[_Found]:
    for found in _walk(tree, ""):
        if "*" in exported or found[0].partition(".")[0] in exported:
            yield found


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
    names: dict[str, frozenset[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            leaf = node.module.rpartition(".")[2]
            found = frozenset(alias.name for alias in node.names)
            names[leaf] = names.get(leaf, frozenset()) | found
    return names


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
