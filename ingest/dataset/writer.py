"""The writer of DATA (`models.data` says what is in the folder and reads it).

Beside the files that are read again, DATA holds the record of what did not get in as it came:

    DATA/rejected.jsonl   one {"reason", "where", "row"} per row that was set aside
    DATA/merged.jsonl     one {"merged", "into", "where", …} per passage with the title and text of
                          an earlier one, and per repeated judgement
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from two_tower.ingest.dataset.cleaning import clean, content_id, fingerprint, order_key
from two_tower.ingest.dataset.fields import FieldCensus, clean_fields
from two_tower.ingest.dataset.folder import MANIFEST, data_folder, require_free
from two_tower.ingest.dataset.ledger import Ledger
from two_tower.models.data import DATA_FORMAT, Passage, Qrel, Query
from two_tower.models.errors import DataError
from two_tower.models.language import ENGLISH
from two_tower.models.parquet import PASSAGES, QRELS, QUERIES
from two_tower.models.storable import storage_fault

_GROUP_ROWS = 16_384

_GROUP_CHARS = 16_000_000

Identity = Literal["content", "id", "hint"]
"""What makes two passages one.

content: the same title and text; an id that comes again with another text is refused.
id: the same id; without one, the same content, URL and fields.
hint: the same title and text; an id that is taken gives way to one made of the content.
"""

LARGEST_PASSAGE_BYTES = 28 * 2**20
"""In JSON; an engine takes 30 MiB for a point, and its vectors need some of them."""

LARGEST_CHARACTER = 6  # bytes in JSON, where it must be escaped

_INT32 = range(-(2**31), 2**31)


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


class DatasetWriter:
    """Write one DATA folder in one pass; the order of the records does not matter.

    Use it as a context manager: the folder appears complete at a clean exit, and not at all when
    the block raises. Identical passages are merged under the first one's id and their judgements
    follow. What cannot be used is set aside with a reason; nothing is dropped silently.

    Attributes:
        counts: what was written, as in the manifest; empty until the block has ended.
        notes: what the user should know about the source, a sentence each.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        source: str,
        details: Mapping[str, Any] | None = None,
        dev_fraction: float = 0.0,
        overwrite: bool = False,
        merge: bool | None = None,
        language: str = ENGLISH,
    ) -> None:
        """Refuse a path that must not be written; nothing is created yet.

        Args:
            path: the folder to make.
            source: what the rows come from, for the manifest.
            details: more about the source, for the manifest.
            dev_fraction: the share of the queries that becomes split `dev` (chosen by a hash of
                the query id) where `train` is the only split of the source; 0 leaves them.
            overwrite: replace a complete DATA folder.
            merge: whether passages with the title and text of an earlier one are merged with it,
                whatever their source says; None for what it says.
            language: of the texts, for the manifest.

        Raises:
            DataError: the path holds DATA and `overwrite` is off, or something that is not DATA.
        """
        if not 0 <= dev_fraction < 1:
            raise ValueError(f"dev_fraction is {dev_fraction}, expected 0 <= dev_fraction < 1")
        self._path = Path(path).resolve()
        require_free(self._path, overwrite=overwrite)
        self._source = {"name": source, **(details or {})}
        self._dev_fraction = dev_fraction
        self._merge = merge
        self._language = language
        self.counts: dict[str, Any] = {}
        self.notes: list[str] = []
        self._rejected: Counter[str] = Counter()
        self._first_rejected: dict[str, str] = {}
        self._left_out: Counter[str] = Counter()
        self._merged: Counter[str] = Counter()
        self._census = FieldCensus()

    def __enter__(self) -> Self:
        with ExitStack() as files:
            self._files = files
            self._work = files.enter_context(data_folder(self._path))
            self._passages = self._parquet("passages", PASSAGES)
            self._queries = self._parquet("queries", QUERIES)
            self._ledger = Ledger(self._work / "ledger.sqlite")
            files.callback(self._ledger.close)
            self._rejected_file = self._jsonl("rejected")
            self._merged_file = self._jsonl("merged")
            self._files = files.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            with self._files:
                self._finish()
        else:
            self._files.__exit__(kind, error, trace)

    def add_passage(
        self, passage: Passage, *, where: str = "", identity: Identity = "content"
    ) -> str | None:
        """Write a passage unless it is known; an empty id gets one made of the content.

        Args:
            passage: as it came.
            where: `file:line` or the like, for the record of what was set aside.
            identity: what makes it the same as an earlier one, where the writer merges as the
                source says.

        Returns:
            The id under which the content is stored, or None where the passage was set aside.
        """
        if reason := _fault(passage):
            self.reject(reason=reason, where=where, row=_row(passage))
            return None
        text, title, url = clean(passage.text or ""), clean(passage.title), clean(passage.url)
        own_id, fields = clean(passage.passage_id), clean_fields(passage.fields)
        if reason := _unstorable(fields, title, text, url):
            self.reject(reason=reason, where=where, row=_row(passage))
            return None
        dumped = json.dumps(fields, ensure_ascii=False, sort_keys=True) if fields else ""
        passage_id, stored_id, is_new = self._claim(own_id, (title, text), (url, dumped), identity)
        if is_new:
            self._census.add(fields)
            self._passages.add((passage_id, title, text, url, dumped))
        elif stored_id is None:
            reason = "passage: its id belongs to another passage"
            self.reject(reason=reason, where=where, row=_row(passage))
        else:
            more = {"where": where, "url": url, "fields": fields}
            self._record_merge("passages", passage_id, stored_id, more)
        return stored_id

    def _claim(
        self, own_id: str, content: tuple[str, str], more: tuple[str, str], identity: Identity
    ) -> tuple[str, str | None, bool]:
        """Return a passage's id, the one it is stored under (None: refused), whether it is new."""
        if self._merge is False:
            passage_id = own_id or content_id("p", *content)
            return passage_id, *self._ledger.claim_passage(passage_id, fingerprint(passage_id))
        apart = identity == "id" and self._merge is None
        candidates = [own_id or content_id("p", *content)]
        if not own_id and apart:  # the same text with other fields is another passage
            candidates.append(content_id("p", *content, *more))
        if own_id and identity == "hint":
            candidates.append(content_id("p", *content))
        stored_id, is_new, passage_id = None, False, ""
        for passage_id in candidates:
            about = (*content, *(() if own_id else more), passage_id) if apart else content
            stored_id, is_new = self._ledger.claim_passage(passage_id, fingerprint(*about))
            if stored_id is not None:
                break
        return passage_id, stored_id, is_new

    def add_query(self, query: Query, *, where: str = "") -> str | None:
        """Write a query unless it is known; an empty id gets one made of the text.

        Returns:
            The query's id, or None where the query was set aside.
        """
        if not isinstance(query.query_id, str) or not isinstance(query.text, str):
            reason = "query: not a string"
        elif not (text := clean(query.text)):
            reason = "query: empty text"
        else:
            query_id = clean(query.query_id) or content_id("q", text)
            stored_id, is_new = self._ledger.claim_query(query_id, text)
            if is_new:
                self._queries.add((query_id, text))
            if stored_id is not None:
                return stored_id
            reason = "query: its id belongs to another query"
        self.reject(reason=reason, where=where, row=query._asdict())
        return None

    def add_qrel(self, qrel: Qrel, *, where: str = "") -> None:
        """Record a judgement; its query and passage may come later."""
        relevance = qrel.relevance
        if isinstance(relevance, bool) or not isinstance(relevance, int):
            reason = "judgement: relevance is not an integer"
        elif relevance not in _INT32:
            reason = "judgement: relevance out of range"
        elif not all(isinstance(part, str) for part in (*qrel[:2], qrel.split)):
            reason = "judgement: id or split is not a string"
        else:
            ids = (clean(qrel.query_id), clean(qrel.passage_id))
            self._ledger.record_qrel(Qrel(*ids, relevance, clean(qrel.split)), where)
            return
        self.reject(reason=reason, where=where, row=qrel._asdict())

    def reject(self, *, reason: str, where: str, row: Any) -> None:
        """Set a row aside as it came; rows are counted by `reason`, a short constant text."""
        self._rejected[reason] += 1
        self._first_rejected.setdefault(reason, where)
        entry = {"reason": reason, "where": where, "row": row}
        try:  # in ASCII, because a rejected row may hold what UTF-8 cannot
            line = json.dumps(entry, default=str)
        except (RecursionError, ValueError, TypeError):  # too deep, in a circle, with odd keys
            line = json.dumps({**entry, "row": None})
        self._rejected_file.write(line + "\n")

    @property
    def reasons(self) -> list[str]:
        """Why rows were set aside so far, each reason once."""
        return list(self._rejected)

    def keep_merged(self, merged: Mapping[str, str]) -> None:
        """Keep which ids stand for which in the DATA that this is made from: `merged_ids`."""
        for passage_id, into in merged.items():
            self._merged_file.write(json.dumps({"merged": passage_id, "into": into}) + "\n")

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count what the source itself decided not to use, without a record of each."""
        self._left_out[reason] += count

    def note(self, text: str) -> None:
        """Keep a sentence about the source for the user."""
        self.notes.append(text)

    @property
    def has_judgements(self) -> bool:
        """Whether any judgement has been recorded."""
        return bool(self._ledger.splits())

    def _record_merge(self, kind: str, merged: str, into: str, more: Mapping[str, Any]) -> None:
        self._merged[kind] += 1
        entry = {"merged": merged, "into": into, **more}
        self._merged_file.write(json.dumps(entry) + "\n")

    def _finish(self) -> None:
        self._passages.close()
        self._queries.close()
        if not self._passages.row_count:
            raise DataError(f"{self._source['name']} gave no passage{self._main_reason('')}")
        fraction = self._dev_fraction if self._ledger.splits() == {"train"} else 0.0
        self._resolve_qrels(fraction)
        qrels = self._parquet("qrels", QRELS)
        splits: Counter[str] = Counter()
        for qrel in self._ledger.stored_qrels():
            qrels.add(qrel)
            splits[qrel.split] += 1
        qrels.close()
        if not splits and (why := self._main_reason("judgement")):
            raise DataError(f"no judgement of {self._source['name']} can be used{why}")
        self.counts = self._count(splits)
        digests = [self._passages.digest, self._queries.digest, qrels.digest]
        if self._language != ENGLISH:  # as it was before there were others
            digests.append(self._language.encode())
        manifest = {
            "format": DATA_FORMAT,
            "source": self._source,
            "language": self._language,
            "content_hash": hashlib.sha256(b"".join(digests)).hexdigest(),
            "counts": self.counts,
            "fields": self._census.report(),
            "dev_fraction": fraction,
        }
        # Last, because its presence means complete.
        for split in sorted(set(splits) - set(self.counts["labelled_queries"])):
            self.note(
                f"split {split} has {splits[split]:,} judgements, none of them above 0: there is "
                "no answer in it"
            )
        text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n"
        (self._work / MANIFEST).write_text(text, encoding="utf-8")

    def _resolve_qrels(self, dev_fraction: float) -> None:
        for qrel, where, stored_id, has_query in self._ledger.resolve_qrels():
            if stored_id is None or not has_query:
                reason = f"judgement: unknown {'passage' if has_query else 'query'}"
                self.reject(reason=reason, where=where, row=qrel._asdict())
                continue
            query_id = qrel.query_id
            split = "dev" if is_dev(query_id, dev_fraction) else qrel.split
            if not self._ledger.store_qrel(qrel._replace(passage_id=stored_id, split=split)):
                pair = (f"{query_id} {qrel.passage_id}", f"{query_id} {stored_id}")
                more = {"where": where, "relevance": qrel.relevance, "split": split}
                self._record_merge("judgements", *pair, more)

    def _main_reason(self, kind: str) -> str:
        counts = [(n, reason) for reason, n in self._rejected.items() if reason.startswith(kind)]
        if not counts:
            return ""
        count, reason = max(counts)
        return f" ({count} x {reason}; first at {self._first_rejected[reason]})"

    def _count(self, splits: Mapping[str, int]) -> dict[str, Any]:
        return {
            "passages": self._passages.row_count,
            "queries": self._queries.row_count,
            "qrels": dict(sorted(splits.items())),
            "labelled_queries": self._ledger.labelled_queries(),
            "unlabelled_queries": self._ledger.unlabelled_query_count(),
            "merged": self._merged["passages"],
            "merged_qrels": self._merged["judgements"],
            "rejected": dict(sorted(self._rejected.items())),
            "left_out": dict(sorted(self._left_out.items())),
        }

    def _parquet(self, name: str, schema: pa.Schema) -> ParquetStream:
        table = ParquetStream(self._work / f"{name}.parquet", schema)
        self._files.callback(table.close)
        return table

    def _jsonl(self, name: str) -> TextIO:
        path = self._work / f"{name}.jsonl"
        return self._files.enter_context(path.open("w", encoding="utf-8"))


def is_dev(query_id: str, dev_fraction: float) -> bool:
    """Say whether a query belongs to the share kept for `dev`: a hash of its id decides."""
    return order_key(query_id) < dev_fraction * 2**64


def _row(passage: Passage) -> dict[str, Any]:
    """Return a passage as DATA has it."""
    return {name: getattr(passage, name) for name in PASSAGES.names}


def _unstorable(fields: Mapping[str, Any], *texts: str) -> str | None:
    """Return why no engine could keep a passage, None where one can."""
    if fault := storage_fault(fields):
        return f"passage: a field {fault}"
    if sum(map(len, texts)) * LARGEST_CHARACTER > LARGEST_PASSAGE_BYTES:
        size = len(json.dumps([*texts, fields]))
    else:
        size = 0 if not fields else len(json.dumps(fields))
    if size > LARGEST_PASSAGE_BYTES:
        return f"passage: more than {LARGEST_PASSAGE_BYTES:,} bytes, which no engine takes at once"
    return None


def _fault(passage: Passage) -> str | None:
    """Return why a passage cannot be used, None where it can."""
    text: object = passage.text  # as it came
    if text is not None and not isinstance(text, str):
        return "passage: text is not a string"
    others = (passage.passage_id, passage.title, passage.url)
    if not all(isinstance(value, str) for value in others):
        return "passage: id, title or url is not a string"
    if not clean(passage.text or "") and not clean(passage.title):
        return "passage: empty text"
    return None
