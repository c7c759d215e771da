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
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from two_tower.models.errors import DataError
from two_tower.models.storable import storage_fault

DATA_FORMAT = 1
PEOPLE = "people"
DAMAGE = (OSError, SystemError, MemoryError, pa.ArrowException, UnicodeDecodeError)
"""What a damaged file makes of Arrow; a length that is negative is Python's SystemError."""

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


MOST_FIELDS = 64
"""Fields that a manifest describes; each may become an index."""

Count = Annotated[int, Field(ge=0)]


class _Counts(BaseModel):
    """How many there are; the writer has more."""

    passages: Count
    qrels: dict[str, Count]


class _Census(BaseModel):
    """What a field holds: see `ingest.dataset.fields`."""

    type: str
    values: Count


class _Manifest(BaseModel):
    """What readers rely on in manifest.json."""

    content_hash: str
    counts: _Counts
    source: dict[str, Any] = {}
    fields: dict[str, _Census] = Field({}, max_length=MOST_FIELDS)


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
            raise DataError(_no_data(path)) from None
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path / 'manifest.json'} is not JSON ({error})") from None
        version = manifest.get("format") if isinstance(manifest, dict) else None
        if version != DATA_FORMAT:
            raise DataError(
                f"{path} has DATA format {version}, expected {DATA_FORMAT}; "
                "run ingest prepare again"
            )
        _check_manifest(path, manifest)
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
        """Stream the passages in stored order, `batch_size` of them in memory at a time.

        Raises:
            DataError: the file is damaged, or a row of it is no passage.
        """
        for batch in self._batches("passages.parquet", PASSAGES, batch_size):
            for row in batch:
                try:
                    fields = json.loads(row["fields"]) if row["fields"] else NO_FIELDS
                    fault = fields and _fields_fault(fields)
                except (ValueError, RecursionError):
                    fault = "has fields that are no JSON"
                if fault:
                    raise DataError(
                        f"{self.path / 'passages.parquet'}: passage {row['passage_id'][:80]!r} "
                        f"{fault}; run ingest prepare again"
                    )
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

    def some_queries(self, count: int, *, longest: int) -> list[str]:
        """Return the texts of the first few queries that have at most `longest` characters."""
        first = next(self._batches("queries.parquet", QUERIES, 256), [])
        texts = (" ".join(row["text"].split()) for row in first)
        return list(dict.fromkeys(text for text in texts if len(text) <= longest))[:count]

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
            splits = ", ".join(self.splits)
            if not splits:
                splits = "none; to add some run: ingest prepare SOURCE --out DATA --queries FILE"
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

    def merged_ids(self) -> dict[str, str]:
        """Return passage id -> id of the equal passage that stands for it.

        Raises:
            DataError: `merged.jsonl` is damaged.
        """
        path, merged = self.path / "merged.jsonl", {}
        if not path.exists():
            return {}
        try:
            with path.open(encoding="utf-8") as file:
                for row in map(json.loads, file):
                    if "relevance" not in row:  # of a passage, not of a judgement
                        merged[str(row["merged"])] = str(row["into"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is damaged ({error}); run ingest prepare again") from None
        return {passage_id: into for passage_id, into in merged.items() if passage_id != into}

    def _batches(
        self, name: str, schema: pa.Schema, batch_size: int
    ) -> Iterator[list[dict[str, Any]]]:
        path = self.path / name
        try:
            file = pq.ParquetFile(path)
            stored = file.schema_arrow
        except DAMAGE as error:
            raise _damaged(path, error) from None
        with file:
            if (stored.names, stored.types) != (schema.names, schema.types):
                raise DataError(
                    f"{path} has columns {_columns(stored)}, expected {_columns(schema)}; "
                    "run ingest prepare again"
                )
            batches = file.iter_batches(batch_size=batch_size)
            while True:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        return
                    batch.validate(full=True)
                    rows = batch.to_pylist()
                except (
                    OSError,
                    SystemError,
                    MemoryError,
                    pa.ArrowException,
                    UnicodeDecodeError,
                ) as error:
                    raise _damaged(path, error) from None
                if nulls := [column.name for column in schema if batch[column.name].null_count]:
                    raise DataError(
                        f"{path} has a row without {nulls[0]}; run ingest prepare again"
                    )
                yield rows


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{path} cannot be read as Parquet ({reason}); run ingest prepare again")


def _check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest that lacks what readers rely on.

    Raises:
        DataError: a key is missing or of another kind than the writer makes it.
    """
    try:
        _Manifest.model_validate(manifest, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise DataError(
            f"{path / 'manifest.json'} is broken at {where} ({first['msg'][:80]}); "
            "run ingest prepare again"
        ) from None


def _fields_fault(fields: Any) -> str | None:
    """Return what is wrong with a passage's fields, in words that follow its name."""
    if not isinstance(fields, dict):
        return "has fields that are no JSON object"
    fault = storage_fault(fields)
    return f"has fields of which one {fault}" if fault else None


def _no_data(path: Path) -> str:
    """Return why a path holds no DATA, and what makes some."""
    if (path / "card.json").is_file():
        return f"{path} is not a DATA folder but a bundle; are DATA and BUNDLE swapped?"
    if path.is_file():
        advice = f"ingest prepare {path} --out {path.with_suffix('') if path.suffix else 'DATA'}"
        return f"{path} is not a DATA folder but a file; make DATA of it first: {advice}"
    if not path.exists():
        return (
            f"{path} is not a DATA folder (there is no such folder); make one with: "
            f"ingest prepare SOURCE --out {path}"
        )
    if any(path.glob("*.partial")):
        return f"{path} is not a DATA folder (unfinished); run ingest prepare again"
    return (
        f"{path} is not a DATA folder (no manifest.json in it); make one of it with: "
        f"ingest prepare {path} --out DATA"
    )


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name} {column.type}" for column in schema)
