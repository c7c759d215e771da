"""Write locks/*.txt: the pins of constraints.txt with the hashes that the package index has.

    python tests/bench/lock.py

It asks the index that pip is configured for, so one must be reachable, and reads from what is
installed here which packages each lock holds.
"""

import json
import os
import re
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from licences import closure, normal
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import parse_sdist_filename, parse_wheel_filename

ROOT = Path(__file__).parents[2]

LOCKS = ROOT / "locks"

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "serve": ("serve", "onnx"),
    "demo": ("train", "serve"),
    "dev": ("dev",),
}
"""Lock -> what it holds: for the image of the service, for `make demo`, for this repository."""

UNLOCKED = "torch"

HEAD = f"""\
# Hashes of `.[{{extras}}]`, for Linux (x86_64, aarch64) and macOS (arm64): see "Hashes" in
# docs/getting-started.md. Written by tests/bench/lock.py.
#
# {UNLOCKED} is in no lock: Linux takes a CPU build, which is no file of the index, and not the same
# one everywhere. Where it is needed, install it after this, alone, by its pin in constraints.txt.
"""

PLATFORMS = (
    re.compile(r"any$"),
    re.compile(r"manylinux.*_(x86_64|aarch64)$"),
    re.compile(r"macosx_.*_(arm64|universal2)$"),
)


def pins() -> dict[str, str]:
    """Return the version of each package that constraints.txt pins."""
    lines = filter(None, (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines)}


def locked(name: str) -> list[str]:
    """Return the names in a lock: all that its extras install, and what builds this package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    builders = {normal(Requirement(text).name) for text in project["build-system"]["requires"]}
    return sorted((closure(*EXTRAS[name]) | builders) - {UNLOCKED})


def written(name: str) -> dict[str, tuple[str, list[str]]]:
    """Return version and hashes of each package in a lock."""
    text = (LOCKS / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin, *hashes = line.split()
            name, _, version = pin.partition("==")
            found[name] = version, [word.removeprefix("--hash=sha256:") for word in hashes]
    return found


def is_for_us(file: str, version: str, pythons: SpecifierSet) -> bool:
    """Return whether a file is an sdist of a version, or a wheel for what is supported."""
    try:
        if not file.endswith(".whl"):
            return str(parse_sdist_filename(file)[1]) == version
        _, of, _, tags = parse_wheel_filename(file)
    except ValueError:
        return False  # an egg, an installer
    return str(of) == version and any(
        _suits(tag.interpreter, tag.abi, pythons)
        and any(platform.match(tag.platform) for platform in PLATFORMS)
        for tag in tags
    )


def _suits(interpreter: str, abi: str, pythons: SpecifierSet) -> bool:
    """Return whether a wheel runs on a supported CPython; one without a lock is another ABI."""
    if interpreter.startswith("py3") or abi == "abi3":
        return True
    minor = re.fullmatch(r"cp3(\d+)", interpreter)
    return bool(minor) and not abi.endswith("t") and f"3.{minor[1]}" in pythons


class Index:
    """The package index that pip is configured for, by its simple API as JSON."""

    def __init__(self) -> None:
        self._url = _setting("index-url") or _default_index()
        context = ssl.create_default_context(cafile=_setting("cert"))
        self._client = httpx.Client(verify=context, follow_redirects=True, timeout=60)

    def hashes(self, name: str, version: str, pythons: SpecifierSet) -> list[str]:
        """Return the SHA-256 of each file of a version that may be installed."""
        accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
        answer = self._client.get(f"{self._url.rstrip('/')}/{name}/", headers=accept)
        answer.raise_for_status()
        files: Iterable[Mapping[str, Any]] = json.loads(answer.content)["files"]
        found = {f["hashes"]["sha256"] for f in files if is_for_us(f["filename"], version, pythons)}
        if not found:
            raise SystemExit(f"the index has no file of {name}=={version} with a hash")
        return sorted(found)


def _setting(key: str) -> str | None:
    variable = f"PIP_{key.upper().replace('-', '_')}"
    if variable in os.environ:
        return os.environ[variable]
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{key}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _default_index() -> str:
    from pip._internal.models.index import PyPI

    return str(PyPI.simple_url)


def lines(lock: str, hashes: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the lines of a lock."""
    yield HEAD.format(extras=",".join(EXTRAS[lock])).rstrip()
    versions = pins()
    for name in locked(lock):
        yield " \\\n".join(
            [f"{name}=={versions[name]}", *(f"    --hash=sha256:{one}" for one in hashes[name])]
        )


if __name__ == "__main__":
    pythons = SpecifierSet(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "requires-python"
        ]
    )
    index, versions = Index(), pins()
    names = sorted({name for lock in EXTRAS for name in locked(lock)})
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: index.hashes(name, versions[name], pythons), names)
        hashes = dict(zip(names, found, strict=True))
    for lock in EXTRAS:
        path = LOCKS / f"{lock}.txt"
        path.write_text("\n".join(lines(lock, hashes)) + "\n", encoding="utf-8")
        print(f"Wrote {path}", file=sys.stderr)
