"""The writer of DATA (`models.data` says what is in the folder and reads it).

Beside the files that are read again, DATA holds the record of what did not get in as it came:

    DATA/rejected.jsonl   one {"reason", "where", "row"} per row that was set aside
    DATA/merged.jsonl     one {"merged", "into", "where", …} per passage with the title and text of
                          an earlier one, and per repeated judgement
"""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from two_tower.ingest.dataset.cleaning import clean, content_id, fingerprint, order_key
from two_tower.ingest.dataset.fields import FieldCensus, clean_fields, dump_fields
from two_tower.ingest.dataset.folder import WorkFolder
from two_tower.ingest.dataset.ledger import Ledger, ResolvedQrel
from two_tower.models.data import FORMAT, PASSAGES, QRELS, QUERIES, Passage, Qrel, Query
from two_tower.models.errors import DataError

_GROUP_ROWS = 16_384

_GROUP_CHARS = 16_000_000


class ParquetStream:
    """Write rows in groups that are bounded in rows and in characters.

    Attributes:
        row_count: rows added so far.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._columns: list[list[str | int]] = [[] for _ in schema]
        self._chars = 0
        self._hash = hashlib.sha256()
        self.row_count = 0

    @property
    def digest(self) -> bytes:
        """SHA-256 of all rows in their order (the values hold no NUL: it ends each of them)."""
        return self._hash.digest()

    def add(self, row: Sequence[str | int]) -> None:
        """Add one row, its values in the order of the schema."""
        line = "\0".join(map(str, row))
        self._hash.update(line.encode() + b"\0")
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        self.row_count += 1
        self._chars += len(line)
        if len(self._columns[0]) >= _GROUP_ROWS or self._chars >= _GROUP_CHARS:
            self._flush()

    def close(self) -> None:
        """Write what is left and end the file; a second call does nothing."""
        if self._writer.is_open:
            self._flush()
            self._writer.close()

    def _flush(self) -> None:
        if self._columns[0]:
            self._writer.write_table(pa.table(self._columns, schema=self._schema))
        for column in self._columns:
            column.clear()
        self._chars = 0


_INT32 = range(-(2**31), 2**31)


class DatasetWriter:
    """Write one DATA folder in one pass; the order of the records does not matter.

    Use it as a context manager: the folder appears complete at a clean exit, and not at all when
    the block raises. Identical passages are merged under the first one's id and their judgements
    follow. What cannot be used is set aside with a reason; nothing is dropped silently.

    Attributes:
        rejected: reason -> number of rows set aside.
        counts: what was written; complete after the block, then equal to the manifest's counts.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        source: str,
        details: Mapping[str, Any] | None = None,
        dev_fraction: float = 0.0,
        overwrite: bool = False,
    ) -> None:
        """Refuse a path that must not be written; nothing is created yet.

        Args:
            path: the folder to make.
            source: what the rows come from, for the manifest.
            details: more about the source, for the manifest.
            dev_fraction: the share of the queries that becomes split `dev` (chosen by a hash of
                the query id) where `train` is the only split of the source; 0 leaves them.
            overwrite: replace a complete DATA folder.

        Raises:
            DataError: the path holds DATA and `overwrite` is off, or something that is not DATA.
        """
        if not 0 <= dev_fraction < 1:
            raise ValueError(f"dev_fraction is {dev_fraction}, expected 0 <= dev_fraction < 1")
        self._folder = WorkFolder(Path(path), overwrite=overwrite)
        self._source = {"name": source, **(details or {})}
        self._dev_fraction = dev_fraction
        self.rejected: Counter[str] = Counter()
        self.counts: dict[str, Any] = {}
        self._first: dict[str, str] = {}
        self._left_out: Counter[str] = Counter()
        self._merged: Counter[str] = Counter()
        self._census = FieldCensus()
        self._files = ExitStack()

    def __enter__(self) -> Self:
        work = self._folder.open()
        try:
            self._passages = self._parquet("passages", PASSAGES)
            self._queries = self._parquet("queries", QUERIES)
            self._ledger = Ledger(work / "ledger.sqlite")
            self._files.callback(self._ledger.close)
            self._rejected_file = self._jsonl("rejected")
            self._merged_file = self._jsonl("merged")
        except BaseException:
            with self._folder.finishing(), self._files:
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._folder.finishing():
            with self._files:
                if error is None:
                    self._finish()
                elif isinstance(error, OSError | sqlite3.Error):
                    raise error
            if error is None:
                self._folder.replace()

    def add_passage(self, passage: Passage, *, where: str = "") -> str | None:
        """Write a passage unless its content is known.

        Args:
            passage: an empty `passage_id` gets one made of the content.
            where: `file:line` or the like, for the record of what was set aside.

        Returns:
            The id under which the content is kept, or None where the passage was set aside.
        """
        reason = _unusable(passage)
        kept_id = None if reason else self._claim(passage, where)
        if kept_id is None:
            reason = reason or "passage: its id belongs to another passage"
            self.reject(reason=reason, where=where, row=passage._asdict())
        return kept_id

    def add_query(self, query: Query, *, where: str = "") -> str | None:
        """Write a query; one that repeats the id and text of an earlier one changes nothing.

        Args:
            query: an empty `query_id` gets one made of the text.
            where: `file:line` or the like.

        Returns:
            The query's id, or None where the query was set aside.
        """
        if not isinstance(query.query_id, str) or not isinstance(query.text, str):
            reason = "query: not a string"
        elif not (text := clean(query.text)):
            reason = "query: empty text"
        else:
            query_id = clean(query.query_id) or content_id("q", text)
            claim = self._ledger.claim_query(query_id, text)
            if claim.is_new:
                self._queries.add((query_id, text))
            if claim.kept_id is not None:
                return query_id
            reason = "query: its id belongs to another query"
        self.reject(reason=reason, where=where, row=query._asdict())
        return None

    def add_qrel(self, qrel: Qrel, *, where: str = "") -> None:
        """Record a judgement; its query and passage may come later.

        Args:
            qrel: the judgement.
            where: `file:line` or the like.
        """
        relevance = qrel.relevance
        if isinstance(relevance, bool) or not isinstance(relevance, int):
            reason = "judgement: relevance is not an integer"
        elif relevance not in _INT32:
            reason = "judgement: relevance out of range"
        elif not all(isinstance(part, str) for part in (*qrel[:2], qrel.split)):
            reason = "judgement: id or split is not a string"
        else:
            ids = (clean(qrel.query_id), clean(qrel.passage_id))
            self._ledger.add_qrel(Qrel(*ids, relevance, clean(qrel.split)), where)
            return
        self.reject(reason=reason, where=where, row=qrel._asdict())

    def reject(self, *, reason: str, where: str, row: Any) -> None:
        """Set a row aside.

        Args:
            reason: a short constant text; rows are counted by it.
            where: `file:line` or the like.
            row: the row as it came.
        """
        self.rejected[reason] += 1
        entry = {"reason": reason, "where": where, "row": row}
        # ASCII, because a rejected row may hold what UTF-8 cannot.
        self._first.setdefault(reason, where)
        self._rejected_file.write(json.dumps(entry, default=str) + "\n")

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count what the source itself decided not to use, without a record of each."""
        self._left_out[reason] += count

    def _claim(self, passage: Passage, where: str) -> str | None:
        text, title, url = clean(passage.text), clean(passage.title), clean(passage.url)
        passage_id = clean(passage.passage_id) or content_id("p", title, text)
        fields = clean_fields(passage.fields)
        claim = self._ledger.claim_passage(passage_id, fingerprint(title, text))
        if claim.is_new:
            self._census.add(fields)
            self._passages.add((passage_id, title, text, url, dump_fields(fields)))
        elif claim.kept_id is not None:
            more = {"where": where, "url": url, "fields": fields}
            self._merge("passages", passage_id, claim.kept_id, more)
        return claim.kept_id

    def _merge(self, kind: str, merged: str, into: str, more: Mapping[str, Any]) -> None:
        self._merged[kind] += 1
        entry = {"merged": merged, "into": into, **more}
        self._merged_file.write(json.dumps(entry) + "\n")

    def _finish(self) -> None:
        self._passages.close()
        self._queries.close()
        if not self._passages.row_count:
            raise DataError(f"{self._source['name']} gave no passage{self._main_reason('')}")
        fraction = self._dev_fraction if self._ledger.splits() == {"train"} else 0.0
        for resolved in self._ledger.resolve_qrels():
            self._keep(resolved, fraction)
        qrels = self._parquet("qrels", QRELS)
        splits: Counter[str] = Counter()
        for qrel in self._ledger.kept_qrels():
            qrels.add(qrel)
            splits[qrel.split] += 1
        qrels.close()
        if not splits and (why := self._main_reason("judgement")):
            raise DataError(f"no judgement of {self._source['name']} can be used{why}")
        self.counts = self._count(splits)
        parts = (self._passages.digest, self._queries.digest, qrels.digest)
        self._folder.write_manifest(
            {
                "format": FORMAT,
                "source": self._source,
                "content_hash": hashlib.sha256(b"".join(parts)).hexdigest(),
                "counts": self.counts,
                "fields": self._census.report(),
                "dev_fraction": fraction,
            }
        )

    def _keep(self, resolved: ResolvedQrel, dev_fraction: float) -> None:
        qrel, where, kept_id, has_query = resolved
        if kept_id is None or not has_query:
            reason = f"judgement: unknown {'passage' if has_query else 'query'}"
            self.reject(reason=reason, where=where, row=qrel._asdict())
            return
        split = "dev" if is_dev(qrel.query_id, dev_fraction) else qrel.split
        if not self._ledger.keep_qrel(qrel._replace(passage_id=kept_id, split=split)):
            pair = (f"{qrel.query_id} {qrel.passage_id}", f"{qrel.query_id} {kept_id}")
            more = {"where": where, "relevance": qrel.relevance, "split": split}
            self._merge("judgements", *pair, more)

    def _main_reason(self, kind: str) -> str:
        counts = [(n, reason) for reason, n in self.rejected.items() if reason.startswith(kind)]
        if not counts:
            return ""
        count, reason = max(counts)
        return f" ({count} x {reason}; first at {self._first[reason]})"

    def _count(self, splits: Mapping[str, int]) -> dict[str, Any]:
        return {
            "passages": self._passages.row_count,
            "queries": self._queries.row_count,
            "qrels": dict(sorted(splits.items())),
            "labelled_queries": self._ledger.labelled_queries(),
            "unlabelled_queries": self._ledger.unlabelled_query_count(),
            "merged": self._merged["passages"],
            "merged_qrels": self._merged["judgements"],
            "rejected": dict(sorted(self.rejected.items())),
            "left_out": dict(sorted(self._left_out.items())),
        }

    def _parquet(self, name: str, schema: pa.Schema) -> ParquetStream:
        table = ParquetStream(self._folder.work / f"{name}.parquet", schema)
        self._files.callback(table.close)
        return table

    def _jsonl(self, name: str) -> TextIO:
        path = self._folder.work / f"{name}.jsonl"
        return self._files.enter_context(path.open("w", encoding="utf-8"))


def is_dev(query_id: str, dev_fraction: float) -> bool:
    """Say whether a query belongs to the share kept for `dev`: a hash of its id decides."""
    return order_key(query_id) < dev_fraction * 2**64


def _unusable(passage: Passage) -> str | None:
    if not isinstance(passage.text, str):
        return "passage: empty text" if passage.text is None else "passage: text is not a string"
    if not clean(passage.text):
        return "passage: empty text"
    others = (passage.passage_id, passage.title, passage.url)
    if not all(isinstance(value, str) for value in others):
        return "passage: id, title or url is not a string"
    return None
