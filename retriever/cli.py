"""The `retriever` command: search a collection, measure it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.models.console import CommandGroup
from two_tower.retriever.commands.evaluate import evaluate
from two_tower.retriever.commands.flags import Bundle, Name, Path_, Settings, Url
from two_tower.retriever.commands.serve import serve
from two_tower.retriever.commands.tune import tune

if TYPE_CHECKING:
    from two_tower.retriever.search.retriever import Retriever

app = typer.Typer(
    cls=CommandGroup,
    help="Search a collection that `ingest load` made, and measure how well it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def search(
    name: Name,
    bundle: Bundle,
    queries: Annotated[
        list[str] | None,
        typer.Argument(help="Queries, each in quotes; none: one per line of standard input."),
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", help="Number of hits.", show_default="10, or all")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="field=value, field>=value (also > <= <), or field~words for full text; again "
            "for more. The same field=… twice: either.",
        ),
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Skip optional stages that would end later than this.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show each stage's score and rank.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per query.")
    ] = False,
    settings: Settings = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Search, best hits first; without a query, interactively."""
    from two_tower.retriever.commands.search import Wishes, answer, answer_lines
    from two_tower.retriever.search.filters import parse_filters

    with _open(name, bundle, settings, url, path) as retriever:
        chosen = parse_filters(filters or [], retriever.fields)
        wishes = Wishes(k, chosen, explain=explain, as_json=as_json, budget_ms=budget_ms)
        if not queries:
            answer_lines(retriever, wishes)
        for query in queries or []:
            answer(retriever, query, wishes)


app.command()(evaluate)
app.command()(tune)
app.command()(serve)


def _open(
    name: str, bundle: Path, settings: Path | None, url: str | None, path: Path | None
) -> "Retriever":
    from two_tower.retriever.search.retriever import Retriever
    from two_tower.retriever.search.settings import read_settings

    chosen = None if settings is None else read_settings(settings)
    return Retriever.open(name, bundle=bundle, url=url, path=path, settings=chosen)
