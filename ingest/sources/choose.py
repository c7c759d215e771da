"""From what a user types as SOURCE to something that writes records."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from two_tower.ingest.dataset.folder import MANIFEST
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.beir import BeirFolder
from two_tower.ingest.sources.long_documents import LongDocuments, SplitConfig
from two_tower.ingest.sources.ms_marco import DEFAULT_CONFIG, DEFAULT_ID, MsMarco
from two_tower.ingest.sources.python_docs import PythonDocs
from two_tower.ingest.sources.tables import SUFFIXES, Columns, Tables, column_names
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.text.bm25 import Analyzer

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_EXPECTED = (
    "expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/), tables "
    "(.jsonl, .csv, .tsv, .parquet), a Hub id such as microsoft/ms_marco, or python-docs"
)


class Source(Protocol):
    """Where records come from.

    Attributes:
        name: what the user called it.
        details: more for the manifest.
    """

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def details(self) -> Mapping[str, Any]:
        """More about it, for the manifest."""

    def write_to(self, writer: DatasetWriter) -> None:
        """Write all records.

        Raises:
            DataError: the source cannot be read.
        """


@dataclass(frozen=True)
class SourceOptions:
    """What a user may say about a source beside its name."""

    config: str | None = None
    columns: Columns = field(default_factory=Columns)
    limit: int | None = None
    split: SplitConfig | None = None
    analyzer: Analyzer | None = None  # goes with `split`


def open_source(spec: str, options: SourceOptions) -> Source:
    """Find out what `spec` means; nothing but the heads of files is read yet.

    Args:
        spec: `python-docs`, a file, a folder (DATA to be split among them), or a dataset id on the
            Hugging Face Hub.
        options: those that the kind of source takes.

    Raises:
        DataError: there is no such source, or it is of no known kind.
        ConfigError: an option that this kind of source does not take.
    """
    if spec == PythonDocs.name:
        _refuse(options, spec, takes="limit")
        return PythonDocs(limit=options.limit)
    path = Path(spec)
    if not path.exists():
        return _hub(spec, options)
    if (path / MANIFEST).is_file() and (path / "passages.parquet").is_file():
        if options.split is None:
            raise ConfigError(
                f"{spec} is DATA already; --passage-words N cuts its long texts into passages"
            )
        _refuse(options, spec, takes="split")
        if options.analyzer is None:
            raise ValueError("split is given without an analyzer")
        return LongDocuments(path, options.split, options.analyzer)
    if path.is_dir() and BeirFolder.fits(path):
        _refuse(options, spec, takes="")
        return BeirFolder(path)
    files = _table_files(path)
    if options.columns == Columns() and _is_ms_marco(files):
        _refuse(options, spec, takes="")
        return MsMarco(spec, files=files)
    _refuse(options, spec, takes="columns")
    return Tables(spec, files, options.columns)


def _hub(spec: str, options: SourceOptions) -> MsMarco:
    # `data/rows` with a folder `data` here is a misspelt path, not somebody's dataset.
    if not _HUB_ID.fullmatch(spec) or Path(spec).parent.exists():
        raise DataError(f"no file or folder {spec}; {_EXPECTED}")
    _refuse(options, spec, takes="config")
    default = DEFAULT_CONFIG if spec == DEFAULT_ID else None
    return MsMarco(spec, config=options.config or default)


def _table_files(path: Path) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    tables = [file for file in files if file.name.endswith(SUFFIXES) and file.is_file()]
    if not tables:
        names = ", ".join(file.name for file in files[:5]) or "nothing"
        raise DataError(f"{path} is of no known kind (found: {names}); {_EXPECTED}")
    return tables


def _is_ms_marco(files: list[Path]) -> bool:
    kinds = {MsMarco.kind_of(file) for file in files}
    return (
        len(kinds) == 1
        and None not in kinds
        and all(MsMarco.fits(column_names(file)) for file in files)
    )


def _refuse(options: SourceOptions, spec: str, *, takes: str) -> None:
    given = {
        "--config": ("config", options.config is not None),
        "--*-column": ("columns", options.columns != Columns()),
        "--limit": ("limit", options.limit is not None),
    }
    for flag, (name, is_given) in given.items():
        if is_given and name != takes:
            raise ConfigError(f"{flag} does not apply to {spec}; leave it out")
    if options.split is not None and takes != "split":
        raise ConfigError(
            f"--passage-words does not apply to {spec}; make DATA of it first, then: "
            "ingest prepare DATA --out PASSAGES --passage-words N"
        )
