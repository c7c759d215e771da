"""Public objects of the standard library and the installed packages, with their docstrings.

Source files are parsed, never imported: nothing of a package runs, and the answer is the same on
every run.
"""

import ast
import importlib.metadata
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

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
