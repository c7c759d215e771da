"""Files and folders that appear complete or not at all, and whether a process still runs."""

import codecs
import contextlib
import ctypes
import fcntl
import glob
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from two_tower.models.errors import ConfigError


def require_place(path: Path, *, what: str) -> None:
    """Refuse a folder to be made, before the work on `what` it is for; make nothing yet.

    Raises:
        ConfigError: it cannot be made, or nothing can be written into it.
    """
    existing = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write {what} into {path} ({error.strerror or error}); give another --out"
        ) from None


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Give an empty file beside `path` that takes its place when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            with contextlib.suppress(OSError):  # not every disk can; see `remove_leftovers`
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def require_plain(path: Path) -> None:
    """Refuse a pipe, a device and the like, which may give no end of bytes, or none at all.

    Raises:
        OSError: it is one, or there is nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no plain file")


def read_limited(path: Path, limit: int) -> bytes:
    """Return the content of a file; that of a pipe which nobody fills is empty.

    Raises:
        OSError: it cannot be read, or has more than `limit` bytes.
    """
    with open(path, "rb", opener=_open_at_once) as stream:
        os.set_blocking(stream.fileno(), True)
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"more than {limit:,} bytes")
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


LONGEST_PROMPT = 2**20  # bytes


def read_prompt_text(path: Path) -> str:
    """Return the text of a prompt that somebody wrote.

    Raises:
        OSError: the file cannot be read, or is too large.
        UnicodeError: it is of another encoding than UTF-8.
    """
    return read_limited(path, LONGEST_PROMPT).decode("utf-8-sig")


def read_text(path: Path) -> str:
    """Return the text of a file that is in UTF-8, or in UTF-16 with a byte order mark, without it.

    Raises:
        OSError: it cannot be read.
        UnicodeError: it is of another encoding.
    """
    content = path.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader sees the old content or the new, never a part."""
    with new_file(path) as file:
        file.write(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON in one step."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode())


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what killed processes left of the files `pattern`, whose `new_file` nobody holds."""
    for leftover in folder.glob(f".{pattern}.partial"):
        with contextlib.suppress(OSError), leftover.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path` that takes its place when the block ends well."""
    path = path.resolve()
    work = path.with_name(f".{path.name}.{os.getpid()}.partial")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        maker = leftover.name.split(".")[-2]
        if maker.isdecimal() and not is_alive(int(maker)):
            shutil.rmtree(leftover, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        put_in_place(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def put_in_place(work: Path, path: Path) -> None:
    """Move the complete folder `work` to `path`, and remove the folder that was there.

    There is a folder at `path` all the time, where the disk can exchange two of them.
    """
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists() and _exchange(work, path):
        work.rename(old)
    else:
        if path.exists():
            path.rename(old)
        work.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange what stands at two paths in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # an old C library
        return False
    here = -100  # AT_FDCWD
    return bool(rename(here, bytes(one), here, bytes(other), 2) == 0)  # RENAME_EXCHANGE


def lock_folder(path: Path) -> int:
    """Make a folder and keep other processes out of it until the returned descriptor is closed.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the folder cannot be made or opened.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine runs, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True
