"""Files and folders that appear complete or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON in one step."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode())


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path` that takes its place when the block ends well."""
    path = path.resolve()
    work = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        _put_in_place(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(work: Path, path: Path) -> None:
    if not path.exists():
        work.rename(path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(old)
    work.rename(path)
    shutil.rmtree(old, ignore_errors=True)
