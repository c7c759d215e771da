"""`ingest prepare`: a source to a DATA folder."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from two_tower.models.console import name_next, note, print_pairs, say
from two_tower.models.language import PIECES

NAMES_WIDTH = 14


def _column(content: str) -> Any:
    return typer.Option(help=f"Column with the {content}.", show_default=False, metavar="NAME")


SourceName = Annotated[
    str,
    typer.Argument(
        help="A text file or a folder of them (.txt, .md), a JSONL, CSV, TSV or Parquet table (or "
        "a folder of them), a BEIR folder, MS MARCO rows on disk or under a Hugging Face Hub id, "
        "python-docs, DATA to be split, or the folder of retriever serve --log."
    ),
]

Out = Annotated[Path, typer.Option(help="The DATA folder to make.")]

Config = Annotated[
    str | None, typer.Option(help="Configuration of a Hub dataset (MS MARCO: v1.1).")
]

DevFraction = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=0.9,
        help="Share of the queries that becomes split dev where the source has only train.",
    ),
]

Limit = Annotated[int | None, typer.Option(min=1, help="At most so many passages of python-docs.")]

Packages = Annotated[
    str | None,
    typer.Option(
        help="Installed packages whose docstrings python-docs takes beside the standard library, "
        "comma-separated; all for every one."
    ),
]

Whole = Annotated[
    bool,
    typer.Option(
        "--whole",
        help="Whole docstrings for python-docs, to search in: no summary line becomes a query.",
    ),
]

QueriesFile = Annotated[
    Path | None,
    typer.Option(
        help="Questions in a file of their own: a JSONL, CSV or TSV table with the column query "
        "and, where they are judged, passage_id (perhaps relevance, split, query_id), or a .txt "
        "with one a line."
    ),
]

Language = Annotated[
    str | None,
    typer.Option(
        help="Of the texts: whose stop words and stems BM25 knows (german, french, russian, …). "
        "none: words as they stand. pieces: those of the bundle's tokenizer, for texts without "
        "spaces.",
        show_default="english",
        metavar="NAME",
    ),
]

PassageWords = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Cut text files, or the texts of DATA, into passages of at most so many words.",
    ),
]

OverlapWords = Annotated[
    int, typer.Option(min=0, help="Words of a passage that the next one repeats.")
]

Merge = Annotated[
    bool,
    typer.Option(
        "--merge",
        help="Passages of equal title and text become one, the first, although their ids or fields "
        "differ; merged.jsonl keeps the others, and their judgements go to it.",
    ),
]

Corpus = Annotated[
    Path | None,
    typer.Option(
        help="DATA with the passages that a log of searches showed: what the collection was loaded "
        "from."
    ),
]

Force = Annotated[bool, typer.Option("--force", help="Replace a DATA folder.")]


def prepare(
    source: SourceName,
    *,
    out: Out,
    queries: QueriesFile = None,
    config: Config = None,
    query_column: Annotated[str | None, _column("query (usual names are found)")] = None,
    passage_column: Annotated[str | None, _column("passage (usual names are found)")] = None,
    title_column: Annotated[str | None, _column("passage's title")] = None,
    url_column: Annotated[str | None, _column("passage's URL")] = None,
    passage_id_column: Annotated[str | None, _column("passage's id")] = None,
    query_id_column: Annotated[str | None, _column("query's id")] = None,
    relevance_column: Annotated[str | None, _column("judgement, an integer")] = None,
    split_column: Annotated[str | None, _column("split: train, dev, test, …")] = None,
    dev_fraction: DevFraction = 0.1,
    limit: Limit = None,
    packages: Packages = None,
    whole: Whole = False,
    language: Language = None,
    passage_words: PassageWords = None,
    overlap_words: OverlapWords = 0,
    merge: Merge = False,
    corpus: Corpus = None,
    force: Force = False,
) -> None:
    """Turn a source into one DATA folder: passages, queries, judgements and a manifest.

    A passage that comes again is merged with the first; rows that cannot be used are set aside in
    rejected.jsonl.
    """
    from two_tower.ingest.sources import prepare as preparing
    from two_tower.ingest.sources.click_log import CLICK_LOG

    started = time.monotonic()
    columns = {
        "query": query_column,
        "passage": passage_column,
        "title": title_column,
        "url": url_column,
        "passage_id": passage_id_column,
        "query_id": query_id_column,
        "relevance": relevance_column,
        "split": split_column,
    }
    notes: list[str] = []
    data = preparing.prepare(
        source,
        out,
        queries=queries,
        config=config,
        columns={role: name for role, name in columns.items() if name is not None},
        dev_fraction=dev_fraction,
        limit=limit,
        packages=None if packages is None else [name.strip() for name in packages.split(",")],
        whole=whole,
        language=language,
        passage_words=passage_words,
        overlap_words=overlap_words,
        merge=merge,
        corpus=corpus,
        force=force,
        notify=notes.append,
    )
    counts = data.manifest["counts"]
    pairs = summary(counts)
    if roles := data.manifest["source"].get("columns"):
        pairs.insert(0, ("columns", ", ".join(f"{role}: {c}" for role, c in roles.items())))
    pairs.append(("DATA", f"{out} in {time.monotonic() - started:.1f} s"))
    print_pairs(pairs, width=NAMES_WIDTH)
    for sentence in notes:
        note(f"Note: {sentence}")
    is_of_clicks = data.manifest["source"].get("kind") == CLICK_LOG
    splits = set(counts["labelled_queries"])
    if not (is_of_clicks and splits) and (warning := _warning(splits, out, language=data.language)):
        say(f"Warning: {warning}")
    if is_of_clicks and splits:
        start = ("--start", "BUNDLE", "--only", "fusion,cross")
        name_next("models", "train", out, "--out", "NEW", *start)
    elif splits or data.language == PIECES:
        name_next("models", "train", out, "--out", "BUNDLE")
    else:
        name_next("ingest", "load", out, "--collection", "NAME")


def _warning(splits: set[str], out: Path, *, language: str) -> str:
    """Return what cannot be done with DATA whose judgements are of these splits."""
    if not splits and language == PIECES:
        return "no labelled query, so nothing can be measured"
    if not splits:
        return (
            "no labelled query, so nothing can be measured; to search by words (BM25) run: "
            f"ingest load {out} --collection NAME"
        )
    if splits == {"train"}:
        return (
            "no labelled query but in split train; a larger --dev-fraction takes some to "
            "evaluate with"
        )
    return ""


def summary(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a manifest's counts as names and values."""
    labelled, unlabelled = counts["labelled_queries"], counts["unlabelled_queries"]
    judgements = [
        ("judgements", f"{split} {count:,} (of {labelled.get(split, 0):,} labelled queries)")
        for split, count in counts["qrels"].items()
    ]
    pairs = [
        ("passages", f"{counts['passages']:,}"),
        ("queries", f"{counts['queries']:,} ({unlabelled:,} without judgement)"),
        *(judgements or [("judgements", "none")]),
        ("merged", f"{counts['merged']:,} passages, {counts['merged_qrels']:,} judgements"),
        ("rejected", f"{sum(counts['rejected'].values()):,}"),
        *_reasons(counts["rejected"]),
    ]
    if counts["left_out"]:
        pairs += [("left out", ""), *_reasons(counts["left_out"])]
    return pairs


def _reasons(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [("", f"{count:,} {reason}") for reason, count in counts.items()]
