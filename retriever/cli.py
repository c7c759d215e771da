"""The `retriever` command: search a collection, measure it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.console import CommandGroup
from retriever.options import Path_, Url

if TYPE_CHECKING:
    from retriever.search import Retriever

app = typer.Typer(
    cls=CommandGroup,
    help="Search a collection that `ingest load` made, and measure how well it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(help="Collection: its alias or versioned name.")]
Bundle = Annotated[Path, typer.Option(help="Folder that `models train` wrote.")]


@app.command()
def search(
    name: Name,
    queries: Annotated[list[str], typer.Argument(help="One or more queries, each in quotes.")],
    bundle: Bundle,
    k: Annotated[int, typer.Option("-k", help="Number of hits.")] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show each stage's score and rank.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per query.")
    ] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Search, best hits first."""
    from retriever.terminal import show_result

    with _open(name, bundle, url, path) as retriever:
        for query in queries:
            result = retriever.explain(query, k=k)
            if as_json:
                typer.echo(json.dumps(result.to_dict(), ensure_ascii=False))
            else:
                typer.echo(show_result(result, explain=explain))


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


def _open(name: str, bundle: Path, url: str | None, path: Path | None) -> "Retriever":
    from retriever.search import Retriever

    return Retriever.open(name, bundle=bundle, url=url, path=path)
