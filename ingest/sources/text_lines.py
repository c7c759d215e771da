"""Lines of text files: plain or gzipped, UTF-8 or UTF-16 by its byte order mark, any line ends."""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from two_tower.ingest.dataset.cleaning import one_line
from two_tower.models.errors import DataError

LONGEST_LINE = 2**28
"""Characters; it may be a whole table, see `rows`."""

_GZIP = b"\x1f\x8b"

# Beginning of a file -> its encoding; the longer marks first
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)

_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte


def read_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a file with their ends (\n, \r\n or \r), without byte order mark.

    Raises:
        DataError: the file is missing, empty, unreadable, broken gzip, of another encoding, or has
            a line that is too long.
    """
    number, encoding = 0, ""
    try:
        with ExitStack() as files:
            file = files.enter_context(path.open("rb"))
            if path.suffix.lower() == ".gz" or file.peek(2).startswith(_GZIP):
                file = cast(io.BufferedReader, files.enter_context(gzip.GzipFile(fileobj=file)))
            encoding = _encoding(file.peek(4))
            # A byte that is not UTF-8 stays visible, so that its line can be named.
            errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
            text = io.TextIOWrapper(cast(BinaryIO, file), encoding, errors, newline="")
            files.enter_context(text)
            for number, line in enumerate(iter(partial(text.readline, LONGEST_LINE + 1), ""), 1):
                if len(line) > LONGEST_LINE:
                    raise DataError(
                        f"{path}:{number} has more than {LONGEST_LINE:,} characters; write one "
                        "row a line, of shorter texts"
                    )
                if not line.isascii() and (bad := _NOT_UTF8.search(line)):
                    raise DataError(
                        f"{path}:{number} is not UTF-8 (byte 0x{ord(bad.group()) - 0xDC00:02x} at "
                        f"column {len(line[: bad.start()].encode()) + 1}); convert the file, e.g. "
                        "iconv -f latin1 -t utf-8"
                    )
                yield line
    except UnicodeError as error:
        raise DataError(
            f"{path} is not intact {encoding.upper()} ({one_line(str(error), limit=80)}) after "
            f"line {number}; save it as UTF-8"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not intact gzip ({one_line(str(error))}) after line {number}; "
            "fetch the file again"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    if not number:
        raise DataError(f"{path} is empty; expected at least one row")


def _encoding(head: bytes) -> str:
    """Return the encoding that a file begins with; in UTF-16 every second byte of ASCII is 0."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if len(head) >= 2 and head[0] and not head[1]:
        return "utf-16-le"
    return "utf-16-be" if len(head) >= 2 and head[1] and not head[0] else "utf-8-sig"
