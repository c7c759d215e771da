"""Write docs/licences.md: what is installed with this package, and under which licences.

    python tests/bench/licences.py

It reads what is installed here, with all extras that a user may want.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parents[2] / "docs" / "licences.md"

PROJECT = Path(__file__).parents[2] / "pyproject.toml"

NAME = "two-tower-search"

EXTRAS = ("train", "onnx", "transformer", "sweep", "serve", "haystack", "langchain")

HEAD = """# Licences

For whoever has to say under which terms everything is that an installation brings along.
two-tower-search itself is Apache-2.0. `python tests/bench/licences.py` writes this page from the
packages' own descriptions.

Copyleft, as far as it goes here: gensim (LGPL-2.1) trains word vectors and is imported, not
changed; certifi, orjson and tqdm are under MPL-2.0 in whole or in part, which asks for the source
of changed files alone. The engine of the embedded mode, qdrant-edge-py, is Apache-2.0, as the
Qdrant server is.

| package | licence | comes with |
| --- | --- | --- |
"""

PREFIX = "License :: OSI Approved :: "


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked(name: str, extras: frozenset[str]) -> list[str]:
    """Return the requirements of a package; this one's as they are written in pyproject.toml."""
    if name != NAME:
        return distribution(name).requires or []
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(text for extra in extras for text in optional[extra])]


def needed(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield what one package asks for on this machine, with the extras of it."""
    for text in asked(name, extras):
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            yield normal(requirement.name), frozenset(requirement.extras)


def closure(*extras: str) -> set[str]:
    """Return the names of everything that is installed with some extras, or without."""
    rest = [(NAME, frozenset(extras))]
    found: set[tuple[str, frozenset[str]]] = set()
    while rest:
        one = rest.pop()
        if one not in found:
            found.add(one)
            rest += needed(*one)
    return {name for name, _ in found} - {NAME}


def licence(found: Distribution) -> str:
    """Return a package's licence in a few words, as it describes itself."""
    about = found.metadata
    if expression := about.get("License-Expression"):
        return str(expression)
    kinds = [k.removeprefix(PREFIX) for k in about.get_all("Classifier") or () if PREFIX in k]
    if kinds:
        return ", ".join(kinds)
    return (about.get("License") or "see the package").strip().splitlines()[0][:60]


def rows() -> list[tuple[str, str, str]]:
    """Return name, licence and what brings it along."""
    always = closure()
    parts = dict.fromkeys(always, "")
    for extra in EXTRAS:
        for name in closure(extra) - always:
            parts[name] = f"{parts[name]}, {extra}" if parts.get(name) else extra
    return [(name, licence(distribution(name)), parts[name]) for name in sorted(parts)]


def page() -> str:
    """Return the whole page."""
    return HEAD + "".join(f"| {name} | {terms} | {extra} |\n" for name, terms, extra in rows())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}", file=sys.stderr)
