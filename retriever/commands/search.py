"""The `retriever search` command: where queries come from and where results go."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from two_tower.models.errors import TwoTowerError
from two_tower.retriever.commands.terminal import Look, show_result

if TYPE_CHECKING:
    from two_tower.retriever.search.retriever import Retriever


PROMPT = "search> "

GREETING = "One query per line; Ctrl-D ends."


@dataclass(frozen=True)
class Wishes:
    """What the command's options ask for.

    Attributes:
        k: number of hits.
        filter: as `Retriever.search` takes it.
        explain: show the stages.
        as_json: one JSON object per query instead of text.
        budget_ms: as `Retriever.search` takes it.
    """

    k: int | None
    filter: dict[str, Any] | None
    explain: bool = False
    as_json: bool = False
    budget_ms: float | None = None


def answer(retriever: "Retriever", query: str, wishes: Wishes) -> None:
    """Search and print."""
    result = retriever.explain(query, k=wishes.k, filter=wishes.filter, budget_ms=wishes.budget_ms)
    if wishes.as_json:
        typer.echo(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        look = Look.of_terminal(language=str(retriever.metadata.bm25["language"]))
        typer.echo(show_result(result, look, explain=wishes.explain))


def answer_lines(retriever: "Retriever", wishes: Wishes) -> None:
    """Answer each line of standard input.

    On a terminal there is a prompt, and a query that fails is told in one line and the session
    goes on; from a pipe the first failure ends it.
    """
    if not sys.stdin.isatty():
        for line in _lines(sys.stdin.readline):
            answer(retriever, line, wishes)
        return
    typer.echo(GREETING, err=True)
    for line in _lines(_prompt):
        try:
            answer(retriever, line, wishes)
        except TwoTowerError as error:
            typer.echo(f"Error: {error}", err=True)
    typer.echo(err=True)


def _lines(read: Callable[[], str]) -> Iterator[str]:
    """Yield the lines that are not blank until `read` gives nothing at all."""
    while line := read():
        if line.strip():
            yield line.strip()


def _prompt() -> str:
    import readline  # noqa: F401  history and editing for input()

    try:
        return input(PROMPT) + "\n"
    except (EOFError, KeyboardInterrupt):
        return ""
