"""`python-docs`: a real corpus that is on every machine, made of docstrings.

One passage per public object of the standard library and of packages that are named (title: its
qualified name, text: its docstring). Where the summary line can be asked and enough stands below
it, it is a query whose relevant passage is that object's, and not in the passage. Whole docstrings,
without queries, are what to search in the end.
"""

import ast
import importlib.metadata
import platform
import re
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from two_tower.ingest.dataset.cleaning import one_line, order_key
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.compiled_docs import compiled_objects, reexported_objects
from two_tower.ingest.sources.docstrings import (
    MARKUP,
    DocObject,
    as_query,
    prose_words,
    split_docstring,
)
from two_tower.models.data import Passage, Qrel, Query
from two_tower.models.errors import ConfigError
from two_tower.models.progress import progress

STDLIB = "python"

_OWN = "two-tower-search"

EVERY = "all"  # package that is installed

MIN_WORDS = 3

MIN_BODY_WORDS = 8

# More objects than that with one summary make a query that asks for nothing.
MAX_SHARED = 5

_SKIPPED_FOLDERS = frozenset(
    {"tests", "test", "testing", "idlelib", "distutils", "lib2to3"}
    | {"site-packages", "dist-packages", "__pycache__"}
    | {"vendor", "vendored", "extern", "externals", "third_party"}
)

_TEST_FILE = re.compile(r"test_.*\.py|.*_test\.py|conftest\.py")

_Documentable = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class SourceFile(NamedTuple):
    """One module on disk; `relative` is its path below the folder that is on sys.path."""

    package: str
    path: Path
    relative: PurePosixPath


class Entry(NamedTuple):
    """An object, its docstring cut in two, and the summary as a query: empty where it is none."""

    item: DocObject
    summary: str
    body: str
    query: str

    @property
    def docstring(self) -> str:
        """Both parts."""
        return f"{self.summary}\n\n{self.body}".strip()


class PythonDocs:
    """The docstrings of this environment as a source."""

    name = "python-docs"

    def __init__(
        self, *, limit: int | None = None, packages: Sequence[str] = (), whole: bool = False
    ) -> None:
        """Say what is taken.

        Args:
            limit: passages at most; which ones is decided by a hash of their names.
            packages: installed ones beside the standard library; `all` for every one.
            whole: take whole docstrings, and no queries.

        Raises:
            ConfigError: a package is not installed.
        """
        self._limit, self._whole = limit, whole
        versions = installed_versions()
        names = list(versions) if [*packages] == [EVERY] else [name.lower() for name in packages]
        for name in names:
            if name not in versions:
                near = get_close_matches(name, versions, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(
                    f"package {name} is not installed here{hint}; expected names as pip has them, "
                    f"or {EVERY}"
                )
        self._packages = frozenset(names)
        self.details: Mapping[str, Any] = {
            "python": platform.python_version(),
            "limit": limit,
            "packages": {name: versions[name] for name in names},
            "whole": whole,
        }

    def write_to(self, writer: DatasetWriter) -> None:
        """Write passages and, unless they are whole docstrings, queries (split `train`)."""
        entries = self._sample(list(self._entries(writer)), writer)
        askable: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            if entry.query:
                askable[entry.query.lower()].append(entry.item.url)
        asked = {query for query, urls in askable.items() if len(urls) <= MAX_SHARED}
        queries: dict[str, str] = {}
        for entry in entries:
            item, query = entry.item, entry.query.lower()
            text = entry.docstring
            if query in asked:
                text = entry.body
                queries.setdefault(query, entry.query)
            elif query:
                writer.leave_out("summary shared by many objects: no query")
            elif not self._whole and as_query(entry.summary).lower() in asked:
                writer.leave_out("object whose summary another one is asked by")
                continue
            fields = {"package": item.package, "kind": item.kind}
            passage = Passage(item.url, text, item.qualified_name, item.url, fields)
            writer.add_passage(passage, where=item.url)
        for query, spelled in queries.items():
            query_id = writer.add_query(Query("", spelled), where=askable[query][0])
            for url in askable[query]:
                writer.add_qrel(Qrel(str(query_id), url, 1, "train"), where=url)

    def _sample(self, entries: list[Entry], writer: DatasetWriter) -> list[Entry]:
        if self._limit is None or len(entries) <= self._limit:
            return entries
        writer.leave_out("object outside the sample of --limit", len(entries) - self._limit)
        ranked = sorted((entry.item.url for entry in entries), key=order_key)
        sample = set(ranked[: self._limit])
        return [entry for entry in entries if entry.item.url in sample]

    def _entries(self, writer: DatasetWriter) -> Iterator[Entry]:
        seen: set[str] = set()
        for item in self._objects(writer):
            summary, body = split_docstring(item.docstring)
            entry = Entry(item, summary, body, "" if self._whole else _query(summary, body))
            if item.url in seen:
                writer.leave_out("object defined a second time")
            elif prose_words(entry.docstring) < MIN_WORDS:
                writer.leave_out(f"docstring under {MIN_WORDS} words of prose")
            else:
                seen.add(item.url)
                yield entry

    def _objects(self, writer: DatasetWriter) -> Iterator[DocObject]:
        files = stdlib_files() + [f for f in package_files() if f.package in self._packages]
        for file in progress(files, label="reading docstrings"):
            try:
                yield from documented_objects(file)
            except (OSError, ValueError) as error:
                reason = "file: not Python of this version or not readable"
                writer.reject(reason=reason, where=str(file.relative), row=str(error))
        yield from compiled_objects()


def _query(summary: str, body: str) -> str:
    """Return the summary as a query, empty where it is none or the body does not answer it."""
    query = as_query(summary) if prose_words(body) >= MIN_BODY_WORDS else ""
    repeats = query.lower() in one_line(MARKUP.sub("", body), limit=len(body)).lower()
    return "" if repeats else query


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
    found = [
        DocObject(file.package, module, name, kind, docstring)
        for name, kind, node in definitions
        if (docstring := ast.get_docstring(node))
    ]
    if file.package == STDLIB:
        names = {name for name, _, _ in definitions}
        found += [item for item in reexported_objects(module, tree) if item.name not in names]
    return found


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
