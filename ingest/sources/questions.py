"""Questions in a file of their own, with or without the ids of the passages that answer them."""

from collections.abc import Callable, Iterator
from pathlib import Path

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.columns import resolve_columns
from two_tower.ingest.sources.headers import header_by_name
from two_tower.ingest.sources.rows import SUFFIXES, Row, is_table, read_rows
from two_tower.ingest.sources.tables import write_query
from two_tower.ingest.sources.text_lines import read_lines
from two_tower.ingest.sources.totals import row_total
from two_tower.ingest.sources.values import as_id
from two_tower.models.errors import DataError
from two_tower.models.progress import progress

PartFor = Callable[[str, str], str]
"""(query, document id) -> the id of that document's part which the judgement is for."""


class Questions:
    """A table with a column `query`, or one question a line in a `.txt`.

    A row with a `passage_id` judges that passage: 1, or what `relevance` says.
    """

    def __init__(self, file: Path) -> None:
        """Look at the head of the file.

        Raises:
            DataError: there is no such file, it is of no known kind, or a column is missing.
        """
        self._file = file
        if not file.is_file():
            raise DataError(f"no file {file}; expected questions: a table or a .txt, one a line")
        self._is_list = file.suffix.lower() == ".txt"
        if not self._is_list and not is_table(file):
            raise DataError(
                f"{file} is of no known kind; expected questions in .txt, {', '.join(SUFFIXES)}"
            )
        self._header = None if self._is_list else header_by_name(file)
        self._columns = {"query": "query"}
        if not self._is_list:
            self._columns = resolve_columns({}, file, header=self._header, needed=("query",))

    def write_to(self, writer: DatasetWriter, *, part_for: PartFor | None = None) -> None:
        """Write the questions and their judgements, which DATA splits into train and dev.

        Args:
            writer: of DATA.
            part_for: where documents were cut into parts, which of them a judgement is for.
        """
        for row in progress(self._rows(writer), label="questions", total=row_total(self._file)):
            column = self._columns.get("passage_id")
            passage_id = None if column is None else as_id(row.values.get(column))
            text = row.values.get(self._columns["query"])
            if part_for and passage_id and isinstance(text, str):
                passage_id = part_for(text, passage_id)
            write_query(row, self._columns, [(passage_id, None)], "train", writer)

    def _rows(self, writer: DatasetWriter) -> Iterator[Row]:
        if not self._is_list:
            yield from read_rows(self._file, writer.reject, header=self._header)
            return
        for number, line in enumerate(read_lines(self._file), 1):
            if line.strip():
                yield Row(f"{self._file.name}:{number}", {"query": line.strip()})
