"""`prepare`: from a source to DATA in one call, as `ingest prepare` does it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.choose import open_source
from two_tower.ingest.sources.click_log import ClickLog
from two_tower.ingest.sources.documents import TextDocuments
from two_tower.ingest.sources.long_documents import SplitConfig
from two_tower.ingest.sources.questions import Questions
from two_tower.models.data import Dataset
from two_tower.models.language import ENGLISH

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})

DEV_FRACTION = 0.1


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    queries: str | Path | None = None,
    config: str | None = None,
    columns: Mapping[str, str] = NO_COLUMNS,
    dev_fraction: float = DEV_FRACTION,
    limit: int | None = None,
    packages: Sequence[str] | None = None,
    whole: bool = False,
    language: str | None = None,
    passage_words: int | None = None,
    overlap_words: int = 0,
    merge: bool = False,
    corpus: str | Path | None = None,
    force: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Turn a source into one DATA folder: passages, queries, judgements and a manifest.

    Args:
        source: a file, a folder (a log of searches among others), a Hugging Face Hub id, or
            `python-docs`.
        out: the folder to make.
        queries: questions in a file of their own, a table or one a line.
        config: of a Hub dataset.
        columns: role -> name of a table's column, where it is none of the usual names; the roles
            are query, passage, title, url, passage_id, query_id, relevance and split.
        dev_fraction: the share of the queries that becomes split dev where there is only train.
        limit: passages of python-docs at most.
        packages: installed packages for python-docs, beside the standard library; `all` for every
            one.
        whole: whole docstrings for python-docs, without queries.
        language: whose stop words and stems BM25 knows; `none` for words as they stand, `pieces`
            for those of the bundle's tokenizer. English where nothing is said, or as DATA says
            that is to be split.
        passage_words: cut long texts into passages of at most so many words.
        overlap_words: words of a passage that the next one repeats.
        merge: passages of equal title and text become one, although their ids or fields differ: the
            first, whose id and fields hold; judgements of the others go to it.
        corpus: DATA with the passages that a log of searches showed; its queries stay there.
        force: replace a DATA folder.
        notify: is told what is worth knowing about the source, a line each.

    Returns:
        DATA; `manifest["counts"]` says what is in it and what was set aside.

    Raises:
        ConfigError: an option that this kind of source does not take.
        DataError: there is no such source, nothing in it can be used, or `out` must not be written.
    """
    split = None
    if language is None:
        language = _language_of(Path(source))
    if passage_words or overlap_words or language != ENGLISH:
        from two_tower.retriever.collection.bm25_vectors import check_language, words_or_pieces

        check_language(language)
        if passage_words or overlap_words:
            cut = SplitConfig(passage_words or 0, overlap_words)
            split = (cut, words_or_pieces(language))
    opened = open_source(
        str(source),
        config=config,
        columns=dict(columns),
        limit=limit,
        packages=packages,
        whole=whole,
        split=split,
        corpus=None if corpus is None else Path(corpus),
    )
    questions = Questions(Path(queries)) if queries else None
    with DatasetWriter(
        out,
        source=opened.name,
        details=opened.details,
        # What the present engine was clicked for measures no other one.
        dev_fraction=0.0 if isinstance(opened, ClickLog) else dev_fraction,
        overwrite=force,
        merge=merge or None,
        language=language,
    ) as writer:
        opened.write_to(writer)
        if questions:
            part_for = opened.part_for if isinstance(opened, TextDocuments) else None
            questions.write_to(writer, part_for=part_for)
    for note in writer.notes:
        notify(note)
    return Dataset.open(out)


def _language_of(source: Path) -> str:
    """Return what DATA says that is to be split; English for any other source."""
    is_data = (source / "manifest.json").is_file() and (source / "passages.parquet").is_file()
    return Dataset.open(source).language if is_data else ENGLISH
