"""Rows as in `microsoft/ms_marco`, from local files, or from the Hub through `datasets`.

A row is a query with its passages (`passages.passage_text`, `.url`, `.is_selected`). All of them go
to the corpus, the selected ones answer the query. Queries with none selected are kept, unlabelled;
so are those whose marks are hidden (-1, as in the test split of v2.1).
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from two_tower.ingest.dataset.cleaning import one_line
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.folders import tell_unread
from two_tower.ingest.sources.rows import column_names, ending, first_rows, read_rows
from two_tower.ingest.sources.splits import split_name, split_of_file
from two_tower.ingest.sources.totals import row_total
from two_tower.ingest.sources.values import as_content, as_id, as_mark, as_text
from two_tower.models.data import Passage, Qrel, Query
from two_tower.models.errors import DataError
from two_tower.models.progress import progress

DEFAULT_ID = "microsoft/ms_marco"

DEFAULT_CONFIG = "v1.1"

_HUB_TIMEOUT_S = 20

_COLUMNS = frozenset({"query", "query_id", "passages"})

_PARTS = ("passage_text", "url", "is_selected")


class MsMarco:
    """Rows of the MS MARCO schema as a source."""

    def __init__(
        self, name: str, *, config: str | None = None, files: list[Path] | None = None
    ) -> None:
        """Say where the rows are: in `files`, or on the Hub under `name` and `config`."""
        self.name = name
        self._config = config
        self._files = files
        self._judged: Counter[str] = Counter()  # split -> rows that show a mark
        self._hidden: Counter[str] = Counter()  # split -> rows that show none
        self.details: Mapping[str, Any] = {"kind": "ms_marco"} | (
            {"config": config} if files is None else {"files": [file.name for file in files]}
        )

    @staticmethod
    def fits(files: list[Path]) -> bool:
        """Say whether tables all have this schema."""
        return all(
            ending(file) not in (".csv", ".tsv", ".tab") and set(column_names(file)) >= _COLUMNS
            for file in files
        ) and all(
            isinstance(row.values.get("passages"), dict | list)
            for file in files
            for row in first_rows(file)[:1]
        )

    def write_to(self, writer: DatasetWriter) -> None:
        """Write the passages, queries and judgements of all splits.

        Raises:
            DataError: the Hub cannot be reached, or the rows are of another schema.
        """
        if self._files is not None:
            for file in self._files:
                root = Path(self.name)
                split = split_of_file(file, inside=root if root.is_dir() else None) or "train"
                for row in progress(
                    read_rows(file, writer.reject), label=file.name, total=row_total(file)
                ):
                    self._write_row(row.values, writer, split=split, where=row.where)
            tell_unread(Path(self.name), self._files, writer)
        else:
            with tempfile.TemporaryDirectory() as cache:
                for label, rows in self._load(cache).items():
                    split = split_name(label)
                    guarded = progress(self._guarded(rows), label=f"rows {split}")
                    for number, values in enumerate(guarded, 1):
                        where = f"{label} row {number}"
                        self._write_row(values, writer, split=split, where=where)
        for split, rows in sorted(self._hidden.items()):
            if not self._judged[split]:
                writer.note(
                    f"split {split} hides its judgements: in none of its {rows:,} rows does "
                    "is_selected say 0 or 1; its queries are in, without answers"
                )

    def _load(self, cache: str) -> Mapping[str, Any]:
        import datasets

        datasets.disable_progress_bars()
        # A dead line should end in minutes, not in the library's 20 tries for each block.
        datasets.config.STREAMING_READ_MAX_RETRIES = 3
        try:
            _ask_hub(self.name)
            return dict(
                datasets.load_dataset(self.name, self._config, streaming=True, cache_dir=cache)
            )
        except Exception as error:  # whatever the Hub client and its HTTP library raise
            raise self._failure(error) from None

    def _guarded(self, rows: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from rows
        except Exception as error:  # as above; errors of the consumer do not come through here
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> DataError:
        reason = one_line(f"{type(error).__name__}: {error}")
        return DataError(
            f"{self.name} is no file or folder here and cannot be read from the Hugging Face Hub "
            f"({reason}); give the path of a local copy: ingest prepare PATH --out DATA"
        )

    def _write_row(
        self, row: dict[str, Any], writer: DatasetWriter, *, split: str, where: str
    ) -> None:
        if not set(row) >= _COLUMNS:
            raise DataError(
                f"{where} has columns {one_line(', '.join(row))}; expected those of MS MARCO: "
                "query, query_id, passages"
            )
        passages = _read_passages(row["passages"])
        if passages is None:
            reason = "row: passages are not texts, urls and is_selected of one length"
            writer.reject(reason=reason, where=where, row=row)
            return
        text: Any = as_content(row["query"])
        query_id = writer.add_query(Query(as_id(row["query_id"]), text), where=where)
        if passages:
            is_judged = any(mark is not None for _, mark in passages)
            (self._judged if is_judged else self._hidden)[split] += 1
        for passage, mark in passages:
            passage_id = writer.add_passage(passage, where=where)
            if mark and query_id and passage_id:
                writer.add_qrel(Qrel(query_id, passage_id, 1, split), where=where)


def _ask_hub(name: str) -> None:
    """Fail at once where the Hub cannot be reached: `load_dataset` would try for half a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_S)


def _read_passages(value: Any) -> list[tuple[Passage, bool | None]] | None:
    """Return passages and whether each is selected, None for a hidden mark.

    Their form is a struct of lists (the Hub's) or a list of structs (what some exports make); None
    for any other.
    """
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {part: [item.get(part) for item in value] for part in _PARTS}
    if not isinstance(value, dict):
        return None
    texts, urls, selected = (value.get(part) for part in _PARTS)
    if not isinstance(texts, list):
        return None
    selected = [None] * len(texts) if selected is None else selected
    if not isinstance(selected, list):
        return None
    urls = [as_text(url) for url in urls] if isinstance(urls, list) else [""] * len(texts)
    if not len(texts) == len(urls) == len(selected):
        return None
    try:
        marks = [as_mark(mark) for mark in selected]
    except ValueError:
        return None
    return [
        (Passage("", as_content(text), url=url, fields={"domain": _domain(url)}), mark)
        for text, url, mark in zip(texts, urls, marks, strict=True)
    ]


def _domain(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return ""
