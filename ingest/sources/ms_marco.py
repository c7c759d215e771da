"""Rows as in `microsoft/ms_marco`, from the Hub or from local files, through `datasets`.

A row is a query with its passages (`passages.passage_text`, `.url`, `.is_selected`). All of them go
to the corpus, the selected ones answer the query. Queries with none selected are kept, unlabelled.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from two_tower.ingest.dataset.cleaning import one_line
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.rows import as_id, split_name
from two_tower.models.console import progress
from two_tower.models.data import Passage, Qrel, Query
from two_tower.models.errors import DataError

DEFAULT_ID = "microsoft/ms_marco"

DEFAULT_CONFIG = "v1.1"

_HUB_TIMEOUT_S = 20

_COLUMNS = frozenset({"query", "query_id", "passages"})

_PARTS = ("passage_text", "url", "is_selected")


class MsMarco:
    """Rows of the MS MARCO schema as a source.

    Attributes:
        name: the Hub id or the path.
        details: the kind of source and its config or files, for the manifest.
    """

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
    def kind_of(file: Path) -> str | None:
        """Return what `datasets` calls the format of a file, None where it may not hold rows."""
        kinds = {".parquet": "parquet", ".jsonl": "json", ".jsonl.gz": "json"}
        return next((kind for end, kind in kinds.items() if file.name.endswith(end)), None)

    @staticmethod
    def fits(columns: list[str]) -> bool:
        """Say whether a table has this schema."""
        return set(columns) >= _COLUMNS

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
        how: dict[str, Any] = {"streaming": True, "cache_dir": cache}
        try:
            if self._files is None:
                _ask_hub(self.name)
                return dict(datasets.load_dataset(self.name, self._config, **how))
            files: dict[str, list[str]] = {}
            for file in self._files:
                files.setdefault(_split_of(file), []).append(str(file))
            kind = self.kind_of(self._files[0])
            return dict(datasets.load_dataset(kind, data_files=files, **how))
        except Exception as error:  # whatever the Hub client and its HTTP library raise
            raise self._failure(error) from None

    def _guarded(self, rows: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from rows
        except Exception as error:  # as above; errors of the consumer do not come through here
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> DataError:
        found = one_line(f"{type(error).__name__}: {error}")
        if self._files is not None:
            return DataError(f"{self.name} cannot be read as rows of MS MARCO ({found})")
        return DataError(
            f"{self.name} is no file or folder here and cannot be read from the Hugging Face Hub "
            f"({found}); give the path of a local copy: ingest prepare PATH --out DATA"
        )


def _ask_hub(name: str) -> None:
    """Fail at once where the Hub cannot be reached: `load_dataset` would try for half a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_S)


class _Found(NamedTuple):
    text: Any
    url: str
    is_selected: bool


def _write_row(row: dict[str, Any], writer: DatasetWriter, *, split: str, where: str) -> None:
    if not MsMarco.fits(list(row)):
        raise DataError(
            f"{where} has columns {', '.join(row)}; expected those of MS MARCO: "
            "query, query_id, passages"
        )
    found = _passages(row["passages"])
    if found is None:
        reason = "row: passages are not texts, urls and is_selected of one length"
        writer.reject(reason=reason, where=where, row=row)
        return
    query_id = writer.add_query(Query(as_id(row["query_id"]), row["query"]), where=where)
    for text, url, is_selected in found:
        passage = Passage("", text, url=url, fields={"domain": _domain(url)})
        passage_id = writer.add_passage(passage, where=where)
        if is_selected and query_id and passage_id:
            writer.add_qrel(Qrel(query_id, passage_id, 1, split), where=where)


def _passages(value: Any) -> list[_Found] | None:
    """Accept a struct of lists (the Hub's form) or a list of structs (what some exports make)."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {part: [item.get(part) for item in value] for part in _PARTS}
    if not isinstance(value, dict):
        return None
    columns = [value.get(part) for part in _PARTS]
    texts, urls, selected = columns
    if not isinstance(texts, list) or not isinstance(selected, list):
        return None
    urls = urls if isinstance(urls, list) else [""] * len(texts)
    if not len(texts) == len(urls) == len(selected):
        return None
    rows = zip(texts, urls, selected, strict=True)
    return [_Found(text, str(url or ""), bool(mark)) for text, url, mark in rows]


def _domain(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return ""


def _split_of(file: Path) -> str:
    known = ("train", "validation", "dev", "test")
    return next((name for name in known if file.name.lower().startswith(name)), "train")
