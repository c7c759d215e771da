"""What the columns of CSV and TSV files hold: numbers, true and false, or text.

Such a file has no types, so all of a column is read first: it holds numbers where every cell is
one. Digits that begin with 0, as of a postcode, are text.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from two_tower.ingest.sources.csv_rows import CsvRecords
from two_tower.ingest.sources.rows import is_csv
from two_tower.ingest.sources.totals import row_total
from two_tower.models.progress import progress

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")

_FLOAT = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?")

_WORDS = {"true": True, "false": False}

_READERS: tuple[Callable[[str], Any], ...] = (
    lambda cell: _WORDS[cell.lower()],
    lambda cell: int(_matching(_INTEGER, cell)),
    lambda cell: float(_matching(_FLOAT, cell)),
)
"""The narrower kinds first; each raises KeyError or ValueError for a cell of another."""


class CellTypes:
    """How to read the cells of some files' columns."""

    def __init__(
        self, files: Mapping[Path, Sequence[str] | None], *, texts: Collection[str] = ()
    ) -> None:
        """Read the columns that are not in `texts`.

        Args:
            files: tables -> the names of the columns, where the file has no header.
            texts: columns that stay as they are.

        Raises:
            DataError: a file cannot be read.
        """
        open_readers: dict[str, list[Callable[[str], Any]]] = {}
        filled: set[str] = set()
        for file, header in files.items():
            if not is_csv(file):
                continue
            records = CsvRecords(file, header=header)
            columns = [
                (place, name, open_readers.setdefault(name, [*_READERS]))
                for place, name in enumerate(records.header)
                if name not in texts
            ]
            if not columns:
                continue
            for cells in progress(records, label=f"types {file.name}", total=row_total(file)):
                if len(cells) != len(records.header):
                    continue
                for place, name, readers in columns:
                    if readers and (cell := cells[place].strip()):
                        filled.add(name)
                        readers[:] = [reader for reader in readers if _reads(reader, cell)]
                if not any(readers for _, _, readers in columns):
                    break
        self._readers = {n: r[0] for n, r in open_readers.items() if r and n in filled}

    def read(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields with the values of their cells."""
        return {
            name: self._readers[name](value.strip())
            if name in self._readers and isinstance(value, str) and value.strip()
            else value
            for name, value in fields.items()
        }


def _matching(form: re.Pattern[str], cell: str) -> str:
    if not form.fullmatch(cell):
        raise ValueError(cell)
    return cell


def _reads(reader: Callable[[str], Any], cell: str) -> bool:
    try:
        reader(cell)
    except (KeyError, ValueError):
        return False
    return True
