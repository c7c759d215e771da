"""Files of judgements: BEIR's, MTEB's, TREC's and MS MARCO's.

query-id <tab> corpus-id <tab> score    with or without header; `.csv` with commas
query-id 0 corpus-id score              TREC's own form, between spaces or tabs
{"query-id": …, "corpus-id": …, "score": …}    rows of JSONL, Parquet or Arrow
query-id <tab> corpus-id <tab> corpus-id       MS MARCO's triples: the second is no answer
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from two_tower.ingest.sources.columns import PASSAGE_IDS, QUERY_IDS, plain
from two_tower.ingest.sources.headers import are_ids, are_triples, first_cells
from two_tower.ingest.sources.rows import Reject, column_names, ending, is_table, read_rows
from two_tower.ingest.sources.text_lines import read_lines
from two_tower.ingest.sources.values import as_id
from two_tower.models.errors import DataError

_TEXT = (".tsv", ".tab", ".csv", "")

_QUERY_IDS = (*QUERY_IDS, "query", "topic")

_PASSAGE_IDS = (*PASSAGE_IDS, "corpus", "document", "doc")

_SCORES = ("score", "relevance", "label", "rel", "relevancy", "judgement")

_SUFFIXES = (".tsv", ".tab", ".csv", ".txt", ".qrel", ".qrels", ".trec")


class Judgement(NamedTuple):
    """One judgement as it stands in a file; the score may be anything."""

    where: str
    query_id: str
    passage_id: str
    score: Any


def is_named_qrels(file: Path, *, inside: Path) -> bool:
    """Say whether a file's name is that of judgements: in `qrels/`, or `qrels…` itself."""
    *folders, name = (part.lower() for part in file.relative_to(inside).parts)
    stem, end = name.removesuffix(".gz").partition(".")[0], Path(name.removesuffix(".gz")).suffix
    if end in (".qrel", ".qrels"):
        return True
    is_form = end in _SUFFIXES or is_table(file) or not end
    return is_form and ("qrels" in folders or stem.partition("-")[0].partition("_")[0] == "qrels")


def are_judgements(file: Path) -> bool:
    """Say whether a table of another name has columns for both ids, and none for a text."""
    if not is_table(file):
        return False
    try:
        names = {plain(name) for name in column_names(file)}
    except DataError:
        return False
    return (
        bool(names & {*_QUERY_IDS}) and bool(names & {*_PASSAGE_IDS}) and bool(names & {*_SCORES})
    )


def read_judgements(file: Path, reject: Reject) -> Iterator[Judgement]:
    """Yield the judgements of a file; lines that are none go to `reject`.

    Raises:
        DataError: the file cannot be read.
    """
    return _of_lines(file, reject) if ending(file) in _TEXT else _of_rows(file, reject)


def are_id_triples(file: Path) -> bool:
    """Say whether a file is one of triples whose first line has three ids.

    Raises:
        DataError: it cannot be read.
    """
    if not are_triples(file) or ending(file) not in (".tsv", ".tab"):
        return False
    cells = first_cells(file)
    return len(cells) == 3 and are_ids(cells)


def read_id_triples(file: Path, reject: Reject) -> Iterator[Judgement]:
    """Yield two judgements a line: 1 for the answer, 0 for the other passage.

    Raises:
        DataError: the file cannot be read.
    """
    for number, line in enumerate(read_lines(file), 1):
        cells = _cells(line.rstrip("\r\n"), ending(file))
        if not any(cells) or (number == 1 and plain(cells[0]) in _QUERY_IDS):
            continue
        where = f"{file.name}:{number}"
        if len(cells) == 3 and all(cells):
            yield Judgement(where, cells[0], cells[1], 1)
            yield Judgement(where, cells[0], cells[2], 0)
        else:
            reject(reason="judgement: expected three ids", where=where, row=cells)


def _of_rows(file: Path, reject: Reject) -> Iterator[Judgement]:
    names: dict[str, str | None] = {}
    for where, row in read_rows(file, reject):
        if not names:
            by_plain_name = {plain(name): name for name in row}
            names = {
                role: next((by_plain_name[n] for n in usual if n in by_plain_name), None)
                for role, usual in (("q", _QUERY_IDS), ("p", _PASSAGE_IDS), ("s", _SCORES))
            }
        query_id, passage_id = (as_id(row.get(names[role] or "")) for role in ("q", "p"))
        if query_id and passage_id:
            score = row.get(names["s"]) if names["s"] else 1
            yield Judgement(_place(file, where), query_id, passage_id, score)
        else:
            reject(reason=_EXPECTED, where=_place(file, where), row=row)
            names = {}


_EXPECTED = "judgement: expected query-id, corpus-id and score"


def _of_lines(file: Path, reject: Reject) -> Iterator[Judgement]:
    order: tuple[int, ...] | None = None
    for number, line in enumerate(read_lines(file), 1):
        cells = _cells(line.rstrip("\r\n"), ending(file))
        where = f"{_place(file, file.name)}:{number}"
        if not any(cells):
            continue
        if order is None:
            order = _order(cells)
            if order:
                continue
            order = ()
        if not order and len(cells) == 4:  # TREC's own form has an unused second column
            del cells[1]
        if order and len(cells) > max(order):
            cells = [cells[place] for place in order]
        if len(cells) == 3 and all(cells[:2]):
            query_id, passage_id, score = cells
            yield Judgement(where, query_id, passage_id, score)
        else:
            reject(reason=_EXPECTED, where=where, row=cells)


def _order(cells: list[str]) -> tuple[int, ...] | None:
    """Return where a header has query id, passage id and score; None where it is no header.

    Its last cell is no number, or its names are those of the columns.
    """
    names = [plain(cell) for cell in cells]
    places = [
        next((names.index(name) for name in usual if name in names), None)
        for usual in (_QUERY_IDS, _PASSAGE_IDS, _SCORES)
    ]
    if None not in places:
        return tuple(place for place in places if place is not None)
    if len(cells) < 3:
        return None
    try:
        float(cells[-1])
    except ValueError:
        return (0, 2, 3) if len(cells) == 4 else (0, 1, 2)
    return None


def _cells(line: str, end: str) -> list[str]:
    """Return the cells of a line: between tabs, in a .csv between commas, or between spaces."""
    if "\t" in line:
        cells = line.split("\t")
    elif end == ".csv" and "," in line:
        cells = [cell.strip().strip('"') for cell in line.split(",")]
    else:
        cells = line.split()
    return [cell.strip() for cell in cells]


def _place(file: Path, where: str) -> str:
    return f"{file.parent.name}/{where}" if file.parent.name.lower() == "qrels" else where
