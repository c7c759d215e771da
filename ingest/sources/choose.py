"""From what a user types as SOURCE to something that writes records."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from two_tower.ingest.dataset.folder import MANIFEST
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.beir import BeirFolder
from two_tower.ingest.sources.click_log import ClickLog
from two_tower.ingest.sources.documents import TextDocuments, text_files
from two_tower.ingest.sources.folders import table_files
from two_tower.ingest.sources.long_documents import LongDocuments, SplitConfig
from two_tower.ingest.sources.ms_marco import DEFAULT_CONFIG, DEFAULT_ID, MsMarco
from two_tower.ingest.sources.python_docs import PythonDocs
from two_tower.ingest.sources.tables import Tables
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.text.bm25 import Analyzer
from two_tower.retriever.behaviour.reading import log_files

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

TEXTS_PER_TABLE = 10
"""In a folder with fewer text files, they are about its tables: README.md."""

_EXPECTED = (
    "expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/), tables "
    "(.jsonl, .csv, .tsv, .parquet), texts (.txt, .md), a log of `retriever serve --log`, a Hub id "
    "such as microsoft/ms_marco, or python-docs"
)


class Source(Protocol):
    """Where records come from: what the user called it, and more about it for the manifest."""

    name: str
    details: Mapping[str, Any]

    def write_to(self, writer: DatasetWriter) -> None:
        """Write all records.

        Raises:
            DataError: the source cannot be read.
        """


def open_source(
    spec: str,
    *,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    packages: Sequence[str] | None = None,
    whole: bool = False,
    split: tuple[SplitConfig, Analyzer] | None = None,
    texts: Collection[str] = (),
    corpus: Path | None = None,
) -> Source:
    """Find out what `spec` means; nothing but the heads of files is read yet.

    Args:
        spec: `python-docs`, a file, a folder (of texts, a log of searches, or DATA to be split,
            among others), or a dataset id on the Hugging Face Hub.
        config: of a Hub dataset.
        columns: role -> name of a table's column, where it is none of the usual names.
        limit: passages of python-docs at most.
        packages: of python-docs, beside the standard library.
        whole: take whole docstrings of python-docs, without queries.
        split: how to cut texts, or the documents of DATA, and what tells which part a judgement
            goes to.
        texts: fields that stay text, whatever the cells of CSV files hold.
        corpus: DATA with the passages that a log of searches showed.

    Raises:
        DataError: there is no such source, or it is of no known kind.
        ConfigError: an option that this kind of source does not take.
    """
    options = {
        "--config": config,
        "--*-column": columns or None,
        "--limit": limit,
        "--packages": packages,
        "--whole": whole or None,
        "--passage-words": split,
        "--corpus": corpus,
    }
    path = Path(spec)
    if spec == PythonDocs.name:
        _refuse_others(options, spec, takes=("--limit", "--packages", "--whole"))
        return PythonDocs(limit=limit, packages=packages or (), whole=whole)
    if not path.exists():
        # `data/rows` with a folder `data` here is a misspelt path, not somebody's dataset.
        if not _HUB_ID.fullmatch(spec) or path.parent.exists():
            raise DataError(f"no file or folder {spec}; {_EXPECTED}")
        _refuse_others(options, spec, takes=("--config",))
        default = DEFAULT_CONFIG if spec == DEFAULT_ID else None
        return MsMarco(spec, config=config or default)
    if (path / MANIFEST).is_file() and (path / "passages.parquet").is_file():
        if split is None:
            raise ConfigError(
                f"{spec} is DATA already; --passage-words N cuts its long texts into passages"
            )
        _refuse_others(options, spec, takes=("--passage-words",))
        return LongDocuments(path, *split)
    if logs := log_files(path):
        _refuse_others(options, spec, takes=("--corpus",))
        return ClickLog(path, logs, corpus)
    if path.is_dir() and BeirFolder.fits(path):
        _refuse_others(options, spec)
        return BeirFolder(path)
    files = table_files(path)
    if len(text_files(path)) > TEXTS_PER_TABLE * len(files):
        _refuse_others(options, spec, takes=("--passage-words",))
        return TextDocuments(path, split=split)
    if not files:
        some = sorted(path.iterdir()) if path.is_dir() else [path]
        names = ", ".join(file.name for file in some[:5]) or "nothing"
        raise DataError(f"{path} is of no known kind (found: {names}); {_EXPECTED}")
    if not columns and MsMarco.fits(files):
        _refuse_others(options, spec)
        return MsMarco(spec, files=files)
    _refuse_others(options, spec, takes=("--*-column",))
    return Tables(spec, files, columns or {}, texts=texts)


def _refuse_others(
    options: Mapping[str, object], spec: str, *, takes: Collection[str] = ()
) -> None:
    for flag, value in options.items():
        if value is None or flag in takes:
            continue
        if flag == "--passage-words":
            raise ConfigError(
                f"--passage-words does not apply to {spec}; make DATA of it first, then: "
                "ingest prepare DATA --out PASSAGES --passage-words N"
            )
        raise ConfigError(f"{flag} does not apply to {spec}; leave it out")
