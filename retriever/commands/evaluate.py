"""`retriever evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.models.console import name_next, note, print_table, print_text, say
from two_tower.retriever.commands.flags import (
    Bundle,
    Data,
    Name,
    Path_,
    Settings,
    Split,
    Url,
    at,
    opened_engine,
)

if TYPE_CHECKING:
    from two_tower.retriever.engine.protocol import Engine
    from two_tower.retriever.evaluation.evaluate import Report
    from two_tower.retriever.search.retriever import Retriever
    from two_tower.retriever.search.settings import SearchSettings

Out = Annotated[
    Path, typer.Option(help="Folder for report.html, .md and .json, per_query.tsv and runs/.")
]

Systems = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated, e.g. bm25,dense,rerank; all but rank_bm25 by default. "
        "LABEL=FILE.yaml is the engine with the settings of that file, OTHER/dense a system of a "
        "collection that --also names."
    ),
]

Baseline = Annotated[
    str | None,
    typer.Option(help="System to test the others against.", show_default="bm25, if measured"),
]

RelevantFrom = Annotated[
    int | None,
    typer.Option(
        help="Grade from which a passage is relevant to recall, MRR and MAP; TREC Deep Learning "
        "asks for 2. nDCG takes all grades.",
        min=1,
        show_default="1, and 2 for grades of ingest judge",
    ),
]

KeepOwn = Annotated[
    bool,
    typer.Option(
        "--keep-own",
        help="Where a query is itself a passage, by its id, count that passage too; BEIR does not.",
    ),
]

Also = Annotated[
    list[str] | None,
    typer.Option(
        help="Another collection of the same engine, OTHER or OTHER=BUNDLE; again for more."
    ),
]

Runs = Annotated[
    list[Path] | None,
    typer.Option("--run", help="TREC run file of some other system; again for more."),
]

Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[SYSTEM:]MEASURE>=NUMBER",
        help="Exit with 1 where the last system, or SYSTEM, has less, e.g. mrr@10>=0.8; again for "
        "more.",
    ),
]


def evaluate(
    name: Name,
    data: Data,
    out: Out,
    bundle: Bundle = None,
    split: Split = "dev",
    systems: Systems = None,
    baseline: Baseline = None,
    relevant_from: RelevantFrom = None,
    keep_own: KeepOwn = False,
    also: Also = None,
    runs: Runs = None,
    require: Require = None,
    settings: Settings = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Measure systems over the whole corpus: quality, what chance could do, time and size."""
    from two_tower.models.extras import require_extra
    from two_tower.models.files import require_place

    require_extra("train", what="retriever evaluate")
    from two_tower.retriever.evaluation import run
    from two_tower.retriever.evaluation.requirements import misses, read_requirement
    from two_tower.retriever.search.settings import SearchSettings, read_settings

    require_place(out, what="a report")
    search_settings = SearchSettings() if settings is None else read_settings(settings)
    with opened_engine(url, path) as engine:
        others = {}
        for other, _, folder in (word.partition("=") for word in also or []):
            own = Path(folder) if folder else bundle if _fits(engine, other, bundle) else None
            others[other] = _open(engine, other, own, SearchSettings())
        retriever = _open(engine, name, bundle, search_settings)
        report = run.evaluate(
            retriever,
            data,
            out,
            split=split,
            systems=None if systems is None else [word.strip() for word in systems.split(",")],
            others=others,
            runs=runs or (),
            baseline=baseline,
            relevant_from=relevant_from,
            keep_own=keep_own,
            require=require or (),
        )
    _print_report(report)
    note(f"Wrote {out / 'report.html'} and, beside it, report.md, report.json …")
    names = [row.system for row in report.systems]
    if sentences := misses(report, [read_requirement(text, names) for text in require or []]):
        for sentence in sentences:
            say(f"Error: {sentence}")
        raise typer.Exit(1)
    if retriever.metadata.has_tower:
        of = () if split == "dev" else ("--split", split)
        name_next("retriever", "tune", name, data, *of, "--out", "TUNED", *at(url, path))


def _open(
    engine: "Engine", name: str, bundle: Path | None, settings: "SearchSettings"
) -> "Retriever":
    from two_tower.retriever.search.bundles import find_bundle, load_bundle
    from two_tower.retriever.search.retriever import Retriever

    loaded = load_bundle(bundle) or find_bundle(engine, name)
    return Retriever(engine, name, loaded, settings=settings)


def _fits(engine: "Engine", name: str, bundle: Path | None) -> bool:
    from two_tower.retriever.collection.schema import read_metadata
    from two_tower.retriever.search.bundles import fingerprint_of

    needed = read_metadata(engine, engine.resolve(name)).bundle_fingerprint
    return bundle is not None and fingerprint_of(bundle) == needed


def _print_report(report: "Report") -> None:
    from two_tower.retriever.evaluation.report import blocks, markdown_table

    for number, block in enumerate(blocks(report)):
        if number:
            typer.echo()
        if isinstance(block, str):
            print_text(block)
        else:
            print_table(block, markdown_table)
    if missing := report.missing_answers:
        say(
            f"Warning: {missing:,} of {report.answers:,} relevant passages are not in "
            "the collection and count as not found"
        )
