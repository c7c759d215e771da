"""`retriever search`: where queries come from and where results go."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated

import typer

from two_tower.models.console import print_json, say
from two_tower.models.errors import TwoTowerError
from two_tower.retriever.commands.flags import Bundle, Name, Path_, Settings, Url

PROMPT = "search> "

GREETING = "One query per line; Ctrl-D ends."

Queries = Annotated[
    list[str] | None,
    typer.Argument(help="Queries, each in quotes; none: one per line of standard input."),
]

Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        help="field=value, field>=value (also > <= <), or field~words where the field has a text "
        "index; again for more. The same field=… twice: either.",
    ),
]

Budget = Annotated[
    float | None, typer.Option(help="Skip optional stages that would end later than this.")
]

AtLeast = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Only hits with such a chance to answer; it takes a cross-scorer."
    ),
]


def search(
    name: Name,
    bundle: Bundle = None,
    queries: Queries = None,
    k: Annotated[
        int | None, typer.Option("-k", help="Number of hits.", show_default="10, or all")
    ] = None,
    filters: Filters = None,
    at_least: AtLeast = None,
    budget_ms: Budget = None,
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
    from two_tower.retriever.commands.terminal import print_result
    from two_tower.retriever.records import to_json
    from two_tower.retriever.search.filters import parse_filters
    from two_tower.retriever.search.retriever import Retriever
    from two_tower.retriever.search.settings import SearchSettings, read_settings

    search_settings = SearchSettings() if settings is None else read_settings(settings)
    if at_least is not None:
        search_settings = replace(search_settings, at_least=at_least)
    with Retriever.open(
        name, bundle=bundle, url=url, path=path, settings=search_settings
    ) as retriever:
        conditions = parse_filters(filters or [], retriever.fields)
        language = retriever.metadata.language

        def answer(query: str) -> None:
            result = retriever.explain(query, k=k, filter=conditions, budget_ms=budget_ms)
            if as_json:
                print_json(to_json(result.to_dict()))
            else:
                print_result(result, language=language, explain=explain)

        for query in queries or []:
            answer(query)
        if not queries:
            _answer_lines(answer)


def _answer_lines(answer: Callable[[str], None]) -> None:
    """Answer each line of standard input.

    On a terminal there is a prompt, and a query that fails is told in one line and the session
    goes on; from a pipe the first failure ends it.
    """
    if not sys.stdin.isatty():
        for line in _lines(sys.stdin.readline):
            answer(line)
        return
    say(GREETING)
    for line in _lines(_prompt):
        try:
            answer(line)
        except TwoTowerError as error:
            say(f"Error: {error}")
    say("")


def _lines(read: Callable[[], str]) -> Iterator[str]:
    """Yield the lines that are not blank until `read` gives nothing at all."""
    while line := read():
        if query := line.removeprefix("\ufeff").strip():  # some systems begin a file with a mark
            yield query


def _prompt() -> str:
    import readline  # noqa: F401  history and editing for input()

    try:
        return input(PROMPT) + "\n"
    except (EOFError, KeyboardInterrupt):
        return ""
