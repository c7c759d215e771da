"""The `retriever tune` command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.retriever.commands.flags import Bundle, Name, Path_, Url
from two_tower.retriever.tuning.goals import DEFAULT_GOAL

if TYPE_CHECKING:
    from two_tower.retriever.tuning.tune import Tuning


Data = Annotated[Path, typer.Argument(help="DATA folder with the judged queries.")]

Out = Annotated[Path, typer.Option(help="Folder for tune.html, tune.csv, settings.yaml, plots.")]

Split = Annotated[str, typer.Option(help="Which judgements.")]

WantedGoal = Annotated[
    str,
    typer.Option(
        "--goal",
        help="Conditions and one min or max, e.g. 'max recall@10, p95<=20 ms'. Measures: "
        "recall@1, @10 and @100 by the qrels, or `of exact` against exact search; p50, p95 (ms); "
        "memory (MB).",
    ),
]

Queries = Annotated[int, typer.Option(help="How many judged queries to ask.", min=2)]

Sweeps = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated, of ef, pca, candidates, fusion, quantization, clusters; all by "
        "default. The last two copy the collection."
    ),
]

Passages = Annotated[
    int | None,
    typer.Option(
        help="Measure on a copy of so many passages, all answers among them.",
        show_default="all",
        min=1000,
    ),
]


def tune(
    name: Name,
    data: Data,
    bundle: Bundle,
    out: Out,
    split: Split = "dev",
    goal: WantedGoal = DEFAULT_GOAL,
    queries: Queries = 400,
    sweeps: Sweeps = None,
    passages: Passages = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Measure what settings cost and lose, in the real engine; recommend one for a goal.

    Nothing is encoded but the queries, and the collection is left alone: other ways to store it
    are tried in one scratch copy, NAME--tune-…, which is dropped in the end. Exit code 1 where no
    setting meets the goal; the report is written all the same.
    """
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.data import Dataset
    from two_tower.retriever.engine.connect import connect
    from two_tower.retriever.evaluation.measures import judged_queries
    from two_tower.retriever.search.retriever import Retriever
    from two_tower.retriever.search.settings import SearchSettings
    from two_tower.retriever.tuning import tune as tuning
    from two_tower.retriever.tuning.goals import parse_goal
    from two_tower.retriever.tuning.grid import parse_sweeps
    from two_tower.retriever.tuning.page import write_tuning

    wanted, tried = parse_goal(goal), parse_sweeps(sweeps)
    judged = judged_queries(Dataset.open(data), split, count=queries)
    engine = connect(url=url, path=path, create=False)
    try:
        loaded = ModelBundle.load(bundle)
        retriever = Retriever(engine, name, loaded, settings=SearchSettings())
        found = tuning.tune(
            engine,
            retriever,
            *judged,
            goal=wanted,
            sweeps=tried,
            passages=passages,
            say=_to_stderr,
        )
    finally:
        engine.close()
    write_tuning(found, out, data=str(data), split=split)
    _show(found, out)


def _show(found: "Tuning", out: Path) -> None:
    """Print table and verdict; what is to be doubted goes to stderr."""
    from two_tower.retriever.evaluation.report import markdown_table
    from two_tower.retriever.tuning.report import LEGEND, doubts, remark, table_rows, ties, verdict

    typer.echo(f"{markdown_table(table_rows(found))}\n\n{LEGEND}")
    if said := remark(found):
        _to_stderr(f"Note: {said}")
    for doubt in doubts(found):
        _to_stderr(f"Warning: {doubt}")
    _to_stderr(f"Wrote {out / 'tune.html'} and, beside it, tune.csv, settings.yaml …")
    if not found.is_met:
        _to_stderr(f"Error: {verdict(found)}")
        raise typer.Exit(1)
    typer.echo(verdict(found))
    if tied := ties(found):
        typer.echo(tied)


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)
