"""Rows as in `microsoft/ms_marco`, from the Hub or from local files, through `datasets`.

A row is a query with its passages (`passages.passage_text`, `.url`, `.is_selected`). All of them go
to the corpus, the selected ones answer the query. Queries with none selected are kept, unlabelled.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from two_tower.ingest.dataset.cleaning import one_line
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.rows import as_id, split_name
from two_tower.ingest.sources.tables import column_names
from two_tower.models.console import progress
from two_tower.models.data import Passage, Qrel, Query
from two_tower.models.errors import DataError

DEFAULT_ID = "microsoft/ms_marco"

DEFAULT_CONFIG = "v1.1"

_HUB_TIMEOUT_S = 20

_COLUMNS = frozenset({"query", "query_id", "passages"})

_PARTS = ("passage_text", "url", "is_selected")

# Beginnings of file names
_SPLIT_FILES = ("train", "validation", "dev", "test")

# End of a file's name -> what `datasets` calls its format
_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".jsonl.gz": "json"}


class MsMarco:
    """Rows of the MS MARCO schema as a source."""

    def __init__(
        self, name: str, *, config: str | None = None, files: list[Path] | None = None
    ) -> None:
        """Say where the rows are: in `files`, or on the Hub under `name` and `config`."""
        self.name = name
        self._config = config
        self._files = files
        self.details: Mapping[str, Any] = {"kind": "ms_marco"} | (
            {"config": config} if files is None else {"files": [file.name for file in files]}
        )

    @staticmethod
    def fits(files: list[Path]) -> bool:
        """Say whether tables are of one format and all have this schema."""
        formats = {_format(file) for file in files}
        return (
            len(formats) == 1
            and None not in formats
            and all(set(column_names(file)) >= _COLUMNS for file in files)
        )

    def write_to(self, writer: DatasetWriter) -> None:
        """Write the passages, queries and judgements of all splits.

        Raises:
            DataError: the Hub cannot be reached, or the rows are of another schema.
        """
        with tempfile.TemporaryDirectory() as cache:
            for label, rows in self._load(cache).items():
                split = split_name(label)
                guarded = progress(self._guarded(rows), label=f"rows {split}")
                for number, row in enumerate(guarded, 1):
                    _write_row(row, writer, split=split, where=f"{label} row {number}")

    def _load(self, cache: str) -> Mapping[str, Any]:
        import datasets

        datasets.disable_progress_bars()
        # A dead line should end in minutes, not in the library's 20 tries for each block.
        datasets.config.STREAMING_READ_MAX_RETRIES = 3
        options: dict[str, Any] = {"streaming": True, "cache_dir": cache}
        try:
            if self._files is None:
                _ask_hub(self.name)
                return dict(datasets.load_dataset(self.name, self._config, **options))
            files: dict[str, list[str]] = {}
            for file in self._files:
                begins = file.name.lower().startswith
                label = next((name for name in _SPLIT_FILES if begins(name)), "train")
                files.setdefault(label, []).append(str(file))
            format_ = _format(self._files[0])
            return dict(datasets.load_dataset(format_, data_files=files, **options))
        except Exception as error:  # whatever the Hub client and its HTTP library raise
            raise self._failure(error) from None

    def _guarded(self, rows: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from rows
        except Exception as error:  # as above; errors of the consumer do not come through here
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> DataError:
        reason = one_line(f"{type(error).__name__}: {error}")
        if self._files is not None:
            return DataError(f"{self.name} cannot be read as rows of MS MARCO ({reason})")
        return DataError(
            f"{self.name} is no file or folder here and cannot be read from the Hugging Face Hub "
            f"({reason}); give the path of a local copy: ingest prepare PATH --out DATA"
        )


def _ask_hub(name: str) -> None:
    """Fail at once where the Hub cannot be reached: `load_dataset` would try for half a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_S)


def _format(file: Path) -> str | None:
    return next((name for end, name in _FORMATS.items() if file.name.endswith(end)), None)


def _write_row(row: dict[str, Any], writer: DatasetWriter, *, split: str, where: str) -> None:
    if not set(row) >= _COLUMNS:
        raise DataError(
            f"{where} has columns {', '.join(row)}; expected those of MS MARCO: "
            "query, query_id, passages"
        )
    passages = _read_passages(row["passages"])
    if passages is None:
        reason = "row: passages are not texts, urls and is_selected of one length"
        writer.reject(reason=reason, where=where, row=row)
        return
    query_id = writer.add_query(Query(as_id(row["query_id"]), row["query"]), where=where)
    for passage, is_selected in passages:
        passage_id = writer.add_passage(passage, where=where)
        if is_selected and query_id and passage_id:
            writer.add_qrel(Qrel(query_id, passage_id, 1, split), where=where)


def _read_passages(value: Any) -> list[tuple[Passage, bool]] | None:
    """Return passages and whether each is selected.

    Their form is a struct of lists (the Hub's) or a list of structs (what some exports make); None
    for any other.
    """
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {part: [item.get(part) for item in value] for part in _PARTS}
    if not isinstance(value, dict):
        return None
    texts, urls, selected = (value.get(part) for part in _PARTS)
    if not isinstance(texts, list) or not isinstance(selected, list):
        return None
    urls = [str(url or "") for url in urls] if isinstance(urls, list) else [""] * len(texts)
    if not len(texts) == len(urls) == len(selected):
        return None
    return [
        (Passage("", text, url=url, fields={"domain": _domain(url)}), bool(mark))
        for text, url, mark in zip(texts, urls, selected, strict=True)
    ]


def _domain(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return ""
