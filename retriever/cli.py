"""The `retriever` command: search a collection, measure it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.console import CommandGroup
from retriever.commands_serve import serve
from retriever.flags import Bundle, Name, Path_, Url

if TYPE_CHECKING:
    from retriever.search import Retriever

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
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Search, best hits first; without a query, interactively."""
    from retriever.filter_words import parse_filters
    from retriever.session import Wishes, answer, answer_lines

    with _open(name, bundle, url, path) as retriever:
        chosen = parse_filters(filters or [], retriever.fields)
        wishes = Wishes(k, chosen, explain=explain, as_json=as_json, budget_ms=budget_ms)
        if not queries:
            answer_lines(retriever, wishes)
        for query in queries or []:
            answer(retriever, query, wishes)


@app.command()
def evaluate(
    name: Name,
    data: Annotated[Path, typer.Argument(help="DATA folder with the judged queries.")],
    bundle: Bundle,
    out: Annotated[Path, typer.Option(help="Folder for report.json and report.md.")],
    split: Annotated[str, typer.Option(help="Which judgements.")] = "dev",
    systems: Annotated[
        str | None,
        typer.Option(help="Comma-separated, e.g. bm25,dense,rerank; all but rank_bm25 by default."),
    ] = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Measure recall, MRR and nDCG of every stage over the whole corpus."""
    from models.data import Dataset
    from retriever.evaluate import evaluate as measure
    from retriever.report import to_markdown, write_report

    dataset = Dataset.open(data)
    chosen = None if systems is None else [name.strip() for name in systems.split(",")]
    with _open(name, bundle, url, path) as retriever:
        report = measure(retriever, dataset, split=split, systems=chosen)
    write_report(report, out)
    typer.echo(to_markdown(report))
    typer.echo(f"Wrote {out / 'report.json'} and {out / 'report.md'}", err=True)


app.command()(serve)


def _open(name: str, bundle: Path, url: str | None, path: Path | None) -> "Retriever":
    from retriever.search import Retriever

    return Retriever.open(name, bundle=bundle, url=url, path=path)
