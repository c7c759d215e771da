"""Passages, queries and judgements in files of their own: BEIR, MTEB, TREC, MS MARCO.

corpus.jsonl, collection.tsv, corpus/*.parquet      a table, or TSV without header: id, text
queries.jsonl, queries.dev.tsv, queries/*.parquet   likewise
qrels/<split>.tsv, qrels.dev.tsv, test.jsonl        see `judgements`
qidpidtriples.train.tsv                             query id, id of an answer, id of another passage
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.cells import CellTypes
from two_tower.ingest.sources.folders import source_files, table_files, tell_unread
from two_tower.ingest.sources.headers import (
    CORPUS,
    CORPUS_STEMS,
    QUERIES,
    QUERY_STEMS,
    are_triples,
    missing_header,
    stem,
)
from two_tower.ingest.sources.judgements import (
    are_id_triples,
    are_judgements,
    is_named_qrels,
    read_id_triples,
    read_judgements,
)
from two_tower.ingest.sources.rows import read_rows
from two_tower.ingest.sources.splits import split_name, split_of_file
from two_tower.ingest.sources.totals import row_total
from two_tower.ingest.sources.values import as_content, as_id, as_integer, as_text, first_of
from two_tower.models.data import Passage, Qrel, Query
from two_tower.models.errors import DataError
from two_tower.models.progress import progress

_IDS = ("_id", "id", "docid", "doc_id", "pid", "passage_id", "corpus-id", "corpus_id")

_QUERY_IDS = ("_id", "id", "qid", "query_id", "query-id")

_TEXTS = ("text", "contents", "content", "passage", "body", "segment")

_QUERY_TEXTS = ("text", "query", "question", "title")


_NO_FIELDS = frozenset({*_IDS, *_TEXTS, "title", "url", "metadata"})
"""Columns of a corpus that never become fields; their cells are texts."""


class BeirFolder:
    """A folder with passages, queries and judgements apart, as a source."""

    def __init__(self, path: Path) -> None:
        """Look for the files.

        Raises:
            DataError: there are judgements without queries, or a file cannot be read.
        """
        self.name = str(path)
        tables = table_files(path)
        self._corpus = _named(tables, path, CORPUS_STEMS)
        self._queries = _named(tables, path, QUERY_STEMS)
        others = [f for f in source_files(path) if f not in {*self._corpus, *self._queries}]
        self._qrels = [
            file for file in others if is_named_qrels(file, inside=path) or are_judgements(file)
        ]
        self._triples = [file for file in others if are_id_triples(file)]
        if (self._qrels or self._triples) and not self._queries:
            raise DataError(
                f"{path} has qrels but no queries.jsonl or queries.jsonl.gz; "
                "expected a BEIR folder: corpus.jsonl, queries.jsonl, qrels/<split>.tsv"
            )
        self.details: Mapping[str, Any] = {
            "kind": "beir",
            "qrels": [file.name for file in (*self._qrels, *self._triples)],
        }

    @staticmethod
    def fits(path: Path) -> bool:
        """Say whether a folder has a corpus."""
        return bool(_named(table_files(path), path, CORPUS_STEMS))

    def write_to(self, writer: DatasetWriter) -> None:
        """Write passages, queries and the judgements of all splits."""
        path = Path(self.name)
        headers = {file: missing_header(file, CORPUS) for file in self._corpus}
        types = CellTypes(headers, texts=_NO_FIELDS)
        for file, header in headers.items():
            rows = read_rows(file, writer.reject, header=header)
            for where, row in progress(rows, label="passages", total=row_total(file)):
                passage = _passage(types.read(row))
                writer.add_passage(passage, where=where, identity="id")
        for file in self._queries:
            rows = read_rows(file, writer.reject, header=missing_header(file, QUERIES))
            for where, row in progress(rows, label="queries", total=row_total(file)):
                text: Any = as_content(first_of(row, _QUERY_TEXTS))  # the writer judges its type
                writer.add_query(Query(as_id(first_of(row, _QUERY_IDS)), text), where=where)
        for file in (*self._qrels, *self._triples):
            split = split_of_file(file, inside=path) or _named_split(file)
            read = read_id_triples if file in self._triples else read_judgements
            judgements, label = read(file, writer.reject), f"judgements {split}"
            for judgement in progress(judgements, label=label, total=row_total(file)):
                score = as_integer(judgement.score)
                qrel = Qrel(judgement.query_id, judgement.passage_id, score, split)
                writer.add_qrel(qrel, where=judgement.where)
        files = [*self._corpus, *self._queries, *self._qrels, *self._triples]
        tell_unread(path, files, writer)


def _named(files: Sequence[Path], root: Path, stems: tuple[str, ...]) -> list[Path]:
    """Return the files of one of these names, or in a folder of that name."""
    return [
        file
        for file in files
        if any(stem(name) in stems for name in file.relative_to(root).parts)
        and not is_named_qrels(file, inside=root)
    ]


def _named_split(file: Path) -> str:
    """Return the split of judgements whose name says none of the usual: the name itself."""
    name = file.name.partition(".")[0]
    return "train" if name.lower().startswith("qrels") or are_triples(file) else split_name(name)


def _passage(row: dict[str, Any]) -> Passage:
    metadata = row.get("metadata")
    fields = dict(metadata) if isinstance(metadata, dict) else {}
    text_name = next((name for name in _TEXTS if name in row), "text")
    id_name = next((name for name in _IDS if name in row), "_id")
    used = (id_name, text_name, "title", "metadata")
    fields |= {k: v for k, v in row.items() if k not in used}
    url, title = as_text(fields.pop("url", "")), as_text(row.get("title"))
    text: Any = as_content(row.get(text_name))  # the writer judges its type
    return Passage(as_id(row.get(id_name)), text, title, url, fields)
