"""MS MARCO's own TSV files have no header; their names say what the columns are.

collection.tsv           id, text; or id, title, text; or id, url, title, text
queries.dev.small.tsv    id, query
triples.train.small.tsv  query, positive, negative: texts
qidpidtriples.train.tsv  query id, positive's id, negative's id: see `judgements`
"""

import re
from collections.abc import Mapping
from pathlib import Path

from two_tower.ingest.sources.columns import POSITIVES, USUAL_NAMES, is_negative, plain
from two_tower.ingest.sources.csv_rows import CsvRecords
from two_tower.ingest.sources.rows import ending
from two_tower.models.errors import DataError

Names = tuple[str, ...]

CORPUS: Mapping[int, Names] = {
    2: ("_id", "text"),
    3: ("_id", "title", "text"),
    4: ("_id", "url", "title", "text"),
}
"""Number of columns -> their names; likewise below."""

QUERIES: Mapping[int, Names] = {2: ("query_id", "query")}

TRIPLES: Mapping[int, Names] = {3: ("query", "positive", "negative")}

CORPUS_STEMS = ("corpus", "collection")

QUERY_STEMS = ("queries", "topics")

TRIPLE_WORDS = frozenset({"triples", "triplets", "qidpidtriples"})

_WORD = re.compile(r"[a-z]+")

_USUAL = {name for names in USUAL_NAMES.values() for name in names} | {*POSITIVES, "segment"}


def stem(name: str) -> str:
    """Return the first word of a file's or folder's name, before `.`, `-` and so on."""
    return name.lower().partition(".")[0].partition("-")[0]


def are_triples(file: Path) -> bool:
    """Say whether a file's name is that of triples, of texts or of ids."""
    return not TRIPLE_WORDS.isdisjoint(_WORD.findall(file.name.lower()))


def missing_header(file: Path, columns: Mapping[int, Names]) -> Names | None:
    """Return the names of the columns of a TSV file that has no header; None where it has one.

    Args:
        file: a table.
        columns: number of columns -> their names.

    Raises:
        DataError: it cannot be read.
    """
    if ending(file) not in (".tsv", ".tab"):
        return None
    cells = first_cells(file)
    if any(plain(cell) in _USUAL or is_negative(cell) for cell in cells):
        return None
    return columns.get(len(cells))


def header_by_name(file: Path) -> Names | None:
    """Return what `missing_header` does for a file whose name alone says what it holds.

    Raises:
        DataError: it cannot be read, or holds ids alone.
    """
    if stem(file.name) in CORPUS_STEMS:
        return missing_header(file, CORPUS)
    if stem(file.name) in QUERY_STEMS:
        return missing_header(file, QUERIES)
    if not are_triples(file) or (header := missing_header(file, TRIPLES)) is None:
        return None
    if are_ids(first_cells(file)):
        raise DataError(
            f"{file} has ids of queries and passages without their texts; expected it in a folder "
            "beside collection.tsv and queries.tsv: ingest prepare FOLDER --out DATA"
        )
    return header


def first_cells(file: Path) -> list[str]:
    """Return the cells of a TSV file's first line.

    Raises:
        DataError: it cannot be read.
    """
    return next(iter(CsvRecords(file, header=("no header",))), [])


def are_ids(cells: list[str]) -> bool:
    """Say whether cells are ids rather than texts: none holds a space."""
    return not any(" " in cell.strip() for cell in cells)
