"""Tables with named columns as a source.

A row holds a passage and, unless the table is a bare corpus, a query that it answers. Beside a
column `positive`, columns such as `negative` or `negative_1` hold passages that do not answer.
MS MARCO's files of triples are such tables without a header.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from two_tower.ingest.dataset.writer import DatasetWriter, Identity
from two_tower.ingest.sources.cells import CellTypes
from two_tower.ingest.sources.columns import negative_columns, plain, resolve_columns
from two_tower.ingest.sources.folders import listing, tell_unread
from two_tower.ingest.sources.headers import header_by_name
from two_tower.ingest.sources.rows import SUFFIXES, Row, column_names, is_table, read_rows
from two_tower.ingest.sources.splits import split_name, split_of_file
from two_tower.ingest.sources.totals import row_total
from two_tower.ingest.sources.values import (
    as_content,
    as_id,
    as_integer,
    as_text,
    first_of,
    is_blank,
)
from two_tower.models.data import Passage, Qrel, Query
from two_tower.models.errors import DataError
from two_tower.models.progress import progress


class Tables:
    """One table, or a folder of tables, as a source."""

    def __init__(
        self,
        name: str,
        files: list[Path],
        columns: Mapping[str, str],
        *,
        texts: Collection[str] = (),
    ) -> None:
        """Look at the first file.

        Args:
            name: the path as it was given.
            files: the tables.
            columns: role -> name of the column; the usual names are looked for otherwise.
            texts: fields that stay text, whatever the cells of CSV files hold.

        Raises:
            DataError: the first file cannot be read, or lacks a column.
        """
        self.name = name
        self._files = files
        self._columns = columns
        self._texts = texts
        root = Path(name)
        self._splits = {
            file: split_of_file(file, inside=root if root.is_dir() else None) for file in files
        }
        self.details: Mapping[str, Any] = {
            "kind": "table",
            "files": [file.name for file in files],
            "columns": resolve_columns(columns, files[0], header=self._header(files[0])),
        }

    def _header(self, file: Path) -> Sequence[str] | None:
        """Return the names of a file's columns where it has no header, and nobody names one."""
        return None if self._columns else header_by_name(file)

    def write_to(self, writer: DatasetWriter) -> None:
        """Write the rows of all files.

        Raises:
            DataError: a file cannot be read, or lacks a column.
        """
        forms = {file: self._form(file) for file in self._files}
        used = {name for form in forms.values() for name in form.used}
        headers = {file: form.header for file, form in forms.items()}
        types = CellTypes(headers, texts=used.union(self._texts))
        for file, form in forms.items():
            rows = TableRows(form, types, self._splits[file] or "train")
            read = read_rows(file, writer.reject, header=form.header)
            for row in progress(read, label=file.name, total=row_total(file)):
                rows.write(row, writer)
        self._tell_splits(writer)
        tell_unread(Path(self.name), self._files, writer)

    def _form(self, file: Path) -> "Form":
        header = self._header(file)
        columns = resolve_columns(self._columns, file, header=header)
        return Form(header, columns, negative_columns(columns, header or column_names(file)))

    def _tell_splits(self, writer: DatasetWriter) -> None:
        """Say which files say no split in their name, where there is more than one file."""
        silent = [file.name for file, split in self._splits.items() if split is None]
        if len(self._files) > 1 and silent and writer.has_judgements:
            writer.note(
                f"{listing(silent)} {'says' if len(silent) == 1 else 'say'} no split (train, dev "
                "or test) in the name; a row without one of its own is in train"
            )


class Form(NamedTuple):
    """What the columns of a table are.

    Attributes:
        header: their names, where the file has none.
        columns: role -> column.
        negatives: columns with passages that do not answer.
    """

    header: Sequence[str] | None
    columns: Mapping[str, str]
    negatives: Sequence[str]

    @property
    def used(self) -> set[str]:
        """Columns that are no fields."""
        return {*self.columns.values(), *self.negatives}


class TableRows:
    """How the rows of one table are written."""

    def __init__(self, form: Form, types: CellTypes, split: str) -> None:
        self._columns = columns = form.columns
        self._negatives = form.negatives
        self._types = types
        self._split = split
        self._used = form.used
        id_column = columns.get("passage_id")
        if "query" not in columns or (id_column and plain(id_column) != "id"):
            self._identity: Identity = "id"
        else:
            # Rows of pairs repeat their passages, and `id` may be the row's or the query's.
            self._identity = "hint" if id_column else "content"

    def write(self, row: Row, writer: DatasetWriter) -> None:
        """Write the passages, the query and the judgements of a row.

        A question without a passage, and a passage that nobody asked for, are rows like others.
        """
        where, values = row
        query_column = self._columns.get("query")
        has_query = query_column is not None and not is_blank(values.get(query_column))
        answers = self._answers(values)
        others = [p for name in self._negatives for p in _passages(values.get(name))]
        judged: list[tuple[str | None, int | None]] = []
        for passages, relevance, may_be_empty in ((answers, None, has_query), (others, 0, True)):
            for passage in passages:
                if not (may_be_empty and is_blank(passage.text) and not passage.title):
                    passage_id = writer.add_passage(passage, where=where, identity=self._identity)
                    judged.append((passage_id, relevance))
        if has_query:
            write_query(row, self._columns, judged, self._split, writer)

    def _answers(self, values: Mapping[str, Any]) -> list[Passage]:
        """Return the passages of a row that answer its query; id, title and URL are of a single."""
        cells = {role: values.get(column) for role, column in self._columns.items()}
        fields = {name: value for name, value in values.items() if name not in self._used}
        fields = self._types.read(fields)
        answers = [p._replace(fields=fields) for p in _passages(cells["passage"])]
        if len(answers) != 1:
            return answers
        (answer,) = answers
        passage_id, title, url = (
            as_id(cells.get("passage_id")),
            cells.get("title"),
            cells.get("url"),
        )
        return [
            answer._replace(
                passage_id=passage_id or answer.passage_id,
                title=as_text(title) or answer.title,
                url=as_text(url),
            )
        ]


def write_judgements(file: Path, writer: DatasetWriter) -> None:
    """Write the judged queries of a table, one row for each query and a passage's id.

    Raises:
        DataError: the file cannot be read, or has no column for query and passage id.
    """
    if not is_table(file):
        raise DataError(f"{file} is no table; expected one of {', '.join(SUFFIXES)}")
    columns = resolve_columns({}, file, needed=("query", "passage_id"))
    for row in progress(read_rows(file, writer.reject), label=file.name, total=row_total(file)):
        passage_id = as_id(row.values.get(columns["passage_id"]))
        write_query(row, columns, [(passage_id, None)], "train", writer)


def write_query(
    row: Row,
    columns: Mapping[str, str],
    passage_ids: list[tuple[str | None, int | None]],
    split: str,
    writer: DatasetWriter,
) -> None:
    """Write the query of a row and its judgements of passages; a relevance of None is the row's."""
    where, values = row
    cells: dict[str, Any] = {role: values.get(column) for role, column in columns.items()}
    text = as_content(cells["query"])
    query_id = writer.add_query(Query(as_id(cells.get("query_id")), text), where=where)
    split = split_name(as_text(cells.get("split"))) or split
    own = as_integer(cells["relevance"]) if "relevance" in cells else 1
    for passage_id, relevance in passage_ids:
        if passage_id and query_id:
            relevance = own if relevance is None else relevance
            writer.add_qrel(Qrel(query_id, passage_id, relevance, split), where=where)


def _passages(cell: Any) -> list[Passage]:
    """Return the passages in a cell: a text, an object with a text, or a list of them."""
    if isinstance(cell, list | tuple):
        return [passage for item in cell for passage in _passages(item)]
    if isinstance(cell, dict):
        passage_id = as_id(first_of(cell, ("passage_id", "docid", "doc_id", "pid", "_id", "id")))
        text = as_content(first_of(cell, ("text", "contents", "content", "passage")))
        return [Passage(passage_id, text, as_text(cell.get("title")))]
    return [Passage("", as_content(cell))]
