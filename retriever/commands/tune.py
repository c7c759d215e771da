"""`retriever tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.models.console import name_next, note, print_table, print_text, say
from two_tower.retriever.commands.flags import (
    Bundle,
    Data,
    Name,
    Path_,
    Split,
    Url,
    at,
    opened_engine,
)
from two_tower.retriever.tuning.goals import DEFAULT_GOAL

if TYPE_CHECKING:
    from two_tower.retriever.tuning.tune import Tuning

Out = Annotated[Path, typer.Option(help="Folder for tune.html, tune.csv, settings.yaml, plots.")]

GoalText = Annotated[
    str,
    typer.Option(
        "--goal",
        help="Conditions and one min or max, e.g. 'max recall@10, p95<=20 ms'. Measures: "
        "recall@1, @10 and @100 by the qrels, or `of exact` against exact search; p50, p95 (ms); "
        "memory (MB).",
    ),
]

QueryCount = Annotated[int, typer.Option(help="How many judged queries to ask.", min=2)]

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


TuneSettings = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        help="YAML file whose search.rewrite names a language model: HyDE is measured too.",
        show_default=False,
    ),
]


def tune(
    name: Name,
    data: Data,
    out: Out,
    bundle: Bundle = None,
    split: Split = "dev",
    goal: GoalText = DEFAULT_GOAL,
    queries: QueryCount = 400,
    sweeps: Sweeps = None,
    passages: Passages = None,
    settings: TuneSettings = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Measure what settings cost and lose, in the real engine; recommend one for a goal.

    Nothing is encoded but the queries, and the collection is left alone: other ways to store it
    are tried in one temporary copy, NAME--tune-…, which is dropped at the end. Exit code 1 where no
    setting meets the goal; the report is written all the same.
    """
    from two_tower.models.data import Dataset
    from two_tower.models.extras import require_extra
    from two_tower.models.files import require_place

    require_extra("train", what="retriever tune")
    from two_tower.retriever.evaluation.measures import judged_queries
    from two_tower.retriever.search.bundles import find_bundle, load_bundle
    from two_tower.retriever.search.retriever import Retriever
    from two_tower.retriever.search.settings import SearchSettings, read_settings
    from two_tower.retriever.tuning import tune as tuning
    from two_tower.retriever.tuning.goals import parse_goal
    from two_tower.retriever.tuning.grid import parse_sweeps
    from two_tower.retriever.tuning.page import write_tuning

    require_place(out, what="a report")
    asked = SearchSettings() if settings is None else read_settings(settings)
    asked = SearchSettings(rewrite=asked.rewrite)
    target, tried_sweeps = parse_goal(goal), parse_sweeps(sweeps)
    judged = judged_queries(Dataset.open(data), split, count=queries)
    with opened_engine(url, path) as engine:
        loaded = load_bundle(bundle) or find_bundle(engine, name)
        retriever = Retriever(engine, name, loaded, settings=asked)
        measured = tuning.tune(
            engine,
            retriever,
            *judged,
            goal=target,
            sweeps=tried_sweeps,
            passages=passages,
            say=note,
        )
    write_tuning(measured, out, data=str(data), split=split)
    _print_tuning(measured, out)
    settings_file = ["--settings", out / "settings.yaml"]
    name_next("retriever", "search", name, "QUERY", *settings_file, *at(url, path))


def _print_tuning(tuning: "Tuning", out: Path) -> None:
    """Print table and verdict; what is to be doubted goes to stderr."""
    from two_tower.retriever.evaluation.report import markdown_table
    from two_tower.retriever.tuning.report import LEGEND, doubts, remark, table_rows, ties, verdict

    print_table(table_rows(tuning), markdown_table, align="llr", keys=2)
    typer.echo()
    print_text(LEGEND)
    if sentence := remark(tuning):
        note(f"Note: {sentence}")
    for doubt in doubts(tuning):
        say(f"Warning: {doubt}")
    note(f"Wrote {out / 'tune.html'} and, beside it, tune.csv, settings.yaml …")
    if not tuning.is_met:
        say(f"Error: {verdict(tuning)}")
        raise typer.Exit(1)
    print_text(verdict(tuning))
    if tied := ties(tuning):
        print_text(tied)
