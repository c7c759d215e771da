"""The `retriever evaluate` command."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.retriever.commands.flags import Bundle, Name, Path_, Settings, Url

if TYPE_CHECKING:
    from two_tower.retriever.engine.protocol import Engine
    from two_tower.retriever.search.retriever import Retriever


Data = Annotated[Path, typer.Argument(help="DATA folder with the judged queries.")]

Out = Annotated[
    Path, typer.Option(help="Folder for report.html, .md and .json, per_query.tsv and runs/.")
]

Split = Annotated[str, typer.Option(help="Which judgements.")]

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
    int,
    typer.Option(
        help="Grade from which a passage is relevant to recall, MRR and MAP; TREC Deep Learning "
        "asks for 2. nDCG takes all grades.",
        min=1,
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


def evaluate(
    name: Name,
    data: Data,
    bundle: Bundle,
    out: Out,
    split: Split = "dev",
    systems: Systems = None,
    baseline: Baseline = None,
    relevant_from: RelevantFrom = 1,
    also: Also = None,
    runs: Runs = None,
    settings: Settings = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Measure systems over the whole corpus: quality, what chance could do, time and size."""
    from two_tower.models.data import Dataset
    from two_tower.retriever.engine.connect import connect
    from two_tower.retriever.evaluation.contrast import find_contrasts
    from two_tower.retriever.evaluation.evaluate import measure_all
    from two_tower.retriever.evaluation.page import write_report
    from two_tower.retriever.evaluation.report import to_markdown
    from two_tower.retriever.evaluation.systems import choose_systems, run_system
    from two_tower.retriever.search.settings import SearchSettings, read_settings

    dataset = Dataset.open(data)
    words = None if systems is None else [word.strip() for word in systems.split(",")]
    read = [run_system(file) for file in runs or []]
    searching = SearchSettings() if settings is None else read_settings(settings)
    engine = connect(url=url, path=path, create=False)
    try:
        retriever = _open(engine, name, bundle).with_settings(searching)
        chosen = choose_systems(retriever, words, others=_others(engine, also or [], bundle))
        evaluation = measure_all(
            retriever,
            dataset,
            systems=[*read, *chosen],
            split=split,
            baseline=baseline,
            relevant_from=relevant_from,
        )
        contrasts = find_contrasts(evaluation, retriever.passages())
    finally:
        engine.close()
    write_report(evaluation, contrasts, out)
    typer.echo(to_markdown(evaluation.report))
    if lacking := evaluation.report.missing_answers:
        typer.echo(
            f"Warning: {lacking:,} of {evaluation.report.answers:,} relevant passages are not in "
            "the collection and count as not found",
            err=True,
        )
    typer.echo(f"Wrote {out / 'report.html'} and, beside it, report.md, report.json …", err=True)


def _others(engine: "Engine", words: Sequence[str], bundle: Path) -> "dict[str, Retriever]":
    """Open the collections that --also names, with their own bundles or this one."""
    pairs = [word.partition("=") for word in words]
    return {name: _open(engine, name, Path(file) if file else bundle) for name, _, file in pairs}


def _open(engine: "Engine", name: str, bundle: Path) -> "Retriever":
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.retriever.search.retriever import Retriever
    from two_tower.retriever.search.settings import SearchSettings

    return Retriever(engine, name, ModelBundle.load(bundle), settings=SearchSettings())
