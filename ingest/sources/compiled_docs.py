"""Docstrings of what is written in C: built-ins, compiled modules, and what others take of them.

There is no source to read, so the compiled modules are imported; nothing else is.
"""

import ast
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Iterator

from two_tower.ingest.sources.docstrings import DocObject

PACKAGE = "python"

# What `os` takes over, by its name on each system.
_SYSTEM = frozenset({"posix", "nt"})

_CALLABLE = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.WrapperDescriptorType,
)


def compiled_objects() -> Iterator[DocObject]:
    """Yield the public objects of the standard library's compiled modules, sorted by module."""
    for name in sorted(sys.stdlib_module_names):
        if not name.startswith("_") and name not in _SYSTEM and is_compiled(name):
            yield from _of_module(name)


def reexported_objects(module: str, tree: ast.Module) -> Iterator[DocObject]:
    """Yield what a module of Python takes from a compiled one: `os.listdir` from `posix`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if not is_compiled(node.module) or (source := _imported(node.module)) is None:
                continue
            taken = {alias.asname or alias.name: alias.name for alias in node.names}
            if "*" in taken:
                taken = {name: name for name in vars(source)}
            for name, original in sorted(taken.items()):
                if not name.startswith("_"):
                    yield from _of_object(module, name, getattr(source, original, None))


def is_compiled(name: str) -> bool:
    """Whether a module of the standard library is written in C."""
    if name not in sys.stdlib_module_names:
        return False
    if name in sys.builtin_module_names:
        return True
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    return spec is not None and (spec.origin or "").endswith(suffixes)


def _imported(name: str) -> types.ModuleType | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of modules that Python will drop
        try:
            return importlib.import_module(name)
        except ImportError:  # built without the library that it needs
            return None


def _of_module(name: str) -> Iterator[DocObject]:
    if (module := _imported(name)) is None:
        return
    if text := inspect.cleandoc(module.__doc__ or ""):
        yield DocObject(PACKAGE, name, "", "module", text)
    for member in sorted(vars(module)):
        if not member.startswith("_"):
            yield from _of_object(name, member, getattr(module, member))


def _of_object(module: str, name: str, value: object) -> Iterator[DocObject]:
    """Yield a function, or a class and its own public methods."""
    text = getattr(value, "__doc__", None)
    if not isinstance(value, type):
        if isinstance(value, _CALLABLE) and isinstance(text, str):
            yield DocObject(PACKAGE, module, name, "function", inspect.cleandoc(text))
        return
    if isinstance(text, str):
        yield DocObject(PACKAGE, module, name, "class", inspect.cleandoc(text))
    for member, method in sorted(vars(value).items()):
        text = getattr(method, "__doc__", None)
        if not member.startswith("_") and isinstance(method, _CALLABLE) and isinstance(text, str):
            yield DocObject(PACKAGE, module, f"{name}.{member}", "method", inspect.cleandoc(text))
