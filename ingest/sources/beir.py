"""A BEIR folder: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`, each plain or `.gz`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.rows import (
    as_id,
    as_integer,
    as_text,
    read_lines,
    read_objects,
    split_name,
)
from two_tower.models.console import progress
from two_tower.models.data import Passage, Qrel, Query
from two_tower.models.errors import DataError


class BeirFolder:
    """A BEIR folder as a source."""

    def __init__(self, path: Path) -> None:
        """Look for the files.

        Raises:
            DataError: there are judgements without queries.
        """
        self.name = str(path)
        self._corpus = _find_jsonl(path, "corpus")
        self._queries = _find_jsonl(path, "queries")
        self._qrels = sorted(
            file for file in path.glob("qrels/*") if file.name.endswith((".tsv", ".tsv.gz"))
        )
        if self._qrels and not self._queries:
            raise DataError(
                f"{path} has qrels but no queries.jsonl or queries.jsonl.gz; "
                "expected a BEIR folder: corpus.jsonl, queries.jsonl, qrels/<split>.tsv"
            )
        self.details: Mapping[str, Any] = {
            "kind": "beir",
            "qrels": [file.name for file in self._qrels],
        }

    @staticmethod
    def fits(path: Path) -> bool:
        """Say whether a folder has a BEIR corpus."""
        return _find_jsonl(path, "corpus") is not None

    def write_to(self, writer: DatasetWriter) -> None:
        """Write passages, queries and the judgements of all splits."""
        if self._corpus:
            for where, row in progress(read_objects(self._corpus, writer.reject), label="passages"):
                writer.add_passage(_passage(row), where=where)
        if self._queries:
            for where, row in progress(read_objects(self._queries, writer.reject), label="queries"):
                text: Any = row.get("text")  # the writer judges its type
                writer.add_query(Query(as_id(row.get("_id")), text), where=where)
        for file in self._qrels:
            _write_qrels(file, writer)


def _find_jsonl(folder: Path, stem: str) -> Path | None:
    candidates = (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz")
    return next((file for file in candidates if file.is_file()), None)


def _passage(row: dict[str, Any]) -> Passage:
    metadata = row.get("metadata")
    fields = dict(metadata) if isinstance(metadata, dict) else {}
    fields |= {k: v for k, v in row.items() if k not in ("_id", "text", "title", "metadata")}
    url = as_text(fields.pop("url", ""))
    title = as_text(row.get("title"))
    text: Any = row.get("text")  # the writer judges its type
    return Passage(as_id(row.get("_id")), text, title, url, fields)


def _write_qrels(file: Path, writer: DatasetWriter) -> None:
    split = split_name(file.name.partition(".")[0])
    for number, line in enumerate(progress(read_lines(file), label=f"judgements {split}"), 1):
        cells = [cell.strip() for cell in line.rstrip("\r\n").split("\t")]
        is_header = number == 1 and not isinstance(as_integer(cells[-1]), int)
        if is_header or not any(cells):
            continue
        where = f"qrels/{file.name}:{number}"
        if len(cells) == 4:  # TREC's own form has an unused second column
            del cells[1]
        if len(cells) == 3:
            query_id, passage_id, score = cells
            writer.add_qrel(Qrel(query_id, passage_id, as_integer(score), split), where=where)
        else:
            reason = "judgement: expected query-id, corpus-id and score between tabs"
            writer.reject(reason=reason, where=where, row=cells)
