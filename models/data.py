"""DATA on disk: its records, its schema and the reader (`ingest.dataset.writer` writes it).

    DATA/passages.parquet   passage_id, title, text, url, fields (a JSON object as a string)
    DATA/queries.parquet    query_id, text
    DATA/qrels.parquet      query_id, passage_id, relevance, split
    DATA/rejected.jsonl     one {"reason", "where", "row"} per row that was set aside
    DATA/manifest.json      counts, source and content hash

The manifest is written last, so that its presence means complete.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from two_tower.models.errors import DataError

DATA_FORMAT = 1
PEOPLE = "people"
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})

PASSAGES = pa.schema(
    [(name, pa.string()) for name in ("passage_id", "title", "text", "url", "fields")]
)
QUERIES = pa.schema([("query_id", pa.string()), ("text", pa.string())])
QRELS = pa.schema(
    [
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("relevance", pa.int32()),
        ("split", pa.string()),
    ]
)


class Passage(NamedTuple):
    """One unit of retrieval.

    `expansion` are queries that BM25 reads beside the content; they are not stored in DATA, see
    `ingest.loading.expansion`.
    """

    passage_id: str
    text: str
    title: str = ""
    url: str = ""
    fields: Mapping[str, Any] = NO_FIELDS
    expansion: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """Title and text in one string: what towers and lexical legs read."""
        return f"{self.title}\n{self.text}" if self.title else self.text


class Query(NamedTuple):
    """One information need, as typed."""

    query_id: str
    text: str


class Qrel(NamedTuple):
    """One judgement: `relevance` > 0 means that the passage answers the query."""

    query_id: str
    passage_id: str
    relevance: int
    split: str


class Dataset:
    """A complete DATA folder, opened for reading.

    Attributes:
        path: the folder.
        manifest: what `ingest prepare` wrote about it.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> "Dataset":
        """Open a DATA folder.

        Raises:
            DataError: the folder is missing, unfinished or of another format.
        """
        path = Path(path)
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{path} is not a DATA folder (no manifest.json in it); "
                f"make one with: ingest prepare SOURCE --out {path}"
            ) from None
        except ValueError as error:
            raise DataError(f"{path / 'manifest.json'} is not JSON ({error})") from None
        version = manifest.get("format") if isinstance(manifest, dict) else None
        if version != DATA_FORMAT:
            raise DataError(
                f"{path} has DATA format {version}, expected {DATA_FORMAT}; "
                "run ingest prepare again"
            )
        return cls(path, manifest)

    @property
    def content_hash(self) -> str:
        """Hash of passages, queries and qrels, as `ingest prepare` computed it."""
        return str(self.manifest["content_hash"])

    @property
    def passage_count(self) -> int:
        """Number of passages."""
        return int(self.manifest["counts"]["passages"])

    def passages(self, *, batch_size: int = 2048) -> Iterator[Passage]:
        """Stream the passages in stored order, `batch_size` of them in memory at a time."""
        for batch in self._batches("passages.parquet", PASSAGES, batch_size):
            for row in batch:
                fields = json.loads(row["fields"]) if row["fields"] else NO_FIELDS
                yield Passage(row["passage_id"], row["text"], row["title"], row["url"], fields)

    def queries(self, split: str | None = None) -> list[Query]:
        """Return all queries, or those that have a judgement in `split`."""
        judged = None if split is None else {qrel.query_id for qrel in self.qrels(split)}
        return [
            Query(row["query_id"], row["text"])
            for batch in self._batches("queries.parquet", QUERIES, 8192)
            for row in batch
            if judged is None or row["query_id"] in judged
        ]

    def qrels(self, split: str) -> list[Qrel]:
        """Return the judgements of `split`.

        Raises:
            DataError: DATA has no judgement in that split.
        """
        qrels = [
            Qrel(row["query_id"], row["passage_id"], row["relevance"], row["split"])
            for batch in self._batches("qrels.parquet", QRELS, 8192)
            for row in batch
            if row["split"] == split
        ]
        if not qrels:
            splits = ", ".join(self.splits) or "none"
            raise DataError(
                f"{self.path} has no labelled query in split {split!r}; its splits: {splits}"
            )
        return qrels

    def judge(self, split: str) -> str:
        """Return whose judgements a split has: `people`, or the model that wrote its queries."""
        judges = self.manifest.get("source", {}).get("judges", {})
        return str(judges.get(split, PEOPLE))

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have judgements, sorted."""
        return sorted(self.manifest["counts"]["qrels"])

    def _batches(
        self, name: str, schema: pa.Schema, batch_size: int
    ) -> Iterator[list[dict[str, Any]]]:
        path = self.path / name
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} cannot be read as Parquet ({error})") from None
        with file:
            stored = file.schema_arrow
            if (stored.names, stored.types) != (schema.names, schema.types):
                raise DataError(
                    f"{path} has columns {_columns(stored)}, expected {_columns(schema)}; "
                    "run ingest prepare again"
                )
            for batch in file.iter_batches(batch_size=batch_size):
                yield batch.to_pylist()


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name} {column.type}" for column in schema)
