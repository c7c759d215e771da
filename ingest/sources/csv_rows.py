"""Rows of CSV and TSV files, whatever their delimiter, quotes and line ends.

A cell is quoted where it begins with a quote and ends with one before a delimiter or the line's
end. A tab-separated file may be written without quoting: there, a quote that does not close is a
character like others. In other files it is an error, for it would swallow the rows after it.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from two_tower.ingest.sources.text_lines import read_lines
from two_tower.models.errors import DataError

DELIMITERS = ",;\t|"

_LARGEST_CELL = 16_000_000

_SEP = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)

_QUOTED = re.compile(r'"(?:[^"]|"")*"')

_ENDS = "\r\n"


class CsvRecords:
    """The records of a file, one list of cells each.

    Attributes:
        header: the cells of the first record, without white space around them.
        line: number of the first line of the latest record.
    """

    def __init__(self, path: Path, *, header: Sequence[str] | None = None) -> None:
        """Read the header, unless the file has none and `header` is given for it.

        Raises:
            DataError: the file cannot be read, or two columns have the same name.
        """
        self._path = path
        self._source = read_lines(path)
        self._waiting: deque[str] = deque()
        self._read = 0
        self.line = 0
        first = self._next()
        while first is not None and not first.strip():
            first = self._next()
        if first is not None and (told := _SEP.fullmatch(first)):
            self._delimiter = told[1]
        else:
            self._delimiter = _delimiter(first or "", path)
            if first is not None:
                self._push_back([first])
        self.header = header or [name.strip() for name in next(iter(self), [])]
        named = [name for name in self.header if name]
        if repeated := next((name for name in named if named.count(name) > 1), None):
            raise DataError(
                f"{path} has two columns named {repeated[:80]!r}; give each a name of its own"
            )

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the records; blank lines are none.

        Raises:
            DataError: a quote is left open.
        """
        while (line := self._next()) is not None:
            self.line = self._read
            text = line.rstrip(_ENDS)
            if '"' in text:
                yield self._cells(line)
            elif text:
                yield text.split(self._delimiter)

    def _next(self) -> str | None:
        line = self._waiting.popleft() if self._waiting else next(self._source, None)
        self._read += line is not None
        return line

    def _push_back(self, lines: Sequence[str]) -> None:
        self._waiting.extendleft(reversed(lines))
        self._read -= len(lines)

    def _cells(self, line: str) -> list[str]:
        """Return the cells of the record that begins with `line`, which holds a quote."""
        taken: list[str] = []
        cells = self._parse(line, taken)
        if taken and self._delimiter == "\t" and not self._is_one(cells, [line, *taken]):
            self._push_back(taken)
            cells = self._parse(line, None)
        return cells

    def _is_one(self, cells: Sequence[str], lines: Sequence[str]) -> bool:
        """Say whether several lines are one record, and not each a record of its own."""
        width = len(self.header)
        return len(cells) == width and (
            width == 1 or any(line.count(self._delimiter) != width - 1 for line in lines)
        )

    def _parse(self, text: str, taken: list[str] | None) -> list[str]:
        """Return the cells; lines that a quoted cell goes on in are added to `taken`, if any may.

        Raises:
            DataError: a quote is left open in a file that is not tab-separated.
        """
        cells, at = [], 0
        while True:
            if text.startswith('"', at):
                text, end = self._closed(text, at, taken)
                after = _until(text, self._delimiter, end + 1) if end > 0 else -1
                if end > 0 and not text[end + 1 : after].strip():
                    cells.append(text[at + 1 : end].replace('""', '"'))
                elif end > 0 and self._delimiter != "\t":
                    cells.append(text[at:after])  # "so" it goes on, as it stands
                else:
                    after = _until(text, self._delimiter, at)
                    cells.append(text[at:after])
            else:
                after = _until(text, self._delimiter, at)
                cells.append(text[at:after])
            if not text.startswith(self._delimiter, after):
                return cells
            at = after + 1

    def _closed(self, text: str, at: int, taken: list[str] | None) -> tuple[str, int]:
        """Return the text, with more lines where the cell at `at` needs them, and its last quote.

        That is -1 where the quote at `at` opens nothing.
        """
        if (end := _closing(text, at + 1)) > 0:
            return text, end
        parts, size = [text], 0
        while taken is not None and size < _LARGEST_CELL and (line := self._next()) is not None:
            parts.append(line)
            size += len(line)
            if (end := _closing(line, 0)) < 0:
                continue
            rest = line[end + 1 : _until(line, self._delimiter, end + 1)]
            if rest.strip():
                break
            taken += parts[1:]
            whole = "".join(parts)
            return whole, len(whole) - len(line) + end
        if self._delimiter != "\t":
            raise DataError(
                f"{self._path.name}:{self.line} is not CSV (a cell begins with a quote that does "
                "not close before the next delimiter); is a quote left open?"
            )
        self._push_back(parts[1:])
        return text, -1


def _closing(text: str, at: int) -> int:
    """Return where the next quote stands that is not doubled, -1 for nowhere."""
    while (at := text.find('"', at)) >= 0 and text.startswith('"', at + 1):
        at += 2
    return at


def _until(text: str, delimiter: str, at: int) -> int:
    """Return where the next delimiter stands, or else the end of the record."""
    end = text.find(delimiter, at)
    return end if end >= 0 else max(at, len(text.rstrip(_ENDS)))


def _delimiter(header: str, path: Path) -> str:
    """Return what divides the header into most cells; a tab where a .tsv file has one."""
    plain = _QUOTED.sub("", header)
    usual = "\t" if {".tsv", ".tab"} & {suffix.lower() for suffix in path.suffixes} else ","
    if usual == "\t" and "\t" in plain:
        return usual
    best = max(DELIMITERS, key=plain.count)
    return best if best in plain else usual
